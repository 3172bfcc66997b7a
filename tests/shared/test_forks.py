"""A fork while other threads are at work: a library's lock that one of them holds stays held in the child."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from ibidem import Answer, Request
from ibidem._util import concurrency
from ibidem._util.concurrency import ForkGate
from ibidem.storage import engine
from tests.helpers import eventually, rounds

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # of what is tested here
]


@pytest.fixture
def gate() -> Iterator[ForkGate]:
    """A gate of its own."""
    one = ForkGate()
    yield one
    concurrency._gates.remove(one)


def in_child(holds: Callable[[], bool]) -> bool:
    """Whether this holds in a forked child."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if holds() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_nobody_is_within_at_a_fork(gate) -> None:
    """However many come and go, in however many forks at once; and afterwards they go on."""
    within: list[int] = []
    passed, ended = [0] * 4, threading.Event()

    def come_and_go(number: int) -> None:
        while not ended.is_set():
            with gate:
                within.append(number)
                ended.wait(0.0002)  # others run
                within.remove(number)
            passed[number] += 1

    threads = [threading.Thread(target=come_and_go, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    right: list[bool] = []

    def nobody() -> bool:
        return not within and gate.was_empty and not gate._within and gate._open.is_set()

    def fork() -> None:
        right.extend(in_child(nobody) for _ in range(rounds(20, 500)))

    forking = [threading.Thread(target=fork) for _ in range(2)]
    for thread in forking:
        thread.start()
    for thread in forking:
        thread.join(60)
    before = list(passed)
    assert eventually(lambda: all(now > then for now, then in zip(passed, before, strict=True)))
    ended.set()
    for thread in threads:
        thread.join(10)
    assert all(right)
    assert len(right) == 2 * rounds(20, 500)


def test_a_fork_does_not_wait_for_ever(gate, monkeypatch) -> None:
    """For one that stays within; the child knows that somebody was."""
    monkeypatch.setattr(concurrency, "FORK_SECONDS", 0.05)
    with gate:
        assert in_child(lambda: not gate.was_empty)
    assert in_child(lambda: gate.was_empty)


def test_all_that_uses_sqlite_waits_for_a_fork(cache) -> None:
    """Lookups, stores, figures, the log."""
    gate, done = engine._in_sqlite, []
    work = {
        "lookup": lambda: cache.lookup(Request("q")),
        "store": lambda: cache.store(Request("another"), Answer("a")),
        "stats": cache.stats,
        "recent": cache.recent,
    }
    cache.store(Request("q"), Answer("a"))
    cache.flush()

    def run(name: str) -> None:
        work[name]()
        done.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in work]
    gate.shut()
    try:
        for thread in threads:
            thread.start()
        threads[0].join(0.2)
        assert not done
        assert not gate._within
    finally:
        gate.reopen()
    for thread in threads:
        thread.join(10)
    assert sorted(done) == sorted(work)
