"""The vectors of one embedder in the truth: which index holds them, which are still to be made."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import sqlalchemy as sa

from ibidem.errors import StorageUnavailable
from ibidem.storage import tables
from ibidem.storage.columns import sound
from ibidem.storage.deletion import alive, note_orphans
from ibidem.storage.engine import insert_into, reading, writing
from ibidem.storage.meta import note
from ibidem.storage.rows import LACKING, WAITING, StoredVector, to_stored_vector, vector_row
from ibidem.types import Entry, digest, to_bytes

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


USED_SECONDS = 86_400.0  # so long the vectors of an embedder are kept after somebody used it
FEW = 5_000  # entries that are gone through in one transaction
BATCH = 500  # vectors deleted in one transaction, so that nobody waits long for the lock
FORGOTTEN = "forgotten:"  # begins the keys that say whose collections of the index are to be deleted

_embedders, _vectors, _dead = tables.embedders, tables.entry_vectors, tables.dead_points


def number_of(fingerprint: str) -> int:
    """The id of an embedder: 63 bits, the same in every database."""
    return int.from_bytes(blake2b(fingerprint.encode(), digest_size=8).digest(), "big") >> 1


def demand(db: sa.Connection, embedder: int, first: str = "") -> None:
    """Note of the entries whose ids begin so that this embedder is to make the vectors that there are not."""
    entries = tables.entries.c
    number, lacking = sa.literal(embedder, sa.BigInteger), sa.literal(LACKING, sa.String)
    wanted = sa.select(entries.id, number, lacking).where(entries.semantic, entries.id.startswith(first))
    insert = insert_into(db.dialect.name)(_vectors)
    demanded = insert.from_select(["entry_id", "embedder", "indexed_in"], wanted)
    db.execute(demanded.on_conflict_do_nothing())


class Embedders:
    """The table `embedders`. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def use(self, fingerprint: str, seconds: float = USED_SECONDS) -> None:
        """Keep the vectors of this embedder for so long at least; at first of all, have them made."""
        c, until = _embedders.c, time.time() + seconds
        mine = c.id == number_of(fingerprint)
        with reading(self._engine) as db:
            kept = db.scalar(sa.select(c.until).where(mine, c.state == "used"))
        if kept is None:
            self._register(fingerprint, until)
        elif kept < until - seconds / 2:
            change = sa.update(_embedders).where(mine, c.until < until)
            with contextlib.suppress(StorageUnavailable), writing(self._engine) as db:  # then the next time
                db.execute(change.values(until=until))

    def _register(self, fingerprint: str, until: float) -> None:
        """Have it make a vector of every entry; the stores that begin now see to theirs themselves."""
        c, number = _embedders.c, number_of(fingerprint)
        row = {"id": number, "fingerprint": fingerprint, "until": until, "state": "new"}
        insert = insert_into(self._engine.dialect.name)(_embedders).values(row)
        changes = {"until": until, "state": "new"}
        with writing(self._engine) as db:
            _exclude_stores(db)
            db.execute(insert.on_conflict_do_update(index_elements=[c.id], set_=changes))
            db.execute(sa.delete(tables.meta).where(tables.meta.c.key == FORGOTTEN + digest(fingerprint)))
        with reading(self._engine) as db:
            some = sa.select(tables.entries.c.id).limit(FEW + 1).subquery()
            few = (db.scalar(sa.select(sa.func.count()).select_from(some)) or 0) <= FEW
        for first in ("",) if few else "0123456789abcdef":  # in parts, so that stores do not wait long
            with writing(self._engine) as db:
                demand(db, number, first)
        with writing(self._engine) as db:
            db.execute(sa.update(_embedders).where(c.id == number, c.state == "new").values(state="used"))

    def known(self) -> dict[str, float]:
        """The fingerprints of all that are registered, and until when they are kept."""
        c = _embedders.c
        with reading(self._engine) as db:
            return {row.fingerprint: row.until for row in db.execute(sa.select(c.fingerprint, c.until))}

    def forget(self, keep: Collection[str]) -> bool:
        """Delete a batch of the vectors of embedders that nobody uses; returns whether there may be more.

        Args:
            keep: Fingerprints of those that are kept in any case.
        """
        if not (number := self._retire(keep)):
            return False
        mine = sa.select(_vectors.c.entry_id).where(_vectors.c.embedder == number).limit(BATCH)
        with writing(self._engine) as db:
            fingerprint = db.scalar(
                sa.select(_embedders.c.fingerprint).where(
                    _embedders.c.id == number, _embedders.c.state == "retired"
                )
            )
            if fingerprint is None:  # it is used again
                return True
            found = list(db.scalars(mine))
            of = _vectors.c.embedder == number
            db.execute(sa.delete(_vectors).where(of, _vectors.c.entry_id.in_(found)))
            if len(found) == BATCH:
                return True
            db.execute(sa.delete(_dead).where(_dead.c.embedder == number))
            db.execute(sa.delete(tables.model_files).where(tables.model_files.c.model == digest(fingerprint)))
            db.execute(sa.delete(_embedders).where(_embedders.c.id == number))
            note(db, FORGOTTEN + digest(fingerprint), "")
        return True

    def _retire(self, keep: Collection[str]) -> int | None:
        """One that is not needed any more; nobody makes vectors for it from now on."""
        c = _embedders.c
        unused = c.fingerprint.not_in(list(keep)) & ((c.state == "retired") | (c.until < time.time()))
        with reading(self._engine) as db:
            row = db.execute(sa.select(c.id, c.state).where(unused).limit(1)).first()
        if row is None or row.state == "retired":
            return None if row is None else int(row.id)
        with writing(self._engine) as db:
            _exclude_stores(db)
            change = sa.update(_embedders).where(c.id == row.id, c.until < time.time())
            done = db.execute(change.values(state="retired"))
        return int(row.id) if done.rowcount else None


def _exclude_stores(db: sa.Connection) -> None:
    """Wait until no store is under way, and let none begin before this transaction ends."""
    if db.dialect.name == "postgresql":  # a store has read the table in its transaction, and so locked it
        db.exec_driver_sql(f"LOCK TABLE {_embedders.name} IN ACCESS EXCLUSIVE MODE")
    # In SQLite whoever writes is alone.
