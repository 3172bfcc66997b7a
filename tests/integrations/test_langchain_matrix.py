"""Every kind of model, called in every way, from a cold cache to changed documents; requests are counted.

What a cell expects is in `tests.contracts.langchain_matrix`, one line for each way of calling; what a kind of
model cannot do is in `IMPOSSIBLE`, with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_openai import ChatOpenAI, OpenAI

from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from langchain_ibidem.tracker import install
from tests.contracts.agents import BlockChat, ToolChat
from tests.contracts.langchain import COUNTRIES, CountingCompletion, shelves
from tests.contracts.langchain_matrix import COLUMNS, World, call
from tests.openai_server import OpenAIServer, running_openai


@dataclass
class Row:
    """A model, and how many prompts it got."""

    model: Any
    asked: Callable[[], int]


def openai_chat(server: OpenAIServer) -> Row:
    """A real client."""
    chat = ChatOpenAI(model="gpt-4o-mini", base_url=server.url, api_key="x", temperature=0, max_retries=0)
    return Row(chat, lambda: server.count)


def openai_completion(server: OpenAIServer) -> Row:
    """A real client that sends the prompts of a batch in one request."""
    model = OpenAI(model="gpt-3.5-turbo-instruct", base_url=server.url, api_key="x", max_retries=0)
    return Row(model, lambda: sum(len(request["body"]["prompt"]) for request in server.requests))


def fake_chat(server: OpenAIServer) -> Row:
    model = ToolChat()
    return Row(model, lambda: model.calls)


def content_blocks(server: OpenAIServer) -> Row:
    """Answers as Anthropic's models do."""
    model = BlockChat()
    return Row(model, lambda: model.calls)


def fake_completion(server: OpenAIServer) -> Row:
    model = CountingCompletion()
    return Row(model, lambda: model.calls)


ROWS = {
    row.__name__: row for row in (openai_chat, openai_completion, fake_chat, content_blocks, fake_completion)
}
IMPOSSIBLE = {
    ("openai_completion", "tools"): "a completion model takes no tools, so it makes no agent either",
    ("openai_completion", "json_schema"): "LangChain has no structured output for completion models",
    ("openai_completion", "streams"): "streams are cached of chat models",
    ("fake_completion", "tools"): "as above",
    ("fake_completion", "json_schema"): "as above",
    ("fake_completion", "streams"): "as above",
    ("fake_chat", "json_schema"): "LangChain's own structured output is by tools; methods are ChatOpenAI's",
    ("content_blocks", "json_schema"): "as above",
}
CELLS = [
    (row, column) for row in ROWS for column in COLUMNS if (row, COLUMNS[column].needs) not in IMPOSSIBLE
]

ASKED = [f"What is the capital of {country}?" for country in COUNTRIES[:2]]
REWORDED = [f"What is the capital city of {country}?" for country in COUNTRIES[:2]]
OTHERS = [f"What is the capital of {country}?" for country in COUNTRIES[2:4]]


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAIServer]:
    with running_openai() as server:
        yield server


@pytest.fixture
def server(running: OpenAIServer) -> OpenAIServer:
    running.reset()
    return running


@pytest.fixture
def world(cache: SemanticCache) -> Iterator[World]:
    install().memory.forget()
    set_llm_cache(IbidemCache(cache))
    yield World(cache)
    set_llm_cache(None)


@pytest.mark.parametrize(("row", "column"), CELLS)
def test_cell(row: str, column: str, server: OpenAIServer, world: World) -> None:
    made, expected = ROWS[row](server), COLUMNS[column]

    def ask(questions: list[str]) -> tuple[list[Any], float]:
        before = made.asked()
        answers = call(column, made.model, questions, world)
        return answers, (made.asked() - before) / len(questions)

    first, cold = ask(ASKED)
    again, same = ask(ASKED)
    reworded, by_meaning = ask(REWORDED)
    _, other = ask(OTHERS)
    world.library.shelves = shelves(" of the north")
    changed, stale = ask(ASKED)

    costs = {"cold": cold, "same": same, "reworded": by_meaning, "other": other, "changed": stale}
    assert costs == {
        "cold": expected.cold,
        "same": 0,
        "reworded": expected.reworded,
        "other": expected.cold,
        "changed": expected.changed,
    }
    assert again == first
    if expected.reworded < expected.cold:
        assert reworded == first
    if expected.cold == 1 and expected.reworded == 0:
        assert not [answer for answer in changed if answer in first]


def test_all_ways_are_known() -> None:
    """A column that disappears, or a cell that nobody gives a reason for, does not go unnoticed."""
    assert {"invoke", "batch", "abatch", "generate", "tools", "agent", "langgraph", "retry"} <= set(COLUMNS)
    needs = {column.needs for column in COLUMNS.values()} | {"streams"}
    assert {what for _, what in IMPOSSIBLE} <= needs
    assert len(CELLS) == sum((row, c.needs) not in IMPOSSIBLE for row in ROWS for c in COLUMNS.values())


# two tenants ------------------------------------------------------------------------------------------

QUESTIONS = [f"What is the capital of {country}?" for country in COUNTRIES]
HAMMERED = 10_000


def tenant(cache: SemanticCache, name: str) -> ToolChat:
    """A model with a cache of its own, which says its tenant's secret in all its answers."""
    return ToolChat(cache=IbidemCache(cache, namespace=name), secret=f"secret of {name}: ")


def test_two_tenants_never_share_an_answer(cache: SemanticCache) -> None:
    """The same questions by the same model, at random and at once, in every way that says a text."""
    models = {name: tenant(cache, name) for name in ("alice", "bob")}
    worlds = {name: World(IbidemCache(cache, namespace=name)) for name in models}
    at_once = ("generate", "generate", "generate", "generate", "batch", "abatch")
    singly = ("invoke", "langgraph", "agent_with_middleware")

    def ask(number: int) -> int:
        draw = random.Random(number)
        name, way = draw.choice(sorted(models)), draw.choice(at_once + singly)
        questions = draw.choices(QUESTIONS, k=100 if way in at_once else 3)
        answers = call(way, models[name], questions, worlds[name])
        assert all(f"secret of {name}: answer " in str(answer) for answer in answers)
        return len(answers)

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(ask, range(HAMMERED // 60))) >= HAMMERED
    assert max(model.calls for model in models.values()) <= 6 * len(QUESTIONS)
