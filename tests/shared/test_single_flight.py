"""Single flight: of identical requests in flight one asks, the others wait for its answer, never for ever."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

import ibidem
from ibidem import Answer, Request
from ibidem.cache import SemanticCache
from ibidem.pipeline import PendingRequest
from ibidem.single_flight import Leader, Outcome, SingleFlight
from tests.conftest import OpenCache
from tests.helpers import await_until, wait_until

ASKED = Request("How long can I return goods?")
OTHER = Request("Where is the warehouse?")
CUT = Answer("Goods can be", finish_reason="length")


class Model:
    """Answers when it is let; the first call signals that it has come."""

    def __init__(self) -> None:
        self.calls = 0
        self.asked, self.go = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Answer:
        with self._lock:
            self.calls += 1
            number = self.calls
        self.asked.set()
        assert self.go.wait(10)
        return self.say(number)

    def say(self, number: int) -> Answer:
        """The n-th answer."""
        return Answer(f"answer {number}")

    async def later(self, request: Request) -> Answer:
        """As a coroutine."""
        self.calls += 1
        self.asked.set()
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        return self.say(self.calls)


@pytest.fixture
def model() -> Iterator[Model]:
    """Let go at the end, so that no thread is left."""
    made = Model()
    yield made
    made.go.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads; all have ended after the test."""
    with ThreadPoolExecutor(32) as threads:
        yield threads


def waiting(cache: SemanticCache, request: Request = ASKED) -> int:
    """How many wait for the answer to the request."""
    leader = cache.steps.flights._leaders.get(request.key)
    return sum(not waiter.done() for waiter in leader.waiters) if leader else 0


def in_flight(
    pool: ThreadPoolExecutor, cache: SemanticCache, model: Model, number: int, request: Request = ASKED
) -> list[Future[Answer]]:
    """So many threads that ask: the first has called the model, the others wait for it."""
    first = pool.submit(cache.answer, request, model)
    assert model.asked.wait(10)
    others = [pool.submit(cache.answer, request, model) for _ in range(number - 1)]
    wait_until(lambda: waiting(cache, request) == number - 1)
    return [first, *others]


def texts(calls: list[Future[Answer]]) -> list[str]:
    return [call.result(10).text for call in calls]


def test_threads_share_one_call(cache: SemanticCache, model: Model, pool: ThreadPoolExecutor) -> None:
    """32 threads ask one new question: one calls the model, 31 get its answer as an ordinary hit."""
    calls = in_flight(pool, cache, model, 32)
    model.go.set()

    assert texts(calls) == ["answer 1"] * 32
    assert model.calls == 1
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.waits) == ({"exact": 31}, {"empty": 1}, {"hit": 31})


async def test_tasks_share_one_call_and_no_threads(cache: SemanticCache, model: Model) -> None:
    """200 tasks: one call; waiting takes no thread, and the loop goes on."""
    threads = threading.active_count()
    tasks = [asyncio.create_task(cache.aanswer(ASKED, model.later)) for _ in range(200)]
    await await_until(lambda: waiting(cache) == 199)

    assert threading.active_count() <= threads + 10  # the pool that looks up, and the background
    model.go.set()
    assert {answer.text for answer in await asyncio.gather(*tasks)} == {"answer 1"}
    assert model.calls == 1


@pytest.mark.parametrize("first", ["thread", "task"])
async def test_threads_and_tasks_share_one_call(
    cache: SemanticCache, model: Model, pool: ThreadPoolExecutor, first: str
) -> None:
    """Whoever leads, a thread or a task."""
    if first == "thread":
        calls: list[Any] = [asyncio.wrap_future(pool.submit(cache.answer, ASKED, model))]
    else:
        calls = [asyncio.create_task(cache.aanswer(ASKED, model.later))]
    await await_until(model.asked.is_set)
    calls += [asyncio.wrap_future(pool.submit(cache.answer, ASKED, model)) for _ in range(8)]
    calls += [asyncio.create_task(cache.aanswer(ASKED, model.later)) for _ in range(8)]
    await await_until(lambda: waiting(cache) == 16)
    model.go.set()

    assert {answer.text for answer in await asyncio.gather(*calls)} == {"answer 1"}
    assert model.calls == 1


def test_without_single_flight_everybody_asks(
    open_cache: OpenCache, model: Model, pool: ThreadPoolExecutor
) -> None:
    """0 switches it off, and each miss is logged."""
    cache = open_cache(single_flight=0)
    calls = [pool.submit(cache.answer, ASKED, model) for _ in range(4)]
    wait_until(lambda: model.calls == 4)
    model.go.set()

    assert len(set(texts(calls))) == 4
    assert (cache.stats().misses, cache.stats().waits) == ({"empty": 4}, {})


