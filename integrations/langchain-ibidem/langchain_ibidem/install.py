"""`install()` and `uninstall()`: LangChain's global cache, and the streams of all models, on Ibidem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache, set_llm_cache

from ibidem._util.concurrency import ForkSafeLock
from ibidem.errors import InvalidInput
from ibidem.options import AdapterCacheOptions
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.call import HOOKS
from langchain_ibidem.streaming import STREAMS

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


@dataclass(slots=True)
class _Installed:
    """The installed cache, the options it was opened with, and the global cache before it."""

    cache: IbidemCache
    options: AdapterCacheOptions | None
    before: BaseCache | None

    def close(self) -> None:
        """Close the cache, unless it was handed in."""
        if self.options is not None:
            self.cache.close()
            HOOKS.release(self.cache)


_lock = ForkSafeLock()
_installed: _Installed | None = None


def install(
    cache: IbidemCache | SemanticCache | None = None,
    *,
    streams: bool = True,
    **options: Unpack[AdapterCacheOptions],
) -> IbidemCache:
    """Make an `IbidemCache` LangChain's global cache, also for streams of all models, and return it.

    Called again without a cache or options it changes nothing but `streams`; with others it replaces the
    cache. What it opened itself is closed when it is replaced or uninstalled.

    Args:
        cache: An `IbidemCache`, which stays yours to close, or an open `ibidem.SemanticCache`. By default
            one is opened.
        streams: False to leave `stream` and `astream` to LangChain, which asks no cache for them.
        **options: For `IbidemCache`: `namespace`, `question_keys`, ..., and those of `ibidem.open`.

    Raises:
        InvalidInput: Both an `IbidemCache` and options were given, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """
    global _installed
    if isinstance(cache, IbidemCache) and options:
        raise InvalidInput(f"pass an IbidemCache or options to make one, not both (got {sorted(options)})")
    with _lock:
        former = current = _installed
        if current is None or not _means(cache, options, current):
            ours = cache if isinstance(cache, IbidemCache) else IbidemCache(cache, **options)
            before = get_llm_cache() if former is None else former.before
            current = _installed = _Installed(ours, None if ours is cache else options, before)
            set_llm_cache(ours)
            if former is not None:
                former.close()
        set_llm_cache(current.cache)
        (STREAMS.apply if streams else STREAMS.restore)()
        return current.cache


def uninstall() -> None:
    """Undo `install()`; without one, nothing happens. A global cache that was set since stays.

    Streams of chains and graphs keep their scopes as long as there is another `IbidemCache`.
    """
    global _installed
    with _lock:
        if _installed is None:
            return
        done, _installed = _installed, None
        STREAMS.restore()
        if get_llm_cache() is done.cache:
            set_llm_cache(done.before)
        done.close()


def _means(
    cache: IbidemCache | SemanticCache | None, options: AdapterCacheOptions, installed: _Installed
) -> bool:
    """Whether these arguments ask for what is installed."""
    if cache is None:
        return not options or options == installed.options
    ours = installed.cache
    return cache is ours or (cache is ours.cache and options == installed.options)
