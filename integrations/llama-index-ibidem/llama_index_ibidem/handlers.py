"""`IbidemCallbackHandler`: a cache for the models that carry it, and a log of what they answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.schema import NodeWithScore
from llama_index_instrumentation.span import active_span_id

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem.adapter.call import AdapterCache, attempt
from ibidem.adapter.options import AdapterOptions
from ibidem.errors import InvalidInput
from ibidem.example import Example
from ibidem.options import OpenOptions
from ibidem.prompts.documents import Prompt
from ibidem.prompts.history import mode_of, split_history
from ibidem.prompts.standing_alone import points_back
from ibidem.scope import current, use_scope
from ibidem.types import Document, Scope, require_bool
from llama_index_ibidem.calls import CallStats, call_watcher
from llama_index_ibidem.endpoints import CachedEndpoints
from llama_index_ibidem.request import RequestBuilder, answers_user, chat_prompt, completion_prompt
from llama_index_ibidem.responses import (
    ModelResponse,
    is_for_programs,
    marker_in,
    text_of,
)
from llama_index_ibidem.serving import LED, ServingHandler
from llama_index_ibidem.spans import STREAMS, SpanContext, as_documents, span_watcher

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_OPEN = 1024  # questions without an answer yet; older ones were abandoned
# ReAct: the result of a tool, and the part of the last response that the user gets.
_OBSERVED = "Observation:"
_CONCLUSION = "Answer:"


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


class IbidemCallbackHandler(ServingHandler):
    """Answers from a cache for the models that carry it, and logs every question that a model answered.

    `Settings.callback_manager.add_handler(IbidemCallbackHandler())`: from then on the models whose callback
    manager is this one ask the cache first, until `remove_handler`. A failure of the cache never reaches the
    program: the model is asked, as without a cache. A `CachedLLM` asks its own cache. Of several such
    handlers in one manager the first one answers, the others log.

    The log is `cache.examples`: question, answer, documents, model, tokens and time, also of streams (when
    they end) and of models called directly. An answer that is repeated from a cache is not logged again. A
    question is the input of a synthesizer; else the prompt of a model that was called directly, if the user
    said nothing else or retrieved documents were in the prompt. Other calls (rewriting a question, choosing a
    tool) are steps.

    Args:
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        serve: False to log only.
        namespace: Tenant or application, as for `CachedLLM` like all arguments up to the options.
        question_keys: Template variables that hold the question.
        model_id: Identifies the model where its fields do not.
        any_message: True to take every line of the user for a question, in the log as well; by default it
            must ask something.
        semantic: False to repeat answers to identical prompts only.
        require_namespace: True to cache only calls within `ibidem.scope(namespace=...)`.
        history: How the earlier turns of a chat are compared: "exact", not where the last message stands
            alone ("standalone"), by their meaning ("meaning"), or never ("ignore").
        **options: For `ibidem.open`: `path`, `max_error_rate`, `embedder`, ...

    Raises:
        InvalidInput: An option does not exist, or a value has the wrong type.
        IbidemError: The cache cannot be opened.
    """

    def __init__(
        self,
        cache: SemanticCache | None = None,
        *,
        serve: bool = True,
        namespace: str = "",
        question_keys: Sequence[str] = (),
        model_id: str = "",
        any_message: bool = False,
        semantic: bool = True,
        require_namespace: bool = False,
        history: str | None = None,
        **options: Unpack[OpenOptions],
    ) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        require_bool("serve", serve)
        self._requests = RequestBuilder(
            AdapterOptions(
                namespace, question_keys, model_id, any_message, semantic, require_namespace, mode_of(history)
            )
        )
        self._adapter = AdapterCache.of(cache, "LlamaIndex", owner=type(self).__name__, options=options)
        self.cache = self._adapter.cache
        self._lock = ForkSafeLock()
        self._questions: BoundedDict[str, _Question] = BoundedDict(_OPEN)  # by the ids of syntheses
        call_watcher.watch()
        if serve:
            self.endpoints = CachedEndpoints(self._adapter, self._requests)
            LED.hold(self._adapter)
            STREAMS.hold(self._adapter)

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
        """Close the cache if it was opened here, and answer no longer; one that was passed in stays open."""
        if self._adapter.close():
            self.endpoints = None
            LED.release(self._adapter)
            STREAMS.release(self._adapter)

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
        if (split := split_history(prompt)) is not None and split[1] and points_back(asked):
            return None  # nothing without the turns before it
        return _Question(asked, parsed.documents, call.started, scope=call.scope)

    def _log(self, question: _Question, text: str | None, stats: CallStats) -> None:
        if not text or not text.strip() or stats.cut or question.scope.bypass:
            return
        # No model was called ("Empty Response" and the like), or all answers were repeated.
        if stats.count == stats.repeated:
            return
        namespace = question.scope.name(self._requests.options.namespace)
        # A cell of a notebook that adds a handler may run twice: one example in one place.
        place = (self.cache.steps.flights, namespace)
        if place in stats.logged:
            return
        stats.logged.add(place)
        example = Example(
            question.text,
            text,
            namespace=namespace,
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
