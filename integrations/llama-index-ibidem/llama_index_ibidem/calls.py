"""Follow model calls: add up what each answer cost, and tell when a call ends.

One instrumentation handler for the process, `call_watcher`, hears of the calls of all models.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
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

from ibidem._util.concurrency import BoundedDict, ForkSafeLock, context_value
from ibidem._util.faults import Faults
from ibidem.adapter.provider_fields import MODEL_KEYS
from ibidem.lifecycle.rules import COMPLETE
from llama_index_ibidem.responses import ModelResponse, ResponseMetadata, marker_in
from llama_index_ibidem.spans import span_watcher

_OPEN = 1024  # calls that have not ended yet; older ones were abandoned
_FAILED = "failed"  # in place of a finish reason


@dataclass(slots=True)
class CallStats:
    """The model calls behind one answer so far: `compact` makes one, `refine` many, a tree some at once.

    Attributes:
        count: How many there are.
        repeated: How many of them the cache answered in place of the model.
        by_meaning: Whether one of these answers was stored for another wording.
        model: The name of the model.
        cut: Why one of the calls stopped early; empty if none did.
        input_tokens: Their sum; None where providers gave none.
        output_tokens: As `input_tokens`.
        logged: Where the answer is logged already.
    """

    count: int = 0
    repeated: int = 0
    by_meaning: bool = False
    model: str = ""
    cut: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    logged: set[object] = field(default_factory=set)

    def add(self, response: ModelResponse, streamed: ResponseMetadata | None) -> None:
        """Add a call that has ended, with the metadata of its chunks if it was streamed."""
        if marker := marker_in(response.raw):
            self.repeated += "entry_id" in marker
            self.by_meaning |= marker.get("tier", "exact") != "exact"
            metadata = ResponseMetadata(input_tokens=0, output_tokens=0)
        else:
            metadata = streamed or ResponseMetadata.of(response).finalize()
        reason = metadata.finish_reason or ""
        self.cut = self.cut or ("" if reason.lower() in COMPLETE else reason)
        self.input_tokens = _sum(self.input_tokens, metadata.input_tokens)
        self.output_tokens = _sum(self.output_tokens, metadata.output_tokens)


_run_stats: ContextVar[CallStats | None] = ContextVar("ibidem_run_stats", default=None)


def counted_in(stats: CallStats) -> AbstractContextManager[CallStats]:
    """Add the calls that begin in a block to `stats` too, whatever answers they belong to."""
    return context_value(_run_stats, stats)


def _sum(total: int | None, more: int | None) -> int | None:
    return total if more is None else (total or 0) + more


@dataclass(slots=True)
class _Call:
    """A model call under way.

    Attributes:
        answer: The id of the answer that it belongs to: that of a synthesis, else of its own span.
        stats: The calls behind this answer.
        run_stats: Those of the run that counts its calls, if there is one.
        streamed: The metadata of its chunks so far.
        listeners: Called with its response when it ends, or with None if it fails.
    """

    answer: str
    stats: CallStats
    run_stats: CallStats | None = None
    streamed: ResponseMetadata | None = None
    listeners: list[Callable[[ModelResponse | None], None]] = field(default_factory=list)


class CallWatcher(BaseEventHandler):
    """Adds up the model calls behind each answer, and tells when one of them ends. Thread-safe.

    It is how a synthesizer knows that its text was cut off, and what it cost: LlamaIndex hands it the text
    alone.
    """

    _calls: BoundedDict[str, _Call] = PrivateAttr(default_factory=lambda: BoundedDict(_OPEN))  # by span
    _stats: BoundedDict[str, CallStats] = PrivateAttr(default_factory=lambda: BoundedDict(_OPEN))  # by answer
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
                self._start(event)
            elif isinstance(event, (LLMChatInProgressEvent, LLMCompletionInProgressEvent)):
                self._add_chunk(event)
            elif isinstance(event, (LLMChatEndEvent, LLMCompletionEndEvent)):
                self._end(event)
            elif isinstance(event, (ExceptionEvent, SpanDropEvent)):
                self._fail(event)
        except Exception as error:  # LlamaIndex would swallow it without a trace
            self._faults.note("understand an event of LlamaIndex", error)

    def stats_of(self, answer: str) -> CallStats:
        """Return the calls behind an answer, by the id of its synthesis or of the call's span."""
        with self._lock:
            return self._stats.get(answer) or CallStats()

    def answer_of(self, span: str | None) -> str | None:
        """Return the id of the answer that a call under way belongs to; None for one within another."""
        with self._lock:
            call = self._calls.get(span or "")
        return call.answer if call is not None else None

    def on_end(self, span: str, listener: Callable[[ModelResponse | None], None]) -> None:
        """Call `listener` when a call under way ends: with its response, or with None if it fails."""
        with self._lock:
            if (call := self._calls.get(span)) is not None:
                call.listeners.append(listener)

    def _start(self, event: LLMChatStartEvent | LLMCompletionStartEvent) -> None:
        if (span := event.span_id) is None:
            return
        above = span_watcher.endpoints_above(span)  # `achat` calls `chat` calls `complete`: one call
        answer = span_watcher.synthesis_id(span) or span
        with self._lock:
            # A method that only calls `super()` has no call of its own.
            if any(self._calls.get(each) is not None for each in above):
                return
            stats = self._stats.get(answer) or CallStats()
            stats.count += 1
            names = (event.model_dict.get(key) for key in MODEL_KEYS)
            stats.model = next((name for name in names if isinstance(name, str) and name), stats.model)
            self._stats.put(answer, stats)
            run_stats = _run_stats.get()
            if run_stats is not None:
                run_stats.count += 1
                run_stats.model = stats.model or run_stats.model
            self._calls.put(span, _Call(answer, stats, run_stats))

    def _add_chunk(self, event: LLMChatInProgressEvent | LLMCompletionInProgressEvent) -> None:
        with self._lock:
            call = self._calls.get(event.span_id or "")
            if call is not None and not marker_in(event.response.raw):
                chunk = ResponseMetadata.of(event.response)
                call.streamed = (call.streamed or ResponseMetadata()).merge(chunk)

    def _end(self, event: LLMChatEndEvent | LLMCompletionEndEvent) -> None:
        with self._lock:
            if (call := self._calls.pop(event.span_id or "")) is None:
                return
            if event.response is not None:
                call.stats.add(event.response, call.streamed)
                if call.run_stats is not None:
                    call.run_stats.add(event.response, call.streamed)
        span_watcher.stream_consumed(call.answer)
        for listener in call.listeners:
            listener(event.response)

    def _fail(self, event: ExceptionEvent | SpanDropEvent) -> None:
        """Something below a synthesis failed: LlamaIndex may go on, but the answer is not complete."""
        if (span := event.span_id) is None:
            return
        with self._lock:
            call = self._calls.pop(span)
        # It is no failure of a stream if its reader only stopped reading.
        abandoned = isinstance(event, ExceptionEvent) and isinstance(event.exception, GeneratorExit)
        answer = call.answer if call is not None else span_watcher.synthesis_id(span)
        run_stats = call.run_stats if call is not None else _run_stats.get()
        if run_stats is not None and not abandoned:
            run_stats.cut = run_stats.cut or _FAILED
        if answer is not None and not abandoned:
            with self._lock:
                stats = self._stats.get(answer) or CallStats()
                stats.cut = stats.cut or _FAILED
                self._stats.put(answer, stats)
        for listener in call.listeners if call is not None else ():
            listener(None)


call_watcher = CallWatcher()  # of the process
