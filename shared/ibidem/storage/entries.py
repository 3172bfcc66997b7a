"""The truth: entries, their documents and the logs, in SQL. Every answer served was confirmed here."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ibidem.errors import StorageError, StorageUnavailable
from ibidem.lifecycle.eviction import UNBOUNDED, Bounds
from ibidem.storage import tables
from ibidem.storage.browsing import Browsing
from ibidem.storage.columns import sound
from ibidem.storage.deletion import Clearing, Removal, forget_vectors
from ibidem.storage.engine import (
    breaker_of,
    cause_of,
    close_engine,
    open_engine,
    reading,
    shown_engine,
    storage_error,
    upsert_entry,
    writing,
)
from ibidem.storage.examples import ExampleTable
from ibidem.storage.figures import Figures
from ibidem.storage.holdings import HoldingsTable
from ibidem.storage.invalidation import Invalidations
from ibidem.storage.logs import JudgementTable, LookupTable
from ibidem.storage.masking import Masking
from ibidem.storage.meta import Notes
from ibidem.storage.migrations import prepare
from ibidem.storage.model_table import ModelFilesTable
from ibidem.storage.reviews import Reviews
from ibidem.storage.rows import ENTRY, Totals, entry_row, source_rows, tag_rows, to_entry
from ibidem.storage.stored import StoredTable
from ibidem.storage.vectors import Embedders, VectorTable, number_of, put_vector
from ibidem.types import Entry, Source


@dataclass(frozen=True)
class _Compiled:
    """SQL for SQLite, and the value of each of its parameters, as far as it is known beforehand."""

    sql: str
    names: tuple[str, ...]
    known: Mapping[str, Any]


class Prepared:
    """A SELECT that is run with other values each time.

    Args:
        statement: With `bindparam`s, none of them expanding. Its columns must need no conversion but that of
            SQLite's 0 and 1 to False and True, which is the reader's.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        self._statement = statement
        self._compiled: _Compiled | None = None

    def rows(self, engine: sa.Engine, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """All rows, columns in the order of the statement; errors are `StorageError`."""
        if engine.dialect.name != "sqlite":
            with reading(engine) as db:
                return db.execute(self._statement, values).all()
        compiled = self._compiled or self._compile(engine.dialect)
        given = {**compiled.known, **values}
        return _run(engine, compiled.sql, [given[name] for name in compiled.names])

    def _compile(self, dialect: sa.Dialect) -> _Compiled:
        made: Any = self._statement.compile(dialect=dialect)
        self._compiled = _Compiled(str(made), tuple(made.positiontup), dict(made.params))
        return self._compiled


def _run(engine: sa.Engine, sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
    try:
        pooled = engine.raw_connection()
        try:
            # None is left only after `close`, when the connection was closed under us.
            run: Callable[..., Any] = pooled.dbapi_connection.execute  # type: ignore[union-attr]
            found: list[tuple[Any, ...]] = run(sql, values).fetchall()
        finally:
            pooled.close()
    except sqlite3.OperationalError as error:  # busy, or the disk
        raise StorageUnavailable(str(error)) from error
    except sqlite3.Error as error:
        raise StorageError(str(error)) from error
    except sa.exc.SQLAlchemyError as error:
        raise StorageUnavailable(str(getattr(error, "orig", None) or error)) from error
    return found


def several(name: str, many: int) -> list[sa.BindParameter[str]]:
    """So many parameters for `column.in_(...)`: `padded` gives their values."""
    return [sa.bindparam(f"{name}_{number}", type_=sa.String) for number in range(many)]


def padded(name: str, values: Sequence[str], many: int) -> dict[str, str]:
    """The values of `several`, at least one and at most `many`; the last is repeated."""
    last = len(values) - 1
    return {f"{name}_{number}": values[min(number, last)] for number in range(many)}


NEAR_LIMIT = 64  # candidates of one lookup; one wording over many document sets has many entries

_entries, _documents, _meta = tables.entries, tables.entry_documents, tables.meta
_tags = tables.entry_tags
_vectors = tables.entry_vectors
_ID, _RESTS_ON = ENTRY.index(_entries.c.id), ENTRY.index(_entries.c.documents)
_IN_ONE = 32  # points, or entries, that one statement asks for
_ONE = Prepared(sa.select(*ENTRY).where(_entries.c.id == sa.bindparam("id")))
_NEAR = Prepared(
    sa.select(*ENTRY, _vectors.c.vector)
    .join(_vectors, _vectors.c.entry_id == _entries.c.id)
    .where(
        _vectors.c.point.in_(several("point", _IN_ONE)),
        _vectors.c.embedder == sa.bindparam("embedder"),
        # As an expression: by the index on the column SQLite would read all entries of the namespace.
        _entries.c.namespace.concat("") == sa.bindparam("namespace"),
        _entries.c.scope == sa.bindparam("scope"),
        _entries.c.semantic,
    )
    .order_by(_entries.c.created.desc())
    .limit(NEAR_LIMIT)
)
# What an entry had, and what it has: each store runs them.
_DOCUMENTS, _TAGS = (
    (sa.delete(table).where(table.c.entry_id == sa.bindparam("of")), sa.insert(table))
    for table in (_documents, _tags)
)
_d = _documents.c
_SOURCES = Prepared(
    sa.select(_d.entry_id, _d.document_id, _d.digest, _d.supports, _d.source).where(
        _d.entry_id.in_(several("id", _IN_ONE))
    )
)


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
        self.invalidations, self.embedders = Invalidations(self._engine), Embedders(self._engine)
        self.models, self.stored = ModelFilesTable(self._engine), StoredTable(self._engine)
        self.figures, self.holdings = Figures(self._engine), HoldingsTable(self._engine)
        self.reviews, self.browsing = Reviews(self._engine), Browsing(self._engine)
        try:
            prepare(self._engine)
        except Exception as error:  # also of drivers, for options of the URL that they do not take
            self._engine.dispose()
            advice = "move it away to begin a new one, or use another path"
            if isinstance(error, StorageUnavailable):
                advice = "the disk may be full, another program may hold it, or its server is down"
            told, cause = storage_error(error, self._engine), cause_of(error, self._engine)
            raise StorageError(f"cannot open the database {self.url}: {told}; {advice}") from cause

    @property
    def url(self) -> str:
        """Where the database is, without its password."""
        return shown_engine(self._engine)

    def after_fork(self) -> None:
        """Forget the parent's connections; they are not ours to close."""
        self._engine.dispose(close=False)
        if breaker := breaker_of(self._engine):
            breaker.after_fork()

    def close(self) -> None:
        """Close all connections."""
        if breaker := breaker_of(self._engine):
            breaker.stop()
        close_engine(self._engine)

    def get(self, entry_id: str) -> Entry | None:
        """The entry of this id, without its sources and vector."""
        return next(sound(to_entry, _ONE.rows(self._engine, {"id": entry_id})), None)

    def near(
        self, points: Sequence[str], *, namespace: str, scope: str, embedder: str, documents: str
    ) -> list[Entry]:
        """The newest entries at these points of this namespace, scope and embedder, with vectors.

        Those that rest on other `documents` (a digest of the set) come with their sources.
        """
        named = {"namespace": namespace, "scope": scope, "embedder": number_of(embedder)}
        rows: list[Sequence[Any]] = []
        for first in range(0, len(points), _IN_ONE):
            values = padded("point", points[first : first + _IN_ONE], _IN_ONE)
            rows += _NEAR.rows(self._engine, {**values, **named})
        sources = self._sources([row[_ID] for row in rows if row[_RESTS_ON] != documents])
        return list(sound(lambda row: to_entry(row, sources.get(row[_ID], ()), row[-1]), rows))

    def _sources(self, ids: Sequence[str]) -> dict[str, tuple[Source, ...]]:
        found: dict[str, tuple[Source, ...]] = {}
        for first in range(0, len(ids), _IN_ONE):
            values = padded("id", ids[first : first + _IN_ONE], _IN_ONE)
            for entry_id, document, digest, supports, source in _SOURCES.rows(self._engine, values):
                one = Source(document, digest, bool(supports), source)
                if isinstance(digest, str):
                    found[entry_id] = (*found.get(entry_id, ()), one)
        return found

    def kind_in_scope(self, namespace: str, scope: str) -> bool | None:
        """Whether this namespace and scope has answers to compare by meaning; None if it has none at all."""
        query = sa.select(sa.func.max(sa.cast(_entries.c.semantic, sa.Integer)))
        with reading(self._engine) as db:
            found = db.scalar(query.where(_entries.c.namespace == namespace, _entries.c.scope == scope))
        return None if found is None else bool(found)

    def newest(self, limit: int = 20, namespace: str | None = None) -> list[Entry]:
        """The newest entries, newest first, with their sources."""
        query = sa.select(_entries).order_by(_entries.c.created.desc()).limit(limit)
        if namespace is not None:
            query = query.where(_entries.c.namespace == namespace)
        return self._with_sources(query)

    def find(self, prefix: str) -> list[Entry]:
        """Entries whose id begins with `prefix` (at most 20), with their sources."""
        query = sa.select(_entries).where(_entries.c.id.startswith(prefix, autoescape=True)).limit(20)
        return self._with_sources(query)

    def of_ids(self, ids: Sequence[str]) -> list[Entry]:
        """The entries of these ids, newest first, with their sources."""
        return self._with_sources(
            sa.select(_entries).where(_entries.c.id.in_(ids)).order_by(_entries.c.created.desc())
        )

    def _with_sources(self, query: sa.Select[Any]) -> list[Entry]:
        with reading(self._engine) as db:
            rows = db.execute(query.with_only_columns(*ENTRY)).all()
        sources = self._sources([row[_ID] for row in rows])
        return list(sound(lambda row: to_entry(row, sources.get(row[_ID], ())), rows))

    def totals(self, embedder: str | None = None) -> Totals:
        """Counts of entries, of the logged lookups by outcome, of examples and audits.

        What can be found by meaning is counted for this embedder; not given, for the one used last.
        """
        entries, size = self.removal.size()
        if embedder is None:
            known = self.embedders.known()
            embedder = max(known, key=lambda one: known[one], default="")
        vectors = self.vectors_of(embedder)
        asked = self.lookups.outcomes()
        audits, wrong = self.judgements.audits()
        return Totals(
            entries=entries,
            semantic_entries=vectors.count(),
            unindexed=vectors.count_waiting(),
            hits=asked.hits,
            misses=asked.misses,
            tokens_saved=asked.tokens_saved,
            examples=self.examples.count(),
            audits=audits,
            audits_wrong=wrong,
            bytes=size,
        )

    def vectors_of(self, embedder: str) -> VectorTable:
        """The vectors of the embedder of this fingerprint."""
        return VectorTable(self._engine, embedder)

    def put(
        self,
        entry: Entry,
        embedder: str,
        bounds: Bounds = UNBOUNDED,
        floor: float = 0.0,
        made: float = math.inf,
    ) -> bool:
        """Store the entry, replacing the one with the same id; durable against a killed process on return.

        Its vector was made, or is to be made, by the embedder of this fingerprint.

        False if it must not be stored: what it rests on was invalidated after it was asked for, at `made`.
        """
        row = entry_row(entry)
        row["rank"] = bounds.rank(floor, 0, row["cost"], row["size"], row["used"])
        with writing(self._engine) as db:
            if self.invalidations.refuse(db, entry, made):
                return False
            db.execute(upsert_entry(db.dialect.name, bounds.ranking), {**row, "floor": floor})
            for (forget, insert), rows in ((_DOCUMENTS, source_rows(entry)), (_TAGS, tag_rows(entry))):
                db.execute(forget, {"of": entry.id})
                if rows:
                    db.execute(insert, rows)
            if entry.semantic:
                put_vector(db, entry, number_of(embedder))
            else:
                forget_vectors(db, sa.select(_entries.c.id).where(_entries.c.id == entry.id))
        return True

    def clear(self, namespace: str | None = None) -> int:
        """Delete all entries and logs, or those of one namespace and its users; returns how many entries.

        In batches, see `ibidem.storage.deletion`: if it fails on the way a part is deleted; call it again.
        """
        return Clearing(self._engine).run(namespace)

    def masking(self, redact: Callable[[str], str | None], name: str) -> Masking:
        """What redacts the logs that are written already."""
        return Masking(self._engine, redact, name)

    def check(self) -> list[str]:
        """Problems of the database file that its own check finds; empty if sound (SQLite only)."""
        if self._engine.dialect.name != "sqlite":
            return []
        with reading(self._engine) as db:
            found = [str(row[0]) for row in db.exec_driver_sql("PRAGMA quick_check(10)")]
        return [] if found == ["ok"] else found
