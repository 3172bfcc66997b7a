"""The embedders of a database, their model files and vectors: all that the vector index is built from."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ibidem.errors import StorageUnavailable
from ibidem.storage import pgvector, tables
from ibidem.storage.engine import (
    Prepared,
    exclude_stores,
    fetch_all,
    fetch_column,
    fetch_value,
    insert_into,
    reading,
    valid_rows,
    writing,
)
from ibidem.storage.meta import set_meta
from ibidem.types import Entry, Vector, digest, point_of, to_bytes, to_vector

# Values of entry_vectors.indexed_in: the vector waits for indexing; it is missing. By any collation the first
# sorts before all generations and the second after them.
PENDING, MISSING = "", "zz"
IN_MEMORY = "memory"  # of a vector that waits for no index, as there are few enough to be searched in memory
RETENTION_SECONDS = 86_400.0  # how long the vectors of an embedder are kept after it was last used
SMALL = 5_000  # entries whose missing vectors are enqueued in one transaction
PIECE_BYTES = 2**20  # of a model file, in one row
PAGE = 1_000  # vectors read at a time: those of all at once took 4 KB each, and the process kept the memory
BATCH = 500  # vectors deleted in one transaction, so that nobody waits long for the lock
RETIRED_KEY = "forgotten:"  # prefix of the meta keys of embedders whose index collections are to be deleted

_entries, _vectors, _dead = tables.entries, tables.entry_vectors, tables.dead_points
_changes = tables.vector_changes
_embedders, _model_files = tables.embedders, tables.model_files


@dataclass(frozen=True, slots=True)
class StoredVector:
    """A stored question as the index needs it; `vector` is None while it is missing."""

    id: str
    namespace: str
    scope: str
    question: str
    vector: Vector | None
    base: str = ""

    @property
    def point(self) -> str | None:
        """The vector's point in the index."""
        return None if self.vector is None else point_of(self.namespace, self.scope, self.vector)


_QUESTION = tuple(_entries.c[name] for name in ("id", "namespace", "scope", "base", "question"))
_STORED = (
    sa.select(*_QUESTION, _vectors.c.vector, _vectors.c.point)
    .join(_vectors, _vectors.c.entry_id == _entries.c.id)
    .where(_vectors.c.embedder == sa.bindparam("embedder"))
)
_WITH_VECTORS = Prepared(
    _STORED.where(_vectors.c.point > sa.bindparam("after")).order_by(_vectors.c.point).limit(PAGE)
)
_LISTED: sa.Select[Any] = sa.select(sa.column("value")).select_from(sa.func.json_each(sa.bindparam("points")))
_AT = Prepared(_STORED.where(_vectors.c.point.in_(_LISTED)))
_unindexed = sa.or_(_vectors.c.indexed_in == PENDING, _vectors.c.indexed_in == IN_MEMORY)
_UNINDEXED_AT = Prepared(_STORED.where(_vectors.c.point.in_(_LISTED), _unindexed))
_CHANGES = Prepared(
    sa.select(_changes.c.id, _changes.c.embedder, _changes.c.point, _changes.c.added)
    .where(_changes.c.id >= sa.bindparam("since"))
    .order_by(_changes.c.id)
)


@dataclass(frozen=True, slots=True)
class VectorChanges:
    """The points of one embedder that got an entry or lost one, up to the change `last`.

    `added` says of each whether its last change was an entry that came.
    """

    last: int
    added: dict[str, bool]


def _to_stored_vector(row: Any) -> StoredVector:
    """Convert a row to its question, with the vector if it has one."""
    id_, namespace, scope, base, question, raw, point = row
    vector = None if raw is None else to_vector(raw)
    if not (id_ and scope and isinstance(question, str) and isinstance(base, str)):
        raise ValueError("a damaged row")
    stored = StoredVector(id_, namespace, scope, question, vector, base)
    if stored.point != point:  # it would be indexed again and again
        raise ValueError("a damaged row")
    return stored


