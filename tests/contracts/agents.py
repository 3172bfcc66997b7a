"""What the tests of agents share: tools that count how often they were called."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from tests.contracts.langchain import CountingChat
from tests.openai_server import instance

ASKED = "How long can I return the goods?"
REWORDED = "How long can I return the goods, please?"
OTHER = "Who pays for the parcel to Peru?"


class Shop:
    """Tools over data that change."""

    def __init__(self) -> None:
        self.terms = "Goods can be returned within 30 days."
        self.now = "12:03"
        self.fails = False
        self.called: Counter[str] = Counter()

    def tool(self, name: str, **options: Any) -> BaseTool:
        """`search` returns text and documents, `clock` the time, `order` changes something."""

        def search(query: str) -> tuple[str, list[Document]]:
            """Search the terms."""
            self.called["search"] += 1
            if self.fails:
                raise ValueError("the index is down")
            return self.terms, [Document(self.terms, id="terms#1")]

        def clock(zone: str) -> str:
            """Tell the time."""
            self.called["clock"] += 1
            return self.now

        def order(article: str) -> str:
            """Order an article."""
            self.called["order"] += 1
            return "ordered"

        if name == "search":
            options["response_format"] = "content_and_artifact"
        function = {"search": search, "clock": clock, "order": order}[name]
        return StructuredTool.from_function(function, **options)


class Slow:
    """Only async, as the tools of MCP servers are."""

    def __init__(self) -> None:
        self.called = 0

    def tool(self) -> BaseTool:
        async def search(query: str) -> str:
            """Search the terms."""
            self.called += 1
            return "Goods can be returned within 30 days."

        return StructuredTool.from_function(coroutine=search)


class ToolChat(CountingChat):
    """Calls the first tool it is given, with the question's last word, until it has a tool's result.

    `secret` is said with every answer and no part of what names the model.
    """

    secret: str = ""

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._says(messages, kwargs.get("tools")))])

    def _says(self, messages: list[BaseMessage], tools: list[dict[str, Any]] | None) -> AIMessage:
        number = self._calls.next()
        if not tools or isinstance(messages[-1], ToolMessage):
            return AIMessage(f"{self.secret}answer {number}")
        function = tools[0]["function"]
        last_word = re.findall(r"\w+", messages[-1].text)[-1]
        arguments = instance(function["parameters"], last_word)
        call = {"name": function["name"], "args": arguments, "id": f"call_{number}"}
        return AIMessage("", tool_calls=[call])


class BlockChat(ToolChat):
    """The same in content blocks, as Anthropic's models answer, whole and streamed."""

    def _says(self, messages: list[BaseMessage], tools: list[dict[str, Any]] | None) -> AIMessage:
        said = super()._says(messages, tools)
        used = [
            {"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["args"]}
            for call in said.tool_calls
        ]
        words = [{"type": "text", "text": said.content or "Let me see."}]
        ended = {"stop_reason": "tool_use" if used else "end_turn"}
        return AIMessage([*words, *used], tool_calls=said.tool_calls, response_metadata=ended)

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        said = self._says(messages, kwargs.get("tools"))
        for index, block in enumerate(said.content):
            assert isinstance(block, dict)
            for chunk in _pieces(index, block):
                yield ChatGenerationChunk(message=chunk)
        ended = AIMessageChunk("", response_metadata=said.response_metadata, chunk_position="last")
        yield ChatGenerationChunk(message=ended)


def _pieces(index: int, block: dict[str, Any]) -> Iterator[AIMessageChunk]:
    """A block as it is streamed: text by words, a tool's arguments as pieces of JSON."""
    if block["type"] == "text":
        for word in re.findall(r"\s*\S+", block["text"]):
            yield AIMessageChunk([{"type": "text", "text": word, "index": index}])
        return
    named = {"name": block["name"], "id": block["id"]}
    begun = {"type": "tool_use", **named, "input": {}, "index": index}
    call = {**named, "args": "", "index": index, "type": "tool_call_chunk"}
    yield AIMessageChunk([begun], tool_call_chunks=[call])
    arguments = json.dumps(block["input"])
    for piece in (arguments[:4], arguments[4:]):
        part = {"type": "input_json_delta", "partial_json": piece, "index": index}
        more = {"name": None, "id": None, "args": piece, "index": index, "type": "tool_call_chunk"}
        yield AIMessageChunk([part], tool_call_chunks=[more])


def final(end: dict[str, Any]) -> AIMessage:
    """The answer of a run."""
    message = end["messages"][-1]
    assert isinstance(message, AIMessage)
    return message


def said(messages: list[BaseMessage]) -> list[str]:
    """What was said, by whom."""
    return [f"{message.type}: {message.text}" for message in messages]


def ask(agent: Runnable[Any, Any], question: str, **config: Any) -> AIMessage:
    """The agent's answer."""
    return final(agent.invoke({"messages": [("user", question)]}, config or None))
