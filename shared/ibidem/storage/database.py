"""How the truth's database is opened, read and written, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ibidem.lifecycle.eviction import RANKINGS
from ibidem.patience import waiting
from ibidem.storage.engines import breaker_of, cause_of, in_turn, is_away, storage_error, take_turn
from ibidem.storage.tables import entries

EXCLUSIVE = 0x1B1DE3  # our advisory lock on PostgreSQL: any number that no other program uses


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
            raise storage_error(error, engine) from cause_of(error, engine)
        return
    breaker.check()
    epoch = breaker.epoch
    try:
        with waiting():
            yield
    except sa.exc.SQLAlchemyError as error:
        failure = storage_error(error, engine)
        if is_away(error):
            breaker.trip(failure, epoch)
        raise failure from cause_of(error, engine)


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to read with. Errors are `StorageError`."""
    with _guarded(engine), engine.connect() as db:
        yield db


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction: all of it or nothing. Errors are `StorageError`."""
    with _guarded(engine), in_turn(engine), engine.begin() as db:
        if db.dialect.name == "sqlite":
            take_turn(db)
        yield db


@contextmanager
def exclusively(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that no other process runs at the same time, for changes of the tables."""
    with writing(engine) as db:
        if db.dialect.name != "sqlite":  # where every writer is alone
            db.execute(sa.text("SET LOCAL lock_timeout = 0"))
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(EXCLUSIVE)))
        yield db


def insert_into(dialect: str) -> Any:
    """The dialect's `insert`, which knows `ON CONFLICT`."""
    return postgresql.insert if dialect == "postgresql" else sqlite.insert


@lru_cache
def upsert_entry(dialect: str, ranking: str) -> Any:
    """Insert, or replace the answer but keep hits: the same id means the same question.

    Made once, as each store runs it: making it takes as long as running it. Its parameters are the columns,
    and `floor`, that of the ranking, one of `RANKINGS`.
    """
    insert = insert_into(dialect)(entries)
    new, old = insert.excluded, entries.c
    floor = sa.bindparam("floor", type_=sa.Float)
    changes = {column.name: new[column.name] for column in old if column.name not in ("id", "hits")}
    changes["rank"] = RANKINGS[ranking].rank(floor, old.hits, new.cost, new.size, new.used, least)
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
