"""Deleting entries from the truth: the expired, the evicted, the invalidated, the cleared.

All goes through `delete`, in the caller's transaction: with an entry go its documents, tags and
vectors, and its points are noted, for the vector indexes to forget them later, whichever process does that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ibidem.lifecycle.eviction import RANKINGS, UNBOUNDED, Bounds
from ibidem.lifecycle.invalidation import KEPT_SECONDS
from ibidem.scope import users_of
from ibidem.storage import tables
from ibidem.storage.columns import LARGEST, sound
from ibidem.storage.engine import insert_into, least, reading, writing
from ibidem.storage.meta import note, noted

BATCH = 100  # entries deleted in one transaction, so that nobody waits long for the lock
HELD_SECONDS = 0.04  # so long one transaction may take that deletes many entries
LEAST, MOST = 20, 1_000  # entries of such a transaction

_entries, _vectors, _dead = tables.entries, tables.entry_vectors, tables.dead_points
_invalidations = tables.invalidations
_PREFIXES = "0123456789abcdef"  # with which ids begin
_FLOOR, _RANKING = "eviction_floor", "eviction_ranking"


def delete(db: sa.Connection, where: sa.ColumnElement[bool]) -> int:
    """Delete the entries that fulfil the condition; returns how many."""
    mine = sa.select(_entries.c.id).where(where)
    forget_vectors(db, mine)
    for table in (tables.entry_documents, tables.entry_tags):
        db.execute(sa.delete(table).where(table.c.entry_id.in_(mine)))
    return int(db.execute(sa.delete(_entries).where(where)).rowcount)


def forget_vectors(db: sa.Connection, ids: sa.Select[tuple[str]]) -> None:
    """Delete the vectors of these entries, of all embedders; their indexes forget them later."""
    c = _vectors.c
    points = sa.select(c.embedder, c.point).where(c.entry_id.in_(ids), c.point.is_not(None)).distinct()
    left = insert_into(db.dialect.name)(_dead).from_select(["embedder", "point"], points)
    db.execute(left.on_conflict_do_nothing())
    db.execute(sa.delete(_vectors).where(c.entry_id.in_(ids)))


def alive(db: sa.Connection, embedder: int, points: Sequence[str]) -> set[str]:
    """Those of the points that some entry has, of this embedder."""
    c = _vectors.c
    return set(db.scalars(sa.select(c.point).distinct().where(c.embedder == embedder, c.point.in_(points))))


def note_orphans(db: sa.Connection, embedder: int, points: Sequence[str]) -> None:
    """Note those of the points that the index holds by now and no entry has: it was deleted meanwhile."""
    if orphans := set(points) - alive(db, embedder, points):
        left = insert_into(db.dialect.name)(_dead).on_conflict_do_nothing()
        db.execute(left, [{"embedder": embedder, "point": point} for point in orphans])


def _floor(db: sa.Connection) -> float:
    floor = next(sound(float, [noted(db, _FLOOR) or "0"]), 0.0)
    return floor if math.isfinite(floor) else 0.0


class Pace:
    """How many entries the next transaction deletes: as many as the last ones deleted in `HELD_SECONDS`.

    Entries that lie scattered in the file take ten times as long as those that lie side by side.
    """

    def __init__(self) -> None:
        self.size, self._began = BATCH, 0.0

    def __enter__(self) -> int:
        self._began = time.perf_counter()
        return self.size

    def __exit__(self, *error: object) -> None:
        ratio = HELD_SECONDS / max(1e-6, time.perf_counter() - self._began)
        self.size = max(LEAST, min(MOST, int(self.size * min(2.0, ratio))))


def still(db: sa.Connection, found: Sequence[str], where: sa.ColumnElement[bool]) -> list[str]:
    """Those of the entries found that fulfil the condition now, and until the transaction ends.

    On PostgreSQL others may have changed them since they were found: their rows are locked, in the order in
    which others lock them, and looked at again. In SQLite whoever writes is alone.
    """
    if db.dialect.name != "postgresql" or not found:
        return list(found)
    again = sa.select(_entries.c.id).where(_entries.c.id.in_(found), where)
    return list(db.scalars(again.order_by(_entries.c.id).with_for_update()))


class Removal:
    """What is deleted from one database, in batches. Every method raises `StorageError` when it fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def purge(self, now: float, limit: int = BATCH) -> int:
        """Delete some entries that expired before `now`, and old tombstones; returns how many entries."""
        late = _entries.c.expires < now
        expired = sa.select(_entries.c.id).where(late).limit(limit)
        # All but the newest, as SQLite would give its number again, to one that others take for known.
        newest = sa.select(sa.func.max(_invalidations.c.id)).scalar_subquery()
        old = sa.and_(_invalidations.c.at < now - KEPT_SECONDS, _invalidations.c.id < newest)
        with writing(self._engine) as db:
            db.execute(sa.delete(_invalidations).where(old))
            found = still(db, list(db.scalars(expired)), late)  # else one refreshed just now would go
            return delete(db, _entries.c.id.in_(found)) if found else 0

    def size(self) -> tuple[int, int]:
        """How many entries there are, and the bytes they take; a scan."""
        with reading(self._engine) as db:
            size = _entries.c.size
            most = sa.literal(int(LARGEST), sa.BigInteger)  # more than PostgreSQL's INTEGER holds
            usual = sa.case((size.between(0, most), size), else_=0)  # a damaged one has no sum
            query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(usual), 0))
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
            unused = sa.tuple_(c.id, c.used).in_([(entry_id, one[2]) for entry_id, one in chosen.items()])
            victims = still(db, list(chosen), unused)
            freed = sum(chosen[one][0] for one in victims)
            floor = max((chosen[one][1] for one in victims), default=0.0)
            if victims:
                delete(db, _entries.c.id.in_(victims))
                floor = max(floor, _floor(db))  # of a process that knew a lower one
                note(db, _FLOOR, repr(floor))
        return len(victims), freed, floor

    def floor(self) -> float:
        """The floor of the ranks: the rank of what was evicted last."""
        with reading(self._engine) as db:
            return _floor(db)

    def ranking(self) -> Bounds:
        """Bounds that rank as the entries are ranked."""
        with reading(self._engine) as db:
            return RANKINGS.get(noted(db, _RANKING) or "", UNBOUNDED)

    def rank_all(self, bounds: Bounds) -> float:
        """Rank all entries as these bounds do, unless they are ranked so; returns the floor.

        In parts, so that stores do not wait long; done again if it was interrupted.
        """
        c = _entries.c
        if self.ranking().ranking == bounds.ranking:
            return self.floor()
        rank = bounds.rank(0.0, c.hits, c.cost, c.size, c.used, least)
        for first in _PREFIXES:
            with writing(self._engine) as db:
                db.execute(sa.update(_entries).where(c.id.startswith(first)).values(rank=rank))
        with writing(self._engine) as db:
            note(db, _RANKING, bounds.ranking)
            note(db, _FLOOR, "0.0")
        return 0.0


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
