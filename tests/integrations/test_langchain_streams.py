"""Streams of LangChain's models: the same entries as `invoke`, whole answers only, errors untouched."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    UsageMetadataCallbackHandler,
)
from langchain_core.language_models import FakeListChatModel
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, GenerationChunk
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as CompletionOpenAI
from pydantic import PrivateAttr

from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache, install, uninstall
from langchain_ibidem.messages import chat_chunks
from langchain_ibidem.streaming import cached_model
from langchain_ibidem.tracking import tracker
from tests.conftest import OpenCache
from tests.contracts.langchain import RAG, Calls, Library, Recording, join, shelves
from tests.contracts.langchain_streams import (
    BLOCKS,
    BY_MEANING,
    READ_BLOCKS,
    AsyncStreamingChat,
    OnlyAsyncChat,
    StreamingChat,
    Way,
    events,
    last,
    stream,
    sum_of,
)
from tests.helpers import await_until, wait_until
from tests.openai_server import OpenAIServer

ASKED = "What is the capital of France?"
REWORDED = "What is the capital city of France, please?"
OTHER = "Which river runs through the largest city of Peru?"
TOOL = {
    "title": "weather",
    "description": "The weather in a city.",
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


@pytest.fixture
def core(cache: SemanticCache) -> Recording:
    return Recording(cache)


@pytest.fixture(autouse=True)
def used(core: Recording) -> Iterator[IbidemCache]:
    """All models are cached, and their streams."""
    tracker().clear()
    yield install(IbidemCache(core))  # type: ignore[arg-type]
    uninstall()


def chat(server: OpenAIServer, **given: Any) -> ChatOpenAI:
    settings = {"model": "m", "base_url": server.url, "api_key": "sk-test", "max_retries": 0}
    return ChatOpenAI(**{**settings, **given})


@pytest.fixture
def model(server: OpenAIServer) -> ChatOpenAI:
    """LangChain's client of the server, that asks for the usage of its streams."""
    return chat(server, stream_usage=True)


# Every way to read a stream ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_MEANING)
def test_a_way_to_read_a_stream(name: str, model: ChatOpenAI, server: OpenAIServer) -> None:
    """Asked once; again and in other words, not. Another question is another answer, other documents too."""
    library, way = Library(shelves=shelves()), BY_MEANING[name]
    prompts = {"context": library | join, "question": RunnablePassthrough()} | RAG

    def ask(question: str) -> tuple[str, int]:
        return way(model, prompts.invoke(question)), server.count

    assert [ask(ASKED), ask(ASKED), ask(REWORDED)] == [("answer 1", 1)] * 3
    assert ask(OTHER) == ("answer 2", 2)
    library.shelves = shelves(" of the north")
    assert ask(REWORDED) == ("answer 3", 3)


FORMS: dict[str, Callable[[Any], Any]] = {
    "bind_tools": lambda model: model.bind_tools([TOOL]),
    "function_calling": lambda model: model.with_structured_output(TOOL, method="function_calling"),
    "json_schema": lambda model: model.with_structured_output(TOOL, method="json_schema"),
}


