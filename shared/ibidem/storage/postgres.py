"""Connections to PostgreSQL that keep the deadline of their thread. The only code that imports psycopg."""

from __future__ import annotations

import selectors
import time
from collections.abc import Generator
from typing import Any

import psycopg
from sqlalchemy.exc import DisconnectionError

from ibidem._util.concurrency import remaining

POLL_SECONDS = 0.1  # between two looks at the clock while nothing arrives; psycopg's own
# A server that does not answer for so long is taken for one that is down. A caller who has less left of its
# time, as others kept it waiting, has learned nothing about the server.
PATIENCE_SECONDS = 0.5

Steps = Generator[Any, Any, Any]


def connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Handle SQLAlchemy's `do_connect` event."""
    return DeadlineConnection.connect(*arguments, **options)


def check(connection: Any, record: Any, proxy: Any) -> None:
    """Handle SQLAlchemy's `checkout` event: refuse a connection that was closed while nobody used it.

    Who closes one says so: only a connection on which something has arrived is tried. To try each takes as
    long as most statements.
    """
    try:
        if connection.closed or (_has_arrived(connection) and not _answers(connection)):
            raise DisconnectionError("closed by the server")
    except (OSError, psycopg.Error) as error:
        raise DisconnectionError(str(error)) from None


def _has_arrived(connection: Any) -> bool:
    """Return whether there is something to read from the server, which was not asked for."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def _answers(connection: Any) -> bool:
    return bool(connection.execute("SELECT 1").fetchone() == (1,))


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection that is closed when an answer takes longer than this thread may wait."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one exchange with the server; psycopg sends all of them through here."""
        seconds = remaining()
        kwargs.setdefault("interval", min(POLL_SECONDS, seconds / 2))
        try:
            return super().wait(_with_deadline(gen, seconds), *args, **kwargs)
        except _DeadlineExceeded:
            self.close()  # its answer may still come, and would be taken for that to the next statement
            raise _overdue("answer", seconds) from None

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Any:
        """Yield the steps of connecting; psycopg's own limit is never below two seconds."""
        return _connecting(super()._connect_gen(*args, **kwargs), remaining())


class _DeadlineExceeded(Exception):
    pass


def _with_deadline(steps: Steps, seconds: float) -> Steps:
    """Run the steps until time is up; psycopg resumes this at every interval while nothing arrives."""
    until = time.monotonic() + seconds
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > until:
                raise _DeadlineExceeded
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value


def _connecting(steps: Steps, seconds: float) -> Steps:
    try:
        return (yield from _with_deadline(steps, seconds))
    except _DeadlineExceeded:
        raise _overdue("connection", seconds) from None


def _overdue(what: str, seconds: float) -> psycopg.OperationalError:
    """Return the error of a caller that waited so long; one with a code says nothing about the server."""
    if seconds >= PATIENCE_SECONDS:
        return psycopg.OperationalError(f"no {what} within {seconds:.1f} s")
    left = f"{1000 * seconds:.0f} ms left of the caller's time"
    return psycopg.errors.QueryCanceled(f"no {what} within the {left}")


def keep_others(context: Any) -> None:
    """Handle SQLAlchemy's `handle_error` event: who ran out of time closes no connection but its own."""
    if isinstance(context.original_exception, psycopg.errors.QueryCanceled):
        context.invalidate_pool_on_disconnect = False
