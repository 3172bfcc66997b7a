"""Logistic regression by Newton's method."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-3  # keeps the weights finite where the labels are told apart without an error
STEPS = 50

Array = NDArray[np.floating[Any]]


def logistic(features: Array, labels: Array, weights: Array) -> Array:
    """Fit a weighted logistic regression.

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
        expected = 0.5 * (1.0 + np.tanh(0.5 * (features @ found)))  # the sigmoid, without an overflow
        slope = features.T @ (weights * (labels - expected)) - ridge @ found
        curvature = (features.T * (weights * expected * (1 - expected))) @ features + ridge
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(found)), slope)
        found = found + step
        if np.abs(step).max() < 1e-8:
            break
    return found
