"""One request on its way from the lookup to the answer, with the wait for an identical one between them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ibidem._util.concurrency import in_thread
from ibidem.errors import CacheClosed
from ibidem.scope import freeze_scope, is_bypassed
from ibidem.single_flight import Flights, Lead, Outcome, Place, Turn, leads, take
from ibidem.types import Answer, Hit, Miss, Rejected, Request, Stored

if TYPE_CHECKING:
    from ibidem.telemetry.telemetry import Telemetry


class Asking:
    """A request to a cache; for adapters. `look` until there is a hit or `wait` says that the model is asked.

    Whoever is told to ask must end it, by `keep` or `end`, since others may wait for the answer. The log
    gets one line for the request: the hit, or the miss that the model was asked for.
    """

    __slots__ = ("_flights", "_lead", "_missed", "_patience", "_since", "_until", "cache", "request")

    def __init__(self, cache: Answering, request: Request) -> None:
        usable = isinstance(request, Request)  # what is none is refused by the lookup
        self.request = request = freeze_scope(request) if usable else request
        self.cache, self._flights = cache, cache.flights
        self._patience = 0.0 if usable and is_bypassed(request) else cache.single_flight
        self._until: float | None = None  # when it has waited enough; None if it did not wait
        self._since = 0
        self._missed: Miss | None = None  # what the log was not told yet
        self._lead: Lead | None = None

    def look(self, objection: Callable[[Hit], str] | None = None) -> Hit | None:
        """The stored answer. A miss is logged when it is clear that waiting will not make it a hit.

        Args:
            objection: Says why a hit must not be served, which makes it a miss for this reason; "" if it may.

        Raises:
            CacheClosed: The cache was closed.
        """
        with self.cache.telemetry.start_lookup(self.request) as span:
            found = self._search()
            if isinstance(found, Hit) and objection is not None and (reason := objection(found)):
                found = _refused(found, reason)
            span.set_result(found)
        return self._found(found)

    async def alook(self, objection: Callable[[Hit], Awaitable[str]]) -> Hit | None:
        """As `look`, for async code: the cache is asked in a thread, and `objection` needs none."""
        with self.cache.telemetry.start_lookup(self.request) as span:
            found = await in_thread(self._search)
            if isinstance(found, Hit) and (reason := await objection(found)):
                found = _refused(found, reason)
            span.set_result(found)
        return await in_thread(self._found, found)

    def wait(self) -> bool:
        """After a miss: whether to look again; False if the model must be asked. Blocks, but not for ever."""
        try:
            # In the thread of an event loop the lead may be a task, which could then never end it.
            turn = self._enter(may_wait=not _in_event_loop())
            if not isinstance(turn, (Lead, Turn)):
                turn = self._waited(turn)
            if self._looks_again(turn):
                return True
            self._tell_miss()
        except BaseException:
            self.end()
            raise
        return False

    async def await_turn(self) -> bool:
        """As `wait`, without blocking: a task needs no thread to wait in."""
        try:
            turn = self._enter()
            if not isinstance(turn, (Lead, Turn)):
                turn = await self._awaited(turn)
            if self._looks_again(turn):
                return True
            if self._missed is not None:
                await in_thread(self._tell_miss)
        except BaseException:
            self.end()
            raise
        return False

    def keep(self, answer: Answer) -> Stored | Rejected:
        """Store the model's answer and let those who wait have it.

        Raises:
            CacheClosed: The cache was closed.
        """
        try:
            result = self.cache.store(self.request, answer)
        except BaseException:
            self.end()
            raise
        if not result:
            self.refuse()
        return result

    def refuse(self) -> None:
        """The answer is not kept, and that to the same request would not be: all who wait ask."""
        if self._lead is not None:
            self._lead.end(Outcome.REFUSED)

    def end(self) -> None:
        """No answer has come, or it was kept: one of those who still wait asks."""
        if self._lead is not None:
            self._lead.end()

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def leading(self) -> bool:
        """Whether others may wait for its end."""
        return self._lead is not None and not self._lead.ended

    def _search(self) -> Hit | Miss | None:
        """What the cache finds; None if it was closed while this waited: the program goes on without it."""
        self._since, self._missed = self._flights.landings, None
        try:
            return self.cache._search(self.request)
        except CacheClosed:
            if self._until is None:
                raise
            return None

    def _found(self, found: Hit | Miss | None) -> Hit | None:
        if isinstance(found, Hit):
            self._tell(found, "hit")
            return found
        self._missed = found
        if found is not None and not self._patience:
            self._tell_miss()
        return None

    def _enter(self, *, may_wait: bool = True) -> Lead | Place | Turn:
        if not self._patience or self._missed is None:  # switched off, closed, or a hit that was of no use
            return Turn.ASK
        now = time.monotonic()
        may_wait = may_wait and not leads() and (self._until is None or now < self._until)
        turn = self._flights.enter(self.request.key, self._since, self._patience, may_wait=may_wait)
        if self._until is None and not isinstance(turn, (Lead, Turn)):
            self._until = now + self._patience
        return turn

    def _waited(self, place: Place) -> Lead | Turn:
        try:
            concurrent.futures.wait([place], self._left())
        except BaseException:
            self._flights.give_up(place)
            raise
        return self._flights.leave(self.request.key, place, self._patience)

    async def _awaited(self, place: Place) -> Lead | Turn:
        try:
            await asyncio.wait([asyncio.wrap_future(place)], timeout=self._left())
        except BaseException:
            self._flights.give_up(place)
            raise
        return self._flights.leave(self.request.key, place, self._patience)

    def _left(self) -> float:
        return max(0.0, (self._until or 0.0) - time.monotonic())

    def _looks_again(self, turn: Lead | Turn) -> bool:
        if isinstance(turn, Lead):
            self._lead = turn
            take(turn)
        return turn is Turn.LOOK

    def _tell_miss(self) -> None:
        if self._missed is not None:
            late = self._until is not None and time.monotonic() >= self._until
            self._tell(self._missed, "timeout" if late else "asked")

    def _tell(self, found: Hit | Miss, outcome: str) -> None:
        self._missed = None
        if self._until is not None:
            self._flights.count(outcome)
        self.cache._note(self.request, found)


class Answering(ABC):
    """Single flight in one call: what `SemanticCache` adds to `lookup` and `store`."""

    flights: Flights
    single_flight: float
    telemetry: Telemetry

    @abstractmethod
    def _search(self, request: Request) -> Hit | Miss: ...

    @abstractmethod
    def _note(self, request: Request, result: Hit | Miss) -> None: ...

    @abstractmethod
    def store(self, request: Request, answer: Answer) -> Stored | Rejected:
        """Keep the answer, if it is worth keeping."""

    def asking(self, request: Request) -> Asking:
        """The request on its way; for adapters."""
        return Asking(self, request)

    def answer(self, request: Request, ask: Callable[[Request], Answer]) -> Answer:
        """The stored answer, or that of `ask`, which is then stored.

        Of identical requests that come meanwhile, from threads or tasks, only one calls `ask`; the others
        wait for its answer, at most `single_flight` seconds.

        Raises:
            InvalidInput: `request` is not a `Request`, or `ask` did not return an `Answer`.
            CacheClosed: The cache was closed.
            Exception: What `ask` raises. One of those who wait tries for itself.
        """
        asking = self.asking(request)
        while (hit := asking.look()) is None and asking.wait():
            pass
        if hit is not None:
            return hit.answer
        with asking:
            answer = ask(request)
            with suppress(CacheClosed):
                asking.keep(answer)
        return answer

    async def aanswer(self, request: Request, ask: Callable[[Request], Awaitable[Answer]]) -> Answer:
        """As `answer`, for async code: the cache is asked in a thread, and waiting needs none."""
        asking = self.asking(request)
        while (hit := await in_thread(asking.look)) is None and await asking.await_turn():
            pass
        if hit is not None:
            return hit.answer
        with asking:
            answer = await ask(request)
            with suppress(CacheClosed):
                await in_thread(asking.keep, answer)
        return answer


def _refused(hit: Hit, reason: str) -> Miss:
    return Miss(reason, hit.question, hit.entry_id, hit.similarity, hit.seconds)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
