"""Follow LlamaIndex's spans, to know the context of each call of a model.

Every public method of LlamaIndex opens a span, and spans know their parents in threads, tasks and streams. So
above the span of a model call stand, in this order: the template and its variables, the question and the
nodes of the synthesizer, the input of the engine. Documents that retrievers returned lately are kept as well,
for prompts that a program or a workflow composes by hand.

A text from here only counts if it occurs in the prompt. So a wrong parent can cost a hit and never cause one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import takewhile
from types import FrameType
from typing import Any
from weakref import ref

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.types import BasePydanticProgram
from llama_index_instrumentation import dispatcher, get_dispatcher
from llama_index_instrumentation.span import BaseSpan, active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.adapter.streams import StreamMethods
from ibidem.prompts.documents import CONTEXT_KEYS, RetrievalLog, Retrieved, find_positions, occurs_at
from ibidem.prompts.few_shot import FewShotBlock
from ibidem.types import Hit
from llama_index_ibidem.delegation import DelegatingLLM
from llama_index_ibidem.responses import LookupCounts, keep_scope_of, mark, marker_in

_SPANS = 8192
_RUNS = 256
_STREAMS = 256  # streams that were handed out; some are never read
_DEPTH = 64  # spans between a call and its root; deeper is a loop
_NODES = 256  # documents of one retrieval that are kept
_UUID = 37  # characters after the name in a span's id: "-" and the uuid

_TEMPLATES = frozenset(
    (
        "predict apredict stream astream structured_predict astructured_predict "
        "stream_structured_predict astream_structured_predict"
    ).split()
)
ENDPOINTS = frozenset(
    "chat achat stream_chat astream_chat complete acomplete stream_complete astream_complete".split()
)
_SYNTHESIZE = frozenset(("synthesize", "asynthesize"))
_SEARCH = frozenset(("retrieve", "aretrieve"))
_POSTPROCESS = frozenset(
    "postprocess_nodes apostprocess_nodes _postprocess_nodes _apostprocess_nodes".split()
)
_STREAMING = (StreamingResponse, AsyncStreamingResponse)
_ASK = frozenset("query aquery chat achat stream_chat astream_chat run".split())
_ASKED = ("str_or_query_bundle", "query_bundle", "message", "user_msg")
_EVALUATE = frozenset("evaluate aevaluate evaluate_response aevaluate_response".split())
_EVALUATORS = "llama_index.core.evaluation.base"

# Methods whose streams may ask the model with their first step, in the context of their reader. Chat engines
# and workflows read theirs in threads and tasks of the asker.
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


@dataclass(frozen=True, slots=True)
class FilledTemplate:
    """A template that is being filled, its variables, and whether the answer is structured output."""

    template: BasePromptTemplate
    variables: Mapping[str, Any]
    structured: bool


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A question that is being answered from nodes, which are the documents as a model sees them."""

    id: str
    question: str
    documents: tuple[Retrieved, ...]


class _Kind(Enum):
    ENDPOINT = auto()  # a call of a model other than a `CachedLLM`
    STEP = auto()  # nodes are being judged or ordered: the response of a model is not an answer


_Fact = FilledTemplate | Synthesis | _Kind | str  # a text is the input of an engine


@dataclass(frozen=True, slots=True)
class SpanContext:
    """The context of a model call, by the spans above it.

    Attributes:
        template: The template that is being filled.
        synthesis: The question that is being answered from nodes.
        asked: The input of the engine.
        run: The id of the outermost span.
        step: Whether nodes are being judged or ordered, or an answer is being judged: the response of the
            model is not an answer.
        judged: Whether an evaluator asks.
        few_shot: The examples that were last selected for the prompt.
    """

    template: FilledTemplate | None = None
    synthesis: Synthesis | None = None
    asked: str | None = None
    run: str | None = None
    step: bool = False
    judged: bool = False
    few_shot: FewShotBlock | None = None

    @property
    def synthesis_id(self) -> str | None:
        """The id of the synthesis; None outside of one."""
        return self.synthesis.id if self.synthesis is not None else None


@contextmanager
def attached_to(span: str | None) -> Iterator[None]:
    """Make a span the active one, even if it has ended."""
    token = active_span_id.set(span or active_span_id.get())
    try:
        yield
    finally:
        active_span_id.reset(token)


