"""The index of a small embedded cache: none. All vectors are in memory, and Chroma is not even loaded.

Chroma keeps 3 to 4 KB of every vector that was ever put into it until the process ends, and holds the GIL
while it writes: a bounded cache that turns over would grow for ever. It comes into play when the vectors are
too many to be searched one by one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ibidem.entry import Vector
from ibidem.errors import IndexUnavailable
from ibidem.index.tenancy import Tenancy
from ibidem.index.vector_index import VectorIndex
from ibidem.locks import undying


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
        undying(self)

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
