"""`IbidemMiddleware`: repeats answers of an agent's model at the agent's own steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ibidem.errors import InvalidInput, MissingExtra

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ModuleNotFoundError as error:
    raise MissingExtra("IbidemMiddleware", "agents") from error

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.tools import BaseTool

from ibidem._util.concurrency import in_thread
from ibidem._util.faults import Faults
from ibidem.adapter.call import AdapterCache, CachedCall, aattempt, attempt
from ibidem.errors import NotCacheable
from ibidem.provenance import remember
from ibidem.scope import bypassing
from ibidem.types import Answer, require_text
from langchain_ibidem import agent_steps as steps
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.messages import of_messages
from langchain_ibidem.model_identity import is_made_up

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

    Middleware = AgentMiddleware[Any, Any, Any]
    Request = ModelRequest[Any]
    Response = ModelResponse[Any]
else:  # in LangChain 1.0 they have fewer parameters
    Middleware, Request, Response = AgentMiddleware, ModelRequest, ModelResponse

_LOOK_UP, _REPEAT = "look up an agent's step", "repeat an agent's step"
_MODEL_ITSELF = "create_agent.<locals>."  # what calls it, and not a middleware between


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
        **options: For `IbidemCache`: `namespace`, `any_message`, ..., `path`, `threshold`, ...

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
        **options: Any,
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
        messages = steps.messages_of(request)
        call = steps.model_call_of(request, steps.parameters(request))
        asked = self.cache.request(of_messages(messages), steps.documents_in(messages), call)
        return CachedCall(self._adapter, lambda: asked, partial(steps.repeating, request))

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
        message, form = steps.require_complete(request, response), steps.form_of(request)
        answer = form.to_answer([ChatGeneration(message=message)], seconds)
        if any(is_made_up(call["name"]) and call["name"] not in form.names for call in message.tool_calls):
            raise NotCacheable("form_untitled", "give the JSON schema of response_format a title")
        elsewhere = steps.used_at_the_provider(message)
        if self._are_volatile(request, elsewhere):
            raise NotCacheable("volatile", "the provider used a volatile tool, whose results are never kept")
        return replace(answer, semantic=answer.semantic and not elsewhere)

    def _calls_volatile_tool(self, request: Request) -> bool:
        """Whether a volatile tool was called since the user's last message."""
        since = steps.since_question(request.messages)
        said = (message for message in since if isinstance(message, AIMessage))
        return self._are_volatile(request, [call["name"] for message in said for call in message.tool_calls])

    def _are_volatile(self, request: Request, names: Iterable[str]) -> bool:
        """Whether one of these tools is volatile."""
        tools = [tool for tool in request.tools if isinstance(tool, BaseTool)]  # that the agent itself calls
        marked = {tool.name for tool in tools if (tool.metadata or {}).get("ibidem") == "volatile"}
        return not (self._volatile | marked).isdisjoint(names)


def _complete(request: Request, response: Response) -> Response:
    """Return the response; raise `NotCacheable` if it is not what the agent wanted."""
    steps.require_complete(request, response)
    return response


async def _acomplete(request: Request, response: Awaitable[Response]) -> Response:
    return _complete(request, await response)
