"""Repeat a stored response as the model would have given it: whole or streamed, with the same events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, Generic

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM

from ibidem.adapter.streams import keep_scope, split_text
from llama_index_ibidem.responses import Response, text_of


class _Zero(int):
    """A zero that is true. `TokenCountingHandler` takes a false count for unknown, and estimates instead."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Zero)

    __hash__ = int.__hash__


_NO_TOKENS = {"prompt_tokens": _Zero(), "completion_tokens": _Zero(), "total_tokens": _Zero()}


class Replay(Generic[Response]):
    """Repeats one hit. LlamaIndex's own decorators fire the events, as they do for the model.

    Handlers see token counts of zero that they do not take for unknown; the caller gets plain zeros.

    Args:
        callback_manager: The callback manager of the model.
        model: The model that events name.
        response: The stored response.
        span: Wraps what notifies in a span of LlamaIndex; by default the caller is in one.
    """

    rate_limiter = None  # no request is sent

    def __init__(
        self,
        callback_manager: CallbackManager,
        model: LLM,
        response: Response,
        *,
        span: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        self.callback_manager, self._model, self._span = callback_manager, model, span
        self._response: Response = response
        chat = isinstance(response, ChatResponse)
        self._decorated = llm_chat_callback() if chat else llm_completion_callback()

    def to_payload(self) -> dict[str, Any]:
        """Describe the model for events."""
        return self._model.to_payload()

    def to_dict(self) -> dict[str, Any]:
        """Describe the model for events of LlamaIndex before 0.14.23."""
        return self._model.to_dict()

    def whole(self, asked: Sequence[ChatMessage] | str, given: dict[str, Any]) -> Response:
        """Repeat the response to these messages, or to this prompt, with these arguments."""
        self._notify(_returning(self._with_counts(self._response)), asked, given)
        return self._response

    async def awhole(self, asked: Sequence[ChatMessage] | str, given: dict[str, Any]) -> Response:
        """As `whole`."""
        await self._notify(_areturning(self._with_counts(self._response)), asked, given)
        return self._response

    def stream(self, asked: Sequence[ChatMessage] | str, given: dict[str, Any]) -> Iterator[Response]:
        """As `whole`, streamed."""
        return self._plain(self._notify(_returning(self._chunks()), asked, given))

    async def astream(
        self, asked: Sequence[ChatMessage] | str, given: dict[str, Any]
    ) -> AsyncIterator[Response]:
        """As `stream`."""
        return self._aplain(await self._notify(_areturning(self._achunks()), asked, given))

    def _notify(self, endpoint: Callable[..., Any], asked: Any, given: dict[str, Any]) -> Any:
        repeat = partial(self._decorated(endpoint), self)
        return (repeat if self._span is None else self._span(repeat))(asked, **given)

    def _chunks(self) -> Iterator[Response]:
        yield from map(self._with_counts, chunks_of(self._response))

    async def _achunks(self) -> AsyncIterator[Response]:
        for chunk in chunks_of(self._response):
            yield self._with_counts(chunk)

    def _with_counts(self, response: Response) -> Response:
        return response.model_copy(update={"raw": {**(response.raw or {}), "usage": dict(_NO_TOKENS)}})

    def _plain(self, stream: Iterator[Response]) -> Iterator[Response]:
        for chunk in stream:
            yield chunk.model_copy(update={"raw": self._response.raw})

    async def _aplain(self, stream: AsyncIterator[Response]) -> AsyncIterator[Response]:
        async for chunk in stream:
            yield chunk.model_copy(update={"raw": self._response.raw})


def _returning(result: Any) -> Callable[..., Any]:
    """Return an endpoint that gives this result; `_areturning` an async one."""
    return lambda *args, **kwargs: result


def _areturning(result: Any) -> Callable[..., Any]:
    async def endpoint(*args: Any, **kwargs: Any) -> Any:
        return result

    return endpoint


def stream_of(text: str) -> Generator[str, None, None]:
    """Stream a stored text in the scope in force now."""
    return keep_scope(piece for piece in split_text(text))


def astream_of(text: str) -> AsyncGenerator[str, None]:
    """As `stream_of`, for async code."""

    async def pieces() -> AsyncGenerator[str, None]:
        for piece in split_text(text):
            yield piece

    return keep_scope(pieces())


def chunks_of(response: Response) -> Iterator[Response]:
    """Split a response into the chunks of a stream, some words each; the last chunk is the whole response."""
    *pieces, last = split_text(text_of(response)) or [""]
    said = ""
    for piece in pieces:
        said += piece
        yield _up_to(response, said, piece)
    yield response.model_copy(update={"delta": last})


def _up_to(response: Response, said: str, piece: str) -> Response:
    if isinstance(response, CompletionResponse):
        return response.model_copy(update={"text": said, "delta": piece})
    message = ChatMessage(said, role=response.message.role)
    return response.model_copy(update={"message": message, "delta": piece})
