"""What is stored and what is asked: questions of Natural Questions, and as many more as are wanted."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANSWER = "{number}|" + "This is an answer of the usual length, of two sentences. " * 4
NOISE = 0.45  # length of what is added to a unit vector: leaves a cosine of about .91 to the original
REWORDINGS = (
    "please tell me {}",
    "can you tell me {}?",
    "{} please",
    "hello, {}?",
    "i would like to know {}",
    "could you please tell me {}?",
    "{} thanks",
    "tell me {}",
)


@dataclass(frozen=True)
class Load:
    """Questions to store; `asked` are numbers of stored questions, `new` are questions never stored.

    Only the first `distinct` stored questions are different ones; the others are these with a number.
    """

    stored: list[str]
    distinct: int
    asked: list[int]
    new: list[str]

    def answer(self, number: int) -> str:
        """To the stored question of this number."""
        return ANSWER.format(number=number)

    def reworded(self, at: int) -> str:
        """The question asked at this position, in other words; another wording in each round."""
        number = self.asked[at % len(self.asked)]
        return REWORDINGS[at // len(self.asked) % len(REWORDINGS)].format(self.stored[number])


def load(data: Path, entries: int, asked: int, seed: int = 0) -> Load:
    """The workload of this size from `nq_questions.jsonl`; the same for the same seed."""
    with (data / "nq_questions.jsonl").open(encoding="utf-8") as lines:
        questions = list(dict.fromkeys(json.loads(line)["question"] for line in lines))
    draw = random.Random(seed)
    draw.shuffle(questions)
    new, questions = questions[:3_000], questions[3_000:]
    distinct = min(entries, len(questions))
    stored = [
        questions[at % distinct] + (f" (number {at // distinct})" if at >= distinct else "")
        for at in range(entries)
    ]
    return Load(stored, distinct, draw.sample(range(distinct), min(asked, distinct)), new)


def embedded(embedder: Any, texts: Sequence[str], kept: Path) -> NDArray[np.float32]:
    """The unit vectors of different questions, kept in a file for the next contender."""
    if kept.is_file():
        known: NDArray[np.float32] = np.load(kept)
        if len(known) >= len(texts):
            return known[: len(texts)]
    rows = [embedder.embed(texts[at : at + 256]) for at in range(0, len(texts), 256)]
    made = np.concatenate(rows).astype(np.float32)
    np.save(kept, made)
    return made


def vectors_of(base: NDArray[np.float32], first: int, last: int, seed: int = 1) -> NDArray[np.float32]:
    """Vectors of the stored questions from `first` to before `last`; shape [last - first, d].

    Those of questions with a number are the question's, moved at random.
    """
    at = np.arange(first, last)
    rows = base[at % len(base)].copy()
    moved = at >= len(base)
    if moved.any():
        noise = np.random.default_rng(seed + first).normal(size=(int(moved.sum()), base.shape[1]))
        rows[moved] += NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
