"""What the truth knows about a stored answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ibidem.request import Answer, digest

Vector = NDArray[np.float32]
ROUNDED = 0.1  # how far the square of the length of a vector in half precision may be from 1


def to_bytes(vector: Vector) -> bytes:
    """A vector in half precision, little-endian: 768 bytes for 384 dimensions, cosines right to 1e-3."""
    return vector.astype("<f2").tobytes()


def to_vector(raw: bytes) -> Vector:
    """The float32 vector that `to_bytes` wrote.

    Raises:
        ValueError: It did not: these bytes are no unit vector. A NaN would pass for a similarity of 1.
    """
    vector = np.frombuffer(raw, dtype="<f2").astype(np.float32)
    if not abs(float(vector @ vector) - 1.0) < ROUNDED:
        raise ValueError("no unit vector")
    return vector


def cosine(vector: Vector, stored: Vector) -> float:
    """Of a unit vector and a stored one. That is rounded: the same question must not fall short of itself."""
    found = min(1.0, float(stored @ vector))
    return 1.0 if found > 0.99 and (stored == to_vector(to_bytes(vector))).all() else found


def point_of(namespace: str, scope: str, vector: Vector) -> str:
    """Names the point of the vector index that stands for this vector in this scope.

    Entries with one wording (the same question over other documents) share a point: an HNSW graph does not
    reliably find one among identical vectors (39 of 300 were lost in a test).
    """
    return digest(namespace, scope, to_bytes(vector).hex())


@dataclass(frozen=True, slots=True)
class Source:
    """A document behind an answer: its id, the digest of its content, and whether it supports the answer.

    `source` is the id of what it was cut from, empty if that is not known.
    """

    id: str
    digest: str
    supports: bool
    source: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored answer with the request it belongs to.

    `question` is None where the request was exact-only. `documents` is the digest of the whole document
    set, `sources` the documents one by one. Times are seconds since the epoch: `created`, `used` (when it was
    stored or last served) and `expires`, when it is deleted; `ttl` is how many seconds it lives, None for
    ever. `vector` is the question's embedding, shape (d,), unit length, or None while it is not embedded.
    """

    id: str
    namespace: str
    scope: str
    question: str | None
    documents: str
    semantic: bool
    answer: Answer
    created: float
    expires: float | None = None
    ttl: float | None = None
    used: float = 0.0
    hits: int = 0
    tags: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    vector: Vector | None = field(default=None, repr=False, compare=False)

    @property
    def evidence(self) -> frozenset[str]:
        """Digests of the documents that support the answer."""
        return frozenset(source.digest for source in self.sources if source.supports)

    @property
    def point(self) -> str | None:
        """Where the vector index holds the entry, or None without a vector."""
        return None if self.vector is None else point_of(self.namespace, self.scope, self.vector)
