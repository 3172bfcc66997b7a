"""Streams of LlamaIndex keep the scope in which they were asked for.

Some ask the model with their first step, in the context of their reader: those of `compact` and `refine`, and
of structured models and programs. Chat engines and workflows read theirs in threads and tasks of the asker.
"""

from __future__ import annotations

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.types import BasePydanticProgram

from ibidem.adapter.stream_scope import StreamMethods, keep_scope

STREAMS = StreamMethods(
    {
        BaseSynthesizer: (
            "get_response",
            "aget_response",
            "get_response_from_messages",
            "aget_response_from_messages",
        ),
        StructuredLLM: ("stream_chat", "astream_chat"),
        CustomLLM: ("astream_chat", "astream_complete"),  # of the program, around a cached model
        BasePydanticProgram: ("stream_call", "astream_call"),
    }
)


def keep_scope_of(response: object) -> None:
    """What is read of the response is asked for in the scope in force now; for engines of the program."""
    if isinstance(response, (StreamingResponse, AsyncStreamingResponse)):
        response.response_gen = keep_scope(response.response_gen)
    elif isinstance(response, StreamingAgentChatResponse):
        response.chat_stream = keep_scope(response.chat_stream)
        response.achat_stream = keep_scope(response.achat_stream)
