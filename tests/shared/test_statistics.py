"""Sums in SQL equal the same sums over lists, on both databases."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ibidem.costs import read_prices, savings
from ibidem.lifecycle.rules import cost_of
from ibidem.storage.logs import JudgementRow, LookupRow
from ibidem.storage.statistics import BINS, MIN_SIMILARITY, LogFilter, LookupSums
from ibidem.storage.store import Store
from ibidem.types import Entry
from ibidem_lab.report.facts import AGES, DAY
from tests import logged
from tests.logged import NOW, WEEKS
from tests.servers import running_postgres

STORED = logged.entries(60)
LOOKUPS = logged.lookups(1_500, STORED)
EXAMPLES = logged.examples(STORED)
JUDGEMENTS = logged.judgements(200, STORED)
FILTERS = (
    LogFilter(),
    LogFilter(since=NOW - WEEKS / 3),
    LogFilter(namespace="acme"),
    LogFilter(since=NOW - 9 * DAY, namespace=""),
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the logs."""
    if request.param == "postgresql":
        with running_postgres() as url:
            yield from filled(url)
    else:
        yield from filled(f"sqlite:///{tmp_path_factory.mktemp('statistics') / 'store.sqlite3'}")


def filled(url: str) -> Iterator[Store]:
    """Fill the database and open its store."""
    opened = Store(url)
    logged.fill(opened, lookups_=len(LOOKUPS), entries_=len(STORED), judgements_=len(JUDGEMENTS))
    yield opened
    opened.close()


def matching(logs: LogFilter) -> list[LookupRow]:
    """Return the lookups that match a filter."""
    return [row for row in LOOKUPS if matches(row, logs)]


def matches(row: LookupRow | JudgementRow, logs: LogFilter) -> bool:
    """Return whether a row matches a filter."""
    return row.at >= (logs.since or 0) and logs.namespace in (None, row.namespace)


BY_ID = {one.id: one for one in STORED}
GONE = {one.entry_id: one for one in EXAMPLES}


def served_answer(row: LookupRow) -> tuple[str, int | None, int | None, float | None]:
    """Return model, tokens and seconds of the served answer, as far as they are still known."""
    entry: Entry | None = BY_ID.get(row.entry_id or "")
    if row.tier and entry is not None and entry.created <= row.at:
        one = entry.answer
    else:
        one = GONE.get(row.entry_id) if row.tier else None
        if one is None or not row.tokens_saved:
            return "", None, None, None
        if (one.input_tokens or 0) + (one.output_tokens or 0) != row.tokens_saved:
            return "", None, None, None
    return one.model, one.input_tokens, one.output_tokens, one.seconds


def expected(rows: list[LookupRow], key) -> dict[tuple, list[float]]:
    """Sum up rows by key, tier and model, as `LookupSums` does."""
    found: dict[tuple, list[float]] = {}
    for row in rows:
        model, read, said, took = served_answer(row)
        priced = read is not None and said is not None
        one = found.setdefault((key(row), row.tier, model), [0, 0, 0, 0, 0, 0, 0.0])
        values = (1, row.tokens_saved, priced, priced and read, priced and said, took is not None)
        for at, value in enumerate((*values, 0.0 if took is None else took - row.seconds)):
            one[at] += value
    return found


def as_lists(rows: list[LookupSums]) -> dict[tuple, list[float]]:
    """Convert sums to the form of `expected`."""
    return {
        (row.key, row.tier, row.model): [
            row.count,
            row.tokens,
            row.priced,
            row.input,
            row.output,
            row.timed,
            pytest.approx(row.seconds),
        ]
        for row in rows
    }


def test_the_logs_hold_every_case() -> None:
    """Served answers that are unknown, replaced, deleted, deleted and logged otherwise."""
    hits = [row for row in LOOKUPS if row.tier]
    known = [served_answer(row) for row in hits]

    assert {True, False} == {served_answer(row)[1] is not None for row in hits if row.entry_id in GONE}
    assert any(row.entry_id in BY_ID and BY_ID[row.entry_id].created > row.at for row in hits)
    assert any(one[1] is None for one in known)
    assert max(one[1] or 0 for one in known) > 128_000  # has a price as any other
    assert any(one[3] is None for one in known)


