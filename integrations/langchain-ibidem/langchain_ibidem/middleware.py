"""`IbidemMiddleware`: an agent's answers, repeated at the agent's own steps."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ibidem.errors import InvalidInput, MissingExtra

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ModuleNotFoundError as error:
    raise MissingExtra("IbidemMiddleware", "agents") from error

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration

from ibidem._util.concurrency import BoundedDict, ForkSafeLock, in_thread
from ibidem._util.faults import Faults
from ibidem.answering import Asking
from ibidem.errors import NotCacheable
from ibidem.provenance import remember
from ibidem.scope import bypassing
from ibidem.types import Answer, Hit, Stored, digest
from langchain_ibidem import agent_steps as steps
from langchain_ibidem.agent_runs import Begun, Run, calls_in, handed_on, saying
from langchain_ibidem.agent_tools import Tools
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.codec import decode, encode
from langchain_ibidem.form_names import is_made_up, to_repeat, to_store
from langchain_ibidem.prompt import of_messages

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

    Middleware = AgentMiddleware[Any, Any, Any]
    Request = ModelRequest[Any]
    Response = ModelResponse[Any]
else:  # in LangChain 1.0 they have fewer parameters
    Middleware, Request, Response = AgentMiddleware, ModelRequest, ModelResponse

_RUNS = 1024
_LOOK_UP, _REPEAT, _STORE = (f"{what} an agent's step" for what in ("look up", "repeat", "store"))
_MODEL_ITSELF = "create_agent.<locals>."  # what calls it, and not a middleware between


@dataclass(slots=True)
class _Step:
    """A call of the model: what the agent wants, what it did since the user's question, and the lookup.

    `beginning` identifies the first step of the run it belongs to. `whole` is set when what was found is a
    run whose tools return what they returned; `known` is what was found, or has been stored.
    """

    request: Request
    asking: Asking
    run: list[BaseMessage]
    beginning: str
    started: float
    whole: bool = False
    known: Hit | Stored | None = None


class IbidemMiddleware(Middleware):
    """Repeats answers of an agent: `create_agent(model, tools, middleware=[..., IbidemMiddleware()])`, last.

    A step is repeated for the very same conversation; one that is an answer and calls no tool also if only
    the question is worded otherwise, over the same earlier messages and tool results. A whole run is skipped
    (the first question gets the final answer of an earlier run) only if every tool that run called is
    `read_only` and, called again with the same arguments, returns what it returned then; a reworded question
    must also hold the words that went from the first one into those arguments. After a `volatile` tool was
    called, nothing is looked up or stored until the user's next question.

    What a middleware further in would change could not be seen from here, so this one must be the last.
    Steps it handles are not handled again by LangChain's global `IbidemCache`. A failure of the cache never
    reaches the agent.

    Args:
        cache: An `IbidemCache` or an open `ibidem.SemanticCache`, which stays yours to close. By default one
            is opened.
        read_only: Names of tools that change nothing when called, and so may be called again to see
            whether a stored answer still holds. A tool can say it itself: `metadata={"ibidem": "read_only"}`.
        volatile: Names of tools whose results nothing should be kept of; `metadata={"ibidem": "volatile"}`.
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
        read_only: Iterable[str] = (),
        volatile: Iterable[str] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(cache, IbidemCache) and options:
            raise InvalidInput(f"an IbidemCache has its options already (got {sorted(options)})")
        self._faults = Faults()
        self._tools = Tools(read_only, volatile, self._faults)
        self._owned = not isinstance(cache, IbidemCache)
        self.cache = cache if isinstance(cache, IbidemCache) else IbidemCache(cache, **options)
        self._lock = ForkSafeLock()
        self._begun: BoundedDict[str, Begun] = BoundedDict(_RUNS)

    def wrap_model_call(self, request: Request, handler: Callable[[Request], Response]) -> Response:
        """What the model said to this step before, or what it says now, which is stored."""
        if self._tools.volatile_called(request):
            with bypassing():
                return handler(request)
        step = self._faults.attempt(_LOOK_UP, partial(self._step, request, handler))
        if step is None:
            return handler(request)
        with step.asking:
            hit = self._faults.attempt(_LOOK_UP, partial(self._find, step))
            again = self._faults.attempt(_REPEAT, partial(_again, step, hit))
            if again is not None:
                served = self._faults.attempt(_REPEAT, lambda: steps.in_form(request, handler(again)))
                if served is not None:
                    self._faults.attempt(_STORE, partial(self._follow, step, served))
                    return served
            with bypassing():
                response = handler(request)
            self._faults.attempt(_STORE, partial(self._keep, step, response))
        return response

    async def awrap_model_call(
        self, request: Request, handler: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """As `wrap_model_call`: the cache works in threads, the tools are called from here."""
        if self._tools.volatile_called(request):
            with bypassing():
                return await handler(request)
        step = await in_thread(self._faults.attempt, _LOOK_UP, partial(self._step, request, handler))
        if step is None:
            return await handler(request)
        with step.asking:
            hit = await self._afind(step)
            again = self._faults.attempt(_REPEAT, partial(_again, step, hit))
            if again is not None:
                served = await self._aserved(request, handler(again))
                if served is not None:
                    await in_thread(self._faults.attempt, _STORE, partial(self._follow, step, served))
                    return served
            with bypassing():
                response = await handler(request)
            await in_thread(self._faults.attempt, _STORE, partial(self._keep, step, response))
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

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_begun": BoundedDict(_RUNS)}  # runs that are under way stay here

    def __enter__(self) -> IbidemMiddleware:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _step(self, request: Request, handler: Callable[[Request], Any]) -> _Step:
        """The step on its way to the cache.

        Raises:
            NotCacheable: It is not this middleware's to handle.
        """
        if not getattr(handler, "__qualname__", "").startswith(_MODEL_ITSELF):
            raise NotCacheable(
                "not_innermost",
                "a middleware after IbidemMiddleware may change what the model is shown; "
                "put IbidemMiddleware last in create_agent(middleware=[...])",
            )
        messages = steps.messages_of(request)
        asked, run = steps.split(messages)
        given, documents = steps.parameters(request), steps.documents_in(messages)
        asking, about = self.cache.asking(of_messages(messages), documents, steps.caller_of(request, given))
        beginning = ""
        if request.response_format is None and self._tools.some_read_only(request):
            beginning = digest(asking.request.namespace, of_messages(asked).fingerprint, *about)
        return _Step(request, asking, run, beginning, time.monotonic())

    def _find(self, step: _Step) -> Hit | None:
        objection = partial(self._objection, step)
        while (hit := step.asking.look(objection)) is None and step.asking.wait():
            pass
        return hit

    async def _afind(self, step: _Step) -> Hit | None:
        objection = partial(self._aobjection, step)
        try:
            while (hit := await step.asking.alook(objection)) is None and await step.asking.await_turn():
                pass
        except Exception as error:
            self._faults.note(_LOOK_UP, error)
            return None
        return hit

    def _objection(self, step: _Step, hit: Hit) -> str:
        """Why what was found must not be said: of a run, that its tools now return something else."""
        if (run := Run.of(hit)) is None:
            return ""
        if reason := run.objection(hit, step.asking.request.question):
            return reason
        step.whole = self._tools.return_the_same(step.request, run.calls)
        return "" if step.whole or hit.tier == "exact" else "documents_changed"

    async def _aobjection(self, step: _Step, hit: Hit) -> str:
        if (run := Run.of(hit)) is None:
            return ""
        if reason := run.objection(hit, step.asking.request.question):
            return reason
        step.whole = await self._tools.areturn_the_same(step.request, run.calls)
        return "" if step.whole or hit.tier == "exact" else "documents_changed"

    async def _aserved(self, request: Request, repeated: Awaitable[Response]) -> Response | None:
        try:
            return steps.in_form(request, await repeated)
        except Exception as error:
            self._faults.note(_REPEAT, error)
            return None

    def _keep(self, step: _Step, response: Response) -> None:
        """Store what the model said."""
        try:
            answer = self._answer(step, steps.in_form(step.request, response))
        except NotCacheable:
            step.asking.refuse()
            raise
        kept = step.asking.keep(answer)
        step.known = kept if isinstance(kept, Stored) else None
        self._follow(step, response)

    def _answer(self, step: _Step, response: Response) -> Answer:
        message = steps.said(response)
        answer = encode([ChatGeneration(message=message)], seconds=time.monotonic() - step.started)
        answer = to_store(answer, names := steps.form_names(step.request.response_format))
        if any(is_made_up(call["name"]) and call["name"] not in names for call in message.tool_calls):
            raise NotCacheable("form_untitled", "give the JSON schema of response_format a title")
        elsewhere = steps.used_at_the_provider(message)
        if self._tools.volatile(step.request, elsewhere):
            raise NotCacheable("volatile", "the provider used a tool whose results nothing is kept of")
        return replace(answer, semantic=answer.semantic and not elsewhere)

    def _follow(self, step: _Step, response: Response) -> None:
        """Note where the run has got to, and store it if this is its end; `forget` will find all of it."""
        message = steps.said(response)
        known = (step.known, self._followed(step, message))
        remember(message, *(entry for entry in known if entry), names=[message.id])

    def _followed(self, step: _Step, message: AIMessage) -> Hit | Stored | None:
        """The run, if it is stored here or was repeated."""
        if step.whole and isinstance(step.known, Hit) and (run := Run.of(step.known)) and run.entry:
            return Stored(run.entry, step.known.place)
        if not step.beginning or step.whole:
            return None
        request = step.asking.request
        answer = encode([ChatGeneration(message=message)])
        with self._lock:
            begun = self._begun.get(step.beginning)
            if not step.run:
                said = begun.said if begun else set()
                begun = Begun(request, answer.payload, step.started, said)
                self._begun.put(step.beginning, begun)
            if begun is not None and message.tool_calls:
                begun.said.add(saying(message))
        if begun is not None and step.run and answer.semantic and not steps.used_at_the_provider(message):
            return self._kept_run(step, begun, answer)
        return None

    def _kept_run(self, step: _Step, begun: Begun, final: Answer) -> Stored | None:
        calls = calls_in(step.run, begun.said)
        if not calls or not self._tools.read_only(step.request, (call.tool for call in calls)):
            return None
        words = handed_on(begun.request.question, step.run)
        entry = step.known.entry_id if step.known else ""
        run = Run(calls, words or (), begun.first, final.payload, entry)
        answer = run.answer(final, step.run, time.monotonic() - begun.started)
        kept = self.cache.cache.store(begun.request, replace(answer, semantic=words is not None))
        return kept if isinstance(kept, Stored) else None


def _again(step: _Step, hit: Hit | None) -> Request | None:
    """The request whose model repeats what was found."""
    if hit is None:
        return None
    step.known, run = hit, Run.of(hit)
    names = steps.form_names(step.request.response_format)
    (generation,) = decode(to_repeat(hit, names) if run is None else run.hit(hit, whole=step.whole))
    if not isinstance(generation, ChatGeneration) or not isinstance(generation.message, AIMessage):
        raise TypeError("the stored answer is not a message")
    return steps.repeating(step.request, generation.message)