def vector_row(entry: Entry, embedder: int) -> dict[str, Any]:
    """Return the columns of `entry_vectors` for an entry and its embedder; the vector may be missing."""
    return {
        "entry_id": entry.id,
        "embedder": embedder,
        "vector": None if entry.vector is None else to_bytes(entry.vector),
        "point": entry.point,
        "indexed_in": MISSING if entry.vector is None else PENDING,
    }


@lru_cache(maxsize=16)
def embedder_id(fingerprint: str) -> int:
    """Return the id of an embedder: 63 bits, the same in every database."""
    return int.from_bytes(blake2b(fingerprint.encode(), digest_size=8).digest(), "big") >> 1


# Within the caller's transaction.


def put_vector(db: sa.Connection, entry: Entry, embedder: int) -> None:
    """Store the entry's vector and enqueue it for all other embedders.

    An existing vector stays: the same id means the same question.
    """
    mine, others = _put_statements(db.dialect.name)
    row = vector_row(entry, embedder)
    inside = db.dialect.name == "postgresql" and pgvector.is_used(db) and entry.vector is not None
    db.execute(mine, {**row, "indexed_in": pgvector.GENERATION} if inside else row)
    db.execute(others, {"of": entry.id, "by": embedder})
    if inside and entry.vector is not None:
        of = (entry.id, embedder, entry.namespace, entry.scope, entry.vector, entry.base)
        pgvector.add(db, [pgvector.embedding_row(*of)])


@lru_cache
def _put_statements(dialect: str) -> tuple[Any, Any]:
    """Build the two statements of `put_vector`, once: each store runs them."""
    c = _vectors.c
    insert = insert_into(dialect)(_vectors)
    changes = {name: insert.excluded[name] for name in ("vector", "point", "indexed_in")}
    better = c.vector.is_(None) & insert.excluded.vector.is_not(None)
    key = [c.entry_id, c.embedder]
    mine = insert.on_conflict_do_update(index_elements=key, set_=changes, where=better)
    of, missing = sa.bindparam("of", type_=sa.String), sa.literal(MISSING, sa.String)
    wanted = sa.select(of, _embedders.c.id, missing).where(
        _embedders.c.id != sa.bindparam("by"), _embedders.c.state != "retired"
    )
    others = insert_into(dialect)(_vectors).from_select(["entry_id", "embedder", "indexed_in"], wanted)
    return mine, others.on_conflict_do_nothing()


def enqueue_missing(db: sa.Connection, embedder: int, first: str = "") -> None:
    """Enqueue the missing vectors of an embedder, for entries whose id begins with `first`."""
    entries = _entries.c
    number, missing = sa.literal(embedder, sa.BigInteger), sa.literal(MISSING, sa.String)
    wanted = sa.select(entries.id, number, missing).where(entries.semantic, entries.id.startswith(first))
    insert = insert_into(db.dialect.name)(_vectors)
    enqueue = insert.from_select(["entry_id", "embedder", "indexed_in"], wanted)
    db.execute(enqueue.on_conflict_do_nothing())


def delete_vectors(db: sa.Connection, ids: sa.Select[tuple[str]]) -> None:
    """Delete the vectors of these entries, of all embedders; the indexes delete their points later."""
    c = _vectors.c
    points = sa.select(c.embedder, c.point).where(c.entry_id.in_(ids), c.point.is_not(None)).distinct()
    dead = insert_into(db.dialect.name)(_dead).from_select(["embedder", "point"], points)
    db.execute(dead.on_conflict_do_nothing())
    db.execute(sa.delete(_vectors).where(c.entry_id.in_(ids)))


def _live_points(db: sa.Connection, embedder: int, points: Sequence[str]) -> set[str]:
    c = _vectors.c
    return set(db.scalars(sa.select(c.point).distinct().where(c.embedder == embedder, c.point.in_(points))))


