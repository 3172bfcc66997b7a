"""Opening a cache: from the arguments of `ibidem.open`, or from a pickle.

A pickle holds how to open the cache, without passwords, as it may be kept in a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ibidem._util.renamed import require_new_names
from ibidem._util.urls import redact_url
from ibidem.audits.auditor import auditor_for
from ibidem.costs import read_prices
from ibidem.embedding import is_default
from ibidem.errors import ConfigurationError, InvalidInput
from ibidem.lifecycle.rules import Admission
from ibidem.matching.cross_encoder import CrossEncoderScorer
from ibidem.matching.guards import with_guards
from ibidem.matching.scorers import CheckedVerifier, CosineScorer, Scorer, Verifier
from ibidem.matching.shipped import Choice
from ibidem.opinions.models import Adviser, is_langchain, is_llama_index, resolve_adviser
from ibidem.opinions.second_opinion import SecondOpinion
from ibidem.pipeline import verifier_of
from ibidem.runtime import Runtime, acquire, release
from ibidem.settings import Settings, checked_settings, read_settings
from ibidem.types import digest

_HOOKS = ("compare", "redact", "should_store", "on_lookup")


def read_arguments(given: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Return settings and hooks, None for those not given; raises as `ibidem.open` does."""
    hooks = {name: given[name] for name in (*_HOOKS, "guards")}
    for name in _HOOKS:
        if hooks[name] is not None and not callable(hooks[name]):
            raise InvalidInput(f"{name} must be callable, not {type(hooks[name]).__name__}")
    chosen = {name: value for name, value in given.items() if name not in hooks}
    # None means none here; "default" leaves the choice to the environment.
    if chosen["verifier"] is None:
        chosen["verifier"] = "none"
    elif isinstance(chosen["verifier"], str) and chosen["verifier"] == "default":
        chosen["verifier"] = None
    return read_settings(**chosen), hooks


def build_parts(settings: Settings, hooks: Mapping[str, Any]) -> dict[str, Any]:
    """Build the arguments of a `SemanticCache` from settings and hooks; raises as `ibidem.open` does."""
    require_new_names(hooks, "the pickled cache")
    prices = read_prices(settings.prices)
    verifier, guards = _verifier_of(settings), with_guards(hooks.get("guards") or ())
    chosen = settings.second_opinion
    adviser = None if chosen is None else resolve_adviser(chosen, settings.second_opinion_timeout)
    runtime = _acquire(settings, verifier)
    admission = Admission(
        runtime.faults,
        redact=hooks.get("redact"),
        should_store=hooks.get("should_store"),
        max_temperature=settings.max_temperature,
        max_writes_per_hour=settings.max_writes_per_hour,
    )
    if (redact := hooks.get("redact")) is not None:
        runtime.mask(admission.attempted, _code_id(redact))
    return {
        "runtime": runtime,
        "strictness": settings.strictness,
        "lifetime": settings.lifetime,
        "admission": admission,
        "single_flight": settings.single_flight,
        "auditor": auditor_for(
            settings,
            hooks.get("compare"),
            log=runtime.judgement_log,
            store=runtime.store,
            embedder=runtime.embedder,
        ),
        "verifier": verifier,
        "guards": guards,
        "on_lookup": hooks.get("on_lookup"),
        "examples": settings.examples,
        "prices": prices,
        "telemetry_namespace": settings.telemetry_namespace,
        "second_opinion": adviser and _second_opinion(adviser, settings, runtime, admission),
        "opened_with": (settings, hooks),
    }


def _second_opinion(
    adviser: Adviser, settings: Settings, runtime: Runtime, admission: Admission
) -> SecondOpinion:
    return SecondOpinion(
        adviser,
        runtime.store,
        least=settings.second_opinion_from,
        seconds=settings.second_opinion_timeout,
        redacted=admission.attempted,
        faults=runtime.faults,
    )


def _acquire(settings: Settings, verifier: Verifier | Choice) -> Runtime:
    """Open or share the runtime; raises `ConfigurationError` if no least score is known for the verifier."""
    runtime = acquire(settings)
    try:
        _require_threshold(settings, verifier_of(verifier, runtime.semantic_index))
    except ConfigurationError:
        release(runtime)
        raise
    if isinstance(verifier, CrossEncoderScorer):
        verifier.begin()
    return runtime


def _verifier_of(settings: Settings) -> Verifier | Choice:
    """Return what scores; raises `ConfigurationError` if nothing is known of the scale of its scores."""
    chosen = settings.verifier
    if chosen == "default" or chosen == "none":
        return cast("Choice", chosen)
    if not hasattr(chosen, "verify"):
        return CrossEncoderScorer(chosen)
    if settings.min_probability is None and not settings.audit_rate:
        raise ConfigurationError(
            "verifier needs min_probability, on the scale of its scores, or audit_rate: what max_error_rate "
            "allows was measured for the shipped scores alone"
        )
    return CheckedVerifier(chosen)


def _require_threshold(settings: Settings, verifier: Verifier) -> None:
    """Raise `ConfigurationError` if a least score was given for other scores, or none is known."""
    cosines = isinstance(verifier, CosineScorer)
    if settings.min_similarity is not None and not cosines:
        raise ConfigurationError(
            "min_similarity is for an embedder of your own, whose scores are cosines; here the score is a "
            "probability: give min_probability, or leave it to max_error_rate"
        )
    if settings.min_probability is not None and cosines and not is_default(settings.embedder):
        raise ConfigurationError(
            "min_probability is for the default embedder, or a verifier: what the cosines of your embedder "
            "mean is not known; give min_similarity"
        )
    least, doubtful = settings.strictness.given(verifier), settings.second_opinion_from
    if least is not None and doubtful is not None and doubtful >= least:
        raise ConfigurationError(
            f"second_opinion_from={doubtful:g} leaves nothing to ask about, as answers are served from a "
            f"score of {least:g} on; give a lower one"
        )
    measured = not isinstance(verifier, (CheckedVerifier, CrossEncoderScorer))
    if measured and settings.strictness.is_by_rate(verifier):
        try:
            cast("Scorer", verifier).thresholds.at(settings.max_error_rate)
        except InvalidInput as error:
            raise ConfigurationError(f"cannot open the cache: {error}") from None


def _code_id(function: Callable[[str], str]) -> str:
    """Return an id of a function that changes with its code; "" for other callables.

    Also "" for a closure or a method, as its behaviour depends on more than its code.
    """
    code = getattr(function, "__code__", None)
    bound = getattr(function, "__self__", None) is not None
    if code is None or bound or getattr(function, "__closure__", None):
        return ""
    consts = [repr(const) for const in code.co_consts if not hasattr(const, "co_code")]
    return digest(function.__module__, function.__qualname__, code.co_code.hex(), *consts, *code.co_names)


# Pickles.

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
    if name == "second_opinion":  # a model holds its key
        return is_langchain(value) or is_llama_index(value)
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
