"""Where streams, tenants, agents and `forget` meet: whose answer it is, in every way of calling at once."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as CompletionOpenAI
from pydantic import BaseModel, field_validator

import ibidem
from ibidem.cache import SemanticCache
from ibidem.types import Request
from langchain_ibidem import IbidemCache, IbidemMiddleware, install, uninstall
from langchain_ibidem.call import pending_calls
from langchain_ibidem.tracking import tracker
from tests.contracts.agents import ASKED as ASKED_AGENT
from tests.contracts.agents import Shop, ToolChat, ask, final
from tests.contracts.langchain import CountingChat, CountingCompletion, Recording
from tests.contracts.langchain_streams import (
    BY_MEANING,
    AsyncStreamingChat,
    StreamingChat,
    Way,
    astream,
    last,
    stream,
    sum_of,
)
from tests.helpers import Clock
from tests.openai_server import OpenAIServer

ASKED = "What is the capital of France?"


@pytest.fixture
def core(cache: SemanticCache) -> Recording:
    return Recording(cache)


@pytest.fixture
def used(core: Recording) -> Iterator[IbidemCache]:
    tracker().clear()
    yield install(IbidemCache(core))  # type: ignore[arg-type]
    uninstall()


@pytest.fixture
def strict(core: Recording) -> Iterator[IbidemCache]:
    tracker().clear()
    yield install(IbidemCache(core, require_namespace=True))  # type: ignore[arg-type]
    uninstall()


def by(**said: Any) -> RunnableConfig:
    return {"metadata": {f"ibidem_{name}": value for name, value in said.items()}}


def names(requests: list[Request]) -> set[str]:
    return {request.namespace for request in requests}


# the hook ---------------------------------------------------------------------------------------------

GENERATE = {"prompts", "stop", "callbacks", "tags", "metadata", "run_name", "kwargs"}
HOOKED: dict[tuple[type, str], set[str]] = {
    (BaseChatModel, "_generate_with_cache"): {"messages", "stop", "run_manager", "kwargs"},
    (BaseChatModel, "_agenerate_with_cache"): {"messages", "stop", "run_manager", "kwargs"},
    (BaseLLM, "generate"): GENERATE,
    (BaseLLM, "agenerate"): GENERATE,
}


@pytest.mark.parametrize(("kind", "name"), HOOKED)
def test_langchains_methods_take_what_the_hook_reads(kind: type, name: str) -> None:
    """If this fails, LangChain has moved what tells tenants apart."""
    method = inspect.unwrap(vars(kind)[name])
    assert HOOKED[kind, name] <= set(inspect.signature(method).parameters)
    assert inspect.iscoroutinefunction(method) == ("agenerate" in name)


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda model, config: model.invoke(ASKED, config, stop=["."], n=2),
    "ainvoke": lambda model, config: asyncio.run(model.ainvoke(ASKED, config, stop=["."], n=2)),
    "batch": lambda model, config: model.batch([ASKED], config, stop=["."], n=2),
    "abatch": lambda model, config: asyncio.run(model.abatch([ASKED], config, stop=["."], n=2)),
    "in a chain": lambda model, config: (RunnableLambda(str) | model.bind(stop=["."], n=2)).invoke(
        ASKED, config
    ),
}


@pytest.mark.parametrize("kind", [CountingChat, CountingCompletion])
@pytest.mark.parametrize("how", CALLS)
def test_the_hook_knows_model_arguments_and_metadata(
    how: str, kind: type[Any], used: IbidemCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    build = used._requests.build

    def watched(prompt: str, llm_string: str, call: Any, *others: Any) -> Request:
        seen.append(call)
        return build(prompt, llm_string, call, *others)

    monkeypatch.setattr(used._requests, "build", watched)
    model = kind(metadata={"mine": 1})
    CALLS[how](model, by(namespace="acme"))
    (call,) = seen
    assert (call.model, dict(call.parameters), call.stop) == (model, {"n": 2}, ["."])
    assert call.metadata["ibidem_namespace"] == call.inherited["ibidem_namespace"] == "acme"
    assert call.metadata["mine"] == 1
    assert "mine" not in call.inherited
    assert pending_calls() is None


@pytest.mark.parametrize("kind", [CountingChat, CountingCompletion])
@pytest.mark.parametrize("how", ["invoke", "ainvoke", "batch", "abatch"])
def test_the_hook_ends_a_call_that_fails(
    how: str, kind: type[Any], used: IbidemCache, core: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError("the provider is down")

    async def afail(*args: Any, **kwargs: Any) -> Any:
        fail()

    model = kind()
    with monkeypatch.context() as patched:
        patched.setattr(kind, "_generate", fail)
        patched.setattr(kind, "_agenerate", afail)
        with pytest.raises(OSError, match="the provider is down"):
            CALLS[how](model, {})
    assert len(core.looked_up) == 1
    assert not core.core.steps.flights._leaders
    assert pending_calls() is None


def test_a_cache_asked_within_a_call_is_asked_by_nobody(used: IbidemCache, core: Recording) -> None:
    """What a model itself looks up while it answers is not what LangChain looks up for it."""

    class Asking(CountingChat):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            used.lookup("What else is there?", "[('model', 'another')]")
            return super()._generate(*args, **kwargs)

    model = Asking()
    with ibidem.scope(namespace="acme"):
        first = model.invoke(ASKED, by(user="ann"))
    assert names(core.looked_up) == {"acme/user=ann", "acme"}
    assert model.invoke(ASKED, by(namespace="acme", user="ann")).text == first.text
    assert not core.core.steps.flights._leaders


# tenants and streams ----------------------------------------------------------------------------------


def in_v3(model: Any, prompt: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a beta
        return str(model.stream_events(prompt, version="v3").output.text)


def in_async_v3(model: Any, prompt: Any) -> str:
    async def read() -> str:
        told = await model.astream_events(prompt, version="v3")
        return str((await told.output).text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return asyncio.run(read())


WAYS: dict[str, Way] = {**BY_MEANING, "v3": in_v3, "async v3": in_async_v3}


def around(read: Way, model: Any, prompt: Any, config: RunnableConfig) -> str:
    """Read in a chain that was given the configuration, as a program's route is."""
    return str(RunnableLambda(lambda _: read(model, prompt)).invoke(None, config))


