"""Deletion of entries: expiry, eviction, clearing, and invalidation with its table `invalidations`.

Everything goes through `delete_entries`, in the caller's transaction: with an entry go its documents, tags,
answered turns and vectors, and its points are recorded as dead, for the vector indexes to delete them later.

An invalidation also leaves a tombstone, which rejects answers that are just being made. A store reads the
tombstones in its own transaction, an invalidation writes one before it looks for what is to be deleted, and
the two do not overlap. So an answer is either found by the invalidation, or not stored. What was asked for
after that is stored, and stays.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from ibidem.lifecycle.invalidation import KEPT_SECONDS, Criteria, Tombstones
from ibidem.lifecycle.rules import RANKINGS, UNBOUNDED, Bounds
from ibidem.lifecycle.told import telling_of
from ibidem.storage import tables
from ibidem.storage.engine import exclude_stores, reading, sql_min, valid_rows, writing
from ibidem.storage.examples import to_documents
from ibidem.storage.meta import MOVED_KEY, get_meta, moved_error, require_here, set_meta
from ibidem.storage.tables import MAX_NUMBER
from ibidem.storage.told import note, trim
from ibidem.storage.vectors import delete_vectors
from ibidem.types import Entry, user_prefix

BATCH = 100  # entries deleted in one transaction, so that nobody waits long for the lock
TRANSACTION_SECONDS = 0.04  # what one transaction may take that deletes many entries
MIN_BATCH, MAX_BATCH = 20, 1_000  # entries of such a transaction
LOG_BATCH = 4_000  # ids of a log that one transaction scans

_entries, _invalidations, _withdrawn = tables.entries, tables.invalidations, tables.withdrawn
_LOGS = (tables.lookups, tables.examples, tables.judgements, tables.answered_turns)
_PREFIXES = "0123456789abcdef"  # with which ids begin
_FLOOR, _RANKING = "eviction_floor", "eviction_ranking"


def delete_entries(db: sa.Connection, where: sa.ColumnElement[bool]) -> int:
    """Delete the entries that fulfil the condition; return how many."""
    mine = sa.select(_entries.c.id).where(where)
    delete_vectors(db, mine)
    for table in (tables.entry_documents, tables.entry_tags, tables.answered_turns):
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
            trim(db)
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
        """Delete at least so many entries or bytes, the lowest ranks first, at most a batch; no pinned ones.

        Returns:
            How many entries and bytes were deleted, and the floor of the ranks from now on.
        """
        c = _entries.c
        lowest = sa.select(c.id, c.size, c.rank, c.used).where(c.pinned == "")
        lowest = lowest.order_by(c.rank, c.used).limit(BATCH)
        chosen: dict[str, tuple[int, float, float]] = {}
        freed = 0
        with writing(self._engine) as db:
            for entry_id, bytes_, rank, used in db.execute(lowest):
                if len(chosen) >= entries and freed >= size:
                    break
                chosen[entry_id] = bytes_, rank, used
                freed += bytes_
            same = [(entry_id, used) for entry_id, (*_, used) in chosen.items()]
            unused = sa.and_(sa.tuple_(c.id, c.used).in_(same), c.pinned == "")
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
    with reading(engine) as db:
        require_here(db, namespace)
    newest = {log: _clear_log(engine, log, namespace) for log in _LOGS}
    where, deleted = of_namespace(engine, _entries, namespace), 0
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
            db.execute(sa.delete(log).where(log.c.id > newest_id, of_namespace(engine, log, namespace)))
        require_here(db, namespace)  # a copy has not seen what is deleted now
        db.execute(sa.delete(_withdrawn).where(of_namespace(engine, _withdrawn, namespace)))
        return deleted + delete_entries(db, where)


def _next_ids(engine: sa.Engine, where: sa.ColumnElement[bool], last: str) -> sa.Select[tuple[str]]:
    query = sa.select(_entries.c.id).where(where)
    if engine.dialect.name == "sqlite":  # in the order of the file: what lies side by side is cheap
        return query
    return query.where(_entries.c.id > last).order_by(_entries.c.id)  # past the rows that were just deleted


def _clear_log(engine: sa.Engine, log: sa.Table, namespace: str | None) -> int:
    """Delete the rows of a log, in batches; return the newest id that was scanned."""
    where = of_namespace(engine, log, namespace)
    with reading(engine) as db:
        low, high = db.execute(sa.select(sa.func.min(log.c.id), sa.func.max(log.c.id))).one()
    if high is None:
        return 0
    for start in range(low, high + 1, LOG_BATCH):
        some = log.c.id.between(start, min(start + LOG_BATCH - 1, high))
        with writing(engine) as db:
            db.execute(sa.delete(log).where(some, where))
    return int(high)


def of_namespace(engine: sa.Engine, table: sa.Table, namespace: str | None) -> sa.ColumnElement[bool]:
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


_entries, _documents, _tags = tables.entries, tables.entry_documents, tables.entry_tags
_invalidations, _examples = tables.invalidations, tables.examples
# With where the cache was moved, under the number 0: each store looks for both, in one statement.
_NEWER = (
    sa.select(_invalidations.c.id, _invalidations.c.at, _invalidations.c.criteria)
    .where(_invalidations.c.id > sa.bindparam("last"))
    .union_all(
        sa.select(sa.literal(0), sa.literal(0.0), tables.meta.c.value).where(tables.meta.c.key == MOVED_KEY)
    )
    .order_by("id")
)
_FEW = 8  # documents that are looked for by name in the JSON of examples; for more, all examples are read


class InvalidationTable:
    """Invalidation in one database. Every method raises `StorageError` when it fails.

    A lookup that begins after `invalidate` has returned finds nothing of what it deleted, in whichever
    process: what is served was read from the database in the same lookup.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._tombstones = Tombstones()

    def rejects(self, db: sa.Connection, entry: Entry, requested: float) -> bool:
        """Return whether a tombstone rejects an answer requested at this time; first in its transaction.

        Raises:
            CacheMoved: No answer is taken any more.
        """
        # PostgreSQL locks the table for reading until the end of the transaction: see `exclude_stores`.
        rows = db.execute(_NEWER, {"last": self._tombstones.last}).all()
        if rows and rows[0].id == 0 and (error := moved_error(rows[0].criteria, entry.namespace)):
            raise error
        if rows:
            self._tombstones.add((row.id, row.at, row.criteria) for row in rows)
        return self._tombstones.last > 0 and self._tombstones.refuse(entry, requested)

    def invalidate(
        self, criteria: Criteria, clock: Callable[[], float], *, examples: bool = True
    ) -> tuple[list[str], int]:
        """Delete the matching entries, and by default their examples; return ids, and how many examples.

        Those that match when it begins are deleted in batches. If it fails on the way the rest stays, though
        what is just being made is rejected already: call it again.
        """
        done = [self._invalidate_part(part, clock, examples=examples) for part in criteria.parts()]
        with reading(self._engine) as db:
            require_here(db, criteria.namespace)  # a copy may not have seen what was deleted last
        return [id_ for ids, _ in done for id_ in ids], sum(count for _, count in done)

    def _invalidate_part(
        self, criteria: Criteria, clock: Callable[[], float], *, examples: bool
    ) -> tuple[list[str], int]:
        with writing(self._engine) as db:
            exclude_stores(db, _invalidations)
            require_here(db, criteria.namespace)
            now = clock()
            tombstone = {"at": now, "criteria": criteria.as_json()}
            db.execute(sa.insert(_invalidations).values(tombstone))
            note(db, telling_of(criteria), now)
        # What is stored from now on does not match.
        ids, count = _delete_in_batches(self._engine, _matching_entries(criteria), examples, tombstone)
        return ids, count + (self._delete_matching_examples(criteria) if examples else 0)

    def preview(self, criteria: Criteria, limit: int) -> tuple[int, list[str]]:
        """Return how many entries `invalidate` would delete, and the ids of the newest of each part."""
        found = [self._preview_part(part, limit) for part in criteria.parts()]
        return sum(count for count, _ in found), [id_ for _, ids in found for id_ in ids]

    def _preview_part(self, criteria: Criteria, limit: int) -> tuple[int, list[str]]:
        where = _matching_entries(criteria)
        newest = sa.select(_entries.c.id).where(where).order_by(_entries.c.created.desc()).limit(limit)
        with reading(self._engine) as db:
            count = db.scalar(sa.select(sa.func.count()).select_from(_entries).where(where)) or 0
            return count, list(db.scalars(newest))

    def _delete_matching_examples(self, criteria: Criteria) -> int:
        """Delete examples that match themselves: their entry may be gone, or never existed."""
        c = _examples.c

        def match(row: Any) -> tuple[int, bool]:
            return row.id, criteria.matches(
                namespace=row.namespace,
                model=row.model,
                entry=row.entry_id,
                created=row.at,
                tags=json.loads(row.tags),
                documents=to_documents(row.documents),
            )

        query = sa.select(c.id, c.at, c.namespace, c.model, c.documents, c.entry_id, c.tags)
        with reading(self._engine) as db:
            rows = db.execute(query.where(*_possible_examples(criteria)))
            found = [example_id for example_id, matches in valid_rows(match, rows) if matches]
        for start in range(0, len(found), BATCH):
            with writing(self._engine) as db:
                db.execute(sa.delete(_examples).where(c.id.in_(found[start : start + BATCH])))
        return len(found)


