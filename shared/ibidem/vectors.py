"""Finding the stored questions nearest to one asked: the index, and what is not in it yet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ibidem.entry import Vector, point_of
from ibidem.errors import IndexUnavailable
from ibidem.faults import Faults
from ibidem.index import VectorIndex, coded
from ibidem.records import Records
from ibidem.rows import StoredVector

if TYPE_CHECKING:
    from ibidem.embedding import Embedder

BATCH = 50  # vectors per index write: each write holds the GIL, half a millisecond per vector
EMBED_BATCH = 32  # questions embedded at a time when vectors are missing
PAGE = 5_000  # unindexed entries read from the database at a time
# Up to here all vectors are held in memory (16 MB) and searched exactly: as fast as the index, and never
# misses. An HNSW graph can: of 2,000 questions from one template it lost 1,766 with a bag-of-words embedder.
EXACT_LIMIT = 10_000
RETRY_SECONDS = 5.0  # how long an index that failed is left alone
POLL_SECONDS = 2.0  # how often entries stored by other processes are looked for, while in use


class Memory:
    """Vectors held in memory and searched exactly: those indexed already come first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: list[str] = []
        self._at: set[str] = set()
        self._rows: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        self._indexed = 0  # this many of the first are in the index too

    @property
    def waiting(self) -> int:
        """How many are not in the index yet."""
        return len(self._points) - self._indexed

    def __len__(self) -> int:
        return len(self._points)

    def add(self, point: str, vector: Vector) -> None:
        """Append one vector unless it is there; room grows by doubling."""
        with self._lock:
            if point in self._at:
                return
            n = len(self._points)
            if n >= len(self._rows):
                grown = np.empty((max(64, 2 * n), len(vector)), dtype=np.float32)
                grown[:n] = self._rows[:n] if n else 0
                self._rows = grown
            self._rows[n] = vector
            self._points.append(point)
            self._at.add(point)

    def holds(self, point: str) -> bool:
        """Whether the point is here."""
        with self._lock:
            return point in self._at

    def next(self, n: int) -> tuple[list[str], NDArray[np.float32]]:
        """The n oldest that wait for the index."""
        with self._lock:
            rows = slice(self._indexed, min(self._indexed + n, len(self._points)))
            return self._points[rows], self._rows[rows]

    def indexed(self, n: int) -> None:
        """The n oldest that waited are in the index now."""
        with self._lock:
            self._indexed += n

    def forget_indexed(self) -> None:
        """Keep only what is not in the index."""
        with self._lock:
            self._at.difference_update(self._points[: self._indexed])
            self._points = self._points[self._indexed :]
            self._rows = self._rows[self._indexed :].copy()
            self._indexed = 0

    def nearest(self, vector: Vector, k: int) -> list[str]:
        """The k nearest points by inner product, nearest first."""
        with self._lock:
            points, rows = self._points, self._rows[: len(self._points)]
        if not len(rows):
            return []
        scores = rows @ vector
        best = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
        return [points[at] for at in best[np.argsort(-scores[best])]]


