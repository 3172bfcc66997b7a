"""A callback handler alone: it answers for the models that carry it, as long as they do, and for no other."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import llama_index.core
import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, MockLLM
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index_instrumentation.span import BaseSpan
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import BaseModel, PrivateAttr

import ibidem
from ibidem.adapter.method_wrappers import _family
from ibidem.cache import SemanticCache
from llama_index_ibidem import CachedLLM, CachedSynthesizer, IbidemCallbackHandler, endpoints
from llama_index_ibidem.request import identity
from llama_index_ibidem.serving import LED, _endpoints_for
from tests.conftest import OpenCache
from tests.contracts.llama_index import (
    ASKED,
    COUNTRIES,
    ENDPOINTS,
    OTHER,
    REWORDED,
    STREAMS,
    Backend,
    CountingCompletion,
    CountingEvents,
    CountingFunctionCalling,
    FakeBackend,
    Library,
    OpenAIBackend,
    answer_of,
    pieces_of,
    settings_restored,
    shelves,
)
from tests.embedders import BagOfWords
from tests.openai_server import OpenAIServer

on_all_endpoints = pytest.mark.parametrize("endpoint", ENDPOINTS)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """LlamaIndex's global settings hold nothing, and are as before after each test."""
    with settings_restored():
        Settings._llm = Settings._callback_manager = None
        Settings.embed_model = MockEmbedding(8)
        yield
        llama_index.core.global_handler = None
        assert endpoints._calls == {}  # nobody is asking any longer


@pytest.fixture
def backend(server: OpenAIServer) -> Backend:
    """LlamaIndex's own client of a server that speaks as OpenAI does."""
    made = OpenAIBackend(server)
    made.reset()
    return made


@pytest.fixture
def handler(cache: SemanticCache) -> IbidemCallbackHandler:
    """A handler that no manager has."""
    return IbidemCallbackHandler(cache)


def fake(*handlers: Any) -> CountingFunctionCalling:
    return CountingFunctionCalling(callback_manager=CallbackManager(list(handlers)))


