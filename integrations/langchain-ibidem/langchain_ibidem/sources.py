"""Which documents may stand in a prompt: those of its own run, those given to its template, recent ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ibidem.request import digest
from langchain_ibidem.memory import Memory, Render, Retrieved
from langchain_ibidem.prompt import Prompt
from langchain_ibidem.skeleton import occurs

# A shorter text is too common to be recognised as a document by its letters alone.
_TELLING_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that occurs in a prompt, `as_words` if only its occurrences at word borders count.

    A `stranger` was retrieved by another run than the one that made the prompt.
    """

    id: str
    text: str
    queries: tuple[str, ...]
    as_words: bool
    stranger: bool = False

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
        own = {document.text: document for document in render.documents}
        own |= {document.text: document for document in memory.documents_of(render.run)}
        found = _occurring(text, own, strangers=False)
        if found:
            return found
    return _occurring(text, {d.text: d for d in memory.recent_documents()}, strangers=True)


def _occurring(text: str, documents: Mapping[str, Retrieved], *, strangers: bool) -> list[Candidate]:
    found = []
    for document in documents.values():
        short = len(document.text) < _TELLING_LENGTH
        if (short and strangers) or document.text not in text:
            continue
        as_words = short or strangers
        if occurs(text, document.text, as_words=as_words):
            found.append(Candidate(document.id, document.text, document.queries, as_words, strangers))
    return found