@pytest.mark.parametrize("in_async", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_what_programs_act_upon_is_repeated_for_the_same_request(
    form: str, in_async: bool, model: ChatOpenAI, server: OpenAIServer
) -> None:
    """As for `invoke`, which gets the same from the cache."""
    asked = FORMS[form](model)

    async def read(question: str) -> Any:
        return [chunk async for chunk in asked.astream(question)][-1]

    def ask(question: str) -> Any:
        found = list(asked.stream(question)) if not in_async else [asyncio.run(read(question))]
        if isinstance(found[-1], dict):
            return found[-1]
        whole = found[-1] if in_async else sum_of(found)
        return [(call["name"], call["args"], call["id"]) for call in whole.tool_calls]

    if form == "bind_tools" and in_async:
        asked = asked | RunnableLambda(lambda message: message)  # adds the chunks up

    first = ask(ASKED)
    assert (ask(ASKED), server.count) == (first, 1)
    repeated = asked.invoke(ASKED)
    assert (repeated if isinstance(first, dict) else ask(ASKED)) == first
    assert server.count == 1
    assert first
    ask(REWORDED)
    assert server.count == 2


WRAPPED: dict[str, Callable[[Any], Any]] = {
    **FORMS,
    "with_config": lambda model: model.with_config(tags=["tagged"]),
    "with_fallbacks": lambda model: model.with_fallbacks([StreamingChat()]),
    "with_retry": lambda model: model.with_retry(),
    "bind": lambda model: model.bind(stop=["x"]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_made_of_a_model_streams_through_the_cache(
    name: str, model: ChatOpenAI, server: OpenAIServer, used: IbidemCache
) -> None:
    asked = WRAPPED[name](model)
    for _ in range(3):
        list(asked.stream(ASKED))
    assert server.count == 1


def test_the_newer_protocol_of_events(model: ChatOpenAI, server: OpenAIServer) -> None:
    """`stream_events(version="v3")`, in langchain-core that has it, shares entries with the others."""
    if not hasattr(ChatOpenAI, "_chat_model_stream_v3"):
        pytest.skip("langchain-core without version 3 of its events")

    async def read() -> Any:
        return await (await model.astream_events(REWORDED, version="v3")).output

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a beta
        first, again = (model.stream_events(ASKED, version="v3").output for _ in range(2))
        reworded = asyncio.run(read())
    texts = {first.text, again.text, reworded.text, stream(model, ASKED), model.invoke(ASKED).text}
    assert texts == {"answer 1"}
    assert reworded.response_metadata["ibidem"]["tier"] == "semantic"
    assert server.count == 1


# One entry, whoever asks ---------------------------------------------------------------------------------


def shown(message: Any) -> dict[str, Any]:
    """What a repeated message says, without what is of the one call."""
    about = {k: v for k, v in message.response_metadata.items() if k != "ibidem"}
    calls = [(call["name"], call["args"], call["id"]) for call in message.tool_calls]
    return {"content": message.content, "calls": calls, "about": about, "extras": message.additional_kwargs}


def text_block(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


FAKES = {
    "text": (),
    "long text": ("A grapheme: e\u0301, and 👩\u200d🚀. " * 9, "日本語のながいぶんしょう" * 5, last()),
    "blocks": READ_BLOCKS,
    "blocks with a tool": BLOCKS,
    "bare blocks": (
        AIMessageChunk([{"type": "text", "text": "One."}, {"type": "text", "text": "2"}]),
        last(),
    ),
    "text among blocks": (AIMessageChunk(["One. ", text_block("Two.")]), last()),
    "blocks of one number": (
        AIMessageChunk(
            [{"type": "text", "text": "a", "index": 0}, {"type": "text", "text": "b", "index": 0}]
        ),
        last(),
    ),
    "extras": (AIMessageChunk("Yes.", additional_kwargs={"reasoning_content": "Because."}), last()),
}


@pytest.mark.parametrize("output_version", ["v0", "v1"])
@pytest.mark.parametrize("first", ["stream", "invoke"])
@pytest.mark.parametrize("name", FAKES)
def test_stream_and_invoke_repeat_the_same(name: str, first: str, output_version: str) -> None:
    """Whichever of them asked the model."""
    fake = AsyncStreamingChat(say=FAKES[name], output_version=output_version)

    async def read() -> list[Any]:
        return [chunk async for chunk in fake.astream(ASKED)]

    stored = sum_of(list(fake.stream(ASKED))) if first == "stream" else fake.invoke(ASKED)
    chunks, achunks, message = list(fake.stream(ASKED)), asyncio.run(read()), fake.invoke(ASKED)

    assert fake.calls == 1
    whole = sum_of(chunks)
    assert shown(whole) == shown(sum_of(achunks))
    assert (whole.text, whole.tool_calls) == (message.text, message.tool_calls)
    assert whole.text == stored.text
    if output_version == "v0":  # in v1 LangChain gives the blocks of streams numbers
        assert shown(whole) == shown(message)
        assert whole.content == stored.content
    for found in (whole, message):
        assert found.response_metadata["ibidem"]["tier"] == "exact"
        used = found.usage_metadata
        assert (used["input_tokens"], used["output_tokens"], used["total_tokens"]) == (0, 0, 0)
    assert [chunk.chunk_position for chunk in chunks][-1] == "last"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].id != stored.id


NUMBERS = st.none() | st.integers(0, 3) | st.sampled_from(["lc_txt_0", "lc_rs_1", "x"])
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "image"]), "text": st.text(max_size=60)},
    optional={"index": NUMBERS, "id": st.sampled_from([None, "a", "b"]), "extras": st.just({"n": 1})},
)
CONTENT = st.text(max_size=200) | st.lists(BLOCK | st.text(), max_size=4)
CALLS = st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=3), max_size=3)


