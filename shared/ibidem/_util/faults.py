"""Failures that are kept from the caller: counted, and logged once per cause."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ibidem._util.concurrency import ForkSafeLock
from ibidem.errors import CacheMoved, IbidemError, NotCacheable, OtherCache

log = logging.getLogger("ibidem")
_listener: Callable[[str, str], None] | None = None


def listen(listener: Callable[[str, str], None]) -> None:
    """Call `listener` for every failure of the process.

    Its arguments are the cause and the class of the exception ("" without one). There is one
    listener; it must not raise.
    """
    global _listener
    _listener = listener


class Faults:
    """Counts failures by cause. Thread-safe."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._counts: dict[str, int] = {}

    def __reduce__(self) -> tuple[type[Faults], tuple[()]]:
        return Faults, ()  # a copied object has not failed yet

    def note(self, operation: str, error: BaseException) -> None:
        """Count a failure that was kept from the caller.

        Messages of foreign errors can quote prompts or headers: they are logged at debug level only.
        """
        kind = type(error).__name__
        shown = f"{kind}: {error}" if isinstance(error, (IbidemError, OSError)) else kind
        cause = f"{operation}: {kind}"
        self.count(cause, f"failed to {operation} and went on without it ({shown})", kind)
        attributes = {"event.name": "ibidem.fault.detail", "ibidem.fault": cause, "error.type": kind}
        log.debug("Ibidem failed to %s", operation, exc_info=error, extra=attributes)

    def reason(self, operation: str, error: BaseException) -> str:
        """Count a failure that was kept from the caller; return the reason that he is told."""
        other = isinstance(error, OtherCache)
        self.note("use the database" if other else operation, error)
        return "other_cache" if other else "moved" if isinstance(error, CacheMoved) else "error"

    def swallow(self, operation: str, error: Exception, refused: str = "does not cache a call") -> None:
        """Count a failure in an adapter, whose caller goes on without the result.

        `NotCacheable` is counted by its cause; the log says what was `refused`.
        """
        if isinstance(error, NotCacheable):
            self.count(error.cause, f"{refused} ({error})")
        else:
            self.note(operation, error)

    def count(self, cause: str, message: str, kind: str = "") -> None:
        """Count an event by its cause; log it as a warning the first time, then at debug level.

        `kind` is the class of the exception, if there was one.
        """
        with self._lock:
            before = self._counts.get(cause, 0)
            self._counts[cause] = before + 1
        level = logging.DEBUG if before else logging.WARNING
        attributes = {"event.name": "ibidem.fault", "ibidem.fault": cause, "ibidem.fault.count": before + 1}
        if kind:
            attributes["error.type"] = kind
        log.log(level, "Ibidem %s; logged once, counted from now on", message, extra=attributes)
        if _listener is not None:
            _listener(cause, kind)

    def counts(self) -> dict[str, int]:
        """Return the failures so far, by `"<operation>: <error class>"`."""
        with self._lock:
            return dict(self._counts)
