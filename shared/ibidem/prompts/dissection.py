"""A prompt taken apart into question, documents and the rest, which is compared exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from ibidem.prompts.matching import places_of
from ibidem.prompts.prompt import Prompt
from ibidem.prompts.shown import Shown, without_examples
from ibidem.prompts.skeleton import Skeleton, text_of
from ibidem.prompts.sources import Occurrence
from ibidem.request import Document, Request
from ibidem.scoping import Scope

_TRIED = 32  # texts that may be the question; those after them have no better evidence


@dataclass(frozen=True, slots=True)
class Dissection:
    """A prompt in three parts that together determine it.

    `skeleton` is what remains as JSON text; None if no question was found: then `question` is the whole
    prompt and only the very same prompt matches. `documents` are those that really stand in the prompt.
    """

    question: str
    documents: tuple[Document, ...]
    skeleton: str | None

    def request(
        self,
        *scope: str,
        namespace: str,
        temperature: float | None = None,
        example: bool = True,
        within: Scope | None = None,
    ) -> Request:
        """The request to compare, for a model that the texts of `scope` describe, asked `within` a scope.

        The scope may hold headers with secrets. The request hashes it and keeps nothing else: never log it.
        """
        return Request(
            self.question,
            scope=json.dumps([*scope, self.skeleton]),
            namespace=namespace,
            documents=self.documents,
            semantic=self.skeleton is not None,
            temperature=temperature,
            example=example,
            within=within,
        )


def dissect(
    prompt: Prompt,
    documents: Sequence[Occurrence],
    questions: Iterable[str],
    shown: Shown | None = None,
) -> Dissection:
    """Take the first of `questions` that stands in the prompt for its question; `shown` is left out."""
    compared = prompt if shown is None else without_examples(prompt, shown)
    places = places_of(text_of(compared), (one.text for one in documents))
    for question in islice(questions, _TRIED):
        skeleton = Skeleton(compared, places)
        if (found := _cut(skeleton, documents, question)) is not None:
            return Dissection(question, _as_documents(found), json.dumps(skeleton.canonical()))
    return exactly(prompt, documents)


def exactly(prompt: Prompt, documents: Sequence[Occurrence]) -> Dissection:
    """The prompt as a whole; the documents of its own run are named for their lineage alone.

    Not those of other runs: what others happen to retrieve must not change what this prompt is.
    """
    own = [one for one in documents if not one.stranger]
    places = places_of(text_of(prompt), (one.text for one in own))
    found = _cut(Skeleton(prompt, places), own, None) or []
    whole = json.dumps([prompt.frame, [segment.text for segment in prompt.segments]])
    return Dissection(whole, _as_documents(found), None)


def _as_documents(found: Iterable[Occurrence]) -> tuple[Document, ...]:
    named = ((document.id, one.text, document.source) for one in found for document in one.named)
    return tuple(Document(id_, text, source=source) for id_, text, source in dict.fromkeys(named))


def _cut(
    skeleton: Skeleton, documents: Sequence[Occurrence], question: str | None
) -> list[Occurrence] | None:
    """Cut question and documents; the documents that were there, or None if the question was not.

    Longest first: a text inside a longer one is not a document of its own, and a question that a document
    quotes is not the question.
    """
    ordered = sorted(documents, key=lambda d: (-len(d.text), d.text))
    longer = [d for d in ordered if question is None or len(d.text) > len(question)]
    found = _cut_documents(skeleton, longer)
    if question is not None and not skeleton.cut_question(question):
        return None
    return found + _cut_documents(skeleton, ordered[len(longer) :])


def _cut_documents(skeleton: Skeleton, documents: Sequence[Occurrence]) -> list[Occurrence]:
    return [d for d in documents if _cut_document(skeleton, d)]


def _cut_document(skeleton: Skeleton, document: Occurrence) -> bool:
    return skeleton.cut_document(
        document.text,
        document.digest,
        as_words=document.as_words,
        stranger=document.stranger,
        pinned=document.pinned,
    )
