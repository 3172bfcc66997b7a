"""Lead the streams of LangChain's models through the cache: replayed, or passed on and then stored.

LangChain looks up `invoke` and what streams inside it, but never `stream` and `astream`. These call `_stream`
or `_astream` of the model. Patched, they ask a copy of the model, made for this one call, whose `_stream`
knows the cache. All else (callbacks, events, ids, the end of the stream) is LangChain's.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial, reduce, wraps
from operator import add
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, Generation
from langchain_core.runnables import ensure_config

from ibidem.adapter.call import CachedCall, attempt
from ibidem.errors import NotCacheable
from ibidem.provenance import remember
from ibidem.scope import current, use_scope
from ibidem.types import Answer, Hit, Request, Stored
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.call import Method, MethodPatches, ModelCall, cache_of, cache_strings, run_message_id
from langchain_ibidem.messages import Chunk, chat_chunks, completion_chunks, decode, require_finished
from langchain_ibidem.model_identity import ResponseFormat

AnyModel = BaseChatModel | BaseLLM
Model = TypeVar("Model", bound=AnyModel)

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
    return _copy_that_asks(model, config, partial(_calls_stream, model, given, in_async=in_async))


def cached_event_model(model: Model, config: Any, given: Mapping[str, Any]) -> Model:
    """As `cached_model` for LangChain's newer protocol: `_stream`, unless the model speaks it itself."""
    speaks = any(hasattr(model, f"_{a}stream_chat_model_events") for a in ("", "a"))
    return _copy_that_asks(model, config, lambda: not speaks)


def _copy_that_asks(model: Model, config: Any, applies: Callable[[], bool]) -> Model:
    """Return a copy of the model that asks its cache, if that is ours and the case applies."""
    cache = cache_of(model)
    if not isinstance(cache, IbidemCache) or "_stream" in vars(model):  # it is such a copy
        return model

    def copy() -> Model:
        if not applies():
            return model
        stream = _CachedStream(model, cache, config)
        # As for `invoke`, the rate limiter is for what reaches the provider.
        unlimited = {"rate_limiter": None} if "rate_limiter" in vars(model) else {}
        _ = model._serialized  # computed once per model, not once per stream
        return _copy_with(model, _stream=stream.stream, _astream=stream.astream, **unlimited)

    return attempt(cache._adapter.faults, "begin a stream", copy) or model


def _calls_stream(model: AnyModel, given: Mapping[str, Any], *, in_async: bool) -> bool:
    """Whether `stream` with these arguments calls `_stream`, and not `invoke`."""
    if isinstance(model, BaseChatModel):
        parameters = {name: value for name, value in given.items() if name != "stop"}
        return model._should_stream(async_api=in_async, **{**parameters, "stream": True})
    kind = type(model)
    return kind._stream is not BaseLLM._stream or (in_async and kind._astream is not BaseLLM._astream)


def _copy_with(model: Model, **attributes: Any) -> Model:
    """Copy the model for one call, with some attributes replaced: what the call writes to it is lost."""
    other = object.__new__(type(model))
    object.__setattr__(other, "__dict__", {**vars(model), **attributes})
    for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(other, name, getattr(model, name))
    return other


def _asking(cached: Callable[..., Any]) -> Callable[[Method], Method]:
    """Wrap a method that begins a stream: it is called on what `cached` returns for the model."""

    def wrap(method: Method) -> Method:
        @wraps(method)
        def begin(model: Any, input: Any, config: Any = None, **given: Any) -> Any:
            asked = cached(model, config, given) if STREAMS.active else model
            return method(asked, input, config, **given)

        return begin

    return wrap


# The last two are `stream_events` in version 3, which newer langchain-core has.
_BEGINNINGS = {
    "stream": _asking(partial(cached_model, in_async=False)),
    "astream": _asking(partial(cached_model, in_async=True)),
    "_chat_model_stream_v3": _asking(cached_event_model),
    "_achat_model_stream_v3": _asking(cached_event_model),
}
STREAMS = MethodPatches(
    {(kind, name): wrap for kind in (BaseChatModel, BaseLLM) for name, wrap in _BEGINNINGS.items()}
)


