"""`IbidemMiddleware`: repeats answers of an agent's model at the agent's own steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from ibidem.errors import InvalidInput, MissingExtra

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
    from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
except ModuleNotFoundError as error:
    raise MissingExtra("IbidemMiddleware", "agents") from error

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import SkipValidation

from ibidem._util.concurrency import in_thread
from ibidem._util.faults import Faults
from ibidem.adapter.call import AdapterCache, CachedCall, aattempt, attempt
from ibidem.errors import NotCacheable
from ibidem.options import AdapterCacheOptions
from ibidem.prompts.documents import Retrieved
from ibidem.provenance import remember
from ibidem.scope import bypassing
from ibidem.types import Answer, Hit, require_text
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.call import ModelCall
from langchain_ibidem.messages import chat_chunks, decode, of_messages
from langchain_ibidem.model_identity import ResponseFormat, is_made_up
from langchain_ibidem.tracking import retrieved

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

    Middleware = AgentMiddleware[Any, Any, Any]
    Request = ModelRequest[Any]
    Response = ModelResponse[Any]
else:  # in LangChain 1.0 they have fewer parameters
    Middleware, Request, Response = AgentMiddleware, ModelRequest, ModelResponse

_LOOK_UP, _REPEAT = "look up an agent's step", "repeat an agent's step"
_MODEL_ITSELF = "create_agent.<locals>."  # what calls it, and not a middleware between
# Content blocks of an answer that only say something. Others are about tools of the provider.
_SAYING = frozenset("text output_text refusal reasoning thinking redacted_thinking".split())


class IbidemMiddleware(Middleware):
    """Repeats answers of an agent: `create_agent(model, tools, middleware=[..., IbidemMiddleware()])`, last.

    A tool call is repeated for the very same conversation only. An answer that calls no tool is also repeated
    if the question is worded otherwise, over the same earlier messages and tool results. After a `volatile`
    tool was called, nothing is looked up or stored until the user's next question.

    What a middleware further in would change could not be seen from here, so this one must be the last.
    Steps it handles are not handled again by LangChain's global `IbidemCache`. A failure of the cache never
    reaches the agent.

    Args:
        cache: An `IbidemCache` or an open `ibidem.SemanticCache`, which stays yours to close. By default one
            is opened.
        volatile: Names of tools whose results are never kept. A tool can say it itself:
            `metadata={"ibidem": "volatile"}`.
        **options: For `IbidemCache`: `namespace`, `any_message`, ..., `path`, `max_error_rate`, ...

    Raises:
        InvalidInput: Arguments contradict each other, or an option does not exist.
        MissingExtra: LangChain's agents are not installed.
        IbidemError: The cache cannot be opened.
    """

    def __init__(
        self,
        cache: IbidemCache | SemanticCache | None = None,
        *,
        volatile: Iterable[str] = (),
        **options: Unpack[AdapterCacheOptions],
    ) -> None:
        super().__init__()
        if isinstance(cache, IbidemCache) and options:
            raise InvalidInput(f"an IbidemCache has its options already (got {sorted(options)})")
        self._volatile = frozenset((volatile,) if isinstance(volatile, str) else volatile)
        for name in self._volatile:
            require_text("a name in volatile", name)
        self._owned = not isinstance(cache, IbidemCache)
        self.cache = cache if isinstance(cache, IbidemCache) else IbidemCache(cache, **options)
        self._faults = Faults()
        self._adapter = AdapterCache(self.cache.cache, "an agent", self._faults)

    def wrap_model_call(self, request: Request, handler: Callable[[Request], Response]) -> Response:
        """Return the stored answer to this step; else call the model and store what it says."""
        if self._calls_volatile_tool(request):
            with bypassing():
                return handler(request)
        call = attempt(self._faults, _LOOK_UP, partial(self._call, request, handler))
        if call is None:
            return handler(request)
        repeating = call.lookup()
        with call:
            if repeating is not None:
                served = attempt(self._faults, _REPEAT, lambda: _complete(request, handler(repeating)))
                if served is not None:
                    return served
            with bypassing():
                response = handler(request)
        self._store(call, request, response)
        return response

    async def awrap_model_call(
        self, request: Request, handler: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """As `wrap_model_call`; the cache works in threads."""
        if self._calls_volatile_tool(request):
            with bypassing():
                return await handler(request)
        call = await in_thread(attempt, self._faults, _LOOK_UP, partial(self._call, request, handler))
        if call is None:
            return await handler(request)
        repeating = await call.alookup()
        with call:
            if repeating is not None:
                served = await aattempt(self._faults, _REPEAT, _acomplete(request, handler(repeating)))
                if served is not None:
                    return served
            with bypassing():
                response = await handler(request)
        await in_thread(self._store, call, request, response)
        return response

    def faults(self) -> dict[str, int]:
        """How often a step was not cached or a failure was swallowed, by cause."""
        return self._faults.counts()

    def close(self) -> None:
        """Close the cache that was opened here; one that was passed in stays open."""
        if self._owned:
            self.cache.close()

    def __copy__(self) -> IbidemMiddleware:
        return self  # a copied agent asks the same cache

    def __deepcopy__(self, memo: dict[int, Any]) -> IbidemMiddleware:
        return self

    def __enter__(self) -> IbidemMiddleware:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _call(self, request: Request, handler: Callable[[Request], Any]) -> CachedCall[Request]:
        """Build the cached call of this step.

        Raises:
            NotCacheable: The step cannot be cached here.
        """
        if not getattr(handler, "__qualname__", "").startswith(_MODEL_ITSELF):
            raise NotCacheable(
                "not_innermost",
                "a middleware after IbidemMiddleware may change what the model is shown; "
                "put IbidemMiddleware last in create_agent(middleware=[...])",
            )
        messages = _messages_of(request)
        call = _model_call_of(request, _parameters(request))
        asked = self.cache._requests.build(of_messages(messages), "", call, _documents_in(messages))
        return CachedCall(self._adapter, lambda: asked, partial(_repeating, request))

    def _store(self, call: CachedCall[Request], request: Request, response: Response) -> None:
        """Store what the model said; `ibidem.forget` finds it by the message and its id."""
        if stored := call.store(lambda: self._answer(request, response, call.seconds)):
            message = response.result[0]
            remember(message, stored, names=[message.id])

    def _answer(self, request: Request, response: Response, seconds: float) -> Answer:
        """Convert the response to the answer to store.

        Raises:
            NotCacheable: The response must not be repeated.
        """
        message, form = _require_complete(request, response), _form_of(request)
        answer = form.to_answer([ChatGeneration(message=message)], seconds)
        if any(is_made_up(call["name"]) and call["name"] not in form.names for call in message.tool_calls):
            raise NotCacheable("form_untitled", "give the JSON schema of response_format a title")
        elsewhere = _used_at_the_provider(message)
        if self._are_volatile(request, elsewhere):
            raise NotCacheable("volatile", "the provider used a volatile tool, whose results are never kept")
        return replace(answer, semantic=answer.semantic and not elsewhere)

    def _calls_volatile_tool(self, request: Request) -> bool:
        """Whether a volatile tool was called since the user's last message."""
        since = _since_question(request.messages)
        said = (message for message in since if isinstance(message, AIMessage))
        return self._are_volatile(request, [call["name"] for message in said for call in message.tool_calls])

    def _are_volatile(self, request: Request, names: Iterable[str]) -> bool:
        """Whether one of these tools is volatile."""
        tools = [tool for tool in request.tools if isinstance(tool, BaseTool)]  # that the agent itself calls
        marked = {tool.name for tool in tools if (tool.metadata or {}).get("ibidem") == "volatile"}
        return not (self._volatile | marked).isdisjoint(names)


