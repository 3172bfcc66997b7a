"""Which model answers and how it was asked, beside the prompt: what of it counts, as a stable text."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from ibidem._util.concurrency import ForkSafeLock
from ibidem.adapter.model_state import Rules, state_of, values_of
from ibidem.errors import NotCacheable
from langchain_ibidem.callers import Caller
from langchain_ibidem.form_names import made_up_in, numbered
from langchain_ibidem.forms import form_of

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


@dataclass(frozen=True, slots=True)
class Described:
    """A model with the parameters of one call.

    `texts` is what is compared; `form` the class that the answer must fit, if that is known, `form_names`
    what LangChain made up for forms without a name. The texts may hold secrets: only ever hash them.
    """

    texts: tuple[str, ...]
    temperature: float | None
    form: type[BaseModel] | None = None
    form_names: tuple[str, ...] = ()


def describe(llm_string: str, caller: Caller | None, *, named: bool = False) -> Described:
    """The model and the parameters of the call: the living objects, or `llm_string` where they are unknown.

    Args:
        llm_string: LangChain's description of the model and the call. It is made once for a model, whatever
            is changed later, and leaves out fields and what is bound to a completion model.
        caller: The call itself; None if it is not known.
        named: Whether somebody else says which model it is, and vouches for what cannot be compared.

    Raises:
        NotCacheable: Something that the answer depends on cannot be told.
    """
    if caller is None or caller.model is None:
        return Described((_by_description(llm_string, named),), temperature_of(llm_string))
    model = caller.model
    names = made_up_in(caller.parameters)
    parameters = numbered(caller.parameters, names) if names else caller.parameters
    given = {name: value for name, value in sorted(parameters.items()) if name not in OPERATIONAL}
    if caller.stop is not None:
        given["stop"] = caller.stop
    texts = (
        state_of(model, _RULES, lenient=named),
        json.dumps(values_of(given)) if given else "{}",
    )
    temperatures = [told for text in texts if (told := temperature_of(text)) is not None]
    return Described(texts, max(temperatures, default=None), form_of(caller.parameters), names)


@lru_cache(256)
def temperature_of(described: str) -> float | None:
    """The temperature at which the model samples, the highest if the call gives another; None if unknown."""
    return max(map(float, _TEMPERATURE.findall(described)), default=None)


def model_identity(llm_string: str) -> str:
    """`llm_string` without the settings that do not influence the answer."""
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
    """Shown parameters without the operational ones."""
    if not _OPERATIONAL_SHOWN.search(shown):
        return shown
    try:
        return str([(name, value) for name, value in _read(shown) if name not in OPERATIONAL])
    except _UNREADABLE:
        return shown


def _is_secret(value: Any) -> bool:
    """A key: it pays for the answer. The string masks its value anyway."""
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
    """What was shown with `str`; raises one of `_UNREADABLE`."""
    with _reading:
        return ast.literal_eval(shown)
