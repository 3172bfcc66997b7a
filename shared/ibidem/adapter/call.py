"""The door for adapters: one call of a model that goes through the cache.

`CachedCall` is all that an adapter needs of the cache while a call is under way. Whatever goes wrong in the
cache, or in the adapter's own functions, is counted and kept from the program: the model is asked, as without
a cache. Only what the program's own model raises reaches the program.
"""

from __future__ import annotations

import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
)
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar
from weakref import finalize, ref

from ibidem._util.concurrency import context_value, in_thread
from ibidem._util.faults import Faults
from ibidem.adapter.options import open_or_use
from ibidem.adapter.streams import keep_scope
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.pipeline import PendingRequest
from ibidem.provenance import remember
from ibidem.types import Answer, Hit, Request, Stored

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


T = TypeVar("T")
Found = TypeVar("Found")
Stream = TypeVar("Stream")
Chunk = TypeVar("Chunk")
Chunk_contra = TypeVar("Chunk_contra", contravariant=True)

_calls_within: ContextVar[CallsWithin | None] = ContextVar("ibidem_calls_within", default=None)
_READ_CHUNK, _CLOSE_STREAM = "read a chunk of a stream", "close a stream of the model"


def attempt(
    faults: Faults, operation: str, work: Callable[[], T], *, refused: str = "does not cache a call"
) -> T | None:
    """Return the result of `work`, or None if it fails: the caller's program goes on without it.

    A failure is counted in `faults`; the log says what was `refused`.
    """
    try:
        return work()
    except Exception as error:
        faults.swallow(operation, error, refused)
    return None


async def aattempt(faults: Faults, operation: str, work: Awaitable[T]) -> T | None:
    """As `attempt`, for what is awaited."""
    try:
        return await work
    except Exception as error:
        faults.swallow(operation, error)
    return None


@dataclass(slots=True)
class CallsWithin:
    """What the calls of models within a run of a program found, and whether one of them left an example."""

    hits: list[Hit] = field(default_factory=list)
    example: bool = False


def collect_calls(within: CallsWithin) -> AbstractContextManager[CallsWithin]:
    """Note all calls in a block in `within`, also those in threads and tasks that are begun in it."""
    return context_value(_calls_within, within)


class AdapterCache:
    """A cache as the objects of one framework share it, and the failures that were kept from the program.

    Args:
        cache: The open cache.
        framework: Its name, for the log and the causes of `faults`.
        faults: Where failures are counted; new counts by default.
        owned: Whether `close` closes the cache.

    Raises:
        InvalidInput: It is no cache: each call would go to the model, and nobody would know why.
    """

    def __init__(
        self, cache: SemanticCache, framework: str, faults: Faults | None = None, *, owned: bool = False
    ) -> None:
        if not hasattr(type(cache), "store"):
            raise InvalidInput(
                f"cache must be an open cache, as ibidem.open() returns it, not {type(cache).__name__}; "
                "where to open one is told by name: path='./answers'"
            )
        self.cache = cache
        self.faults = faults or Faults()
        self._owned = owned
        self.lookup_operation = f"look up an answer for {framework}"
        self.store_operation = f"store an answer of {framework}"

    @classmethod
    def of(
        cls, cache: SemanticCache | None, framework: str, *, owner: str, options: Mapping[str, Any]
    ) -> AdapterCache:
        """Use the open cache that an adapter was given, or open one with these options of `ibidem.open`.

        `owner` names, in messages, the class that takes the options; raises as `open_or_use`.
        """
        return cls(open_or_use(cache, options, owner), framework, owned=cache is None)

    def close(self) -> bool:
        """Close the cache if it was opened here; whether it was."""
        if self._owned:
            self.cache.close()
        return self._owned

    def __copy__(self) -> AdapterCache:
        return self  # a copied model asks the same cache

    def __deepcopy__(self, memo: dict[int, Any]) -> AdapterCache:
        return self


class StreamAccumulator(Protocol[Chunk_contra]):
    """Collects the chunks of a stream and makes one answer of them."""

    def add(self, chunk: Chunk_contra) -> None:
        """Take one chunk. Copy what is needed of it: the program may change it."""

    def answer(self) -> Answer | None:
        """The answer of the whole stream, called once after its last chunk; None if it is not to be stored.

        Raises:
            NotCacheable: It must not be stored, and the log should say why.
        """


