"""Per-thread deadline for calls to database and vector servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

DEADLINE_SECONDS = 1.0  # what one lookup, or one store, spends on servers in all
DEFAULT_SECONDS = 30.0  # the timeout of each call without a deadline, as in the background
MIN_SECONDS = 0.05  # the timeout of the last of several calls, however late the others were


class _Budget(threading.local):
    seconds: float | None = None  # left of the deadline; None without one
    charged_since: float | None = None  # when the call that is being charged began


_budget = _Budget()


class deadline:
    """Give the calls of this thread a deadline of `seconds` in all, until the block ends."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = DEADLINE_SECONDS if seconds is None else seconds

    def __enter__(self) -> None:
        self._before, _budget.seconds = _budget.seconds, self._seconds

    def __exit__(self, *_: object) -> None:
        _budget.seconds = self._before


def has_deadline() -> bool:
    """Return whether this thread has a deadline."""
    return _budget.seconds is not None


def remaining() -> float:
    """Return the timeout of the next call, in seconds."""
    if _budget.seconds is None:
        return DEFAULT_SECONDS
    since = _budget.charged_since
    spent = 0.0 if since is None else time.monotonic() - since
    return max(MIN_SECONDS, _budget.seconds - spent)


@contextmanager
def charge() -> Iterator[None]:
    """Charge the time of this block to the deadline: connecting, waiting for a lock, the call itself."""
    started = _budget.charged_since = time.monotonic()
    try:
        yield
    finally:
        _budget.charged_since = None
        if _budget.seconds is not None:
            _budget.seconds -= time.monotonic() - started
