"""The figures of a report, read once from the database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ibidem.active_model import active_scorer
from ibidem.audits.auditor import ASSUMED_RATE, report_of
from ibidem.costs import Prices, Savings, savings
from ibidem.matching.shipped import last_fingerprint, policy_in_force
from ibidem.storage.statistics import (
    BINS,
    MIN_SIMILARITY,
    DisputedEntry,
    LogFilter,
    LookupSums,
    QuestionMatch,
    TopEntry,
)
from ibidem.types import SECOND_OPINION

if TYPE_CHECKING:
    from ibidem.audits.ledger import AuditStats
    from ibidem.matching.scorers import Scorer
    from ibidem.settings import Settings
    from ibidem.storage.pins import PinCounts
    from ibidem.storage.statistics import EntryTotals
    from ibidem.storage.store import Store

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
# A period of the charts over time, and the most of them: more would be thinner than can be seen.
WIDTHS, PERIODS = (MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY, 28 * DAY), 60
AGES = (0.0, DAY, 7 * DAY, 30 * DAY, 90 * DAY)
TOP, ENTRIES, REASONS, EXAMPLES = 20, 8, 8, 3  # rows of a table; reasons with examples, and how many of them
BELOW = ("below_threshold", "below_budget")


def is_below(reason: str) -> bool:
    """Return whether a lookup missed since the score was too low, with or without a second opinion."""
    return reason in BELOW or reason.startswith(SECOND_OPINION)


@dataclass(frozen=True, slots=True)
class Group:
    """Lookups of one period, namespace or tier: counts, and savings of the hits."""

    key: Any
    lookups: int
    saved: Savings

    @property
    def rate(self) -> float | None:
        """Hits per lookup; None without lookups."""
        return self.saved.hits / self.lookups if self.lookups else None


@dataclass(frozen=True, slots=True)
class Model:
    """A model: its stored answers, the savings of its hits, and whether it has a price."""

    name: str
    entries: int
    saved: Savings
    priced: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """Lookups by cosine of the nearest stored question, from `low` on: served, scored too low, refused."""

    low: float
    served: int = 0
    below: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """All figures of a report; times are seconds since the epoch, `width` is that of a period.

    `boundary` is the least score that is served, None while nothing is; `line` the cosine from which on
    ordinary rewordings are, None where cosines do not tell. `second_opinions` of the hits needed one; what
    all of them took is subtracted in the `total`, not in its parts.
    """

    place: str
    span: LogFilter
    made: float
    first: float
    last: float
    width: float
    total: Group
    second_opinions: int
    periods: Sequence[Group]
    tiers: Sequence[Group]
    reasons: dict[str, int]
    bins: Sequence[Bin]
    boundary: float | None
    line: float | None
    near: Sequence[QuestionMatch]
    unsure: Sequence[QuestionMatch]
    valuable: Sequence[tuple[TopEntry, float | None]]
    doubted: Sequence[DisputedEntry]
    audits: Sequence[AuditStats]
    max_error_rate: float
    namespaces: Sequence[Group]
    models: Sequence[Model]
    holdings: EntryTotals
    pins: PinCounts
    ages: Sequence[tuple[int, int]]
    prices: Prices


def gather(store: Store, settings: Settings, prices: Prices, span: LogFilter, now: float) -> Facts:
    """Read the figures of a span, `now` in seconds since the epoch.

    Raises:
        StorageError: The database failed.
    """
    figures = store.statistics
    count, first, last = figures.extent(span)
    width = width_of(last - first)
    served = figures.lookups(span)
    reasons = figures.miss_reasons(span)
    rate = settings.audit_rate or ASSUMED_RATE
    audits = report_of(store, settings.max_error_rate, rate, span.namespace)
    boundary = boundary_of(store, settings, audits)
    holdings = store.statistics.entry_totals(span.namespace, TOP)
    by_namespace = groups(figures.lookups_by_namespace(span, TOP), prices)
    return Facts(
        place=store.url,
        span=span,
        made=now,
        first=first,
        last=last,
        width=width,
        total=Group("", count, savings(served, prices, figures.opinions(span))),
        second_opinions=figures.served_in_doubt(span),
        periods=_without_gaps(groups(figures.lookups_over_time(span, width), prices)) if count else (),
        tiers=groups(sorted((row for row in served if row.tier), key=_tier), prices, _tier),
        reasons=reasons,
        bins=bins_of(figures.similarity_histogram(span)),
        boundary=boundary,
        line=None if boundary is None else scorer_in_force(store, settings).usual_cosine(boundary),
        near=figures.near_misses(span, list(reasons)[:REASONS], EXAMPLES),
        unsure=figures.least_similar_hits(span, ENTRIES),
        valuable=[(one, _cost(one, prices)) for one in figures.top_entries(span, ENTRIES)],
        doubted=figures.disputed_entries(span, ENTRIES),
        audits=audits,
        max_error_rate=settings.max_error_rate,
        namespaces=sorted(by_namespace, key=lambda group: (-group.lookups, group.key)),
        models=_models(served, holdings, prices),
        holdings=holdings,
        pins=store.pins.counts(span.namespace),
        ages=store.statistics.entry_ages(now, AGES, span.namespace),
        prices=prices,
    )


def width_of(seconds: float) -> float:
    """Return the length of a period for a log of so many seconds."""
    return next((width for width in WIDTHS if seconds <= PERIODS * width), WIDTHS[-1])


def boundary_of(store: Store, settings: Settings, audits: Sequence[AuditStats]) -> float | None:
    """Return the lowest score that is served in any namespace; None while nothing is.

    Where hits are audited the budgets decide, each for its namespace; else the threshold of these settings,
    which a fit may have moved. Raises `StorageError`.
    """
    if settings.audit_rate or any(one.audits for one in audits):
        return min((one.threshold for one in audits if one.threshold is not None), default=None)
    return policy_in_force(store, settings.strictness, scorer_in_force(store, settings)).threshold


def scorer_in_force(store: Store, settings: Settings) -> Scorer:
    """Return what scores in a cache that is opened now with these settings; no model is loaded."""
    return active_scorer(settings, store, last_fingerprint(store))


def bins_of(counted: Iterable[tuple[int, str, str, int]]) -> list[Bin]:
    """Return the histogram of similarities, in bins of equal width."""
    sums = [[0, 0, 0] for _ in range(BINS)]
    for place, tier, reason, count in counted:
        sums[place][0 if tier else 1 if is_below(reason) else 2] += count
    step = (1.0 - MIN_SIMILARITY) / BINS
    return [Bin(MIN_SIMILARITY + at * step, *three) for at, three in enumerate(sums)]


def _key(row: LookupSums) -> Any:
    return row.key


def _tier(row: LookupSums) -> str:
    return row.tier


def groups(rows: Iterable[LookupSums], prices: Prices, by: Any = _key) -> list[Group]:
    """Sum up rows, which are sorted by `by`, by it."""
    found = [(key, list(some)) for key, some in groupby(rows, by)]
    return [Group(key, sum(row.count for row in some), savings(some, prices)) for key, some in found]


def _without_gaps(found: Sequence[Group]) -> list[Group]:
    """Insert the periods without a lookup, unless most of the time is a gap."""
    by_key = {group.key: group for group in found}
    first, last = found[0].key, found[-1].key
    if last - first >= 2 * PERIODS:  # of a log with dates far apart
        return list(found)
    return [by_key.get(at) or Group(at, 0, Savings()) for at in range(first, last + 1)]


def _models(served: Sequence[LookupSums], holdings: EntryTotals, prices: Prices) -> list[Model]:
    """Select those with most saved calls, then those with most answers."""
    hits: dict[str, list[LookupSums]] = {}
    for row in served:
        if row.tier:
            hits.setdefault(row.model, []).append(row)
    found = [
        Model(
            name,
            holdings.models.get(name, 0),
            savings(hits.get(name, ()), prices),
            prices.of(name) is not None,
        )
        for name in {**hits, **holdings.models}
    ]
    return sorted(found, key=lambda one: (-one.saved.hits, -one.entries, one.name))[:TOP]


def _cost(one: TopEntry, prices: Prices) -> float | None:
    """Return the money saved by hits, if known, at the price of the answer that is stored now."""
    read, said = one.input_tokens, one.output_tokens
    if read is None or said is None or one.tokens != one.count * (read + said):
        return None
    return prices.cost(one.model, one.count * read, one.count * said)
