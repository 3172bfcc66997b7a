"""Choose what to train by cross-validation over question groups, and judge it by held-out lookups.

A lookup is asked of the whole store. What was learned without its group decides it, and so each labelled
question is a held-out one. Groups hold what hangs together by labels, so no question is on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ibidem._util.statistics import sigmoid
from ibidem.matching.pair_model import SPARSE, Calibration
from ibidem_lab.learning.fitting import CALIBRATION, HEADS, Array, Basis, Pairs, Recipe, fit, margins
from ibidem_lab.learning.lookups import Lookups

FOLDS = 10
LEAST_FOR_HEAD = 200  # labels from which the last layer is tried
# Of the weight of the density, which moves all scores of this cache: pairs alone in a cache stay as they are.
# It makes the decision stricter at will, but hardly laxer: there are few labels below what is served.
SHIFTS = tuple(np.arange(-6.0, 1.01, 0.25))
TARGET = 0.5  # of the share of wrong hits: what is aimed at, as lookups not seen yet show more
RESAMPLES = 2_000

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """What is learned from: lookups, the shipped calibration, the least margin that is served, and anchors.

    `level` is the share of hits that may be wrong.
    """

    lookups: Lookups
    shipped: Calibration
    least: float
    level: float
    basis: Basis
    anchors: Pairs


@dataclass(frozen=True)
class Learned:
    """A recipe, the changes that it led to, and the shift that keeps `level`; None if nothing keeps it."""

    recipe: Recipe
    change: Array
    shift: float | None

    def margins(self, problem: Problem, pairs: Pairs) -> Array:
        """Return the margins of pairs."""
        found = margins(self.recipe, self.change, pairs, problem.shipped, problem.basis)
        return shifted(found, pairs, self.shift or 0.0)


@dataclass(frozen=True)
class Served:
    """What a decision serves of lookups, one after the other: 1 or 0."""

    hits: Integers
    wrong: Integers
    unjudged: Integers

    @classmethod
    def nothing(cls, count: int) -> Served:
        """Return that nothing is served."""
        return cls(*(np.zeros(count, np.int64) for _ in range(3)))

    def take(self, other: Served, some: NDArray[np.bool_]) -> None:
        """Take over what another decision serves of some lookups."""
        for name in ("hits", "wrong", "unjudged"):
            getattr(self, name)[some] = getattr(other, name)[some]

    def at(self, some: NDArray[np.bool_]) -> Served:
        """Return some of the lookups."""
        return Served(self.hits[some], self.wrong[some], self.unjudged[some])

    def keep(self, level: float) -> bool:
        """Return whether the judged hits keep a share of wrong ones; see `kept`."""
        return kept(int(self.wrong.sum()), int(self.hits.sum() - self.unjudged.sum()), level)


def shifted(values: Array, pairs: Pairs, shift: float) -> Array:
    """Return margins moved by the density of the stored questions around."""
    found: Array = values + shift * (np.maximum(pairs.densities, SPARSE) - SPARSE)
    return found


def kept(wrong: int, judged: int, level: float) -> bool:
    """Return whether a share of wrong hits is kept, by the mean of what it may be after Jeffreys.

    That counts half a wrong hit more than there were: 2 % takes 24 judged hits without an error, 74 with one.
    """
    return (wrong + 0.5) / (judged + 1) <= level


def served(lookups: Lookups, values: Array, least: float) -> Served:
    """Return what is served at a least margin: of each lookup the first pair read that reaches it."""
    rows = np.flatnonzero(lookups.read & (values >= least))
    which, first = np.unique(lookups.lookup[rows], return_index=True)
    chosen, found = rows[first], Served.nothing(lookups.count)
    found.hits[which] = 1
    found.wrong[which] = lookups.known[chosen] & ~lookups.pairs.right[chosen]
    found.unjudged[which] = ~lookups.known[chosen]
    return found


def learn_from(problem: Problem, seen: Callable[[], object] = lambda: None) -> tuple[Learned, Served]:
    """Learn from the labels, and tell what is served by what was learned without the group of each lookup.

    Cross-validation chooses the recipe. The shift of each fold is the one that the others lead to.

    Args:
        problem: What is learned from.
        seen: Called after each fit.
    """
    lookups, rows = problem.lookups, np.flatnonzero(problem.lookups.known)
    tried = [(recipe, _out_of_fold(problem, recipe, rows, seen)) for recipe in recipes_for(len(rows))]
    recipe, values = min(tried, key=lambda one: _loss(one[1][rows], lookups.pairs.right[rows]))
    held_out, fold = Served.nothing(lookups.count), np.zeros(lookups.count, np.int64)
    fold[lookups.lookup] = lookups.group % FOLDS
    for at in range(FOLDS):
        shift = _shift(problem, values, fold != at)
        if shift is None:  # then the shipped decision stays
            now = lookups.pairs.margins(problem.shipped)
        else:
            now = shifted(values, lookups.pairs, shift)
        held_out.take(served(lookups, now, problem.least), fold == at)
    change = fit(recipe, lookups.pairs.at(rows), problem.shipped, problem.basis, problem.anchors)
    seen()
    return Learned(recipe, change, _shift(problem, values, fold >= 0)), held_out


def recipes_for(labels: int) -> tuple[Recipe, ...]:
    """Return what is tried with so many labels."""
    return (CALIBRATION, *HEADS) if labels >= LEAST_FOR_HEAD else (CALIBRATION,)


def fits(labels: int) -> int:
    """Return how many fits `learn_from` takes."""
    return len(recipes_for(labels)) * FOLDS + 1


def _out_of_fold(problem: Problem, recipe: Recipe, rows: Integers, seen: Callable[[], object]) -> Array:
    """Return the margin of each row of the lookups by what was learned without its group."""
    lookups, found = problem.lookups, problem.lookups.pairs.margins(problem.shipped)
    fold = lookups.group % FOLDS
    other = np.where(lookups.others < 0, -1, lookups.others % FOLDS)
    for at in range(FOLDS):
        taught = rows[(fold[rows] != at) & (other[rows] != at)]
        mine = np.flatnonzero(fold == at)
        if len(taught) and len(mine):
            change = fit(recipe, lookups.pairs.at(taught), problem.shipped, problem.basis, problem.anchors)
            some = lookups.pairs.at(mine)
            found[mine] = margins(recipe, change, some, problem.shipped, problem.basis)
        seen()
    return found


def _loss(values: Array, right: NDArray[np.bool_]) -> float:
    signed = np.where(right, values, -values)
    return float(np.mean(-np.log(np.maximum(sigmoid(signed), 1e-9))))


def _shift(problem: Problem, values: Array, some: NDArray[np.bool_]) -> float | None:
    """Return the shift with the most judged hits of some lookups that keeps the level; None if none does."""
    lookups, best, most = problem.lookups, None, 0
    for shift in SHIFTS:
        now = served(lookups, shifted(values, lookups.pairs, shift), problem.least).at(some)
        judged = int(now.hits.sum() - now.unjudged.sum())
        if judged > most and now.keep(TARGET * problem.level):
            best, most = float(shift), judged
    return best


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def resampled(
    group: Integers, figure: Callable[[Array], Array], columns: Sequence[Integers], seed: int = 0
) -> Interval:
    """Return a figure of sums over lookups, with its interval by the bootstrap over groups.

    Args:
        group: Of each lookup.
        figure: Of the sums of the columns, shape (draws, columns).
        columns: Numbers by lookup.
        seed: Of the draws.
    """
    table = np.stack(columns, axis=1).astype(np.float64)
    _, number = np.unique(group, return_inverse=True)
    sums = np.zeros((number.max() + 1, table.shape[1]))
    np.add.at(sums, number, table)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    low, high = np.nanquantile(figure((drawn @ sums).astype(np.float64)), [0.025, 0.975])
    whole = figure(sums.sum(axis=0, keepdims=True))
    return Interval(float(whole[0]), float(low), float(high))
