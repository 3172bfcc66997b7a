"""One reviewer's session: pairs in order, what was said of them, undo. What is said is written at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from ibidem.storage.browsing import Review

if TYPE_CHECKING:
    from ibidem.storage.browsing import ReviewPair
    from ibidem.types import Entry
    from ibidem_lab.review.queue import Sieve

FRESH_SECONDS = 60.0  # after so long the logs are read again
_VERDICTS = {True: "the same answer", False: "not the same answer"}


class ReviewSession:
    """The pairs to be judged. Thread-safe; methods raise `StorageError` when the database fails.

    `notice` is to be shown once, `doubted` is the id of an entry that was served and was just called wrong.

    Args:
        sieve: Finds the pairs.
        clock: Seconds, for reading the logs again.
    """

    def __init__(self, sieve: Sieve, clock: Callable[[], float] = time.monotonic) -> None:
        self.sieve, self._clock = sieve, clock
        self._store = sieve.store
        self._lock = threading.Lock()
        self._pairs: dict[str, ReviewPair] = {}  # in order
        self._read_at = float("-inf")
        self._first = ""  # the pair to be shown before all others: it was undone
        self.skipped: set[str] = set()
        self.done: list[tuple[ReviewPair, Review | None]] = []
        self.notice = self._doubted = ""

    def take_notice(self) -> tuple[str, str]:
        """Return notice and doubted entry, and forget them."""
        notice, doubted = self.notice, self._doubted
        self.notice = self._doubted = ""
        return notice, doubted

    def next(self, kind: str = "") -> tuple[ReviewPair, Entry] | None:
        """Return the next pair, of one kind or any, with the stored entry; None if all are judged."""
        with self._lock:
            fresh = self._read()
            found = self._take(kind)
            if found is None and not fresh:
                self._read(now=True)
                found = self._take(kind)
            return found

    def waiting(self) -> Counter[str]:
        """Count the pairs that wait, by kind."""
        with self._lock:
            return Counter(pair.kind for pair in self._pairs.values())

    def judge(self, pair_id: str, right: bool) -> Review | None:
        """Write a judgement; None if the pair is not known any more."""
        with self._lock:
            pair = self._pairs.get(pair_id)
            if pair is None:
                self.notice = "That pair is not waiting any more: it was judged, or its answer is gone."
                return None
            review = self._store.reviews.judge(pair, right, time.time())
            del self._pairs[pair_id]
            if review.again:
                self.notice = f"That pair was judged elsewhere: {_VERDICTS[review.right]}."
            else:
                self.done.append((pair, review))
                self._doubted = pair.entry_id if pair.kind == "hit" and not right else ""
        return review

    def skip(self, pair_id: str) -> None:
        """Do not show the pair again in this session."""
        with self._lock:
            if pair := self._pairs.get(pair_id):
                self.skipped.add(pair_id)
                self.done.append((pair, None))

    def undo(self) -> None:
        """Take back the last judgement or skip, and show its pair again."""
        with self._lock:
            if not self.done:
                self.notice = "There is nothing to undo."
                return
            pair, review = self.done.pop()
            self.skipped.discard(pair.id)
            if review is not None and not self._store.reviews.undo(review):
                self.notice = "That judgement is not in the log any more."
                return
            self.notice, self._first = "Undone.", pair.id
            self._pairs = {pair.id: pair, **self._pairs}

    def _take(self, kind: str) -> tuple[ReviewPair, Entry] | None:
        """Find the first pair that is still stored and was not judged elsewhere. Under the lock."""
        first, self._first = [self._first] if self._first else [], ""
        for id_ in [*first, *self._pairs]:
            pair = self._pairs.get(id_)
            if pair is None or id_ in self.skipped or (kind and pair.kind != kind):
                continue
            stored = self._store.entries.of_ids([pair.entry_id])
            if not stored or self._store.reviews.verdict(pair) is not None:
                del self._pairs[id_]
                continue
            return pair, stored[0]
        return None

    def _read(self, *, now: bool = False) -> bool:
        """Read the logs if that is due; return whether it was. Under the lock."""
        if not now and self._clock() - self._read_at < FRESH_SECONDS:
            return False
        self._pairs = {pair.id: pair for pair in self.sieve.pairs()}
        self._read_at = self._clock()
        return True
