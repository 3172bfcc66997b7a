"""The table `invalidations`: answers are deleted, and a tombstone rejects those that are just being made.

A store reads the tombstones in its own transaction, an invalidation writes one before it looks for what is to
be deleted, and the two do not overlap. So an answer is either found by the invalidation, or not stored. What
was asked for after that is stored, and stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from ibidem.lifecycle.invalidation import Criteria, Tombstones
from ibidem.storage import tables
from ibidem.storage.deletion import BATCH, BatchSize, delete_entries
from ibidem.storage.engine import exclude_stores, reading, valid_rows, writing
from ibidem.storage.examples import to_documents
from ibidem.types import Entry

_entries, _documents, _tags = tables.entries, tables.entry_documents, tables.entry_tags
_invalidations, _examples = tables.invalidations, tables.examples
_NEWER = (
    sa.select(_invalidations.c.id, _invalidations.c.at, _invalidations.c.criteria)
    .where(_invalidations.c.id > sa.bindparam("last"))
    .order_by(_invalidations.c.id)
)
_FEW = 8  # documents that are looked for by name in the JSON of examples; for more, all examples are read


class InvalidationTable:
    """Invalidation in one database. Every method raises `StorageError` when it fails.

    A lookup that begins after `invalidate` has returned finds nothing of what it deleted, in whichever
    process: what is served was read from the database in the same lookup.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._tombstones = Tombstones()

    def rejects(self, db: sa.Connection, entry: Entry, requested: float) -> bool:
        """Return whether a tombstone rejects an answer requested at this time; first in its transaction."""
        # PostgreSQL locks the table for reading until the end of the transaction: see `exclude_stores`.
        rows = db.execute(_NEWER, {"last": self._tombstones.last}).all()
        if rows:
            self._tombstones.add((row.id, row.at, row.criteria) for row in rows)
        return self._tombstones.refuse(entry, requested)

    def invalidate(
        self, criteria: Criteria, clock: Callable[[], float], *, examples: bool = True
    ) -> tuple[list[str], int]:
        """Delete the matching entries, and by default their examples; return ids, and how many examples.

        Those that match when it begins are deleted in batches. If it fails on the way the rest stays, though
        what is just being made is rejected already: call it again.
        """
        c = _entries.c
        with writing(self._engine) as db:
            exclude_stores(db, _invalidations)
            tombstone = {"at": clock(), "criteria": criteria.as_json()}
            db.execute(sa.insert(_invalidations).values(tombstone))
        with reading(self._engine) as db:  # what is stored from now on does not match; this locks nothing
            query = sa.select(c.id, c.created).where(_matching_entries(criteria))
            if db.dialect.name == "sqlite":  # what lies side by side in the file is deleted ten times as fast
                query = query.order_by(sa.text(f"{_entries.name}.rowid"))
            found = [(row.id, row.created) for row in db.execute(query)]
        deleted, deleted_examples, batch, at = list[str](), 0, BatchSize(), 0
        while at < len(found):
            some = dict(found[at : at + batch.size])
            at += len(some)
            with writing(self._engine) as db, batch:
                ids, count = _delete(db, some, examples)
            deleted, deleted_examples = deleted + ids, deleted_examples + count
        return deleted, deleted_examples + (self._delete_matching_examples(criteria) if examples else 0)

    def preview(self, criteria: Criteria, limit: int) -> tuple[int, list[str]]:
        """Return how many entries `invalidate` would delete, and the ids of the newest."""
        where = _matching_entries(criteria)
        newest = sa.select(_entries.c.id).where(where).order_by(_entries.c.created.desc()).limit(limit)
        with reading(self._engine) as db:
            count = db.scalar(sa.select(sa.func.count()).select_from(_entries).where(where)) or 0
            return count, list(db.scalars(newest))

    def _delete_matching_examples(self, criteria: Criteria) -> int:
        """Delete examples that match themselves: their entry may be gone, or never existed."""
        c = _examples.c

        def match(row: Any) -> tuple[int, bool]:
            return row.id, criteria.matches(
                namespace=row.namespace,
                model=row.model,
                entry=row.entry_id,
                created=row.at,
                tags=json.loads(row.tags),
                documents=to_documents(row.documents),
            )

        query = sa.select(c.id, c.at, c.namespace, c.model, c.documents, c.entry_id, c.tags)
        with reading(self._engine) as db:
            rows = db.execute(query.where(*_possible_examples(criteria)))
            found = [example_id for example_id, matches in valid_rows(match, rows) if matches]
        for start in range(0, len(found), BATCH):
            with writing(self._engine) as db:
                db.execute(sa.delete(_examples).where(c.id.in_(found[start : start + BATCH])))
        return len(found)


