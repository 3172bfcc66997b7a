"""A score fitted to the labels of a deployment. `ibidem.fit.fitting` learns it, `ibidem.fit.text` keeps it.

    z = bias + sum(weight * feature);   score = scale(z)

Features: the score that is shipped, the lexical differences it knows, how alike the words are, a cosine in a
space that was learned (a low-rank metric), and words that were seen to matter. `scale` carries the log-odds z
to the scale of the shipped score, on which `decision.scoring.threshold_for` says what a threshold means
(`ibidem.fit.scale`). So every threshold keeps its meaning, whichever scorer a cache has.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from ibidem.decision.phrasing import take_apart
from ibidem.decision.scoring import REACH, Scorer, Vectors, features

BASE, COSINE, METRIC, WORDS = "shipped", "cosine", "metric", "words"
ALIKE = ("stems_shared", "rarest_asked", "rarest_stored", "trigrams_shared", "length_ratio", "length")
LEXICAL = (*features("x", "x"), *ALIKE, COSINE)
NAMES = (BASE, *LEXICAL, METRIC, WORDS)  # the columns of the design, in order
UNKNOWN = 0.0  # score at most of what no label tells about
MOST_RARE = 4  # rare words that count

Array = NDArray[np.float64]
Matrix = NDArray[np.float32]


def nearness(score: float) -> float:
    """The logarithm in which a score or a cosine enters: what the shipped scorer stretches and shrinks."""
    return -math.log(REACH - min(score, 1.0))


@lru_cache(maxsize=4096)
def _trigrams(text: str) -> frozenset[str]:
    lowered = text.lower()
    return frozenset(lowered[at : at + 3] for at in range(len(lowered) - 2))


def one_sided(asked: str, stored: str) -> frozenset[str]:
    """Words of one question only."""
    return frozenset(take_apart(asked).words) ^ frozenset(take_apart(stored).words)


def _shared(one: frozenset[str], other: frozenset[str], rarity: Rarity) -> float:
    """The share of the words that both have, by rarity (Jaccard); 1 for no words."""
    union = sum(map(rarity, one | other))
    return sum(map(rarity, one & other)) / union if union else 1.0


@dataclass(frozen=True, slots=True)
class Rarity:
    """Inverse document frequency of words: `log((n + 1) / (seen + 1))`, at most that of a word never seen."""

    known: Mapping[str, float]
    unknown: float

    def __call__(self, word: str) -> float:
        """Of one word."""
        return self.known.get(word, self.unknown)


@dataclass(frozen=True, eq=False)
class Metric:
    """A low-rank metric on the embeddings: the cosine of `u + B A u` of both; A is (r, d), B is (d, r)."""

    a: Matrix
    b: Matrix

    def map(self, vectors: Matrix) -> Matrix:
        """Vectors of shape (n, d) in the learned space, unit length."""
        moved = vectors + (vectors @ self.a.T) @ self.b.T
        mapped: Matrix = moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-12)
        return mapped

    def cosine(self, one: Matrix, other: Matrix) -> Array:
        """Row by row, shape (n,)."""
        found: Array = np.einsum("nd,nd->n", self.map(one), self.map(other)).astype(np.float64)
        return found


@dataclass(frozen=True, slots=True)
class WordWeights:
    """What it costs that a word stands on one side only; rarer words share one weight."""

    known: Mapping[str, float]
    rare: float
    slope: float  # of the cosine, in tenths from 0.85

    def score(self, differing: Iterable[str], cosine: float) -> float:
        """In log-odds."""
        found = [self.known.get(word) for word in differing]
        rare = min(MOST_RARE, sum(weight is None for weight in found))
        return sum(filter(None, found)) + self.rare * rare + self.slope * (cosine - 0.85) * 10.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Log-odds -> score: linear between knots, both rising; a line below, and above at most `top` more."""

    knots: tuple[tuple[float, float], ...]
    top: float

    def __call__(self, z: float) -> float:
        """The score for these log-odds, at least -1."""
        xs = [x for x, _ in self.knots]
        at = bisect_right(xs, z)
        if at == len(xs):
            x, y = self.knots[-1]
            return y + self.top * -math.expm1(x - z)
        (x0, y0), (x1, y1) = self.knots[max(0, at - 1)], self.knots[max(1, at)]
        return max(-1.0, y0 + (z - x0) * (y1 - y0) / (x1 - x0))


