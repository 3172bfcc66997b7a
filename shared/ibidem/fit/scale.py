"""What a threshold means after a fit: log-odds carried to the scale of the shipped score. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ibidem.decision.scoring import threshold_for
from ibidem.fit.fitted import Array, Scale
from ibidem.intervals import clopper_pearson

# Of the one-sided bounds, as that of `ibidem.audits.budget`. On the second half of banking77, four seeds,
# 2.0 % of the hits were wrong with 98, 2.1 % with 95, 2.2 % with 90 % for a promise of 2 %.
CONFIDENCE = 0.98
DISPROOF = 0.9  # of the bound from below; trust in the shipped threshold ends sooner than it is won
STEP = 1.15  # the bound is looked at after so many times more hits: more looks find more luck
LEVELS = (
    0.0375,
    0.035,
    0.0325,
    0.03,
    0.0275,
    0.025,
    0.0225,
    0.02,
    0.0175,
    0.015,
    0.0125,
    0.01,
    0.0075,
    0.005,
)
TOP = 5e-4  # scores above what is proved differ by no more, so that no stricter threshold is reached
LOW_SHARE, LOW = 0.1, 0.8  # this share of the labelled pairs scores below what audits look at
JUST = 1e-6  # of log-odds, below an edge
BOTTOM = 0.5  # score of the worst labelled pair

Bools = NDArray[np.bool_]


def upper(wrong: int, judged: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson bound of a share, from above."""
    return clopper_pearson(wrong, judged, 2.0 * confidence - 1.0)[1]


class Prefix(NamedTuple):
    """What a threshold serves of the labelled questions: the least log-odds, hits, wrong hits."""

    edge: float
    hits: int
    wrong: int

    @property
    def bound(self) -> float:
        """Of wrong per hit, from above."""
        return upper(self.wrong, self.hits)


def prefixes(z: Array, right: Bools) -> list[Prefix]:
    """What thresholds serve, the strictest first, each with some more hits than the one before."""
    order = np.argsort(-z, kind="stable")
    ordered, wrong = z[order], np.cumsum(~right[order])
    found, count = [], 10
    while count <= len(z):
        at = int(np.searchsorted(-ordered, -ordered[count - 1], side="right"))  # with all of the same score
        found.append(Prefix(float(ordered[at - 1]), at, int(wrong[at - 1])))
        count = max(at + 1, int(at * STEP))
    return found


def fit_scale(z: Array, right: Bools, everything: Array, shipped: tuple[Array, Bools]) -> Scale:
    """The scale on which the threshold for a share of wrong hits keeps that share.

    That is, the bound proves it. Or, as a proof takes many labels, it serves no more wrong hits of these
    labels than the shipped score at the same threshold, which may be trusted unless the labels disprove it,
    and the share is kept as far as the labels show.

    Args:
        z: Out-of-fold log-odds of the best candidate of each question.
        right: Whether it was right.
        everything: The log-odds of all pairs.
        shipped: Shipped score of its best candidate of each question, and whether that was right.
    """
    looked_at = prefixes(z, right)
    bounds = {one: one.bound for one in looked_at}
    knots: dict[float, float] = {}
    for level in {*LEVELS, *(bound for bound in bounds.values() if bound < LEVELS[0])}:
        threshold = threshold_for(level)
        trusted = _wrong_of_shipped(*shipped, threshold, level)
        edges = [
            one.edge
            for one, bound in bounds.items()
            if bound <= level or (one.wrong <= trusted and one.wrong <= level * one.hits)
        ]
        if edges:
            knots[threshold] = min(edges)
    low, bottom = float(np.quantile(everything, LOW_SHARE)), float(everything.min())
    start = [(bottom, BOTTOM)] if bottom == low else [(bottom, BOTTOM), (low, LOW)]
    return Scale(tuple(_rising(start, knots)), TOP if knots else threshold_for(LEVELS[0]) - LOW - TOP)


def _wrong_of_shipped(scores: Array, right: Bools, threshold: float, level: float) -> int:
    """Wrong hits of the shipped score at a threshold; -1 if it serves nothing or is disproved."""
    served = right[scores >= threshold]
    wrong = len(served) - int(served.sum())
    return -1 if not len(served) or is_broken(wrong, len(served), level) else wrong


def _rising(start: list[tuple[float, float]], knots: dict[float, float]) -> list[tuple[float, float]]:
    """Knots that rise in both. Just below an edge the score is less than all that the edge allows."""
    allowed: dict[float, list[float]] = {}
    for score, edge in knots.items():
        allowed.setdefault(edge, []).append(score)
    kept = start
    for edge, scores in sorted(allowed.items()):
        kept = [knot for knot in kept if knot[0] < edge - JUST]
        below = max(min(scores) - TOP, kept[-1][1] + JUST if kept else -1.0)
        if below < max(scores):
            kept += [(edge - JUST, below), (edge, max(scores))]
    return kept if len(kept) > 1 else [(kept[0][0] - 1.0, kept[0][1] - 0.1), *kept]


def is_broken(wrong: int, hits: int, max_wrong: float) -> bool:
    """Whether the labels disprove that `max_wrong` of the hits are wrong at most (90 %, one-sided)."""
    return clopper_pearson(wrong, hits, 2.0 * DISPROOF - 1.0)[0] > max_wrong
