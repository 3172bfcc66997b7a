"""Why a call is not cached at all."""

from __future__ import annotations


class NotCacheable(Exception):
    """A call that must not be cached. `cause` is counted, `advice` logged once."""

    def __init__(self, cause: str, advice: str) -> None:
        super().__init__(f"{cause}: {advice}")
        self.cause = cause
        self.advice = advice
