"""Statistics of a cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from ibidem.audits.ledger import AuditStats


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of a cache; sums over all processes that used the database.

    `hits` by tier and `misses` by reason count the lookups still in the log (the last 100,000), `rejected`
    by reason and `faults` by cause are of this process since opening. `unindexed` entries are stored but not
    yet in the vector index; `examples` counts the example log; `index` says whether the index is in use, or
    why not. `waits` counts the requests of this process that waited for an identical one, by outcome: `hit`,
    `asked` (the other failed, or its answer was rejected) or `timeout`. `audits` covers the 20 namespaces
    audited last; it is empty without audits.

    `money_saved` is what the answers of hits would have cost, in `currency`; None if no price is known.
    `prices_as_of` is the date of the shipped prices, "" if only your own count. `unpriced` counts, by model,
    the hits whose cost is unknown: no price, or no token count.
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
    audits: tuple[AuditStats, ...] = ()
    bytes: int = 0
    evicted: int = 0
    expired: int = 0
    waits: dict[str, int] = field(default_factory=dict)
    money_saved: float | None = None
    currency: str = ""
    prices_as_of: str = ""
    unpriced: dict[str, int] = field(default_factory=dict)
