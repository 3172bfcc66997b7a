"""Finding the stored questions nearest to one asked: the index, and what is not in it yet."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ibidem._util.circuit_breaker import CircuitBreaker
from ibidem._util.faults import Faults
from ibidem.embedding.base import CheckedEmbedder
from ibidem.errors import IndexUnavailable
from ibidem.index.base import IndexOpener, VectorIndex, coded
from ibidem.index.compaction import Catalogue, Upkeep
from ibidem.index.memory import Memory, SmallIndex
from ibidem.storage.entries import Records
from ibidem.storage.rows import StoredVector
from ibidem.storage.vectors import VectorTable
from ibidem.types import Vector, point_of

if TYPE_CHECKING:
    from ibidem.embedding.base import CheckedEmbedder


BATCH = 50  # vectors per index write: each write holds the GIL, half a millisecond per vector
# Up to here all vectors are held in memory (16 MB) and searched exactly: as fast as the index, and never
# misses. An HNSW graph can: of 2,000 questions from one template it lost 1,766 with a bag-of-words embedder.
EXACT_LIMIT = 10_000
RETRY_SECONDS = 5.0  # how long an embedded index that failed is left alone
FIRST_SECONDS = 5.0  # how long the first lookup of a process waits for a server's index to be opened


class Vectors:
    """The vector side of a cache: writes behind, reads its own writes, rebuilds itself.

    Args:
        records: The truth.
        embedder: Makes the vectors that are missing there.
        open_index: Opens the index; called at first use, and again some seconds after a failure.
        faults: Where failures in the background go.
        catalogue: Says which collection is in use.
        alone: Whether the index is embedded, so that only this process fills it: then a small one is
            searched in memory. One on a server is opened in a thread apart: no caller waits for it.
        opened: Called when that is done, as entries may wait for it.
    """

    def __init__(
        self,
        records: Records,
        embedder: CheckedEmbedder,
        open_index: IndexOpener,
        faults: Faults,
        catalogue: Catalogue,
        *,
        alone: bool,
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        self.table = records.vectors_of(embedder.fingerprint)
        self._embedder, self._faults, self._alone, self._catalogue = embedder, faults, alone, catalogue
        self._upkeep = Upkeep(self.table, catalogue, alone=alone)
        self._open_index = open_index
        self._closed = False
        self._breaker = None if alone else CircuitBreaker(self._open, closed=False, on_closed=opened)
        self.after_fork()

    def after_fork(self) -> None:
        """Leave the parent's index alone: its threads do not exist here, its files are not ours."""
        self._lock = threading.RLock()  # held for moments, while index and memory are exchanged
        self._opening = threading.Lock()  # held while an embedded index is opened; taken before `_lock`
        self._working = threading.Lock()  # held while the index is written; taken before `_lock`
        self._index: VectorIndex | None = None
        self._memory, self._complete = Memory(), False
        self._arrived: list[tuple[str, Vector]] | None = None  # entries stored while the index is opened
        self._lacking = Lacking(self.table, self._catalogue, self._embedder, self._faults)
        self._retry_at = 0.0
        self._failure: IndexUnavailable | None = None
        if self._breaker is not None:
            self._breaker.after_fork()
        self._upkeep.forget()

    @property
    def state(self) -> str:
        """`open`, `unused` (not needed yet), or why it cannot be used."""
        return "open" if self._index else str(self._failure or "unused")

    def add(self, namespace: str, scope: str, vector: Vector) -> None:
        """Make a stored entry findable at once. If the index is not open, opening it will find the entry."""
        point, indexed = point_of(namespace, scope, vector), coded(vector, namespace, scope)
        with self._lock:
            if self._index is not None:
                self._memory.add(point, indexed)
            elif self._arrived is not None:  # the opening may have read the truth already
                self._arrived.append((point, indexed))

    def nearest(self, namespace: str, scope: str, vector: Vector, k: int) -> list[str]:
        """Points near the vector, most of them of this namespace and scope.

        Raises:
            IndexUnavailable: The index belongs to another process, or is down.
        """
        index = self.opened()
        target = coded(vector, namespace, scope)
        near = self._memory.nearest(target, k)
        return near if self._complete else list(dict.fromkeys([*near, *self._search(index, target, k)]))

    def _search(self, index: VectorIndex, target: Vector, k: int) -> list[str]:
        """Search; once more if the collection was replaced meanwhile."""
        try:
            return index.search(target, k)
        except IndexUnavailable as error:
            if (current := self._current(index)) is not index:
                return current.search(target, k)
            self._abandon(index, error)
            raise

    def _current(self, index: VectorIndex) -> VectorIndex:
        """The index in use, which this or another process may have exchanged for another."""
        with self._lock:
            if self._index is index and not self._alone:
                name = self._catalogue.read().name
                self._index = index if name == index.name else index.beside(name)
            return self._index or index

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
                    self._lacking.fetch(memory, index.generation)
                points, rows = memory.next(BATCH)
                if not points:
                    return more
                self.table.mark_indexed(points, self._upkeep.put(index, points, rows))
                memory.indexed(len(points))
                if len(memory) > EXACT_LIMIT and isinstance(index, SmallIndex):
                    self._outgrow(index, memory)
                    return True
            except IndexUnavailable as error:
                self._abandon(index, error)
                raise
            if not self._complete or len(memory) > EXACT_LIMIT:
                self._complete = False  # before forgetting: a search that finds less here asks the index
                memory.forget_indexed()
            return True

    def caught_up(self) -> bool:
        """Whether the index is open, and all questions that can be embedded now are found by a search."""
        with self._working:
            return self._index is not None and not self._lacking.left(self._memory, self._index)

    def _outgrow(self, small: SmallIndex, memory: Memory) -> None:
        """They are too many to be searched one by one: all go into a real index, which is searched then."""
        index = small.grow()
        self._upkeep.opened(index)
        with self._lock:
            memory.index_anew()
            self._index = index

    def renew(self, *, wanted: bool = False) -> bool:
        """A step towards a fresh collection, if one is due or wanted; returns whether there is more."""
        with self._working:
            if self._index is None:
                return False
            index = self._current(self._index)
            try:
                complete = self._upkeep.step(index, wanted=wanted)
            except IndexUnavailable as error:
                self._abandon(index, error)
                raise
            if complete is not None:
                with self._lock:  # searches under way end in the old one, which is deleted at a later step
                    self._index = complete
            return self._upkeep.busy or complete is not None

    def reset(self) -> None:
        """Empty the index; used when all entries are cleared."""
        with self._working:
            with self._lock:
                index = self._index
                if index is None:
                    return
                self._memory, self._complete = Memory(), False
            try:
                index.reset()
                with self._lock:
                    self._complete = self._alone and self._index is index
                self._upkeep.emptied()
            except IndexUnavailable as error:
                # What it still holds, the truth does not confirm.
                self._faults.note("empty the vector index", error)
                self._abandon(index, error)

    def close(self) -> None:
        """Close the index; what waits is found again at the next opening."""
        with self._working, self._lock:
            self._closed = True  # a lookup under way must not open it again
            index, self._index = self._index, None
            if self._breaker is not None:
                self._breaker.stop()
            self._upkeep.forget()
            if index is not None:
                index.close()

    def opened(self) -> VectorIndex:
        """The index, if it is open or can be opened without waiting for a server that is down."""
        if (index := self._index) is not None:
            return index
        if self._breaker is None:
            self._open_here()
        else:
            self._await_server(self._breaker)
        if (index := self._index) is None:  # closed or abandoned this very moment
            raise self._unavailable()
        return index

    def _await_server(self, breaker: CircuitBreaker) -> None:
        epoch = breaker.epoch
        try:
            breaker.check(FIRST_SECONDS)
        except Exception as error:
            raise IndexUnavailable(str(error)) from None
        if self._index is None and not self._closed:  # it failed while it was being taken for open
            breaker.trip(self._unavailable(), epoch)

    def _open_here(self) -> None:
        with self._opening:
            if self._index is not None:
                return
            if self._failure is not None and time.monotonic() < self._retry_at:
                raise self._unavailable()
            self._open()

    def _open(self) -> None:
        """Open the index and take in what it lacks. Who stores meanwhile does not wait, nor is overlooked."""
        with self._lock:
            if self._closed:
                raise self._unavailable()
            self._arrived = []
        try:
            few = self._alone and self.table.count(EXACT_LIMIT + 1) <= EXACT_LIMIT
            index = self._open_index(small=few and EXACT_LIMIT > 0)
            memory, complete = self._filled(index)
        except Exception as error:
            self._remember(error)
            raise
        with self._lock:
            for point, vector in self._arrived or ():
                memory.add(point, vector)
            self._arrived = None
            if not self._closed:
                self._memory, self._complete, self._index = memory, complete, index
                self._failure = None
                return
        index.close()

    def _filled(self, index: VectorIndex) -> tuple[Memory, bool]:
        """What is not in the index, and if it is small all that is; closes it again if that fails."""
        try:
            self._upkeep.opened(index)
            return self._lacking.fill(index.generation, EXACT_LIMIT if self._alone else None)
        except BaseException:
            with contextlib.suppress(IndexUnavailable):
                index.close(sound=False)
            raise

    def _abandon(self, index: VectorIndex, error: IndexUnavailable) -> None:
        """Close an index that failed; it is opened, and if need be healed, after a pause."""
        with self._lock:
            epoch = self._breaker.epoch if self._breaker is not None else 0
            if self._index is not index:  # another thread was first, or it is a new one already
                return
            self._index = None
            self._upkeep.forget()
            self._memory, self._complete = Memory(), False
            self._remember(error)
        try:
            index.close(sound=False)
        except IndexUnavailable as problem:
            self._faults.note("close the vector index", problem)
        if self._breaker is not None:
            self._breaker.trip(error, epoch)

    def _remember(self, error: Exception) -> None:
        """Answer with this failure, without trying again, for a while."""
        with self._lock:
            self._arrived = None
            # A copy: the error itself holds on to the frames that it came through.
            kind = type(error) if isinstance(error, IndexUnavailable) else IndexUnavailable
            self._failure = kind(str(error))
            self._retry_at = time.monotonic() + RETRY_SECONDS

    def _unavailable(self) -> IndexUnavailable:
        if self._closed:
            return IndexUnavailable("the cache was closed")
        failure = self._failure or IndexUnavailable("the vector index is being opened")
        return type(failure)(str(failure))


