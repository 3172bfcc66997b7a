"""Vectors held in memory, searched exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ibidem.entry import Vector


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
