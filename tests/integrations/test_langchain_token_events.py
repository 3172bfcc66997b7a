"""Who follows an answer token by token sees of a hit what he saw of the miss: same events and text, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as CompletionOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_ibidem import IbidemCache, IbidemMiddleware, install, uninstall
from tests.conftest import OpenCache
from tests.contracts.langchain import CountingChat
from tests.contracts.langchain_streams import OnlyAsyncChat, StreamingChat
from tests.openai_server import OpenAIServer

ASKED = "What is the capital of France?"
TERMS = "Goods can be returned within thirty days, if they were not used and are still in their box."


@pytest.fixture(autouse=True)
def used(open_cache: OpenCache) -> Iterator[IbidemCache]:
    yield install(IbidemCache(open_cache()))
    uninstall()


def chat(server: OpenAIServer, **given: Any) -> ChatOpenAI:
    settings = {"model": "m", "base_url": server.url, "api_key": "sk-test", "max_retries": 0}
    return ChatOpenAI(**{**settings, **given})


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


# Programs that call a model within a run that somebody follows.


def graph(model: Any, how: str) -> Any:
    def node(state: MessagesState) -> Any:
        if how == "stream":
            chunks = list(model.stream(state["messages"]))
            return {"messages": [sum(chunks[1:], chunks[0])]}
        return {"messages": [model.invoke(state["messages"])]}

    async def anode(state: MessagesState) -> Any:
        if how == "astream":
            chunks = [chunk async for chunk in model.astream(state["messages"])]
            return {"messages": [sum(chunks[1:], chunks[0])]}
        return {"messages": [await model.ainvoke(state["messages"])]}

    made = StateGraph(MessagesState)
    made.add_node("answer", anode if how.startswith("a") else node)
    made.add_edge(START, "answer")
    made.add_edge("answer", END)
    return made.compile()


async def of_events(program: Any, given: Any, version: str = "v2") -> list[tuple[str, Any]]:
    return [
        (event["event"], event["data"].get("chunk", event["data"].get("output")))
        async for event in program.astream_events(given, version=version)
    ]


async def of_messages(program: Any, given: Any) -> list[tuple[str, Any]]:
    parts = [part async for part in program.astream(given, stream_mode="messages")]
    return [("message", message) for message, _ in parts]


def in_order(told: list[tuple[str, Any]]) -> list[str]:
    """The kinds of events in their order, as often as they are told in a row or not."""
    return [kind for kind, _ in groupby(kind for kind, _ in told)]


def tokens(told: list[tuple[str, Any]]) -> list[BaseMessage]:
    return [what for kind, what in told if kind in ("on_chat_model_stream", "message")]


def text_of(messages: list[BaseMessage]) -> str:
    return "".join(message.text for message in messages)


MODELS: dict[str, Callable[[OpenAIServer], Any]] = {
    "chat": chat,
    "streaming": lambda server: chat(server, streaming=True),
    "blocks": lambda server: chat(server, output_version="v1"),
    "bound": lambda server: chat(server).bind(stop=["."]),
    "structured": lambda server: chat(server).bind(response_format={"type": "json_object"}),
    "disabled": lambda server: chat(server, disable_streaming=True),
    "not streaming": lambda server: chat(server, streaming=False),
    "whole": lambda server: CountingChat(),
    "only async": lambda server: OnlyAsyncChat(),
    "both": lambda server: StreamingChat(),
}
FOLLOWED = {
    "v1": lambda program, given: of_events(program, given, "v1"),
    "v2": of_events,
    "messages": of_messages,
}


@pytest.mark.filterwarnings("ignore:astream_events version")
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_shows_a_hit_as_it_showed_the_miss(
    name: str, server: OpenAIServer, used: IbidemCache
) -> None:
    model, ways = MODELS[name](server), ["ainvoke", "astream"]
    for followed in FOLLOWED if name == "chat" else ("v2", "messages"):
        for how in ways if name == "only async" else ["invoke", "stream", *ways]:
            given = {"messages": [("user", f"Summarize: {followed} {how}")]}
            app = graph(model, how)
            miss, hit = (asyncio.run(FOLLOWED[followed](app, given)) for _ in range(2))
            assert [row.tier for row in used.cache.recent(2)] == ["exact", ""]
            assert in_order(miss) == in_order(hit), (followed, how)
            assert text_of(tokens(miss)) == text_of(tokens(hit))
            assert (len(tokens(miss)) > 1) == (len(tokens(hit)) > 1)  # in pieces, or at once
            assert len({message.id for message in tokens(hit)}) <= 1  # and of one message


@pytest.mark.parametrize("with_middleware", [False, True], ids=["cache", "middleware"])
@pytest.mark.filterwarnings("ignore:astream_events version")
@pytest.mark.parametrize("followed", FOLLOWED)
def test_an_agent_shows_a_run_of_hits_as_it_showed_the_misses(
    followed: str, with_middleware: bool, server: OpenAIServer, used: IbidemCache
) -> None:
    """Its calls of tools too."""
    middleware = [IbidemMiddleware(used)] if with_middleware else []
    agent = create_agent(chat(server), [weather], middleware=middleware)
    given = {"messages": [("user", ASKED)]}
    miss, hit = (asyncio.run(FOLLOWED[followed](agent, given)) for _ in range(2))
    assert server.count == 2
    assert in_order(miss) == in_order(hit)
    for kind in (AIMessage, ToolMessage) if followed == "messages" else (AIMessage,):
        said = [[m for m in tokens(told) if isinstance(m, kind)] for told in (miss, hit)]
        assert text_of(said[0]) == text_of(said[1]) != ""
    called = [[m for m in tokens(told) if getattr(m, "tool_call_chunks", None)] for told in (miss, hit)]
    assert "".join(c["args"] or "" for m in called[1] for c in m.tool_call_chunks) == "".join(
        c["args"] or "" for m in called[0] for c in m.tool_call_chunks
    )


@pytest.mark.parametrize("in_async", [False, True])
def test_an_agents_middleware_streams_as_its_model_would(in_async: bool, used: IbidemCache) -> None:
    class Model(FakeListChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    given = {"messages": [("user", ASKED)]}
    for disabled in (False, True, "tool_calling"):
        model = Model(responses=[TERMS], disable_streaming=disabled)
        agent = create_agent(model, [weather], middleware=[IbidemMiddleware(used)])
        asyncio.run(of_messages(agent, given))
        again = asyncio.run(of_messages(agent, given))
        if not in_async:
            again = [("message", m) for m, _ in agent.stream(given, stream_mode="messages")]
        assert text_of(tokens(again)) == TERMS
        assert (len([m for m in tokens(again) if m.text]) > 1) == (disabled is False)


def test_the_sum_of_the_tokens_is_the_message_of_the_hit(server: OpenAIServer) -> None:
    app, given = graph(chat(server), "ainvoke"), {"messages": [("user", ASKED)]}
    _, hit = (asyncio.run(of_events(app, given)) for _ in range(2))
    chunks = [chunk for chunk in tokens(hit) if isinstance(chunk, AIMessageChunk)]
    (said,) = [what for kind, what in hit if kind == "on_chat_model_end"]
    whole = sum(chunks[1:], chunks[0])
    assert (whole.id, whole.content) == (said.id, said.content)
    assert whole.response_metadata == said.response_metadata
    assert said.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"] == 0
    assert said.response_metadata["ibidem"]["tier"] == "exact"
    assert chunks[-1].chunk_position == "last"


def test_no_tokens_are_counted_for_what_is_told_again(server: OpenAIServer) -> None:
    counting = UsageMetadataCallbackHandler()
    app = graph(chat(server, stream_usage=True), "invoke")
    for _ in range(2):
        list(app.stream({"messages": [ASKED]}, {"callbacks": [counting]}, stream_mode="messages"))
        assert counting.usage_metadata["m"]["total_tokens"] == 18


def test_a_graph_keeps_one_message_for_each_answer(server: OpenAIServer) -> None:
    """Two nodes that ask the same get the same text under two ids."""
    model = chat(server)
    made = StateGraph(MessagesState)
    for name in ("one", "two"):
        made.add_node(name, lambda state: {"messages": [model.invoke(ASKED)]})
    made.add_edge(START, "one")
    made.add_edge("one", "two")
    app = made.compile()
    parts = list(app.stream({"messages": []}, stream_mode=["messages", "values"]))
    *_, (_, state) = (part for part in parts if part[0] == "values")
    assert len(state["messages"]) == 2
    assert len({message.id for message in state["messages"]}) == 2
    told = [part[1][0] for part in parts if part[0] == "messages"]
    assert text_of(told) == 2 * state["messages"][0].text


class Listener(BaseCallbackHandler):
    """Notes what it is told, as a tracer does."""

    def __init__(self, fail: bool = False) -> None:
        self.told: list[str] = []
        self.text = ""
        self.raise_error, self.fail = fail, fail

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("start")

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("start")

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        if self.fail:
            raise ValueError("enough")
        self.text += kwargs["chunk"].text
        self.told.append("token")

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.told.append("end")
        self.response = response

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told.append("error")

    @property
    def in_order(self) -> list[str]:
        return [kind for kind, _ in groupby(self.told)]


async def _ainvoke(model: Any, handler: Listener) -> Any:
    return await model.ainvoke(ASKED, {"callbacks": [handler]})


def heard(model: Any, in_async: bool, **given: Any) -> tuple[Listener, Any]:
    handler = Listener(**given)
    if in_async:
        return handler, asyncio.run(_ainvoke(model, handler))
    return handler, model.invoke(ASKED, {"callbacks": [handler]})


@pytest.mark.parametrize("in_async", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [ChatOpenAI, CompletionOpenAI])
def test_a_tracer_is_told_of_a_hit_what_it_was_told_of_the_miss(
    kind: Any, streaming: bool, in_async: bool, server: OpenAIServer
) -> None:
    """But of a completion model that does not stream: of its hits LangChain tells nothing."""
    model = kind(model="m", base_url=server.url, api_key="sk-test", max_retries=0, streaming=streaming)
    (miss, first), (hit, again) = (heard(model, in_async) for _ in range(2))
    assert getattr(again, "text", again) == getattr(first, "text", first)
    assert server.count == 1
    assert hit.in_order == (miss.in_order if streaming or kind is ChatOpenAI else [])
    assert hit.text == miss.text
    if hit.told:
        assert hit.response.generations[0][0].text == miss.response.generations[0][0].text
        assert not (hit.response.llm_output or {}).get("token_usage")
    assert hit.told.count("end") == hit.told.count("start") <= 1


async def test_a_completion_model_shows_its_hits_under_events(server: OpenAIServer) -> None:
    model = CompletionOpenAI(model="m", base_url=server.url, api_key="sk-test", streaming=True)

    async def ask(asked: str) -> str:
        return await model.ainvoke(asked)

    told = [await of_events(RunnableLambda(ask), ASKED) for _ in range(2)]
    assert server.count == 1
    assert in_order(told[0]) == in_order(told[1])
    assert "on_llm_stream" in in_order(told[1])
    texts = ["".join(what.text for kind, what in one if kind == "on_llm_stream") for one in told]
    assert texts[0] == texts[1]


def test_of_a_batch_each_hit_is_told(server: OpenAIServer) -> None:
    model = CompletionOpenAI(model="m", base_url=server.url, api_key="sk-test", streaming=True)
    questions = [ASKED, "Who wrote Hamlet?"]
    first = [model.invoke(question) for question in questions]
    handler = Listener()
    assert model.batch(questions, {"callbacks": [handler]}) == first
    assert (handler.told.count("start"), handler.told.count("end")) == (2, 2)
    assert handler.text in ("".join(first), "".join(reversed(first)))


@pytest.mark.parametrize("in_async", [False, True])
def test_a_handler_that_stops_a_miss_stops_a_hit(in_async: bool, server: OpenAIServer) -> None:
    model = chat(server, streaming=True)
    heard(model, in_async)
    with pytest.raises(ValueError, match="enough"):
        heard(model, in_async, fail=True)
    handler, again = heard(model, in_async)  # nobody waits for it
    assert handler.text == again.text
    assert server.count == 1


@pytest.mark.parametrize("in_async", [False, True])
def test_an_answer_that_cannot_be_cut_is_told_at_once(
    in_async: bool, server: OpenAIServer, used: IbidemCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(generation: Any) -> Any:
        raise TypeError

    model = chat(server, streaming=True)
    heard(model, in_async)
    monkeypatch.setattr("langchain_ibidem.call.chat_chunks", fail)
    handler, again = heard(model, in_async)
    assert (handler.told, again.text, server.count) == (["start", "end"], "answer 1", 1)
    assert used.faults() == {"tell a repeated answer in pieces: TypeError": 1}


def test_several_answers_are_told_at_once(server: OpenAIServer) -> None:
    model = chat(server, n=2)
    first, again = (model.generate([[HumanMessage(ASKED)]]).generations[0] for _ in range(2))
    assert [one.text for one in first] == [one.text for one in again]
    told = asyncio.run(of_events(RunnableLambda(lambda asked: model), ASKED))
    assert in_order(told).count("on_chat_model_end") == 1


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
def test_a_newer_handler_is_told_once_and_the_graph_keeps_its_message(server: OpenAIServer) -> None:
    """LangChain itself tells hits in its protocol of events, under the id of the run."""
    app, given = graph(chat(server), "ainvoke"), {"messages": [("user", ASKED)]}

    async def followed() -> tuple[list[str], Any, Any]:
        stream = await app.astream_events(given, version="v3")
        messages = [message async for message in stream.messages]
        said = (await stream.output())["messages"][-1]
        return [await message.text for message in messages], messages[0].message_id, said.id

    try:
        first, again = asyncio.run(followed()), asyncio.run(followed())
    except (TypeError, ValueError, NotImplementedError):
        pytest.skip("it came with newer versions of langchain-core and langgraph")
    assert first[0] == again[0] == ["answer 1"]
    assert first[1] == first[2] != again[1] == again[2]
    assert server.count == 1


def test_a_message_that_nobody_follows_keeps_an_id_of_its_own(server: OpenAIServer) -> None:
    model = chat(server)
    assert len({model.invoke(ASKED).id for _ in range(3)}) == 3
    assert isinstance(model.generate([[HumanMessage(ASKED)]]).generations[0][0], ChatGeneration)
