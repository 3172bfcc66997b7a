"""Streams of LlamaIndex: the scope in which one is asked for counts, wherever it is read; `forget`."""

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
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import LLM, ChatMessage, CustomLLM, LLMMetadata
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from pydantic import BaseModel

import ibidem
from ibidem.adapter.method_wrappers import _family
from ibidem.cache import SemanticCache
from ibidem.scope import EMPTY_SCOPE, current, scope_of
from ibidem.types import Scope
from llama_index_ibidem import (
    CachedLLM,
    CachedSynthesizer,
    IbidemCallbackHandler,
    few_shot,
    install,
    uninstall,
)
from llama_index_ibidem.spans import STREAMS
from tests.contracts.langchain import Recording
from tests.contracts.llama_index import CountingFunctionCalling, Library, Script, shelves
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


class Around(CustomLLM):
    """A model of the program around a cached one; its async streams begin with their first step."""

    inner: Any

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="around")

    def complete(self, prompt: str, formatted: bool = False, **given: Any) -> Any:
        return self.inner.complete(prompt)

    def stream_complete(self, prompt: str, formatted: bool = False, **given: Any) -> Any:
        return self.inner.stream_complete(prompt)


def synthesizer(llm: Any, mode: str, wrap: Callable[[Any], Any] = lambda made: made) -> Any:
    if mode == "own":
        return wrap(MySynthesizer(llm=llm, streaming=True))
    return wrap(get_response_synthesizer(llm=llm, response_mode=mode, streaming=True))


def engine(llm: Any, mode: str, wrap: Callable[[Any], Any] = lambda made: made) -> RetrieverQueryEngine:
    return RetrieverQueryEngine(Library(shelves()), response_synthesizer=synthesizer(llm, mode, wrap))


def chat_engine(llm: Any, kind: str) -> Any:
    retriever = Library(shelves())
    given = {"llm": llm, "memory": ChatMemoryBuffer.from_defaults(token_limit=10_000)}
    if kind == "simple":
        return SimpleChatEngine.from_defaults(**given)
    if kind == "context":
        return ContextChatEngine.from_defaults(retriever, **given)
    if kind == "condense_question":
        return CondenseQuestionChatEngine.from_defaults(engine(llm, "compact"), **given)
    return CondensePlusContextChatEngine.from_defaults(retriever, **given)


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
    "model of the program: astream_complete": lambda m, q: Around(inner=m).astream_complete(q),
    "model of the program: astream_chat": lambda m, q: Around(inner=m).astream_chat([ChatMessage(q)]),
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
    if isinstance(begun, AsyncStreamingResponse) or getattr(begun, "achat_stream", None) is not None:
        return begun.async_response_gen()
    return getattr(begun, "response_gen", begun)


SCOPES: list[dict[str, Any]] = [
    {"namespace": "acme", "user": "ann", "ttl": 60.0, "tags": ("eu", "new")},
    {"namespace": "globex", "max_age": 3600.0},
    {"bypass": True},
    {},
]
EXPECTED = {scope_of(**said) for said in SCOPES}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    with ibidem.open(tmp_path_factory.mktemp("cache"), embedder=BagOfWords(), min_similarity=0.8) as opened:
        yield Recording(opened)


@pytest.fixture
def model() -> CountingFunctionCalling:
    return CountingFunctionCalling()


@pytest.fixture(params=["model", "handler"])
def cached(
    request: pytest.FixtureRequest,
    model: CountingFunctionCalling,
    core: Recording,
    monkeypatch: pytest.MonkeyPatch,
) -> LLM:
    """The model, cached by a `CachedLLM` or by a handler that it carries."""
    if request.param == "model":
        return CachedLLM(model, core)  # type: ignore[arg-type]
    model.callback_manager = CallbackManager([IbidemCallbackHandler(core)])  # type: ignore[arg-type]
    monkeypatch.setattr(Settings, "_callback_manager", model.callback_manager)
    return model


