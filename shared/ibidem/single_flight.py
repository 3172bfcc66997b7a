"""Single flight: of identical concurrent requests one asks the model, the others wait for its answer.

The first request to miss a key becomes its leader and asks. Those that miss it meanwhile get a future, which
threads wait for and tasks await. A failure never costs more than a bounded wait:

* A leader waits for no other, in whatever thread or task it continues: there is no deadlock.
* When a leader's call fails, all waiters join again: the first becomes the leader, the others wait for it.
* When its answer may not be stored, all waiters ask at once, as the answer to the same request would be
  rejected again; and for a while nobody waits for this key.
* A leader that never ends is replaced after its timeout, and nobody waits longer than that in total.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from threading import Lock

from ibidem._util.concurrency import BoundedDict

MAX_LEADERS = 10_000  # concurrent model calls; further ones go on without single flight
REMEMBERED = 4096  # recently answered or rejected keys

# The leaders of the running code; threads and tasks with a copy of the context inherit them.
_leading: ContextVar[tuple[Leader, ...]] = ContextVar("ibidem_leading", default=())


class Outcome(Enum):
    """How a flight ended."""

    STORED = "stored"
    REJECTED = "rejected"  # the answer may not be stored
    FAILED = "failed"


Waiter = Future[Outcome]


class Leader:
    """The right to ask for one key while the others wait. It ends once; later calls of `end` do nothing."""

    __slots__ = ("_flights", "ended", "expires", "key", "timeout", "waiters")

    def __init__(self, flights: SingleFlight, key: str, timeout: float, waiters: deque[Waiter]) -> None:
        self._flights, self.key, self.timeout = flights, key, timeout
        self.waiters = waiters
        self.expires = time.monotonic() + timeout
        self.ended = False

    @property
    def live(self) -> bool:
        """Whether others may still wait for it."""
        return not self.ended and time.monotonic() < self.expires

    def end(self, outcome: Outcome = Outcome.FAILED) -> None:
        """End, and notify the waiters. Never blocks, so that destructors of streams may call it."""
        if not self.ended:
            self._flights.end(self.key, outcome, self)


def set_leading(leader: Leader) -> None:
    """Add the leader to those of the running code."""
    _leading.set((*(other for other in _leading.get() if other.live), leader))


def is_leading() -> bool:
    """Return whether the running code leads a flight of any cache."""
    return any(leader.live for leader in _leading.get())


class SingleFlight:
    """The flights of one cache location. Thread-safe. A hit never gets here."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Start afresh in a forked child: the parent's calls are not its own."""
        self.completed = 0  # read without the lock before a lookup, to detect what is stored during it
        self._lock = Lock()
        self._closed = False
        self._leaders: dict[str, Leader] = {}  # by key, the oldest first
        self._completed: BoundedDict[str, int] = BoundedDict(REMEMBERED)
        self._rejected: BoundedDict[str, float] = BoundedDict(REMEMBERED)
        self._waits: dict[str, int] = {}
        # A destructor can end a leader in the middle of anything, also while its own thread holds the lock.
        self._endings: deque[tuple[str, Outcome, Leader | None]] = deque()

    def join(self, key: str, since: int, timeout: float, *, may_wait: bool) -> Leader | Waiter | Outcome:
        """After a miss, become the leader, or return a future of the leader's outcome.

        An `Outcome` says what to do at once: look up again (`STORED`), or ask without leading (`REJECTED`).

        Args:
            key: Key of the request.
            since: `completed` before the lookup that missed.
            timeout: Seconds after which the leader may be replaced.
            may_wait: False if the caller must not wait: then it asks even if there is a leader.
        """
        with self._locked():
            if (self._completed.get(key) or 0) > since:
                return Outcome.STORED
            leader = self._leaders.get(key)
            if leader is not None and leader.live:
                if not may_wait:
                    return Outcome.REJECTED
                waiter = Waiter()
                leader.waiters.append(waiter)
                return waiter
            if self._closed or time.monotonic() < (self._rejected.get(key) or 0.0):
                return Outcome.REJECTED
            return self._new_leader(key, timeout, leader) or Outcome.REJECTED

    def stored(self, key: str) -> None:
        """End the flight of the key, as its answer is stored, by whichever caller."""
        if key in self._leaders:
            self.end(key, Outcome.STORED)

    def end(self, key: str, outcome: Outcome, leader: Leader | None = None) -> None:
        """End the flight of the key, if `leader` still leads it or an answer is stored. Never blocks."""
        self._endings.append((key, outcome, leader))
        self._run_endings()

    def count_wait(self, outcome: str) -> None:
        """Count a request that has waited, by its outcome."""
        with self._locked():
            self._waits[outcome] = self._waits.get(outcome, 0) + 1

    def waits(self) -> dict[str, int]:
        """Return how many requests have waited for another, by outcome."""
        with self._locked():
            return dict(self._waits)

    def close(self) -> None:
        """End all flights; nobody waits any longer."""
        with self._locked():
            self._closed = True
            for leader in tuple(self._leaders.values()):
                self._end(leader.key, Outcome.REJECTED, leader)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            self._run_endings()

    def _run_endings(self) -> None:
        """Run the queued endings; if another thread holds the lock, it does so when it releases it."""
        while self._endings and self._lock.acquire(blocking=False):
            try:
                while self._endings:
                    self._end(*self._endings.popleft())
            finally:
                self._lock.release()

    def _end(self, key: str, outcome: Outcome, by: Leader | None) -> None:
        """Under the lock."""
        if by is not None:
            by.ended = True
        leader = self._leaders.get(key)
        if leader is None or (leader is not by and outcome is not Outcome.STORED):
            return  # it was replaced, and the flight goes on
        del self._leaders[key]
        leader.ended = True
        if outcome is Outcome.STORED:
            self.completed += 1
            self._completed.put(key, self.completed)
            self._rejected.pop(key)
        elif outcome is Outcome.REJECTED and not self._closed:
            self._rejected.put(key, time.monotonic() + leader.timeout)
        for waiter in leader.waiters:
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(outcome)

    def _new_leader(self, key: str, timeout: float, before: Leader | None) -> Leader | None:
        """Add a leader with the waiters of the one before; None if there are too many. Under the lock."""
        self._leaders.pop(key, None)
        if len(self._leaders) >= MAX_LEADERS:
            oldest = next(iter(self._leaders.values()))
            if oldest.live:
                return None
            self._end(oldest.key, Outcome.REJECTED, oldest)
        waiters = before.waiters if before else deque()
        leader = self._leaders[key] = Leader(self, key, timeout, waiters)
        return leader
