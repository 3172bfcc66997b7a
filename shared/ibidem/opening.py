"""Opening a cache: what `ibidem.open` does with its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ibidem.audits.auditor import auditor_for
from ibidem.cache import SemanticCache
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


def name_of(redact: Callable[[str], str]) -> str:
    """Names a function with its code, so that one that was changed has another name; "" for other callables.

    A function may depend on what its name does not tell, such as variables around it: "" as well.
    """
    code = getattr(redact, "__code__", None)
    if code is None or getattr(redact, "__closure__", None) or getattr(redact, "__self__", None) is not None:
        return ""
    consts = [repr(one) for one in code.co_consts if not hasattr(one, "co_code")]
    return digest(redact.__module__, redact.__qualname__, code.co_code.hex(), *consts, *code.co_names)


def open_cache(given: dict[str, Any]) -> SemanticCache:
    """Open a cache with the arguments of `ibidem.open`, None where nothing was given; raises as it does."""
    hooks = {name: given[name] for name in (*_HOOKS, *_MATCHING)}
    for name in _HOOKS:
        if hooks[name] is not None and not callable(hooks[name]):
            raise InvalidInput(f"{name} must be callable, not {type(hooks[name]).__name__}")
    settings = read_settings(**{name: value for name, value in given.items() if name not in hooks})
    cache = SemanticCache(**parts_of(settings, hooks))
    cache.opened_with = settings, hooks
    return cache


def parts_of(settings: Settings, hooks: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `SemanticCache` with these settings and hooks; raises as `ibidem.open` does."""
    require_new_names(hooks, "the pickled cache")
    prices = read_prices(settings.prices)
    verifier, guards = _verifier_of(settings, hooks.get("verifier")), with_guards(hooks.get("guards") or ())
    shared = acquire(settings)
    admission = Admission(
        shared.faults,
        redact=hooks.get("redact"),
        should_store=hooks.get("should_store"),
        max_temperature=settings.max_temperature,
        max_writes_per_hour=settings.max_writes_per_hour,
    )
    if (redact := hooks.get("redact")) is not None:
        shared.mask(admission.attempted, name_of(redact))
    return {
        "runtime": shared,
        "policy": settings.policy,
        "lifetime": settings.lifetime,
        "admission": admission,
        "single_flight": settings.single_flight,
        "auditor": auditor_for(
            settings,
            hooks.get("compare"),
            log=shared.judgement_log,
            store=shared.store,
            embedder=shared.embedder,
            verifier=verifier,
        ),
        "verifier": verifier,
        "guards": guards,
        "on_lookup": hooks.get("on_lookup"),
        "examples": settings.examples,
        "prices": prices,
        "telemetry_namespace": settings.telemetry_namespace,
    }


def _verifier_of(settings: Settings, verifier: Verifier | None) -> CheckedVerifier | None:
    """Check a verifier; raises `InvalidInput` if it cannot be used, or nothing says which scores suffice."""
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
