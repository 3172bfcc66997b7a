"""LangChain's LLM cache on Ibidem: `langchain_ibidem.install()` is all a program needs."""

import ibidem._util.foreign

try:
    ibidem._util.foreign.require_ours()
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    from ibidem.errors import MissingExtra

    raise MissingExtra("langchain_ibidem", "langchain") from error

from typing import TYPE_CHECKING, Any

from ibidem.adapter.warming import KnownAnswer, warm
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.few_shot import IbidemExampleSelector
from langchain_ibidem.indexing import invalidating
from langchain_ibidem.install import install, uninstall

if TYPE_CHECKING:
    from langchain_ibidem.before_retrieval import answer_first
    from langchain_ibidem.middleware import IbidemMiddleware

__all__ = [
    "IbidemCache",
    "IbidemExampleSelector",
    "IbidemMiddleware",
    "KnownAnswer",
    "answer_first",
    "install",
    "invalidating",
    "uninstall",
    "warm",
]


def __getattr__(name: str) -> Any:
    """Import when asked for: `IbidemMiddleware` needs LangChain's agents; not all need `answer_first`."""
    if name == "IbidemMiddleware":
        from langchain_ibidem.middleware import IbidemMiddleware

        return IbidemMiddleware
    if name == "answer_first":
        from langchain_ibidem.before_retrieval import answer_first

        return answer_first
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