def engine(**options: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(Library(shelves()), **options)


async def ask(engine: Any, question: str = ASKED) -> Any:
    """Ask it in a thread: in the main one LlamaIndex makes an event loop and leaves it open."""
    return await asyncio.to_thread(engine.query, question)


# Which models ---------------------------------------------------------------------------------------------


async def test_one_line_makes_a_program_ask_the_cache(
    backend: Backend, handler: IbidemCallbackHandler, cache: SemanticCache
) -> None:
    """Engines are answered, what the model answered is logged, and the model is the one that was set."""
    Settings.llm = backend.model
    Settings.callback_manager.add_handler(handler)
    told = [str(await ask(engine(), question)) for question in (ASKED, REWORDED, OTHER, ASKED)]
    assert (told, backend.calls) == (["answer 1", "answer 1", "answer 2", "answer 1"], 2)
    assert Settings.llm is backend.model
    assert [example.question for example in cache.examples.recent()] == [OTHER, ASKED]
    assert handler.faults() == {}


@on_all_endpoints
async def test_removed_it_ends_and_added_again_it_goes_on(
    backend: Backend, handler: IbidemCallbackHandler, endpoint: str
) -> None:
    """Each call looks whether the handler is in the manager of its model now."""
    llm, manager = backend.model, CallbackManager([])
    llm.callback_manager = manager
    ask = partial(answer_of, llm, endpoint, ASKED)
    assert [await ask(), await ask()] == ["answer 1", "answer 2"]
    manager.add_handler(handler)
    assert [await ask(), await ask()] == ["answer 3", "answer 3"]
    manager.remove_handler(handler)
    assert await ask() == "answer 4"
    manager.add_handler(handler)
    assert await ask() == "answer 3"
    llm.callback_manager = CallbackManager([CountingEvents()])
    assert await ask() == "answer 5"
    manager.set_handlers([handler])
    llm.callback_manager = manager
    assert await ask() == "answer 3"
    assert backend.calls == 5


async def test_two_handlers_with_two_caches(
    server: OpenAIServer, open_cache: OpenCache, tmp_path: Path
) -> None:
    """Each model asks the cache of its own handler; one handler may be in several managers."""
    one = IbidemCallbackHandler(open_cache())
    other = IbidemCallbackHandler(open_cache(path=tmp_path / "other"))
    models = [OpenAIBackend(server).model for _ in range(3)]
    for model, handler in zip(models, (one, other, one), strict=True):
        model.callback_manager = CallbackManager([handler])
    told = [await answer_of(model, "chat", ASKED) for model in models * 2]
    assert told == ["answer 1", "answer 2", "answer 1"] * 2
    assert [handler.cache.stats().entries for handler in (one, other)] == [1, 1]
    assert one.faults() == other.faults() == {}


async def test_of_two_in_one_manager_the_first_answers(open_cache: OpenCache, tmp_path: Path) -> None:
    """The second logs what the model said; without the first it answers."""
    one = IbidemCallbackHandler(open_cache())
    other = IbidemCallbackHandler(open_cache(path=tmp_path / "other"))
    llm = fake(one, other)
    assert [await answer_of(llm, "chat", ASKED) for _ in range(2)] == ["answer 1"] * 2
    assert (one.cache.stats().entries, other.cache.stats().entries) == (1, 0)
    assert [len(each.cache.examples.recent()) for each in (one, other)] == [1, 1]
    llm.callback_manager.remove_handler(one)
    assert [await answer_of(llm, "chat", ASKED) for _ in range(2)] == ["answer 2"] * 2


async def test_a_notebook_cell_may_run_twice(tmp_path: Path) -> None:
    """A second handler with the same cache changes nothing: an answer is one entry and one example."""
    Settings.llm = llm = CountingFunctionCalling()
    handlers = [IbidemCallbackHandler(path=tmp_path / "own", embedder=BagOfWords()) for _ in range(3)]
    for handler in handlers:
        Settings.callback_manager.add_handler(handler)
    assert [str(await ask(engine())) for _ in range(2)] == ["answer 1"] * 2
    assert [await answer_of(Settings.llm, "achat", OTHER) for _ in range(2)] == ["answer 2"] * 2
    stream = await ask(engine(streaming=True, response_mode="refine"))
    assert await asyncio.to_thread(str, stream) == "answer 4"
    assert len(llm.script.asked) == 4
    handlers[-1].cache.flush()
    assert [each.question for each in handlers[0].cache.examples.recent()] == [ASKED, OTHER, ASKED]
    for handler in handlers:
        assert handler.faults() == {}
        handler.close()


async def test_a_global_handler_serves_what_is_built_from_then_on(handler: IbidemCallbackHandler) -> None:
    """LlamaIndex puts it in each manager that is made; a model from before carries one of before."""
    before = CountingFunctionCalling()
    llama_index.core.global_handler = handler
    after = CountingFunctionCalling()
    assert [await answer_of(after, "chat", ASKED) for _ in range(2)] == ["answer 1"] * 2
    assert [await answer_of(before, "chat", ASKED) for _ in range(2)] == ["answer 1", "answer 2"]
    Settings._callback_manager = None
    assert Settings.callback_manager.handlers == [handler]
    Settings.llm = before
    assert [str(await ask(engine())) for _ in range(2)] == ["answer 3"] * 2


async def test_a_model_of_an_engine_gets_the_handler_from_the_settings(
    handler: IbidemCallbackHandler,
) -> None:
    """A model set before or after the handler, and after another model, in engines built before or after."""
    first = Settings.llm = CountingFunctionCalling(model="first")
    built_before = engine()
    Settings.callback_manager.add_handler(handler)
    second = CountingFunctionCalling(model="second")
    for llm in (first, second):
        Settings.llm = llm
        assert [str(await ask(engine())) for _ in range(2)] == ["answer 1"] * 2
    assert str(await ask(built_before)) == "answer 1"
    assert [len(llm.script.asked) for llm in (first, second)] == [1, 1]


async def test_without_serve_it_only_logs(cache: SemanticCache) -> None:
    """The model is asked each time, and what it answered is in the log."""
    llm = fake(IbidemCallbackHandler(cache, serve=False))
    assert [await answer_of(llm, "chat", ASKED) for _ in range(2)] == ["answer 1", "answer 2"]
    assert (cache.stats().entries, cache.examples.count()) == (0, 2)


def test_serve_is_yes_or_no(cache: SemanticCache) -> None:
    with pytest.raises(ibidem.InvalidInput, match="serve must be"):
        IbidemCallbackHandler(cache, serve="yes")  # type: ignore[arg-type]


class Form(BaseModel):
    """What is to be found out."""

    river: str


@on_all_endpoints
async def test_beside_a_cached_model_it_only_logs(
    backend: Backend, open_cache: OpenCache, tmp_path: Path, endpoint: str
) -> None:
    """The cache of the `CachedLLM` answers; that of the handler is never asked, whatever is called."""
    handler = IbidemCallbackHandler(open_cache(path=tmp_path / "log"))
    llm = CachedLLM(backend.model, open_cache())
    llm.callback_manager = CallbackManager([handler])
    assert [await answer_of(llm, endpoint, ASKED) for _ in range(2)] == ["answer 1"] * 2
    prompt = PromptTemplate("Fill in the form.\n{question}")
    forms = [llm.structured_predict(Form, prompt, question=OTHER) for _ in range(2)]
    assert forms[0] == forms[1]
    assert backend.calls == 2
    assert (handler.cache.stats().entries, handler.cache.recent()) == (0, [])
    assert len(handler.cache.examples.recent()) == 1


async def test_a_cached_model_and_a_handler_share_entries(cache: SemanticCache) -> None:
    """What one has stored the other repeats: that methods are wrapped is no change of a class."""

    class Mine(CountingFunctionCalling):
        def chat(self, messages: Any, **given: Any) -> Any:
            return super().chat(messages, **given)

    for llm in (Mine(), CountingFunctionCalling()):
        for holder in tuple(LED._holders):
            LED.release(holder)
        before = identity(llm)
        assert await answer_of(CachedLLM(llm, cache), "chat", ASKED) == "answer 1"
        handler = IbidemCallbackHandler(cache)
        assert LED.active
        assert identity(llm) == before
        llm.callback_manager = CallbackManager([handler])
        assert await answer_of(llm, "chat", REWORDED) == "answer 1"
        assert len(llm.script.asked) == 1


# What an endpoint does inside -----------------------------------------------------------------------------


class Overriding(CountingFunctionCalling):
    """A subclass that does something before it asks."""

    def chat(self, messages: Any, **given: Any) -> Any:
        return super().chat(messages, **given)

    def achat(self, messages: Any, **given: Any) -> Any:  # type: ignore[override]
        return super().achat(messages, **given)


class InExecutor(CountingFunctionCalling):
    """Asks in a thread that knows nothing of who has started it, as programs' own models do."""

    async def achat(self, messages: Sequence[ChatMessage], **given: Any) -> ChatResponse:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, lambda: self.chat([*messages], **given))


