"""Split a prompt into question, documents and the rest, which is compared exactly."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, NamedTuple

from ibidem.prompts.documents import DocumentMatch, Positions, find_positions, free_positions
from ibidem.prompts.few_shot import FewShotBlock, without_examples
from ibidem.prompts.prompt import Prompt
from ibidem.types import Document

_MAX_QUESTIONS = 32  # texts tried as the question; later ones have no better evidence


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt in three parts that together determine it.

    `documents` are those that occur in the prompt, `masked` is the rest as JSON text. It is None if no
    question was found: then `question` is the whole prompt, and only the very same prompt matches.
    """

    question: str
    documents: tuple[Document, ...]
    masked: str | None


def parse_prompt(
    prompt: Prompt,
    documents: Sequence[DocumentMatch],
    questions: Iterable[str],
    few_shot: FewShotBlock | None = None,
) -> ParsedPrompt:
    """Take the first of `questions` that occurs in the prompt as its question; examples are left out."""
    compared = prompt if few_shot is None else without_examples(prompt, few_shot)
    positions = find_positions(text_of(compared), (match.text for match in documents))
    for question in islice(questions, _MAX_QUESTIONS):
        masked = MaskedPrompt(compared, positions)
        if (found := _mask(masked, documents, question)) is not None:
            return ParsedPrompt(question, _as_documents(found), json.dumps(masked.to_json()))
    return parse_exact(prompt, documents)


def parse_exact(prompt: Prompt, documents: Sequence[DocumentMatch]) -> ParsedPrompt:
    """Take the whole prompt as the question, with the documents of its own run for their lineage alone.

    Documents of other runs do not count: what others happen to retrieve must not change what a prompt is.
    """
    own = [match for match in documents if not match.from_other_run]
    positions = find_positions(text_of(prompt), (match.text for match in own))
    found = _mask(MaskedPrompt(prompt, positions), own, None) or []
    whole = json.dumps([prompt.frame, [segment.text for segment in prompt.segments]])
    return ParsedPrompt(whole, _as_documents(found), None)


def _as_documents(matches: Iterable[DocumentMatch]) -> tuple[Document, ...]:
    named = ((one.id, match.text, one.source) for match in matches for one in match.documents)
    return tuple(Document(id_, text, source=source) for id_, text, source in dict.fromkeys(named))


def _mask(
    masked: MaskedPrompt, documents: Sequence[DocumentMatch], question: str | None
) -> list[DocumentMatch] | None:
    """Mask question and documents; return the documents that occurred, None if the question did not.

    Longest first: a text inside a longer one is not a document of its own, and a question that a document
    quotes is not the question.
    """
    ordered = sorted(documents, key=lambda match: (-len(match.text), match.text))
    longer = [match for match in ordered if question is None or len(match.text) > len(question)]
    found = [match for match in longer if masked.mask_document(match)]
    if question is not None and not masked.mask_question(question):
        return None
    return found + [match for match in ordered[len(longer) :] if masked.mask_document(match)]


_BETWEEN = "\0"  # two segments