def test_what_differs_is_not_shared(
    open_cache: OpenCache, cache: SemanticCache, model: Model, pool: ThreadPoolExecutor
) -> None:
    """Other namespaces, scopes and documents ask for themselves."""
    document = ibidem.Document("1", "Goods can be returned within 30 days.")
    requests = [
        ASKED,
        Request(ASKED.question, namespace="acme"),
        Request(ASKED.question, scope="another model"),
        Request(ASKED.question, documents=(document,)),
        Request(ASKED.question, semantic=False),
        Request("How long can I return the goods?"),
    ]
    calls = [pool.submit(cache.answer, request, model) for request in requests]
    wait_until(lambda: model.calls == len(requests))
    model.go.set()

    assert len(set(texts(calls))) == len(requests)
    assert cache.stats().waits == {}


def test_caches_of_one_place_share(open_cache: OpenCache, model: Model, pool: ThreadPoolExecutor) -> None:
    """As they share the answers."""
    one, two = open_cache(), open_cache()
    calls = in_flight(pool, one, model, 1)
    calls.append(pool.submit(two.answer, ASKED, model))
    wait_until(lambda: waiting(one) == 1)
    model.go.set()

    assert texts(calls) == ["answer 1"] * 2


def test_after_a_failed_call_one_waiter_asks(
    cache: SemanticCache, model: Model, pool: ThreadPoolExecutor
) -> None:
    """The first gets its error as it was; one waiter asks again, and the others get that answer."""
    error = RuntimeError("overloaded")

    def say(number: int) -> Answer:
        if number == 1:
            raise error
        return Answer("at last")

    model.say = say  # type: ignore[method-assign]
    first, *others = in_flight(pool, cache, model, 8)
    model.go.set()

    assert first.exception(10) is error
    assert texts(others) == ["at last"] * 7
    assert model.calls == 2
    assert cache.stats().waits == {"asked": 1, "hit": 6}
    assert cache.stats().misses == {"empty": 2}


def test_a_refused_answer_lets_all_ask(cache: SemanticCache, model: Model, pool: ThreadPoolExecutor) -> None:
    """One after the other they would wait for what will not come; and for a while nobody waits again."""
    model.say = lambda number: CUT  # type: ignore[method-assign]
    together = threading.Barrier(7, timeout=10)

    def others(request: Request) -> Answer:
        together.wait()
        return CUT

    first = pool.submit(cache.answer, ASKED, model)
    assert model.asked.wait(10)
    calls = [pool.submit(cache.answer, ASKED, others) for _ in range(7)]
    wait_until(lambda: waiting(cache) == 7)
    model.go.set()

    assert texts([first, *calls]) == [CUT.text] * 8
    assert cache.stats().waits == {"asked": 7}
    again = [pool.submit(cache.answer, ASKED, others) for _ in range(7)]
    assert texts(again) == [CUT.text] * 7
    assert cache.stats().waits == {"asked": 7}


def test_who_waits_too_long_takes_over(open_cache: OpenCache, model: Model, pool: ThreadPoolExecutor) -> None:
    """After its time the waiter asks; from then on others wait for it, not for the one that hangs."""
    cache, second = open_cache(single_flight=0.05), Model()
    hanging = pool.submit(cache.answer, ASKED, model)
    assert model.asked.wait(10)
    late = pool.submit(cache.answer, ASKED, second)
    assert second.asked.wait(10)
    second.go.set()

    assert late.result(10).text == "answer 1"
    assert pool.submit(cache.answer, ASKED, second).result(10).text == "answer 1"
    model.go.set()
    assert hanging.result(10).text == "answer 1"
    assert (model.calls, second.calls) == (1, 1)
    assert not cache.steps.flights._leaders


def test_nobody_waits_longer_than_the_setting_in_all(
    open_cache: OpenCache, model: Model, pool: ThreadPoolExecutor
) -> None:
    """However long the leader may take."""
    cache = open_cache(single_flight=0.2)
    leader = cache.steps.flights.join(ASKED.key, 0, 3600, may_wait=True)
    call = pool.submit(cache.answer, ASKED, lambda request: Answer("mine"))
    assert isinstance(leader, Leader)

    assert call.result(10).text == "mine"  # though the leader has an hour
    assert cache.stats().waits == {"timeout": 1}


