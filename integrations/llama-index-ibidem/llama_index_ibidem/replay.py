"""A stored response as the model would have given it: at once or in pieces, with the same events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic
from weakref import WeakKeyDictionary

from llama_index.core.base.llms.types import ChatMessage, CompletionResponse
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from ibidem.adapter.chunks import split_text
from ibidem.adapter.stream_scope import keep_scope
from llama_index_ibidem.codec import Response, text_of

if TYPE_CHECKING:
    from llama_index_ibidem.llm import CachedLLM


class _Nothing(int):
    """A count of 0 that says so. `TokenCountingHandler` takes a 0 for "unknown" and estimates instead."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Nothing)

    __hash__ = int.__hash__


_COUNTED = {"prompt_tokens": _Nothing(), "completion_tokens": _Nothing(), "total_tokens": _Nothing()}


class Replay(Generic[Response]):
    """One hit. LlamaIndex's own decorators fire the events, as they do for the model.

    Handlers are told of no tokens in a form that they believe; the caller gets plain zeros.
    """

    rate_limiter = None  # nothing is sent to anybody

    def __init__(self, llm: CachedLLM, response: Response) -> None:
        self.callback_manager = llm.callback_manager
        self._llm = llm
        self._response: Response = response

    def to_payload(self) -> dict[str, Any]:
        """What events tell of the model."""
        return self._llm.to_payload()

    def to_dict(self) -> dict[str, Any]:
        """What events told of it before LlamaIndex 0.14.23."""
        return self._llm.llm.to_dict()

    def chat(self, messages: Sequence[ChatMessage], **given: Any) -> Response:
        """As the model's `chat`."""
        self._chat(messages, **given)
        return self._response

    async def achat(self, messages: Sequence[ChatMessage], **given: Any) -> Response:
        """As the model's `achat`."""
        await self._achat(messages, **given)
        return self._response

    def stream_chat(self, messages: Sequence[ChatMessage], **given: Any) -> Iterator[Response]:
        """As the model's `stream_chat`."""
        return self._plain(self._stream_chat(messages, **given))

    async def astream_chat(self, messages: Sequence[ChatMessage], **given: Any) -> AsyncIterator[Response]:
        """As the model's `astream_chat`."""
        return self._aplain(await self._astream_chat(messages, **given))

    def complete(self, prompt: str, **given: Any) -> Response:
        """As the model's `complete`."""
        self._complete(prompt, **given)
        return self._response

    async def acomplete(self, prompt: str, **given: Any) -> Response:
        """As the model's `acomplete`."""
        await self._acomplete(prompt, **given)
        return self._response

    def stream_complete(self, prompt: str, **given: Any) -> Iterator[Response]:
        """As the model's `stream_complete`."""
        return self._plain(self._stream_complete(prompt, **given))

    async def astream_complete(self, prompt: str, **given: Any) -> AsyncIterator[Response]:
        """As the model's `astream_complete`."""
        return self._aplain(await self._astream_complete(prompt, **given))

    @llm_chat_callback()
    def _chat(self, messages: Sequence[ChatMessage], **given: Any) -> Response:
        return self._counted(self._response)

    @llm_chat_callback()
    async def _achat(self, messages: Sequence[ChatMessage], **given: Any) -> Response:
        return self._counted(self._response)

    @llm_chat_callback()
    def _stream_chat(self, messages: Sequence[ChatMessage], **given: Any) -> Iterator[Response]:
        return self._pieces()

    @llm_chat_callback()
    async def _astream_chat(self, messages: Sequence[ChatMessage], **given: Any) -> AsyncIterator[Response]:
        return self._apieces()

    @llm_completion_callback()
    def _complete(self, prompt: str, **given: Any) -> Response:
        return self._counted(self._response)

    @llm_completion_callback()
    async def _acomplete(self, prompt: str, **given: Any) -> Response:
        return self._counted(self._response)

    @llm_completion_callback()
    def _stream_complete(self, prompt: str, **given: Any) -> Iterator[Response]:
        return self._pieces()

    @llm_completion_callback()
    async def _astream_complete(self, prompt: str, **given: Any) -> AsyncIterator[Response]:
        return self._apieces()

    def _pieces(self) -> Iterator[Response]:
        yield from map(self._counted, in_pieces(self._response))

    async def _apieces(self) -> AsyncIterator[Response]:
        for chunk in in_pieces(self._response):
            yield self._counted(chunk)

    def _counted(self, response: Response) -> Response:
        return response.model_copy(update={"raw": {**(response.raw or {}), "usage": dict(_COUNTED)}})

    def _plain(self, stream: Iterator[Response]) -> Iterator[Response]:
        for chunk in stream:
            yield chunk.model_copy(update={"raw": self._response.raw})

    async def _aplain(self, stream: AsyncIterator[Response]) -> AsyncIterator[Response]:
        async for chunk in stream:
            yield chunk.model_copy(update={"raw": self._response.raw})


_readers: WeakKeyDictionary[Any, list[Callable[[str], None]]] = WeakKeyDictionary()


def stream_of(text: str) -> Generator[str, None, None]:
    """A stored text as a stream; `when_read` tells who wants to know that all of it was read."""
    readers = list[Callable[[str], None]]()

    def pieces() -> Generator[str, None, None]:
        yield from split_text(text)
        for reader in readers:
            reader(text)

    _readers[stream := keep_scope(pieces())] = readers
    return stream


def astream_of(text: str) -> AsyncGenerator[str, None]:
    """The same for async code."""
    readers = list[Callable[[str], None]]()

    async def pieces() -> AsyncGenerator[str, None]:
        for piece in split_text(text):
            yield piece
        for reader in readers:
            reader(text)

    _readers[stream := keep_scope(pieces())] = readers
    return stream


def when_read(stream: object, tell: Callable[[str], None]) -> bool:
    """Tell the text of a stream of `stream_of` when it was read to its end. False for any other stream."""
    try:
        readers = _readers.get(stream)
    except TypeError:  # not every object can be remembered weakly
        return False
    if readers is not None:
        readers.append(tell)
    return readers is not None


def in_pieces(response: Response) -> Iterator[Response]:
    """The response as a stream of it: some words at a time; the last chunk is the whole response."""
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
