"""What LlamaIndex's instrumentation tells of the call a model is just asked for.

Every public method of LlamaIndex opens a span, and spans know their parents in threads, tasks and streams. So
from the span of a model call upwards stand, in this order: the template and its variables, the question and
the nodes of the synthesizer, what the engine was asked. What retrievers returned lately is kept as well, for
prompts that a program or a workflow puts together by hand.

A clue is only believed if it stands in the prompt. So a wrong join can cost a hit and never cause one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from llama_index.core.schema import NodeWithScore
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import BaseSpan, active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.prompts.documents import Retrieved
from ibidem.prompts.few_shot import FewShotBlock
from llama_index_ibidem.deferred import Deferred
from llama_index_ibidem.facts import (
    POSTPROCESS,
    SEARCH,
    Endpoint,
    Fact,
    Filled,
    Step,
    Synthesis,
    as_documents,
    asked_of,
    fact_of,
    is_evaluating,
    method_of,
)
from llama_index_ibidem.stream_scopes import keep_scope_of

RECENT_DOCUMENTS = 256
_SPANS = 8192
_DEPTH = 64  # spans between a call and its root; deeper is a loop
_QUERIES_PER_DOCUMENT = 32
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What surrounds a model call; `run` is the id of its outermost span.

    It is a `step` if nodes are being judged or ordered: what a model says then is no answer. So it is if an
    evaluator asks, which judges answers (`judged`). `shown` are the examples that were last selected for its
    prompt.
    """

    filled: Filled | None = None
    synthesis: Synthesis | None = None
    asked: str | None = None
    run: str | None = None
    step: bool = False
    judged: bool = False
    shown: FewShotBlock | None = None


def surroundings(span: str | None = None) -> Surroundings:
    """What surrounds the span, by default that of the running call."""
    return _watcher.surroundings(span or active_span_id.get())


def answer_of(span: str) -> str:
    """The answer that a call in `span` is a part of: the synthesis above it, else the call itself."""
    synthesis = _watcher.surroundings(span).synthesis
    return synthesis.id if synthesis else span


def endpoints_above(span: str) -> list[str]:
    """The spans of the endpoints of one model that stand above each other, from above `span` upwards.

    A call that reaches the model through `CachedLLM` has none above; spans of the way there do not count.
    """
    return _watcher.endpoints_above(span)


def were_selected(shown: FewShotBlock) -> None:
    """These examples go into a prompt that is made within the running span."""
    _watcher.were_selected(active_span_id.get(), shown)


@contextmanager
def within(span: str | None) -> Iterator[None]:
    """What is done inside belongs to the span, even if that has ended."""
    token = active_span_id.set(span or active_span_id.get())
    try:
        yield
    finally:
        active_span_id.reset(token)


def was_read(answer: str) -> None:
    """The last model call for a synthesis has ended."""
    _watcher.was_read(answer)


def documents_of(run: str | None) -> list[Retrieved]:
    """What retrievers and postprocessors returned within the outermost span `run`."""
    return _watcher.documents_of(run)


def recent_documents() -> list[Retrieved]:
    """What retrievers and postprocessors returned lately, in any run."""
    return _watcher.recent_documents()


def watch() -> None:
    """Begin to watch, once per process."""
    root = get_dispatcher()
    if _watcher not in root.span_handlers:
        root.add_span_handler(_watcher)


