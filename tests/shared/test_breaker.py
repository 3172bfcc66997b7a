"""The circuit breaker: fails fast, probes in a thread, stops when there are no calls. And the deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.pool import NullPool

from ibidem._util import circuit_breaker as breaker
from ibidem._util.circuit_breaker import CircuitBreaker, CircuitState
from ibidem._util.concurrency import (
    DEADLINE_SECONDS,
    DEFAULT_SECONDS,
    MIN_SECONDS,
    charge,
    deadline,
    remaining,
)
from ibidem.errors import StorageRefused, StorageUnavailable
from ibidem.storage.engine import breaker_of, fetch_value, reading
from ibidem.storage.store import Store
from tests.helpers import eventually
from tests.servers import running_postgres


class Down(Exception):
    """The server is down."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_SECONDS", 0.02)


class Server:
    """A server to probe."""

    def __init__(self, *, up: bool) -> None:
        self.up, self.tries = up, 0

    def probe(self) -> None:
        """Raises if it is down."""
        self.tries += 1
        if not self.up:
            raise Down("still down")


@given(st.lists(st.floats(0.0, 100.0), max_size=30), st.floats(0.0, 1.0), st.booleans())
def test_pauses_grow_after_an_immediate_probe(gaps: list[float], drawn: float, refused: bool) -> None:
    """Whatever the times: to less than a second, and to half a minute where the server says no."""
    circuit, now, pauses = CircuitState(closed=True, draw=lambda: drawn), 1000.0, []
    for gap in gaps:
        circuit.record_failure(now, refused=refused)
        pauses.append(round(circuit.due - now, 6))
        now += gap
    assert not gaps or pauses[0] == 0.0
    assert pauses == sorted(pauses)
    longest = breaker.REFUSED_SECONDS if refused else breaker.LAST_SECONDS
    assert all(pause <= longest * (1 + breaker.JITTER) for pause in pauses)
    assert breaker.LAST_SECONDS * (1 + breaker.JITTER) <= 0.75
    circuit.record_failure(now)  # that it refused for long is no reason to be late once it is down
    assert circuit.due - now <= 0.75
    circuit.record_success(now)
    assert circuit.closed


def test_a_flapping_server_is_not_probed_more_often() -> None:
    """Its pauses go on growing until it has worked for a while."""
    circuit = CircuitState(closed=True, draw=lambda: 0.5)
    for now, worked in ((0.0, False), (1.0, True), (2.0, False)):
        (circuit.record_success if worked else circuit.record_failure)(now)
    assert circuit.due > 2.0
    circuit.record_success(3.0)
    circuit.record_failure(3.0 + breaker.CALM_SECONDS)
    assert circuit.due == 3.0 + breaker.CALM_SECONDS


def test_an_open_breaker_fails_fast() -> None:
    """With the failure that opened it; the first probe that succeeds closes it."""
    server, back = Server(up=False), threading.Event()
    guard = CircuitBreaker(server.probe, on_closed=back.set)
    guard.check()
    guard.trip(Down("connection refused"), guard.epoch)
    took = []
    for _ in range(5):  # the machine may be busy once
        started = time.perf_counter()
        with pytest.raises(Down):
            guard.check()
        took.append(time.perf_counter() - started)
    assert min(took) < 0.02
    server.up = True
    assert back.wait(5)
    guard.check()
    assert guard.failure is None


def test_a_late_failure_of_an_older_call_does_not_open_it_again() -> None:
    """Of thirty threads that hang when a server freezes, the last must not open what was closed since."""
    server = Server(up=True)
    guard = CircuitBreaker(server.probe)
    epoch = guard.epoch
    guard.trip(Down("frozen"), epoch)
    assert eventually(lambda: guard.closed, every=0.01)
    guard.trip(Down("frozen"), epoch)
    assert guard.closed


