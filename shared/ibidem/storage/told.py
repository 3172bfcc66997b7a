"""The table `told_documents`: documents that were added or changed, and when the cache was told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from ibidem.lifecycle.told import FORGOTTEN, Telling, Told, content_key, keys_of, name_key
from ibidem.storage import tables
from ibidem.storage.engine import Prepared, insert_into, valid_rows, writing
from ibidem.storage.meta import require_here
from ibidem.types import Document

KEPT = 100_000  # of what was told; what is older counts as told of as late as the last that was deleted
_AT_ONCE = 32  # keys in one query
_TRIMMED = 10_000  # rows that one transaction deletes

_told = tables.told_documents
_c = _told.c
_KEYS = [f"key_{number}" for number in range(_AT_ONCE)]
_TIMES = Prepared(
    sa.select(_c.key, _c.at).where(_c.key.in_([sa.bindparam(name, type_=sa.String) for name in _KEYS]))
)


class ToldTable:
    """What one database was told of. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, names: Iterable[str], namespace: str | None, at: float) -> None:
        """Note that these documents, or parts of these sources, are new; in a namespace, or in all (None)."""
        with writing(self._engine) as db:
            note(db, Telling(frozenset(name_key(namespace, name) for name in names)), at)
            require_here(db, namespace)

    def of(self, documents: Iterable[Document], namespace: str) -> Told:
        """Return when these documents were told of."""
        keys = [FORGOTTEN, *dict.fromkeys(key for one in documents for key in keys_of(one, namespace))]
        found: dict[str, float] = {}
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            values = dict(zip(_KEYS, [*some, *[some[-1]] * (_AT_ONCE - len(some))], strict=True))
            found.update(valid_rows(_to_time, _TIMES.rows(self._engine, values)))
        return Told(namespace, found)


def note(db: sa.Connection, telling: Telling, at: float) -> None:
    """Note what was told, in the caller's transaction; one after another, but beside lookups."""
    of_names = [*telling.names, *telling.contents]
    if not of_names:
        return
    if db.dialect.name == "postgresql":
        db.exec_driver_sql("SET LOCAL lock_timeout = 0")
        db.exec_driver_sql(f"LOCK TABLE {_told.name} IN SHARE ROW EXCLUSIVE MODE")
    insert: Any = insert_into(db.dialect.name)(_told)
    for first in range(0, len(of_names), _AT_ONCE):  # what they said before is not what they say now
        some = of_names[first : first + _AT_ONCE]
        kept = frozenset[str]().union(*(telling.contents.get(name, frozenset()) for name in some))
        gone = [key for key in db.scalars(sa.select(_c.key).where(_c.document.in_(some))) if key not in kept]
        for start in range(0, len(gone), _AT_ONCE):
            db.execute(sa.delete(_told).where(_c.key.in_(gone[start : start + _AT_ONCE])))
    if telling.names:
        rows = [{"key": name, "document": "", "at": at} for name in telling.names]
        db.execute(
            insert.on_conflict_do_update(index_elements=[_c.key], set_={"at": insert.excluded.at}), rows
        )
    for name, contents in telling.contents.items():
        rows = [{"key": key, "document": name, "at": at} for key in {*contents, content_key(name, "")}]
        db.execute(insert.on_conflict_do_nothing(), rows)  # a text that was there before keeps its time


def trim(db: sa.Connection) -> None:
    """Delete the oldest beyond `KEPT`, in the caller's transaction, and note until when they were told."""
    count = db.scalar(sa.select(sa.func.count()).select_from(_told)) or 0
    if count <= KEPT:
        return
    oldest = sa.select(_c.at).where(_c.key != FORGOTTEN).order_by(_c.at).offset(min(count - KEPT, _TRIMMED))
    until = db.scalar(oldest.limit(1))
    if until is not None:
        db.execute(sa.delete(_told).where(_c.at <= until, _c.key != FORGOTTEN))
        db.execute(sa.delete(_told).where(_c.key == FORGOTTEN))
        db.execute(sa.insert(_told).values(key=FORGOTTEN, document="", at=until))


def _to_time(row: Any) -> tuple[str, float]:
    key, at = row
    return str(key), float(at)
