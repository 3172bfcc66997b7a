"""How far may two questions be trusted to share an answer? The cosine, corrected for the words that differ.

An embedding overlooks small words and roles, and punishes chatter. Nine features of the difference of two
questions stretch or shrink the distance of their embeddings: with `penalty = bias - sum(weight * feature)`,

    score = reach - (reach - cosine) * exp(penalty),    reach = 1.02

So the score rises with the cosine whatever was learned, and reads like one: it is the cosine of an ordinary
right pair that is as likely to be right as this one. The weights are those of a logistic regression with an
intercept and a cosine slope of its own for every stream it learns from (`tests/benchmarks/fit_scorer.py`);
pooled, streams full of near misses turn the sign of the cosine. Every sign is constrained: a difference of
meaning never helps.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, Protocol

from ibidem.decision.phrasing import Phrasing, same_place, take_apart, unshared
from ibidem.entry import Vector
from ibidem.errors import InvalidInput

REACH = 1.02  # a little above 1, so that identical vectors have a finite logarithm
Vectors = tuple[Vector, Vector]  # of the question asked and of the stored one: unit length, shape (d,)
MOST = {"inserted": 2, "replaced": 3, "fillers": 5, "comparison": 2}  # counts saturate here


class Scorer(Protocol):
    """Turns two questions into a score that is compared with the threshold."""

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """At most 1; higher is surer. `vectors` are None where only the texts and their cosine are known."""
        ...

    def least_cosine(self, threshold: float) -> float:
        """A cosine below which no pair of questions reaches the threshold."""
        ...


class CosineScorer:
    """The cosine itself, for embedders that the learned scorer does not know.

    With another number of negations the questions must be nearly identical: 0.9975 instead of 0.95 ("safe"
    and "not safe" reach 0.991).
    """

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """The cosine; its distance from 1 counts twenty times if the number of negations differs."""
        same = take_apart(asked).negations == take_apart(stored).negations
        return cosine if same else 1.0 - 20.0 * (1.0 - cosine)

    def least_cosine(self, threshold: float) -> float:
        """The threshold itself."""
        return threshold


@dataclass(frozen=True, slots=True)
class LearnedScorer:
    """Weights of the features, learned for the embedder of this fingerprint. See the module's docstring."""

    weights: Mapping[str, float]
    bias: float
    embedder: str = ""

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """The cosine, corrected for the words that differ."""
        found = features(asked, stored)
        penalty = self.bias - sum(self.weights[name] * value for name, value in found.items())
        if not (take_apart(asked).is_english and take_apart(stored).is_english):
            penalty = max(penalty, 0.0)  # no bonus where the words are not understood
        return max(-1.0, min(1.0, REACH - (REACH - cosine) * math.exp(penalty)))

    def least_cosine(self, threshold: float) -> float:
        """Where the highest bonus ends."""
        bonus = sum(weight * MOST.get(name, 1) for name, weight in self.weights.items() if weight > 0)
        return REACH - (REACH - threshold) * math.exp(max(0.0, bonus - self.bias))


@lru_cache(maxsize=1)
def shipped() -> LearnedScorer:
    """The scorer that comes with Ibidem, for the default embedder."""
    held = _held()
    return LearnedScorer(held["weights"], held["bias"], held["embedder"])


def highest_max_wrong() -> float:
    """The largest share of wrong hits that a threshold is known for."""
    table: list[list[float]] = _held()["calibration"]
    return table[-1][0]


def threshold_for(max_wrong: float) -> float:
    """The threshold at which about `max_wrong` of the hits are wrong.

    For question-and-answer traffic like the two streams of customers' questions it was measured on, with the
    default embedder and weights that had not learned from them; the worse of the two, interpolated. Other
    traffic needs audits.

    Raises:
        InvalidInput: `max_wrong` is no share above 0, or more than was measured.
    """
    most = highest_max_wrong()
    if not 0.0 < max_wrong <= most:
        raise InvalidInput(
            f"is a share of the hits above 0 and at most {most:g}, the highest for which a threshold of the "
            f"shipped score was measured (not {max_wrong!r}); for more give threshold, or audit_rate so that "
            "audits decide"
        )
    table: list[list[float]] = _held()["calibration"]
    for (level, threshold), (next_level, next_threshold) in pairwise(table):
        if max_wrong < next_level:
            part = (max_wrong - level) / (next_level - level)
            return threshold + part * (next_threshold - threshold)
    return table[-1][1]


@lru_cache(maxsize=1)
def _held() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("ibidem.decision") / "scorer.json").read_text(encoding="utf-8"))
    return found


def scorer_for(fingerprint: str) -> Scorer:
    """The learned scorer for the embedder it was learned for, else the cosine."""
    learned = shipped()
    return learned if fingerprint == learned.embedder else CosineScorer()


def features(asked: str, stored: str) -> dict[str, float]:
    """What differs. All are 0 for two questions of the same words, but `rephrased` is 1.

    `inserted` and `replaced` content words; `one_word` if one was replaced in its place; another
    `question_word`; an `amount` asked for by one only; words of `comparison`; `negation`; `fillers`.
    """
    one, other = take_apart(asked), take_apart(stored)
    here, there = unshared(one, other)
    found = {
        "inserted": abs(len(here) - len(there)),
        "replaced": min(len(here), len(there)),
        "one_word": len(here) == len(there) == 1 and same_place(one.words, other.words),
        "question_word": bool(one.asks and other.asks) and one.asks != other.asks,
        "amount": ("amount" in one.asks) != ("amount" in other.asks),
        "comparison": _difference(one.comparisons, other.comparisons),
        "negation": one.negations != other.negations,
    }
    found["rephrased"] = not any(found.values()) and _built_alike(one, other)
    found["fillers"] = _difference(one.fillers, other.fillers)
    return {name: float(min(value, MOST.get(name, 1))) for name, value in found.items()}


def _built_alike(one: Phrasing, other: Phrasing) -> bool:
    """Whether prepositions are the same and content words, if all are shared, in the same order."""
    moved = one.stems != other.stems and sorted(one.stems) == sorted(other.stems)
    return one.prepositions == other.prepositions and not moved


def _difference(one: Counter[str], other: Counter[str]) -> int:
    return 0 if one == other else sum(((one - other) + (other - one)).values())
