"""What a person may judge, from the logs, and what was said: judgements of the source `review`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ibidem.storage import tables
from ibidem.storage.engine import exclusively, reading, writing
from ibidem.storage.logs import CORRECTED, JUDGEMENT_LIMIT, PEOPLE, REVIEW, forget_oldest
from ibidem.storage.meta import note
from ibidem.types import digest

_entries, _lookups, _judgements = tables.entries, tables.lookups, tables.judgements
_e, _l, _j = _entries.c, _lookups.c, _judgements.c
_COMPARED = ("audit", "probe")
_CORRECTED = (*_COMPARED, "fit")  # a fit copies what audits found


@dataclass(frozen=True, slots=True)
class Met:
    """A question that met a stored one of another wording, `count` times, the last one `at`.

    `kind` is `audit` (the model's answer was compared; `right` is what came of it), `hit` or `near_miss`,
    `reason` that of the miss. `score` is None where the log does not tell it.
    """

    kind: str
    at: float
    namespace: str
    scope: str
    entry_id: str
    asked: str
    stored: str
    similarity: float
    score: float | None
    scorer: str
    reason: str
    right: bool | None
    count: int

    @property
    def id(self) -> str:
        """Names the pair of questions, whatever tells of it."""
        return digest(self.namespace, self.asked, self.stored)


@dataclass(frozen=True, slots=True)
class Said:
    """A judgement of a person: its `id` in the log, and the judgements that it corrected.

    `again` if the pair was judged before, as `right` says; then nothing was written.
    """

    id: int
    right: bool
    again: bool = False
    corrected: Sequence[int] = field(default=(), repr=False)


class Reviews:
    """Pairs to be judged in one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def audited(self, boundary: float, limit: int, namespace: str | None = None) -> list[Met]:
        """What audits compared and no person has judged, the scores nearest to the boundary first."""
        pair = (_j.namespace, _j.entry_id, _j.asked, _j.stored)
        group = sa.select(sa.func.max(_j.id).label("id"), sa.func.count().label("count"))
        newest = group.where(_j.source.in_(_COMPARED)).group_by(*pair).subquery()
        columns = (_j.at, _j.namespace, _j.scope, _j.entry_id, _j.asked, _j.stored, _j.similarity, _j.score)
        query = sa.select(sa.literal("audit"), *columns, _j.scorer, _j.source, _j.right, newest.c.count)
        met = _judgements.join(newest, newest.c.id == _j.id).join(_entries, _e.id == _j.entry_id)
        query = _unsaid(query, met, _j.namespace, _j.asked, _j.stored).where(_j.asked != _j.stored)
        return self._met(_within(query, _j.namespace, namespace), sa.func.abs(_j.score - boundary), limit)

    def looked_up(self, boundary: float, limit: int, namespace: str | None = None) -> list[Met]:
        """Hits and near misses that no person has judged, the cosines nearest to the boundary first."""
        met = (_l.question.is_not(None), _l.similarity.is_not(None), _l.tier != "exact")
        group = sa.select(sa.func.max(_l.id).label("id"), sa.func.count().label("count")).where(*met)
        newest = group.group_by(_l.namespace, _l.entry_id, _l.question).subquery()
        kind = sa.case((_l.tier == "", "near_miss"), else_="hit")
        nothing = (sa.null(), sa.literal(""), _l.reason, sa.null())
        columns = (_l.at, _l.namespace, _l.scope, _l.entry_id, _l.question, _e.question, _l.similarity)
        query = sa.select(kind, *columns, *nothing, newest.c.count)
        near = _lookups.join(newest, newest.c.id == _l.id).join(_entries, _e.id == _l.entry_id)
        query = _unsaid(query, near, _l.namespace, _l.question, _e.question).where(_e.question != _l.question)
        return self._met(
            _within(query, _l.namespace, namespace), sa.func.abs(_l.similarity - boundary), limit
        )

    def _met(self, query: sa.Select[Any], distance: sa.ColumnElement[Any], limit: int) -> list[Met]:
        with reading(self._engine) as db:
            return [Met(*row) for row in db.execute(query.order_by(distance).limit(limit))]

    def said(self, met: Met) -> bool | None:
        """What a reviewer said of this pair; None if none did."""
        with reading(self._engine) as db:
            return _said(db, met)

    def judge(self, met: Met, right: bool, at: float) -> Said:
        """Note what a person says of a pair, and correct what audits took it for; once for each pair."""
        with exclusively(self._engine) as db:
            if (before := _said(db, met)) is not None:
                return Said(0, before, again=True)
            row = {
                "at": at,
                "namespace": met.namespace,
                "scope": met.scope,
                "entry_id": met.entry_id,
                "asked": met.asked,
                "stored": met.stored,
                "similarity": met.similarity,
                "score": met.similarity if met.score is None else met.score,
                "scorer": met.scorer,
                "right": right,
                "source": REVIEW,
            }
            done = db.execute(sa.insert(_judgements).values(row))
            number = int((done.inserted_primary_key or (0,))[0])
            wrong = (_j.entry_id == met.entry_id, _j.source.in_(_CORRECTED), _j.right != right)
            corrected = list(db.scalars(sa.select(_j.id).where(*_pair(met), *wrong)))
            _correct(db, corrected, right)
            forget_oldest(db, _judgements, JUDGEMENT_LIMIT)
        return Said(number, right, corrected=corrected)

    def undo(self, said: Said) -> bool:
        """Take a judgement back, with what it corrected; False if it is not there any more."""
        with writing(self._engine) as db:
            gone = db.execute(sa.delete(_judgements).where(_j.id == said.id, _j.source == REVIEW)).rowcount
            if gone:
                _correct(db, said.corrected, not said.right)
        return bool(gone)


def _correct(db: sa.Connection, ids: Sequence[int], right: bool) -> None:
    """Change what audits found; all processes read their budgets again."""
    for id_ in ids:
        db.execute(sa.update(_judgements).where(_j.id == id_).values(right=right))
    if ids:
        note(db, CORRECTED, uuid.uuid4().hex)


def _said(db: sa.Connection, met: Met) -> bool | None:
    return db.scalar(sa.select(_j.right).where(*_pair(met), _j.source == REVIEW).limit(1))


def _pair(met: Met) -> tuple[sa.ColumnElement[bool], ...]:
    return _j.namespace == met.namespace, _j.asked == met.asked, _j.stored == met.stored


def _unsaid(query: sa.Select[Any], of: sa.FromClause, *pair: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """The query on what no person has judged. By a join, for which both databases make an index or a hash."""
    t = _judgements.alias().c
    said = sa.select(t.namespace, t.asked, t.stored).where(t.source.in_(PEOPLE)).distinct().subquery()
    same = (one == other for one, other in zip(said.c, pair, strict=True))
    return query.select_from(of.outerjoin(said, sa.and_(*same))).where(said.c.asked.is_(None))


def _within(query: sa.Select[Any], column: sa.ColumnElement[Any], namespace: str | None) -> sa.Select[Any]:
    return query if namespace is None else query.where(column == namespace)
