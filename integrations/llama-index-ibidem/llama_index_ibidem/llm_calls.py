"""Add up the model calls behind each answer: `compact` makes one, `refine` many, a tree some at once.

One instrumentation handler for the process follows them. It is how a synthesizer knows that its text was cut
off, and what it cost: LlamaIndex hands it the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.events.span import SpanDropEvent
from pydantic import PrivateAttr

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.adapter.provider_fields import MODEL_KEYS
from ibidem.lifecycle.rules import COMPLETE
from llama_index_ibidem.responses import ResponseMetadata, marker_of
from llama_index_ibidem.spans import span_watcher

_OPEN = 1024  # answers and calls in flight; older ones were abandoned
_FAILED = "failed"  # in place of a finish reason
_REPEATED = ResponseMetadata(input_tokens=0, output_tokens=0)
_NO_MARKER: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class LLMCallStats:
    """The model calls behind one answer so far.

    Attributes:
        count: How many there are.
        model: The name of the model.
        cut: Why one of them stopped early; empty if none did.
        input_tokens: Their sum; None where providers gave none.
        output_tokens: As `input_tokens`.
        from_cache: The entries that answered in place of the model.
        by_meaning: Whether one of these was stored for another wording.
    """

    count: int = 0
    model: str = ""
    cut: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    from_cache: tuple[str, ...] = ()
    by_meaning: bool = False

    @property
    def entry_id(self) -> str | None:
        """The entry that gave the answer, if the model was not asked at all."""
        return self.from_cache[-1] if self.count and len(self.from_cache) == self.count else None

    def add(self, metadata: ResponseMetadata, marker: Mapping[str, Any] = _NO_MARKER) -> LLMCallStats:
        """Return the stats with one more call that has ended; `marker` is that of a repeated response."""
        entry_id = marker.get("entry_id")
        reason = metadata.finish_reason or ""
        return replace(
            self,
            cut=self.cut or ("" if reason.lower() in COMPLETE else reason),
            input_tokens=_sum(self.input_tokens, metadata.input_tokens),
            output_tokens=_sum(self.output_tokens, metadata.output_tokens),
            from_cache=self.from_cache if entry_id is None else (*self.from_cache, str(entry_id)),
            by_meaning=self.by_meaning or marker.get("tier", "exact") != "exact",
        )


@dataclass(slots=True)
class _Call:
    answer: str
    metadata: ResponseMetadata = field(default_factory=ResponseMetadata)
    streamed: bool = False
    marker: Mapping[str, Any] = field(default_factory=dict)


class LLMCallWatcher(BaseEventHandler):
    """Adds up calls by the answer that they belong to: a synthesis, else the call itself."""

    _calls: BoundedDict[str, _Call] = PrivateAttr(default_factory=lambda: BoundedDict(_OPEN))
    _answers: BoundedDict[str, LLMCallStats] = PrivateAttr(default_factory=lambda: BoundedDict(_OPEN))
    _lock: ForkSafeLock = PrivateAttr(default_factory=ForkSafeLock)
    _faults: Faults = PrivateAttr(default_factory=Faults)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises the handler."""
        return "IbidemLLMCallWatcher"

    def watch(self) -> None:
        """Add this handler and that of spans to LlamaIndex's root dispatcher, once per process."""
        span_watcher.watch()
        root = get_dispatcher()
        if self not in root.event_handlers:
            root.add_event_handler(self)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Follow an event of LlamaIndex."""
        try:
            if isinstance(event, (LLMChatStartEvent, LLMCompletionStartEvent)):
                self._started(event)
            elif isinstance(event, (LLMChatInProgressEvent, LLMCompletionInProgressEvent)):
                self._streamed(event)
            elif isinstance(event, (LLMChatEndEvent, LLMCompletionEndEvent)):
                self._ended(event)
            elif isinstance(event, ExceptionEvent):
                self._broke(event)
            elif isinstance(event, SpanDropEvent):
                self._failed(event.span_id)
        except Exception as error:  # LlamaIndex would swallow it without a trace
            self._faults.note("understand an event of LlamaIndex", error)

    def stats_of(self, answer: str) -> LLMCallStats:
        """Return the calls behind an answer, by the id of its synthesis or of the call's span."""
        with self._lock:
            stats = self._answers.get(answer) or LLMCallStats()
            for call in self._calls:
                if call.answer == answer and call.streamed:  # its last chunk comes before its end
                    stats = stats.add(call.metadata, call.marker)
        return stats

    def answer_of(self, span: str) -> str | None:
        """Return the id of the answer that a call under way belongs to; None for one within another."""
        with self._lock:
            call = self._calls.get(span)
        return call.answer if call is not None else None

    def _started(self, event: LLMChatStartEvent | LLMCompletionStartEvent) -> None:
        span = event.span_id
        if span is None:
            return
        above = span_watcher.endpoints_above(span)  # `achat` calls `chat` calls `complete`: one call
        answer = span_watcher.synthesis_id(span) or span
        with self._lock:
            # A method that only calls `super()` has no call of its own.
            if any(self._calls.get(each) is not None for each in above):
                return
            self._calls.put(span, _Call(answer))
            known = self._answers.get(answer) or LLMCallStats()
            names = (event.model_dict.get(key) for key in MODEL_KEYS)
            model = next((name for name in names if isinstance(name, str) and name), known.model)
            self._answers.put(answer, replace(known, count=known.count + 1, model=model))

    def _streamed(self, event: LLMChatInProgressEvent | LLMCompletionInProgressEvent) -> None:
        with self._lock:
            if (call := self._calls.get(event.span_id or "")) is not None:
                call.streamed, call.marker = True, marker_of(event.response)
                if call.marker:
                    call.metadata = _REPEATED
                else:
                    call.metadata = call.metadata.merge(ResponseMetadata.of(event.response))

    def _ended(self, event: LLMChatEndEvent | LLMCompletionEndEvent) -> None:
        with self._lock:
            call = self._calls.pop(event.span_id or "")
            if call is None:
                return
            if event.response is not None:
                if marker := marker_of(event.response):
                    metadata = _REPEATED
                elif call.streamed:
                    metadata = call.metadata
                else:
                    metadata = ResponseMetadata.of(event.response).finalize()
                known = self._answers.get(call.answer) or LLMCallStats()
                self._answers.put(call.answer, known.add(metadata, marker))
        span_watcher.stream_consumed(call.answer)

    def _broke(self, event: ExceptionEvent) -> None:
        """A stream broke; it is not a failure if its reader only stopped reading."""
        if not isinstance(event.exception, GeneratorExit):
            self._failed(event.span_id)
            return
        with self._lock:
            self._calls.pop(event.span_id or "")

    def _failed(self, span: str | None) -> None:
        """Something below a synthesis failed: LlamaIndex may go on, but the answer is not complete."""
        if span is None:
            return
        with self._lock:
            call = self._calls.pop(span)
        answer = call.answer if call else span_watcher.synthesis_id(span)
        if answer is None:
            return
        with self._lock:
            known = self._answers.get(answer) or LLMCallStats()
            self._answers.put(answer, replace(known, cut=known.cut or _FAILED))


def _sum(total: int | None, more: int | None) -> int | None:
    return total if more is None else (total or 0) + more


call_watcher = LLMCallWatcher()  # of the process
