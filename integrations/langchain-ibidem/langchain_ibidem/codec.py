"""Generations to text and back.

An envelope of our own around LangChain's message dictionaries: `langchain_core.load` instantiates classes by
name, which stored rows must not be able to ask for, and pydantic's JSON loses tool calls. What does not
survive the way there and back unchanged is not stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, Generation

from ibidem.errors import NotCacheable
from ibidem.lifecycle.rules import COMPLETE
from ibidem.types import Answer, Hit

MARKER = "ibidem"
_MESSAGES = frozenset(("ai", "AIMessageChunk"))
# As providers call it; `status` is that of OpenAI's Responses.
_FINISH_KEYS = ("finish_reason", "stop_reason", "done_reason", "stopReason", "finishReason", "status")
_MODEL_KEYS = ("model_name", "model")
# Of one HTTP response; sent back to the provider, an old id names something that may be gone.
_PROVIDER_IDS = frozenset(("id", "request_id", "response_id", "previous_response_id", "headers", MARKER))
_USAGE_KEYS = frozenset(("token_usage", "usage", "usage_metadata"))
_NO_USAGE = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


def encode(generations: Sequence[Generation], seconds: float | None = None) -> Answer:
    """The answer to store for what a model returned.

    Raises:
        NotCacheable: An answer that must not be repeated, or that cannot be restored exactly.
    """
    if not generations:
        raise NotCacheable("no_generations", "the model returned nothing")
    first = generations[0]
    usage = _message(first).usage_metadata if isinstance(first, ChatGeneration) else None
    return Answer(
        first.text,
        payload=_dump([_pack(generation) for generation in generations]),
        model=_first_text(_about(first), _MODEL_KEYS),
        input_tokens=usage["input_tokens"] if usage else None,
        output_tokens=usage["output_tokens"] if usage else None,
        finish_reason=finish_reason_of(generations),
        seconds=seconds,
        semantic=not any(map(_is_for_programs, generations)),
    )


def decode(hit: Hit) -> list[Generation]:
    """New generations that say what the stored ones said, and that they are repeated.

    Raises:
        Exception: The stored text is not one of ours. It comes from disk: anything may be wrong with it.
    """
    packed = json.loads(hit.answer.payload)
    return [_unpack(item, hit, number) for number, item in enumerate(packed)]


def _dump(packed: list[dict[str, Any]]) -> str:
    try:
        text = json.dumps(packed, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise NotCacheable("not_json", f"the answer is not JSON ({type(error).__name__})") from None
    if json.loads(text) != packed:
        raise NotCacheable("not_json", "the answer holds what JSON changes (tuples, keys that are not text)")
    return text


def _pack(generation: Generation) -> dict[str, Any]:
    if not isinstance(generation, ChatGeneration):
        return {"kind": "text", "text": generation.text, "info": generation.generation_info}
    message = _message(generation)
    if message.invalid_tool_calls:
        raise NotCacheable("invalid_tool_calls", "the model called a tool with arguments that do not parse")
    return {"kind": "chat", "message": message_to_dict(message), "info": generation.generation_info}


def _message(generation: ChatGeneration) -> AIMessage:
    if not isinstance(generation.message, AIMessage):
        kind = type(generation.message).__name__
        raise NotCacheable("message_kind", f"the model answered with a {kind}; only AIMessage is cached")
    return generation.message


def _unpack(item: dict[str, Any], hit: Hit, number: int) -> Generation:
    info = item["info"]
    if item["kind"] == "text":
        return Generation(text=item["text"], generation_info=info)
    if item["kind"] != "chat" or item["message"]["type"] not in _MESSAGES:
        raise ValueError("unexpected kind of stored answer")
    (message,) = messages_from_dict([item["message"]])
    if not isinstance(message, AIMessage):
        raise TypeError("the stored answer is not an AIMessage")
    repeated = message.model_copy(
        update={
            # A repeated id would make LangGraph replace the earlier message instead of adding this one.
            "id": f"lc_run--{uuid4()}-{number}",
            "usage_metadata": dict(_NO_USAGE),  # nothing was spent; LangChain itself adds total_cost 0
            "response_metadata": {**_as_repeated(message.response_metadata), MARKER: hit.provenance()},
        }
    )
    return ChatGeneration(message=repeated, generation_info=info and _as_repeated(info))


def _as_repeated(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the provider told, without what was only true of that one call."""
    kept = {key: value for key, value in metadata.items() if key not in _PROVIDER_IDS}
    return {key: _zeroed(value) if key in _USAGE_KEYS else value for key, value in kept.items()}


def _zeroed(usage: Any) -> Any:
    """The same shape with every number 0, for programs that add tokens up."""
    if isinstance(usage, dict):
        return {key: _zeroed(value) for key, value in usage.items()}
    return 0 if isinstance(usage, (int, float)) else usage


def _about(generation: Generation) -> dict[str, Any]:
    """What the provider told about the answer, wherever LangChain put it."""
    info = generation.generation_info or {}
    if isinstance(generation, ChatGeneration):
        return {**info, **generation.message.response_metadata}
    return info


def _first_text(about: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((value for key in keys if isinstance(value := about.get(key), str)), "")


def finish_reason_of(generations: Sequence[Generation]) -> str:
    """Why the model stopped, "" if unknown; of several answers, one that was cut off speaks for all."""
    reasons = [_first_text(_about(generation), _FINISH_KEYS) for generation in generations]
    return next((reason for reason in reasons if reason.lower() not in COMPLETE), reasons[0])


def _is_for_programs(generation: Generation) -> bool:
    """Tool calls and parsed values are acted upon: they are only right for the very same request."""
    if not isinstance(generation, ChatGeneration):
        return False
    message = _message(generation)
    extras = message.additional_kwargs
    return bool(message.tool_calls) or any(map(extras.get, ("function_call", "tool_calls", "parsed")))