class InLoop(CountingFunctionCalling):
    """Asks in an event loop of a thread of its own."""

    def chat(self, messages: Sequence[ChatMessage], **given: Any) -> ChatResponse:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(self.achat([*messages], **given))).result()


class Chatting:
    """A part of a model that is no model."""

    def chat(self, messages: Any, **given: Any) -> Any:
        return CountingFunctionCalling.chat(self, messages, **given)  # type: ignore[arg-type]


class OfParts(Chatting, CountingFunctionCalling):
    """A model whose endpoint comes from elsewhere."""


class Around(CountingFunctionCalling):
    """A model that asks another one, with the same handlers."""

    _inner: Any = PrivateAttr(None)

    @llm_chat_callback()
    def chat(self, messages: Any, **given: Any) -> Any:
        return self._inner.chat(messages, **given)


@pytest.mark.parametrize(
    ("kind", "endpoint"),
    [
        *((CountingCompletion, endpoint) for endpoint in ENDPOINTS),
        (Overriding, "chat"),
        (Overriding, "achat"),
        (InExecutor, "achat"),
        (InLoop, "chat"),
        (OfParts, "chat"),
    ],
)
async def test_a_call_within_a_call_is_the_same_call(
    kind: Any, endpoint: str, handler: IbidemCallbackHandler
) -> None:
    """`achat` may call `chat`, in whatever thread: it is looked up, stored and logged once."""
    llm = kind(callback_manager=CallbackManager([handler]))
    started = time.monotonic()
    told = [await answer_of(llm, endpoint, question) for question in (ASKED, REWORDED)]
    assert time.monotonic() - started < 15  # half of what a request waits for an identical one
    assert (told, len(llm.script.asked)) == (["answer 1"] * 2, 1)
    assert handler.cache.stats().entries == 1
    assert [lookup.tier for lookup in handler.cache.recent()] == ["semantic", ""]
    assert len(handler.cache.examples.recent()) == 1
    assert handler.faults() == {}