@pytest.mark.parametrize("logs", FILTERS)
def test_lookups(store: Store, logs: LogFilter) -> None:
    """In all, over time, by namespace."""
    rows = matching(logs)
    count, first, last = store.statistics.extent(logs)

    assert (count, first, last) == (len(rows), rows[0].at, rows[-1].at)
    assert as_lists(store.statistics.lookups(logs)) == expected(rows, lambda row: "")
    by_day = as_lists(store.statistics.lookups_over_time(logs, DAY))
    assert by_day == expected(rows, lambda row: math.floor(row.at / DAY))
    top = [name for name, _ in Counter(sorted(row.namespace for row in rows)).most_common(2)]
    of_two = expected([row for row in rows if row.namespace in top], lambda row: row.namespace)
    assert as_lists(store.statistics.lookups_by_namespace(logs, 2)) == of_two


@pytest.mark.parametrize("logs", FILTERS)
def test_lookups_by_score(store: Store, logs: LogFilter) -> None:
    """What thresholds would serve: identical requests all, others by their score, what is refused none."""
    rows, thresholds = matching(logs), (0.9, 0.5, 0.2)
    hits = [
        row
        for row in rows
        if row.tier == "exact" or (row.score is not None and (row.tier or row.reason == "below_threshold"))
    ]
    found = store.statistics.lookups_by_score(logs, thresholds)
    for reached in range(4):
        those = [
            row
            for row in hits
            if (3 if row.tier == "exact" else sum(row.score >= one for one in thresholds)) == reached
        ]
        costs = [BY_ID[row.entry_id].answer for row in those if not row.tier]
        tokens = sum(row.tokens_saved for row in those) + sum(
            answer.tokens
            for answer, row in zip(costs, (row for row in those if not row.tier), strict=True)
            if BY_ID[row.entry_id].created <= row.at
        )
        sums = [one for one in found if one.key == reached]
        assert sum(one.count for one in sums) == len(those)
        assert sum(one.tokens for one in sums) == tokens
    served = as_lists([one for one in found if one.tier != "missed"])
    assert served == expected(
        [row for row in hits if row.tier],
        lambda row: 3 if row.tier == "exact" else sum(row.score >= one for one in thresholds),
    )
    kept = [(row.namespace, row.scope, row.question) for row in rows if row.question is not None]
    assert store.statistics.repeats(logs) == (len(kept), len(kept) - len(set(kept)))
    without = [row for row in rows if row.score is None]
    far = sum(row.reason == "below_threshold" and row.similarity >= 0.7 for row in without)
    unscored = far + sum(row.tier == "semantic" for row in without)
    assert store.statistics.unscored(logs, 0.7) == unscored > far > 0
    took = [row.seconds for row in rows if not row.tier]
    assert store.statistics.miss_seconds(logs) == pytest.approx(sum(took) / len(took))
    stored = [one for one in STORED if logs.namespace in (None, one.namespace)]
    sums = store.statistics.answer_sums(logs.namespace)
    assert sum(one.count for one in sums) == len(stored)
    assert sum(one.tokens for one in sums) == sum(one.answer.tokens for one in stored)


@pytest.mark.parametrize("logs", FILTERS)
def test_misses(store: Store, logs: LogFilter) -> None:
    """By reason, with examples, and by similarity of the nearest question."""
    rows = matching(logs)
    reasons = Counter(row.reason for row in rows if not row.tier)

    assert store.statistics.miss_reasons(logs) == reasons
    assert list(store.statistics.miss_reasons(logs).values()) == sorted(reasons.values(), reverse=True)
    found = Counter()
    for row in rows:
        if row.similarity is not None and row.tier != "exact":
            place = (row.similarity - MIN_SIMILARITY) / ((1.0 - MIN_SIMILARITY) / BINS)
            found[min(max(0, math.floor(place)), BINS - 1), row.tier, row.reason] += 1
    assert {tuple(one[:3]): one[3] for one in store.statistics.similarity_histogram(logs)} == found
    met = Counter(
        (row.reason, row.question, row.entry_id)
        for row in rows
        if not row.tier and row.question and row.entry_id and row.similarity is not None
    )
    near = store.statistics.near_misses(logs, list(reasons), 3)
    for reason, some in itertools.groupby(near, lambda one: one.reason):
        best = sorted((n for (why, *_), n in met.items() if why == reason), reverse=True)[:3]
        assert [one.count for one in some] == best
    for one in near:
        assert met[one.reason, one.question, one.entry_id] == one.count
        assert one.stored == BY_ID[one.entry_id].question


