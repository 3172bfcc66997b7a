"""Which entries go first when the cache is full. Pure.

    rank = floor + (min(hits, 4) + 0.05) * cost / size

The entry of the lowest rank is evicted, and `floor` rises to its rank: what is not asked for grows old
(GreedyDual-Size with frequency: L. Cherkasova, HP Labs report HPL-98-69R1). Two changes pay on Zipf streams
with the token costs of real conversations (`tests/benchmarks/eviction.py`): a new answer begins with a
twentieth of a hit, as most are asked for once, and hits beyond the fourth do not count, so that old
favourites can fall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ibidem.types import Answer

Eviction = Literal["cost", "lru"]

NEW = 0.05  # hits that a new entry is given
MOST_HITS = 4  # hits that count
OUTPUT_WEIGHT = 4.0  # a token said costs about four times one read (list prices of 2024 to 2026)
CHARS_PER_TOKEN = 4.0  # of English text, where a model does not tell its tokens
OVERHEAD = 1_300  # bytes of an entry beside its texts, vector and documents, measured: ids, numbers, indexes
DOCUMENT_BYTES = 150  # bytes that a document behind an answer takes: an id and a digest, not its text


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a cache may grow; None for as large as it gets.

    Args:
        max_entries: Answers kept.
        max_bytes: Bytes they take in the database, estimated from their texts and vectors.
        eviction: What goes first: `cost`, what saves least, or `lru`, what was not asked for the longest.
    """

    max_entries: int | None = None
    max_bytes: int | None = None
    eviction: Eviction = "cost"

    @property
    def limited(self) -> bool:
        """Whether there is a bound at all."""
        return self.max_entries is not None or self.max_bytes is not None

    @property
    def ranking(self) -> str:
        """Names how entries are ranked; ranks of different names are not compared."""
        return "lru" if self.eviction == "lru" else f"cost/{'byte' if self.max_bytes else 'entry'}"

    def tightened(self, other: Bounds) -> Bounds:
        """The stricter of both: for two caches on one place."""
        return Bounds(
            _smaller(self.max_entries, other.max_entries),
            _smaller(self.max_bytes, other.max_bytes),
            other.eviction,
        )

    def rank(
        self, floor: Any, hits: Any, cost: Any, size: Any, used: Any, least: Callable[..., Any] = min
    ) -> Any:
        """The rank of an entry, of numbers or of columns; `least` takes the minimum of two of them."""
        if self.eviction == "lru":
            return used
        saved = (least(hits, MOST_HITS) + NEW) * cost
        # One byte more than it has: an Ibidem of before schema 2 that is still running writes no sizes.
        return floor + (saved / (size + 1) if self.max_bytes is not None else saved)


UNBOUNDED = Bounds()
# How entries are ranked, by the names of the rankings.
RANKINGS = {one.ranking: one for one in (UNBOUNDED, Bounds(max_bytes=1), Bounds(eviction="lru"))}


def _smaller(one: int | None, other: int | None) -> int | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)


def cost_of(answer: Answer) -> float:
    """What the answer cost, in input tokens; estimated from its text if the model did not tell."""
    if answer.input_tokens is None and answer.output_tokens is None:
        return OUTPUT_WEIGHT * len(answer.text) / CHARS_PER_TOKEN
    return (answer.input_tokens or 0) + OUTPUT_WEIGHT * (answer.output_tokens or 0)
