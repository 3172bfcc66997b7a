"""Vetted answers: a person's text in place of a model's, and how it is told apart. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ibidem.errors import InvalidInput
from ibidem.types import Answer, Entry

# What a payload holds beside text if a program acts upon the answer.
_CALLS = frozenset("tool_calls invalid_tool_calls function_call tool_use parsed".split())
_CALL_TYPES = frozenset("tool_use tool_call function_call server_tool_use custom_tool_call".split())
# What was only true of the model's own words.
_OF_THE_WORDS = frozenset("logprobs reasoning_content citations annotations".split())
_THOUGHTS = frozenset("thinking redacted_thinking reasoning".split())
_TEXTS = frozenset(("content", "text"))
LONGEST_FORM = 32  # characters of a payload that is no JSON: the name of a form
_ADVICE = "; pass an ibidem.Answer with the whole payload instead of a text"


def corrected(entry: Entry, given: str | Answer) -> Answer:
    """Return the answer to store in place of that of an entry.

    A text takes the place of the model's text, also in what the adapter has serialised; model and tokens
    stay, as a hit still saves what the model would cost. An `Answer` is taken as it is.

    Raises:
        InvalidInput: The text is blank; or the answer is one for a program, or of several parts, which a text
            cannot replace.
    """
    if isinstance(given, Answer):
        return given
    if not given.strip():
        raise InvalidInput("the answer is blank; to delete one, use cache.invalidate(entry=...)")
    old = entry.answer
    if not old.text.strip() or (not entry.semantic and _is_for_programs(old)):
        raise InvalidInput(f"the stored answer is one for a program (tool calls, structured output){_ADVICE}")
    return with_text(old, given)


def with_text(answer: Answer, text: str) -> Answer:
    """Return an answer with another text, also in what the adapter has serialised.

    Raises:
        InvalidInput: It has parts beside its text, or a payload that cannot be read.
    """
    return replace(answer, text=text, payload=_with_text(answer.payload, answer.text, text), finish_reason="")


def _is_for_programs(answer: Answer) -> bool:
    if answer.text.strip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            json.loads(answer.text)
            return True
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(answer.payload)
    return any(
        any(map(part.get, _CALLS)) or part.get("type") in _CALL_TYPES
        for part in _parts(found)
        if isinstance(part, dict)
    )


def _with_text(payload: str, old: str, new: str) -> str:
    """Replace the text in an adapter's JSON: as a whole, or its first part if it is in several."""
    if len(payload) <= LONGEST_FORM and (not payload or payload.isidentifier()):
        return payload  # it only names the form of the text
    try:
        held = json.loads(payload)
        texts = [*filter(None, _texts(held))]
    except (ValueError, RecursionError):
        raise InvalidInput(f"the stored answer is not in JSON{_ADVICE}") from None
    if old in texts:
        by_text = {old: new}
    elif len(set(texts)) == len(texts) and any(mark.join(texts) == old for mark in ("", "\n", "\n\n")):
        by_text = dict.fromkeys(texts, "") | {texts[0]: new}
    else:
        raise InvalidInput(f"the stored answer has parts beside its text{_ADVICE}")
    return json.dumps(_replaced(held, by_text), separators=(",", ":"))


def _parts(value: Any) -> Iterator[Any]:
    """List the values in JSON, itself included, in order."""
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(inner)


def _texts(value: Any, name: str = "") -> Iterator[str]:
    """List the texts of a message in JSON, in order; not those that name a kind or a role."""
    if isinstance(value, str) and name in _TEXTS:
        yield value
    elif isinstance(value, dict):
        for inner_name, inner in value.items():
            yield from _texts(inner, inner_name)
    elif isinstance(value, list):
        for inner in value:
            yield from () if _is_thought(inner) else _texts(inner, name)


def _replaced(value: Any, by_text: dict[str, str], name: str = "") -> Any:
    """Replace these texts of a message, and leave out what was only true of the model's words."""
    if isinstance(value, str):
        return by_text.get(value, value) if name in _TEXTS else value
    if isinstance(value, list):
        kept = [] if name in _OF_THE_WORDS else value
        return [_replaced(one, by_text, name) for one in kept if not _is_thought(one)]
    if isinstance(value, dict):
        kept_items = (
            (key, one) for key, one in value.items() if key not in _OF_THE_WORDS or isinstance(one, list)
        )
        return {key: _replaced(one, by_text, key) for key, one in kept_items}
    return value


def _is_thought(block: Any) -> bool:
    return isinstance(block, dict) and (block.get("type") or block.get("block_type")) in _THOUGHTS
