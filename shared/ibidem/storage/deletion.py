"""Deletion of entries: expiry, eviction and clearing.

Everything goes through `delete_entries`, in the caller's transaction: with an entry go its documents, tags
and vectors, and its points are recorded as dead, for the vector indexes to delete them later.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ibidem.lifecycle.invalidation import KEPT_SECONDS
from ibidem.lifecycle.rules import RANKINGS, UNBOUNDED, Bounds
from ibidem.storage import tables
from ibidem.storage.engine import reading, sql_min, valid_rows, writing
from ibidem.storage.meta import get_meta, set_meta
from ibidem.storage.tables import MAX_NUMBER
from ibidem.storage.vectors import delete_vectors
from ibidem.types import user_prefix

BATCH = 100  # entries deleted in one transaction, so that nobody waits long for the lock
TRANSACTION_SECONDS = 0.04  # what one transaction may take that deletes many entries
MIN_BATCH, MAX_BATCH = 20, 1_000  # entries of such a transaction
LOG_BATCH = 4_000  # ids of a log that one transaction scans

_entries, _invalidations = tables.entries, tables.invalidations
_LOGS = (tables.lookups, tables.examples, tables.judgements)
_PREFIXES = "0123456789abcdef"  # with which ids begin
_FLOOR, _RANKING = "eviction_floor", "eviction_ranking"


def delete_entries(db: sa.Connection, where: sa.ColumnElement[bool]) -> int:
    """Delete the entries that fulfil the condition; return how many."""
    mine = sa.select(_entries.c.id).where(where)
    delete_vectors(db, mine)
    for table in (tables.entry_documents, tables.entry_tags):
        db.execute(sa.delete(table).where(table.c.entry_id.in_(mine)))
    return int(db.execute(sa.delete(_entries).where(where)).rowcount)


class BatchSize:
    """Entries to delete in the next transaction: as many as the last ones deleted in `TRANSACTION_SECONDS`.

    Entries that lie scattered in the file take ten times as long as those that lie side by side.
    """

    def __init__(self) -> None:
        self.size, self._began = BATCH, 0.0

    def __enter__(self) -> int:
        self._began = time.perf_counter()
        return self.size

    def __exit__(self, *error: object) -> None:
        ratio = TRANSACTION_SECONDS / max(1e-6, time.perf_counter() - self._began)
        self.size = max(MIN_BATCH, min(MAX_BATCH, int(self.size * min(2.0, ratio))))


def _lock_matching(db: sa.Connection, ids: Sequence[str], where: sa.ColumnElement[bool]) -> list[str]:
    """Return those of the entries that still fulfil the condition, until the transaction ends.

    On PostgreSQL others may have changed them since they were found: their rows are locked, in the order in
    which others lock them, and checked again. SQLite has one writer at a time.
    """
    if db.dialect.name != "postgresql" or not ids:
        return list(ids)
    again = sa.select(_entries.c.id).where(_entries.c.id.in_(ids), where)
    return list(db.scalars(again.order_by(_entries.c.id).with_for_update()))


class Evictor:
    """Expiry and eviction in one database, in batches. Every method raises `StorageError` when it fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def delete_expired(self, now: float, limit: int = BATCH) -> int:
        """Delete some entries that expired before `now`, and old tombstones; return how many entries."""
        expired = _entries.c.expires < now
        # All but the newest, as SQLite would give its id again, to one that others have read already.
        newest = sa.select(sa.func.max(_invalidations.c.id)).scalar_subquery()
        old = sa.and_(_invalidations.c.at < now - KEPT_SECONDS, _invalidations.c.id < newest)
        with writing(self._engine) as db:
            db.execute(sa.delete(_invalidations).where(old))
            found = list(db.scalars(sa.select(_entries.c.id).where(expired).limit(limit)))
            found = _lock_matching(db, found, expired)  # else one that was just refreshed would go
            return delete_entries(db, _entries.c.id.in_(found)) if found else 0

    def size(self) -> tuple[int, int]:
        """Return how many entries there are, and the bytes they take; a scan."""
        with reading(self._engine) as db:
            size = _entries.c.size
            most = sa.literal(int(MAX_NUMBER), sa.BigInteger)  # more than PostgreSQL's INTEGER holds
            plausible = sa.case((size.between(0, most), size), else_=0)  # a damaged one has no sum
            query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(plausible), 0))
            count, total = db.execute(query.select_from(_entries)).one()
        return int(count), int(total)

    def evict(self, entries: int, size: int) -> tuple[int, int, float]:
        """Delete at least so many entries or bytes, the lowest ranks first, at most a batch.

        Returns:
            How many entries and bytes were deleted, and the floor of the ranks from now on.
        """
        c = _entries.c
        lowest = sa.select(c.id, c.size, c.rank, c.used).order_by(c.rank, c.used).limit(BATCH)
        chosen: dict[str, tuple[int, float, float]] = {}
        freed = 0
        with writing(self._engine) as db:
            for entry_id, bytes_, rank, used in db.execute(lowest):
                if len(chosen) >= entries and freed >= size:
                    break
                chosen[entry_id] = bytes_, rank, used
                freed += bytes_
            unused = sa.tuple_(c.id, c.used).in_(
                [(entry_id, used) for entry_id, (*_, used) in chosen.items()]
            )
            victims = _lock_matching(db, list(chosen), unused)
            freed = sum(chosen[victim][0] for victim in victims)
            floor = max((chosen[victim][1] for victim in victims), default=0.0)
            if victims:
                delete_entries(db, _entries.c.id.in_(victims))
                floor = max(floor, _read_floor(db))  # of a process that knew a lower one
                set_meta(db, _FLOOR, repr(floor))
        return len(victims), freed, floor

    def floor(self) -> float:
        """Return the floor of the ranks: the rank of the last evicted entry."""
        with reading(self._engine) as db:
            return _read_floor(db)

    def ranking(self) -> Bounds:
        """Return bounds with the ranking that the entries have."""
        with reading(self._engine) as db:
            return RANKINGS.get(get_meta(db, _RANKING) or "", UNBOUNDED)

    def rerank(self, bounds: Bounds) -> float:
        """Rank all entries as these bounds do, unless they are ranked so; return the floor.

        In parts, so that stores do not wait long; done again if it was interrupted.
        """
        c = _entries.c
        if self.ranking().ranking == bounds.ranking:
            return self.floor()
        rank = bounds.rank(0.0, c.hits, c.cost, c.size, c.used, sql_min)
        for first in _PREFIXES:
            with writing(self._engine) as db:
                db.execute(sa.update(_entries).where(c.id.startswith(first)).values(rank=rank))
        with writing(self._engine) as db:
            set_meta(db, _RANKING, bounds.ranking)
            set_meta(db, _FLOOR, "0.0")
        return 0.0


