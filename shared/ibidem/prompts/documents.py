"""Represent a prompt, and match documents in it: those that its own run retrieved, else those of any run."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem.types import digest

RECENT_DOCUMENTS = 256
_DOCUMENTS_PER_RUN = 256
_QUERIES_PER_DOCUMENT = 32


@dataclass(frozen=True, slots=True)
class Segment:
    """A text of the prompt and the role that says it: human, system, ai, tool or function."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A range of a segment's text that is not compared, and the label that is compared instead."""

    segment: int
    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a prompt: who says it, what, and its frame: canonical JSON of all that is not text.

    `plain` if the model sees nothing of it but its role and its texts.
    """

    role: str
    frame: str
    segments: tuple[Segment, ...]
    plain: bool

    @property
    def text(self) -> str:
        """Return its texts, as one that no single text reads like."""
        return "\n\0\n".join(segment.text for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt split into its texts, in order, and its frame: canonical JSON of everything that is not text.

    `known` is False for a prompt that is neither plain text nor messages of a known kind. `cut` is a range
    of its text that is left out of the comparison. `messages` are those it was made of; none if it is text.
    """

    frame: str
    segments: tuple[Segment, ...]
    known: bool = True
    cut: Cut | None = None
    messages: tuple[Message, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash the prompt: equal for two prompts that look the same to the model."""
        return digest(self.frame, *(segment.text for segment in self.segments))

    @property
    def last_human(self) -> str:
        """Return the last text of the user; empty if there is none."""
        return next((s.text for s in reversed(self.segments) if s.role == "human"), "")


def plain(text: str) -> Prompt:
    """Build the prompt of a completion model."""
    return Prompt("text", (Segment("human", text),))


def of_messages(messages: Sequence[Message], kind: str = "") -> Prompt:
    """Build the prompt of a chat model; `kind` names the interface, where the messages do not."""
    frames = f"[{', '.join(message.frame for message in messages)}]"
    segments = tuple(segment for message in messages for segment in message.segments)
    return Prompt(f'["{kind}", {frames}]' if kind else frames, segments, messages=tuple(messages))


class Ordinals:
    """Numbers random ids of tool calls in order of appearance, the only thing a model can use of them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, call_id: object) -> int:
        """Return the number of this id, a new one if it was not seen before."""
        return self._numbers.setdefault(str(call_id), len(self._numbers))


