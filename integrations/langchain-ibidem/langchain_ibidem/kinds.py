"""What streams of chat models and of completion models have in common, told apart."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import reduce
from operator import add
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.load import dumps
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, Generation, GenerationChunk
from langchain_core.utils.utils import LC_ID_PREFIX

from ibidem.errors import NotCacheable
from langchain_ibidem.replaying import chat_chunks, completion_chunks

AnyModel = BaseChatModel | BaseLLM
Chunk = GenerationChunk | ChatGenerationChunk
Model = TypeVar("Model", bound=AnyModel)

# How an answer comes, not what it says: `invoke` is not told of these.
_OF_STREAMS = frozenset(("run_manager", "stream", "stream_usage", "stream_options"))
_MUTABLE = ("content", "additional_kwargs", "response_metadata", "tool_call_chunks", "usage_metadata")


class Kind(ABC):
    """One of the two kinds of models."""

    @abstractmethod
    def streams(self, model: Any, given: Mapping[str, Any], *, in_async: bool) -> bool:
        """Whether `stream` with these arguments calls `_stream`, and not `invoke`."""

    @abstractmethod
    def described(
        self, model: Any, asked: Any, stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[str, str]:
        """The two strings that LangChain would hand a cache for the same call of `invoke`."""

    @abstractmethod
    def chunks(self, generation: Generation) -> Iterator[Chunk]:
        """A stored answer as a stream.

        Raises:
            Exception: It is not one of such a model.
        """

    @abstractmethod
    def copied(self, chunk: Any) -> Chunk:
        """The chunk as it is now; the program may do with it what it likes."""

    @abstractmethod
    def is_last(self, chunk: Any) -> bool:
        """Whether the model marked the chunk as the last one."""

    @abstractmethod
    def id_of(self, chunk: Any) -> str | None:
        """That of the message which the chunk is a part of, if the model gave it one."""

    @abstractmethod
    def whole(self, model: Any, chunks: Sequence[Any]) -> Sequence[Generation]:
        """What LangChain makes of the chunks.

        Raises:
            NotCacheable: They do not add up to what the model meant.
        """


class _Chat(Kind):
    def streams(self, model: BaseChatModel, given: Mapping[str, Any], *, in_async: bool) -> bool:
        return model._should_stream(async_api=in_async, **{**given, "stream": True})

    def described(
        self, model: BaseChatModel, asked: list[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[str, str]:
        messages = [m if m.id is None else m.model_copy(update={"id": None}) for m in asked]
        return dumps(messages), model._get_llm_string(stop=stop, **of_answer(given))

    def chunks(self, generation: Generation) -> Iterator[Chunk]:
        return chat_chunks(generation)

    def copied(self, chunk: ChatGenerationChunk) -> Chunk:
        message = chunk.message
        held = {name: getattr(message, name, None) for name in _MUTABLE}
        changed = {k: deepcopy(v) for k, v in held.items() if v and not isinstance(v, str)}
        return chunk.model_copy(update={"message": message.model_copy(update=changed)})

    def is_last(self, chunk: ChatGenerationChunk) -> bool:
        return getattr(chunk.message, "chunk_position", None) == "last"

    def id_of(self, chunk: ChatGenerationChunk) -> str | None:
        return chunk.message.id

    def whole(self, model: BaseChatModel, chunks: Sequence[ChatGenerationChunk]) -> Sequence[Generation]:
        _require_readable_calls([chunk.message for chunk in chunks])
        # LangChain itself does it: as it does where a model streams for `invoke`.
        replayed = alike(
            model,
            cache=False,
            rate_limiter=None,
            _stream=lambda *_, **__: iter(chunks),
            _should_stream=lambda **_: True,
            _should_use_protocol_streaming=lambda **_: False,
        )
        return replayed._generate_with_cache([]).generations


class _Completion(Kind):
    def streams(self, model: BaseLLM, given: Mapping[str, Any], *, in_async: bool) -> bool:
        kind = type(model)
        return kind._stream is not BaseLLM._stream or (in_async and kind._astream is not BaseLLM._astream)

    def described(
        self, model: BaseLLM, asked: str, stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[str, str]:
        about = getattr(model, "_dict_for_compat", model.dict)()
        return asked, str(sorted({**about, "stop": stop}.items()))

    def chunks(self, generation: Generation) -> Iterator[Chunk]:
        return completion_chunks(generation)

    def copied(self, chunk: GenerationChunk) -> Chunk:
        return chunk.model_copy(deep=True)

    def is_last(self, chunk: GenerationChunk) -> bool:
        return False

    def id_of(self, chunk: GenerationChunk) -> str | None:
        return None

    def whole(self, model: BaseLLM, chunks: Sequence[GenerationChunk]) -> Sequence[Generation]:
        told = reduce(add, (chunk.model_copy(update={"text": ""}) for chunk in chunks))
        text = "".join(chunk.text for chunk in chunks)
        return [Generation(text=text, generation_info=told.generation_info)]


CHAT, COMPLETION = _Chat(), _Completion()


def kind_of(model: AnyModel) -> Kind:
    """What sort of model it is."""
    return CHAT if isinstance(model, BaseChatModel) else COMPLETION


def alike(model: Model, **replaced: Any) -> Model:
    """A second object of the model's class and state, some attributes of which are replaced.

    For one call: what the call writes to it is lost.
    """
    other = object.__new__(type(model))
    object.__setattr__(other, "__dict__", {**vars(model), **replaced})
    for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(other, name, getattr(model, name))
    return other


def name_of_run(run: Any) -> str | None:
    """The id that LangChain gives a message of this run which has none."""
    return f"{LC_ID_PREFIX}-{run.run_id}" if hasattr(run, "run_id") else None


def of_answer(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a stream that `invoke` would be given too."""
    return {name: value for name, value in given.items() if name not in _OF_STREAMS}


def _require_readable_calls(messages: Sequence[Any]) -> None:
    """LangChain mends the arguments of a streamed tool call where those of an `invoke` would be invalid."""
    calling = [m for m in messages if isinstance(m, AIMessageChunk) and m.tool_call_chunks]
    if not calling:
        return
    first, *others = calling
    for call in (first + others).tool_call_chunks:
        try:
            json.loads(call["args"] or "{}", strict=False)
        except ValueError:
            advice = "the model called a tool with arguments that do not parse"
            raise NotCacheable("invalid_tool_calls", advice) from None
