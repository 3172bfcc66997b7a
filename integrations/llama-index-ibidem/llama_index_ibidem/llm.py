"""`CachedLLM`: any LlamaIndex model, answered from the cache where that is right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
)
from llama_index.core.llms.llm import LLM
from pydantic import PrivateAttr

from ibidem.adapter.call import Desk
from ibidem.adapter.options import open_or_use
from ibidem.types import Request, require_bool, require_name, require_text
from llama_index_ibidem.calls import watch
from llama_index_ibidem.exchange import Exchange
from llama_index_ibidem.identity import identity
from llama_index_ibidem.replay import Replay
from llama_index_ibidem.requests import RequestBuilder
from llama_index_ibidem.stream_scopes import STREAMS
from llama_index_ibidem.wrapping import WrappingLLM

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


class CachedLLM(WrappingLLM):
    """A model that is only asked what it has not answered before.

    `Settings.llm = CachedLLM(OpenAI(...))`; to engines, agents and handlers it is the model it wraps. A
    failure of the cache never reaches the program: the model is asked, as without a cache.

    Args:
        llm: The model. For structured output wrap the model, not the structured one:
            `CachedLLM(llm).as_structured_llm(Form)`.
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: Tenant or application: what one has stored is never served in another (`ibidem.scope`).
        question_keys: Names of template variables that hold the question, before the usual ones ("query_str",
            "question", ...).
        model_id: Names the model and its settings, where its fields do not (the log says so).
        any_message: True to take every line of the user for a question, as in a support chat ("I lost my
            card"). By default a line without a template must ask something.
        semantic: False to repeat answers to identical prompts only, for models that translate or rewrite.
        require_namespace: True to cache only what is asked within `ibidem.scope(namespace=...)`.
        **options: For `ibidem.open`: `path`, `threshold`, `embedder`, ...

    Raises:
        InvalidInput: `llm` is not a model to wrap, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """

    _desk: Desk = PrivateAttr()
    _requests: RequestBuilder = PrivateAttr()
    _owned: bool = PrivateAttr(default=False)

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
        require_bool("require_namespace", require_namespace)
        if isinstance(question_keys, str):
            question_keys = (question_keys,)
        self._requests = RequestBuilder(
            require_name("namespace", namespace),
            question_keys,
            model_id=require_text("model_id", model_id),
            any_message=any_message,
            semantic=semantic,
            require_namespace=require_namespace,
        )
        self._owned = cache is None
        self._desk = Desk(open_or_use(cache, options, type(self).__name__), "LlamaIndex")
        watch()
        STREAMS.hold(self._desk)

    @classmethod
    def class_name(cls) -> str:
        """How LlamaIndex names the class."""
        return "CachedLLM"

    @property
    def cache(self) -> SemanticCache:
        """The cache that is asked."""
        return self._desk.cache

    def identity(self, model_id: str = "") -> str:
        """A digest of the model with the prompt settings of this wrapper, which may have been changed here.

        Raises:
            NotCacheable: The model holds what cannot be compared, and neither it nor `model_id` names it.
        """
        return identity(self._as_prompted(), model_id or self._requests.model_id)

    def faults(self) -> dict[str, int]:
        """How often a call was not cached or a failure was swallowed, by cause."""
        return self._desk.faults.counts()

    def close(self) -> None:
        """Close the cache that was opened here; one that was passed in stays open."""
        if self._owned:
            self.cache.close()
            STREAMS.release(self._desk)

    # The endpoints. They are not decorated: on a miss the model itself tells LlamaIndex's handlers.

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The stored answer to these messages, or the model's."""
        exchange = self._chat_exchange(messages, kwargs)
        if (found := exchange.find()) is not None:
            return Replay(self, found).chat(messages, **kwargs)
        with exchange:
            return exchange.keep(self._model.chat(messages, **kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`; the cache is asked in a thread."""
        exchange = self._chat_exchange(messages, kwargs)
        if (found := await exchange.afind()) is not None:
            return await Replay(self, found).achat(messages, **kwargs)
        with exchange:
            return await exchange.akeep(await self._model.achat(messages, **kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:  # type: ignore[override]
        """As `chat`, in pieces. The model's answer is stored when the last piece was taken."""
        exchange = self._chat_exchange(messages, kwargs)
        if (found := exchange.find()) is not None:
            return exchange.repeated(Replay(self, found).stream_chat(messages, **kwargs))
        with exchange:
            return exchange.pass_on(self._model.stream_chat(messages, **kwargs))

    async def astream_chat(  # type: ignore[override]
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> AsyncIterator[ChatResponse]:
        """As `stream_chat`; the cache is asked in a thread."""
        exchange = self._chat_exchange(messages, kwargs)
        if (found := await exchange.afind()) is not None:
            return exchange.repeated(await Replay(self, found).astream_chat(messages, **kwargs))
        with exchange:
            return exchange.apass_on(await self._model.astream_chat(messages, **kwargs))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The stored answer to this prompt, or the model's."""
        exchange = self._completion_exchange(prompt, formatted, kwargs)
        if (found := exchange.find()) is not None:
            return Replay(self, found).complete(prompt, **kwargs)
        with exchange:
            return exchange.keep(self._model.complete(prompt, **_form(formatted), **kwargs))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`; the cache is asked in a thread."""
        exchange = self._completion_exchange(prompt, formatted, kwargs)
        if (found := await exchange.afind()) is not None:
            return await Replay(self, found).acomplete(prompt, **kwargs)
        with exchange:
            return await exchange.akeep(await self._model.acomplete(prompt, **_form(formatted), **kwargs))

    def stream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        """As `complete`, in pieces. The model's answer is stored when the last piece was taken."""
        exchange = self._completion_exchange(prompt, formatted, kwargs)
        if (found := exchange.find()) is not None:
            return exchange.repeated(Replay(self, found).stream_complete(prompt, **kwargs))
        with exchange:
            return exchange.pass_on(self._model.stream_complete(prompt, **_form(formatted), **kwargs))

    async def astream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        """As `stream_complete`; the cache is asked in a thread."""
        exchange = self._completion_exchange(prompt, formatted, kwargs)
        if (found := await exchange.afind()) is not None:
            return exchange.repeated(await Replay(self, found).astream_complete(prompt, **kwargs))
        with exchange:
            stream = await self._model.astream_complete(prompt, **_form(formatted), **kwargs)
            return exchange.apass_on(stream)

    def __enter__(self) -> CachedLLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CachedLLM({type(self.llm).__name__}, namespace={self._requests.namespace!r})"

    __str__ = __repr__

    def _chat_exchange(
        self, messages: Sequence[ChatMessage], given: dict[str, Any]
    ) -> Exchange[ChatResponse]:
        return self._exchange(ChatResponse, partial(self._requests.of_chat, self.llm, messages, given))

    def _completion_exchange(
        self, prompt: str, formatted: bool, given: dict[str, Any]
    ) -> Exchange[CompletionResponse]:
        build = partial(self._requests.of_completion, self.llm, prompt, formatted, given)
        return self._exchange(CompletionResponse, build)

    def _exchange(self, kind: Any, build: Callable[[], Request]) -> Exchange[Any]:
        return Exchange(self._desk, kind, self.llm, build)


def _form(formatted: bool) -> dict[str, bool]:
    """The argument, where it is not the default: models need not know it."""
    return {"formatted": True} if formatted else {}
