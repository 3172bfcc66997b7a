"""Tenants in LangChain: by `ibidem.scope` and by the metadata of a call, in every way of calling."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypedDict

import pytest
from langchain_core.caches import BaseCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import LLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langgraph.graph import END, START, StateGraph

import ibidem
from ibidem.errors import InvalidInput
from langchain_ibidem import IbidemCache
from langchain_ibidem.call import HOOKS, ModelCall, pending_calls
from tests.conftest import OpenCache
from tests.contracts.langchain import CountingChat, CountingCompletion, Recording
from tests.helpers import Clock

ASKED = "What is the capital of France?"
REWORDED = "What is the capital city of France, please?"


@pytest.fixture
def core(open_cache: OpenCache) -> Recording:
    return Recording(open_cache())


@pytest.fixture
def cache(core: Recording) -> Iterator[IbidemCache]:
    made = IbidemCache(core)
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


@pytest.fixture
def strict(core: Recording) -> Iterator[IbidemCache]:
    made = IbidemCache(core, require_namespace=True)
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


def by(**said: Any) -> Any:
    return {"metadata": {f"ibidem_{name}": value for name, value in said.items()}}


def names(core: Recording) -> list[str]:
    """Of the requests that were looked up, and stored alike."""
    looked_up = [request.namespace for request in core.looked_up]
    assert {request.namespace for request in core.stored} <= set(looked_up)
    return looked_up


# the caller is read from LangChain's own frames -------------------------------------------------------

Way = Callable[[Any, Any], Any]


def graph(model: Any) -> Any:
    class State(TypedDict):
        said: str

    def node(state: State) -> State:
        return {"said": text(model.invoke(ASKED))}

    async def anode(state: State) -> State:
        return {"said": text(await model.ainvoke(ASKED))}

    made = StateGraph(State)
    made.add_node("ask", RunnableLambda(node, anode))
    made.add_edge(START, "ask")
    made.add_edge("ask", END)
    return made.compile()


def text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.content)


async def gathered(model: Any, config: Any) -> None:
    await asyncio.gather(*(model.ainvoke(ASKED, config) for _ in range(3)))


CALLS: dict[str, Way] = {
    "invoke": lambda model, config: model.invoke(ASKED, config),
    "ainvoke": lambda model, config: asyncio.run(model.ainvoke(ASKED, config)),
    "batch": lambda model, config: model.batch([ASKED, REWORDED], config),
    "abatch": lambda model, config: asyncio.run(model.abatch([ASKED, REWORDED], config)),
    "gather": lambda model, config: asyncio.run(gathered(model, config)),
    "chain": lambda model, config: (ChatPromptTemplate.from_template("{q}") | model).invoke(
        {"q": ASKED}, config
    ),
    "chain in a batch": lambda model, config: (ChatPromptTemplate.from_template("{q}") | model).batch(
        [{"q": ASKED}, {"q": REWORDED}], config
    ),
    "parallel": lambda model, config: RunnableParallel(one=model, two=model).invoke(ASKED, config),
    "bound": lambda model, config: model.bind(stop=["."]).invoke(ASKED, config),
    "configured": lambda model, config: model.with_config(config).invoke(ASKED),
    "with_retry": lambda model, config: model.with_retry().invoke(ASKED, config),
    "with_fallbacks": lambda model, config: model.with_fallbacks([model]).invoke(ASKED, config),
    "graph": lambda model, config: graph(model).invoke({"said": ""}, config),
}
MODELS = {"chat": CountingChat, "completion": CountingCompletion}


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_metadata_of_a_call_names_its_tenant(
    strict: IbidemCache, core: Recording, kind: str, how: str
) -> None:
    model = MODELS[kind]()
    CALLS[how](model, by(namespace="acme", user="ann"))
    assert set(names(core)) == {"acme/user=ann"}
    asked, looked_up = model.calls, len(core.looked_up)
    CALLS[how](model, by(namespace="acme", user="ann"))
    assert model.calls == asked, "it is answered from the cache"
    CALLS[how](model, by(namespace="globex"))
    assert model.calls > asked, "another tenant is not"
    assert "globex" in names(core)[looked_up:]
    assert strict.faults() == {}


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_scope_holds_in_every_way_of_calling(
    strict: IbidemCache, core: Recording, kind: str, how: str
) -> None:
    model = MODELS[kind]()
    with ibidem.scope(namespace="acme"):
        CALLS[how](model, None)
    assert set(names(core)) == {"acme"}
    assert strict.faults() == {}


def test_a_graph_in_async_code_passes_metadata_on(strict: IbidemCache, core: Recording) -> None:
    asyncio.run(graph(CountingChat()).ainvoke({"said": ""}, by(namespace="acme")))
    assert names(core) == ["acme"]


def test_every_prompt_of_a_batch_has_its_own_tenant(cache: IbidemCache, core: Recording) -> None:
    """Also the second of a completion model's, whose first was found: the others are counted anew."""
    model = CountingCompletion()
    tenants = ["a", "b", "c", "b"]
    model.invoke(ASKED, by(namespace="a"))
    told = model.batch([ASKED] * 3, [by(namespace=tenant) for tenant in tenants[:3]])
    assert told[0] == "answer 1"
    assert len(set(told)) == 3
    assert model.batch([ASKED] * 4, [by(namespace=tenant) for tenant in tenants]) == [*told, told[1]]
    assert {request.namespace for request in core.stored} == {"a", "b", "c"}


