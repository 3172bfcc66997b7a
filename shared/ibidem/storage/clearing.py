"""Deleting all that is kept, or all of a namespace and its users: in batches, and finished in one moment.

What is there is deleted in short transactions, so that stores get between them. The last transaction deletes
what was stored meanwhile, and so is the moment at which all was cleared: what was stored before it is gone,
what is stored after it stays. Killed on the way, it has deleted a part, and nothing else has changed.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from ibidem.scoping import users_of
from ibidem.storage import tables
from ibidem.storage.database import reading, writing
from ibidem.storage.removal import Pace, delete

ROWS = 4_000  # ids of a log that one transaction looks through

_entries = tables.entries
_LOGS = (tables.lookups, tables.examples, tables.judgements)


class Clearing:
    """Clears one database. Raises `StorageError` when it fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def run(self, namespace: str | None) -> int:
        """Delete all entries and logs, or those of a namespace and its users; returns how many entries."""
        seen = {log: self._shorten(log, self._of(log, namespace)) for log in _LOGS}
        where, gone = self._of(_entries, namespace), 0
        last, pace = "", Pace()
        while True:
            size = pace.size
            with reading(self._engine) as db:  # the search holds up nobody
                found = list(db.scalars(self._next(where, last).limit(size)))
            if len(found) < size:  # what is left, and what is stored meanwhile, is for the last transaction
                break
            last = str(found[-1])
            with writing(self._engine) as db, pace:
                gone += delete(db, _entries.c.id.in_(found))
        with writing(self._engine) as db:
            for log, newest in seen.items():
                db.execute(sa.delete(log).where(log.c.id > newest, self._of(log, namespace)))
            return gone + delete(db, where)

    def _next(self, where: sa.ColumnElement[bool], last: str) -> sa.Select[tuple[str]]:
        query = sa.select(_entries.c.id).where(where)
        if self._engine.dialect.name == "sqlite":  # in the order of the file: what lies side by side is cheap
            return query
        return query.where(_entries.c.id > last).order_by(_entries.c.id)  # past the rows deleted just now

    def _shorten(self, log: sa.Table, where: sa.ColumnElement[bool]) -> int:
        """Delete what the log holds of it now; the newest id that was looked at."""
        with reading(self._engine) as db:
            low, high = db.execute(sa.select(sa.func.min(log.c.id), sa.func.max(log.c.id))).one()
        if high is None:
            return 0
        for start in range(low, high + 1, ROWS):
            some = log.c.id.between(start, min(start + ROWS - 1, high))
            with writing(self._engine) as db:
                db.execute(sa.delete(log).where(some, where))
        return int(high)

    def _of(self, table: Any, namespace: str | None) -> sa.ColumnElement[bool]:
        if namespace is None:
            return sa.true()
        named, users = table.c.namespace, users_of(namespace)
        theirs = sa.func.substr(named, 1, len(users)) == users
        if self._engine.dialect.name == "sqlite":  # compares bytes, so that the index finds them
            theirs = sa.and_(named >= users, named < users[:-1] + chr(ord(users[-1]) + 1))
        found: sa.ColumnElement[bool] = (named == namespace) | theirs
        return found
