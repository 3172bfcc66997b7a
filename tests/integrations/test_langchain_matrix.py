"""Every kind of model, called in every way, from a cold cache to changed documents; requests are counted.

What a cell expects is in `tests.contracts.langchain_matrix`, one line for each way of calling; what a kind of
model cannot do is in `IMPOSSIBLE`, with the reason.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI, OpenAI

import ibidem
import langchain_ibidem
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from langchain_ibidem.tracking import tracker
from tests.contracts.agents import BlockChat, ToolChat
from tests.contracts.langchain import COUNTRIES, CountingCompletion, shelves
from tests.contracts.langchain_matrix import COLUMNS, World, call
from tests.helpers import rounds
from tests.openai_server import OpenAIServer


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


@pytest.fixture
def world(cache: SemanticCache) -> Iterator[World]:
    tracker().clear()
    langchain_ibidem.install(cache)
    yield World(cache)
    langchain_ibidem.uninstall()


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


# tenants ----------------------------------------------------------------------------------------------

QUESTIONS = [f"What is the capital of {country}?" for country in COUNTRIES[:8]]
TENANTS = [("acme", ""), ("acme", "ann"), ("globex", "ann")]
AT_ONCE = ("batch", "abatch", "generate")
HAMMERED = rounds(2_000, 20_000)
asking: ContextVar[tuple[str, str]] = ContextVar("asking")  # whom the model believes to be asked by


def secret() -> str:
    return "secret of {}/{}".format(*asking.get())


class Secretive(ToolChat):
    """Says the secret of the tenant who asks, in texts and in tool calls."""

    def _says(self, *given: Any) -> AIMessage:
        said = super()._says(*given)
        for called in said.tool_calls:
            called["args"] = {name: f"{value} {secret()}" for name, value in called["args"].items()}
        return AIMessage(f"{said.text} {secret()}", tool_calls=said.tool_calls)


class SecretiveChat(BlockChat, Secretive):
    """The same in content blocks, whole and streamed."""


class SecretiveOpenAI(ChatOpenAI):
    """The same in JSON, without the network."""

    def _generate(self, *given: Any, **others: Any) -> ChatResult:
        message = AIMessage(json.dumps({"city": secret()}), response_metadata={"finish_reason": "stop"})
        return ChatResult(generations=[ChatGeneration(message=message)])


Ask = Callable[[], list[Any]]


def in_scope(tenant: tuple[str, str], ask: Ask) -> list[Any]:
    with ibidem.scope(namespace=tenant[0], user=tenant[1] or None):
        return ask()


def in_a_chain(tenant: tuple[str, str], ask: Ask) -> list[Any]:
    found: list[Any] = RunnableLambda(lambda _: ask()).invoke(None, {"metadata": metadata(tenant)})
    return found


def metadata(tenant: tuple[str, str]) -> dict[str, str]:
    said = {"ibidem_namespace": tenant[0], "ibidem_user": tenant[1]}
    return {name: value for name, value in said.items() if value}


class Hammer:
    """Calls of all tenants, at random, in every way of calling and of saying whose they are."""

    def __init__(self, cache: SemanticCache) -> None:
        self.adapter = IbidemCache(cache, require_namespace=True)
        self.world = World(self.adapter)
        # At a temperature, as all others: what differs must be the tenant alone.
        openai = {"model": "m", "api_key": "x", "base_url": "http://127.0.0.1:9/v1", "temperature": 0}
        self.models = {"": SecretiveChat(cache=self.adapter), "json_schema": SecretiveOpenAI(**openai)}
        self.models["json_schema"].cache = self.adapter
        self.wrong: list[str] = []
        self.seen: set[tuple[str, str]] = set()

    def ask(self, number: int) -> int:
        """Some calls; returns how many."""
        draw = random.Random(number)
        names = sorted(COLUMNS)
        tenant, way = draw.choice(TENANTS), names[number % len(names)]
        said = draw.choice(("scope", "metadata", "model"))
        if (way, said) == ("generate", "metadata"):  # LangChain tells it nothing of the run around it
            said = "scope"
        self.seen.add((way, said))
        model = self.models["json_schema" if COLUMNS[way].needs == "json_schema" else ""]
        if said == "model":
            model = model.model_copy(update={"metadata": metadata(tenant)})
        questions = draw.choices(QUESTIONS, k=150 if way in AT_ONCE else 4)
        asking.set(tenant)

        def ask() -> list[Any]:
            return call(way, model, questions, self.world)

        told = {"scope": in_scope, "metadata": in_a_chain}.get(said, lambda _, ask: ask())(tenant, ask)
        self.wrong += [f"{way} by {said}: {answer}" for answer in told if not _is_of(tenant, answer)]
        return len(told)


def _is_of(tenant: tuple[str, str], answer: Any) -> bool:
    found = set(re.findall(r"secret of (\w+)/(\w*)", str(answer)))
    return found == {tenant}


def test_no_tenant_gets_anothers_answer(cache: SemanticCache) -> None:
    """Many calls with the same questions, by the same models, in every column, by scope and metadata."""
    tracker().clear()
    hammer = Hammer(cache)
    langchain_ibidem.install(hammer.adapter)
    set_llm_cache(None)  # only the streams of models with a cache of their own
    with ThreadPoolExecutor(4) as threads:
        asked = sum(threads.map(hammer.ask, range(rounds(5, 50) * len(COLUMNS))))
    langchain_ibidem.uninstall()

    assert hammer.wrong == []
    assert asked >= HAMMERED
    assert {way for way, _ in hammer.seen} == set(COLUMNS)
    assert {said for _, said in hammer.seen} == {"scope", "metadata", "model"}
    assert hammer.models[""].calls < asked / 5, "most are answered from the cache"
    assert hammer.adapter.faults() == {}
