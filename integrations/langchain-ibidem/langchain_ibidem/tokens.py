"""Token events of a hit, where a miss would have them.

Whoever follows an `invoke` token by token (`astream_events`, LangGraph's messages, handlers of a model with
`streaming=True`) is told of a miss in pieces, but of a hit of any cache LangChain tells the start and the end
alone. So a cache tells what it has found itself, to the handlers of the run, before it returns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, LLMResult

from langchain_ibidem.callers import Caller
from langchain_ibidem.kinds import CHAT, COMPLETION, Chunk, name_of_run


@dataclass(frozen=True, slots=True)
class Telling:
    """What handlers are to be told of a hit. What they raise is raised, as on a miss."""

    caller: Caller
    found: list[Generation]
    chunks: list[Chunk]

    def tell(self) -> None:
        """Tell those of a sync call."""
        begin = self.caller.begin
        run = begin() if begin else self.caller.run
        for chunk in self.chunks:
            run.on_llm_new_token(_token(chunk), chunk=chunk)
        if begin:
            run.on_llm_end(LLMResult(generations=[[*self.found]]))

    async def atell(self) -> None:
        """Tell those of an async call."""
        begin = self.caller.begin
        run = await begin() if begin else self.caller.run
        for chunk in self.chunks:
            await run.on_llm_new_token(_token(chunk), chunk=chunk)
        if begin:
            await run.on_llm_end(LLMResult(generations=[[*self.found]]))


def telling_of(caller: Caller | None, found: Sequence[Generation], *, in_async: bool) -> Telling | None:
    """How handlers are to be told of what was found; None where a miss would tell them no tokens.

    A message that is told in pieces gets the id of these: LangGraph would show it once more.

    Raises:
        Exception: What was found is not the answer of such a model.
    """
    if caller is None or caller.model is None or caller.run is None or len(found) != 1:
        return None
    (generation,) = found
    if caller.completes:
        streams = _streams_by_itself(caller)
        return Telling(caller, [*found], [*COMPLETION.chunks(generation)]) if streams else None
    if not isinstance(generation, ChatGeneration):
        return None
    asked = {**caller.parameters, "async_api": in_async, "run_manager": caller.run}
    by_events = getattr(caller.model, "_should_use_protocol_streaming", None)
    if by_events is not None and by_events(**asked):  # LangChain tells a hit itself
        generation.message.id = name_of_run(caller.run)
        return None
    if not (caller.model._should_stream(**asked) or _streams_by_itself(caller)):
        return None
    generation.message.id = name_of_run(caller.run)
    chunks = [*CHAT.chunks(generation)]
    for chunk in chunks:
        chunk.message.id = generation.message.id  # type: ignore[union-attr]
    return Telling(caller, [*found], chunks)


def _streams_by_itself(caller: Caller) -> bool:
    """Whether the model streams although it is asked for the whole answer."""
    return caller.parameters.get("stream", getattr(caller.model, "streaming", None)) is True


def _token(chunk: Chunk) -> Any:
    return chunk.message.content if isinstance(chunk, ChatGenerationChunk) else chunk.text
