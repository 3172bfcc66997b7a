"""Which model answers, and with which settings: whatever else than the prompt the answer depends on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM
from pydantic import BaseModel, SecretStr

from ibidem.errors import NotCacheable

# Settings that change when an answer comes or who pays for it, not what it says.
_OPERATIONAL = frozenset(
    (
        "max_retries timeout request_timeout reuse_client num_workers keep_alive verbose rate_limiter "
        "callback_manager show_progress"
    ).split()
)
_SECRET = re.compile(r"(?i)(api_?key|secret|password|credential|authorization|(^|[_-])token$)")
# Asked for in such a form, the answer is data for a program.
_FORM = ("response_format", "response_schema", "generation_config", "format", "text")
_PROBE = (
    ChatMessage("system", role=MessageRole.SYSTEM),
    ChatMessage("user", role=MessageRole.USER),
    ChatMessage("assistant", role=MessageRole.ASSISTANT),
)


def identity(llm: LLM, model_id: str = "") -> str:
    """A description of the model that changes with whatever its answers depend on, without secrets.

    Args:
        llm: The model.
        model_id: What the caller says of the model beside; then parts of it that cannot be described are
            left out.

    Raises:
        NotCacheable: The model holds an object that cannot be compared, and there is no `model_id`.
    """
    lenient = bool(model_id)
    described = {
        "class": f"{type(llm).__module__}.{type(llm).__qualname__}",
        "name": llm.metadata.model_name,
        "id": model_id,
        "fields": _shown(_told(llm.to_dict()), lenient=lenient),
        "private": _told(_private_texts(llm)),
        "wraps": _shown(_wrapped(llm), lenient=True),
        "messages_to_prompt": _effect(llm.messages_to_prompt, _PROBE, _PROBE[1:], lenient=lenient),
        "completion_to_prompt": _effect(llm.completion_to_prompt, "user", lenient=lenient),
    }
    return json.dumps(described, sort_keys=True)


def parameters(given: Mapping[str, Any]) -> str:
    """The arguments of one call in the same manner.

    Raises:
        NotCacheable: An argument cannot be compared.
    """
    told = {name: value for name, value in given.items() if name not in _OPERATIONAL}
    return json.dumps(_shown(told, lenient=False), sort_keys=True)


def asks_for_form(llm: LLM, given: Mapping[str, Any]) -> bool:
    """Whether the answer must have a given form, by the arguments of the call or by the model's settings.

    Tools alone do not say so: the model may still answer in words.
    """
    always = getattr(llm, "additional_kwargs", None)
    settings = {**(always if isinstance(always, Mapping) else {}), **given}
    forced = settings.get("tool_choice") not in (None, "auto", "none")
    return forced or any(map(settings.get, _FORM)) or getattr(llm, "json_mode", False) is True


def _shown(value: Any, *, lenient: bool) -> Any:
    """JSON values for what a setting may be."""
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _shown(item, lenient=lenient) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(item, lenient=lenient) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_shown(item, lenient=lenient), sort_keys=True) for item in value)
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    if isinstance(value, BaseModel):
        return _shown(value.model_dump(), lenient=lenient)
    if lenient:
        return type(value).__qualname__
    raise NotCacheable(
        "opaque_parameters",
        f"the model or the call holds a {type(value).__name__}, so a change of it would go unnoticed; "
        "name the model and its settings: CachedLLM(llm, model_id='...')",
    )


def _told(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that count, without secrets. Headers are settings too, but for those that authorise."""
    told = {}
    for name, value in fields.items():
        if name in _OPERATIONAL or _SECRET.search(name) or isinstance(value, SecretStr):
            continue
        headers = isinstance(value, Mapping) and "headers" in name
        told[name] = _told(value) if headers else value
    return told


def _private_texts(llm: LLM) -> dict[str, str]:
    """Names and addresses that a model keeps to itself. Other private values are its working state."""
    private = llm.__pydantic_private__ or {}
    return {name: value for name, value in private.items() if isinstance(value, str)}


def _wrapped(llm: LLM) -> Any:
    """How a LangChain model inside (`LangChainLLM`) describes itself."""
    inner = getattr(llm, "llm", None)
    return [type(inner).__qualname__, getattr(inner, "_identifying_params", None)] if inner else None


def _effect(form: Callable[[Any], str] | None, *probes: Any, lenient: bool) -> str | None:
    """What a formatting function makes of a probe: it is a function, so this is all there is to compare."""
    for probe in probes if form else ():
        try:
            return str(form(probe))  # type: ignore[misc]
        except Exception:  # noqa: S112 - templates of some models allow no system message
            continue
    if form is None or lenient:
        return None
    raise NotCacheable("opaque_format", "messages_to_prompt or completion_to_prompt failed on a sample")