async def test_a_model_around_another_is_one_call(handler: IbidemCallbackHandler) -> None:
    """The outer one is answered; what it asks is a part of that."""
    llm, inner = Around(callback_manager=CallbackManager([handler])), fake(handler)
    llm._inner = inner
    assert [await answer_of(llm, "chat", ASKED) for _ in range(3)] == ["answer 1"] * 3
    assert (len(inner.script.asked), handler.cache.stats().entries) == (1, 1)
    assert len(handler.cache.examples.recent()) == 1


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_between_two_pieces_of_a_stream_other_calls_are_cached(
    endpoint: str, handler: IbidemCallbackHandler
) -> None:
    """Who reads a stream of a model may ask the same model meanwhile."""
    llm = fake(handler)
    async for _ in pieces_of(llm, endpoint, ASKED):
        assert await answer_of(llm, "achat", OTHER) == "answer 2"
    assert len(llm.script.asked) == 2
    assert await answer_of(llm, endpoint, ASKED) == "answer 1"


async def test_a_class_that_is_defined_later_is_served(handler: IbidemCallbackHandler) -> None:
    class Later(CountingFunctionCalling):
        @llm_chat_callback()
        def chat(self, messages: Sequence[ChatMessage], **given: Any) -> ChatResponse:
            self.script.asked.append(ASKED)
            text = f"later {len(self.script.asked)}"
            return ChatResponse(message=ChatMessage(text, role="assistant"), raw={"finish_reason": "stop"})

    llm = Later(callback_manager=CallbackManager([handler]))
    assert [await answer_of(llm, "chat", ASKED) for _ in range(2)] == ["later 1"] * 2


async def test_arguments_may_be_given_by_name(handler: IbidemCallbackHandler) -> None:
    """As LlamaIndex itself does."""
    llm, messages = fake(handler), [ChatMessage(ASKED)]
    assert llm.chat(messages=messages).message.content == llm.chat(messages).message.content
    assert llm.complete(prompt=OTHER).text == llm.complete(OTHER, False).text
    assert llm.complete(OTHER, True).text == llm.complete(prompt=OTHER, formatted=True).text
    assert len(llm.script.asked) == 3


class ByName(CountingFunctionCalling):
    """Takes its messages by name only, and has an argument of its own."""

    def chat(self, *, messages: Any, tone: str = "", **given: Any) -> Any:  # type: ignore[override]
        return super().chat(messages, **given)


async def test_an_endpoint_may_have_arguments_of_its_own(handler: IbidemCallbackHandler) -> None:
    """They count, and a hit takes what the method takes."""
    llm, messages = ByName(callback_manager=CallbackManager([handler])), [ChatMessage(ASKED)]
    told = [
        llm.chat(messages=messages, tone=tone).message.content for tone in ("kind", "kind", "rude", "kind")
    ]
    assert told == ["answer 1", "answer 1", "answer 2", "answer 1"]
    with pytest.raises(TypeError):
        llm.chat(messages)  # type: ignore[misc]
    assert handler.faults() == {}


