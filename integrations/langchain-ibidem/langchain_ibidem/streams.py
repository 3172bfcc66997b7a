"""Streams of LangChain's models through the cache: replayed, or passed on and then stored.

LangChain looks up `invoke` and what streams inside it, but never `stream` and `astream`. These call `_stream`
or `_astream` of the model; here a stand-in is asked, for this one call, whose `_stream` knows the cache. All
else (callbacks, events, ids, the end of the stream) is LangChain's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.outputs import Generation

from ibidem._util.concurrency import in_thread
from ibidem.adapter.call import Inquiry
from ibidem.errors import NotCacheable
from ibidem.provenance import remember
from ibidem.scope import current, use_scope
from ibidem.types import Answer
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.callers import Caller, caller_of_stream, run_of_stream
from langchain_ibidem.codec import encode, finish_reason_of
from langchain_ibidem.form_names import made_up_in, to_store
from langchain_ibidem.forms import form_of, require_form
from langchain_ibidem.implicit import UNFINISHED
from langchain_ibidem.kinds import AnyModel, Chunk, Kind, Model, alike, kind_of, name_of_run, of_answer

_BEGIN, _CHUNKS, _CLOSE = "begin a stream", "read a chunk of a stream", "close a stream of the model"
_OF_RUNNABLES = frozenset(("input", "config", "stop"))  # arguments that are no parameters of the model


def through_cache(model: Model, given: Mapping[str, Any], *, in_async: bool) -> Model:
    """What to ask instead of the model for a stream: a stand-in, or itself if the cache has no part in it.

    `given` are the arguments of the call.
    """
    cache = _cache_of(model)
    if cache is None or "_stream" in vars(model):  # itself a stand-in
        return model
    return cache._faults.attempt(_BEGIN, lambda: _begun(model, cache, given, in_async)) or model


def through_cache_by_events(model: Model, given: Mapping[str, Any]) -> Model:
    """The same for LangChain's newer protocol, which calls `_stream` unless the model speaks it itself."""
    cache = _cache_of(model)
    speaks = any(hasattr(model, f"_{a}stream_chat_model_events") for a in ("", "a"))
    if cache is None or speaks or "_stream" in vars(model):
        return model
    return cache._faults.attempt(_BEGIN, lambda: _stand_in(model, cache, kind_of(model))) or model


def _begun(model: Model, cache: IbidemCache, given: Mapping[str, Any], in_async: bool) -> Model:
    kind = kind_of(model)
    parameters = {name: value for name, value in given.items() if name not in _OF_RUNNABLES}
    streams = kind.streams(model, parameters, in_async=in_async)
    return _stand_in(model, cache, kind) if streams else model


def _cache_of(model: AnyModel) -> IbidemCache | None:
    """The cache that `invoke` would ask, by LangChain's rules, if it is ours."""
    if model.cache is False:
        return None
    cache = model.cache if isinstance(model.cache, BaseCache) else get_llm_cache()
    return cache if isinstance(cache, IbidemCache) else None


def _stand_in(model: Model, cache: IbidemCache, kind: Kind) -> Model:
    asked = _Asked(model, cache, kind)
    # As for `invoke`, the rate limiter is for what reaches the provider.
    unlimited = {"rate_limiter": None} if "rate_limiter" in vars(model) else {}
    _ = model._serialized  # computed once per model, not once per stream
    return alike(model, _stream=asked.stream, _astream=asked.astream, **unlimited)


