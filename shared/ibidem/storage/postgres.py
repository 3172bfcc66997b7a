"""PostgreSQL through psycopg, with an end to waiting. Imported only where such a database is used.

libpq has no limit for reading an answer, and the server's own `statement_timeout` ends with the server: one
that is frozen, or behind a cut cable, would hold a caller for as long as TCP likes.
"""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import Any

import psycopg

from ibidem.patience import allowance

INTERVAL = 0.1  # seconds between two looks at the clock; psycopg's own

Steps = Generator[Any, Any, Any]


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when an answer takes longer than this thread may wait."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one exchange with the server; psycopg sends all of them through here."""
        seconds = allowance()
        kwargs.setdefault("interval", min(INTERVAL, seconds / 2))
        try:
            return super().wait(_bounded(gen, seconds), *args, **kwargs)
        except _TooLate:
            self.close()  # its answer may still come, and would be taken for that to the next question
            raise psycopg.OperationalError(f"no answer within {seconds:.1f} s") from None

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Any:
        """Steps of connecting: psycopg's own limit is never below two seconds."""
        return _connecting(super()._connect_gen(*args, **kwargs), allowance())


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