def _matching_entries(criteria: Criteria) -> sa.ColumnElement[bool]:
    """Express `Criteria.matches_entry` in SQL."""
    c = _entries.c
    parts = _same_values(_entries, criteria)
    if criteria.entry is not None:
        parts.append(c.id == criteria.entry)
    if criteria.tag is not None:
        parts.append(c.id.in_(sa.select(_tags.c.entry_id).where(_tags.c.tag == criteria.tag)))
    if criteria.before is not None:
        parts.append(c.created < criteria.before)
    if criteria.documents:
        d = _documents.c
        named = sa.or_(d.document_id.in_(criteria.documents), d.source.in_(criteria.documents))
        resting = sa.select(d.entry_id).where(named)
        if criteria.current is not None:
            resting = resting.where(d.digest.not_in(sorted(criteria.current)))
        parts.append(c.id.in_(resting))
    return sa.and_(sa.true(), *parts)


def _possible_examples(criteria: Criteria) -> list[sa.ColumnElement[bool]]:
    """Select the examples worth checking with `Criteria.matches`: too many of them, never too few."""
    c = _examples.c
    parts = _same_values(_examples, criteria)
    # LIKE on names as JSON writes them.
    if criteria.tag is not None:
        parts.append(c.tags.contains(json.dumps(criteria.tag), autoescape=True))
    if 0 < len(criteria.documents) <= _FEW:
        names = map(json.dumps, criteria.documents)
        parts.append(sa.or_(*(c.documents.contains(name, autoescape=True) for name in names)))
    return parts


