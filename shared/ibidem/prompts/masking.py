"""A prompt taken apart into question, documents and the rest, which is compared exactly."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, NamedTuple

from ibidem.prompts.documents import Occurrence, Starts, free_places, places_of
from ibidem.prompts.few_shot import Shown, without_examples
from ibidem.prompts.key import Prompt
from ibidem.scope import Scope
from ibidem.types import Document, Request

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


_TOKEN = re.compile(r"[^\W\d_]+|\d+")
_LONGEST_NUMBER = 6
_NOT_LAYOUT = re.compile(r"[^\w\s\-=_*#\[\](){}.:;,|/<>\"'•·–—]")
_LABELS = frozenset(
    (
        "chunk chunks citation context contexts doc docs document documents excerpt index item nr passage "
        "passages result results snippet source sources"
    ).split()
)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a document was, by digest; without one, where the question was.

    `pinned` if this very document belongs to the prompt.
    """

    digest: str | None
    pinned: bool = False


@dataclass(slots=True)
class _Place:
    """Neighbouring documents, and how they are numbered: the number of the first, or None."""

    digests: list[str] = field(default_factory=list)
    first: int | None = None
    between: str | None = None
    pinned: bool = False

    def goes_on_after(self, between: str) -> bool:
        """Whether `between` only separates one more document from these: blanks, "---", "[2]", "Source 3:".

        Numbers must count the documents. Others name them ("[17]"), and a name is part of the prompt; so is a
        sign that marks one ("✗"), and a separator that differs from the others.
        """
        pattern = re.sub(r"\d+", "0", between.strip())
        if _NOT_LAYOUT.search(pattern) or (len(self.digests) > 1 and pattern != self.between):
            return False
        tokens = _TOKEN.findall(between)
        numbers = [token for token in tokens if token.isdecimal()]
        if len(numbers) > 1 or not all(t.isdecimal() or t.lower() in _LABELS for t in tokens):
            return False
        if any(len(number) > _LONGEST_NUMBER for number in numbers):
            return False
        count = len(self.digests)
        first = int(numbers[0]) - count if numbers else None
        if count > 1 and first != self.first:
            return False
        if first not in (None, 0, 1):
            return False
        self.first, self.between = first, pattern
        return True


@dataclass(frozen=True, slots=True)
class _Examples:
    """Where selected examples were, and what is said of them."""

    said: str


_QUESTION = _Mark(None)
_Part = str | _Mark | _Examples
_BETWEEN = "\0"  # two segments


class _Taken(NamedTuple):
    """A stretch that is not free any more, and what is in its place: nothing between two segments."""

    start: int
    end: int
    part: _Mark | _Examples | None


def text_of(prompt: Prompt) -> str:
    """All texts of a prompt as one, for `Skeleton`: each passage is looked for but once."""
    return _BETWEEN.join(segment.text for segment in prompt.segments)


