"""What a chain returns: as it is stored, repeated, split into pieces, and put together from them.

Texts, JSON, messages and documents; in an envelope of our own, so that a stored row names no class to load.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    message_chunk_to_message,
    message_to_dict,
    messages_from_dict,
)
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables.utils import AddableDict

from ibidem.adapter.streams import split_text
from ibidem.errors import NotCacheable
from ibidem.provenance import remember
from ibidem.types import Answer, Hit, Stored
from langchain_ibidem.messages import chat_chunks, repeated_message, to_json

ANSWER_KEYS = ("answer", "output", "result", "response", "text", "content")
_KIND = "lc"  # key of the kind of an object in JSON


def pack_output(output: Any, question: str) -> tuple[str, dict[str, Any], bool]:
    """Return the text of an output, JSON of it, and whether people read it.

    The text stands by itself, where `cache.correct` replaces it. Where a dictionary repeats the question, a
    hit repeats the one asked then.

    Raises:
        NotCacheable: It holds what cannot be restored.
    """
    if isinstance(output, str):
        return output, {"text": output}, not _is_json(output)
    if isinstance(output, AIMessage):
        calls = output.tool_calls or any(map(output.additional_kwargs.get, ("function_call", "parsed")))
        return output.text, {"message": _to_values(output)}, not (calls or _is_json(output.text))
    if isinstance(output, dict):
        for key in ANSWER_KEYS:
            if isinstance(answer := output.get(key), (str, AIMessage)) and answer:
                text, packed, semantic = pack_output(answer, question)
                others = {name: value for name, value in output.items() if name != key}
                return (
                    text,
                    {**packed, "key": key, "others": _to_values(others, question), "order": [*output]},
                    semantic,
                )
    values = _to_values(output)
    return to_json(values), {"value": values}, False


def _is_json(text: str) -> bool:
    with suppress(ValueError, RecursionError):
        return text.strip()[:1] in ("[", "{") and json.loads(text) is not None
    return False


def _to_values(value: Any, question: str | None = None) -> Any:
    if isinstance(value, str) and value == question:
        return {_KIND: "question"}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_to_values(inner, question) for inner in value]
    if isinstance(value, Document):
        return {_KIND: "document", "id": value.id, "page_content": value.page_content, "of": value.metadata}
    if isinstance(value, BaseMessage):
        if getattr(value, "invalid_tool_calls", None):
            raise NotCacheable(
                "invalid_tool_calls", "the model called a tool with arguments that do not parse"
            )
        return {_KIND: "message", "message": message_to_dict(value)}
    if isinstance(value, dict) and _KIND not in value:
        return {key: _to_values(inner, question) for key, inner in value.items()}
    raise NotCacheable(
        "output_kind",
        f"the chain returns a {type(value).__name__}; texts, JSON, messages and documents can be stored: "
        "put the step that makes it after answer_first",
    )


class RepeatedOutput:
    """A stored output, to be repeated."""

    def __init__(self, question: str, hit: Hit) -> None:
        self._question, self._hit = question, hit
        self._held = held = json.loads(hit.answer.payload)
        self._answer: str | AIMessage | None = None
        if "value" in held:
            self.output = self._restored(held["value"])
            return
        self._answer = held["text"] if "text" in held else self._restored(held["message"])
        self.output = self._answer
        if (key := held.get("key")) is not None:
            others = self._restored(held["others"])
            self.output = AddableDict(
                {name: self._answer if name == key else others[name] for name in held["order"]}
            )

    @classmethod
    def of(cls, question: str, hit: Hit) -> RepeatedOutput:
        """Restore the output for a question; whatever may be wrong with what is stored is raised."""
        found = cls(question, hit)
        remember_output(found.output, hit)
        return found

    def pieces(self) -> Iterator[Any]:
        """Split the output as a chain streams it."""
        if self._answer is None:
            yield self.output
        elif (key := self._held.get("key")) is None:
            yield from _pieces(self._answer)
        else:
            for name in self._held["order"]:
                parts = _pieces(self._answer) if name == key else [self.output[name]]
                yield from (AddableDict({name: part}) for part in parts)

    def _restored(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._restored(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        kind = value.get(_KIND)
        if kind == "document":
            return Document(id=value["id"], page_content=value["page_content"], metadata=value["of"])
        if kind == "question":
            return self._question
        if kind == "message":
            dumped = value["message"]
            if dumped["type"] in ("ai", "AIMessageChunk"):
                return repeated_message(dumped, self._hit)
            return messages_from_dict([dumped])[0]
        return {key: self._restored(inner) for key, inner in value.items()}


def _pieces(answer: str | AIMessage) -> Iterator[Any]:
    if isinstance(answer, str):
        yield from split_text(answer) or [""]
    else:
        yield from (chunk.message for chunk in chat_chunks(ChatGeneration(message=answer)))


def remember_output(output: Any, source: Hit | Stored) -> None:
    """Let `ibidem.forget` find the stored answer behind an output that cannot say it itself."""
    answers = [output, *(output.get(key) for key in ANSWER_KEYS)] if isinstance(output, dict) else [output]
    for each in answers:
        if isinstance(each, AIMessage) and isinstance(source, Stored):
            remember(each, source, names=[each.id])
        elif isinstance(each, AddableDict):
            remember(each, source)


class OutputAccumulator:
    """The chunks of a stream, added up as LangChain does: a `StreamAccumulator`."""

    def __init__(self, answer: Callable[[Any], Answer | None]) -> None:
        self._answer: Callable[[Any], Answer | None] = answer
        self._whole: Any = None
        self._count = 0

    def add(self, chunk: Any) -> None:
        """Take one chunk."""
        self._count += 1
        if self._count == 1:
            self._whole = deepcopy(chunk)  # the program may change it
        else:
            self._whole = self._whole + chunk

    def answer(self) -> Answer | None:
        """Return the answer to store.

        Raises:
            NotCacheable: There were no chunks, or as `answer` raises.
        """
        if not self._count:
            raise NotCacheable("empty_stream", "a stream held nothing")
        return self._answer(_as_invoked(self._whole))


def _as_invoked(value: Any) -> Any:
    """Return what `invoke` gives in place of what chunks add up to."""
    if isinstance(value, AIMessageChunk):
        return message_chunk_to_message(value)
    if isinstance(value, dict):
        return {key: _as_invoked(inner) for key, inner in value.items()}
    return value
