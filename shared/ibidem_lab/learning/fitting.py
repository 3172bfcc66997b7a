"""Fit a correction of the shipped score to labels: ridge logistic regression on what the pair model has read.

The margin of a pair (the log odds that one answer serves both) becomes

    margin = shipped margin + state @ weights + change of the calibration

where the state is the pair model's last hidden state, averaged over the tokens, in the directions in which
the pairs of this cache vary most. The correction is held near zero on labelled pairs that come with Ibidem,
so that what was known of other questions stays. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ibidem._util.statistics import sigmoid
from ibidem.matching.pair_model import LARGEST_LOGIT, SPARSE, Calibration

Array = NDArray[np.float64]

DIRECTIONS = 128  # of the states that a correction may use
STEPS, TOLERANCE = 30, 1e-6  # of Newton's method
ANCHORED = 0.5  # what a squared change of the margin of a pair that comes with Ibidem costs
SMOOTHING = 0.02  # labels are taken for right with a probability of 1 less this
FIXED_RIDGE = (
    0.02,
    4.0,
    1.0,
    0.1,
)  # on changes of the weight of logit, cosine and density, and of the offset


@dataclass(frozen=True)
class Pairs:
    """Pairs that were read: logits, cosines, densities, states (n, width), and labels, row by row."""

    logits: Array
    cosines: Array
    densities: Array
    states: NDArray[np.float32]
    right: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.logits)

    def at(self, rows: NDArray[np.int64] | Sequence[int]) -> Pairs:
        """Return some of the rows."""
        at = np.asarray(rows, np.int64)
        numbers = (self.logits[at], self.cosines[at], self.densities[at])
        return Pairs(*numbers, self.states[at], self.right[at])

    def labelled(self, right: NDArray[np.bool_]) -> Pairs:
        """Return the same pairs with these labels."""
        return replace(self, right=right)

    def margins(self, calibration: Calibration) -> Array:
        """Return the margins by a calibration, without a correction."""
        clipped = np.clip(self.logits, -LARGEST_LOGIT, LARGEST_LOGIT)
        around = np.maximum(self.densities, SPARSE)
        found: Array = calibration.logit * clipped + calibration.cosine * self.cosines
        return found + calibration.density * around + calibration.offset


@dataclass(frozen=True)
class Basis:
    """The directions in which states vary most: `(state - mean) @ directions`, shape (width, kept)."""

    mean: Array
    directions: Array

    @classmethod
    def of(cls, states: NDArray[np.float32], kept: int = DIRECTIONS) -> Basis:
        """Return the principal directions of some states, each scaled to its variance among them."""
        mean = states.mean(axis=0, dtype=np.float64)
        centred = states.astype(np.float64) - mean
        values, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(states)))
        order = np.argsort(-values)[: min(kept, len(states))]
        # Scaled by the mean spread and not by their own: a direction that hardly varies is mostly noise.
        scale = np.sqrt(max(float(values.clip(0.0).mean()), 1e-12))
        return cls(mean, vectors[:, order] / scale)

    def project(self, states: NDArray[np.float32]) -> Array:
        """Return the coordinates of states."""
        found: Array = (states.astype(np.float64) - self.mean) @ self.directions
        return found


@dataclass(frozen=True)
class Recipe:
    """What may change: the calibration, and with a `ridge` the weights of the states too."""

    name: str
    ridge: float | None

    def columns(self, pairs: Pairs, basis: Basis) -> Array:
        """Return what the changes are multiplied by: logit, cosine, excess density, states."""
        clipped = np.clip(pairs.logits, -LARGEST_LOGIT, LARGEST_LOGIT)
        around = np.maximum(pairs.densities, SPARSE)
        fixed = np.stack([clipped, pairs.cosines, around, np.ones(len(pairs))], axis=1)
        return fixed if self.ridge is None else np.hstack([fixed, basis.project(pairs.states)])

    def penalty(self, columns: int) -> Array:
        """Return the ridge of each column."""
        found = np.full(columns, self.ridge or 0.0)
        found[: len(FIXED_RIDGE)] = FIXED_RIDGE
        return found


CALIBRATION = Recipe("calibration", None)
HEADS = tuple(Recipe(f"last layer, ridge {ridge:g}", ridge) for ridge in (0.3, 1.0, 5.0))


def fit(recipe: Recipe, pairs: Pairs, shipped: Calibration, basis: Basis, anchors: Pairs) -> Array:
    """Return the change of each column that explains the labels best; see the head of this module.

    Args:
        recipe: What may change.
        pairs: With labels.
        shipped: The calibration that is changed.
        basis: Of the states.
        anchors: Pairs whose margin should stay.
    """
    columns, base = recipe.columns(pairs, basis), pairs.margins(shipped)
    labels = pairs.right * (1.0 - 2.0 * SMOOTHING) + SMOOTHING
    held = recipe.columns(anchors, basis)
    penalty = np.diag(recipe.penalty(columns.shape[1])) + ANCHORED * held.T @ held
    change = np.zeros(columns.shape[1])
    for _ in range(STEPS):
        expected = sigmoid(base + columns @ change)
        slope = columns.T @ (labels - expected) - penalty @ change
        curvature = (columns.T * (expected * (1.0 - expected) + 1e-6)) @ columns + penalty
        step = np.linalg.solve(curvature, slope)
        change = change + step * min(1.0, 4.0 / max(float(np.abs(columns @ step).max()), 1e-9))
        if np.abs(step).max() < TOLERANCE:
            break
    return change


def margins(recipe: Recipe, change: Array, pairs: Pairs, shipped: Calibration, basis: Basis) -> Array:
    """Return the corrected margins."""
    found: Array = pairs.margins(shipped) + recipe.columns(pairs, basis) @ change
    return found


def taught_margins(pairs: Pairs, taught: Pairs, shipped: Calibration, anchors: Pairs) -> Array:
    """Return the margins of pairs by a last layer that has learned from other ones, with labels."""
    basis, recipe = Basis.of(np.vstack([taught.states, anchors.states])), HEADS[1]
    return margins(recipe, fit(recipe, taught, shipped, basis, anchors), pairs, shipped, basis)
