"""Settings: arguments of `ibidem.open`, else `IBIDEM_*` variables, else the defaults."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from ibidem._util.renamed import ARGUMENTS, VALUES
from ibidem._util.urls import redact_url
from ibidem.errors import ConfigurationError
from ibidem.lifecycle.rules import DAYS, MAX_TEMPERATURE, Bounds, Eviction, Lifetime
from ibidem.matching.documents import DocumentPolicy, NewDocuments
from ibidem.matching.policy import Strictness
from ibidem.types import storable

ERROR_RATES = {"strict": 0.005, "default": 0.02, "generous": 0.05}  # names for `max_error_rate`
MIN_BYTES = 1_000_000  # a lower bound is a mistake: it would hold a few hundred answers

# Longer than most answers take, shorter than the minute after which gateways and users give up: if the
# leading call hangs, the waiting ones can still ask the model themselves.
SINGLE_FLIGHT = 30.0

EMBEDDED = "embedded"  # as `chroma`: no server, and nothing in PostgreSQL


PREFIX = "IBIDEM_"
IGNORE = "IBIDEM_IGNORE"
KEY_HEADER = "x-chroma-token"  # of Chroma Cloud
ELSEWHERE = ("IBIDEM_MODEL_CACHE", "IBIDEM_HISTORY", IGNORE)  # read by no setting
# Variables that Kubernetes sets in each container for a service whose name begins with ours.
_OF_A_SERVICE = re.compile(
    r"(?=\w+\Z)IBIDEM_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_[A-Z]+(_[A-Z]+)?)?)"
)


def _similarity(value: Any) -> Any:
    """Refuse a distance, the usual mistake, with a message that says so."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("must be a number from 0.5 to 1.0") from None
    if not 0.5 <= number <= 1.0:
        raise ValueError(
            "is a cosine similarity from 0.5 to 1.0, higher is stricter; without it max_error_rate decides. "
            "A distance d is the similarity 1 - d"
        )
    return number


def _probability(value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("must be a number above 0 and at most 1") from None
    if not 0.0 < number <= 1.0:
        raise ValueError("is a probability above 0 and at most 1, higher is stricter")
    return number


def _error_rate(value: Any) -> Any:
    """Accept a name of a share."""
    if isinstance(value, str) and value in ERROR_RATES:
        return ERROR_RATES[value]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 < number < 0.5:
        raise ValueError(f"must be a share of the hits, above 0 and below 0.5, or {', '.join(ERROR_RATES)}")
    return number


def _verifier(value: Any) -> Any:
    """Accept `default`, `none`, what has a name and a method verify, and a cross-encoder."""
    if isinstance(value, str) and value in ("default", "none"):
        return value
    if callable(getattr(value, "predict", None)) and not hasattr(value, "verify"):
        return value
    if not callable(getattr(value, "verify", None)) or not getattr(value, "name", None):
        raise ValueError("must be 'default', None (or 'none'), or have a name and a method verify")
    return value


def _directory(value: Any) -> Any:
    """Return the absolute path, so that a directory has one name however it is written."""
    if not isinstance(value, (str, Path)):
        raise ValueError(f"must be a str or Path, not {type(value).__name__}")
    try:
        found = Path(value).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"cannot be used: {error}") from None
    if not storable(str(found)):
        raise ValueError("cannot be used: its name is no text in the encoding of this system (see LC_ALL)")
    return found


def _server(value: Any) -> Any:
    """Refuse an invalid URL now, not in the first lookup."""
    if value == EMBEDDED:
        return value
    try:
        parts = urlsplit(value)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        sound = sound and not parts.query and not parts.fragment  # tokens belong into `chroma_headers`
    except (ValueError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"must be a URL such as http://localhost:8000, or {EMBEDDED!r}")
    return value


def _headers(value: Any) -> Any:
    """Refuse invalid headers without quoting them: a token with a line break would end up in the log."""
    sound = isinstance(value, Mapping) and all(
        isinstance(text, str) and text.strip() and text.isascii() and text.isprintable()
        for pair in value.items()
        for text in pair
    )
    if not sound:
        raise ValueError(
            "must map names of headers to values, in printable ASCII; IBIDEM_CHROMA_HEADERS is a JSON object"
        )
    return dict(value)


