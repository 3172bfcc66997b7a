"""What a vector index is to us: points and vectors, nothing else.

It makes finding cheap and decides nothing: what it returns is confirmed by the truth, and it can be deleted
and rebuilt from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol

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


def coded(vector: Vector, namespace: str, scope: str) -> Vector:
    """The vector that is indexed: question and scope code, unit length, shape (d + 32,)."""
    both = np.concatenate([vector, scope_code(namespace, scope)])
    return np.asarray(both / np.sqrt(2.0), dtype=np.float32)


class VectorIndex(Protocol):
    """Where vectors are found. Every method may raise `IndexUnavailable`."""

    @property
    def name(self) -> str:
        """Names its collection."""

    @property
    def generation(self) -> str:
        """Names this filling of the index; a new or emptied one has a new name."""

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or move vectors, shape (n, d)."""

    def search(self, vector: Vector, k: int) -> list[str]:
        """Ids of the k nearest, nearest first."""

    def delete(self, ids: Sequence[str]) -> None:
        """Forget these vectors; those it does not hold do not matter."""

    def held(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids that it holds."""

    def ids(self, offset: int, limit: int) -> list[str]:
        """A page of all ids."""

    def beside(self, name: str, generation: str | None = None) -> VectorIndex:
        """Another collection, opened or made with this generation; closed with this one."""

    def drop(self, name: str) -> None:
        """Delete another collection with its files, if it is there."""

    def count(self) -> int:
        """How many vectors it holds."""

    def reset(self) -> None:
        """Forget everything and begin a new generation."""

    def close(self, *, sound: bool = True) -> None:
        """Release files and locks. If not `sound`, the next opening looks for damage first."""


class IndexOpener(Protocol):
    """Opens the vector index of a place; raises `IndexUnavailable`."""

    def __call__(self, small: bool = False) -> VectorIndex:
        """The index; if it is embedded and `small`, only its place is taken, as memory holds all vectors."""