@dataclass(frozen=True, repr=False, eq=False)
class FittedScorer:
    """A `Scorer` fitted to labels of a deployment; see the module's docstring.

    Args:
        base: The scorer that is shipped for the same embedder; what it knows is a feature.
        base_name: Names `base` with its weights: fitted to another, this is of no use.
        weights: By name, as in `NAMES`; 0 for what was found useless.
        bias: Log-odds where all features are 0.
        metric: None if its weight is 0.
        words: None if its weight is 0.
        rarity: Of words in the labelled questions.
        scale: Log-odds to score.
        least: The least cosine of a labelled pair: below it nothing is known.
        least_shipped: The least shipped score that is known enough: the same.
        labels: How many questions it was fitted to.
        digest: Of the text that it was read from; names it.
    """

    base: Scorer
    base_name: str
    weights: Mapping[str, float]
    bias: float
    metric: Metric | None
    words: WordWeights | None
    rarity: Rarity
    scale: Scale
    least: float
    least_shipped: float
    labels: int
    digest: str = ""

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """At most 1; where nothing is known of such pairs, or the vectors are missing, too low to be served.

        Never above the shipped score where the number of negations differs: labels hold few such pairs.
        """
        shipped = self.base.score(asked, stored, cosine, vectors)
        if shipped < self.least_shipped or (self.metric is not None and vectors is None):
            return min(shipped, UNKNOWN)
        score = min(1.0, self.scale(self.log_odds(asked, stored, cosine, vectors, shipped)))
        same = take_apart(asked).negations == take_apart(stored).negations
        return score if same else min(score, shipped)

    def log_odds(
        self, asked: str, stored: str, cosine: float, vectors: Vectors | None, shipped: float
    ) -> float:
        """Of being right, before `scale`."""
        row = [nearness(shipped), *lexical(asked, stored, cosine, self.rarity), 0.0, 0.0]
        if self.metric is not None and vectors is not None:
            one, other = self.metric.map(np.stack(vectors))
            row[-2] = float(one @ other)
        if self.words is not None:
            row[-1] = self.words.score(one_sided(asked, stored), cosine)
        return self.bias + sum(weight * value for weight, value in zip(self._weights, row, strict=True))

    @cached_property
    def _weights(self) -> tuple[float, ...]:
        return tuple(self.weights[name] for name in NAMES)

    def least_cosine(self, threshold: float) -> float:
        """That of the labelled pairs, whatever the threshold: a learned metric can lift any above it."""
        return self.least

    def __repr__(self) -> str:
        return f"FittedScorer({self.digest}, labels={self.labels})"


def lexical(asked: str, stored: str, cosine: float, rarity: Rarity) -> list[float]:
    """How the words differ, in the order of `LEXICAL`."""
    one, other = take_apart(asked), take_apart(stored)
    here, there = frozenset(one.words), frozenset(other.words)
    mine, theirs = _trigrams(asked), _trigrams(stored)
    return [
        *features(asked, stored).values(),
        _shared(frozenset(one.stems), frozenset(other.stems), rarity),
        max(map(rarity, here - there), default=0.0),
        max(map(rarity, there - here), default=0.0),
        len(mine & theirs) / max(1, len(mine | theirs)),
        abs(math.log((len(asked) + 5.0) / (len(stored) + 5.0))),
        math.log(len(one.words) + 1.0),
        nearness(cosine),
    ]
