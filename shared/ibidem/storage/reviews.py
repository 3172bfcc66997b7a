"""Pairs of questions to review, and the judgements of reviewers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ibidem.storage import tables
from ibidem.storage.engine import (
    exclusive,
    fetch_all,
    fetch_value,
    in_namespace,
    reading,
    writing,
)
from ibidem.storage.logs import CORRECTED, JUDGEMENT_LIMIT, OPINION, PEOPLE, REVIEW, delete_oldest
from ibidem.storage.meta import set_meta
from ibidem.types import digest

_entries, _lookups, _judgements = tables.entries, tables.lookups, tables.judgements
_e, _l, _j, _t = _entries.c, _lookups.c, _judgements.c, tables.entry_tags.c
_COMPARED = ("audit", "probe")
_CORRECTABLE = (*_COMPARED, "fit", OPINION)  # a fit copies what audits found


@dataclass(frozen=True, slots=True)
class ReviewPair:
    """A question that matched a stored one of another wording, `count` times, the last one `at`.

    `kind` is `audit` (the model's answer was compared; `right` is the result), `hit` or `near_miss`, `reason`
    that of the miss. `score` is None where the log does not hold it.
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
        """The id of the pair of questions, whichever log it comes from."""
        return digest(self.namespace, self.asked, self.stored)


@dataclass(frozen=True, slots=True)
class Review:
    """A judgement of a person: its `id` in the log, and the ids of the judgements that it corrected.

    `again` if the pair was judged before, as `right` says; then nothing was written.
    """

    id: int
    right: bool
    again: bool = False
    corrected: Sequence[int] = field(default=(), repr=False)


class ReviewTable:
    """Pairs to review and their reviews. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def audited(self, boundary: float, limit: int, namespace: str | None = None) -> list[ReviewPair]:
        """Return pairs that audits compared and no person judged, scores nearest to the boundary first."""
        pair = (_j.namespace, _j.entry_id, _j.asked, _j.stored)
        group = sa.select(sa.func.max(_j.id).label("id"), sa.func.count().label("count"))
        newest = group.where(_j.source.in_(_COMPARED)).group_by(*pair).subquery()
        columns = (_j.at, _j.namespace, _j.scope, _j.entry_id, _j.asked, _j.stored, _j.similarity, _j.score)
        query = sa.select(sa.literal("audit"), *columns, _j.scorer, _j.source, _j.right, newest.c.count)
        audits = _judgements.join(newest, newest.c.id == _j.id).join(_entries, _e.id == _j.entry_id)
        query = _unreviewed(query, audits, _j.namespace, _j.asked, _j.stored).where(_j.asked != _j.stored)
        return self._pairs(
            in_namespace(query, _j.namespace, namespace), sa.func.abs(_j.score - boundary), limit
        )

    def looked_up(self, boundary: float, limit: int, namespace: str | None = None) -> list[ReviewPair]:
        """Return hits and near misses that no person judged, the cosines nearest to the boundary first."""
        compared = (_l.question.is_not(None), _l.similarity.is_not(None), _l.tier != "exact")
        group = sa.select(sa.func.max(_l.id).label("id"), sa.func.count().label("count")).where(*compared)
        newest = group.group_by(_l.namespace, _l.entry_id, _l.question).subquery()
        kind = sa.case((_l.tier == "", "near_miss"), else_="hit")
        unknown = (sa.null(), sa.literal(""), _l.reason, sa.null())
        columns = (_l.at, _l.namespace, _l.scope, _l.entry_id, _l.question, _e.question, _l.similarity)
        query = sa.select(kind, *columns, *unknown, newest.c.count)
        near = _lookups.join(newest, newest.c.id == _l.id).join(_entries, _e.id == _l.entry_id)
        query = _unreviewed(query, near, _l.namespace, _l.question, _e.question)
        query = in_namespace(query.where(_e.question != _l.question), _l.namespace, namespace)
        return self._pairs(query, sa.func.abs(_l.similarity - boundary), limit)

    def answer_to(self, namespace: str, scope: str, question: str) -> str | None:
        """Return the id of the newest entry that was stored for this very question in this scope."""
        query = sa.select(_e.id).where(_e.namespace == namespace, _e.scope == scope, _e.question == question)
        found: str | None = fetch_value(self._engine, query.order_by(_e.created.desc()).limit(1))
        return found

    def _pairs(self, query: sa.Select[Any], distance: sa.ColumnElement[Any], limit: int) -> list[ReviewPair]:
        return [ReviewPair(*row) for row in fetch_all(self._engine, query.order_by(distance).limit(limit))]

    def verdict(self, pair: ReviewPair) -> bool | None:
        """Return what a reviewer said of this pair; None if no reviewer judged it."""
        with reading(self._engine) as db:
            return _verdict(db, pair)

    def judge(self, pair: ReviewPair, right: bool, at: float) -> Review:
        """Store a person's judgement of a pair and correct the audits that differ; once for each pair."""
        with exclusive(self._engine) as db:
            if (before := _verdict(db, pair)) is not None:
                return Review(0, before, again=True)
            row = {
                "at": at,
                "namespace": pair.namespace,
                "scope": pair.scope,
                "entry_id": pair.entry_id,
                "asked": pair.asked,
                "stored": pair.stored,
                "similarity": pair.similarity,
                "score": pair.similarity if pair.score is None else pair.score,
                "scorer": pair.scorer,
                "right": right,
                "source": REVIEW,
            }
            done = db.execute(sa.insert(_judgements).values(row))
            number = int((done.inserted_primary_key or (0,))[0])
            wrong = (_j.entry_id == pair.entry_id, _j.source.in_(_CORRECTABLE), _j.right != right)
            corrected = list(db.scalars(sa.select(_j.id).where(*_same_pair(pair), *wrong)))
            _correct(db, corrected, right)
            delete_oldest(db, _judgements, JUDGEMENT_LIMIT)
        return Review(number, right, corrected=corrected)

    def undo(self, review: Review) -> bool:
        """Delete a review and restore what it corrected; return whether it was still there."""
        with writing(self._engine) as db:
            gone = sa.delete(_judgements).where(_j.id == review.id, _j.source == REVIEW)
            found = bool(db.execute(gone).rowcount)
            if found:
                _correct(db, review.corrected, not review.right)
        return found


def _correct(db: sa.Connection, ids: Sequence[int], right: bool) -> None:
    """Change what audits found; all processes read their budgets again."""
    for id_ in ids:
        db.execute(sa.update(_judgements).where(_j.id == id_).values(right=right))
    if ids:
        set_meta(db, CORRECTED, uuid.uuid4().hex)


def _verdict(db: sa.Connection, pair: ReviewPair) -> bool | None:
    return db.scalar(sa.select(_j.right).where(*_same_pair(pair), _j.source == REVIEW).limit(1))


def _same_pair(pair: ReviewPair) -> tuple[sa.ColumnElement[bool], ...]:
    return _j.namespace == pair.namespace, _j.asked == pair.asked, _j.stored == pair.stored


def _unreviewed(query: sa.Select[Any], source: sa.FromClause, *pair: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Keep the pairs that no person judged. By a join, for which both databases make an index or a hash."""
    t = _judgements.alias().c
    judged = sa.select(t.namespace, t.asked, t.stored).where(t.source.in_(PEOPLE)).distinct().subquery()
    same = (one == other for one, other in zip(judged.c, pair, strict=True))
    return query.select_from(source.outerjoin(judged, sa.and_(*same))).where(judged.c.asked.is_(None))
