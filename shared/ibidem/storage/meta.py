"""The table `meta`: facts about the database by key, such as its schema version or the index in use."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from typing import Any

import sqlalchemy as sa

from ibidem.errors import CacheMoved, OtherCache, StorageUnavailable
from ibidem.storage.engine import insert_into, reading, writing
from ibidem.storage.tables import meta as _meta
from ibidem.types import is_in_namespace

# The id of the cache that a database holds. Backups keep it, a copy by `ibidem copy` has one of its own. The
# collections of a Chroma server are named by it.
ID_KEY = "place"
# Where a cache was moved to; the copies that are not finished, from and to it (`ibidem.storage.copying`).
MOVED_KEY, COPY_FROM, COPY_TO = "moved", "copy:from", "copy:to"
_READ_ID = f"SELECT value FROM {_meta.name} WHERE key = '{ID_KEY}'"  # noqa: S608 (of constants)
_UNDEFINED_TABLE = "42P01"  # PostgreSQL's code


def get_meta(db: sa.Connection, key: str) -> str | None:
    """Return the value of a key, in the caller's transaction."""
    return db.scalar(sa.select(_meta.c.value).where(_meta.c.key == key))


def set_meta(db: sa.Connection, key: str, value: str) -> None:
    """Set the value of a key, in the caller's transaction."""
    insert = insert_into(db.dialect.name)(_meta).values(key=key, value=value)
    db.execute(insert.on_conflict_do_update(index_elements=[_meta.c.key], set_={"value": value}))


def require_here(db: sa.Connection, namespace: str | None) -> None:
    """Raise `CacheMoved` if a namespace was moved; in the caller's transaction, after it holds its locks.

    None stands for several: those that are still here go on, unless the whole cache was moved.
    """
    text = get_meta(db, MOVED_KEY)
    if text is not None and (error := moved_error(text, namespace)) is not None:
        raise error


def moved_error(text: str, namespace: str | None) -> CacheMoved | None:
    """Return the error if a namespace was moved by what `MOVED_KEY` holds, a JSON list of moves."""
    try:
        moves = [(str(one["place"]), float(one["at"]), one["namespace"]) for one in json.loads(text)]
    except (ValueError, TypeError, KeyError):  # damaged: when in doubt nothing is taken
        moves = [("another place", time.time(), None)]
    for place, at, moved in moves:
        if moved is None or (namespace is not None and is_in_namespace(namespace, moved)):
            what = "this cache" if moved is None else f"the namespace {moved!r}"
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
            return CacheMoved(f"{what} was moved to {place} on {since} and takes nothing here: open that one")
    return None


class MetaTable:
    """The table `meta` of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def get(self, key: str) -> str | None:
        """Return the value of a key, None if it has none."""
        with reading(self._engine) as db:
            value = get_meta(db, key)
        if value == "":  # no value that is read is ever empty: this one is damaged, and would stay in the way
            with contextlib.suppress(StorageUnavailable):
                self.set(key, None)
        return value or None

    def suffixes(self, prefix: str) -> list[str]:
        """Return the keys that begin with the prefix, without it."""
        with reading(self._engine) as db:
            keys = db.scalars(sa.select(_meta.c.key).where(_meta.c.key.startswith(prefix, autoescape=True)))
            return [key.removeprefix(prefix) for key in keys]

    def set(self, key: str, value: str | None) -> None:
        """Set the value of a key; None deletes it."""
        with writing(self._engine) as db:
            if value is None:
                db.execute(sa.delete(_meta).where(_meta.c.key == key))
            else:
                set_meta(db, key, value)

    def set_default(self, key: str, value: str) -> str:
        """Set the value of a key unless it has one; return the value it has now."""
        with writing(self._engine) as db:
            insert = insert_into(db.dialect.name)(_meta).values(key=key, value=value)
            db.execute(insert.on_conflict_do_nothing())
        return self.get(key) or value

    def compare_and_set(self, key: str, old: str | None, new: str) -> bool:
        """Set the value of a key if it is `old` now; return whether it was."""
        insert = insert_into(self._engine.dialect.name)(_meta).values(key=key, value=new)
        change = sa.update(_meta).where(_meta.c.key == key, _meta.c.value == old).values(value=new)
        with writing(self._engine) as db:
            done = db.execute(
                insert.on_conflict_do_nothing() if old is None else change,
                execution_options={"preserve_rowcount": True},  # else it is -1 after an insert
            )
        return int(done.rowcount) == 1


class Identity:
    """Refuses connections to another cache than the one that was opened.

    Behind the same URL may be another database after a failover, or after a backup of another cache was
    restored. Open connections end then, so it is enough to look at new ones: no statement takes longer.

    Args:
        engine: Its new connections are looked at from `expect` on.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._id: str | None = None
        sa.event.listen(engine, "connect", self._look)

    def expect(self, cache_id: str) -> None:
        """Refuse all but the cache of this id from now on: `OtherCache`."""
        self._id = cache_id

    def _look(self, connection: Any, _: object) -> None:
        if self._id is None or (found := _id_in(connection)) == self._id:
            return
        connection.close()
        what = f"the cache {found[:8]}" if found else "empty, or no cache"
        raise OtherCache(
            f"the database is {what}, and not the cache {self._id[:8]} that was opened: after a failover or "
            "a restored backup, bring the right one back; to use this one, start the program again"
        )


def _id_in(connection: Any) -> str:
    """Return the id in the database of a driver's new connection, "" if it has none."""
    cursor = connection.cursor()
    try:
        cursor.execute(_READ_ID)
        row = cursor.fetchone()
    except Exception as error:
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        lacking = isinstance(error, sqlite3.OperationalError) and "no such table" in str(error)
        if code != _UNDEFINED_TABLE and not lacking:
            raise
        row = None
    cursor.close()
    connection.rollback()
    return "" if row is None else str(row[0])
