"""The stand-in for the OpenAI API, proved with the clients that are to run against it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel

from tests.openai_server import OpenAIServer, instance, running_openai

HELLO = [ChatMessage("Hello there")]
ASKED = "What is the weather in Rome?"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


class Town(BaseModel):
    """A structured answer."""

    name: str
    mayor: Person
    streets: list[str]


def weather(city: str, days: int, unit: str = "C") -> str:
    """The weather."""
    return f"sunny in {city} for {days}"


TOOLS = [FunctionTool.from_defaults(weather)]


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """A running server."""
    with running_openai() as running:
        yield running


@pytest.fixture
def llm(server: OpenAIServer) -> OpenAI:
    """LlamaIndex's client of it."""
    return OpenAI(model="gpt-4o-mini", api_base=server.url, api_key="sk-test", max_retries=0)


def chat_openai(server: OpenAIServer) -> ChatOpenAI:
    """LangChain's client of it."""
    return ChatOpenAI(
        model="gpt-4o-mini", base_url=server.url, api_key="sk-test", max_retries=0, stream_usage=True
    )


def test_answers_are_numbered_and_requests_kept(server: OpenAIServer, llm: OpenAI) -> None:
    """The n-th request gets `answer {n}` with its usage, and path, body and headers can be read back."""
    first, second = llm.chat(HELLO), llm.complete("Hello")
    assert (first.message.content, second.text) == ("answer 1", "answer 2")
    assert first.additional_kwargs == USAGE
    assert (first.raw.id, first.raw.model) == ("chatcmpl-1", "gpt-4o-mini")
    assert first.raw.choices[0].finish_reason == "stop"
    assert server.count == len(server.requests) == 2
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions"
    assert request["body"]["messages"] == [{"role": "user", "content": "Hello there"}]
    assert request["headers"]["authorization"] == "Bearer sk-test"
    server.reset()
    assert (server.count, server.requests) == (0, [])
    assert llm.chat(HELLO).message.content == "answer 1"


def test_a_stream_comes_in_pieces(llm: OpenAI) -> None:
    """The deltas of a stream join to the answer and its last chunk has the finish reason."""
    chunks = list(llm.stream_chat(HELLO))
    assert [chunk.delta for chunk in chunks] == ["", "answer", " 1", ""]
    assert chunks[-1].message.content == "answer 1"
    assert chunks[-1].raw.choices[0].finish_reason == "stop"
    assert "".join(chunk.delta for chunk in llm.stream_complete("Hello")) == "answer 2"


def test_a_stream_counts_tokens_when_asked(llm: OpenAI) -> None:
    """With `include_usage` a chunk without choices follows, with the usage."""
    *_, finish, last = llm.stream_chat(HELLO, stream_options={"include_usage": True})
    assert (finish.additional_kwargs, last.additional_kwargs, last.raw.choices) == ({}, USAGE, [])


async def test_async_calls(llm: OpenAI) -> None:
    """Whole and streamed answers come in async too."""
    assert (await llm.achat(HELLO)).message.content == "answer 1"
    assert [chunk.delta async for chunk in await llm.astream_chat(HELLO)] == ["", "answer", " 2", ""]
    assert (await llm.acomplete("Hello")).text == "answer 3"


def test_the_first_tool_is_called(server: OpenAIServer, llm: OpenAI) -> None:
    """The arguments fit the tool's schema: the last word asked, 1, and nothing that is not required."""
    response = llm.chat_with_tools(TOOLS, user_msg=ASKED)
    assert response.raw.choices[0].finish_reason == "tool_calls"
    [call] = llm.get_tool_calls_from_response(response)
    assert (call.tool_id, call.tool_name, call.tool_kwargs) == (
        "call_1",
        "weather",
        {"city": "Rome", "days": 1},
    )
    assert str(llm.predict_and_call(TOOLS, user_msg=ASKED)) == "sunny in Rome for 1"
    server.call_tools = False
    assert llm.chat_with_tools(TOOLS, user_msg=ASKED).message.content == "answer 3"


async def test_a_tool_call_is_streamed_in_pieces(llm: OpenAI) -> None:
    """The name of the tool comes first, then the arguments in two pieces, then the finish reason."""
    stream = await llm.astream_chat_with_tools(TOOLS, user_msg=ASKED)
    arguments = [chunk.message.blocks[-1].tool_kwargs async for chunk in stream]
    whole = '{"city": "Rome", "days": 1}'
    assert arguments == [{}, whole[:13], whole, whole]


