"""What two databases say of a copy between them: where it goes, how far it is, who copies, what was moved."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from filelock import FileLock, Timeout

from ibidem.storage import tables
from ibidem.storage.engine import EXCLUSIVE_LOCK, exclude_stores, exclusive, reading
from ibidem.storage.meta import COPY_TO, MOVED_KEY, set_meta
from ibidem.storage.store import Store

_COPYING = EXCLUSIVE_LOCK + 0x10  # an advisory lock on PostgreSQL


@dataclass(frozen=True, slots=True)
class Mark:
    """The other database of a copy, as a cache id and a URL; of a `namespace` alone, or all of it.

    In the source `cut_over` says whether somebody wants the cut-over; in the target, which holds the last
    `unit` that was written of the table `part`, all parts before are complete.
    """

    cache: str
    place: str
    at: float
    namespace: str | None = None
    cut_over: bool = False
    part: str = ""
    unit: str | int | None = None

    def text(self) -> str:
        """Serialize."""
        return json.dumps(asdict(self))

    def is_of(self, store: Store, namespace: str | None) -> bool:
        """Return whether the copy is one of this namespace, from or to this database."""
        return (self.cache, self.namespace) == (store.id, namespace)


def to_mark(text: str | None) -> Mark | None:
    """Read the output of `Mark.text`; None if it is none."""
    with suppress(ValueError, TypeError):
        return Mark(**json.loads(text or ""))
    return None


def read_mark(store: Store, key: str) -> Mark | None:
    """Return the mark under this key of `meta`; None if there is none that can be read."""
    return to_mark(store.meta.get(key))


def read_moves(store: Store) -> list[Mark]:
    """Return where the cache, or namespaces of it, were moved to."""
    with suppress(ValueError, TypeError):
        return [Mark(**one) for one in json.loads(store.meta.get(MOVED_KEY) or "[]")]
    return []


def was_moved(source: Store, target: Store, namespace: str | None) -> bool:
    """Return whether this cache or namespace was cut over to the target."""
    return any(move.is_of(target, namespace) for move in read_moves(source))


def close_source(source: Store, target: Store, namespace: str | None) -> None:
    """Let a cache, or a namespace, take no answers any more. What was taken is there when this returns."""
    moves = [one for one in read_moves(source) if one.namespace != namespace]
    moves.append(Mark(target.id, target.url, time.time(), namespace))
    with exclusive(source.engine) as db:
        exclude_stores(db, tables.invalidations)  # with what pins and invalidates
        if db.dialect.name == "postgresql":  # with what is told of documents
            db.exec_driver_sql(f"LOCK TABLE {tables.told_documents.name} IN SHARE ROW EXCLUSIVE MODE")
        set_meta(db, MOVED_KEY, json.dumps(list(map(asdict, moves))))


def forget_moves(store: Store, namespace: str | None) -> None:
    """Let a namespace take answers again; None: all of them."""
    kept = [asdict(one) for one in read_moves(store) if namespace not in (None, one.namespace)]
    store.meta.set(MOVED_KEY, json.dumps(kept) if kept else None)


def request_cut_over(source: Store, target: Store, namespace: str | None) -> bool:
    """Ask the process that follows to cut over; return whether there is such a copy."""
    text = source.meta.get(COPY_TO)
    mark = to_mark(text)
    if mark is None or not mark.is_of(target, namespace):
        return False
    wanted = Mark(mark.cache, mark.place, mark.at, mark.namespace, cut_over=True)
    return source.meta.compare_and_set(COPY_TO, text, wanted.text())


@contextmanager
def copying_alone(store: Store) -> Iterator[bool]:
    """Hold the lock of copies from this database, and yield True; False if another process holds it.

    It ends with its process, however that ends.
    """
    if store.engine.dialect.name == "postgresql":
        with reading(store.engine) as db:
            held = bool(db.scalar(sa.select(sa.func.pg_try_advisory_lock(_COPYING))))
            try:
                yield held
            finally:
                if held:
                    with suppress(sa.exc.SQLAlchemyError):  # then the server has ended the session
                        db.scalar(sa.select(sa.func.pg_advisory_unlock(_COPYING)))
        return
    lock = FileLock(f"{store.engine.url.database}.copying")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
