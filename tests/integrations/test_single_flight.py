"""Single flight with real clients: how many requests reach a server that speaks as OpenAI does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as CompletionOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.llms.openai import OpenAI as LlamaOpenAI

import langchain_ibidem
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from llama_index_ibidem import CachedLLM, CachedSynthesizer
from tests.conftest import OpenCache
from tests.contracts.llama_index import Library as Nodes
from tests.contracts.llama_index import shelves
from tests.helpers import await_until, wait_until
from tests.openai_server import OpenAIServer

ASKED = "How long can I return goods?"
OTHER = "Where is the nearest warehouse?"


@dataclass
class Client:
    """A model on the cache: how it is asked in threads, and how in tasks."""

    ask: Callable[[str], str]
    aask: Callable[[str], Awaitable[str]]


@pytest.fixture(autouse=True)
def nothing_installed() -> Iterator[None]:
    yield
    langchain_ibidem.uninstall()


@pytest.fixture
def server(server: OpenAIServer) -> OpenAIServer:
    """It holds its answers back until the gate is opened."""
    server.gate.clear()
    return server


@pytest.fixture
def pool(server: OpenAIServer) -> Iterator[ThreadPoolExecutor]:
    """Threads that have all ended when the test has, whatever it found."""
    with ThreadPoolExecutor(40) as threads:
        yield threads
        server.gate.set()


def chat(server: OpenAIServer, cache: SemanticCache, **options: Any) -> ChatOpenAI:
    """LangChain's chat model."""
    used = IbidemCache(cache, **options)
    return ChatOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0, cache=used)


def completion(server: OpenAIServer, cache: SemanticCache, **options: Any) -> CompletionOpenAI:
    """LangChain's completion model."""
    used = IbidemCache(cache, **options)
    return CompletionOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0, cache=used)


def llama(server: OpenAIServer, cache: SemanticCache, **options: Any) -> CachedLLM:
    """LlamaIndex's model."""
    model = LlamaOpenAI(model="gpt-4o-mini", api_base=server.url, api_key="sk-test", max_retries=0)
    return CachedLLM(model, cache, **options)


def _langchain_chat(server: OpenAIServer, cache: SemanticCache) -> Client:
    model = chat(server, cache)

    async def aask(question: str) -> str:
        return (await model.ainvoke(question)).text

    return Client(lambda question: model.invoke(question).text, aask)


def _langchain_stream(server: OpenAIServer, cache: SemanticCache) -> Client:
    langchain_ibidem.install(cache)
    model = chat(server, cache)

    async def aask(question: str) -> str:
        return "".join([chunk.text async for chunk in model.astream(question)])

    return Client(lambda question: "".join(chunk.text for chunk in model.stream(question)), aask)


def _langchain_completion(server: OpenAIServer, cache: SemanticCache) -> Client:
    model = completion(server, cache)
    return Client(model.invoke, model.ainvoke)


def _llama_chat(server: OpenAIServer, cache: SemanticCache) -> Client:
    model = llama(server, cache)

    async def aask(question: str) -> str:
        return (await model.achat([ChatMessage(question)])).message.content or ""

    return Client(lambda question: model.chat([ChatMessage(question)]).message.content or "", aask)


def _llama_stream(server: OpenAIServer, cache: SemanticCache) -> Client:
    model = llama(server, cache)

    async def aask(question: str) -> str:
        stream = await model.astream_chat([ChatMessage(question)])
        return "".join([piece.delta or "" async for piece in stream])

    def ask(question: str) -> str:
        return "".join(piece.delta or "" for piece in model.stream_chat([ChatMessage(question)]))

    return Client(ask, aask)


def _llama_complete(server: OpenAIServer, cache: SemanticCache) -> Client:
    model = llama(server, cache)

    async def aask(question: str) -> str:
        return (await model.acomplete(question)).text

    return Client(lambda question: model.complete(question).text, aask)


CLIENTS = {
    "langchain chat": _langchain_chat,
    "langchain stream": _langchain_stream,
    "langchain completion": _langchain_completion,
    "llama-index chat": _llama_chat,
    "llama-index stream": _llama_stream,
    "llama-index complete": _llama_complete,
}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, server: OpenAIServer, cache: SemanticCache) -> Client:
    """Each of them."""
    return CLIENTS[request.param](server, cache)


