"""Vectors held in memory, searched exactly."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ibidem._util.concurrency import keep_alive_after_fork
from ibidem.errors import IndexUnavailable
from ibidem.index.base import VectorIndex
from ibidem.index.chroma_lock import Tenancy
from ibidem.types import Vector


class Memory:
    """Points with their vectors, those that the index holds too first. Thread-safe; searches never wait."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._at: set[str] = set()
        # Exchanged as a pair; of a pair in use only the ends grow: the row first, then its point.
        self._held: tuple[list[str], NDArray[np.float32]] = ([], np.empty((0, 0), dtype=np.float32))
        self._indexed = 0  # this many of the first are in the index too

    @property
    def waiting(self) -> int:
        """How many are not in the index yet."""
        with self._changing:
            return len(self._held[0]) - self._indexed

    def __len__(self) -> int:
        return len(self._held[0])

    def add(self, point: str, vector: Vector) -> None:
        """Append one vector unless it is there; room grows by doubling."""
        with self._changing:
            if point in self._at:
                return
            points, rows = self._held
            n = len(points)
            if n and len(vector) != rows.shape[1]:  # a damaged one
                return
            if n >= len(rows):
                grown = np.empty((max(64, 2 * n), len(vector)), dtype=np.float32)
                grown[:n] = rows[:n] if n else 0
                rows = grown
                self._held = points, rows
            rows[n] = vector
            points.append(point)
            self._at.add(point)

    def remove(self, gone: Iterable[str]) -> None:
        """Forget these points; what is kept is copied (5 ms for 10,000), so that searches go on meanwhile."""
        with self._changing:
            out = self._at.intersection(gone)
            if out:
                self._keep([n for n, point in enumerate(self._held[0]) if point not in out])

    def holds(self, point: str) -> bool:
        """Whether the point is here."""
        with self._changing:
            return point in self._at

    def next(self, n: int) -> tuple[list[str], NDArray[np.float32]]:
        """The n oldest that wait for the index."""
        with self._changing:
            points, rows = self._held
            which = slice(self._indexed, min(self._indexed + n, len(points)))
            return points[which], rows[which]

    def indexed(self, n: int) -> None:
        """The n oldest that waited are in the index now."""
        with self._changing:
            self._indexed += n

    def index_anew(self) -> None:
        """All wait for another index."""
        with self._changing:
            self._indexed = 0

    def forget_indexed(self) -> None:
        """Keep only what is not in the index."""
        with self._changing:
            self._keep(list(range(self._indexed, len(self._held[0]))))

    def _keep(self, which: list[int]) -> None:
        """Go on with a copy of these, with some room for more."""
        points, rows = self._held
        room = len(which) + len(which) // 4 if which else 0
        kept = np.empty((room, rows.shape[1]), dtype=np.float32)
        np.take(rows, which, axis=0, out=kept[: len(which)])
        self._indexed = sum(at < self._indexed for at in which)
        self._held = [points[at] for at in which], kept
        self._at = set(self._held[0])

    def nearest(self, vector: Vector, k: int) -> list[str]:
        """The k nearest points by inner product, nearest first."""
        points, rows = self._held
        rows = rows[: len(points)]
        if not len(rows):
            return []
        # Not `rows @ vector`: BLAS has threads of its own for it, which wait for each other by spinning. 32
        # threads made 90 such searches of 10,000 vectors a second on two cores, and make 6,000 so.
        scores = np.einsum("ij,j->i", rows, vector)
        best = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
        return [points[at] for at in best[np.argsort(-scores[best])]]


class SmallIndex:
    """Stands in the place of the index while memory holds all that it would hold.

    It owns the directory of the index: no other process searches there.

    Args:
        directory: Where Chroma would be; emptied when the cache is.
        name: Of the collection that it stands for.
        tenancy: Of the directory.
        enlarge: Opens the real index with the tenancy.
    """

    def __init__(
        self, directory: Path, name: str, tenancy: Tenancy, enlarge: Callable[[Tenancy], VectorIndex]
    ) -> None:
        self._directory, self._tenancy, self._enlarge = directory, tenancy, enlarge
        self.name, self.generation = name, f"memory-{name}"[:32]
        keep_alive_after_fork(self)

    def grow(self) -> VectorIndex:
        """The real index, in the place of this one.

        Raises:
            IndexUnavailable: It cannot be opened; the directory was given up.
        """
        return self._enlarge(self._tenancy)

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Nothing: memory holds them."""

    def search(self, vector: Vector, k: int) -> list[str]:
        """Nothing: memory finds it."""
        return []

    def delete(self, ids: Sequence[str]) -> None:
        """Nothing: memory forgets them."""

    def held(self, ids: Sequence[str]) -> set[str]:
        """All of them, as far as memory does."""
        return set(ids)

    def ids(self, offset: int, limit: int) -> list[str]:
        """None of its own."""
        return []

    def beside(self, name: str, generation: str | None = None) -> VectorIndex:
        """There is no other."""
        raise IndexUnavailable("a small index has no collections")

    def drop(self, name: str) -> None:
        """Nothing: there is no other."""

    def count(self) -> int:
        """None of its own."""
        return 0

    def reset(self) -> None:
        """Delete what Chroma may have held when the cache was larger, unless this process uses it."""
        if not self._tenancy.clients:
            shutil.rmtree(self._directory, ignore_errors=True)

    def close(self, *, sound: bool = True) -> None:
        """Release the directory, with the last index of this process to other processes."""
        self._tenancy.release(sound=sound)
