"""What the tests of the LlamaIndex adapter share: models that count, a retriever, handlers that count."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core import Settings
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from pydantic import Field, PrivateAttr

from tests.openai_server import OpenAIServer, instance

#: Makes the text of an answer from the last text that was sent and the number of the answer.
Say = Callable[[str, int], str]

COUNTRIES = "France Peru Japan Kenya Chile Ghana India Italy Spain Egypt".split()

# The reworded question is the same, the others are not: the second is near enough to be taken for the first
# if nothing looked at the words, the third asks it of another country.
ASKED = "Which river runs through the very largest city of France?"
REWORDED = "Which river runs through the very largest city of France, please?"
OPPOSITE = "Which river runs through the very smallest city of France?"
ELSEWHERE = "Which river runs through the very largest city of Peru?"
OTHER = "How many members has the parliament that sits in France?"


ENDPOINTS = "chat achat stream_chat astream_chat complete acomplete stream_complete astream_complete".split()
STREAMS = [name for name in ENDPOINTS if "stream" in name]


class Broke(RuntimeError):
    """What the fakes raise when they are told to fail."""


@dataclass
class Script:
    """What a fake model does, and what it was asked. Thread-safe as far as it counts."""

    say: Say | None = None
    finish_reason: str = "stop"
    delay: float = 0.0
    asked: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    breaks: list[tuple[int, bool]] = field(default_factory=list)
    closed_early: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, *texts: str) -> Turn:
        """Take note of a call and decide what comes of it."""
        with self._lock:
            self.asked.append("\n".join(texts))
            number = len(self.asked)
            failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return Turn(number, self.say(texts[-1], number) if self.say else f"answer {number}", self)

    @property
    def told(self) -> dict[str, Any]:
        """`raw` of a whole answer."""
        return {"finish_reason": self.finish_reason}


@dataclass
class Turn:
    """One call of a fake model."""

    number: int
    text: str
    script: Script

    def chunks(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """What was said so far, what is new and `raw`, word by word; breaks where it was told to."""
        with self.script._lock:
            breaks = self.script.breaks.pop(0) if self.script.breaks else None
        words = self.text.split(" ")
        said = ""
        try:
            for index, word in enumerate(words):
                if breaks is not None and index == breaks[0]:
                    if breaks[1]:
                        return
                    raise Broke("the connection was lost")
                delta = word if index == 0 else f" {word}"
                said += delta
                yield said, delta, {"finish_reason": None}
            yield said, "", self.script.told
        except GeneratorExit:
            self.script.closed_early += 1
            raise


class CountingFunctionCalling(FunctionCallingLLM):
    """A chat model: answers "answer 1", "answer 2", ..., and calls the first tool until it has a result."""

    model: str = "counting-chat"  # the field that payloads of events have
    _script: Script = PrivateAttr(default_factory=Script)

    @property
    def script(self) -> Script:
        return self._script

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            model_name=self.model,
            is_chat_model=True,
            is_function_calling_model=True,
            context_window=32_000,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        turn = self._turn(messages)
        time.sleep(self._script.delay)
        return ChatResponse(message=_message(turn, messages, kwargs), raw=self._script.told)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        turn = self._turn(messages)
        await asyncio.sleep(self._script.delay)
        return ChatResponse(message=_message(turn, messages, kwargs), raw=self._script.told)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:  # type: ignore[override]
        turn = self._turn(messages)

        def stream() -> Iterator[ChatResponse]:
            yield from _chat_chunks(turn, messages, kwargs)

        return stream()

    @llm_chat_callback()
    async def astream_chat(  # type: ignore[override]
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> AsyncIterator[ChatResponse]:
        turn = self._turn(messages)

        async def stream() -> AsyncIterator[ChatResponse]:
            with contextlib.closing(_chat_chunks(turn, messages, kwargs)) as chunks:
                for chunk in chunks:
                    await asyncio.sleep(self._script.delay)
                    yield chunk

        return stream()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        text = self._script.next(prompt).text
        time.sleep(self._script.delay)
        return CompletionResponse(text=text, raw=self._script.told)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        text = self._script.next(prompt).text
        await asyncio.sleep(self._script.delay)
        return CompletionResponse(text=text, raw=self._script.told)

    @llm_completion_callback()
    def stream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        turn = self._script.next(prompt)

        def stream() -> Iterator[CompletionResponse]:
            yield from _completion_chunks(turn)

        return stream()

    @llm_completion_callback()
    async def astream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        turn = self._script.next(prompt)

        async def stream() -> AsyncIterator[CompletionResponse]:
            with contextlib.closing(_completion_chunks(turn)) as chunks:
                for chunk in chunks:
                    await asyncio.sleep(self._script.delay)
                    yield chunk

        return stream()

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[Any],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        said = [ChatMessage(user_msg)] if isinstance(user_msg, str) else [user_msg] if user_msg else []
        offered = [tool.metadata.to_openai_tool() for tool in tools]
        required = {"tool_choice": "required"} if tool_required else {}
        return {"messages": [*(chat_history or []), *said], "tools": offered, **required, **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError("no tool was called")
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=dict(call.tool_kwargs)
            )
            for call in calls
        ]

    def _turn(self, messages: Sequence[ChatMessage]) -> Turn:
        return self._script.next(*(message.content or "" for message in messages))


class CountingCompletion(CustomLLM):
    """The same as a completion model that says nothing beside its text, as many do."""

    model: str = "counting-completion"
    _script: Script = PrivateAttr(default_factory=Script)

    @property
    def script(self) -> Script:
        return self._script

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, context_window=32_000)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self._script.next(prompt).text)

    @llm_completion_callback()
    def stream_complete(  # type: ignore[override]
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Iterator[CompletionResponse]:
        turn = self._script.next(prompt)

        def stream() -> Iterator[CompletionResponse]:
            for said, delta, _ in turn.chunks():
                yield CompletionResponse(text=said, delta=delta)

        return stream()


def _message(turn: Turn, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> ChatMessage:
    """A call of the first tool, unless a tool has answered since the user spoke; then the text."""
    tools = given.get("tools") or ()
    last_said = max((i for i, m in enumerate(messages) if m.role == MessageRole.USER), default=0)
    if not tools or any(m.role == MessageRole.TOOL for m in messages[last_said:]):
        return ChatMessage(turn.text, role=MessageRole.ASSISTANT)
    function = tools[0]["function"]
    arguments = instance(function["parameters"], turn.text)
    call = ToolCallBlock(
        tool_call_id=f"call_{turn.number}", tool_name=function["name"], tool_kwargs=arguments
    )
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[call])


def _chat_chunks(
    turn: Turn, messages: Sequence[ChatMessage], given: Mapping[str, Any]
) -> Iterator[ChatResponse]:
    message = _message(turn, messages, given)
    if not isinstance(message.blocks[0], TextBlock):
        yield ChatResponse(message=ChatMessage(role=message.role), delta="", raw={"finish_reason": None})
        yield ChatResponse(message=message, delta="", raw={"finish_reason": "tool_calls"})
        return
    for said, delta, raw in turn.chunks():
        yield ChatResponse(message=ChatMessage(said, role=message.role), delta=delta, raw=raw)


def _completion_chunks(turn: Turn) -> Iterator[CompletionResponse]:
    for said, delta, raw in turn.chunks():
        yield CompletionResponse(text=said, delta=delta, raw=raw)


async def pieces_of(llm: LLM, endpoint: str, asked: str) -> AsyncIterator[str]:
    """What an endpoint says, in one piece if it does not stream."""
    stream = await start(llm, endpoint, asked)
    if isinstance(stream, AsyncIterator):
        async for chunk in stream:
            yield chunk.delta or ""
    elif isinstance(stream, Iterator):
        for chunk in stream:
            yield chunk.delta or ""
    else:
        yield (stream.message.content if isinstance(stream, ChatResponse) else stream.text) or ""


async def answer_of(llm: LLM, endpoint: str, asked: str) -> str:
    """The whole text that an endpoint answers."""
    return "".join([piece async for piece in pieces_of(llm, endpoint, asked)])


async def start(llm: LLM, endpoint: str, asked: str) -> Any:
    """What an endpoint returns, awaited if it is to be."""
    messages = [ChatMessage("Be brief.", role="system"), ChatMessage(asked)]
    returned = getattr(llm, endpoint)(messages if "chat" in endpoint else asked)
    return await returned if inspect.isawaitable(returned) else returned


class Backend:
    """A model to wrap, what it was asked, and the faults that it can be told to have."""

    model: LLM

    @property
    def asked(self) -> list[str]:
        """The texts of every prompt so far, in order: the n-th was answered `answer n`."""
        raise NotImplementedError

    @property
    def calls(self) -> int:
        """How often the model was asked."""
        return len(self.asked)

    def reset(self) -> None:
        """Forget what was asked, and all that it was told to do."""
        raise NotImplementedError

    def obey(self, say: Say | None) -> None:
        """Answer from now on in these words."""
        raise NotImplementedError

    def fail_next(self) -> None:
        """Fail at the next call."""
        raise NotImplementedError

    def break_stream_after(self, pieces: int, *, politely: bool = False) -> None:
        """End the next stream after so many words, with an error or, `politely`, without."""
        raise NotImplementedError

    def stop_with(self, finish_reason: str) -> None:
        """End all answers from now on for this reason."""
        raise NotImplementedError

    def wait(self, seconds: float) -> None:
        """Take so long for every answer from now on."""
        raise NotImplementedError


class FakeBackend(Backend):
    """One of the fakes above."""

    def __init__(self, model: CountingFunctionCalling | CountingCompletion) -> None:
        self.model = self.fake = model

    @property
    def script(self) -> Script:
        """What the fake does, and what it was asked."""
        return self.fake.script

    @property
    def asked(self) -> list[str]:
        return self.script.asked

    def reset(self) -> None:
        self.fake._script = Script()

    def obey(self, say: Say | None) -> None:
        self.script.say = say

    def fail_next(self) -> None:
        self.script.failures.append(Broke("the model is down"))

    def break_stream_after(self, pieces: int, *, politely: bool = False) -> None:
        self.script.breaks.append((pieces, politely))

    def stop_with(self, finish_reason: str) -> None:
        self.script.finish_reason = finish_reason

    def wait(self, seconds: float) -> None:
        self.script.delay = seconds


class OpenAIBackend(Backend):
    """LlamaIndex's own client of a server that speaks as OpenAI does."""

    def __init__(self, server: OpenAIServer) -> None:
        self.server = server
        self.model = OpenAI(model="gpt-4o-mini", api_base=server.url, api_key="sk-test", max_retries=0)

    @property
    def asked(self) -> list[str]:
        return [_texts(request["body"]["messages"]) for request in self.server.requests]

    @property
    def calls(self) -> int:
        return self.server.count

    def reset(self) -> None:
        self.server.reset()
        self.server.say, self.server.finish_reason, self.server.delay = None, None, 0.0

    def obey(self, say: Say | None) -> None:
        server = self.server
        server.say = say and (lambda body: say(str(body["messages"][-1]["content"]), server.count))

    def fail_next(self) -> None:
        self.server.fail_next(500)

    def break_stream_after(self, pieces: int, *, politely: bool = False) -> None:
        self.server.break_stream_after(pieces, politely=politely)

    def stop_with(self, finish_reason: str) -> None:
        self.server.finish_reason = finish_reason

    def wait(self, seconds: float) -> None:
        self.server.delay = seconds


