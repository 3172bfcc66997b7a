"""The exceptions of Ibidem. Each message says what to do about it."""

from __future__ import annotations


class IbidemError(Exception):
    """Base of all errors raised by Ibidem."""


class InvalidInput(IbidemError, ValueError):
    """An argument has the wrong type or cannot be used."""


class ConfigurationError(IbidemError, ValueError):
    """A setting is invalid; the message names it and says what it accepts."""


class MissingExtra(IbidemError, ImportError):
    """An optional dependency is not installed; the message is the install command."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional package: pip install 'ibidem-cache[{extra}]'")


class EmbedderUnavailable(IbidemError):
    """No embedding model could be found or loaded."""


class StorageError(IbidemError):
    """The database (SQL) cannot be opened or used."""


class StorageUnavailable(StorageError):
    """The database is temporarily unavailable, locked or full; retry later."""


class NoCache(StorageError):
    """There is no cache in this place, and `create=False` was asked for."""


class OtherCache(StorageUnavailable):
    """The database has become another cache than the one that was opened; nothing is read or written."""


class StorageRefused(StorageUnavailable):
    """The database server answers and takes no connection of ours: its name, the role or the password."""


class CacheMoved(StorageError):
    """The cache was moved to another place by `ibidem copy`; this one takes nothing any more."""


class IndexUnavailable(IbidemError):
    """The vector index cannot be opened or used; the exact tier still works."""


class IndexInUse(IndexUnavailable):
    """Another process uses the embedded vector index; the exact tier still works."""


class IndexBusy(IndexUnavailable):
    """The server of the vector index takes no more requests for now; the exact tier still works."""


class IndexRefused(IndexUnavailable):
    """The vector index answers and refuses, such as a key, or cannot be opened; trying again helps little."""


class TeacherUnavailable(IbidemError):
    """A teacher failed repeatedly; earlier labels are kept."""

    def __init__(self, cause: Exception, failures: int) -> None:
        super().__init__(
            f"the teacher failed for {failures} pairs in a row, last with {type(cause).__name__}: {cause}; "
            "check its name, key and limits, or ask fewer at once, and run the same again: it goes on where "
            "it stopped"
        )


class CacheClosed(IbidemError):
    """The cache was used after `close()`."""


class NotCacheable(IbidemError):
    """A call must not be cached; caught by each adapter. `cause` is counted, `advice` logged."""

    def __init__(self, cause: str, advice: str) -> None:
        super().__init__(f"{cause}: {advice}")
        self.cause = cause
        self.advice = advice
