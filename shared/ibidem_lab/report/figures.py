"""Select the charts of a report, each for a wide and a narrow screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ibidem.cli.formatting import named, shown
from ibidem.costs import Savings
from ibidem_lab.report import charts
from ibidem_lab.report.charts import Interval, Moment, Size, Spec
from ibidem_lab.report.facts import AGES, DAY, Facts, Group

WIDE, HALF, NARROW = 980, 470, 344  # CSS pixels
MOST_BARS = 12  # outcomes shown one by one

_AMOUNTS: tuple[tuple[str, Callable[[Savings], float]], ...] = (
    ("answers", lambda saved: saved.hits),
    ("tokens", lambda saved: saved.tokens),
    ("money", lambda saved: saved.money),
    ("hours", lambda saved: saved.seconds / 3600),
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart in both forms."""

    wide: Spec
    narrow: Spec


def figures_of(facts: Facts) -> dict[str, Drawn]:
    """Return the charts by name, without empty ones."""
    found: dict[str, Drawn] = {}
    if len(facts.periods) > 1:
        found["rate"] = _in_both(lambda size: charts.line(_moments(facts, _rate), size), WIDE, 240)
        found.update(_saved(facts))
    if facts.total.lookups:
        found["outcomes"] = Drawn(_outcomes(facts, WIDE), _outcomes(facts, NARROW))
    if any(one.served or one.below or one.refused for one in facts.bins):
        found["similarity"] = _in_both(lambda size: _histogram(facts, size), WIDE, 300)
    if any(one.audits for one in facts.audits):
        found["wrong"] = Drawn(_wrong(facts, WIDE, 40), _wrong(facts, NARROW, 18))
    if facts.holdings.entries:
        found["ages"] = _in_both(lambda size: _ages(facts, size), WIDE, 220)
    return found


def _in_both(chart: Callable[[Size], Spec], width: int, height: int) -> Drawn:
    return Drawn(chart(Size(width, height)), chart(Size(NARROW, height)))


def _saved(facts: Facts) -> dict[str, Drawn]:
    """Draw hits and savings over time, where they are known."""
    total, found = facts.total.saved, {}
    for name, of in _AMOUNTS:
        if of(total) > 0:
            moments = _moments(facts, partial(_of_saved, of))
            found[name] = _in_both(partial(charts.columns, moments), HALF, 170)
    return found


def _of_saved(of: Callable[[Savings], float], group: Group) -> float:
    return of(group.saved)


def _moments(facts: Facts, value: Callable[[Group], float | None]) -> list[Moment]:
    width = facts.width
    return [Moment(one.key * width, (one.key + 1) * width, value(one)) for one in facts.periods]


def _rate(group: Group) -> float | None:
    return group.rate


def _outcomes(facts: Facts, width: int) -> Spec:
    """Draw hits by tier and misses by reason; the rarest reasons together."""
    hits = [(f"hit: {named(group.key)}", group.lookups, True) for group in facts.tiers]
    misses = list(facts.reasons.items())
    rows = [*hits, *((f"miss: {named(reason)}", n, False) for reason, n in misses[:MOST_BARS])]
    if rest := sum(n for _, n in misses[MOST_BARS:]):
        rows.append(("miss: other", rest, False))
    return charts.shares([(name, n / facts.total.lookups, hit) for name, n, hit in rows], width)


def _histogram(facts: Facts, size: Size) -> Spec:
    step = facts.bins[1].low - facts.bins[0].low
    bins = [(one.low, one.low + step, (one.served, one.below, one.refused)) for one in facts.bins]
    return charts.histogram(bins, facts.line, size)


def _wrong(facts: Facts, width: int, longest: int) -> Spec:
    """Draw the audited namespaces, with names of so many characters."""
    found = [
        Interval(shown(named(one.namespace), longest), one.interval[0], one.wrong_per_hit, one.interval[1])
        for one in facts.audits
        if one.wrong_per_hit is not None
    ]
    return charts.intervals(found, facts.max_error_rate, width)


def _ages(facts: Facts, size: Size) -> Spec:
    return charts.stacks(age_rows(facts), size)


def age_rows(facts: Facts) -> list[tuple[str, int, int]]:
    """Return each age with the number of answers that were served, and that were not."""
    return [(_age(at), total - unused, unused) for at, (total, unused) in enumerate(facts.ages)]


def _age(at: int) -> str:
    days = [int(edge / DAY) for edge in AGES]
    if at == 0:
        return "today" if days[1] == 1 else f"under {days[1]} d"
    return f"over {days[at]} d" if at == len(days) - 1 else f"{days[at]}-{days[at + 1]} d"
