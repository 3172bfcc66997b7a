"""`forget`: delete the stored answer behind a response, so that asking again reaches the model.

A repeated response carries a marker that names its entry and cache. A model's own response carries none: the
entry stored for it is remembered for a while, by the object and by the id of its message.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ibidem._util.concurrency import BoundedDict, ForkSafeLock, in_thread
from ibidem.errors import CacheClosed, InvalidInput
from ibidem.types import Hit, Stored

if TYPE_CHECKING:
    from ibidem.lifecycle.invalidation import Invalidated


MARKER = "ibidem"  # key of the marker in the metadata of a repeated response
REMEMBERED = 10_000  # responses whose entries are known, by id and by object
_MARKED = ("response_metadata", "metadata", "raw")  # attributes with the marker of a response
# Attributes that hold a response, or the stream it came from.
_HOLDERS = ("message", "generations", "response", "response_gen", "chat_stream", "achat_stream")

Source = tuple[str, str]  # the id of a cache location, and the id of an entry


class Invalidator(Protocol):
    """What `forget` needs of an open cache."""

    def invalidate(self, *, entry: str) -> Invalidated:
        """Delete an entry."""


_lock = ForkSafeLock()
_open: dict[str, weakref.WeakSet[Invalidator]] = {}
_by_name: BoundedDict[str, tuple[Source, ...]] = BoundedDict(REMEMBERED)
_by_object: BoundedDict[int, tuple[weakref.ref[Any], tuple[Source, ...]]] = BoundedDict(REMEMBERED)


def register(cache: Invalidator, cache_id: str) -> None:
    """Let `forget` delete entries of this location while the cache is open."""
    with _lock:
        _open.setdefault(cache_id, weakref.WeakSet()).add(cache)


def remember(response: object, *sources: Stored | Hit, names: Iterable[str | None] = ()) -> None:
    """Remember the entries behind a response without a marker, by object and by its unique `names`."""
    known = tuple((source.place, source.entry_id) for source in sources)
    with _lock:
        for name in filter(None, names):
            _by_name.put(name, known)
        try:
            _by_object.put(id(response), (weakref.ref(response), known))
        except TypeError:  # it takes no weak reference
            return


def forget(response: object) -> bool:
    """Delete the stored answer behind a response: the same question reaches the model again.

    For answers of no use: a parser fails on one, a user rejects it. Its example is deleted too. The response
    may come from a cache or have just been stored there; the cache must be open in this process. Within
    `ibidem.scope` only answers of its namespace are deleted.

    Args:
        response: A `Hit` or `Stored`; of LangChain a message, generation or `LLMResult`; of LlamaIndex a
            `ChatResponse`, `CompletionResponse` or `Response`, the last chunk of a stream, or the stream
            itself, read to its end; or a dictionary that holds one. A plain text does not show where it comes
            from.

    Returns:
        Whether there was a stored answer.

    Raises:
        StorageError: The database failed.
    """
    found = dict.fromkeys(_sources(response))
    return sum(_delete(cache_id, entry_id) for cache_id, entry_id in found) > 0


async def aforget(response: object) -> bool:
    """As `forget`, in a thread."""
    return await in_thread(forget, response)


def entry_of(answer: object) -> tuple[str, Mapping[str, Any]]:
    """Return the entry id of an answer, "" if it has none, and its marker."""
    if isinstance(answer, str):
        return answer, {}
    if isinstance(answer, Stored):
        return answer.entry_id, {}
    if isinstance(answer, Hit):
        return answer.entry_id, {"similarity": answer.similarity, "score": answer.score}
    if not isinstance(answer, Mapping):
        kind = type(answer).__name__
        raise InvalidInput(
            f"answer must be a Hit, the id of an entry or a message's metadata, not {kind}; pass that of a "
            "message: message.response_metadata (LangChain), response.metadata or .raw (LlamaIndex)"
        )
    marker = answer.get(MARKER, answer)
    entry_id = marker.get("entry_id") if isinstance(marker, Mapping) else None
    return (entry_id, marker) if isinstance(entry_id, str) else ("", {})


def _delete(cache_id: str, entry_id: str) -> int:
    with _lock:
        caches = list(_open.get(cache_id, ()))
    for cache in caches:
        try:
            return cache.invalidate(entry=entry_id).count
        except CacheClosed:
            continue
    return 0


def _sources(response: object, depth: int = 4) -> Iterator[Source]:
    """List the entries behind a response, and behind the responses in it."""
    if isinstance(response, (Hit, Stored)):
        yield response.place, response.entry_id
    elif isinstance(response, Mapping):
        yield from _sources_in(response, depth)
    elif isinstance(response, (list, tuple)):
        for each in response if depth else ():
            yield from _sources(each, depth - 1)
    elif not isinstance(response, (str, bytes)) and response is not None:
        yield from _remembered(response)
        for metadata in _attributes(response, _MARKED):
            if isinstance(metadata, Mapping):
                yield from _sources(metadata)
        for held in _attributes(response, _HOLDERS) if depth else ():
            yield from _sources(held, depth - 1)


def _sources_in(response: Mapping[str, object], depth: int) -> Iterator[Source]:
    """List the entry that a mapping names, or those behind it and what it holds."""
    entry_id, marker = entry_of(response)
    place = marker.get("place")
    if entry_id and isinstance(place, str):
        yield place, entry_id
        return
    yield from _remembered(response)
    for held in response.values() if depth else ():
        yield from _sources(held, depth - 1)


def _remembered(response: object) -> Iterator[Source]:
    name = getattr(response, "id", None)
    with _lock:
        by_object = _by_object.get(id(response))
        by_name = _by_name.get(name) if isinstance(name, str) and name else None
    if by_object is not None and by_object[0]() is response:
        yield from by_object[1]
    if by_name is not None:
        yield from by_name


def _attributes(response: object, names: Iterable[str]) -> Iterator[object]:
    return (getattr(response, name, None) for name in names)
