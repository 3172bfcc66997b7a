"""Single flight: of identical requests that nobody has answered yet, one asks the model, the others wait.

The first to miss takes the lead and asks. Those who miss the same key meanwhile get a place in the queue: a
future, which threads wait for and tasks await. What can go wrong never costs more than a bounded wait:

* Who leads one flight waits for no other, in whatever thread or task it goes on: no circle of waiting.
* The lead is passed on when its call fails, to one waiter; when its answer may not be kept, to none: the same
  request would be refused again, so all ask at once, as without single flight, and for a while nobody waits.
* A lead that nobody ends is taken over after its time, and nobody waits longer than that in all.
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

LEADS = 10_000  # calls of models that can be under way at once; others go on without single flight
REMEMBERED = 4096  # keys that were answered or refused lately

# What is led here, inherited by the threads and tasks that are given a copy of the context.
_leading: ContextVar[tuple[Lead, ...]] = ContextVar("ibidem_leading", default=())


class Turn(Enum):
    """What a waiter does next, if it is not given the lead."""

    LOOK = "look up again"
    ASK = "ask the model"


class Outcome(Enum):
    """How a flight ended."""

    STORED = "stored"
    REFUSED = "refused"  # the answer may not be kept
    FAILED = "failed"


Place = Future["Lead | Turn"]


class Lead:
    """The right to ask for one key while the others wait. Ended once; what comes later does nothing."""

    __slots__ = ("_flights", "ended", "expires", "key", "patience", "waiting")

    def __init__(self, flights: Flights, key: str, patience: float, waiting: deque[Place]) -> None:
        self._flights, self.key, self.patience = flights, key, patience
        self.waiting = waiting
        self.expires = time.monotonic() + patience
        self.ended = False

    @property
    def live(self) -> bool:
        """Whether others may still wait for it."""
        return not self.ended and time.monotonic() < self.expires

    def end(self, outcome: Outcome = Outcome.FAILED) -> None:
        """Tell the waiters. Never blocks, so that destructors of streams may call it."""
        if not self.ended:
            self._flights.settle(self.key, outcome, self)


def take(lead: Lead) -> None:
    """The caller's context leads from now on."""
    _leading.set((*(one for one in _leading.get() if one.live), lead))


def leads() -> bool:
    """Whether the caller's context leads a flight of any cache."""
    return any(lead.live for lead in _leading.get())


class Flights:
    """Who asks for what, in one place; thread-safe. Only misses and ends of flights come here."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Start afresh in a forked child: the parent's calls are not its own."""
        self.landings = 0  # read without the lock: before a lookup, to tell what was stored during it
        self._lock = Lock()
        self._closed = False
        self._leads: dict[str, Lead] = {}  # by key, the oldest first
        self._landed: BoundedDict[str, int] = BoundedDict(REMEMBERED)
        self._refused: BoundedDict[str, float] = BoundedDict(REMEMBERED)
        self._waits: dict[str, int] = {}
        # A destructor can end a lead in the middle of anything, also while its own thread holds the lock.
        self._endings: deque[tuple[str, Outcome, Lead | None]] = deque()

    def enter(self, key: str, since: int, patience: float, *, may_wait: bool) -> Lead | Place | Turn:
        """After a miss: the lead, a place in the queue, or what to do at once.

        Args:
            key: That of the request.
            since: `landings` as it was before the lookup that missed.
            patience: Seconds after which the lead may be taken over.
            may_wait: False for those who must not wait: they ask if somebody else leads.
        """
        with self._table():
            if (self._landed.get(key) or 0) > since:
                return Turn.LOOK
            lead = self._leads.get(key)
            if lead is not None and lead.live:
                if not may_wait:
                    return Turn.ASK
                place: Place = Future()
                lead.waiting.append(place)
                return place
            if self._closed or time.monotonic() < (self._refused.get(key) or 0.0):
                return Turn.ASK
            return self._lead(key, patience, lead) or Turn.ASK

    def leave(self, key: str, place: Place, patience: float) -> Lead | Turn:
        """The end of waiting: what came, or after the waiter's time the lead, if that is overdue too."""
        with self._table():
            if place.done():
                return place.result()
            place.cancel()
            lead = self._leads.get(key)
            return Turn.ASK if lead is None or lead.live else self._lead(key, patience, lead) or Turn.ASK

    def give_up(self, place: Place) -> None:
        """The waiter is gone, by an exception. If it was given the lead meanwhile, the next one gets it."""
        if not place.cancel() and isinstance(given := place.result(), Lead):
            given.end()

    def stored(self, key: str) -> None:
        """There is an answer to the key now, whoever stored it."""
        if key in self._leads:
            self.settle(key, Outcome.STORED)

    def settle(self, key: str, outcome: Outcome, lead: Lead | None = None) -> None:
        """End the flight of the key, if it is still that of `lead` or an answer is there. Never blocks."""
        self._endings.append((key, outcome, lead))
        self._settle()

    def count(self, outcome: str) -> None:
        """Somebody has waited, with this outcome."""
        with self._table():
            self._waits[outcome] = self._waits.get(outcome, 0) + 1

    def waits(self) -> dict[str, int]:
        """How many requests have waited for another, by what came of it."""
        with self._table():
            return dict(self._waits)

    def close(self) -> None:
        """Nobody waits any more."""
        with self._table():
            self._closed = True
            for lead in tuple(self._leads.values()):
                self._end(lead.key, Outcome.REFUSED, lead)

    @contextmanager
    def _table(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            self._settle()

    def _settle(self) -> None:
        """Carry out the endings; if somebody holds the lock, they do it when they release it."""
        while self._endings and self._lock.acquire(blocking=False):
            try:
                while self._endings:
                    self._end(*self._endings.popleft())
            finally:
                self._lock.release()

    def _end(self, key: str, outcome: Outcome, by: Lead | None) -> None:
        """Under the lock."""
        if by is not None:
            by.ended = True
        lead = self._leads.get(key)
        if lead is None or (lead is not by and outcome is not Outcome.STORED):
            return  # it was taken over, and goes on
        del self._leads[key]
        lead.ended = True
        if outcome is Outcome.FAILED:
            self._pass_on(lead)
            return
        if outcome is Outcome.STORED:
            self.landings += 1
            self._landed.put(key, self.landings)
            self._refused.pop(key)
        elif not self._closed:
            self._refused.put(key, time.monotonic() + lead.patience)
        for place in lead.waiting:
            if place.set_running_or_notify_cancel():
                place.set_result(Turn.LOOK if outcome is Outcome.STORED else Turn.ASK)

    def _pass_on(self, lead: Lead) -> None:
        while lead.waiting:
            place = lead.waiting.popleft()
            if place.set_running_or_notify_cancel():
                place.set_result(self._lead(lead.key, lead.patience, lead) or Turn.ASK)
                return

    def _lead(self, key: str, patience: float, before: Lead | None) -> Lead | None:
        """A new lead with the waiters of the one before; None if there are too many. Under the lock."""
        self._leads.pop(key, None)
        if len(self._leads) >= LEADS:
            oldest = next(iter(self._leads.values()))
            if oldest.live:
                return None
            self._end(oldest.key, Outcome.REFUSED, oldest)
        lead = self._leads[key] = Lead(self, key, patience, before.waiting if before else deque())
        return lead