async def test_a_wrong_call_fails_as_without_a_cache(handler: IbidemCallbackHandler) -> None:
    """The error is the model's."""
    for name in ("chat", "complete"):
        errors = []
        for llm in (fake(), fake(handler)):
            with pytest.raises((TypeError, ValueError)) as caught:
                getattr(llm, name)()
            errors.append((type(caught.value), str(caught.value)))
        assert errors[0] == errors[1]


class Generating(CountingFunctionCalling):
    """Its async streams are generators, and not coroutines for them."""

    async def astream_chat(self, messages: Any, **given: Any) -> Any:  # type: ignore[override]
        yield ChatResponse(message=ChatMessage("a stream", role="assistant"), delta="a stream")


async def test_what_is_no_endpoint_by_its_nature_is_left_alone(handler: IbidemCallbackHandler) -> None:
    """It is asked as it was written."""
    llm = Generating(callback_manager=CallbackManager([handler]))
    for _ in range(2):
        assert [chunk.delta async for chunk in llm.astream_chat([ChatMessage(ASKED)])] == ["a stream"]
    assert inspect.iscoroutinefunction(llm.achat)
    assert not inspect.iscoroutinefunction(llm.chat)


# Hits and misses ------------------------------------------------------------------------------------------


class Spans(BaseSpanHandler[BaseSpan]):
    """Keeps the names, arguments and parents of all spans."""

    _seen: list[Any] = PrivateAttr(default_factory=list)

    def span_enter(self, id_: str, bound_args: Any, instance: Any = None, **given: Any) -> None:
        shown = {name: len(str(value)) for name, value in bound_args.arguments.items()}
        self._seen.append((id_[:-37], shown, type(instance), bool(given.get("parent_id"))))

    def new_span(self, *args: Any, **given: Any) -> None:
        """Not used."""

    prepare_to_exit_span = prepare_to_drop_span = new_span


@on_all_endpoints
async def test_a_hit_opens_the_same_span(
    backend: Backend, handler: IbidemCallbackHandler, endpoint: str
) -> None:
    """Tracers see the call as on a miss: its name, its arguments, its model."""
    llm, seen, root = backend.model, [], get_dispatcher()
    llm.callback_manager = CallbackManager([handler])
    for _ in range(2):
        spans = Spans()
        root.add_span_handler(spans)
        try:
            await answer_of(llm, endpoint, ASKED)
        finally:
            root.span_handlers.remove(spans)
        seen.append(spans._seen)
    assert backend.calls == 1
    assert seen[0] == seen[1]
    assert [name for name, *_ in seen[0]] == [f"OpenAI.{endpoint}"]


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", ["handler", "CachedLLM", "CachedSynthesizer"])
async def test_the_response_of_an_engine_says_hit_or_miss(
    way: str, mode: str, streaming: bool, cache: SemanticCache
) -> None:
    """In its metadata; of a stream when it was read."""
    Settings.llm = CachedLLM(CountingFunctionCalling(), cache) if way == "CachedLLM" else fake()
    Settings.callback_manager = CallbackManager([IbidemCallbackHandler(cache, serve=way == "handler")])
    synthesizer: Any = get_response_synthesizer(response_mode=mode, streaming=streaming)
    if way == "CachedSynthesizer":
        synthesizer = CachedSynthesizer(synthesizer, cache)
    calls = 2 if mode == "refine" else 1
    for question, hit in ((ASKED, False), (ASKED, True), (REWORDED, True), (OTHER, False)):
        response = await ask(RetrieverQueryEngine(Library(shelves()), synthesizer), question)
        assert "answer" in await asyncio.to_thread(str, response)
        marker = response.metadata["ibidem"]
        assert marker["hit"] is hit
        assert ("entry_id" in marker) is (hit and (calls == 1 or way == "CachedSynthesizer"))
        if way != "CachedSynthesizer":
            assert (marker["calls"], marker["repeated"]) == (calls, calls * hit)
        if "entry_id" in marker and question == REWORDED:
            assert (marker["tier"], marker["question"]) == ("semantic", ASKED)
        assert response.metadata.keys() == {"France-1", "France-2", "ibidem"}


