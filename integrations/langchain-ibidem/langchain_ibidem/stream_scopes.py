"""Streams of LangChain and LangGraph keep the scope in which they were asked for.

Whatever is run (a model, a chain, a bound model, a graph) is a `Runnable`, and its streams are generators.
They begin with their first step, in the context of their reader. A class may have methods of its own for
them, so they are wrapped in all classes, also in those of the program.
"""

from __future__ import annotations

from langchain_core.runnables import Runnable

from ibidem.adapter.stream_scope import StreamMethods

STREAMS = StreamMethods(
    {
        Runnable: (
            "stream",
            "astream",
            "transform",
            "atransform",
            "astream_events",
            "astream_log",
            "batch_as_completed",
            "abatch_as_completed",
        )
    }
)