class Vectors:
    """The vector side of a cache: writes behind, reads its own writes, rebuilds itself.

    Args:
        records: The truth.
        embedder: Makes the vectors that are missing there.
        open_index: Opens the index; called at first use, and again some seconds after a failure.
        faults: Where failures in the background go.
        alone: Whether only this process fills the index: then a small one is searched in memory.
    """

    def __init__(
        self,
        records: Records,
        embedder: Embedder,
        open_index: Callable[[], VectorIndex],
        faults: Faults,
        *,
        alone: bool,
    ) -> None:
        self._records, self._embedder, self._faults = records, embedder, faults
        self._alone = alone
        self._open_index = open_index
        self.after_fork()

    def after_fork(self) -> None:
        """Leave the parent's index alone: its threads do not exist here, its files are not ours."""
        self._lock = threading.RLock()
        self._index: VectorIndex | None = None
        self._memory, self._complete = Memory(), False
        self._retry_at = self._poll_at = 0.0
        self._why = ""

    @property
    def state(self) -> str:
        """`open`, `unused` (not needed yet), or why it cannot be used."""
        return "open" if self._index else self._why or "unused"

    def add(self, namespace: str, scope: str, vector: Vector) -> None:
        """Make a stored entry findable at once. If the index is not open, opening it will find the entry."""
        if self._index is not None:
            self._memory.add(point_of(namespace, scope, vector), coded(vector, namespace, scope))

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
            return list(dict.fromkeys([*near, *index.search(target, k)]))
        except IndexUnavailable as error:
            self._abandon(error)
            raise

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
        with self._lock:
            index, memory = self._index, self._memory
            if index is None:
                return False
            if not memory.waiting:
                self._fetch(index.generation)
            points, rows = memory.next(BATCH)
            if not points:
                return False
            try:
                index.upsert(points, rows)
            except IndexUnavailable as error:
                self._abandon(error)
                raise
            self._records.mark_indexed(points, index.generation)
            memory.indexed(len(points))
            if not self._complete or len(memory) > EXACT_LIMIT:
                self._complete = False
                memory.forget_indexed()
            return True

    def reset(self) -> None:
        """Empty the index; used when all entries are cleared."""
        with self._lock:
            if self._index is not None:
                self._index.reset()
                self._memory, self._complete = Memory(), self._alone

    def close(self) -> None:
        """Close the index; what waits is found again at the next opening."""
        with self._lock:
            index, self._index = self._index, None
            if index is not None:
                index.close()

    def _opened(self) -> VectorIndex:
        if self._index is not None:
            return self._index
        with self._lock:
            if self._index is not None:
                return self._index
            if time.monotonic() < self._retry_at:
                raise IndexUnavailable(self._why)
            try:
                index = self._open_index()
                if index.count() < self._records.count_indexed(index.generation):
                    index.reset()  # vectors were lost: begin a new generation, filled from the truth
            except IndexUnavailable as error:
                self._why, self._retry_at = str(error), time.monotonic() + RETRY_SECONDS
                raise
            self._why = ""
            self._fill(index.generation)
            self._index = index
            return index

    def _fill(self, generation: str) -> None:
        """Take into memory what is not in the index, and if it is small all that is."""
        self._memory, self._complete = Memory(), False
        embedder = self._embedder.fingerprint
        if self._alone:
            indexed = self._records.indexed(generation, embedder, EXACT_LIMIT + 1)
            self._complete = len(indexed) <= EXACT_LIMIT
            if self._complete:
                self._load(indexed)
                self._memory.indexed(len(self._memory))
        self._load(self._records.unindexed(generation, embedder, PAGE))

    def _fetch(self, generation: str) -> None:
        """Read a page of what the index lacks; embed a batch of what has no vector."""
        page = self._records.unindexed(generation, self._embedder.fingerprint, PAGE)
        # Another entry with the same vector may have been indexed before.
        known = [row.point for row in page if row.point is not None and self._memory.holds(row.point)]
        if known:
            self._records.mark_indexed(known, generation)
        self._load(page)
        lacking = [row for row in page if row.vector is None][:EMBED_BATCH]
        if lacking:
            vectors = self._embedder.embed([row.question for row in lacking])
            made = [replace(row, vector=vector) for row, vector in zip(lacking, vectors, strict=True)]
            self._records.set_vectors(made, self._embedder.fingerprint)
            self._load(made)

    def _load(self, rows: Sequence[StoredVector]) -> None:
        for row in rows:
            if row.vector is not None and row.point is not None:
                self._memory.add(row.point, coded(row.vector, row.namespace, row.scope))

    def _abandon(self, error: IndexUnavailable) -> None:
        """Close an index that failed; the next use after a pause opens, and if need be heals, it."""
        with self._lock:
            index, self._index = self._index, None
            self._why, self._retry_at = str(error), time.monotonic() + RETRY_SECONDS
            self._memory, self._complete = Memory(), False
            if index is not None:
                try:
                    index.close(sound=False)
                except IndexUnavailable as problem:
                    self._faults.note("close the vector index", problem)
