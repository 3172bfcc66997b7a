"""What was invalidated lately, as this process knows it: answers begun before are not stored after. Pure."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ibidem.entry import Entry
from ibidem.lifecycle.invalidation import Criteria
from ibidem.locks import ForkSafeLock

KEPT_SECONDS = 3_600.0  # longer than any model takes for an answer: clients give up after 10 minutes
LIMIT = 100_000  # documents and entries that are remembered; of older ones only how old they are


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One invalidation; None for criteria that a newer version wrote stands for any answer."""

    at: float
    criteria: Criteria | None

    def names(self) -> Iterator[str]:
        """Under which it is found; "" if it may concern any answer."""
        if self.criteria is not None and self.criteria.documents:
            yield from (f"document {name}" for name in self.criteria.documents)
        elif self.criteria is not None and self.criteria.entry is not None:
            yield f"entry {self.criteria.entry}"
        else:
            yield ""

    def refuses(self, entry: Entry, made: float) -> bool:
        """Whether the answer, asked for at `made`, must not be stored."""
        if self.criteria is None:
            return made <= self.at
        if made > self.at and self.criteria.current is None:
            return False
        return self.criteria.concern(replace(entry, created=made))


class Tombstones:
    """The tombstones of one database. Thread-safe.

    `last` is the number of the newest that is known.
    """

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self.last = 0
        self._oldest_first: collections.deque[Tombstone] = collections.deque()
        self._by_key: dict[str, collections.deque[Tombstone]] = {}
        self._count = 0
        self._forgotten = 0.0  # what was made until then may have been invalidated

    def add(self, rows: Iterable[tuple[int, float, str]]) -> None:
        """Learn of more: number, time and criteria of each, by number."""
        with self._lock:
            for number, at, criteria in rows:
                if number <= self.last:  # another thread read it too
                    continue
                self.last = number
                tombstone = Tombstone(at, Criteria.read(criteria))
                self._oldest_first.append(tombstone)
                for key in tombstone.names():
                    self._by_key.setdefault(key, collections.deque()).append(tombstone)
                    self._count += 1
            while self._count > LIMIT:
                self._forgotten = max(self._forgotten, self._oldest_first[0].at)
                self._drop_oldest()

    def refuse(self, entry: Entry, made: float) -> bool:
        """Whether an answer that was asked for at `made` must not be stored as this entry."""
        with self._lock:
            while self._oldest_first and self._oldest_first[0].at < entry.created - KEPT_SECONDS:
                self._drop_oldest()
            if not self._oldest_first:
                return False
            if made <= self._forgotten:
                return True
            keys = {"", f"entry {entry.id}"}
            keys |= {f"document {name}" for source in entry.sources for name in (source.id, source.source)}
            found = [tombstone for key in keys for tombstone in self._by_key.get(key, ())]
        return any(tombstone.refuses(entry, made) for tombstone in found)

    def _drop_oldest(self) -> None:
        dropped = self._oldest_first.popleft()
        for key in dropped.names():
            kept = self._by_key[key]
            kept.popleft()  # the oldest of all is the oldest here
            self._count -= 1
            if not kept:
                del self._by_key[key]
