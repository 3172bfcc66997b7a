"""What the model calls behind an answer amount to: compact makes one, refine many, a tree some at once.

One instrumentation handler for the process watches them. It is how a synthesizer knows that its text was cut
off, and what it cost: LlamaIndex hands it the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
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
from ibidem.lifecycle.rules import COMPLETE
from llama_index_ibidem import spans
from llama_index_ibidem.codec import MARKER
from llama_index_ibidem.reading import Told

_OPEN = 1024  # answers and calls in flight; older ones were abandoned
ModelResponse = ChatResponse | CompletionResponse

STARTS = (LLMChatStartEvent, LLMCompletionStartEvent)
CHUNKS = (LLMChatInProgressEvent, LLMCompletionInProgressEvent)
ENDS = (LLMChatEndEvent, LLMCompletionEndEvent)
FAILED = "failed"  # in place of a finish reason


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls behind one answer so far.

    `cut` is why one of them stopped early, "" if none did; tokens are sums, None where nothing was told;
    `from_cache` names the entries that answered instead of the model; `by_meaning` if one of them was
    stored for another wording.
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

    def and_ended(self, told: Told, marker: Mapping[str, Any]) -> Calls:
        """With what the provider told at the end of one of them, or the marker of the entry that answered."""
        entry_id = marker.get("entry_id")
        reason = told.finish_reason or ""
        return replace(
            self,
            cut=self.cut or ("" if reason.lower() in COMPLETE else reason),
            input_tokens=_sum(self.input_tokens, told.input_tokens),
            output_tokens=_sum(self.output_tokens, told.output_tokens),
            from_cache=self.from_cache if entry_id is None else (*self.from_cache, str(entry_id)),
            by_meaning=self.by_meaning or marker.get("tier", "exact") != "exact",
        )


@dataclass(slots=True)
class _Call:
    answer: str
    told: Told = field(default_factory=Told)
    streamed: bool = False
    marker: Mapping[str, Any] = field(default_factory=dict)


class CallWatcher(BaseEventHandler):
    """Adds up the calls by the answer they belong to: a synthesis, else the call itself."""

    _calls: BoundedDict[str, _Call] = PrivateAttr(default_factory=lambda: BoundedDict(_OPEN))
    _answers: BoundedDict[str, Calls] = PrivateAttr(default_factory=lambda: BoundedDict(_OPEN))
    _guard: ForkSafeLock = PrivateAttr(default_factory=ForkSafeLock)
    _faults: Faults = PrivateAttr(default_factory=Faults)

    @classmethod
    def class_name(cls) -> str:
        """How LlamaIndex names the handler."""
        return "IbidemCallWatcher"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Something happened."""
        try:
            if isinstance(event, STARTS):
                self._began(event)
            elif isinstance(event, CHUNKS):
                self._went_on(event)
            elif isinstance(event, ENDS):
                self._ended(event)
            elif isinstance(event, ExceptionEvent):
                self._broke(event)
            elif isinstance(event, SpanDropEvent):
                self._failed(event.span_id)
        except Exception as error:  # LlamaIndex would swallow it without a trace
            self._faults.note("understand an event of LlamaIndex", error)

    def behind(self, answer: str) -> Calls:
        """The calls behind an answer, by the id of its synthesis or of the call's span."""
        with self._guard:
            calls = self._answers.get(answer) or Calls()
            for call in self._calls:
                if call.answer == answer and call.streamed:  # its last chunk comes before its end
                    calls = calls.and_ended(call.told, call.marker)
        return calls

    def is_nested(self, span: str) -> bool:
        """Whether a call is under way above it. A method that only calls `super()` is none."""
        above = spans.endpoints_above(span)
        with self._guard:
            return any(self._calls.get(each) is not None for each in above)

    def _began(self, event: LLMChatStartEvent | LLMCompletionStartEvent) -> None:
        span = event.span_id
        if span is None or self.is_nested(span):
            return
        answer = spans.answer_of(span)
        with self._guard:
            self._calls.put(span, _Call(answer))
            known = self._answers.get(answer) or Calls()
            named = (event.model_dict.get(key) for key in ("model_name", "model"))  # the latter until 0.14.22
            model = next((name for name in named if isinstance(name, str) and name), known.model)
            self._answers.put(answer, replace(known, count=known.count + 1, model=model))

    def _went_on(self, event: LLMChatInProgressEvent | LLMCompletionInProgressEvent) -> None:
        with self._guard:
            if (call := self._calls.get(event.span_id or "")) is not None:
                call.told, call.streamed = call.told.then(Told.of(event.response)), True
                call.marker = marker_of(event.response)

    def _ended(self, event: LLMChatEndEvent | LLMCompletionEndEvent) -> None:
        with self._guard:
            call = self._calls.pop(event.span_id or "")
            if call is None:
                return
            if event.response is not None:
                told = call.told if call.streamed else Told.of(event.response).of_whole()
                known = self._answers.get(call.answer) or Calls()
                self._answers.put(call.answer, known.and_ended(told, marker_of(event.response)))
        spans.was_read(call.answer)

    def _broke(self, event: ExceptionEvent) -> None:
        """A stream broke; if its reader only stopped reading, that is no failure."""
        if not isinstance(event.exception, GeneratorExit):
            self._failed(event.span_id)
            return
        with self._guard:
            self._calls.pop(event.span_id or "")

    def _failed(self, span: str | None) -> None:
        """Something below a synthesis failed; LlamaIndex may go on without it, the answer is not complete."""
        if span is None:
            return
        with self._guard:
            call = self._calls.pop(span)
        synthesis = spans.surroundings(span).synthesis
        answer = call.answer if call else synthesis.id if synthesis else None
        if answer is None:
            return
        with self._guard:
            known = self._answers.get(answer) or Calls()
            self._answers.put(answer, replace(known, cut=known.cut or FAILED))


def marker_of(response: ModelResponse) -> Mapping[str, Any]:
    """What a response says of the entry of the cache that gave it; nothing if a model did."""
    marker = response.raw.get(MARKER) if isinstance(response.raw, dict) else None
    return marker if isinstance(marker, dict) else {}


def entry_of(response: ModelResponse) -> str | None:
    """The entry of the cache that gave this response; None if a model did."""
    entry_id = marker_of(response).get("entry_id")
    return None if entry_id is None else str(entry_id)


def is_nested(span: str) -> bool:
    """Whether a call in `span` is made by another of the model: `achat` calls `chat` calls `complete`."""
    return _watcher.is_nested(span)


def behind(answer: str) -> Calls:
    """The calls behind an answer."""
    return _watcher.behind(answer)


def watch() -> None:
    """Begin to watch spans and calls, once per process."""
    spans.watch()
    root = get_dispatcher()
    if _watcher not in root.event_handlers:
        root.add_event_handler(_watcher)


def _sum(one: int | None, other: int | None) -> int | None:
    return one if other is None else (one or 0) + other


_watcher = CallWatcher()
