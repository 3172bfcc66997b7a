"""Figures of the logs, summed up in SQL: what was asked, what came of it, what it saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ibidem.storage import tables
from ibidem.storage.engine import reading

# Tokens of a prompt up to which prices are known to be flat; some models charge more for longer ones.
LONG_PROMPT = 128_000
LEAST_SIMILARITY, BINS = 0.5, 50  # of the histogram; what is less alike is counted with the lowest

_lookups, _entries, _examples = tables.lookups, tables.entries, tables.examples
_judgements = tables.judgements
_l, _e, _j = _lookups.c, _entries.c, _judgements.c
_HIT = _l.tier != ""
_STEP = (1.0 - LEAST_SIMILARITY) / BINS


@dataclass(frozen=True, slots=True)
class Span:
    """What of the logs is looked at: what came since (seconds since the epoch), and one namespace or all."""

    since: float | None = None
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """Lookups of one `key` (a time, a namespace), tier ("" for misses) and model, and what they saved.

    `tokens` is what the answers served had cost. Of `priced` of the `count` hits the tokens read and said are
    known apart (`input`, `output`), of `timed` how much longer the model took than the lookup (`seconds`).
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
class Asked:
    """A question that met a stored answer `count` times, with the highest or lowest similarity.

    `stored` is what the answer was given to; None if it is gone or keeps no text.
    """

    reason: str
    question: str
    entry_id: str
    stored: str | None
    similarity: float
    count: int


@dataclass(frozen=True, slots=True)
class Doubted:
    """An entry whose answer was called wrong by audits or by people; `stored` says whether it is still there.

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
class Valuable:
    """An entry that was served `count` times in the span; the rest is as of entries."""

    entry_id: str
    namespace: str
    question: str | None
    model: str
    count: int
    tokens: int
    input_tokens: int | None
    output_tokens: int | None


class Figures:
    """Sums over the logs of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def extent(self, span: Span) -> tuple[int, float, float]:
        """How many lookups there are, and when the first and the last were."""
        query = sa.select(sa.func.count(), sa.func.min(_l.at), sa.func.max(_l.at)).where(*_of(_lookups, span))
        count, first, last = self._rows(query)[0]
        return count, first or 0.0, last or 0.0

    def served(self, span: Span) -> list[Served]:
        """All lookups of the span by tier and model."""
        return self._served(sa.literal(""), span)

    def over_time(self, span: Span, width: float) -> list[Served]:
        """The same by time: `key` counts steps of `width` seconds since the epoch."""
        return self._served(_floor(self._engine, _l.at / width), span)

    def by_namespace(self, span: Span, limit: int) -> list[Served]:
        """The same by namespace, of those most asked."""
        top = sa.select(_l.namespace).where(*_of(_lookups, span)).group_by(_l.namespace)
        most = top.order_by(sa.func.count().desc(), _l.namespace).limit(limit).subquery()
        return self._served(_l.namespace, span, _l.namespace.in_(sa.select(most.c.namespace)))

    def _served(self, key: sa.ColumnElement[Any], span: Span, *where: sa.ColumnElement[bool]) -> list[Served]:
        asked = _with_answers(key, [*_of(_lookups, span), *where]).subquery()
        c = asked.c
        known = sa.and_(c.tier != "", c.read.is_not(None), c.said.is_not(None), c.read <= LONG_PROMPT)
        timed = sa.and_(c.tier != "", c.took.is_not(None))
        model = sa.func.coalesce(c.model, "")
        query = sa.select(
            c.key,
            c.tier,
            model,
            sa.func.count(),
            _total(c.tokens_saved),
            _total(sa.case((known, 1), else_=0)),
            _total(sa.case((known, c.read), else_=0)),
            _total(sa.case((known, c.said), else_=0)),
            _total(sa.case((timed, 1), else_=0)),
            sa.func.sum(sa.case((timed, c.took - c.seconds), else_=0.0)),
        ).group_by(c.key, c.tier, model)
        rows = self._rows(query.order_by(c.key, c.tier, model))
        return [Served(*row) for row in rows]

    def reasons(self, span: Span) -> dict[str, int]:
        """Misses by reason, the commonest first."""
        count = sa.func.count()
        query = sa.select(_l.reason, count).where(~_HIT, *_of(_lookups, span)).group_by(_l.reason)
        return dict(map(tuple, self._rows(query.order_by(count.desc(), _l.reason))))

    def near_misses(self, span: Span, reasons: Sequence[str], limit: int) -> list[Asked]:
        """For each of the reasons the questions that missed so most often although an answer was near."""
        where = (~_HIT, _l.reason.in_(reasons))
        return self._asked(span, where, limit, sa.func.max(_l.similarity), often=True)

    def unsure_hits(self, span: Span, limit: int) -> list[Asked]:
        """The questions that were served what was least alike."""
        return self._asked(span, (_l.tier == "semantic",), limit, sa.func.min(_l.similarity), often=False)

    def _asked(
        self, span: Span, where: Sequence[Any], limit: int, similarity: sa.ColumnElement[Any], *, often: bool
    ) -> list[Asked]:
        known = (_l.question.is_not(None), _l.entry_id.is_not(None), _l.similarity.is_not(None))
        group = (_l.reason, _l.question, _l.entry_id)
        columns = (*group, similarity.label("similarity"), sa.func.count().label("count"))
        asked = sa.select(*columns).where(*known, *where, *_of(_lookups, span)).group_by(*group).subquery()
        c = asked.c
        first = (c.count.desc(), c.similarity.desc()) if often else (c.similarity,)
        order = (*first, c.question, c.entry_id)
        place = sa.func.row_number().over(partition_by=c.reason, order_by=order).label("place")
        ranked = sa.select(asked, place).subquery()
        r = ranked.c
        stored = sa.select(r.reason, r.question, r.entry_id, _e.question, r.similarity, r.count)
        query = stored.outerjoin_from(ranked, _entries, _e.id == r.entry_id).where(r.place <= limit)
        return [Asked(*row) for row in self._rows(query.order_by(r.reason, r.place))]

    def similarities(self, span: Span) -> list[tuple[int, str, str, int]]:
        """Lookups by meaning by how alike the nearest question was: bin, tier, reason, count."""
        place = _floor(self._engine, (_l.similarity - LEAST_SIMILARITY) / _STEP)
        inside = sa.case((_l.similarity < LEAST_SIMILARITY, 0), (_l.similarity >= 1.0, BINS - 1), else_=place)
        asked = sa.select(inside.label("bin"), _l.tier, _l.reason).where(
            _l.similarity.is_not(None), _l.tier != "exact", *_of(_lookups, span)
        )
        c = asked.subquery().c
        group = (c.bin, c.tier, c.reason)
        query = sa.select(*group, sa.func.count()).group_by(*group).order_by(*group)
        return [(min(int(bin_), BINS - 1), *rest) for bin_, *rest in self._rows(query)]

    def most_valuable(self, span: Span, limit: int) -> list[Valuable]:
        """The entries that saved most: served how often, times what they cost."""
        count, tokens = sa.func.count().label("count"), _total(_l.tokens_saved).label("tokens")
        hits = sa.select(_l.entry_id, count, tokens).where(_HIT, *_of(_lookups, span)).group_by(_l.entry_id)
        c = hits.subquery().c
        columns = (_e.id, _e.namespace, _e.question, _e.model, c.count, c.tokens)
        query = sa.select(*columns, _e.input_tokens, _e.output_tokens).where(_e.id == c.entry_id)
        rows = self._rows(query.order_by((c.count * _e.cost).desc(), _e.id).limit(limit))
        return [Valuable(*row) for row in rows]

    def doubted(self, span: Span, limit: int) -> list[Doubted]:
        """The entries most often called wrong, by audits of what was served or by people."""
        audits = _total(sa.case((_j.source == "audit", 1), else_=0)).label("audits")
        said = _total(sa.case((_j.source == "feedback", 1), else_=0)).label("said")
        where = (~_j.right, _j.source.in_(("audit", "feedback")), *_of(_judgements, span))
        texts = [sa.func.max(column).label(column.name) for column in (_j.namespace, _j.stored, _j.asked)]
        wrong = sa.select(_j.entry_id, *texts, audits, said).where(*where).group_by(_j.entry_id)
        most = wrong.order_by(sa.func.count().desc(), _j.entry_id).limit(limit).subquery()
        query = sa.select(most, _e.id.is_not(None)).outerjoin_from(most, _entries, _e.id == most.c.entry_id)
        rows = self._rows(query.order_by((most.c.audits + most.c.said).desc(), most.c.entry_id))
        return [Doubted(*row) for row in rows]

    def _rows(self, query: sa.Executable) -> list[Any]:
        with reading(self._engine) as db:
            return list(db.execute(query).all())


