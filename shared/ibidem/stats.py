"""What a cache tells about itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibidem.rows import JudgementRow

_TAIL = 0.025  # on each side of a 95 % interval


@dataclass(frozen=True, slots=True)
class AuditStats:
    """What the last 1,500 judgements say of one namespace.

    `audits` of answers that would have been served, `wrong` of them wrong; `probes` are those of answers that
    would not have been served. `wrong_per_hit` estimates how many of the hits by meaning are wrong (None
    before the first audit), `interval` is its Clopper-Pearson 95 % interval. `threshold` is the least score
    that is served now, None while nothing is served by meaning; `alarms` counts how often the evidence was
    dropped because served answers went wrong or the traffic changed.
    """

    namespace: str
    audits: int
    wrong: int
    probes: int
    wrong_per_hit: float | None
    interval: tuple[float, float]
    threshold: float | None
    alarms: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What the cache holds and did; sums over all processes that used the database.

    `hits` by tier and `misses` by reason count the lookups still in the log (the last 100,000), `rejected`
    by reason and `faults` by cause this process since opening. `unindexed` entries are in the truth but not
    in the vector index yet; `examples` counts the example log; `index` says whether the index is in use, or
    why not. `audits` tells of the 20 namespaces audited last; it is empty if this cache makes no audits.
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


def audit_stats(namespace: str, rows: Sequence[JudgementRow], threshold: float, alarms: int) -> AuditStats:
    """Sums over judgements of one namespace; `threshold` and `alarms` are those of its budget."""
    audits = [row for row in rows if row.source == "audit"]
    wrong = sum(not row.right for row in audits)
    return AuditStats(
        namespace=namespace,
        audits=len(audits),
        wrong=wrong,
        probes=len(rows) - len(audits),
        wrong_per_hit=wrong / len(audits) if audits else None,
        interval=clopper_pearson(wrong, len(audits)),
        threshold=threshold if math.isfinite(threshold) else None,
        alarms=alarms,
    )


def clopper_pearson(wrong: int, judged: int) -> tuple[float, float]:
    """The exact 95 % interval of a share of which `wrong` of `judged` were seen; (0, 1) for none."""
    if not judged:
        return 0.0, 1.0
    lower = 0.0 if wrong == 0 else _root(lambda p: 1.0 - _at_most(wrong - 1, judged, p) - _TAIL)
    upper = 1.0 if wrong == judged else _root(lambda p: _TAIL - _at_most(wrong, judged, p))
    return lower, upper


def _at_most(count: int, of: int, p: float) -> float:
    """The probability of at most `count` successes in `of` draws."""
    log_p, log_q, all_ways = math.log(p), math.log1p(-p), math.lgamma(of + 1)
    return sum(
        math.exp(all_ways - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * log_p + (of - k) * log_q)
        for k in range(count + 1)
    )


def _root(rising: Callable[[float], float]) -> float:
    """Where a function that rises from 0 to 1 is 0, to 1e-9."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2.0
        low, high = (low, middle) if rising(middle) > 0.0 else (middle, high)
    return (low + high) / 2.0