@pytest.mark.parametrize("counted_first", [True, False])
async def test_tokens_are_counted_for_misses_only(
    counted_first: bool, backend: Backend, handler: IbidemCallbackHandler
) -> None:
    """By LlamaIndex's own counter, wherever in the manager it is."""
    counter = TokenCountingHandler()
    backend.model.callback_manager = CallbackManager(
        [counter, handler] if counted_first else [handler, counter]
    )
    for number, endpoint in enumerate(("chat", "achat", "acomplete"), 1):
        asked = ASKED.replace("France", COUNTRIES[number])
        assert await answer_of(backend.model, endpoint, asked) == f"answer {number}"
        assert counter.total_llm_token_count == 18 * number
        await answer_of(backend.model, endpoint, asked)
        assert counter.total_llm_token_count == 18 * number


async def test_an_engine_with_one_new_part_is_no_hit(handler: IbidemCallbackHandler) -> None:
    """Two calls of a model, of which one was answered from the cache."""
    Settings.llm = fake()
    Settings.callback_manager = CallbackManager([handler])
    await ask(engine(response_mode="accumulate"))
    books = shelves()
    books["France"] = [books["France"][0], books["Peru"][0]]
    response = await ask(RetrieverQueryEngine.from_args(Library(books), response_mode="accumulate"))
    assert response.metadata["ibidem"] == {"hit": False, "calls": 2, "repeated": 1}


async def test_the_response_of_a_chat_engine_says_it_too(handler: IbidemCallbackHandler) -> None:
    Settings.llm = fake()
    Settings.callback_manager = CallbackManager([handler])
    for kind, given in ((SimpleChatEngine, {}), (ContextChatEngine, {"retriever": Library(shelves())})):
        told = []
        for _ in range(2):
            made = kind.from_defaults(memory=ChatMemoryBuffer.from_defaults(), **given)
            told.append((await made.achat(ASKED)).metadata["ibidem"]["hit"])
        assert told == [False, True]


async def test_without_a_cache_a_response_says_nothing(handler: IbidemCallbackHandler) -> None:
    """Not even if there is one elsewhere in the program."""
    Settings.llm = fake()
    assert "ibidem" not in (await ask(engine())).metadata


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_engines_response_can_be_forgotten(streaming: bool, handler: IbidemCallbackHandler) -> None:
    Settings.llm = fake()
    Settings.callback_manager = CallbackManager([handler])
    for _ in range(2):
        response = await ask(engine(streaming=streaming))
        assert await asyncio.to_thread(str, response) == "answer 1"
    assert ibidem.forget(response)
    assert handler.cache.stats().entries == 0


# At once --------------------------------------------------------------------------------------------------


def test_threads_wait_for_one(backend: Backend, handler: IbidemCallbackHandler) -> None:
    """Identical calls at the same time cost one call."""
    backend.wait(0.1)
    backend.model.callback_manager = CallbackManager([handler])
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: backend.model.chat([ChatMessage(ASKED)]).message.content, range(8)))
    assert (told, backend.calls) == (["answer 1"] * 8, 1)


@pytest.mark.parametrize("endpoint", ["achat", "astream_chat", "acomplete"])
async def test_tasks_wait_for_one(backend: Backend, handler: IbidemCallbackHandler, endpoint: str) -> None:
    backend.wait(0.1)
    backend.model.callback_manager = CallbackManager([handler])
    told = await asyncio.gather(*(answer_of(backend.model, endpoint, ASKED) for _ in range(8)))
    assert (told, backend.calls) == (["answer 1"] * 8, 1)


