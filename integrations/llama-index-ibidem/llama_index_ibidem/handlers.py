"""Follow model calls: add up what each answer cost, and log answered questions as examples.

LlamaIndex's handlers cannot answer. One instrumentation handler for the process, `call_watcher`, adds up the
calls behind each answer; `IbidemCallbackHandler` logs the questions of the models that notify it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.schema import NodeWithScore
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.events.span import SpanDropEvent
from llama_index_instrumentation.span import active_span_id
from pydantic import PrivateAttr

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.adapter.call import AdapterCache, attempt
from ibidem.adapter.options import AdapterOptions
from ibidem.adapter.provider_fields import MODEL_KEYS
from ibidem.errors import InvalidInput
from ibidem.example import Example
from ibidem.lifecycle.rules import COMPLETE
from ibidem.prompts.documents import Prompt
from ibidem.scope import current, use_scope
from ibidem.types import Document, Scope
from llama_index_ibidem.request import RequestBuilder, answers_user, chat_prompt, completion_prompt
from llama_index_ibidem.responses import (
    ModelResponse,
    ResponseMetadata,
    is_for_programs,
    marker_in,
    text_of,
)
from llama_index_ibidem.spans import SpanContext, as_documents, span_watcher

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_OPEN = 1024  # questions and calls without an answer yet; older ones were abandoned
_FAILED = "failed"  # in place of a finish reason
# ReAct: the result of a tool, and the part of the last response that the user gets.
_OBSERVED = "Observation:"
_CONCLUSION = "Answer:"


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
    """

    count: int = 0
    repeated: int = 0
    by_meaning: bool = False
    model: str = ""
    cut: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None

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


def _sum(total: int | None, more: int | None) -> int | None:
    return total if more is None else (total or 0) + more


@dataclass(slots=True)
class _Call:
    """A model call under way.

    Attributes:
        answer: The id of the answer that it belongs to: that of a synthesis, else of its own span.
        stats: The calls behind this answer.
        streamed: The metadata of its chunks so far.
        listeners: Called with its response when it ends, or with None if it fails.
    """

    answer: str
    stats: CallStats
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
            self._calls.put(span, _Call(answer, stats))

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
        if answer is not None and not abandoned:
            with self._lock:
                stats = self._stats.get(answer) or CallStats()
                stats.cut = stats.cut or _FAILED
                self._stats.put(answer, stats)
        for listener in call.listeners if call is not None else ():
            listener(None)


call_watcher = CallWatcher()  # of the process


@dataclass(slots=True)
class _Question:
    """A question that waits for its answer; `running` are the spans of model calls that have not ended."""

    text: str
    documents: tuple[Document, ...] = ()
    started: float = field(default_factory=time.perf_counter)
    running: set[str] = field(default_factory=set)
    streamed: bool = False
    scope: Scope = field(default_factory=current)
    paused_after: float | None = None  # seconds

    def pause(self) -> None:
        """Stop the clock when a stream was handed out: until it is read, unless a model is at work."""
        self.paused_after = None if self.running else time.perf_counter() - self.started

    def resume(self, call: str) -> None:
        """Note a model call."""
        self.running.add(call)
        if self.paused_after is not None:
            self.started, self.paused_after = time.perf_counter() - self.paused_after, None


@dataclass(slots=True)
class _DirectCall:
    """A call of a model that is not part of a synthesis."""

    span: str
    prompt: list[ChatMessage] | str
    context: SpanContext
    started: float = field(default_factory=time.perf_counter)
    scope: Scope = field(default_factory=current)


