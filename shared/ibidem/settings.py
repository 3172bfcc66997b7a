"""Settings: arguments of `ibidem.open`, else `IBIDEM_*` variables, else the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ibidem.decision import ContextRule, Policy
from ibidem.errors import ConfigurationError

DAYS = 86_400.0


def _similarity(value: Any) -> Any:
    """Refuse what looks like a distance, the usual mistake, with a sentence that says so."""
    number = float(value)
    if not 0.5 <= number <= 1.0:
        raise ValueError(
            "is a cosine similarity from 0.5 to 1.0; 0.95 is the default, higher is stricter. "
            "A distance d is the similarity 1 - d"
        )
    return number


class Settings(BaseSettings):
    """How a cache is opened. `ibidem.open` documents each setting."""

    model_config = SettingsConfigDict(
        env_prefix="IBIDEM_", extra="forbid", frozen=True, arbitrary_types_allowed=True
    )

    path: Path = Field(default_factory=lambda: user_data_path("ibidem", appauthor=False))
    database: str | None = None
    chroma: str | None = None
    embedder: Any = None
    threshold: Annotated[float, BeforeValidator(_similarity)] = 0.95
    context: ContextRule = "evidence"
    ttl: Annotated[float, Field(gt=0)] = 30 * DAYS

    @property
    def policy(self) -> Policy:
        """The decision's part of the settings."""
        return Policy(threshold=self.threshold, context=self.context)

    @property
    def database_url(self) -> str:
        """The SQL database: as given, or SQLite in `path`."""
        return self.database or f"sqlite:///{self.path / 'ibidem.sqlite3'}"


def read_settings(**given: Any) -> Settings:
    """Settings from the arguments that are not None, the environment and the defaults.

    Raises:
        ConfigurationError: A setting is unknown or out of range; the message names it.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if "path" in chosen:
        try:
            chosen["path"] = Path(chosen["path"]).expanduser()
        except TypeError:
            kind = type(chosen["path"]).__name__
            raise ConfigurationError(f"path must be a str or Path, not {kind}") from None
    try:
        return Settings(**chosen)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {_said(problem)}" for problem in error.errors()
        )
        raise ConfigurationError(f"cannot open the cache: {problems}") from None


def _said(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no such setting; there are {', '.join(Settings.model_fields)}"
    return f"{problem['msg'].removeprefix('Value error, ')} (not {problem['input']!r})"