@given(CONTENT, CALLS)
def test_the_chunks_of_any_message_add_up_to_it(content: Any, calls: list[dict[str, Any]]) -> None:
    """By LangChain's own arithmetic, which joins texts wherever it finds two."""
    about = {"finish_reason": "stop", "model_name": "m", "model_provider": "p", "ibidem": {"tier": "exact"}}
    message = AIMessage(
        content,
        tool_calls=[{"name": "f", "args": args, "id": f"call_{n}"} for n, args in enumerate(calls)],
        response_metadata=about,
        additional_kwargs={"reasoning": "Because.", "count": 3, "parsed": None},
    )
    chunks = [chunk.message for chunk in chat_chunks(ChatGeneration(message=message))]
    whole = sum_of([*chunks, AIMessageChunk("" if isinstance(content, str) else [])])

    assert whole.content == message.content
    assert whole.tool_calls == message.tool_calls
    assert whole.response_metadata == about
    assert whole.additional_kwargs == message.additional_kwargs


def test_an_answer_comes_in_pieces(server: OpenAIServer, model: ChatOpenAI) -> None:
    """Words stay whole, and the marker stands in the last piece alone."""
    server.say = lambda body: "The capital of France is Paris, which lies on the river Seine. " * 3
    asked = stream(model, ASKED)
    chunks = list(model.stream(ASKED))
    server.say = None

    pieces = [chunk.text for chunk in chunks if chunk.text]
    assert "".join(pieces) == asked
    assert len(pieces) > 5
    assert all(piece.endswith(" ") for piece in pieces)
    assert [index for index, chunk in enumerate(chunks) if "ibidem" in chunk.response_metadata] == [
        len(chunks) - 1
    ]
    assert chunks[-1].response_metadata["ibidem"]["saved_tokens"]["total_tokens"] == 18


def test_how_a_stream_is_asked_for_is_no_other_question(model: ChatOpenAI, server: OpenAIServer) -> None:
    """Whether usage is told changes nothing of what is said; a parameter of the model does."""
    first = list(model.stream(ASKED, stream_usage=False))
    assert first[-1].usage_metadata is None
    for how in ({}, {"stream_usage": True}, {"stream_options": {"include_usage": True}}, {"stream": True}):
        assert sum_of(list(model.stream(ASKED, **how))).text == "answer 1"
    assert model.invoke(ASKED).text == "answer 1"
    assert server.count == 1
    assert sum_of(list(model.stream(ASKED, temperature=0.3))).text == "answer 2"


@pytest.mark.parametrize("explicit", [False, True])
def test_a_call_is_looked_up_and_stored_once(
    explicit: bool, model: ChatOpenAI, core: Recording, server: OpenAIServer
) -> None:
    """Also where LangChain streams for `invoke`, because somebody follows its events; he gets them all."""

    async def inner(question: str) -> str:
        if explicit:
            return "".join([chunk.text async for chunk in model.astream(question)])
        return (await model.ainvoke(question)).text

    program = RunnableLambda(inner)
    assert events(program, ASKED) == "answer 1"
    assert (len(core.looked_up), len(core.stored)) == (1, 1)
    assert events(program, ASKED) == "answer 1"
    assert (len(core.looked_up), len(core.stored), server.count) == (2, 1, 1)
    assert core.looked_up[0].key == core.stored[0].key


def test_a_streamed_answer_is_an_example(model: ChatOpenAI, cache: SemanticCache) -> None:
    """As every stored answer is."""
    stream(model, ASKED)
    assert cache.flush()
    (example,) = cache.examples.recent()

    assert (example.question, example.answer, example.model) == (ASKED, "answer 1", "m")
    assert (example.input_tokens, example.output_tokens) == (11, 7)