def _complete(request: Request, response: Response) -> Response:
    """Return the response; raise `NotCacheable` if it is not what the agent wanted."""
    _require_complete(request, response)
    return response


async def _acomplete(request: Request, response: Awaitable[Response]) -> Response:
    return _complete(request, await response)


# One model call of an agent ------------------------------------------------------------------------------


def _parameters(request: Request) -> dict[str, Any]:
    """Return the parameters that the model is given beside messages.

    Raises:
        NotCacheable: The model cannot be described.
    """
    if not isinstance(request.model, BaseChatModel):
        kind = type(request.model).__name__
        raise NotCacheable("model_unknown", f"the agent's model is a {kind}; only chat models are described")
    given: dict[str, Any] = {
        **request.model_settings,
        "ibidem": "agent/1",  # entries of agents are apart from those of calls
        "tools": [_tool(tool) for tool in request.tools],
        "tool_choice": request.tool_choice,
    }
    if request.response_format is not None:
        given["response_format"] = _form(request.response_format)
    return given


def _model_call_of(request: Request, given: Mapping[str, Any]) -> ModelCall:
    """Describe the model call by the run around the step, as LangChain will begin it.

    Args:
        request: The step.
        given: Its parameters.

    Raises:
        NotCacheable: The run is unknown: its context variable was lost, as in a thread without the context.
    """
    config = var_child_runnable_config.get()
    if config is None:
        raise NotCacheable("caller_unreadable", "nothing says whose run the step belongs to")
    parameters = {name: value for name, value in given.items() if name != "stop"}
    return ModelCall.in_config(request.model, config, parameters, given.get("stop"))


def _messages_of(request: Request) -> list[BaseMessage]:
    """Return the messages that the model is shown, the system prompt first."""
    system = getattr(request, "system_message", None)
    if system is None and request.system_prompt:  # of LangChain 1.0
        system = SystemMessage(request.system_prompt)
    return [*([] if system is None else [system]), *request.messages]


