"""The protocols of a vector index, and of the search that uses one.

An index makes finding cheap and decides nothing: what it returns is confirmed by the database, from which
it can be rebuilt at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ibidem.storage.vectors import VectorTable
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


class QuestionSearch(Protocol):
    """Finds the stored questions of one embedder nearest to one asked; thread-safe.

    `VectorSearch` keeps an index beside the database up to date, `PgvectorSearch` has the database search.
    """

    @property
    def table(self) -> VectorTable:
        """The stored vectors."""

    @property
    def state(self) -> str:
        """`open`, `unused` (not needed yet), or why there is no search."""

    def open(self) -> object:
        """Make ready what a search needs. Raises `IndexUnavailable`."""

    def nearest(self, namespace: str, scope: str, vector: Vector, k: int, base: str = "") -> list[str]:
        """Return points near the vector, most of them of this namespace and scope.

        With a `base`, those of other conversations on this base come after them.

        Raises:
            IndexUnavailable: There is no search now.
            StorageUnavailable: The database is away.
        """

    def add(self, namespace: str, scope: str, vector: Vector, base: str = "") -> None:
        """Make a stored entry findable at once; one of a conversation by its `base`, too."""

    def index_batch(self) -> bool:
        """Make one batch of stored questions findable that are not; returns whether there may be more."""

    def caught_up(self) -> bool:
        """Return whether all questions that can be embedded now are findable."""

    def compact(self, *, wanted: bool = False) -> bool:
        """Do one step towards a better index, if one is due or wanted; returns whether there is more."""

    def reset(self) -> None:
        """Empty the index; used when all entries are cleared."""

    def after_fork(self) -> None:
        """Start afresh in a forked child."""

    def close(self) -> None:
        """Release everything."""


def generation_of(index: VectorIndex) -> str:
    """Identify the content of an index: entries are marked with it once the index holds them."""
    return str(getattr(index, "generation", type(index).__qualname__))
