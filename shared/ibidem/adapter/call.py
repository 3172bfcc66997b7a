"""A request of an adapter to the cache; whatever goes wrong here, the program goes on without the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from weakref import finalize, ref

from ibidem._util.concurrency import in_thread
from ibidem._util.faults import Faults
from ibidem.adapter.stream_scope import keep_scope
from ibidem.answering import Asking
from ibidem.errors import NotCacheable
from ibidem.provenance import remember
from ibidem.types import Answer, Hit, Request, Stored

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


Found = TypeVar("Found")
Stream = TypeVar("Stream")


class Desk:
    """A cache as the objects of a framework use it, and what went wrong there."""

    def __init__(self, cache: SemanticCache, framework: str, faults: Faults | None = None) -> None:
        self.cache = cache
        self.faults = faults or Faults()
        self.look_up = f"look up an answer for {framework}"
        self.store = f"store an answer of {framework}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Desk:
        return self  # a copied model asks the same cache


class Inquiry(Generic[Found]):
    """One request: found by itself or by waiting for an identical one; else the model is asked, and it ends.

    Args:
        desk: Where to ask.
        build: Makes the request at the first lookup, None if there is nothing to ask.
        read: What the program gets for a hit.
        objection: Says why a hit must not be served, as for `Asking.look`.
    """

    def __init__(
        self,
        desk: Desk,
        build: Callable[[], Request | None],
        read: Callable[[Hit], Found | None],
        objection: Callable[[Hit], str] | None = None,
    ) -> None:
        self._desk, self._build, self._read, self._objection = desk, build, read, objection
        self._asking: Asking | None = None
        self._begun = False
        self._stream: ref[Any] | None = None
        self.hit: Hit | None = None
        self.stored: Stored | None = None

    def find(self) -> Found | None:
        """What is stored, or will be when the call that others make for it has ended."""
        while (found := self._look()) is None and self._waits():
            pass
        return found

    async def afind(self) -> Found | None:
        """As `find`: looked up in a thread, waited for without."""
        while (found := await in_thread(self._look)) is None and await self._awaits():
            pass
        return found

    def keep(self, answer: Callable[[], Answer], response: object = None) -> None:
        """Store what `answer` makes of the model's response, and end; `forget` knows it by the response."""
        if self._asking is not None:
            with self._asking as asking:
                self.stored = self._desk.faults.attempt(self._desk.store, partial(_keep, asking, answer))
            if self.stored:
                for known in filter(None, (response, self._stream and self._stream())):
                    remember(known, self.stored)

    def refuse(self) -> None:
        """End: an answer has come that is not kept."""
        if self._asking is not None:
            self._asking.refuse()

    def end(self) -> None:
        """End, if it has not: the call has failed. Somebody else may try."""
        if self._asking is not None:
            self._asking.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Around the call of the model: if it fails, this ends; if it begins a stream, it does not yet."""
        if kind is not None:
            self.end()

    def ended_with(self, stream: Stream) -> Stream:
        """The generator, which ends it when it is read or closed; also if nobody ever begins to read it.

        It keeps the scope in force now, and `forget` knows by it what is stored in the end.
        """
        kept = keep_scope(stream)
        finalize(kept, self.end).atexit = False
        self._stream = ref(kept)
        return kept

    def _look(self) -> Found | None:
        attempt = partial(self._desk.faults.attempt, self._desk.look_up)
        if not self._begun:
            self._begun = True
            self._asking = attempt(self._begin)
        self.hit = attempt(partial(self._asking.look, self._objection)) if self._asking is not None else None
        return attempt(partial(self._read, self.hit)) if self.hit is not None else None

    def _begin(self) -> Asking | None:
        request = self._build()
        return self._desk.cache.asking(request) if request is not None else None

    def _waits(self) -> bool:
        if self._asking is None:
            return False
        return bool(self._desk.faults.attempt(self._desk.look_up, self._asking.wait))

    async def _awaits(self) -> bool:
        try:
            return self._asking is not None and await self._asking.await_turn()
        except Exception as error:
            self._desk.faults.note(self._desk.look_up, error)
            return False


def _keep(asking: Asking, answer: Callable[[], Answer]) -> Stored | None:
    try:
        given = answer()
    except NotCacheable:
        asking.refuse()
        raise
    kept = asking.keep(given)
    return kept if isinstance(kept, Stored) else None