def _same_values(table: sa.Table, criteria: Criteria) -> list[sa.ColumnElement[bool]]:
    wanted = ((table.c.namespace, criteria.namespace), (table.c.model, criteria.model))
    return [column == value for column, value in wanted if value is not None]


def _delete_in_batches(
    engine: sa.Engine, where: sa.ColumnElement[bool], with_examples: bool, tombstone: dict[str, Any]
) -> tuple[list[str], int]:
    """Delete entries that fulfil the condition now, and their examples; return ids, and how many of these."""
    c = _entries.c
    query = sa.select(c.id, c.created).where(where)
    if engine.dialect.name == "sqlite":  # what lies side by side in the file is deleted ten times as fast
        query = query.order_by(sa.text(f"{_entries.name}.rowid"))
    with reading(engine) as db:  # this locks nothing
        found = [(row.id, row.created) for row in db.execute(query)]
    deleted, deleted_examples, batch, at = list[str](), 0, BatchSize(), 0
    while at < len(found):
        some = dict(found[at : at + batch.size])
        at += len(some)
        with writing(engine) as db, batch:
            ids, count = _delete(db, some, with_examples, tombstone)
        deleted, deleted_examples = deleted + ids, deleted_examples + count
    return deleted, deleted_examples


def _delete(
    db: sa.Connection, some: dict[str, float], with_examples: bool, tombstone: dict[str, Any]
) -> tuple[list[str], int]:
    """Delete entries, and the examples that repeat their answers; return the ids, and how many examples.

    Vetted answers are withdrawn: a person decides what becomes of them.
    An entry that was stored anew since it was found stays: `some` holds when each was stored.
    """
    c = _entries.c
    now = sa.select(c.id, c.created).where(c.id.in_(some)).order_by(c.id)
    if db.dialect.name == "postgresql":  # in the order in which others lock them, against deadlocks
        now = now.with_for_update()
    found = [entry_id for entry_id, created in db.execute(now) if created == some[entry_id]]
    if not found:
        return [], 0
    mine = c.id.in_(found)
    count = _delete_examples(db, found, mine) if with_examples else 0
    for pinned in db.execute(sa.select(_entries).where(mine, c.pinned != "")).all():
        _withdraw(db, dict(pinned._mapping), tombstone)
    delete_entries(db, mine)
    return found, count


def delete_refused(engine: sa.Engine, criteria: Criteria, at: float, namespace: str | None) -> None:
    """Delete what an invalidation at this time forbids, of a namespace and its users; None: of all.

    In batches, as `invalidate` does, for one that came from another database.
    """
    where = sa.and_(_matching_entries(criteria), _entries.c.requested <= at)
    where = sa.and_(where, of_namespace(engine, _entries, namespace))
    _delete_in_batches(engine, where, False, {"at": at, "criteria": criteria.as_json()})


def _withdraw(db: sa.Connection, entry: dict[str, Any], tombstone: dict[str, Any]) -> None:
    """Keep what is known of a vetted answer, in place of what was withdrawn of it before."""
    related = {
        table.name: [
            dict(row._mapping) for row in db.execute(sa.select(table).where(table.c.entry_id == entry["id"]))
        ]
        for table in (_documents, _tags)
    }
    row = {
        "id": entry["id"],
        "namespace": entry["namespace"],
        "at": tombstone["at"],
        "criteria": tombstone["criteria"],
        "entry": json.dumps({"entry": entry, **related}),
    }
    db.execute(sa.delete(_withdrawn).where(_withdrawn.c.id == entry["id"]))
    db.execute(sa.insert(_withdrawn).values(row))


def _delete_examples(db: sa.Connection, found: list[str], mine: sa.ColumnElement[bool]) -> int:
    same = [(_examples.c[name], _entries.c[name]) for name in ("namespace", "question", "answer")]
    asked = sa.select(*(column for _, column in same)).where(mine, _entries.c.question.is_not(None))
    repeated = sa.tuple_(*(column for column, _ in same)).in_(asked)
    examples = sa.delete(_examples).where(sa.or_(_examples.c.entry_id.in_(found), repeated))
    return int(db.execute(examples).rowcount)
