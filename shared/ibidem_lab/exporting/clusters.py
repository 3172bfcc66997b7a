"""Find duplicate questions, cluster related ones, and split without cutting a cluster.

All by cosine similarity of unit vectors, in tiles: memory grows with the questions, not with their pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

TILE = 2048  # rows that are in memory at a time

# A product of the same two vectors differs in the last digits from tile to tile.
ROUNDING = 1e-4
# Questions with one answer, word for word, belong together from here on: of pairs of 0.6 or more 78 % have
# one intent (clinc150; banking77: 40 %), whatever their answers.
RELATED = 0.6
LOOKED_AT = 16  # nearest questions that are tried for a duplicate
# A cluster too large for the test is cut into parts of a fifth of it; into larger ones, which have less of a
# border, only where these do not fill the test.
PARTS = (5, 2, 1)
LEFT = 0.05  # of the test that may stay empty
ROUNDS = 8

TRAIN, TEST, BORDER = 0, 1, 2


class Vectors(Protocol):
    """Unit vectors, float32[n, d]: an array, or a reader of a file."""

    def __len__(self) -> int:
        """Count the vectors."""
        ...

    def __getitem__(self, rows: Numbers, /) -> NDArray[np.float32]:
        """Return some vectors."""
        ...


class FileVectors:
    """Read vectors from a file and scale them to unit length.

    Args:
        file: The vectors one after the other, in little-endian half precision.
        width: The dimension.
        rows: The indices of the vectors, in order.
    """

    def __init__(self, file: BinaryIO, width: int, rows: Numbers) -> None:
        file.flush()
        held: NDArray[np.float16] = np.memmap(file, "<f2", "r").reshape(-1, width)
        norms = np.empty(len(held), np.float32)
        for at in range(0, len(held), TILE):
            norms[at : at + TILE] = np.linalg.norm(held[at : at + TILE].astype(np.float32), axis=1)
        self._held, self._norms, self._rows = held, norms, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Numbers) -> NDArray[np.float32]:
        some = self._rows[rows]
        found: NDArray[np.float32] = self._held[some].astype(np.float32)
        found /= self._norms[some][:, None]
        return found

    def of(self, rows: Numbers) -> FileVectors:
        """Return a view of some vectors, in another order; nothing is copied."""
        other = object.__new__(FileVectors)
        other._held, other._norms, other._rows = self._held, self._norms, self._rows[rows]
        return other


@dataclass(frozen=True, slots=True)
class Ties:
    """Decide whether two questions belong together.

    Args:
        vectors: float32[n, d], of unit length.
        answers: int64[n]: the same number for the same answer, -1 for one that says nothing.
        apart: Least cosine similarity of two that belong together.
    """

    vectors: Vectors
    answers: Numbers
    apart: float

    def tied(self, some: Numbers, others: Numbers) -> Flags:
        """Return a matrix: whether `some` (rows) belong to `others` (columns)."""
        sims = self.vectors[some] @ self.vectors[others].T
        found: Flags = sims >= self.apart - ROUNDING
        one, other = self.answers[some], self.answers[others]
        if self.apart > RELATED and (one >= 0).any() and np.isin(other, one[one >= 0]).any():
            same = (one[:, None] == other) & (one >= 0)[:, None]
            found |= same & (sims >= RELATED - ROUNDING)
        return found


def duplicates(
    vectors: Vectors,
    near: float,
    comparable: Flags,
    same: Callable[[int, int], bool],
    seen: Callable[[int], object],
) -> Numbers:
    """Return for each row the earlier one that it repeats, -1 if it is kept. Only kept rows are repeated.

    Args:
        vectors: float32[n, d], of unit length; what is preferred stands first.
        near: Least cosine similarity of a repetition.
        comparable: bool[n]: false for rows that neither repeat nor are repeated.
        same: Has the last word on a pair that is as near.
        seen: Called with the number of rows that are done.
    """
    repeats = np.full(len(vectors), -1, np.int64)
    for begin, end in _tiles(len(vectors)):
        block = np.arange(begin, end)
        kept = np.flatnonzero(comparable[:end] & (repeats[:end] < 0))
        found: list[list[tuple[float, int]]] = [[] for _ in block]
        for start, stop in _tiles(len(kept)):
            others = kept[start:stop]
            sims = vectors[block] @ vectors[others].T
            for row in np.flatnonzero(sims.max(axis=1) >= near):
                columns = np.flatnonzero(sims[row] >= near)
                found[row] += [(-float(sims[row, at]), int(others[at])) for at in columns]
        for number, candidates in zip(block.tolist(), found, strict=True):
            if comparable[number]:
                repeats[number] = _repeated(number, candidates, repeats, same)
        seen(end)
    return repeats


def _repeated(
    number: int, candidates: list[tuple[float, int]], repeats: Numbers, same: Callable[[int, int], bool]
) -> int:
    earlier = [other for _, other in sorted(candidates) if other < number and repeats[other] < 0]
    return next((other for other in earlier[:LOOKED_AT] if same(number, other)), -1)


def clusters_of(ties: Ties, seen: Callable[[int], object]) -> Numbers:
    """Number the clusters, int64[n]: rows that belong together, also through others, share a number."""
    count = len(ties.vectors)
    labels = np.arange(count)
    for begin, end in _tiles(count):
        block = np.arange(begin, end)
        for start, stop in _tiles(end):
            others = np.arange(start, stop)
            tied = ties.tied(block, others)
            tied &= labels[block][:, None] != labels[others]
            for row in np.flatnonzero(tied.any(axis=1)):
                _merge(labels, np.append(labels[others[tied[row]]], labels[block[row]]))
        seen(end)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _merge(labels: Numbers, given: Numbers) -> None:
    joined = np.unique(given)
    if len(joined) == 2:
        labels[labels == joined[1]] = joined[0]
    elif len(joined) > 2:
        labels[np.isin(labels, joined)] = joined[0]


def split(ties: Ties, labels: Numbers, share: float, seed: int) -> NDArray[np.int8]:
    """Assign `TRAIN`, `TEST` or `BORDER` to each row; no test row belongs to a training row.

    Clusters go to the test as a whole, drawn by chance, while there is room. Of one that is larger than a
    fifth of the room parts can go there (by k-means, Lloyd 1982). The rows outside a part that belong to rows
    in it are its border and go nowhere; a part whose border is larger than itself is not taken. So
    the border is never larger than the test, and a test may be smaller than asked for.

    Args:
        ties: Which rows belong together.
        labels: What `components` found.
        share: Of all rows that are to be tested.
        seed: Of all that is drawn.
    """
    sides = np.full(len(labels), TRAIN, np.int8)
    room = round(share * len(labels))
    draw = np.random.default_rng(seed)
    left = room
    for parts in PARTS if room else ():
        units = _units(ties.vectors, labels, max(1, room // parts), draw)
        for at in draw.permutation(len(units)):
            whole, unit = units[at]
            unit = unit[sides[unit] == TRAIN]
            if 0 < len(unit) <= left:
                border = _border(ties, unit, whole[sides[whole] == TRAIN])
                if len(border) <= len(unit):
                    sides[unit], sides[border] = TEST, BORDER
                    left -= len(unit)
        if left < LEFT * room:
            break
    return sides


def _units(
    vectors: Vectors, labels: Numbers, most: int, draw: np.random.Generator
) -> list[tuple[Numbers, Numbers]]:
    """List clusters and their units for the test: the whole, or parts if larger than `most`."""
    order = np.argsort(labels, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    found = []
    for cluster in clusters:
        parts = [cluster] if len(cluster) <= most else _parts(vectors, cluster, most, draw)
        found += [(cluster, part) for part in parts]
    return found


def _parts(vectors: Vectors, cluster: Numbers, most: int, draw: np.random.Generator) -> list[Numbers]:
    """Cut the cluster into parts of about `most` rows that lie near one another."""
    count = -(-len(cluster) // most)
    centres = vectors[np.sort(draw.choice(cluster, count, replace=False))]
    for _ in range(ROUNDS):
        nearest = _nearest(vectors, cluster, centres)
        sums = np.zeros_like(centres)
        for start, stop in _tiles(len(cluster)):
            np.add.at(sums, nearest[start:stop], vectors[cluster[start:stop]])
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres)
    nearest = _nearest(vectors, cluster, centres)
    return [cluster[nearest == at] for at in range(count) if (nearest == at).any()]


def _nearest(vectors: Vectors, rows: Numbers, centres: NDArray[np.float32]) -> Numbers:
    pieces = [(vectors[rows[start:stop]] @ centres.T).argmax(axis=1) for start, stop in _tiles(len(rows))]
    return np.concatenate(pieces)


def _border(ties: Ties, unit: Numbers, around: Numbers) -> Numbers:
    """Return the rows of `around` outside the unit that belong to one in it."""
    outside = np.setdiff1d(around, unit)
    pieces = [outside[:0]]
    for start, stop in _tiles(len(outside)):
        tied = np.zeros(stop - start, bool)
        for begin, end in _tiles(len(unit)):
            tied |= ties.tied(unit[begin:end], outside[start:stop]).any(axis=0)
        pieces.append(outside[start:stop][tied])
    return np.concatenate(pieces)


def across(ties: Ties, sides: NDArray[np.int8]) -> tuple[float | None, int]:
    """Return the largest cosine of test and training rows, and the number of pairs that belong together.

    None and 0 if either side is empty. It is computed afresh, and proves what `split` promises.
    """
    train, test = np.flatnonzero(sides == TRAIN), np.flatnonzero(sides == TEST)
    largest, leaks = -1.0, 0
    for begin, end in _tiles(len(test)):
        for start, stop in _tiles(len(train)):
            one, other = test[begin:end], train[start:stop]
            largest = max(largest, float((ties.vectors[one] @ ties.vectors[other].T).max()))
            leaks += int(ties.tied(one, other).sum())
    return (largest if len(train) and len(test) else None), leaks


def _tiles(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, TILE):
        yield start, min(start + TILE, count)
