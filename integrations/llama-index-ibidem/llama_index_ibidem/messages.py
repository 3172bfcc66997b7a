"""Convert prompts and responses of LlamaIndex to those of the core, and stored answers back.

What the conversion would change is not stored. `raw`, the provider's own object, is not stored either: on a
hit it says that the response is repeated, and that it cost no tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from io import IOBase
from pathlib import Path
from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from ibidem.adapter.provider_fields import (
    INPUT_TOKEN_KEYS,
    OUTPUT_TOKEN_KEYS,
    TOTAL_TOKEN_KEYS,
    USAGE_KEYS,
    zeroed,
)
from ibidem.errors import NotCacheable
from ibidem.prompts.documents import Ordinals, Prompt, Segment
from ibidem.types import Answer, Hit
from llama_index_ibidem.response_metadata import (
    MARKER,
    ModelResponse,
    ResponseMetadata,
    is_for_programs,
)

Response = TypeVar("Response", ChatResponse, CompletionResponse)

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
# Bookkeeping of an earlier call that no model sees.
_NOT_SEEN = frozenset(
    "prompt_tokens completion_tokens total_tokens usage token_usage logprobs parsed".split()
)
_CLASS = "ibidem.class"
_CALL_FIELDS = {"raw", "delta"}  # not part of the answer
_COUNTS = frozenset((*USAGE_KEYS, *INPUT_TOKEN_KEYS, *OUTPUT_TOKEN_KEYS, *TOTAL_TOKEN_KEYS))
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def chat_prompt(messages: Sequence[ChatMessage]) -> Prompt:
    """Convert the messages of a chat model.

    Raises:
        NotCacheable: A message holds something that cannot be compared.
    """
    ordinals, segments = Ordinals(), list[Segment]()
    frames = [_frame(message, ordinals, segments) for message in messages]
    return Prompt(json.dumps(["chat", frames], sort_keys=True, default=_refuse), tuple(segments))


def completion_prompt(prompt: str, *, formatted: bool) -> Prompt:
    """Convert the prompt of a completion endpoint; the model formats an unformatted one itself."""
    return Prompt("complete, formatted" if formatted else "complete", (Segment("human", prompt),))


def _frame(message: ChatMessage, ordinals: Ordinals, segments: list[Segment]) -> dict[str, Any]:
    """Return all that the model sees of a message except its texts, which are appended to `segments`."""
    role = _ROLES[message.role]
    blocks = [_block(block, role, ordinals, segments) for block in message.blocks]
    extras = {key: value for key, value in message.additional_kwargs.items() if key not in _NOT_SEEN}
    if any(isinstance(block, ToolCallBlock) for block in message.blocks):
        extras.pop("tool_calls", None)  # a copy of the blocks
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
    """Describe an image, a file or a thought. A file given by its path counts with its content."""
    if any(isinstance(value, IOBase) for _, value in block):
        raise NotCacheable("open_file", "a message holds an open file; pass its bytes or its path")
    within = [inner for _, value in block if isinstance(value, list) for inner in value]
    shown = block.model_dump(mode="json", exclude_none=True)
    if isinstance(block, ThinkingBlock):  # the provider's id of the thought, a new one each time
        shown["additional_information"].pop("id", None)
    shown["within"] = [_media(inner) for inner in within if isinstance(inner, BaseModel)]
    if path := getattr(block, "path", None):
        try:
            shown["file"] = blake2b(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise NotCacheable("unreadable_file", f"a message names a file: {error.strerror}") from None
    return shown


def _raw_call(call: Any, ordinals: Ordinals) -> Any:
    """Describe a tool call in its provider's format, with its random id replaced."""
    shown = call.model_dump(mode="json") if isinstance(call, BaseModel) else call
    if isinstance(shown, Mapping):
        return {key: ordinals.of(value) if key == "id" else value for key, value in shown.items()}
    return shown


