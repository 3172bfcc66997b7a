"""The protocols of a vector index, and the vector that is indexed.

An index makes finding cheap and decides nothing: what it returns is confirmed by the database, from which
it can be rebuilt at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ibidem.types import Vector


@lru_cache(maxsize=4096)
def scope_code(namespace: str, scope: str) -> Vector:
    """A unit vector drawn from namespace and scope, shape (32,), the same on every machine.

    Appended to a question's vector with weight 1 it moves other scopes away, so that one unfiltered search
    finds the entries of this one (Chroma's own filter costs 65-280 ms at 100,000 entries).
    """
    hashed = blake2b(namespace.encode("utf-8", "surrogatepass"), digest_size=64, key=scope.encode()[:64])
    spread = np.frombuffer(hashed.digest(), dtype="<u2").astype(np.float32) - 32767.5
    return np.asarray(spread / np.linalg.norm(spread), dtype=np.float32)


def with_scope_code(vector: Vector, namespace: str, scope: str) -> Vector:
    """The vector that is indexed: question and scope code, unit length, shape (d + 32,)."""
    both = np.concatenate([vector, scope_code(namespace, scope)])
    return np.asarray(both / np.sqrt(2.0), dtype=np.float32)


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
