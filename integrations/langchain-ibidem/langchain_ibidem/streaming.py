"""Lead the streams of LangChain's models through the cache: replayed, or passed on and then stored.

LangChain looks up `invoke` and what streams inside it, but never `stream` and `astream`. These call `_stream`
or `_astream` of the model; here a copy of the model is asked, for this one call, whose `_stream` knows the
cache. All else (callbacks, events, ids, the end of the stream) is LangChain's.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial, reduce
from operator import add
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, Generation, GenerationChunk
from langchain_core.runnables import ensure_config

from ibidem.adapter.call import CachedCall
from ibidem.errors import NotCacheable
from ibidem.provenance import remember
from ibidem.scope import current, use_scope
from ibidem.types import Answer, Hit, Stored
from langchain_ibidem.cache import UNFINISHED, IbidemCache
from langchain_ibidem.call import ModelCall, cache_of, describe_chat, describe_completion
from langchain_ibidem.messages import finish_reason_of
from langchain_ibidem.replay import Chunk, chat_chunks, completion_chunks, run_message_id
from langchain_ibidem.response_format import ResponseFormat

AnyModel = BaseChatModel | BaseLLM
Model = TypeVar("Model", bound=AnyModel)

_BEGIN = "begin a stream"
# Arguments of a stream that say how an answer comes, not what it says: `invoke` is not given them.
_OF_STREAMS = frozenset(("run_manager", "stream", "stream_usage", "stream_options"))
_MUTABLE = ("content", "additional_kwargs", "response_metadata", "tool_call_chunks", "usage_metadata")


def cached_model(model: Model, config: Any, given: Mapping[str, Any], *, in_async: bool) -> Model:
    """Return what to ask for a stream: a copy that asks the cache first, or the model itself.

    Args:
        model: The model.
        config: The configuration of the call.
        given: Its other arguments.
        in_async: Whether `astream` is called, not `stream`.
    """
    cache = _cache_for_streams(model)
    if cache is None:
        return model

    def begun() -> Model:
        kind = kind_of(model)
        parameters = {name: value for name, value in given.items() if name != "stop"}
        if not kind.streams(model, parameters, in_async=in_async):
            return model  # LangChain calls `invoke`
        return _copy_that_asks(model, cache, kind, config)

    return cache._attempt(_BEGIN, begun) or model


def cached_event_model(model: Model, config: Any, given: Mapping[str, Any]) -> Model:
    """As `cached_model` for LangChain's newer protocol: `_stream`, unless the model speaks it itself."""
    cache = _cache_for_streams(model)
    if cache is None or any(hasattr(model, f"_{a}stream_chat_model_events") for a in ("", "a")):
        return model
    return cache._attempt(_BEGIN, partial(_copy_that_asks, model, cache, kind_of(model), config)) or model


def _cache_for_streams(model: AnyModel) -> IbidemCache | None:
    cache = cache_of(model)
    is_copy = "_stream" in vars(model)
    return cache if isinstance(cache, IbidemCache) and not is_copy else None


def _copy_that_asks(model: Model, cache: IbidemCache, kind: ModelKind, config: Any) -> Model:
    stream = _CachedStream(model, cache, kind, config)
    # As for `invoke`, the rate limiter is for what reaches the provider.
    unlimited = {"rate_limiter": None} if "rate_limiter" in vars(model) else {}
    _ = model._serialized  # computed once per model, not once per stream
    return copy_with(model, _stream=stream.stream, _astream=stream.astream, **unlimited)


