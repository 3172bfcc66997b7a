"""One call of a model: asked from the cache first, stored when the model has answered in full."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, Generic, Self, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, TextBlock
from llama_index.core.llms.llm import LLM

from ibidem._util.concurrency import in_thread
from ibidem._util.faults import Faults
from ibidem.adapter.call import Desk, Inquiry
from ibidem.adapter.stream_scope import keep_scope
from ibidem.errors import NotCacheable
from ibidem.provenance import remember
from ibidem.types import Answer, Request
from llama_index_ibidem.codec import Response, decode, encode, text_of
from llama_index_ibidem.reading import Told

Stream = TypeVar("Stream")


class Exchange(Generic[Response]):
    """One call of `llm` that returns a `kind` of response."""

    def __init__(self, desk: Desk, kind: type[Response], llm: LLM, build: Callable[[], Request]) -> None:
        self._desk, self._llm = desk, llm
        self._inquiry: Inquiry[Response] = Inquiry(desk, build, lambda hit: decode(hit, kind))
        self._started = 0.0

    def find(self) -> Response | None:
        """The stored response, or None. The request is made now: models may change what they are given."""
        found = self._inquiry.find()
        self._started = time.perf_counter()
        return found

    def __enter__(self) -> Self:
        self._inquiry.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Around the call of the model: if it fails, one of those who wait for its answer asks."""
        self._inquiry.__exit__(*error)

    def keep(self, response: Response) -> Response:
        """Store the model's response; returns it."""
        self._keep(response, Told.of(response).of_whole())
        return response

    def pass_on(self, stream: Iterator[Response]) -> Iterator[Response]:
        """The chunks of the stream; what they amount to is stored if all of them are taken."""
        return self._inquiry.ended_with(self._passed_on(stream))

    def repeated(self, stream: Stream) -> Stream:
        """A stored response as a stream: `forget` knows it by the stream, too."""
        kept = keep_scope(stream)
        if self._inquiry.hit is not None:
            remember(kept, self._inquiry.hit)
        return kept

    async def afind(self) -> Response | None:
        """As `find`, in a thread."""
        found = await self._inquiry.afind()
        self._started = time.perf_counter()
        return found

    async def akeep(self, response: Response) -> Response:
        """As `keep`, in a thread."""
        return await in_thread(self.keep, response)

    def apass_on(self, stream: AsyncIterator[Response]) -> AsyncIterator[Response]:
        """As `pass_on`."""
        return self._inquiry.ended_with(self._apassed_on(stream))

    def _passed_on(self, stream: Iterator[Response]) -> Iterator[Response]:
        assembly, chunk = Assembly[Response](self._desk.faults), None
        with self:
            try:
                for chunk in stream:
                    assembly.add(chunk)
                    yield chunk
            finally:
                if close := getattr(stream, "close", None):
                    close()
            self._keep_stream(assembly, chunk)

    async def _apassed_on(self, stream: AsyncIterator[Response]) -> AsyncIterator[Response]:
        assembly, chunk = Assembly[Response](self._desk.faults), None
        with self:
            try:
                async for chunk in stream:
                    assembly.add(chunk)
                    yield chunk
            finally:
                if close := getattr(stream, "aclose", None):
                    await close()
            await in_thread(self._keep_stream, assembly, chunk)

    def _keep(self, response: Response, told: Told, last: Response | None = None) -> None:
        seconds = time.perf_counter() - self._started

        def answer() -> Answer:
            return encode(response, told, model=self._llm.metadata.model_name, seconds=seconds)

        self._inquiry.keep(answer, response if last is None else last)

    def _keep_stream(self, assembly: Assembly[Response], last: Response | None) -> None:
        # Whole responses hold logprobs, streams may not.
        readable = not getattr(self._llm, "logprobs", None)
        whole = self._desk.faults.attempt(self._desk.store, assembly.whole) if readable else None
        if whole is None:
            self._inquiry.refuse()
        else:
            self._keep(whole, assembly.told, last)


class Assembly(Generic[Response]):
    """What the chunks of a stream amount to. Never raises while they come."""

    def __init__(self, faults: Faults) -> None:
        self.told = Told()
        self._faults = faults
        self._last: Response | None = None
        self._pieces: list[str] = []
        self._parts = 0

    def add(self, chunk: Response) -> None:
        """One more chunk. Copied, since the program may do with it what it likes."""
        self._faults.attempt("read a chunk of a stream", partial(self._read, chunk))

    def _read(self, chunk: Response) -> None:
        self._last = _copied(chunk)
        self._pieces.append(chunk.delta or "")
        self._parts = max(self._parts, _parts(chunk))
        self.told = self.told.then(Told.of(chunk))

    def whole(self) -> Response:
        """The response that the chunks amount to.

        By convention the last chunk holds the whole text; some models leave out its end, or all of it.

        Raises:
            NotCacheable: There were no chunks, or the pieces and the last chunk say different things.
        """
        if self._last is None:
            raise NotCacheable("empty_stream", "the stream held nothing")
        if _parts(self._last) < self._parts:
            raise NotCacheable("unclear_stream", "the last chunk does not repeat the tool calls before it")
        told, text = text_of(self._last), "".join(self._pieces)
        if text in ("", told):
            return self._last
        if not text.startswith(told):
            raise NotCacheable("unclear_stream", "the pieces of the stream are not its text")
        return _with_text(self._last, text)


def _copied(response: Response) -> Response:
    if not isinstance(response, ChatResponse):
        return response.model_copy()
    message = response.message
    blocks = [block.model_copy() for block in message.blocks]
    given = message.additional_kwargs.items()
    extras = {key: list(value) if isinstance(value, list) else value for key, value in given}
    copied = message.model_copy(update={"blocks": blocks, "additional_kwargs": extras})
    return response.model_copy(update={"message": copied})


def _parts(response: ChatResponse | CompletionResponse) -> int:
    """How much there is beside text: tool calls, thoughts, images."""
    if not isinstance(response, ChatResponse):
        return 0
    calls = response.message.additional_kwargs.get("tool_calls")
    blocks = sum(not isinstance(block, TextBlock) for block in response.message.blocks)
    return max(blocks, len(calls) if isinstance(calls, list) else 0)


def _with_text(response: Response, text: str) -> Response:
    if not isinstance(response, ChatResponse):
        return response.model_copy(update={"text": text})
    message = response.message
    if len(message.blocks) > 1:
        raise NotCacheable("unclear_stream", "the last chunk lacks text, and has other parts beside")
    whole = ChatMessage(text, role=message.role, additional_kwargs=message.additional_kwargs)
    return response.model_copy(update={"message": whole})
