"""The vector that is indexed, and vectors held in memory, searched exactly."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ibidem._util.concurrency import keep_alive_after_fork
from ibidem.index.base import VectorIndex
from ibidem.index.chroma_lock import DirectoryLock
from ibidem.types import Vector


@lru_cache(maxsize=4096)
def scope_code(namespace: str, scope: str) -> Vector:
    """Draw a unit vector from namespace and scope, shape (32,), the same on every machine.

    Appended to a question's vector with weight 1 it moves other scopes away, so that one unfiltered search
    finds the entries of this one (Chroma's own filter costs 65-280 ms at 100,000 entries).
    """
    hashed = blake2b(namespace.encode("utf-8", "surrogatepass"), digest_size=64, key=scope.encode()[:64])
    spread = np.frombuffer(hashed.digest(), dtype="<u2").astype(np.float32) - 32767.5
    return np.asarray(spread / np.linalg.norm(spread), dtype=np.float32)


def with_scope_code(vector: Vector, namespace: str, scope: str) -> Vector:
    """Return the vector to index: question and scope code, unit length, shape (d + 32,)."""
    both = np.concatenate([vector, scope_code(namespace, scope)])
    return np.asarray(both / np.sqrt(2.0), dtype=np.float32)


class VectorBuffer:
    """Points with their vectors, first those that the index holds too. Thread-safe; searches never wait."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._drop_all()

    def _drop_all(self) -> None:
        self._at: set[str] = set()
        # Exchanged as a pair; of a pair in use only the ends grow: the row first, then its point.
        self._held: tuple[list[str], NDArray[np.float32]] = ([], np.empty((0, 0), dtype=np.float32))
        self._indexed = 0  # this many of the first are in the index too

    @property
    def waiting(self) -> int:
        """Number of points that are not in the index yet."""
        with self._changing:
            return len(self._held[0]) - self._indexed

    def __len__(self) -> int:
        return len(self._held[0])

    def __contains__(self, point: str) -> bool:
        with self._changing:
            return point in self._at

    def add(self, point: str, vector: Vector) -> None:
        """Append one vector unless its point is present; capacity grows by doubling."""
        with self._changing:
            if point in self._at:
                return
            points, rows = self._held
            n = len(points)
            if n and len(vector) != rows.shape[1]:  # damaged
                return
            if n >= len(rows):
                grown = np.empty((max(64, 2 * n), len(vector)), dtype=np.float32)
                grown[:n] = rows[:n] if n else 0
                rows = grown
                self._held = points, rows
            rows[n] = vector
            points.append(point)
            self._at.add(point)

    def remove(self, points: Iterable[str]) -> None:
        """Remove points; the rest is copied (5 ms for 10,000), so that searches go on meanwhile."""
        with self._changing:
            gone = self._at.intersection(points)
            if gone:
                self._keep([n for n, point in enumerate(self._held[0]) if point not in gone])

    def clear(self) -> None:
        """Remove everything."""
        with self._changing:
            self._drop_all()

    def next_batch(self, n: int) -> tuple[list[str], NDArray[np.float32]]:
        """Return the n oldest that are not in the index yet."""
        with self._changing:
            points, rows = self._held
            batch = slice(self._indexed, min(self._indexed + n, len(points)))
            return points[batch], rows[batch]

    def mark_indexed(self, n: int) -> None:
        """Record that the n oldest of those that waited are in the index now."""
        with self._changing:
            self._indexed += n

    def mark_all_waiting(self) -> None:
        """Record that another index holds none of them."""
        with self._changing:
            self._indexed = 0

    def drop_indexed(self) -> None:
        """Keep only what is not in the index."""
        with self._changing:
            self._keep(list(range(self._indexed, len(self._held[0]))))

    def _keep(self, which: list[int]) -> None:
        """Go on with a copy of these rows, with some room for more."""
        points, rows = self._held
        room = len(which) + len(which) // 4 if which else 0
        kept = np.empty((room, rows.shape[1]), dtype=np.float32)
        np.take(rows, which, axis=0, out=kept[: len(which)])
        self._indexed = sum(at < self._indexed for at in which)
        self._held = [points[at] for at in which], kept
        self._at = set(self._held[0])

    def nearest(self, vector: Vector, k: int) -> list[str]:
        """Return the k nearest points by inner product, nearest first."""
        points, rows = self._held
        rows = rows[: len(points)]
        if not len(rows):
            return []
        # Not `rows @ vector`: BLAS has threads of its own for it, which wait for each other by spinning. 32
        # threads made 90 such searches of 10,000 vectors a second on two cores, and make 6,000 so.
        scores = np.einsum("ij,j->i", rows, vector)
        best = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
        return [points[at] for at in best[np.argsort(-scores[best])]]


class InMemoryIndex:
    """The index of a small embedded cache: all vectors are in a buffer, and Chroma is not even loaded.

    It owns the directory where Chroma would be: no other process searches there.

    Args:
        directory: Emptied when the cache is.
        name: Name of the collection that it stands for.
        buffer: Holds the vectors.
        open_chroma: Opens the index that takes its place when it has grown too large; takes over the lock.

    Raises:
        IndexUnavailable: Another process owns the directory.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        buffer: VectorBuffer,
        open_chroma: Callable[[DirectoryLock], VectorIndex],
    ) -> None:
        self._directory, self._buffer, self._open_chroma = directory, buffer, open_chroma
        self._lock = DirectoryLock.acquire(directory)
        self.generation = f"memory-{name}"[:32]
        keep_alive_after_fork(self)

    def migrate_to_chroma(self) -> VectorIndex:
        """Open the Chroma index that takes the place of this one.

        Raises:
            IndexUnavailable: It cannot be opened; the directory was released.
        """
        return self._open_chroma(self._lock)

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add vectors that the buffer lacks."""
        for point, vector in zip(ids, vectors, strict=True):
            self._buffer.add(point, vector)

    def search(self, vector: Vector, k: int) -> list[str]:
        """Return the ids of the k nearest, nearest first."""
        return self._buffer.nearest(vector, k)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete vectors."""
        self._buffer.remove(ids)

    def count(self) -> int:
        """Return the number of vectors."""
        return len(self._buffer)

    def reset(self) -> None:
        """Delete all vectors, also those on disk from when the cache was larger, unless they are in use."""
        self._buffer.clear()
        if not self._lock.clients:
            shutil.rmtree(self._directory, ignore_errors=True)

    def close(self, *, clean: bool = True) -> None:
        """Release the directory; the last index of this process leaves it to others."""
        self._lock.release(clean=clean)