def test_handlers_may_come_and_go_while_others_ask(handler: IbidemCallbackHandler) -> None:
    """No call fails, and afterwards all is as it should be."""
    llm, done = fake(), threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            llm.callback_manager.add_handler(handler)
            LED.release(handler._adapter)
            LED.hold(handler._adapter)
            llm.callback_manager.remove_handler(handler)

    with ThreadPoolExecutor(4) as pool:
        changing = pool.submit(come_and_go)
        for told in pool.map(lambda n: llm.chat([ChatMessage(ASKED)]).message.content, range(200)):
            assert str(told).startswith("answer ")
        done.set()
        changing.result()
    llm.callback_manager.add_handler(handler)
    assert len({llm.chat([ChatMessage(OTHER)]).message.content for _ in range(3)}) == 1
    assert handler.faults() == {}


# Scopes ---------------------------------------------------------------------------------------------------


async def test_tenants_are_kept_apart(cache: SemanticCache) -> None:
    """By the scope of the call; outside of all, nothing is cached if one is required."""
    llm = fake(IbidemCallbackHandler(cache, require_namespace=True))
    for tenant, number in (("acme", 1), ("acme", 1), ("bolt", 2), ("acme", 1)):
        with ibidem.scope(namespace=tenant):
            assert await answer_of(llm, "achat", ASKED) == f"answer {number}"
    assert [await answer_of(llm, "achat", ASKED) for _ in range(2)] == ["answer 3", "answer 4"]


@pytest.mark.parametrize("name", ["stream_chat", "stream_structured_predict", "astream_structured_predict"])
async def test_a_stream_keeps_its_scope(name: str, cache: SemanticCache) -> None:
    """Whoever reads it."""
    llm = fake(IbidemCallbackHandler(cache, require_namespace=True))
    prompt = PromptTemplate("Fill in the form.\n{question}")
    for _ in range(2):
        with ibidem.scope(namespace="acme"):
            if name == "stream_chat":
                stream: Any = llm.stream_chat([ChatMessage(ASKED)])
            else:
                stream = getattr(llm, name)(Form, prompt, question=ASKED)
                stream = await stream if inspect.isawaitable(stream) else stream
        assert [piece async for piece in stream] if isinstance(stream, AsyncIterator) else list(stream)
    assert len(llm.script.asked) == 1
    assert cache.clear("acme") == 1


async def test_what_is_bypassed_reaches_the_model(handler: IbidemCallbackHandler) -> None:
    llm = fake(handler)
    with ibidem.scope(bypass=True):
        assert [await answer_of(llm, "chat", ASKED) for _ in range(2)] == ["answer 1", "answer 2"]
    assert handler.cache.stats().entries == 0


# What can go wrong ----------------------------------------------------------------------------------------


def broken(*args: Any, **given: Any) -> Any:
    raise RuntimeError("ours is broken")