@dataclass(slots=True)
class _Span:
    """A span, which is remembered after its end: calls can outlive it (streams, threads)."""

    parent: str | None = None
    fact: _Fact | None = None  # while it is open, or its stream may be read
    judged: bool = False
    few_shot: FewShotBlock | None = None
    lookups: LookupCounts | None = None  # of the model calls below it, if a cache was asked
    streaming: ref[Any] | None = None  # the response that it returned, if that is a stream


class SpanWatcher(BaseSpanHandler[BaseSpan]):
    """Remembers the facts of open spans and what retrievers returned. Bounded and thread-safe."""

    _spans: BoundedDict[str, _Span] = PrivateAttr(default_factory=lambda: BoundedDict(_SPANS))
    _retrieved: RetrievalLog[str] = PrivateAttr(default_factory=lambda: RetrievalLog(_RUNS))
    _deferred: DeferredStreams = PrivateAttr(default_factory=lambda: DeferredStreams())
    _guard: ForkSafeLock = PrivateAttr(default_factory=ForkSafeLock)
    _faults: Faults = PrivateAttr(default_factory=Faults)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises the handler."""
        return "IbidemSpanWatcher"

    @property
    def retrieved(self) -> RetrievalLog[str]:
        """The documents that retrievers and postprocessors returned."""
        return self._retrieved

    def watch(self) -> None:
        """Add this handler to LlamaIndex's root dispatcher, once per process."""
        root = get_dispatcher()
        if self not in root.span_handlers:
            root.add_span_handler(self)

    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember a span that begins."""
        try:
            fact, judged = _fact_of(id_, bound_args.arguments, instance), _is_evaluating()
        except Exception as error:  # LlamaIndex would swallow it without a trace
            self._faults.note("understand a span of LlamaIndex", error)
            fact, judged = None, False
        with self._guard:
            parent_id = self._parent_of(id_, fact, parent_id, bound_args.arguments, instance)
            if isinstance(fact, Synthesis):
                # A class that overrides `synthesize` and calls `super()`: one synthesis, two spans.
                above = (self._spans.get(parent_id or "") or _UNKNOWN).fact
                if isinstance(above, Synthesis) and above.question == fact.question:
                    fact = replace(fact, id=above.id)
            self._spans.put(id_, _Span(parent_id, fact, judged))

    def span_exit(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> None:
        """Record what a retriever returned, and the stream that a synthesis handed out."""
        try:
            method = _method_of(id_)
            if method in _SEARCH or method in _POSTPROCESS:
                query = _asked_of(bound_args.arguments) if method in _SEARCH else None
                self._record_retrieval(id_, result, query)
        except Exception as error:
            self._faults.note("understand what a retriever returned", error)
        keep_scope_of(result)
        with self._guard:
            if (span := self._spans.get(id_)) is None:
                return
            if not self._deferred.handed_out(id_, span.fact, result):
                span.fact = None
            if span.lookups is not None:
                mark(result, span.lookups)
            if isinstance(result, _STREAMING):
                span.streaming = ref(result)

    def span_drop(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        """Forget the facts of a span that failed."""
        with self._guard:
            if (span := self._spans.get(id_)) is not None:
                span.fact = None

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used: spans are kept in `_spans`."""

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used."""

    def context(self, span: str | None = None) -> SpanContext:
        """Collect the nearest fact of each kind from a span upwards, by default from the active one."""
        template = synthesis = asked = few_shot = None
        step = judged = False
        with self._guard:
            above = self._upwards(span or active_span_id.get())
            for _, found in above:
                fact = found.fact
                if isinstance(fact, FilledTemplate):
                    template = template or fact
                elif isinstance(fact, Synthesis):
                    synthesis = synthesis or fact
                elif isinstance(fact, str):
                    asked = asked if asked is not None else fact
                elif fact is _Kind.STEP:
                    step = step or synthesis is None
                judged = judged or found.judged
                few_shot = few_shot or found.few_shot
        run = above[-1][0] if above else None
        return SpanContext(template, synthesis, asked, run, step or judged, judged, few_shot)

    def synthesis_id(self, span: str) -> str | None:
        """Return the id of the synthesis that a span is part of."""
        with self._guard:
            synthesis = self._synthesis_above(span)
        return synthesis.id if synthesis is not None else None

    def endpoints_above(self, span: str) -> list[str]:
        """Return the spans of endpoints of the same model directly above a span: `achat` calls `chat`.

        A call that reaches the model through `CachedLLM` has none above it.
        """
        with self._guard:
            above = takewhile(lambda each: each[1].fact is _Kind.ENDPOINT, self._upwards(span))
            return [id_ for id_, _ in above][1:]  # without itself

    def record_few_shot(self, examples: FewShotBlock) -> None:
        """Record the examples that were selected for a prompt of the active span."""
        if (span := active_span_id.get()) is not None:
            with self._guard:
                found = self._spans.get(span) or _Span()
                found.few_shot = examples
                self._spans.put(span, found)

    def record_lookup(self, hit: Hit | None, calls: int = 1) -> None:
        """Record what a cache said to model calls of the active span: responses of engines above it tell."""
        with self._guard:
            for _, span in self._upwards(active_span_id.get()):
                if span is not _UNKNOWN:
                    span.lookups = (span.lookups or LookupCounts()).with_lookup(hit, calls)
                    if span.streaming is not None:
                        mark(span.streaming(), span.lookups)

    def stream_consumed(self, answer: str) -> None:
        """Record that the last model call of a synthesis has ended."""
        with self._guard:
            self._deferred.consumed(answer)

    def _parent_of(
        self, id_: str, fact: _Fact | None, parent: str | None, arguments: Mapping[str, Any], instance: Any
    ) -> str | None:
        """Return the span that a new one belongs to: its parent, or the one whose stream is being read."""
        if isinstance(fact, FilledTemplate) and self._synthesis_above(parent) is None:
            return self._deferred.synthesis_for(fact) or parent
        if fact is _Kind.ENDPOINT:
            call = self._deferred.call_for(id_, arguments, instance)
            if call is not None:
                self._spans.put(call, replace(self._spans.get(call) or _Span(), fact=fact))  # it goes on
                return call
        return parent

    def _synthesis_above(self, span: str | None) -> Synthesis | None:
        facts = (each.fact for _, each in self._upwards(span))
        return next((fact for fact in facts if isinstance(fact, Synthesis)), None)

    def _upwards(self, span: str | None) -> list[tuple[str, _Span]]:
        found = list[tuple[str, _Span]]()
        while span is not None and len(found) < _DEPTH:
            found.append((span, self._spans.get(span) or _UNKNOWN))
            span = found[-1][1].parent
        return found

    def _record_retrieval(self, id_: str, result: Any, query: str | None) -> None:
        nodes = [node for node in result or () if isinstance(node, NodeWithScore)]
        with self._guard:
            run, _ = self._upwards(id_)[-1]
        self._retrieved.add(as_documents(nodes[:_NODES]), run=run, query=query)


class DeferredStreams:
    """Streams that ask a model when they are read, after the span that they belong to has ended.

    A `compact` or `refine` stream does so, and so do the async streams of a `CustomLLM`. The parent that
    LlamaIndex gives such a call is whatever span its reader is in; here is the one that it belongs to. Not
    thread-safe: the owner holds a lock.
    """

    def __init__(self) -> None:
        self._unread: BoundedDict[str, tuple[Synthesis, ref[Any]]] = BoundedDict(_STREAMS)
        self._calls: BoundedDict[tuple[int, int], tuple[str, Any, Any]] = BoundedDict(_STREAMS)

    def handed_out(self, id_: str, fact: _Fact | None, result: Any) -> bool:
        """Return whether a span has ended, but its synthesis goes on while the resulting stream is read."""
        streams = isinstance(result, _STREAMING)
        if not (streams and isinstance(fact, Synthesis) and fact.id == id_) or marker_in(result.metadata):
            return False
        self._unread.put(id_, (fact, ref(result.response_gen)))
        return True

    def consumed(self, synthesis: str) -> None:
        """Forget a stream whose last model call has ended."""
        self._unread.pop(synthesis)

    def synthesis_for(self, template: FilledTemplate) -> str | None:
        """Return the synthesis whose stream is now being read, if the template is filled for one."""
        for synthesis, stream in self._unread:
            if _is_being_read(stream()) and _shows(template, synthesis):
                self._unread.pop(synthesis.id)
                return synthesis.id
        return None

    def call_for(self, id_: str, arguments: Mapping[str, Any], instance: Any) -> str | None:
        """Return the span of a `CustomLLM`'s async stream, if this call of its sync one reads it."""
        method = _method_of(id_)
        asked = arguments.get("messages" if method.endswith("chat") else "prompt")
        key = id(instance), id(asked)
        if _streams_later(method, instance):
            self._calls.put(key, (id_, instance, asked))  # kept alive, so that their ids stay theirs
        elif method in ("stream_chat", "stream_complete") and (call := self._calls.pop(key)) is not None:
            return call[0]
        return None


