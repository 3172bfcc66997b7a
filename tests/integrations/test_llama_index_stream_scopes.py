"""Streams of LlamaIndex: the scope in which one is asked for counts, wherever it is read; and `forget` of them."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from pydantic import BaseModel

import ibidem
from ibidem.scoping import NOWHERE, Scope, current, scope_of
from llama_index_ibidem import CachedLLM, CachedSynthesizer, uninstall
from tests.contracts.langchain import Recording
from tests.contracts.llama_index import CountingFunctionCalling, Library, shelves
from tests.embedders import BagOfWords

_number = itertools.count(1)


def question() -> str:
    return f"Which river number {next(_number)} runs through the very largest city of France?"


class River(BaseModel):
    """What a structured answer is."""

    name: str = ""


class MyEngine(CustomQueryEngine):
    """An engine of the program, whose stream asks the model with its first step."""

    llm: Any

    def custom_query(self, query_str: str) -> Any:
        def pieces() -> Iterator[str]:
            yield str(self.llm.chat([ChatMessage(query_str)]))

        return StreamingResponse(pieces())

    async def acustom_query(self, query_str: str) -> Any:
        async def pieces() -> AsyncIterator[str]:
            yield str(await self.llm.achat([ChatMessage(query_str)]))

        return AsyncStreamingResponse(pieces())


class MySynthesizer(BaseSynthesizer):
    """A synthesizer of the program, which does the same."""

    def get_response(self, query_str: str, text_chunks: Any, **given: Any) -> Any:
        def pieces() -> Iterator[str]:
            yield str(self._llm.chat([ChatMessage(query_str)]))

        return pieces()

    async def aget_response(self, query_str: str, text_chunks: Any, **given: Any) -> Any:
        async def pieces() -> AsyncIterator[str]:
            yield str(await self._llm.achat([ChatMessage(query_str)]))

        return pieces()

    def _get_prompts(self) -> Any:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        """There are none."""


def synthesizer(llm: Any, mode: str, wrap: Callable[[Any], Any] = lambda made: made) -> Any:
    if mode == "own":
        return wrap(MySynthesizer(llm=llm, streaming=True))
    return wrap(get_response_synthesizer(llm=llm, response_mode=mode, streaming=True))


def engine(llm: Any, mode: str, wrap: Callable[[Any], Any] = lambda made: made) -> RetrieverQueryEngine:
    return RetrieverQueryEngine(Library(shelves()), response_synthesizer=synthesizer(llm, mode, wrap))


def chat_engine(llm: Any, kind: str) -> Any:
    retriever = Library(shelves())
    if kind == "simple":
        return SimpleChatEngine.from_defaults(llm=llm)
    if kind == "context":
        return ContextChatEngine.from_defaults(retriever, llm=llm)
    if kind == "condense_question":
        return CondenseQuestionChatEngine.from_defaults(engine(llm, "compact"), llm=llm)
    return CondensePlusContextChatEngine.from_defaults(retriever, llm=llm)


TEXTS = [f"The Seine runs through Paris. {'It is long. ' * 30}"]
MODES = ["compact", "refine", "simple_summarize", "tree_summarize", "generation", "own"]
CHATS = ["simple", "context", "condense_question", "condense_plus_context"]
PROMPT = PromptTemplate("{query_str}")
# Each takes the cached model, or one that is not cached and what caches a synthesizer, and a question.
WAYS: dict[str, Callable[[Any, str], Any]] = {
    **{f"query: {mode}": lambda m, q, mode=mode: engine(m, mode).query(q) for mode in MODES},
    **{f"stream_chat: {kind}": lambda m, q, kind=kind: chat_engine(m, kind).stream_chat(q) for kind in CHATS},
    "get_response: compact": lambda m, q: synthesizer(m, "compact").get_response(q, TEXTS),
    "get_response: own": lambda m, q: synthesizer(m, "own").get_response(q, TEXTS),
    "engine of the program": lambda m, q: MyEngine(llm=m).query(q),
    "model: stream_chat": lambda m, q: m.stream_chat([ChatMessage(q)]),
    "model: stream_complete": lambda m, q: m.stream_complete(q),
    "model: stream": lambda m, q: m.stream(PROMPT, query_str=q),
    "model: stream_structured_predict": lambda m, q: m.stream_structured_predict(River, PROMPT, query_str=q),
    "structured model: stream_chat": lambda m, q: m.as_structured_llm(River).stream_chat([ChatMessage(q)]),
}
AWAYS: dict[str, Callable[[Any, str], Any]] = {
    **{f"aquery: {mode}": lambda m, q, mode=mode: engine(m, mode).aquery(q) for mode in MODES},
    **{
        f"astream_chat: {kind}": lambda m, q, kind=kind: chat_engine(m, kind).astream_chat(q)
        for kind in CHATS
    },
    "aget_response: own": lambda m, q: synthesizer(m, "own").aget_response(q, TEXTS),
    "engine of the program": lambda m, q: MyEngine(llm=m).aquery(q),
    "model: astream_chat": lambda m, q: m.astream_chat([ChatMessage(q)]),
    "model: astream": lambda m, q: m.astream(PROMPT, query_str=q),
    "model: astream_structured_predict": lambda m, q: m.astream_structured_predict(
        River, PROMPT, query_str=q
    ),
    "structured model: astream_chat": lambda m, q: m.as_structured_llm(River).astream_chat([ChatMessage(q)]),
}
SYNTHESIZED = ["compact", "refine", "tree_summarize", "own"]


def of(begun: Any) -> Any:
    """The stream of what was begun."""
    for name in ("async_response_gen", "response_gen"):
        if name == "async_response_gen" and getattr(begun, "achat_stream", None) is None:
            if not isinstance(begun, AsyncStreamingResponse):
                continue
        if (found := getattr(begun, name, None)) is not None:
            return found() if callable(found) else found
    return begun


SCOPES: list[dict[str, Any]] = [
    {"namespace": "acme", "user": "ann", "ttl": 60.0, "tags": ("eu", "new")},
    {"namespace": "globex", "max_age": 3600.0},
    {"bypass": True},
    {},
]
EXPECTED = {scope_of(**said) for said in SCOPES}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    with ibidem.open(tmp_path_factory.mktemp("cache"), embedder=BagOfWords(), threshold=0.8) as opened:
        yield Recording(opened)


@pytest.fixture
def model() -> CountingFunctionCalling:
    return CountingFunctionCalling()


def in_thread(work: Callable[[], Any]) -> Any:
    """In a thread with this scope: in the main one LlamaIndex makes an event loop and leaves it open."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, work).result()


