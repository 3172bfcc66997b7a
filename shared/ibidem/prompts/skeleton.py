"""What is left of a prompt when the question and the documents are taken out.

The skeleton, the question and the set of documents together determine the prompt: whoever shares all three
asks the same thing of the same sources. Texts are kept as lists of literals and marks, so that no text can
pretend to be a mark. Documents that follow each other become one mark: neither their number nor their order
is part of the question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ibidem.prompts.prompt import Prompt

# Letters and digits of scripts that put blanks between words; others (Thai, CJK, kana) have no such borders.
_IN_WORD = re.compile(r"[^\W\u0e00-\u0eff\u2e80-\U0010ffff]")
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
        if _NOT_LAYOUT.search(pattern) or (self.digests[1:] and pattern != self.between):
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


class Skeleton:
    """A prompt from which a question and documents are cut, one after the other."""

    def __init__(self, prompt: Prompt) -> None:
        self._frame = prompt.frame
        self._roles = [segment.role for segment in prompt.segments]
        self._texts: list[list[_Part]] = [[segment.text] for segment in prompt.segments]
        if (cut := prompt.cut) is not None:
            text = prompt.segments[cut.segment].text
            self._texts[cut.segment] = [text[: cut.start], _Examples(cut.said), text[cut.end :]]

    def cut_question(self, question: str) -> bool:
        """Cut the last place where `question` stands as words of its own; False if there is none.

        What the user says is searched first, then the system prompt. Answers and tool results only quote.
        """
        for role in ("human", "system"):
            for index in reversed(range(len(self._texts))):
                if self._roles[index] == role and _cut_last(self._texts[index], question):
                    return True
        return False

    def cut_document(
        self, text: str, digest: str, *, as_words: bool, stranger: bool = False, pinned: bool = False
    ) -> bool:
        """Cut every place where the document stands, `as_words` only at word borders; False if there is none.

        Earlier answers of the model are not searched: they may quote a document without being one. In the
        system prompt a `stranger`, which some other run retrieved, is pinned: it may be there by coincidence.
        """
        found = False
        for index, role in enumerate(self._roles):
            if role != "ai":
                mark = _Mark(digest, pinned=pinned or (stranger and role == "system"))
                parts = self._texts[index]
                cut = [piece for part in parts for piece in _cut_all(part, text, mark, as_words)]
                self._texts[index] = cut
                found = found or len(cut) > len(parts)
        return found

    def canonical(self) -> list[Any]:
        """The skeleton as JSON values.

        If documents stand in several places or repeatedly, each place names its own: swapping two documents
        between a contract of Alice and a contract of Bob is another prompt of the same documents. So it is if
        they are numbered, in their order: the answer may cite "[2]".
        """
        texts = [_without_blanks_at_documents(_join_documents(parts)) for parts in self._texts]
        places = [part for text in texts for part in text if isinstance(part, _Place)]
        marks = [digest for place in places for digest in place.digests]
        numbered = any(place.first is not None for place in places)
        pinned = any(place.pinned for place in places)
        named = numbered or pinned or len(places) > 1 or len(marks) > len(set(marks))
        return [self._frame, [[_as_json(part, named) for part in text] for text in texts]]


def occurs(text: str, passage: str, *, as_words: bool) -> bool:
    """Whether `passage` stands in `text`, with `as_words` at word borders."""
    return next(_places(text, passage, as_words), None) is not None


def _places(text: str, passage: str, as_words: bool) -> Iterator[int]:
    start = text.find(passage) if passage else -1
    while start >= 0:
        end = start + len(passage)
        bordered = not as_words or not (_inside_word(text, start) or _inside_word(text, end))
        if bordered:
            yield start
        start = text.find(passage, end if bordered else start + 1)


def _inside_word(text: str, at: int) -> bool:
    """Whether the characters on both sides of position `at` belong to one word."""
    return 0 < at < len(text) and all(map(_IN_WORD.match, text[at - 1 : at + 1]))


def _cut_last(parts: list[_Part], question: str) -> bool:
    for index in reversed(range(len(parts))):
        part = parts[index]
        if isinstance(part, str) and (places := list(_places(part, question, as_words=True))):
            start = places[-1]
            parts[index : index + 1] = [part[:start], _QUESTION, part[start + len(question) :]]
            return True
    return False


def _cut_all(part: _Part, text: str, mark: _Mark, as_words: bool) -> Iterator[_Part]:
    if not isinstance(part, str):
        yield part
        return
    end = 0
    for start in _places(part, text, as_words):
        yield part[end:start]
        yield mark
        end = start + len(text)
    yield part[end:]


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
