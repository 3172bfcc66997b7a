"""Metrics of a score that predicts whether one answer serves two questions; numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ibidem._util.statistics import auc
from ibidem_lab.fitting.labels import Label
from ibidem_lab.replay import Judged, Share, most_hits, p_chr_auc
from ibidem_lab.tuning.data import components

GREY = (0.80, 0.97)  # cosines at which a decision is hard, as CacheVerifier (Xin 2026) draws them
RESAMPLES = 500

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PairMetrics:
    """The metrics of one model's cosines on labelled pairs.

    `auc` with its 95 % interval; `grey_auc` of the `grey` pairs whose cosine by the reference model is from
    0.80 to 0.97, NaN if they are all of one kind; `hits` the share of the pairs that could be served at 1, 2
    and 5 % wrong per hit, had one known the threshold; `p_chr` the area under precision over hit ratio.
    """

    pairs: int
    right: float
    auc: Share
    grey: int
    grey_auc: float
    hits: dict[float, Share]
    p_chr: float


def measure(
    pairs: Sequence[Label], cosines: Array, reference: Array | None = None, seed: int = 0
) -> PairMetrics:
    """Measure the cosines of `pairs`, float[n].

    Args:
        pairs: With labels.
        cosines: By the model that is measured.
        reference: By the model that draws the grey zone; None for the same.
        seed: Of the resampling.
    """
    same = labels_of(pairs)
    drawn = resampled(pairs, lambda at: auc(cosines[at], same[at]), seed)
    judged = [Judged(float(cosine), bool(right)) for cosine, right in zip(cosines, same, strict=True)]
    drawing = cosines if reference is None else reference
    grey = (drawing >= GREY[0]) & (drawing <= GREY[1])
    return PairMetrics(
        pairs=len(pairs),
        right=float(same.mean()),
        auc=Share(auc(cosines, same), *drawn),
        grey=int(grey.sum()),
        grey_auc=auc(cosines[grey], same[grey]),
        hits=most_hits(judged, len(pairs)),
        p_chr=p_chr_auc(judged, len(pairs)),
    )


def cosines(embed: Callable[[Sequence[str]], NDArray[np.float32]], pairs: Sequence[Label]) -> Array:
    """Compute the cosine of each pair, float64[n]; each question is embedded once.

    Args:
        embed: Unit vectors of texts, shape (n, d).
        pairs: Whose labels do not matter.
    """
    texts = sorted({text for pair in pairs for text in (pair.asked, pair.stored)})
    vectors = dict(zip(texts, embed(texts), strict=True))
    return np.array([float(vectors[pair.asked] @ vectors[pair.stored]) for pair in pairs])


def labels_of(pairs: Sequence[Label]) -> Bools:
    """Return the labels, bool[n]."""
    return np.array([pair.right for pair in pairs], bool)


def resampled(
    pairs: Sequence[Label], figure: Callable[[NDArray[np.int64]], float], seed: int = 0
) -> tuple[float, float]:
    """Estimate the 95 % interval of a figure, by the bootstrap over groups of connected questions.

    Pairs that share questions are not independent, so they are drawn together. `figure` gets places in the
    pairs; draws for which it is NaN are left out. (NaN, NaN) if all are.
    """
    number = components((pair.asked, pair.stored) for pair in pairs)
    groups: dict[int, list[int]] = {}
    for at, pair in enumerate(pairs):
        groups.setdefault(number[pair.asked], []).append(at)
    places = [np.array(group) for group in groups.values()]
    draw = np.random.default_rng(seed)
    found = [
        figure(np.concatenate([places[one] for one in draw.integers(len(places), size=len(places))]))
        for _ in range(RESAMPLES if places else 0)
    ]
    known = [value for value in found if not math.isnan(value)]
    if not known:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
