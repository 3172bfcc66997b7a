"""What a cache tells about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """What the cache holds and did; sums over all processes that used the database.

    `hits` by tier and `misses` by reason count the lookups still in the log (the last 100,000), `rejected`
    by reason and `faults` by cause this process since opening. `unindexed` entries are in the truth but not
    in the vector index yet; `examples` counts the example log; `index` says whether the index is in use, or
    why not.
    """

    entries: int
    semantic_entries: int
    unindexed: int
    hits: dict[str, int]
    misses: dict[str, int]
    tokens_saved: int
    examples: int
    rejected: dict[str, int]
    faults: dict[str, int]
    index: str
