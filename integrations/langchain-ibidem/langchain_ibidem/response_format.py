"""The form that an answer must have: its schema is part of the key, and its validators are asked.

`create_agent` calls a JSON schema without a title `response_format_` and four random letters, anew in every
process. Requests are compared, and answers stored, with the number of the form in place of its name; an
answer that is repeated gets the name that is wanted now.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.outputs import ChatGeneration, Generation
from pydantic import BaseModel

from ibidem.errors import NotCacheable
from ibidem.types import Answer, Hit
from langchain_ibidem.messages import decode, encode

_MADE_UP = re.compile(r"response_format_[0-9a-f]{4}")
_NAMED = ("tools", "tool_choice", "response_format")


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form that the answer to one call must have.

    Attributes:
        schema: The class that it must fit, if that is known.
        names: The names that LangChain made up for forms without a title, in order.
    """

    schema: type[BaseModel] | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> ResponseFormat:
        """Read the form from the parameters of a call."""
        form = parameters.get("response_format")
        found = (name for key in _NAMED for name in _names(parameters.get(key)))
        schema = form if isinstance(form, type) and issubclass(form, BaseModel) else None
        return cls(schema, tuple(dict.fromkeys(found)))

    def numbered(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the parameters with numbers in place of the made-up names."""
        if not self.names:
            return parameters
        numbers = {name: _number(index) for index, name in enumerate(self.names)}
        return {key: _renamed(one, numbers) if key in _NAMED else one for key, one in parameters.items()}

    def to_answer(self, generations: Sequence[Generation], seconds: float | None = None) -> Answer:
        """Encode what a model returned, with numbers in place of the made-up names.

        Raises:
            NotCacheable: It does not fit the form, so the program will ask again; or it cannot be stored.
        """
        if not all(map(self._fits, generations)):
            name = getattr(self.schema, "__name__", "")
            raise NotCacheable("answer_invalid", f"the answer does not fit {name}")
        answer = encode(generations, seconds=seconds)
        payload = answer.payload
        for index, name in enumerate(self.names):
            payload = payload.replace(json.dumps(name), json.dumps(_number(index)))
        return replace(answer, payload=payload) if self.names else answer

    def to_generations(self, hit: Hit) -> list[Generation]:
        """Decode a stored answer, with the names that are wanted now; raises as `decode`."""
        payload = hit.answer.payload
        for index, name in enumerate(self.names):
            payload = payload.replace(json.dumps(_number(index)), json.dumps(name))
        return decode(replace(hit, answer=replace(hit.answer, payload=payload)) if self.names else hit)

    def objection(self, hit: Hit) -> str:
        """Say why a stored answer is of no use: a validator may have changed, which no schema shows."""
        if self.schema is None:
            return ""
        return "" if all(map(self._fits, decode(hit))) else "answer_invalid"

    def _fits(self, generation: Generation) -> bool:
        if self.schema is None:
            return True
        if isinstance(generation, ChatGeneration):
            message = generation.message
            if getattr(message, "tool_calls", None) or message.additional_kwargs.get("refusal"):
                return True  # not the answer in its form
        try:
            self.schema.model_validate_json(generation.text)
        except Exception:  # validators are the program's own code
            return False
        return True


def is_made_up(name: object) -> bool:
    """Whether LangChain made up the name."""
    return isinstance(name, str) and _MADE_UP.fullmatch(name) is not None


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


def _renamed(value: Any, numbers: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _renamed(inner, numbers) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_renamed(inner, numbers) for inner in value]
    return numbers.get(value, value) if isinstance(value, str) else value
