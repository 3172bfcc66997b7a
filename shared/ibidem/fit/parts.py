"""What a fit is made of: a low-rank metric, weights of words, a logistic regression. numpy only, pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibidem.fit.fitted import MOST_RARE, Array, Matrix, Metric, WordWeights

RANK, BATCH, STEPS = 48, 64, 1_250  # of the metric; 40 epochs of 2,000 pairs
RATE, DECAY = 2e-3, 1e-3  # Adam's step, and how the matrices shrink with each
SHARPNESS, CENTRE = 20.0, 0.8  # where the logistic function of the cosine begins; both are learned
LEAST_SEEN, WORD_STEPS, WORD_RATE, WORD_RIDGE = 3, 300, 0.05, 1e-3
RIDGE, NEWTON_STEPS = 5.0, 60

Parameters = dict[str, NDArray[np.floating[Any]]]


def sigmoid(x: Array) -> Array:
    """Of log-odds; finite whatever comes."""
    return 1.0 / (1.0 + np.exp(-np.clip(x, -35.0, 35.0)))


class _Adam:
    """Adam (Kingma and Ba 2015), with b2 = 0.99, a short warm-up and a rate that falls to 0 in a line."""

    def __init__(self, at: Parameters, rates: dict[str, float], steps: int) -> None:
        self.at, self._rates, self._steps, self._step = at, rates, steps, 0
        self._mean = {name: np.zeros_like(value) for name, value in at.items()}
        self._square = {name: np.zeros_like(value) for name, value in at.items()}

    def go(self, slopes: Parameters, shrink: Sequence[str] = (), decay: float = 0.0) -> None:
        """One step down the slopes; `shrink` names what decays with it."""
        self._step += 1
        t = self._step
        pace = min(1.0, t / 20.0) * (1.0 - t / (self._steps + 1.0))
        for name, slope in slopes.items():
            self._mean[name] = 0.9 * self._mean[name] + 0.1 * slope
            self._square[name] = 0.99 * self._square[name] + 0.01 * slope**2
            mean, square = self._mean[name] / (1 - 0.9**t), self._square[name] / (1 - 0.99**t)
            self.at[name] = self.at[name] - self._rates[name] * pace * mean / (np.sqrt(square) + 1e-8)
            if name in shrink:
                self.at[name] = self.at[name] * (1.0 - decay * pace)


def fit_metric(asked: Matrix, stored: Matrix, right: Matrix, seed: int) -> Metric:
    """A metric in which right pairs are near: binary cross-entropy of `sigmoid(sharpness (cos - centre))`.

    Args:
        asked: Unit vectors, shape (n, d), float32.
        stored: The same, of the other question of each pair.
        right: 1 or 0, shape (n,), float32.
        seed: Of the beginning, and of the order of the pairs.
    """
    draw, width = np.random.default_rng(seed), asked.shape[1]
    rank = min(RANK, width)
    start = {
        "a": draw.normal(0.0, 1.0 / math.sqrt(width), (rank, width)).astype(np.float32),
        "b": np.zeros((width, rank), np.float32),
        "sharpness": np.full((), SHARPNESS, np.float32),
        "centre": np.full((), CENTRE, np.float32),
    }
    adam = _Adam(start, {"a": RATE, "b": RATE, "sharpness": 0.02, "centre": 0.002}, STEPS)
    order: list[int] = []
    for _ in range(STEPS):
        if len(order) < BATCH:
            order += draw.permutation(len(right)).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        adam.go(_slopes(adam.at, asked[batch], stored[batch], right[batch]), ("a", "b"), DECAY)
        adam.at["sharpness"] = np.clip(adam.at["sharpness"], 5.0, 60.0)
    halved = {name: adam.at[name].astype("<f2").astype(np.float32) for name in ("a", "b")}  # as it is kept
    return Metric(halved["a"], halved["b"])


def _slopes(at: Parameters, asked: Matrix, stored: Matrix, right: Matrix) -> Parameters:
    a, b = at["a"], at["b"]
    low, low_stored = asked @ a.T, stored @ a.T
    x, y = asked + low @ b.T, stored + low_stored @ b.T
    x_length, y_length = (np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    x, y = x / x_length, y / y_length
    cosine = np.sum(x * y, axis=1, keepdims=True)
    off = (sigmoid(at["sharpness"] * (cosine[:, 0] - at["centre"])) - right)[:, None] / len(right)
    pull = off * at["sharpness"]
    to_x, to_y = pull * (y - cosine * x) / x_length, pull * (x - cosine * y) / y_length
    return {
        "a": (to_x @ b).T @ asked + (to_y @ b).T @ stored,
        "b": to_x.T @ low + to_y.T @ low_stored,
        "sharpness": np.sum(off * (cosine - at["centre"])),
        "centre": -np.sum(off) * at["sharpness"],
    }


def fit_words(differing: Sequence[frozenset[str]], cosine: Array, right: NDArray[np.float32]) -> WordWeights:
    """Logistic regression with a weight for every word seen on one side of at least three pairs."""
    seen: dict[str, int] = {}
    for words in differing:
        for word in words:
            seen[word] = seen.get(word, 0) + 1
    places = {w: at for at, w in enumerate(sorted(w for w, n in seen.items() if n >= LEAST_SEEN))}
    pairs = [(row, places[word]) for row, words in enumerate(differing) for word in words if word in places]
    rows, columns = (np.array(side, int) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    rare = np.array([min(MOST_RARE, sum(word not in places for word in words)) for words in differing])
    dense = np.stack([rare, (cosine - 0.85) * 10.0, np.ones(len(right))], axis=1).astype(float)
    start: Parameters = {"words": np.zeros(len(places)), "dense": np.zeros(3)}
    adam = _Adam(start, {"words": WORD_RATE, "dense": WORD_RATE}, WORD_STEPS)
    for _ in range(WORD_STEPS):
        z = np.bincount(rows, adam.at["words"][columns], len(right)) + dense @ adam.at["dense"]
        off = sigmoid(z) - right
        slope = np.bincount(columns, off[rows], len(places)) / len(right) + WORD_RIDGE * adam.at["words"]
        adam.go({"words": slope, "dense": dense.T @ off / len(right)})
        adam.at["dense"][1] = max(0.0, adam.at["dense"][1])
    weights = {word: round(float(adam.at["words"][at]), 4) for word, at in places.items()}
    return WordWeights(weights, float(adam.at["dense"][0]), float(adam.at["dense"][1]))


def fit_logistic(rows: Array, right: Array, signs: Array) -> tuple[Array, float]:
    """Weights and bias of a ridge-penalised logistic regression, by Newton's method.

    Args:
        rows: Features, shape (n, p); standardised inside.
        right: 1 or 0, shape (n,).
        signs: 1 for a weight that may not be negative, -1 for one that may not be positive, else 0; shape
            (p,). One that would be is set to 0 for good.
    """
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    design = np.concatenate([(rows - mean) / spread, np.ones((len(rows), 1))], axis=1)
    ridge = np.full(design.shape[1], RIDGE)
    ridge[-1] = 1e-3
    weights, free = np.zeros(design.shape[1]), np.ones(design.shape[1], bool)
    for _ in range(NEWTON_STEPS):
        chance = sigmoid(design @ weights)
        slope = design.T @ (chance - right) + ridge * weights
        curve = (design * np.maximum(chance * (1 - chance), 1e-5)[:, None]).T @ design + np.diag(ridge)
        step = np.zeros_like(weights)
        step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        after = weights - np.clip(step, -2.0, 2.0)
        against = np.append(signs * after[:-1] < 0.0, False)
        after[against] = 0.0
        free &= ~against
        done = np.abs(after - weights).max() < 1e-6
        weights = after
        if done:
            break
    scaled = weights[:-1] / spread
    return scaled, float(weights[-1] - scaled @ mean)
