"""What changes in a database while it is copied: noted by triggers, whoever changes it.

A note names a row, not what it holds: whoever reads it looks at the row as it is now. So notes may be read in
any order, and twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import sqlalchemy as sa

from ibidem.storage.copying.plan import Part
from ibidem.storage.engine import exclusive, fetch_all, fetch_value, writing

AT_ONCE = 500  # ids in one statement
_changes = sa.Table(
    "copied_changes",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("part", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
)
_c = _changes.c
_EVENTS = ("INSERT", "UPDATE", "DELETE")


class ChangeLog:
    """The changes of one database since `begin`, until `end`. Every method raises `StorageError`.

    Args:
        engine: Of the database.
        parts: What is noted.
    """

    def __init__(self, engine: sa.Engine, parts: Sequence[Part]) -> None:
        self._engine, self._parts = engine, parts

    def begin(self) -> None:
        """Note all changes from now on. What is being changed has ended when this returns."""
        with exclusive(self._engine) as db:
            db.execute(sa.schema.CreateTable(_changes, if_not_exists=True))
            if db.dialect.name == "postgresql":
                for part, table, unit in self._tables():
                    db.exec_driver_sql(_function(part, table, unit))
        for part, table, unit in self._tables():
            self._change_triggers(table, _triggers(part, table, unit, self._engine.dialect.name))

    def end(self) -> None:
        """Note nothing any more, and forget all."""
        for _, table, _ in self._tables():
            self._change_triggers(table, _without_triggers(table, self._engine.dialect.name))
        with exclusive(self._engine) as db:
            db.execute(sa.schema.DropTable(_changes, if_exists=True))
            if db.dialect.name == "postgresql":
                for _, table, _ in self._tables():
                    db.exec_driver_sql(f"DROP FUNCTION IF EXISTS copied_{table.name}()")

    def _change_triggers(self, table: sa.Table, statements: Iterable[str]) -> None:
        """Change the triggers of one table: of two, the locks could be a deadlock with a store."""
        with exclusive(self._engine) as db:
            if db.dialect.name == "sqlite":
                for statement in statements:
                    db.exec_driver_sql(statement)
            else:  # at once: a store that waits for the lock gives up after a while
                lock = f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"
                db.exec_driver_sql("; ".join((lock, *statements)))

    def read(self, limit: int) -> list[tuple[int, str, str]]:
        """Return some changes: number, part and unit of each."""
        rows = fetch_all(self._engine, sa.select(_c.id, _c.part, _c.unit).order_by(_c.id).limit(limit))
        return [(row.id, row.part, row.unit) for row in rows]

    def forget(self, numbers: Sequence[int]) -> None:
        """Forget changes that were copied."""
        for start in range(0, len(numbers), AT_ONCE):
            with writing(self._engine) as db:
                db.execute(sa.delete(_changes).where(_c.id.in_(numbers[start : start + AT_ONCE])))

    def count(self) -> int:
        """Count the changes that are still to be copied."""
        return fetch_value(self._engine, sa.select(sa.func.count()).select_from(_changes)) or 0

    def _tables(self) -> Iterator[tuple[Part, sa.Table, str]]:
        for part in self._parts:
            for table, unit in part.tables:
                yield part, table, unit


def _triggers(part: Part, table: sa.Table, unit: str, dialect: str) -> Iterator[str]:
    columns = ", ".join(f'"{column.name}"' for column in part.columns(table))
    events = [f"{event} OF {columns}" if event == "UPDATE" else event for event in _EVENTS]
    if dialect == "postgresql":
        yield from _without_triggers(table, dialect)
        yield (
            f"CREATE TRIGGER copied_{table.name} AFTER {' OR '.join(events)} ON {table.name} "
            f"FOR EACH ROW EXECUTE FUNCTION copied_{table.name}()"
        )
        return
    for event, name in zip(events, _EVENTS, strict=True):
        row = "OLD" if name == "DELETE" else "NEW"
        yield (
            f"CREATE TRIGGER IF NOT EXISTS copied_{table.name}_{name.lower()} AFTER {event} "
            f"ON {table.name} BEGIN {_note(part, row, unit)}; END"
        )


def _function(part: Part, table: sa.Table, unit: str) -> str:
    old, new = (_note(part, row, unit, "::text") for row in ("OLD", "NEW"))
    return (
        f"CREATE OR REPLACE FUNCTION copied_{table.name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF TG_OP = 'DELETE' THEN {old}; ELSE {new}; END IF; RETURN NULL; END $$"
    )


def _note(part: Part, row: str, unit: str, cast: str = "") -> str:
    return f"INSERT INTO {_changes.name} (part, unit) VALUES ('{part.name}', {row}.{unit}{cast})"  # noqa: S608


def _without_triggers(table: sa.Table, dialect: str) -> Iterator[str]:
    if dialect == "sqlite":
        yield from (f"DROP TRIGGER IF EXISTS copied_{table.name}_{event.lower()}" for event in _EVENTS)
    else:
        yield f"DROP TRIGGER IF EXISTS copied_{table.name} ON {table.name}"
