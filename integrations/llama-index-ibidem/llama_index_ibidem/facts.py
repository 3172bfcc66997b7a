"""Read the facts about a model call that a span of LlamaIndex holds."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import FrameType
from typing import Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation import dispatcher

from ibidem.prompts.documents import Retrieved, find_positions
from ibidem.types import Document, digest, renamed
from llama_index_ibidem.delegation import DelegatingLLM

_BETWEEN = "\0"  # two texts that are searched at once
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
SEARCH = frozenset(("retrieve", "aretrieve"))
POSTPROCESS = frozenset("postprocess_nodes apostprocess_nodes _postprocess_nodes _apostprocess_nodes".split())
_ASK = frozenset("query aquery chat achat stream_chat astream_chat run".split())
_EVALUATE = frozenset("evaluate aevaluate evaluate_response aevaluate_response".split())
_EVALUATORS = "llama_index.core.evaluation.base"
_ASKED = ("str_or_query_bundle", "query_bundle", "message", "user_msg")


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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A call of a model other than a `CachedLLM`."""


@dataclass(frozen=True, slots=True)
class Step:
    """Nodes are being judged or ordered: the response of a model is not an answer."""


Fact = FilledTemplate | Synthesis | Endpoint | Step | str  # a text is the input of an engine


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


def documents_shown(texts: Sequence[str], nodes: Sequence[Retrieved]) -> tuple[Document, ...]:
    """Convert the texts of a synthesizer to documents, with the ids of the nodes that each text shows.

    A synthesizer may join several nodes; a text in which none is found may show any of them.
    """
    found = []
    given, of_text = [text.strip() for text in texts], dict[str, list[Retrieved]]()
    for node in nodes:
        of_text.setdefault(node.text, []).append(node)
    mixed = nodes_in([text for text in given if text not in of_text], nodes)
    for text in given:
        behind = of_text.get(text) or next(mixed) or [*nodes] or [Retrieved(digest(text), text)]
        shown = Document(behind[0].id, text, source=behind[0].source)
        named = dict.fromkeys((node.id, node.source) for node in behind)
        found += [renamed(shown, id_, source) for id_, source in named]
    return tuple(found)


def nodes_in(texts: Sequence[str], nodes: Sequence[Retrieved]) -> Iterator[list[Retrieved]]:
    """Yield the nodes that occur in each of the texts."""
    whole = _BETWEEN.join(texts)
    begins = [0, *accumulate(len(text) + len(_BETWEEN) for text in texts)]
    places = find_positions(whole, (node.text for node in nodes))
    shown: list[list[Retrieved]] = [[] for _ in texts]
    for node in nodes:
        size, numbers = len(node.text), set[int]()
        for start in places.get(node.text, ()):
            number = bisect_right(begins, start) - 1
            fits = number not in numbers and start + size < begins[number + 1]
            if fits and whole.startswith(node.text, start):
                numbers.add(number)
                shown[number].append(node)
    return iter(shown)


def method_of(id_: str) -> str:
    """Return the method of a span: `"OpenAI.chat-<uuid>"` -> `"chat"`."""
    return id_[:-_UUID].rpartition(".")[2]


def fact_of(id_: str, arguments: Mapping[str, Any], instance: Any) -> Fact | None:
    """Return the fact of a span that begins, if it has one."""
    method = method_of(id_)
    if isinstance(instance, BaseLLM) and method in _ENDPOINTS:
        return None if isinstance(instance, DelegatingLLM) else Endpoint()
    if method in _TEMPLATES and isinstance(prompt := arguments.get("prompt"), BasePromptTemplate):
        variables = {**prompt.kwargs, **arguments.get("prompt_args", {})}
        return FilledTemplate(prompt, variables, structured="structured" in method)
    if method in _SYNTHESIZE:
        question, nodes = _text_of(arguments.get("query")), arguments.get("nodes") or ()
        return Synthesis(id_, question, as_documents(nodes)) if question else None
    if method in POSTPROCESS:
        return Step()
    return asked_of(arguments) if method in _ASK else None


def is_evaluating() -> bool:
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


def asked_of(arguments: Mapping[str, Any]) -> str | None:
    """Return the input of an engine, from the arguments of its method."""
    return next((text for name in _ASKED if (text := _text_of(arguments.get(name)))), None)


def _text_of(query: Any) -> str | None:
    text = query.query_str if isinstance(query, QueryBundle) else query
    return text if isinstance(text, str) and text.strip() else None
