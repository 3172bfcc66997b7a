"""Connections to the truth: how each kind of database is opened, waited for, and found to be away."""

from __future__ import annotations

import random
import sqlite3
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ibidem._util.circuit_breaker import CircuitBreaker
from ibidem._util.concurrency import ForkSafeLock
from ibidem._util.deadline import DEADLINE_SECONDS, charge, deadline, has_deadline, remaining
from ibidem._util.urls import redact_secrets, redact_url
from ibidem.errors import MissingExtra, StorageError, StorageUnavailable
from ibidem.lifecycle.eviction import RANKINGS
from ibidem.storage.columns import decoded
from ibidem.storage.tables import entries

SERVER_SECONDS = 5  # how long a database server may take to connect
STATEMENT_SECONDS = 30  # and to answer
LOCK_MS = 800  # and how long it lets a statement wait for another's lock
BUSY_SECONDS = 5.0  # how long other writers of a SQLite file are waited for where nobody waits for the caller
_BUSY = f"PRAGMA busy_timeout={int(DEADLINE_SECONDS * 1000)}"  # readers wait for next to nothing
KEPT = 16  # connections to a file that stay open while nobody uses them
# Codes with which a server says that it takes no calls now: shutting down, starting up, too many connections.
AWAY = ("57P01", "57P02", "57P03", "53300")


