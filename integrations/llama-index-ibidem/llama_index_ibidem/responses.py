"""Convert responses of LlamaIndex models to answers of the core and back, and read what they say beside text.

What the conversion would change is not stored. `raw`, the provider's own object, is not stored either: on a
hit it says that the response is repeated, and that it cost no tokens.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    StreamingResponse,
)
from llama_index.core.base.response.schema import Response as WholeResponse
from llama_index.core.chat_engine.types import AgentChatResponse, StreamingAgentChatResponse
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from ibidem.adapter.provider_fields import (
    FINISH_REASON_KEYS,
    INPUT_TOKEN_KEYS,
    OUTPUT_TOKEN_KEYS,
    TOTAL_TOKEN_KEYS,
    USAGE_KEYS,
    zeroed,
)
from ibidem.adapter.streams import keep_scope
from ibidem.errors import NotCacheable
from ibidem.types import Answer, Hit

Response = TypeVar("Response", ChatResponse, CompletionResponse)
ModelResponse = ChatResponse | CompletionResponse

MARKER = "ibidem"  # in `raw` of a repeated response, and in `metadata` of an engine's
_OF_ENGINES = (
    WholeResponse,
    PydanticResponse,
    StreamingResponse,
    AsyncStreamingResponse,
    AgentChatResponse,
)
_CLASS = "ibidem.class"
_CALL_FIELDS = {"raw", "delta"}  # not part of the answer
_COUNTS = frozenset((*USAGE_KEYS, *INPUT_TOKEN_KEYS, *OUTPUT_TOKEN_KEYS, *TOTAL_TOKEN_KEYS))
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
# As Google's protocol numbers them, of which only one means that the answer is whole.
_NUMBERED_REASONS = {0: "", 1: "STOP", 2: "MAX_TOKENS", 3: "SAFETY", 4: "RECITATION"}
_UNFINISHED = "unfinished"  # the provider has a field for the finish reason, and it is empty
_ANSWERS = ("choices", "candidates")
# Text for a program: a ReAct step, code to run, SQL, Cypher. It is only right for exactly the same prompt.
# Atomic groups, and blanks that stay within a line, keep the search linear.
_ACTS = re.compile(
    r"(?ms)\A(?>.*?^[^\S\n]*Action\s*:).*^[^\S\n]*Action Input\s*:|<execute>|"
    r"\A\s*(?:```\w*\s*)?(?:SQLQuery\s*:|SELECT\b|"
    r"WITH\b.+\bSELECT\b|INSERT\s+INTO\b|UPDATE\b.+\bSET\b|DELETE\s+FROM\b|MATCH\s*\()"
)
_FENCE = re.compile(r"\A```\w*\s*")


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
    # Programs add up token counts: each becomes 0, but its key stays.
    extras = {
        key: zeroed(value) if key in _COUNTS else value for key, value in restored.additional_kwargs.items()
    }
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
        kind: Any = ChatResponse if isinstance(response, ChatResponse) else CompletionResponse
        restored = _restore(text, kind)
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise NotCacheable("not_json", f"the answer is not JSON ({type(error).__name__})") from None
    cleared = dict.fromkeys(_CALL_FIELDS)
    if restored.model_copy(update=cleared) != response.model_copy(update=cleared):
        raise NotCacheable("not_json", "the answer holds values that JSON changes (sets, dates, objects)")
    return text


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


class ResponseAccumulator(Generic[Response]):
    """Collects the chunks of a stream, as `ibidem.adapter.call.StreamAccumulator`.

    Args:
        answer: Builds the answer to store for the whole response.
        complete: False if the chunks lack something that a whole response has: then nothing is stored.
    """

    def __init__(self, answer: Callable[[Response, ResponseMetadata], Answer], *, complete: bool) -> None:
        self._answer: Callable[[Response, ResponseMetadata], Answer] = answer
        self._complete = complete
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
        return self._answer(self._whole(), self._metadata) if self._complete else None

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


@dataclass(frozen=True, slots=True)
class ResponseMetadata:
    """Finish reason and token counts of a response; None where the provider gives none."""

    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @classmethod
    def of(cls, response: ModelResponse) -> ResponseMetadata:
        """Read the metadata of a response, wherever its provider puts them."""
        usages = list(_usages(response))
        return cls(
            _finish_reason(response), _count(usages, INPUT_TOKEN_KEYS), _count(usages, OUTPUT_TOKEN_KEYS)
        )

    def finalize(self) -> ResponseMetadata:
        """Return the metadata of a response that was not streamed: it is complete, whatever is left out."""
        return replace(self, finish_reason=None) if self.finish_reason == _UNFINISHED else self

    def merge(self, later: ResponseMetadata) -> ResponseMetadata:
        """Return the metadata of a stream after one more chunk."""
        reason = later.finish_reason
        return ResponseMetadata(
            reason if reason not in (None, _UNFINISHED) else self.finish_reason or reason,
            self.input_tokens if later.input_tokens is None else later.input_tokens,
            self.output_tokens if later.output_tokens is None else later.output_tokens,
        )


def marker_in(held: object) -> Mapping[str, Any]:
    """Return the marker in `raw` of a repeated response or `metadata` of a repeated synthesis; else empty."""
    marker = held.get(MARKER) if isinstance(held, dict) else None
    return marker if isinstance(marker, dict) and marker.get("hit", True) else {}


@dataclass(frozen=True, slots=True)
class LookupCounts:
    """What a cache said to the model calls behind an answer.

    Attributes:
        calls: How many there were.
        repeated: How many of them it answered in place of the model.
        last: The marker of the last one that it answered.
    """

    calls: int = 0
    repeated: int = 0
    last: Mapping[str, Any] = field(default_factory=dict)

    def with_lookup(self, hit: Hit | None, calls: int) -> LookupCounts:
        """Return them with one more lookup, for so many calls."""
        if hit is None:
            return replace(self, calls=self.calls + calls)
        last = {**hit.provenance(), "model": hit.answer.model}
        return LookupCounts(self.calls + calls, self.repeated + calls, last)

    def marker(self) -> dict[str, Any]:
        """Return the marker for the response of an engine; that of the entry, if one entry is all of it."""
        hit = 0 < self.calls == self.repeated
        counts = {"calls": self.calls, "repeated": self.repeated} if self.calls else {}
        return {"hit": hit, **counts, **(self.last if hit and self.calls == 1 else {})}


def mark(response: object, lookups: LookupCounts) -> None:
    """Let the response of an engine say in its metadata what the cache said; nothing else has any."""
    if isinstance(response, _OF_ENGINES) and isinstance(response.metadata or {}, dict):
        response.metadata = {**(response.metadata or {}), MARKER: lookups.marker()}


def keep_scope_of(response: object) -> None:
    """Let the streams of a response keep the scope in force now; for engines of the program."""
    if isinstance(response, (StreamingResponse, AsyncStreamingResponse)):
        response.response_gen = keep_scope(response.response_gen)
    elif isinstance(response, StreamingAgentChatResponse):
        response.chat_stream = keep_scope(response.chat_stream)
        response.achat_stream = keep_scope(response.achat_stream)


def is_for_programs(response: ModelResponse) -> bool:
    """Return whether a program acts upon the answer: tool calls, code, queries, JSON."""
    if isinstance(response, CompletionResponse):
        return _acts(response.text)
    message = response.message
    calls = any(isinstance(block, ToolCallBlock) for block in message.blocks)
    extras = message.additional_kwargs
    return calls or any(map(extras.get, ("tool_calls", "function_call"))) or _acts(message.content or "")


def _acts(text: str) -> bool:
    if _ACTS.search(text):
        return True
    bare = _FENCE.sub("", text.strip()).removesuffix("```").rstrip()
    if not (bare.startswith(("[", "{")) and bare.endswith(("]", "}"))):
        return False
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _finish_reason(response: ModelResponse) -> str | None:
    """Return the finish reason in the provider's words; `_UNFINISHED` if its field is empty."""
    has_field = False
    for part in _reason_holders(response):
        for key in FINISH_REASON_KEYS:
            value = _get(part, key, missing := object())
            if isinstance(value, Enum):
                value = value.name
            if isinstance(value, int) and not isinstance(value, bool):
                value = _NUMBERED_REASONS.get(value, f"number {value}")
            if isinstance(value, str) and value:
                return value
            has_field = has_field or value is not missing
    return _UNFINISHED if has_field else None