def _matching_entries(criteria: Criteria) -> sa.ColumnElement[bool]:
    """Say `Criteria.matches_entry` in SQL."""
    c = _entries.c
    parts = _same_values(_entries, criteria)
    if criteria.entry is not None:
        parts.append(c.id == criteria.entry)
    if criteria.tag is not None:
        parts.append(c.id.in_(sa.select(_tags.c.entry_id).where(_tags.c.tag == criteria.tag)))
    if criteria.before is not None:
        parts.append(c.created < criteria.before)
    if criteria.documents:
        d = _documents.c
        named = sa.or_(d.document_id.in_(criteria.documents), d.source.in_(criteria.documents))
        resting = sa.select(d.entry_id).where(named)
        if criteria.current is not None:
            resting = resting.where(d.digest.not_in(sorted(criteria.current)))
        parts.append(c.id.in_(resting))
    return sa.and_(sa.true(), *parts)


def _possible_examples(criteria: Criteria) -> list[sa.ColumnElement[bool]]:
    """Select the examples worth checking with `Criteria.matches`: too many of them, never too few."""
    c = _examples.c
    parts = _same_values(_examples, criteria)
    # LIKE on names as JSON writes them.
    if criteria.tag is not None:
        parts.append(c.tags.contains(json.dumps(criteria.tag), autoescape=True))
    if 0 < len(criteria.documents) <= _FEW:
        names = map(json.dumps, criteria.documents)
        parts.append(sa.or_(*(c.documents.contains(name, autoescape=True) for name in names)))
    return parts


def _same_values(table: sa.Table, criteria: Criteria) -> list[sa.ColumnElement[bool]]:
    wanted = ((table.c.namespace, criteria.namespace), (table.c.model, criteria.model))
    return [column == value for column, value in wanted if value is not None]


def _delete(db: sa.Connection, some: dict[str, float], with_examples: bool) -> tuple[list[str], int]:
    """Delete entries, and the examples that repeat their answers; return the ids, and how many examples.

    An entry that was stored anew since it was found stays: `some` holds when each was stored.
    """
    c = _entries.c
    now = sa.select(c.id, c.created).where(c.id.in_(some)).order_by(c.id)
    if db.dialect.name == "postgresql":  # in the order in which others lock them, against deadlocks
        now = now.with_for_update()
    found = [entry_id for entry_id, created in db.execute(now) if created == some[entry_id]]
    if not found:
        return [], 0
    mine = c.id.in_(found)
    count = _delete_examples(db, found, mine) if with_examples else 0
    delete_entries(db, mine)
    return found, count


def _delete_examples(db: sa.Connection, found: list[str], mine: sa.ColumnElement[bool]) -> int:
    same = [(_examples.c[name], _entries.c[name]) for name in ("namespace", "question", "answer")]
    asked = sa.select(*(column for _, column in same)).where(mine, _entries.c.question.is_not(None))
    repeated = sa.tuple_(*(column for column, _ in same)).in_(asked)
    examples = sa.delete(_examples).where(sa.or_(_examples.c.entry_id.in_(found), repeated))
    return int(db.execute(examples).rowcount)
