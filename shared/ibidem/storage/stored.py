"""Stored questions as one learns from them: with their answers and vectors, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ibidem.storage.columns import sound
from ibidem.storage.engine import reading
from ibidem.storage.tables import entries as _entries
from ibidem.storage.tables import entry_documents as _documents
from ibidem.storage.tables import entry_vectors as _vectors
from ibidem.storage.vectors import number_of
from ibidem.types import Vector, to_vector

_AT_ONCE = 500  # ids in one query: databases bound the number of parameters


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """A question that can be compared by meaning, with its answer.

    `documents` is the digest of the document set, `vector` the embedding, shape (d,), if the embedder asked
    for made it.
    """

    namespace: str
    scope: str
    question: str
    documents: str
    answer: str
    vector: Vector | None = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Support:
    """Stored answers: how many had documents in their prompt, and of how many of these one supports them."""

    answers: int
    with_documents: int
    supported: int


def _to_stored(row: Any) -> StoredQuestion:
    if row.question is None:
        raise ValueError("a damaged row")
    vector = row.vector and to_vector(row.vector)
    return StoredQuestion(row.namespace, row.scope, row.question, row.documents, row.answer, vector)


class StoredTable:
    """The stored questions of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def newest(self, limit: int, embedder: str, namespace: str | None = None) -> list[StoredQuestion]:
        """The newest questions compared by meaning, newest first; all or those of one namespace."""
        c = _entries.c
        columns = (c.namespace, c.scope, c.question, c.documents, c.answer, _vectors.c.vector)
        mine = sa.and_(_vectors.c.entry_id == c.id, _vectors.c.embedder == number_of(embedder))
        query = sa.select(*columns).outerjoin(_vectors, mine).where(c.semantic, c.question.is_not(None))
        if namespace is not None:
            query = query.where(c.namespace == namespace)
        with reading(self._engine) as db:
            rows = db.execute(query.order_by(c.created.desc(), c.id).limit(limit)).all()
        return list(sound(_to_stored, rows))

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """The questions of these entries, by id; those that are deleted or exact-only are missing."""
        c, found = _entries.c, {}
        with reading(self._engine) as db:
            for start in range(0, len(ids), _AT_ONCE):
                some = c.id.in_(ids[start : start + _AT_ONCE])
                rows = db.execute(sa.select(c.id, c.question).where(some, c.question.is_not(None)))
                found.update({row.id: row.question for row in rows})
        return found

    def support(self, namespace: str | None = None) -> dict[str, Support]:
        """By namespace, what the stored answers rest on; all or one."""
        c, supports = _entries.c, sa.cast(_documents.c.supports, sa.Integer)
        best = sa.select(_documents.c.entry_id, sa.func.max(supports).label("best"))
        by_entry = best.group_by(_documents.c.entry_id).subquery()
        joined = _entries.outerjoin(by_entry, by_entry.c.entry_id == c.id)
        counts = (sa.func.count(), sa.func.count(by_entry.c.best), sa.func.sum(by_entry.c.best))
        query = sa.select(c.namespace, *counts).select_from(joined).group_by(c.namespace)
        if namespace is not None:
            query = query.where(c.namespace == namespace)
        with reading(self._engine) as db:
            return {row[0]: Support(row[1], row[2], int(row[3] or 0)) for row in db.execute(query)}
