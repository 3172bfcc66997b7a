"""Connections, transactions and errors of the database, SQLite or PostgreSQL."""

from __future__ import annotations

import random
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ibidem._util.circuit_breaker import CircuitBreaker
from ibidem._util.concurrency import (
    DEADLINE_SECONDS,
    ForkGate,
    ForkSafeLock,
    charge,
    deadline,
    has_deadline,
)
from ibidem._util.faults import log
from ibidem._util.urls import redact_secrets, redact_url
from ibidem.errors import MissingExtra, OtherCache, StorageError, StorageRefused, StorageUnavailable

T = TypeVar("T")
Row = TypeVar("Row")

CONNECT_SECONDS = 5  # limit for connecting to a database server
STATEMENT_SECONDS = 30  # limit for its answer to one statement
LOCK_MS = 800  # limit for a statement that waits for another's lock
BUSY_SECONDS = 5.0  # limit for waiting on other writers of a SQLite file, without a deadline
KEPT, MORE = 10, 5  # connections to a server: kept, for 8 async callers and the background, and closed
IDLE_CONNECTIONS = 16  # to a SQLite file; more are closed when they are returned
# How pgvector searches an HNSW index, where there is one: until it has found enough in a scope.
_SEARCH = "-c hnsw.iterative_scan=strict_order -c hnsw.ef_search=64"
EXCLUSIVE_LOCK = 0x1B1DE3  # our advisory lock on PostgreSQL: any number that no other program uses
_BUSY_TIMEOUT = f"PRAGMA busy_timeout={int(DEADLINE_SECONDS * 1000)}"  # readers hardly ever wait
# Codes of a server that takes no calls now: shutting down, starting up, too many connections.
_UNAVAILABLE_CODES = ("57P01", "57P02", "57P03", "53300")
# What it says of a connection that it will never take; libpq gives no code for it.
_REFUSALS = re.compile("authentication failed|pg_hba.conf|not permitted|does not exist")
_warned = False  # of a damaged row
_in_sqlite = ForkGate()  # its lock for the whole process is held for moments also while a file is only read
_draw = random.SystemRandom()  # the module's own generator is the program's, which may have seeded it


def open_engine(url: str) -> sa.Engine:
    """Create the connection pool for a URL; nothing is connected yet.

    Raises:
        MissingExtra: PostgreSQL's driver is not installed.
        StorageError: The URL is malformed, or the database is neither SQLite nor PostgreSQL.
    """
    option = f"database={redact_url(url)!r}"
    try:
        # Without hide_parameters, errors would quote questions and answers.
        engine = sa.create_engine(url, hide_parameters=True, **_engine_options(url))
    except ImportError as error:
        if url.startswith("postgresql"):
            raise MissingExtra(option, "postgres") from error
        reason = redact_secrets(str(error), url)
        raise StorageError(f"{option}: database must be SQLite or PostgreSQL ({reason})") from None
    except Exception as error:  # SQLAlchemy's own, and ValueError for a port or an option; they quote the URL
        raise StorageError(
            f"cannot use {option}: it must be a URL like postgresql+psycopg://USER:PASSWORD@HOST:5432/NAME, "
            f"with @, : and / in a password written as %40, %3A and %2F ({type(error).__name__})"
        ) from None
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise StorageError(f"database must be SQLite or PostgreSQL, not {engine.dialect.name}")
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        engine.update_execution_options(ibidem_write_lock=ForkSafeLock())
    else:
        _protect_server_calls(engine)
    return engine


