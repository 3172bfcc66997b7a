"""Calls that no cache of this process answers, keeps or logs, such as those of a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BYPASSED = "bypassed"  # why a lookup found nothing, and why an answer was not stored
_bypassed: ContextVar[bool] = ContextVar("ibidem_bypassed", default=False)


@contextmanager
def bypassing() -> Iterator[None]:
    """In this block, and in tasks begun in it, models are asked as if there were no cache and no log."""
    token = _bypassed.set(True)
    try:
        yield
    finally:
        _bypassed.reset(token)


def is_bypassed() -> bool:
    """Whether the caches and logs of this process are to be left alone."""
    return _bypassed.get()