def _chroma_name(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("must be the name of a tenant or database on the Chroma server")
    return value.strip()


def _document_policy(value: Any) -> Any:
    """Refuse the values of version 0.1 by naming the new ones."""
    renamed = VALUES["document_policy"].get(value) if isinstance(value, str) else None
    if renamed is not None:
        raise ValueError(f"is called {renamed!r} since version 0.2")
    return value


def _index(value: Any, info: ValidationInfo) -> Any:
    """Accept a function of the collection's name, unless a Chroma server was chosen as well."""
    if value is None:
        return None
    if not callable(value):
        raise ValueError("must be a function that opens the vector index for the name of a collection")
    if info.data.get("chroma") is not None:
        raise ValueError("and chroma exclude each other: a cache has one vector index")
    return value


def _prices(value: Any) -> Any:
    """Accept a file path or a mapping; `ibidem.costs` validates the contents."""
    if value is None or isinstance(value, Mapping):
        return value
    if not isinstance(value, (str, Path)):
        raise ValueError("must be a file path or a mapping of prices")
    return Path(value)


class Settings(BaseSettings):
    """The settings of a cache. `ibidem.open` documents each."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        validate_default=True,
    )

    path: Annotated[Path, BeforeValidator(_directory)] = Field(
        default_factory=lambda: user_data_path("ibidem", appauthor=False)
    )
    create: bool = True
    database: str | None = Field(None, repr=False)  # these two may hold passwords
    chroma: Annotated[str, BeforeValidator(_server)] | None = Field(None, repr=False)
    chroma_headers: Annotated[dict[str, SecretStr], BeforeValidator(_headers)] | None = None
    chroma_tenant: Annotated[str, BeforeValidator(_chroma_name)] | None = None
    chroma_database: Annotated[str, BeforeValidator(_chroma_name)] | None = None
    index: Annotated[Any, BeforeValidator(_index)] = None  # opened by `ibidem.index.external`
    embedder: Any = None
    verifier: Annotated[Any, BeforeValidator(_verifier)] = "default"  # or "none", or a `Verifier`
    min_probability: Annotated[float, BeforeValidator(_probability)] | None = None
    min_similarity: Annotated[float, BeforeValidator(_similarity)] | None = None
    max_error_rate: Annotated[float, BeforeValidator(_error_rate)] = ERROR_RATES["default"]
    audit_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    second_opinion: Any = None  # resolved by `ibidem.opinions.models`
    second_opinion_from: Annotated[float, BeforeValidator(_probability)] | None = None
    second_opinion_timeout: Annotated[float, Field(gt=0.0, le=60.0)] = 1.5
    document_policy: Annotated[DocumentPolicy, BeforeValidator(_document_policy)] = "unchanged"
    new_documents: NewDocuments = "miss"
    ttl: Annotated[float, Field(gt=0)] = 30 * DAYS
    namespace_ttl: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    sliding: bool = False
    stale_while_revalidate: Annotated[float, Field(ge=0.0)] = 0.0
    max_entries: Annotated[int, Field(ge=1)] | None = None
    max_bytes: Annotated[int, Field(ge=MIN_BYTES)] | None = None
    eviction: Eviction = "cost"
    max_temperature: Annotated[float, Field(ge=0.0)] = MAX_TEMPERATURE
    max_writes_per_hour: Annotated[int, Field(ge=1)] | None = None
    single_flight: Annotated[float, Field(ge=0.0, le=3600.0)] = SINGLE_FLIGHT
    examples: bool = True
    example_ttl: Annotated[float, Field(gt=0)] = math.inf
    prices: Annotated[Any, BeforeValidator(_prices)] = None  # read by `ibidem.costs`
    telemetry_namespace: bool = False

    @field_validator(
        "ttl", "stale_while_revalidate", "max_entries", "max_bytes", "max_writes_per_hour", "max_temperature",
        "single_flight", "example_ttl", "second_opinion_timeout",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _refuse_bool(cls, value: Any) -> Any:
        """Refuse `True`, which would be one second, or one entry."""
        if isinstance(value, bool):
            raise ValueError("must be a number, not a bool")
        return value

    @property
    def database_file(self) -> Path:
        """The SQLite file in `path`; not used if `database` is given."""
        return self.path / "ibidem.sqlite3"

    @property
    def chroma_server(self) -> str | None:
        """The URL of the Chroma server, if there is one."""
        return None if self.chroma == EMBEDDED else self.chroma

    @property
    def wants_pgvector(self) -> bool:
        """Whether the database is to search the vectors itself, if it can: as it is shared, so are they."""
        shared = self.database is not None and self.database.startswith("postgresql")
        return shared and self.chroma is None and self.index is None

    @property
    def embedded_index(self) -> bool:
        """Whether vectors are searched in memory or in `path`, unless PostgreSQL does it."""
        return self.chroma_server is None and self.index is None

    @property
    def in_chroma_cloud(self) -> bool:
        """Whether the Chroma server is Chroma Cloud, which gets what the variables of Chroma's client say."""
        parts = urlsplit(self.chroma or "")
        return parts.scheme == "https" and f".{parts.hostname}".endswith(".trychroma.com")

    @property
    def headers(self) -> dict[str, str]:
        """The headers of each request to the Chroma server, in clear.

        Raises:
            ConfigurationError: The key in `CHROMA_API_KEY` cannot be sent.
        """
        headers = {name: value.get_secret_value() for name, value in (self.chroma_headers or {}).items()}
        key = os.environ.get("CHROMA_API_KEY", "").strip() if self.in_chroma_cloud else ""
        if key and KEY_HEADER not in map(str.lower, headers):
            if not (key.isascii() and key.isprintable()):
                raise ConfigurationError("cannot open the cache: CHROMA_API_KEY must be printable ASCII")
            headers[KEY_HEADER] = key
        return headers

    @property
    def tenant_and_database(self) -> tuple[str | None, str | None]:
        """Both on the Chroma server; None for those that the key belongs to."""
        tenant, database = self.chroma_tenant, self.chroma_database
        if self.in_chroma_cloud:
            tenant = tenant or os.environ.get("CHROMA_TENANT") or None
            database = database or os.environ.get("CHROMA_DATABASE") or None
        return tenant, database

    @property
    def strictness(self) -> Strictness:
        """How sure the cache must be."""
        return Strictness(
            self.max_error_rate,
            self.min_probability,
            self.min_similarity,
            audited=self.audit_rate > 0.0,
            document_policy=self.document_policy,
            new_documents=self.new_documents,
        )

    @property
    def lifetime(self) -> Lifetime:
        """The lifetime of answers."""
        return Lifetime(self.ttl, self.namespace_ttl, self.jitter, self.sliding, self.stale_while_revalidate)

    @property
    def bounds(self) -> Bounds:
        """The limits on the size of the cache."""
        return Bounds(self.max_entries, self.max_bytes, self.eviction)


def read_settings(**given: Any) -> Settings:
    """Read settings from the arguments that are not None, the environment and the defaults.

    Raises:
        ConfigurationError: A setting or an `IBIDEM_*` variable is unknown, or out of range; the message names
            it.
    """
    _require_known_variables()
    return checked_settings({name: value for name, value in given.items() if value is not None})


def checked_settings(chosen: Mapping[str, Any]) -> Settings:
    """As `read_settings`, but None stays None, whatever the environment says."""
    try:
        return Settings(**chosen)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {_describe(problem)}" for problem in error.errors()
        )
        raise ConfigurationError(f"cannot open the cache: {problems}") from None
    except SettingsError as error:  # names the setting and does not quote what was given
        raise ConfigurationError(f"cannot open the cache: {error}: its variable must be JSON") from None


