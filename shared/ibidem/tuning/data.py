"""Pairs of questions with labels, and how they are divided so that no question is on two sides."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeGuard

from ibidem.components import components
from ibidem.errors import InvalidInput
from ibidem.request import normalise

LARGE = 0.1  # a component with a larger share of the pairs is cut


class LabelledPair(NamedTuple):
    """Two questions, and whether one answer serves both."""

    a: str
    b: str
    same: bool


@dataclass(frozen=True, slots=True)
class Division:
    """Pairs to learn from, to choose by, and to measure with; `dropped` crossed the borders."""

    train: list[LabelledPair]
    validation: list[LabelledPair]
    test: list[LabelledPair]
    dropped: int


def read_pairs(path: Path) -> list[LabelledPair]:
    """The labelled lines of a file of `{"a", "b", "same"}` or `{"asked", "stored", "right"}`.

    Lines whose `same` is null are not labelled, and left out.

    Raises:
        InvalidInput: The file cannot be read, or a line is no such pair; the message names it.
    """
    found = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip() and (pair := _pair(line, f"{path}, line {number}")):
                found.append(pair)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no UTF-8 text: {error}") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
    return found


def _pair(line: str, where: str) -> LabelledPair | None:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: no JSON: {error}") from None
    names = (
        ("asked", "stored", "right") if isinstance(given, dict) and "asked" in given else ("a", "b", "same")
    )
    if not isinstance(given, dict) or names[-1] not in given:
        raise InvalidInput(f'{where}: must be {{"a", "b", "same"}} or {{"asked", "stored", "right"}}')
    one, other, same = (given.get(name) for name in names)
    if not (_is_question(one) and _is_question(other)):
        raise InvalidInput(f'{where}: "{names[0]}" and "{names[1]}" must be questions')
    if same is None:
        return None
    if same not in (0, 1):
        raise InvalidInput(f'{where}: "{names[2]}" must be 1, 0 or null, not {same!r}')
    return LabelledPair(one, other, bool(same))


def _is_question(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def distinct(pairs: Iterable[LabelledPair]) -> list[LabelledPair]:
    """Each pair of two different questions once, whichever comes first in it; of two labels the later."""
    found: dict[tuple[str, str], LabelledPair] = {}
    for pair in pairs:
        one, other = sorted((normalise(pair.a), normalise(pair.b)))
        if one != other:
            found[one, other] = LabelledPair(one, other, pair.same)
    return list(found.values())


def divide(pairs: Sequence[LabelledPair], shares: tuple[float, float], seed: int) -> Division:
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
    number = components((pair.a, pair.b) for pair in pairs)
    sizes = Counter(number[pair.a] for pair in pairs)
    large = {one for one, size in sizes.items() if size > LARGE * len(pairs)}
    side: dict[object, int] = {}
    for unit in sorted({_unit(question, number, large) for question in number}, key=str):
        drawn = draw.random()
        side[unit] = 2 if drawn < test else 1 if drawn < test + validation else 0
    sides: tuple[list[LabelledPair], ...] = ([], [], [])
    for pair in pairs:
        one, other = (side[_unit(question, number, large)] for question in (pair.a, pair.b))
        if one == other:
            sides[one].append(pair)
    return Division(sides[0], sides[1], sides[2], dropped=len(pairs) - sum(map(len, sides)))


def _unit(question: str, number: dict[str, int], large: set[int]) -> str | int:
    """What is dealt out as a whole: a component, or a question of a large one."""
    return question if number[question] in large else number[question]
