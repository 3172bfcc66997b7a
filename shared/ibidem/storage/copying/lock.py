"""One process at a time copies from a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from filelock import FileLock, Timeout

from ibidem.storage.engine import EXCLUSIVE_LOCK, reading
from ibidem.storage.store import Store

_COPYING = EXCLUSIVE_LOCK + 0x10  # an advisory lock on PostgreSQL


@contextmanager
def copying_alone(store: Store) -> Iterator[bool]:
    """Hold the lock of copies from this database, and yield True; False if another process holds it.

    It ends with its process, however that ends.
    """
    if store.engine.dialect.name == "postgresql":
        with reading(store.engine) as db:
            held = bool(db.scalar(sa.select(sa.func.pg_try_advisory_lock(_COPYING))))
            db.commit()
            try:
                yield held
            finally:
                if held:
                    with suppress(sa.exc.SQLAlchemyError):  # then the server has ended the session
                        db.scalar(sa.select(sa.func.pg_advisory_unlock(_COPYING)))
                        db.commit()
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