def _is_being_read(stream: Any) -> bool:
    """Return whether somebody waits for the next item of a generator, just now."""
    return bool(getattr(stream, "gi_running", False) or getattr(stream, "ag_running", False))


def _streams_later(method: str, instance: Any) -> bool:
    if method not in ("astream_chat", "astream_complete") or not isinstance(instance, CustomLLM):
        return False
    return inspect.getattr_static(type(instance), method) is vars(CustomLLM)[method]


def _shows(template: FilledTemplate, synthesis: Synthesis) -> bool:
    """Return whether a template is filled with the question of a synthesis and some of its documents."""
    given = {name: value for name, value in template.variables.items() if isinstance(value, str)}
    if synthesis.question not in given.values():
        return False
    shown = [value.strip() for name, value in given.items() if name in CONTEXT_KEYS and value.strip()]
    texts, joined = [document.text for document in synthesis.documents], "\0".join(shown)
    if any(value in text for text in texts for value in shown):
        return True
    positions = find_positions(joined, texts)
    return any(occurs_at(joined, text, positions, whole_words=False) for text in texts)


def as_documents(nodes: Sequence[NodeWithScore]) -> tuple[Retrieved, ...]:
    """Convert nodes to documents: with metadata, as synthesizers show them, and bare, as programs do."""
    found = []
    for scored in nodes:
        source = scored.node.source_node.node_id if scored.node.source_node else ""
        for mode in (MetadataMode.LLM, MetadataMode.NONE):
            text = scored.node.get_content(metadata_mode=mode).strip()
            if text:
                found.append(Retrieved(scored.node.node_id, text, source=source))
    return tuple(found)


