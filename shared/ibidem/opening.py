"""Build the parts of a cache from the arguments of `ibidem.open`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ibidem.audits.auditor import auditor_for
from ibidem.costs import read_prices
from ibidem.errors import InvalidInput
from ibidem.lifecycle.rules import Admission
from ibidem.matching.guards import with_guards
from ibidem.matching.policy import CheckedVerifier, Verifier
from ibidem.renamed import require_new_names
from ibidem.runtime import acquire
from ibidem.settings import Settings, read_settings
from ibidem.types import digest

_HOOKS = ("compare", "redact", "should_store", "on_lookup")
_MATCHING = ("verifier", "guards")


def read_arguments(given: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Return settings and hooks, None for those not given; raises as `ibidem.open` does."""
    hooks = {name: given[name] for name in (*_HOOKS, *_MATCHING)}
    for name in _HOOKS:
        if hooks[name] is not None and not callable(hooks[name]):
            raise InvalidInput(f"{name} must be callable, not {type(hooks[name]).__name__}")
    return read_settings(**{name: value for name, value in given.items() if name not in hooks}), hooks


def build_parts(settings: Settings, hooks: Mapping[str, Any]) -> dict[str, Any]:
    """Build the arguments of a `SemanticCache` from settings and hooks; raises as `ibidem.open` does."""
    require_new_names(hooks, "the pickled cache")
    prices = read_prices(settings.prices)
    verifier, guards = _verifier_of(settings, hooks.get("verifier")), with_guards(hooks.get("guards") or ())
    runtime = acquire(settings)
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
        "policy": settings.policy,
        "lifetime": settings.lifetime,
        "admission": admission,
        "single_flight": settings.single_flight,
        "auditor": auditor_for(
            settings,
            hooks.get("compare"),
            log=runtime.judgement_log,
            store=runtime.store,
            embedder=runtime.embedder,
            verifier=verifier,
        ),
        "verifier": verifier,
        "guards": guards,
        "on_lookup": hooks.get("on_lookup"),
        "examples": settings.examples,
        "prices": prices,
        "telemetry_namespace": settings.telemetry_namespace,
        "opened_with": (settings, hooks),
    }


def _verifier_of(settings: Settings, verifier: Verifier | None) -> CheckedVerifier | None:
    """Check a verifier; raises `InvalidInput` if it cannot be used, or there is no threshold for it."""
    if verifier is None:
        return None
    if not callable(getattr(verifier, "verify", None)) or not getattr(verifier, "name", None):
        raise InvalidInput(f"verifier must have a name and a method verify, not {type(verifier).__name__}")
    if settings.threshold is None and not settings.audit_rate:
        raise InvalidInput(
            "verifier needs threshold, on the scale of its scores, or audit_rate: what max_error_rate allows "
            "was measured for the shipped score alone"
        )
    return CheckedVerifier(verifier)


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
