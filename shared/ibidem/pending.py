"""One request from its lookup to its answer, with the wait for an identical one between them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from ibidem._util.concurrency import in_thread
from ibidem.errors import CacheClosed
from ibidem.scope import freeze_scope, is_bypassed
from ibidem.single_flight import Leader, Outcome, SingleFlight, Waiter, is_leading, set_leading
from ibidem.types import Answer, Hit, Miss, Rejected, Request, Stored

if TYPE_CHECKING:
    from ibidem.telemetry.telemetry import Telemetry


class LookupCache(Protocol):
    """What a pending request needs of a `SemanticCache`: the steps of its `lookup`, and `store`."""

    flights: SingleFlight
    single_flight: float
    telemetry: Telemetry

    def _search(self, request: Request) -> Hit | Miss:
        """Look up without a log entry."""

    def _log(self, request: Request, result: Hit | Miss) -> None:
        """Log the result of a lookup."""

    def store(self, request: Request, answer: Answer) -> Stored | Rejected:
        """Store the answer."""


class PendingRequest:
    """A request that is looked up, waits for an identical one, or asks the model for all of them.

    `lookup` until there is a hit or `wait` returns False: then ask the model, and end by `store`, `reject` or
    `abort`, since identical requests may wait. The log gets one line for the request: the hit, or the miss
    that the model was asked for. A hit costs no more than a plain lookup.
    """

    __slots__ = ("_cache", "_deadline", "_leader", "_miss", "_since", "_timeout", "request")

    def __init__(self, cache: LookupCache, request: Request) -> None:
        valid = isinstance(request, Request)  # the lookup refuses others
        self.request = freeze_scope(request) if valid else request
        self._cache = cache
        self._timeout = 0.0 if valid and is_bypassed(self.request) else cache.single_flight
        self._deadline: float | None = None  # when it has waited enough; None if it did not wait
        self._since = 0
        self._miss: Miss | None = None  # not logged yet
        self._leader: Leader | None = None

    def lookup(self, objection: Callable[[Hit], str] | None = None) -> Hit | None:
        """Return the hit. A miss is logged when it is clear that waiting will not make it a hit.

        Args:
            objection: Says why a hit must not be served, which makes it a miss for this reason; "" if it may.

        Raises:
            CacheClosed: The cache was closed.
        """
        with self._cache.telemetry.start_lookup(self.request) as span:
            result = self._search()
            if isinstance(result, Hit) and objection is not None and (reason := objection(result)):
                result = _refused(result, reason)
            span.set_result(result)
        return self._finish(result)

    async def alookup(self, objection: Callable[[Hit], Awaitable[str]]) -> Hit | None:
        """As `lookup`, for async code: the cache is asked in a thread, and `objection` needs none."""
        with self._cache.telemetry.start_lookup(self.request) as span:
            result = await in_thread(self._search)
            if isinstance(result, Hit) and (reason := await objection(result)):
                result = _refused(result, reason)
            span.set_result(result)
        return await in_thread(self._finish, result)

    def wait(self) -> bool:
        """After a miss, whether to look up again; False if the model must be asked. Blocks, within bounds."""
        try:
            # In the thread of an event loop the leader may be a task, which could then never end.
            turn = self._join(may_wait=not _in_event_loop())
            while isinstance(turn, Future):
                try:
                    concurrent.futures.wait([turn], self._remaining())
                except BaseException:
                    turn.cancel()
                    raise
                turn = self._next_turn(turn)
            if turn is Outcome.STORED:
                return True
            self._lead(turn)
            self._log_miss()
        except BaseException:
            self.abort()
            raise
        return False

    async def await_(self) -> bool:
        """As `wait`, without blocking: a task needs no thread to wait in."""
        try:
            turn = self._join()
            while isinstance(turn, Future):
                try:
                    await asyncio.wait([asyncio.wrap_future(turn)], timeout=self._remaining())
                except BaseException:
                    turn.cancel()
                    raise
                turn = self._next_turn(turn)
            if turn is Outcome.STORED:
                return True
            self._lead(turn)
            if self._miss is not None:
                await in_thread(self._log_miss)
        except BaseException:
            self.abort()
            raise
        return False

    def store(self, answer: Answer) -> Stored | Rejected:
        """Store the model's answer, which those who wait get.

        Raises:
            CacheClosed: The cache was closed.
        """
        try:
            result = self._cache.store(self.request, answer)
        except BaseException:
            self.abort()
            raise
        if not result:
            self.reject()
        return result

    def reject(self) -> None:
        """End: the answer is not stored, nor will that to the same request be. All who wait ask."""
        if self._leader is not None:
            self._leader.end(Outcome.REJECTED)

    def abort(self) -> None:
        """End, if it has not ended: there is no answer. One of those who wait asks."""
        if self._leader is not None:
            self._leader.end()

    def __enter__(self) -> PendingRequest:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()

    @property
    def leading(self) -> bool:
        """Whether others may wait for its end."""
        return self._leader is not None and not self._leader.ended

    def _search(self) -> Hit | Miss | None:
        """The result; None if the cache was closed while this waited: the program goes on without it."""
        self._since, self._miss = self._cache.flights.completed, None
        try:
            return self._cache._search(self.request)
        except CacheClosed:
            if self._deadline is None:
                raise
            return None

    def _finish(self, result: Hit | Miss | None) -> Hit | None:
        if isinstance(result, Hit):
            self._log(result, "hit")
            return result
        self._miss = result
        if result is not None and not self._timeout:
            self._log_miss()
        return None

    def _join(self, *, may_wait: bool = True) -> Leader | Waiter | Outcome:
        if not self._timeout or self._miss is None:  # switched off, closed, or a hit that was of no use
            return Outcome.REJECTED
        now = time.monotonic()
        may_wait = may_wait and not is_leading() and (self._deadline is None or now < self._deadline)
        turn = self._cache.flights.join(self.request.key, self._since, self._timeout, may_wait=may_wait)
        if self._deadline is None and isinstance(turn, Future):
            self._deadline = now + self._timeout
        return turn

    def _next_turn(self, waiter: Waiter) -> Leader | Waiter | Outcome:
        """The leader's outcome; if it failed, or did not end in time, what comes of joining again."""
        if waiter.cancel() or (outcome := waiter.result()) is Outcome.FAILED:
            return self._join()
        return outcome

    def _remaining(self) -> float:
        return max(0.0, (self._deadline or 0.0) - time.monotonic())

    def _lead(self, turn: Leader | Outcome) -> None:
        if isinstance(turn, Leader):
            self._leader = turn
            set_leading(turn)

    def _log_miss(self) -> None:
        if self._miss is not None:
            late = self._deadline is not None and time.monotonic() >= self._deadline
            self._log(self._miss, "timeout" if late else "asked")

    def _log(self, result: Hit | Miss, outcome: str) -> None:
        self._miss = None
        if self._deadline is not None:
            self._cache.flights.count_wait(outcome)
        self._cache._log(self.request, result)


def _refused(hit: Hit, reason: str) -> Miss:
    return Miss(reason, hit.question, hit.entry_id, hit.similarity, hit.seconds)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
