"""`IbidemCallbackHandler`: write answered questions to the example log. LlamaIndex's handlers cannot answer.

A question is the input of a synthesizer; else the prompt of a model that was called directly, if the user
said nothing else or retrieved documents were in the prompt. Other calls (rewriting a question, choosing a
tool) are steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from llama_index.core.schema import NodeWithScore
from llama_index_instrumentation.span import active_span_id

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.adapter.call import attempt
from ibidem.adapter.options import AdapterOptions, open_or_use
from ibidem.errors import InvalidInput
from ibidem.example import Example
from ibidem.prompts.documents import Prompt
from ibidem.scope import current, use_scope
from ibidem.types import Document, Scope
from llama_index_ibidem.llm_calls import LLMCallStats, call_watcher
from llama_index_ibidem.request import RequestBuilder, answers_user, chat_prompt, completion_prompt
from llama_index_ibidem.responses import (
    MARKER,
    ModelResponse,
    ResponseMetadata,
    is_for_programs,
    marker_of,
    text_of,
)
from llama_index_ibidem.spans import SpanContext, as_documents, span_watcher

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_OPEN = 1024  # questions and calls without an answer yet; older ones were abandoned
_LOGGING = "log what LlamaIndex answered"
# ReAct: the result of a tool, and the part of the last response that the user gets.
_OBSERVED = "Observation:"
_CONCLUSION = "Answer:"


class IbidemCallbackHandler(BaseCallbackHandler):
    """Logs every question that a model answered: `CallbackManager([IbidemCallbackHandler(cache)])`.

    It writes question, answer, documents, model, tokens and time to `cache.examples`, also for streams (when
    they end) and for models called directly. An answer that is repeated from a cache is not logged again. The
    handler never raises and never reads from a stream.

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
        self._owned = cache is None
        self.cache = open_or_use(cache, options, type(self).__name__)
        self._faults = Faults()
        call_watcher.watch()
        requests = RequestBuilder(AdapterOptions(namespace, any_message=any_message))
        self._recorder = Recorder(self.cache, requests)

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Note a synthesis or a model call that begins."""
        if event_type in (CBEventType.SYNTHESIZE, CBEventType.LLM):
            self._attempt(partial(self._start, event_type, payload or {}, event_id))
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Log the question if it is answered."""
        if event_type in (CBEventType.SYNTHESIZE, CBEventType.LLM):
            self._attempt(partial(self._end, event_type, payload or {}, event_id))

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
        return self._faults.counts()

    def close(self) -> None:
        """Close the cache if it was opened here; one that was passed in stays open."""
        if self._owned:
            self.cache.close()

    def _attempt(self, work: Callable[[], None]) -> None:
        attempt(self._faults, _LOGGING, work, refused="does not log a question")

    def _start(self, kind: CBEventType, payload: dict[str, Any], event: str) -> None:
        span = active_span_id.get()
        if kind == CBEventType.SYNTHESIZE:
            self._recorder.start_synthesis(span)
        else:
            asked = payload.get(EventPayload.MESSAGES) or str(payload.get(EventPayload.PROMPT, ""))
            self._recorder.start_call(event, span, asked)

    def _end(self, kind: CBEventType, payload: dict[str, Any], event: str) -> None:
        response = payload.get(EventPayload.RESPONSE)
        if kind == CBEventType.SYNTHESIZE:
            self._recorder.end_synthesis(active_span_id.get(), response)
        else:
            self._recorder.end_call(event, response or payload.get(EventPayload.COMPLETION))


@dataclass(slots=True)
class _Question:
    """A question that waits for its answer; `running` are the ids of model calls that have not ended."""

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
class _Call:
    """A model call under way. `prompt` is kept for a call that is not part of a synthesis."""

    answer: str
    prompt: list[ChatMessage] | str | None = None
    context: SpanContext = field(default_factory=SpanContext)
    started: float = field(default_factory=time.perf_counter)
    scope: Scope = field(default_factory=current)