def _reason_holders(response: ModelResponse) -> Iterator[Any]:
    """Yield the parts of a response in which providers put the finish reason."""
    raw = response.raw
    whole = _get(raw, "response", raw)  # an event of OpenAI's Responses API holds the response
    if _get(whole, "incomplete_details") is not None:
        yield {"finish_reason": "incomplete"}
    for key in _ANSWERS:
        answers = _get(raw, key)
        if isinstance(answers, Sequence) and answers:
            yield answers[0]
    yield from (raw, response.additional_kwargs)
    if isinstance(response, ChatResponse):
        yield response.message.additional_kwargs


def _usages(response: ModelResponse) -> Iterator[Any]:
    yield from (
        _get(holder, key) for holder in (response.raw, response.additional_kwargs) for key in USAGE_KEYS
    )
    yield from (response.raw, response.additional_kwargs)


def _count(usages: Sequence[Any], keys: Sequence[str]) -> int | None:
    found = (_get(usage, key) for usage in usages for key in keys)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n >= 0), None)


def _get(holder: Any, key: str, default: Any = None) -> Any:
    """Return the value of a key of a mapping, or of an attribute of an object: providers use both."""
    if isinstance(holder, Mapping):
        return holder.get(key, default)
    return default if holder is None else getattr(holder, key, default)
