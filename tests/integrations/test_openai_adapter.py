"""`ibidem.openai`: the real client of OpenAI, asked through the cache."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ParsedChatCompletion
from openai.types.responses import ParsedResponse, Response
from pydantic import BaseModel

import ibidem
import ibidem.openai
from ibidem.adapter.programs import explain_run
from ibidem.adapter.testing import AdapterContract, App, Model
from ibidem.cache import SemanticCache
from tests.conftest import OpenCache
from tests.openai_server import OpenAIServer

ASKED, REWORDED = "How long can I return goods?", "How long can I return the goods?"
SECRET = "You are the clerk of Mallory and Sons."
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


class Town(BaseModel):
    """A structured answer."""

    name: str


class TestAdapter(AdapterContract):
    """Promises of every adapter."""

    def make_app(self, cache: SemanticCache, model: Model) -> App:
        """A client with a model in place of the network."""

        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content)
            text = model(body["messages"][-1]["content"])
            common = {"id": "chatcmpl-1", "created": 0, "model": "m", "object": "chat.completion"}
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "delta": message, "finish_reason": "stop"}
            whole = {**common, "choices": [choice]}
            if body.get("stream"):
                return httpx.Response(200, text=f"data: {json.dumps(whole)}\n\ndata: [DONE]\n\n")
            return httpx.Response(200, json=whole)

        def ask(question: str) -> Any:
            try:
                return chat(client, question)
            except openai.APIConnectionError as error:
                raise ConnectionError from error

        http_client = httpx.Client(transport=httpx.MockTransport(answer))
        plain = openai.OpenAI(api_key="sk-test", http_client=http_client, max_retries=0)
        client = ibidem.openai.wrap(plain, cache)
        return App(ask, text_of, lambda question: [text_in(list(chat(client, question, stream=True)))])


@pytest.fixture
def plain(server: OpenAIServer) -> Iterator[openai.OpenAI]:
    """A client that nobody has wrapped."""
    with openai.OpenAI(base_url=server.url, api_key="sk-test", max_retries=0) as client:
        yield client


@pytest.fixture
def client(plain: openai.OpenAI, cache: SemanticCache) -> openai.OpenAI:
    """The same client through the cache."""
    return ibidem.openai.wrap(plain, cache)


@pytest.fixture
async def aclient(server: OpenAIServer, cache: SemanticCache) -> AsyncIterator[openai.AsyncOpenAI]:
    """An async client through the cache."""
    async with openai.AsyncOpenAI(base_url=server.url, api_key="sk-test", max_retries=0) as plain:
        yield ibidem.openai.wrap(plain, cache)


def messages(question: str, system: str = "Answer briefly.") -> Any:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def chat(client: Any, question: str = ASKED, system: str = "Answer briefly.", **options: Any) -> Any:
    """A chat completion, or a stream of one."""
    return client.chat.completions.create(model="m", messages=messages(question, system), **options)


def respond(client: Any, question: str = ASKED, system: str = "Answer briefly.", **options: Any) -> Any:
    """A response, or a stream of one."""
    return client.responses.create(model="m", input=question, instructions=system, **options)


def text_of(response: Any) -> str:
    return (
        response.output_text if isinstance(response, Response) else response.choices[0].message.content or ""
    )


def text_in(chunks: list[Any]) -> str:
    """The text of a stream of either endpoint."""
    if hasattr(chunks[0], "choices"):
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    return "".join(chunk.delta for chunk in chunks if chunk.type == "response.output_text.delta")


def told(response: Any) -> dict[str, Any]:
    """Where a repeated answer says it comes from; empty for others."""
    return ((response.model_extra or {}).get("response_metadata") or {}).get("ibidem", {})


on_both = pytest.mark.parametrize("ask", [chat, respond])


@on_both
def test_a_reworded_question_is_answered_from_the_cache(
    server: OpenAIServer, client: openai.OpenAI, ask: Any
) -> None:
    """By an object of the same class that cost nothing; other scopes ask."""
    first, same, again = ask(client), ask(client), ask(client, REWORDED)

    assert (server.count, text_of(first), text_of(same), text_of(again)) == (1, *["answer 1"] * 3)
    assert type(again) is type(first) is (ChatCompletion if ask is chat else Response)
    assert (told(first), told(same)["tier"], told(again)["tier"]) == ({}, "exact", "semantic")
    assert (first.usage.total_tokens, again.usage.total_tokens) == (18, 0)
    assert again.id == first.id
    assert again.model_dump(exclude={"usage"}) | {"response_metadata": 0} == (
        first.model_dump(exclude={"usage"}) | {"response_metadata": 0}
    )
    ask(client, system="Answer at length.")
    ask(client, temperature=0.5)
    ask(client, extra_body={"top_k": 3})
    ask(client, extra_headers={"X-Answer-In": "French"})
    ask(client.with_options(default_headers={"X-Answer-In": "Dutch"}))
    ask(client, "May I smoke here?")
    assert server.count == 7


@on_both
def test_the_part_that_makes_a_call_new_is_named(
    server: OpenAIServer, client: openai.OpenAI, ask: Any
) -> None:
    """By a run that ends before the server is asked."""
    ask(client)
    news: list[tuple[dict[str, Any], str]] = [
        ({"system": "Answer at length."}, "system prompt" if ask is chat else "instructions"),
        ({"temperature": 0.5}, "parameters"),
        ({"tools": [TOOL]}, "tools"),
        ({"extra_headers": {"X-Answer-In": "French"}}, "client"),
    ]
    for options, part in news:
        ran = explain_run(lambda question, given=options: ask(client, question, **given), ASKED)
        (one,) = ran.requests
        assert [near.differs for near in one.explanation.elsewhere] == [(part,)]
    assert server.count == 1


@on_both
def test_what_does_not_decide_the_answer_is_not_compared(
    server: OpenAIServer, client: openai.OpenAI, ask: Any
) -> None:
    """Nor told to another: a repeated response has the names of its own caller."""
    ask(
        client,
        user="mallory",
        metadata={"for": "mallory"},
        extra_headers={"X-Request-Id": "1", "X-Api-Key": "a"},
    )
    again = ask(
        client, user="bob", metadata={"for": "bob"}, timeout=5, extra_headers={"Authorization": "Bearer b"}
    )

    assert server.count == 1
    if ask is respond:
        assert (again.metadata, again.user, again.instructions) == (
            {"for": "bob"},
            "bob",
            "Answer briefly.",
        )
    assert "mallory" not in again.to_json()


@on_both
def test_a_stream_is_stored_and_replayed(server: OpenAIServer, client: openai.OpenAI, ask: Any) -> None:
    """A stream after a stream, a response after one, and the other way round."""
    server.say = lambda body: "Within thirty days, with the receipt, if nothing is broken. " * 3
    missed = ask(client, stream=True)
    assert isinstance(missed, openai.Stream)
    recorded = list(missed)
    with ask(client, REWORDED, stream=True) as stream:
        assert isinstance(stream, openai.Stream)
        replayed = list(stream)

    assert text_in(replayed) == text_in(recorded) == text_of(ask(client))
    assert len(replayed) > 8
    assert type(replayed[0]) is type(recorded[0])
    assert type(replayed[-1]) is type(recorded[-1])
    assert server.count == 1
    if ask is chat:
        assert replayed[-1].choices[0].finish_reason == recorded[-1].choices[0].finish_reason == "stop"
    else:
        assert {event.type for event in replayed} == {event.type for event in recorded}
        assert replayed[-1].response.output_text == text_in(recorded)
    assert ask(client, REWORDED).usage.total_tokens == 0
    ask(client, "Which shops are open?")
    assert text_in(list(ask(client, "Which shops are open?", stream=True)))
    assert server.count == 2
    assert ibidem.forget(missed)
    ask(client)
    assert server.count == 3


def test_a_stream_tells_its_usage_if_asked(server: OpenAIServer, client: openai.OpenAI) -> None:
    """In a last chunk without choices; a repeated one has used nothing."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    totals = [[c.usage and c.usage.total_tokens for c in chat(client, **options)] for _ in range(2)]

    assert [each[-1] for each in totals] == [18, 0]
    assert {value for each in totals for value in each[:-1]} == {None}
    assert server.count == 1


