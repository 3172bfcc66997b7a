"""Labelled questions for tests of the fit: one word says what is meant, the others are chatter."""

from __future__ import annotations

import random

from ibidem_lab.fitting.labels import Label
from ibidem_lab.replay import Row

KEYS = [f"topic{chr(97 + n)}" for n in range(12)]
CHATTER = [f"chat{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(40)]
DIMENSION = 1024  # so that few words share a place


def rows(count: int, seed: int = 0) -> list[Row]:
    """Questions of five words of chatter and one that decides, wherever it stands; all different."""
    draw = random.Random(seed)
    found: dict[str, Row] = {}
    while len(found) < count:
        key = draw.choice(KEYS)
        words = [*draw.sample(CHATTER, 5), key]
        draw.shuffle(words)
        text = " ".join(words)
        found[text] = Row(text, key)
    return list(found.values())


def labels(count: int, seed: int = 0, *, words: int = 11, right: float = 1.0) -> list[Label]:
    """By turns a pair that differs in one word of chatter, and one far apart of which another word decides.

    The cosine of the former is about `words / (words + 1)`; so many of them are `right`, of the latter none.
    """
    draw, found = random.Random(seed), []
    for number in range(count):
        key, other = draw.sample(KEYS, 2)
        said = draw.sample(CHATTER, words)
        near = " ".join([*said[1:], draw.choice([word for word in CHATTER if word not in said]), key])
        far = " ".join([*draw.sample(CHATTER, words), other])
        stored = far if number % 2 else near
        found.append(Label(" ".join([*said, key]), stored, number % 2 == 0 and draw.random() < right))
    return found


def stream(count: int, seed: int = 0) -> list[Row]:
    """Questions of 80 meanings: a cosine of 12/13 within one, of at most 11/13 across; all different."""
    draw = random.Random(seed)
    words = [f"{word}{end}" for word in CHATTER for end in "xy"]
    fillers = [f"fill{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(100)]
    said = [(word, filler) for word in words for filler in fillers]
    found = draw.sample(said, count)
    return [Row(" ".join([*KEYS[:10], word, f"{word}z", filler]), word) for word, filler in found]
