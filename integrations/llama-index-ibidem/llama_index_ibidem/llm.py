"""`CachedLLM`: answer the calls of any LlamaIndex model from the cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms.llm import LLM
from pydantic import PrivateAttr

from ibidem.adapter.call import AdapterCache
from ibidem.adapter.options import AdapterOptions
from ibidem.options import OpenOptions
from ibidem.prompts.history import mode_of
from llama_index_ibidem.calls import call_watcher
from llama_index_ibidem.delegation import DelegatingLLM
from llama_index_ibidem.endpoints import CachedEndpoints, EndpointCall, with_formatted
from llama_index_ibidem.replay import Replay
from llama_index_ibidem.request import RequestBuilder, identity
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
        history: How the earlier turns of a chat are compared: "exact", not where the last message stands
            alone ("standalone"), by their meaning ("meaning"), or never ("ignore").
        **options: For `ibidem.open`: `path`, `max_error_rate`, `embedder`, ...

    Raises:
        InvalidInput: `llm` is not a model to wrap, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """

    _adapter: AdapterCache = PrivateAttr()
    _endpoints: CachedEndpoints = PrivateAttr()

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
        history: str | None = None,
        **options: Unpack[OpenOptions],
    ) -> None:
        super().__init__(llm)
        requests = RequestBuilder(
            AdapterOptions(
                namespace, question_keys, model_id, any_message, semantic, require_namespace, mode_of(history)
            )
        )
        self._adapter = AdapterCache.of(cache, "LlamaIndex", owner=type(self).__name__, options=options)
        self._endpoints = CachedEndpoints(self._adapter, requests)
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
        return identity(self._as_prompted(), model_id or self._endpoints.requests.options.model_id)

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
        response: ChatResponse = self._answer("chat", messages, kwargs)
        return response

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`; the cache works in a thread."""
        response: ChatResponse = await self._answer("achat", messages, kwargs)
        return response

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:  # type: ignore[override]
        """As `chat`, streamed. The model's answer is stored when its last chunk was read."""
        response: Iterator[ChatResponse] = self._answer("stream_chat", messages, kwargs)
        return response

    async def astream_chat(  # type: ignore[override]
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> AsyncIterator[ChatResponse]:
        """As `stream_chat`; the cache works in a thread."""
        response: AsyncIterator[ChatResponse] = await self._answer("astream_chat", messages, kwargs)
        return response

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the stored answer to this prompt, or ask the model."""
        given = with_formatted(formatted, kwargs)
        response: CompletionResponse = self._answer("complete", prompt, given)
        return response

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`; the cache works in a thread."""
        given = with_formatted(formatted, kwargs)
        response: CompletionResponse = await self._answer("acomplete", prompt, given)
        return response

    def stream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        """As `complete`, streamed. The model's answer is stored when its last chunk was read."""
        given = with_formatted(formatted, kwargs)
        response: Iterator[CompletionResponse] = self._answer("stream_complete", prompt, given)
        return response

    async def astream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        """As `stream_complete`; the cache works in a thread."""
        given = with_formatted(formatted, kwargs)
        response: AsyncIterator[CompletionResponse] = await self._answer("astream_complete", prompt, given)
        return response

    def _answer(self, endpoint: str, asked: Any, given: dict[str, Any]) -> Any:
        def ask() -> Any:
            return getattr(self._model, endpoint)(asked, **given)

        replay = partial(Replay, self.callback_manager, self.llm)
        return self._endpoints.answer(EndpointCall(endpoint, self.llm, asked, given, ask, replay))

    def __enter__(self) -> CachedLLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"CachedLLM({type(self.llm).__name__}, namespace={self._endpoints.requests.options.namespace!r})"
        )

    __str__ = __repr__
