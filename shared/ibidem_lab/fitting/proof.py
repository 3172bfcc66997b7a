"""Which threshold keeps a share of wrong hits: proved by labels of a deployment. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ibidem._util.intervals import clopper_pearson
from ibidem.matching.fitted import NEVER, FittedThresholds, Level
from ibidem.matching.scorers import Scorer
from ibidem_lab.replay import Judged

# Of the one-sided bound from above, as that of `ibidem.audits.budget`.
CONFIDENCE = 0.98
DISPROOF = 0.9  # of the bound from below; trust in the shipped threshold ends sooner than it is won
FIRST, STEP = 10, 1.15  # the bound is looked at after so many times more hits: more looks find more luck
LEVELS = tuple(level / 10_000 for level in range(50, 525, 25))  # 0.5 to 5 %


def prove_thresholds(judged: Sequence[Judged], scorer: Scorer, *more: float) -> FittedThresholds:
    """The thresholds that these labels prove, for `LEVELS` and `more` shares.

    Args:
        judged: The best candidate of each question: its score, and whether it is right.
        scorer: Gave the scores.
        more: Other shares of wrong hits to know the threshold for.
    """
    seen = _prefixes(judged, scorer.floor)
    found, lowest = [], NEVER
    known = (level for level in {*LEVELS, *more} if level <= scorer.thresholds.highest)
    for max_error_rate in sorted(known):
        shipped = scorer.thresholds.at(max_error_rate)
        # What keeps less keeps this too.
        lowest = min(lowest, _threshold(judged, seen, max_error_rate, shipped))
        found.append(Level(max_error_rate, None if lowest == shipped else lowest))
    return FittedThresholds(tuple(found), len(judged))


def served(judged: Sequence[Judged], threshold: float) -> tuple[int, int]:
    """The hits and the wrong ones of them at a threshold."""
    right = [one.right for one in judged if one.score >= threshold]
    return len(right), len(right) - sum(right)


def _threshold(
    judged: Sequence[Judged], seen: Sequence[tuple[float, float]], max_error_rate: float, shipped: float
) -> float:
    proved = min((edge for edge, bound in seen if bound <= max_error_rate), default=NEVER)
    hits, wrong = served(judged, shipped)
    disproved = clopper_pearson(wrong, hits, 2.0 * DISPROOF - 1.0)[0] > max_error_rate if hits else False
    return proved if disproved else min(proved, shipped)


def _prefixes(judged: Sequence[Judged], floor: float) -> list[tuple[float, float]]:
    """Thresholds that the labels could be served at, the strictest first, each with its bound from above."""
    ordered = sorted(judged, key=lambda one: -one.score)
    found, at, wrong, count = [], 0, 0, FIRST
    while count <= len(ordered) and (edge := _rounded(ordered[count - 1].score)) >= floor:
        while at < len(ordered) and ordered[at].score >= edge:  # with all of nearly the same score
            wrong += not ordered[at].right
            at += 1
        found.append((edge, clopper_pearson(wrong, at, 2.0 * CONFIDENCE - 1.0)[1]))
        count = max(at + 1, int(at * STEP))
    return found


def _rounded(score: float) -> float:
    """Down to four digits: what is served must not hang on how a cosine was rounded."""
    return math.floor(score * 1e4) / 1e4
