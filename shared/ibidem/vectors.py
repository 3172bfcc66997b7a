"""Finding the stored questions nearest to one asked: the index, and what is not in it yet."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ibidem.catalogue import Catalogue
from ibidem.entry import Vector, point_of
from ibidem.errors import IndexUnavailable
from ibidem.faults import Faults
from ibidem.index import VectorIndex, coded
from ibidem.lacking import Lacking
from ibidem.memory import Memory
from ibidem.records import Records
from ibidem.rows import StoredVector
from ibidem.upkeep import Upkeep

if TYPE_CHECKING:
    from ibidem.embedding import CheckedEmbedder

BATCH = 50  # vectors per index write: each write holds the GIL, half a millisecond per vector
PAGE = 5_000  # unindexed entries read from the database at a time
# Up to here all vectors are held in memory (16 MB) and searched exactly: as fast as the index, and never
# misses. An HNSW graph can: of 2,000 questions from one template it lost 1,766 with a bag-of-words embedder.
EXACT_LIMIT = 10_000
RETRY_SECONDS = 5.0  # how long an index that failed is left alone
POLL_SECONDS = 2.0  # how often entries stored by other processes are looked for, while in use


class Vectors:
    """The vector side of a cache: writes behind, reads its own writes, rebuilds itself.

    Args:
        records: The truth.
        embedder: Makes the vectors that are missing there.
        open_index: Opens the index; called at first use, and again some seconds after a failure.
        faults: Where failures in the background go.
        catalogue: Says which collection is in use.
        alone: Whether only this process fills the index: then a small one is searched in memory.
    """

    def __init__(
        self,
        records: Records,
        embedder: CheckedEmbedder,
        open_index: Callable[[], VectorIndex],
        faults: Faults,
        catalogue: Catalogue,
        *,
        alone: bool,
    ) -> None:
        self._records, self._embedder, self._faults = records, embedder, faults
        self._alone, self._catalogue = alone, catalogue
        self._upkeep = Upkeep(records, catalogue, embedder.fingerprint, alone=alone)
        self._open_index = open_index
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """Leave the parent's index alone: its threads do not exist here, its files are not ours."""
        self._lock = threading.RLock()  # held while index and memory are exchanged
        self._working = threading.Lock()  # held while the index is written; taken before `_lock`
        self._index: VectorIndex | None = None
        self._memory, self._complete = Memory(), False
        self._lacking = Lacking(self._records, self._embedder, self._faults)
        self._retry_at = self._poll_at = 0.0
        self._failure: IndexUnavailable | None = None
        self._upkeep.forget()

    @property
    def state(self) -> str:
        """`open`, `unused` (not needed yet), or why it cannot be used."""
        return "open" if self._index else str(self._failure or "unused")

    def add(self, namespace: str, scope: str, vector: Vector) -> None:
        """Make a stored entry findable at once. If the index is not open, opening it will find the entry."""
        point, indexed = point_of(namespace, scope, vector), coded(vector, namespace, scope)
        with self._lock:  # else an opening that has read the truth already would overlook the entry
            if self._index is not None:
                self._memory.add(point, indexed)

    def nearest(self, namespace: str, scope: str, vector: Vector, k: int) -> list[str]:
        """Points near the vector, most of them of this namespace and scope.

        Raises:
            IndexUnavailable: The index belongs to another process, or is down.
        """
        index = self._opened()
        target = coded(vector, namespace, scope)
        near = self._memory.nearest(target, k)
        if self._complete:
            return near
        try:
            return list(dict.fromkeys([*near, *self._search(index, target, k)]))
        except IndexUnavailable as error:
            self._abandon(error)
            raise

    def _search(self, index: VectorIndex, target: Vector, k: int) -> list[str]:
        """Search; once more if the collection was replaced meanwhile."""
        try:
            return index.search(target, k)
        except IndexUnavailable:
            current = self._current(index)
            if current is index:
                raise
            return current.search(target, k)

    def _current(self, index: VectorIndex) -> VectorIndex:
        """The index in use, which this or another process may have exchanged for another."""
        with self._lock:
            if (
                self._index is index
                and not self._alone
                and (name := self._catalogue.read().name) != index.name
            ):
                self._index = index.beside(name)
            return self._index or index

    @property
    def poll_due(self) -> bool:
        """Whether it is time to look for entries that other processes stored."""
        now = time.monotonic()
        if now < self._poll_at:
            return False
        self._poll_at = now + POLL_SECONDS
        return True

    def work(self) -> bool:
        """Index one batch of stored questions; returns whether there may be more."""
        with self._working:
            index, memory = self._index, self._memory
            if index is None:
                self._upkeep.cap()
                return False
            try:
                index = self._current(index)
                more = self._upkeep.bury(index, memory, self._lock)
                if not memory.waiting:
                    self._fetch(memory, index.generation)
                points, rows = memory.next(BATCH)
                if not points:
                    return more
                generation = self._upkeep.put(index, points, rows)
            except IndexUnavailable as error:
                self._abandon(error)
                raise
            self._records.mark_indexed(points, generation)
            memory.indexed(len(points))
            if not self._complete or len(memory) > EXACT_LIMIT:
                self._complete = False  # before forgetting: a search that finds less here asks the index
                memory.forget_indexed()
            return True

    def renew(self, *, wanted: bool = False) -> bool:
        """A step towards a fresh collection if one is due, or wanted; returns whether there is more."""
        with self._working:
            if self._index is None:
                return False
            index = self._current(self._index)
            try:
                complete = self._upkeep.step(index, wanted=wanted)
            except IndexUnavailable as error:
                self._abandon(error)
                raise
            if complete is not None:
                with self._lock:  # searches under way end in the old one, which is deleted at a later step
                    self._index = complete
            return self._upkeep.busy or complete is not None

    def rebuild(self, show: Callable[[int, int], None]) -> int:
        """Replace the index by a new one at once; `show` is told how many vectors of how many it has.

        Returns:
            How many it holds in the end.

        Raises:
            IndexUnavailable: It belongs to another process, is down, or is being replaced by another process.
        """
        old = self._opened().name
        while self.work():
            pass
        total = self._records.count_indexed(self._opened().generation, self._catalogue.read().generation)
        self.renew(wanted=True)
        while (index := self._opened()).name == old:
            if not self._upkeep.busy:
                raise IndexUnavailable("the index is being replaced already; try again in a minute")
            show(total - self._records.count_indexed(index.generation), total)
            self.renew()
        self.renew()  # deletes the old one
        return index.count()

    def reset(self) -> None:
        """Empty the index; used when all entries are cleared."""
        with self._working, self._lock:
            if self._index is None:
                return
            try:
                self._index.reset()
                self._memory, self._complete = Memory(), self._alone
                self._upkeep.emptied()
            except IndexUnavailable as error:
                # What it still holds, the truth does not confirm.
                self._faults.note("empty the vector index", error)
                self._abandon(error)

    def close(self) -> None:
        """Close the index; what waits is found again at the next opening."""
        with self._working, self._lock:
            self._closed = True  # a lookup under way must not open it again
            index, self._index = self._index, None
            self._upkeep.forget()
            if index is not None:
                index.close()

    def _opened(self) -> VectorIndex:
        if self._index is not None:
            return self._index
        with self._lock:
            if self._index is not None:
                return self._index
            if self._closed:
                raise IndexUnavailable("the cache was closed")
            if self._failure is not None and time.monotonic() < self._retry_at:
                raise type(self._failure)(str(self._failure))
            try:
                self._index = self._filled(self._open_index())
            except IndexUnavailable as error:
                self._remember(error)
                raise
            self._failure = None
            return self._index

    def _filled(self, index: VectorIndex) -> VectorIndex:
        """The index, after looking whether it holds what it should; closed again if that fails."""
        try:
            if not self._upkeep.opened(index):  # vectors were lost: begin anew, from the truth
                index.reset()
                self._upkeep.emptied()
            self._fill(index.generation)
        except BaseException:
            with contextlib.suppress(IndexUnavailable):
                index.close(sound=False)
            raise
        return index

    def _fill(self, generation: str) -> None:
        """Take into memory what is not in the index, and if it is small all that is."""
        self._memory, self._complete = Memory(), False
        embedder, other = self._embedder.fingerprint, self._catalogue.read().generation
        if self._alone:
            indexed = self._records.indexed(generation, embedder, EXACT_LIMIT + 1, other)
            self._complete = len(indexed) <= EXACT_LIMIT
            if self._complete:
                self._load(self._memory, indexed)
                self._memory.indexed(len(self._memory))
        self._load(self._memory, self._records.unindexed(generation, embedder, PAGE, other))

    def _fetch(self, memory: Memory, generation: str) -> None:
        """Read a page of what the index lacks; embed a batch of what has no vector."""
        other = self._catalogue.read().generation
        page = self._records.unindexed(generation, self._embedder.fingerprint, PAGE, other)
        # Another entry with the same vector may have been indexed before.
        known = [row.point for row in page if row.point is not None and memory.holds(row.point)]
        if known:
            self._records.mark_indexed(known, generation)
        self._load(memory, page)
        self._load(memory, self._lacking.embed([row for row in page if row.vector is None]))

    def _load(self, memory: Memory, rows: Sequence[StoredVector]) -> None:
        for row in rows:
            if row.vector is not None and row.point is not None:
                memory.add(row.point, coded(row.vector, row.namespace, row.scope))

    def _abandon(self, error: IndexUnavailable) -> None:
        """Close an index that failed; the next use after a pause opens, and if need be heals, it."""
        with self._lock:
            index, self._index = self._index, None
            self._upkeep.forget()
            self._remember(error)
            self._memory, self._complete = Memory(), False
            if index is not None:
                try:
                    index.close(sound=False)
                except IndexUnavailable as problem:
                    self._faults.note("close the vector index", problem)

    def _remember(self, error: IndexUnavailable) -> None:
        """Answer with this failure, without trying again, for a while."""
        # A copy: the error itself holds on to the frames that it came through.
        self._failure = type(error)(str(error))
        self._retry_at = time.monotonic() + RETRY_SECONDS