def test_no_tokens_are_counted_for_a_repeated_stream(model: ChatOpenAI) -> None:
    """And handlers hear of it as of any stream."""

    class Hearing(BaseCallbackHandler):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            self.heard.append("start")

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.heard.append(token)

        def on_llm_end(self, response: Any, **kwargs: Any) -> None:
            self.heard.append(response.generations[0][0].message.response_metadata["ibidem"]["tier"])

    stream(model, ASKED)
    usage, hearing = UsageMetadataCallbackHandler(), Hearing()
    list(model.stream(ASKED, config={"callbacks": [usage, hearing]}))

    assert usage.usage_metadata["m"]["total_tokens"] == 0
    assert hearing.heard == ["start", "answer 1", "", "exact"]


# Streams that are not whole ------------------------------------------------------------------------------


def nothing_is_left(core: Recording) -> bool:
    """Nothing was stored, and nobody is waited for."""
    gc.collect()
    return not core.core.steps.flights._leaders and not core.core.stats().entries


@pytest.mark.parametrize("in_async", [False, True])
@pytest.mark.parametrize("after", [0, 3])
def test_an_error_of_the_model_is_the_error_of_the_program(
    after: int, in_async: bool, core: Recording
) -> None:
    """The very object, wherever it comes; what came before it is not stored, and the next one asks anew."""
    error = OSError("the provider is down")
    fake = AsyncStreamingChat(say=(*["piece "] * after, error))
    seen: list[Any] = []

    async def read() -> None:
        async for chunk in fake.astream(ASKED):
            seen.append(chunk)  # noqa: PERF401

    def read_all() -> None:
        for chunk in fake.stream(ASKED):
            seen.append(chunk)  # noqa: PERF402

    with pytest.raises(OSError, match="the provider is down") as caught:
        asyncio.run(read()) if in_async else read_all()
    assert caught.value is error
    assert len(seen) == after
    assert nothing_is_left(core)
    fake.say = ()
    assert stream(fake, ASKED) == "answer 2"


BREAKS = {
    "dropped": (lambda server: server.break_stream_after(2), Exception),
    "error": (lambda server: server.fail_stream_after(2), openai.APIError),
    "refused": (lambda server: server.fail_next(500), openai.InternalServerError),
    "ended": (lambda server: server.break_stream_after(2, politely=True), None),
    "length": (lambda server: setattr(server, "finish_reason", "length"), None),
    "content_filter": (lambda server: setattr(server, "finish_reason", "content_filter"), None),
}


@pytest.mark.parametrize("way", [stream, events], ids=["sync", "async"])
@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_off_is_not_stored(
    name: str, way: Way, server: OpenAIServer, model: ChatOpenAI, core: Recording, used: IbidemCache
) -> None:
    """Whatever the client makes of it; the next one asks anew."""
    server.say = lambda body: "The capital of France is Paris."
    arrange, error = BREAKS[name]
    arrange(server)
    if error is None:
        way(model, ASKED)
    else:
        with pytest.raises(error):
            way(model, ASKED)
    assert nothing_is_left(core)
    assert (name == "ended") == ("unfinished_stream" in used.faults())
    server.finish_reason = server.say = None

    assert way(model, ASKED) == "answer 2"
    assert way(model, ASKED) == "answer 2"


def _closed(read: Any) -> None:
    read.close()


def _dropped(read: Any) -> None:
    pass


@pytest.mark.parametrize("pieces", [0, 1, 2])
@pytest.mark.parametrize("end", [_closed, _dropped])
def test_a_reader_that_stops(pieces: int, end: Callable[[Any], None], core: Recording) -> None:
    """Before the end, nothing is stored."""
    fake = StreamingChat()
    read = fake.stream(ASKED)
    for _ in range(pieces):
        next(read)
    end(read)
    del read

    assert nothing_is_left(core)
    assert fake.calls == (1 if pieces else 0)
    assert stream(fake, ASKED) == f"answer {fake.calls}"