def _since_question(messages: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
    """Return the messages since the user's last one: none if this is the agent's first step."""
    last = max((n for n, message in enumerate(messages) if isinstance(message, HumanMessage)), default=-1)
    return messages[last + 1 :]


def _documents_in(messages: Sequence[BaseMessage]) -> list[Retrieved]:
    """Return the documents that tools returned beside their text."""
    artifacts = [message.artifact for message in messages if isinstance(message, ToolMessage)]
    lists = [a if isinstance(a, (list, tuple)) else [a] for a in artifacts]
    found = [retrieved(one) for given in lists for one in given if isinstance(one, Document)]
    return [document for document in found if document.text]


def _used_at_the_provider(message: AIMessage) -> set[str]:
    """Return the names of the tools that the provider itself used for this answer."""
    blocks = message.content if isinstance(message.content, list) else []
    acts = [block for block in blocks if isinstance(block, dict) and block.get("type") not in _SAYING]
    outputs = message.additional_kwargs.get("tool_outputs") or ()  # where OpenAI's Responses API puts them
    told = (*acts, *(output for output in outputs if isinstance(output, dict)))
    called = {call["id"] for call in message.tool_calls}
    others = (one for one in told if not {one.get("id"), one.get("call_id")} & called)
    return {str(one[key]) for one in others for key in ("type", "name") if one.get(key)}


def _require_complete(request: Request, response: Response) -> AIMessage:
    """Return the model's message, if it is what the agent wanted: a tool call, or an answer in its form.

    Raises:
        NotCacheable: It is not.
    """
    first = response.result[0] if response.result else None
    if isinstance(first, AIMessage):
        calls_tools = bool(first.tool_calls) and len(response.result) == 1
        if request.response_format is None or response.structured_response is not None or calls_tools:
            return first
    raise NotCacheable("not_in_form", "the answer has not the form that the agent must answer in")


def _form_of(request: Request) -> ResponseFormat:
    """Return the form that the answer must have, by the names that LangChain made up for it."""
    specs = getattr(request.response_format, "schema_specs", ())
    return ResponseFormat(names=tuple(one.name for one in specs if is_made_up(one.name)))


class Repeated(BaseChatModel):
    """Repeats an answer in the place of the agent's model, so that the agent treats it as that.

    In chunks where the agent's model would stream, called with the parameters in `given`.
    """

    message: AIMessage
    original: SkipValidation[BaseChatModel]
    given: dict[str, Any]

    @property
    def _llm_type(self) -> str:
        return "ibidem-repeated"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        """It will not call any."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.message)])

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        return chat_chunks(ChatGeneration(message=self.message))

    def _should_stream(self, **asked: Any) -> bool:
        return self.original._should_stream(**{**self.given, **asked})

    def _should_use_protocol_streaming(self, **asked: Any) -> bool:
        would = getattr(self.original, "_should_use_protocol_streaming", None)
        return would is not None and bool(would(**{**self.given, **asked}))


def _repeating(request: Request, hit: Hit) -> Request:
    """Return the request with a model that repeats the stored answer.

    Raises:
        Exception: What was stored is not one message.
    """
    (generation,) = decode(hit, _form_of(request).names)
    if not isinstance(generation, ChatGeneration) or not isinstance(generation.message, AIMessage):
        raise TypeError("the stored answer is not a message")
    message, form = generation.message, request.response_format
    given = {**request.model_settings, "tools": request.tools}
    model = Repeated(message=message, original=request.model, given=given, cache=False)
    if form is None or isinstance(form, (ToolStrategy, ProviderStrategy)) or message.tool_calls:
        return request.override(model=model)
    # The agent would choose by the model: what was no tool call came in the provider's own way.
    schema: Any = getattr(form, "schema", form)
    return request.override(model=model, response_format=ProviderStrategy(schema))


def _tool(tool: BaseTool | dict[str, Any]) -> dict[str, Any]:
    if isinstance(tool, dict):
        return tool
    return {**convert_to_openai_tool(tool), "extras": getattr(tool, "extras", None)}


def _form(form: Any) -> list[Any]:
    """Describe the form of the answer. A class counts by its schema."""
    explicit = isinstance(form, (ToolStrategy, ProviderStrategy))
    strategy = form if explicit else ToolStrategy(getattr(form, "schema", form))
    specs = [strategy.schema_spec] if isinstance(strategy, ProviderStrategy) else strategy.schema_specs
    kind = type(form).__name__ if explicit else "auto"
    return [
        kind,
        *(
            (None if is_made_up(one.name) else one.name, one.description, one.json_schema, one.strict)
            for one in specs
        ),
    ]