@pytest.mark.parametrize(
    "part",
    [
        "llama_index_ibidem.serving._call_of",
        "llama_index_ibidem.serving._spanned",
        "llama_index_ibidem.request.RequestBuilder.of_chat",
        "llama_index_ibidem.request.RequestBuilder.of_completion",
        "llama_index_ibidem.endpoints.decode",
        "llama_index_ibidem.endpoints.encode",
        "llama_index_ibidem.spans.SpanWatcher.record_lookup",
        "llama_index_ibidem.spans.mark",
    ],
)
@on_all_endpoints
async def test_a_failure_of_ours_is_not_the_programs(
    part: str, endpoint: str, handler: IbidemCallbackHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is asked, as without a cache."""
    llm = fake(handler)
    monkeypatch.setattr(part, broken)
    told = [await answer_of(llm, endpoint, ASKED) for _ in range(2)]
    assert all(each in ("answer 1", "answer 2") for each in told)


async def test_a_manager_of_any_kind_is_no_problem(handler: IbidemCallbackHandler) -> None:
    """One without handlers, or none at all."""

    class Odd(CallbackManager):
        @property
        def handlers(self) -> Any:
            raise RuntimeError("no handlers here")

        @handlers.setter
        def handlers(self, value: Any) -> None:
            """Not kept."""

        def on_event_start(self, *args: Any, **given: Any) -> str:
            return ""

        on_event_end = start_trace = end_trace = on_event_start  # type: ignore[assignment]

    llm = fake()
    for manager in (Odd([]), None):
        object.__setattr__(llm, "callback_manager", manager)
        assert (await answer_of(llm, "chat", ASKED)).startswith("answer")


async def test_a_closed_cache_is_not_the_programs_problem(
    handler: IbidemCallbackHandler, tmp_path: Path
) -> None:
    """Of a handler that has closed its own nothing is asked; of one whose cache was closed, in vain."""
    own = IbidemCallbackHandler(path=tmp_path / "own", embedder=BagOfWords())
    llm = fake(own)
    assert [await answer_of(llm, "chat", ASKED) for _ in range(2)] == ["answer 1"] * 2
    own.close()
    assert [await answer_of(llm, "chat", ASKED) for _ in range(2)] == ["answer 2", "answer 3"]
    llm.callback_manager.set_handlers([handler])
    handler.cache.close()
    assert [await answer_of(llm, "chat", ASKED) for _ in range(2)] == ["answer 4", "answer 5"]
    assert any("CacheClosed" in cause for cause in handler.faults())


@on_all_endpoints
async def test_an_error_of_the_model_is_the_programs(handler: IbidemCallbackHandler, endpoint: str) -> None:
    """The same as without a cache, and the next call is answered."""
    backend = FakeBackend(fake(handler))
    backend.fail_next()
    with pytest.raises(RuntimeError, match="the model is down"):
        await answer_of(backend.model, endpoint, ASKED)
    assert [await answer_of(backend.model, endpoint, ASKED) for _ in range(2)] == ["answer 2"] * 2


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_a_stream_that_is_left_is_not_stored(handler: IbidemCallbackHandler, endpoint: str) -> None:
    """And holds nobody up."""
    llm = fake(handler)
    pieces: Any = pieces_of(llm, endpoint, ASKED)
    assert await anext(pieces) == "answer"
    await pieces.aclose()
    assert [await answer_of(llm, endpoint, ASKED) for _ in range(2)] == ["answer 2"] * 2


def test_a_model_with_a_handler_is_copied_and_pickled(handler: IbidemCallbackHandler) -> None:
    """A copy asks the same cache; sent away, a model travels without it."""
    llm = MockLLM(callback_manager=CallbackManager([handler]))
    for copied in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy()):
        copied.complete(ASKED)
    assert (handler.cache.stats().entries, handler.cache.stats().hits) == (1, {"exact": 2})
    sent = pickle.loads(pickle.dumps(llm))
    assert sent.complete(ASKED).text == ASKED
    assert sent.callback_manager.handlers == []


def test_the_endpoints_are_put_back(cache: SemanticCache) -> None:
    """When no handler needs them."""
    for holder in tuple(LED._holders):
        LED.release(holder)
    LED.release(cache)

    def everything() -> dict[Any, Any]:
        names = {*ENDPOINTS, "__init_subclass__"}
        return {(kind, name): vars(kind).get(name) for kind in _family(LLM) for name in names}

    before = everything()
    IbidemCallbackHandler(cache, serve=False)
    assert everything() == before
    handler = IbidemCallbackHandler(cache)
    assert everything() != before
    LED.release(handler._adapter)
    assert everything() == before


def test_a_model_without_a_handler_is_hardly_slowed(handler: IbidemCallbackHandler) -> None:
    """What stands before its endpoints is nothing beside what LlamaIndex itself does in them."""
    llm, messages = fake(), [ChatMessage(ASKED)]

    def took(call: Callable[[], object]) -> float:
        started = time.thread_time()
        for _ in range(100):
            call()
        return time.thread_time() - started

    assert LED.active
    whole = min(took(lambda: llm.chat(messages)) for _ in range(5))
    check = min(took(lambda: _endpoints_for(llm)) for _ in range(5))
    assert check < whole / 10  # some 0.7 of 400 microseconds