@pytest.mark.parametrize("said", ["scope", "metadata"])
@pytest.mark.parametrize("name", WAYS)
def test_a_stream_is_of_the_tenant_that_reads_it(
    name: str, said: str, strict: IbidemCache, core: Recording
) -> None:
    if "v3" in name and not hasattr(StreamingChat, "_chat_model_stream_v3"):
        pytest.skip("of newer versions of langchain-core")
    model = AsyncStreamingChat()

    def read(how: Way, tenant: str, user: str) -> str:
        if said == "metadata":
            return around(how, model, ASKED, by(namespace=tenant, user=user))
        with ibidem.scope(namespace=tenant, user=user):
            return how(model, ASKED)

    told = {(t, u): read(WAYS[name], t, u) for t in ("acme", "globex") for u in ("ann", "bob")}
    assert len(set(told.values())) == model.calls == 4
    for (tenant, user), answer in told.items():
        assert read(WAYS[name], tenant, user) == answer
        assert read(lambda m, p: str(m.invoke(p).text), tenant, user) == answer
    assert model.calls == 4
    assert names(core.stored) == {"acme/user=ann", "acme/user=bob", "globex/user=ann", "globex/user=bob"}
    assert strict.faults() == {}


@pytest.mark.parametrize("how", [stream, astream, in_v3, in_async_v3])
def test_a_stream_on_terms(how: Way, used: IbidemCache, core: Recording) -> None:
    """Of nobody, of two, or of someone who wants no cache or a fresh answer."""
    model, clock = AsyncStreamingChat(), Clock(core.core)
    for config in (by(namespace="acme"), by(namespace="globex")):
        around(how, model, ASKED, config)
    clock.advance(61)
    with ibidem.scope(namespace="acme"):
        assert around(how, model, ASKED, by(namespace="globex")) == "answer 3"
        assert around(how, model, ASKED, by(bypass=True)) == "answer 4"
        assert around(how, model, ASKED, by(namespace="acme", max_age=3600)) == "answer 1"
        assert around(how, model, ASKED, by(namespace="acme", max_age=60)) == "answer 5"
        assert around(how, model, ASKED, {}) == "answer 5"
    assert around(how, model, ASKED, by(namespace=7)) == "answer 6"
    assert used.faults() == {"namespace_conflict": 1, "metadata_invalid": 1}
    assert core.core.stats().entries == 2


BEGIN: dict[str, Callable[[Any], Any]] = {
    "stream": lambda model: model.stream(ASKED),
    "astream": lambda model: model.astream(ASKED),
    "v3": lambda model: model.stream_events(ASKED, version="v3"),
}


