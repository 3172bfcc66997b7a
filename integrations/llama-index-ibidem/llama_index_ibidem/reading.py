"""What a response says beside its text: why the model stopped, what it cost, who acts upon it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse, ToolCallBlock

_INPUT_KEYS = ("prompt_tokens", "input_tokens", "prompt_token_count", "prompt_eval_count", "inputTokens")
_OUTPUT_KEYS = ("completion_tokens", "output_tokens", "candidates_token_count", "eval_count", "outputTokens")
_TOTAL_KEYS = ("total_tokens", "total_token_count", "totalTokens")
_USAGE = ("usage", "usage_metadata", "token_usage")
USAGE_KEYS = frozenset((*_USAGE, *_INPUT_KEYS, *_OUTPUT_KEYS, *_TOTAL_KEYS))
_FINISH_KEYS = ("finish_reason", "stop_reason", "done_reason", "finishReason", "stopReason")
_ANSWERS = ("choices", "candidates")
UNFINISHED = "unfinished"  # the provider says why it stops, and did not

# Text that a program acts upon: a ReAct step, code to run, SQL, Cypher. It fits the very same prompt only.
# Atomic groups and blanks of one line keep the search linear.
_ACTS = re.compile(
    r"(?ms)\A(?>.*?^[^\S\n]*Action\s*:).*^[^\S\n]*Action Input\s*:|<execute>|"
    r"\A\s*(?:```\w*\s*)?(?:SQLQuery\s*:|SELECT\b|"
    r"WITH\b.+\bSELECT\b|INSERT\s+INTO\b|UPDATE\b.+\bSET\b|DELETE\s+FROM\b|MATCH\s*\()"
)
_FENCE = re.compile(r"\A```\w*\s*")


@dataclass(frozen=True, slots=True)
class Told:
    """What the provider told of an answer; None where it told nothing."""

    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @classmethod
    def of(cls, response: ChatResponse | CompletionResponse) -> Told:
        """What a response tells, wherever its provider puts it."""
        usages = list(_usages(response))
        return cls(_finish_reason(response), _count(usages, _INPUT_KEYS), _count(usages, _OUTPUT_KEYS))

    def of_whole(self) -> Told:
        """The same of a response that did not come in pieces: it is whole, whatever its provider left out."""
        return replace(self, finish_reason=None) if self.finish_reason == UNFINISHED else self

    def then(self, later: Told) -> Told:
        """What is known when `later` is told as well, as the chunks of a stream do."""
        pairs = zip(
            (later.finish_reason, later.input_tokens, later.output_tokens),
            (self.finish_reason, self.input_tokens, self.output_tokens),
            strict=True,
        )
        return Told(*(new if new not in (None, UNFINISHED) else old or new for new, old in pairs))  # type: ignore[arg-type]


def is_for_programs(response: ChatResponse | CompletionResponse) -> bool:
    """Whether the answer is acted upon rather than read: tool calls, code, queries, JSON."""
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


def _finish_reason(response: ChatResponse | CompletionResponse) -> str | None:
    """As the provider says it; `UNFINISHED` if it has a place for it that is empty."""
    place = False
    for part in _parts(response):
        for key in _FINISH_KEYS:
            value = _get(part, key, missing := object())
            if isinstance(value, Enum):
                value = value.name
            if isinstance(value, str) and value:
                return value
            place = place or value is not missing
    return UNFINISHED if place else None


def _parts(response: ChatResponse | CompletionResponse) -> Iterator[Any]:
    """Where providers tell why they stopped."""
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


def _usages(response: ChatResponse | CompletionResponse) -> Iterator[Any]:
    yield from (_get(holder, key) for holder in (response.raw, response.additional_kwargs) for key in _USAGE)
    yield from (response.raw, response.additional_kwargs)


def _count(usages: Sequence[Any], keys: Sequence[str]) -> int | None:
    found = (_get(usage, key) for usage in usages for key in keys)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n >= 0), None)


def _get(holder: Any, key: str, default: Any = None) -> Any:
    """The value of a key of a mapping or of an attribute of an object; providers use both."""
    if isinstance(holder, Mapping):
        return holder.get(key, default)
    return default if holder is None else getattr(holder, key, default)