class IbidemCallbackHandler(BaseCallbackHandler):
    """Logs every question that a model answered: `CallbackManager([IbidemCallbackHandler(cache)])`.

    It writes question, answer, documents, model, tokens and time to `cache.examples`, also for streams (when
    they end) and for models called directly. An answer that is repeated from a cache is not logged again. The
    handler never raises and never reads from a stream.

    A question is the input of a synthesizer; else the prompt of a model that was called directly, if the user
    said nothing else or retrieved documents were in the prompt. Other calls (rewriting a question, choosing a
    tool) are steps.

    Args:
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: Tenant, user or application that the examples belong to.
        any_message: True to log every message to a model that is called directly; by default it must ask
            something.
        **options: For `ibidem.open`: `path`, `database`, ...

    Raises:
        InvalidInput: An option does not exist.
        IbidemError: The cache cannot be opened.
    """

    def __init__(
        self,
        cache: SemanticCache | None = None,
        *,
        namespace: str = "",
        any_message: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self._adapter = AdapterCache.of(cache, "LlamaIndex", owner=type(self).__name__, options=options)
        self.cache = self._adapter.cache
        self._requests = RequestBuilder(AdapterOptions(namespace, any_message=any_message))
        self._lock = ForkSafeLock()
        self._questions: BoundedDict[str, _Question] = BoundedDict(_OPEN)  # by the ids of syntheses
        call_watcher.watch()

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Note a synthesis or a model call that begins."""
        if event_type == CBEventType.SYNTHESIZE:
            self._attempt(self._start_synthesis)
        elif event_type == CBEventType.LLM:
            self._attempt(partial(self._start_call, payload or {}))
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Log the question of a synthesis if it is answered."""
        if event_type == CBEventType.SYNTHESIZE:
            self._attempt(partial(self._end_synthesis, payload or {}))

    def start_trace(self, trace_id: str | None = None) -> None:
        """Not used."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Not used."""

    def __copy__(self) -> Self:
        return self  # a copied model notifies the same handler

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise InvalidInput(f"{type(self).__name__} cannot be pickled; add one in the other process")

    def faults(self) -> dict[str, int]:
        """Count the failures that were swallowed, by cause."""
        return self._adapter.faults.counts()

    def close(self) -> None:
        """Close the cache if it was opened here; one that was passed in stays open."""
        self._adapter.close()

    def _attempt(self, work: Callable[[], None]) -> None:
        attempt(self._adapter.faults, "log what LlamaIndex answered", work, refused="does not log a question")

    def _start_synthesis(self) -> None:
        context = span_watcher.context()
        if context.synthesis is not None and not context.judged:
            with self._lock:
                self._questions.put(context.synthesis.id, _Question(context.synthesis.question))

    def _end_synthesis(self, payload: dict[str, Any]) -> None:
        """Log the answer of a synthesis; of a stream, the last model call ends it."""
        response, synthesis = payload.get(EventPayload.RESPONSE), span_watcher.context().synthesis
        if synthesis is None:
            return
        with self._lock:
            question = self._questions.get(synthesis.id)
            if question is None:
                return
            question.documents = _documents(getattr(response, "source_nodes", ()))
            streams = isinstance(response, (StreamingResponse, AsyncStreamingResponse))
            if streams and not marker_in(getattr(response, "metadata", None)):
                question.streamed = True
                question.pause()
                return
            self._questions.pop(synthesis.id)
        self._log(question, _text(response), call_watcher.stats_of(synthesis.id))

    def _start_call(self, payload: dict[str, Any]) -> None:
        """Note a model call; one within another belongs to that."""
        span = active_span_id.get()
        answer = call_watcher.answer_of(span)
        if span is None or answer is None:
            return
        with self._lock:
            if (question := self._questions.get(answer)) is not None:
                question.resume(span)
        end: Callable[[ModelResponse | None], None]
        if question is not None:
            end = partial(self._end_call, answer, span)
        elif answer == span:
            asked = payload.get(EventPayload.MESSAGES) or str(payload.get(EventPayload.PROMPT, ""))
            end = partial(self._end_direct, _DirectCall(span, _copied(asked), span_watcher.context(span)))
        else:
            return
        call_watcher.on_end(span, lambda response: self._attempt(partial(end, response)))

    def _end_call(self, synthesis: str, span: str, response: ModelResponse | None) -> None:
        """Log the answer of a synthesis that is a stream, if this was its last call."""
        with self._lock:
            if (question := self._questions.get(synthesis)) is None:
                return
            question.running.discard(span)
            if response is not None and (question.running or not question.streamed):
                return
            self._questions.pop(synthesis)
        if response is not None:
            self._log(question, text_of(response), call_watcher.stats_of(synthesis))

    def _end_direct(self, call: _DirectCall, response: ModelResponse | None) -> None:
        """Log the answer of a model that was called directly. Nothing is parsed if it cannot be logged."""
        stats = call_watcher.stats_of(call.span)
        if response is None or stats.repeated or is_for_programs(response):
            return
        asked = call.prompt
        prompt = completion_prompt(asked, formatted=True) if isinstance(asked, str) else chat_prompt(asked)
        text = _conclusion(text_of(response))
        if text and (question := self._question(prompt, call)) is not None:
            question.streamed = response.delta is not None
            self._log(question, text, stats)

    def _question(self, prompt: Prompt, call: _DirectCall) -> _Question | None:
        """Return what the user asked, if the prompt of a direct call tells."""
        context = call.context
        parsed = self._requests.parse(prompt, context)
        if parsed.masked is None:
            asked = _reasoned_about(prompt)
            if asked is None or context.step or not self._requests.questions.is_question(asked):
                return None
        elif answers_user(parsed, prompt, context):
            asked = parsed.question
        else:
            return None
        return _Question(asked, parsed.documents, call.started, scope=call.scope)

    def _log(self, question: _Question, text: str | None, stats: CallStats) -> None:
        if not text or not text.strip() or stats.cut or question.scope.bypass:
            return
        # No model was called ("Empty Response" and the like), or all answers were repeated.
        if stats.count == stats.repeated:
            return
        example = Example(
            question.text,
            text,
            namespace=question.scope.name(self._requests.options.namespace),
            tags=question.scope.tags,
            model=stats.model,
            documents=question.documents,
            input_tokens=stats.input_tokens,
            output_tokens=stats.output_tokens,
            seconds=time.perf_counter() - question.started,
            streamed=question.streamed,
        )
        with use_scope(question.scope):  # not that of whoever reads a stream
            self.cache.examples.add(example)


def _copied(prompt: Sequence[ChatMessage] | str) -> list[ChatMessage] | str:
    """Copy a prompt as it is now: models may change the messages that they are given."""
    if isinstance(prompt, str):
        return prompt
    return [message.model_copy(update={"blocks": [*message.blocks]}) for message in prompt]


def _documents(nodes: Sequence[NodeWithScore]) -> tuple[Document, ...]:
    """Convert nodes to documents, one each, as the model saw them."""
    shown = {document.id: document for document in reversed(as_documents(nodes))}
    return tuple(Document(one.id, one.text, source=one.source) for one in reversed(shown.values()))


def _text(response: object) -> str | None:
    """Return the answer of a synthesis that is not a stream."""
    if isinstance(response, PydanticResponse):
        return response.response.model_dump_json() if response.response is not None else None
    return response.response if isinstance(response, Response) else None


def _reasoned_about(prompt: Prompt) -> str | None:
    """Return what a ReAct agent was asked, if the prompt ends with the result of a tool."""
    if not prompt.last_human.startswith(_OBSERVED):
        return None
    said = [segment.text.strip() for segment in prompt.segments if segment.role == "human"]
    return next((text for text in reversed(said) if not text.startswith(_OBSERVED)), None)


def _conclusion(text: str) -> str | None:
    """Return what the user gets of an answer: of a ReAct agent's, not the thought before it."""
    if not text.lstrip().startswith("Thought:"):
        return text
    _, concludes, said = text.partition(_CONCLUSION)
    return said.strip() if concludes else None