def waiting(cache: SemanticCache) -> int:
    """How many wait for the answer to any request."""
    return sum(not place.done() for lead in cache.steps.flights._leaders.values() for place in lead.waiters)


def results(calls: list[Future[Any]]) -> set[Any]:
    return {call.result(10) for call in calls}


def test_32_threads_make_one_request(
    client: Client, server: OpenAIServer, cache: SemanticCache, pool: ThreadPoolExecutor
) -> None:
    """All get its answer; the log knows one miss and 31 exact hits."""
    calls = [pool.submit(client.ask, ASKED) for _ in range(32)]
    wait_until(lambda: server.count and waiting(cache) == 31)
    server.gate.set()

    assert len(results(calls)) == 1
    assert server.count == 1
    stats = cache.stats()
    assert (stats.hits, sum(stats.misses.values()), stats.waits) == ({"exact": 31}, 1, {"hit": 31})


async def test_200_tasks_make_one_request(client: Client, server: OpenAIServer, cache: SemanticCache) -> None:
    """They wait in no thread: there are only the pool that looks up, HTTP and the background."""
    tasks = [asyncio.create_task(client.aask(ASKED)) for _ in range(200)]  # type: ignore[arg-type]
    await await_until(lambda: server.count and waiting(cache) == 199)
    assert threading.active_count() < 40
    server.gate.set()

    assert len(set(await asyncio.gather(*tasks))) == 1
    assert server.count == 1


async def test_threads_and_tasks_make_one_request(
    client: Client, server: OpenAIServer, cache: SemanticCache, pool: ThreadPoolExecutor
) -> None:
    """Whoever comes first."""
    tasks: list[Any] = [asyncio.create_task(client.aask(ASKED)) for _ in range(10)]  # type: ignore[arg-type]
    tasks += [asyncio.wrap_future(pool.submit(client.ask, ASKED)) for _ in range(10)]
    await await_until(lambda: server.count and waiting(cache) == 19)
    server.gate.set()

    assert len(set(await asyncio.gather(*tasks))) == 1
    assert server.count == 1


def test_a_failed_request_is_made_again_by_one(
    client: Client, server: OpenAIServer, cache: SemanticCache, pool: ThreadPoolExecutor
) -> None:
    """The first gets the client's own error; of 8 that wait one asks, and the others get its answer."""
    server.fail_next(500)
    first = pool.submit(client.ask, ASKED)
    wait_until(lambda: server.count == 1)
    others = [pool.submit(client.ask, ASKED) for _ in range(8)]
    wait_until(lambda: waiting(cache) == 8)
    server.gate.set()

    assert isinstance(error := first.exception(10), openai.InternalServerError)
    assert "error 500" in str(error)
    assert len(results(others)) == 1
    assert server.count == 2
    assert cache.stats().waits == {"asked": 1, "hit": 7}


async def test_a_failed_request_of_a_task_is_made_again_by_one(
    client: Client, server: OpenAIServer, cache: SemanticCache
) -> None:
    """Also if the task that failed goes on."""
    server.fail_next(500)
    failed = asyncio.Event()

    async def goes_on() -> None:
        with pytest.raises(openai.InternalServerError):
            await client.aask(ASKED)
        await failed.wait()

    first = asyncio.create_task(goes_on())
    await await_until(lambda: server.count == 1)
    others = [asyncio.create_task(client.aask(ASKED)) for _ in range(8)]  # type: ignore[arg-type]
    await await_until(lambda: waiting(cache) == 8)
    server.gate.set()

    assert len(set(await asyncio.wait_for(asyncio.gather(*others), 10))) == 1
    assert server.count == 2
    failed.set()
    await first