@on_both
def test_the_helpers_for_streams_are_answered(server: OpenAIServer, client: openai.OpenAI, ask: Any) -> None:
    """`chat.completions.stream` and `responses.stream`, for texts and in a form."""
    for _ in range(2):
        if ask is chat:
            with client.chat.completions.stream(
                model="m", messages=messages(ASKED), response_format=Town
            ) as stream:
                town = stream.get_final_completion().choices[0].message.parsed
        else:
            with client.responses.stream(model="m", input=ASKED, text_format=Town) as events:
                town = events.get_final_response().output_parsed
        assert town == Town(name="answer 1")
    assert server.count == 1


@on_both
def test_a_form_is_filled_once_for_the_same_words(
    server: OpenAIServer, client: openai.OpenAI, ask: Any
) -> None:
    """`parse` gives a parsed object again; other words or another form ask."""

    def town(question: str, form: type = Town) -> Any:
        if ask is chat:
            completion = client.chat.completions.parse(
                model="m", messages=messages(question), response_format=form
            )
            assert isinstance(completion, ParsedChatCompletion)
            return completion.choices[0].message.parsed
        response = client.responses.parse(model="m", input=question, text_format=form)
        assert isinstance(response, ParsedResponse)
        return response.output_parsed

    class Village(Town):
        people: int

    assert town(ASKED) == town(ASKED) == Town(name="answer 1")
    assert town(REWORDED) == Town(name="answer 2")
    assert town(ASKED, Village) == Village(name="answer 3", people=1)
    assert server.count == 3


