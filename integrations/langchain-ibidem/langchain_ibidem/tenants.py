"""In whose namespace a call is cached, and on which terms: by `ibidem.scope`, or by the metadata of its run.

`model.invoke(question, config={"metadata": {"ibidem_namespace": "acme"}})` says for one call what
`ibidem.scope` says for a block. Where the two name different tenants, nothing is cached: metadata can come
from a client.
"""

from __future__ import annotations

from typing import Any

from ibidem.errors import InvalidInput, NotCacheable
from ibidem.scope import EMPTY_SCOPE, current, require_namespace, scope_of
from ibidem.types import Scope
from langchain_ibidem.callers import Caller

PREFIX = "ibidem_"
_KNOWN = frozenset(("namespace", "user", "bypass", "max_age", "ttl", "tags"))


def scope_for(caller: Caller | None, *, required: bool) -> Scope:
    """The scope of a call.

    Args:
        caller: Who calls; None if not known. Then only `ibidem.scope` counts.
        required: Whether the call must say its namespace.

    Raises:
        NotCacheable: It does not; or it says what contradicts itself or cannot be used.
    """
    here = current()
    told = _told(caller) if caller is not None else EMPTY_SCOPE
    if told is not EMPTY_SCOPE:
        here = _joined(here, told)
    if required:
        require_namespace(here, f', or give the metadata "{PREFIX}namespace"')
    return here


def _told(caller: Caller) -> Scope:
    """What the metadata of the run says."""
    given = {key: value for key, value in caller.metadata.items() if key.startswith(PREFIX)}
    if not given:
        return EMPTY_SCOPE
    for key, value in given.items():
        if caller.inherited.get(key, value) != value:  # the model's own metadata against that of the call
            raise _conflict(key)
    terms: dict[str, Any] = {key.removeprefix(PREFIX): value for key, value in given.items()}
    if unknown := sorted(terms.keys() - _KNOWN):
        raise NotCacheable("metadata_invalid", f"there is no metadata {PREFIX}{unknown[0]}")
    if (nothing := next((name for name, value in terms.items() if value is None), None)) is not None:
        raise NotCacheable("metadata_invalid", f"metadata {PREFIX}{nothing} is None")
    try:
        return scope_of(**terms)
    except InvalidInput as error:
        raise NotCacheable("metadata_invalid", f"metadata: {PREFIX}{error}") from None


def _joined(here: Scope, told: Scope) -> Scope:
    """Both; of two limits the narrower one."""
    for name in ("namespace", "user"):
        one, other = getattr(here, name), getattr(told, name)
        if one and other and one != other:
            raise _conflict(PREFIX + name)
    return Scope(
        namespace=here.namespace or told.namespace,
        user=here.user or told.user,
        bypass=here.bypass or told.bypass,
        max_age=_least(here.max_age, told.max_age),
        ttl=_least(here.ttl, told.ttl),
        tags=tuple(dict.fromkeys((*here.tags, *told.tags))),
    )


def _conflict(key: str) -> NotCacheable:
    return NotCacheable("namespace_conflict", f"two places name different values for {key}")


def _least(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)