async def test_a_cancelled_request_is_made_again_by_one(
    client: Client, server: OpenAIServer, cache: SemanticCache
) -> None:
    """A timeout of the program's own, in a task that goes on, is noticed too."""
    over = asyncio.Event()

    async def impatient() -> None:
        call = asyncio.ensure_future(client.aask(ASKED))
        await await_until(lambda: waiting(cache) == 3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await over.wait()

    first = asyncio.create_task(impatient())
    await await_until(lambda: server.count == 1)
    others = [asyncio.create_task(client.aask(ASKED)) for _ in range(3)]  # type: ignore[arg-type]
    await await_until(lambda: server.count == 2)  # before anything was answered
    server.gate.set()

    assert len(set(await asyncio.wait_for(asyncio.gather(*others), 10))) == 1
    assert server.count == 2
    over.set()
    await first


def test_who_waits_too_long_asks(
    server: OpenAIServer, open_cache: OpenCache, pool: ThreadPoolExecutor
) -> None:
    """A request that hangs holds nobody up for longer than the setting."""
    model = chat(server, open_cache(single_flight=0.05))
    calls = [pool.submit(model.invoke, ASKED)]
    wait_until(lambda: server.count == 1)
    calls.append(pool.submit(model.invoke, ASKED))
    wait_until(lambda: server.count == 2)
    server.gate.set()

    assert len({answer.text for answer in results_of(calls)}) == 2


def results_of(calls: list[Future[Any]]) -> list[Any]:
    return [call.result(10) for call in calls]


def test_after_an_answer_that_is_not_kept_all_ask_at_once(
    client: Client, server: OpenAIServer, cache: SemanticCache, pool: ThreadPoolExecutor
) -> None:
    """Not one after the other: all requests are made before the next answer comes."""
    server.finish_reason = "length"
    calls = [pool.submit(client.ask, ASKED) for _ in range(9)]
    wait_until(lambda: server.count and waiting(cache) == 8)
    server.gate.set()
    wait_until(lambda: server.count == 9)

    assert len(results_of(calls)) == 9
    assert cache.stats().waits == {"asked": 8}


def test_namespaces_do_not_wait_for_each_other(
    server: OpenAIServer, cache: SemanticCache, pool: ThreadPoolExecutor
) -> None:
    """Nor do models."""
    models = [chat(server, cache), chat(server, cache, namespace="acme"), llama(server, cache)]
    calls = [pool.submit(model.invoke, ASKED) for model in models[:2]]
    calls.append(pool.submit(models[2].complete, ASKED))
    calls.append(pool.submit(llama(server, cache, namespace="acme").complete, ASKED))
    wait_until(lambda: server.count == 4)
    server.gate.set()
    results_of(calls)

    assert cache.stats().waits == {}


# LangChain --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [chat, completion])
def test_a_batch_with_duplicates(make: Any, server: OpenAIServer, cache: SemanticCache) -> None:
    """A chat model asks once per question; a completion model sends its prompts in one request anyway."""
    model, server.delay = make(server, cache), 0.05
    server.gate.set()
    answers = model.batch([ASKED, OTHER] * 8)
    server.delay = 0.0

    assert server.count == (2 if make is chat else 1)
    if make is chat:
        assert len({answer.text for answer in answers}) == 2


@pytest.mark.parametrize("make", [chat, completion])
async def test_an_async_batch_with_duplicates(make: Any, server: OpenAIServer, cache: SemanticCache) -> None:
    """The same with `abatch`."""
    model, server.delay = make(server, cache), 0.05
    server.gate.set()
    answers = await model.abatch([ASKED, OTHER] * 8)
    server.delay = 0.0

    assert server.count == (2 if make is chat else 1)
    if make is chat:
        assert len({answer.text for answer in answers}) == 2


async def test_duplicates_in_one_generate(server: OpenAIServer, cache: SemanticCache) -> None:
    """All prompts are looked up before any is answered: nobody waits for himself."""
    server.gate.set()
    model = completion(server, cache)
    for result in (model.generate([ASKED, ASKED]), await model.agenerate([OTHER, OTHER])):
        assert len(result.generations) == 2

    assert server.count == 2
    assert not cache.steps.flights._leaders


@pytest.mark.parametrize("way", ["threads", "tasks"])
async def test_crossed_batches_do_not_wait_for_each_other(
    way: str, server: OpenAIServer, cache: SemanticCache, pool: ThreadPoolExecutor, monkeypatch: Any
) -> None:
    """[A, B] and [B, A], each of which has begun its first prompt when it comes to the other's."""
    model, search = completion(server, cache), cache.steps.search
    first = threading.Barrier(2, timeout=10)
    seen: set[str] = set()

    def crossed(request: Any) -> Any:
        if request.key not in seen:
            seen.add(request.key)
            first.wait()
        else:
            wait_until(lambda: len(cache.steps.flights._leaders) == 2)
        return search(request)

    monkeypatch.setattr(cache, "steps", replace(cache.steps, search=crossed))
    both = [[ASKED, OTHER], [OTHER, ASKED]]
    if way == "threads":
        calls: list[Any] = [asyncio.wrap_future(pool.submit(model.generate, prompts)) for prompts in both]
    else:
        calls = [asyncio.create_task(model.agenerate(prompts)) for prompts in both]
    await await_until(lambda: server.count == 2)
    server.gate.set()
    await asyncio.wait_for(asyncio.gather(*calls), 10)

    assert cache.stats().waits == {}
    assert not cache.steps.flights._leaders


async def test_streams_that_langchain_does_not_look_up_neither_wait_nor_are_waited_for(
    server: OpenAIServer, cache: SemanticCache, pool: ThreadPoolExecutor
) -> None:
    """Without `install()` they do not ask the cache."""
    model = chat(server, cache)
    calls = [pool.submit(model.invoke, ASKED)]
    wait_until(lambda: server.count == 1)
    calls.append(pool.submit(lambda: list(model.stream(ASKED))))
    await await_until(lambda: server.count == 2)
    server.gate.set()
    results_of(calls)

    assert cache.stats().waits == {}


# LlamaIndex -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["closed", "dropped", "never begun"])
def test_a_stream_that_is_not_read_on_is_asked_for_again(
    end: str, server: OpenAIServer, cache: SemanticCache, pool: ThreadPoolExecutor
) -> None:
    """One of those who wait asks, at once."""
    server.gate.set()
    model = llama(server, cache)
    stream = model.stream_chat([ChatMessage(ASKED)])
    if end != "never begun":
        next(stream)
    others = [pool.submit(model.chat, [ChatMessage(ASKED)]) for _ in range(3)]
    wait_until(lambda: waiting(cache) == 3)
    before = server.count
    if end == "closed":
        stream.close()  # type: ignore[attr-defined]
    del stream

    assert len({answer.message.content for answer in results_of(others)}) == 1
    assert server.count == before + 1


def test_a_stream_that_is_read_slowly_holds_others_for_a_bounded_time(
    server: OpenAIServer, open_cache: OpenCache, pool: ThreadPoolExecutor
) -> None:
    """They ask when the time is over; the slow reader gets the rest of his."""
    server.gate.set()
    model = llama(server, open_cache(single_flight=0.05))
    stream = model.stream_chat([ChatMessage(ASKED)])
    begun = [next(stream)]

    assert pool.submit(model.chat, [ChatMessage(ASKED)]).result(10).message.content == "answer 2"
    assert [*begun, *stream][-1].message.content == "answer 1"


@pytest.mark.parametrize(("mode", "requests"), [("compact", 1), ("refine", 2)])
@pytest.mark.parametrize("streaming", [False, True])
def test_questions_share_one_synthesis(
    mode: Any,
    requests: int,
    streaming: bool,
    server: OpenAIServer,
    cache: SemanticCache,
    pool: ThreadPoolExecutor,
) -> None:
    """8 threads ask an engine: as many requests as one of them makes, also with a `CachedLLM` below."""
    synthesizer = get_response_synthesizer(llm=llama(server, cache), response_mode=mode, streaming=streaming)
    engine = RetrieverQueryEngine(Nodes(shelves()), CachedSynthesizer(synthesizer, cache))
    question = "Which river runs through the largest city of France?"
    calls = [pool.submit(lambda: str(engine.query(question))) for _ in range(8)]
    wait_until(lambda: server.count and waiting(cache) == 7)
    server.gate.set()

    assert len(results(calls)) == 1
    assert server.count == requests


async def test_async_questions_share_one_synthesis(server: OpenAIServer, cache: SemanticCache) -> None:
    """The same for tasks."""
    synthesizer = get_response_synthesizer(llm=llama(server, cache))
    engine = RetrieverQueryEngine(Nodes(shelves()), CachedSynthesizer(synthesizer, cache))
    question = "Which river runs through the largest city of France?"
    tasks = [asyncio.create_task(engine.aquery(question)) for _ in range(20)]
    await await_until(lambda: server.count and waiting(cache) == 19)
    server.gate.set()

    assert len({str(answer) for answer in await asyncio.gather(*tasks)}) == 1
    assert server.count == 1
