"""A circuit breaker: fails fast while a server is down and probes it from another thread.

`CircuitState` decides and is pure; `CircuitBreaker` runs the probes, in a thread that lives only while it has
something to do.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

FIRST_SECONDS = 0.1  # between the first two probes; the pause doubles from probe to probe
# The longest pause: for no longer does anybody wait for a server that answers again. To refuse a connection
# costs a machine next to nothing, and a frozen server has one probe of each process before it at a time.
LAST_SECONDS = 0.6
REFUSED_SECONDS = 30.0  # the longest pause where the server answers, and refuses: only people mend that
JITTER = 0.25  # pauses vary by this share, so that processes do not all probe at once
CALM_SECONDS = 10.0  # a server that fails again sooner keeps the pauses that it had reached
IDLE_SECONDS = 300.0  # without a call for this long, probing stops; the next call resumes it

_draw = random.SystemRandom()  # the module's own generator is the program's, which may have seeded it


class CircuitState:
    """Whether calls pass (`closed`), and when the next probe is `due`.

    Args:
        closed: Whether calls pass at first; else a probe is due at once.
        draw: Returns a random number from 0 to 1.
    """

    def __init__(self, *, closed: bool, draw: Callable[[], float] = _draw.random) -> None:
        self.closed, self.due = closed, 0.0
        self._draw = draw
        self._failures, self._refusals = 0, 0  # in a row
        self._closed_at = float("-inf")

    def record_failure(self, now: float, *, refused: bool = False) -> None:
        """Open the circuit. After a calm the first probe is due at once: maybe it was one connection.

        If it was `refused`, by a server that answers, or a try is dear, pauses grow from one to the next.
        """
        if self.closed and now - self._closed_at >= CALM_SECONDS:
            self._failures = self._refusals = 0
        self.closed = False
        self.due = now + (self._pause(refused) if self._failures else 0.0)
        self._failures += 1
        self._refusals = self._refusals + 1 if refused else 0

    def _pause(self, refused: bool) -> float:
        before, longest = self._failures - 1, LAST_SECONDS
        if refused:
            before, longest = self._refusals, REFUSED_SECONDS
        doubled = FIRST_SECONDS * 2.0 ** min(before, 30)
        return float(min(doubled, longest) * (1.0 - JITTER + 2 * JITTER * self._draw()))

    def record_success(self, now: float) -> None:
        """Close the circuit."""
        self.closed, self._closed_at = True, now


class CircuitBreaker:
    """Guards the calls of one server. Thread-safe.

    Args:
        probe: Tries the server, called in a thread of its own; raises if it is still down.
        closed: Whether calls pass at first; else the first `check` starts a probe.
        on_closed: Called when the server is up again.
        refusals: Failures of a server that answers, which is asked less and less often.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        *,
        closed: bool = True,
        on_closed: Callable[[], None] = lambda: None,
        refusals: tuple[type[Exception], ...] = (),
    ) -> None:
        self._probe, self._starts_closed, self._on_closed = probe, closed, on_closed
        self._refusals = refusals
        self.after_fork()

    def after_fork(self) -> None:
        """Start afresh in a forked child, where the thread does not exist."""
        self._changed = threading.Condition()
        self._state = CircuitState(closed=self._starts_closed)
        self._failure: Exception | None = None  # the last one; None before the first probe
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._last_call = 0.0
        self.epoch = 0  # how often it was closed; tells failures of calls that began before

    @property
    def closed(self) -> bool:
        """Whether calls pass."""
        return self._state.closed

    @property
    def failure(self) -> Exception | None:
        """The last failure; None if there was none or the server is up again."""
        return None if self._state.closed else self._failure

    def check(self, first_seconds: float = 0.0) -> None:
        """Return if the server may be called, else raise its last failure; neither waits.

        Only for the outcome of the very first probe, if there is one, this waits up to `first_seconds`.

        Raises:
            Exception: A copy of the last failure.
            TimeoutError: The first probe is not over.
        """
        if self._state.closed:
            return
        with self._changed:
            self._last_call = time.monotonic()
            self._start_probing()
            if self._failure is None:
                probed = self._changed.wait_for(lambda: self._state.closed or self._failure, first_seconds)
                if not probed:
                    raise TimeoutError("is being tried for the first time")
            if self._state.closed or self._failure is None:
                return
            failure = self._failure
        raise _without_frames(failure)

    def trip(self, failure: Exception, epoch: int) -> None:
        """Open the circuit for a call that began at this `epoch` and failed; `check` raises its failure."""
        with self._changed:
            if not self._state.closed or epoch != self.epoch:
                return
            self._failure = _without_frames(failure)
            self._state.record_failure(time.monotonic(), refused=isinstance(failure, self._refusals))
            self._last_call = time.monotonic()
            self._start_probing()

    def stop(self) -> None:
        """Stop probing; a probe under way ends by itself."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _start_probing(self) -> None:
        """Start the thread, unless it runs. The caller holds the lock."""
        if self._thread is None and not self._stopped:
            self._thread = threading.Thread(target=self._run, name="ibidem-breaker", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._wait_until_due():
            try:
                self._probe()
            except Exception as error:
                failure: Exception | None = _without_frames(error)
            else:
                failure = None
            with self._changed:
                if failure is None:
                    self.epoch += 1
                    self._state.record_success(time.monotonic())
                else:
                    refused = isinstance(failure, self._refusals)
                    self._state.record_failure(time.monotonic(), refused=refused)
                self._failure = failure
                self._changed.notify_all()
            if failure is None:
                self._on_closed()

    def _wait_until_due(self) -> bool:
        """Wait for the next probe; return False, and give up the thread, if there is no reason for one."""
        with self._changed:
            pause = max(0.0, self._state.due - time.monotonic())
            self._changed.wait_for(lambda: self._stopped, pause)
            idle = time.monotonic() - self._last_call > IDLE_SECONDS
            if self._stopped or self._state.closed or idle:
                self._thread = None
                return False
            return True


def _without_frames(error: Exception) -> Exception:
    """Copy an error without its frames, which hold on to all objects of the failed call."""
    try:
        return type(error)(str(error))
    except Exception:  # its class takes other arguments
        return RuntimeError(str(error))