class VectorTable:
    """The rows of `entry_vectors` of one embedder. Every method raises `StorageError` when it fails.

    `lists_changes` is whether the database lists its last changes: SQLite does. `pgvector` is whether it
    searches the vectors itself.

    Args:
        engine: Of the database.
        fingerprint: Of the embedder.
    """

    def __init__(self, engine: sa.Engine, fingerprint: str) -> None:
        self._engine, self.fingerprint = engine, fingerprint
        self.embedder = embedder_id(fingerprint)
        self._mine = _vectors.c.embedder == self.embedder
        self._me = {"embedder": self.embedder}
        self.lists_changes = engine.dialect.name == "sqlite"
        self.pgvector = pgvector.is_used(engine)

    def embeddings(self) -> pgvector.EmbeddingTable:
        """Return what PostgreSQL searches."""
        return pgvector.EmbeddingTable(self._engine, self.embedder)

    def unindexed(self, generation: str, limit: int, other: str = "") -> list[StoredVector]:
        """Return questions with a vector that is not in the index of this generation, nor of the other."""
        held = _vectors.c.indexed_in
        low, high = sorted((generation, other or generation))
        # Ranges instead of "!=", each by itself, and no order: else all rows are read, at every poll.
        between, above = sa.and_(held > low, held < high), sa.and_(held > high, held < MISSING)
        found: list[StoredVector] = []
        for where in (held < low, between, above):
            found += self._stored(where, limit - len(found)) if limit > len(found) else []
        return found

    def indexed(self, generation: str, limit: int, other: str = "") -> list[StoredVector]:
        """Return questions in the index of this generation, or the other, in no order."""
        return self._stored(_vectors.c.indexed_in.in_((generation, other or generation)), limit)

    def missing(self, limit: int) -> list[StoredVector]:
        """Return questions without a vector, in no order."""
        return self._stored(_vectors.c.indexed_in == MISSING, limit)

    def with_vectors(self) -> Iterator[StoredVector]:
        """Read all questions that have a vector, a page at a time; of those at one point one at least."""
        after = ""
        while rows := _WITH_VECTORS.rows(self._engine, {**self._me, "after": after}):
            yield from valid_rows(_to_stored_vector, rows)
            after = rows[-1][-1]

    def at(self, points: Sequence[str]) -> list[StoredVector]:
        """Return the questions at these points."""
        if not self.lists_changes:
            parts = (points[first : first + BATCH] for first in range(0, len(points), BATCH))
            return [row for part in parts for row in self._stored(_vectors.c.point.in_(part), None)]
        values = {**self._me, "points": json.dumps(points)}
        return list(valid_rows(_to_stored_vector, _AT.rows(self._engine, values)))

    def unindexed_at(self, points: Sequence[str]) -> list[StoredVector]:
        """Return the questions at these points that no index holds. SQLite only."""
        values = {**self._me, "points": json.dumps(points)}
        return list(valid_rows(_to_stored_vector, _UNINDEXED_AT.rows(self._engine, values)))

    def last_change(self) -> int:
        """Return the number of the last change of any vector; 0 if there was none."""
        return fetch_value(self._engine, sa.select(sa.func.max(_changes.c.id))) or 0

    def changes(self, since: int) -> VectorChanges | None:
        """Return what changed after this change; None if not all of it is known any more. SQLite only."""
        rows = _CHANGES.rows(self._engine, {"since": since})
        if not rows:
            return VectorChanges(0, {}) if since == 0 else None
        if rows[0][0] != max(since, 1):
            return None
        mine = (row for row in rows if row[0] > since and row[1] == self.embedder)
        return VectorChanges(rows[-1][0], {row[2]: bool(row[3]) for row in mine})

    def _stored(self, where: sa.ColumnElement[bool], limit: int | None) -> list[StoredVector]:
        rows = fetch_all(self._engine, _STORED.where(where).limit(limit).params(self._me))
        return list(valid_rows(_to_stored_vector, rows))

    def count(self, limit: int | None = None) -> int:
        """Count the entries that can be found by meaning, with vectors or without; up to the limit."""
        return self._count(sa.select(_vectors.c.entry_id).where(self._mine).limit(limit))

    def count_missing(self) -> int:
        """Count the entries whose vector is missing."""
        missing = _vectors.c.indexed_in == MISSING
        return self._count(sa.select(_vectors.c.entry_id).where(self._mine, missing))

    def count_pending(self) -> int:
        """Count the entries that are not in the index yet, with vectors or without."""
        held = _vectors.c.indexed_in
        pending = held != pgvector.GENERATION if self.pgvector else held.in_((PENDING, MISSING))
        return self._count(sa.select(_vectors.c.entry_id).where(self._mine, pending))

    def count_indexed(self, generation: str, other: str = "") -> int:
        """Count the points that the index of this generation, or the other, should hold."""
        held = _vectors.c.indexed_in.in_((generation, other or generation))
        return self._count(sa.select(_vectors.c.point).distinct().where(self._mine, held))

    def count_dead(self) -> int:
        """Count the dead points that the index has not deleted yet."""
        return self._count(sa.select(_dead.c.point).where(_dead.c.embedder == self.embedder))

    def _count(self, query: sa.Select[Any]) -> int:
        return fetch_value(self._engine, sa.select(sa.func.count()).select_from(query.subquery())) or 0

    def points(self, after: str, limit: int) -> list[tuple[str, str]]:
        """Return points after this one, in order, each with the generation that should hold it."""
        c = _vectors.c
        query = sa.select(c.point, c.indexed_in).where(self._mine, c.point > after)
        rows = fetch_all(self._engine, query.order_by(c.point).limit(limit))
        return [(row.point, row.indexed_in) for row in rows]

    def all_points(self) -> set[str]:
        """Return all points."""
        query = sa.select(_vectors.c.point).where(self._mine, _vectors.c.point.is_not(None))
        return set(fetch_column(self._engine, query))

    def set_vectors(self, rows: Sequence[StoredVector]) -> None:
        """Store vectors of entries that lack them; without pgvector they wait for indexing."""
        embedded = {row.id: row for row in rows if row.vector is not None}
        if not embedded:
            return
        c = _vectors.c
        missing = sa.select(c.entry_id).where(self._mine, c.entry_id.in_(embedded), c.indexed_in == MISSING)
        # What others hold locked is being deleted or replaced: waiting for it could be a deadlock.
        missing = missing.order_by(c.entry_id).with_for_update(skip_locked=True)
        change = sa.update(_vectors).where(self._mine, c.entry_id == sa.bindparam("of"))
        held = pgvector.GENERATION if self.pgvector else PENDING
        values = change.values(vector=sa.bindparam("bytes"), point=sa.bindparam("at"), indexed_in=held)
        with writing(self._engine) as db:
            found = [embedded[id_] for id_ in db.scalars(missing)]
            changes = [
                {"of": row.id, "bytes": to_bytes(row.vector), "at": row.point}
                for row in found
                if row.vector is not None
            ]
            if changes:
                db.execute(values, changes)
            if self.pgvector:
                self._enter(db, found)

    def enter(self, rows: Sequence[StoredVector]) -> int:
        """Have PostgreSQL search vectors that were stored without pgvector; return how many."""
        c, stored = _vectors.c, {row.id: row for row in rows}
        others = sa.select(c.entry_id).where(
            self._mine, c.entry_id.in_(stored), c.indexed_in.not_in((MISSING, pgvector.GENERATION))
        )
        with writing(self._engine) as db:
            ids = db.scalars(others.order_by(c.entry_id).with_for_update(skip_locked=True)).all()
            self._enter(db, [stored[id_] for id_ in ids])
            moved = sa.update(_vectors).where(self._mine, c.entry_id.in_(ids))
            db.execute(moved.values(indexed_in=pgvector.GENERATION))
        return len(ids)

    def _enter(self, db: sa.Connection, rows: Sequence[StoredVector]) -> None:
        pgvector.add(
            db,
            [
                pgvector.embedding_row(row.id, self.embedder, row.namespace, row.scope, row.vector, row.base)
                for row in rows
                if row.vector is not None
            ],
        )

    def set_exact_only(self, ids: Sequence[str]) -> None:
        """Delete the rows of questions that the embedder cannot embed: they are found exactly only."""
        with writing(self._engine) as db:
            db.execute(sa.delete(_vectors).where(self._mine, _vectors.c.entry_id.in_(ids)))

    def mark_indexed(self, points: Sequence[str], generation: str) -> None:
        """Record that the index of this generation holds these points.

        Points whose entries were deleted meanwhile are recorded as dead.
        """
        where = sa.and_(self._mine, _vectors.c.point.in_(points))
        with writing(self._engine) as db:
            db.execute(sa.update(_vectors).where(where).values(indexed_in=generation))
            if dead := set(points) - _live_points(db, self.embedder, points):
                insert = insert_into(db.dialect.name)(_dead).on_conflict_do_nothing()
                db.execute(insert, [{"embedder": self.embedder, "point": point} for point in dead])

    def mark_in_memory(self) -> bool:
        """Record that a batch of what waits for indexing waits for no index; whether there may be more."""
        c = _vectors.c
        query = sa.select(c.entry_id).where(self._mine, c.indexed_in == PENDING).limit(BATCH)
        ids = fetch_column(self._engine, query)
        if ids:
            where = sa.and_(self._mine, c.entry_id.in_(ids), c.indexed_in == PENDING)
            with writing(self._engine) as db:
                db.execute(sa.update(_vectors).where(where).values(indexed_in=IN_MEMORY))
        return len(ids) == BATCH

    def mark_unindexed(self, points: Sequence[str]) -> None:
        """Record that the index does not hold these points: they wait for indexing again."""
        where = sa.and_(self._mine, _vectors.c.point.in_(points))
        with writing(self._engine) as db:
            db.execute(sa.update(_vectors).where(where).values(indexed_in=PENDING))

    def mark_all_unindexed(self, generation: str) -> None:
        """Record that the index of this generation holds nothing, a batch at a time."""
        c = _vectors.c
        some = sa.select(c.entry_id).where(self._mine, c.indexed_in == generation).limit(BATCH)
        more = True
        while more:
            with writing(self._engine) as db:
                ids = list(db.scalars(some))
                where = sa.and_(self._mine, c.entry_id.in_(ids))
                db.execute(sa.update(_vectors).where(where).values(indexed_in=PENDING))
            more = len(ids) == BATCH

    def live_points(self, points: Sequence[str]) -> set[str]:
        """Return those of these points that some entry still has."""
        with reading(self._engine) as db:
            return _live_points(db, self.embedder, points)

    def dead_points(self, limit: int) -> list[str]:
        """Return points that deleted entries left in the index."""
        dead = sa.select(_dead.c.point).where(_dead.c.embedder == self.embedder)
        return list(fetch_column(self._engine, dead.limit(limit)))

    def delete_dead(self, points: Sequence[str]) -> None:
        """Delete the record of these dead points: the index has deleted them."""
        with writing(self._engine) as db:
            db.execute(sa.delete(_dead).where(_dead.c.embedder == self.embedder, _dead.c.point.in_(points)))

    def delete_all_dead(self) -> None:
        """Delete the record of all dead points: the index is empty, or will be compared with the database."""
        with writing(self._engine) as db:
            db.execute(sa.delete(_dead).where(_dead.c.embedder == self.embedder))


