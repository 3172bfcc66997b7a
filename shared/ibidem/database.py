"""The tables of the truth and how they are read and written, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ibidem.engines import breaker_of, is_away, storage_error, take_turn
from ibidem.patience import waiting

# Raised whenever a table changes; an older Ibidem refuses a newer database instead of damaging it.
SCHEMA_VERSION = 1

metadata = sa.MetaData()

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("scope", sa.String(32), nullable=False),
    sa.Column("question", sa.Text),
    sa.Column("documents", sa.String(32), nullable=False),
    sa.Column("semantic", sa.Boolean, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("input_tokens", sa.Integer),
    sa.Column("output_tokens", sa.Integer),
    sa.Column("finish_reason", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("expires", sa.Float),
    sa.Column("hits", sa.Integer, nullable=False),
    # The question's embedding in half precision (cosines stay right to 1e-3) and who made it.
    sa.Column("embedder", sa.Text),
    sa.Column("vector", sa.LargeBinary),
    # Its point in the vector index; entries with the same vector and scope share one.
    sa.Column("point", sa.String(32), index=True),
    # The index generation that holds the vector; "" waits for indexing, NULL is never indexed.
    sa.Column("indexed_in", sa.String(32), index=True),
    # With the point, so that a search in a scope of 100,000 entries does not read them all.
    sa.Index("ix_entries_scope", "namespace", "scope", "point"),
)

entry_documents = sa.Table(
    "entry_documents",
    metadata,
    sa.Column("entry_id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.String(32), primary_key=True),
    sa.Column("document_id", sa.Text, nullable=False, index=True),
    sa.Column("supports", sa.Boolean, nullable=False),
)

lookups = sa.Table(
    "lookups",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("scope", sa.String(32), nullable=False),
    sa.Column("question", sa.Text),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("entry_id", sa.String(32)),
    sa.Column("similarity", sa.Float),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("tokens_saved", sa.Integer, nullable=False),
)

examples = sa.Table(
    "examples",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    # Ids and digests as JSON, `[["id", "digest"], ...]`: they are only ever read with their example.
    sa.Column("documents", sa.Text, nullable=False),
    sa.Column("input_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("seconds", sa.Float),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("entry_id", sa.Text),
    sa.Index("ix_examples_namespace", "namespace", "id"),
)

judgements = sa.Table(
    "judgements",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("scope", sa.String(32), nullable=False),
    sa.Column("entry_id", sa.String(32), nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("stored", sa.Text, nullable=False),
    sa.Column("similarity", sa.Float, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    # Who gave the score: embedder and weights. Scores of different ones are never compared.
    sa.Column("scorer", sa.String(32), nullable=False),
    sa.Column("right", sa.Boolean, nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Index("ix_judgements_namespace", "namespace", "id"),
    # An id is never given again: other processes learn what is newer than the last one they saw.
    sqlite_autoincrement=True,
)

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


def sqlite_url(file: Path) -> str:
    """The SQLAlchemy URL of a SQLite file, whatever characters its path has."""
    return sa.URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


@contextmanager
def _guarded(engine: sa.Engine) -> Iterator[None]:
    """Errors are `StorageError`; a server that is down is not called, one that goes down is remembered."""
    breaker = breaker_of(engine)
    if breaker is None:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise storage_error(error) from error
        return
    breaker.check()
    epoch = breaker.epoch
    try:
        with waiting():
            yield
    except sa.exc.SQLAlchemyError as error:
        failure = storage_error(error)
        if is_away(error):
            breaker.trip(failure, epoch)
        raise failure from error


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to read with. Errors are `StorageError`."""
    with _guarded(engine), engine.connect() as db:
        yield db


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction: all of it or nothing. Errors are `StorageError`."""
    with _guarded(engine), engine.begin() as db:
        if db.dialect.name == "sqlite":
            take_turn(db)
        yield db


def insert_into(dialect: str) -> Any:
    """The dialect's `insert`, which knows `ON CONFLICT`."""
    return postgresql.insert if dialect == "postgresql" else sqlite.insert


def upsert_entry(dialect: str) -> Any:
    """Insert, or replace the answer but keep the vector: the same id means the same question."""
    insert = insert_into(dialect)(entries)
    new, old = insert.excluded, entries.c
    kept = ("id", "vector", "embedder", "point", "indexed_in")
    changes = {column.name: new[column.name] for column in old if column.name not in kept}
    changes["vector"] = sa.func.coalesce(old.vector, new.vector)
    changes["embedder"] = sa.func.coalesce(old.embedder, new.embedder)
    changes["point"] = sa.func.coalesce(old.point, new.point)
    changes["indexed_in"] = sa.case(
        (new.indexed_in.is_(None), None), else_=sa.func.coalesce(old.indexed_in, new.indexed_in)
    )
    return insert.on_conflict_do_update(index_elements=[old.id], set_=changes)


def set_aside_if_damaged(path: Path) -> Path | None:
    """Move a file that is no SQLite database out of the way; returns its new place. Nothing is deleted."""
    with path.open("rb") as file:
        header = file.read(16)
    if not header or header == b"SQLite format 3\0":
        return None
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + suffix))
    return aside
