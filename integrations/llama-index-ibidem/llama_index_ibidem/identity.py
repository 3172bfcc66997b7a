"""Which model answers, and with which settings: whatever else than the prompt the answer depends on.

Living objects are walked, not their dumps: pydantic leaves out excluded fields, and of nested models whatever
their declared type does not name.
"""

from __future__ import annotations

import functools
import json
import re
import types
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM
from pydantic import BaseModel, SecretStr

from ibidem.errors import NotCacheable
from ibidem.request import digest

# Settings that change when an answer comes or who pays for it, not what it says.
_OPERATIONAL = frozenset(
    (
        "max_retries timeout request_timeout reuse_client num_workers keep_alive verbose rate_limiter "
        "callback_manager callbacks show_progress cache tags metadata custom_get_token_ids"
    ).split()
)
# What these do to a prompt is seen in the prompt, or is compared by its effect.
_SEEN_OTHERWISE = frozenset(
    "messages_to_prompt completion_to_prompt output_parser query_wrapper_prompt".split()
)
_CLIENT = re.compile(r"(^|_)a?clients?$|^_?http_")
_SECRET = re.compile(
    r"(?i)^_?([a-z0-9]+[-_])*?(api[-_]?key|authorization|password|secret[-_]?key|secret[-_]?access[-_]?key|"
    r"access[-_]?key([-_]id)?|(access|auth|api|bearer|hf|refresh|session|security)[-_]?token|credentials?)$"
    r"|^_?token$"
)
# Asked for in such a form, the answer is data for a program.
_FORM = ("response_format", "response_schema", "generation_config", "format", "text")
_LEFT_OUT: Any = object()


def identity(llm: LLM, model_id: str = "") -> str:
    """A digest of the model that changes with whatever its answers depend on.

    Args:
        llm: The model.
        model_id: What the caller says of the model beside; then parts of it that cannot be described are
            left out.

    Raises:
        NotCacheable: The model keeps a conversation of its own; or it holds an object that cannot be
            compared, and there is no `model_id`.
    """
    if getattr(llm, "track_previous_responses", False):
        raise NotCacheable("stateful_model", "its provider keeps the conversation; prompts are not all of it")
    lenient = bool(model_id)
    described = [
        llm.metadata.model_name,
        model_id,
        _settings(llm, lenient=lenient),
        _effect(llm.messages_to_prompt, _conversation, lenient=lenient),
        _effect(llm.completion_to_prompt, lambda: ["user"], lenient=lenient),
    ]
    return digest(json.dumps(described))


def parameters(given: Mapping[str, Any], *, lenient: bool = False) -> str:
    """The arguments of one call in the same manner. Within them order counts: models follow that of a schema.

    Raises:
        NotCacheable: An argument cannot be compared. With `lenient`, its class alone counts.
    """
    told = {name: given[name] for name in sorted(given) if name not in _OPERATIONAL}
    return json.dumps(_shown(told, lenient=lenient))


def asks_for_form(llm: LLM, given: Mapping[str, Any]) -> bool:
    """Whether the answer must have a given form, by the arguments of the call or by the model's settings.

    Tools alone do not say so: the model may still answer in words.
    """
    always = getattr(llm, "additional_kwargs", None)
    settings = {**(always if isinstance(always, Mapping) else {}), **given}
    forced = settings.get("tool_choice") not in (None, "auto", "none")
    return forced or any(map(settings.get, _FORM)) or getattr(llm, "json_mode", False) is True


def _settings(model: BaseModel, *, lenient: bool) -> dict[str, Any]:
    """Class, fields and private values of a model, of LlamaIndex or inside one."""
    kind = type(model)
    fields = {name: getattr(model, name) for name in kind.model_fields} | (model.model_extra or {})
    addresses = {str(value).rstrip("/") for name, value in fields.items() if "base" in name or "url" in name}
    private = _told(model.__pydantic_private__ or {}, addresses)
    kept = {name: _kept(value) for name, value in private.items()}
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "fields": {name: _shown(value, lenient=lenient) for name, value in _told(fields, addresses).items()},
        "private": {name: value for name, value in kept.items() if value is not _LEFT_OUT},
        "params": _shown(getattr(model, "_identifying_params", None), lenient=True),
    }


def _kept(value: Any) -> Any:
    """A private value if it tells something. The rest is working state, which the first call may make."""
    if isinstance(value, BaseModel):
        return _settings(value, lenient=True)
    if value is not None and isinstance(value, (str, int, float, dict, list, tuple)):
        return _shown(value, lenient=True)
    return _LEFT_OUT


def _told(fields: Mapping[str, Any], addresses: Collection[str] = ()) -> dict[str, Any]:
    """The settings that count, without secrets. Headers are settings too, but for those that authorise.

    Of a client, the address counts, unless it is one of the `addresses` that the settings name anyway.
    """
    told = {}
    for name, value in fields.items():
        if name in _OPERATIONAL | _SEEN_OTHERWISE or _SECRET.match(name) or isinstance(value, SecretStr):
            continue
        if _CLIENT.search(name):
            address = str(getattr(value, "base_url", "") or "").rstrip("/")
            value = address if address and address not in addresses else None
        headers = isinstance(value, Mapping) and "headers" in name
        told[name] = _told(value) if headers else value
    return {name: value for name, value in told.items() if value is not None}


def _shown(value: Any, *, lenient: bool) -> Any:
    """JSON values for what a setting may be."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _shown(item, lenient=lenient) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(item, lenient=lenient) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_shown(item, lenient=lenient)) for item in value)
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    if isinstance(value, BaseModel):
        return _settings(value, lenient=lenient)
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        return _function(value, lenient=lenient)
    if lenient:
        return type(value).__qualname__
    raise NotCacheable(
        "opaque_parameters",
        f"the model, the synthesizer or the call holds a {type(value).__name__}, so a change of it would go "
        "unnoticed; name the model and its settings: model_id='...'",
    )


def _function(function: Any, *, lenient: bool) -> list[Any]:
    """A function by its code and by what it holds."""
    if isinstance(function, functools.partial):
        held = [_shown(list(function.args), lenient=lenient), _shown(function.keywords, lenient=lenient)]
        return [_function(function.func, lenient=lenient), *held]
    if isinstance(function, types.MethodType):
        return [type(function.__self__).__qualname__, _function(function.__func__, lenient=lenient)]
    if not isinstance(function, types.FunctionType):
        return [getattr(function, "__qualname__", type(function).__qualname__)]
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [
        f"{function.__module__}.{function.__qualname__}",
        _code(function.__code__),
        [_shown(value, lenient=True) for value in (*cells, *(function.__defaults__ or ()))],
    ]


def _code(code: types.CodeType) -> list[Any]:
    return [code.co_code.hex(), [_constant(value) for value in code.co_consts], list(code.co_names)]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _effect(form: Callable[[Any], str] | None, samples: Callable[[], list[Any]], *, lenient: bool) -> Any:
    """A formatting function, with what it makes of a sample; it may change the sample."""
    if form is None:
        return None
    made = None
    for number in range(len(samples())):
        try:
            made = str(form(samples()[number]))
            break
        except Exception:  # noqa: S112 - templates of some models allow no system message
            continue
    return [_function(form, lenient=True), made]


def _conversation() -> list[Any]:
    """Samples of messages, with and without a system message."""
    messages = [
        ChatMessage("system", role=MessageRole.SYSTEM),
        ChatMessage("user", role=MessageRole.USER),
        ChatMessage("assistant", role=MessageRole.ASSISTANT),
    ]
    return [messages, messages[1:]]
