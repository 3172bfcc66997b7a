"""The protocols of a vector index.

An index makes finding cheap and decides nothing: what it returns is confirmed by the database, from which
it can be rebuilt at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ibidem.types import Vector


class VectorIndex(Protocol):
    """Finds the nearest of its vectors. Every method may raise `IndexUnavailable`."""

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace vectors, shape (n, d)."""

    def search(self, vector: Vector, k: int) -> list[str]:
        """Return the ids of the k nearest, nearest first."""

    def delete(self, ids: Sequence[str]) -> None:
        """Delete vectors; ids that the index does not hold are ignored."""

    def count(self) -> int:
        """Return the number of vectors."""

    def close(self, *, clean: bool = True) -> None:
        """Release files, connections and locks. If not `clean`, the next open checks for corruption."""


@runtime_checkable
class Resettable(Protocol):
    """An index that can be emptied at once."""

    def reset(self) -> None:
        """Delete all vectors and begin a new generation."""


@runtime_checkable
class Compactable(Resettable, VectorIndex, Protocol):
    """A vector index that decays with deletions and is replaced by a fresh collection from time to time."""

    @property
    def name(self) -> str:
        """Name of the collection."""

    @property
    def generation(self) -> str:
        """Identifier of this content; a new or emptied collection has a new one."""

    def present(self, ids: Sequence[str]) -> set[str]:
        """Return those of these ids that the index holds."""

    def ids(self, offset: int, limit: int) -> list[str]:
        """Return a page of all ids."""

    def sibling(self, name: str, generation: str | None = None) -> Compactable:
        """Open another collection, created with this generation if it is new; closed with this one."""

    def drop(self, name: str) -> None:
        """Delete another collection with its files, if it exists."""


def generation_of(index: VectorIndex) -> str:
    """Identify the content of an index: entries are marked with it once the index holds them."""
    return str(getattr(index, "generation", type(index).__qualname__))