def test_probing_stops_without_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends; the next call fails and starts it again."""
    monkeypatch.setattr(breaker, "IDLE_SECONDS", 0.1)
    server = Server(up=False)
    guard = CircuitBreaker(server.probe)
    guard.trip(Down("down"), guard.epoch)
    assert eventually(lambda: guard._thread is None, every=0.01)
    tries, server.up = server.tries, True
    time.sleep(0.2)
    assert (server.tries, guard.closed) == (tries, False)
    with pytest.raises(Down):
        guard.check()
    assert eventually(lambda: guard.closed, every=0.01)


def test_check_waits_for_the_first_probe() -> None:
    """Before it, a server is neither up nor down."""
    release = threading.Event()
    guard = CircuitBreaker(lambda: release.wait(5) and None, closed=False)
    with pytest.raises(TimeoutError):
        guard.check(0.05)
    threading.Timer(0.05, release.set).start()
    guard.check(5.0)
    assert guard.closed


def test_a_stopped_breaker_does_not_probe() -> None:
    """`close` of a cache leaves no thread behind."""
    server = Server(up=False)
    guard = CircuitBreaker(server.probe)
    guard.trip(Down("down"), guard.epoch)
    guard.stop()
    assert eventually(lambda: guard._thread is None, every=0.01)
    with pytest.raises(Down):
        guard.check()
    assert guard._thread is None


def test_an_error_that_cannot_be_copied_keeps_its_message() -> None:
    """Foreign errors may take other arguments."""

    class Odd(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} {two}")

    guard = CircuitBreaker(Server(up=False).probe)
    guard.trip(Odd("no", "route"), guard.epoch)
    guard.stop()
    assert str(guard.failure) in ("no route", "still down")


def test_the_calls_of_a_lookup_share_one_deadline() -> None:
    """Without a deadline each call has a timeout of its own."""
    assert remaining() == DEFAULT_SECONDS
    with deadline():
        assert remaining() == DEADLINE_SECONDS
        with charge():
            time.sleep(0.1)
        assert MIN_SECONDS < remaining() <= DEADLINE_SECONDS - 0.1
        for _ in range(10):
            with charge():
                time.sleep(0.1)
        assert remaining() == MIN_SECONDS
    assert remaining() == DEFAULT_SECONDS


class TestPostgres:
    """What says that PostgreSQL is down, and what does not."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        """A database of which one connection is open."""
        with running_postgres() as url:
            yield url

    def test_a_caller_who_has_little_time_left_says_nothing_of_the_server(self, url: str) -> None:
        """He gets no answer, and the others go on, on the connections that they have."""
        slow = sa.select(sa.func.pg_sleep(5))
        with closing(Store(url)) as store, reading(store.engine) as other:
            pid = other.scalar(sa.text("SELECT pg_backend_pid()"))
            with deadline(0.2), pytest.raises(StorageUnavailable, match="left of the caller's time"):
                fetch_value(store.engine, slow)
            guard = breaker_of(store.engine)
            assert guard is not None
            assert (guard.closed, guard.epoch) == (True, 0)
            other.close()
            assert pid in [fetch_value(store.engine, sa.text("SELECT pg_backend_pid()")) for _ in range(3)]
            with deadline(), pytest.raises(StorageUnavailable, match=r"no answer within 1\.0 s"):
                fetch_value(store.engine, slow)
            assert eventually(lambda: guard.epoch == 1, every=0.01)  # taken for down, and tried at once

    def test_a_server_that_refuses_is_told_from_one_that_is_down(self, url: str) -> None:
        """By words: of a connection that was not made there is no code."""
        name = url.rpartition("/")[2]
        admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with admin.connect() as db, closing(Store(self._as_another(db, url, name))) as store:
            db.exec_driver_sql(f"ALTER ROLE {name} NOLOGIN")
            ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s"
            db.exec_driver_sql(ended, (name,))
            with pytest.raises(StorageRefused, match="not permitted to log in"):
                store.totals()
            guard = breaker_of(store.engine)
            assert guard is not None
            assert eventually(lambda: guard._state._refusals > 2, every=0.01)
            db.exec_driver_sql(f"ALTER ROLE {name} LOGIN")
            assert eventually(lambda: guard.closed, every=0.01)
            assert store.totals().entries == 0

    def _as_another(self, db: sa.Connection, url: str, role: str) -> str:
        db.exec_driver_sql(f"CREATE ROLE {role} LOGIN SUPERUSER")
        return url.replace("ibidem@", f"{role}@", 1)
