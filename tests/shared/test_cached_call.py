"""`CachedCall` ends in every case, and the program never notices a fault."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest

import ibidem
from ibidem import Answer, Hit, InvalidInput, Miss, Request
from ibidem.adapter.call import AdapterCache, CachedCall
from ibidem.adapter.options import AdapterOptions
from ibidem.cache import SemanticCache
from ibidem.errors import NotCacheable
from ibidem.scope import current
from tests.helpers import wait_until

ASKED = Request("How long can I return goods?")
WORDS = ("Within ", "30 ", "days.")


class Response:
    """What a model says."""

    text = "30 days."


class Words:
    """Accumulates words."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def add(self, chunk: str) -> None:
        """One more."""
        self.words.append(chunk.strip() + " ")

    def answer(self) -> Answer | None:
        """All of them."""
        return Answer("".join(self.words).strip())


@pytest.fixture
def adapter(cache: SemanticCache) -> AdapterCache:
    return AdapterCache(cache, "tests")


def call_of(adapter: AdapterCache, request: Request | None = ASKED, **given: Any) -> CachedCall[str]:
    return CachedCall(adapter, lambda: request, lambda hit: hit.answer.text, **given)


def missed(adapter: AdapterCache) -> CachedCall[str]:
    """A call whose model is asked, and for which identical ones wait."""
    call = call_of(adapter)
    assert call.lookup() is None
    assert call.leading
    return call


def speak(words: tuple[str, ...] = WORDS) -> Iterator[str]:
    yield from words


async def aspeak(words: tuple[str, ...] = WORDS) -> AsyncIterator[str]:
    for word in words:
        await asyncio.sleep(0)
        yield word


def fail(*_: object) -> Any:
    raise ValueError("the adapter is wrong")


def test_an_answer_is_stored_repeated_and_forgotten(adapter: AdapterCache) -> None:
    """The response is known to `forget`, and the hit to the adapter."""
    call, response = missed(adapter), Response()
    call.store(lambda: Answer(response.text), response)
    assert not call.leading
    assert call.seconds >= 0

    again = call_of(adapter)
    assert again.lookup() == "30 days."
    assert again.hit is not None
    assert call.stored is not None
    assert again.hit.entry_id == call.stored.entry_id
    assert ibidem.forget(response)
    assert call_of(adapter).lookup() is None


async def test_async_code_does_the_same(adapter: AdapterCache) -> None:
    """`alookup` and `astore`, one task waiting for the other."""
    call, again = call_of(adapter), call_of(adapter)
    assert await call.alookup() is None
    waiter = asyncio.create_task(again.alookup(), context=Context())  # a caller that leads would not wait
    await asyncio.sleep(0.05)
    await call.astore(lambda: Answer("30 days."))

    assert await waiter == "30 days."


def test_a_call_can_be_stored_without_a_lookup(adapter: AdapterCache) -> None:
    """Where a framework's interface has two methods."""
    assert call_of(adapter).store(lambda: Answer("30 days."))
    assert call_of(adapter).lookup() == "30 days."


def test_nothing_of_it_reaches_the_program(adapter: AdapterCache) -> None:
    """What the adapter's own functions raise is counted."""
    broken: CachedCall[str] = CachedCall(adapter, fail, fail)
    assert broken.lookup() is None
    assert broken.store(lambda: Answer("a")) is None
    call = missed(adapter)
    call.store(fail)
    assert not call.leading
    call_of(adapter).store(lambda: Answer("30 days."))
    unread: CachedCall[str] = CachedCall(adapter, lambda: ASKED, fail)
    assert unread.lookup() is None
    assert unread.hit is None
    assert not unread.leading

    assert adapter.faults.counts() == {
        "look up an answer for tests: ValueError": 2,
        "store an answer of tests: ValueError": 1,
    }


def test_a_closed_cache_is_no_cache(cache: SemanticCache, adapter: AdapterCache) -> None:
    """The model is asked."""
    cache.close()
    call = call_of(adapter)

    assert call.lookup() is None
    assert call.store(lambda: Answer("30 days.")) is None
    assert set(adapter.faults.counts()) == {
        "look up an answer for tests: CacheClosed",
        "store an answer of tests: CacheClosed",
    }


