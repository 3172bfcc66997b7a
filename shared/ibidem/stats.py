"""What a cache tells about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ibidem.audits.ledger import AuditStats
from ibidem.costs import Prices, savings
from ibidem.storage.statistics import LogFilter

if TYPE_CHECKING:
    from ibidem.audits.auditor import Auditor
    from ibidem.runtime import Runtime


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


def stats_of(runtime: Runtime, auditor: Auditor | None, prices: Prices, rejected: dict[str, int]) -> Stats:
    """What there is to tell of a place; raises `StorageError`. `rejected` is what the cache counted."""
    totals = runtime.store.totals(runtime.embedder.fingerprint)
    saved = savings(runtime.store.statistics.lookups(LogFilter()), prices)
    return Stats(
        entries=totals.entries,
        semantic_entries=totals.semantic_entries,
        unindexed=totals.unindexed,
        hits=totals.hits,
        misses=totals.misses,
        tokens_saved=totals.tokens_saved,
        examples=totals.examples,
        rejected=rejected,
        faults=runtime.faults.counts(),
        index=runtime.vectors.state,
        waits=runtime.flights.waits(),
        audits=auditor.report() if auditor else (),
        bytes=totals.bytes,
        evicted=runtime.housekeeping.evicted,
        expired=runtime.housekeeping.expired,
        money_saved=saved.money if saved.priced else None,
        currency=prices.currency,
        prices_as_of=prices.as_of,
        unpriced=saved.unpriced,
    )