@pytest.mark.parametrize("logs", FILTERS)
def test_notable_entries(store: Store, logs: LogFilter) -> None:
    """Those that saved most, those least similar, those called wrong."""
    rows = matching(logs)
    hits = Counter(row.entry_id for row in rows if row.tier and row.entry_id in BY_ID)
    worth = {id_: n * cost_of(BY_ID[id_].answer) for id_, n in hits.items()}
    valuable = store.statistics.top_entries(logs, 5)

    assert [worth[one.entry_id] for one in valuable] == sorted(worth.values(), reverse=True)[:5]
    assert [one.count for one in valuable] == [hits[one.entry_id] for one in valuable]
    unsure = store.statistics.least_similar_hits(logs, 5)
    least = sorted(row.similarity for row in rows if row.tier == "semantic" and row.entry_id)
    assert [one.similarity for one in unsure] == least[:5]
    wrong: dict[str, Counter[str]] = {}
    for one in JUDGEMENTS:
        if matches(one, logs) and not one.right and one.source != "probe":
            wrong.setdefault(one.entry_id, Counter())[one.source] += 1
    doubted = store.statistics.disputed_entries(logs, 100)
    found = {one.entry_id: Counter(audit=one.audits, feedback=one.feedback) for one in doubted}
    assert found == wrong
    assert [one.audits + one.feedback for one in doubted] == sorted(
        (sum(one.values()) for one in wrong.values()), reverse=True
    )
    assert all(one.stored for one in doubted)


@pytest.mark.parametrize("namespace", [None, "acme", "nobody"])
def test_entry_totals_and_ages(store: Store, namespace: str | None) -> None:
    """How many, how old, never served, of which models."""
    mine = [one for one in STORED if namespace in (None, one.namespace)]
    served = {row.entry_id for row in LOOKUPS if row.tier}
    held = store.statistics.entry_totals(namespace, 20)

    assert (held.entries, held.unused) == (len(mine), sum(one.id not in served for one in mine))
    assert held.models == Counter(one.answer.model for one in mine)
    assert held.oldest == min((one.created for one in mine), default=0.0)
    ages = store.statistics.entry_ages(NOW, AGES, namespace)
    old = Counter(max(at for at, edge in enumerate(AGES) if NOW - one.created >= edge) for one in mine)
    assert [total for total, _ in ages] == [old[at] for at in range(len(AGES))]
    assert sum(unused for _, unused in ages) == held.unused


def test_savings_are_sums_over_hits_with_a_price() -> None:
    """Two known models, one unknown; misses save nothing."""
    rows = [
        LookupSums("", "exact", "gpt-4o-mini", 3, 900, 2, 1_000_000, 500_000, 1, 4.0),
        LookupSums("", "semantic", "our-own", 5, 100, 5, 10, 10, 0, 0.0),
        LookupSums("", "", "", 7, 0, 0, 0, 0, 0, 0.0),
    ]
    saved = savings(rows, read_prices())

    assert (saved.hits, saved.tokens, saved.priced, saved.timed, saved.seconds) == (8, 1000, 2, 1, 4.0)
    assert saved.money == pytest.approx(0.15 + 0.30)


def test_an_empty_log(tmp_path: Path) -> None:
    """Sums are zero, lists empty."""
    store = Store(f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    statistics = store.statistics

    assert statistics.extent(LogFilter()) == (0, 0.0, 0.0)
    assert (
        statistics.lookups(LogFilter())
        == statistics.lookups_over_time(LogFilter(), DAY)
        == statistics.lookups_by_namespace(LogFilter(), 5)
        == []
    )
    assert statistics.near_misses(LogFilter(), [], 3) == statistics.least_similar_hits(LogFilter(), 3) == []
    assert statistics.top_entries(LogFilter(), 3) == statistics.disputed_entries(LogFilter(), 3) == []
    assert statistics.entry_totals(None, 5).entries == 0
    assert statistics.lookups_by_score(LogFilter(), (0.5,)) == statistics.answer_sums(None) == []
    assert (statistics.repeats(LogFilter()), statistics.miss_seconds(LogFilter())) == ((0, 0), None)
    store.close()
