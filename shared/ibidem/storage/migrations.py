"""Creation and migration of the tables, once, by the process that opens the database first."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from ibidem.errors import StorageError
from ibidem.lifecycle.rules import DAYS
from ibidem.storage import tables
from ibidem.storage.engine import exclusive, reading
from ibidem.storage.vectors import embedder_id, enqueue_missing

_meta = tables.meta
_VERSION = _meta.c.key == "schema_version"
UNREADABLE, _DIGITS = -1, 6  # a version of more digits is damage


def migrate(engine: sa.Engine) -> None:
    """Create the tables, or migrate those of an older version; nothing is written to a newer one.

    Raises:
        StorageError: The database was made by a newer Ibidem, or failed.
    """
    with reading(engine) as db:
        if _version(db) == tables.SCHEMA_VERSION:
            return
    with exclusive(engine) as db:  # several processes may come at once: look again
        found = _version(db)
        if found == UNREADABLE:
            _restore_version(db)
            return
        if found > tables.SCHEMA_VERSION:
            raise StorageError(
                f"it was written by a newer Ibidem (schema {found}): upgrade with pip install -U ibidem-cache"
            )
        if found == tables.SCHEMA_VERSION:
            return
        for table in tables.metadata.sorted_tables:
            db.execute(sa.schema.CreateTable(table, if_not_exists=True))
        if not found:
            db.execute(sa.insert(_meta).values(key="schema_version", value=str(tables.SCHEMA_VERSION)))
            _record_vector_changes(db)
        for version in range(found + 1, tables.SCHEMA_VERSION + 1) if found else ():
            _MIGRATIONS[version](db)
        db.execute(sa.update(_meta).where(_VERSION).values(value=str(tables.SCHEMA_VERSION)))
        for table in tables.metadata.sorted_tables:
            for index in table.indexes:
                db.execute(sa.schema.CreateIndex(index, if_not_exists=True))


def is_cache(engine: sa.Engine) -> bool:
    """Return whether the database holds a cache, of any version; raises `StorageError` if it failed."""
    file = engine.url.database or ""
    if engine.dialect.name == "sqlite" and not file.startswith("file:") and not Path(file).is_file():
        return False  # and connecting would make the file
    with reading(engine) as db:
        return _version(db) != 0


def _version(db: sa.Connection) -> int:
    """Return the schema version of the database; 0 if it is empty."""
    if not sa.inspect(db).has_table(_meta.name):
        return 0
    text = db.scalar(sa.select(_meta.c.value).where(_VERSION))
    if text is None:
        return 0
    readable = text.isascii() and text.isdecimal() and len(text) <= _DIGITS
    return int(text) or UNREADABLE if readable else UNREADABLE


def _restore_version(db: sa.Connection) -> None:
    """Replace a damaged schema version: it is today's if the database has today's tables and columns."""
    inspector = sa.inspect(db)
    for table in tables.metadata.sorted_tables:
        columns = inspector.get_columns(table.name) if inspector.has_table(table.name) else []
        if not {column.name for column in table.c} <= {column["name"] for column in columns}:
            raise StorageError(
                "its schema version cannot be read, and its tables are not those of this version"
            )
    db.execute(sa.update(_meta).where(_VERSION).values(value=str(tables.SCHEMA_VERSION)))


def _add_columns(db: sa.Connection, table: sa.Table, *names: str) -> None:
    for name in names:
        column = sa.schema.CreateColumn(table.c[name]).compile(dialect=db.dialect)
        db.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column}")


def _add_lacking(db: sa.Connection, table: sa.Table, name: str) -> None:
    """Add a column, unless a step before has made the table anew."""
    if name not in {column["name"] for column in sa.inspect(db).get_columns(table.name)}:
        _add_columns(db, table, name)


def _add_eviction(db: sa.Connection) -> None:
    """Add the columns for expiry and eviction; sizes are estimated."""
    entries, c = tables.entries, tables.entries.c
    _add_columns(db, entries, "ttl", "used", "size", "cost", "rank")
    texts = sa.func.length(c.answer) + sa.func.length(c.payload)
    tokens = sa.func.coalesce(c.input_tokens, 0) + 4 * sa.func.coalesce(c.output_tokens, 0)
    db.execute(sa.update(entries).values(used=c.created, size=texts + 1500, cost=tokens))


def _add_sources(db: sa.Connection) -> None:
    """Add what a document was cut from, and let two documents have the same text."""
    _recreate(db, tables.entry_documents, {"source"})


def _extend_examples(db: sa.Connection) -> None:
    """Add what is known of examples beyond their texts; an id is never given again."""
    added = ("scope", "feedback", "tags", "embedder", "vector")
    if db.dialect.name == "sqlite":  # which counts on from the highest id only where the table says so
        _recreate(db, tables.examples, set(added))
    else:  # its sequence knows which ids were given
        _add_columns(db, tables.examples, *added)


def _separate_vectors(db: sa.Connection) -> None:
    """Move vectors to a table of their own, one for each embedder.

    The recorded dead points are dropped: the index is compared with the database when it is opened.
    """
    c = sa.table("entries", *map(sa.column, ("id", "embedder", "vector", "point", "indexed_in"))).c
    embedded = c.embedder.is_not(None) & c.indexed_in.is_not(None)
    for fingerprint in db.scalars(sa.select(c.embedder).where(embedded).distinct()).all():
        number = embedder_id(fingerprint)
        mine = embedded & (c.embedder == fingerprint)
        row = {"id": number, "fingerprint": fingerprint, "until": time.time() + DAYS, "state": "used"}
        db.execute(sa.insert(tables.embedders).values(row))
        columns = [column.name for column in tables.entry_vectors.c]
        vectors = sa.select(c.id, sa.literal(number, sa.BigInteger), c.vector, c.point, c.indexed_in)
        db.execute(sa.insert(tables.entry_vectors).from_select(columns, vectors.where(mine)))
    _recreate(db, tables.entries, {"pinned", "scope_parts", "requested", "base", "turns"})
    for fingerprint in db.scalars(sa.select(tables.embedders.c.fingerprint)).all():
        enqueue_missing(db, embedder_id(fingerprint))
    db.exec_driver_sql(f"DROP TABLE {tables.dead_points.name}")
    db.execute(sa.schema.CreateTable(tables.dead_points))


def _add_pins(db: sa.Connection) -> None:
    """Add who vouches for an answer."""
    _add_lacking(db, tables.entries, "pinned")


def _add_explanations(db: sa.Connection) -> None:
    """Add what explains a lookup: the parts of scopes, scores and thresholds. Of older rows it is unknown."""
    _add_lacking(db, tables.entries, "scope_parts")
    _add_columns(db, tables.lookups, "score", "threshold", "scope_parts")


def _record_vector_changes(db: sa.Connection) -> None:
    """Make the triggers that tell other processes of new and deleted vectors; on SQLite only."""
    if db.dialect.name == "sqlite":
        for trigger in tables.VECTOR_TRIGGERS:
            db.exec_driver_sql(trigger)


def _add_opinions(db: sa.Connection) -> None:
    """Add which small model judged, and its tokens."""
    for name in ("model", "input_tokens", "output_tokens"):
        _add_lacking(db, tables.judgements, name)


def _add_table(db: sa.Connection) -> None:
    """Do nothing: a table that is lacking is made before."""


def _add_told_documents(db: sa.Connection) -> None:
    """Add when a request was made; of older entries only when they were stored is known."""
    _add_lacking(db, tables.entries, "requested")
    db.execute(sa.update(tables.entries).values(requested=tables.entries.c.created))


def _add_turns(db: sa.Connection) -> None:
    """Add the turns of conversations; of older entries only their digest is known."""
    for name in ("base", "turns"):
        _add_lacking(db, tables.entries, name)


def _recreate(db: sa.Connection, table: sa.Table, added: set[str]) -> None:
    """Copy the rows into a new table with other columns and keys."""
    kept = [column.name for column in table.c if column.name not in added]
    former = sa.table(f"former_{table.name}", *map(sa.column, kept))
    db.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO {former.name}")  # SQLite changes no keys
    db.execute(sa.schema.CreateTable(table))
    db.execute(sa.insert(table).from_select(kept, sa.select(former)))
    db.exec_driver_sql(f"DROP TABLE {former.name}")


# By the version they lead to.
_MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {
    2: _add_eviction,
    3: _add_sources,
    4: _extend_examples,
    5: _separate_vectors,
    6: _add_pins,
    7: _record_vector_changes,
    8: _add_explanations,
    9: _add_opinions,
    10: _add_table,  # answered_turns
    11: _add_told_documents,
    12: _add_turns,
}
