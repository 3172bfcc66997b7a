"""Names that LangChain makes up for the forms of answers.

`create_agent` calls a JSON schema without a title `response_format_` and four random letters, anew in every
process. Requests are compared, and answers stored, with the number of the form in place of its name; an
answer that is repeated gets the name that is wanted now.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ibidem.types import Answer, Hit

_MADE_UP = re.compile(r"response_format_[0-9a-f]{4}")
_NAMED = ("tools", "tool_choice", "response_format")


def is_made_up(name: object) -> bool:
    """Whether LangChain made up the name."""
    return isinstance(name, str) and _MADE_UP.fullmatch(name) is not None


def made_up_in(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that were made up for the forms of this call, in order."""
    found = (name for key in _NAMED for name in _names(parameters.get(key)))
    return tuple(dict.fromkeys(found))


def numbered(parameters: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The parameters with numbers in place of these names."""
    numbers = {name: _number(index) for index, name in enumerate(names)}
    return {key: _with(value, numbers) if key in _NAMED else value for key, value in parameters.items()}


def to_store(answer: Answer, names: Sequence[str]) -> Answer:
    """The answer with numbers in place of these names."""
    payload = answer.payload
    for index, name in enumerate(names):
        payload = payload.replace(json.dumps(name), json.dumps(_number(index)))
    return replace(answer, payload=payload) if names else answer


def to_repeat(hit: Hit, names: Sequence[str]) -> Hit:
    """What was found with these names in place of numbers."""
    payload = hit.answer.payload
    for index, name in enumerate(names):
        payload = payload.replace(json.dumps(_number(index)), json.dumps(name))
    return replace(hit, answer=replace(hit.answer, payload=payload)) if names else hit


def _number(index: int) -> str:
    return f"response_format_untitled_{index}"


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        if is_made_up(value):
            yield value
        return
    for inner in value:
        yield from _names(inner)


def _with(value: Any, numbers: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with(inner, numbers) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with(inner, numbers) for inner in value]
    return numbers.get(value, value) if isinstance(value, str) else value
