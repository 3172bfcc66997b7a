"""Statistics of a cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from ibidem.audits.ledger import AuditStats


@dataclass(frozen=True, slots=True)
class Stats:
    """What the cache holds and did; sums over all processes that used the database.

    `money_saved` is what the answers of hits would have cost, in `currency`; None if that is known of none.
    `prices_as_of` is the day of the shipped prices, "" if only prices of yours count.
    `unpriced` counts, by model, the hits of which it is not known: no price, or no count of tokens.

    `hits` by tier and `misses` by reason count the lookups still in the log (the last 100,000), `rejected`
    by reason and `faults` by cause this process since opening. `unindexed` entries are stored but not yet
    in the vector index; `examples` counts the example log; `index` says whether the index is in use, or
    why not. `waits` counts, since opening, the requests of this process that waited for an identical one in
    flight, by what came of it: `hit`, `asked` (it failed, or its answer could not be kept) or `timeout`.
    `audits` tells of the 20 namespaces audited last; it is empty if this cache makes no audits.
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
