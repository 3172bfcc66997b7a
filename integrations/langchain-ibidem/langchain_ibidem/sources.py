"""Which documents may stand in a prompt: those of its own run, those given to its template, recent ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage

from ibidem.request import digest
from langchain_ibidem.memory import Memory, Render, Retrieved, retrieved
from langchain_ibidem.prompt import Prompt
from langchain_ibidem.skeleton import occurs

# A shorter text is too common to be recognised as a document by its letters alone.
_TELLING_LENGTH = 8
_LEAVES = 4096
_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that occurs in a prompt, `as_words` if only its occurrences at word borders count."""

    id: str
    text: str
    queries: tuple[str, ...]
    as_words: bool

    @property
    def digest(self) -> str:
        """Identifies the content."""
        return digest(self.text)


def candidates(memory: Memory, prompt: Prompt, render: Render | None) -> list[Candidate]:
    """The documents whose text occurs in the prompt.

    Documents of other runs only count if the prompt has none of its own: they are how prompts built by hand
    and agents are understood, and elsewhere could only cut what happens to look like them.
    """
    text = "\0".join(segment.text for segment in prompt.segments if segment.role != "ai")
    if render is not None:
        own = {document.text: document for document in _given_to(render)}
        own |= {document.text: document for document in memory.documents_of(render.run)}
        found = _occurring(text, own, strangers=False)
        if found:
            return found
    return _occurring(text, {d.text: d for d in memory.recent_documents()}, strangers=True)


def texts_of(value: Any) -> Iterator[str]:
    """All texts inside template variables: strings, and the contents of messages."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, str))


def _given_to(render: Render) -> Iterator[Retrieved]:
    return (retrieved(leaf) for leaf in _leaves(render.variables) if isinstance(leaf, Document))


def _occurring(text: str, documents: Mapping[str, Retrieved], *, strangers: bool) -> list[Candidate]:
    found = []
    for document in documents.values():
        short = len(document.text) < _TELLING_LENGTH
        if (short and strangers) or document.text not in text:
            continue
        as_words = short or strangers
        if occurs(text, document.text, as_words=as_words):
            found.append(Candidate(document.id, document.text, document.queries, as_words))
    return found


def _leaves(value: Any) -> Iterator[str | Document]:
    return islice(_walk(value, _DEPTH), _LEAVES)


def _walk(value: Any, depth: int) -> Iterator[str | Document]:
    if isinstance(value, (str, Document)):
        yield value
    elif isinstance(value, BaseMessage):
        yield from _walk(value.content, depth)
    elif depth and isinstance(value, Mapping):
        for inner in value.values():
            yield from _walk(inner, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner, depth - 1)
