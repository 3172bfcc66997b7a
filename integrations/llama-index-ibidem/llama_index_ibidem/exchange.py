"""One call of a model: asked from the cache first, stored when the model has answered in full."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, TextBlock
from llama_index.core.llms.llm import LLM

from ibidem.errors import NotCacheable
from ibidem.faults import Faults
from ibidem.request import Answer, Hit, Request
from ibidem.threads import in_thread
from llama_index_ibidem.codec import Response, decode, encode, text_of
from llama_index_ibidem.reading import Told

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_LOOK_UP, _STORE = "look up an answer for LlamaIndex", "store an answer of LlamaIndex"


class Desk:
    """A cache as LlamaIndex objects use it: whatever goes wrong here, the program goes on without it."""

    def __init__(self, cache: SemanticCache) -> None:
        self.cache = cache
        self.faults = Faults()

    def __deepcopy__(self, memo: dict[int, Any]) -> Desk:
        return self  # a copied model asks the same cache

    def find(self, build: Callable[[], Request]) -> tuple[Request | None, Hit | None]:
        """The request, None if the call cannot be cached, and the hit if there is one."""
        request = self.faults.attempt(_LOOK_UP, build)
        if request is None:
            return None, None
        found = self.faults.attempt(_LOOK_UP, partial(self.cache.lookup, request))
        return request, found if isinstance(found, Hit) else None

    def keep(self, request: Request | None, answer: Callable[[], Answer]) -> None:
        """Store what `answer` makes of the model's response."""
        if request is not None:
            self.faults.attempt(_STORE, lambda: self.cache.store(request, answer()))


class Exchange(Generic[Response]):
    """One call of `llm` that returns a `kind` of response."""

    def __init__(self, desk: Desk, kind: type[Response], llm: LLM, build: Callable[[], Request]) -> None:
        self._desk, self._llm, self._build = desk, llm, build
        self._kind: type[Response] = kind
        self._request: Request | None = None
        self._started = 0.0

    def find(self) -> Response | None:
        """The stored response, or None. The request is made now: models may change what they are given."""
        self._request, hit = self._desk.find(self._build)
        found = self._desk.faults.attempt(_LOOK_UP, partial(decode, hit, self._kind)) if hit else None
        self._started = time.perf_counter()
        return found

    def keep(self, response: Response) -> Response:
        """Store the model's response; returns it."""
        self._keep(response, Told.of(response).of_whole())
        return response

    def pass_on(self, stream: Iterator[Response]) -> Iterator[Response]:
        """The chunks of the stream; what they amount to is stored if all of them are taken."""
        assembly = Assembly[Response](self._desk.faults)
        try:
            for chunk in stream:
                assembly.add(chunk)
                yield chunk
        finally:
            if close := getattr(stream, "close", None):
                close()
        self._keep_stream(assembly)

    async def afind(self) -> Response | None:
        """As `find`, in a thread."""
        return await in_thread(self.find)

    async def akeep(self, response: Response) -> Response:
        """As `keep`, in a thread."""
        return await in_thread(self.keep, response)

    async def apass_on(self, stream: AsyncIterator[Response]) -> AsyncIterator[Response]:
        """As `pass_on`."""
        assembly = Assembly[Response](self._desk.faults)
        try:
            async for chunk in stream:
                assembly.add(chunk)
                yield chunk
        finally:
            if close := getattr(stream, "aclose", None):
                await close()
        await in_thread(self._keep_stream, assembly)

    def _keep(self, response: Response, told: Told) -> None:
        seconds = time.perf_counter() - self._started

        def answer() -> Answer:
            return encode(response, told, model=self._llm.metadata.model_name, seconds=seconds)

        self._desk.keep(self._request, answer)

    def _keep_stream(self, assembly: Assembly[Response]) -> None:
        if getattr(self._llm, "logprobs", None):
            return  # whole responses hold them, streams may not
        if (whole := self._desk.faults.attempt(_STORE, assembly.whole)) is not None:
            self._keep(whole, assembly.told)


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