def read_to_the_end(begun: Any) -> str:
    if hasattr(begun, "__aiter__"):

        async def read() -> str:
            return "".join([chunk if isinstance(chunk, str) else chunk.text async for chunk in begun])

        return asyncio.run(read())
    if hasattr(begun, "output"):
        return str(begun.output.text)
    return "".join(chunk if isinstance(chunk, str) else chunk.text for chunk in begun)


@pytest.mark.filterwarnings("ignore:.*beta")
@pytest.mark.parametrize("kind", [AsyncStreamingChat, CountingChat])
@pytest.mark.parametrize("how", BEGIN)
def test_a_stream_is_of_the_tenant_that_began_it(
    how: str, kind: type[Any], used: IbidemCache, core: Recording
) -> None:
    """As a web framework does, that reads what a handler has returned."""
    if how == "v3" and (kind is CountingChat or not hasattr(kind, "_chat_model_stream_v3")):
        pytest.skip("it is for models that stream, in newer versions of langchain-core")
    model = kind()
    begun = []
    for tenant in ("acme", "globex"):
        with ibidem.scope(namespace=tenant):
            begun.append(BEGIN[how](model))
    with ibidem.scope(namespace="initech"):
        first = read_to_the_end(begun[0])
    assert read_to_the_end(begun[1]) != first
    assert names(core.looked_up) == names(core.stored) == {"acme", "globex"}
    with ibidem.scope(namespace="acme"):
        assert model.invoke(ASKED).text == first


def test_a_completion_model_is_streamed_to_the_tenant_that_began_it(
    server: OpenAIServer, used: IbidemCache, core: Recording
) -> None:
    model = CompletionOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0)
    with ibidem.scope(namespace="acme"):
        begun = model.stream(ASKED)
    first = read_to_the_end(begun)
    assert read_to_the_end(model.stream(ASKED, by(namespace="globex"))) != first
    assert model.invoke(ASKED, by(namespace="acme")) == first
    assert names(core.stored) == {"acme", "globex"}


class Wrapping(StreamingChat):
    """A model of somebody's, whose streams are his own and who asks another's `_stream` himself."""

    inner: Any = None

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in self.inner.stream(messages):
            yield ChatGenerationChunk(message=chunk)


def test_the_run_of_a_stream_is_its_own(used: IbidemCache, core: Recording) -> None:
    """Not that of a stream around it."""
    inner = StreamingChat(metadata=by(namespace="inner")["metadata"])
    outer = Wrapping(inner=inner, cache=False)
    stream(outer.with_config(by(namespace="outer")), ASKED)
    assert names(core.stored) == {"inner"}
    assert used.faults() == {}


class Awkward(StreamingChat):
    """A model that cannot say what it is."""

    @property
    def _serialized(self) -> Any:
        raise RuntimeError("not yet")


def test_no_error_of_ours_reaches_whoever_begins_a_stream(used: IbidemCache) -> None:
    """LangChain's own comes when it is read, as without us."""
    begun = Awkward().stream(ASKED)
    with pytest.raises(RuntimeError, match="not yet"):
        list(begun)


# forget -----------------------------------------------------------------------------------------------

READ: dict[str, Callable[[Any], Any]] = {
    "stream": lambda model: sum_of(list(model.stream(ASKED))),
    "astream": lambda model: asyncio.run(_gathered(model)),
    "last chunk": lambda model: list(model.stream(ASKED))[-1],
    "v3": lambda model: model.stream_events(ASKED, version="v3").output,
}


async def _gathered(model: Any) -> Any:
    return sum_of([chunk async for chunk in model.astream(ASKED)])


@pytest.mark.filterwarnings("ignore:.*beta")
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("how", READ)
def test_a_streamed_message_is_forgotten(how: str, fresh: bool, used: IbidemCache) -> None:
    if how == "v3" and not hasattr(StreamingChat, "_chat_model_stream_v3"):
        pytest.skip("of newer versions of langchain-core")
    model = AsyncStreamingChat()
    message = READ[how](model)
    if not fresh:
        message = READ[how](model)
    assert model.calls == 1
    assert ibidem.forget(message)
    assert not ibidem.forget(message)
    assert model.invoke(ASKED).text == "answer 2"