def test_there_may_be_nothing_to_ask(adapter: AdapterCache) -> None:
    """All of it does nothing then."""
    call = call_of(adapter, None)
    assert call.lookup() is None
    with call:
        pass
    assert call.store(lambda: Answer("a")) is None
    call.reject()
    call.abort()
    assert list(call_of(adapter, None).record(speak(), Words())) == list(WORDS)
    assert adapter.faults.counts() == {}


@pytest.mark.parametrize("refuse", ["none", "raise", "reject"])
def test_a_rejected_answer_makes_nobody_wait(adapter: AdapterCache, refuse: str) -> None:
    """That to an identical call would be rejected too; only a reason that was given is counted."""

    def no_answer() -> Answer | None:
        if refuse == "raise":
            raise NotCacheable("odd", "it is odd")
        return None

    call = missed(adapter)
    if refuse == "reject":
        call.reject()
    else:
        assert call.store(no_answer) is None

    other = call_of(adapter)
    assert other.lookup() is None
    assert not other.leading
    assert adapter.faults.counts() == ({"odd": 1} if refuse == "raise" else {})


def test_a_failed_call_lets_the_next_one_ask(adapter: AdapterCache) -> None:
    """The error is the model's, and passes through."""
    call = missed(adapter)
    with ThreadPoolExecutor(1) as pool:
        other = call_of(adapter)
        waits = pool.submit(other.lookup)
        with pytest.raises(RuntimeError, match="overloaded"), call:
            raise RuntimeError("overloaded")
        assert waits.result(10) is None
        assert other.leading


async def test_an_objection_makes_a_hit_a_miss(adapter: AdapterCache) -> None:
    """Sync or async; in async code a sync one is called in a thread."""
    call_of(adapter).store(lambda: Answer("30 days."))
    threads: list[int] = []

    def objection(hit: Hit) -> str:
        threads.append(threading.get_ident())
        return "answer_invalid"

    async def aobjection(hit: Hit) -> str:
        threads.append(threading.get_ident())
        return "answer_invalid"

    here = threading.get_ident()
    assert call_of(adapter, objection=objection).lookup() is None
    assert await call_of(adapter, objection=objection).alookup() is None
    assert await call_of(adapter, aobjection=aobjection).alookup() is None
    assert [thread == here for thread in threads] == [True, False, True]
    assert await call_of(adapter, aobjection=fail).alookup() is None
    assert adapter.cache.stats().misses == {"answer_invalid": 3}


def test_a_stream_that_is_read_is_stored(adapter: AdapterCache) -> None:
    """It is passed on unchanged, and the adapter is told what was stored."""
    told: list[Any] = []
    call = missed(adapter)
    stream = call.record(speak(), Words(), told.append)
    assert list(stream) == list(WORDS)

    assert told == [call.stored]
    again = call_of(adapter)
    assert again.lookup() == "Within 30 days."
    replayed = again.replay(speak())
    assert list(replayed) == list(WORDS)
    assert ibidem.forget(stream)
    assert not ibidem.forget(replayed)  # the same answer, which is gone


async def test_an_async_stream_that_is_read_is_stored(adapter: AdapterCache) -> None:
    """As a sync one."""
    call = call_of(adapter)
    assert await call.alookup() is None
    assert [word async for word in call.arecord(aspeak(), Words())] == list(WORDS)

    assert await call_of(adapter).alookup() == "Within 30 days."


@pytest.mark.parametrize("end", ["closed", "dropped", "never begun", "failed"])
def test_a_stream_that_is_not_read_to_its_end_aborts(adapter: AdapterCache, end: str) -> None:
    """Whoever asks next asks the model at once."""

    def failing() -> Iterator[str]:
        yield "Within "
        raise RuntimeError("connection lost")

    call = missed(adapter)
    stream = call.record(failing(), Words())
    if end == "failed":
        with pytest.raises(RuntimeError, match="connection lost"):
            list(stream)
    elif end != "never begun":
        assert next(stream) == "Within "
        stream.close() if end == "closed" else None
    del stream
    gc.collect()

    assert not call.leading
    assert call.stored is None
    assert missed(adapter)


