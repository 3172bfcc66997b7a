"""Answered questions of a LlamaIndex program, for the example log of a cache.

A question is what a synthesizer was asked; else what a model was asked directly, if that was all the user
said or retrieved documents were in the prompt. Other calls (rewriting a question, choosing a tool) are steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.schema import NodeWithScore

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.example import Example
from ibidem.prompts.prompt import Prompt
from ibidem.scope import current, use_scope
from ibidem.types import Document, Scope
from llama_index_ibidem import calls, spans
from llama_index_ibidem.calls import Calls, ModelResponse
from llama_index_ibidem.codec import MARKER, text_of
from llama_index_ibidem.facts import as_documents
from llama_index_ibidem.prompt import of_messages, of_text
from llama_index_ibidem.reading import Told, is_for_programs
from llama_index_ibidem.replay import when_read
from llama_index_ibidem.requests import RequestBuilder
from llama_index_ibidem.steps import answers_user

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_OPEN = 1024
# ReAct: what a tool has told, and what the user gets of the last thing the model says.
_OBSERVED = "Observation:"
_CONCLUSION = "Answer:"
_NO_MARKER: Mapping[str, Any] = MappingProxyType({})


@dataclass(slots=True)
class _Question:
    """A question that waits for its answer; `running` are the ids of model calls that have not ended."""

    text: str
    documents: tuple[Document, ...] = ()
    started: float = field(default_factory=time.perf_counter)
    running: set[str] = field(default_factory=set)
    direct: bool = False
    streamed: bool = False
    scope: Scope = field(default_factory=current)
    spent: float | None = None

    def waits(self) -> None:
        """Its stream was handed out; unless a model is at work, it takes no time until somebody reads it."""
        self.spent = None if self.running else time.perf_counter() - self.started

    def goes_on(self, call: str) -> None:
        """A model was asked."""
        self.running.add(call)
        if self.spent is not None:
            self.started, self.spent = time.perf_counter() - self.spent, None


class Recorder:
    """Joins questions and answers. Thread-safe; the handlers that feed it catch what it raises.

    Events may come from LlamaIndex's callbacks or from its instrumentation; a synthesis and a direct call are
    known by the ids of their spans, a model call by any id that is the same when it begins and ends.
    """

    def __init__(self, cache: SemanticCache, requests: RequestBuilder, faults: Faults) -> None:
        self._cache, self._requests, self._faults = cache, requests, faults
        self._lock = ForkSafeLock()
        self._questions: BoundedDict[str, _Question] = BoundedDict(_OPEN)
        self._answer_of: BoundedDict[str, str] = BoundedDict(_OPEN)

    def synthesis_began(self, span: str | None) -> None:
        """A synthesizer was asked; `span` is within its span."""
        around = spans.surroundings(span)
        if around.synthesis is not None and not around.judged:
            with self._lock:
                self._questions.put(around.synthesis.id, _Question(around.synthesis.question))

    def synthesis_ended(self, span: str | None, response: object) -> None:
        """It has answered, or begun to, or failed."""
        synthesis = spans.surroundings(span).synthesis
        if synthesis is None:
            return
        with self._lock:
            question = self._questions.get(synthesis.id)
        if question is None:
            return
        question.documents = _documents(getattr(response, "source_nodes", ()))
        if isinstance(response, (StreamingResponse, AsyncStreamingResponse)):
            question.streamed = True
            question.waits()
            marker, id_ = _marker_of(response), synthesis.id
            when_read(response.response_gen, lambda text: self._read(id_, text, marker))
            return  # of another stream the last call tells the text when it ends; it may not even have begun
        self._answered(synthesis.id, _text(response), _marker_of(response))

    def _read(self, answer: str, text: str, marker: Mapping[str, Any]) -> None:
        """A stored text was read to its end, in the user's code: nothing is raised into it."""
        self._faults.attempt("log a repeated answer", partial(self._answered, answer, text, marker))

    def call_began(self, call: str, span: str | None, asked: Sequence[ChatMessage] | str) -> None:
        """A model was asked."""
        if span is None or calls.is_nested(span):
            return
        answer = spans.answer_of(span)
        with self._lock:
            question = self._questions.get(answer)
        if question is None and answer == span and (question := self._direct(span, asked)) is None:
            return
        with self._lock:
            self._answer_of.put(call, answer)
            if question is not None:
                question.goes_on(call)
                self._questions.put(answer, question)

    def call_ended(self, call: str, response: ModelResponse | None) -> None:
        """The model has answered in full, or failed (None)."""
        with self._lock:
            answer = self._answer_of.pop(call)
            question = self._questions.get(answer) if answer else None
            if question is None or answer is None:
                return
            question.running.discard(call)
        if response is None:
            self._answered(answer, None)
        elif question.direct:
            question.streamed = response.delta is not None
            text = None if is_for_programs(response) else _conclusion(text_of(response))
            self._answered(answer, text, calls.marker_of(response), response)
        elif question.streamed and not question.running:
            self._answered(answer, text_of(response))

    def _direct(self, span: str, asked: Sequence[ChatMessage] | str) -> _Question | None:
        prompt = of_text(asked, formatted=True) if isinstance(asked, str) else of_messages(asked)
        around = spans.surroundings(span)
        found = self._requests.parse(prompt, around)
        if found.masked is None:
            asked_first = _reasoned_about(prompt)
            if asked_first is None or around.step or not self._requests.is_question(asked_first):
                return None
            return _Question(asked_first, found.documents, direct=True)
        if not answers_user(found, prompt, around):
            return None
        return _Question(found.question, found.documents, direct=True)

    def _answered(
        self,
        answer: str,
        text: str | None,
        marker: Mapping[str, Any] = _NO_MARKER,
        last: ModelResponse | None = None,
    ) -> None:
        """The answer is complete; without a text, or if it was cut off, there is nothing to learn from it."""
        with self._lock:
            question = self._questions.pop(answer)
        behind = calls.behind(answer)
        if last is not None and behind.output_tokens is None:  # its end may not have been told to all yet
            behind = behind.and_ended(Told.of(last).of_whole(), {})
        if question is None or not text or not text.strip() or behind.cut:
            return
        if not behind.count or behind.entry_id is not None or "entry_id" in marker:
            return  # nobody was asked: "Empty Response" and the like, or an answer that is an example already
        if not question.scope.bypass:
            with use_scope(question.scope):  # not that of whoever reads a stream
                self._cache.examples.add(self._example(question, text, behind))

    def _example(self, question: _Question, text: str, behind: Calls) -> Example:
        return Example(
            question.text,
            text,
            namespace=question.scope.name(self._requests.namespace),
            tags=question.scope.tags,
            model=behind.model,
            documents=question.documents,
            input_tokens=behind.input_tokens,
            output_tokens=behind.output_tokens,
            seconds=time.perf_counter() - question.started,
            streamed=question.streamed,
        )


