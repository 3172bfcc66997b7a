"""The prompt as the model sees it.

LangChain hands a cache the JSON dump of the messages, bookkeeping included: response metadata, token counts,
random call ids. The same conversation would then be a different key each time, so those are dropped or
replaced by ordinals, and nothing else is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.utils.utils import LC_AUTO_PREFIX

from ibidem.prompts.prompt import Ordinals, Prompt, Segment, plain

_ROLES = {
    "human": "human",
    "HumanMessageChunk": "human",
    "ai": "ai",
    "AIMessageChunk": "ai",
    "system": "system",
    "SystemMessageChunk": "system",
    "tool": "tool",
    "ToolMessageChunk": "tool",
    "function": "function",
    "FunctionMessageChunk": "function",
    "chat": "chat",
    "ChatMessageChunk": "chat",
}
# Fields of a message that no model sees, or that are handled one by one below.
_NOT_SEEN = frozenset(
    (
        "type content id response_metadata usage_metadata artifact example tool_call_chunks chunk_position "
        "tool_calls invalid_tool_calls tool_call_id additional_kwargs"
    ).split()
)
# The same for additional_kwargs. What is not listed stays: some providers send it back to the model.
_NOT_SEEN_EXTRAS = frozenset(
    (
        "id usage token_usage usage_metadata logprobs parsed system_fingerprint response_id cache_control "
        "__openai_function_call_ids__ __gemini_function_call_thought_signatures__"
    ).split()
)
_CALL_ID_KEYS = ("tool_use_id", "tool_call_id", "call_id")  # a tuple: the order gives the ordinals
_CALL_BLOCKS = frozenset("tool_use tool_call server_tool_call server_tool_use invalid_tool_call".split())
# Blocks of an answer that carry a random id of their own. Elsewhere an id can name a file: it stays.
_BLOCKS_WITH_RANDOM_ID = frozenset("text output_text reasoning thinking refusal function_call".split())
_TEXT_BLOCKS = frozenset(("text", "input_text", "output_text"))
# What LangChain itself calls a block, a citation or a message; no provider knows it.
_MADE_ID = re.compile(
    rf"(?:{LC_AUTO_PREFIX}|(?:{LC_AUTO_PREFIX})?run-{{1,2}})"
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:-\d+)?"
)
# What a model gives to a tool: there an id is whatever the tool takes it for.
_ARGUMENTS = frozenset("args arguments input partial_json".split())


def parse(prompt: str) -> Prompt:
    """Take apart the prompt string LangChain gives to a cache: a dump of messages, or plain text."""
    if not is_dump(prompt):
        return plain(prompt)
    try:
        dumped = json.loads(prompt)
        if not all(message["type"] == "constructor" for message in dumped):
            return _unknown(prompt)
        return _assemble([message["kwargs"] for message in dumped])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _unknown(prompt)


def is_dump(prompt: str) -> bool:
    """Whether it is what a chat model hands to a cache, not a completion model."""
    return prompt.startswith('[{"lc":')


def of_messages(messages: Sequence[BaseMessage]) -> Prompt:
    """The prompt that a chat model gets for live messages; the same as `parse` of their dump.

    Raises:
        KeyError, TypeError, ValueError: A message is of no known kind, or holds what JSON cannot.
    """
    return _assemble([vars(message) for message in messages])


def fingerprints_of(rendered: PromptValue) -> tuple[str, ...]:
    """How the prompt will look to a completion model and to a chat model."""
    as_text = plain(rendered.to_string()).fingerprint
    try:
        return as_text, of_messages(rendered.to_messages()).fingerprint
    except (KeyError, TypeError, ValueError):  # messages of an unknown kind, or content that is not JSON
        return (as_text,)


def without_made_ids(value: Any, ordinals: Ordinals | None = None) -> Any:
    """JSON without the random ids that LangChain makes; where one refers to a tool call, its ordinal."""
    ordinals = ordinals or Ordinals()
    if isinstance(value, list):
        return [without_made_ids(inner, ordinals) for inner in value]
    if not isinstance(value, Mapping):
        return value
    kept: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, str) and _MADE_ID.fullmatch(inner):
            if key != "id":  # a text that looks like one is a text
                kept[key] = ordinals.of(inner) if key in _CALL_ID_KEYS else inner
        else:
            kept[key] = inner if key in _ARGUMENTS else without_made_ids(inner, ordinals)
    return kept


def _unknown(prompt: str) -> Prompt:
    return Prompt(prompt, (), known=False)


def _assemble(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    ordinals = Ordinals()
    segments: list[Segment] = []
    frames = [_frame(message, ordinals, segments) for message in messages]
    return Prompt(json.dumps(frames, sort_keys=True), tuple(segments))


def _frame(message: Mapping[str, Any], ordinals: Ordinals, segments: list[Segment]) -> dict[str, Any]:
    """Everything the model sees of a message but its texts, which are appended to `segments`."""
    role = _ROLES[message["type"]]
    if role == "chat" and message["role"] in ("user", "human"):
        role = "human"
    fields = {key: value for key, value in message.items() if key not in _NOT_SEEN and value is not None}
    if fields.get("status") == "success":  # the default of a tool message, seen only if it is an error
        del fields["status"]
    frame: dict[str, Any] = {"role": role, "fields": without_made_ids(fields, ordinals)}
    for key in ("tool_calls", "invalid_tool_calls"):
        if calls := message.get(key):
            frame[key] = [_call(call, ordinals) for call in calls]
    if message.get("tool_call_id"):
        frame["answers"] = ordinals.of(message["tool_call_id"])
    if extras := _extras(message, role):
        frame["extras"] = without_made_ids(extras, ordinals)
    content = message["content"]
    if isinstance(content, str):
        segments.append(Segment(role, content))
    else:
        frame["blocks"] = [_block(block, role, ordinals, segments) for block in content]
    return frame


def _call(call: Mapping[str, Any], ordinals: Ordinals) -> dict[str, Any]:
    return {"name": call["name"], "args": call["args"], "number": ordinals.of(call.get("id"))}


def _extras(message: Mapping[str, Any], role: str) -> dict[str, Any]:
    """What `additional_kwargs` adds for the model; raw tool calls are only a copy of the parsed ones."""
    copies = {"tool_calls"} if message.get("tool_calls") or message.get("invalid_tool_calls") else set()
    extras: Mapping[str, Any] = message.get("additional_kwargs") or {}
    dropped = _NOT_SEEN_EXTRAS | copies
    kept = {key: value for key, value in extras.items() if key not in dropped and value is not None}
    if role == "ai" and isinstance(thought := kept.get("reasoning"), Mapping):  # a block, kept elsewhere
        kept["reasoning"] = {key: value for key, value in thought.items() if key != "id"}
    return kept


def _block(block: Any, role: str, ordinals: Ordinals, segments: list[Segment]) -> Any:
    """The canonical form of a content block; the text of a text block goes to `segments`."""
    if isinstance(block, str):
        segments.append(Segment(role, block))
        return "text"
    kind = block.get("type")
    kept = {key: value for key, value in block.items() if key != "cache_control" and value is not None}
    for key in _CALL_ID_KEYS:
        if key in kept:
            kept[key] = ordinals.of(kept[key])
    if kind in _CALL_BLOCKS and "id" in kept:
        kept["id"] = ordinals.of(kept["id"])
    if role == "ai":
        _as_if_not_streamed(kept)
        if kind in _BLOCKS_WITH_RANDOM_ID:
            kept.pop("id", None)
    kept = without_made_ids(kept, ordinals)
    if kind in _TEXT_BLOCKS and isinstance(kept.get("text"), str):
        segments.append(Segment(role, kept.pop("text")))
        return ["text", kept]
    return kept


def _as_if_not_streamed(block: dict[str, Any]) -> None:
    """Take out of a block of an answer what only its coming in pieces has left there."""
    block.pop("index", None)
    if block.get("input") in ({}, "") and isinstance(arguments := block.get("partial_json"), str):
        with suppress(ValueError):
            block["input"] = json.loads(arguments or "{}")
            del block["partial_json"]
