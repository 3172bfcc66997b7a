"""What went wrong inside and was kept from the caller: counted, and logged once per cause."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger("ibidem")


class Faults:
    """Counts of failures by cause. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def note(self, doing: str, error: BaseException) -> None:
        """Count a failure; the first of its kind is logged as a warning, the others at debug level.

        The message of the error is logged, never a prompt: errors of ours and of the database name no text.
        """
        cause = f"{doing}: {type(error).__name__}"
        with self._lock:
            first = cause not in self._counts
            self._counts[cause] = self._counts.get(cause, 0) + 1
        level = logging.WARNING if first else logging.DEBUG
        again = " (logged once; further ones are counted in stats().faults)" if first else ""
        message = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        log.log(level, "Ibidem failed to %s and went on without: %s%s", doing, message, again)
        log.debug("Ibidem failed to %s", doing, exc_info=error)

    def after_fork(self) -> None:
        """Renew the lock in a forked child; a thread of the parent may have held it."""
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """Failures so far, by `"<what>: <error class>"`."""
        with self._lock:
            return dict(self._counts)
