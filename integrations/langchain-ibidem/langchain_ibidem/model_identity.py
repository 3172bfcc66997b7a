"""Describe the model of a call and its parameters as a stable text, and the scope of the call.

`model.invoke(question, config={"metadata": {"ibidem_namespace": "acme"}})` says for one call what
`ibidem.scope` says for a block. Where the two name different tenants, nothing is cached: metadata can come
from a client.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ibidem._util.concurrency import ForkSafeLock
from ibidem.adapter.model_state import Rules, state_of, values_of
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.scope import EMPTY_SCOPE, current, require_namespace, scope_of
from ibidem.types import Scope
from langchain_ibidem.call import ModelCall
from langchain_ibidem.response_format import ResponseFormat

# Parameters that tell one model from another.
_NAMING = re.compile(r"model|deployment|engine|repo|endpoint|responses")
_PARAMETER = re.compile(r"\('(\w+)', ")
# Settings that change when an answer comes, how it is sent or who is told of it, not what it says.
OPERATIONAL = frozenset(
    (
        # how long to wait, how often to try, how many at once
        "max_retries timeout request_timeout default_request_timeout stream_chunk_timeout "
        "max_concurrent_requests batch_size "
        # the transport: what a client sends is read from the clients that the model holds
        "http_client http_async_client http_socket_options "
        # whether the answer comes in pieces
        "stream streaming disable_streaming stream_usage stream_options "
        # who is told of it, and by which name
        "cache verbose callbacks callback_manager tags metadata name rate_limiter custom_get_token_ids "
        # what is known of the model, for programs; how its texts are counted, before they are sent
        "profile tiktoken_model_name allowed_special disallowed_special count_tokens "
        # looked at once, when the model is made
        "validate_model_on_init validate_base_url"
    ).split()
)
_RULES = Rules(
    operational=OPERATIONAL,
    ambiguous=frozenset("tags metadata name profile batch_size count_tokens".split()),
    # Of LangChain's fakes, which of their answers comes next; of messages, what each call writes into them.
    working=frozenset(("i", "id", "response_metadata")),
)
_OPERATIONAL_SHOWN = re.compile(rf"\('({'|'.join(sorted(OPERATIONAL))})', ")
# A class shows its name but not its fields, an object its address: neither says what the model was told.
_OPAQUE = re.compile(r"<class '| at 0x[0-9a-fA-F]+>")
_TEMPERATURE = re.compile(r"""["']temperature["'][:,]\s*(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)""")
# Before Python 3.13 threads that parse at the same time can get a SystemError (CPython issue 106905).
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, SystemError)
_reading = ForkSafeLock()
_PREFIX = "ibidem_"
_TERMS = frozenset(("namespace", "user", "bypass", "max_age", "ttl", "tags"))


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model with the parameters of one call.

    `texts` are compared; they may hold secrets: only ever hash them.
    """

    texts: tuple[str, ...]
    temperature: float | None


def describe(llm_string: str, call: ModelCall | None, *, named: bool = False) -> ModelDescription:
    """Describe the living model and its parameters; by `llm_string` where the call is unknown.

    Args:
        llm_string: LangChain's description of the model and the call. It is made once for a model, whatever
            is changed later, and leaves out fields and what is bound to a completion model.
        call: The call itself; None if it is not known.
        named: Whether somebody else says which model it is, and vouches for what cannot be compared.

    Raises:
        NotCacheable: Something that the answer depends on cannot be described.
    """
    if call is None or call.model is None:
        return ModelDescription((_by_description(llm_string, named),), temperature_of(llm_string))
    parameters = ResponseFormat.of(call.parameters).numbered(call.parameters)
    given = {name: value for name, value in sorted(parameters.items()) if name not in OPERATIONAL}
    if call.stop is not None:
        given["stop"] = call.stop
    texts = (
        state_of(call.model, _RULES, lenient=named),
        json.dumps(values_of(given)) if given else "{}",
    )
    temperatures = [told for text in texts if (told := temperature_of(text)) is not None]
    return ModelDescription(texts, max(temperatures, default=None))


@lru_cache(256)
def temperature_of(described: str) -> float | None:
    """Return the temperature, the highest if the call gives another than the model; None if unknown."""
    return max(map(float, _TEMPERATURE.findall(described)), default=None)


def model_identity(llm_string: str) -> str:
    """Return `llm_string` without the settings that do not influence the answer."""
    if not llm_string.startswith("{"):
        return _pairs(llm_string)
    try:
        model, end = json.JSONDecoder().raw_decode(llm_string)
    except ValueError:
        return llm_string
    model.pop("name", None)  # that of its runs; the class is in "id"
    if isinstance(parameters := model.get("kwargs"), dict):
        kept = {name: value for name, value in parameters.items() if name not in OPERATIONAL}
        model["kwargs"] = {name: value for name, value in kept.items() if not _is_secret(value)}
    separator, pairs = llm_string[end : end + 3], llm_string[end + 3 :]
    return json.dumps(model, sort_keys=True) + separator + _pairs(pairs)


def _by_description(llm_string: str, named: bool) -> str:
    if _OPAQUE.search(llm_string):
        raise NotCacheable(
            "opaque_parameters",
            "the parameters hold a Python object, and nothing but LangChain's description of the call is "
            'known; for structured output pass a JSON schema, or use method="function_calling"',
        )
    if not named and not _names_its_model(llm_string):
        raise NotCacheable(
            "model_unknown",
            "LangChain's description of this model does not say which one it is; give the model a cache of "
            "its own: model.cache = IbidemCache(cache, model_id='its name and settings')",
        )
    return model_identity(llm_string)


def _pairs(shown: str) -> str:
    """Return shown parameters without the operational ones."""
    if not _OPERATIONAL_SHOWN.search(shown):
        return shown
    try:
        return str([(name, value) for name, value in _read(shown) if name not in OPERATIONAL])
    except _UNREADABLE:
        return shown


def _is_secret(value: Any) -> bool:
    """Whether it is a key, which pays for the answer. The string masks its value anyway."""
    return isinstance(value, dict) and value.get("type") == "secret"


def _names_its_model(llm_string: str) -> bool:
    """Whether `llm_string` says which model it is; some only name their provider."""
    if not llm_string.startswith("["):
        return True
    try:
        shown = [(name, value) for name, value in _read(llm_string) if value and isinstance(value, str)]
        return any(_NAMING.search(name) for name, _ in shown)
    except _UNREADABLE:
        return any(map(_NAMING.search, _PARAMETER.findall(llm_string)))


@lru_cache(128)
def _read(shown: str) -> Any:
    """Parse what `str` has shown; raises one of `_UNREADABLE`."""
    with _reading:
        return ast.literal_eval(shown)


def scope_for(call: ModelCall | None, *, required: bool) -> Scope:
    """Return the scope of a call.

    Args:
        call: The call; None if it is not known. Then only `ibidem.scope` counts.
        required: Whether the call must say its namespace.

    Raises:
        NotCacheable: It does not; or it says what contradicts itself or cannot be used.
    """
    here = current()
    named = _from_metadata(call) if call is not None else EMPTY_SCOPE
    if named is not EMPTY_SCOPE:
        here = _joined(here, named)
    if required:
        require_namespace(here, f', or give the metadata "{_PREFIX}namespace"')
    return here


def _from_metadata(call: ModelCall) -> Scope:
    """Return the scope that the metadata of the run name."""
    given = {key: value for key, value in call.metadata.items() if key.startswith(_PREFIX)}
    if not given:
        return EMPTY_SCOPE
    for key, value in given.items():
        if call.inherited.get(key, value) != value:  # the model's own metadata against that of the call
            raise _conflict(key)
    terms: dict[str, Any] = {key.removeprefix(_PREFIX): value for key, value in given.items()}
    if unknown := sorted(terms.keys() - _TERMS):
        raise NotCacheable("metadata_invalid", f"there is no metadata {_PREFIX}{unknown[0]}")
    if (nothing := next((name for name, value in terms.items() if value is None), None)) is not None:
        raise NotCacheable("metadata_invalid", f"metadata {_PREFIX}{nothing} is None")
    try:
        return scope_of(**terms)
    except InvalidInput as error:
        raise NotCacheable("metadata_invalid", f"metadata: {_PREFIX}{error}") from None


def _joined(here: Scope, named: Scope) -> Scope:
    """Combine both; of two limits the narrower one counts."""
    for name in ("namespace", "user"):
        one, other = getattr(here, name), getattr(named, name)
        if one and other and one != other:
            raise _conflict(_PREFIX + name)
    return Scope(
        namespace=here.namespace or named.namespace,
        user=here.user or named.user,
        bypass=here.bypass or named.bypass,
        max_age=_least(here.max_age, named.max_age),
        ttl=_least(here.ttl, named.ttl),
        tags=tuple(dict.fromkeys((*here.tags, *named.tags))),
    )


def _conflict(key: str) -> NotCacheable:
    return NotCacheable("namespace_conflict", f"two places name different values for {key}")


def _least(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)