# Template variables that hold documents.
CONTEXT_KEYS = frozenset(
    "context context_str context_msg documents document docs sources passages chunks excerpts".split()
)
# A shorter text is too common to be recognised as a document by its letters alone.
_DISTINCTIVE_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A document that a retriever returned, the latest queries that found it, and the id of its source."""

    id: str
    text: str
    queries: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class DocumentMatch:
    """A text of retrieved documents that occurs in a prompt.

    `documents` are those with this text, `queries` what they were searched with. With `whole_words` only
    occurrences at word borders count. `from_other_run`: another run than that of the prompt retrieved it.
    `in_template`: it is the whole value of a template variable that is not one for documents, so it is part
    of the prompt like any other text.
    """

    documents: tuple[Retrieved, ...]
    text: str
    queries: tuple[str, ...]
    whole_words: bool
    from_other_run: bool = False
    in_template: bool = False

    @property
    def digest(self) -> str:
        """Hash the content."""
        return digest(self.text)


def match_documents(
    prompt: Prompt,
    own: Iterable[Retrieved],
    recent: Callable[[], Iterable[Retrieved]],
    variables: Mapping[str, Any] | None = None,
) -> list[DocumentMatch]:
    """Find the documents whose text occurs in the prompt.

    Documents of other runs (`recent`) only count if the prompt has none of its own: they are how prompts
    built by hand and agents are understood, and elsewhere could only mask text that happens to look alike.

    Args:
        prompt: The prompt.
        own: Documents that its own run retrieved.
        recent: Returns documents that any run retrieved lately.
        variables: The values that filled its template.
    """
    text = "\0".join(segment.text for segment in prompt.segments if segment.role != "ai")
    if matches := _matches(text, own, from_other_run=False):
        return matches
    matches = _matches(text, recent(), from_other_run=True)
    others = {key: value for key, value in (variables or {}).items() if key not in CONTEXT_KEYS}
    values = {value.strip() for value in others.values() if isinstance(value, str)}
    return [replace(match, in_template=match.text in values) for match in matches]


def _matches(text: str, documents: Iterable[Retrieved], *, from_other_run: bool) -> list[DocumentMatch]:
    by_text: dict[str, list[Retrieved]] = {}
    for document in documents:
        by_text.setdefault(document.text, []).append(document)
    shortest = _DISTINCTIVE_LENGTH if from_other_run else 0
    positions = find_positions(text, (passage for passage in by_text if len(passage) >= shortest))
    matches = []
    for passage, same_text in by_text.items():
        whole_words = from_other_run or len(passage) < _DISTINCTIVE_LENGTH
        if occurs_at(text, passage, positions, whole_words=whole_words):
            queries = dict.fromkeys(query for document in same_text for query in document.queries)
            matches.append(
                DocumentMatch(tuple(same_text), passage, tuple(queries), whole_words, from_other_run)
            )
    return matches


def contains_any(text: str, matches: Iterable[DocumentMatch]) -> bool:
    """Return whether any of the documents occurs in this text as well."""
    matches = list(matches)
    positions = find_positions(text, (match.text for match in matches))
    return any(occurs_at(text, match.text, positions, whole_words=match.whole_words) for match in matches)


Positions = Sequence[int]

_FEW = 48  # passages for which a search each is faster
_OVERLAPS = 16  # of a passage with itself, after which it is hashed
_AT_ONCE = 2**20  # characters hashed at once
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; equal hashes are compared as text anyway
# Letters and digits of scripts that put blanks between words; others (Thai, CJK, kana) have no such borders.
_IN_WORD = re.compile(r"[^\W\u0e00-\u0eff\u2e80-\U0010ffff]")
_REST_OF_WORD = re.compile(f"{_IN_WORD.pattern}*")
_Hashes = NDArray[np.uint64]


def contains(text: str, passage: str, *, whole_words: bool) -> bool:
    """Return whether `passage` occurs in `text`, with `whole_words` at word borders."""
    if not whole_words:
        return bool(passage) and passage in text
    return occurs_at(text, passage, find_positions(text, (passage,)), whole_words=True)


def occurs_at(text: str, passage: str, positions: Mapping[str, Positions], *, whole_words: bool) -> bool:
    """Return whether `passage` occurs in `text`, by positions that `find_positions` returned."""
    starts = positions.get(passage, ())
    return next(free_positions(text, passage, starts, whole_words=whole_words), None) is not None


def free_positions(
    text: str,
    passage: str,
    positions: Positions,
    *,
    whole_words: bool,
    free: Callable[[int], tuple[int, int]] | None = None,
) -> Iterator[int]:
    """Yield the positions of a passage that do not overlap one another, from left to right.

    Args:
        text: The text.
        passage: The passage.
        positions: Where it may occur, in order.
        whole_words: Leave out positions that begin or end within a word.
        free: Returns the bounds of the free range around a position: only what is free counts, and a word
            ends where the range does. A position is taken if its range begins behind it.
    """
    at = 0
    while at < len(positions):
        start = positions[at]
        begin, until = free(start) if free is not None else (0, len(text))
        end = start + len(passage)
        if start < begin or until < end:
            following = begin if start < begin else until
        elif whole_words and start > begin and _is_within_word(text, start):
            following = min(until, _REST_OF_WORD.match(text, start).end())  # type: ignore[union-attr]
        elif (whole_words and end < until and _is_within_word(text, end)) or not text.startswith(
            passage, start
        ):
            following = start + 1
        else:
            yield start
            following = end
        at = bisect_left(positions, following, at + 1)


def _is_within_word(text: str, at: int) -> bool:
    """Return whether the characters on both sides belong to one word."""
    return all(map(_IN_WORD.match, text[at - 1 : at + 1]))


def find_positions(text: str, passages: Iterable[str]) -> dict[str, Positions]:
    """Find where each of the passages occurs in the text, in order, also where it overlaps itself.

    May report positions where only the hash is equal: compare the text where it matters.
    """
    wanted = {passage for passage in passages if 0 < len(passage) <= len(text)}
    if len(wanted) > _FEW:
        return _search_hashed(text, wanted)
    searched = {passage: _search(text, passage) for passage in wanted}
    repetitive = [passage for passage, starts in searched.items() if starts is None]
    found: dict[str, Positions] = {key: starts for key, starts in searched.items() if starts is not None}
    return {**found, **_search_hashed(text, repetitive)} if repetitive else found


def _search(text: str, passage: str) -> list[int] | None:
    """Find the positions of a passage one by one; None if it overlaps itself too often."""
    found, overlaps = list[int](), 0
    at = text.find(passage)
    while at >= 0:
        overlaps += bool(found) and at < found[-1] + len(passage)
        if overlaps > _OVERLAPS:
            return None
        found.append(at)
        at = text.find(passage, at + 1)
    return found


def _search_hashed(text: str, passages: Iterable[str]) -> dict[str, Positions]:
    """Find the positions of passages that are no longer than the text, by hashes of equal lengths."""
    by_length = sorted(passages, key=len)
    step = max(_AT_ONCE, len(by_length[-1]))
    count = min(len(text), 2 * step)
    powers, inverse = _powers(_BASE, count), _powers(pow(_BASE, -1, 2**64), count)
    groups = [
        (length, _Group(length, list(group), powers))
        for length, group in groupby(by_length, key=lambda passage: 1 << (len(passage).bit_length() - 1))
    ]
    found: dict[str, list[NDArray[np.intp]]] = {}
    for begin in range(0, len(text), step):
        codes = _codes(text[begin : begin + 2 * step])
        sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(codes * powers[: len(codes)])))
        for length, group in groups:
            if length <= len(codes):
                count = len(codes) - length + 1
                # Each range as if it began the text: the first power is that of the second character.
                hashes = (sums[length:] - sums[:count]) * _shifted(inverse, count)
                for passage, starts in group.search(hashes):
                    found.setdefault(passage, []).append(begin + starts[starts < step])
    return {passage: np.concatenate(starts).astype(np.int64).data for passage, starts in found.items()}


def _powers(base: int, count: int) -> _Hashes:
    return np.cumprod(np.full(count, base, np.uint64), dtype=np.uint64)


def _codes(text: str) -> _Hashes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64) + np.uint64(1)


def _shifted(inverse: _Hashes, count: int) -> _Hashes:
    return np.concatenate((np.ones(1, np.uint64), inverse[: count - 1]))


class _Group:
    """Passages of at least `length` characters, and fewer than twice as many."""

    def __init__(self, length: int, passages: Sequence[str], powers: _Hashes) -> None:
        self._length, self._passages = length, passages
        powers = powers[:length]
        coded = list(map(_codes, passages))
        self._heads = np.array([(codes[:length] * powers).sum() for codes in coded], np.uint64)
        self._tails = np.array([(codes[-length:] * powers).sum() for codes in coded], np.uint64)
        self._known = np.unique(np.concatenate((self._heads, self._tails)))
        self._likely = np.zeros(2**16, np.bool_)  # by the upper bits of a hash
        self._likely[self._known >> np.uint64(48)] = True

    def search(self, hashes: _Hashes) -> Iterator[tuple[str, NDArray[np.intp]]]:
        """Yield each passage with its positions in a text, by the hashes of the text's ranges of `length`."""
        positions = np.flatnonzero(self._likely[hashes >> np.uint64(48)])
        numbers = np.minimum(np.searchsorted(self._known, hashes[positions]), len(self._known) - 1)
        positions, numbers = (one[self._known[numbers] == hashes[positions]] for one in (positions, numbers))
        order = np.argsort(numbers, kind="stable")
        positions, bounds = positions[order], np.searchsorted(numbers[order], np.arange(len(self._known) + 1))
        heads, tails = (np.searchsorted(self._known, one) for one in (self._heads, self._tails))
        for at, passage in enumerate(self._passages):
            shift = len(passage) - self._length
            begins = positions[bounds[heads[at]] : bounds[heads[at] + 1]]
            ends = positions[bounds[tails[at]] : bounds[tails[at] + 1]] - shift
            # Check whichever are fewer: documents may all begin alike, or all end alike.
            if len(begins) <= len(ends):
                begins = begins[begins + shift < len(hashes)]
                yield passage, begins[hashes[begins + shift] == self._tails[at]]
            else:
                ends = ends[ends >= 0]
                yield passage, ends[hashes[ends] == self._heads[at]]


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
class DocumentBlock:
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


