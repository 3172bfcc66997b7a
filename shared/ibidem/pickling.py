"""Copies and pickles of what holds an open cache.

A copy asks the same cache. A pickle carries how to open it: where it is loaded, it opens with its first use.
It may lie in a file, so no password is in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibidem._util.concurrency import ForkSafeLock
from ibidem._util.urls import redact_url
from ibidem.cache import SemanticCache
from ibidem.errors import CacheClosed, ConfigurationError, InvalidInput
from ibidem.opening import parts_of
from ibidem.settings import Settings, checked_settings

HOLD_OFF = 10.0  # seconds for which a cache that could not be opened is not tried again

_PICKLERS = ("pickle", "cloudpickle", "joblib.externals.cloudpickle", "dill")  # the later ones can take more
_PLAIN = (str, int, float, bool, Path, type(None))


@dataclass(frozen=True, slots=True)
class Opening:
    """How a cache is opened.

    `settings` are those of the process that pickled it, whichever way they were set there; those named in
    `secret` are not among them, but come from the environment of the process that opens it.
    """

    settings: Mapping[str, Any]
    hooks: Mapping[str, Any]
    secret: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings, hooks: Mapping[str, Any]) -> Opening:
        """How these open a cache.

        Raises:
            ConfigurationError: A setting holds a secret that is not from the environment.
            InvalidInput: An object among them cannot be pickled.
        """
        values = {name: getattr(settings, name) for name in Settings.model_fields}
        secret = tuple(name for name, value in values.items() if _is_secret(name, value))
        for name in secret:
            if _in_environment(name) != values[name]:
                raise ConfigurationError(
                    f"a cache whose {name} holds a secret cannot be pickled: set {_variable(name)} in the "
                    "environment of both processes instead (a database's password can also be left to "
                    "PGPASSWORD), or open the cache in the other process and set it there"
                )
        carried = {name: _placed(value) for name, value in values.items() if name not in secret}
        carried_hooks = {name: hook for name, hook in hooks.items() if hook is not None}
        for name, value in (*carried.items(), *carried_hooks.items()):
            _require_picklable(name, value)
        return cls(carried, carried_hooks, secret)

    def read(self) -> Settings:
        """The settings, here.

        Raises:
            ConfigurationError: A secret is not in the environment, or is none that can be used.
        """
        if missing := [_variable(name) for name in self.secret if _in_environment(name) is None]:
            raise ConfigurationError(
                f"the pickled cache needs {', '.join(missing)} in the environment where it is used"
            )
        return checked_settings(dict(self.settings))


def pickled(cache: SemanticCache) -> tuple[Any, ...]:
    """What `pickle` makes of a cache.

    Raises:
        ConfigurationError, InvalidInput: As `Opening.of`; or the cache was put together by hand.
    """
    if cache.opened_with is None:
        raise InvalidInput("only a cache that ibidem.open() gave can be pickled")
    return UnopenedCache, (Opening.of(*cache.opened_with),)


class UnopenedCache(SemanticCache):
    """A cache that came out of a pickle. With its first use it opens, and is a `SemanticCache` from then on.

    If it cannot be opened, using it raises what `ibidem.open` raises.
    """

    def __init__(self, opening: Opening | None) -> None:
        self._opening, self._opening_lock = opening, ForkSafeLock()
        self._failure: tuple[float, Exception] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return UnopenedCache, (self._opening,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy, inspect and the like ask for
            raise AttributeError(name)
        self._open()
        return getattr(self, name)

    def __repr__(self) -> str:
        return "SemanticCache(not opened yet)"

    def close(self) -> None:
        """Never open it."""
        self._opening = None

    def _open(self) -> None:
        with self._opening_lock:
            if type(self) is not UnopenedCache:
                return  # another thread has
            if self._opening is None:
                raise CacheClosed("this cache was closed; open another with ibidem.open()")
            if self._failure is not None and time.monotonic() < self._failure[0] + HOLD_OFF:
                raise self._failure[1].with_traceback(None)
            try:
                settings, hooks = self._opening.read(), self._opening.hooks
                parts = parts_of(settings, hooks)
            except Exception as error:
                self._failure = time.monotonic(), error
                raise
            super().__init__(**parts)
            self.opened_with = settings, hooks
            self.__class__ = SemanticCache  # type: ignore[assignment]


def _variable(name: str) -> str:
    return f"IBIDEM_{name.upper()}"


def _in_environment(name: str) -> Any:
    """The setting as the environment gives it; None if it does not, or nothing that can be used."""
    try:
        return getattr(checked_settings({}), name)
    except ConfigurationError:
        return None


def _is_secret(name: str, value: Any) -> bool:
    if name == "chroma_headers":
        return bool(value)
    if name not in ("database", "chroma") or value is None:
        return False
    # In front of a Chroma server a bare user may be a token.
    return bool(redact_url(value, user=name == "database") != value)


def _placed(value: Any) -> Any:
    """A path by its absolute name: the other process may run elsewhere."""
    if isinstance(value, Path) or (isinstance(value, str) and value and Path(value).is_dir()):
        return type(value)(Path(value).expanduser().absolute())
    return value


def _require_picklable(name: str, value: Any) -> None:
    """Say what to do before pickle says something of a lock somewhere inside."""
    if isinstance(value, _PLAIN):
        return
    failure: Exception | None = None
    for module in _PICKLERS:
        if module in sys.modules:
            try:
                sys.modules[module].dumps(value)
                return
            except Exception as error:
                failure = failure or error
    raise InvalidInput(
        f"a cache cannot be pickled with this {name} ({failure}): give a name, or an object or function that "
        "pickle can take, or open the cache in the other process and set it there"
    )
