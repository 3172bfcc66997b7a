"""Split labelled pairs so that no question is on two sides."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ibidem.types import normalise
from ibidem_lab.fitting.labels import Label

LARGE, FEW = 0.05, 20  # a group has at most this share of as many questions as there are pairs; but 20 always
ROUNDS = 20

Node = TypeVar("Node", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Division:
    """The training, validation and test pairs; `dropped` counts those that crossed the borders."""

    train: list[Label]
    validation: list[Label]
    test: list[Label]
    dropped: int


def distinct(pairs: Iterable[Label]) -> list[Label]:
    """Deduplicate pairs of different questions, in either order; of two labels the later counts."""
    found: dict[tuple[str, str], Label] = {}
    for pair in pairs:
        one, other = sorted((normalise(pair.asked), normalise(pair.stored)))
        if one != other:
            found[one, other] = Label(one, other, pair.right)
    return list(found.values())


def divide(pairs: Sequence[Label], shares: tuple[float, float], seed: int) -> Division:
    """Split pairs so that no question is on two sides, nor, as far as possible, one that it is paired with.

    What hangs together by pairs is dealt out as a whole. Where that is much it is cut into communities, and
    the pairs between these are dropped if they come to lie on two sides.

    Args:
        pairs: Distinct pairs.
        shares: Of validation and of test.
        seed: Of the draw.
    """
    validation, test = shares
    draw = random.Random(seed)  # noqa: S311 (no secret)
    group = _groups(pairs, max(FEW, int(LARGE * len(pairs))), draw)
    side: dict[tuple[int, int], int] = {}
    for unit in sorted(set(group.values())):
        drawn = draw.random()
        side[unit] = 2 if drawn < test else 1 if drawn < test + validation else 0
    sides: tuple[list[Label], ...] = ([], [], [])
    for pair in pairs:
        one, other = side[group[pair.asked]], side[group[pair.stored]]
        if one == other:
            sides[one].append(pair)
    return Division(sides[0], sides[1], sides[2], dropped=len(pairs) - sum(map(len, sides)))


def _groups(pairs: Sequence[Label], largest: int, draw: random.Random) -> dict[str, tuple[int, int]]:
    """Return whole components; those of more than `largest` questions are cut into communities."""
    number = components((pair.asked, pair.stored) for pair in pairs)
    sizes = Counter(number.values())
    tied = [pair for pair in pairs if sizes[number[pair.asked]] > largest]
    community = communities(tied, largest, draw)
    return {question: (one, community.get(question, -1)) for question, one in number.items()}


def communities(pairs: Sequence[Label], largest: int, draw: random.Random) -> dict[str, int]:
    """Assign each question to a group of at most `largest` questions.

    By label propagation (Raghavan, Albert, Kumara 2007, Phys. Rev. E 76, 036106): each question joins the
    group that most of its partners are in, until nothing changes; one that has no room is passed over.
    """
    partners: dict[str, list[str]] = {}
    for pair in pairs:
        partners.setdefault(pair.asked, []).append(pair.stored)
        partners.setdefault(pair.stored, []).append(pair.asked)
    found = {question: number for number, question in enumerate(partners)}
    sizes, order = Counter(found.values()), list(partners)
    for _ in range(ROUNDS):
        draw.shuffle(order)
        moved = False
        for question in order:
            here = found[question]
            near = Counter(found[partner] for partner in partners[question])
            open_to_it = {one: n for one, n in near.items() if one == here or sizes[one] < largest}
            best = max(open_to_it, key=lambda one: (open_to_it[one], -one), default=here)
            if open_to_it.get(best, 0) > near[here]:
                sizes[here], sizes[best], found[question] = sizes[here] - 1, sizes[best] + 1, best
                moved = True
        if not moved:
            break
    return found


def components(edges: Iterable[tuple[Node, Node]]) -> dict[Node, int]:
    """Number the connected component of every node, from 0 in the order of first appearance."""
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other in edges:
        parent[root(other)] = root(one)
    numbers: dict[Node, int] = {}
    return {node: numbers.setdefault(root(node), len(numbers)) for node in list(parent)}
