"""What LlamaIndex sends to a model, as the core sees prompts: texts in order, and all that is not text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from io import IOBase
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock, ToolCallBlock
from pydantic import BaseModel

from ibidem.errors import NotCacheable
from ibidem.prompts.prompt import Ordinals, Prompt, Segment

_ROLES = {
    MessageRole.USER: "human",
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "ai",
    MessageRole.CHATBOT: "ai",
    MessageRole.MODEL: "ai",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "function",
}
# Bookkeeping of a former call that no model sees.
_NOT_SEEN = frozenset(
    "prompt_tokens completion_tokens total_tokens usage token_usage logprobs parsed".split()
)


def of_messages(messages: Sequence[ChatMessage]) -> Prompt:
    """The prompt that a chat model gets.

    Raises:
        NotCacheable: A message holds what cannot be compared.
    """
    ordinals, segments = Ordinals(), list[Segment]()
    frames = [_frame(message, ordinals, segments) for message in messages]
    return Prompt(json.dumps(["chat", frames], sort_keys=True, default=_refuse), tuple(segments))


def of_text(prompt: str, *, formatted: bool) -> Prompt:
    """The prompt that a completion endpoint gets; an unformatted one is put into the model's own form."""
    return Prompt("complete, formatted" if formatted else "complete", (Segment("human", prompt),))


def _frame(message: ChatMessage, ordinals: Ordinals, segments: list[Segment]) -> dict[str, Any]:
    """Everything the model sees of a message but its texts, which are appended to `segments`."""
    role = _ROLES[message.role]
    blocks = [_block(block, role, ordinals, segments) for block in message.blocks]
    extras = {key: value for key, value in message.additional_kwargs.items() if key not in _NOT_SEEN}
    if any(isinstance(block, ToolCallBlock) for block in message.blocks):
        extras.pop("tool_calls", None)  # only a copy of the blocks
    frame: dict[str, Any] = {"role": message.role.value, "blocks": blocks}
    if own := {name: value for name, value in message if name not in ChatMessage.model_fields}:
        frame["own"] = own
    if (answers := extras.pop("tool_call_id", None)) is not None:
        frame["answers"] = ordinals.of(answers)
    if calls := extras.pop("tool_calls", None):
        frame["calls"] = [_raw_call(call, ordinals) for call in calls]
    if extras := {key: value for key, value in extras.items() if value is not None}:
        frame["extras"] = extras
    return frame


def _block(block: BaseModel, role: str, ordinals: Ordinals, segments: list[Segment]) -> Any:
    if isinstance(block, TextBlock):
        segments.append(Segment(role, block.text))
        return "text"
    if isinstance(block, ToolCallBlock):
        return {"call": block.tool_name, "args": block.tool_kwargs, "number": ordinals.of(block.tool_call_id)}
    return _media(block)


def _media(block: BaseModel) -> dict[str, Any]:
    """An image, a file, a thought: as it is. A file that is only named counts with what is in it."""
    if any(isinstance(value, IOBase) for _, value in block):
        raise NotCacheable("open_file", "a message holds an open file; pass its bytes or its path")
    within = [inner for _, value in block if isinstance(value, list) for inner in value]
    shown = block.model_dump(mode="json", exclude_none=True)
    if isinstance(block, ThinkingBlock):  # how the provider calls the thought: another one each time
        shown["additional_information"].pop("id", None)
    shown["within"] = [_media(inner) for inner in within if isinstance(inner, BaseModel)]
    if path := getattr(block, "path", None):
        try:
            shown["file"] = blake2b(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise NotCacheable("unreadable_file", f"a message names a file: {error.strerror}") from None
    return shown


def _raw_call(call: Any, ordinals: Ordinals) -> Any:
    """A tool call in the form of its provider, with its random id replaced."""
    shown = call.model_dump(mode="json") if isinstance(call, BaseModel) else call
    if isinstance(shown, Mapping):
        return {key: ordinals.of(value) if key == "id" else value for key, value in shown.items()}
    return shown


def _refuse(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    kind = type(value).__name__
    raise NotCacheable("opaque_message", f"a message holds a {kind}, which cannot be compared")
