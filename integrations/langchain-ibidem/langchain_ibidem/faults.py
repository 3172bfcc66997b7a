"""What the adapter swallowed. A cache must never break the call it serves, nor fail in silence."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from ibidem.errors import IbidemError

_log = logging.getLogger("langchain_ibidem")


class NotCacheable(Exception):
    """A call that must not be cached. `cause` is counted, `advice` logged."""

    def __init__(self, cause: str, advice: str) -> None:
        super().__init__(f"{cause}: {advice}")
        self.cause = cause
        self.advice = advice


class Faults:
    """Counts what went wrong or was left out, by cause. The first of a kind is a WARNING, then DEBUG."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def caught(self, where: str, error: Exception) -> None:
        """Note an exception that was turned into a miss."""
        cause = f"{where}:{type(error).__name__}"
        # Messages of foreign errors can quote the prompt or headers: only our own are logged above DEBUG.
        kind, detail = type(error).__name__, f": {error}" if isinstance(error, IbidemError) else ""
        _log.log(self._level(cause), "%s failed (%s)%s; went on without the cache", where, kind, detail)
        _log.debug("%s failed", where, exc_info=error)

    def skipped(self, reason: NotCacheable) -> None:
        """Note a call that is not cached on purpose."""
        _log.log(self._level(reason.cause), "not cached: %s", reason)

    def counts(self) -> dict[str, int]:
        """Occurrences per cause so far."""
        with self._lock:
            return dict(self._counts)

    def _level(self, cause: str) -> int:
        with self._lock:
            self._counts[cause] += 1
            return logging.WARNING if self._counts[cause] == 1 else logging.DEBUG