Run = TypeVar("Run", bound=Hashable)


class RetrievalLog(Generic[Run]):
    """Remembers retrieved documents with their queries: by run, and the latest of all runs.

    Bounded and thread-safe.

    Args:
        runs: How many runs are remembered.
    """

    def __init__(self, runs: int) -> None:
        self._lock = ForkSafeLock()
        # Documents by id and text: several may have the same text, and one may have changed.
        self._of_run: BoundedDict[Run, dict[tuple[str, str], Retrieved]] = BoundedDict(runs)
        self._queries: BoundedDict[Run, frozenset[str]] = BoundedDict(runs)
        self._recent: BoundedDict[tuple[str, str], Retrieved] = BoundedDict(RECENT_DOCUMENTS)

    def add(self, documents: Iterable[Retrieved], *, run: Run | None, query: str | None = None) -> None:
        """Record documents that were retrieved within an outermost run, for a query if there was one."""
        with self._lock:
            in_run = (self._of_run.get(run) if run is not None else None) or {}
            for document in documents:
                key = (document.id, document.text)
                known = self._recent.get(key) or document
                if query and query not in known.queries:
                    known = replace(known, queries=(*known.queries, query)[-_QUERIES_PER_DOCUMENT:])
                self._recent.put(key, known)
                if len(in_run) < _DOCUMENTS_PER_RUN:
                    in_run[key] = known
            if run is not None:
                self._of_run.put(run, in_run)
            if run is not None and query:
                self._queries.put(run, (self._queries.get(run) or frozenset()) | {query})

    def of_run(self, run: Run | None) -> list[Retrieved]:
        """Return what was retrieved within an outermost run, while it is remembered."""
        with self._lock:
            return list((self._of_run.get(run) or {}).values()) if run is not None else []

    def queries_of(self, run: Run | None) -> frozenset[str]:
        """Return what was searched for within an outermost run, while it is remembered."""
        with self._lock:
            return (self._queries.get(run) or frozenset()) if run is not None else frozenset()

    def recent(self) -> list[Retrieved]:
        """Return what any run retrieved lately."""
        with self._lock:
            return list(self._recent)

    def end_run(self, run: Run) -> None:
        """Forget the documents of a run; they stay among the recent ones."""
        with self._lock:
            self._of_run.pop(run)
            self._queries.pop(run)