class _Asked:
    """A model and the cache that is asked first: the `_stream` and `_astream` of a stand-in.

    Made where a stream begins: the scope is that of whoever began it, who need not be its reader.
    """

    def __init__(self, model: Any, cache: IbidemCache, kind: Kind) -> None:
        self._model, self._cache, self._kind, self._scope = model, cache, kind, current()
        self._limiter = getattr(model, "rate_limiter", None)

    def stream(self, asked: Any, stop: list[str] | None = None, **given: Any) -> Iterator[Chunk]:
        """As the model's `_stream`."""
        run, inquiry = self._inquiry(asked, stop, given)
        with use_scope(self._scope):
            return inquiry.ended_with(self._stream(run, inquiry, asked, stop, given))

    def astream(self, asked: Any, stop: list[str] | None = None, **given: Any) -> AsyncIterator[Chunk]:
        """As the model's `_astream`."""
        run, inquiry = self._inquiry(asked, stop, given)
        with use_scope(self._scope):
            return inquiry.ended_with(self._astream(run, inquiry, asked, stop, given))

    def _inquiry(
        self, asked: Any, stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[Any, Inquiry[list[Chunk]]]:
        run = given.get("run_manager") or run_of_stream(self)  # now: later its frame is gone

        def described() -> tuple[str, str, Caller]:
            told = self._kind.described(self._model, asked, stop, given)
            return *told, caller_of_stream(self._model, run, of_answer(given), stop)

        return run, self._cache._inquiry(
            described, self._replayed, form_of(given), made_up_in(given), self._scope
        )

    def _replayed(self, found: list[Generation]) -> list[Chunk] | None:
        """Made before one is sent: if it fails, the model is asked. No stream brings several answers."""
        return list(self._kind.chunks(found[0])) if len(found) == 1 else None

    def _stream(
        self,
        run: Any,
        inquiry: Inquiry[list[Chunk]],
        asked: Any,
        stop: list[str] | None,
        given: dict[str, Any],
    ) -> Generator[Chunk, None, None]:
        if (found := inquiry.find()) is not None:
            for chunk in found:
                if manager := given.get("run_manager"):
                    manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
            return
        with inquiry:
            if self._limiter:
                self._limiter.acquire(blocking=True)
            record = _Record(self._model, self._cache, self._kind, run, given)
            chunks = self._model._stream(asked, stop=stop, **given)
            try:
                for chunk in chunks:
                    record.add(chunk)
                    yield chunk
            finally:
                if close := getattr(chunks, "close", None):
                    self._cache._faults.attempt(_CLOSE, close)
            record.keep(inquiry)

    async def _astream(
        self,
        run: Any,
        inquiry: Inquiry[list[Chunk]],
        asked: Any,
        stop: list[str] | None,
        given: dict[str, Any],
    ) -> AsyncGenerator[Chunk, None]:
        if (found := await inquiry.afind()) is not None:
            for chunk in found:
                if manager := given.get("run_manager"):
                    await manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
            return
        with inquiry:
            if self._limiter:
                await self._limiter.aacquire(blocking=True)
            record = _Record(self._model, self._cache, self._kind, run, given)
            chunks = self._model._astream(asked, stop=stop, **given)
            try:
                async for chunk in chunks:
                    record.add(chunk)
                    yield chunk
            finally:
                await self._aclose(chunks)
            await in_thread(record.keep, inquiry)

    async def _aclose(self, chunks: Any) -> None:
        try:
            if close := getattr(chunks, "aclose", None):
                await close()
        except Exception as error:
            self._cache._faults.note(_CLOSE, error)


class _Record:
    """What a model sends in a run, as it sent it."""

    def __init__(
        self, model: Any, cache: IbidemCache, kind: Kind, run: Any, given: Mapping[str, Any]
    ) -> None:
        self._model, self._cache, self._kind, self._run = model, cache, kind, run
        self._form, self._names = form_of(given), made_up_in(given)
        self._chunks: list[Chunk] = []
        self._readable = True
        self._started = time.monotonic()

    def add(self, chunk: Chunk) -> None:
        """One more chunk. Never raises."""
        try:
            self._chunks.append(self._kind.copied(chunk))
        except Exception as error:
            self._readable = False
            self._cache._faults.note(_CHUNKS, error)

    def keep(self, inquiry: Inquiry[list[Chunk]]) -> None:
        """Store what has come, which is all; `forget` knows LangChain's message of it by the id."""
        inquiry.keep(self._answer)
        if inquiry.stored:
            told = {name_of_run(self._run), *map(self._kind.id_of, self._chunks)}
            remember(None, inquiry.stored, names=told)

    def _answer(self) -> Answer:
        """The answer to store.

        Raises:
            NotCacheable: It must not be repeated, or it is not known whether it is all that the model said.
        """
        if not (self._chunks and self._readable):
            raise NotCacheable("unclear_stream", "a stream held nothing, or chunks that cannot be copied")
        seconds = time.monotonic() - self._started
        marked = any(map(self._kind.is_last, self._chunks))
        generations: Sequence[Generation] = self._kind.whole(self._model, self._chunks)
        if not (marked or finish_reason_of(generations)):
            raise NotCacheable("unfinished_stream", UNFINISHED)
        require_form(self._form, generations)
        return to_store(encode(generations, seconds=seconds), self._names)
