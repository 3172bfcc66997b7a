"""Which model answers and how it was asked, beside the prompt: what of it counts, as a stable text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, SecretStr, TypeAdapter

from ibidem.errors import NotCacheable
from ibidem.locks import ForkSafeLock
from langchain_ibidem.callers import Caller
from langchain_ibidem.forms import form_of

# Parameters that tell one model from another.
_NAMING = re.compile(r"model|deployment|engine|repo|endpoint|responses")
_PARAMETER = re.compile(r"\('(\w+)', ")
# Settings that change when an answer comes, how it is sent or who is told of it, not what it says.
OPERATIONAL = frozenset(
    (
        "max_retries timeout request_timeout default_request_timeout stream_chunk_timeout "
        "http_client http_async_client http_socket_options client async_client root_client root_async_client "
        "stream streaming disable_streaming stream_usage stream_options "
        "cache verbose callbacks callback_manager tags metadata name rate_limiter custom_get_token_ids "
        "profile"
    ).split()
)
_OPERATIONAL_SHOWN = re.compile(rf"\('({'|'.join(sorted(OPERATIONAL))})', ")
# A class shows its name but not its fields, an object its address: neither says what the model was told.
_OPAQUE = re.compile(r"<class '| at 0x[0-9a-fA-F]+>")
# Where a model is, which its environment may say, and what a program may set on it later: LangChain describes
# a model once, by what it was made with.
_LIVE = re.compile(
    r"base_url|api_base|api_url|endpoint|azure_|_host$|^host$|region|project|location|deployment|api_version"
    r"|^(model|model_name|model_id|temperature|top_p|top_k|seed|max_tokens|reasoning_effort)$"
)
_CLIENTS = ("root_client", "client")
_TEMPERATURE = re.compile(r"""["']temperature["'][:,]\s*(\d+(?:\.\d+)?)""")
# Before Python 3.13 threads that parse at the same time can get a SystemError (CPython issue 106905).
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, SystemError)
_reading = ForkSafeLock()
_ADVICE = (
    "the model's parameters hold a Python object, so a change of it would go unnoticed; for structured "
    'output pass a JSON schema, or use method="function_calling"'
)


@dataclass(frozen=True, slots=True)
class Described:
    """A model with the parameters of one call.

    `texts` is what is compared; `form` the class that the answer must fit, if that is known. The texts may
    hold secrets: only ever hash them.
    """

    texts: tuple[str, ...]
    temperature: float | None
    form: type[BaseModel] | None = None


def describe(llm_string: str, caller: Caller | None, *, named: bool = False) -> Described:
    """What `llm_string` says, and what its caller adds to it.

    Args:
        llm_string: LangChain's description of the model and the call.
        caller: The call itself; None if it is not known.
        named: Whether somebody else says which model it is.

    Raises:
        NotCacheable: Something that the answer depends on cannot be told.
    """
    if caller is not None and caller.model is None:
        caller = None
    texts = [_parameters(llm_string, caller)]
    if caller is not None:
        texts += _live(caller.model)
        if caller.completes and (bound := _without_operational(caller.parameters)):
            texts.append(told(bound))
    if not named and not _names_its_model(llm_string):
        texts.append(_fields(caller))
    form = form_of(caller.parameters) if caller is not None else None
    return Described(tuple(texts), temperature_of(" ".join(texts)), form)


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


def told(given: Mapping[str, Any]) -> str:
    """Parameters as JSON, classes by their schemas. Within them order counts: models follow that of a schema.

    Raises:
        NotCacheable: One cannot be told.
    """
    return json.dumps(_told(dict(sorted(given.items()))))


