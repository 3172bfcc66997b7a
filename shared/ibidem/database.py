"""How the truth's database is opened, read and written, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ibidem.errors import MissingExtra, StorageError
from ibidem.tables import entries

SERVER_SECONDS = 5  # how long a database server may take to connect
STATEMENT_SECONDS = 30  # and to answer
EXCLUSIVE = 0x1B1DE3  # our advisory lock on PostgreSQL: any number that no other program uses
WAL_BYTES = 16_000_000  # what the write-ahead log keeps of its size after a peak
BUSY_SECONDS = 5.0  # how long a locked SQLite file is waited for


def open_engine(url: str) -> sa.Engine:
    """A connection pool for the URL.

    Raises:
        MissingExtra: PostgreSQL's driver is not installed.
        StorageError: The URL is malformed, or its database of another kind.
    """
    named = f"database={url.rpartition('@')[2]!r}"
    try:
        # Without hide_parameters, errors would quote questions and answers.
        engine = sa.create_engine(url, hide_parameters=True, **_patience(url))
    except ImportError as error:
        if url.startswith("postgresql"):
            raise MissingExtra(named, "postgres") from error
        raise StorageError(f"{named}: database must be SQLite or PostgreSQL ({error})") from error
    except sa.exc.ArgumentError as error:
        raise StorageError(f"cannot use {named}: {error}") from error
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise StorageError(f"database must be SQLite or PostgreSQL, not {engine.dialect.name}")
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def _patience(url: str) -> dict[str, Any]:
    """How long a server is waited for; its drivers wait for ever."""
    if url.startswith("sqlite"):
        return {}
    limits = {"connect_timeout": SERVER_SECONDS, "options": f"-c statement_timeout={STATEMENT_SECONDS}s"}
    return {"pool_pre_ping": True, "pool_timeout": SERVER_SECONDS, "connect_args": limits}


def _configure_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """For this lock SQLite does not wait by itself, when several processes make a database at once."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def sqlite_url(file: Path) -> str:
    """The SQLAlchemy URL of a SQLite file, whatever characters its path has."""
    return sa.URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise `StorageError` with what the database said, never the statement with its values."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        raise StorageError(str(getattr(error, "orig", None) or error)) from error


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to read with. Errors are `StorageError`."""
    with storage_errors(), engine.connect() as db:
        yield db


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction: all of it or nothing. Errors are `StorageError`."""
    with storage_errors(), engine.begin() as db:
        yield db


@contextmanager
def exclusively(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that no other process runs at the same time, for changes of the tables."""
    with storage_errors(), engine.connect() as db:
        if db.dialect.name == "sqlite":
            db.exec_driver_sql("BEGIN IMMEDIATE")  # else the driver begins at the first INSERT
        else:
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(EXCLUSIVE)))
        yield db
        db.commit()


def insert_into(dialect: str) -> Any:
    """The dialect's `insert`, which knows `ON CONFLICT`."""
    return postgresql.insert if dialect == "postgresql" else sqlite.insert


def upsert_entry(dialect: str, rank: Callable[..., Any]) -> Any:
    """Insert, or replace the answer but keep hits and vector: the same id means the same question.

    `rank` gives the rank of an entry with these hits, cost, size and time of last use.
    """
    insert = insert_into(dialect)(entries)
    new, old = insert.excluded, entries.c
    kept = ("id", "hits", "vector", "embedder", "point", "indexed_in")
    changes = {column.name: new[column.name] for column in old if column.name not in kept}
    changes["rank"] = rank(old.hits, new.cost, new.size, new.used, least)
    changes["vector"] = sa.func.coalesce(old.vector, new.vector)
    changes["embedder"] = sa.func.coalesce(old.embedder, new.embedder)
    changes["point"] = sa.func.coalesce(old.point, new.point)
    changes["indexed_in"] = sa.case(
        (new.indexed_in.is_(None), None), else_=sa.func.coalesce(old.indexed_in, new.indexed_in)
    )
    return insert.on_conflict_do_update(index_elements=[old.id], set_=changes)


def least(one: Any, other: Any) -> Any:
    """The smaller of two columns or numbers; SQLite and PostgreSQL have different functions for it."""
    return sa.case((one < other, one), else_=other)


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
