"""Vetted answers in the database: corrected, warmed, withdrawn by an invalidation, served again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from ibidem.lifecycle.invalidation import KEPT_SECONDS, Criteria
from ibidem.lifecycle.rules import UNBOUNDED, Bounds
from ibidem.storage import tables
from ibidem.storage.deletion import InvalidationTable, delete_entries
from ibidem.storage.engine import exclude_stores, fetch_all, in_namespace, reading, valid_rows, writing
from ibidem.storage.entries import (
    ENTRY_COLUMNS,
    EntryTable,
    entry_row,
    entry_size,
    put_related,
    to_entry,
)
from ibidem.storage.vectors import embedder_id, enqueue_missing
from ibidem.types import ANY_DOCUMENTS, Answer, Entry, Source

_entries, _withdrawn, _vectors = tables.entries, tables.withdrawn, tables.entry_vectors
_documents, _tags = tables.entry_documents, tables.entry_tags
_e, _w, _l = _entries.c, _withdrawn.c, tables.lookups.c
_IS_PINNED, _IS_REPLACED = _e.pinned != "", _e.pinned != "corrected"


@dataclass(frozen=True, slots=True)
class PinCounts:
    """The vetted answers: those that are served, by origin, and those that an invalidation withdrew."""

    corrected: int
    warmed: int
    withdrawn: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A vetted answer that is not served any more, since `at`, because of `criteria` (None if unknown).

    If it is `outdated` it is still stored: its question was asked, and its documents had changed.
    """

    entry: Entry
    at: float
    criteria: Criteria | None = None
    outdated: bool = False