class _CachedStream:
    """The `_stream` and `_astream` of a model that asks the cache first.

    Made where a stream begins: the scope is that of whoever began it, who need not be its reader.
    """

    def __init__(self, model: Any, cache: IbidemCache, config: Any) -> None:
        self._model, self._cache = model, cache
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
        self, asked: Any, stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[CachedCall[list[Chunk]], _Recording]:
        run, form = given.get("run_manager"), ResponseFormat.of(given)
        parameters = {name: value for name, value in given.items() if name not in _OF_STREAMS}

        def request() -> Request:
            with use_scope(self._scope):
                if run is not None:
                    call = ModelCall(self._model, run, parameters, stop)
                else:
                    call = ModelCall.in_config(self._model, self._config, parameters, stop)
                strings = cache_strings(self._model, asked, stop, parameters)
                return self._cache._requests.build(*strings, call)

        def read_hit(hit: Hit) -> list[Chunk] | None:
            """All chunks before one is sent: if that fails, the model is asked. A stream has one answer."""
            found = decode(hit, form.names)
            split = completion_chunks if isinstance(self._model, BaseLLM) else chat_chunks
            return [*split(found[0])] if len(found) == 1 else None

        call = CachedCall(self._cache._adapter, request, read_hit, form.objection)
        return call, _Recording(self._model, form, run)

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

    def __init__(self, model: Any, form: ResponseFormat, run: Any) -> None:
        self._model, self._form, self._run = model, form, run
        self._chunks: list[Chunk] = []
        self._last: Chunk | None = None
        self.started = 0.0

    def add(self, chunk: Chunk) -> None:
        """Take one chunk."""
        self._chunks.append(_copy_of(chunk))
        self._last = chunk

    def answer(self) -> Answer:
        """Return the answer to store.

        Raises:
            NotCacheable: It must not be repeated, or it is not known whether it is all that the model said.
        """
        if not self._chunks:
            raise NotCacheable("unclear_stream", "a stream held nothing")
        seconds = time.monotonic() - self.started
        marked = any(_of_message(chunk, "chunk_position") == "last" for chunk in self._chunks)
        generations = _merged(self._model, self._chunks)
        if not marked:
            require_finished(generations)
        return self._form.to_answer(generations, seconds)

    def attach_source(self, stored: Stored) -> None:
        """Let `ibidem.forget` find what was stored by the ids of LangChain's message.

        One of them is that of the run, which LangChain gives to chunks without an id as it passes them on.
        """
        ids = {_of_message(chunk, "id") for chunk in (*self._chunks, self._last)}
        remember(None, stored, names=ids | {run_message_id(self._run)})


def _of_message(chunk: Chunk | None, name: str) -> Any:
    return getattr(getattr(chunk, "message", None), name, None)


def _copy_of(chunk: Chunk) -> Chunk:
    """Copy the chunk as it is now; the program may change it."""
    if not isinstance(chunk, ChatGenerationChunk):
        return chunk.model_copy(deep=True)
    message = chunk.message
    held = {name: getattr(message, name, None) for name in _MUTABLE}
    changed = {name: deepcopy(value) for name, value in held.items() if value and not isinstance(value, str)}
    return chunk.model_copy(update={"message": message.model_copy(update=changed)})


def _merged(model: AnyModel, chunks: Sequence[Any]) -> Sequence[Generation]:
    """Return what LangChain makes of the chunks.

    Raises:
        NotCacheable: They do not add up to what the model meant.
    """
    if isinstance(model, BaseLLM):
        told = reduce(add, (chunk.model_copy(update={"text": ""}) for chunk in chunks))
        text = "".join(chunk.text for chunk in chunks)
        return [Generation(text=text, generation_info=told.generation_info)]
    _require_readable_calls([chunk.message for chunk in chunks])
    # LangChain itself does it: as it does where a model streams for `invoke`.
    replayed = _copy_with(
        model,
        cache=False,
        rate_limiter=None,
        _stream=lambda *_, **__: iter(chunks),
        _should_stream=lambda **_: True,
        _should_use_protocol_streaming=lambda **_: False,
    )
    return replayed._generate_with_cache([]).generations


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
