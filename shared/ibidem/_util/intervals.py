"""Confidence intervals of measured shares."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the exact (Clopper-Pearson) interval of `count / total`; (0, 1) if `total` is 0."""
    if total == 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if count == 0 else _bisect(lambda p: 1.0 - _binomial_cdf(count - 1, total, p) < tail)
    high = 1.0 if count == total else _bisect(lambda p: _binomial_cdf(count, total, p) > tail)
    return low, high


def _bisect(too_low: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return (low + high) / 2.0


def _binomial_cdf(count: int, total: int, probability: float) -> float:
    """Compute the probability of at most `count` successes in `total` trials."""
    successes = np.arange(count + 1)
    steps = np.log((total - successes[:-1]) / (successes[:-1] + 1.0))
    log_coefficients = np.concatenate([[0.0], np.cumsum(steps)])
    failures = total - successes
    logs = log_coefficients + successes * math.log(probability) + failures * math.log1p(-probability)
    return float(np.exp(logs).sum())
