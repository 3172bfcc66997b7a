"""The figures of the benchmarks that repeat published ones are what they say, on cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ibidem._util.statistics import auc
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.fitting import Pairs
from tests.benchmarks.meancache import average_precision, best_threshold
from tests.benchmarks.paper import Problem, Stream, efficiency, interval, matched, split


def problem(count: int = 400) -> Problem:
    """Triples of questions, of which a and b are one; the cosine tells a little."""
    labels = [Label(f"a{n}", f"{other}{n}", other == "b") for n in range(count) for other in "bc"]
    right, draw = np.array([one.right for one in labels]), np.random.default_rng(0)
    cosines = draw.normal(0.8, 0.05, len(labels)) + 0.03 * right
    empty = np.zeros(len(labels))
    pairs = Pairs(empty, cosines, empty, np.zeros((len(labels), 1), np.float32), right)
    group = np.repeat(np.arange(count), 2)
    return Problem(labels, [], pairs, group, [split(pairs, group, seed) for seed in range(5)])


def test_matched_pairs_are_told_by_chance_and_no_question_is_on_both_sides() -> None:
    made = problem()

    for one in made.splits:
        held = made.pairs.at(one.matched)
        assert auc(made.pairs.cosines[one.test], made.pairs.right[one.test]) > 0.6
        assert abs(auc(held.cosines, held.right) - 0.5) < 0.05
        assert int(held.right.sum()) * 2 == len(held) > 100
        assert not set(made.group[one.learn]) & set(made.group[one.test])
    assert len(matched(made.pairs, np.array([], np.int64), np.random.default_rng(0))) == 0


def test_a_perfect_decision_is_efficient_and_a_blind_one_is_not() -> None:
    """A blind one serves as many wrong answers as right ones, or nothing."""
    made = problem()
    perfect = [made.pairs.right.astype(float)] * 5
    blind = [np.random.default_rng(1).random(len(made.labels))] * 5

    assert efficiency(made, perfect) == pytest.approx([1.0] * 5)
    assert max(efficiency(made, blind)) < 0.1


def test_a_stream_meets_what_was_asked_before() -> None:
    """Of two questions that one answer serves the second is a hit, of two others it would be a wrong one."""
    made = problem(1)
    stream = Stream(made, np.array([0, 1]))

    assert stream.perfect == 1.0
    assert stream.gain(np.array([0.9, 0.1]), 2.0) == 0.0
    assert stream.gain(np.array([0.1, 0.9]), 0.5) == -1.0


def test_the_interval_holds_the_mean_and_is_wide_for_few_groups() -> None:
    made = problem()

    def right(seed: int, rows: np.ndarray) -> float:
        return float(made.pairs.cosines[rows].mean())

    def width(count: int) -> float:
        mean, low, _, high = (
            interval(made, right, (one.test[:count] for one in made.splits))
            .replace("(", "")
            .replace(")", "")
            .split()
        )
        assert float(low) <= float(mean) <= float(high)
        return float(high) - float(low)

    assert width(40) > 1.5 * width(400)


def test_average_precision_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, f1_score

    draw = np.random.default_rng(0)
    scores, same = draw.random(400), draw.random(400) < 0.4
    scores += 0.2 * same
    best = best_threshold(scores, same)

    assert average_precision(scores, same) == pytest.approx(average_precision_score(same, scores))
    assert f1_score(same, scores >= best) == max(f1_score(same, scores >= at) for at in scores)
