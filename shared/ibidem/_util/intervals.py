"""How far a share that was counted may be from the true one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share; (0, 1) if nothing was counted.

    Its ends are the chances at which so many, or so few, would be as rare as the confidence allows.
    """
    if total == 0:
        return 0.0, 1.0
    rare = (1.0 - confidence) / 2.0
    low = 0.0 if count == 0 else _chance(lambda p: 1.0 - _at_most(count - 1, total, p) < rare)
    high = 1.0 if count == total else _chance(lambda p: _at_most(count, total, p) > rare)
    return low, high


def _chance(too_low: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return (low + high) / 2.0


def _at_most(count: int, total: int, chance: float) -> float:
    """The binomial chance of at most `count` of `total`."""
    drawn = np.arange(count + 1)
    steps = np.log((total - drawn[:-1]) / (drawn[:-1] + 1.0))
    ways = np.concatenate([[0.0], np.cumsum(steps)])
    logs = ways + drawn * math.log(chance) + (total - drawn) * math.log1p(-chance)
    return float(np.exp(logs).sum())