def text_of(prompt: Prompt) -> str:
    """Join all texts of a prompt, so that `MaskedPrompt` searches for each passage only once."""
    return _BETWEEN.join(segment.text for segment in prompt.segments)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What stands in the place of a document, by digest; of the question if there is none.

    `in_template` if this very document belongs to the prompt.
    """

    digest: str | None
    in_template: bool = False


@dataclass(frozen=True, slots=True)
class _ExamplesPlaceholder:
    """What stands in the place of selected examples."""

    label: str


_QUESTION = Placeholder(None)
_Part = str | Placeholder | _ExamplesPlaceholder


class _MaskedRange(NamedTuple):
    """A range that is not free any more, and what stands in its place: nothing between two segments."""

    start: int
    end: int
    part: Placeholder | _ExamplesPlaceholder | None


class MaskedPrompt:
    """A prompt in which a question and documents are masked, one after the other.

    Args:
        prompt: The prompt.
        positions: Where passages occur in `text_of(prompt)`, as far as that is known.
    """

    def __init__(self, prompt: Prompt, positions: Mapping[str, Positions] | None = None) -> None:
        self._frame, self._text = prompt.frame, text_of(prompt)
        self._positions = dict(positions or {})
        self._roles = [segment.role for segment in prompt.segments]
        ends = accumulate(len(segment.text) + len(_BETWEEN) for segment in prompt.segments)
        self._begins = [0, *ends][:-1]
        self._masked = [_MaskedRange(begin - len(_BETWEEN), begin, None) for begin in self._begins[1:]]
        self._starts = [masked.start for masked in self._masked]
        if (cut := prompt.cut) is not None:
            begin = self._begins[cut.segment]
            self._mask(begin + cut.start, begin + cut.end, _ExamplesPlaceholder(cut.label))

    def mask_question(self, question: str) -> bool:
        """Mask the last occurrence of `question` at word borders; return False if there is none.

        The user's messages are searched first, then the system prompt. Answers and tool results only quote.
        """
        starts = self._free_positions(question, whole_words=True)
        last = {self._role_at(start): start for start in starts}
        for role in ("human", "system"):
            if role in last:
                self._mask(last[role], last[role] + len(question), _QUESTION)
                return True
        return False

    def mask_document(self, match: DocumentMatch) -> bool:
        """Mask every occurrence of the document; return False if there is none.

        Earlier answers of the model are not searched: they may quote a document without being one. In the
        system prompt a document of another run belongs to the template: it may be there by coincidence.
        """
        starts = self._free_positions(match.text, whole_words=match.whole_words)
        starts = [start for start in starts if self._role_at(start) != "ai"]
        for start in starts:
            by_coincidence = match.from_other_run and self._role_at(start) == "system"
            placeholder = Placeholder(match.digest, in_template=match.in_template or by_coincidence)
            self._mask(start, start + len(match.text), placeholder)
        return bool(starts)

    def _free_positions(self, passage: str, *, whole_words: bool) -> list[int]:
        """Find the passage in what is not masked yet: no two positions overlap, from left to right."""
        if passage not in self._positions:
            self._positions |= find_positions(self._text, (passage,))
        starts = self._positions.get(passage, ())
        return list(
            free_positions(self._text, passage, starts, whole_words=whole_words, free=self._free_around)
        )

    def _free_around(self, start: int) -> tuple[int, int]:
        """Return the bounds of the free range around a position; if it is masked, the range begins behind."""
        at = bisect_right(self._starts, start)
        until = self._starts[at] if at < len(self._starts) else len(self._text)
        return self._masked[at - 1].end if at else 0, until

    def _role_at(self, start: int) -> str:
        return self._roles[bisect_right(self._begins, start) - 1]

    def _mask(self, start: int, end: int, part: Placeholder | _ExamplesPlaceholder) -> None:
        at = bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._masked.insert(at, _MaskedRange(start, end, part))

    def _texts(self) -> Iterator[list[_Part]]:
        """Yield the parts of each segment: a literal on both sides of each placeholder."""
        parts, end = list[_Part](), 0
        last = [_MaskedRange(len(self._text), len(self._text), None)] if self._roles else []
        for masked in (*self._masked, *last):
            parts.append(self._text[end : masked.start])
            end = masked.end
            if masked.part is None:
                yield parts
                parts = []
            else:
                parts.append(masked.part)

    def to_json(self) -> list[Any]:
        """Return the masked prompt as JSON values.

        If documents stand in several places or repeatedly, each place names its own: swapping two documents
        between a contract of Alice and a contract of Bob is another prompt of the same documents. Numbered
        documents are named too, in their order: the answer may cite "[2]".
        """
        texts = [_without_blanks_at_documents(_join_documents(parts)) for parts in self._texts()]
        blocks = [part for text in texts for part in text if isinstance(part, _DocumentBlock)]
        digests = [digest for block in blocks for digest in block.digests]
        numbered = any(block.first is not None for block in blocks)
        in_template = any(block.in_template for block in blocks)
        named = numbered or in_template or len(blocks) > 1 or len(digests) > len(set(digests))
        return [self._frame, [[_as_json(part, named) for part in text] for text in texts]]


_TOKEN = re.compile(r"[^\W\d_]+|\d+")
_LONGEST_NUMBER = 6
_NOT_LAYOUT = re.compile(r"[^\w\s\-=_*#\[\](){}.:;,|/<>\"'•·–—]")
_LABELS = frozenset(
    (
        "chunk chunks citation context contexts doc docs document documents excerpt index item nr passage "
        "passages result results snippet source sources"
    ).split()
)


@dataclass(slots=True)
class _DocumentBlock:
    """Neighbouring documents, and their numbering: the number of the first, or None."""

    digests: list[str] = field(default_factory=list)
    first: int | None = None
    separator: str | None = None
    in_template: bool = False

    def continues_after(self, between: str) -> bool:
        """Return whether `between` only separates one more document: blanks, "---", "[2]", "Source 3:".

        Numbers must count the documents. Others name them ("[17]"), and a name is part of the prompt; so is a
        sign that marks one ("✗"), and a separator that differs from the others.
        """
        pattern = re.sub(r"\d+", "0", between.strip())
        if _NOT_LAYOUT.search(pattern) or (len(self.digests) > 1 and pattern != self.separator):
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
        self.first, self.separator = first, pattern
        return True


def _join_documents(parts: Sequence[_Part]) -> list[_Part | _DocumentBlock]:
    """Join neighbouring documents to one block, and leave out what separates them."""
    joined: list[_Part | _DocumentBlock] = []
    block = _DocumentBlock()
    for part in parts:
        if isinstance(part, str):
            joined.append(part)
        elif isinstance(part, _ExamplesPlaceholder) or part.digest is None:
            block = _DocumentBlock()
            joined.append(part)
        # There is a literal on both sides of a placeholder, so always one before it.
        elif block.digests and block.continues_after(str(joined[-1])):
            joined.pop()
            block.digests.append(part.digest)
            block.in_template = block.in_template or part.in_template
        else:
            block = _DocumentBlock([part.digest], in_template=part.in_template)
            joined.append(block)
    return joined


def _without_blanks_at_documents(parts: list[_Part | _DocumentBlock]) -> list[_Part | _DocumentBlock]:
    """Strip blanks beside documents: they belong to the first or last document, which may be another one."""
    trimmed = list(parts)
    for index, part in enumerate(parts):
        if isinstance(part, str):
            if index + 1 < len(parts) and isinstance(parts[index + 1], _DocumentBlock):
                part = part.rstrip()
            if index and isinstance(parts[index - 1], _DocumentBlock):
                part = part.lstrip()
            trimmed[index] = part
    return trimmed


def _as_json(part: _Part | _DocumentBlock, named: bool) -> Any:
    if isinstance(part, str):
        return part
    if isinstance(part, _ExamplesPlaceholder):
        return {"examples": part.label}
    if isinstance(part, Placeholder):
        return {"question": True}
    if not named:
        return {"documents": []}
    if part.first is None:
        return {"documents": sorted(part.digests)}
    return {"documents": part.digests, "first": part.first}