def _told(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _told(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(inner) for inner in value]
    if isinstance(value, type):
        return {"class": value.__qualname__, "schema": _schema(value)}
    if isinstance(value, BaseModel):
        return {"class": type(value).__qualname__, "fields": _told(dict(value))}
    shown = repr(value)
    if _OPAQUE.search(shown):
        raise NotCacheable("opaque_parameters", _ADVICE)
    return {"shown": shown}


def _schema(kind: type) -> Any:
    try:
        is_model = issubclass(kind, BaseModel)
        return kind.model_json_schema() if is_model else TypeAdapter(kind).json_schema()  # type: ignore[attr-defined]
    except Exception:  # whatever pydantic makes of a class that has no schema
        raise NotCacheable("opaque_parameters", _ADVICE) from None


def _parameters(llm_string: str, caller: Caller | None) -> str:
    """The description without what does not count; with the schemas of classes, where the call is known."""
    if not _OPAQUE.search(llm_string):
        return model_identity(llm_string)
    if caller is None:
        raise NotCacheable("opaque_parameters", _ADVICE)
    head, given = _taken_apart(llm_string, caller)
    if _OPAQUE.search(head):
        raise NotCacheable("opaque_parameters", _ADVICE)
    return f"{model_identity(head)}---{told(_without_operational(given))}"


def _taken_apart(llm_string: str, caller: Caller) -> tuple[str, Mapping[str, Any]]:
    """The part of the description that says which model it is, and the live parameters behind the rest."""
    given: dict[str, Any] = {**caller.parameters, "stop": caller.stop}
    if llm_string.endswith(shown := f"---{sorted(given.items())}"):
        return llm_string.removesuffix(shown), given
    if caller.completes:
        raise NotCacheable("opaque_parameters", _ADVICE)
    invoked = caller.model._get_invocation_params(stop=caller.stop, **caller.parameters)
    given = {**invoked, **caller.parameters}
    if str(sorted(given.items())) != llm_string:
        raise NotCacheable("opaque_parameters", _ADVICE)
    return "", given


def _pairs(shown: str) -> str:
    """Shown parameters without the operational ones."""
    if not _OPERATIONAL_SHOWN.search(shown):
        return shown
    try:
        return str([(name, value) for name, value in _read(shown) if name not in OPERATIONAL])
    except _UNREADABLE:
        return shown


def _without_operational(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in OPERATIONAL}


def _is_secret(value: Any) -> bool:
    """A key: it pays for the answer. The string masks its value anyway."""
    return isinstance(value, dict) and value.get("type") == "secret"


def _names_its_model(llm_string: str) -> bool:
    """Whether `llm_string` says which model it is; some only name their provider."""
    if not llm_string.startswith("["):
        return True
    try:
        names = [name for name, _ in _read(llm_string)]
    except _UNREADABLE:
        names = _PARAMETER.findall(llm_string)
    return any(map(_NAMING.search, names))


@lru_cache(128)
def _read(shown: str) -> Any:
    """What was shown with `str`; raises one of `_UNREADABLE`."""
    with _reading:
        return ast.literal_eval(shown)


def _live(model: Any) -> list[str]:
    """Settings of the model as they are now, and the address that its client uses."""
    values = model.__dict__
    kind: Any = type(model)
    found: dict[str, str | float] = {}
    for name in _live_names(kind):
        value = values.get(name)
        if isinstance(value, (int, float)):
            found[name] = float(value)
        elif isinstance(value, str) and value:
            found[name] = value
    for name in _CLIENTS:
        url = getattr(values.get(name), "base_url", None)
        if isinstance(url, str) or type(url).__name__ == "URL":
            found[f"{name}.base_url"] = str(url)
    return [json.dumps(found)] if found else []


@lru_cache(256)
def _live_names(kind: type[BaseModel]) -> tuple[str, ...]:
    return tuple(name for name in sorted(kind.model_fields) if _LIVE.search(name))


def _fields(caller: Caller | None) -> str:
    """All fields of a model whose description does not name it.

    Raises:
        NotCacheable: They do not name it either, or one cannot be told.
    """
    unknown = NotCacheable(
        "model_unknown",
        "LangChain's description of this model does not say which one it is; give the model a cache of its "
        "own: model.cache = IbidemCache(cache, model_id='its name and settings')",
    )
    if caller is None:
        raise unknown
    fields = {name: getattr(caller.model, name) for name in type(caller.model).model_fields}
    kept = {
        name: value
        for name, value in fields.items()
        if name not in OPERATIONAL and value is not None and not isinstance(value, SecretStr)
    }
    if not any(_NAMING.search(name) and value and isinstance(value, str) for name, value in kept.items()):
        raise unknown
    try:
        return f"{type(caller.model).__qualname__} {told(kept)}"
    except NotCacheable:
        raise unknown from None
