"""What goes wrong around `CachedLLM`: the model, stream, cache, task. The program must not suffer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine
from numpy.typing import NDArray

import ibidem
from llama_index_ibidem import CachedLLM
from tests.conftest import OpenCache
from tests.contracts.llama_index import (
    ASKED,
    ENDPOINTS,
    OTHER,
    REWORDED,
    STREAMS,
    Backend,
    Broke,
    CountingCompletion,
    CountingEvents,
    CountingFunctionCalling,
    FakeBackend,
    Library,
    OpenAIBackend,
    answer_of,
    listening,
    pieces_of,
    settings_restored,
    shelves,
    start,
)
from tests.embedders import BagOfWords, Broken
from tests.helpers import eventually
from tests.openai_server import OpenAIServer

on_all_endpoints = pytest.mark.parametrize("endpoint", ENDPOINTS)
on_some_endpoints = pytest.mark.parametrize("endpoint", "chat astream_chat acomplete stream_complete".split())
on_streams = pytest.mark.parametrize("endpoint", STREAMS)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """LlamaIndex's global settings are as before after each test."""
    with settings_restored():
        yield


@pytest.fixture(params=["fake", "openai"])
def backend(request: pytest.FixtureRequest, server: OpenAIServer) -> Backend:
    """A model that can be told to fail."""
    made = FakeBackend(CountingFunctionCalling()) if request.param == "fake" else OpenAIBackend(server)
    made.reset()
    return made


@pytest.fixture
def llm(backend: Backend, open_cache: OpenCache) -> CachedLLM:
    """The model with an empty cache."""
    return CachedLLM(backend.model, open_cache())


async def failure_of(llm: LLM, endpoint: str) -> tuple[list[str], BaseException | None]:
    """What came of a call before it failed, and how it failed."""
    pieces, came = pieces_of(llm, endpoint, ASKED), list[str]()
    try:
        while True:
            came.append(await anext(pieces))
    except StopAsyncIteration:
        return came, None
    except Exception as error:
        return came, error


def same(one: BaseException | None, other: BaseException | None) -> bool:
    """Whether a program could not tell these errors apart."""
    return (type(one), str(one)) == (type(other), str(other))


async def assert_the_next_call_is_answered(llm: CachedLLM, backend: Backend, endpoint: str) -> None:
    """Nothing was stored so far, and all is well afterwards: the model answers once more and then never."""
    assert llm.cache.stats().entries == 0
    calls = backend.calls
    answer = await answer_of(llm, endpoint, ASKED)
    assert answer == f"answer {calls + 1}"
    assert await answer_of(llm, endpoint, ASKED) == answer
    assert backend.calls == calls + 1
    assert llm.faults() == {}


# the model --------------------------------------------------------------------------------------------


@on_all_endpoints
async def test_an_error_of_the_model_is_the_programs(llm: CachedLLM, backend: Backend, endpoint: str) -> None:
    """It is the same error as without a cache, and nothing is remembered of it."""
    backend.fail_next()
    _, plain = await failure_of(backend.model, endpoint)
    backend.fail_next()
    _, cached = await failure_of(llm, endpoint)
    assert plain is not None
    assert same(cached, plain)
    await assert_the_next_call_is_answered(llm, backend, endpoint)


@on_some_endpoints
async def test_the_events_of_a_failure_are_those_of_the_model(
    llm: CachedLLM, backend: Backend, endpoint: str
) -> None:
    """What fails is told of as without a cache."""
    heard = []
    for model in (backend.model, llm):
        legacy = CountingEvents()
        model.callback_manager = CallbackManager([legacy])
        with listening() as events:
            backend.fail_next()
            await failure_of(model, endpoint)
            heard.append(legacy.counts + events.counts)
    assert heard[0] == heard[1]
    assert heard[0]["start llm"] == 1


@on_all_endpoints
async def test_an_answer_cut_short_is_not_stored(llm: CachedLLM, backend: Backend, endpoint: str) -> None:
    """The program gets what there is; the next one gets another chance."""
    backend.stop_with("length")
    for number in (1, 2):
        assert await answer_of(llm, endpoint, ASKED) == f"answer {number}"
    assert llm.cache.stats().rejected == {"finish_reason:length": 2}
    backend.stop_with("stop")
    await assert_the_next_call_is_answered(llm, backend, endpoint)


async def test_an_empty_answer_is_not_stored(llm: CachedLLM, backend: Backend) -> None:
    """A model that says nothing is asked again."""
    backend.obey(lambda last, number: "")
    assert [await answer_of(llm, "achat", ASKED) for _ in range(2)] == ["", ""]
    assert (backend.calls, llm.cache.stats().entries) == (2, 0)


# the stream -------------------------------------------------------------------------------------------


