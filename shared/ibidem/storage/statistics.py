"""Sums over the entries and logs: what was asked, what came of it, what it saved, what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ibidem.storage import tables
from ibidem.storage.engine import fetch_all, fetch_value
from ibidem.storage.logs import OPINIONS
from ibidem.types import SECOND_OPINION

LOGGED_AFTER = 60.0  # seconds after a second opinion in which its lookup is logged
MIN_SIMILARITY, BINS = 0.5, 50  # of the histogram; less similar lookups are counted in the lowest bin

_lookups, _entries, _examples = tables.lookups, tables.entries, tables.examples
_judgements = tables.judgements
_l, _e, _j, _d = _lookups.c, _entries.c, _judgements.c, tables.entry_documents.c
_HIT = _l.tier != ""
# Lookups by meaning whose score was compared with a threshold.
_DECIDED = sa.and_(
    _l.tier != "exact",
    _l.score.is_not(None),
    sa.or_(
        _HIT,
        _l.reason.in_(("below_threshold", "below_budget", "audit")),
        _l.reason.startswith(f"{SECOND_OPINION}:", autoescape=True),
    ),
)
_UNUSED = sa.func.sum(sa.case((_e.hits == 0, 1), else_=0))
_STEP = (1.0 - MIN_SIMILARITY) / BINS


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which rows of the logs count: those since a time (seconds since the epoch), of one namespace or all."""

    since: float | None = None
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class LookupSums:
    """Lookups of one `key` (a time, a namespace), tier ("" for misses) and model, and what they saved.

    `tokens` is what the served answers had cost. Of the `count` hits, `priced` have known input and output
    tokens (`input`, `output`), and `timed` a known time: the model took `seconds` longer than the lookup.
    """

    key: Any
    tier: str
    model: str
    count: int
    tokens: int
    priced: int
    input: int
    output: int
    timed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class OpinionSums:
    """The second opinions of one model: of `known` of the `count`, the tokens are known and summed up."""

    model: str
    count: int
    known: int
    input: int
    output: int


@dataclass(frozen=True, slots=True)
class QuestionMatch:
    """A question that matched a stored one `count` times, with the highest or lowest similarity.

    `stored` is the stored question; None if it was deleted or keeps no text.
    """

    reason: str
    question: str
    entry_id: str
    stored: str | None
    similarity: float
    count: int


@dataclass(frozen=True, slots=True)
class DisputedEntry:
    """An entry that audits or people called wrong; `stored` says whether it still exists.

    `question` is the stored one, `asked` one to which its answer was wrong.
    """

    entry_id: str
    namespace: str
    question: str
    asked: str
    audits: int
    feedback: int
    stored: bool


@dataclass(frozen=True, slots=True)
class TopEntry:
    """An entry with how often it was served, and the tokens that saved; `pinned` as in `Entry`."""

    entry_id: str
    namespace: str
    question: str | None
    model: str
    count: int
    tokens: int
    input_tokens: int | None
    output_tokens: int | None
    pinned: str = ""


@dataclass(frozen=True, slots=True)
class EntryTotals:
    """The stored answers: how many, their bytes, how many were never served, when the oldest was stored.

    `models` counts them by model, for the most common ones.
    """

    entries: int
    bytes: int
    unused: int
    oldest: float
    models: dict[str, int]


@dataclass(frozen=True, slots=True)
class Support:
    """Stored answers: how many had documents in their prompt, and for how many of these one supports them."""

    answers: int
    with_documents: int
    supported: int


