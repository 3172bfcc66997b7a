"""A circuit breaker: who calls a server that is down is told so at once, and the server is tried elsewhere.

`Circuit` decides and is pure; `Breaker` runs the tries, in a thread that lives only while there is reason to.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

FIRST_SECONDS = 0.5  # between the first two tries; the pause doubles from try to try
LAST_SECONDS = 30.0  # the longest pause
JITTER = 0.25  # pauses are up to so much shorter or longer: processes do not all come at once
CALM_SECONDS = 10.0  # a server that fails again sooner goes on where its pauses were
IDLE_SECONDS = 300.0  # tries end when nobody has asked for so long, and go on when somebody does


class Circuit:
    """Whether a server is called (`closed`), and when it is `due` to be tried again.

    Args:
        closed: Whether it is called at first; else it is due at once.
        draw: A number from 0 to 1, anew at each call.
    """

    def __init__(self, *, closed: bool, draw: Callable[[], float] = random.random) -> None:
        self.closed, self.due = closed, 0.0
        self._draw = draw
        self._failures = 0
        self._closed_at = float("-inf")

    def failed(self, now: float) -> None:
        """A call or a try failed. The first try after calm is due at once: maybe it was one connection."""
        if self.closed and now - self._closed_at >= CALM_SECONDS:
            self._failures = 0
        self.closed = False
        self.due = now + self._pause()
        self._failures += 1

    def _pause(self) -> float:
        if not self._failures:
            return 0.0
        doubled = FIRST_SECONDS * 2.0 ** min(self._failures - 1, 30)
        return float(min(doubled, LAST_SECONDS) * (1.0 - JITTER + 2 * JITTER * self._draw()))

    def worked(self, now: float) -> None:
        """A try went well."""
        self.closed, self._closed_at = True, now


class Breaker:
    """Guards the calls of one server. Thread-safe.

    Args:
        attempt: Tries the server, called in a thread of its own; raises if it is still down.
        closed: Whether the server is called at first; else it is tried at the first `check`.
        on_closed: Called when it is up again.
    """

    def __init__(
        self,
        attempt: Callable[[], None],
        *,
        closed: bool = True,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._attempt, self._starts_closed, self._on_closed = attempt, closed, on_closed
        self.after_fork()

    def after_fork(self) -> None:
        """Start afresh in a forked child, where the thread does not exist."""
        self._changed = threading.Condition()
        self._circuit = Circuit(closed=self._starts_closed)
        self._failure: Exception | None = None  # the last one; None before the first try
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._asked_at = 0.0
        self.epoch = 0  # how often it was closed; tells failures of calls that began before

    @property
    def closed(self) -> bool:
        """Whether the server is called."""
        return self._circuit.closed

    @property
    def failure(self) -> Exception | None:
        """The last failure, None if there was none or the server is up again."""
        return None if self._circuit.closed else self._failure

    def check(self, first_seconds: float = 0.0) -> None:
        """Return if the server may be called, else raise its last failure, both at once.

        Only for the outcome of the very first try, if there is one, up to `first_seconds` are waited.

        Raises:
            Exception: A copy of the last failure.
            TimeoutError: The first try is not over.
        """
        if self._circuit.closed:
            return
        with self._changed:
            self._asked_at = time.monotonic()
            self._start()
            if self._failure is None:
                tried = self._changed.wait_for(lambda: self._circuit.closed or self._failure, first_seconds)
                if not tried:
                    raise TimeoutError("is being tried for the first time")
            if self._circuit.closed or self._failure is None:
                return
            failure = self._failure
        raise _copy(failure)

    def trip(self, failure: Exception, epoch: int) -> None:
        """A call failed that began at this `epoch`: raise this failure until a try goes well."""
        with self._changed:
            if not self._circuit.closed or epoch != self.epoch:
                return
            self._failure = _copy(failure)
            self._circuit.failed(time.monotonic())
            self._asked_at = time.monotonic()
            self._start()

    def stop(self) -> None:
        """Try no more; a try under way ends by itself."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _start(self) -> None:
        """Make sure that it is being tried. Under the lock."""
        if self._thread is None and not self._stopped:
            self._thread = threading.Thread(target=self._run, name="ibidem-breaker", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._wait_until_due():
            try:
                self._attempt()
            except Exception as error:
                failure: Exception | None = _copy(error)
            else:
                failure = None
            with self._changed:
                if failure is None:
                    self.epoch += 1
                    self._circuit.worked(time.monotonic())
                else:
                    self._circuit.failed(time.monotonic())
                self._failure = failure
                self._changed.notify_all()
            if failure is None:
                self._on_closed()

    def _wait_until_due(self) -> bool:
        """Wait; False, and the thread is gone for the others, if there is no reason to try."""
        with self._changed:
            pause = max(0.0, self._circuit.due - time.monotonic())
            self._changed.wait_for(lambda: self._stopped, pause)
            idle = time.monotonic() - self._asked_at > IDLE_SECONDS
            if self._stopped or self._circuit.closed or idle:
                self._thread = None
                return False
            return True


def _copy(error: Exception) -> Exception:
    """The same without its frames, which hold on to all that the failed call had at hand."""
    try:
        return type(error)(str(error))
    except Exception:  # one that is made of other things
        return RuntimeError(str(error))
