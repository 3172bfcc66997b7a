"""Guards: wording that embeddings overlook and that changes the answer.

A guard sees two questions whose embeddings are near and says whether the difference forbids one answer for
both. On nine labelled streams of up to 4,000 questions (`tests/benchmarks/decisions.py`), neighbours above
0.95 that were refused wrongly and rightly: numbers 25 and 178, dates 14 and 102, opposites 7 and 497, order
175 and 214, spelling 6 and 7, code 4 and 2, negation 13 and 136.
"""

from __future__ import annotations

from collections.abc import Callable

from ibidem.lexicon import OTHER_IN_CAPITALS
from ibidem.wording import Wording, bare, opposed, read

Guard = Callable[[Wording, Wording], bool]


def numbers_differ(asked: Wording, stored: Wording) -> bool:
    """Other numbers, or the same in another order: "1600 to 2400" is not "2400 to 1600"; other units."""
    if asked.units and stored.units and asked.units != stored.units:
        return True
    return asked.numbers != stored.numbers


def dates_differ(asked: Wording, stored: Wording) -> bool:
    """Another weekday, month or relative date; or one on one side only."""
    return asked.dates != stored.dates


def order_differs(asked: Wording, stored: Wording) -> bool:
    """The same words in another order: "bytes to string" is not "string to bytes".

    Also with directions, persons and negations among the words: "from A to B" is not "to A from B", nor
    "can I sue you" "can you sue me".
    """
    return _moved(asked.content, stored.content) or _moved(asked.directed, stored.directed)


def _moved(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return one != other and sorted(one) == sorted(other)


def code_differs(asked: Wording, stored: Wording) -> bool:
    """Other pieces with signs that are no punctuation: "C" is not "C#", "x == y" is not "x != y"."""
    return asked.code != stored.code


def spelling_differs(asked: Wording, stored: Wording) -> bool:
    """The same letters in another spelling, which an uncased model cannot see.

    Accents ("schon", "schön"); capitals ("v", "V"; "it", "IT"), unless only a first letter differs or one of
    the questions is typed without capitals; blanks within quotes.
    """
    if asked.quoted != stored.quoted and _squeezed(asked.quoted) == _squeezed(stored.quoted):
        return True
    here, there = asked.spellings - stored.spellings, stored.spellings - asked.spellings
    pairs = [(one, other) for one in here for other in there if bare(one) == bare(other)]
    cased = asked.cased and stored.cased
    return any(_other_spelling(one, other, cased) for one, other in pairs)


def _squeezed(quoted: tuple[str, ...]) -> list[str]:
    return ["".join(text.casefold().split()) for text in quoted]


def _other_spelling(one: str, other: str, cased: bool) -> bool:
    word = one.casefold()
    if word != other.casefold():
        return True
    if len(one) == 1:
        return word != "i"
    if word in OTHER_IN_CAPITALS and one.isupper() != other.isupper():
        return True
    return cased and one[1:] != other[1:]


VETOES: dict[str, Guard] = {
    "numbers": numbers_differ,
    "dates": dates_differ,
    "opposites": opposed,
    "order": order_differs,
    "spelling": spelling_differs,
    "code": code_differs,
}

# Negations differ in 10 % of right and 20 % of wrong neighbours in chatty support text: no veto, but the
# questions must be this much closer to identical. 0.95 of the way from the threshold to 1: 0.9975 at 0.95
# ("safe" and "not safe" reach 0.991).
NEGATION_PENALTY = 0.95


def vetoed_by(asked: str, stored: str) -> str | None:
    """The name of the first guard that forbids serving `stored`'s answer for `asked`, or None."""
    one, other = read(asked), read(stored)
    return next((name for name, guard in VETOES.items() if guard(one, other)), None)


def required_similarity(asked: str, stored: str, threshold: float) -> float:
    """The cosine this pair needs: the threshold, raised where the number of negations differs."""
    if read(asked).negations == read(stored).negations:
        return threshold
    return threshold + NEGATION_PENALTY * (1.0 - threshold)