class Statistics:
    """Sums over one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def extent(self, logs: LogFilter) -> tuple[int, float, float]:
        """Count the lookups, and return the times of the first and the last."""
        query = sa.select(sa.func.count(), sa.func.min(_l.at), sa.func.max(_l.at))
        count, first, last = fetch_all(self._engine, query.where(*_matching(_lookups, logs)))[0]
        return count, first or 0.0, last or 0.0

    def lookups(self, logs: LogFilter) -> list[LookupSums]:
        """Sum up the lookups by tier and model."""
        return self._sums(sa.literal(""), logs)

    def lookups_over_time(self, logs: LogFilter, width: float) -> list[LookupSums]:
        """Sum up the lookups by time too: `key` counts steps of `width` seconds since the epoch."""
        return self._sums(_floor(self._engine, _l.at / width), logs)

    def lookups_by_namespace(self, logs: LogFilter, limit: int) -> list[LookupSums]:
        """Sum up the lookups by namespace too, for the busiest namespaces."""
        top = sa.select(_l.namespace).where(*_matching(_lookups, logs)).group_by(_l.namespace)
        busiest = top.order_by(sa.func.count().desc(), _l.namespace).limit(limit).subquery()
        return self._sums(_l.namespace, logs, _l.namespace.in_(sa.select(busiest.c.namespace)))

    def lookups_by_score(self, logs: LogFilter, thresholds: Sequence[float]) -> list[LookupSums]:
        """Sum up what some of these thresholds would serve: `key` counts those that the score reaches.

        Of a miss it is what its nearest answer had cost; identical requests reach all of them.
        """
        reached = sum((sa.case((_l.score >= one, 1), else_=0) for one in thresholds), sa.literal(0))
        key = sa.case((_l.tier == "exact", len(thresholds)), else_=reached)
        return self._sums(key, logs, sa.or_(_l.tier == "exact", _DECIDED), misses=True)

    def unscored(self, logs: LogFilter, similarity: float) -> int:
        """Count the lookups by meaning without a score that might reach a threshold.

        Hits that an older version logged, and misses of at least this similarity, too far away then.
        """
        far = sa.and_(_l.reason == "below_threshold", _l.similarity >= similarity)
        which = (_l.score.is_(None), sa.or_(_l.tier == "semantic", far))
        query = sa.select(sa.func.count()).select_from(_lookups).where(*which, *_matching(_lookups, logs))
        return fetch_value(self._engine, query) or 0

    def repeats(self, logs: LogFilter) -> tuple[int, int]:
        """Count the lookups whose question is kept, and those that ask again in the same words and scope."""
        group = (_l.namespace, _l.scope, _l.question)
        known = sa.select(sa.func.count().label("count")).where(
            _l.question.is_not(None), *_matching(_lookups, logs)
        )
        c = known.group_by(*group).subquery().c
        asked, distinct = fetch_all(self._engine, sa.select(_sum(c.count), sa.func.count()))[0]
        return int(asked or 0), int(asked or 0) - int(distinct)

    def miss_seconds(self, logs: LogFilter) -> float | None:
        """Return how long a lookup that misses takes on average; None without misses."""
        query = sa.select(sa.func.avg(_l.seconds)).where(~_HIT, *_matching(_lookups, logs))
        found: float | None = fetch_value(self._engine, query)
        return found

    def answer_sums(self, namespace: str | None) -> list[LookupSums]:
        """Sum up by model what the stored answers have cost, as if each were served once."""
        read, written = _e.input_tokens, _e.output_tokens
        columns = (_e.model, read, written, _e.seconds.label("model_seconds"))
        tokens = (sa.func.coalesce(read, 0) + sa.func.coalesce(written, 0)).label("tokens_saved")
        constant = (sa.literal("").label("key"), sa.literal("stored").label("tier"))
        stored = sa.select(*constant, *columns, tokens, sa.literal(0.0).label("seconds"))
        return self._summed(stored.where(_of_namespace(namespace)))

    def _sums(
        self,
        key: sa.ColumnElement[Any],
        logs: LogFilter,
        *where: sa.ColumnElement[bool],
        misses: bool = False,
    ) -> list[LookupSums]:
        return self._summed(_with_answers(key, [*_matching(_lookups, logs), *where], misses))

    def _summed(self, rows: sa.Select[Any]) -> list[LookupSums]:
        c = rows.subquery().c
        read, written = c.input_tokens, c.output_tokens
        priced = sa.and_(c.tier != "", read.is_not(None), written.is_not(None))
        timed = sa.and_(c.tier != "", c.model_seconds.is_not(None))
        model = sa.func.coalesce(c.model, "")
        query = sa.select(
            c.key,
            c.tier,
            model,
            sa.func.count(),
            _sum(c.tokens_saved),
            _sum(sa.case((priced, 1), else_=0)),
            _sum(sa.case((priced, read), else_=0)),
            _sum(sa.case((priced, written), else_=0)),
            _sum(sa.case((timed, 1), else_=0)),
            sa.func.sum(sa.case((timed, c.model_seconds - c.seconds), else_=0.0)),
        ).group_by(c.key, c.tier, model)
        return [LookupSums(*row) for row in fetch_all(self._engine, query.order_by(c.key, c.tier, model))]

    def opinions(self, logs: LogFilter) -> list[OpinionSums]:
        """Sum up, by model, the second opinions that were asked for lookups in the log."""
        began = sa.select(sa.func.min(_l.at)).where(*_matching(_lookups, logs)).scalar_subquery()
        known = sa.and_(_j.input_tokens.is_not(None), _j.output_tokens.is_not(None))
        sums = (_sum(sa.case((known, number), else_=0)) for number in (1, _j.input_tokens, _j.output_tokens))
        query = sa.select(_j.model, sa.func.count(), *sums).where(
            _j.source.in_(OPINIONS), _j.at >= began - LOGGED_AFTER, *_matching(_judgements, logs)
        )
        return [OpinionSums(*row) for row in fetch_all(self._engine, query.group_by(_j.model))]

    def served_in_doubt(self, logs: LogFilter) -> int:
        """Count the hits that needed a second opinion."""
        doubted = (_HIT, _l.reason == SECOND_OPINION, *_matching(_lookups, logs))
        query = sa.select(sa.func.count()).select_from(_lookups).where(*doubted)
        return fetch_value(self._engine, query) or 0

    def miss_reasons(self, logs: LogFilter) -> dict[str, int]:
        """Count the misses by reason, the most common first."""
        count = sa.func.count()
        query = sa.select(_l.reason, count).where(~_HIT, *_matching(_lookups, logs)).group_by(_l.reason)
        return dict(map(tuple, fetch_all(self._engine, query.order_by(count.desc(), _l.reason))))

    def near_misses(self, logs: LogFilter, reasons: Sequence[str], limit: int) -> list[QuestionMatch]:
        """Return for each reason the questions that most often missed near a stored answer."""
        where = (~_HIT, _l.reason.in_(reasons))
        return self._matches(logs, where, limit, sa.func.max(_l.similarity), by_count=True)

    def least_similar_hits(self, logs: LogFilter, limit: int) -> list[QuestionMatch]:
        """Return the questions that were served the least similar answers."""
        return self._matches(
            logs, (_l.tier == "semantic",), limit, sa.func.min(_l.similarity), by_count=False
        )

    def _matches(
        self,
        logs: LogFilter,
        where: Sequence[Any],
        limit: int,
        similarity: sa.ColumnElement[Any],
        *,
        by_count: bool,
    ) -> list[QuestionMatch]:
        known = (_l.question.is_not(None), _l.entry_id.is_not(None), _l.similarity.is_not(None))
        group = (_l.reason, _l.question, _l.entry_id)
        columns = (*group, similarity.label("similarity"), sa.func.count().label("count"))
        query = sa.select(*columns).where(*known, *where, *_matching(_lookups, logs))
        matches = query.group_by(*group).subquery()
        c = matches.c
        first = (c.count.desc(), c.similarity.desc()) if by_count else (c.similarity,)
        order = (*first, c.question, c.entry_id)
        rank = sa.func.row_number().over(partition_by=c.reason, order_by=order).label("rank")
        ranked = sa.select(matches, rank).subquery()
        r = ranked.c
        stored = sa.select(r.reason, r.question, r.entry_id, _e.question, r.similarity, r.count)
        best = stored.outerjoin_from(ranked, _entries, _e.id == r.entry_id).where(r.rank <= limit)
        return [QuestionMatch(*row) for row in fetch_all(self._engine, best.order_by(r.reason, r.rank))]

    def similarity_histogram(self, logs: LogFilter) -> list[tuple[int, str, str, int]]:
        """Count lookups by meaning by the similarity of the nearest question: bin, tier, reason, count."""
        place = _floor(self._engine, (_l.similarity - MIN_SIMILARITY) / _STEP)
        inside = sa.case((_l.similarity < MIN_SIMILARITY, 0), (_l.similarity >= 1.0, BINS - 1), else_=place)
        lookups = sa.select(inside.label("bin"), _l.tier, _l.reason).where(
            _l.similarity.is_not(None), _l.tier != "exact", *_matching(_lookups, logs)
        )
        c = lookups.subquery().c
        group = (c.bin, c.tier, c.reason)
        query = sa.select(*group, sa.func.count()).group_by(*group).order_by(*group)
        return [(min(int(bin_), BINS - 1), *rest) for bin_, *rest in fetch_all(self._engine, query)]

    def top_entries(self, logs: LogFilter, limit: int) -> list[TopEntry]:
        """Return the entries that saved most: how often they were served, times what they cost."""
        count, tokens = sa.func.count().label("count"), _sum(_l.tokens_saved).label("tokens")
        served = sa.select(_l.entry_id, count, tokens).where(_HIT, *_matching(_lookups, logs))
        c = served.group_by(_l.entry_id).subquery().c
        columns = (_e.id, _e.namespace, _e.question, _e.model, c.count, c.tokens)
        told = (_e.input_tokens, _e.output_tokens, _e.pinned)
        query = sa.select(*columns, *told).where(_e.id == c.entry_id)
        rows = fetch_all(self._engine, query.order_by((c.count * _e.cost).desc(), _e.id).limit(limit))
        return [TopEntry(*row) for row in rows]

    def disputed_entries(self, logs: LogFilter, limit: int) -> list[DisputedEntry]:
        """Return the entries most often called wrong, by audits of what was served or by people."""
        audits = _sum(sa.case((_j.source == "audit", 1), else_=0)).label("audits")
        feedback = _sum(sa.case((_j.source == "feedback", 1), else_=0)).label("feedback")
        where = (~_j.right, _j.source.in_(("audit", "feedback")), *_matching(_judgements, logs))
        texts = [sa.func.max(column).label(column.name) for column in (_j.namespace, _j.stored, _j.asked)]
        wrong = sa.select(_j.entry_id, *texts, audits, feedback).where(*where).group_by(_j.entry_id)
        most = wrong.order_by(sa.func.count().desc(), _j.entry_id).limit(limit).subquery()
        query = sa.select(most, _e.id.is_not(None)).outerjoin_from(most, _entries, _e.id == most.c.entry_id)
        rows = fetch_all(
            self._engine, query.order_by((most.c.audits + most.c.feedback).desc(), most.c.entry_id)
        )
        return [DisputedEntry(*row) for row in rows]

    def entry_totals(self, namespace: str | None, limit: int) -> EntryTotals:
        """Sum up the entries, of all namespaces or of one; by model for the `limit` most common."""
        mine, count = _of_namespace(namespace), sa.func.count()
        sums = sa.select(count, sa.func.sum(_e.size), _UNUSED, sa.func.min(_e.created)).where(mine)
        models = sa.select(_e.model, count).where(mine).group_by(_e.model)
        entries, size, unused, oldest = fetch_all(self._engine, sums)[0]
        found = fetch_all(self._engine, models.order_by(count.desc(), _e.model).limit(limit))
        by_model = {row[0]: int(row[1]) for row in found}
        return EntryTotals(entries, int(size or 0), int(unused or 0), oldest or 0.0, by_model)

    def entry_ages(
        self, now: float, edges: tuple[float, ...], namespace: str | None
    ) -> list[tuple[int, int]]:
        """Count entries by age, from each edge to the next: all of them, and those never served.

        The edges are rising seconds; the last age has no end.
        """
        steps = ((_e.created > now - edge, number) for number, edge in enumerate(edges[1:]))
        age = sa.case(*steps, else_=len(edges) - 1)
        mine = sa.select(age.label("age"), _e.hits).where(_of_namespace(namespace)).subquery()
        unused = sa.func.sum(sa.case((mine.c.hits == 0, 1), else_=0))
        rows = fetch_all(self._engine, sa.select(mine.c.age, sa.func.count(), unused).group_by(mine.c.age))
        counts = {row[0]: (int(row[1]), int(row[2])) for row in rows}
        return [counts.get(number, (0, 0)) for number in range(len(edges))]

    def support(self, namespace: str | None = None) -> dict[str, Support]:
        """Count by namespace the answers that had documents and those that one supports; all or one."""
        supports = sa.cast(_d.supports, sa.Integer)
        best = sa.select(_d.entry_id, sa.func.max(supports).label("best"))
        by_entry = best.group_by(_d.entry_id).subquery()
        joined = _entries.outerjoin(by_entry, by_entry.c.entry_id == _e.id)
        counts = (sa.func.count(), sa.func.count(by_entry.c.best), sa.func.sum(by_entry.c.best))
        query = sa.select(_e.namespace, *counts).select_from(joined).where(_of_namespace(namespace))
        rows = fetch_all(self._engine, query.group_by(_e.namespace))
        return {row[0]: Support(row[1], row[2], int(row[3] or 0)) for row in rows}


def _matching(table: sa.Table, logs: LogFilter) -> list[sa.ColumnElement[bool]]:
    since = [] if logs.since is None else [table.c.at >= logs.since]
    return since if logs.namespace is None else [*since, table.c.namespace == logs.namespace]


def _of_namespace(namespace: str | None) -> sa.ColumnElement[bool]:
    return sa.true() if namespace is None else _e.namespace == namespace


def _sum(number: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """Sum up as a whole number: PostgreSQL's sum of large ones is a decimal."""
    return sa.cast(sa.func.sum(number), sa.BigInteger)


