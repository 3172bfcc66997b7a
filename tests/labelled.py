"""Labelled questions for tests of the fit: one word says what is meant, the others are chatter."""

from __future__ import annotations

import random

import numpy as np

from ibidem.fit.fitting import Pair
from ibidem.replay import Row
from tests.embedders import BagOfWords

KEYS = [f"topic{chr(97 + n)}" for n in range(12)]
CHATTER = [f"chat{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(40)]
DIMENSION = 64


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


def pairs(count: int, seed: int = 0, noise: bool = False) -> list[Pair]:
    """One pair a question, from as many questions before; with `noise` the labels say nothing."""
    draw, embedder = random.Random(seed), BagOfWords(DIMENSION)
    asked, stored = rows(count, seed), rows(count, seed + 1000)
    vectors = embedder.embed([row.text for row in (*asked, *stored)])
    found = []
    for number, row in enumerate(asked):
        same = [at for at, other in enumerate(stored) if other.meaning == row.meaning]
        at = draw.choice(same) if draw.random() < 0.5 else draw.randrange(count)
        one, other = vectors[number], vectors[count + at]
        right = draw.random() < 0.5 if noise else stored[at].meaning == row.meaning
        cosine = float(np.clip(one @ other, -1.0, 1.0))
        found.append(Pair(row.text, stored[at].text, cosine, (one, other), right, number))
    return found
