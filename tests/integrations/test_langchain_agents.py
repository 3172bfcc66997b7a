"""Agents and graphs under the plain global cache: a session that is played again asks no model."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from langchain_ibidem.messages import of_messages
from tests.contracts.agents import ASKED, BlockChat, Shop, ToolChat, final
from tests.openai_server import running_openai

TURNS = (ASKED, "And who pays for it?", "Is that so for shoes?")


@pytest.fixture(autouse=True)
def _global_cache(cache: SemanticCache) -> Iterator[None]:
    set_llm_cache(IbidemCache(cache))
    yield
    set_llm_cache(None)


@pytest.fixture(params=["openai", "fake", "blocks"])
def counted(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Callable[[], int]]]:
    """A model, and how often it was asked."""
    if request.param != "openai":
        model = ToolChat() if request.param == "fake" else BlockChat()
        yield model, lambda: model.calls
        return
    with running_openai() as server:
        chat = ChatOpenAI(model="gpt-4o-mini", base_url=server.url, api_key="x", max_retries=0)
        yield chat, lambda: server.count


async def _streamed(program: Any, *given: Any) -> None:
    async for _ in program.astream(*given, stream_mode=["messages", "updates"]):
        pass


async def _told(program: Any, *given: Any) -> None:
    async for _ in program.astream_events(*given, version="v2"):
        pass


WAYS: dict[str, Callable[..., Any]] = {
    "invoke": lambda program, *given: program.invoke(*given),
    "stream": lambda program, *given: list(program.stream(*given, stream_mode="messages")),
    "ainvoke": lambda program, *given: asyncio.run(program.ainvoke(*given)),
    "astream": lambda program, *given: asyncio.run(_streamed(program, *given)),
    "astream_events": lambda program, *given: asyncio.run(_told(program, *given)),
}


def chat(agent: Any, thread: object, run: Callable[..., Any]) -> list[str]:
    """What the agent says in three turns."""
    config = {"configurable": {"thread_id": str(thread)}}
    for turn in TURNS:
        run(agent, {"messages": [HumanMessage(turn)]}, config)
    messages = agent.get_state(config).values["messages"]
    return [message.text for message in messages if isinstance(message, AIMessage) and not message.tool_calls]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [None, "shop"])
def test_a_chat_of_three_turns_is_replayed(
    way: str, name: str | None, counted: tuple[Any, Callable[[], int]]
) -> None:
    """By an agent made anew, with other ids and artifacts, in whatever way it is then run."""
    model, asked = counted
    numbers = itertools.count()

    @tool(response_format="content_and_artifact")
    def search(query: str) -> tuple[str, Any]:
        """Search the terms."""
        return "Goods can be returned within 30 days.", {"at": time.time(), "number": next(numbers)}

    def agent() -> Any:
        return create_agent(
            model, [search], system_prompt="Be brief.", checkpointer=InMemorySaver(), name=name
        )

    first = chat(agent(), "a", WAYS[way])
    assert asked() == 6
    for other in ("ainvoke" if way == "invoke" else "invoke", way):
        assert chat(agent(), f"b, {other}", WAYS[other]) == first
    assert asked() == 6
    assert next(numbers) == 9, "tools are called each time"


def test_parallel_calls_with_other_ids_are_the_same_conversation() -> None:
    """Only which result answers which call is compared."""
    shop, ids = Shop(), itertools.count()

    class Both(ToolChat):
        def _says(self, messages: Any, tools: Any) -> AIMessage:
            if len(messages) > 1:
                return super()._says(messages, None)
            calls = [("search", {"query": "goods"}), ("clock", {"zone": "UTC"})]
            made = [{"name": name, "args": args, "id": f"call_{next(ids)}"} for name, args in calls]
            return AIMessage("", tool_calls=made)

    model = Both()
    agent = create_agent(model, [shop.tool("search"), shop.tool("clock")])
    first, again = (agent.invoke({"messages": [HumanMessage(ASKED)]})["messages"] for _ in range(2))
    assert model.calls == 1, "the last step of the second run was known"
    *others, last, before_last = first[:-1]
    assert of_messages([*others, last, before_last]).fingerprint == of_messages(again[:-1]).fingerprint
    last, before_last = (
        one.model_copy(update={"tool_call_id": other.tool_call_id})
        for one, other in ((last, before_last), (before_last, last))
    )
    assert of_messages([*others, last, before_last]).fingerprint != of_messages(again[:-1]).fingerprint


def test_a_graph_is_replayed(counted: tuple[Any, Callable[[], int]]) -> None:
    """Two nodes that ask in turn, one of them about what the other said."""
    model, asked = counted

    def first(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    def second(state: MessagesState) -> Any:
        return {"messages": [model.invoke([*state["messages"], HumanMessage("Is that all?")])]}

    builder = StateGraph(MessagesState)
    builder.add_sequence([first, second])
    builder.add_edge(START, "first")
    builder.add_edge("second", END)
    graph = builder.compile()

    ends = [graph.invoke({"messages": [HumanMessage(ASKED)]}) for _ in range(3)]
    assert len({tuple(m.text for m in end["messages"]) for end in ends}) == 1
    assert [len(end["messages"]) for end in ends] == [3, 3, 3]
    assert asked() == 2


def test_a_changed_tool_result_is_another_conversation(counted: tuple[Any, Callable[[], int]]) -> None:
    model, asked = counted
    shop = Shop()
    agent = create_agent(model, [shop.tool("search")])
    first = agent.invoke({"messages": [HumanMessage(ASKED)]})
    shop.terms = "Goods can be returned within 14 days."
    second = agent.invoke({"messages": [HumanMessage(ASKED)]})
    assert asked() == 3
    assert final(first).text != final(second).text


class TestStreamedBlocks:
    """What a block of an answer looks like must not depend on how it came."""

    @staticmethod
    def fingerprint(*blocks: dict[str, Any]) -> str:
        return of_messages(
            [HumanMessage(ASKED), AIMessage(list(blocks)), HumanMessage("And then?")]
        ).fingerprint

    def test_in_pieces_or_at_once_they_are_the_same(self) -> None:
        at_once = self.fingerprint(
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "a", "name": "search", "input": {"query": "goods"}},
        )
        in_pieces = self.fingerprint(
            {"type": "text", "text": "Let me see.", "index": 0},
            {
                "type": "tool_use",
                "id": "b",
                "name": "search",
                "input": {},
                "partial_json": '{"query": "goods"}',
                "index": 1,
            },
        )
        assert in_pieces == at_once

    @pytest.mark.parametrize(
        "block",
        [
            {"type": "tool_use", "id": "a", "name": "search", "input": {"query": "shoes"}},
            {
                "type": "tool_use",
                "id": "a",
                "name": "search",
                "input": {},
                "partial_json": '{"query": "shoes"}',
            },
            {"type": "tool_use", "id": "a", "name": "search", "input": {}, "partial_json": '{"query": "go'},
            {"type": "tool_use", "id": "a", "name": "search", "input": {}},
            {"type": "tool_use", "id": "a", "name": "look", "input": {"query": "goods"}},
        ],
    )
    def test_other_arguments_are_another_conversation(self, block: dict[str, Any]) -> None:
        known = {"type": "tool_use", "id": "a", "name": "search", "input": {"query": "goods"}}
        assert self.fingerprint(block) != self.fingerprint(known)
