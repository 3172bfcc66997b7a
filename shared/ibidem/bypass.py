"""Calls that no cache of this process answers, keeps or logs, such as those of a teacher."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ibidem.request import Request
from ibidem.scoping import current, scope

BYPASSED = "bypassed"  # why a lookup found nothing, and why an answer was not stored


def bypassing() -> AbstractContextManager[None]:
    """In this block, and in tasks begun in it, models are asked as if there were no cache and no log."""
    return scope(bypass=True)


def is_bypassed(request: Request | None = None) -> bool:
    """Whether caches and logs are to be left alone: here, or where the request was made."""
    within = request.within if request is not None else None
    return current().bypass or (within is not None and within.bypass)
