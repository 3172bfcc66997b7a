"""One thread that does what need not keep the caller waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from ibidem._util.faults import Faults
from ibidem.errors import StorageUnavailable

# Wait this long for more work before a batch, unless somebody waits for it. A write to Chroma holds the GIL
# for 25 to 60 ms, be it 10 vectors or 40: at short intervals the whole program, its event loop too, would
# stutter.
GATHER_SECONDS = 0.5
FLUSH_SECONDS = 10.0  # how long `stop` waits for the work that is left
AGAIN_SECONDS = 1.0  # a job that found the database away is tried again so soon, then after twice as long
AGAIN_LAST_SECONDS = 30.0  # and so on up to here

PAUSE_SECONDS = 0.1  # between two steps of what has time

Job = Callable[[], bool]


class Background:
    """Runs jobs after each `wake()` until none has anything left to do.

    Args:
        jobs: By what they do ("index questions"): functions that do one bounded batch each and return
            whether there is more.
        faults: Where failures of a job go; a failed job is tried again at the next wake. If the database
            was away, also without one: what waits is written when it is back.
        leisure: Jobs that have time: a step now and then, also while others are at work, until they have
            nothing left to do. Nobody waits for them.
    """

    def __init__(
        self, jobs: Mapping[str, Job], faults: Faults, leisure: Mapping[str, Job] | None = None
    ) -> None:
        self._jobs, self._leisure = dict(jobs), dict(leisure or {})
        self._faults = faults
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._wanted = 0  # wakes so far
        self._done = 0  # the wake after which everything was done
        self._stopping = False
        self._awaited = False  # somebody waits: gather no longer
        self._left_over = 0  # rounds in a row that left something undone, as the database was away
        self._again_at = 0.0  # when it is tried again
        self._unhurried = False  # a job that has time is not done
        self._step_at = 0.0  # when it may do its next step
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """Start afresh in a forked child, where the thread does not exist."""
        self._reset()

    def wake(self) -> None:
        """There is work. Returns at once."""
        with self._changed:
            self._wanted += 1
            if not self._stopping and not (self._thread and self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="ibidem-background", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Wait until the work known now is done; False if it was not, or not within `timeout` seconds."""
        self.wake()
        with self._changed:
            wanted, self._awaited = self._wanted, True
            self._changed.notify_all()
            ended = self._changed.wait_for(lambda: self._done >= wanted or self._stopping, timeout)
            return ended and not self._left_over

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
                self._changed.wait_for(lambda: self._wanted > self._done or self._stopping, self._pause())
                if self._stopping:
                    return
                if self._wanted > self._done:
                    gather = PAUSE_SECONDS if self._unhurried else GATHER_SECONDS
                    self._changed.wait_for(lambda: self._awaited or self._stopping, gather)
                wanted, self._awaited = self._wanted, False
            if wanted > self._done or (self._left_over and time.monotonic() >= self._again_at):
                self._work(wanted)
            self._step()

    def _work(self, wanted: int) -> None:
        more, away = True, False
        while more and not self._stopping:
            outcomes = [self._do(name, job) for name, job in self._jobs.items()]
            away = None in outcomes
            more = any(outcomes)
            if more:
                self._step()
        with self._changed:
            self._done = wanted
            self._left_over = self._left_over + 1 if away else 0
            again = AGAIN_SECONDS * 2 ** min(self._left_over - 1, 10)
            self._again_at = time.monotonic() + min(AGAIN_LAST_SECONDS, again)
            self._changed.notify_all()

    def _step(self) -> None:
        """Let the jobs that have time do one step each, if the last is long enough ago."""
        if time.monotonic() >= self._step_at and not self._stopping:
            outcomes = [self._do(name, job) for name, job in self._leisure.items()]
            self._unhurried = any(outcomes)
            self._step_at = time.monotonic() + PAUSE_SECONDS / 2

    def _pause(self) -> float | None:
        """How long to wait for a wake; None for ever, if nothing is left over and no step is due."""
        pauses = [PAUSE_SECONDS] if self._unhurried else []
        if self._left_over:
            pauses.append(max(0.0, self._again_at - time.monotonic()))
        return min(pauses, default=None)

    def _do(self, name: str, job: Job) -> bool | None:
        """Whether there is more to do; None if the database was away."""
        try:
            return job()
        except Exception as error:
            self._faults.note(name, error)
            return None if isinstance(error, StorageUnavailable) else False
