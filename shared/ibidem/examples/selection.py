"""Which examples go into a prompt: near the question, different from each other, within a budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ibidem.embedding.objects import estimate_tokens
from ibidem.entry import Vector
from ibidem.examples.example import Example

# So much nearer counts an example that somebody called good: enough to break ties. By 0.2 answers get worse,
# by less there is no difference beyond chance (tests/benchmarks/few_shot.py).
GOOD_BONUS = 0.05


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example, the unit vector of its question, shape (d,), and its cosine to the question asked."""

    example: Example
    vector: Vector
    cosine: float

    @property
    def relevance(self) -> float:
        """The cosine, and a little more if somebody called the example good."""
        return self.cosine + (GOOD_BONUS if self.example.feedback else 0.0)


def tokens_of(example: Example, count: Callable[[str], int] | None = None) -> int:
    """Tokens of question and answer, by default as `estimate_tokens` bounds them from above.

    Its bound has 8 to spare for each example, which is room for a label before question and answer.
    """
    count = count or estimate_tokens
    return count(example.question) + count(example.answer)


def usable(candidates: Sequence[Candidate], question: str) -> list[Candidate]:
    """Without the bad, the question itself and repeated questions; the most relevant first.

    An answer to the question itself is no example: a model would copy it, also when it is out of date. Of
    examples with one question only one is left, that called good if there is one, else the newest.
    """
    good = [c for c in candidates if c.example.feedback is not False]
    ordered = sorted(good, key=lambda c: (-round(c.relevance, 6), -(c.example.id or 0)))
    seen, left = {_plain(question)}, []
    for candidate in ordered:
        if (said := _plain(candidate.example.question)) not in seen:
            seen.add(said)
            left.append(candidate)
    return left


def pick(
    candidates: Sequence[Candidate],
    k: int,
    *,
    diversity: float,
    max_tokens: int | None = None,
    count: Callable[[str], int] | None = None,
) -> list[Example]:
    """At most `k` of the candidates, by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Each time the one with the highest (1 - diversity) * relevance - diversity * s, where s is its cosine to
    the nearest of those picked before; one that the token budget has no room for is passed over.
    """
    if not candidates:
        return []
    vectors = np.stack([candidate.vector for candidate in candidates])
    relevance = np.array([candidate.relevance for candidate in candidates])
    nearest = np.zeros(len(candidates))  # to what was picked
    open_ = np.ones(len(candidates), dtype=bool)
    left, picked = max_tokens, list[Example]()
    while len(picked) < k and open_.any():
        scores = (1.0 - diversity) * relevance - diversity * nearest
        best = int(np.argmax(np.where(open_, np.round(scores, 6), -np.inf)))
        open_[best] = False
        example = candidates[best].example
        if left is not None:
            tokens = tokens_of(example, count)
            if tokens > left:
                continue
            left -= tokens
        picked.append(example)
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return picked


def _plain(question: str) -> str:
    return " ".join(question.casefold().split()).rstrip("?!. ")