def _floor(engine: sa.Engine, number: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the whole part of a number >= 0: not every SQLite has `floor`, and PostgreSQL's cast rounds."""
    whole = number if engine.dialect.name == "sqlite" else sa.func.floor(number)
    return sa.cast(whole, sa.BigInteger)


def _with_answers(
    key: sa.ColumnElement[Any], where: Sequence[sa.ColumnElement[bool]], misses: bool
) -> sa.Select[Any]:
    """Select lookups with the model, tokens and seconds of the served answer, as far as they are still known.

    With `misses`, also of the nearest answer of those that missed, whose tier is then "missed".

    From the entry, unless it was replaced since; else from the example log, if that is the answer of so many
    tokens. What is in neither is unknown.
    """
    x, id_ = _examples.c, sa.func.max(_examples.c.id).label("id")
    # Grouped and joined, as both databases hash it: other forms took minutes with 100,000 examples.
    newest = sa.select(x.entry_id, id_).where(x.entry_id.is_not(None)).group_by(x.entry_id).subquery()
    served = sa.and_(sa.true() if misses else _HIT, _e.id == _l.entry_id, _e.created <= _l.at)
    deleted = sa.and_(_HIT, _e.id.is_(None), newest.c.entry_id == _l.entry_id)
    tokens = sa.func.coalesce(x.input_tokens, 0) + sa.func.coalesce(x.output_tokens, 0)
    same = sa.and_(x.id == newest.c.id, tokens == _l.tokens_saved, tokens > 0)
    nearest = sa.func.coalesce(_e.input_tokens, 0) + sa.func.coalesce(_e.output_tokens, 0)
    columns = (
        key.label("key"),
        sa.case((_HIT, _l.tier), else_="missed" if misses else "").label("tier"),
        sa.case((_HIT, _l.tokens_saved), else_=nearest).label("tokens_saved"),
        _l.seconds,
        sa.func.coalesce(_e.model, x.model).label("model"),
        sa.func.coalesce(_e.input_tokens, x.input_tokens).label("input_tokens"),
        sa.func.coalesce(_e.output_tokens, x.output_tokens).label("output_tokens"),
        sa.func.coalesce(_e.seconds, x.seconds).label("model_seconds"),
    )
    joined = _lookups.outerjoin(_entries, served).outerjoin(newest, deleted).outerjoin(_examples, same)
    return sa.select(*columns).select_from(joined).where(*where)
