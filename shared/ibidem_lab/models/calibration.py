"""Calibrate a verifier: from its logit and the cosine of two questions to a probability."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ibidem._util.statistics import logistic
from ibidem.matching.pair_model import LARGEST_LOGIT, Calibration
from ibidem_lab.models.groups import Pair


def fit_calibration(
    sets: Mapping[str, Sequence[Pair]],
    logits: Mapping[str, NDArray[np.float32]],
    cosines: Mapping[str, NDArray[np.float32]],
) -> Calibration:
    """Fit by maximum likelihood on labelled pairs that the verifier was not trained on.

    Every set counts as much as another, however many pairs it has. A weight that would be negative is 0: a
    higher cosine or logit never lowers the probability. Pairs beyond the window (NaN) are left out.
    """
    rows, labels, counts = [], [], []
    for name, pairs in sets.items():
        z = np.clip(np.asarray(logits[name], np.float64), -LARGEST_LOGIT, LARGEST_LOGIT)
        found = np.column_stack([z, np.asarray(cosines[name], np.float64), np.ones(len(pairs))])
        known = ~np.isnan(found).any(axis=1)
        rows.append(found[known])
        labels.append(np.array([pair.same for pair in pairs])[known])
        counts.append(np.full(int(known.sum()), 1.0 / max(1, known.sum())))
    features, same, weights = np.concatenate(rows), np.concatenate(labels), np.concatenate(counts)
    used = [0, 1, 2]
    while True:
        found = logistic(features[:, used], same, weights * len(same) / weights.sum())
        negative = [column for column, value in zip(used, found, strict=True) if column < 2 and value < 0]
        if not negative:
            break
        used = [column for column in used if column not in negative]
    whole = dict(zip(used, found.tolist(), strict=True))
    return Calibration(whole.get(0, 0.0), whole.get(1, 0.0), whole[2])


def deciles(probabilities: NDArray[np.float64], same: NDArray[np.bool_]) -> list[tuple[int, float, float]]:
    """Count the pairs in each tenth of the probability, with the mean told and the share that is the same."""
    known = ~np.isnan(probabilities)
    probabilities, same = probabilities[known], same[known]
    place = np.minimum((probabilities * 10).astype(int), 9)
    return [
        (int(at.sum()), float(probabilities[at].mean()), float(same[at].mean()))
        for at in (place == number for number in range(10))
        if at.any()
    ]