@on_both
@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_are_exact(
    server: OpenAIServer, client: openai.OpenAI, ask: Any, stream: bool
) -> None:
    """They are repeated for the same words only, with the same ids."""
    tools = [TOOL] if ask is chat else [{"type": "function", **TOOL["function"]}]

    def call(question: str) -> tuple[str, str, str]:
        answered = ask(client, question, tools=tools, stream=stream)
        if ask is chat and not stream:
            (one,) = answered.choices[0].message.tool_calls
            return one.id, one.function.name, one.function.arguments
        if ask is chat:
            called = [
                c for chunk in answered if chunk.choices for c in chunk.choices[0].delta.tool_calls or ()
            ]
            return called[0].id, called[0].function.name, "".join(c.function.arguments for c in called)
        (item,) = (list(answered)[-1].response if stream else answered).output
        return item.call_id, item.name, item.arguments

    assert call(ASKED) == call(ASKED) == ("call_1", "weather", "{}")
    assert call(REWORDED) == ("call_2", "weather", "{}")
    assert server.count == 2


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        ("previous_response_id", {"previous_response_id": "resp_0"}),
        ("conversation", {"conversation": "conv_0"}),
        ("background", {"background": True}),
        ("store", {"store": True}),
        ("provider_tool", {"tools": [{"type": "web_search"}], "tool_choice": "none"}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("item_reference", {"input": [{"type": "item_reference", "id": "msg_0"}]}),
    ],
)
def test_what_the_provider_keeps_is_never_cached(
    server: OpenAIServer, client: openai.OpenAI, cache: SemanticCache, cause: str, options: Any
) -> None:
    """It is counted, and asked each time."""
    server.call_tools = False
    for _ in range(2):
        client.responses.create(**{"model": "m", "input": ASKED, **options})

    assert (server.count, cache.stats().entries) == (2, 0)
    assert ibidem.openai.faults(client) == {cause: 2}


@pytest.mark.parametrize(("cause", "options"), [("n", {"n": 2}), ("logprobs", {"logprobs": True})])
def test_variants_and_measurements_are_not_cached(
    server: OpenAIServer, client: openai.OpenAI, cause: str, options: Any
) -> None:
    for _ in range(2):
        chat(client, **options)

    assert (server.count, ibidem.openai.faults(client)) == (2, {cause: 2})


def test_images_and_steps_are_compared_exactly(server: OpenAIServer, client: openai.OpenAI) -> None:
    """Also a prompt that ends with something else than the user's question."""
    image = {"type": "image_url", "image_url": {"url": "https://example.org/1.png"}}
    for question in (ASKED, ASKED, REWORDED):
        chat(client, [{"type": "text", "text": question}, image])  # type: ignore[arg-type]
    assert server.count == 2
    for question in (ASKED, ASKED, REWORDED):
        prompt = [*messages(question), {"role": "assistant", "content": "Within"}]
        client.chat.completions.create(model="m", messages=prompt)
    assert server.count == 4


