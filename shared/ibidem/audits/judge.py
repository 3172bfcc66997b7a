"""The default judge of audits, which decides whether two answers to one question say the same.

A stand-in: it compares wording and embeddings, knows nothing of the subject, and counts unclear cases as
wrong. So the cache may serve less than it could; where answers are long or free, replace it by a model, or by
a comparison of the parts of your answers that matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ibidem.matching.guards import are_opposed
from ibidem.matching.text import parse_question

if TYPE_CHECKING:
    from ibidem.embedding.base import Embedder


# Question, stored answer, fresh answer -> whether the stored one would have been right.
Compare = Callable[[str, str, str], bool]

# Minimum cosine of two answers that say the same. Of 21 pairs written for it, the default model gives 7 of 8
# right ones 0.94 to 0.99, the wrong ones at most 0.93. Another embedder may need another number.
MIN_COSINE = 0.94

_WORD = re.compile(r"\w+")
_SIGN = re.compile(r"[^\w\s.,;:!?'\"()`*_…“”‘’-]")
_NAME = re.compile(r"(?<![.!?:\n]\s)(?<!^)(?<![\w\"'(*`])[A-Z]\w*")
_YES_NO = frozenset(("yes", "no"))


class AnswerJudge:
    """Right if the answers are the same but for blanks, capitals and punctuation, or near in meaning.

    Near in meaning: the cosine of their embeddings is at least `MIN_COSINE`, and numbers, units, dates,
    number of negations, names, code, and a leading yes or no agree. Of answers longer than the embedder's
    window the beginning is embedded; the rest counts only by these.

    Args:
        embedder: What embeds the answers; that of the cache.
        least: Minimum cosine.
    """

    def __init__(self, embedder: Embedder, least: float = MIN_COSINE) -> None:
        self._embedder, self._min_cosine = embedder, least

    def __call__(self, question: str, stored: str, fresh: str) -> bool:
        """Return whether `stored` may replace `fresh`; raises what the embedder raises."""
        if not stored.strip() or not fresh.strip():
            return False
        if words_and_signs(stored) == words_and_signs(fresh):
            return True
        if contradict(stored, fresh):
            return False
        here, there = self._embedder.embed([self._window(stored), self._window(fresh)])
        return float(here @ there) >= self._min_cosine

    def _window(self, text: str) -> str:
        """Return the beginning of the text that fits the embedder's window."""
        most, fits, longer = self._embedder.max_tokens, 1, len(text)
        if self._embedder.count_tokens(text) <= most:
            return text
        while longer - fits > 1:
            middle = (fits + longer) // 2
            if self._embedder.count_tokens(text[:middle]) <= most:
                fits = middle
            else:
                longer = middle
        return text[:fits]


def contradict(one: str, other: str) -> bool:
    """Return whether numbers, dates, negations, opposites, names, code or a leading yes or no differ."""
    parse = parse_question.__wrapped__  # not cached: answers are long
    here, there = parse(one), parse(other)
    parts = [
        (found.numbers, found.units, found.dates, found.written_negations, frozenset(found.code))
        for found in (here, there)
    ]
    differ = parts[0] != parts[1] or _yes_no(one) != _yes_no(other) or are_opposed(here, there)
    return differ or not (_names(one) <= _capitalised(other) and _names(other) <= _capitalised(one))


def words_and_signs(text: str) -> tuple[list[str], list[str]]:
    """Return words and signs other than punctuation ("-5" is not "5", nor "1.5" "15"), case-folded."""
    folded = text.casefold()
    return _WORD.findall(folded), _SIGN.findall(folded) + re.findall(r"[-−]\d", folded)


def _names(text: str) -> set[str]:
    """Return capitalised words within sentences."""
    return set(_NAME.findall(text))


def _capitalised(text: str) -> set[str]:
    """Return capitalised words, also at the beginning of a sentence: they may be names."""
    return {word for word in _WORD.findall(text) if word[0].isupper()} | {"I"}


def _yes_no(text: str) -> str:
    first = _WORD.search(text.casefold())
    return first.group() if first and first.group() in _YES_NO else ""
