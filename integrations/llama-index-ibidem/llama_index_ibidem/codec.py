"""Responses of LlamaIndex models to text and back.

What does not survive the way there and back unchanged is not stored. `raw`, the provider's own object, is
not kept: a hit says in its place that it is one, and that it cost no tokens.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from ibidem.errors import NotCacheable
from ibidem.types import Answer, Hit
from llama_index_ibidem.reading import USAGE_KEYS, Told, is_for_programs

MARKER = "ibidem"
_CLASS = "ibidem.class"
Response = TypeVar("Response", ChatResponse, CompletionResponse)

_OF_ONE_CALL = {"raw", "delta"}
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def encode(response: ChatResponse | CompletionResponse, told: Told, *, model: str, seconds: float) -> Answer:
    """The answer to store for what a model returned and its provider told about it.

    Raises:
        NotCacheable: It cannot be restored exactly.
    """
    return Answer(
        text_of(response),
        payload=_dump(response),
        model=model,
        input_tokens=told.input_tokens,
        output_tokens=told.output_tokens,
        finish_reason=told.finish_reason or "",
        seconds=seconds,
        semantic=not is_for_programs(response),
    )


def decode(hit: Hit, kind: type[Response]) -> Response:
    """A new response that says what the stored one said, and that it is repeated.

    Raises:
        Exception: The stored text is not one of ours. It comes from disk: anything may be wrong with it.
    """
    restored = _restore(hit.answer.payload, kind)
    extras = _without_usage(restored.additional_kwargs)
    raw = {MARKER: hit.provenance(), "usage": dict(_NO_USAGE)}
    return restored.model_copy(update={"additional_kwargs": extras, "raw": raw})


def text_of(response: ChatResponse | CompletionResponse) -> str:
    """The answer as a reader sees it."""
    return (response.message.content if isinstance(response, ChatResponse) else response.text) or ""


def _dump(response: ChatResponse | CompletionResponse) -> str:
    try:
        shown = response.model_dump(mode="json", exclude=_OF_ONE_CALL)
        _note_classes(response, shown)
        text = json.dumps([_name(type(response)), shown], allow_nan=False, separators=(",", ":"))
        restored: ChatResponse | CompletionResponse
        if isinstance(response, ChatResponse):
            restored = _restore(text, ChatResponse)
        else:
            restored = _restore(text, CompletionResponse)
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise NotCacheable("not_json", f"the answer is not JSON ({type(error).__name__})") from None
    if not _same(restored, response):
        raise NotCacheable("not_json", "the answer holds what JSON changes (sets, dates, objects)")
    return text


def _same(one: ChatResponse | CompletionResponse, other: ChatResponse | CompletionResponse) -> bool:
    of_one_call = dict.fromkeys(_OF_ONE_CALL)
    bare, other_bare = one.model_copy(update=of_one_call), other.model_copy(update=of_one_call)
    if isinstance(one, ChatResponse) and isinstance(other, ChatResponse):
        return type(one.message) is type(other.message) and bare == other_bare
    return bare == other_bare


def _note_classes(response: ChatResponse | CompletionResponse, shown: dict[str, Any]) -> None:
    """Put names of classes beside tool calls in OpenAI's own form: programs use them as objects."""
    extras = response.message.additional_kwargs if isinstance(response, ChatResponse) else {}
    calls = extras.get("tool_calls")
    if isinstance(calls, list) and all(isinstance(call, BaseModel) for call in calls):
        dumped = shown["message"]["additional_kwargs"]["tool_calls"]
        pairs = zip(calls, dumped, strict=True)
        shown["message"]["additional_kwargs"]["tool_calls"] = [
            {_CLASS: _name(type(call)), "fields": fields} for call, fields in pairs
        ]


def _restore(payload: str, kind: type[Response]) -> Response:
    """Only response classes that the program has loaded: a stored row names them, and must not load any."""
    name, shown = json.loads(payload)
    known = {_name(found): found for found in _and_subclasses(kind)}
    if name not in known:
        raise ValueError("the stored answer has a form that this program does not know")
    extras = shown.get("message", {}).get("additional_kwargs", {})
    if isinstance(calls := extras.get("tool_calls"), list):
        extras["tool_calls"] = [_call(call) for call in calls]
    return known[name].model_validate(shown)


def _call(call: Any) -> Any:
    """A tool call as the object it was: of a class of OpenAI's package, if the program uses that."""
    if not (isinstance(call, dict) and _CLASS in call):
        return call
    module, _, name = call[_CLASS].rpartition(".")
    found = getattr(sys.modules.get(module), name, None) if module.startswith("openai.types.") else None
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise ValueError("the stored answer holds a tool call of an unknown class")
    return found.model_validate(call["fields"])


def _and_subclasses(kind: type[Response]) -> list[type[Response]]:
    found = [kind]
    for each in found:
        found += each.__subclasses__()
    return found


def _name(kind: type[BaseModel]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _without_usage(extras: dict[str, Any]) -> dict[str, Any]:
    """The same keys with every token count 0, for programs that add them up."""
    return {key: _zeroed(value) if key in USAGE_KEYS else value for key, value in extras.items()}


def _zeroed(usage: Any) -> Any:
    if isinstance(usage, dict):
        return {key: _zeroed(value) for key, value in usage.items()}
    return 0 if isinstance(usage, (int, float)) else usage
