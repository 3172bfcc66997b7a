"""The background thread, faults and fork-safe locks."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from ibidem._util.concurrency import Background, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.errors import StorageError, StorageUnavailable


def test_jobs_run_until_nothing_is_left() -> None:
    """Each wake starts them; flush waits for what is known."""
    left = [1, 2, 3]
    background = Background({"count": lambda: bool(left) and left.pop() > 0}, Faults().note)
    assert background.flush(5)
    assert left == []
    background.stop()


def test_a_failing_job_does_not_stop_the_others() -> None:
    """The failure is counted under the job's name."""
    faults, done = Faults(), []

    def fail() -> bool:
        raise ValueError("secret prompt")

    background = Background({"fail": fail, "work": lambda: bool(done.append(1))}, faults.note)
    background.flush(5)
    background.stop()

    assert done
    assert set(faults.counts()) == {"fail: ValueError"}


def test_a_job_is_retried_by_itself_when_the_database_was_unavailable(monkeypatch) -> None:
    """Without a wake; until then `flush` returns False."""
    monkeypatch.setattr("ibidem._util.concurrency.RETRY_SECONDS", 0.05)
    faults, away, done = Faults(), [True], threading.Event()

    def write() -> bool:
        if away:
            raise StorageUnavailable("connection refused")
        done.set()
        return False

    background = Background({"write": write}, faults.note)
    assert not background.flush(5)
    away.clear()
    assert done.wait(5)
    assert background.flush(5)
    background.stop()
    assert set(faults.counts()) == {"write: StorageUnavailable"}


def test_a_step_of_low_priority_that_comes_too_early_is_made_soon() -> None:
    """Without another wake."""
    stepped, wanted, made = threading.Event(), threading.Event(), threading.Event()

    def step() -> bool:
        stepped.set()
        if wanted.is_set():
            made.set()
        return False

    background = Background({"work": lambda: False}, Faults().note, {"step": step})
    background.flush(5)
    assert stepped.wait(5)
    wanted.set()
    background.flush(5)  # at once: the next step is not due yet
    assert made.wait(5)
    background.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_replaced() -> None:
    """Whatever killed it."""

    class Panic(BaseException):
        pass

    wanted, done = [True], threading.Event()

    def job() -> bool:
        if wanted:
            wanted.clear()
            raise Panic
        done.set()
        return False

    background = Background({"job": job}, Faults().note)
    background.wake()
    background._thread.join(5)
    background.wake()
    assert done.wait(5)
    background.stop()


def test_foreign_messages_stay_out_of_the_log(caplog) -> None:
    """They can quote a prompt; ours cannot, and say what to do."""
    faults = Faults()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            faults.note("ask the model", ValueError("secret prompt"))
            faults.note("open it", StorageError("choose another path"))

    assert "secret" not in caplog.text
    assert caplog.text.count("choose another path") == 1
    assert faults.counts() == {"ask the model: ValueError": 2, "open it: StorageError": 2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_lock_held_by_another_thread_is_free_in_a_forked_child() -> None:
    """Otherwise the child's first lookup would wait for ever."""
    lock, held, release = ForkSafeLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        with lock:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    release.set()
    thread.join()

    assert os.waitstatus_to_exitcode(status) == 7
