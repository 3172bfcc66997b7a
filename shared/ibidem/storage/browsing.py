"""Entries a page at a time, and what the logs know of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ibidem.storage import tables
from ibidem.storage.engine import reading
from ibidem.storage.rows import JudgementRow

BEGINNING = 240  # characters of an answer in a list

_e, _l, _j, _t = tables.entries.c, tables.lookups.c, tables.judgements.c, tables.entry_tags.c


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry in a list, with the beginning of its answer."""

    id: str
    namespace: str
    question: str | None
    answer: str
    model: str
    created: float
    hits: int


@dataclass(frozen=True, slots=True)
class Matched:
    """A question that met an entry `count` times with this outcome (tier of a hit, reason of a miss)."""

    question: str
    tier: str
    reason: str
    similarity: float | None
    count: int
    last: float


class Browsing:
    """The entries of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def page(
        self,
        limit: int,
        *,
        before: tuple[float, str] | None = None,
        namespace: str | None = None,
        text: str = "",
    ) -> list[Listed]:
        """Entries, newest first; those that come after `before`, time and id of the last one seen.

        `text` is looked for in questions and answers, whatever the case of ASCII letters, and as the
        beginning of an id.
        """
        beginning = sa.func.substr(_e.answer, 1, BEGINNING)
        query = sa.select(_e.id, _e.namespace, _e.question, beginning, _e.model, _e.created, _e.hits)
        if before is not None:
            # The first half is for the index; the second for entries of the same moment.
            at, last = before
            query = query.where(_e.created <= at, sa.or_(_e.created < at, _e.id < last))
        if namespace is not None:
            query = query.where(_e.namespace == namespace)
        if text:
            found = (_e.question.icontains(text, autoescape=True), _e.answer.icontains(text, autoescape=True))
            query = query.where(sa.or_(*found, _e.id.startswith(text, autoescape=True)))
        return [
            Listed(*row) for row in self._rows(query.order_by(_e.created.desc(), _e.id.desc()).limit(limit))
        ]

    def count(self) -> int:
        """How many entries there are."""
        return int(self._rows(sa.select(sa.func.count()).select_from(tables.entries))[0][0])

    def namespaces(self, limit: int) -> list[str]:
        """The namespaces that have entries, by name."""
        query = sa.select(_e.namespace).distinct().order_by(_e.namespace).limit(limit)
        return [row[0] for row in self._rows(query)]

    def tags(self, entry_id: str) -> list[str]:
        """The tags of an entry."""
        return [
            row[0] for row in self._rows(sa.select(_t.tag).where(_t.entry_id == entry_id).order_by(_t.tag))
        ]

    def matched(self, entry_id: str, limit: int) -> list[Matched]:
        """The questions in the lookup log that met this entry, the commonest first."""
        group = (_l.question, _l.tier, _l.reason)
        count = sa.func.count()
        query = sa.select(*group, sa.func.max(_l.similarity), count, sa.func.max(_l.at))
        query = query.where(_l.entry_id == entry_id, _l.question.is_not(None)).group_by(*group)
        return [Matched(*row) for row in self._rows(query.order_by(count.desc(), _l.question).limit(limit))]

    def judged(self, entry_id: str, limit: int) -> list[JudgementRow]:
        """The last judgements of this entry, newest first."""
        columns = [_j[name] for name in JudgementRow.__slots__]
        query = sa.select(*columns).where(_j.entry_id == entry_id).order_by(_j.id.desc()).limit(limit)
        return [JudgementRow(*row) for row in self._rows(query)]

    def answer_to(self, namespace: str, scope: str, question: str) -> str | None:
        """The id of the newest entry that was stored for this very question in this scope."""
        query = sa.select(_e.id).where(_e.namespace == namespace, _e.scope == scope, _e.question == question)
        found = self._rows(query.order_by(_e.created.desc()).limit(1))
        return found[0][0] if found else None

    def _rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        with reading(self._engine) as db:
            return db.execute(query).all()
