"""Model calls that are made when a stream is read, after the span that they belong to has ended.

A `compact` or `refine` stream asks the model then, and so do the async streams of a `CustomLLM`. LlamaIndex
gives such a call whatever span its reader is in for a parent; here is what it belongs to.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import ref

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.llms.custom import CustomLLM

from ibidem._util.concurrency import BoundedDict
from ibidem.prompts.documents import CONTEXT_KEYS
from llama_index_ibidem.codec import MARKER
from llama_index_ibidem.facts import Filled, Synthesis, nodes_in

_STREAMS = 256  # nobody may ever read a stream


class Deferred:
    """Streams that were handed out, and what asks for them. Its owner holds the lock."""

    def __init__(self) -> None:
        self._streams: BoundedDict[str, Synthesis] = BoundedDict(_STREAMS)
        self._unread: BoundedDict[str, tuple[Synthesis, ref[Any]]] = BoundedDict(_STREAMS)
        self._calls: BoundedDict[tuple[int, int], tuple[str, Any, Any]] = BoundedDict(_STREAMS)

    def synthesis(self, id_: str) -> Synthesis | None:
        """The synthesis that has ended with a stream."""
        return self._streams.get(id_)

    def handed_out(self, synthesis: Synthesis, result: Any) -> None:
        """A synthesis has ended; it is remembered if a model may be asked when somebody reads the result."""
        streams = isinstance(result, (StreamingResponse, AsyncStreamingResponse))
        if streams and MARKER not in (result.metadata or {}):
            self._streams.put(synthesis.id, synthesis)
            self._unread.put(synthesis.id, (synthesis, ref(result.response_gen)))

    def read(self, synthesis: str) -> None:
        """Its last call of a model has ended, so that no other belongs to it."""
        self._unread.pop(synthesis)

    def synthesis_for(self, filled: Filled) -> str | None:
        """The synthesis whose stream is now being read, if a template is filled for one."""
        for synthesis, stream in self._unread:
            if _is_being_read(stream()) and _shows(filled, synthesis):
                self._unread.pop(synthesis.id)
                return synthesis.id
        return None

    def call_for(self, id_: str, method: str, arguments: Mapping[str, Any], instance: Any) -> str | None:
        """The async stream of a `CustomLLM` that is now being read by means of the sync one, if it is."""
        asked = arguments.get("messages" if method.endswith("chat") else "prompt")
        key = id(instance), id(asked)
        if _streams_later(method, instance):
            self._calls.put(key, (id_, instance, asked))  # kept alive, so that their ids stay theirs
        elif method in ("stream_chat", "stream_complete") and (call := self._calls.pop(key)) is not None:
            return call[0]
        return None


def _is_being_read(stream: Any) -> bool:
    """Whether somebody waits for the next piece of a generator, just now."""
    return bool(getattr(stream, "gi_running", False) or getattr(stream, "ag_running", False))


def _streams_later(method: str, instance: Any) -> bool:
    if method not in ("astream_chat", "astream_complete") or not isinstance(instance, CustomLLM):
        return False
    return inspect.getattr_static(type(instance), method) is vars(CustomLLM)[method]


def _shows(filled: Filled, synthesis: Synthesis) -> bool:
    """Whether a template is filled with the question of the synthesis and some of its documents."""
    given = {name: value for name, value in filled.variables.items() if isinstance(value, str)}
    if synthesis.question not in given.values():
        return False
    shown = [value.strip() for name, value in given.items() if name in CONTEXT_KEYS and value.strip()]
    if any(value in document.text for document in synthesis.documents for value in shown):
        return True
    return any(map(any, nodes_in(shown, synthesis.documents)))
