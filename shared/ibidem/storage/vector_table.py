"""The vectors of one embedder in the truth: which index holds them, which are still to be made."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from ibidem.entry import Entry, to_bytes
from ibidem.storage import tables
from ibidem.storage.columns import sound
from ibidem.storage.database import insert_into, reading, writing
from ibidem.storage.embedders import number_of
from ibidem.storage.removal import alive, note_orphans
from ibidem.storage.rows import LACKING, WAITING, StoredVector, to_stored_vector, vector_row

_entries, _vectors, _dead, _embedders = (
    tables.entries,
    tables.entry_vectors,
    tables.dead_points,
    tables.embedders,
)


def put_vector(db: sa.Connection, entry: Entry, embedder: int) -> None:
    """Note the entry's vector, and that all other embedders are to make theirs; in the caller's transaction.

    A vector that is there stays: the same id means the same question.
    """
    mine, others = _puts(db.dialect.name)
    db.execute(mine, vector_row(entry, embedder))
    db.execute(others, {"of": entry.id, "by": embedder})


@lru_cache
def _puts(dialect: str) -> tuple[Any, Any]:
    """The two statements of `put_vector`, made once: each store runs them."""
    c = _vectors.c
    insert = insert_into(dialect)(_vectors)
    changes = {name: insert.excluded[name] for name in ("vector", "point", "indexed_in")}
    better = c.vector.is_(None) & insert.excluded.vector.is_not(None)
    key = [c.entry_id, c.embedder]
    mine = insert.on_conflict_do_update(index_elements=key, set_=changes, where=better)
    of, lacking = sa.bindparam("of", type_=sa.String), sa.literal(LACKING, sa.String)
    wanted = sa.select(of, _embedders.c.id, lacking).where(
        _embedders.c.id != sa.bindparam("by"), _embedders.c.state != "retired"
    )
    others = insert_into(dialect)(_vectors).from_select(["entry_id", "embedder", "indexed_in"], wanted)
    return mine, others.on_conflict_do_nothing()


class VectorTable:
    """The rows of `entry_vectors` of one embedder. Every method raises `StorageError` when it fails.

    Args:
        engine: Of the database.
        fingerprint: Of the embedder.
    """

    def __init__(self, engine: sa.Engine, fingerprint: str) -> None:
        self._engine, self.fingerprint = engine, fingerprint
        self.number = number_of(fingerprint)
        self._mine = _vectors.c.embedder == self.number

    def unindexed(self, generation: str, limit: int, other: str = "") -> list[StoredVector]:
        """Questions with a vector that the index of this generation, or the other, lacks; in no order."""
        held = _vectors.c.indexed_in
        low, high = sorted((generation, other or generation))
        # Ranges instead of "!=", each by itself, and no order: else all rows are read, at every poll.
        between, above = sa.and_(held > low, held < high), sa.and_(held > high, held < LACKING)
        found: list[StoredVector] = []
        for where in (held < low, between, above):
            found += self._stored(where, limit - len(found)) if limit > len(found) else []
        return found

    def indexed(self, generation: str, limit: int, other: str = "") -> list[StoredVector]:
        """Questions that the index of this generation, or the other, holds, in no order."""
        return self._stored(_vectors.c.indexed_in.in_((generation, other or generation)), limit)

    def lacking(self, limit: int) -> list[StoredVector]:
        """Questions that have no vector yet, in no order."""
        return self._stored(_vectors.c.indexed_in == LACKING, limit)

    def _stored(self, where: sa.ColumnElement[bool], limit: int) -> list[StoredVector]:
        e = _entries.c
        query = sa.select(e.id, e.namespace, e.scope, e.question, _vectors.c.vector, _vectors.c.point)
        query = query.join(_vectors, _vectors.c.entry_id == e.id).where(self._mine, where)
        with reading(self._engine) as db:
            rows = db.execute(query.limit(limit)).all()
        return list(sound(to_stored_vector, rows))

    def count(self, most: int | None = None) -> int:
        """How many entries can be found by meaning, with vectors or without; counted up to `most`."""
        return self._count(sa.select(_vectors.c.entry_id).where(self._mine).limit(most))

    def count_lacking(self) -> int:
        """How many of them have no vector yet."""
        lacking = _vectors.c.indexed_in == LACKING
        return self._count(sa.select(_vectors.c.entry_id).where(self._mine, lacking))

    def count_waiting(self) -> int:
        """How many of them are not in the index yet, with vectors or without."""
        waiting = _vectors.c.indexed_in.in_((WAITING, LACKING))
        return self._count(sa.select(_vectors.c.entry_id).where(self._mine, waiting))

    def count_indexed(self, generation: str, other: str = "") -> int:
        """How many points the index of this generation, or the other, should hold."""
        held = _vectors.c.indexed_in.in_((generation, other or generation))
        return self._count(sa.select(_vectors.c.point).distinct().where(self._mine, held))

    def count_dead(self) -> int:
        """How many dead points wait for the index to forget them."""
        return self._count(sa.select(_dead.c.point).where(_dead.c.embedder == self.number))

    def _count(self, query: sa.Select[Any]) -> int:
        with reading(self._engine) as db:
            return db.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0

    def points(self, after: str, limit: int) -> list[tuple[str, str]]:
        """Points that the index should hold with the generations that do, in order of the points."""
        c = _vectors.c
        query = sa.select(c.point, c.indexed_in).where(self._mine, c.point > after)
        with reading(self._engine) as db:
            return [(row.point, row.indexed_in) for row in db.execute(query.order_by(c.point).limit(limit))]

    def set_vectors(self, rows: Sequence[StoredVector]) -> None:
        """Store embeddings made after the fact, of entries that lack them; they wait for indexing."""
        made = {row.id: row for row in rows if row.vector is not None}
        if not made:
            return
        c = _vectors.c
        lacking = sa.select(c.entry_id).where(self._mine, c.entry_id.in_(made), c.indexed_in == LACKING)
        # What others hold locked is being deleted or replaced: waiting for it could be a deadlock.
        lacking = lacking.order_by(c.entry_id).with_for_update(skip_locked=True)
        change = sa.update(_vectors).where(self._mine, c.entry_id == sa.bindparam("of"))
        values = change.values(vector=sa.bindparam("bytes"), point=sa.bindparam("at"), indexed_in=WAITING)
        with writing(self._engine) as db:
            changes = [
                {"of": row.id, "bytes": to_bytes(row.vector), "at": row.point}
                for row in (made[id_] for id_ in db.scalars(lacking))
                if row.vector is not None
            ]
            if changes:
                db.execute(values, changes)

    def set_exact_only(self, ids: Sequence[str]) -> None:
        """The embedder cannot compare these questions by meaning; they get no vector."""
        with writing(self._engine) as db:
            db.execute(sa.delete(_vectors).where(self._mine, _vectors.c.entry_id.in_(ids)))

    def mark_indexed(self, points: Sequence[str], generation: str) -> None:
        """Note that the index of this generation holds these points; those that nobody has are dead."""
        where = sa.and_(self._mine, _vectors.c.point.in_(points))
        with writing(self._engine) as db:
            db.execute(sa.update(_vectors).where(where).values(indexed_in=generation))
            note_orphans(db, self.number, points)

    def index_again(self, points: Sequence[str]) -> None:
        """The index does not hold these points."""
        where = sa.and_(self._mine, _vectors.c.point.in_(points))
        with writing(self._engine) as db:
            db.execute(sa.update(_vectors).where(where).values(indexed_in=WAITING))

    def dead_points(self, limit: int) -> list[str]:
        """Points of the index that deleted entries left behind."""
        with reading(self._engine) as db:
            dead = sa.select(_dead.c.point).where(_dead.c.embedder == self.number)
            return list(db.scalars(dead.limit(limit)))

    def alive_points(self, points: Sequence[str]) -> set[str]:
        """Those of these points that some entry still has."""
        with reading(self._engine) as db:
            return alive(db, self.number, points)

    def forget_dead(self) -> None:
        """Forget all dead points: the index is empty, or is compared with the truth when it is opened."""
        with writing(self._engine) as db:
            db.execute(sa.delete(_dead).where(_dead.c.embedder == self.number))

    def bury(self, points: Sequence[str]) -> None:
        """The index has forgotten these points."""
        with writing(self._engine) as db:
            db.execute(sa.delete(_dead).where(_dead.c.embedder == self.number, _dead.c.point.in_(points)))