class Recorder:
    """Joins questions and answers, and logs them as examples. Thread-safe; it may raise.

    Nothing is parsed before the answer is complete, and nothing for an answer repeated from the cache.
    """

    def __init__(self, cache: SemanticCache, requests: RequestBuilder) -> None:
        self._cache, self._requests = cache, requests
        self._lock = ForkSafeLock()
        self._questions: BoundedDict[str, _Question] = BoundedDict(_OPEN)  # by the ids of syntheses
        self._calls: BoundedDict[str, _Call] = BoundedDict(_OPEN)

    def start_synthesis(self, span: str | None) -> None:
        """Note the question of the synthesis that `span` is part of."""
        context = span_watcher.context(span)
        if context.synthesis is not None and not context.judged:
            with self._lock:
                self._questions.put(context.synthesis.id, _Question(context.synthesis.question))

    def end_synthesis(self, span: str | None, response: object) -> None:
        """Log the answer of a synthesis; of a stream, the last model call ends it."""
        synthesis = span_watcher.synthesis_id(span) if span is not None else None
        if synthesis is None:
            return
        repeated = _is_repeated(response)
        with self._lock:
            question = self._questions.get(synthesis)
            if question is None:
                return
            question.documents = _documents(getattr(response, "source_nodes", ()))
            if isinstance(response, (StreamingResponse, AsyncStreamingResponse)) and not repeated:
                question.streamed = True
                question.pause()
                return
            self._questions.pop(synthesis)
        if not repeated:
            self._log(question, _text(response), call_watcher.stats_of(synthesis))

    def start_call(self, call: str, span: str | None, prompt: Sequence[ChatMessage] | str) -> None:
        """Note a model call; one within another belongs to that."""
        answer = call_watcher.answer_of(span) if span is not None else None
        if span is None or answer is None:
            return
        with self._lock:
            question = self._questions.get(answer)
            if question is not None:
                question.resume(call)
                self._calls.put(call, _Call(answer))
        if question is None and answer == span:
            noted = _Call(answer, _copied(prompt), span_watcher.context(span))
            with self._lock:
                self._calls.put(call, noted)

    def end_call(self, call: str, response: ModelResponse | None) -> None:
        """Log the answer of a model that was called directly, or of a stream whose last call has ended."""
        with self._lock:
            ended = self._calls.pop(call)
            if ended is None:
                return
            question = self._questions.get(ended.answer)
            if question is not None:
                question.running.discard(call)
                if response is not None and (question.running or not question.streamed):
                    return
                self._questions.pop(ended.answer)
        if response is None:  # it failed
            return
        if question is not None:
            self._log(question, text_of(response), call_watcher.stats_of(ended.answer))
        elif ended.prompt is not None and "entry_id" not in marker_of(response):
            self._log_direct(ended, ended.prompt, response)

    def _log_direct(self, call: _Call, asked: list[ChatMessage] | str, response: ModelResponse) -> None:
        text = None if is_for_programs(response) else _conclusion(text_of(response))
        stats = call_watcher.stats_of(call.answer)
        if stats.output_tokens is None:  # its end comes later
            stats = stats.add(ResponseMetadata.of(response).finalize())
        prompt = completion_prompt(asked, formatted=True) if isinstance(asked, str) else chat_prompt(asked)
        if text and (question := self._question(prompt, call)) is not None:
            question.streamed = response.delta is not None
            self._log(question, text, stats)

    def _question(self, prompt: Prompt, call: _Call) -> _Question | None:
        """Return what the user asked, if the prompt of a direct call tells."""
        context = call.context
        parsed = self._requests.parse(prompt, context)
        if parsed.masked is None:
            asked = _reasoned_about(prompt)
            if asked is None or context.step or not self._requests.is_question(asked):
                return None
        elif answers_user(parsed, prompt, context):
            asked = parsed.question
        else:
            return None
        return _Question(asked, parsed.documents, call.started, scope=call.scope)

    def _log(self, question: _Question, text: str | None, stats: LLMCallStats) -> None:
        if not text or not text.strip() or stats.cut or question.scope.bypass:
            return
        # No model was called ("Empty Response" and the like), or all answers were repeated.
        if not stats.count or stats.entry_id is not None:
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
            self._cache.examples.add(example)


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


def _is_repeated(response: object) -> bool:
    """Return whether `CachedSynthesizer` took a response from the cache."""
    metadata: Any = getattr(response, "metadata", None) or {}
    marker = metadata.get(MARKER)
    return isinstance(marker, Mapping) and "entry_id" in marker


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
