"""How long the present thread waits for servers: little in a lookup or a store, long in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HURRIED_SECONDS = 1.0  # what one lookup, or one store, waits for servers in all
PATIENT_SECONDS = 30.0  # what anything else waits for one answer
LEAST_SECONDS = 0.05  # the last of several answers gets so long, however late the others were


class _Left(threading.local):
    seconds: float | None = None  # of the lookup under way; None where nobody waits
    since: float | None = None  # when the wait under way began


_left = _Left()


class hurried:
    """Somebody waits: this thread gives its servers `HURRIED_SECONDS` in all, until the block ends."""

    def __enter__(self) -> None:
        self._before, _left.seconds = _left.seconds, HURRIED_SECONDS

    def __exit__(self, *_: object) -> None:
        _left.seconds = self._before


def in_a_hurry() -> bool:
    """Whether somebody waits for this thread."""
    return _left.seconds is not None


def allowance() -> float:
    """Seconds that the next answer may take."""
    if _left.seconds is None:
        return PATIENT_SECONDS
    spent = 0.0 if _left.since is None else time.monotonic() - _left.since
    return max(LEAST_SECONDS, _left.seconds - spent)


@contextmanager
def waiting() -> Iterator[None]:
    """Take what this block lasts from the allowance: connecting, asking, and waiting for one's turn."""
    started = _left.since = time.monotonic()
    try:
        yield
    finally:
        _left.since = None
        if _left.seconds is not None:
            _left.seconds -= time.monotonic() - started
