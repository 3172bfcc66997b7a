"""The truth: entries, their documents and the logs, in SQL. Every answer served was confirmed here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from ibidem import tables
from ibidem.database import reading, upsert_entry, writing
from ibidem.engines import breaker_of, open_engine
from ibidem.entry import Entry, Source, to_bytes
from ibidem.errors import StorageError, StorageUnavailable
from ibidem.eviction import UNBOUNDED, Bounds
from ibidem.example_table import ExampleTable
from ibidem.invalidating import Invalidations
from ibidem.logs import JudgementTable, LookupTable
from ibidem.migrations import prepare
from ibidem.notes import Notes
from ibidem.removal import Removal, delete, note_orphans
from ibidem.rows import (
    WAITING,
    StoredVector,
    Totals,
    entry_row,
    source_rows,
    tag_rows,
    to_entry,
    to_stored_vector,
)
from ibidem.stored import StoredTable

NEAR_LIMIT = 64  # candidates of one lookup; one wording over many document sets has many entries

_entries, _documents, _tags = tables.entries, tables.entry_documents, tables.entry_tags
_ENTRY = [column for column in _entries.c if column.name not in ("vector", "embedder", "indexed_in")]
_ONE = sa.select(*_ENTRY).where(_entries.c.id == sa.bindparam("id"))
_NEAR = (
    sa.select(*_ENTRY, _entries.c.vector)
    .where(
        _entries.c.point.in_(sa.bindparam("points", expanding=True)),
        _entries.c.namespace == sa.bindparam("namespace"),
        _entries.c.scope == sa.bindparam("scope"),
        _entries.c.embedder == sa.bindparam("embedder"),
        _entries.c.semantic,
    )
    .order_by(_entries.c.created.desc())
    .limit(NEAR_LIMIT)
)
_SOURCES = sa.select(_documents).where(_documents.c.entry_id.in_(sa.bindparam("ids", expanding=True)))


class Records(Notes):
    """Access to one database; `lookups`, `examples` and `judgements` are its logs, the rest deletes.

    Args:
        url: SQLAlchemy URL.

    Raises:
        StorageError: The database cannot be opened, or was made by a newer Ibidem. Every method raises it
            when the database fails.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self.lookups, self.examples = LookupTable(self._engine), ExampleTable(self._engine)
        self.judgements, self.removal = JudgementTable(self._engine), Removal(self._engine)
        self.invalidations, self.stored = Invalidations(self._engine), StoredTable(self._engine)
        try:
            prepare(self._engine)
        except StorageError as error:
            self._engine.dispose()
            advice = "move it away to begin a new one, or use another path"
            if isinstance(error, StorageUnavailable):
                advice = "the disk may be full, another program may hold it, or its server is down"
            raise StorageError(f"cannot open the database {self.url}: {error}; {advice}") from error

    @property
    def url(self) -> str:
        """Where the database is, without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    def after_fork(self) -> None:
        """Forget the parent's connections; they are not ours to close."""
        self._engine.dispose(close=False)
        if breaker := breaker_of(self._engine):
            breaker.after_fork()

    def close(self) -> None:
        """Close all connections."""
        if breaker := breaker_of(self._engine):
            breaker.stop()
        self._engine.dispose()

    def get(self, entry_id: str) -> Entry | None:
        """The entry of this id, without its sources and vector."""
        with reading(self._engine) as db:
            row = db.execute(_ONE, {"id": entry_id}).first()
        return None if row is None else to_entry(row._mapping)

    def near(
        self, points: Sequence[str], *, namespace: str, scope: str, embedder: str, documents: str
    ) -> list[Entry]:
        """The newest entries at these points of this namespace, scope and embedder, with vectors.

        Those that rest on other `documents` (a digest of the set) come with their sources.
        """
        if not points:
            return []
        wanted = {"points": list(points), "namespace": namespace, "scope": scope, "embedder": embedder}
        with reading(self._engine) as db:
            rows = db.execute(_NEAR, wanted).all()
            sources = self._sources(db, [row.id for row in rows if row.documents != documents])
        return [to_entry(row._mapping, sources.get(row.id, ()), row.vector) for row in rows]

    def _sources(self, db: sa.Connection, ids: list[str]) -> dict[str, tuple[Source, ...]]:
        found: dict[str, tuple[Source, ...]] = {}
        for row in db.execute(_SOURCES, {"ids": ids}) if ids else ():
            source = Source(row.document_id, row.digest, row.supports, row.source)
            found[row.entry_id] = (*found.get(row.entry_id, ()), source)
        return found

    def kind_in_scope(self, namespace: str, scope: str) -> bool | None:
        """Whether this namespace and scope has answers to compare by meaning; None if it has none at all."""
        query = sa.select(sa.func.max(sa.cast(_entries.c.semantic, sa.Integer)))
        with reading(self._engine) as db:
            found = db.scalar(query.where(_entries.c.namespace == namespace, _entries.c.scope == scope))
        return None if found is None else bool(found)

    def newest(self, limit: int = 20, namespace: str | None = None) -> list[Entry]:
        """The newest entries, newest first, with their sources."""
        query = sa.select(*_ENTRY).order_by(_entries.c.created.desc()).limit(limit)
        if namespace is not None:
            query = query.where(_entries.c.namespace == namespace)
        return self._with_sources(query)

    def find(self, prefix: str) -> list[Entry]:
        """Entries whose id begins with `prefix` (at most 20), with their sources."""
        query = sa.select(*_ENTRY).where(_entries.c.id.startswith(prefix, autoescape=True)).limit(20)
        return self._with_sources(query)

    def of_ids(self, ids: Sequence[str]) -> list[Entry]:
        """The entries of these ids, newest first, with their sources."""
        query = sa.select(*_ENTRY).where(_entries.c.id.in_(ids))
        return self._with_sources(query.order_by(_entries.c.created.desc()))

    def _with_sources(self, query: sa.Select[Any]) -> list[Entry]:
        with reading(self._engine) as db:
            rows = db.execute(query).all()
            sources = self._sources(db, [row.id for row in rows])
        return [to_entry(row._mapping, sources.get(row.id, ())) for row in rows]

    def totals(self) -> Totals:
        """Counts of entries, of the logged lookups by outcome, of examples and audits."""
        count = sa.func.count()
        with reading(self._engine) as db:
            kinds: dict[bool, int] = dict(
                db.execute(sa.select(_entries.c.semantic, count).group_by(_entries.c.semantic)).all()
            )
            waiting = db.scalar(sa.select(count).where(_entries.c.indexed_in == WAITING)) or 0
        asked = self.lookups.outcomes()
        audits, wrong = self.judgements.audits()
        return Totals(
            entries=sum(kinds.values()),
            semantic_entries=kinds.get(True, 0),
            unindexed=waiting,
            hits=asked.hits,
            misses=asked.misses,
            tokens_saved=asked.tokens_saved,
            examples=self.examples.count(),
            audits=audits,
            audits_wrong=wrong,
            bytes=self.removal.size()[1],
        )

    def put(
        self,
        entry: Entry,
        embedder: str | None,
        bounds: Bounds = UNBOUNDED,
        floor: float = 0.0,
        made: float = math.inf,
    ) -> bool:
        """Store the entry, replacing the one with the same id; durable against a killed process on return.

        False if it must not be stored: what it rests on was invalidated after it was asked for, at `made`.
        """
        row = entry_row(entry, embedder)
        row["rank"] = bounds.rank(floor, 0, row["cost"], row["size"], row["used"])
        with writing(self._engine) as db:
            if self.invalidations.refuse(db, entry, made):
                return False
            db.execute(upsert_entry(db.dialect.name, partial(bounds.rank, floor)), row)
            for table, rows in ((_documents, source_rows(entry)), (_tags, tag_rows(entry))):
                db.execute(sa.delete(table).where(table.c.entry_id == entry.id))
                if rows:
                    db.execute(sa.insert(table), rows)
        return True

    def clear(self, namespace: str | None = None) -> int:
        """Delete all entries and logs, or those of one namespace; returns how many entries."""
        logs = [sa.delete(log) for log in (tables.lookups, tables.examples, tables.judgements)]
        where: sa.ColumnElement[bool] = sa.true()
        if namespace is not None:
            where = _entries.c.namespace == namespace
            logs = [log.where(log.table.c.namespace == namespace) for log in logs]
        with writing(self._engine) as db:
            for log in logs:
                db.execute(log)
            return delete(db, where)

    def unindexed(self, generation: str, embedder: str, limit: int, other: str = "") -> list[StoredVector]:
        """Questions that the index of this generation, or the other, does not hold, in no order."""
        held = _entries.c.indexed_in
        low, high = sorted((generation, other or generation))
        # Ranges instead of "!=", and no order: else the whole table is read, at every poll.
        between = sa.and_(held > low, held < high)
        return self._stored_vectors(sa.or_(held < low, between, held > high), embedder, limit)

    def indexed(self, generation: str, embedder: str, limit: int, other: str = "") -> list[StoredVector]:
        """Questions that the index of this generation, or the other, holds, in no order."""
        held = _entries.c.indexed_in.in_((generation, other or generation))
        return self._stored_vectors(held, embedder, limit)

    def _stored_vectors(self, where: sa.ColumnElement[bool], embedder: str, limit: int) -> list[StoredVector]:
        c = _entries.c
        query = sa.select(c.id, c.namespace, c.scope, c.question, c.vector, c.embedder).where(where)
        with reading(self._engine) as db:
            rows = db.execute(query.limit(limit)).all()
        return [to_stored_vector(row, embedder) for row in rows]

    def count_indexed(self, generation: str, other: str = "") -> int:
        """How many points the index of this generation, or the other, should hold."""
        held = _entries.c.indexed_in.in_((generation, other or generation))
        with reading(self._engine) as db:
            return db.scalar(sa.select(sa.func.count(_entries.c.point.distinct())).where(held)) or 0

    def count_semantic(self, most: int) -> int:
        """How many entries can be found by meaning, counted up to `most`."""
        some = sa.select(_entries.c.id).where(_entries.c.indexed_in.is_not(None)).limit(most).subquery()
        with reading(self._engine) as db:
            return db.scalar(sa.select(sa.func.count()).select_from(some)) or 0

    def points(self, after: str, limit: int) -> list[tuple[str, str]]:
        """Points that the index should hold with the generations that do, in order of the points."""
        c = _entries.c
        query = sa.select(c.point, c.indexed_in).where(c.point > after, c.indexed_in.is_not(None))
        with reading(self._engine) as db:
            return [(row.point, row.indexed_in) for row in db.execute(query.order_by(c.point).limit(limit))]

    def count_foreign(self, embedder: str) -> int:
        """How many entries have a vector that another embedder made."""
        query = sa.select(sa.func.count()).where(_entries.c.embedder != embedder)
        with reading(self._engine) as db:
            return db.scalar(query) or 0

    def set_vectors(self, rows: Sequence[StoredVector], embedder: str) -> None:
        """Store embeddings made after the fact; the entries wait for indexing again."""
        change = sa.update(_entries).where(_entries.c.id == sa.bindparam("entry_id"))
        values = change.values(
            vector=sa.bindparam("bytes"), point=sa.bindparam("at"), embedder=embedder, indexed_in=WAITING
        )
        changes = [
            {"entry_id": row.id, "bytes": to_bytes(row.vector), "at": row.point}
            for row in rows
            if row.vector is not None
        ]
        with writing(self._engine) as db:
            db.execute(values, changes)

    def set_exact_only(self, ids: Sequence[str]) -> None:
        """These questions cannot be compared by meaning; they are not indexed."""
        change = sa.update(_entries).where(_entries.c.id.in_(ids))
        with writing(self._engine) as db:
            db.execute(change.values(semantic=False, indexed_in=None))

    def mark_indexed(self, points: Sequence[str], generation: str) -> None:
        """Note that the index of this generation holds these points; those that nobody has are dead."""
        where = sa.and_(_entries.c.point.in_(points), _entries.c.indexed_in.is_not(None))
        with writing(self._engine) as db:
            db.execute(sa.update(_entries).where(where).values(indexed_in=generation))
            note_orphans(db, points)

    def index_again(self, points: Sequence[str] = (), ids: Sequence[str] = ()) -> None:
        """The index does not hold these points, or the vectors of these entries."""
        which = sa.or_(_entries.c.point.in_(points), _entries.c.id.in_(ids))
        where = sa.and_(which, _entries.c.indexed_in.is_not(None))
        with writing(self._engine) as db:
            db.execute(sa.update(_entries).where(where).values(indexed_in=WAITING))

    def check(self) -> list[str]:
        """Problems of the database file that its own check finds; empty if sound (SQLite only)."""
        if self._engine.dialect.name != "sqlite":
            return []
        with reading(self._engine) as db:
            found = [str(row[0]) for row in db.exec_driver_sql("PRAGMA quick_check(10)")]
        return [] if found == ["ok"] else found
