"""Streams of LangChain and LangGraph: the scope in which one is asked for counts, wherever it is read."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from langchain_core.example_selectors import BaseExampleSelector
from langchain_core.globals import set_llm_cache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda

import ibidem
from ibidem.adapter.method_wrappers import _family
from ibidem.scope import EMPTY_SCOPE, NOT_GIVEN, current, scope_of
from ibidem.types import Scope
from langchain_ibidem import IbidemCache, IbidemExampleSelector, install, uninstall
from langchain_ibidem.call import HOOKS
from tests.conftest import OpenCache
from tests.contracts.langchain import CountingChat, Recording
from tests.contracts.langchain_stream_ways import ANSWERED, WAYS, Mine
from tests.contracts.langchain_streams import AsyncStreamingChat, StreamingChat
from tests.embedders import BagOfWords

# In which streams are asked for, one after the other; together they say all that a scope can.
SCOPES: list[dict[str, Any]] = [
    {"namespace": "acme", "user": "ann", "ttl": 60.0, "tags": ("eu", "new")},
    {"namespace": "globex", "max_age": 3600.0},
    {"bypass": True},
    {},
]
_number = itertools.count(1)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    with ibidem.open(tmp_path_factory.mktemp("cache"), embedder=BagOfWords(), min_similarity=0.8) as opened:
        yield Recording(opened)


@pytest.fixture
def installed(core: Recording) -> Iterator[IbidemCache]:
    yield install(IbidemCache(core))  # type: ignore[arg-type]
    uninstall()
    set_llm_cache(None)


# Readers take streams and read all of them to their ends.


def in_anothers_scope(streams: list[Any]) -> None:
    with ibidem.scope(namespace="initech", user="eve", bypass=True, ttl=5, tags=("wrong",)):
        mine = current()
        for stream in streams:
            for _ in stream:
                assert current() is mine, "between the steps a reader is in his own scope"
        assert current() is mine


def in_threads(streams: list[Any]) -> None:
    threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def interleaved(streams: list[Any]) -> None:
    for _ in itertools.zip_longest(*streams):
        assert current() is EMPTY_SCOPE


async def in_tasks(streams: list[Any]) -> None:
    async def read(stream: Any) -> None:
        async for _ in stream:
            assert current() is EMPTY_SCOPE

    await asyncio.gather(*map(read, streams))


async def ain_anothers_scope(streams: list[Any]) -> None:
    with ibidem.scope(namespace="initech", user="eve", bypass=True, ttl=5, tags=("wrong",)):
        mine = current()
        for stream in streams:
            async for _ in stream:
                assert current() is mine


async def ainterleaved(streams: list[Any]) -> None:
    """Each step in a task of its own."""
    left = list(streams)
    while left:
        for stream in tuple(left):
            try:
                await asyncio.create_task(stream.__anext__())
            except StopAsyncIteration:
                left.remove(stream)


READERS = [in_anothers_scope, interleaved, in_threads]
AREADERS = [ain_anothers_scope, in_tasks, ainterleaved]


def begun(begin: Callable[[str], Any]) -> tuple[list[Any], dict[str, Scope]]:
    """Streams of different questions, each asked for in one of the scopes."""
    streams, expected = [], {}
    for said in SCOPES:
        question = f"How long can I return article number {next(_number)}?"
        with ibidem.scope(**said):
            streams.append(begin(question))
        expected[question] = scope_of(**said)
    return streams, expected


def check(core: Recording, expected: Mapping[str, Scope]) -> None:
    """Namespace, user, bypass, max_age, ttl and tags alike, in the lookup and in the store."""
    assert {r.question: r.scope_context for r in core.looked_up if r.question in expected} == expected
    stored = {r.question: r.scope_context for r in core.stored if r.question in expected}
    assert all(stored[question] == scope for question, scope in expected.items() if not scope.bypass)


def read_in_all_ways(core: Recording, begin: Callable[[str], Any], way: str, *, ways: int) -> None:
    async def acheck(read: Any) -> None:
        streams, expected = begun(begin)
        await read(streams)
        check(core, expected)

    if way.split(": ")[1].startswith("a"):
        for read in AREADERS[:ways]:
            asyncio.run(acheck(read))
        return
    for read_all in READERS[:ways]:
        streams, expected = begun(begin)
        read_all(streams)
        check(core, expected)


DEPRECATED = "ignore:.*(astream_log|v3 streaming protocol)"


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize("way", WAYS)
def test_the_scope_of_the_asker_counts(installed: IbidemCache, core: Recording, way: str) -> None:
    made, begin = WAYS[way]
    runnable = made(AsyncStreamingChat())
    ways = 3 if way.split(":")[0] in ("model", "parser", "graph") else 1
    read_in_all_ways(core, lambda question: begin(runnable, question), way, ways=ways)
    core.core.flush()
    assert not {row.namespace for row in core.core.recent(1000)} & {"initech", "initech/user=eve"}


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize("way", ANSWERED)
def test_so_it_does_without_install(core: Recording, way: str) -> None:
    """It is enough that there is an `IbidemCache`."""
    made, begin = WAYS[way]
    runnable = made(CountingChat(cache=IbidemCache(core)))  # type: ignore[arg-type]
    read_in_all_ways(core, lambda question: begin(runnable, question), way, ways=1)


def test_two_tenants_are_told_their_own(installed: IbidemCache) -> None:
    """And so again, each from the cache."""
    model = StreamingChat()
    chain = model | StrOutputParser()
    told: dict[str, set[str]] = {"acme": set(), "globex": set(), "": set()}
    for _ in range(3):
        for tenant, answers in told.items():
            with ibidem.scope(namespace=tenant or NOT_GIVEN):
                stream = chain.stream("Which tenant is told what?")
            answers.add("".join(stream))
    assert sorted(map(len, told.values())) == [1, 1, 1]
    assert len(set.union(*told.values())) == model.calls == 3


def test_what_a_scope_says_has_its_effect(installed: IbidemCache, core: Recording) -> None:
    """Not only is it written on the request."""
    chain, opened = StreamingChat() | StrOutputParser(), core.core
    with ibidem.scope(namespace="terms", tags=("a-tag",), ttl=60):
        stream = chain.stream("Is it stored on terms?")
    list(stream)
    (entry,) = opened.invalidate(tag="a-tag", dry_run=True).entries
    assert (entry.namespace, entry.expires - entry.created) == ("terms", pytest.approx(60))
    with ibidem.scope(namespace="terms", bypass=True):
        stream = chain.stream("Is this one kept?")
    list(stream)
    opened.flush()
    assert not [row for row in opened.recent(50) if row.question == "Is this one kept?"]


@pytest.mark.parametrize("how", ["stream", "astream", "bind"])
def test_a_stream_that_is_closed_early_leaves_its_reader_alone(
    installed: IbidemCache, core: Recording, how: str
) -> None:
    """Nothing is stored, and who reads it is in the scope that he was in."""
    model, before = AsyncStreamingChat(name_of_model=how), len(core.stored)

    async def aread(stream: Any) -> None:
        await anext(stream)
        await stream.aclose()
        assert current().namespace == "reader"

    with ibidem.scope(namespace="asker"):
        stream = getattr(model.bind(stop=["x"]), "stream" if how == "bind" else how)("Who closes it early?")
    with ibidem.scope(namespace="reader"):
        if how == "astream":
            asyncio.run(aread(stream))
        else:
            next(stream)
            stream.close()
        assert current().namespace == "reader"
    assert core.stored[before:] == []
    assert core.looked_up[-1].namespace == "asker"


def test_a_scope_within_a_stream_is_the_streams(installed: IbidemCache, core: Recording) -> None:
    """It begins within one step and ends within another, in another thread; its reader never sees it."""
    model = StreamingChat()

    def pieces(asked: Iterator[str]) -> Iterator[str]:
        for question in asked:
            with ibidem.scope(user="inner"):
                yield "first"
                yield model.invoke(f"{question} Within?").text
            yield model.invoke(f"{question} Behind?").text

    with ibidem.scope(namespace="outer"):
        stream = RunnableGenerator(pieces).stream("Whose is it?")
    with ibidem.scope(namespace="reader"):
        next(stream)
        assert (current().namespace, current().user) == ("reader", "")
        thread = threading.Thread(target=list, args=(stream,))
        thread.start()
        thread.join()
        assert (current().namespace, current().user) == ("reader", "")
    asked = {r.question: r.namespace for r in core.looked_up if "Whose is it?" in r.question}
    assert asked == {
        "Whose is it? Within?": "outer/user=inner",
        "Whose is it? Behind?": "outer",
    }


def test_what_cannot_be_caught_is_not_cached(core: Recording) -> None:
    """A generator of the program itself asks with its first step, nobody knows for whom."""
    strict = IbidemCache(core, require_namespace=True)  # type: ignore[arg-type]
    model = CountingChat(cache=strict)
    before = len(core.looked_up)

    def handler(question: str) -> Iterator[str]:
        yield from (model | StrOutputParser()).stream(question)

    answers = set()
    for tenant in ("acme", "globex"):
        with ibidem.scope(namespace=tenant):
            stream = handler("Who asks this?")
        answers.add("".join(stream))
    assert (len(answers), len(core.looked_up) - before) == (2, 0)
    assert strict.faults() == {"no_namespace": 2}


def test_examples_are_selected_for_the_asker(open_cache: OpenCache) -> None:
    """Also for a chain whose cache is not ours at all."""
    cache = open_cache()
    for tenant in ("acme", "globex"):
        cache.examples.add(ibidem.Example("How long may I keep it?", f"{tenant}'s", namespace=tenant))
    cache.flush()
    selector: BaseExampleSelector = IbidemExampleSelector(cache)
    chain = RunnableLambda(lambda q: selector.select_examples({"question": q})[0]["answer"])
    with ibidem.scope(namespace="acme"):
        stream = chain.stream("How long can I keep it?")
    with ibidem.scope(namespace="globex"):
        assert list(stream) == ["acme's"]


# the methods are put back -------------------------------------------------------------------------------


def everything() -> dict[tuple[type, str], Any]:
    """What is defined in each class of LangChain that has streams."""
    names = [*next(iter(HOOKS.streams._names.values())), "__init_subclass__"]
    return {(kind, name): vars(kind).get(name) for kind in _family(Runnable) for name in names}


@pytest.fixture
def nobody() -> Iterator[None]:
    """No other test holds them."""
    for holder in tuple(HOOKS.streams._holders):
        HOOKS.release(holder)
    HOOKS.release(everything)
    assert not HOOKS.streams.active
    yield
    uninstall()
    set_llm_cache(None)


def test_install_is_undone(nobody: None, core: Recording) -> None:
    """To the last class; what was defined meanwhile is as it was defined."""
    before = everything()
    install(core)  # type: ignore[arg-type]
    changed = everything()
    install(core)  # type: ignore[arg-type]
    assert everything() == changed != before

    class Later(Mine):
        def stream(self, *args: Any, **given: Any) -> Iterator[Any]:
            yield current().namespace

    with ibidem.scope(namespace="acme"):
        stream = Later(None).stream("?")
    assert list(stream) == ["acme"]
    uninstall()
    after = everything()
    assert after.pop((Later, "stream")).__qualname__.endswith("Later.stream")
    assert {key: value for key, value in after.items() if key[0] is not Later} == before
    with ibidem.scope(namespace="acme"):
        stream = Later(None).stream("?")
    assert list(stream) == [""]


def test_it_stays_while_there_is_another_cache(nobody: None, core: Recording) -> None:
    own = IbidemCache(core)  # type: ignore[arg-type]
    before = everything()
    install(core, namespace="another")  # type: ignore[arg-type]
    uninstall()
    assert everything() == before
    with ibidem.scope(namespace="acme"):
        stream = RunnableLambda(lambda _: current().namespace).stream("?")
    assert list(stream) == ["acme"]
    HOOKS.release(own)


def test_methods_are_still_generator_functions(installed: IbidemCache) -> None:
    """LangChain takes some methods for what they are: a generator makes a `RunnableGenerator`."""
    parser = StrOutputParser()
    chain = StreamingChat() | RunnableGenerator(parser.transform)
    assert "".join(chain.stream("Is it still one?")).startswith("answer ")