def test_a_prompt_with_documents_needs_to_be_told(server: OpenAIServer, client: openai.OpenAI) -> None:
    """Which part is the question and which the documents; a changed document asks."""

    def answer(question: str, text: str) -> str:
        document = ibidem.Document("terms", text)
        with ibidem.openai.call(question=question, documents=[document]):
            return text_of(chat(client, f"Context:\n{text}\n\nQuestion: {question}"))

    server.say = lambda body: f"Goods can be returned within 30 days ({server.count})."
    kept, changed = (f"Goods can be returned within {days} days." for days in (30, 60))
    first = answer(ASKED, kept)
    assert answer(REWORDED, kept) == first
    assert answer(REWORDED, changed) != first
    assert server.count == 2
    with pytest.raises(ibidem.InvalidInput), ibidem.openai.call(documents=["a text"]):  # type: ignore[list-item]
        pass


def test_other_methods_are_those_of_the_client(
    server: OpenAIServer, plain: openai.OpenAI, client: openai.OpenAI
) -> None:
    """Raw and streamed responses are the server's, other endpoints and copies work."""
    for _ in range(2):
        raw = client.chat.completions.with_raw_response.create(model="m", messages=messages(ASKED))
        assert raw.http_response.status_code == 200
        with client.responses.with_streaming_response.create(model="m", input=ASKED) as response:
            assert response.parse().output_text.startswith("answer")
    assert server.count == 4
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="m", input="text")
    assert (isinstance(client, openai.OpenAI), client.base_url, client.api_key) == (
        True,
        plain.base_url,
        "sk-test",
    )
    assert text_of(chat(client)) == text_of(chat(client.copy())) == text_of(chat(client.with_options()))
    assert server.count == 5
    assert chat(plain).choices[0].message.content == "answer 6"
    assert ibidem.openai.faults(plain) == {}


def test_a_client_in_use_is_wrapped(server: OpenAIServer, plain: openai.OpenAI, cache: SemanticCache) -> None:
    """The resources that it has made before go on without the cache, those of the wrapped client do not."""
    chat(plain)
    client = ibidem.openai.wrap(plain, cache)
    for _ in range(2):
        chat(client)
    assert server.count == 2
    with pytest.raises(ibidem.InvalidInput, match="AsyncOpenAI, not str"):
        ibidem.openai.wrap("client", cache)  # type: ignore[type-var]


@on_both
@pytest.mark.parametrize("stream", [False, True])
def test_errors_reach_the_program(
    server: OpenAIServer, client: openai.OpenAI, cache: SemanticCache, ask: Any, stream: bool
) -> None:
    """As the client raises them, and nothing is stored, nor of a stream that breaks off."""
    server.fail_next(429)
    with pytest.raises(openai.RateLimitError, match="error 429"):
        ask(client, stream=stream)
    if stream:
        server.fail_stream_after(1)
        with pytest.raises(openai.APIError, match="overloaded"):
            list(ask(client, stream=True))
        server.break_stream_after(1, politely=True)
        list(ask(client, stream=True))
    server.finish_reason = "length"
    answered = ask(client, stream=stream)
    if stream:
        list(answered)
    assert cache.stats().entries == 0


@on_both
def test_a_stream_that_is_not_read_to_its_end_is_not_stored(
    server: OpenAIServer, client: openai.OpenAI, cache: SemanticCache, ask: Any
) -> None:
    """Closed or dropped, it lets an identical call ask at once."""
    with ask(client, stream=True) as stream:
        next(stream)
    dropped = ask(client, stream=True)
    next(dropped)
    del dropped
    gc.collect()
    assert cache.stats().entries == 0
    assert text_of(ask(client)) == "answer 3"


def test_a_closed_cache_is_not_noticed(
    server: OpenAIServer, client: openai.OpenAI, cache: SemanticCache
) -> None:
    """The model is asked."""
    cache.close()

    assert [text_of(chat(client)), text_of(respond(client))] == ["answer 1", "answer 2"]
    assert text_in(list(chat(client, stream=True))) == "answer 3"
    assert "look up an answer for the OpenAI client: CacheClosed" in ibidem.openai.faults(client)


@on_both
def test_an_answer_is_forgotten(server: OpenAIServer, client: openai.OpenAI, ask: Any) -> None:
    """By what the model has just said, by a hit, and by a stream of one."""
    assert ibidem.forget(ask(client))
    ask(client)
    assert ibidem.forget(ask(client, REWORDED))
    ask(client)
    stream = ask(client, stream=True)
    chunks = list(stream)
    assert ibidem.forget(chunks[-1])
    assert not ibidem.forget(stream)
    ask(client)
    assert server.count == 4