@on_streams
@pytest.mark.parametrize("politely", [False, True], ids=["lost", "ended"])
async def test_a_stream_that_breaks_off(
    llm: CachedLLM, backend: Backend, endpoint: str, politely: bool
) -> None:
    """The program sees the same pieces and the same error, or none, as without a cache; nothing is stored."""
    outcomes = []
    for model in (backend.model, llm):
        backend.obey(lambda last, number: "one two three four five")
        backend.break_stream_after(3, politely=politely)
        outcomes.append(await failure_of(model, endpoint))
    (plain, plain_error), (cached, cached_error) = outcomes
    assert "".join(plain) == "one two three"
    assert cached == plain
    assert (plain_error is None) == politely
    assert same(cached_error, plain_error)
    backend.obey(None)
    await assert_the_next_call_is_answered(llm, backend, endpoint)


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """What is left behind within is collected at the end, and never while a lock is held.

    OpenAI's streams refer to themselves, so the garbage collector closes those that nobody reads to the end;
    if it runs while the same thread holds the lock of the connections, that waits for itself for ever.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect(1)  # nothing that was made within is older
        gc.enable()


async def leave(llm: LLM, endpoint: str, how: str) -> Counter[str]:
    """Read the first piece of a stream and no more; what handlers are told of it."""
    legacy = CountingEvents()
    llm.callback_manager = CallbackManager([legacy])
    with listening() as heard, collected():
        stream = await start(llm, endpoint, ASKED)
        if isinstance(stream, AsyncIterator):
            async for _ in stream:
                break
        else:
            next(stream)
        if how == "close":
            await stream.aclose() if isinstance(stream, AsyncIterator) else stream.close()
        del stream
        await asyncio.sleep(0.02)  # the loop closes forgotten asynchronous generators
    return legacy.counts + heard.counts


@on_streams
@pytest.mark.parametrize("how", ["close", "forget"])
async def test_a_stream_that_is_left_half_way(
    llm: CachedLLM, backend: Backend, endpoint: str, how: str
) -> None:
    """Whoever has read enough just leaves; the model's stream is closed and nothing is stored."""
    backend.obey(lambda last, number: "many words " * 20)
    plain = await leave(backend.model, endpoint, how)
    assert await leave(llm, endpoint, how) == plain
    if isinstance(backend, FakeBackend):
        assert backend.script.closed_early == 2
    assert llm.cache.stats().entries == 0
    whole = await answer_of(llm, endpoint, ASKED)
    assert whole == "many words " * 20
    assert await leave(llm, endpoint, how) == plain, "also of a repeated answer"
    assert await answer_of(llm, endpoint, ASKED) == whole
    assert (backend.calls, llm.faults()) == (3, {})


@on_streams
@pytest.mark.parametrize("how", ["close", "lost"])
async def test_a_model_that_does_not_tell_why_it_stops(
    open_cache: OpenCache, endpoint: str, how: str
) -> None:
    """Only a stream that was read to its end counts as an answer."""
    backend = FakeBackend(CountingCompletion())
    llm = CachedLLM(backend.model, open_cache())
    backend.obey(lambda last, number: "one two three four five")
    if how == "close":
        await leave(llm, endpoint, how)
    else:
        backend.break_stream_after(3)
        assert isinstance((await failure_of(llm, endpoint))[1], Broke)
    backend.obey(None)
    await assert_the_next_call_is_answered(llm, backend, endpoint)


@on_streams
async def test_a_stream_that_nobody_reads(llm: CachedLLM, backend: Backend, endpoint: str) -> None:
    """Nothing happens, not even a warning."""
    stream = await start(llm, endpoint, ASKED)
    del stream
    await asyncio.sleep(0.01)
    await assert_the_next_call_is_answered(llm, backend, endpoint)


# the cache --------------------------------------------------------------------------------------------


def close(cache: ibidem.cache.SemanticCache, path: Path) -> None:
    """The program closed the cache under our feet."""
    cache.close()


def spoil(cache: ibidem.cache.SemanticCache, path: Path) -> None:
    """Something else was written over the database.

    In place and not cut first: `-shm` is mapped into memory, and who reads where a map has no file is killed.
    """
    cache.flush()
    for file in path.glob("ibidem.sqlite3*"):
        with file.open("r+b") as opened:
            opened.write(b"something else entirely" * 1000)


def cut_off(cache: ibidem.cache.SemanticCache, path: Path) -> None:
    """The database does not answer any more."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError("the disk is gone")

    store = cache._runtime.store
    for name in ("get_both", "put", "near"):
        setattr(store.entries, name, fail)


@on_some_endpoints
@pytest.mark.parametrize("break_down", [close, spoil, cut_off])
async def test_a_cache_that_is_down(
    llm: CachedLLM,
    backend: Backend,
    endpoint: str,
    break_down: Callable[[ibidem.cache.SemanticCache, Path], None],
    tmp_path: Path,
) -> None:
    """The program gets the model's answers as if there were no cache; the faults are counted."""
    assert await answer_of(llm, endpoint, ASKED) == "answer 1"
    break_down(llm.cache, tmp_path / "cache")
    assert await answer_of(llm, endpoint, OTHER) == "answer 2"
    assert await answer_of(llm, endpoint, ASKED) in ("answer 1", "answer 3")
    assert await answer_of(llm, endpoint, REWORDED) in ("answer 1", f"answer {backend.calls}")
    # What SQLite holds in memory of a spoiled file it may go on reading; the background will find it spoiled.
    assert eventually(lambda: llm.faults() or llm.cache._runtime.faults.counts())