class Unbounded(sa.Pool):
    """Connections to a file: as many as are in use at once. The one returned last is used next.

    SQLAlchemy's own pool for files has 15, and a lock for which 32 threads queue: with it they made 360
    lookups by meaning a second on two cores where 2 threads made 600, and some found none free in time.
    """

    _sqla_logger_namespace = "sqlalchemy.pool.Unbounded"  # what a pool does is SQLAlchemy's to log

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._free: deque[Any] = deque()  # its `pop` and `append` need no lock

    def _do_get(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            return self._create_connection()

    def _do_return_conn(self, record: Any) -> None:
        if len(self._free) < KEPT:
            self._free.append(record)
        else:
            record.close()

    def recreate(self) -> Unbounded:
        """Another of its kind, empty."""
        self.logger.info("Pool recreating")
        return type(self)(
            self._creator,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            pre_ping=self._pre_ping,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close what nobody uses."""
        while self._free:
            with suppress(IndexError):
                self._free.pop().close()

    def status(self) -> str:
        """For people."""
        return f"{len(self._free)} connections to the file are free"


def open_engine(url: str) -> sa.Engine:
    """A connection pool for the URL.

    Raises:
        MissingExtra: PostgreSQL's driver is not installed.
        StorageError: The URL is malformed, or its database of another kind.
    """
    named = f"database={redact_url(url)!r}"
    try:
        # Without hide_parameters, errors would quote questions and answers.
        engine = sa.create_engine(url, hide_parameters=True, **_patience(url))
    except ImportError as error:
        if url.startswith("postgresql"):
            raise MissingExtra(named, "postgres") from error
        told = redact_secrets(str(error), url)
        raise StorageError(f"{named}: database must be SQLite or PostgreSQL ({told})") from None
    except Exception as error:  # SQLAlchemy's own, and ValueError for a port or an option; they quote the URL
        raise StorageError(
            f"cannot use {named}: it must be a URL like postgresql+psycopg://USER:PASSWORD@HOST:5432/NAME, "
            f"with @, : and / in a password written as %40, %3A and %2F ({type(error).__name__})"
        ) from None
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise StorageError(f"database must be SQLite or PostgreSQL, not {engine.dialect.name}")
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        engine.update_execution_options(ibidem_turn=ForkSafeLock())
    else:
        _guard(engine)
    return engine


def _patience(url: str) -> dict[str, Any]:
    """How long a server is waited for; its drivers wait for ever. What the URL says itself is left alone."""
    if url.startswith("sqlite"):
        return {"poolclass": Unbounded} if sa.make_url(url).database not in (None, "", ":memory:") else {}
    limits: dict[str, Any] = {
        "connect_timeout": SERVER_SECONDS,
        # A connection whose other end went away without a word is noticed within a minute.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * STATEMENT_SECONDS,
    }
    chosen = sa.make_url(url).query
    limits = {name: value for name, value in limits.items() if name not in chosen}
    # Who waits for another's lock is told by the server, before it is taken for one that does not answer.
    ours = f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={LOCK_MS}ms"
    limits["options"] = f"{ours} {chosen.get('options', '')}".rstrip()
    return {"pool_timeout": DEADLINE_SECONDS, "pool_pre_ping": True, "connect_args": limits}


def _guard(engine: sa.Engine) -> None:
    """Give the engine of a server a breaker, and its connections an end to waiting."""
    if engine.driver == "psycopg":
        from ibidem.storage import engine as postgres

        sa.event.listen(engine, "do_connect", postgres.connect)

    def attempt() -> None:
        try:
            with deadline(), engine.connect() as db:
                db.execute(sa.select(1))
        except sa.exc.SQLAlchemyError as error:
            raise storage_error(error, engine) from cause_of(error, engine)

    engine.update_execution_options(ibidem_breaker=CircuitBreaker(attempt))


def breaker_of(engine: sa.Engine) -> CircuitBreaker | None:
    """What guards the calls of a database server; None for SQLite."""
    found: CircuitBreaker | None = engine.get_execution_options().get("ibidem_breaker")
    return found


def _configure_sqlite(connection: Any, _: object) -> None:
    connection.text_factory = decoded
    cursor = connection.cursor()
    cursor.execute(_BUSY)
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def close_engine(engine: sa.Engine) -> None:
    """Close all connections; one that a thread still uses when it is returned, to a pool nobody empties."""
    sa.event.listen(engine.pool, "checkin", _close_returned)
    engine.dispose()


def _close_returned(_: object, record: Any) -> None:
    record.invalidate()  # and not `close`: who comes late to a closed cache gets another connection


@contextmanager
def in_turn(engine: sa.Engine) -> Iterator[None]:
    """Among the threads of this process one writes to a SQLite file at a time; the others wait, asleep."""
    turn: ForkSafeLock | None = engine.get_execution_options().get("ibidem_turn")
    if turn is None:
        yield
        return
    if not turn.acquire(_seconds_to_wait()):
        raise StorageUnavailable("database is locked")
    try:
        yield
    finally:
        turn.release()


def _seconds_to_wait() -> float:
    return DEADLINE_SECONDS if has_deadline() else BUSY_SECONDS


def take_turn(db: sa.Connection) -> None:
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
            time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - no secret
    finally:
        connection.execute(_BUSY).close()


def _switch_to_wal(cursor: Any) -> None:
    """For this lock SQLite does not wait by itself, when several processes make a database at once."""
    deadline = time.monotonic() + _seconds_to_wait()
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def shown_engine(engine: sa.Engine) -> str:
    """The URL of the engine without its secrets."""
    return redact_url(_url(engine))


def _url(engine: sa.Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def storage_error(error: Exception, engine: sa.Engine) -> StorageError:
    """What the database said: never the statement with its values, nor a password."""
    for_now = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
    kind = StorageUnavailable if isinstance(error, for_now) else StorageError
    return kind(redact_secrets(str(getattr(error, "orig", None) or error), _url(engine)))


def cause_of(error: Exception, engine: sa.Engine) -> Exception | None:
    """The error, for `raise ... from`; None if a traceback would show a password with it."""
    told = f"{error}{getattr(error, 'orig', '')}"
    return error if redact_secrets(told, _url(engine)) == told else None


def is_away(error: BaseException) -> bool:
    """Whether the server is not there; a deadlock, or a pool that is used up, says nothing of it."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return code is None or code in AWAY or code.startswith("08")


EXCLUSIVE = 0x1B1DE3  # our advisory lock on PostgreSQL: any number that no other program uses


def sqlite_url(file: Path) -> str:
    """The SQLAlchemy URL of a SQLite file, whatever characters its path has."""
    return sa.URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


@contextmanager
def _guarded(engine: sa.Engine) -> Iterator[None]:
    """Errors are `StorageError`; a server that is down is not called, one that goes down is remembered."""
    breaker = breaker_of(engine)
    if breaker is None:
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
    except sa.exc.SQLAlchemyError as error:
        failure = storage_error(error, engine)
        if is_away(error):
            breaker.trip(failure, epoch)
        raise failure from cause_of(error, engine)


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to read with. Errors are `StorageError`."""
    with _guarded(engine), engine.connect() as db:
        yield db


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction: all of it or nothing. Errors are `StorageError`."""
    with _guarded(engine), in_turn(engine), engine.begin() as db:
        if db.dialect.name == "sqlite":
            take_turn(db)
        yield db


@contextmanager
def exclusively(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that no other process runs at the same time, for changes of the tables."""
    with writing(engine) as db:
        if db.dialect.name != "sqlite":  # where every writer is alone
            db.execute(sa.text("SET LOCAL lock_timeout = 0"))
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(EXCLUSIVE)))
        yield db


def insert_into(dialect: str) -> Any:
    """The dialect's `insert`, which knows `ON CONFLICT`."""
    return postgresql.insert if dialect == "postgresql" else sqlite.insert


@lru_cache
def upsert_entry(dialect: str, ranking: str) -> Any:
    """Insert, or replace the answer but keep hits: the same id means the same question.

    Made once, as each store runs it: making it takes as long as running it. Its parameters are the columns,
    and `floor`, that of the ranking, one of `RANKINGS`.
    """
    insert = insert_into(dialect)(entries)
    new, old = insert.excluded, entries.c
    floor = sa.bindparam("floor", type_=sa.Float)
    changes = {column.name: new[column.name] for column in old if column.name not in ("id", "hits")}
    changes["rank"] = RANKINGS[ranking].rank(floor, old.hits, new.cost, new.size, new.used, least)
    return insert.on_conflict_do_update(index_elements=[old.id], set_=changes)


def least(one: Any, other: Any) -> Any:
    """The smaller of two columns or numbers; SQLite and PostgreSQL have different functions for it."""
    return sa.case((one < other, one), else_=other)


def set_aside_if_damaged(path: Path) -> Path | None:
    """Move a file that is no SQLite database out of the way; returns its new place. Nothing is deleted."""
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


INTERVAL = 0.1  # seconds between two looks at the clock; psycopg's own

Steps = Generator[Any, Any, Any]


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when an answer takes longer than this thread may wait."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one exchange with the server; psycopg sends all of them through here."""
        seconds = remaining()
        kwargs.setdefault("interval", min(INTERVAL, seconds / 2))
        try:
            return super().wait(_bounded(gen, seconds), *args, **kwargs)
        except _TooLate:
            self.close()  # its answer may still come, and would be taken for that to the next question
            raise psycopg.OperationalError(f"no answer within {seconds:.1f} s") from None

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Any:
        """Steps of connecting: psycopg's own limit is never below two seconds."""
        return _connecting(super()._connect_gen(*args, **kwargs), remaining())


class _TooLate(Exception):
    pass


def _bounded(steps: Steps, seconds: float) -> Steps:
    """The same steps, until time is up; psycopg comes by at every interval while nothing arrives."""
    until = monotonic() + seconds
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and monotonic() > until:
                raise _TooLate
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value


def _connecting(steps: Steps, seconds: float) -> Steps:
    try:
        return (yield from _bounded(steps, seconds))
    except _TooLate:
        raise psycopg.OperationalError(f"no connection within {seconds:.1f} s") from None


def connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    """SQLAlchemy's `do_connect` event."""
    return BoundedConnection.connect(*arguments, **options)