async def test_after_a_cancelled_call_one_waiter_asks(cache: SemanticCache, model: Model) -> None:
    """The next task asks at once."""
    first = asyncio.create_task(cache.aanswer(ASKED, model.later))
    await await_until(model.asked.is_set)
    others = [asyncio.create_task(cache.aanswer(ASKED, model.later)) for _ in range(3)]
    await await_until(lambda: waiting(cache) == 3)
    first.cancel()
    model.go.set()

    assert {answer.text for answer in await asyncio.gather(*others)} == {"answer 2"}
    assert first.cancelled()
    assert model.calls == 2


async def test_a_cancelled_waiter_holds_nobody_up(cache: SemanticCache, model: Model) -> None:
    """Nor does one that is cancelled when it might have led."""
    leader = cache.steps.flights.join(ASKED.key, 0, 30, may_wait=True)
    assert isinstance(leader, Leader)
    tasks = []
    for number in range(1, 4):  # in this order
        tasks.append(asyncio.create_task(cache.aanswer(ASKED, model.later)))
        await await_until(lambda: waiting(cache) == number)  # noqa: B023
    early, given, last = tasks
    early.cancel()
    await asyncio.sleep(0)
    leader.end()  # `given` is next, but has not run yet
    given.cancel()
    model.go.set()

    assert (await asyncio.wait_for(last, 10)).text == "answer 1"
    assert model.calls == 1


def test_an_interrupted_waiter_holds_nobody_up(
    cache: SemanticCache, model: Model, pool: ThreadPoolExecutor
) -> None:
    """Ctrl-C ends the wait, with the usual exception, and the others still get the answer."""
    calls = in_flight(pool, cache, model, 1)
    main = threading.get_ident()

    def interrupt() -> None:
        wait_until(lambda: waiting(cache) == 1)
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = pool.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.answer(ASKED, model)
    interrupter.result(10)
    assert waiting(cache) == 0
    model.go.set()

    assert texts(calls) == ["answer 1"]


def test_who_leads_waits_for_nobody(cache: SemanticCache, model: Model, pool: ThreadPoolExecutor) -> None:
    """Two that hold what the other asks for would wait for each other; a thread that inherits counts too."""
    both = threading.Barrier(2, timeout=10)

    def inner(request: Request) -> Answer:
        both.wait()
        return Answer("for itself")

    def nested(mine: Request, other: Request) -> str:
        def outer(request: Request) -> Answer:
            both.wait()
            answer = pool.submit(copy_context().run, cache.answer, other, inner).result(10)
            return Answer(f"{answer.text} and {request.question}")

        return cache.answer(mine, outer).text

    calls = [pool.submit(nested, ASKED, OTHER), pool.submit(nested, OTHER, ASKED)]

    assert [call.result(10) for call in calls] == [
        f"for itself and {request.question}" for request in (ASKED, OTHER)
    ]


def test_a_question_inside_itself_is_asked(cache: SemanticCache) -> None:
    """The caller does not wait for itself."""
    inner = lambda request: Answer("inner")  # noqa: E731

    assert cache.answer(ASKED, lambda request: cache.answer(request, inner)).text == "inner"


async def test_a_thread_with_an_event_loop_does_not_wait(cache: SemanticCache, model: Model) -> None:
    """The leader may be a task of that loop: it could not go on."""
    task = asyncio.create_task(cache.aanswer(ASKED, model.later))
    await await_until(model.asked.is_set)

    assert cache.answer(ASKED, lambda request: Answer("not waited")).text == "not waited"
    model.go.set()
    await task


def test_closing_ends_all_waits(cache: SemanticCache, model: Model, pool: ThreadPoolExecutor) -> None:
    """Those who wait ask, and get what they asked for."""
    calls = in_flight(pool, cache, model, 4)
    cache.close()
    wait_until(lambda: model.calls == 4)
    model.go.set()

    assert len(set(texts(calls))) == 4
    with pytest.raises(ibidem.CacheClosed):
        cache.answer(ASKED, model)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_waits_for_nobody(
    cache: SemanticCache, model: Model, pool: ThreadPoolExecutor
) -> None:
    """The thread that leads stayed with the parent, be the table locked or not."""
    calls = in_flight(pool, cache, model, 2)
    with cache.steps.flights._lock:
        child = os.fork()
    if child == 0:
        answer = cache.answer(ASKED, lambda request: Answer("child"))
        os._exit(0 if answer.text == "child" else 1)
    wait_until(lambda: (done := os.waitpid(child, os.WNOHANG))[0] == child and not done[1])
    model.go.set()

    assert texts(calls) == ["answer 1"] * 2