def _read_floor(db: sa.Connection) -> float:
    floor = next(valid_rows(float, [get_meta(db, _FLOOR) or "0"]), 0.0)
    return floor if math.isfinite(floor) else 0.0


def clear(engine: sa.Engine, namespace: str | None) -> int:
    """Delete all entries and logs, or those of a namespace and its users; return how many entries.

    In batches: if it fails on the way, a part is deleted; call it again.

    Raises:
        StorageError: The database failed.
    """
    newest = {log: _clear_log(engine, log, namespace) for log in _LOGS}
    where, deleted = _of_namespace(engine, _entries, namespace), 0
    last, batch = "", BatchSize()
    while True:
        size = batch.size
        with reading(engine) as db:  # the search locks nothing
            found = list(db.scalars(_next_ids(engine, where, last).limit(size)))
        if len(found) < size:  # the rest, and what is stored meanwhile, is for the last transaction
            break
        last = str(found[-1])
        with writing(engine) as db, batch:
            deleted += delete_entries(db, _entries.c.id.in_(found))
    with writing(engine) as db:
        for log, newest_id in newest.items():
            db.execute(sa.delete(log).where(log.c.id > newest_id, _of_namespace(engine, log, namespace)))
        return deleted + delete_entries(db, where)


def _next_ids(engine: sa.Engine, where: sa.ColumnElement[bool], last: str) -> sa.Select[tuple[str]]:
    query = sa.select(_entries.c.id).where(where)
    if engine.dialect.name == "sqlite":  # in the order of the file: what lies side by side is cheap
        return query
    return query.where(_entries.c.id > last).order_by(_entries.c.id)  # past the rows that were just deleted


def _clear_log(engine: sa.Engine, log: sa.Table, namespace: str | None) -> int:
    """Delete the rows of a log, in batches; return the newest id that was scanned."""
    where = _of_namespace(engine, log, namespace)
    with reading(engine) as db:
        low, high = db.execute(sa.select(sa.func.min(log.c.id), sa.func.max(log.c.id))).one()
    if high is None:
        return 0
    for start in range(low, high + 1, LOG_BATCH):
        some = log.c.id.between(start, min(start + LOG_BATCH - 1, high))
        with writing(engine) as db:
            db.execute(sa.delete(log).where(some, where))
    return int(high)


def _of_namespace(engine: sa.Engine, table: sa.Table, namespace: str | None) -> sa.ColumnElement[bool]:
    """Select the rows of a namespace and of its users."""
    if namespace is None:
        return sa.true()
    column: sa.ColumnElement[Any] = table.c.namespace
    users = user_prefix(namespace)
    of_users = sa.func.substr(column, 1, len(users)) == users
    if engine.dialect.name == "sqlite":  # compares bytes, so that the index finds them
        of_users = sa.and_(column >= users, column < users[:-1] + chr(ord(users[-1]) + 1))
    found: sa.ColumnElement[bool] = (column == namespace) | of_users
    return found
