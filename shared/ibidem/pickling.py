"""Pickling of caches: what is pickled is how to open one, without passwords, as it may be kept in a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibidem._util.urls import redact_url
from ibidem.errors import ConfigurationError, InvalidInput
from ibidem.settings import Settings, checked_settings

_PICKLERS = ("pickle", "cloudpickle", "joblib.externals.cloudpickle", "dill")  # the later ones pickle more
_PLAIN = (str, int, float, bool, Path, type(None))


@dataclass(frozen=True, slots=True)
class Opening:
    """Settings and hooks with which to open a cache.

    `settings` are those of the process that pickled it, however they were set there. Those named in `secret`
    are not among them: they come from the environment of the process that opens it.
    """

    settings: Mapping[str, Any]
    hooks: Mapping[str, Any]
    secret: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings, hooks: Mapping[str, Any]) -> Opening:
        """Build the opening from settings and hooks.

        Raises:
            ConfigurationError: A setting holds a secret that is not in the environment.
            InvalidInput: One of them cannot be pickled.
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
        carried = {name: _absolute(value) for name, value in values.items() if name not in secret}
        carried_hooks = {name: hook for name, hook in hooks.items() if hook is not None}
        for name, value in (*carried.items(), *carried_hooks.items()):
            _require_picklable(name, value)
        return cls(carried, carried_hooks, secret)

    def read(self) -> Settings:
        """Return the settings, with the secrets of this process.

        Raises:
            ConfigurationError: A secret is not in the environment, or cannot be used.
        """
        if missing := [_variable(name) for name in self.secret if _in_environment(name) is None]:
            raise ConfigurationError(
                f"the pickled cache needs {', '.join(missing)} in the environment where it is used"
            )
        return checked_settings(dict(self.settings))


def _variable(name: str) -> str:
    return f"IBIDEM_{name.upper()}"


def _in_environment(name: str) -> Any:
    """Return the setting in the environment; None if there is none, or it cannot be used."""
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


def _absolute(value: Any) -> Any:
    """Make paths absolute: the other process may run in another directory."""
    if isinstance(value, Path) or (isinstance(value, str) and value and Path(value).is_dir()):
        return type(value)(Path(value).expanduser().absolute())
    return value


def _require_picklable(name: str, value: Any) -> None:
    """Raise `InvalidInput` with advice, where pickle would complain of a lock somewhere inside."""
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