def test_a_forced_tool_is_called(server: OpenAIServer, llm: OpenAI) -> None:
    """The tool that `tool_choice` names is called instead of the first, and none with `none`."""
    other = FunctionTool.from_defaults(lambda: "nothing", name="other", description="Other.")
    response = llm.chat_with_tools([*TOOLS, other], user_msg=ASKED, tool_choice="other")
    assert [call.tool_name for call in llm.get_tool_calls_from_response(response)] == ["other"]
    assert llm.chat_with_tools(TOOLS, user_msg=ASKED, tool_choice="none").message.content == "answer 2"


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.filterwarnings("ignore:The `__fields(_set)?__` attribute:DeprecationWarning")  # of workflows
@pytest.mark.filterwarnings("ignore:Accessing the 'model_(computed_)?fields':DeprecationWarning")
async def test_an_agent_ends(server: OpenAIServer, llm: OpenAI, streaming: bool) -> None:
    """An agent calls the tool once and then gets a text, for each user message."""
    output = await FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming).run(ASKED)
    assert [call.tool_output.content for call in output.tool_calls] == ["sunny in Rome for 1"]
    assert (str(output), server.count) == ("answer 2", 2)


def test_structured_answers_fit_their_schema(server: OpenAIServer, llm: OpenAI) -> None:
    """A JSON schema as the response format is answered with an instance of it."""
    town = llm.structured_predict(Town, PromptTemplate("Which town?"))
    assert server.requests[0]["body"]["response_format"]["type"] == "json_schema"
    assert town == Town(name="answer 1", mayor=Person(name="answer 1", age=1), streets=[])
    *_, last = llm.stream_structured_predict(Town, PromptTemplate("Which town?"))
    assert last.mayor == Person(name="answer 2", age=1)


def test_instances_of_schemas() -> None:
    """Choices take their first member and arrays as many items as they need."""
    properties = {
        "constant": {"const": "c", "type": "string"},
        "choice": {"enum": ["e", "f"]},
        "optional": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "several": {"type": ["boolean", "null"]},
        "items": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "extra": {"type": "string"},
    }
    required = [name for name in properties if name != "extra"]
    assert instance({"type": "object", "properties": properties, "required": required}, "s") == {
        "constant": "c",
        "choice": "e",
        "optional": 1.0,
        "several": True,
        "items": ["s", "s"],
    }


def test_answers_can_be_chosen(server: OpenAIServer, llm: OpenAI) -> None:
    """`say` makes the text from the request, also a streamed one; `finish_reason` ends it."""
    server.say, server.finish_reason = lambda body: body["messages"][-1]["content"].upper() + "  \n", "length"
    response, chunks = llm.chat(HELLO), list(llm.stream_chat(HELLO))
    assert response.message.content == "".join(chunk.delta for chunk in chunks) == "HELLO THERE  \n"
    assert {one.raw.choices[0].finish_reason for one in (response, chunks[-1])} == {"length"}


def test_errors_surface(server: OpenAIServer, llm: OpenAI) -> None:
    """The client raises the errors that the server was told to answer with, and then all is well."""
    server.fail_next(times=2)
    server.fail_next(429)
    for error in (openai.InternalServerError, openai.InternalServerError, openai.RateLimitError):
        with pytest.raises(error, match="error"):
            llm.chat(HELLO)
    assert llm.chat(HELLO).message.content == "answer 4"


def test_other_endpoints_are_not_found(server: OpenAIServer) -> None:
    """A POST to anything but completions and responses is a 404 that is kept but not counted."""
    client = openai.OpenAI(base_url=server.url, api_key="sk-test", max_retries=0)
    with client, pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="Hello")
    assert (server.count, [request["path"] for request in server.requests]) == (0, ["/v1/embeddings"])


def test_responses_are_answered(server: OpenAIServer) -> None:
    """Whole and streamed: texts, calls of tools, and instances of a form."""
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}
    with openai.OpenAI(base_url=server.url, api_key="sk-test", max_retries=0) as client:
        whole = client.responses.create(model="m", input="Hello", instructions="Be brief.")
        events = list(client.responses.create(model="m", input="Hello", stream=True))
        with client.responses.stream(model="m", input="Hello") as stream:
            streamed = stream.get_final_response()
        called = client.responses.create(model="m", input=ASKED, tools=[tool])
        town = client.responses.parse(model="m", input="Which town?", text_format=Town)

    assert (whole.output_text, whole.instructions, whole.usage.total_tokens) == ("answer 1", "Be brief.", 18)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert (deltas, events[-1].response.output_text) == (["answer", " 2"], "answer 2")
    assert streamed.output_text == "answer 3"
    assert (called.output[0].name, called.output[0].arguments) == ("weather", "{}")
    assert town.output_parsed.name == "answer 5"


