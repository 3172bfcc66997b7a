"""What went wrong inside and was kept from the caller: counted, and logged once per cause."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ibidem.errors import IbidemError, NotCacheable
from ibidem.locks import ForkSafeLock

T = TypeVar("T")

log = logging.getLogger("ibidem")


class Faults:
    """Counts of failures by cause. Thread-safe."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._counts: dict[str, int] = {}

    def note(self, doing: str, error: BaseException) -> None:
        """Count a failure that was kept from the caller.

        Messages of foreign errors can quote prompts or headers: they are logged at debug level only.
        """
        kind = type(error).__name__
        told = f"{kind}: {error}" if isinstance(error, (IbidemError, OSError)) else kind
        self.count(f"{doing}: {kind}", f"failed to {doing} and went on without it ({told})")
        log.debug("Ibidem failed to %s", doing, exc_info=error)

    def attempt(
        self, doing: str, work: Callable[[], T], *, refused: str = "does not cache a call"
    ) -> T | None:
        """What `work` gives, or None if it fails: the caller's program goes on without it.

        For adapters. What must not be cached (`NotCacheable`) is counted by its cause; the log says what
        was `refused`.
        """
        try:
            return work()
        except NotCacheable as reason:
            self.count(reason.cause, f"{refused} ({reason})")
        except Exception as error:
            self.note(doing, error)
        return None

    def count(self, cause: str, message: str) -> None:
        """Count something by its cause; the first time it is logged as a warning, then at debug level."""
        with self._lock:
            seen = self._counts.get(cause, 0)
            self._counts[cause] = seen + 1
        level = logging.DEBUG if seen else logging.WARNING
        log.log(level, "Ibidem %s; logged once, counted from now on", message)

    def counts(self) -> dict[str, int]:
        """Failures so far, by `"<what>: <error class>"`."""
        with self._lock:
            return dict(self._counts)
