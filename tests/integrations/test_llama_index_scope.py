"""`ibidem.scope` and `ibidem.forget` in LlamaIndex: models, engines, streams, synthesizers, examples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer

import ibidem
from ibidem.cache import SemanticCache
from llama_index_ibidem import CachedLLM, CachedSynthesizer, install, uninstall
from tests.contracts.llama_index import (
    ASKED,
    REWORDED,
    CountingFunctionCalling,
    FakeBackend,
    Library,
    shelves,
)


@pytest.fixture
def model() -> CountingFunctionCalling:
    return CountingFunctionCalling()


@pytest.fixture
def backend(model: CountingFunctionCalling) -> FakeBackend:
    return FakeBackend(model)


@pytest.fixture
def llm(model: CountingFunctionCalling, cache: SemanticCache) -> CachedLLM:
    return CachedLLM(model, cache, namespace="app")


def in_thread(work: Callable[[], Any]) -> Any:
    """In a thread with this scope: in the main one LlamaIndex makes an event loop and leaves it open."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, work).result()


def engine(llm: Any, synthesizer: Any = None) -> RetrieverQueryEngine:
    made = synthesizer or get_response_synthesizer(llm=llm)
    return RetrieverQueryEngine(Library(shelves()), response_synthesizer=made)


MESSAGES = [ChatMessage(ASKED)]
WAYS: dict[str, Callable[[CachedLLM], Any]] = {
    "chat": lambda llm: llm.chat(MESSAGES),
    "achat": lambda llm: asyncio.run(llm.achat(MESSAGES)),
    "complete": lambda llm: llm.complete(ASKED),
    "stream_chat": lambda llm: list(llm.stream_chat(MESSAGES))[-1],
    "query engine": lambda llm: in_thread(lambda: engine(llm).query(ASKED)),
    "async query engine": lambda llm: asyncio.run(engine(llm).aquery(ASKED)),
}


def namespaces(cache: SemanticCache) -> set[str]:
    cache.flush()
    return {row.namespace for row in cache.recent(1000)}


@pytest.mark.parametrize("way", WAYS)
def test_tenants_share_nothing(llm: CachedLLM, backend: FakeBackend, cache: SemanticCache, way: str) -> None:
    """And each gets its own again."""
    tenants: list[dict[str, Any]] = [
        {},
        {"namespace": "acme"},
        {"namespace": "acme", "user": "ann"},
        {"user": "ann"},
    ]
    said = []
    for _ in range(2):
        for tenant in tenants:
            with ibidem.scope(**tenant):
                said.append(str(WAYS[way](llm)))
    assert backend.calls == len(set(said[:4])) == 4
    assert said[:4] == said[4:]
    assert namespaces(cache) == {"app", "acme", "acme/user=ann", "app/user=ann"}


def test_a_stream_is_stored_where_it_was_asked(
    llm: CachedLLM, backend: FakeBackend, cache: SemanticCache
) -> None:
    with ibidem.scope(namespace="acme"):
        stream = llm.stream_chat(MESSAGES)
    with ibidem.scope(namespace="globex"):
        said = list(stream)[-1].message.content
        assert llm.chat(MESSAGES).message.content != said
    with ibidem.scope(namespace="acme"):
        assert llm.chat(MESSAGES).message.content == said
    assert backend.calls == 2


def test_a_bypass_stores_nothing(llm: CachedLLM, backend: FakeBackend, cache: SemanticCache) -> None:
    with ibidem.scope(bypass=True):
        stream = llm.stream_chat(MESSAGES)
        llm.chat(MESSAGES)
    list(stream)
    assert (backend.calls, cache.stats().entries, cache.stats().misses) == (2, 0, {})
    assert cache.examples.recent() == []


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, model: CountingFunctionCalling) -> Iterator[None]:
    for name in ("_llm", "_embed_model", "_callback_manager", "_prompt_helper"):
        monkeypatch.setattr(Settings, name, None)
    Settings._embed_model = MockEmbedding(8)
    Settings.llm = model
    yield
    uninstall()


def test_examples_belong_to_the_tenant(settings: None, backend: FakeBackend, cache: SemanticCache) -> None:
    """Those that the handler logs, too; a bypassed question is none."""
    install(cache)
    with ibidem.scope(namespace="acme", tags=("eu",)):
        in_thread(lambda: engine(Settings.llm).query(ASKED))
    with ibidem.scope(namespace="globex", bypass=True):
        in_thread(lambda: engine(Settings.llm).query(REWORDED))
    cache.flush()
    assert [(one.namespace, one.tags) for one in cache.examples.recent()] == [("acme", ("eu",))]


def test_a_required_namespace(settings: None, backend: FakeBackend, cache: SemanticCache) -> None:
    install(cache, require_namespace=True)
    for _ in range(2):
        in_thread(lambda: engine(Settings.llm).query(ASKED))
    assert (backend.calls, cache.stats().entries) == (2, 0)
    assert Settings.llm.faults() == {"no_namespace": 2}
    for _ in range(2):
        with ibidem.scope(namespace="acme"):
            in_thread(lambda: engine(Settings.llm).query(ASKED))
    assert backend.calls == 3


def test_a_synthesizer_that_requires_a_namespace(
    model: CountingFunctionCalling, backend: FakeBackend, cache: SemanticCache
) -> None:
    made = CachedSynthesizer(get_response_synthesizer(llm=model), cache, require_namespace=True)
    for scope in ({}, {}, {"namespace": "acme"}, {"namespace": "acme"}, {"namespace": "globex"}):
        with ibidem.scope(**scope):
            in_thread(lambda: engine(model, made).query(ASKED))
    assert (backend.calls, made.faults(), namespaces(cache)) == (4, {"no_namespace": 2}, {"acme", "globex"})


# forget -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("way", ["chat", "achat", "complete"])
def test_a_response_is_forgotten(llm: CachedLLM, backend: FakeBackend, way: str, fresh: bool) -> None:
    if not fresh:
        WAYS[way](llm)
    response = WAYS[way](llm)
    assert ibidem.forget(response)
    assert not ibidem.forget(response)
    again = WAYS[way](llm)
    assert (str(again) != str(response), backend.calls) == (True, 2)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("how", ["query", "aquery"])
def test_a_synthesis_is_forgotten(
    model: CountingFunctionCalling, backend: FakeBackend, cache: SemanticCache, how: str, fresh: bool
) -> None:
    asked = engine(model, CachedSynthesizer(get_response_synthesizer(llm=model), cache))

    def query() -> Any:
        return in_thread(lambda: asked.query(ASKED)) if how == "query" else asyncio.run(asked.aquery(ASKED))

    if not fresh:
        query()
    response = query()
    assert ibidem.forget(response)
    assert str(query()) != str(response)
    assert str(query()) != str(response)
    assert backend.calls == 2