def _documents(nodes: Sequence[NodeWithScore]) -> tuple[Document, ...]:
    """One document a node, as the model saw it."""
    shown = {document.id: document for document in reversed(as_documents(nodes))}
    return tuple(Document(one.id, one.text, source=one.source) for one in reversed(shown.values()))


def _text(response: object) -> str | None:
    """The answer of a synthesis that is not a stream. A stream is never touched: its text is the user's."""
    if isinstance(response, PydanticResponse):
        return response.response.model_dump_json() if response.response is not None else None
    return response.response if isinstance(response, Response) else None


def _marker_of(response: object) -> Mapping[str, Any]:
    """What a response says of the entry that `CachedSynthesizer` took it from."""
    metadata: Any = getattr(response, "metadata", None) or {}
    marker = metadata.get(MARKER)
    return marker if isinstance(marker, dict) else _NO_MARKER


def _reasoned_about(prompt: Prompt) -> str | None:
    """What a ReAct agent was asked, if the prompt goes on from what a tool has told it."""
    if not prompt.last_human.startswith(_OBSERVED):
        return None
    said = [segment.text.strip() for segment in prompt.segments if segment.role == "human"]
    return next((text for text in reversed(said) if not text.startswith(_OBSERVED)), None)


def _conclusion(text: str) -> str | None:
    """What the user gets of an answer: of a ReAct agent's, not the thought before it."""
    if not text.lstrip().startswith("Thought:"):
        return text
    _, concludes, said = text.partition(_CONCLUSION)
    return said.strip() if concludes else None
