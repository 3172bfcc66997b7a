"""The order of eviction when the cache is full. Pure.

    rank = floor + (min(hits, 4) + 0.05) * cost / size

The entry with the lowest rank is evicted, and `floor` rises to its rank: unused entries age
(GreedyDual-Size with frequency: L. Cherkasova, HP Labs report HPL-98-69R1). Two changes pay on Zipf streams
with the token costs of real conversations (`tests/benchmarks/eviction.py`): a new entry starts with a
twentieth of a hit, as most are asked for once, and hits beyond the fourth do not count, so that formerly
popular entries can go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ibidem.types import Answer

Eviction = Literal["cost", "lru"]

NEW = 0.05  # hits that a new entry starts with
MOST_HITS = 4  # hits that count
OUTPUT_WEIGHT = 4.0  # an output token costs about four times an input token (list prices of 2024 to 2026)
CHARS_PER_TOKEN = 4.0  # of English text, where the model reports no tokens
OVERHEAD = 1_300  # bytes of an entry besides its texts, vector and documents, measured: ids, numbers, indexes
DOCUMENT_BYTES = 150  # bytes of a document behind an answer: an id and a digest, not its text


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits on the size of a cache; None for unlimited.

    Args:
        max_entries: Answers kept.
        max_bytes: Bytes they take in the database, estimated from their texts and vectors.
        eviction: What goes first: `cost`, the entries that save least, or `lru`, the least recently used.
    """

    max_entries: int | None = None
    max_bytes: int | None = None
    eviction: Eviction = "cost"

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.max_entries is not None or self.max_bytes is not None

    @property
    def ranking(self) -> str:
        """Name of the way of ranking; ranks under different names are not comparable."""
        return "lru" if self.eviction == "lru" else f"cost/{'byte' if self.max_bytes else 'entry'}"

    def tightened(self, other: Bounds) -> Bounds:
        """Return the stricter limits of two caches on one location."""
        return Bounds(
            _smaller(self.max_entries, other.max_entries),
            _smaller(self.max_bytes, other.max_bytes),
            other.eviction,
        )

    def rank(
        self, floor: Any, hits: Any, cost: Any, size: Any, used: Any, least: Callable[..., Any] = min
    ) -> Any:
        """Compute the rank of an entry, of numbers or of columns; `least` is the minimum of two of them."""
        if self.eviction == "lru":
            return used
        saved = (least(hits, MOST_HITS) + NEW) * cost
        # One byte more: an Ibidem from before schema 2 that is still running writes no sizes.
        return floor + (saved / (size + 1) if self.max_bytes is not None else saved)


UNBOUNDED = Bounds()
# Ways of ranking, by name.
RANKINGS = {one.ranking: one for one in (UNBOUNDED, Bounds(max_bytes=1), Bounds(eviction="lru"))}


def _smaller(one: int | None, other: int | None) -> int | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)


def cost_of(answer: Answer) -> float:
    """Compute the cost of an answer in input tokens; estimated from its text if the model reported none."""
    if answer.input_tokens is None and answer.output_tokens is None:
        return OUTPUT_WEIGHT * len(answer.text) / CHARS_PER_TOKEN
    return (answer.input_tokens or 0) + OUTPUT_WEIGHT * (answer.output_tokens or 0)
