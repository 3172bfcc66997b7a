"""Which threshold labels lead to: proved, disproved, never where nothing was judged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibidem._util.intervals import clopper_pearson
from ibidem.errors import InvalidInput
from ibidem.matching.fitted import (
    NEVER,
    SHIPPED,
    FittedThresholds,
    Level,
    from_json,
    to_json,
)
from ibidem.matching.policy import Policy, Strictness
from ibidem.matching.scorers import COSINES, CosineScorer
from ibidem.matching.shipped import learned_scorer
from ibidem_lab.fitting.proof import LEVELS, prove_thresholds, served
from ibidem_lab.replay import Judged

COSINE = CosineScorer()


def judged(count: int, seed: int, wrong: Callable[[float], float]) -> list[Judged]:
    """Scores from 0.7 to 1, wrong with a chance that depends on the score."""
    draw = random.Random(seed)
    scores = [draw.uniform(0.7, 1.0) for _ in range(count)]
    return [Judged(score, draw.random() >= wrong(score)) for score in scores]


def test_a_lower_threshold_that_is_proved_is_used() -> None:
    """Where pairs are right down to 0.86, hits go down to about there."""
    found = prove_thresholds(judged(2000, 1, lambda score: 0.9 if score < 0.86 else 0.0), COSINE)

    assert 0.855 < found.threshold(0.02, COSINES) < 0.88
    assert found.moved


def test_a_threshold_that_is_disproved_is_raised() -> None:
    """Or nothing is served, where no other is proved."""
    above = prove_thresholds(judged(4000, 2, lambda score: 0.4 if score < 0.975 else 0.0), COSINE)
    nowhere = prove_thresholds(judged(1000, 3, lambda score: 0.4), COSINE)

    assert COSINES.at(0.02) < 0.974 < above.threshold(0.02, COSINES) < 1.0
    assert nowhere.threshold(0.02, COSINES) == NEVER


@pytest.mark.parametrize("count", [1, 40, 150])
def test_without_proof_the_shipped_threshold_stays(count: int) -> None:
    """Few labels, all right, prove nothing at 2 %, and disprove nothing."""
    found = prove_thresholds(judged(count, 4, lambda score: 0.0), COSINE, 0.02)

    assert found.threshold(0.02, COSINES) == COSINES.at(0.02)


@given(st.integers(0, 2**32 - 1), st.integers(10, 800), st.floats(0.7, 1.0), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_what_is_moved_is_proved(seed: int, count: int, edge: float, chance: float) -> None:
    """Whatever the labels: a moved threshold keeps its share or a stricter one; none is below the floor."""
    labels = judged(count, seed, lambda score: chance if score < edge else chance / 20)
    found = prove_thresholds(labels, COSINE, 0.0123)
    thresholds = [found.threshold(level.max_error_rate, COSINES) for level in found.levels]

    assert COSINE.floor <= min(thresholds)
    assert thresholds == sorted(thresholds, reverse=True)
    for level in found.levels:
        if level.threshold is None or level.threshold == NEVER:
            continue
        stricter = level.threshold in map(COSINES.at, (one.max_error_rate for one in found.levels))
        hits, wrong = served(labels, level.threshold)
        assert stricter or clopper_pearson(wrong, hits, 2 * 0.98 - 1)[1] <= level.max_error_rate


# Far pairs. The fault that this replaces: labels of near pairs only, and a far one that scored 0.99.

WORDS = (
    "measure time function lambda cloud invoice parcel refund list dictionary shoe window tax bird".split()
)
SHAPES = ("How do I {} the {}?", "What is a {} {}?", "why does my {} {} fail", "{} {}", "Can a {} be a {}?")


def questions(count: int, seed: int) -> list[str]:
    """Short ones of all shapes."""
    draw = random.Random(seed)
    return [draw.choice(SHAPES).format(*draw.sample(WORDS, 2)) for _ in range(count)]


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.1))
@settings(max_examples=15, deadline=None)
def test_near_labels_never_make_far_pairs_hits(seed: int, wrong: float) -> None:
    """However right all near pairs are, what no label tells about stays below every threshold."""
    draw = random.Random(seed)
    near = [(draw.uniform(0.82, 0.999), draw.random() >= wrong) for _ in range(218)]
    texts = questions(2 * len(near), seed)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    labels = [
        Judged(learned_scorer().score(a, b, cosine), right)
        for (a, b), (cosine, right) in zip(pairs, near, strict=True)
    ]
    scorer = learned_scorer()
    found = prove_thresholds(labels, scorer, 0.03)
    shares = [level for level in (*LEVELS, 0.03) if level <= scorer.thresholds.highest]
    least = min(found.threshold(share, scorer.thresholds) for share in shares)
    far = [scorer.score(a, b, draw.uniform(-0.2, 0.5)) for a, b in pairs]
    same = [scorer.score(a, a, draw.uniform(-0.2, 0.5)) for a, _ in pairs]

    assert max(*far, *same) < scorer.floor <= least


# applied ----------------------------------------------------------------------------------------------


def test_between_levels_the_stricter_one_counts() -> None:
    """Below all levels too."""
    found = FittedThresholds((Level(0.01, 0.97), Level(0.02, 0.9), Level(0.03, None)), 500)

    assert [found.threshold(share, COSINES) for share in (0.01, 0.015, 0.02, 0.03)] == [
        0.97,
        0.97,
        0.9,
        COSINES.at(0.03),
    ]
    assert found.threshold(0.001, COSINES) == max(0.97, COSINES.at(0.001))
    assert SHIPPED.threshold(0.02, COSINES) == COSINES.at(0.02)


def test_only_a_threshold_that_follows_from_max_error_rate_is_moved() -> None:
    """One that was given stays, and so does the floor of audits."""
    found = FittedThresholds((Level(0.02, 0.9),), 500)

    assert Strictness(0.02, document_policy="all").policy(COSINE, found) == Policy(0.9, "all")
    assert Strictness(0.02, min_similarity=0.95).policy(COSINE, found) == Policy(0.95)
    assert Strictness(0.02, audited=True).policy(COSINE, found) == Policy(COSINE.floor)
    assert Strictness(0.02).policy(COSINE, SHIPPED) == Policy(COSINES.at(0.02))


# as text ----------------------------------------------------------------------------------------------


@given(st.sets(st.floats(1e-6, 0.4), min_size=1, max_size=20), st.integers(0, 10_000), st.randoms())
def test_fitted_thresholds_survive_as_text(shares: set[float], labels: int, draw: random.Random) -> None:
    """What is read is what was written."""
    values = [None, NEVER, COSINE.floor, 0.91]
    made = FittedThresholds(tuple(Level(share, draw.choice(values)) for share in sorted(shares)), labels)

    assert from_json(to_json(made), COSINE.floor) == made


Damage = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, Damage] = {
    "another version": lambda held: held.update(format=99),
    "no levels": lambda held: held.pop("levels"),
    "none": lambda held: held.update(levels=[]),
    "too many": lambda held: held.update(levels=[[n / 1000, None] for n in range(1, 200)]),
    "far pairs served": lambda held: held["levels"][0].__setitem__(1, 0.3),
    "a threshold that is text": lambda held: held["levels"][0].__setitem__(1, "0.9"),
    "a threshold that is true": lambda held: held["levels"][0].__setitem__(1, True),
    "no number": lambda held: held["levels"][0].__setitem__(1, float("nan")),
    "shares that fall": lambda held: held["levels"].reverse(),
    "a share of nothing": lambda held: held["levels"][0].__setitem__(0, 0),
    "a level of three": lambda held: held["levels"][0].append(1),
    "too long": lambda held: held.update(note="x" * 20_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_text_is_refused(damage: Damage) -> None:
    """Rows of a database are not trusted; the error says what to do."""
    held = json.loads(to_json(FittedThresholds((Level(0.01, 0.97), Level(0.02, 0.9)), 500)))
    damage(held)
    with pytest.raises(InvalidInput, match="run ibidem learn threshold again"):
        from_json(json.dumps(held), COSINE.floor)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"a"', "[" * 9_000, "x" * 20_000])
def test_what_are_no_thresholds_are_refused(text: str) -> None:
    """Whatever stands there."""
    with pytest.raises(InvalidInput, match="run ibidem learn threshold again"):
        from_json(text, COSINE.floor)


def test_the_proof_is_that_of_the_bound() -> None:
    """Some 195 right ones in a row prove 2 %, 150 do not: as the budget has it."""
    for count, proved in ((150, False), (240, True)):
        found = prove_thresholds(
            [Judged(score, True) for score in np.linspace(0.85, 0.94, count).tolist()], COSINE, 0.02
        )
        assert (found.threshold(0.02, COSINES) < COSINES.at(0.02)) == proved