def _total(number: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """A sum as a whole number: PostgreSQL's of large ones is a decimal."""
    return sa.cast(sa.func.sum(number), sa.BigInteger)


def _of(table: sa.Table, span: Span) -> list[sa.ColumnElement[bool]]:
    since = [] if span.since is None else [table.c.at >= span.since]
    return since if span.namespace is None else [*since, table.c.namespace == span.namespace]


def _floor(engine: sa.Engine, number: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The whole part of a number from 0: not every SQLite has `floor`, and PostgreSQL's cast rounds."""
    whole = number if engine.dialect.name == "sqlite" else sa.func.floor(number)
    return sa.cast(whole, sa.BigInteger)


def _with_answers(key: sa.ColumnElement[Any], where: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    """Lookups with the model, tokens and seconds of the answer served, as far as they are still known.

    From the entry, if it was not replaced since; else from the example log, if that is the answer of so many
    tokens. What is in neither is not known.
    """
    x, id_ = _examples.c, sa.func.max(_examples.c.id).label("id")
    # Grouped and joined, as both databases hash it: other forms took minutes with 100,000 examples.
    newest = sa.select(x.entry_id, id_).where(x.entry_id.is_not(None)).group_by(x.entry_id).subquery()
    served = sa.and_(_HIT, _e.id == _l.entry_id, _e.created <= _l.at)
    gone = sa.and_(_HIT, _e.id.is_(None), newest.c.entry_id == _l.entry_id)
    spent = sa.func.coalesce(x.input_tokens, 0) + sa.func.coalesce(x.output_tokens, 0)
    same = sa.and_(x.id == newest.c.id, spent == _l.tokens_saved, spent > 0)
    columns = (
        key.label("key"),
        _l.tier,
        _l.tokens_saved,
        _l.seconds,
        sa.func.coalesce(_e.model, x.model).label("model"),
        sa.func.coalesce(_e.input_tokens, x.input_tokens).label("read"),
        sa.func.coalesce(_e.output_tokens, x.output_tokens).label("said"),
        sa.func.coalesce(_e.seconds, x.seconds).label("took"),
    )
    joined = _lookups.outerjoin(_entries, served).outerjoin(newest, gone).outerjoin(_examples, same)
    return sa.select(*columns).select_from(joined).where(*where)