def test_generate_with_several_conversations(cache: IbidemCache, core: Recording) -> None:
    model = CountingChat()
    asked = [[HumanMessage(ASKED)], [HumanMessage("How large is Peru?")]]
    first = model.generate(asked, metadata=by(namespace="acme")["metadata"])
    again = model.generate(asked, metadata=by(namespace="acme")["metadata"])
    assert [one[0].text for one in again.generations] == [one[0].text for one in first.generations]
    assert (model.calls, set(names(core))) == (2, {"acme"})


def test_the_metadata_of_a_model_counts_too(cache: IbidemCache, core: Recording) -> None:
    CountingChat(metadata=by(namespace="acme")["metadata"]).invoke(ASKED)
    CountingChat(metadata=by(namespace="acme")["metadata"]).invoke(ASKED, by(user="ann"))
    assert names(core) == ["acme", "acme/user=ann"]


def test_an_adapters_own_namespace_is_that_of_the_rest(core: Recording) -> None:
    model = CountingChat(cache=IbidemCache(core, namespace="app"))
    model.invoke(ASKED)
    model.invoke(ASKED, by(user="ann"))
    model.invoke(ASKED, by(namespace="acme"))
    with ibidem.scope(namespace="globex"):
        model.invoke(ASKED)
        model.cache.clear()
    assert names(core) == ["app", "app/user=ann", "acme", "globex"]
    assert core.core.stats().entries == 3


# what the metadata say --------------------------------------------------------------------------------


def test_metadata_can_bypass_the_cache(cache: IbidemCache, core: Recording) -> None:
    model = CountingChat()
    assert [text(model.invoke(ASKED, by(bypass=True))) for _ in range(2)] == ["answer 1", "answer 2"]
    model.invoke(ASKED)
    assert text(model.invoke(ASKED, by(bypass=True))) == "answer 4"
    assert text(model.invoke(ASKED, by(bypass=False))) == "answer 3"
    core.core.flush()
    assert [row.reason for row in core.core.recent()] == ["", "empty"]
    assert (core.core.stats().entries, cache.faults()) == (1, {})


