"""Which documents stand in a prompt: those of its own run if there are any, else what was found lately."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibidem.prompts.key import Prompt
from ibidem.types import digest

# Template variables that hold documents.
CONTEXT_KEYS = frozenset(
    "context context_str context_msg documents document docs sources passages chunks excerpts".split()
)
# A shorter text is too common to be recognised as a document by its letters alone.
_TELLING_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A document that a retriever returned, the latest queries that found it, and what it was cut from."""

    id: str
    text: str
    queries: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A document that occurs in a prompt, `as_words` if only its occurrences at word borders count.

    A `stranger` was retrieved by another run than the one that made the prompt. It is `pinned`, a part of the
    prompt like any other, if it is all that a variable holds which is not one for documents. `named` is what
    it is called: more than one where several documents have this text.
    """

    named: tuple[Retrieved, ...]
    text: str
    queries: tuple[str, ...]
    as_words: bool
    stranger: bool = False
    pinned: bool = False

    @property
    def digest(self) -> str:
        """Identifies the content."""
        return digest(self.text)


def occurring(
    prompt: Prompt,
    own: Iterable[Retrieved],
    recent: Callable[[], Iterable[Retrieved]],
    variables: Mapping[str, Any] | None = None,
) -> list[Occurrence]:
    """The documents whose text occurs in the prompt; `variables` are those that filled its template.

    Documents of other runs (`recent`) only count if the prompt has none of its own: they are how prompts
    built by hand and agents are understood, and elsewhere could only cut what happens to look like them.
    """
    text = "\0".join(segment.text for segment in prompt.segments if segment.role != "ai")
    if found := _found(text, own, strangers=False):
        return found
    strangers = _found(text, recent(), strangers=True)
    given = {key: value for key, value in (variables or {}).items() if key not in CONTEXT_KEYS}
    other = {value.strip() for value in given.values() if isinstance(value, str)}
    return [replace(stranger, pinned=stranger.text in other) for stranger in strangers]


def _found(text: str, documents: Iterable[Retrieved], *, strangers: bool) -> list[Occurrence]:
    named: dict[str, list[Retrieved]] = {}
    for document in documents:
        named.setdefault(document.text, []).append(document)
    found = []
    shortest = _TELLING_LENGTH if strangers else 0
    places = places_of(text, (telling for telling in named if len(telling) >= shortest))
    for telling, those in named.items():
        as_words = strangers or len(telling) < _TELLING_LENGTH
        if stands(text, telling, places, as_words=as_words):
            queries = dict.fromkeys(query for document in those for query in document.queries)
            found.append(Occurrence(tuple(those), telling, tuple(queries), as_words, strangers))
    return found


def standing(text: str, documents: Iterable[Occurrence]) -> bool:
    """Whether any of the documents stands in this text as well."""
    sought = list(documents)
    places = places_of(text, (one.text for one in sought))
    return any(stands(text, one.text, places, as_words=one.as_words) for one in sought)


Starts = Sequence[int]

_FEW = 48  # texts for which a search each is faster
_OVERLAPS = 16  # of a text with itself, after which it is hashed
_AT_ONCE = 2**20  # characters hashed at once
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; what hashes alike is compared anyway
# Letters and digits of scripts that put blanks between words; others (Thai, CJK, kana) have no such borders.
_IN_WORD = re.compile(r"[^\W\u0e00-\u0eff\u2e80-\U0010ffff]")
_REST_OF_WORD = re.compile(f"{_IN_WORD.pattern}*")
_Hashes = NDArray[np.uint64]


def occurs(text: str, passage: str, *, as_words: bool) -> bool:
    """Whether `passage` stands in `text`, with `as_words` at word borders."""
    if not as_words:
        return bool(passage) and passage in text
    return stands(text, passage, places_of(text, (passage,)), as_words=True)


def stands(text: str, passage: str, places: Mapping[str, Starts], *, as_words: bool) -> bool:
    """The same, if it is known where passages may stand."""
    return next(free_places(text, passage, places.get(passage, ()), as_words=as_words), None) is not None


def free_places(
    text: str,
    passage: str,
    starts: Starts,
    *,
    as_words: bool,
    free: Callable[[int], tuple[int, int]] | None = None,
) -> Iterator[int]:
    """Those of the places of a passage that do not overlap one another, from left to right.

    Args:
        text: The text.
        passage: What stands there.
        starts: Where it may stand, in order.
        as_words: Leave out places that begin or end within a word.
        free: From where to where nothing is taken, around a place: only what is free counts, and a word ends
            where that does. A place is taken if that begins behind it.
    """
    at = 0
    while at < len(starts):
        start = starts[at]
        begin, until = free(start) if free is not None else (0, len(text))
        end = start + len(passage)
        if start < begin or until < end:
            following = begin if start < begin else until
        elif as_words and start > begin and _is_within_word(text, start):
            following = min(until, _REST_OF_WORD.match(text, start).end())  # type: ignore[union-attr]
        elif (as_words and end < until and _is_within_word(text, end)) or not text.startswith(passage, start):
            following = start + 1
        else:
            yield start
            following = end
        at = bisect_left(starts, following, at + 1)


def _is_within_word(text: str, at: int) -> bool:
    """Whether the characters on both sides belong to one word."""
    return all(map(_IN_WORD.match, text[at - 1 : at + 1]))


def places_of(text: str, passages: Iterable[str]) -> dict[str, Starts]:
    """Where each of the passages stands in the text, in order, also where it overlaps itself.

    Of one that hashes alike it may be said too that it stands there: compare it where it matters.
    """
    wanted = {passage for passage in passages if 0 < len(passage) <= len(text)}
    if len(wanted) > _FEW:
        return _hashed(text, wanted)
    found = {passage: _searched(text, passage) for passage in wanted}
    repeated = [passage for passage, starts in found.items() if starts is None]
    known: dict[str, Starts] = {passage: starts for passage, starts in found.items() if starts is not None}
    return {**known, **_hashed(text, repeated)} if repeated else known


def _searched(text: str, passage: str) -> list[int] | None:
    """Its places; None if it overlaps itself too often."""
    found, overlaps = list[int](), 0
    at = text.find(passage)
    while at >= 0:
        overlaps += bool(found) and at < found[-1] + len(passage)
        if overlaps > _OVERLAPS:
            return None
        found.append(at)
        at = text.find(passage, at + 1)
    return found


def _hashed(text: str, passages: Iterable[str]) -> dict[str, Starts]:
    """The places of passages that are no longer than the text."""
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
                # Stretches as if each began the text: the first power is that of the second character.
                hashes = (sums[length:] - sums[:count]) * _shifted(inverse, count)
                for passage, starts in group.within(hashes):
                    found.setdefault(passage, []).append(begin + starts[starts < step])
    return {passage: np.concatenate(starts).astype(np.int64).data for passage, starts in found.items()}


def _powers(base: int, count: int) -> _Hashes:
    return np.cumprod(np.full(count, base, np.uint64), dtype=np.uint64)


def _codes(text: str) -> _Hashes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64) + np.uint64(1)


def _shifted(inverse: _Hashes, count: int) -> _Hashes:
    return np.concatenate((np.ones(1, np.uint64), inverse[: count - 1]))


class _Group:
    """Passages of at least `length` characters, and less than twice as many."""

    def __init__(self, length: int, passages: Sequence[str], powers: _Hashes) -> None:
        self._length, self._passages = length, passages
        powers = powers[:length]
        coded = list(map(_codes, passages))
        self._heads = np.array([(codes[:length] * powers).sum() for codes in coded], np.uint64)
        self._tails = np.array([(codes[-length:] * powers).sum() for codes in coded], np.uint64)
        self._known = np.unique(np.concatenate((self._heads, self._tails)))
        self._likely = np.zeros(2**16, np.bool_)  # by the upper bits of a hash
        self._likely[self._known >> np.uint64(48)] = True

    def within(self, hashes: _Hashes) -> Iterator[tuple[str, NDArray[np.intp]]]:
        """The places of each passage in a text, by the hashes of its stretches of `length`."""
        places = np.flatnonzero(self._likely[hashes >> np.uint64(48)])
        numbers = np.minimum(np.searchsorted(self._known, hashes[places]), len(self._known) - 1)
        places, numbers = (one[self._known[numbers] == hashes[places]] for one in (places, numbers))
        order = np.argsort(numbers, kind="stable")
        places, bounds = places[order], np.searchsorted(numbers[order], np.arange(len(self._known) + 1))
        heads, tails = (np.searchsorted(self._known, one) for one in (self._heads, self._tails))
        for at, passage in enumerate(self._passages):
            shift = len(passage) - self._length
            begins = places[bounds[heads[at]] : bounds[heads[at] + 1]]
            ends = places[bounds[tails[at]] : bounds[tails[at] + 1]] - shift
            # Whichever are fewer: documents may all begin alike, or all end so.
            if len(begins) <= len(ends):
                begins = begins[begins + shift < len(hashes)]
                yield passage, begins[hashes[begins + shift] == self._tails[at]]
            else:
                ends = ends[ends >= 0]
                yield passage, ends[hashes[ends] == self._heads[at]]
