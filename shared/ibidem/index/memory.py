"""The vector that is indexed, and vectors held in memory, searched exactly."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ibidem.storage.vectors import StoredVector, VectorChanges, VectorTable
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


def with_scope_code(vector: Vector, namespace: str, scope: str, base: str = "") -> Vector:
    """Return the vector to index: question and scope code, unit length, shape (d + 32,).

    Within a conversation, `base` is the scope without it: other conversations on this base are half as far
    away as other scopes are, and first messages nearer still.
    """
    code = scope_code(namespace, scope)
    if base and base != scope:
        code = code + scope_code(namespace, base)
        code /= np.linalg.norm(code)
    both = np.concatenate([vector, code])
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

    def points(self) -> set[str]:
        """Return all points."""
        with self._changing:
            return set(self._at)

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


def load(buffer: VectorBuffer, rows: Iterable[StoredVector]) -> None:
    """Add the rows that have a vector to the buffer."""
    for row in rows:
        if row.vector is not None and (point := row.point) is not None:
            buffer.add(point, with_scope_code(row.vector, row.namespace, row.scope, row.base))


FULL_SECONDS = 60.0  # how often all points are compared, in case a change was lost


class ChangeFollower:
    """Adds to a buffer what other processes have stored and no index holds yet. Thread-safe.

    A SQLite database lists its last changes (`vector_changes`), which `follow` reads: a few microseconds if
    there are none.

    Args:
        table: The vectors.
        buffer: Receives them.
    """

    def __init__(self, table: VectorTable, buffer: VectorBuffer) -> None:
        self._table, self._buffer = table, buffer
        self._following = threading.Lock()
        self._stopped = False
        self._last = table.last_change()

    def follow(self) -> None:
        """Bring the buffer up to date with the database."""
        if not self._table.lists_changes:  # then `compare` does it, in the background
            return
        changes = self._table.changes(self._last)
        if changes is not None and changes.last == self._last:
            return
        with self._following:  # a caller waits for another, which may be removing what he has just stored
            if not self._stopped:
                self._apply(self._table.changes(self._last))

    def _apply(self, changes: VectorChanges | None) -> None:
        if changes is None:  # too many: the background reads what no index holds, a page at a time
            self._last = self._table.last_change()
            return
        new = [point for point, added in changes.added.items() if added and point not in self._buffer]
        if new:
            load(self._buffer, self._table.unindexed_at(new))
        self._last = changes.last

    def stop(self) -> None:
        """Leave the buffer to others."""
        with self._following:
            self._stopped = True


class InMemoryIndex(ChangeFollower):
    """The vectors of an embedded cache in a buffer, the same in each of its processes. Thread-safe.

    Points are added and removed by what the database holds now, so nothing depends on the order in which
    threads and processes store and follow.

    Args:
        table: The vectors.
        buffer: Receives them.
    """

    def __init__(self, table: VectorTable, buffer: VectorBuffer) -> None:
        super().__init__(table, buffer)  # notes the last change before the vectors are read
        load(buffer, table.with_vectors())
        self._full_at = time.monotonic() + FULL_SECONDS

    def _apply(self, changes: VectorChanges | None) -> None:
        if changes is None:
            self._compare_all()
            return
        held = self._buffer
        self._refresh([point for point, added in changes.added.items() if not added or point not in held])
        self._last = changes.last

    def _refresh(self, points: Sequence[str]) -> None:
        """Make the buffer hold those of these points that the database holds, and no other of them."""
        if points:
            rows = self._table.at(points)
            load(self._buffer, rows)
            self._buffer.remove(set(points).difference(row.point for row in rows if row.point))

    def compare(self) -> None:
        """Compare all points with the database, if that is due; always if it lists no changes."""
        if not self._table.lists_changes or time.monotonic() >= self._full_at:
            with self._following:
                if not self._stopped:
                    self._compare_all()

    def _compare_all(self) -> None:
        last = self._table.last_change()  # before the points: what changes meanwhile is read again
        self._refresh(sorted(self._table.all_points() ^ self._buffer.points()))
        self._last = last
        self._full_at = time.monotonic() + FULL_SECONDS

    def close(self, *, clean: bool = True) -> None:
        """Stop following."""
        self.stop()