def _method_of(id_: str) -> str:
    """Return the method of a span: `"OpenAI.chat-<uuid>"` -> `"chat"`."""
    return id_[:-_UUID].rpartition(".")[2]


def _fact_of(id_: str, arguments: Mapping[str, Any], instance: Any) -> _Fact | None:
    """Return the fact of a span that begins, if it has one."""
    method = _method_of(id_)
    if isinstance(instance, BaseLLM) and method in ENDPOINTS:
        return None if isinstance(instance, DelegatingLLM) else _Kind.ENDPOINT
    if method in _TEMPLATES and isinstance(prompt := arguments.get("prompt"), BasePromptTemplate):
        variables = {**prompt.kwargs, **arguments.get("prompt_args", {})}
        return FilledTemplate(prompt, variables, structured="structured" in method)
    if method in _SYNTHESIZE:
        question, nodes = _text_of(arguments.get("query")), arguments.get("nodes") or ()
        return Synthesis(id_, question, as_documents(nodes)) if question else None
    if method in _POSTPROCESS:
        return _Kind.STEP
    return _asked_of(arguments) if method in _ASK else None


def _is_evaluating() -> bool:
    """Return whether an evaluator has just opened a span: a model's response in it is a verdict.

    Evaluators open no span of their own, so the callers are searched, up to the span around this one.
    """
    if (known := sys.modules.get(_EVALUATORS)) is None:
        return False
    frame: FrameType | None = sys._getframe(1)
    ours, opened, left = dispatcher.__file__, False, False
    while frame is not None:
        code = frame.f_code
        if code.co_filename != ours:
            left = opened
        elif left:
            return False  # the span around it was checked when it began
        else:
            opened = True
        if code.co_name in _EVALUATE and isinstance(frame.f_locals.get("self"), known.BaseEvaluator):
            return True
        frame = frame.f_back
    return False


def _asked_of(arguments: Mapping[str, Any]) -> str | None:
    """Return the input of an engine, from the arguments of its method."""
    return next((text for name in _ASKED if (text := _text_of(arguments.get(name)))), None)


def _text_of(query: Any) -> str | None:
    text = query.query_str if isinstance(query, QueryBundle) else query
    return text if isinstance(text, str) and text.strip() else None


_UNKNOWN = _Span()
span_watcher = SpanWatcher()  # of the process
