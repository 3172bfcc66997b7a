"""The vectors of an export, in a file and not in memory: half precision, as the log keeps them."""

from __future__ import annotations

from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
TILE = 2048  # rows that are in memory at a time


class Vectors(Protocol):
    """float32[n, d] of unit length: an array, or what reads one from a file."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, rows: Numbers, /) -> NDArray[np.float32]:
        """Some of them."""
        ...


class FileVectors:
    """Vectors in a file, one after the other, scaled to unit length as they are read.

    Args:
        file: Holds them as little-endian half precision.
        width: Their dimension.
        rows: Which of them, in which order.
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
        """Some of them, in another order; nothing is copied."""
        other = object.__new__(FileVectors)
        other._held, other._norms, other._rows = self._held, self._norms, self._rows[rows]
        return other