def test_an_answer_stored_during_the_lookup_is_found(cache: SemanticCache) -> None:
    """Between a lookup that misses and the leader, the answer may have come: it is not asked for again."""
    leading, late = PendingRequest(cache.steps, ASKED), PendingRequest(cache.steps, ASKED)
    assert late.lookup() is None
    assert leading.lookup() is None
    assert not leading.wait()
    leading.store(Answer("just stored"))

    assert late.wait()
    assert late.lookup().answer.text == "just stored"  # type: ignore[union-attr]
    assert cache.stats().misses == {"empty": 1}


def test_hits_do_not_touch_the_table(cache: SemanticCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost what they did."""
    cache.store(ASKED, Answer("known"))
    with monkeypatch.context() as patched:
        patched.setattr(SingleFlight, "join", None)
        patched.setattr(SingleFlight, "_locked", None)

        assert cache.answer(ASKED, lambda request: Answer("new")).text == "known"


def test_a_destructor_may_end_a_lead_anywhere() -> None:
    """Also in the thread that holds the table: it would wait for itself."""
    flights = SingleFlight()
    leader = flights.join("a", 0, 30, may_wait=True)
    waiter = flights.join("a", 0, 30, may_wait=True)
    assert isinstance(leader, Leader)
    assert isinstance(waiter, Future)
    with flights._locked():
        leader.end()
        assert not waiter.done()

    assert waiter.result(1) is Outcome.FAILED


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders that never end make room when their time is over; before, newcomers just ask."""
    monkeypatch.setattr("ibidem.single_flight.MAX_LEADERS", 3)
    flights = SingleFlight()
    for name in "abc":
        assert isinstance(flights.join(name, 0, 0.0 if name == "a" else 30, may_wait=True), Leader)

    assert isinstance(flights.join("d", 0, 30, may_wait=True), Leader)
    assert flights.join("e", 0, 30, may_wait=True) is Outcome.REJECTED
    assert list(flights._leaders) == ["b", "c", "d"]


def test_an_overdue_lead_that_ends_late_disturbs_nobody() -> None:
    """It was taken over: its failure is not that of the other; its answer serves all."""
    flights = SingleFlight()
    old = flights.join("a", 0, 0.0, may_wait=True)
    new = flights.join("a", 0, 30, may_wait=True)
    waiter = flights.join("a", 0, 30, may_wait=True)
    assert isinstance(old, Leader)
    assert isinstance(new, Leader)
    assert isinstance(waiter, Future)
    old.end()
    assert not waiter.done()
    old.ended = False
    old.end(Outcome.STORED)

    assert waiter.result(1) is Outcome.STORED


@pytest.mark.parametrize("wrong", [-1, math.inf, math.nan, True, "soon"])
def test_the_setting_is_a_number_of_seconds(open_cache: OpenCache, wrong: Any) -> None:
    """0 to an hour."""
    with pytest.raises(ibidem.ConfigurationError, match="single_flight"):
        open_cache(single_flight=wrong)


def test_the_setting_comes_from_a_variable(open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As all others do; the default is half a minute."""
    assert open_cache().steps.timeout == 30
    monkeypatch.setenv("IBIDEM_SINGLE_FLIGHT", "2.5")
    assert open_cache().steps.timeout == 2.5


def test_on_lookup_is_told_once_per_request(
    open_cache: OpenCache, model: Model, pool: ThreadPoolExecutor
) -> None:
    """Of who waited, the hit."""
    told: list[Any] = []
    cache = open_cache(on_lookup=lambda request, found: told.append(found))
    calls = in_flight(pool, cache, model, 3)
    model.go.set()
    texts(calls)

    assert sorted(type(found).__name__ for found in told) == ["Hit", "Hit", "Miss"]


@pytest.mark.parametrize("single_flight", [0, 30])
@pytest.mark.parametrize("call", ["sync", "async"])
def test_a_hit_that_is_objected_to_is_a_miss_for_that_reason(
    open_cache: OpenCache, single_flight: float, call: str
) -> None:
    """In the log too, and the fresh answer takes its waiter."""
    cache = open_cache(single_flight=single_flight)
    cache.store(ASKED, Answer("old"))

    async def away(hit: ibidem.Hit) -> str:
        return "documents_changed"

    async def look() -> None:
        with PendingRequest(cache.steps, ASKED) as pending:
            assert await pending.alookup(away) is None
            assert not await pending.await_()
            pending.store(Answer("new"))

    if call == "async":
        asyncio.run(look())
    else:
        with PendingRequest(cache.steps, ASKED) as pending:
            assert pending.lookup(lambda hit: "documents_changed") is None
            assert not pending.wait()
            pending.store(Answer("new"))

    assert PendingRequest(cache.steps, ASKED).lookup(lambda hit: "").answer.text == "new"
    assert cache.stats().misses == {"documents_changed": 1}