@pytest.mark.parametrize("end", ["closed", "dropped", "cancelled"])
def test_a_task_that_stops(end: str, core: Recording) -> None:
    """The same in async code."""
    fake = AsyncStreamingChat()
    begun = asyncio.Event()

    async def read() -> None:
        chunks = fake.astream(ASKED)
        await anext(chunks)
        begun.set()
        if end == "closed":
            await chunks.aclose()  # type: ignore[attr-defined]
        elif end == "cancelled":
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(read())
        await begun.wait()
        if end == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        del task
        await await_until(lambda: nothing_is_left(core))

    asyncio.run(main())
    assert nothing_is_left(core)
    assert stream(fake, ASKED) == "answer 2"


def test_a_stream_dropped_with_its_event_loop(core: Recording) -> None:
    """There is no loop left that could end it."""
    asked = cached_model(AsyncStreamingChat(), None, {}, in_async=True)
    loop = asyncio.new_event_loop()
    run = AsyncCallbackManagerForLLMRun.get_noop_manager()
    read = asked._astream([HumanMessage(ASKED)], run_manager=run)
    loop.run_until_complete(anext(read))  # type: ignore[arg-type]
    assert core.core.steps.flights._leaders
    loop.close()
    del read

    assert nothing_is_left(core)


async def test_who_waits_for_a_cancelled_stream_asks(
    server: OpenAIServer, model: ChatOpenAI, core: Recording
) -> None:
    """At once, although the server would still send."""
    server.hold_streams_after = 1
    server.stream_gate.clear()
    begun = asyncio.Event()

    async def read() -> str:
        text = ""
        async for chunk in model.astream(ASKED):
            text += chunk.text
            if text:  # all that is sent before the server holds the stream
                begun.set()
        return text

    first = asyncio.create_task(read())
    await await_until(lambda: server.count == 1 and core.core.steps.flights._leaders)
    others = [asyncio.create_task(read()) for _ in range(3)]
    await await_until(lambda: waiting(core) == 3)
    # `asyncio.wait_for` of Python 3.11, which the client uses, forgets a cancellation that meets a chunk.
    await begun.wait()
    first.cancel()
    await await_until(lambda: server.count == 2)
    server.stream_gate.set()

    assert await asyncio.wait_for(asyncio.gather(*others), 10) == ["answer 2"] * 3
    assert first.cancelled()
    assert server.count == 2


def waiting(core: Recording) -> int:
    return sum(
        not place.done() for lead in core.core.steps.flights._leaders.values() for place in lead.waiters
    )


def test_two_threads_make_one_request(server: OpenAIServer, model: ChatOpenAI, core: Recording) -> None:
    """The one reads the stream, the other gets its answer when it is whole; `invoke` does too."""
    server.hold_streams_after = 1
    server.stream_gate.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(stream, model, ASKED)
        wait_until(lambda: server.count == 1)
        others = [pool.submit(stream, model, ASKED), pool.submit(lambda: model.invoke(ASKED).text)]
        wait_until(lambda: waiting(core) == 2)
        server.stream_gate.set()
        assert {call.result(10) for call in (first, *others)} == {"answer 1"}
    assert server.count == 1


def test_two_streams_in_one_thread_do_not_wait_for_each_other() -> None:
    """Who holds one half read would wait for itself."""
    fake = StreamingChat()
    one, other = fake.stream(ASKED), fake.stream(ASKED)
    pairs = list(zip(one, other, strict=False))

    assert fake.calls == 2
    assert sum_of([a for a, _ in pairs]).text in ("answer 1", "answer 2")


@pytest.mark.parametrize("in_async", [False, True])
def test_a_store_that_fails_costs_no_answer(in_async: bool, used: IbidemCache, core: Recording) -> None:
    """Nor does a lookup."""
    fake = AsyncStreamingChat()
    way = BY_MEANING["astream" if in_async else "stream"]

    def broken(*args: Any) -> Any:
        raise OSError("disk full")

    steps = core.steps
    core.steps = replace(steps, store=broken)
    assert way(fake, ASKED) == "answer 1"
    core.steps = replace(steps, search=broken)
    assert way(fake, ASKED) == "answer 2"
    assert used.faults() == {
        "store an answer of LangChain: OSError": 1,
        "look up an answer for LangChain: OSError": 1,
    }
    assert not core.core.steps.flights._leaders


UNSUITABLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "no finish reason": (("Paris.",), "unfinished_stream"),
    "arguments that LangChain mends": (
        (
            AIMessageChunk(
                "",
                tool_call_chunks=[
                    {"name": "f", "args": '{"a": 1', "id": "1", "index": 0, "type": "tool_call_chunk"}
                ],
            ),
            last("tool_calls"),
        ),
        "invalid_tool_calls",
    ),
    "no JSON": ((AIMessageChunk("Paris.", additional_kwargs={"seen": {1, 2}}), last()), "not_json"),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_an_unsuitable_answer_is_not_stored(name: str, used: IbidemCache) -> None:
    """And the reason is counted."""
    said, cause = UNSUITABLE[name]
    fake = StreamingChat(say=said)
    stream(fake, ASKED)
    stream(fake, ASKED)

    assert fake.calls == 2
    assert used.faults() == {cause: 2}


async def _under_events(model: Any) -> str:
    program = RunnableLambda(lambda _: None, lambda question: model.ainvoke(question))
    told = [event async for event in program.astream_events(ASKED, version="v2")]
    return told[-1]["data"]["output"].text


@pytest.mark.parametrize("in_async", [False, True])
def test_half_a_stream_inside_invoke_is_not_stored(
    in_async: bool, server: OpenAIServer, model: ChatOpenAI, core: Recording, used: IbidemCache
) -> None:
    """LangChain stores what it streams there itself, also what just ended."""
    server.say = lambda body: "The capital of France is Paris."

    def ask(asked: Any) -> str:
        return asyncio.run(_under_events(asked)) if in_async else BY_MEANING["of a graph"](asked, ASKED)

    server.break_stream_after(2, politely=True)
    assert ask(model) == "The capital"
    assert nothing_is_left(core)
    assert used.faults() == {"unfinished_stream": 1}
    assert ask(model) == ask(model) == "The capital of France is Paris."
    server.say = None
    assert server.count == 2
    marking, silent = FakeListChatModel(responses=["Whole.", "Asked again."]), StreamingChat(say=("Half",))
    assert ask(marking) == ask(marking) == "Whole."
    assert ask(silent) == "Half"
    assert used.faults() == {"unfinished_stream": 2}
    assert len(core.stored) == 2


def test_a_last_chunk_that_is_marked_needs_no_finish_reason() -> None:
    fake = FakeListChatModel(responses=["Paris.", "Lima."])

    assert [stream(fake, ASKED), stream(fake, ASKED), stream(fake, OTHER)] == ["Paris.", "Paris.", "Lima."]


def test_a_program_may_change_what_it_gets() -> None:
    """What was stored is what the model said."""
    fake = StreamingChat(say=READ_BLOCKS)
    for chunk in fake.stream(ASKED):
        if chunk.content:
            chunk.content[0].clear()
        chunk.response_metadata.clear()

    assert sum_of(list(fake.stream(ASKED))).text == "The weather? One moment, I will ask for it."


# Models of all sorts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StreamingChat, AsyncStreamingChat, OnlyAsyncChat])
def test_what_a_model_implements(kind: type[StreamingChat], core: Recording) -> None:
    """Where it has no stream of a flavour LangChain asks `invoke`, as without us; one lookup in any case."""
    fake = kind()
    ways = (BY_MEANING[name] for name in ("stream", "astream", "events", "stream"))

    assert {way(fake, ASKED) for way in ways} == {"answer 1"}
    assert (fake.calls, fake.streamed) == (1, 1), "the model itself was asked, and keeps what it noted"
    assert (len(core.looked_up), len(core.stored)) == (4, 1)


@pytest.mark.parametrize("disabled", [True, "tool_calling"])
def test_a_model_whose_streams_are_disabled(disabled: Any, core: Recording) -> None:
    fake = StreamingChat(disable_streaming=disabled)

    assert [chunk.text for chunk in fake.stream(ASKED, tools=[TOOL])] == ["answer 1"]
    assert len(list(fake.stream(ASKED, tools=[TOOL]))) == 1
    assert (fake.calls, len(core.looked_up), len(core.stored)) == (1, 2, 1)