def _describe(problem: Any) -> str:
    if problem["loc"][0] == "chroma_headers":
        return str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        if renamed := ARGUMENTS.get(str(problem["loc"][0])):
            return f"is called {renamed} since version 0.2"
        return f"there is no such setting; there are {', '.join(Settings.model_fields)}"
    given = problem["input"]
    if problem["loc"][0] in ("database", "chroma"):  # whose URLs may hold passwords
        shown = repr(redact_url(given, user=False)) if isinstance(given, str) else type(given).__name__
    else:
        shown = repr(given)
    return f"{problem['msg'].removeprefix('Value error, ')} (not {shown})"


def _require_known_variables() -> None:
    """Raise `ConfigurationError` for unknown `IBIDEM_*` variables: a misspelt one would be ignored.

    Variables that are empty, or named in `IBIDEM_IGNORE`, do not count.
    """
    known = {f"{PREFIX}{name.upper()}": None for name in Settings.model_fields} | dict.fromkeys(ELSEWHERE)
    unknown = sorted(set(_variables()) - known.keys())
    if not unknown:
        return
    said, short = [], {name.removeprefix(PREFIX): name for name in known}
    renamed = {f"{PREFIX}{old.upper()}": f"{PREFIX}{new.upper()}" for old, new in ARGUMENTS.items()}
    for name in unknown:
        if renamed.get(name) in known:
            said.append(f"{name} (is called {renamed[name]} since version 0.2)")
            continue
        near = get_close_matches(name.removeprefix(PREFIX), short, n=1, cutoff=0.5)
        said.append(f"{name} (did you mean {short[near[0]]}?)" if near else name)
    raise ConfigurationError(
        f"Ibidem knows no such variable: {', '.join(said)}; correct or unset it. If it is meant for another "
        f"program or version, name it in {IGNORE}={','.join(unknown)}. Known are {', '.join(known)}"
    )


def _variables() -> Iterator[str]:
    """List the variables that begin with our prefix, in any case, as the settings are read."""
    ignored = re.split(r"[\s,;]+", os.environ.get(IGNORE, "").upper())
    for name, value in os.environ.items():
        upper = name.upper()
        if upper.startswith(PREFIX) and value and upper not in ignored and not _OF_A_SERVICE.fullmatch(upper):
            yield upper
