"""Pairs of questions with labels, and how they are divided so that no question is on two sides."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ibidem.components import components
from ibidem.labels import Label
from ibidem.request import normalise

LARGE = 0.1  # a component with a larger share of the pairs is cut


@dataclass(frozen=True, slots=True)
class Division:
    """Pairs to learn from, to choose by, and to measure with; `dropped` crossed the borders."""

    train: list[Label]
    validation: list[Label]
    test: list[Label]
    dropped: int


def distinct(pairs: Iterable[Label]) -> list[Label]:
    """Each pair of two different questions once, whichever comes first in it; of two labels the later."""
    found: dict[tuple[str, str], Label] = {}
    for pair in pairs:
        one, other = sorted((normalise(pair.asked), normalise(pair.stored)))
        if one != other:
            found[one, other] = Label(one, other, pair.right)
    return list(found.values())


def divide(pairs: Sequence[Label], shares: tuple[float, float], seed: int) -> Division:
    """Divide pairs so that no question, nor one paired with it, is on two sides.

    Whole components of the graph of pairs go to one side. One that holds more than a tenth of all pairs is
    cut: its questions are dealt out, and pairs whose questions came to lie on two sides are dropped.

    Args:
        pairs: Distinct pairs.
        shares: Of validation and of test.
        seed: Of the draw.
    """
    validation, test = shares
    draw = random.Random(seed)  # noqa: S311 (no secret)
    number = components((pair.asked, pair.stored) for pair in pairs)
    sizes = Counter(number[pair.asked] for pair in pairs)
    large = {one for one, size in sizes.items() if size > LARGE * len(pairs)}
    side: dict[object, int] = {}
    for unit in sorted({_unit(question, number, large) for question in number}, key=str):
        drawn = draw.random()
        side[unit] = 2 if drawn < test else 1 if drawn < test + validation else 0
    sides: tuple[list[Label], ...] = ([], [], [])
    for pair in pairs:
        one, other = (side[_unit(question, number, large)] for question in (pair.asked, pair.stored))
        if one == other:
            sides[one].append(pair)
    return Division(sides[0], sides[1], sides[2], dropped=len(pairs) - sum(map(len, sides)))


def _unit(question: str, number: dict[str, int], large: set[int]) -> str | int:
    """What is dealt out as a whole: a component, or a question of a large one."""
    return question if number[question] in large else number[question]
