"""Pairs handed out to reviewers, each to one of them at a time; what they say is written at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ibidem.storage.browsing import Review

if TYPE_CHECKING:
    from ibidem.storage.browsing import ReviewPair
    from ibidem.types import Entry
    from ibidem_lab.review.queue import Sieve

LEASE_SECONDS = 600.0  # so long a pair is kept for the reviewer who looks at it
_SAID = {True: "the same answer", False: "not the same answer"}
FRESH_SECONDS = 60.0  # after so long the logs are read again


@dataclass(slots=True)
class Reviewer:
    """A browser that judges: what it skipped and said, and what it is to be told next.

    `doubted` is the id of an entry that was served, which it just called wrong.
    """

    name: str
    skipped: set[str] = field(default_factory=set)
    done: list[tuple[ReviewPair, Review | None]] = field(default_factory=list)
    notice: str = ""
    doubted: str = ""
    first: str = ""  # the pair to be shown before all others: it was undone

    def told(self) -> tuple[str, str]:
        """Notice and doubted entry, told once."""
        notice, doubted = self.notice, self.doubted
        self.notice = self.doubted = ""
        return notice, doubted


class Desk:
    """The pairs to be judged. Thread-safe; methods raise `StorageError` when the database fails.

    Two reviewers never get the same pair while the first looks at it. Who is late (its lease ended, or
    another process was faster) is told that the pair was judged, and nothing is written.

    Args:
        sieve: Finds the pairs.
        clock: Seconds, for leases.
    """

    def __init__(self, sieve: Sieve, clock: Callable[[], float] = time.monotonic) -> None:
        self.sieve, self._clock = sieve, clock
        self._store = sieve.store
        self._lock = threading.Lock()
        self._pairs: dict[str, ReviewPair] = {}  # in order
        self._leases: dict[str, tuple[str, float]] = {}  # by pair: whose, until when
        self._read_at = float("-inf")

    def next(self, who: Reviewer, kind: str = "") -> tuple[ReviewPair, Entry] | None:
        """A pair for this reviewer, of one kind or any, with the stored entry; None if all are judged."""
        with self._lock:
            fresh = self._read()
            found = self._take(who, kind)
            if found is None and not fresh:
                self._read(now=True)
                found = self._take(who, kind)
            return found

    def waiting(self) -> Counter[str]:
        """How many pairs wait, by kind."""
        with self._lock:
            return Counter(met.kind for met in self._pairs.values())

    def judge(self, who: Reviewer, pair: str, right: bool) -> Review | None:
        """Note what the reviewer says of a pair; None if it is not known any more."""
        with self._lock:
            met = self._pairs.get(pair)
            if met is None:
                who.notice = "That pair is not waiting any more: somebody judged it, or its answer is gone."
                return None
            said = self._store.reviews.judge(met, right, time.time())
            self._drop(pair)
        if said.again:
            who.notice = f"Another reviewer had judged that pair: {_SAID[said.right]}."
        else:
            who.done.append((met, said))
            who.doubted = met.entry_id if met.kind == "hit" and not right else ""
        return said

    def skip(self, who: Reviewer, pair: str) -> None:
        """Show it to this reviewer no more; others may judge it."""
        with self._lock:
            self._release(who, pair)
            if met := self._pairs.get(pair):
                who.skipped.add(pair)
                who.done.append((met, None))

    def undo(self, who: Reviewer) -> None:
        """Take back what this reviewer said or skipped last, and show the pair again."""
        with self._lock:
            if not who.done:
                who.notice = "There is nothing to undo."
                return
            met, said = who.done.pop()
            who.skipped.discard(met.id)
            if said is not None and not self._store.reviews.undo(said):
                who.notice = "That judgement is not in the log any more."
                return
            who.notice, who.first = "Undone.", met.id
            self._pairs = {met.id: met, **self._pairs}

    def _take(self, who: Reviewer, kind: str) -> tuple[ReviewPair, Entry] | None:
        """The first pair that is free, still stored and not judged elsewhere. Under the lock."""
        now = self._clock()
        mine = [id_ for id_, (name, _) in self._leases.items() if name == who.name]
        first, who.first = [who.first] if who.first else [], ""
        for id_ in [*first, *mine, *self._pairs]:
            met = self._pairs.get(id_)
            holder, until = self._leases.get(id_, ("", 0.0))
            if met is None or id_ in who.skipped or (holder != who.name and until > now):
                continue
            if kind and met.kind != kind:
                continue
            stored = self._store.entries.of_ids([met.entry_id])
            if not stored or self._store.reviews.verdict(met) is not None:
                self._drop(id_)
                continue
            for other in mine:
                self._leases.pop(other, None)
            self._leases[id_] = (who.name, now + LEASE_SECONDS)
            return met, stored[0]
        return None

    def _read(self, *, now: bool = False) -> bool:
        """Read the logs if that is due; whether it was. Under the lock."""
        if not now and self._clock() - self._read_at < FRESH_SECONDS:
            return False
        self._pairs = {met.id: met for met in self.sieve.pairs()}
        self._leases = {id_: held for id_, held in self._leases.items() if id_ in self._pairs}
        self._read_at = self._clock()
        return True

    def _drop(self, pair: str) -> None:
        self._pairs.pop(pair, None)
        self._leases.pop(pair, None)

    def _release(self, who: Reviewer, pair: str) -> None:
        if self._leases.get(pair, ("", 0.0))[0] == who.name:
            del self._leases[pair]