def asked(core: Recording, since: int) -> set[Scope | None]:
    return {request.within for request in core.looked_up[since:]}


def begun(begin: Callable[[str], Any]) -> list[Any]:
    streams = []
    for said in SCOPES:
        with ibidem.scope(**said):
            streams.append(of(begin(question())))
    return streams


def read_in_all_ways(core: Recording, begin: Callable[[str], Any]) -> None:
    """Within another's scope; and step by step, in turns, the steps in other threads."""
    for interleaved in (False, True):
        since, stored = len(core.looked_up), len(core.stored)
        streams = begun(begin)
        if interleaved:
            for _ in itertools.zip_longest(*streams):
                assert current() is NOWHERE
        else:
            with ibidem.scope(namespace="initech", user="eve", bypass=True, ttl=5, tags=("wrong",)):
                mine = current()
                with ThreadPoolExecutor(1) as pool:
                    for stream in streams:
                        next(stream)
                        pool.submit(list, stream).result()
                        assert current() is mine
        assert asked(core, since) == EXPECTED
        assert {request.within for request in core.stored[stored:]} >= EXPECTED - {Scope(bypass=True)}


async def aread_in_all_ways(core: Recording, begin: Callable[[str], Any]) -> None:
    for in_another in (True, False):
        since, stored = len(core.looked_up), len(core.stored)
        streams = []
        for said in SCOPES:
            with ibidem.scope(**said):
                begins = begin(question())
                streams.append(of(await begins if inspect.isawaitable(begins) else begins))

        async def read(stream: Any) -> None:
            async for _ in stream:
                pass

        if in_another:
            with ibidem.scope(namespace="initech", user="eve", bypass=True, ttl=5, tags=("wrong",)):
                for stream in streams:
                    await read(stream)
        else:
            await asyncio.gather(*map(read, streams))
        assert asked(core, since) == EXPECTED
        assert {request.within for request in core.stored[stored:]} >= EXPECTED - {Scope(bypass=True)}


@pytest.mark.parametrize("way", WAYS)
def test_the_scope_of_the_asker_counts(model: CountingFunctionCalling, core: Recording, way: str) -> None:
    llm = CachedLLM(model, core)  # type: ignore[arg-type]
    in_thread(lambda: read_in_all_ways(core, lambda question: WAYS[way](llm, question)))


@pytest.mark.parametrize("way", AWAYS)
async def test_so_it_does_in_async_code(model: CountingFunctionCalling, core: Recording, way: str) -> None:
    llm = CachedLLM(model, core)  # type: ignore[arg-type]
    await aread_in_all_ways(core, lambda question: AWAYS[way](llm, question))


@pytest.mark.parametrize("mode", SYNTHESIZED)
def test_so_it_does_for_a_cached_synthesizer(
    model: CountingFunctionCalling, core: Recording, mode: str
) -> None:
    made = engine(model, mode, lambda inner: CachedSynthesizer(inner, core))  # type: ignore[arg-type]
    in_thread(lambda: read_in_all_ways(core, made.query))
    asyncio.run(aread_in_all_ways(core, made.aquery))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, model: CountingFunctionCalling) -> Iterator[None]:
    for name in ("_llm", "_embed_model", "_callback_manager", "_prompt_helper"):
        monkeypatch.setattr(Settings, name, None)
    Settings._embed_model = MockEmbedding(8)
    Settings.llm = model
    yield
    uninstall()