def in_thread(work: Callable[[], Any]) -> Any:
    """In a thread with this scope: in the main one LlamaIndex makes an event loop and leaves it open."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, work).result()


def asked(core: Recording, since: int) -> set[Scope | None]:
    return {request.scope_context for request in core.looked_up[since:]}


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
                assert current() is EMPTY_SCOPE
        else:
            with ibidem.scope(namespace="initech", user="eve", bypass=True, ttl=5, tags=("wrong",)):
                mine = current()
                with ThreadPoolExecutor(1) as pool:
                    for stream in streams:
                        next(stream)
                        pool.submit(list, stream).result()
                        assert current() is mine
        assert asked(core, since) == EXPECTED
        assert {request.scope_context for request in core.stored[stored:]} >= EXPECTED - {Scope(bypass=True)}


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
        assert {request.scope_context for request in core.stored[stored:]} >= EXPECTED - {Scope(bypass=True)}


@pytest.mark.filterwarnings("ignore:The `json` method is deprecated")
@pytest.mark.parametrize("way", WAYS)
def test_the_scope_of_the_asker_counts(cached: LLM, core: Recording, way: str) -> None:
    in_thread(lambda: read_in_all_ways(core, lambda question: WAYS[way](cached, question)))


@pytest.mark.filterwarnings("ignore:The `json` method is deprecated")
@pytest.mark.parametrize("way", AWAYS)
async def test_the_scope_of_the_asker_counts_in_async_code(cached: LLM, core: Recording, way: str) -> None:
    await aread_in_all_ways(core, lambda question: AWAYS[way](cached, question))


@pytest.mark.parametrize("mode", SYNTHESIZED)
def test_the_scope_of_the_asker_counts_for_a_cached_synthesizer(
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


@pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated")
@pytest.mark.filterwarnings("ignore:The `__fields_set__` attribute is deprecated")
@pytest.mark.filterwarnings("ignore:Accessing the 'model_")
async def test_the_scope_of_the_asker_counts_for_agents(cached: LLM, core: Recording) -> None:
    """Their runs are tasks, begun when they are asked; events are read outside."""
    llm, since, runs = cached, len(core.looked_up), list[Any]()
    for said in SCOPES:
        with ibidem.scope(**said):
            runs.append(FunctionAgent(llm=llm, tools=[]).run(question()))
    with ibidem.scope(namespace="initech"):
        for run in runs:
            assert [event async for event in run.stream_events()]
            await run
    assert asked(core, since) == EXPECTED


def test_two_tenants_get_their_own_answers(
    settings: None, model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """With `install`: their answers, each again from the cache, and their examples in the log."""
    install(cache, require_namespace=True)
    asked = "Which river is told to whom in France?"
    told: dict[str, set[str]] = {"acme": set(), "globex": set()}
    for _ in range(3):
        for tenant, answers in told.items():
            with ibidem.scope(namespace=tenant, tags=(tenant,)):
                response = in_thread(lambda: engine(Settings.llm, "compact").query(asked))
            answers.add("".join(response.response_gen))
    assert sorted(map(len, told.values())) == [1, 1]
    assert (len(set.union(*told.values())), len(model.script.asked)) == (2, 2)
    cache.flush()
    assert {(one.namespace, one.tags) for one in cache.examples.recent()} == {
        ("acme", ("acme",)),
        ("globex", ("globex",)),
    }


def test_what_cannot_be_caught_is_not_cached(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """A generator of the program itself asks with its first step, nobody knows for whom."""
    llm = CachedLLM(model, cache, require_namespace=True)

    def handler() -> Iterator[str]:
        for chunk in llm.stream_chat([ChatMessage("Who asks this?")]):
            yield chunk.delta or ""

    said = []
    for tenant in ("acme", "globex"):
        with ibidem.scope(namespace=tenant):
            stream = handler()
        said.append("".join(stream))
    assert said == ["answer 1", "answer 2"]
    assert (cache.stats().entries, llm.faults()) == (0, {"no_namespace": 2})


@pytest.mark.parametrize("mode", ["compact", "tree_summarize"])
def test_a_stream_that_is_closed_early_leaves_its_reader_alone(
    model: CountingFunctionCalling, core: Recording, mode: str
) -> None:
    model._script = Script(say=lambda asked, number: "a long answer of several words")
    llm, before = CachedLLM(model, core), len(core.stored)  # type: ignore[arg-type]
    with ibidem.scope(namespace="asker"):
        response = in_thread(lambda: engine(llm, mode).query(question()))
    with ibidem.scope(namespace="reader"):
        next(response.response_gen)
        response.response_gen.close()
        assert current().namespace == "reader"
    assert core.stored[before:] == []
    assert core.looked_up[-1].namespace == "asker"


def test_examples_are_selected_for_the_asker(cache: SemanticCache, model: CountingFunctionCalling) -> None:
    """The prompt is filled when the first token is read; the model itself is not cached."""
    for tenant in ("acme", "globex"):
        cache.examples.add(ibidem.Example("How long may I keep it?", f"{tenant}'s", namespace=tenant))
    cache.flush()
    template = PromptTemplate(
        "{examples}\n{context_str}\n{query_str}", function_mappings={"examples": few_shot(cache)}
    )
    made = get_response_synthesizer(
        llm=model, response_mode="compact", streaming=True, text_qa_template=template
    )
    for tenant, other in (("acme", "globex"), ("globex", "acme")):
        with ibidem.scope(namespace=tenant):
            stream = in_thread(lambda: made.get_response("How long can I keep it?", TEXTS))
        with ibidem.scope(namespace=other):
            list(stream)
        assert f"{tenant}'s" in model.script.asked[-1]
        assert f"{other}'s" not in model.script.asked[-1]


def test_the_methods_are_put_back(core: Recording) -> None:
    """When nobody needs them: no model, no synthesizer, no function for examples."""
    for holder in tuple(STREAMS._holders):
        STREAMS.release(holder)
    STREAMS.release(test_the_methods_are_put_back)

    def everything() -> dict[Any, Any]:
        names = {name for several in STREAMS._names.values() for name in several} | {"__init_subclass__"}
        kinds = {kind for base in STREAMS._names for kind in _family(base)}
        return {(kind, name): vars(kind).get(name) for kind in kinds for name in names}

    before = everything()
    llm = CachedLLM(CountingFunctionCalling(), core)  # type: ignore[arg-type]
    assert everything() != before
    STREAMS.release(llm._adapter)
    assert everything() == before


# forget -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("endpoint", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
def test_a_stream_of_a_model_is_forgotten(
    model: CountingFunctionCalling, cache: SemanticCache, endpoint: str, fresh: bool
) -> None:
    """By its last chunk, or by the stream itself."""
    llm = CachedLLM(model, cache)

    async def read() -> tuple[list[Any], Any]:
        stream = getattr(llm, endpoint)([ChatMessage("Which one?")] if "chat" in endpoint else "Which one?")
        stream = await stream if inspect.isawaitable(stream) else stream
        return [one async for one in stream] if hasattr(stream, "__anext__") else list(stream), stream

    for number in (1, 2):
        if not fresh:
            asyncio.run(read())
        chunks, stream = asyncio.run(read())
        known = chunks[-1] if number == 1 else stream
        assert (cache.stats().entries, len(model.script.asked)) == (1, number)
        assert ibidem.forget(known)
        assert cache.stats().entries == 0
        assert not ibidem.forget(known)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("kind", ["simple", "synthesizer", "async synthesizer"])
def test_a_streaming_response_is_forgotten(
    model: CountingFunctionCalling, cache: SemanticCache, kind: str, fresh: bool
) -> None:
    """That of a chat engine, and that of a cached synthesizer, in any query engine."""

    def read() -> Any:
        if kind == "simple":
            response = chat_engine(CachedLLM(model, cache), "simple").stream_chat("Which river of France?")
            list(response.response_gen)
            return response
        asks = engine(model, "compact", lambda inner: CachedSynthesizer(inner, cache))
        if kind == "synthesizer":
            response = asks.query("Which river of France?")
            list(response.response_gen)
            return response
        return asyncio.run(aread(asks))

    async def aread(asks: Any) -> Any:
        response = await asks.aquery("Which river of France?")
        async for _ in response.async_response_gen():
            pass
        return response

    if not fresh:
        in_thread(read)
    response = in_thread(read)
    assert cache.stats().entries == 1
    assert ibidem.forget(response)
    assert cache.stats().entries == 0
    assert not ibidem.forget(response)


def test_a_stream_that_was_not_stored_is_not_forgotten(
    model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """It is another's, or was closed early."""
    llm = CachedLLM(model, cache)
    stream = llm.stream_chat([ChatMessage("Which one?")])
    chunk = next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not ibidem.forget(stream)
    assert not ibidem.forget(chunk)
    with ibidem.scope(namespace="acme"):
        chunks = list(llm.stream_chat([ChatMessage("Which one?")]))
    with ibidem.scope(namespace="globex"):
        assert not ibidem.forget(chunks[-1])
    assert cache.stats().entries == 1
    with ibidem.scope(namespace="acme"):
        assert ibidem.forget(chunks[-1])