class EmbedderTable:
    """The table `embedders`. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def register(self, fingerprint: str, seconds: float = RETENTION_SECONDS) -> None:
        """Keep the vectors of this embedder at least so long; for a new one, enqueue all its vectors."""
        c, until = _embedders.c, time.time() + seconds
        mine = c.id == embedder_id(fingerprint)
        kept = fetch_value(self._engine, sa.select(c.until).where(mine, c.state == "used"))
        if kept is None:
            self._add(fingerprint, until)
        elif kept < until - seconds / 2:
            change = sa.update(_embedders).where(mine, c.until < until)
            with contextlib.suppress(StorageUnavailable), writing(self._engine) as db:  # then the next time
                db.execute(change.values(until=until))

    def _add(self, fingerprint: str, until: float) -> None:
        """Enqueue a vector of every entry; the stores that begin now enqueue theirs themselves."""
        c, number = _embedders.c, embedder_id(fingerprint)
        row = {"id": number, "fingerprint": fingerprint, "until": until, "state": "new"}
        insert = insert_into(self._engine.dialect.name)(_embedders).values(row)
        changes = {"until": until, "state": "new"}
        with writing(self._engine) as db:
            exclude_stores(db, _embedders)
            db.execute(insert.on_conflict_do_update(index_elements=[c.id], set_=changes))
            db.execute(sa.delete(tables.meta).where(tables.meta.c.key == RETIRED_KEY + digest(fingerprint)))
        some = sa.select(_entries.c.id).limit(SMALL + 1).subquery()
        small = fetch_value(self._engine, sa.select(sa.func.count()).select_from(some)) <= SMALL
        for first in ("",) if small else "0123456789abcdef":  # in parts, so that stores do not wait long
            with writing(self._engine) as db:
                enqueue_missing(db, number, first)
        with writing(self._engine) as db:
            db.execute(sa.update(_embedders).where(c.id == number, c.state == "new").values(state="used"))

    def registered(self) -> dict[str, float]:
        """Return the fingerprints of all embedders, and until when each is kept."""
        c = _embedders.c
        return {
            row.fingerprint: row.until for row in fetch_all(self._engine, sa.select(c.fingerprint, c.until))
        }

    def delete_unused(self, keep: Collection[str]) -> bool:
        """Delete a batch of the vectors of unused embedders; return whether there may be more.

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
            db.execute(sa.delete(_model_files).where(_model_files.c.model == digest(fingerprint)))
            db.execute(sa.delete(_embedders).where(_embedders.c.id == number))
            set_meta(db, RETIRED_KEY + digest(fingerprint), "")
        if pgvector.is_used(self._engine):
            pgvector.drop_index(self._engine, number)
        return True

    def _retire(self, keep: Collection[str]) -> int | None:
        """Return the id of an unused embedder; from now on no vectors are enqueued for it."""
        c = _embedders.c
        unused = c.fingerprint.not_in(list(keep)) & ((c.state == "retired") | (c.until < time.time()))
        rows = fetch_all(self._engine, sa.select(c.id, c.state).where(unused).limit(1))
        if not rows or rows[0].state == "retired":
            return int(rows[0].id) if rows else None
        number = int(rows[0].id)
        with writing(self._engine) as db:
            exclude_stores(db, _embedders)
            change = sa.update(_embedders).where(c.id == number, c.until < time.time())
            done = db.execute(change.values(state="retired"))
        return number if done.rowcount else None