def test_tenants_are_apart(server: OpenAIServer, client: openai.OpenAI, plain: openai.OpenAI) -> None:
    """The scope, and the namespace of the client where it names none."""
    for _ in range(2):
        for tenant in ("acme", "umbrella"):
            with ibidem.scope(namespace=tenant):
                chat(client)
    assert server.count == 2
    with ibidem.scope(bypass=True):
        chat(client)
    assert server.count == 3


def test_only_named_tenants_are_cached_if_required(
    server: OpenAIServer, plain: openai.OpenAI, cache: SemanticCache
) -> None:
    client = ibidem.openai.wrap(plain, cache, require_namespace=True)
    chat(client)
    chat(client)
    assert (server.count, ibidem.openai.faults(client)) == (2, {"no_namespace": 2})
    for _ in range(2):
        with ibidem.scope(namespace="acme"):
            chat(client)
    assert server.count == 3


@on_both
def test_identical_calls_ask_once(server: OpenAIServer, client: openai.OpenAI, ask: Any) -> None:
    """Sixteen threads with one question; with as many questions, each asks."""
    server.delay = 0.2
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: text_of(ask(client)), range(16)))
    assert (server.count, set(answers)) == (1, {"answer 1"})
    barrier = threading.Barrier(4)

    def other(number: int) -> str:
        barrier.wait()
        return text_of(ask(client, f"What is the number {number}{number}?"))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(other, range(4)))) == 4


@on_both
def test_the_scope_is_in_no_file(
    client: openai.OpenAI, cache: SemanticCache, ask: Any, tmp_path: Path
) -> None:
    """Neither are the instructions that a response repeats."""
    ask(client, system=SECRET)
    list(ask(client, "Which shops are open?", system=SECRET, stream=True))
    assert cache.stats().entries == 2
    cache.close()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if b"Mallory" in file.read_bytes()]


@on_both
async def test_async_calls(server: OpenAIServer, aclient: openai.AsyncOpenAI, ask: Any) -> None:
    """As in sync: whole, streamed, parsed, at once, with errors."""
    server.delay = 0.1
    answers = [text_of(each) for each in await asyncio.gather(*(ask(aclient) for _ in range(8)))]
    again = await ask(aclient, REWORDED)
    assert (server.count, set(answers), told(again)["tier"]) == (1, {"answer 1"}, "semantic")
    missed = [chunk async for chunk in await ask(aclient, "Which shops are open?", stream=True)]
    async with await ask(aclient, "Which shops are open?", stream=True) as stream:
        assert isinstance(stream, openai.AsyncStream)
        assert text_in([chunk async for chunk in stream]) == text_in(missed) == "answer 2"
    assert text_of(await ask(aclient, "Which shops are open?")) == "answer 2"
    async with await ask(aclient, "What is a receipt?", stream=True) as stream:
        await anext(stream)
    assert text_of(await ask(aclient, "What is a receipt?")) == "answer 4"
    server.fail_next()
    with pytest.raises(openai.InternalServerError):
        await ask(aclient, "When do shops open?")
    form = await aclient.responses.parse(model="m", input=ASKED, text_format=Town)
    same = await aclient.responses.parse(model="m", input=ASKED, text_format=Town)
    assert (form.output_parsed, server.count) == (same.output_parsed, 6)
    assert await ibidem.aforget(again)


def test_reworded_questions_can_be_left_to_the_model(
    server: OpenAIServer, plain: openai.OpenAI, open_cache: OpenCache
) -> None:
    """`semantic=False`; and `any_message` takes every line for a question."""
    cache = open_cache()
    exact = ibidem.openai.wrap(plain, cache, semantic=False)
    for question in (ASKED, ASKED, REWORDED):
        chat(exact, question)
    assert server.count == 2
    line, other = "the parcel with the shoes is late", "the parcel with the shoes is late again"
    for wrapped, asked in ((ibidem.openai.wrap(plain, cache), 2), (exact, 0)):
        before = server.count
        options = {"any_message": True} if wrapped is exact else {}
        client = ibidem.openai.wrap(plain, cache, namespace=f"n{asked}", **options)  # type: ignore[arg-type]
        chat(client, line)
        chat(client, other)
        assert server.count - before == (1 if options else 2)
