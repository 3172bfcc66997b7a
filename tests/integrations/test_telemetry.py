"""The spans of real clients' calls: whose children they are, in every way of calling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI

from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache, install, uninstall
from llama_index_ibidem import CachedLLM
from tests.conftest import OpenCache
from tests.openai_server import OpenAIServer
from tests.telemetry import Sdk, told_to

ASKED = "What is the capital of France?"
MESSAGES = [ChatMessage(ASKED)]


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sdk]:
    with told_to(monkeypatch) as one:
        yield one


@pytest.fixture
def cache(sdk: Sdk, open_cache: OpenCache) -> SemanticCache:
    return open_cache()


@pytest.fixture
def chat(server: OpenAIServer, cache: SemanticCache) -> Iterator[ChatOpenAI]:
    """LangChain's client, whose calls and streams are cached."""
    install(IbidemCache(cache))
    yield ChatOpenAI(model="gpt-4o-mini", base_url=server.url, api_key="sk-test", stream_usage=True)
    uninstall()


@pytest.fixture
def llm(server: OpenAIServer, cache: SemanticCache) -> CachedLLM:
    """LlamaIndex's."""
    return CachedLLM(OpenAI(model="gpt-4o-mini", api_base=server.url, api_key="sk-test"), cache)


async def read(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


async def read_later(stream: Any) -> list[Any]:
    return await read(await stream)


LANGCHAIN: dict[str, Callable[[ChatOpenAI], Any]] = {
    "invoke": lambda chat: chat.invoke(ASKED),
    "ainvoke": lambda chat: asyncio.run(chat.ainvoke(ASKED)),
    "batch": lambda chat: chat.batch([ASKED]),
    "abatch": lambda chat: asyncio.run(chat.abatch([ASKED])),
    "stream": lambda chat: list(chat.stream(ASKED)),
    "astream": lambda chat: asyncio.run(read(chat.astream(ASKED))),
}
LLAMA_INDEX: dict[str, Callable[[CachedLLM], Any]] = {
    "chat": lambda llm: llm.chat(MESSAGES),
    "achat": lambda llm: asyncio.run(llm.achat(MESSAGES)),
    "stream_chat": lambda llm: list(llm.stream_chat(MESSAGES)),
    "astream_chat": lambda llm: asyncio.run(read_later(llm.astream_chat(MESSAGES))),
}


def told_of(sdk: Sdk, call: Callable[[], Any]) -> None:
    """Called twice under a span: miss, store and hit are its children."""
    with sdk.tracer.start_as_current_span("request") as own, ThreadPoolExecutor(1) as pool:
        for _ in range(2):  # in a thread, as `asyncio.run` may leave no loop behind in the main one
            pool.submit(copy_context().run, call).result()
        mine = own.get_span_context().span_id
    lookups, stores = sdk.spans("ibidem.lookup"), sdk.spans("ibidem.store")

    assert [dict(span.attributes or {})["ibidem.outcome"] for span in (*lookups, *stores)] == [
        "miss",
        "hit",
        "stored",
    ]
    assert {span.parent.span_id for span in (*lookups, *stores) if span.parent is not None} == {mine}
    assert sdk.points("ibidem.lookups", "ibidem.outcome") == {("miss",): 1, ("hit",): 1}


@pytest.mark.parametrize("way", LANGCHAIN)
def test_langchain_under_a_span(sdk: Sdk, chat: ChatOpenAI, server: OpenAIServer, way: str) -> None:
    """The model is asked once; its stored answer is of the model that the server named."""
    told_of(sdk, lambda: LANGCHAIN[way](chat))

    assert server.count == 1
    assert sdk.span("ibidem.lookup")["gen_ai.response.model"] == "gpt-4o-mini"
    assert sdk.points("ibidem.tokens.saved", "gen_ai.token.type") == {("input",): 11, ("output",): 7}


@pytest.mark.parametrize("way", LLAMA_INDEX)
def test_llama_index_under_a_span(sdk: Sdk, llm: CachedLLM, server: OpenAIServer, way: str) -> None:
    """The same in LlamaIndex."""
    told_of(sdk, lambda: LLAMA_INDEX[way](llm))

    assert server.count == 1


async def test_requests_at_once_have_their_own_parents(sdk: Sdk, chat: ChatOpenAI) -> None:
    """As in a web server: tasks that each have a span."""

    async def handle(n: int) -> int:
        with sdk.tracer.start_as_current_span("request") as own:
            await chat.ainvoke(f"{ASKED} {n}")
            return own.get_span_context().span_id

    requests = await asyncio.gather(*map(handle, range(6)))
    for name in ("ibidem.lookup", "ibidem.store"):
        parents = [span.parent.span_id for span in sdk.spans(name) if span.parent is not None]
        assert sorted(parents) == sorted(requests)


def test_what_must_not_be_cached_is_an_error_by_its_cause(
    sdk: Sdk, chat: ChatOpenAI, server: OpenAIServer
) -> None:
    """Failures of adapters are told too; they have no class."""
    chat.invoke(ASKED, config={"metadata": {"ibidem_unknown": "s3cret"}})

    assert server.count == 1
    assert set(sdk.points("ibidem.errors", "ibidem.fault", "error.type")) == {("metadata_invalid", None)}
