"""Lead calls of a model's endpoints through a cache: repeated with the model's events, or asked and stored.

`CachedLLM` leads the calls of the model it wraps, `llama_index_ibidem.serving` those of models whose callback
manager has a handler.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation.span import active_span_id

from ibidem._util.concurrency import ForkSafeLock
from ibidem.adapter.call import AdapterCache, CachedCall, attempt
from ibidem.adapter.streams import astep_within, step_within
from ibidem.types import Answer, Request
from llama_index_ibidem.replay import Replay
from llama_index_ibidem.request import RequestBuilder
from llama_index_ibidem.responses import ModelResponse, ResponseAccumulator, ResponseMetadata, decode, encode
from llama_index_ibidem.spans import span_watcher


@dataclass(frozen=True, slots=True, eq=False)
class EndpointCall:
    """A call of an endpoint of a model.

    Attributes:
        endpoint: Its name.
        model: The model.
        asked: The messages, or the prompt.
        given: The other arguments; `formatted` only if it is true, since models need not know it.
        ask: Calls the endpoint itself.
        replay: Makes what repeats a stored response as the model would give it.
    """

    endpoint: str
    model: LLM
    asked: Any
    given: dict[str, Any]
    ask: Callable[[], Any]
    replay: Callable[[ModelResponse], Replay[Any]]

    def request(self, requests: RequestBuilder) -> Request:
        """Build the request for the cache.

        Raises:
            NotCacheable: Something that the answer depends on cannot be compared.
        """
        if self.kind is ChatResponse:
            return requests.of_chat(self.model, self.asked, self.given)
        given = {name: value for name, value in self.given.items() if name != "formatted"}
        return requests.of_completion(self.model, self.asked, "formatted" in self.given, given)

    @property
    def kind(self) -> Any:
        """The class of the response."""
        return ChatResponse if "chat" in self.endpoint else CompletionResponse

    @property
    def in_async(self) -> bool:
        """Whether the endpoint is for async code."""
        return self.endpoint.startswith("a")


# Endpoints call each other: `achat` may call `chat`, and that `complete`. All of it is one call.
_asking: ContextVar[bool] = ContextVar("ibidem_asking_model", default=False)
_lock = ForkSafeLock()
_calls: dict[int, list[EndpointCall]] = {}  # whose models are being asked, by the model


def is_asking() -> bool:
    """Return whether this is the code of a model that is being asked because its cache had no answer."""
    return _asking.get()


def is_nested(call: EndpointCall) -> bool:
    """Return whether a call is part of another, which may have made it in a thread of its own.

    A thread or an event loop that a model starts does not know what it was started for, but it is outside of
    all spans, and asks the same of the same model in the other kind of code.
    """
    if is_asking():
        return True
    if active_span_id.get() is not None:
        return False
    with _lock:
        others = [each for each in _calls.get(id(call.model), ()) if each.in_async is not call.in_async]
    return any(each.asked is call.asked or each.asked == call.asked for each in others)


@contextmanager
def _asks(call: EndpointCall) -> Iterator[None]:
    """Note that the model is being asked."""
    number, token = id(call.model), _asking.set(True)
    with _lock:
        _calls.setdefault(number, []).append(call)
    try:
        yield
    finally:
        with _lock:
            _calls[number].remove(call)
            if not _calls[number]:
                del _calls[number]
        with suppress(ValueError):  # a stream that was abandoned is closed in another context
            _asking.reset(token)


class CachedEndpoints:
    """The endpoints of models as a cache answers them.

    Args:
        adapter: The cache.
        requests: Builds the requests.
    """

    def __init__(self, adapter: AdapterCache, requests: RequestBuilder) -> None:
        self.adapter, self.requests = adapter, requests

    def answer(self, call: EndpointCall) -> Any:
        """Return what the endpoint returns: a response, a stream, or a coroutine for one of them."""
        if call.in_async:
            return self._astream(call) if "stream" in call.endpoint else self._awhole(call)
        return self._stream(call) if "stream" in call.endpoint else self._whole(call)

    def _whole(self, call: EndpointCall) -> Any:
        cached = self._begin(call)
        found = cached.lookup()
        self._record(cached)
        if found is not None:
            return call.replay(found).whole(call.asked, call.given)
        with cached:
            with _asks(call):
                response = call.ask()
            cached.store(partial(self._answer, call, cached, response), response)
            return response

    async def _awhole(self, call: EndpointCall) -> Any:
        cached = self._begin(call)
        found = await cached.alookup()
        self._record(cached)
        if found is not None:
            return await call.replay(found).awhole(call.asked, call.given)
        with cached:
            with _asks(call):
                response = await call.ask()
            await cached.astore(partial(self._answer, call, cached, response), response)
            return response

    def _stream(self, call: EndpointCall) -> Iterator[Any]:
        """The model's answer is stored when its last chunk was read."""
        cached = self._begin(call)
        found = cached.lookup()
        self._record(cached)
        if found is not None:
            return cached.replay(call.replay(found).stream(call.asked, call.given))
        with cached:
            with _asks(call):
                stream = call.ask()
            return cached.record(step_within(stream, partial(_asks, call)), self._accumulator(call, cached))

    async def _astream(self, call: EndpointCall) -> AsyncIterator[Any]:
        cached = self._begin(call)
        found = await cached.alookup()
        self._record(cached)
        if found is not None:
            return cached.replay(await call.replay(found).astream(call.asked, call.given))
        with cached:
            with _asks(call):
                stream = await call.ask()
            return cached.arecord(astep_within(stream, partial(_asks, call)), self._accumulator(call, cached))

    def _record(self, cached: CachedCall[Any]) -> None:
        """Let the responses of the engines around the call tell of it."""
        attempt(self.adapter.faults, "mark a response", partial(span_watcher.record_lookup, cached.hit))

    def _begin(self, call: EndpointCall) -> CachedCall[Any]:
        build = partial(call.request, self.requests)
        return CachedCall(self.adapter, build, lambda hit: decode(hit, call.kind))

    def _answer(
        self,
        call: EndpointCall,
        cached: CachedCall[Any],
        response: ModelResponse,
        metadata: ResponseMetadata | None = None,
    ) -> Answer:
        metadata = metadata or ResponseMetadata.of(response).finalize()
        return encode(response, metadata, model=call.model.metadata.model_name, seconds=cached.seconds)

    def _accumulator(self, call: EndpointCall, cached: CachedCall[Any]) -> ResponseAccumulator[Any]:
        return ResponseAccumulator(
            partial(self._answer, call, cached),
            complete=not getattr(call.model, "logprobs", None),  # whole responses hold them, streams may not
        )


def with_formatted(formatted: object, given: dict[str, Any]) -> dict[str, Any]:
    """Add the argument unless it has its default value."""
    return {"formatted": True, **given} if formatted else given