def _engine_options(url: str) -> dict[str, Any]:
    """Return pool and timeouts; by default, drivers wait for a server for ever. The URL's own options win."""
    if url.startswith("sqlite"):
        return {"poolclass": FilePool} if sa.make_url(url).database not in (None, "", ":memory:") else {}
    limits: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 1000 * STATEMENT_SECONDS,
    }
    # A connection whose other end vanished is noticed within a minute.
    limits |= {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    chosen = sa.make_url(url).query
    limits = {name: value for name, value in limits.items() if name not in chosen}
    # The server ends a wait for a lock before we would take it for a server that does not answer.
    ours = f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={LOCK_MS}ms {_SEARCH}"
    limits["options"] = f"{ours} {chosen.get('options', '')}".rstrip()
    pool = {"pool_size": KEPT, "max_overflow": MORE, "pool_timeout": DEADLINE_SECONDS}
    pool["pool_pre_ping"] = not url.startswith("postgresql+psycopg:")  # tried by `postgres.check`
    # A SELECT by itself needs no transaction, whose begin and end are two more exchanges with the server.
    return {**pool, "isolation_level": "AUTOCOMMIT", "connect_args": limits}


def close_engine(engine: sa.Engine) -> None:
    """Close all connections; those in use are closed when they are returned."""
    if isinstance(engine.pool, FilePool):
        engine.pool.max_idle = 0
    else:
        sa.event.listen(engine.pool, "checkin", _close_returned)
    engine.dispose()


def _close_returned(_: object, record: Any) -> None:
    record.invalidate()  # and not `close`: a late caller of a closed cache gets another connection


# Transactions.


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a connection to read with; errors are `StorageError`."""
    with _translated_errors(engine), engine.connect() as db:
        yield db


def fetch_all(engine: sa.Engine, query: sa.Executable) -> Sequence[Any]:
    """Return all rows of a query; errors are `StorageError`."""
    with reading(engine) as db:
        return db.execute(query).all()


def fetch_column(engine: sa.Engine, query: sa.Executable) -> Sequence[Any]:
    """Return the first column of all rows; errors are `StorageError`."""
    with reading(engine) as db:
        return db.scalars(query).all()


def fetch_value(engine: sa.Engine, query: sa.Executable) -> Any:
    """Return the first column of the first row, None if there is none; errors are `StorageError`."""
    with reading(engine) as db:
        return db.scalar(query)


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a transaction, all of it or nothing; errors are `StorageError`."""
    mode = {} if engine.dialect.name == "sqlite" else {"isolation_level": "READ COMMITTED"}
    with _translated_errors(engine), _write_lock(engine), engine.execution_options(**mode).begin() as db:
        if db.dialect.name == "sqlite":
            _begin_immediate(db)
        yield db


@contextmanager
def exclusive(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a transaction that no other process runs at the same time, such as a migration."""
    with writing(engine) as db:
        if db.dialect.name != "sqlite":  # where there is one writer at a time anyway
            db.execute(sa.text("SET LOCAL lock_timeout = 0"))
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(EXCLUSIVE_LOCK)))
        yield db


def insert_into(dialect: str) -> Any:
    """Return the dialect's `insert`, which has `ON CONFLICT`."""
    return postgresql.insert if dialect == "postgresql" else sqlite.insert


def in_namespace(query: Any, column: sa.ColumnElement[str], namespace: str | None) -> Any:
    """Restrict a query to a namespace; None stands for all of them."""
    return query if namespace is None else query.where(column == namespace)


def exclude_stores(db: sa.Connection, table: sa.Table) -> None:
    """Wait for stores under way, and let none begin before this transaction ends.

    On PostgreSQL each store has read the table in its transaction, and so locked it. SQLite has one writer at
    a time.
    """
    if db.dialect.name == "postgresql":
        db.exec_driver_sql(f"LOCK TABLE {table.name} IN ACCESS EXCLUSIVE MODE")


def sql_min(one: Any, other: Any) -> Any:
    """Return the smaller of two columns or numbers; SQLite and PostgreSQL have different functions for it."""
    return sa.case((one < other, one), else_=other)


# Prepared statements.


@dataclass(frozen=True)
class _Compiled:
    """SQL, for SQLite the names of its parameters in order, and the values of those that are fixed."""

    sql: str
    names: tuple[str, ...]
    fixed: Mapping[str, Any]


class Prepared:
    """A SELECT that is run with other values each time, by the driver, for speed.

    Args:
        statement: With `bindparam`s, none of them expanding. Its columns must need no conversion but that of
            SQLite's 0 and 1 to False and True, which is the reader's.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}  # by driver

    def rows(self, engine: sa.Engine, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Return all rows, columns in the order of the statement; errors are `StorageError`."""
        pool = engine.pool
        compiled = self._compiled.get(engine.driver) or self._compile(engine.dialect)
        parameters = {**compiled.fixed, **values}
        if engine.dialect.name != "sqlite":
            with reading(engine) as db:
                return db.exec_driver_sql(compiled.sql, parameters).all()
        if not isinstance(pool, FilePool):
            with reading(engine) as db:
                return db.execute(self._statement, values).all()
        try:
            return pool.select(compiled.sql, [parameters[name] for name in compiled.names])
        except sqlite3.OperationalError as error:  # busy, or the disk
            raise StorageUnavailable(str(error)) from error
        except sqlite3.Error as error:
            raise StorageError(str(error)) from error

    def _compile(self, dialect: sa.Dialect) -> _Compiled:
        compiled: Any = self._statement.compile(dialect=dialect)
        made = _Compiled(str(compiled), tuple(compiled.positiontup or ()), dict(compiled.params))
        self._compiled[dialect.driver] = made
        return made


# Damaged rows.


def valid_rows(convert: Callable[[Row], T], rows: Iterable[Row]) -> Iterator[T]:
    """Convert rows and skip the damaged ones; the first one in a process is logged."""
    for row in rows:
        try:
            converted = convert(row)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            _warn_once(error)
        else:
            yield converted


def _warn_once(error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        about = {"event.name": "ibidem.database.damaged_row", "error.type": type(error).__name__}
        log.warning("Ibidem passed over a damaged row of its database; logged once", extra=about)


# Errors.


@contextmanager
def _translated_errors(engine: sa.Engine) -> Iterator[None]:
    """Raise `StorageError` for the database's errors; fail fast while a server is down."""
    breaker = breaker_of(engine)
    if breaker is None:
        with _in_sqlite:
            try:
                yield
            except sa.exc.SQLAlchemyError as error:
                raise storage_error(error, engine) from cause_of(error, engine)
        return
    breaker.check()
    epoch = breaker.epoch
    try:
        with charge():
            yield
    except OtherCache as error:
        breaker.trip(error, epoch)  # until the right one is back
        raise
    except sa.exc.SQLAlchemyError as error:
        failure = storage_error(error, engine)
        if _is_server_down(error):
            breaker.trip(failure, epoch)
        raise failure from cause_of(error, engine)


def storage_error(error: Exception, engine: sa.Engine) -> StorageError:
    """Translate an error; the message quotes neither the statement's values nor a password."""
    said = str(getattr(error, "orig", None) or error)
    temporary = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
    kind: type[StorageError] = StorageUnavailable if isinstance(error, temporary) else StorageError
    if kind is StorageUnavailable and _is_server_down(error) and _REFUSALS.search(said):
        kind = StorageRefused
    return kind(redact_secrets(said, _full_url(engine)))


def cause_of(error: Exception, engine: sa.Engine) -> Exception | None:
    """Return the error for `raise ... from`; None if a traceback would show a password with it."""
    message = f"{error}{getattr(error, 'orig', '')}"
    return error if redact_secrets(message, _full_url(engine)) == message else None


def _is_server_down(error: BaseException) -> bool:
    """Return whether the server cannot be reached; a deadlock or an exhausted pool does not say so."""
    if not isinstance(error, sa.exc.DBAPIError) or isinstance(error, sa.exc.DataError):
        return False
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return code is None or code in _UNAVAILABLE_CODES or code.startswith("08")


def safe_url(engine: sa.Engine) -> str:
    """Return the URL of the engine without its secrets."""
    return redact_url(_full_url(engine))


def _full_url(engine: sa.Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


# SQLite.


class FilePool(sa.Pool):
    """Connections to a file: as many as are in use at once. The one returned last is used next.

    SQLAlchemy's own pool for files has 15, and a lock for which 32 threads queue: with it they made 360
    lookups by meaning a second on two cores where 2 threads made 600, and some found none free in time.
    """

    _sqla_logger_namespace = "sqlalchemy.pool.FilePool"  # pool events are SQLAlchemy's to log

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._free: deque[Any] = deque()  # its `pop` and `append` need no lock
        self.max_idle = IDLE_CONNECTIONS

    def select(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return all rows of a SELECT; errors are the driver's.

        Without SQLAlchemy's checkout, which takes as long as the statement: there is no transaction to roll
        back.
        """
        with _in_sqlite:
            record = self._do_get()
            try:
                rows: list[tuple[Any, ...]] = record.get_connection().execute(sql, values).fetchall()
            finally:
                self._do_return_conn(record)
            return rows

    def _do_get(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            return self._create_connection()

    def _do_return_conn(self, record: Any) -> None:
        if len(self._free) < self.max_idle:
            self._free.append(record)
        else:
            record.close()

    def recreate(self) -> FilePool:
        """Return an empty pool with the same settings."""
        self.logger.info("Pool recreating")
        pool = type(self)(
            self._creator,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            pre_ping=self._pre_ping,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )
        pool.max_idle = self.max_idle
        return pool

    def dispose(self) -> None:
        """Close the idle connections."""
        while self._free:
            with suppress(IndexError):
                self._free.pop().close()

    def status(self) -> str:
        """Describe the pool for people."""
        return f"{len(self._free)} connections to the file are free"


def _configure_sqlite(connection: Any, _: object) -> None:
    connection.text_factory = decode_text
    cursor = connection.cursor()
    cursor.execute(_BUSY_TIMEOUT)
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def decode_text(raw: bytes) -> str | bytes:
    """Decode text for SQLite (`text_factory`); invalid UTF-8 stays bytes and raises nothing."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _switch_to_wal(cursor: Any) -> None:
    """Turn on write-ahead logging; SQLite itself does not wait for other processes here."""
    until = time.monotonic() + _seconds_to_wait()
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.005)


@contextmanager
def _write_lock(engine: sa.Engine) -> Iterator[None]:
    """Let one thread of this process write to a SQLite file at a time; the others wait, asleep."""
    lock: ForkSafeLock | None = engine.get_execution_options().get("ibidem_write_lock")
    if lock is None:
        yield
        return
    if not lock.acquire(_seconds_to_wait()):
        raise StorageUnavailable("database is locked")
    try:
        yield
    finally:
        lock.release()


def _begin_immediate(db: sa.Connection) -> None:
    """Begin to write to a SQLite file, after the other processes.

    SQLite's own waiting sleeps up to a tenth of a second at a time and loses against those who come again at
    once: with eight writers one waited for more than a second. This one looks every few milliseconds.
    """
    until = time.monotonic() + _seconds_to_wait()
    connection: Any = db.connection.dbapi_connection
    connection.execute("PRAGMA busy_timeout=0").close()
    try:
        while True:
            try:
                db.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except sa.exc.OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() > until:
                    raise
            time.sleep(_draw.uniform(0.001, 0.01))
    finally:
        connection.execute(_BUSY_TIMEOUT).close()


def _seconds_to_wait() -> float:
    return DEADLINE_SECONDS if has_deadline() else BUSY_SECONDS


def sqlite_url(file: Path) -> str:
    """Return the SQLAlchemy URL of a SQLite file, whatever characters its path has."""
    return sa.URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def set_aside_if_damaged(path: Path) -> Path | None:
    """Move a file that is no SQLite database out of the way and return its new path; nothing is deleted."""
    with path.open("rb") as file:
        header = file.read(16)
    if not header or header == b"SQLite format 3\0":
        return None
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + suffix))
    return aside


# PostgreSQL.


def _protect_server_calls(engine: sa.Engine) -> None:
    """Give the engine of a server a circuit breaker, and its connections a deadline."""
    if engine.driver == "psycopg":
        from ibidem.storage import postgres  # an extra: not everybody has the driver

        sa.event.listen(engine, "do_connect", postgres.connect)
        sa.event.listen(engine, "checkout", postgres.check)
        sa.event.listen(engine, "handle_error", postgres.keep_others)

    def probe() -> None:
        try:
            with deadline(), engine.connect() as db:
                db.execute(sa.select(1))
        except sa.exc.SQLAlchemyError as error:
            raise storage_error(error, engine) from cause_of(error, engine)

    breaker = CircuitBreaker(probe, refusals=(OtherCache, StorageRefused))
    engine.update_execution_options(ibidem_breaker=breaker)


def breaker_of(engine: sa.Engine) -> CircuitBreaker | None:
    """Return the circuit breaker of a database server; None for SQLite."""
    breaker: CircuitBreaker | None = engine.get_execution_options().get("ibidem_breaker")
    return breaker
