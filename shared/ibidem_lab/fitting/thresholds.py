"""What share of the hits is wrong at which score: measured by replaying labelled streams of questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ibidem.matching.policy import Policy
from ibidem.matching.scorers import Scorer
from ibidem.types import Vector
from ibidem_lab.replay import Outcome, Row, by_policy, replay

# Probabilities that are tried, the strictest first.
GRID = (
    0.995, 0.985, 0.98, 0.975, 0.97, 0.965, 0.96, 0.955, 0.95, 0.945, 0.94, 0.93, 0.92, 0.91, 0.9,
    0.89, 0.88, 0.87, 0.86, 0.85, 0.83, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4,
)  # fmt: skip

Sample = tuple[Sequence[Row], Sequence["Vector | None"]]  # questions in their order, and their vectors
Measured = Mapping[float, Outcome]  # by threshold


def measure(
    scorer: Scorer,
    samples: Sequence[Sample],
    grid: Sequence[float] = GRID,
    least_cosine: float | None = None,
) -> dict[float, Outcome]:
    """What each threshold serves of some samples of one stream, guards included.

    `least_cosine`: of candidates that are scored; default: what the scorer says. Each threshold scores the
    same pairs again, so give a scorer that remembers them.
    """
    return together(
        {
            threshold: replay(rows, vectors, by_policy(Policy(threshold), scorer, least_cosine))
            for threshold in grid
        }
        for rows, vectors in samples
    )


def together(measured: Iterable[Measured]) -> dict[float, Outcome]:
    """What was measured on several samples of one stream, at the same thresholds."""
    found: dict[float, Outcome] = {}
    for sample in measured:
        for threshold, one in sample.items():
            total = found.setdefault(threshold, Outcome())
            total.requests, total.hits = total.requests + one.requests, total.hits + one.hits
            total.wrong += one.wrong
    return found


def thresholds(measured: Mapping[str, Measured]) -> list[tuple[float, float]]:
    """Pairs of a share and its threshold, from the strictest on, both monotone.

    The share is what is wrong per hit of the worst stream. Thresholds that allow nothing more than a stricter
    one are left out; so is what a laxer one would save.
    """
    grid = list(next(iter(measured.values())))
    shares = [max(found) for found in zip(*map(smoothed, measured.values()), strict=True)]
    rows = [(0.0, 1.0)]
    for threshold, wrong in zip(grid, shares, strict=True):
        if wrong - rows[-1][0] < 5e-4:  # the same, but with more hits
            rows[-1] = (rows[-1][0], threshold)
        else:
            rows.append((round(wrong, 4), threshold))
    return rows if rows[0] == (0.0, 1.0) else [(0.0, 1.0), *rows]


def smoothed(found: Measured) -> list[float]:
    """Wrong per hit at each threshold, if a surer hit is never likelier to be wrong.

    What a laxer threshold adds is a band; where a band has fewer wrong hits than the one before, both get
    the share of the two together.
    """
    bands: list[list[int]] = []  # hits, wrong, thresholds
    hits = wrong = 0
    for more in found.values():
        bands.append([max(1, more.hits - hits), max(0, more.wrong - wrong), 1])
        hits, wrong = more.hits, more.wrong
        while len(bands) > 1 and bands[-1][1] * bands[-2][0] < bands[-2][1] * bands[-1][0]:
            last = bands.pop()
            bands[-1] = [a + b for a, b in zip(bands[-1], last, strict=True)]
    shares, served, missed = [], 0.0, 0.0
    for count, errors, steps in bands:
        for _ in range(steps):
            served, missed = served + count / steps, missed + errors / steps
            shares.append(missed / served)
    return shares