def test_metadata_can_ask_for_a_fresh_answer(cache: IbidemCache, core: Recording) -> None:
    model = CountingChat()
    clock = Clock(core.core)
    model.invoke(ASKED)
    clock.advance(61)
    assert text(model.invoke(ASKED, by(max_age=3600))) == "answer 1"
    assert text(model.invoke(ASKED, by(max_age=60))) == "answer 2"
    assert text(model.invoke(ASKED, by(max_age=60))) == "answer 2"
    clock.advance(61)
    with ibidem.scope(max_age=3600):
        assert text(model.invoke(ASKED, by(max_age=60))) == "answer 3", "the narrower one counts"


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ({"namespace": 7}, "metadata_invalid"),
        ({"namespace": None}, "metadata_invalid"),
        ({"namespace": ""}, "metadata_invalid"),
        ({"user": ["ann"]}, "metadata_invalid"),
        ({"bypass": "yes"}, "metadata_invalid"),
        ({"max_age": "1h"}, "metadata_invalid"),
        ({"namspace": "acme"}, "metadata_invalid"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", MODELS)
def test_what_cannot_be_meant_is_not_cached(
    cache: IbidemCache, core: Recording, kind: str, said: Any, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A tenant that is not understood must not share with those that name none."""
    model = MODELS[kind]()
    assert text(model.invoke(ASKED, by(**said))) != text(asyncio.run(model.ainvoke(ASKED, by(**said))))
    assert (core.looked_up, core.stored, cache.faults()) == ([], [], {cause: 2})
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["namespace", "user"])
def test_two_names_for_one_call_are_served_neither(cache: IbidemCache, core: Recording, name: str) -> None:
    """Metadata may come from a client. Nothing is looked up, in neither namespace, and nothing stored."""
    model = CountingChat()
    for tenant in ("acme", "globex"):
        model.invoke(ASKED, by(**{name: tenant}))
    with ibidem.scope(**{name: "acme"}):
        assert text(model.invoke(ASKED, by(**{name: "globex"}))) == "answer 3"
        assert text(model.invoke(ASKED, by(**{name: "acme"}))) == "answer 1"
        assert text(asyncio.run(model.ainvoke(ASKED, by(**{name: "globex"})))) == "answer 4"
    assert cache.faults() == {"namespace_conflict": 2}
    own = CountingChat(metadata=by(**{name: "acme"})["metadata"])
    own.invoke(ASKED, by(**{name: "globex"}))
    assert cache.faults() == {"namespace_conflict": 3}
    assert len(core.stored) == 2


@pytest.mark.parametrize("kind", MODELS)
def test_without_a_namespace_nothing_is_cached_if_one_is_required(
    strict: IbidemCache, core: Recording, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = MODELS[kind]()
    for config in (None, by(user="ann"), {"metadata": {"tenant": "acme"}}):
        assert text(model.invoke(ASKED, config)) != text(asyncio.run(model.ainvoke(ASKED, config)))
    assert (core.looked_up, core.stored, strict.faults()) == ([], [], {"no_namespace": 6})
    (warning,) = caplog.records
    assert "ibidem.scope(namespace=" in warning.getMessage()
    with ibidem.scope(namespace="acme"):
        thread = threading.Thread(target=model.invoke, args=(ASKED,))
        thread.start()
        thread.join()
        model.invoke(ASKED)
    assert names(core) == ["acme"], "a thread of one's own is in no scope"


def test_a_required_namespace_and_one_for_all_contradict(core: Recording) -> None:
    with pytest.raises(InvalidInput, match="require_namespace"):
        IbidemCache(core, namespace="app", require_namespace=True)


# who is not known -------------------------------------------------------------------------------------


class Around(BaseCache):
    """Somebody's cache around ours, which changes what is asked."""

    def __init__(self, inner: IbidemCache, change: Callable[[str], str] = str) -> None:
        self.inner, self.change = inner, change

    def lookup(self, prompt: str, llm_string: str) -> Any:
        return self.inner.lookup(self.change(prompt), llm_string)

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        self.inner.update(self.change(prompt), llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        self.inner.clear(**kwargs)


@pytest.mark.parametrize("change", [str, str.swapcase], ids=["as it is", "changed"])
@pytest.mark.parametrize("kind", MODELS)
def test_tenants_are_known_through_a_cache_around_ours(
    core: Recording, kind: str, change: Callable[[str], str]
) -> None:
    model = MODELS[kind](cache=Around(IbidemCache(core), change))
    model.invoke(ASKED, by(namespace="acme"))
    model.invoke(ASKED, by(namespace="globex"))
    assert (model.calls, names(core)) == (2, ["acme", "globex"])


def test_a_direct_call_has_no_caller(cache: IbidemCache, core: Recording) -> None:
    assert pending_calls() is None
    assert cache.lookup(ASKED, "m") is None
    with ibidem.scope(namespace="acme"):
        cache.lookup(ASKED, "m")
    assert names(core) == ["", "acme"]


def test_who_has_the_model_at_hand_says_so(cache: IbidemCache) -> None:
    call = ModelCall(CountingChat(), None, {"n": 2}, ["."])
    assert (call.parameters, call.stop, call.metadata) == ({"n": 2}, ["."], {})
    told = ModelCall(call.model, SimpleNamespace(**by(namespace="acme")))
    assert cache._requests.build(ASKED, "m", told).namespace == "acme"


@pytest.mark.parametrize("kind", MODELS)
def test_without_the_hook_the_caller_is_unknown(core: Recording, kind: str) -> None:
    """Then only the strings and the scope count; a tenant named by metadata is not known."""
    model = MODELS[kind](cache=IbidemCache(core))
    HOOKS.calls.restore()
    try:
        with ibidem.scope(namespace="acme"):
            first, again = (text(model.invoke(ASKED, by(user="ann"))) for _ in range(2))
    finally:
        HOOKS.calls.apply()
    assert first == again
    assert set(names(core)) == {"acme"}
    assert not core.core.steps.flights._leaders


@pytest.mark.parametrize("kind", MODELS)
def test_one_batch_of_several_tenants_through_a_cache_around_ours(core: Recording, kind: str) -> None:
    """The same words of two tenants: a completion model's calls cannot be told apart there."""
    inner = IbidemCache(core)
    model = MODELS[kind](cache=Around(inner))
    told = model.batch([ASKED, ASKED], [by(namespace="acme"), by(namespace="globex")])
    assert text(told[0]) != text(told[1])
    assert sorted(names(core)) == (["acme", "globex"] if kind == "chat" else [])
    assert inner.faults() == ({} if kind == "chat" else {"caller_unreadable": 2})


# many tenants at once ---------------------------------------------------------------------------------

QUESTIONS = [f"What is the secret of door number {number}?" for number in range(6)]
TENANTS = [("acme", None), ("globex", None), ("acme", "ann"), ("globex", "ann"), ("acme", "bob")]


def secret(tenant: tuple[str, str | None], question: str) -> str:
    return f"{tenant} {question}"


class Teller(CountingChat):
    """Answers with the secret of the tenant that it is asked for, as a model behind a tenant's tools does."""

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self._calls.next()
        tenant = run_manager.metadata["tenant"]
        answer = AIMessage(secret(tenant, str(messages[-1].content)))
        return ChatResult(generations=[ChatGeneration(message=answer)])


class CompletionTeller(LLM):
    """The same as a completion model, which is asked for one tenant at a time."""

    @property
    def _llm_type(self) -> str:
        return "teller"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": "teller"}

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
        return secret(run_manager.metadata["tenant"], prompt)


class Hammer:
    """One tenant's calls, by metadata or in a scope; counts those answered with another's secret."""

    def __init__(self, model: Any, completion: Any) -> None:
        self.model, self.completion = model, completion
        self.graph = graph_of(model)
        self.wrong: list[str] = []

    def config(self, tenant: tuple[str, str | None], in_scope: bool) -> Any:
        namespace, user = tenant
        said = {"ibidem_namespace": namespace, **({"ibidem_user": user} if user else {})}
        return {"metadata": {"tenant": tenant, **({} if in_scope else said)}}

    def run(self, seed: int, times: int) -> int:
        """At least so many calls; returns how many."""
        draw, asked = random.Random(seed), 0
        while asked < times:
            tenant, in_scope = draw.choice(TENANTS), draw.random() < 0.5
            questions = draw.choices(QUESTIONS, k=draw.randint(2, 6))
            scope = {"namespace": tenant[0], "user": tenant[1]} if in_scope else {}
            with ibidem.scope(**scope):
                answers = self.ask(draw.randrange(6), questions, self.config(tenant, in_scope))
            asked += len(answers)
            pairs = zip(questions, answers, strict=False)
            self.wrong += [
                text(answer) for question, answer in pairs if text(answer) != secret(tenant, question)
            ]
        return asked

    def ask(self, how: int, questions: list[str], config: Any) -> list[Any]:
        model = self.model
        if how == 0:
            return [model.invoke(question, config) for question in questions]
        if how == 1:
            return model.batch(questions, {**config, "max_concurrency": 3})
        if how == 2:
            return asyncio.run(model.abatch(questions, config))
        if how == 3:
            return self.completion.batch(questions, config)
        if how == 4:
            return [self.graph.invoke({"asked": questions[0]}, config)["said"]]
        conversations = [[HumanMessage(question)] for question in questions]
        found = model.generate(conversations, metadata=config["metadata"])
        return [generations[0].message for generations in found.generations]


def graph_of(model: Any) -> Any:
    class State(TypedDict, total=False):
        asked: str
        said: str

    made = StateGraph(State)
    made.add_node("ask", lambda state: {"said": text(model.invoke(state["asked"]))})
    made.add_edge(START, "ask")
    made.add_edge("ask", END)
    return made.compile()


def test_no_tenant_gets_anothers_answer(strict: IbidemCache, core: Recording) -> None:
    """2,500 calls of five tenants with the same six questions, in threads, in every way of calling."""
    model = Teller()
    hammer = Hammer(model, CompletionTeller())
    with ThreadPoolExecutor(4) as threads:
        asked = sum(threads.map(hammer.run, range(4), [625] * 4))

    assert hammer.wrong == []
    assert asked >= 2_500
    assert model.calls < 200, "most are answered from the cache"
    assert strict.faults() == {}
    assert {request.namespace for request in core.stored} == {
        ibidem.namespace_of(n, u or "") for n, u in TENANTS
    }