class Counting(BaseRateLimiter):
    def __init__(self) -> None:
        self.acquired = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.acquired += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire()


def test_a_rate_limiter_counts_what_reaches_the_provider() -> None:
    """As it does for `invoke`."""
    limiter = Counting()
    fake = AsyncStreamingChat(rate_limiter=limiter)
    for name in ("stream", "astream", "events"):
        BY_MEANING[name](fake, ASKED)
    assert limiter.acquired == 1
    BY_MEANING["astream"](fake, OTHER)
    assert limiter.acquired == 2


def test_several_answers_are_not_served_as_one(used: IbidemCache) -> None:
    """What `invoke` would return the first of, no stream can bring."""

    class Several(StreamingChat):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            result = super()._generate(*args, **kwargs)
            return result.model_copy(update={"generations": result.generations * 2})

    fake = Several()
    assert fake.invoke(ASKED).text == fake.invoke(ASKED).text == "answer 1"
    assert stream(fake, ASKED) == "answer 2"
    assert used.faults() == {}


class StreamingCompletion(LLM):
    """A completion model with a stream."""

    _calls: Calls = PrivateAttr(default_factory=Calls)

    @property
    def _llm_type(self) -> str:
        return "streaming-completion"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": "streaming"}

    def _call(self, prompt: str, *args: Any, **kwargs: Any) -> str:
        return f"answer {self._calls.next()}"

    def _stream(self, prompt: str, *args: Any, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        number = self._calls.next()
        for text, reason in (("answer ", None), (str(number), "stop")):
            yield GenerationChunk(text=text, generation_info={"finish_reason": reason})


@pytest.mark.parametrize("name", ["stream", "astream", "chain stream", "chain astream"])
def test_completion_models(name: str, server: OpenAIServer) -> None:
    """A real one and a fake one: streams and `invoke` share their entries."""
    real = CompletionOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0)
    way = BY_MEANING[name]
    for asked in (real, StreamingCompletion()):
        first = way(asked, ASKED)
        assert first.startswith("answer 1")
        assert {way(asked, ASKED), way(asked, REWORDED), asked.invoke(ASKED)} == {first}
        assert way(asked, OTHER).startswith("answer 2")
    assert server.count == 2


def test_a_completion_model_that_breaks_off(server: OpenAIServer, core: Recording) -> None:
    """Politely, without a finish reason."""
    real = CompletionOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0)
    server.break_stream_after(1, politely=True)
    assert stream(real, ASKED) == "answer"
    assert nothing_is_left(core)
    assert stream(real, ASKED).startswith("answer 2")


def test_bound_parameters_of_a_completion_model(used: IbidemCache) -> None:
    """LangChain's key does not hold them; ours does."""
    model = StreamingCompletion()
    cold, hot = model.bind(temperature=0.1), model.bind(temperature=0.9)

    assert [stream(cold, ASKED), stream(cold, ASKED)] == ["answer 1", "answer 1"]
    assert [stream(hot, ASKED), stream(hot, ASKED)] == ["answer 2", "answer 2"]
    assert cold.invoke(ASKED) == "answer 1"
    assert used.faults() == {}


def test_conversations_are_compared_without_ids(model: ChatOpenAI, server: OpenAIServer) -> None:
    """The ids of messages are random, and no model sees them."""
    turns = [HumanMessage("Hello."), AIMessage("Hello!", id="one"), HumanMessage(ASKED)]
    again = [HumanMessage("Hello.", id="x"), AIMessage("Hello!", id="two"), HumanMessage(ASKED)]

    assert stream(model, turns) == stream(model, again) == model.invoke(turns).text
    assert server.count == 1


def test_waiting_ends_after_its_time(open_cache: OpenCache, server: OpenAIServer) -> None:
    """A stream that is read slowly holds others for a bounded time; its reader gets the rest."""
    install(open_cache(single_flight=0.05))
    asked = chat(server)
    with ThreadPoolExecutor(1) as pool:
        slow = asked.stream(ASKED)
        begun = [next(slow)]
        assert pool.submit(stream, asked, ASKED).result(10) == "answer 2"
        assert sum_of([*begun, *slow]).text == "answer 1"
