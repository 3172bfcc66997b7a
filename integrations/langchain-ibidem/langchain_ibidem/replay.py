"""Repeat a stored answer in chunks: as a stream, and as token events of `invoke`.

What the chunks add up to is what `invoke` gives for a hit. LangChain adds chunks up by joining all texts in
their metadata, so the last chunk alone brings them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk, LLMResult
from langchain_core.utils.utils import LC_ID_PREFIX

from ibidem.adapter.chunks import split_text
from langchain_ibidem.call import ModelCall

Chunk = GenerationChunk | ChatGenerationChunk
Content = str | list[Any]
_ADDED_UP_ONCE = ("output_version", "model_provider")  # texts that LangChain does not join if they are equal


def chat_chunks(generation: Generation) -> Iterator[ChatGenerationChunk]:
    """Split a repeated message: a few words at a time, then its tool calls, then its metadata.

    Raises:
        TypeError: What was stored is not an answer of a chat model.
    """
    message = getattr(generation, "message", None)
    if not isinstance(message, AIMessage):
        raise TypeError("the stored answer is not an AIMessage")
    about = message.response_metadata
    common = {key: about[key] for key in _ADDED_UP_ONCE if isinstance(about.get(key), str)}
    nothing: Content = "" if isinstance(message.content, str) else []
    for content in _contents(message.content, of_blocks=common.get("output_version") == "v1"):
        yield _chunk(content, common)
    for number, call in enumerate(message.tool_calls):
        args = json.dumps(call["args"])
        called = tool_call_chunk(name=call["name"], args=args, id=call["id"], index=number)
        yield _chunk(nothing, common, tool_call_chunks=[called])
    last = _chunk(
        nothing,
        about,
        additional_kwargs=message.additional_kwargs,
        usage_metadata=message.usage_metadata,
        chunk_position="last",
    )
    last.generation_info = generation.generation_info
    yield last


def completion_chunks(generation: Generation) -> Iterator[GenerationChunk]:
    """Split a repeated text, a few words at a time; the last chunk brings its metadata."""
    *pieces, last = split_text(generation.text) or [""]
    for piece in pieces:
        yield GenerationChunk(text=piece)
    yield GenerationChunk(text=last, generation_info=generation.generation_info)


def _chunk(content: Content, about: dict[str, Any], **parts: Any) -> ChatGenerationChunk:
    # Without an id: LangChain gives all chunks that of the run.
    return ChatGenerationChunk(
        message=AIMessageChunk(content=content, response_metadata=dict(about), **parts)
    )


def _contents(content: Content, *, of_blocks: bool) -> Iterator[Content]:
    """Split the content into parts which LangChain joins to the same content."""
    if isinstance(content, str):
        yield from split_text(content)
        return
    blocks = _numbered(content) if of_blocks else content
    numbers = [block.get("index") if isinstance(block, dict) else None for block in blocks]
    if any(number is not None for number in numbers) and len(set(map(str, numbers))) < len(numbers):
        yield blocks  # LangChain would join those of one number
        return
    for block in blocks:
        yield from ([part] for part in _parts(block))


def _numbered(blocks: list[Any]) -> list[Any]:
    """Number the blocks if they are not: LangChain would number them by type, and join neighbours."""
    if any(not isinstance(block, dict) or "index" in block for block in blocks):
        return blocks
    return [{**block, "index": number} for number, block in enumerate(blocks)]


def _parts(block: Any) -> Iterator[Any]:
    """Split a block of text, if it has a number by which LangChain joins its parts."""
    numbered = isinstance(block, dict) and _joins(block.get("index"))
    if not numbered or block.get("type") != "text" or not isinstance(block.get("text"), str):
        yield block
        return
    first, *others = split_text(block["text"]) or [""]
    yield {**block, "text": first}
    for piece in others:
        yield {"type": "text", "text": piece, "index": block["index"]}


def _joins(number: Any) -> bool:
    return isinstance(number, int) or (isinstance(number, str) and number.startswith("lc_"))


def run_message_id(run: Any) -> str | None:
    """Return the id that LangChain gives a message of this run which has none."""
    return f"{LC_ID_PREFIX}-{run.run_id}" if hasattr(run, "run_id") else None


@dataclass(frozen=True, slots=True)
class TokenEvents:
    """The events that handlers get of a hit. What the handlers raise is raised, as on a miss.

    Whoever follows an `invoke` token by token (`astream_events`, LangGraph's messages, handlers of a model
    with `streaming=True`) gets a miss in pieces, but of a hit of any cache LangChain tells the start and the
    end alone. So the cache sends the pieces to the handlers of the run before it returns the hit.
    """

    call: ModelCall
    found: list[Generation]
    chunks: list[Chunk]

    def send(self) -> None:
        """Send them to the handlers of a sync call."""
        begin = self.call.begin
        run = begin() if begin else self.call.run
        for chunk in self.chunks:
            run.on_llm_new_token(_token(chunk), chunk=chunk)
        if begin:
            run.on_llm_end(LLMResult(generations=[[*self.found]]))

    async def asend(self) -> None:
        """Send them to the handlers of an async call."""
        begin = self.call.begin
        run = await begin() if begin else self.call.run
        for chunk in self.chunks:
            await run.on_llm_new_token(_token(chunk), chunk=chunk)
        if begin:
            await run.on_llm_end(LLMResult(generations=[[*self.found]]))


def token_events(call: ModelCall, found: Sequence[Generation], *, in_async: bool) -> TokenEvents | None:
    """Return the events of a hit; None where a miss would send no tokens.

    A message that is sent in pieces gets the id of these: LangGraph would show it once more.

    Raises:
        Exception: What was found is not the answer of such a model.
    """
    if call.model is None or call.run is None or len(found) != 1:
        return None
    (generation,) = found
    if call.completes:
        streams = _streams_by_itself(call)
        return TokenEvents(call, [*found], [*completion_chunks(generation)]) if streams else None
    if not isinstance(generation, ChatGeneration):
        return None
    if call.streams_by_events(in_async=in_async):  # LangChain sends a hit itself
        generation.message.id = run_message_id(call.run)
        return None
    if not (call.streams_in_invoke(in_async=in_async) or _streams_by_itself(call)):
        return None
    generation.message.id = run_message_id(call.run)
    chunks = [*chat_chunks(generation)]
    for chunk in chunks:
        chunk.message.id = generation.message.id
    return TokenEvents(call, [*found], [*chunks])


def _streams_by_itself(call: ModelCall) -> bool:
    """Whether the model streams although it is asked for the whole answer."""
    return call.parameters.get("stream", getattr(call.model, "streaming", None)) is True


def _token(chunk: Chunk) -> Any:
    return chunk.message.content if isinstance(chunk, ChatGenerationChunk) else chunk.text
