"""Facts noted about a database, by key: its schema version, which index is in use, what was fitted."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa

from ibidem.errors import StorageUnavailable
from ibidem.storage.engine import insert_into, reading, writing
from ibidem.storage.tables import meta as _meta


def noted(db: sa.Connection, key: str) -> str | None:
    """What is noted under the key, in the caller's transaction."""
    return db.scalar(sa.select(_meta.c.value).where(_meta.c.key == key))


def note(db: sa.Connection, key: str, value: str) -> None:
    """Note it in the place of what was noted, in the caller's transaction."""
    insert = insert_into(db.dialect.name)(_meta).values(key=key, value=value)
    db.execute(insert.on_conflict_do_update(index_elements=[_meta.c.key], set_={"value": value}))


class Notes:
    """The notes of one database. Every method raises `StorageError` when the database fails."""

    _engine: sa.Engine

    def meta(self, key: str) -> str | None:
        """A fact noted about this database, such as `schema_version`."""
        with reading(self._engine) as db:
            found = noted(db, key)
        if found == "":  # what is read is never noted so: it is damaged, and would stay in the way
            with contextlib.suppress(StorageUnavailable):
                self.set_meta(key, None)
        return found or None

    def meta_keys(self, prefix: str) -> list[str]:
        """What follows this prefix in the keys that begin with it."""
        with reading(self._engine) as db:
            found = db.scalars(sa.select(_meta.c.key).where(_meta.c.key.startswith(prefix, autoescape=True)))
            return [key.removeprefix(prefix) for key in found]

    def meta_once(self, key: str, value: str) -> str:
        """Note a fact unless it is noted; returns what is noted now."""
        with writing(self._engine) as db:
            insert = insert_into(db.dialect.name)(_meta).values(key=key, value=value)
            db.execute(insert.on_conflict_do_nothing())
        return self.meta(key) or value

    def set_meta(self, key: str, value: str | None) -> None:
        """Note a fact in the place of what was noted; None forgets it."""
        with writing(self._engine) as db:
            if value is None:
                db.execute(sa.delete(_meta).where(_meta.c.key == key))
            else:
                note(db, key, value)

    def meta_swap(self, key: str, old: str | None, new: str) -> bool:
        """Note `new` if `old` is what is noted now; returns whether it was."""
        insert = insert_into(self._engine.dialect.name)(_meta).values(key=key, value=new)
        change = sa.update(_meta).where(_meta.c.key == key, _meta.c.value == old).values(value=new)
        with writing(self._engine) as db:
            done = db.execute(
                insert.on_conflict_do_nothing() if old is None else change,
                execution_options={"preserve_rowcount": True},  # else it is -1 after an insert
            )
        return int(done.rowcount) == 1
