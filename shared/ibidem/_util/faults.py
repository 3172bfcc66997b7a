"""What went wrong inside and was kept from the caller: counted, and logged once per cause."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ibidem._util.concurrency import ForkSafeLock
from ibidem.errors import IbidemError, NotCacheable

T = TypeVar("T")

log = logging.getLogger("ibidem")
_listener: Callable[[str, str], None] | None = None


def listen(listener: Callable[[str, str], None]) -> None:
    """Have every failure of the process told to this, by its cause and the class that was raised, if one was.

    There is one listener; it must not raise.
    """
    global _listener
    _listener = listener


class Faults:
    """Counts of failures by cause. Thread-safe."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._counts: dict[str, int] = {}

    def __reduce__(self) -> tuple[type[Faults], tuple[()]]:
        return Faults, ()  # a copy of what failed has not failed yet

    def note(self, doing: str, error: BaseException) -> None:
        """Count a failure that was kept from the caller.

        Messages of foreign errors can quote prompts or headers: they are logged at debug level only.
        """
        kind = type(error).__name__
        told = f"{kind}: {error}" if isinstance(error, (IbidemError, OSError)) else kind
        cause = f"{doing}: {kind}"
        self.count(cause, f"failed to {doing} and went on without it ({told})", kind)
        about = {"event.name": "ibidem.fault.detail", "ibidem.fault": cause, "error.type": kind}
        log.debug("Ibidem failed to %s", doing, exc_info=error, extra=about)

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

    def count(self, cause: str, message: str, kind: str = "") -> None:
        """Count something by its cause; the first time it is logged as a warning, then at debug level.

        `kind` is the class that was raised, if one was.
        """
        with self._lock:
            seen = self._counts.get(cause, 0)
            self._counts[cause] = seen + 1
        level = logging.DEBUG if seen else logging.WARNING
        about = {"event.name": "ibidem.fault", "ibidem.fault": cause, "ibidem.fault.count": seen + 1}
        if kind:
            about["error.type"] = kind
        log.log(level, "Ibidem %s; logged once, counted from now on", message, extra=about)
        if _listener is not None:
            _listener(cause, kind)

    def counts(self) -> dict[str, int]:
        """Failures so far, by `"<what>: <error class>"`."""
        with self._lock:
            return dict(self._counts)
