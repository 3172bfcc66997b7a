"""LangChain's LLM cache on Ibidem: `langchain_ibidem.install()` is all a program needs."""

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    from ibidem.errors import MissingExtra

    raise MissingExtra("langchain_ibidem", "langchain") from error

from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.installing import install, uninstall
from langchain_ibidem.invalidating import invalidating
from langchain_ibidem.routing import cache_streams
from langchain_ibidem.selector import IbidemExampleSelector

__all__ = [
    "IbidemCache",
    "IbidemExampleSelector",
    "cache_streams",
    "install",
    "invalidating",
    "uninstall",
]
