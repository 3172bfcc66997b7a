"""What LlamaIndex's instrumentation tells of the call a model is just asked for.

Every public method of LlamaIndex opens a span, and spans know their parents in threads, tasks and streams. So
from the span of a model call upwards stand, in this order: the template and its variables, the question and
the nodes of the synthesizer, what the engine was asked. What retrievers returned lately is kept as well, for
prompts that a program or a workflow puts together by hand.

A clue is only believed if it stands in the prompt. So a wrong join can cost a hit and never cause one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import BaseSpan, active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from ibidem.bounded import BoundedDict
from ibidem.faults import Faults
from ibidem.locks import ForkSafeLock
from ibidem.sources import Retrieved
from llama_index_ibidem.wrapping import WrappingLLM

RECENT_DOCUMENTS = 256
_SPANS = 8192
_DEPTH = 64  # spans between a call and its root; deeper is a loop
_QUERIES_PER_DOCUMENT = 32
_UUID = 37  # characters after the name in a span's id: "-" and the uuid

_TEMPLATES = frozenset(
    (
        "predict apredict stream astream structured_predict astructured_predict "
        "stream_structured_predict astream_structured_predict"
    ).split()
)
_ENDPOINTS = frozenset(
    "chat achat stream_chat astream_chat complete acomplete stream_complete astream_complete".split()
)
_SYNTHESIZE = frozenset(("synthesize", "asynthesize"))
_SEARCH = frozenset(("retrieve", "aretrieve"))
_POSTPROCESS = frozenset(("postprocess_nodes", "apostprocess_nodes"))
_ASK = frozenset("query aquery chat achat stream_chat astream_chat run".split())
_ASKED = ("str_or_query_bundle", "query_bundle", "message", "user_msg")


@dataclass(frozen=True, slots=True)
class Filled:
    """A template that is being filled, its variables, and whether the answer must have a given form."""

    template: BasePromptTemplate
    variables: Mapping[str, Any]
    structured: bool


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A question that is being answered from nodes; `documents` are those nodes as a model sees them."""

    id: str
    question: str
    documents: tuple[Retrieved, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model that is being asked, other than a `CachedLLM`."""


Fact = Filled | Synthesis | Endpoint | str  # a text is what an engine was asked


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What surrounds a model call; `run` is the id of its outermost span."""

    filled: Filled | None = None
    synthesis: Synthesis | None = None
    asked: str | None = None
    run: str | None = None


def surroundings(span: str | None = None) -> Surroundings:
    """What surrounds the span, by default that of the running call."""
    return _watcher.surroundings(span or active_span_id.get())


def answer_of(span: str) -> str:
    """The answer that a call in `span` is a part of: the synthesis above it, else the call itself."""
    synthesis = _watcher.surroundings(span).synthesis
    return synthesis.id if synthesis else span


def is_nested(span: str) -> bool:
    """Whether a call in `span` is made by another of the same model: `achat` calls `chat` calls `complete`.

    A call that reaches the model through `CachedLLM` is not nested; spans of the way there do not count.
    """
    return _watcher.endpoints_above(span) > 1


def documents_of(run: str | None) -> list[Retrieved]:
    """What retrievers and postprocessors returned within the outermost span `run`."""
    return _watcher.documents_of(run)


def recent_documents() -> list[Retrieved]:
    """What retrievers and postprocessors returned lately, in any run."""
    return _watcher.recent_documents()


def as_documents(nodes: Sequence[NodeWithScore], queries: tuple[str, ...] = ()) -> tuple[Retrieved, ...]:
    """The nodes as models see them: with metadata, as synthesizers show them; and bare, as programs do."""
    found = []
    for scored in nodes:
        for mode in (MetadataMode.LLM, MetadataMode.NONE):
            text = scored.node.get_content(metadata_mode=mode).strip()
            if text:
                found.append(Retrieved(scored.node.node_id, text, queries))
    return tuple(found)


def watch() -> None:
    """Begin to watch, once per process."""
    root = get_dispatcher()
    if _watcher not in root.span_handlers:
        root.add_span_handler(_watcher)


class SpanWatcher(BaseSpanHandler[BaseSpan]):
    """Remembers, bounded and thread-safe, what open spans were given and what retrievers returned."""

    _parents: BoundedDict[str, str | None] = PrivateAttr(default_factory=lambda: BoundedDict(_SPANS))
    _facts: BoundedDict[str, Fact] = PrivateAttr(default_factory=lambda: BoundedDict(_SPANS))
    _found: BoundedDict[str, dict[str, Retrieved]] = PrivateAttr(default_factory=lambda: BoundedDict(256))
    _recent: BoundedDict[str, Retrieved] = PrivateAttr(default_factory=lambda: BoundedDict(RECENT_DOCUMENTS))
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
            fact = _fact_of(id_, bound_args.arguments, instance)
        except Exception as error:  # LlamaIndex would swallow it without a trace
            self._faults.note("understand a span of LlamaIndex", error)
            fact = None
        with self._guard:
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
            method = _method_of(id_)
            if method in _SEARCH or method in _POSTPROCESS:
                query = _asked_of(bound_args.arguments) if method in _SEARCH else None
                self._returned(id_, result, query)
        except Exception as error:
            self._faults.note("understand what a retriever returned", error)
        with self._guard:
            self._facts.pop(id_)

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
                fact = self._facts.get(id_)
                if isinstance(fact, Filled) and found.filled is None:
                    found = replace(found, filled=fact)
                elif isinstance(fact, Synthesis) and found.synthesis is None:
                    found = replace(found, synthesis=fact)
                elif isinstance(fact, str) and found.asked is None:
                    found = replace(found, asked=fact)
                found = replace(found, run=id_)
        return found

    def documents_of(self, run: str | None) -> list[Retrieved]:
        """What was found within `run`."""
        with self._guard:
            return list((self._found.get(run) or {}).values()) if run else []

    def recent_documents(self) -> list[Retrieved]:
        """What was found lately."""
        with self._guard:
            return list(self._recent)

    def endpoints_above(self, span: str) -> int:
        """How many endpoints of one model stand above each other, from `span` upwards."""
        count = 0
        with self._guard:
            for id_ in self._upwards(span):
                if not isinstance(self._facts.get(id_), Endpoint):
                    break
                count += 1
        return count

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
                known = self._recent.get(document.text) or document
                if query and query not in known.queries:
                    known = replace(known, queries=(*known.queries, query)[-_QUERIES_PER_DOCUMENT:])
                self._recent.put(document.text, known)
                if len(mine) < RECENT_DOCUMENTS:
                    mine[document.text] = known
            self._found.put(run, mine)


def _method_of(id_: str) -> str:
    """`"OpenAI.chat-<uuid>"` -> `"chat"`."""
    return id_[:-_UUID].rpartition(".")[2]


def _fact_of(id_: str, arguments: Mapping[str, Any], instance: Any) -> Fact | None:
    method = _method_of(id_)
    if isinstance(instance, BaseLLM) and method in _ENDPOINTS:
        return None if isinstance(instance, WrappingLLM) else Endpoint()
    if method in _TEMPLATES and isinstance(prompt := arguments.get("prompt"), BasePromptTemplate):
        variables = {**prompt.kwargs, **arguments.get("prompt_args", {})}
        return Filled(prompt, variables, structured="structured" in method)
    if method in _SYNTHESIZE:
        question, nodes = _text_of(arguments.get("query")), arguments.get("nodes") or ()
        return Synthesis(id_, question, as_documents(nodes)) if question else None
    return _asked_of(arguments) if method in _ASK else None


def _asked_of(arguments: Mapping[str, Any]) -> str | None:
    return next((text for name in _ASKED if (text := _text_of(arguments.get(name)))), None)


def _text_of(query: Any) -> str | None:
    text = query.query_str if isinstance(query, QueryBundle) else query
    return text if isinstance(text, str) and text.strip() else None


_watcher = SpanWatcher()
