"""What a repeated answer costs and saves, as LangChain's own counters see it; and how it is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from langchain_core.callbacks import (
    BaseCallbackHandler,
    UsageMetadataCallbackHandler,
    get_usage_metadata_callback,
)
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, messages_from_dict, messages_to_dict
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as CompletionOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

import ibidem
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from tests.contracts.langchain import CountingChat, CountingCompletion
from tests.openai_server import OpenAIServer

ASKED = "What is the capital of France?"
REWORDED = "What is the capital city of France, please?"
SAVED = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
NOTHING = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@pytest.fixture
def adapter(cache: SemanticCache) -> Iterator[IbidemCache]:
    made = IbidemCache(cache)
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


@pytest.fixture
def model(server: OpenAIServer, adapter: IbidemCache) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0)


class CommunityCounter(BaseCallbackHandler):
    """Adds up as `get_openai_callback` does: by the message's usage, else by `llm_output`."""

    def __init__(self) -> None:
        self.calls, self.ends, self.tokens = 0, 0, 0

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.ends += 1
        generation = response.generations[0][0]
        usage = generation.message.usage_metadata if isinstance(generation, ChatGeneration) else None
        if usage:
            self.tokens += usage["total_tokens"]
            provider = generation.message.response_metadata["token_usage"]
            assert provider["total_tokens"] == usage["total_tokens"]
        elif response.llm_output and "token_usage" in response.llm_output:
            self.tokens += response.llm_output["token_usage"]["total_tokens"]


def ask(model: Any, how: str, question: str, *handlers: BaseCallbackHandler) -> AIMessage:
    config = {"callbacks": list(handlers)}
    if how == "invoke":
        return model.invoke(question, config)
    if how == "ainvoke":
        return asyncio.run(model.ainvoke(question, config))
    return model.batch([question], config)[0]


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "batch"])
def test_every_counter_sees_no_new_tokens_on_a_hit(model: ChatOpenAI, server: OpenAIServer, how: str) -> None:
    """The callbacks fire as for a call; the model's tokens are counted once, however often it is repeated."""
    usage, community, runs = UsageMetadataCallbackHandler(), CommunityCounter(), RunCollectorCallbackHandler()
    with get_usage_metadata_callback() as context:
        for question in (ASKED, ASKED, REWORDED):
            ask(model, how, question, usage, community, runs)
    assert server.count == 1
    assert [counted["total_tokens"] for counted in usage.usage_metadata.values()] == [18]
    assert [counted["total_tokens"] for counted in context.usage_metadata.values()] == [18]
    assert (community.calls, community.ends, community.tokens) == (3, 3, 18)
    traced = [run.outputs["generations"][0][0]["message"]["kwargs"] for run in runs.traced_runs]
    assert [message["usage_metadata"]["total_tokens"] for message in traced] == [18, 0, 0]
    assert ["ibidem" in message["response_metadata"] for message in traced] == [False, True, True]


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "batch"])
def test_a_hit_says_what_it_saved(model: ChatOpenAI, how: str) -> None:
    ask(model, how, ASKED)
    hit = ask(model, how, REWORDED)
    assert {name: hit.usage_metadata[name] for name in NOTHING} == NOTHING
    assert hit.response_metadata["ibidem"]["saved_tokens"] == SAVED
    assert hit.response_metadata["token_usage"]["total_tokens"] == 0
    assert hit.response_metadata["finish_reason"] == "stop"


def test_the_cache_knows_what_it_saved(model: ChatOpenAI, adapter: IbidemCache) -> None:
    for question in (ASKED, ASKED, REWORDED):
        model.invoke(question)
    assert adapter.cache.stats().tokens_saved == 36


def test_a_completion_model_spends_nothing_on_a_hit(server: OpenAIServer, adapter: IbidemCache) -> None:
    """LangChain tells handlers nothing of these hits: it did not before either."""
    completion = CompletionOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0)
    counter = CommunityCounter()
    first = completion.generate([ASKED], callbacks=[counter])
    again = completion.generate([ASKED], callbacks=[counter])
    assert (server.count, counter.tokens, counter.ends) == (1, 18, 1)
    assert again.generations[0][0].text == first.generations[0][0].text
    assert not (again.llm_output or {}).get("token_usage")


