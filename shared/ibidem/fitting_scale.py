"""What a threshold means after a fit: log-odds carried to the scale of the shipped score. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ibidem.fitted import Array, Scale
from ibidem.intervals import clopper_pearson
from ibidem.scoring import threshold_for

CONFIDENCE = 0.9  # of the one-sided bounds
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
BOTTOM = 0.5  # score of the worst labelled pair


def upper(wrong: int, judged: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson bound of a share, from above."""
    return clopper_pearson(wrong, judged, 2.0 * confidence - 1.0)[1]


def prefixes(z: Array, right: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """(least log-odds, upper bound of wrong per hit, hits) of what such thresholds serve, strictest first."""
    order = np.argsort(-z, kind="stable")
    ordered, wrong = z[order], np.cumsum(~right[order])
    found, count = [], 10
    while count <= len(z):
        at = int(np.searchsorted(-ordered, -ordered[count - 1], side="right"))  # with all of the same score
        found.append((float(ordered[at - 1]), upper(int(wrong[at - 1]), at), at))
        count = max(at + 1, int(at * STEP))
    return found


def fit_scale(z: Array, right: NDArray[np.bool_], everything: Array) -> Scale:
    """The scale on which the threshold for a share of wrong hits is where the bound proves that share.

    Args:
        z: Out-of-fold log-odds of the best candidate of each question.
        right: Whether it was right.
        everything: The log-odds of all pairs.
    """
    looked_at = prefixes(z, right)
    knots: dict[float, float] = {}
    least = min((bound for _, bound, _ in looked_at), default=1.0)
    for level in sorted({least, *LEVELS}, reverse=True):
        if least <= level <= LEVELS[0]:
            lowest = min(edge for edge, bound, _ in looked_at if bound <= level)
            knots[threshold_for(level)] = lowest
    low, bottom = float(np.quantile(everything, LOW_SHARE)), float(everything.min())
    ascending = [(bottom, BOTTOM), (low, LOW), *((edge, score) for score, edge in sorted(knots.items()))]
    return Scale(tuple(_rising(ascending)), TOP if knots else threshold_for(LEVELS[0]) - LOW - TOP)


def _rising(knots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that rise in both; of two at the same log-odds the higher score, as what it says is proved."""
    kept: list[tuple[float, float]] = []
    for edge, score in knots:
        while kept and edge <= kept[-1][0]:
            kept.pop()
        kept.append((edge, score))
    if len(kept) < 2:
        kept.insert(0, (kept[0][0] - 1.0, min(BOTTOM, kept[0][1] - 0.1)))
    return kept


def is_broken(wrong: int, hits: int, max_wrong: float) -> bool:
    """Whether more than `max_wrong` of the hits are wrong for certain (the same confidence, from below)."""
    return clopper_pearson(wrong, hits, 2.0 * CONFIDENCE - 1.0)[0] > max_wrong