class CachedCall(Generic[Found]):
    """One call of a model: looked up first, and stored when the model has answered in full.

    Make one per call, and look up before the model is asked:

    ```
    call = CachedCall(adapter, build_request, read_hit)
    if (response := call.lookup()) is not None:
        return response
    with call:
        response = model(...)
    call.store(lambda: to_answer(response), response)
    return response
    ```

    Of identical calls under way only one asks its model. The others wait in `lookup` for its answer, so a
    call that has missed must come to an end: by `store`, `reject` or `abort`, by an exception within
    `with call:`, or by the end of the stream that `record` was given. What comes after the end does nothing.

    A call that is stored in another method than it was looked up in (a cache interface with `lookup` and
    `update`) is kept between them by the adapter, or made anew: `store` does not need a `lookup` before it.

    Args:
        adapter: The cache to ask.
        build_request: Builds the request, once, when it is first needed; None if there is nothing to ask. May
            raise `NotCacheable`, which is counted.
        read_hit: Makes the program's response of a hit; None if it cannot be used.
        objection: Says why a hit must not be served, which makes it a miss for this reason; "" if it may.
            `alookup` calls it in a thread.
        aobjection: The same for `alookup`, awaited in the event loop, in place of `objection`.

    Attributes:
        hit: What `lookup` found, if its response was of use.
        stored: What was stored.
    """

    def __init__(
        self,
        adapter: AdapterCache,
        build_request: Callable[[], Request | None],
        read_hit: Callable[[Hit], Found | None],
        objection: Callable[[Hit], str] | None = None,
        aobjection: Callable[[Hit], Awaitable[str]] | None = None,
    ) -> None:
        self._adapter, self._build_request, self._read_hit = adapter, build_request, read_hit
        self._objection, self._aobjection = objection, aobjection
        self._pending: PendingRequest | None = None
        self._built = False
        self._asked_at = time.perf_counter()
        self._stream: ref[Any] | None = None
        self.hit: Hit | None = None
        self.stored: Stored | None = None

    def lookup(self) -> Found | None:
        """Return the response of a stored answer, or None: then ask the model.

        Waits for an identical call that is under way, at most the cache's `single_flight` seconds.
        """
        while (found := self._look()) is None and self._wait():
            pass
        self._asked_at = time.perf_counter()
        return found

    async def alookup(self) -> Found | None:
        """As `lookup`, in one of the cache's threads; waiting needs none."""
        while (found := await self._alook()) is None and await self._await():
            pass
        self._asked_at = time.perf_counter()
        return found

    def store(self, answer: Callable[[], Answer | None], response: object = None) -> Stored | None:
        """Store what `answer` makes of the model's response, and end the call.

        If it returns None or raises `NotCacheable`, the call is rejected. `ibidem.forget(response)` finds
        what was stored, if the object can be referred to weakly; for others `remember` it by name.
        """
        pending = self._begun(self._adapter.store_operation)
        if pending is None:
            return None
        with pending:
            self.stored = self._attempt(self._adapter.store_operation, partial(_store, pending, answer))
        if self.stored and (within := _calls_within.get()) is not None:
            within.example |= pending.request.example
        if self.stored:
            for known in filter(None, (response, self._stream and self._stream())):
                remember(known, self.stored)
        return self.stored

    async def astore(self, answer: Callable[[], Answer | None], response: object = None) -> Stored | None:
        """As `store`, in one of the cache's threads, where `answer` is called too."""
        return await in_thread(self.store, answer, response)

    def reject(self) -> None:
        """End the call: there is an answer that is not stored, nor will that to an identical call be."""
        if self._pending is not None:
            self._pending.reject()

    def abort(self) -> None:
        """End the call: it failed. One of the identical calls that wait asks its model."""
        if self._pending is not None:
            self._pending.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Abort if the model fails. Nothing else ends here: a stream may just have begun."""
        if kind is not None:
            self.abort()

    def record(
        self,
        stream: Iterable[Chunk],
        accumulator: StreamAccumulator[Chunk],
        on_stored: Callable[[Stored], None] | None = None,
    ) -> Generator[Chunk, None, None]:
        """Pass a model's stream on unchanged, and store what it amounts to if it is read to its end.

        A stream that fails, or is closed or dropped before its end, aborts the call, also if nobody ever
        begins to read it. It keeps the scope in force now, whoever reads it.

        Args:
            stream: The model's stream. It is closed with the one that is returned.
            accumulator: Collects the chunks.
            on_stored: Called with what was stored, to `remember` it by names. `ibidem.forget` finds it by the
                stream and by its last chunk without.
        """
        return self._ended_with(self._recorded(stream, _Recording(accumulator), on_stored))

    def arecord(
        self,
        stream: AsyncIterable[Chunk],
        accumulator: StreamAccumulator[Chunk],
        on_stored: Callable[[Stored], None] | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """As `record`; the answer is made and stored in one of the cache's threads."""
        return self._ended_with(self._arecorded(stream, _Recording(accumulator), on_stored))

    def replay(self, stream: Stream) -> Stream:
        """Return the stream that repeats the hit: it keeps the scope, and `ibidem.forget` knows it."""
        kept = keep_scope(stream)
        if self.hit is not None:
            remember(kept, self.hit)
        return kept

    @property
    def request(self) -> Request | None:
        """What is asked; None before the first `lookup` or `store`, or if no request could be built."""
        return None if self._pending is None else self._pending.request

    @property
    def leading(self) -> bool:
        """Whether identical calls may be waiting for this one to end."""
        return self._pending is not None and self._pending.leading

    @property
    def seconds(self) -> float:
        """Seconds since the lookup ended: how long the model has taken."""
        return time.perf_counter() - self._asked_at

    def _attempt(self, doing: str, work: Callable[[], T]) -> T | None:
        return attempt(self._adapter.faults, doing, work)

    def _begun(self, doing: str) -> PendingRequest | None:
        if not self._built:
            self._built = True
            self._pending = self._attempt(doing, self._build)
        return self._pending

    def _build(self) -> PendingRequest | None:
        request = self._build_request()
        return PendingRequest(self._adapter.cache.steps, request) if request is not None else None

    def _look(self) -> Found | None:
        pending = self._begun(self._adapter.lookup_operation)
        if pending is None:
            return None
        return self._read(
            self._attempt(self._adapter.lookup_operation, partial(pending.lookup, self._objection))
        )

    async def _alook(self) -> Found | None:
        if self._aobjection is None:
            return await in_thread(self._look)
        pending = await in_thread(self._begun, self._adapter.lookup_operation)
        if pending is None:
            return None
        hit = await aattempt(
            self._adapter.faults, self._adapter.lookup_operation, pending.alookup(self._aobjection)
        )
        return await in_thread(self._read, hit)

    def _read(self, hit: Hit | None) -> Found | None:
        found = self._attempt(self._adapter.lookup_operation, partial(self._read_hit, hit)) if hit else None
        self.hit = None if found is None else hit
        if self.hit is not None and (within := _calls_within.get()) is not None:
            within.hits.append(self.hit)
            within.example |= self.request is not None and self.request.example
        return found

    def _wait(self) -> bool:
        if self._pending is None:
            return False
        return bool(self._attempt(self._adapter.lookup_operation, self._pending.wait))

    async def _await(self) -> bool:
        if self._pending is None:
            return False
        return bool(
            await aattempt(self._adapter.faults, self._adapter.lookup_operation, self._pending.await_())
        )

    def _ended_with(self, stream: Stream) -> Stream:
        """Abort when the generator is dropped, if it has not ended by then."""
        kept = keep_scope(stream)
        finalize(kept, self.abort).atexit = False
        self._stream = ref(kept)
        return kept

    def _recorded(
        self,
        stream: Iterable[Chunk],
        recording: _Recording[Chunk],
        on_stored: Callable[[Stored], None] | None,
    ) -> Generator[Chunk, None, None]:
        with self:
            try:
                for chunk in stream:
                    self._attempt(_READ_CHUNK, partial(recording.add, chunk))
                    yield chunk
            finally:
                if close := getattr(stream, "close", None):
                    self._attempt(_CLOSE_STREAM, close)
            self._store_recorded(recording, on_stored)

    async def _arecorded(
        self,
        stream: AsyncIterable[Chunk],
        recording: _Recording[Chunk],
        on_stored: Callable[[Stored], None] | None,
    ) -> AsyncGenerator[Chunk, None]:
        with self:
            try:
                async for chunk in stream:
                    self._attempt(_READ_CHUNK, partial(recording.add, chunk))
                    yield chunk
            finally:
                if close := getattr(stream, "aclose", None):
                    await aattempt(self._adapter.faults, _CLOSE_STREAM, close())
            await in_thread(self._store_recorded, recording, on_stored)

    def _store_recorded(self, recording: _Recording[Any], on_stored: Callable[[Stored], None] | None) -> None:
        if (stored := self.store(recording.answer, recording.last)) and on_stored is not None:
            self._attempt(self._adapter.store_operation, partial(on_stored, stored))


class _Recording(Generic[Chunk]):
    """What was taken of a stream, and whether all of it was."""

    __slots__ = ("_accumulator", "_whole", "last")

    def __init__(self, accumulator: StreamAccumulator[Chunk]) -> None:
        self._accumulator, self._whole = accumulator, True
        self.last: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        self.last = chunk
        try:
            self._accumulator.add(chunk)
        except BaseException:
            self._whole = False
            raise

    def answer(self) -> Answer | None:
        if not self._whole:
            raise NotCacheable("unclear_stream", "the stream held chunks that cannot be copied")
        return self._accumulator.answer()


def _store(pending: PendingRequest, answer: Callable[[], Answer | None]) -> Stored | None:
    try:
        given = answer()
    except NotCacheable:
        pending.reject()
        raise
    if given is None:
        pending.reject()
        return None
    result = pending.store(given)
    return result if isinstance(result, Stored) else None