# forget -----------------------------------------------------------------------------------------------


def texts(model: Any, *questions: str) -> list[str]:
    return [str(model.invoke(question).content) for question in questions]


@pytest.mark.parametrize("of", ["fresh", "exact", "reworded"])
@pytest.mark.parametrize("how", ["invoke", "ainvoke", "batch"])
def test_a_message_is_forgotten(adapter: IbidemCache, how: str, of: str) -> None:
    """Fresh or repeated: asking again reaches the model, and its new answer takes the place."""
    model = CountingChat()
    message = ask(model, how, ASKED)
    if of != "fresh":
        message = ask(model, how, {"exact": ASKED, "reworded": REWORDED}[of])
    assert ibidem.forget(message)
    assert not ibidem.forget(message), "it is gone"
    assert texts(model, ASKED, ASKED, REWORDED) == ["answer 2"] * 3


@pytest.mark.parametrize("what", ["copy", "dictionary", "metadata", "generation", "result", "list"])
@pytest.mark.parametrize("fresh", [True, False])
def test_whatever_holds_the_message_will_do(adapter: IbidemCache, fresh: bool, what: str) -> None:
    model = CountingChat()
    if not fresh:
        model.invoke(ASKED)
    result = model.generate([[HumanMessage(ASKED)]])
    generation = result.generations[0][0]
    assert isinstance(generation, ChatGeneration)
    message = generation.message
    known = {
        "copy": deepcopy(message),
        "dictionary": messages_from_dict(messages_to_dict([message]))[0],
        "metadata": message.response_metadata,
        "generation": generation,
        "result": result,
        "list": [message],
    }[what]
    expected = not (fresh and what == "metadata")  # of a fresh answer its id or the object must be there
    assert ibidem.forget(known) == expected
    assert texts(model, ASKED) == ["answer 2" if expected else "answer 1"]


def test_a_message_that_a_graph_has_kept_is_forgotten(adapter: IbidemCache) -> None:
    model = CountingChat()
    made = StateGraph(MessagesState)
    made.add_node("ask", lambda state: {"messages": [model.invoke(state["messages"][-1:])]})
    made.add_edge(START, "ask")
    compiled = made.compile(checkpointer=InMemorySaver())

    def run(thread: str) -> Any:
        config: Any = {"configurable": {"thread_id": thread}}
        compiled.invoke({"messages": [HumanMessage(ASKED)]}, config)
        return compiled.get_state(config).values["messages"][-1]

    assert ibidem.forget(run("1")), "of a fresh answer"
    assert (run("2").content, (repeated := run("3")).content) == ("answer 2", "answer 2")
    assert ibidem.forget(repeated)
    assert run("4").content == "answer 3"


@pytest.mark.parametrize("fresh", [True, False])
def test_a_completion_is_forgotten_by_its_result(adapter: IbidemCache, fresh: bool) -> None:
    model = CountingCompletion()
    if not fresh:
        model.invoke(ASKED)
    result = model.generate([ASKED, "How large is Peru?"])
    assert ibidem.forget(result.generations[0])
    assert model.invoke("How large is Peru?") == "answer 2", "that of the other prompt stays"
    assert model.invoke(ASKED) == "answer 3"
    assert not ibidem.forget(model.invoke(ASKED)), "a bare text does not say where it is from"


def test_two_tenants_forget_their_own(adapter: IbidemCache) -> None:
    model = CountingChat()
    acme, globex = ({"metadata": {"ibidem_namespace": name}} for name in ("acme", "globex"))
    message = model.invoke(ASKED, acme)
    model.invoke(ASKED, globex)
    assert ibidem.forget(message)
    assert model.invoke(ASKED, globex).content == "answer 2"
    assert model.invoke(ASKED, acme).content == "answer 3"


def test_what_was_never_stored_is_not_forgotten(adapter: IbidemCache) -> None:
    cut = AIMessage("Par", response_metadata={"finish_reason": "length"})
    assert not ibidem.forget(CountingChat(say=(cut,)).invoke(ASKED))
    assert not ibidem.forget(AIMessage("Paris.", id="lc_run--unknown"))
    with ibidem.scope(bypass=True):
        assert not ibidem.forget(CountingChat().invoke(ASKED))
