"""Invalidation in SQL: answers are deleted, and a tombstone keeps those away that are just being made.

A store reads the tombstones in its own transaction, an invalidation writes one before it looks for what is to
be deleted, and the two do not overlap. So an answer is either found by the invalidation, or not stored. What
was asked for after that is stored, and stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence

import sqlalchemy as sa

from ibidem.examples.example import Example
from ibidem.lifecycle.invalidation import Criteria, Tombstones
from ibidem.storage import tables
from ibidem.storage.columns import sound
from ibidem.storage.deletion import BATCH, Pace, delete
from ibidem.storage.engine import reading, writing
from ibidem.storage.rows import EmbeddedExample, lineage_of
from ibidem.types import Entry

_entries, _documents, _tags = tables.entries, tables.entry_documents, tables.entry_tags
_invalidations, _examples = tables.invalidations, tables.examples
_NEWER = (
    sa.select(_invalidations.c.id, _invalidations.c.at, _invalidations.c.criteria)
    .where(_invalidations.c.id > sa.bindparam("last"))
    .order_by(_invalidations.c.id)
)
_FEW = 8  # documents that are looked for by their names in the JSON of examples; of more, all are read


class Invalidations:
    """Invalidation in one database. Every method raises `StorageError` when it fails.

    A lookup that begins after `run` has returned finds nothing of what it deleted, in whichever process: what
    is served was read from the database in the same lookup.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._tombstones = Tombstones()

    def refuse(self, db: sa.Connection, entry: Entry, made: float) -> bool:
        """Whether an answer asked for at `made` must not be stored; first in its transaction."""
        # PostgreSQL locks the table for reading until the end of the transaction: see `_exclude_stores`.
        rows = db.execute(_NEWER, {"last": self._tombstones.last}).all()
        if rows:
            self._tombstones.add((row.id, row.at, row.criteria) for row in rows)
        return self._tombstones.refuse(entry, made)

    def run(
        self, criteria: Criteria, clock: Callable[[], float], *, examples: bool = True
    ) -> tuple[list[str], int]:
        """Delete the entries concerned, and their examples unless told not to; ids, and how many examples.

        Those found while it runs are deleted in batches. If it fails on the way the rest stays, though what
        is just being made is kept away already: call it again.
        """
        c = _entries.c
        with writing(self._engine) as db:
            _exclude_stores(db)
            tombstone = {"at": clock(), "criteria": criteria.as_json()}
            db.execute(sa.insert(_invalidations).values(tombstone))
        with reading(self._engine) as db:  # what is stored from now on is not concerned; holds up nobody
            query = sa.select(c.id, c.created).where(condition(criteria))
            if db.dialect.name == "sqlite":  # what lies side by side in the file is deleted ten times as fast
                query = query.order_by(sa.text(f"{_entries.name}.rowid"))
            found = [(row.id, row.created) for row in db.execute(query)]
        gone, forgotten, pace, at = list[str](), 0, Pace(), 0
        while at < len(found):
            some = dict(found[at : at + pace.size])
            at += len(some)
            with writing(self._engine) as db, pace:
                deleted, more = _delete(db, some, examples)
            gone, forgotten = gone + deleted, forgotten + more
        return gone, forgotten + (self._forget_examples(criteria) if examples else 0)

    def preview(self, criteria: Criteria, limit: int) -> tuple[int, list[str]]:
        """How many entries `run` would delete, and the ids of the newest."""
        where = condition(criteria)
        newest = sa.select(_entries.c.id).where(where).order_by(_entries.c.created.desc()).limit(limit)
        with reading(self._engine) as db:
            count = db.scalar(sa.select(sa.func.count()).select_from(_entries).where(where)) or 0
            return count, list(db.scalars(newest))

    def _forget_examples(self, criteria: Criteria) -> int:
        """Delete examples that fulfil the criteria themselves: their entry may be gone, or never was one."""
        c = _examples.c
        query = sa.select(c.id, c.at, c.namespace, c.model, c.documents, c.entry_id, c.tags)
        for column, value in ((c.namespace, criteria.namespace), (c.model, criteria.model)):
            query = query if value is None else query.where(column == value)
        # As JSON writes them. LIKE finds too many, never too few.
        if criteria.tag is not None:
            query = query.where(c.tags.contains(json.dumps(criteria.tag), autoescape=True))
        if 0 < len(criteria.documents) <= _FEW:
            names = map(json.dumps, criteria.documents)
            query = query.where(sa.or_(*(c.documents.contains(name, autoescape=True) for name in names)))
        with reading(self._engine) as db:
            lineages = sound(lambda row: (row.id, lineage_of(row)), db.execute(query))
            found = [id_ for id_, lineage in lineages if criteria.concern_example(lineage)]
        for start in range(0, len(found), BATCH):
            with writing(self._engine) as db:
                db.execute(sa.delete(_examples).where(c.id.in_(found[start : start + BATCH])))
        return len(found)


