"""The circuit breaker: refuses at once, tries elsewhere, gives up when nobody asks."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem._util import circuit_breaker as breaker
from ibidem._util.circuit_breaker import Breaker, Circuit
from ibidem._util.deadline import HURRIED_SECONDS, LEAST_SECONDS, PATIENT_SECONDS, allowance, hurried, waiting
from tests.helpers import eventually


class Down(Exception):
    """The server is down."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_SECONDS", 0.02)


class Server:
    """Something to try."""

    def __init__(self, *, up: bool) -> None:
        self.up, self.tries = up, 0

    def attempt(self) -> None:
        """Raises if it is down."""
        self.tries += 1
        if not self.up:
            raise Down("still down")


@given(st.lists(st.floats(0.0, 100.0), max_size=30), st.floats(0.0, 1.0))
def test_pauses_grow_to_half_a_minute_and_the_first_try_is_at_once(gaps: list[float], drawn: float) -> None:
    """Whatever the times, up to the longest pause and its jitter."""
    circuit, now, pauses = Circuit(closed=True, draw=lambda: drawn), 1000.0, []
    for gap in gaps:
        circuit.failed(now)
        pauses.append(round(circuit.due - now, 6))
        now += gap
    assert not gaps or pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert all(pause <= breaker.LAST_SECONDS * (1 + breaker.JITTER) for pause in pauses)
    circuit.worked(now)
    assert circuit.closed


def test_a_server_that_fails_again_at_once_is_not_tried_more_often() -> None:
    """Its pauses go on growing until it has worked for a while."""
    circuit = Circuit(closed=True, draw=lambda: 0.5)
    for now, worked in ((0.0, False), (1.0, True), (2.0, False)):
        (circuit.worked if worked else circuit.failed)(now)
    assert circuit.due > 2.0
    circuit.worked(3.0)
    circuit.failed(3.0 + breaker.CALM_SECONDS)
    assert circuit.due == 3.0 + breaker.CALM_SECONDS


def test_who_asks_while_it_is_open_is_refused_at_once() -> None:
    """With the failure that opened it; tries go on apart, and the first that goes well closes it."""
    server, back = Server(up=False), threading.Event()
    guard = Breaker(server.attempt, on_closed=back.set)
    guard.check()
    guard.trip(Down("connection refused"), guard.epoch)
    started = time.perf_counter()
    with pytest.raises(Down):
        guard.check()
    assert time.perf_counter() - started < 0.02
    server.up = True
    assert back.wait(5)
    guard.check()
    assert guard.failure is None


def test_a_failure_of_a_call_that_began_before_is_no_news() -> None:
    """Of thirty threads that hang when a server freezes, the last must not open what was closed since."""
    server = Server(up=True)
    guard = Breaker(server.attempt)
    epoch = guard.epoch
    guard.trip(Down("frozen"), epoch)
    assert eventually(lambda: guard.closed, every=0.01)
    guard.trip(Down("frozen"), epoch)
    assert guard.closed


def test_it_is_not_tried_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends; the next who asks is refused once more and starts it again."""
    monkeypatch.setattr(breaker, "IDLE_SECONDS", 0.1)
    server = Server(up=False)
    guard = Breaker(server.attempt)
    guard.trip(Down("down"), guard.epoch)
    assert eventually(lambda: guard._thread is None, every=0.01)
    tries, server.up = server.tries, True
    time.sleep(0.2)
    assert (server.tries, guard.closed) == (tries, False)
    with pytest.raises(Down):
        guard.check()
    assert eventually(lambda: guard.closed, every=0.01)


def test_the_first_try_is_waited_for() -> None:
    """What was never tried is neither up nor down."""
    release = threading.Event()
    guard = Breaker(lambda: release.wait(5) and None, closed=False)
    with pytest.raises(TimeoutError):
        guard.check(0.05)
    threading.Timer(0.05, release.set).start()
    guard.check(5.0)
    assert guard.closed


def test_a_stopped_breaker_tries_no_more() -> None:
    """`close` of a cache leaves no thread behind."""
    server = Server(up=False)
    guard = Breaker(server.attempt)
    guard.trip(Down("down"), guard.epoch)
    guard.stop()
    assert eventually(lambda: guard._thread is None, every=0.01)
    with pytest.raises(Down):
        guard.check()
    assert guard._thread is None


def test_an_error_that_cannot_be_copied_is_told_by_its_text() -> None:
    """Foreign errors take what they like."""

    class Odd(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} {two}")

    guard = Breaker(Server(up=False).attempt)
    guard.trip(Odd("no", "route"), guard.epoch)
    guard.stop()
    assert str(guard.failure) in ("no route", "still down")


def test_a_lookup_has_a_second_for_all_its_answers() -> None:
    """What one takes is missing to the next; elsewhere each answer has its own time."""
    assert allowance() == PATIENT_SECONDS
    with hurried():
        assert allowance() == HURRIED_SECONDS
        with waiting():
            time.sleep(0.1)
        assert LEAST_SECONDS < allowance() <= HURRIED_SECONDS - 0.1
        for _ in range(10):
            with waiting():
                time.sleep(0.1)
        assert allowance() == LEAST_SECONDS
    assert allowance() == PATIENT_SECONDS