class PinTable:
    """The vetted answers of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine, invalidations: InvalidationTable, entries: EntryTable) -> None:
        self._engine, self._invalidations, self._entries = engine, invalidations, entries

    def correct(
        self, entry_id: str, change: Callable[[Entry], Answer], now: float, bounds: Bounds = UNBOUNDED
    ) -> tuple[tuple[Entry, Entry] | None, str]:
        """Pin the answer that `change` makes of the entry as it is, in one transaction.

        All its documents count as supporting from now on: which of them the new text rests on is not known.

        Returns:
            The entry as it was and as it is, None if nothing was changed; and "", or why: `unknown_entry`,
            `invalidated` or `pins_full`. What `change` raises passes through.
        """
        with writing(self._engine) as db:
            exclude_stores(db, tables.invalidations)
            found = self._read(db, entry_id)
            if found is None:
                return None, "unknown_entry"
            before, size = found
            # One under way deletes what it has found, unless that is stored anew: this must not pass for it.
            if self._invalidations.rejects(db, before, max(before.created, now - KEPT_SECONDS)):
                return None, "invalidated"
            after = replace(
                before,
                answer=change(before),
                pinned="corrected",
                created=now,
                requested=now,  # the person knows what there is now
                used=now,
                expires=None,
                ttl=None,
            )
            size += entry_size(after) - entry_size(before)
            if _is_full(db, entry_id, size, bounds):
                return None, "pins_full"
            row = {**entry_row(after), "size": size, "hits": before.hits}
            db.execute(sa.update(_entries).where(_e.id == entry_id).values(row))
            mine = _documents.c.entry_id == entry_id
            db.execute(sa.update(_documents).where(mine).values(supports=True))
            db.execute(sa.delete(_withdrawn).where(_w.id == entry_id))
        return (before, after), ""

    def pin(
        self,
        entry: Entry,
        embedder: str,
        requested: float,
        bounds: Bounds = UNBOUNDED,
        replaces: str = "",
    ) -> str:
        """Store a vetted answer, in place of what there is; return "", or `invalidated` or `pins_full`.

        One that stands for itself also takes the place of all others to the same question over any documents,
        and each of that with the id `replaces`; but not of corrected ones. `embedder` is the fingerprint of
        the embedder of its vector.
        """
        with writing(self._engine) as db:
            exclude_stores(db, tables.invalidations)
            if self._invalidations.rejects(db, entry, requested):
                return "invalidated"
            if _is_full(db, entry.id, entry_size(entry), bounds):
                return "pins_full"
            _replace_entry(db, entry)
            put_related(db, entry, embedder)
            if replaces != entry.id:
                delete_entries(db, sa.and_(_e.id == replaces, _IS_REPLACED))
            if entry.documents == ANY_DOCUMENTS and entry.point is not None:
                same = (_vectors.c.embedder == embedder_id(embedder), _vectors.c.point == entry.point)
                twins = sa.select(_vectors.c.entry_id).where(*same)
                delete_entries(db, sa.and_(_e.id.in_(twins), _gives_way_to(entry)))
            db.execute(sa.delete(_withdrawn).where(_w.id == entry.id))
        return ""

    def counts(self, namespace: str | None = None) -> PinCounts:
        """Count the vetted answers, all or those of one namespace."""
        by_origin = sa.select(_e.pinned, sa.func.count()).where(_IS_PINNED).group_by(_e.pinned)
        found = {
            row[0]: int(row[1])
            for row in fetch_all(self._engine, in_namespace(by_origin, _e.namespace, namespace))
        }
        waiting = in_namespace(sa.select(sa.func.count()).select_from(_withdrawn), _w.namespace, namespace)
        with reading(self._engine) as db:
            return PinCounts(found.get("corrected", 0), found.get("warmed", 0), int(db.scalar(waiting) or 0))

    def withdrawn(self, limit: int, namespace: str | None = None) -> list[Withdrawn]:
        """Return vetted answers that are not served any more, the newest first; all or of one namespace."""
        query = in_namespace(sa.select(_w.entry, _w.at, _w.criteria), _w.namespace, namespace)
        rows = fetch_all(self._engine, query.order_by(_w.at.desc(), _w.id).limit(limit))
        return list(valid_rows(_to_withdrawn, rows))

    def outdated(self, limit: int, namespace: str | None = None) -> list[Withdrawn]:
        """Return vetted answers that were not served, since other documents were retrieved, newest first."""
        last = sa.func.max(_l.at).label("last")
        changed = (
            sa.select(_l.entry_id, last)
            .where(_l.reason.in_(("documents_changed", "documents_added")))
            .group_by(_l.entry_id)
        )
        c = changed.subquery().c
        query = sa.select(_e.id, c.last).join(c.last.table, c.entry_id == _e.id)
        query = in_namespace(query.where(_IS_PINNED, _e.created < c.last), _e.namespace, namespace)
        rows = fetch_all(self._engine, query.order_by(c.last.desc()).limit(limit))
        at = {row[0]: row[1] for row in rows}
        return [Withdrawn(one, at[one.id], outdated=True) for one in self._entries.of_ids(list(at))]

    def discard(self, entry_id: str) -> bool:
        """Forget a withdrawn answer; return whether there was one."""
        with writing(self._engine) as db:
            return bool(db.execute(sa.delete(_withdrawn).where(_w.id == entry_id)).rowcount)

    def restore(
        self, entry_id: str, change: Callable[[Entry], Answer], now: float, bounds: Bounds = UNBOUNDED
    ) -> str:
        """Serve a withdrawn answer again, as `change` makes it of the entry; return "", or why not.

        Over the documents that it had: if they were edited, it waits until they are as they were.

        Returns:
            `unknown_entry`, `invalidated` (the documents are known to have changed) or `pins_full`.
        """
        with writing(self._engine) as db:
            exclude_stores(db, tables.invalidations)
            rows = db.execute(sa.select(_w.entry, _w.at, _w.criteria).where(_w.id == entry_id)).all()
            found = next(valid_rows(_to_withdrawn, rows), None)
            if found is None:
                return "unknown_entry"
            entry = replace(found.entry, answer=change(found.entry), created=now, requested=now, used=now)
            if self._invalidations.rejects(db, entry, now):
                return "invalidated"
            if _is_full(db, entry_id, entry_size(entry), bounds):
                return "pins_full"
            _replace_entry(db, entry)
            put_related(db, replace(entry, semantic=False), "")
            if entry.documents == ANY_DOCUMENTS:
                delete_entries(db, _gives_way_to(entry))
            for number in db.scalars(sa.select(tables.embedders.c.id)).all() if entry.semantic else ():
                enqueue_missing(db, number, entry_id)  # the caches embed its question
            db.execute(sa.delete(_withdrawn).where(_w.id == entry_id))
        return ""

    def _read(self, db: sa.Connection, entry_id: str) -> tuple[Entry, int] | None:
        """Return the entry with sources and tags but without vector, and its size."""
        locked = sa.select(*ENTRY_COLUMNS, _e.size).where(_e.id == entry_id).with_for_update()
        sources = [
            Source(d.document_id, d.digest, d.supports, d.source) for d in _of(db, _documents, entry_id)
        ]
        tags = tuple(row.tag for row in _of(db, _tags, entry_id))

        def to_pair(row: Any) -> tuple[Entry, int]:
            return replace(to_entry(row, tuple(sources)), tags=tags), row.size

        return next(valid_rows(to_pair, db.execute(locked).all()), None)


def _of(db: sa.Connection, table: sa.Table, entry_id: str) -> Any:
    return db.execute(sa.select(table).where(table.c.entry_id == entry_id)).all()


def _gives_way_to(entry: Entry) -> sa.ColumnElement[bool]:
    """Select the other answers to the same question in the same scope, but corrected ones."""
    same = (_e.question == entry.question, _e.namespace == entry.namespace, _e.scope == entry.scope)
    return sa.and_(_e.id != entry.id, *same, _IS_REPLACED)


def _is_full(db: sa.Connection, entry_id: str, size: int, bounds: Bounds) -> bool:
    """Return whether the pinned answers would exceed the bounds with this one: nothing would make room."""
    if not bounds.limited:
        return False
    sums = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_e.size), 0))
    count, held = db.execute(sums.where(_IS_PINNED, _e.id != entry_id)).one()
    too_many = bounds.max_entries is not None and count + 1 > bounds.max_entries
    return too_many or (bounds.max_bytes is not None and held + size > bounds.max_bytes)


def _replace_entry(db: sa.Connection, entry: Entry) -> None:
    """Insert the entry, or replace the one of its id but keep its hits."""
    row = entry_row(entry)
    known = db.scalar(sa.select(_e.hits).where(_e.id == entry.id).with_for_update())
    if known is None:
        db.execute(sa.insert(_entries).values({**row, "rank": 0.0}))
    else:
        db.execute(sa.update(_entries).where(_e.id == entry.id).values({**row, "hits": known}))


def _to_withdrawn(row: Any) -> Withdrawn:
    held = json.loads(row.entry)
    of = held["entry"]
    sources = tuple(
        Source(d["document_id"], d["digest"], d["supports"], d["source"]) for d in held[_documents.name]
    )
    of.setdefault("scope_parts", "")  # of what was withdrawn before schema 8
    of.setdefault("requested", of["created"])  # and before schema 11
    of = {"base": "", "turns": "", **of}  # and before schema 12
    entry = to_entry([of[column.name] for column in ENTRY_COLUMNS], sources)
    tags = tuple(tag["tag"] for tag in held[_tags.name])
    return Withdrawn(replace(entry, tags=tags), row.at, Criteria.read(row.criteria))