def test_a_broken_stream_raises(server: OpenAIServer, llm: OpenAI) -> None:
    """A dropped connection is an error after the pieces that came, and the next stream is whole."""
    server.break_stream_after(1)
    assert llm.chat(HELLO).message.content == "answer 1"  # not a stream, so it breaks nothing
    deltas: list[str | None] = []
    with pytest.raises(httpx.RemoteProtocolError):
        deltas.extend(chunk.delta for chunk in llm.stream_chat(HELLO))
    assert deltas == ["", "answer"]
    assert [chunk.delta for chunk in llm.stream_chat(HELLO)] == ["", "answer", " 3", ""]


async def test_a_broken_stream_raises_in_async(server: OpenAIServer, llm: OpenAI) -> None:
    """A dropped connection is an error in async too."""
    server.break_stream_after(0)
    stream = await llm.astream_chat(HELLO)
    with pytest.raises(httpx.RemoteProtocolError):
        [chunk async for chunk in stream]


def test_a_stream_broken_politely_just_ends(server: OpenAIServer, llm: OpenAI) -> None:
    """A body that ends early is no error to the client; only the finish reason is missing."""
    server.break_stream_after(1, politely=True)
    chunks = list(llm.stream_chat(HELLO))
    assert [chunk.delta for chunk in chunks] == ["", "answer"]
    assert {chunk.raw.choices[0].finish_reason for chunk in chunks} == {None}


def test_a_stream_may_tell_of_an_error(server: OpenAIServer, llm: OpenAI) -> None:
    """After the pieces that came, as an error of the API."""
    server.fail_stream_after(1)
    deltas: list[str | None] = []
    with pytest.raises(openai.APIError, match="overloaded"):
        deltas.extend(chunk.delta for chunk in llm.stream_chat(HELLO))
    assert deltas == ["", "answer"]


def test_a_stream_is_held(server: OpenAIServer, llm: OpenAI) -> None:
    """After some pieces, until the gate is opened."""
    server.hold_streams_after = 1
    server.stream_gate.clear()
    chunks = llm.stream_chat(HELLO)
    begun = [next(chunks).delta, next(chunks).delta]  # type: ignore[call-overload]
    server.stream_gate.set()
    assert [*begun, *(chunk.delta for chunk in chunks)] == ["", "answer", " 1", ""]


def test_completions_are_streamed(server: OpenAIServer) -> None:
    """Word by word, with the finish reason at the end."""
    client = openai.OpenAI(base_url=server.url, api_key="sk-test", max_retries=0)
    with client:
        chunks = list(client.completions.create(model="m", prompt="Hello", stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["answer", " 1", " to", " Hello", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]


def test_a_delayed_answer_times_out(server: OpenAIServer) -> None:
    """A client less patient than the delay gives up, and the server minds nothing."""
    server.delay = 0.3
    hasty = OpenAI(model="gpt-4o-mini", api_base=server.url, api_key="sk-test", max_retries=0, timeout=0.05)
    with pytest.raises(openai.APITimeoutError):
        hasty.chat(HELLO)
    server.delay = 0
    assert "answer" in str(hasty.chat(HELLO, timeout=10))


def test_langchain_invokes(server: OpenAIServer) -> None:
    """LangChain's client reads content, usage and finish reason, and a tool call with its arguments."""
    model = chat_openai(server)
    message = model.invoke("Hello")
    assert (message.content, message.usage_metadata["total_tokens"]) == ("answer 1", 18)
    assert message.response_metadata["finish_reason"] == "stop"
    [call] = model.bind_tools([weather]).invoke(ASKED).tool_calls
    assert (call["id"], call["name"], call["args"]) == ("call_2", "weather", {"city": "Rome", "days": 1})
    town = model.with_structured_output(Town, method="json_schema").invoke("Which town?")
    assert town.name == "answer 3"


async def test_langchain_streams(server: OpenAIServer) -> None:
    """LangChain's client joins the pieces of a text and of a tool call, in async too."""
    model = chat_openai(server)
    text = list(model.stream("Hello"))
    assert "".join(chunk.content for chunk in text) == "answer 1"
    assert sum(chunk.usage_metadata["total_tokens"] for chunk in text if chunk.usage_metadata) == 18
    first, *others = [chunk async for chunk in model.bind_tools([weather]).astream(ASKED)]
    assert sum(others, first).tool_calls[0]["args"] == {"city": "Rome", "days": 1}
    server.break_stream_after(1)
    with pytest.raises(httpx.RemoteProtocolError):
        list(model.stream("Hello"))
