"""Vectors held in memory, searched exactly."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from ibidem.entry import Vector


class Memory:
    """Points with their vectors, those that the index holds too first. Thread-safe."""

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