class ModelFilesTable:
    """The table `model_files`. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def put(self, model: str, file: Path) -> None:
        """Store one file of a model, replacing what is stored of it."""
        insert, pieces = insert_into(self._engine.dialect.name)(_model_files), 0
        with file.open("rb") as content:
            while data := content.read(PIECE_BYTES):
                row = insert.values(model=model, file=file.name, part=pieces, data=data)
                key = [_model_files.c.model, _model_files.c.file, _model_files.c.part]
                with writing(self._engine) as db:
                    db.execute(row.on_conflict_do_update(index_elements=key, set_={"data": data}))
                pieces += 1
        longer = sa.delete(_model_files).where(_of_file(model, file.name), _model_files.c.part >= pieces)
        with writing(self._engine) as db:
            db.execute(longer)

    def names(self, model: str) -> set[str]:
        """Return the names of the files stored for a model."""
        return set(
            fetch_column(
                self._engine, sa.select(_model_files.c.file).where(_model_files.c.model == model).distinct()
            )
        )

    def delete(self, model: str) -> None:
        """Delete all files of a model."""
        with writing(self._engine) as db:
            db.execute(sa.delete(_model_files).where(_model_files.c.model == model))

    def pieces(self, model: str, file: str) -> Iterator[bytes]:
        """Yield the content of one file."""
        query = sa.select(_model_files.c.data).where(
            _of_file(model, file), _model_files.c.part == sa.bindparam("part")
        )
        with reading(self._engine) as db:
            part = 0
            while (data := db.scalar(query, {"part": part})) is not None:
                yield data
                part += 1


def _of_file(model: str, file: str) -> sa.ColumnElement[bool]:
    return sa.and_(_model_files.c.model == model, _model_files.c.file == file)