def test_a_streamed_message_with_an_id_of_its_own_is_forgotten(used: IbidemCache) -> None:
    said = (AIMessageChunk("so ", id="msg_1"), AIMessageChunk("it is", id="msg_1"), last())
    model = StreamingChat(say=said)
    assert ibidem.forget(sum_of(list(model.stream(ASKED))))


def test_tenants_forget_their_own_streams(used: IbidemCache) -> None:
    model = StreamingChat()
    told = {t: sum_of(list(model.stream(ASKED, by(namespace=t)))) for t in ("acme", "globex")}
    assert ibidem.forget(told["acme"])
    assert model.invoke(ASKED, by(namespace="globex")).text == told["globex"].text
    assert model.invoke(ASKED, by(namespace="acme")).text == "answer 3"


# answers in a form ------------------------------------------------------------------------------------

longest = 20


class Told(BaseModel):
    """What is told."""

    text: str

    @field_validator("text")
    @classmethod
    def _short(cls, text: str) -> str:
        if len(text) > longest:
            raise ValueError("too long")
        return text


@pytest.fixture
def openai_chat(server: OpenAIServer) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the client of OpenAI
def test_a_stream_in_a_form(
    openai_chat: ChatOpenAI,
    server: OpenAIServer,
    used: IbidemCache,
    cache: SemanticCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One entry with `invoke`; what no longer fits is asked anew, and is a miss in the log."""
    server.say = lambda body: '{"text": "ten letters"}'
    form = openai_chat.with_structured_output(Told)
    assert list(form.stream(ASKED))[-1] == Told(text="ten letters")
    assert used.faults() == {}
    assert list(form.stream(ASKED))[-1] == form.invoke(ASKED) == Told(text="ten letters")
    assert server.count == 1
    monkeypatch.setitem(globals(), "longest", 5)
    server.say = lambda body: '{"text": "five!"}'
    assert list(form.stream(ASKED))[-1] == form.invoke(ASKED) == Told(text="five!")
    assert server.count == 2
    cache.flush()
    assert [row.reason for row in cache.recent()][:2] == ["", "answer_invalid"]


def test_a_stream_that_does_not_fit_is_not_stored(used: IbidemCache, core: Recording) -> None:
    model = StreamingChat(say=('{"text": ', '"much longer than is allowed"}', last()))
    list(model.stream(ASKED, response_format=Told))
    assert (core.stored, used.faults()) == ([], {"answer_invalid": 1})


# tenants and agents -----------------------------------------------------------------------------------


class Agents:
    """An agent over a shop, whose middleware has a cache of its own."""

    def __init__(self, core: Recording, **options: Any) -> None:
        self.core, self.shop, self.model = core, Shop(), ToolChat()
        self.middleware = IbidemMiddleware(core, **options)  # type: ignore[arg-type]
        self.agent = self.made(self.model)

    def made(self, model: Any, **options: Any) -> Any:
        tools = [self.shop.tool("search")]
        return create_agent(model, tools, middleware=[self.middleware], **options)


@pytest.fixture
def agents(core: Recording) -> Agents:
    set_llm_cache(None)
    return Agents(core)


RUN: dict[str, Callable[[Any, Any, Any], Any]] = {
    "invoke": lambda agent, given, config: agent.invoke(given, config),
    "ainvoke": lambda agent, given, config: asyncio.run(agent.ainvoke(given, config)),
    "batch": lambda agent, given, config: agent.batch([given] * 2, config)[-1],
    "stream": lambda agent, given, config: list(agent.stream(given, config, stream_mode="values"))[-1],
    "messages": lambda agent, given, config: {
        "messages": [one for one, _ in agent.stream(given, config, stream_mode="messages")][-1:]
    },
    "in a chain": lambda agent, given, config: RunnableLambda(
        lambda _: agent.invoke(given, {"metadata": {"trace": 1}})
    ).invoke(None, config),
    "in a tool": lambda agent, given, config: RunnableLambda(lambda _: within_a_tool(agent, given)).invoke(
        None, config
    ),
}


def within_a_tool(inner: Any, given: Any) -> Any:
    """Of another agent."""
    told = []

    @tool
    def ask_another(query: str) -> str:
        """Ask another agent."""
        told.append(inner.invoke(given))
        return "told"

    create_agent(ToolChat(cache=False), [ask_another]).invoke({"messages": [("user", "Ask it!")]})
    return told[-1]


@pytest.mark.parametrize("said", ["scope", "metadata"])
@pytest.mark.parametrize("how", RUN)
def test_steps_are_repeated_for_the_same_tenant_only(how: str, said: str, core: Recording) -> None:
    agents = Agents(core, require_namespace=True)

    def run(question: str, tenant: str, user: str) -> str:
        given = {"messages": [("user", question)]}
        if said == "metadata":
            return final(RUN[how](agents.agent, given, by(namespace=tenant, user=user))).text
        with ibidem.scope(namespace=tenant, user=user):
            return final(RUN[how](agents.agent, given, None)).text

    tenants = [("acme", "ann"), ("acme", "bob"), ("globex", "ann")]
    told = {tenant: run(ASKED_AGENT, *tenant) for tenant in tenants}
    assert len(set(told.values())) == 3
    asked = agents.model.calls
    for tenant, answer in told.items():
        assert run(ASKED_AGENT, *tenant) == answer
    assert agents.model.calls == asked
    assert names(core.stored) == {"acme/user=ann", "acme/user=bob", "globex/user=ann"}
    assert agents.middleware.faults() == agents.middleware.cache.faults() == {}


def test_the_metadata_of_an_agents_model_count(agents: Agents, core: Recording) -> None:
    for tenant in ("acme", "globex"):
        agent = agents.made(agents.model.model_copy(update=by(namespace=tenant)))
        ask(agent, ASKED_AGENT)
        assert names(core.stored) == {"acme", tenant}
    own = agents.made(agents.model.model_copy(update=by(namespace="acme")))
    before = len(core.looked_up)
    ask(own, ASKED_AGENT, **by(namespace="globex"))
    assert len(core.looked_up) == before
    assert agents.middleware.faults() == {"namespace_conflict": 2}


def test_an_agent_of_nobody(core: Recording) -> None:
    agents = Agents(core, require_namespace=True)
    ask(agents.agent, ASKED_AGENT)
    asyncio.run(agents.agent.ainvoke({"messages": [("user", ASKED_AGENT)]}))
    assert (core.looked_up, core.stored) == ([], [])
    assert agents.middleware.faults() == {"no_namespace": 4}


def test_an_agent_without_its_configuration_is_not_cached(agents: Agents, core: Recording) -> None:
    """As in a thread of somebody's own: metadata of the run are not known, so its tenant is not."""
    from langchain_core.runnables.config import var_child_runnable_config

    from langchain_ibidem import middleware

    inherited = middleware._model_call_of

    def lost(request: Any, given: Any) -> Any:
        context = contextvars.copy_context()
        context.run(var_child_runnable_config.set, None)
        return context.run(inherited, request, given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(middleware, "_model_call_of", lost)
        assert ask(agents.agent, ASKED_AGENT, **by(namespace="acme")).text == "answer 2"
        assert ask(agents.agent, ASKED_AGENT, **by(namespace="globex")).text == "answer 4"
    assert (core.looked_up, agents.middleware.faults()) == ([], {"caller_unreadable": 4})


@pytest.mark.parametrize("which", ["fresh", "same words"])
def test_a_final_answer_of_an_agent_is_forgotten(which: str, agents: Agents) -> None:
    message = ask(agents.agent, ASKED_AGENT)
    if which == "same words":
        message = ask(agents.agent, ASKED_AGENT)
    assert message.text == "answer 2"
    assert ibidem.forget(message)
    assert ask(agents.agent, ASKED_AGENT).text not in ("answer 2", "")


def test_a_tool_call_of_an_agent_is_forgotten(agents: Agents) -> None:
    messages = agents.agent.invoke({"messages": [("user", ASKED_AGENT)]})["messages"]
    called = next(message for message in messages if getattr(message, "tool_calls", None))
    assert ibidem.forget(called)
    asked = agents.model.calls
    ask(agents.agent, ASKED_AGENT)
    assert agents.model.calls == asked + 1


def test_an_agents_form_that_no_longer_fits(
    agents: Agents, openai_chat: ChatOpenAI, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.say = None
    made = create_agent(
        openai_chat,
        [],
        middleware=[agents.middleware],
        response_format=ToolStrategy(Told, handle_errors=False),
    )

    def told() -> Any:
        return made.invoke({"messages": [("user", ASKED)]})["structured_response"]

    first = told()
    assert told() == first
    assert server.count == 1
    monkeypatch.setitem(globals(), "longest", 0)
    with pytest.raises(Exception, match="too long"):
        told()
    assert server.count == 2
