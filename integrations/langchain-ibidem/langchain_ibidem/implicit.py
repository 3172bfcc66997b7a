"""Streams inside `invoke`, as when somebody follows the messages of a graph.

LangChain hands a cache what it makes of such a stream like any other answer, although a connection that ended
too early leaves half of one. Only LangChain's own frame tells that it was a stream, and what its chunks were.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import FrameType
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import Generation

from langchain_ibidem.codec import finish_reason_of

UNFINISHED = (
    "a stream ended without a finish reason, so it may have been cut off; let the model's last chunk have "
    "one, or chunk_position='last'"
)
_ASKING = frozenset(
    method.__code__ for method in (BaseChatModel._generate_with_cache, BaseChatModel._agenerate_with_cache)
)
_DEPTH = 4  # a cache may be wrapped


def is_unfinished(frame: FrameType | None, generations: Sequence[Generation]) -> bool:
    """Whether they come from a stream that did not say that it was whole; `frame` is that of the caller.

    False where the caller is not LangChain.
    """
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code in _ASKING:
            return _is_unmarked_stream(frame.f_locals) and not finish_reason_of(generations)
        frame = frame.f_back
    return False


def _is_unmarked_stream(known: dict[str, Any]) -> bool:
    if chunks := known.get("chunks"):
        return not any(_is_marked(chunk.message) for chunk in chunks)
    return "stream_accum" in known


def _is_marked(message: Any) -> bool:
    """Whether the model says that it is the last chunk; LangChain adds one that says nothing else."""
    if getattr(message, "chunk_position", None) != "last":
        return False
    held = (message.content, message.response_metadata, message.usage_metadata, message.tool_call_chunks)
    return any(held)
