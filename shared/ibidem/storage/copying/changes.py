"""What changes in a database while it is copied: noted by triggers, whoever changes it.

A note names a row, not what it holds: whoever reads it looks at the row as it is now. So notes may be read in
any order, and twice. A note of a deletion says when the row was made that was deleted: the other database may
have made a later one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ibidem.storage import tables
from ibidem.storage.copying.plan import Part
from ibidem.storage.engine import exclusive, fetch_all, writing

AT_ONCE = 500  # units in one statement: databases bound the number of parameters
DROP_MS = 200  # limit for waiting to drop a trigger: lookups wait behind it
_notes = sa.Table(
    "copied_changes",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("part", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("deleted", tables.Float(0.0)),  # when the deleted row was made, 0.0 if it does not say so
)
_EVENTS = ("INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True, slots=True)
class Change:
    """A note: its number, and a unit of a part that has changed; `deleted` is when what is gone was made."""

    number: int
    part: str
    unit: Any
    deleted: float | None


class ChangeLog:
    """The changes of one database since `begin`, until `end`. Every method raises `StorageError`.

    Args:
        engine: Of the database.
        parts: What is noted.
    """

    def __init__(self, engine: sa.Engine, parts: Sequence[Part]) -> None:
        self._engine, self._parts = engine, {part.name: part for part in parts}
        self._tables = [(part, table, unit) for part in parts for table, unit in part.tables]

    def begin(self) -> None:
        """Note all changes from now on. What is being changed has ended when this returns."""
        with exclusive(self._engine) as db:
            db.execute(sa.schema.CreateTable(_notes, if_not_exists=True))
        for part, table, unit in self._tables:  # of two in a transaction the locks could be a deadlock
            with exclusive(self._engine) as db:
                if db.dialect.name == "sqlite":
                    _run(db, *_sqlite_triggers(part, table, unit))
                else:  # in one exchange with the server: stores wait for the lock, and give up soon
                    lock = f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"
                    _run(db, "; ".join((lock, _function(part, table, unit), _trigger(part, table))))

    def end(self) -> None:
        """Note nothing any more, and forget all."""
        for _, table, _ in self._tables:
            with writing(self._engine) as db:
                _run(db, *_drop(table, db.dialect.name))
        with exclusive(self._engine) as db:
            db.execute(sa.schema.DropTable(_notes, if_exists=True))
            if db.dialect.name == "postgresql":
                _run(db, *(f"DROP FUNCTION IF EXISTS copied_{table.name}()" for _, table, _ in self._tables))

    def read(self, limit: int) -> list[Change]:
        """Return some changes, the oldest first."""
        rows = fetch_all(self._engine, sa.select(_notes).order_by(_notes.c.id).limit(limit))
        return [Change(id_, part, self._parts[part].unit_of(unit), gone) for id_, part, unit, gone in rows]

    def forget(self, changes: Sequence[Change]) -> None:
        """Forget changes that were copied."""
        for start in range(0, len(changes), AT_ONCE):
            numbers = [change.number for change in changes[start : start + AT_ONCE]]
            with writing(self._engine) as db:
                db.execute(sa.delete(_notes).where(_notes.c.id.in_(numbers)))


def _run(db: sa.Connection, *statements: str) -> None:
    for statement in statements:
        db.exec_driver_sql(statement)


def _drop(table: sa.Table, dialect: str) -> Iterator[str]:
    if dialect == "sqlite":
        yield from (f"DROP TRIGGER IF EXISTS copied_{table.name}_{event.lower()}" for event in _EVENTS)
        return
    # The lock that dropping takes, before anything: who has read the table, and writes to it in the same
    # transaction, would wait for a weaker one of ours, and we for his. Readers wait for us meanwhile.
    yield f"SET LOCAL lock_timeout = '{DROP_MS}ms'"
    yield (
        f"LOCK TABLE {table.name} IN ACCESS EXCLUSIVE MODE; "
        f"DROP TRIGGER IF EXISTS copied_{table.name} ON {table.name}"
    )


def _sqlite_triggers(part: Part, table: sa.Table, unit: str) -> Iterator[str]:
    for name, event in zip(_EVENTS, _events(part, table), strict=True):
        yield (
            f"CREATE TRIGGER IF NOT EXISTS copied_{table.name}_{name.lower()} AFTER {event} "
            f"ON {table.name} BEGIN {_note(part, table, unit, deleted=name == 'DELETE')}; END"
        )


def _trigger(part: Part, table: sa.Table) -> str:
    return (
        f"CREATE OR REPLACE TRIGGER copied_{table.name} AFTER {' OR '.join(_events(part, table))} "
        f"ON {table.name} FOR EACH ROW EXECUTE FUNCTION copied_{table.name}()"
    )


def _function(part: Part, table: sa.Table, unit: str) -> str:
    old, new = (_note(part, table, f"{unit}::text", deleted=deleted) for deleted in (True, False))
    return (  # with the rights of its owner: programs may have a role that may write to our tables only
        f"CREATE OR REPLACE FUNCTION copied_{table.name}() RETURNS trigger LANGUAGE plpgsql "
        f"SECURITY DEFINER SET search_path FROM CURRENT AS $$ BEGIN "
        f"IF TG_OP = 'DELETE' THEN {old}; ELSE {new}; END IF; RETURN NULL; END $$"
    )


def _events(part: Part, table: sa.Table) -> list[str]:
    columns = ", ".join(f'"{name}"' for name in part.columns(table))
    return [f"{event} OF {columns}" if event == "UPDATE" else event for event in _EVENTS]


def _note(part: Part, table: sa.Table, unit: str, *, deleted: bool) -> str:
    row, made = "OLD" if deleted else "NEW", "NULL"
    if deleted and part.deletes and table is part.table:
        made = f"OLD.{part.made}" if part.made else "0"
    return f"INSERT INTO {_notes.name} (part, unit, deleted) VALUES ('{part.name}', {row}.{unit}, {made})"  # noqa: S608