def _texts(messages: Sequence[Mapping[str, Any]]) -> str:
    contents = (message.get("content") or "" for message in messages)
    return "\n".join(text if isinstance(text, str) else json.dumps(text) for text in contents)


class CountingEvents(BaseCallbackHandler):
    """Counts the starts and ends of LlamaIndex's legacy events."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def on_event_start(self, event_type: CBEventType, *args: Any, **kwargs: Any) -> str:
        self._count(f"start {event_type.value}")
        return str(kwargs.get("event_id", ""))

    def on_event_end(self, event_type: CBEventType, *args: Any, **kwargs: Any) -> None:
        self._count(f"end {event_type.value}")

    def start_trace(self, trace_id: str | None = None) -> None:
        """Not counted."""

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        """Not counted."""

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1


class CountingInstrumentation(BaseEventHandler):
    """Counts the starts and ends that models tell the instrumentation of LlamaIndex; not the pieces."""

    counts: Counter[str] = Field(default_factory=Counter)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        name = event.class_name()
        if name.startswith("LLM") and name.endswith(("StartEvent", "EndEvent")):
            self.counts[name] += 1


@contextlib.contextmanager
def listening() -> Iterator[CountingInstrumentation]:
    """Instrumentation events are counted within."""
    handler, root = CountingInstrumentation(), get_dispatcher()
    root.add_event_handler(handler)
    try:
        yield handler
    finally:
        root.event_handlers.remove(handler)


@contextlib.contextmanager
def settings_restored() -> Iterator[None]:
    """LlamaIndex's global settings are afterwards what they were before."""
    before = dict(vars(Settings))
    try:
        yield
    finally:
        vars(Settings).clear()
        vars(Settings).update(before)


class Library(BaseRetriever):
    """Returns the nodes whose keyword stands in the query."""

    def __init__(self, shelves: Mapping[str, Sequence[TextNode]]) -> None:
        super().__init__()
        self.shelves = shelves

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        asked = query_bundle.query_str
        found = (node for word, shelf in self.shelves.items() if word in asked for node in shelf)
        return [NodeWithScore(node=node, score=1.0) for node in found]


def shelves(edition: str = "", later: str = "") -> dict[str, list[TextNode]]:
    """Two nodes for each country, one for each of the questions; editions differ in a word."""
    return {country: nodes_about(country, edition, later) for country in COUNTRIES}


def nodes_about(country: str, edition: str = "", later: str = "") -> list[TextNode]:
    """What the library holds about a country."""
    return [
        TextNode(
            text=f"The largest city of {country} lies at a broad{edition} river.",
            id_=f"{country}-1",
            metadata={"shelf": "rivers"},
        ),
        TextNode(
            text=f"The parliament of {country} sits in a quiet{later} suburb.",
            id_=f"{country}-2",
            metadata={"shelf": "politics"},
        ),
    ]