@pytest.mark.parametrize("end", ["closed", "never begun"])
async def test_an_async_stream_that_is_not_read_to_its_end_aborts(adapter: AdapterCache, end: str) -> None:
    """As a sync one."""
    call = call_of(adapter)
    assert await call.alookup() is None
    stream = call.arecord(aspeak(), Words())
    if end == "closed":
        assert await anext(stream) == "Within "
        await stream.aclose()
    del stream
    gc.collect()

    assert not call.leading


def test_faults_of_an_accumulator_do_not_reach_the_reader(adapter: AdapterCache) -> None:
    """A stream that was not understood in full is not stored."""

    class Deaf(Words):
        def add(self, chunk: str) -> None:
            """Does not take numbers."""
            if "30" in chunk:
                fail()
            super().add(chunk)

    assert list(missed(adapter).record(speak(), Deaf())) == list(WORDS)
    assert call_of(adapter).lookup() is None
    assert adapter.faults.counts() == {"read a chunk of a stream: ValueError": 1, "unclear_stream": 1}


def test_a_model_whose_stream_cannot_be_closed_is_counted(adapter: AdapterCache) -> None:
    """The program did not ask to close it."""

    class Stuck:
        close = fail

        def __iter__(self) -> Iterator[str]:
            return speak()

    assert list(missed(adapter).record(Stuck(), Words())) == list(WORDS)
    assert call_of(adapter).lookup() == "Within 30 days."
    assert adapter.faults.counts() == {"close a stream of the model: ValueError": 1}


def test_a_stream_keeps_its_scope(adapter: AdapterCache) -> None:
    """That in which it was asked for, whoever reads it."""
    seen: list[str] = []

    def model() -> Iterator[str]:
        for word in WORDS:
            seen.append(current().namespace)
            yield word

    with ibidem.scope(namespace="acme"):
        call = missed(adapter)
        stream = call.record(model(), Words())
    with ibidem.scope(namespace="other"):
        list(stream)

    assert seen == ["acme"] * 3
    assert call.request is not None
    assert call.request.namespace == "acme"
    with ibidem.scope(namespace="acme"):
        assert call_of(adapter).lookup() == "Within 30 days."
    assert call_of(adapter).lookup() is None


def test_a_waiting_call_gets_the_answer_of_a_stream(adapter: AdapterCache) -> None:
    """It waits while the stream is read."""
    call = missed(adapter)
    stream = call.record(speak(), Words())
    with ThreadPoolExecutor(1) as pool:
        next(stream)
        waits = pool.submit(call_of(adapter).lookup)
        wait_until(lambda: adapter.cache.steps.flights._leaders[ASKED.key].waiters)
        list(stream)

        assert waits.result(10) == "Within 30 days."


def test_options_are_checked_and_compared() -> None:
    """One key is as good as several."""
    assert AdapterOptions(question_keys="topic") == AdapterOptions(question_keys=["topic"])
    assert AdapterOptions(semantic=False) != AdapterOptions()
    for wrong in ({"namespace": "a\0"}, {"model_id": 1}, {"require_namespace": "yes"}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            AdapterOptions(**wrong)  # type: ignore[arg-type]


def test_a_cache_is_closed_by_whoever_opened_it(cache: SemanticCache, tmp_path: Path) -> None:
    """One that was passed in stays open; a copied model shares either."""
    given = AdapterCache.of(cache, "tests", owner="Tests", options={})
    assert not given.close()
    assert cache.lookup(ASKED) == Miss("empty", seconds=pytest.approx(0, abs=10))

    own = AdapterCache.of(None, "tests", owner="Tests", options={"path": tmp_path / "own"})
    assert copy.deepcopy(own) is own
    assert own.close()
    with pytest.raises(ibidem.CacheClosed):
        own.cache.lookup(ASKED)
    with pytest.raises(InvalidInput, match="Tests has no option 'paht'; did you mean 'path'"):
        AdapterCache.of(None, "tests", owner="Tests", options={"paht": tmp_path})
    with pytest.raises(InvalidInput, match="not both"):
        AdapterCache.of(cache, "tests", owner="Tests", options={"path": tmp_path})
    with pytest.raises(InvalidInput, match="not str; .* path='./answers'"):  # install("./answers")
        AdapterCache.of("./answers", "tests", owner="Tests", options={})
