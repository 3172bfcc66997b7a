"""Opening a cache: what `ibidem.open` does with its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ibidem.audits.auditor import auditor_for
from ibidem.cache import SemanticCache
from ibidem.costs import read_prices
from ibidem.errors import InvalidInput
from ibidem.lifecycle.rules import Admission
from ibidem.renamed import require_new_names
from ibidem.runtime import acquire
from ibidem.settings import Settings, read_settings
from ibidem.types import digest

_HOOKS = ("compare", "redact", "should_store", "on_lookup")


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
    hooks = {name: given[name] for name in _HOOKS}
    for name, hook in hooks.items():
        if hook is not None and not callable(hook):
            raise InvalidInput(f"{name} must be callable, not {type(hook).__name__}")
    settings = read_settings(**{name: value for name, value in given.items() if name not in hooks})
    cache = SemanticCache(**parts_of(settings, hooks))
    cache.opened_with = settings, hooks
    return cache


def parts_of(settings: Settings, hooks: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `SemanticCache` with these settings and hooks; raises as `ibidem.open` does."""
    require_new_names(hooks, "the pickled cache")
    prices = read_prices(settings.prices)
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
        ),
        "on_lookup": hooks.get("on_lookup"),
        "examples": settings.examples,
        "prices": prices,
        "telemetry_namespace": settings.telemetry_namespace,
    }