class Skeleton:
    """A prompt from which a question and documents are cut, one after the other.

    Args:
        prompt: The prompt.
        places: Where passages stand in `text_of(prompt)`, as far as that is known.
    """

    def __init__(self, prompt: Prompt, places: Mapping[str, Starts] | None = None) -> None:
        self._frame, self._text = prompt.frame, text_of(prompt)
        self._places = dict(places or {})
        self._roles = [segment.role for segment in prompt.segments]
        ends = accumulate(len(segment.text) + len(_BETWEEN) for segment in prompt.segments)
        self._begins = [0, *ends][:-1]
        self._taken = [_Taken(begin - len(_BETWEEN), begin, None) for begin in self._begins[1:]]
        self._starts = [taken.start for taken in self._taken]
        if (cut := prompt.cut) is not None:
            begin = self._begins[cut.segment]
            self._take(begin + cut.start, begin + cut.end, _Examples(cut.said))

    def cut_question(self, question: str) -> bool:
        """Cut the last place where `question` stands as words of its own; False if there is none.

        What the user says is searched first, then the system prompt. Answers and tool results only quote.
        """
        last = {self._role_at(start): start for start in self._free_places(question, as_words=True)}
        for role in ("human", "system"):
            if role in last:
                self._take(last[role], last[role] + len(question), _QUESTION)
                return True
        return False

    def cut_document(
        self, text: str, digest: str, *, as_words: bool, stranger: bool = False, pinned: bool = False
    ) -> bool:
        """Cut every place where the document stands, `as_words` only at word borders; False if there is none.

        Earlier answers of the model are not searched: they may quote a document without being one. In the
        system prompt a `stranger`, which some other run retrieved, is pinned: it may be there by coincidence.
        """
        found = [at for at in self._free_places(text, as_words=as_words) if self._role_at(at) != "ai"]
        for start in found:
            is_pinned = pinned or (stranger and self._role_at(start) == "system")
            self._take(start, start + len(text), _Mark(digest, pinned=is_pinned))
        return bool(found)

    def _free_places(self, passage: str, *, as_words: bool) -> list[int]:
        """Where it stands in what is left, no two places overlapping, from left to right."""
        if passage not in self._places:
            self._places |= places_of(self._text, (passage,))
        starts = self._places.get(passage, ())
        return list(free_places(self._text, passage, starts, as_words=as_words, free=self._free_around))

    def _free_around(self, start: int) -> tuple[int, int]:
        """From where to where nothing is taken, around a place; it is taken if that begins behind it."""
        at = bisect_right(self._starts, start)
        until = self._starts[at] if at < len(self._starts) else len(self._text)
        return self._taken[at - 1].end if at else 0, until

    def _role_at(self, start: int) -> str:
        return self._roles[bisect_right(self._begins, start) - 1]

    def _take(self, start: int, end: int, part: _Mark | _Examples) -> None:
        at = bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._taken.insert(at, _Taken(start, end, part))

    def _texts(self) -> Iterator[list[_Part]]:
        """The parts of each segment: a literal on both sides of whatever was cut."""
        parts, end = list[_Part](), 0
        last = [_Taken(len(self._text), len(self._text), None)] if self._roles else []
        for taken in (*self._taken, *last):
            parts.append(self._text[end : taken.start])
            end = taken.end
            if taken.part is None:
                yield parts
                parts = []
            else:
                parts.append(taken.part)

    def canonical(self) -> list[Any]:
        """The skeleton as JSON values.

        If documents stand in several places or repeatedly, each place names its own: swapping two documents
        between a contract of Alice and a contract of Bob is another prompt of the same documents. So it is if
        they are numbered, in their order: the answer may cite "[2]".
        """
        texts = [_without_blanks_at_documents(_join_documents(parts)) for parts in self._texts()]
        places = [part for text in texts for part in text if isinstance(part, _Place)]
        marks = [digest for place in places for digest in place.digests]
        numbered = any(place.first is not None for place in places)
        pinned = any(place.pinned for place in places)
        named = numbered or pinned or len(places) > 1 or len(marks) > len(set(marks))
        return [self._frame, [[_as_json(part, named) for part in text] for text in texts]]


def _join_documents(parts: Sequence[_Part]) -> list[_Part | _Place]:
    """Parts with neighbouring documents made one place, and what stands between them left out."""
    joined: list[_Part | _Place] = []
    place = _Place()
    for part in parts:
        if isinstance(part, str):
            joined.append(part)
        elif isinstance(part, _Examples) or part.digest is None:
            place = _Place()
            joined.append(part)
        # A cut leaves a literal on both sides, so there is always one before a mark.
        elif place.digests and place.goes_on_after(str(joined[-1])):
            joined.pop()
            place.digests.append(part.digest)
            place.pinned = place.pinned or part.pinned
        else:
            place = _Place([part.digest], pinned=part.pinned)
            joined.append(place)
    return joined


def _without_blanks_at_documents(parts: list[_Part | _Place]) -> list[_Part | _Place]:
    """Blanks beside documents left out: they belong to the first or last document, which may be another."""
    trimmed = list(parts)
    for index, part in enumerate(parts):
        if isinstance(part, str):
            if index + 1 < len(parts) and isinstance(parts[index + 1], _Place):
                part = part.rstrip()
            if index and isinstance(parts[index - 1], _Place):
                part = part.lstrip()
            trimmed[index] = part
    return trimmed


def _as_json(part: _Part | _Place, named: bool) -> Any:
    if isinstance(part, str):
        return part
    if isinstance(part, _Examples):
        return {"examples": part.said}
    if isinstance(part, _Mark):
        return {"question": True}
    if not named:
        return {"documents": []}
    if part.first is None:
        return {"documents": sorted(part.digests)}
    return {"documents": part.digests, "first": part.first}