PAGE = 5_000  # entries read from the database at a time
EMBED_BATCH = 32  # questions embedded at a time
REFUSED_SECONDS = 60.0  # how long a question that could not be embedded is left alone


class Lacking:
    """Reads and embeds it, some at a time.

    Args:
        table: The vectors of the embedder.
        catalogue: Says which collections there are.
        embedder: Makes vectors where there are none.
        faults: Where its failures go.
    """

    def __init__(
        self, table: VectorTable, catalogue: Catalogue, embedder: CheckedEmbedder, faults: Faults
    ) -> None:
        self._table, self._catalogue = table, catalogue
        self._embedder, self._faults = embedder, faults
        self._refused: dict[str, float] = {}  # entries whose question was not embedded, and when to try again

    def fill(self, generation: str, most: int | None) -> tuple[Memory, bool]:
        """A page of what the index lacks, in memory.

        All that the index has comes before, and True is returned, if that is at most `most`.
        """
        self._refused = {}
        memory, complete = Memory(), False
        other = self._catalogue.read().generation
        if most is not None:
            indexed = self._table.indexed(generation, most + 1, other)
            complete = len(indexed) <= most
            if complete:
                load(memory, indexed)
                memory.indexed(len(memory))
        load(memory, self._table.unindexed(generation, max(PAGE, most or 0), other))
        return memory, complete

    def fetch(self, memory: Memory, generation: str) -> None:
        """Read the next page; embed a batch of what has no vector."""
        page = self._table.unindexed(generation, PAGE, self._catalogue.read().generation)
        # Another entry with the same vector may have been indexed before.
        known = [row.point for row in page if row.point is not None and memory.holds(row.point)]
        if known:
            self._table.mark_indexed(known, generation)
        load(memory, page)
        load(memory, self.embed())

    def left(self, memory: Memory, index: VectorIndex) -> bool:
        """Whether there is a question to embed now, or one that neither memory nor this index has."""
        if self.due():
            return True
        if isinstance(index, SmallIndex):  # all that had vectors were read when it was opened
            return False
        page = self._table.unindexed(index.generation, PAGE, self._catalogue.read().generation)
        return len(page) == PAGE or not all(memory.holds(row.point) for row in page if row.point)

    def embed(self) -> list[StoredVector]:
        """Some of the questions that lack a vector, now with vectors, also in the truth."""
        made = self._embedded(self.due()[:EMBED_BATCH])
        if made:
            self._table.set_vectors(made)
        return made

    def due(self) -> list[StoredVector]:
        """Some of the questions that lack a vector and are to be tried now."""
        now = time.monotonic()
        self._refused = {id_: until for id_, until in self._refused.items() if until > now}
        lacking = self._table.lacking(EMBED_BATCH + len(self._refused))
        return [row for row in lacking if row.id not in self._refused]

    def _embedded(self, rows: Sequence[StoredVector]) -> list[StoredVector]:
        """The rows with vectors, one by one: a question that the embedder refuses keeps no other waiting.

        It is tried again after a while, and is compared exactly if it is longer than the embedder's window.
        """
        made, unfit = [], []
        for row in rows:
            try:
                if self._embedder.refusal(row.question):
                    unfit.append(row.id)
                else:
                    made.append(replace(row, vector=self._embedder.embed([row.question])[0]))
            except Exception as error:
                self._refused[row.id] = time.monotonic() + REFUSED_SECONDS
                self._faults.note("embed a stored question", error)
                if len(self._refused) > 1 and not made:
                    break  # not this question: the embedder is down
        if unfit:
            self._table.set_exact_only(unfit)
        return made


def load(memory: Memory, rows: Sequence[StoredVector]) -> None:
    """Take the rows that have a vector into memory."""
    for row in rows:
        if row.vector is not None and row.point is not None:
            memory.add(row.point, coded(row.vector, row.namespace, row.scope))
