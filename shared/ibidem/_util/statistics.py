"""Statistics of scores: the sigmoid, the AUC, logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-3  # keeps the weights finite where the labels are told apart without an error
STEPS = 50

Array = NDArray[np.floating[Any]]


def sigmoid(x: Array) -> NDArray[np.float64]:
    """Compute 1 / (1 + exp(-x)), elementwise, in a form that never overflows; NaN where x is."""
    found: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, np.float64)))
    return found


def auc(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """Compute the AUC, ties counted half (Mann-Whitney); NaN if all pairs are of one kind.

    A score of NaN is below all others.
    """
    right = int(same.sum())
    wrong = len(same) - right
    if not right or not wrong:
        return float("nan")
    scores = np.where(np.isnan(scores), -np.inf, scores)
    return float((_ranks(scores)[same].sum() - right * (right + 1) / 2) / (right * wrong))


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank scores from 1; equal scores share the mean of their ranks."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2.0)[inverse]
    return ranks


def logistic(features: Array, labels: Array, weights: Array) -> Array:
    """Fit a weighted logistic regression, by Newton's method.

    Args:
        features: (rows, columns); the last column is the constant, on which there is no ridge.
        labels: (rows), from 0 to 1.
        weights: (rows), not below 0.

    Returns:
        The coefficient of each column.
    """
    found = np.zeros(features.shape[1])
    ridge = np.diag([RIDGE] * (features.shape[1] - 1) + [0.0])
    for _ in range(STEPS):
        expected = sigmoid(features @ found)
        slope = features.T @ (weights * (labels - expected)) - ridge @ found
        curvature = (features.T * (weights * expected * (1 - expected))) @ features + ridge
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(found)), slope)
        found = found + step
        if np.abs(step).max() < 1e-8:
            break
    return found
