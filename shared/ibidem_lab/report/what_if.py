"""Is it worth it? What the lookups would have saved at another `max_error_rate`, and what answers cost.

By the scores in the log, with the answers that were stored then. What a stricter cache would have stored
beside them, and a laxer one would not, is left out: no log knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ibidem.cli.formatting import amount, duration, money, percent, plural, saved_money
from ibidem.costs import Prices, Savings, savings
from ibidem.matching.policy import Strictness, least_cosine
from ibidem.matching.shipped import policy_in_force
from ibidem.settings import ERROR_RATES, Settings
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store
from ibidem_lab.replay import Share, share
from ibidem_lab.report.facts import scorer_in_force


@dataclass(frozen=True, slots=True)
class Preset:
    """A `max_error_rate` by name: the hits that it would have had, and what they would have saved.

    `unscored` lookups have no score in the log, and might be hits beside these.
    """

    name: str
    rate: float
    hits: Share
    saved: Savings
    unscored: int


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The presets beside what was served, and what an answer costs.

    Of `kept` lookups the question is kept, of which `repeats` ask again in the same words and scope.
    `answers` is what the stored answers would save, each served once; `miss_seconds` how long a miss takes,
    on average.
    """

    lookups: int
    seconds: float
    kept: int
    repeats: Share
    presets: Sequence[Preset]
    answers: Savings
    miss_seconds: float | None
    prices: Prices
    audited: bool = False


HEADS = ("max_error_rate", "hits (95 %)", "tokens", "money", "time")


def what_if(store: Store, settings: Settings, prices: Prices, span: LogFilter) -> WhatIf | None:
    """Compute what the presets would have saved; None without lookups.

    Raises:
        StorageError: The database failed.
    """
    figures = store.statistics
    lookups, first, last = figures.extent(span)
    if not lookups:
        return None
    kept, repeats = figures.repeats(span)
    return WhatIf(
        lookups=lookups,
        seconds=last - first,
        kept=kept,
        repeats=share(repeats, kept),
        presets=_presets(store, settings, prices, span, lookups),
        answers=savings(figures.answer_sums(span.namespace), prices),
        miss_seconds=figures.miss_seconds(span),
        prices=prices,
        audited=settings.audit_rate > 0,
    )


def _presets(
    store: Store, settings: Settings, prices: Prices, span: LogFilter, lookups: int
) -> Sequence[Preset]:
    scorer = scorer_in_force(store, settings)
    thresholds = {
        name: policy_in_force(store, Strictness(rate), scorer).threshold
        for name, rate in ERROR_RATES.items()
        if rate <= scorer.thresholds.highest
    }
    rows, found = store.statistics.lookups_by_score(span, list(thresholds.values())), []
    for name, threshold in thresholds.items():
        least = sum(one <= threshold for one in thresholds.values())
        served = savings([row for row in rows if row.key >= least], prices)
        unscored = store.statistics.unscored(span, least_cosine(scorer, threshold))
        hits = share(served.hits, lookups)
        found.append(Preset(name, ERROR_RATES[name], hits, served, unscored))
    return found


def rows_of(found: WhatIf) -> list[tuple[str, ...]]:
    """Format the presets as the rows of a table with the columns `HEADS`."""
    return [
        (
            f"{one.name} ({percent(one.rate)})",
            f"at least {one.hits}" if one.unscored else str(one.hits),
            amount(one.saved.tokens) if one.saved.tokens else "-",
            saved_money(one.saved, found.prices),
            duration(one.saved.seconds) if one.saved.timed else "-",
        )
        for one in found.presets
    ]


def sentences_of(found: WhatIf) -> list[str]:
    """Say what the figures rest on, and what they leave out."""
    asked = f"{plural(found.lookups, 'lookup')} in {duration(found.seconds)}"
    told = [f"{asked}. {_repeats(found)}", _answer(found)]
    told.append(
        "By the scores in the log, with the answers that were stored then: what another threshold would have "
        "stored instead is not known. Guards, documents and age refuse as they did."
    )
    unscored = max((one.unscored for one in found.presets), default=0)
    if unscored:
        told.append(f"{plural(unscored, 'lookup')} without a score in the log might be hits beside these.")
    if found.audited:
        told.append("Audits are on: a budget decides in each namespace, these are the presets without it.")
    told.append(
        "`max_error_rate` is what was measured on other questions: of yours only audits know how many hits "
        "are wrong (`audit_rate=0.05`)."
    )
    return told


def _repeats(found: WhatIf) -> str:
    if not found.kept:
        return "No question is kept, so nobody knows how many repeat."
    return (
        f"Asked again in the same words and scope: {found.repeats} of the {found.kept:,} whose text is kept."
    )


def _answer(found: WhatIf) -> str:
    """Say what one answer has cost on average, as far as that is known."""
    sums = found.answers
    known = [f"{sums.tokens / sums.hits:,.0f} tokens"] if sums.tokens else []
    if sums.priced:
        known.append(f"{money(sums.money / sums.priced, found.prices)} ({sums.priced:,} have a price)")
    if sums.timed:
        known.append(f"{duration(sums.seconds / sums.timed)} of waiting")
    costs = f"costs {', '.join(known)} on average" if known else "costs nobody knows what"
    miss = "" if found.miss_seconds is None else f" A miss waits {1000 * found.miss_seconds:.1f} ms longer."
    return f"Each of {plural(sums.hits, 'stored answer')} {costs}.{miss}"
