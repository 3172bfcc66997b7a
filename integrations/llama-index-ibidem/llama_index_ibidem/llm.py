"""`CachedLLM`: answer the calls of any LlamaIndex model from the cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms.llm import LLM
from pydantic import PrivateAttr

from ibidem.adapter.call import AdapterCache, CachedCall
from ibidem.adapter.options import AdapterOptions
from ibidem.types import Answer
from llama_index_ibidem.delegation import DelegatingLLM
from llama_index_ibidem.handlers import call_watcher
from llama_index_ibidem.replay import Replay
from llama_index_ibidem.request import RequestBuilder, identity
from llama_index_ibidem.responses import (
    ModelResponse,
    Response,
    ResponseAccumulator,
    ResponseMetadata,
    decode,
    encode,
)
from llama_index_ibidem.spans import STREAMS

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


class CachedLLM(DelegatingLLM):
    """Asks a model only what it has not answered before.

    `Settings.llm = CachedLLM(OpenAI(...))`; to engines, agents and handlers it is the model it wraps. A
    failure of the cache never reaches the program: the model is asked, as without a cache.

    Args:
        llm: The model. For structured output wrap the model, not the structured one:
            `CachedLLM(llm).as_structured_llm(Form)`.
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: Tenant or application: answers stored in one are never served in another (`ibidem.scope`).
        question_keys: Names of template variables that hold the question, before the usual ones ("query_str",
            "question", ...).
        model_id: Identifies the model and its settings, where its fields do not (the log says so).
        any_message: True to take every line of the user for a question, as in a support chat ("I lost my
            card"). By default a line without a template must ask something.
        semantic: False to repeat answers to identical prompts only, for models that translate or rewrite.
        require_namespace: True to cache only calls within `ibidem.scope(namespace=...)`.
        **options: For `ibidem.open`: `path`, `threshold`, `embedder`, ...

    Raises:
        InvalidInput: `llm` is not a model to wrap, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """

    _adapter: AdapterCache = PrivateAttr()
    _requests: RequestBuilder = PrivateAttr()

    def __init__(
        self,
        llm: LLM,
        cache: SemanticCache | None = None,
        *,
        namespace: str = "",
        question_keys: Sequence[str] = (),
        model_id: str = "",
        any_message: bool = False,
        semantic: bool = True,
        require_namespace: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(llm)
        self._requests = RequestBuilder(
            AdapterOptions(namespace, question_keys, model_id, any_message, semantic, require_namespace)
        )
        self._adapter = AdapterCache.of(cache, "LlamaIndex", owner=type(self).__name__, options=options)
        call_watcher.watch()
        STREAMS.hold(self._adapter)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises the class."""
        return "CachedLLM"

    @property
    def cache(self) -> SemanticCache:
        """The cache in use."""
        return self._adapter.cache

    def identity(self, model_id: str = "") -> str:
        """Hash the model with the prompt settings of this wrapper, which may differ from the model's own.

        Raises:
            NotCacheable: The model holds something that cannot be compared, and no `model_id` replaces it.
        """
        return identity(self._as_prompted(), model_id or self._requests.options.model_id)

    def faults(self) -> dict[str, int]:
        """Count the calls that were not cached and the failures that were swallowed, by cause."""
        return self._adapter.faults.counts()

    def close(self) -> None:
        """Close the cache if it was opened here; one that was passed in stays open."""
        if self._adapter.close():
            STREAMS.release(self._adapter)

    # The endpoints. They are not decorated: on a miss the model itself notifies LlamaIndex's handlers.

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the stored answer to these messages, or ask the model."""
        return self._whole("chat", self._chat_call(messages, kwargs), messages, kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`; the cache works in a thread."""
        return await self._awhole("achat", self._chat_call(messages, kwargs), messages, kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:  # type: ignore[override]
        """As `chat`, streamed. The model's answer is stored when its last chunk was read."""
        return self._stream("stream_chat", self._chat_call(messages, kwargs), messages, kwargs)

    async def astream_chat(  # type: ignore[override]
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> AsyncIterator[ChatResponse]:
        """As `stream_chat`; the cache works in a thread."""
        return await self._astream("astream_chat", self._chat_call(messages, kwargs), messages, kwargs)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the stored answer to this prompt, or ask the model."""
        call = self._completion_call(prompt, formatted, kwargs)
        return self._whole("complete", call, prompt, _with(formatted, kwargs))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`; the cache works in a thread."""
        call = self._completion_call(prompt, formatted, kwargs)
        return await self._awhole("acomplete", call, prompt, _with(formatted, kwargs))

    def stream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        """As `complete`, streamed. The model's answer is stored when its last chunk was read."""
        call = self._completion_call(prompt, formatted, kwargs)
        return self._stream("stream_complete", call, prompt, _with(formatted, kwargs))

    async def astream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        """As `stream_complete`; the cache works in a thread."""
        call = self._completion_call(prompt, formatted, kwargs)
        return await self._astream("astream_complete", call, prompt, _with(formatted, kwargs))

    def _whole(
        self, endpoint: str, call: CachedCall[Response], asked: Any, given: dict[str, Any]
    ) -> Response:
        if (found := call.lookup()) is not None:
            return self._replay(found).whole(asked, given)
        with call:
            response: Response = getattr(self._model, endpoint)(asked, **given)
            call.store(partial(self._answer, call.seconds, response), response)
            return response

    async def _awhole(
        self, endpoint: str, call: CachedCall[Response], asked: Any, given: dict[str, Any]
    ) -> Response:
        if (found := await call.alookup()) is not None:
            return await self._replay(found).awhole(asked, given)
        with call:
            response: Response = await getattr(self._model, endpoint)(asked, **given)
            await call.astore(partial(self._answer, call.seconds, response), response)
            return response

    def _stream(
        self, endpoint: str, call: CachedCall[Response], asked: Any, given: dict[str, Any]
    ) -> Iterator[Response]:
        if (found := call.lookup()) is not None:
            return call.replay(self._replay(found).stream(asked, given))
        with call:
            stream = getattr(self._model, endpoint)(asked, **given)
            return call.record(stream, self._accumulator(call))

    async def _astream(
        self, endpoint: str, call: CachedCall[Response], asked: Any, given: dict[str, Any]
    ) -> AsyncIterator[Response]:
        if (found := await call.alookup()) is not None:
            return call.replay(await self._replay(found).astream(asked, given))
        with call:
            stream = await getattr(self._model, endpoint)(asked, **given)
            return call.arecord(stream, self._accumulator(call))

    def __enter__(self) -> CachedLLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CachedLLM({type(self.llm).__name__}, namespace={self._requests.options.namespace!r})"

    __str__ = __repr__

    def _chat_call(self, messages: Sequence[ChatMessage], given: dict[str, Any]) -> CachedCall[ChatResponse]:
        build = partial(self._requests.of_chat, self.llm, messages, given)
        return CachedCall(self._adapter, build, lambda hit: decode(hit, ChatResponse))

    def _completion_call(
        self, prompt: str, formatted: bool, given: dict[str, Any]
    ) -> CachedCall[CompletionResponse]:
        build = partial(self._requests.of_completion, self.llm, prompt, formatted, given)
        return CachedCall(self._adapter, build, lambda hit: decode(hit, CompletionResponse))

    def _replay(self, response: Response) -> Replay[Response]:
        return Replay(self.callback_manager, self.llm, response)

    def _answer(
        self, seconds: float, response: ModelResponse, metadata: ResponseMetadata | None = None
    ) -> Answer:
        metadata = metadata or ResponseMetadata.of(response).finalize()
        return encode(response, metadata, model=self.llm.metadata.model_name, seconds=seconds)

    def _accumulator(self, call: CachedCall[Response]) -> ResponseAccumulator[Response]:
        return ResponseAccumulator(
            lambda response, metadata: self._answer(call.seconds, response, metadata),
            complete=not getattr(self.llm, "logprobs", None),  # whole responses hold them, streams may not
        )


def _with(formatted: bool, given: dict[str, Any]) -> dict[str, Any]:
    """Add the argument unless it has its default value: models need not know it."""
    return {"formatted": True, **given} if formatted else given
