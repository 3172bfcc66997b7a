"""Guards: wording that embeddings overlook and that changes the answer.

A guard sees two questions whose embeddings are near and says whether the difference forbids one answer for
both. On nine labelled streams of up to 4,000 questions (`tests/benchmarks/decisions.py`), neighbours above
0.95 that were refused wrongly and rightly: numbers 21 and 174, dates 12 and 107, opposites 7 and 498, order
144 and 187, negation 12 and 131.
"""

from __future__ import annotations

from collections.abc import Callable

from ibidem.wording import Wording, opposed, read

Guard = Callable[[Wording, Wording], bool]


def numbers_differ(asked: Wording, stored: Wording) -> bool:
    """Other numbers, or the same in another order: "1600 to 2400" is not "2400 to 1600"."""
    return asked.numbers != stored.numbers


def dates_differ(asked: Wording, stored: Wording) -> bool:
    """Another weekday, month or relative date; or one on one side only."""
    return asked.dates != stored.dates


def order_differs(asked: Wording, stored: Wording) -> bool:
    """The same words in another order: "bytes to string" is not "string to bytes"."""
    return asked.content != stored.content and sorted(asked.content) == sorted(stored.content)


VETOES: dict[str, Guard] = {
    "numbers": numbers_differ,
    "dates": dates_differ,
    "opposites": opposed,
    "order": order_differs,
}

# Negations differ in 10 % of right and 20 % of wrong neighbours in chatty support text: no veto, but the
# questions must be this much closer to identical. 0.8 of the way from the threshold to 1: 0.99 at 0.95.
NEGATION_PENALTY = 0.8


def vetoed_by(asked: str, stored: str) -> str | None:
    """The name of the first guard that forbids serving `stored`'s answer for `asked`, or None."""
    one, other = read(asked), read(stored)
    return next((name for name, guard in VETOES.items() if guard(one, other)), None)


def required_similarity(asked: str, stored: str, threshold: float) -> float:
    """The cosine this pair needs: the threshold, raised where the number of negations differs."""
    if read(asked).negations == read(stored).negations:
        return threshold
    return threshold + NEGATION_PENALTY * (1.0 - threshold)