class _CachedStream:
    """The `_stream` and `_astream` of a model that asks the cache first.

    Made where a stream begins: the scope is that of whoever began it, who need not be its reader.
    """

    def __init__(self, model: Any, cache: IbidemCache, kind: ModelKind, config: Any) -> None:
        self._model, self._cache, self._kind = model, cache, kind
        self._scope, self._config = current(), ensure_config(config)
        self._limiter = getattr(model, "rate_limiter", None)

    def stream(self, asked: Any, stop: list[str] | None = None, **given: Any) -> Iterator[Chunk]:
        """As the model's `_stream`."""
        call, recording = self._begun(asked, stop, given)
        chunks = call.lookup()
        with call, use_scope(self._scope):
            if chunks is not None:
                return call.replay(_repeated(chunks, given.get("run_manager")))
            answering = self._answering(recording, asked, stop, given)
            return call.record(answering, recording, recording.attach_source)

    async def astream(
        self, asked: Any, stop: list[str] | None = None, **given: Any
    ) -> AsyncGenerator[Chunk, None]:
        """As the model's `_astream`."""
        call, recording = self._begun(asked, stop, given)
        chunks = await call.alookup()
        with call, use_scope(self._scope):
            if chunks is not None:
                read = call.replay(_arepeated(chunks, given.get("run_manager")))
            else:
                answering = self._aanswering(recording, asked, stop, given)
                read = call.arecord(answering, recording, recording.attach_source)
        try:
            async for chunk in read:
                yield chunk
        finally:
            await read.aclose()

    def _begun(
        self, asked: Any, stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[CachedCall[list[Chunk]], _Recording]:
        run, form = given.get("run_manager"), ResponseFormat.of(given)

        def describe_call() -> tuple[str, str, ModelCall]:
            prompt, llm_string = self._kind.describe(self._model, asked, stop, given)
            parameters = call_kwargs(given)
            if run is not None:
                return prompt, llm_string, ModelCall.of(self._model, run, parameters, stop)
            return prompt, llm_string, ModelCall.in_config(self._model, self._config, parameters, stop)

        def read_hit(hit: Hit) -> list[Chunk] | None:
            """All chunks before one is sent: if that fails, the model is asked. A stream has one answer."""
            found = form.to_generations(hit)
            return list(self._kind.chunks(found[0])) if len(found) == 1 else None

        call = self._cache.cached_stream(describe_call, read_hit, form, self._scope)
        return call, _Recording(self._model, self._kind, form, run)

    def _answering(
        self, recording: _Recording, asked: Any, stop: list[str] | None, given: dict[str, Any]
    ) -> Generator[Chunk, None, None]:
        if self._limiter:
            self._limiter.acquire(blocking=True)
        recording.started = time.monotonic()
        yield from self._model._stream(asked, stop=stop, **given)

    async def _aanswering(
        self, recording: _Recording, asked: Any, stop: list[str] | None, given: dict[str, Any]
    ) -> AsyncGenerator[Chunk, None]:
        if self._limiter:
            await self._limiter.aacquire(blocking=True)
        recording.started = time.monotonic()
        chunks = self._model._astream(asked, stop=stop, **given)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            if close := getattr(chunks, "aclose", None):
                await close()


def _repeated(chunks: Sequence[Chunk], run: Any) -> Generator[Chunk, None, None]:
    for chunk in chunks:
        if run is not None:
            run.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk


async def _arepeated(chunks: Sequence[Chunk], run: Any) -> AsyncGenerator[Chunk, None]:
    for chunk in chunks:
        if run is not None:
            await run.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk


class _Recording:
    """The chunks of one stream as the model sent them: a `StreamAccumulator`."""

    def __init__(self, model: Any, kind: ModelKind, form: ResponseFormat, run: Any) -> None:
        self._model, self._kind, self._form, self._run = model, kind, form, run
        self._chunks: list[Chunk] = []
        self._last: Chunk | None = None
        self.started = 0.0

    def add(self, chunk: Chunk) -> None:
        """Take one chunk."""
        self._chunks.append(self._kind.copy(chunk))
        self._last = chunk

    def answer(self) -> Answer:
        """Return the answer to store.

        Raises:
            NotCacheable: It must not be repeated, or it is not known whether it is all that the model said.
        """
        if not self._chunks:
            raise NotCacheable("unclear_stream", "a stream held nothing")
        seconds = time.monotonic() - self.started
        marked = any(map(self._kind.is_last, self._chunks))
        generations = self._kind.merge(self._model, self._chunks)
        if not (marked or finish_reason_of(generations)):
            raise NotCacheable("unfinished_stream", UNFINISHED)
        return self._form.to_answer(generations, seconds)

    def attach_source(self, stored: Stored) -> None:
        """Let `ibidem.forget` find what was stored by the ids of LangChain's message.

        One of them is that of the run, which LangChain gives to chunks without an id as it passes them on.
        """
        names = {run_message_id(self._run), *map(self._kind.id_of, self._chunks)}
        remember(None, stored, names=names | ({self._kind.id_of(self._last)} if self._last else set()))


class ModelKind(ABC):
    """What differs between streams of chat models and of completion models."""

    @abstractmethod
    def streams(self, model: Any, given: Mapping[str, Any], *, in_async: bool) -> bool:
        """Whether `stream` with these arguments calls `_stream`, and not `invoke`."""

    @abstractmethod
    def describe(
        self, model: Any, asked: Any, stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[str, str]:
        """Return the two strings that LangChain would hand a cache for the same call of `invoke`."""

    @abstractmethod
    def chunks(self, generation: Generation) -> Iterator[Chunk]:
        """Split a stored answer into chunks.

        Raises:
            Exception: It is not one of such a model.
        """

    @abstractmethod
    def copy(self, chunk: Any) -> Chunk:
        """Copy the chunk as it is now; the program may change it."""

    @abstractmethod
    def is_last(self, chunk: Any) -> bool:
        """Whether the model marked the chunk as the last one."""

    @abstractmethod
    def id_of(self, chunk: Any) -> str | None:
        """Return the id of the message which the chunk is a part of, if it has one."""

    @abstractmethod
    def merge(self, model: Any, chunks: Sequence[Any]) -> Sequence[Generation]:
        """Return what LangChain makes of the chunks.

        Raises:
            NotCacheable: They do not add up to what the model meant.
        """


class _Chat(ModelKind):
    def streams(self, model: BaseChatModel, given: Mapping[str, Any], *, in_async: bool) -> bool:
        return model._should_stream(async_api=in_async, **{**given, "stream": True})

    def describe(
        self, model: BaseChatModel, asked: Any, stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[str, str]:
        return describe_chat(model, asked, stop, call_kwargs(given))

    def chunks(self, generation: Generation) -> Iterator[Chunk]:
        return chat_chunks(generation)

    def copy(self, chunk: ChatGenerationChunk) -> Chunk:
        message = chunk.message
        held = {name: getattr(message, name, None) for name in _MUTABLE}
        changed = {k: deepcopy(v) for k, v in held.items() if v and not isinstance(v, str)}
        return chunk.model_copy(update={"message": message.model_copy(update=changed)})

    def is_last(self, chunk: ChatGenerationChunk) -> bool:
        return getattr(chunk.message, "chunk_position", None) == "last"

    def id_of(self, chunk: ChatGenerationChunk) -> str | None:
        return chunk.message.id

    def merge(self, model: BaseChatModel, chunks: Sequence[ChatGenerationChunk]) -> Sequence[Generation]:
        _require_readable_calls([chunk.message for chunk in chunks])
        # LangChain itself does it: as it does where a model streams for `invoke`.
        replayed = copy_with(
            model,
            cache=False,
            rate_limiter=None,
            _stream=lambda *_, **__: iter(chunks),
            _should_stream=lambda **_: True,
            _should_use_protocol_streaming=lambda **_: False,
        )
        return replayed._generate_with_cache([]).generations


class _Completion(ModelKind):
    def streams(self, model: BaseLLM, given: Mapping[str, Any], *, in_async: bool) -> bool:
        kind = type(model)
        return kind._stream is not BaseLLM._stream or (in_async and kind._astream is not BaseLLM._astream)

    def describe(
        self, model: BaseLLM, asked: str, stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[str, str]:
        return asked, describe_completion(model, stop)

    def chunks(self, generation: Generation) -> Iterator[Chunk]:
        return completion_chunks(generation)

    def copy(self, chunk: GenerationChunk) -> Chunk:
        return chunk.model_copy(deep=True)

    def is_last(self, chunk: GenerationChunk) -> bool:
        return False

    def id_of(self, chunk: GenerationChunk) -> str | None:
        return None

    def merge(self, model: BaseLLM, chunks: Sequence[GenerationChunk]) -> Sequence[Generation]:
        told = reduce(add, (chunk.model_copy(update={"text": ""}) for chunk in chunks))
        text = "".join(chunk.text for chunk in chunks)
        return [Generation(text=text, generation_info=told.generation_info)]


CHAT, COMPLETION = _Chat(), _Completion()


def kind_of(model: AnyModel) -> ModelKind:
    """Return the kind of the model."""
    return CHAT if isinstance(model, BaseChatModel) else COMPLETION


def copy_with(model: Model, **attributes: Any) -> Model:
    """Copy the model for one call, with some attributes replaced: what the call writes to it is lost."""
    other = object.__new__(type(model))
    object.__setattr__(other, "__dict__", {**vars(model), **attributes})
    for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(other, name, getattr(model, name))
    return other


def call_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a stream that `invoke` would be given too."""
    return {name: value for name, value in given.items() if name not in _OF_STREAMS}


def _require_readable_calls(messages: Sequence[Any]) -> None:
    """Reject arguments of a streamed tool call that LangChain mends: of an `invoke` they are invalid."""
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
