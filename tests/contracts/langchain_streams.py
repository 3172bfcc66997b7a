"""What the tests of LangChain's streams share: models that stream, and the ways to read a stream."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, message_chunk_to_message
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.graph import END, START, StateGraph
from pydantic import PrivateAttr

from tests.contracts.langchain import Calls


class StreamingChat(BaseChatModel):
    """Answers `answer {n}` in two pieces and a finish reason, or with the chunks of `say`; counts its calls.

    An exception among the chunks is raised when they come to it.
    """

    name_of_model: str = "streaming"
    say: tuple[Any, ...] = ()
    streamed: int = 0  # a field of the model that its streams change
    _calls: Calls = PrivateAttr(default_factory=Calls)

    @property
    def calls(self) -> int:
        return self._calls.count

    @property
    def _llm_type(self) -> str:
        return "streaming-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.name_of_model}

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        whole = sum_of([chunk.message for chunk in self._chunks()])
        info = {"finish_reason": "stop"}
        return ChatResult(generations=[ChatGeneration(message=as_message(whole), generation_info=info)])

    def _chunks(self) -> Iterator[ChatGenerationChunk]:
        number = self._calls.next()
        self.streamed += 1
        for piece in self.say or ("answer ", str(number), last()):
            if isinstance(piece, BaseException):
                raise piece
            message = AIMessageChunk(piece) if isinstance(piece, str) else piece.model_copy(deep=True)
            yield ChatGenerationChunk(message=message)

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._chunks()


class AsyncStreamingChat(StreamingChat):
    """The same with a stream of its own for async code."""

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks():
            await asyncio.sleep(0)
            yield chunk


class OnlyAsyncChat(AsyncStreamingChat):
    """The same without one for other code."""

    _stream = BaseChatModel._stream


def last(reason: str = "stop") -> AIMessageChunk:
    """The chunk that says why the model stopped, and what it cost."""
    usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    metadata = {"finish_reason": reason, "model_name": "streaming"}
    return AIMessageChunk("", response_metadata=metadata, usage_metadata=usage)


def sum_of(chunks: Sequence[Any]) -> AIMessageChunk:
    """What the chunks add up to, as programs do it."""
    first, *others = chunks
    whole: AIMessageChunk = first
    for chunk in others:
        whole = whole + chunk
    return whole


def as_message(whole: AIMessageChunk) -> Any:
    """The message of a chunk."""
    return message_chunk_to_message(whole)


# Anthropic's answers: a list of blocks, each with its number, and a tool call in pieces.
BLOCKS = (
    AIMessageChunk([], response_metadata={"model_name": "claude"}),
    AIMessageChunk([{"type": "thinking", "thinking": "I must ", "index": 0}]),
    AIMessageChunk([{"type": "thinking", "thinking": "look it up.", "index": 0}]),
    AIMessageChunk([{"type": "thinking", "signature": "c2ln", "index": 0}]),
    AIMessageChunk([{"type": "text", "text": "The weather? ", "index": 1}]),
    AIMessageChunk([{"type": "text", "text": "One moment, I will ask for it.", "index": 1}]),
    AIMessageChunk(
        [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}, "index": 2}],
        tool_call_chunks=[tool_call_chunk(name="weather", args="", id="toolu_1", index=2)],
    ),
    AIMessageChunk(
        [{"type": "input_json_delta", "partial_json": '{"city": ', "index": 2}],
        tool_call_chunks=[tool_call_chunk(name=None, args='{"city": ', id=None, index=2)],
    ),
    AIMessageChunk(
        [{"type": "input_json_delta", "partial_json": '"Rome"}', "index": 2}],
        tool_call_chunks=[tool_call_chunk(name=None, args='"Rome"}', id=None, index=2)],
    ),
    AIMessageChunk(
        [],
        response_metadata={"stop_reason": "tool_use"},
        usage_metadata={"input_tokens": 11, "output_tokens": 7, "total_tokens": 18},
    ),
)
READ_BLOCKS = (*BLOCKS[:6], AIMessageChunk([], response_metadata={"stop_reason": "end_turn"}))


# How a program reads a stream of `model` for a prompt: what it gets, as a text.
Way = Callable[[Any, Any], str]


def _join(pieces: Sequence[Any]) -> str:
    return "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)


def stream(model: Any, prompt: Any) -> str:
    return _join(list(model.stream(prompt)))


def astream(model: Any, prompt: Any) -> str:
    async def read() -> str:
        return _join([chunk async for chunk in model.astream(prompt)])

    return asyncio.run(read())


def events(model: Any, prompt: Any) -> str:
    async def read() -> str:
        told = [event async for event in model.astream_events(prompt, version="v2")]
        return _join([event["data"]["chunk"] for event in told if event["event"] == "on_chat_model_stream"])

    return asyncio.run(read())


def log(model: Any, prompt: Any) -> str:
    async def read() -> str:
        state = None
        async for patch in model.astream_log(prompt):
            state = patch if state is None else state + patch
        return _join([state.state["final_output"]])  # type: ignore[union-attr]

    with warnings.catch_warnings():  # newer versions of langchain-core deprecate it
        warnings.simplefilter("ignore", DeprecationWarning)
        return asyncio.run(read())


def of_chain(read: Way) -> Way:
    return lambda model, prompt: read(model | StrOutputParser(), prompt)


def with_config(model: Any, prompt: Any) -> str:
    return stream(model.with_config(tags=["tagged"], metadata={"who": "me"}), prompt)


def with_fallbacks(model: Any, prompt: Any) -> str:
    return stream(StreamingChat(name_of_model="down", say=(OSError(),)).with_fallbacks([model]), prompt)


def with_retry(model: Any, prompt: Any) -> str:
    return stream(model.with_retry(), prompt)


class State(TypedDict, total=False):
    prompt: Any
    answer: str


def _graph(node: Any) -> Runnable[Any, Any]:
    builder = StateGraph(State)
    builder.add_node("answer", node)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile()


def in_a_graph(model: Any, prompt: Any) -> str:
    """A node that reads a stream, and whoever runs the graph reads its messages."""
    graph = _graph(RunnableLambda(lambda state: {"answer": _join(list(model.stream(state["prompt"])))}))
    return _join([chunk for chunk, _ in graph.stream({"prompt": prompt}, stream_mode="messages")])


def of_a_graph(model: Any, prompt: Any) -> str:
    """A node that knows of no streams: LangChain streams for `invoke`."""
    graph = _graph(RunnableLambda(lambda state: {"answer": model.invoke(state["prompt"]).text}))
    return _join([chunk for chunk, _ in graph.stream({"prompt": prompt}, stream_mode="messages")])


BY_MEANING: dict[str, Way] = {
    "stream": stream,
    "astream": astream,
    "events": events,
    "log": log,
    "chain stream": of_chain(stream),
    "chain astream": of_chain(astream),
    "with_config": with_config,
    "with_fallbacks": with_fallbacks,
    "with_retry": with_retry,
    "in a graph": in_a_graph,
    "of a graph": of_a_graph,
}
