"""The statements of every lookup: their SQL is made once, and SQLite runs it without SQLAlchemy between.

An exact hit takes 33 us so and 70 us through SQLAlchemy, which prepares, executes and wraps for every caller
anew. With a database server the network is what takes time, and its driver needs SQLAlchemy's care.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ibidem.errors import StorageError, StorageUnavailable
from ibidem.storage.database import reading


@dataclass(frozen=True)
class _Compiled:
    """SQL for SQLite, and the value of each of its parameters, as far as it is known beforehand."""

    sql: str
    names: tuple[str, ...]
    known: Mapping[str, Any]


class Prepared:
    """A SELECT that is run with other values each time.

    Args:
        statement: With `bindparam`s, none of them expanding. Its columns must need no conversion but that of
            SQLite's 0 and 1 to False and True, which is the reader's.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        self._statement = statement
        self._compiled: _Compiled | None = None

    def rows(self, engine: sa.Engine, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """All rows, columns in the order of the statement; errors are `StorageError`."""
        if engine.dialect.name != "sqlite":
            with reading(engine) as db:
                return db.execute(self._statement, values).all()
        compiled = self._compiled or self._compile(engine.dialect)
        given = {**compiled.known, **values}
        return _run(engine, compiled.sql, [given[name] for name in compiled.names])

    def _compile(self, dialect: sa.Dialect) -> _Compiled:
        made: Any = self._statement.compile(dialect=dialect)
        self._compiled = _Compiled(str(made), tuple(made.positiontup), dict(made.params))
        return self._compiled


def _run(engine: sa.Engine, sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
    try:
        pooled = engine.raw_connection()
        try:
            # None is left only after `close`, when the connection was closed under us.
            run: Callable[..., Any] = pooled.dbapi_connection.execute  # type: ignore[union-attr]
            found: list[tuple[Any, ...]] = run(sql, values).fetchall()
        finally:
            pooled.close()
    except sqlite3.OperationalError as error:  # busy, or the disk
        raise StorageUnavailable(str(error)) from error
    except sqlite3.Error as error:
        raise StorageError(str(error)) from error
    except sa.exc.SQLAlchemyError as error:
        raise StorageUnavailable(str(getattr(error, "orig", None) or error)) from error
    return found


def several(name: str, many: int) -> list[sa.BindParameter[str]]:
    """So many parameters for `column.in_(...)`: `padded` gives their values."""
    return [sa.bindparam(f"{name}_{number}", type_=sa.String) for number in range(many)]


def padded(name: str, values: Sequence[str], many: int) -> dict[str, str]:
    """The values of `several`, at least one and at most `many`; the last is repeated."""
    last = len(values) - 1
    return {f"{name}_{number}": values[min(number, last)] for number in range(many)}