class SpanWatcher(BaseSpanHandler[BaseSpan]):
    """Remembers, bounded and thread-safe, what open spans were given and what retrievers returned."""

    _parents: BoundedDict[str, str | None] = PrivateAttr(default_factory=lambda: BoundedDict(_SPANS))
    _facts: BoundedDict[str, Fact] = PrivateAttr(default_factory=lambda: BoundedDict(_SPANS))
    # Documents by id and text: several may have the same text, and one may have changed.
    _found: BoundedDict[str, dict[_Key, Retrieved]] = PrivateAttr(default_factory=lambda: BoundedDict(256))
    _recent: BoundedDict[_Key, Retrieved] = PrivateAttr(default_factory=lambda: BoundedDict(RECENT_DOCUMENTS))
    _shown: BoundedDict[str, FewShotBlock] = PrivateAttr(default_factory=lambda: BoundedDict(_SPANS))
    _judged: BoundedDict[str, bool] = PrivateAttr(default_factory=lambda: BoundedDict(_SPANS))
    _deferred: Deferred = PrivateAttr(default_factory=Deferred)
    _guard: ForkSafeLock = PrivateAttr(default_factory=ForkSafeLock)
    _faults: Faults = PrivateAttr(default_factory=Faults)

    @classmethod
    def class_name(cls) -> str:
        """How LlamaIndex names the handler."""
        return "IbidemSpanWatcher"

    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A span begins."""
        try:
            fact, judged = fact_of(id_, bound_args.arguments, instance), is_evaluating()
        except Exception as error:  # LlamaIndex would swallow it without a trace
            self._faults.note("understand a span of LlamaIndex", error)
            fact, judged = None, False
        with self._guard:
            if judged:
                self._judged.put(id_, True)
            parent_id = self._begun_by(id_, fact, parent_id, bound_args.arguments, instance)
            if isinstance(fact, Synthesis):
                # A class that overrides `synthesize` and calls `super()`: one synthesis, two spans.
                above = self._facts.get(parent_id or "")
                if isinstance(above, Synthesis) and above.question == fact.question:
                    fact = replace(fact, id=above.id)
            self._parents.put(id_, parent_id)
            if fact is not None:
                self._facts.put(id_, fact)

    def span_exit(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> None:
        """A span ended; its place in the tree stays known for calls that outlive it (streams, threads)."""
        try:
            method = method_of(id_)
            if method in SEARCH or method in POSTPROCESS:
                query = asked_of(bound_args.arguments) if method in SEARCH else None
                self._returned(id_, result, query)
        except Exception as error:
            self._faults.note("understand what a retriever returned", error)
        keep_scope_of(result)
        with self._guard:
            fact = self._facts.pop(id_)
            if isinstance(fact, Synthesis) and fact.id == id_:
                self._deferred.handed_out(fact, result)

    def span_drop(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        """A span ended with an error."""
        with self._guard:
            self._facts.pop(id_)

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used: spans are kept in `_facts`."""

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Not used."""

    def surroundings(self, span: str | None) -> Surroundings:
        """What stands above `span`, the nearest of each kind."""
        found = Surroundings()
        with self._guard:
            for id_ in self._upwards(span):
                fact = self._facts.get(id_) or self._deferred.synthesis(id_)
                if isinstance(fact, Filled) and found.filled is None:
                    found = replace(found, filled=fact)
                elif isinstance(fact, Synthesis) and found.synthesis is None:
                    found = replace(found, synthesis=fact)
                elif isinstance(fact, str) and found.asked is None:
                    found = replace(found, asked=fact)
                elif isinstance(fact, Step) and found.synthesis is None:
                    found = replace(found, step=True)
                if self._judged.get(id_):
                    found = replace(found, step=True, judged=True)
                found = replace(found, run=id_, shown=found.shown or self._shown.get(id_))
        return found

    def were_selected(self, span: str | None, shown: FewShotBlock) -> None:
        """These examples go into a prompt that is made within the span."""
        if span is not None:
            with self._guard:
                self._shown.put(span, shown)

    def documents_of(self, run: str | None) -> list[Retrieved]:
        """What was found within `run`."""
        with self._guard:
            return list((self._found.get(run) or {}).values()) if run else []

    def recent_documents(self) -> list[Retrieved]:
        """What was found lately."""
        with self._guard:
            return list(self._recent)

    def was_read(self, answer: str) -> None:
        """No other call will be made for the synthesis."""
        with self._guard:
            self._deferred.read(answer)

    def endpoints_above(self, span: str) -> list[str]:
        """The spans of endpoints of one model above `span`."""
        found = list[str]()
        with self._guard:
            for id_ in self._upwards(span):
                if not isinstance(self._facts.get(id_), Endpoint):
                    break
                found.append(id_)
        return found[1:]  # without itself

    def _begun_by(
        self, id_: str, fact: Fact | None, parent: str | None, arguments: Mapping[str, Any], instance: Any
    ) -> str | None:
        """The span that a beginning one belongs to: its parent, or the one whose stream is being read."""
        if isinstance(fact, Filled) and self._synthesis_above(parent) is None:
            return self._deferred.synthesis_for(fact) or parent
        if isinstance(fact, Endpoint):
            call = self._deferred.call_for(id_, method_of(id_), arguments, instance)
            if call is not None:
                self._facts.put(call, fact)  # its span has ended, but the call goes on
                return call
        return parent

    def _synthesis_above(self, span: str | None) -> Synthesis | None:
        facts = (self._facts.get(id_) or self._deferred.synthesis(id_) for id_ in self._upwards(span))
        return next((fact for fact in facts if isinstance(fact, Synthesis)), None)

    def _upwards(self, span: str | None) -> Iterator[str]:
        for _ in range(_DEPTH):
            if span is None:
                return
            yield span
            span = self._parents.get(span)

    def _returned(self, id_: str, result: Any, query: str | None) -> None:
        nodes = [node for node in result or () if isinstance(node, NodeWithScore)]
        with self._guard:
            *_, run = self._upwards(id_)
            mine = self._found.get(run) or {}
            for document in as_documents(nodes[:RECENT_DOCUMENTS]):
                key = (document.id, document.text)
                known = self._recent.get(key) or document
                if query and query not in known.queries:
                    known = replace(known, queries=(*known.queries, query)[-_QUERIES_PER_DOCUMENT:])
                self._recent.put(key, known)
                if len(mine) < RECENT_DOCUMENTS:
                    mine[key] = known
            self._found.put(run, mine)


_watcher = SpanWatcher()
