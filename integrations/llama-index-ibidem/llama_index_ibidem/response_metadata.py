"""Read what a response says beside its text: finish reason, token usage, and whether it is for a program."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse, ToolCallBlock

from ibidem.adapter.provider_fields import (
    FINISH_REASON_KEYS,
    INPUT_TOKEN_KEYS,
    OUTPUT_TOKEN_KEYS,
    USAGE_KEYS,
)

_ANSWERS = ("choices", "candidates")
UNFINISHED = "unfinished"  # the provider has a field for the finish reason, and it is empty
MARKER = "ibidem"  # in `raw` of a repeated response, and in `metadata` of a repeated synthesis

ModelResponse = ChatResponse | CompletionResponse

# Text for a program: a ReAct step, code to run, SQL, Cypher. It is only right for exactly the same prompt.
# Atomic groups, and blanks that stay within a line, keep the search linear.
_ACTS = re.compile(
    r"(?ms)\A(?>.*?^[^\S\n]*Action\s*:).*^[^\S\n]*Action Input\s*:|<execute>|"
    r"\A\s*(?:```\w*\s*)?(?:SQLQuery\s*:|SELECT\b|"
    r"WITH\b.+\bSELECT\b|INSERT\s+INTO\b|UPDATE\b.+\bSET\b|DELETE\s+FROM\b|MATCH\s*\()"
)
_FENCE = re.compile(r"\A```\w*\s*")


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
        return replace(self, finish_reason=None) if self.finish_reason == UNFINISHED else self

    def merge(self, later: ResponseMetadata) -> ResponseMetadata:
        """Return the metadata of a stream after one more chunk."""
        pairs = zip(
            (later.finish_reason, later.input_tokens, later.output_tokens),
            (self.finish_reason, self.input_tokens, self.output_tokens),
            strict=True,
        )
        return ResponseMetadata(*(new if new not in (None, UNFINISHED) else old or new for new, old in pairs))  # type: ignore[arg-type]


def marker_of(response: ModelResponse) -> Mapping[str, Any]:
    """Return the marker of a response that was repeated from the cache; empty if a model gave it."""
    marker = response.raw.get(MARKER) if isinstance(response.raw, dict) else None
    return marker if isinstance(marker, dict) else {}


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
    """Return the finish reason in the provider's words; `UNFINISHED` if its field is empty."""
    has_field = False
    for part in _parts(response):
        for key in FINISH_REASON_KEYS:
            value = _get(part, key, missing := object())
            if isinstance(value, Enum):
                value = value.name
            if isinstance(value, str) and value:
                return value
            has_field = has_field or value is not missing
    return UNFINISHED if has_field else None


def _parts(response: ModelResponse) -> Iterator[Any]:
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
