"""Background worker thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from ibidem._util.faults import Faults
from ibidem.errors import StorageUnavailable

# Wait this long for more work before a batch, unless a caller waits for it. A write to Chroma holds the GIL
# for 25 to 60 ms, be it 10 vectors or 40: at short intervals the whole program, its event loop too, would
# stutter.
GATHER_SECONDS = 0.5
FLUSH_SECONDS = 10.0  # how long `stop` waits for the work that is left
RETRY_SECONDS = 1.0  # until a job that found the database unavailable is retried; doubles from try to try
RETRY_MAX_SECONDS = 30.0

PAUSE_SECONDS = 0.1  # between two steps of the idle jobs

Job = Callable[[], bool]


class Background:
    """Runs jobs after each `wake()` until none has anything left to do.

    Args:
        jobs: By what they do ("index questions"): functions that do one bounded batch each and return
            whether there is more.
        faults: Counts failures of jobs; a failed job is retried at the next wake. If the database was
            unavailable, it is retried without one: pending writes are written when the database is back.
        idle_jobs: Jobs of low priority: one step now and then, also while others are at work, until they
            have nothing left to do. `flush` does not wait for them.
    """

    def __init__(
        self, jobs: Mapping[str, Job], faults: Faults, idle_jobs: Mapping[str, Job] | None = None
    ) -> None:
        self._jobs, self._idle_jobs = dict(jobs), dict(idle_jobs or {})
        self._faults = faults
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._requested = 0  # wakes so far
        self._completed = 0  # the last wake whose work is done
        self._stopping = False
        self._flushing = False  # a caller waits: do not gather
        self._failed_rounds = 0  # rounds in a row that found the database unavailable
        self._retry_at = 0.0
        self._idle_work_left = False
        self._next_step_at = 0.0  # of the idle jobs
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """Start afresh in a forked child, where the thread does not exist."""
        self._reset()

    def wake(self) -> None:
        """Announce work. Returns at once."""
        with self._changed:
            self._requested += 1
            if not self._stopping and not (self._thread and self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="ibidem-background", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Wait until the work known now is done; False if it was not, or not within `timeout` seconds."""
        self.wake()
        with self._changed:
            requested, self._flushing = self._requested, True
            self._changed.notify_all()
            ended = self._changed.wait_for(lambda: self._completed >= requested or self._stopping, timeout)
            return ended and not self._failed_rounds

    def stop(self) -> None:
        """Do what is left (bounded), then end the thread."""
        if self._thread is not None:
            self.flush()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=FLUSH_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._requested > self._completed or self._stopping, self._pause()
                )
                if self._stopping:
                    return
                if self._requested > self._completed:
                    gather = PAUSE_SECONDS if self._idle_work_left else GATHER_SECONDS
                    self._changed.wait_for(lambda: self._flushing or self._stopping, gather)
                requested, self._flushing = self._requested, False
            retry = self._failed_rounds and time.monotonic() >= self._retry_at
            if requested > self._completed or retry:
                self._work(requested)
            self._step()

    def _work(self, requested: int) -> None:
        more, unavailable = True, False
        while more and not self._stopping:
            outcomes = [self._do(name, job) for name, job in self._jobs.items()]
            unavailable = None in outcomes
            more = any(outcomes)
            if more:
                self._step()
        with self._changed:
            self._completed = requested
            self._failed_rounds = self._failed_rounds + 1 if unavailable else 0
            pause = RETRY_SECONDS * 2 ** min(self._failed_rounds - 1, 10)
            self._retry_at = time.monotonic() + min(RETRY_MAX_SECONDS, pause)
            self._changed.notify_all()

    def _step(self) -> None:
        """Do one step of each idle job, if the last is long enough ago."""
        if time.monotonic() >= self._next_step_at and not self._stopping:
            outcomes = [self._do(name, job) for name, job in self._idle_jobs.items()]
            self._idle_work_left = any(outcomes)
            self._next_step_at = time.monotonic() + PAUSE_SECONDS / 2

    def _pause(self) -> float | None:
        """Return how long to wait for a wake; None for ever, without a retry or a step to come."""
        pauses = [PAUSE_SECONDS] if self._idle_work_left else []
        if self._failed_rounds:
            pauses.append(max(0.0, self._retry_at - time.monotonic()))
        return min(pauses, default=None)

    def _do(self, name: str, job: Job) -> bool | None:
        """Run one batch; return whether there is more to do, None if the database was unavailable."""
        try:
            return job()
        except Exception as error:
            self._faults.note(name, error)
            return None if isinstance(error, StorageUnavailable) else False
