"""A vector index that a user brings, such as Qdrant or FAISS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ibidem.errors import IndexRefused, IndexUnavailable
from ibidem.index.base import Compactable, VectorIndex
from ibidem.types import Vector, digest

Result = TypeVar("Result")

_METHODS = ("upsert", "search", "delete", "count", "close")


class ExternalIndex:
    """A user's index: what it raises is `IndexUnavailable`, and its generation is the class it is of.

    Args:
        index: The user's index.
    """

    def __init__(self, index: VectorIndex) -> None:
        self._index, kind = index, type(index)
        self.generation = digest("ExternalIndex", kind.__module__, kind.__qualname__)

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace vectors, shape (n, d)."""
        _attempt(lambda: self._index.upsert(ids, vectors))

    def search(self, vector: Vector, k: int) -> list[str]:
        """Return the ids of the k nearest, nearest first."""
        return _attempt(lambda: [str(id_) for id_ in self._index.search(vector, k)])

    def delete(self, ids: Sequence[str]) -> None:
        """Delete vectors."""
        _attempt(lambda: self._index.delete(ids))

    def count(self) -> int:
        """Return the number of vectors."""
        return _attempt(lambda: int(self._index.count()))

    def close(self, *, clean: bool = True) -> None:
        """Close the user's index."""
        _attempt(lambda: self._index.close(clean=clean))


def open_external(open_index: Callable[[str], VectorIndex], name: str) -> VectorIndex:
    """Open a user's index for the collection of this name.

    One that is `Compactable` is used as it is: it has generations of its own, and raises only what the
    protocol says.

    Raises:
        IndexRefused: It cannot be opened, which may take long to try, or lacks a method.
        IndexUnavailable: It says that it is away for now.
    """
    index = _attempt(lambda: open_index(name), IndexRefused)
    missing = [method for method in _METHODS if not callable(getattr(index, method, None))]
    if missing:
        raise IndexRefused(f"index= gave a {type(index).__name__}, which lacks {', '.join(missing)}")
    return index if isinstance(index, Compactable) else ExternalIndex(index)


def _attempt(use: Callable[[], Result], kind: type[IndexUnavailable] = IndexUnavailable) -> Result:
    try:
        return use()
    except IndexUnavailable:
        raise
    except Exception as error:
        raise kind(f"the vector index failed: {type(error).__name__}: {error}") from error
