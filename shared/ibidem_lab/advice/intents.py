"""Questions grouped by what they are about: what is asked again and again, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ibidem.types import Vector

# Cosine to the first question of a group. With the default model, of 1,000 questions of banking77 84 % are in
# a group whose commonest intent is theirs, of clinc150 97 %; many intents are spread over several groups.
ALIKE = 0.65


@dataclass(frozen=True, slots=True)
class Intent:
    """Questions near one another.

    `question` is the most frequent one, `texts` all wordings, `count` how often they were asked, `tokens`
    what their answers cost or would have cost, where known.
    """

    question: str
    texts: tuple[str, ...]
    count: int
    tokens: int


def intents(
    counts: Mapping[str, int], tokens: Mapping[str, int], vectors: Mapping[str, Vector], least: float = ALIKE
) -> list[Intent]:
    """Groups of the questions, the most frequent first.

    Each question goes to the nearest group whose first question has at least the cosine `least` to it, else
    it begins one; frequent questions come first.

    Args:
        counts: How often each question was asked.
        tokens: What each cost, in all.
        vectors: Their embeddings, unit length, shape (d,).
        least: Least cosine.
    """
    texts = sorted((text for text in counts if text in vectors), key=lambda text: (-counts[text], text))
    groups: list[list[str]] = []
    for text, place in zip(texts, _places([vectors[text] for text in texts], least), strict=True):
        if place == len(groups):
            groups.append([])
        groups[place].append(text)
    found = [
        Intent(
            group[0],
            tuple(group),
            sum(counts[text] for text in group),
            sum(tokens.get(text, 0) for text in group),
        )
        for group in groups
    ]
    return sorted(found, key=lambda intent: (-intent.count, intent.question))


def _places(vectors: Sequence[Vector], least: float) -> list[int]:
    """The number of the group of each vector; a new group has the next number."""
    if not vectors:
        return []
    first = np.empty((len(vectors), len(vectors[0])), np.float32)
    places, count = [], 0
    for vector in vectors:
        cosines = first[:count] @ vector
        nearest = int(cosines.argmax()) if count else 0
        if not count or cosines[nearest] < least:
            nearest, first[count] = count, vector
            count += 1
        places.append(nearest)
    return places