def without_invalidated(
    db: sa.Connection, examples: Sequence[Example | EmbeddedExample]
) -> list[Example | EmbeddedExample]:
    """Those that nothing concerns that was invalidated since they were told of; first in the transaction."""
    oldest = min((one.told for one in examples if isinstance(one, EmbeddedExample)), default=math.inf)
    if math.isinf(oldest):
        return list(examples)
    c = _invalidations.c
    since = db.execute(sa.select(c.at, c.criteria).where(c.at >= oldest)).all()
    stones = [(row.at, Criteria.read(row.criteria)) for row in since]
    return [one for one in examples if not (isinstance(one, EmbeddedExample) and _invalidated(one, stones))]


def _invalidated(given: EmbeddedExample, stones: Iterable[tuple[float, Criteria | None]]) -> bool:
    """Whether one of the criteria, None for what a newer version wrote, concerns what was told of before."""
    return any(
        given.told <= at and (criteria is None or criteria.concern_example(given.example))
        for at, criteria in stones
    )


def condition(criteria: Criteria) -> sa.ColumnElement[bool]:
    """What `Criteria.concern` says, in SQL."""
    c = _entries.c
    given = [(c.namespace, criteria.namespace), (c.model, criteria.model), (c.id, criteria.entry)]
    parts = [column == value for column, value in given if value is not None]
    if criteria.tag is not None:
        parts.append(c.id.in_(sa.select(_tags.c.entry_id).where(_tags.c.tag == criteria.tag)))
    if criteria.before is not None:
        parts.append(c.created < criteria.before)
    if criteria.documents:
        names = [
            _documents.c.document_id.in_(criteria.documents),
            _documents.c.source.in_(criteria.documents),
        ]
        resting = sa.select(_documents.c.entry_id).where(sa.or_(*names))
        if criteria.current is not None:
            resting = resting.where(_documents.c.digest.not_in(sorted(criteria.current)))
        parts.append(c.id.in_(resting))
    return sa.and_(sa.true(), *parts)


def _exclude_stores(db: sa.Connection) -> None:
    """Wait until no store is under way, and let none begin before this transaction ends."""
    if db.dialect.name == "postgresql":  # a store has read the table in its transaction, and so locked it
        db.exec_driver_sql(f"LOCK TABLE {_invalidations.name} IN ACCESS EXCLUSIVE MODE")
    # In SQLite whoever writes is alone.


def _delete(db: sa.Connection, some: dict[str, float], with_examples: bool) -> tuple[list[str], int]:
    """Delete entries, and the examples that repeat their answers; the ids deleted, and how many examples.

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
    delete(db, mine)
    return found, count


def _delete_examples(db: sa.Connection, found: list[str], mine: sa.ColumnElement[bool]) -> int:
    same = [(_examples.c[name], _entries.c[name]) for name in ("namespace", "question", "answer")]
    asked = sa.select(*(column for _, column in same)).where(mine, _entries.c.question.is_not(None))
    repeated = sa.tuple_(*(column for column, _ in same)).in_(asked)
    examples = sa.delete(_examples).where(sa.or_(_examples.c.entry_id.in_(found), repeated))
    return int(db.execute(examples).rowcount)