@on_some_endpoints
async def test_an_embedder_that_is_down(backend: Backend, open_cache: OpenCache, endpoint: str) -> None:
    """The very same question is still answered; for any other the model is asked."""
    llm = CachedLLM(backend.model, open_cache(embedder=Broken()))
    answers = [await answer_of(llm, endpoint, asked) for asked in (ASKED, ASKED, REWORDED)]
    assert answers == ["answer 1", "answer 1", "answer 2"]
    assert llm.faults() == {}
    assert any("embed a question" in cause for cause in llm.cache.stats().faults)


PAYLOADS = {
    "no json": "damaged",
    "empty": "",
    "null": "null",
    "another form": '{"text": "wrong"}',
    "another class": '["os.system", {"command": "true"}]',
    "another response": '["llama_index.core.base.llms.types.CompletionResponse", {"text": "wrong"}]',
    "too little": '["llama_index.core.base.llms.types.ChatResponse", {}]',
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_a_damaged_answer_is_not_served(
    llm: CachedLLM, backend: Backend, payload: str, tmp_path: Path
) -> None:
    """The model is asked, and its answer takes the place of the damaged one."""
    await answer_of(llm, "achat", ASKED)
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "ibidem.sqlite3")) as db, db:
        assert db.execute("UPDATE entries SET payload = ?", (payload,)).rowcount == 1
    assert [await answer_of(llm, "achat", ASKED) for _ in range(2)] == ["answer 2"] * 2
    assert [cause for cause in llm.faults() if "look up" in cause] == list(llm.faults())
    assert sum(llm.faults().values()) == 1


@pytest.mark.parametrize("break_down", [close, cut_off])
async def test_a_query_engine_with_a_cache_that_is_down(
    llm: CachedLLM, backend: Backend, break_down: Callable[..., None], tmp_path: Path
) -> None:
    """Engines go on too, streaming or not."""
    break_down(llm.cache, tmp_path)
    engine = RetrieverQueryEngine.from_args(Library(shelves()), llm=llm)
    assert str(await engine.aquery(ASKED)) == "answer 1"
    streaming = RetrieverQueryEngine.from_args(Library(shelves()), llm=llm, streaming=True)
    response = await streaming.aquery(ASKED)
    assert "".join([piece async for piece in response.async_response_gen()]) == "answer 2"


# the task ---------------------------------------------------------------------------------------------


class Held(BagOfWords):
    """An embedder that waits to be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.began = threading.Event(), threading.Event()
        self.go.set()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the others, when it may."""
        self.began.set()
        assert self.go.wait(10)
        return super().embed(texts)


@pytest.fixture
def nothing_unhandled() -> Iterator[list[dict[str, Any]]]:
    """What the event loop was told of exceptions that nobody took."""
    told: list[dict[str, Any]] = []
    yield told
    assert told == []


async def cancelled(task: asyncio.Task[Any]) -> bool:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return task.cancelled()


ASYNC = [name for name in ENDPOINTS if name.startswith("a")]


@pytest.mark.parametrize("endpoint", ASYNC)
async def test_a_task_that_is_cancelled_during_the_lookup(
    backend: Backend, open_cache: OpenCache, endpoint: str, nothing_unhandled: list[dict[str, Any]]
) -> None:
    """It ends as cancelled, the model is not asked, others go on."""
    asyncio.get_running_loop().set_exception_handler(lambda _, context: nothing_unhandled.append(context))
    embedder = Held()
    llm = CachedLLM(backend.model, open_cache(embedder=embedder))
    embedder.go.clear()
    task = asyncio.create_task(answer_of(llm, endpoint, ASKED))
    await asyncio.to_thread(embedder.began.wait, 10)
    assert await cancelled(task)
    embedder.go.set()
    assert backend.calls == 0
    await assert_the_next_call_is_answered(llm, backend, endpoint)


@pytest.mark.parametrize("endpoint", ASYNC)
async def test_a_task_that_is_cancelled_while_the_model_answers(
    llm: CachedLLM, backend: Backend, endpoint: str, nothing_unhandled: list[dict[str, Any]]
) -> None:
    """Nothing is stored of an answer that never came; a task beside it gets its own."""
    asyncio.get_running_loop().set_exception_handler(lambda _, context: nothing_unhandled.append(context))
    backend.wait(0.1)
    task = asyncio.create_task(answer_of(llm, endpoint, ASKED))
    beside = asyncio.create_task(answer_of(llm, endpoint, OTHER))
    while backend.calls < 2:
        await asyncio.sleep(0.005)
    assert await cancelled(task)
    other = await beside
    assert llm.cache.stats().entries == 1
    assert await answer_of(llm, endpoint, OTHER) == other
    backend.wait(0.0)
    assert await answer_of(llm, endpoint, ASKED) == "answer 3"
    assert llm.faults() == {}
