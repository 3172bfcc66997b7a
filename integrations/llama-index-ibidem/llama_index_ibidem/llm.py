"""`CachedLLM`: any LlamaIndex model, answered from the cache where that is right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from pydantic import Field, PrivateAttr, SerializeAsAny

from ibidem.adapting import open_or_use
from ibidem.errors import InvalidInput
from ibidem.request import Request, require_text
from llama_index_ibidem.calls import watch
from llama_index_ibidem.exchange import Desk, Exchange
from llama_index_ibidem.identity import identity
from llama_index_ibidem.native import NativeView
from llama_index_ibidem.replay import Replay
from llama_index_ibidem.requests import RequestBuilder

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

# What `predict` and the like use of a model before they call its endpoints.
_PROMPTING = (
    "callback_manager",
    "system_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
    "output_parser",
    "pydantic_program_mode",
    "query_wrapper_prompt",
)


class CachedLLM(FunctionCallingLLM):
    """A model that is only asked what it has not answered before.

    `Settings.llm = CachedLLM(OpenAI(...))`; to engines, agents and handlers it is the model it wraps. A
    failure of the cache never reaches the program: the model is asked, as without a cache.

    Args:
        llm: The model. For structured output wrap the model, not the structured one:
            `CachedLLM(llm).as_structured_llm(Form)`.
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: Tenant, user or application: what is stored in one namespace is never served in another.
        question_keys: Names of template variables that hold the question, before the usual ones ("query_str",
            "question", ...).
        model_id: Names the model and its settings, where its fields do not (the log says so).
        any_message: True to take every line of the user for a question, as in a support chat ("I lost my
            card"). By default a line without a template must ask something.
        semantic: False to repeat answers to identical prompts only, for models that translate or rewrite.
        **options: For `ibidem.open`: `path`, `threshold`, `embedder`, ...

    Raises:
        InvalidInput: `llm` is not a model to wrap, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """

    llm: SerializeAsAny[LLM] = Field(description="The model that is asked when the cache has no answer.")
    _desk: Desk = PrivateAttr()
    _requests: RequestBuilder = PrivateAttr()
    _native: NativeView = PrivateAttr()
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
        **options: Any,
    ) -> None:
        _check_model(llm)
        super().__init__(llm=llm, **{name: getattr(llm, name) for name in _PROMPTING})
        if isinstance(question_keys, str):
            question_keys = (question_keys,)
        self._requests = RequestBuilder(
            require_text("namespace", namespace),
            question_keys,
            model_id=require_text("model_id", model_id),
            any_message=any_message,
            semantic=semantic,
        )
        self._owned = cache is None
        self._desk = Desk(open_or_use(cache, options, type(self).__name__))
        self._native = NativeView(self)
        watch()

    @property
    def cache(self) -> SemanticCache:
        """The cache that is asked."""
        return self._desk.cache

    def identity(self, model_id: str = "") -> str:
        """What is compared of the model: all that its answers depend on but the prompt, without secrets.

        Raises:
            NotCacheable: The model holds what cannot be compared, and neither it nor `model_id` names it.
        """
        return identity(self.llm, model_id or self._requests.model_id)

    def faults(self) -> dict[str, int]:
        """How often a call was not cached or a failure was swallowed, by cause."""
        return self._desk.faults.counts()

    def close(self) -> None:
        """Close the cache that was opened here; one that was passed in stays open."""
        if self._owned:
            self.cache.close()

    # The endpoints. They are not decorated: on a miss the model itself tells LlamaIndex's handlers.

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The stored answer to these messages, or the model's."""
        exchange = self._chat_exchange(messages, kwargs)
        if (found := exchange.find()) is not None:
            return Replay(self, found).chat(messages, **kwargs)
        return exchange.keep(self._model.chat(messages, **kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`; the cache is asked in a thread."""
        exchange = self._chat_exchange(messages, kwargs)
        if (found := await exchange.afind()) is not None:
            return await Replay(self, found).achat(messages, **kwargs)
        return await exchange.akeep(await self._model.achat(messages, **kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:  # type: ignore[override]
        """As `chat`, in pieces. The model's answer is stored when the last piece was taken."""
        exchange = self._chat_exchange(messages, kwargs)
        if (found := exchange.find()) is not None:
            return Replay(self, found).stream_chat(messages, **kwargs)
        return exchange.pass_on(self._model.stream_chat(messages, **kwargs))

    async def astream_chat(  # type: ignore[override]
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> AsyncIterator[ChatResponse]:
        """As `stream_chat`; the cache is asked in a thread."""
        exchange = self._chat_exchange(messages, kwargs)
        if (found := await exchange.afind()) is not None:
            return await Replay(self, found).astream_chat(messages, **kwargs)
        return exchange.apass_on(await self._model.astream_chat(messages, **kwargs))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The stored answer to this prompt, or the model's."""
        exchange = self._completion_exchange(prompt, formatted, kwargs)
        if (found := exchange.find()) is not None:
            return Replay(self, found).complete(prompt, **kwargs)
        return exchange.keep(self._model.complete(prompt, formatted=formatted, **kwargs))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`; the cache is asked in a thread."""
        exchange = self._completion_exchange(prompt, formatted, kwargs)
        if (found := await exchange.afind()) is not None:
            return await Replay(self, found).acomplete(prompt, **kwargs)
        return await exchange.akeep(await self._model.acomplete(prompt, formatted=formatted, **kwargs))

    def stream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        """As `complete`, in pieces. The model's answer is stored when the last piece was taken."""
        exchange = self._completion_exchange(prompt, formatted, kwargs)
        if (found := exchange.find()) is not None:
            return Replay(self, found).stream_complete(prompt, **kwargs)
        return exchange.pass_on(self._model.stream_complete(prompt, formatted=formatted, **kwargs))

    async def astream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        """As `stream_complete`; the cache is asked in a thread."""
        exchange = self._completion_exchange(prompt, formatted, kwargs)
        if (found := await exchange.afind()) is not None:
            return await Replay(self, found).astream_complete(prompt, **kwargs)
        stream = await self._model.astream_complete(prompt, formatted=formatted, **kwargs)
        return exchange.apass_on(stream)

    # Structured output in the model's own way, where it has one; its calls of `chat` come back to us.

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, whose answer may be stored for the very same prompt."""
        return self._native.model().structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`."""
        return await self._native.model().astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`, in pieces."""
        return self._native.model().stream_structured_predict(*args, **kwargs)

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`, in pieces."""
        return await self._native.model().astream_structured_predict(*args, **kwargs)

    # Tools are prepared and read by the model: each provider has its own form for them.

    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", self._calling._prepare_chat_with_tools_compat(*args, **kwargs))

    def _validate_chat_with_tools_response(self, *args: Any, **kwargs: Any) -> ChatResponse:
        return cast(ChatResponse, self._calling._validate_chat_with_tools_response(*args, **kwargs))

    def get_tool_calls_from_response(self, *args: Any, **kwargs: Any) -> list[ToolSelection]:
        """The tool calls in a response."""
        return cast("list[ToolSelection]", self._calling.get_tool_calls_from_response(*args, **kwargs))

    # What the model says of itself.

    @classmethod
    def class_name(cls) -> str:
        """How LlamaIndex names the class."""
        return "CachedLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The model's."""
        return self.llm.metadata

    def to_payload(self) -> dict[str, Any]:
        """What handlers are told of the model; nothing secret."""
        return self.llm.to_payload()

    def convert_chat_messages(self, messages: Sequence[ChatMessage]) -> list[Any]:
        """Messages in the model's own form."""
        return self.llm.convert_chat_messages(messages)

    def __getattr__(self, name: str) -> Any:
        """What is not ours is the model's: `llm.model`, `llm.temperature`."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("__") or "llm" not in self.__dict__:
                raise
            return getattr(self.llm, name)

    def __repr__(self) -> str:
        return f"CachedLLM({type(self.llm).__name__}, namespace={self._requests.namespace!r})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it is the model alone: an open cache does not travel."""
        return _itself, (self.llm,)

    @property
    def _model(self) -> LLM:
        """The model, telling the handlers that LlamaIndex has given to us since."""
        self.llm.callback_manager = self.callback_manager
        return self.llm

    @property
    def _calling(self) -> Any:
        """The model as one that calls tools; callers have asked `metadata` whether it is."""
        return self.llm

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


def _check_model(llm: object) -> None:
    if isinstance(llm, CachedLLM):
        raise InvalidInput("this model is cached already")
    if isinstance(llm, StructuredLLM):
        raise InvalidInput(
            "wrap the model inside: CachedLLM(structured.llm, ...).as_structured_llm(structured.output_cls)"
        )
    if not isinstance(llm, LLM):
        raise InvalidInput(
            f"llm must be a LlamaIndex model (llama_index.core.llms.LLM), not {type(llm).__name__}"
        )


def _itself(llm: LLM) -> LLM:
    return llm