def _refuse(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    kind = type(value).__name__
    raise NotCacheable("opaque_message", f"a message holds a {kind}, which cannot be compared")


def encode(response: ModelResponse, metadata: ResponseMetadata, *, model: str, seconds: float) -> Answer:
    """Build the answer to store for a response of a model.

    Raises:
        NotCacheable: The response cannot be restored exactly.
    """
    return Answer(
        text_of(response),
        payload=_dump(response),
        model=model,
        input_tokens=metadata.input_tokens,
        output_tokens=metadata.output_tokens,
        finish_reason=metadata.finish_reason or "",
        seconds=seconds,
        semantic=not is_for_programs(response),
    )


def decode(hit: Hit, kind: type[Response]) -> Response:
    """Build a new response from a stored one, with a marker that says that it is repeated.

    Raises:
        Exception: The payload is damaged. It comes from disk: anything may be wrong with it.
    """
    restored = _restore(hit.answer.payload, kind)
    extras = _without_usage(restored.additional_kwargs)
    raw = {MARKER: hit.provenance(), "usage": dict(_NO_USAGE)}
    return restored.model_copy(update={"additional_kwargs": extras, "raw": raw})


def text_of(response: ModelResponse) -> str:
    """Return the text of a response as the user reads it."""
    return (response.message.content if isinstance(response, ChatResponse) else response.text) or ""


def _dump(response: ModelResponse) -> str:
    try:
        shown = response.model_dump(mode="json", exclude=_CALL_FIELDS)
        _add_class_names(response, shown)
        text = json.dumps([_name(type(response)), shown], allow_nan=False, separators=(",", ":"))
        restored: ModelResponse
        if isinstance(response, ChatResponse):
            restored = _restore(text, ChatResponse)
        else:
            restored = _restore(text, CompletionResponse)
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise NotCacheable("not_json", f"the answer is not JSON ({type(error).__name__})") from None
    if not _same(restored, response):
        raise NotCacheable("not_json", "the answer holds values that JSON changes (sets, dates, objects)")
    return text


def _same(left: ModelResponse, right: ModelResponse) -> bool:
    cleared = dict.fromkeys(_CALL_FIELDS)
    equal = left.model_copy(update=cleared) == right.model_copy(update=cleared)
    if isinstance(left, ChatResponse) and isinstance(right, ChatResponse):
        return type(left.message) is type(right.message) and equal
    return equal


def _add_class_names(response: ModelResponse, shown: dict[str, Any]) -> None:
    """Add the class names of tool calls in OpenAI's own format: programs use them as objects."""
    extras = response.message.additional_kwargs if isinstance(response, ChatResponse) else {}
    calls = extras.get("tool_calls")
    if isinstance(calls, list) and all(isinstance(call, BaseModel) for call in calls):
        dumped = shown["message"]["additional_kwargs"]["tool_calls"]
        pairs = zip(calls, dumped, strict=True)
        shown["message"]["additional_kwargs"]["tool_calls"] = [
            {_CLASS: _name(type(call)), "fields": fields} for call, fields in pairs
        ]


def _restore(payload: str, kind: type[Response]) -> Response:
    """Validate a payload as a response class that the program has loaded: a stored row must not load any."""
    name, shown = json.loads(payload)
    known = {_name(found): found for found in _and_subclasses(kind)}
    if name not in known:
        raise ValueError("the stored answer is of a class that this program has not loaded")
    extras = shown.get("message", {}).get("additional_kwargs", {})
    if isinstance(calls := extras.get("tool_calls"), list):
        extras["tool_calls"] = [_call(call) for call in calls]
    return known[name].model_validate(shown)


def _call(call: Any) -> Any:
    """Restore a tool call as the object it was: of a class of OpenAI's package, if that is loaded."""
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
    """Set every token count to 0, but keep the keys: programs add them up."""
    return {key: zeroed(value) if key in _COUNTS else value for key, value in extras.items()}


class ResponseAccumulator(Generic[Response]):
    """Collects the chunks of a stream, as `ibidem.adapter.call.StreamAccumulator`.

    Args:
        model: The name of the model.
        seconds: Returns the seconds since the model was asked.
        complete: False if the chunks lack something that a whole response has: then nothing is stored.
    """

    def __init__(self, model: Callable[[], str], seconds: Callable[[], float], *, complete: bool) -> None:
        self._model, self._seconds, self._complete = model, seconds, complete
        self._metadata = ResponseMetadata()
        self._last: Response | None = None
        self._deltas: list[str] = []
        self._parts = 0

    def add(self, chunk: Response) -> None:
        """Take one chunk; it is copied, since the program may change it."""
        self._last = _copied(chunk)
        self._deltas.append(chunk.delta or "")
        self._parts = max(self._parts, _parts(chunk))
        self._metadata = self._metadata.merge(ResponseMetadata.of(chunk))

    def answer(self) -> Answer | None:
        """Build the answer to store.

        Raises:
            NotCacheable: There were no chunks, or their deltas and the last chunk contradict each other.
        """
        if not self._complete:
            return None
        return encode(self._whole(), self._metadata, model=self._model(), seconds=self._seconds())

    def _whole(self) -> Response:
        """By convention the last chunk holds the whole text; some models leave out its end, or all of it."""
        if self._last is None:
            raise NotCacheable("empty_stream", "the stream held nothing")
        if _parts(self._last) < self._parts:
            raise NotCacheable("unclear_stream", "the last chunk does not repeat the tool calls before it")
        text, joined = text_of(self._last), "".join(self._deltas)
        if joined in ("", text):
            return self._last
        if not joined.startswith(text):
            raise NotCacheable("unclear_stream", "the deltas of the stream are not its text")
        return _with_text(self._last, joined)


def _copied(response: Response) -> Response:
    if not isinstance(response, ChatResponse):
        return response.model_copy()
    message = response.message
    blocks = [block.model_copy() for block in message.blocks]
    given = message.additional_kwargs.items()
    extras = {key: list(value) if isinstance(value, list) else value for key, value in given}
    copied = message.model_copy(update={"blocks": blocks, "additional_kwargs": extras})
    return response.model_copy(update={"message": copied})


def _parts(response: ModelResponse) -> int:
    """Count what there is beside text: tool calls, thoughts, images."""
    if not isinstance(response, ChatResponse):
        return 0
    calls = response.message.additional_kwargs.get("tool_calls")
    blocks = sum(not isinstance(block, TextBlock) for block in response.message.blocks)
    return max(blocks, len(calls) if isinstance(calls, list) else 0)


def _with_text(response: Response, text: str) -> Response:
    if not isinstance(response, ChatResponse):
        return response.model_copy(update={"text": text})
    message = response.message
    if len(message.blocks) > 1:
        raise NotCacheable("unclear_stream", "the last chunk lacks text, and has other parts beside")
    whole = ChatMessage(text, role=message.role, additional_kwargs=message.additional_kwargs)
    return response.model_copy(update={"message": whole})
