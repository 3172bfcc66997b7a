"""Learning a score from labels: what is learned, what is not, how it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibidem.decision.scoring import CosineScorer, threshold_for, wrong_at
from ibidem.errors import InvalidInput
from ibidem.fit import fitting
from ibidem.fit import parts as fitting_parts
from ibidem.fit.fitted import NAMES, FittedScorer, Metric, Rarity, Scale, WordWeights
from ibidem.fit.fitting import Fit, Pair, learn
from ibidem.fit.parts import fit_logistic
from ibidem.fit.scale import LEVELS, TOP, fit_scale, upper
from ibidem.fit.text import from_json, to_json
from ibidem.replay import Judged, hindsight
from tests.labelled import pairs

BASE = CosineScorer()
NOTHING = (np.zeros(0), np.zeros(0, bool))  # the shipped score served nothing


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the steps is enough for what is learned here."""
    monkeypatch.setattr(fitting_parts, "STEPS", 150)
    monkeypatch.setattr(fitting_parts, "WORD_STEPS", 60)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    """A fit to 500 labels."""
    patch = pytest.MonkeyPatch()
    patch.setattr(fitting_parts, "STEPS", 150)
    patch.setattr(fitting_parts, "WORD_STEPS", 60)
    found = learn(pairs(500), BASE, "base")
    patch.undo()
    return found


# learning ---------------------------------------------------------------------------------------------


def most(scored: list[tuple[float, Pair]], level: float = 0.05) -> int:
    """Hits at so many wrong, in hindsight; any score counts."""
    found = hindsight([Judged((score + 3.0) / 4.0, pair.right) for score, pair in scored], level)
    return found.hits if found else 0


def test_a_fit_serves_more_of_what_it_has_not_seen(fitted: Fit) -> None:
    """Which word matters is learned: on other questions the order is far better than the cosine's."""
    unseen = pairs(400, seed=77)
    told = [(fitted.scorer.score(p.asked, p.stored, p.cosine, p.vectors), p) for p in unseen]
    plain = [(BASE.score(p.asked, p.stored, p.cosine), p) for p in unseen]

    assert fitted.better
    assert most(told) > 100
    assert most(told) > 2 * most(plain)


def test_what_is_reported_is_what_follows(fitted: Fit) -> None:
    """At the threshold for a share of wrong hits, unseen questions keep it, but for chance."""
    unseen = pairs(1500, seed=78)
    threshold = threshold_for(0.03)
    scores = [fitted.scorer.score(p.asked, p.stored, p.cosine, p.vectors) for p in unseen]
    served = [p.right for score, p in zip(scores, unseen, strict=True) if score >= threshold]

    assert len(served) > 100
    assert (len(served) - sum(served)) / len(served) <= 0.03 + 2 * math.sqrt(0.03 / len(served))


def test_the_same_labels_give_the_same_scorer(fitted: Fit) -> None:
    """Deterministic by seed, so that a name stands for one scorer."""
    again, other = learn(pairs(500), BASE, "base"), learn(pairs(500), BASE, "base", seed=1)

    assert repr(again.scorer) == repr(fitted.scorer)
    assert repr(other.scorer) != repr(fitted.scorer)


def test_labels_without_meaning_teach_nothing() -> None:
    """A metric could learn 300 coin tosses by heart; out of fold it shows that it knows nothing."""
    found = learn(pairs(300, noise=True), BASE, "base")

    assert found.losses["learned metric"] > 0.68
    assert not found.better


def test_nobody_is_scored_by_what_learned_its_label(fitted: Fit) -> None:
    """Turning the label of one question leaves its own out-of-fold log-odds as they were."""
    given, at = pairs(500), 17
    turned = [replace(p, right=not p.right) if p.request == at else p for p in given]
    again = learn(turned, BASE, "base")

    assert again.model == fitted.model
    assert again.log_odds[at] == pytest.approx(fitted.log_odds[at], abs=1e-9)
    assert not np.allclose(again.log_odds, fitted.log_odds, atol=1e-9)


def test_held_out_pairs_share_no_question_with_those_learned_from() -> None:
    """Neither the question asked nor, as stored one, the other."""
    given = pairs(300)
    twin = replace(given[0], request=1)  # a second candidate of question 1: what question 0 was compared with
    design = fitting._Design([*given, twin], BASE)
    held = np.arange(301) == 300
    taught = design.apart(held)

    assert not taught[[0, 1, 300]].any()
    assert taught.sum() == 301 - len({0, 1, 300} | {n for n in range(300) if given[n].stored == twin.stored})


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([], id="none"),
        pytest.param(pairs(150), id="few"),
        pytest.param([replace(p, right=True) for p in pairs(400)], id="none wrong"),
    ],
)
def test_too_few_labels_are_refused(labels: list[Pair]) -> None:
    """With what is missing and how to get it."""
    with pytest.raises(InvalidInput, match=r"too few labels: .* at least 200 questions and 20 pairs of each"):
        learn(labels, BASE, "base")


def test_a_sign_that_is_given_is_kept() -> None:
    """What speaks against a pair in truth but not in the labels gets no weight."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(400, 2))
    right = (rows[:, 0] + rows[:, 1] + draw.normal(size=400) > 0).astype(float)
    free, _ = fit_logistic(rows, right, np.array([0.0, 0.0]))
    kept, _ = fit_logistic(rows, right, np.array([1.0, -1.0]))

    assert (free > 0.5).all()
    assert kept[0] > 0.5
    assert kept[1] == 0.0


# the scale --------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(12, 600), st.floats(-6, 6), st.floats(0.2, 4))
@settings(max_examples=40, deadline=None)
def test_the_scale_proves_what_a_threshold_promises(
    seed: int, count: int, shift: float, slope: float
) -> None:
    """It rises; what a threshold serves, with what scores hardly less, is proved to keep its share."""
    draw = np.random.default_rng(seed)
    z = np.round(draw.normal(size=count) * slope + shift, 1)
    right = draw.random(count) < 1 / (1 + np.exp(-z))
    scale = fit_scale(z, right, z, NOTHING)
    grid = np.linspace(z.min() - 3, z.max() + 3, 200)
    scores = np.array([scale(x) for x in grid])

    assert (np.diff(scores) >= 0).all()
    assert scores.max() <= 1.0
    for level in LEVELS:
        given = np.array([scale(x) for x in z])
        served = [right[given >= threshold_for(level) - less] for less in (0.0, 2 * TOP)]
        bounds = [upper(int((~one).sum()), len(one)) for one in served]
        assert not len(served[0]) or min(bounds) <= level + 1e-3


def test_without_proof_no_threshold_is_reached() -> None:
    """Scores still tell better from worse, for audits to find a threshold."""
    z = np.linspace(-2, 2, 100)
    scale = fit_scale(z, np.arange(100) % 2 == 0, z, NOTHING)

    assert 0.8 < scale(1.0) < scale(2.0) < scale(50.0) < threshold_for(0.49)


@given(st.floats(0.0005, 0.0374))
def test_a_threshold_tells_what_it_stands_for(level: float) -> None:
    """`wrong_at` is the inverse of `threshold_for`."""
    assert wrong_at(threshold_for(level)) == pytest.approx(level)


# a fitted scorer --------------------------------------------------------------------------------------


def test_nothing_is_said_of_what_no_label_tells_about(fitted: Fit) -> None:
    """Farther than all labelled pairs, or without the vectors, nothing is served."""
    pair = next(p for p in pairs(50, seed=5) if p.right)
    scorer = fitted.scorer
    known = scorer.score(pair.asked, pair.stored, pair.cosine, pair.vectors)
    strict = replace(scorer, least_shipped=0.9999)
    blind = replace(scorer, metric=Metric(np.zeros((2, 64), np.float32), np.zeros((64, 2), np.float32)))

    assert known > 0.8
    assert strict.score(pair.asked, pair.stored, pair.cosine, pair.vectors) <= 0.0
    assert blind.score(pair.asked, pair.stored, pair.cosine) <= 0.0
    assert scorer.least_cosine(0.99) == min(p.cosine for p in pairs(500))


def test_a_negation_is_never_forgiven(fitted: Fit) -> None:
    """Whatever labels say: they hold few of these."""
    pair = next(p for p in pairs(50, seed=5) if p.right)
    scorer = replace(fitted.scorer, least_shipped=-1e6)

    assert scorer.score(f"not {pair.asked}", pair.stored, 0.98, pair.vectors) <= BASE.score(
        "not a", "a", 0.98
    )


numbers = st.floats(-100, 100, allow_nan=False, width=32)
words = st.dictionaries(st.text(max_size=8), numbers, max_size=5)


@st.composite
def scorers(draw: Any) -> FittedScorer:
    """Any scorer whose numbers are sane."""
    values = draw(st.lists(st.floats(-4, 4, width=16), min_size=12, max_size=12))
    edges = sorted(draw(st.sets(st.integers(-50, 50), min_size=2, max_size=6)))
    weights = draw(st.lists(numbers, min_size=len(NAMES), max_size=len(NAMES)))
    return FittedScorer(
        base=BASE,
        base_name="base",
        weights=dict(zip(NAMES, weights, strict=True)),
        bias=draw(numbers),
        metric=draw(st.sampled_from([None, Metric(*np.float32(values).reshape(2, 2, 3))]))
        and Metric(np.float32(values[:6]).reshape(2, 3), np.float32(values[6:]).reshape(3, 2)),
        words=draw(st.none() | st.builds(WordWeights, words, numbers, numbers)),
        rarity=Rarity(draw(words), draw(numbers)),
        scale=Scale(tuple((float(x), 0.5 + n / 20) for n, x in enumerate(edges)), draw(st.floats(0, 1))),
        least=draw(numbers),
        least_shipped=-100.0,
        labels=draw(st.integers(0, 10_000)),
    )


@given(scorers(), st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=80, deadline=None)
def test_a_scorer_survives_as_text(scorer: FittedScorer, asked: str, stored: str) -> None:
    """What is read scores as what was written, and is written the same."""
    text = to_json(scorer)
    again = from_json(text, BASE, "base", None if scorer.metric is None else 3)
    vectors = (np.float32([1, 0, 0]), np.float32([0.6, 0.8, 0]))

    assert to_json(again) == text
    assert again.score(asked, stored, 0.9, vectors) == scorer.score(asked, stored, 0.9, vectors)


Damage = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, Damage] = {
    "another version": lambda held: held.update(format=99),
    "another base": lambda held: held.update(base="other"),
    "no weights": lambda held: held.pop("weights"),
    "an unknown feature": lambda held: held["weights"].update(magic=1.0),
    "a weight that is text": lambda held: held["weights"].update(metric="1"),
    "a weight that is true": lambda held: held["weights"].update(metric=True),
    "a huge bias": lambda held: held.update(bias=1e300),
    "no number": lambda held: held.update(bias=math.nan),
    "a scale that falls": lambda held: held.update(knots=[[0, 0.9], [1, 0.8]]),
    "a scale above 1": lambda held: held.update(knots=[[0, 0.9], [1, 1.8]]),
    "no scale": lambda held: held.update(knots=[]),
    "words in a list": lambda held: held["rarity"].update(known=["a"]),
    "too many words": lambda held: held["rarity"].update(known={str(n): 1 for n in range(20_001)}),
    "a matrix of another size": lambda held: held["metric"][0].update(shape=[5, 5]),
    "matrices that do not fit": lambda held: held["metric"].reverse(),
    "no base64": lambda held: held["metric"][0].update(f2="%%%"),
    "one matrix": lambda held: held["metric"].pop(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_text_is_refused(fitted: Fit, damage: Damage) -> None:
    """Rows of a database are not trusted; the error says what to do."""
    metric = Metric(np.zeros((2, 64), np.float32), np.zeros((64, 2), np.float32))
    held = json.loads(to_json(replace(fitted.scorer, metric=metric)))
    damage(held)
    with pytest.raises(InvalidInput, match="run ibidem fit again"):
        from_json(json.dumps(held), BASE, "base", 64)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"a"', "[" * 100_000, "x" * (4 * 2**20 + 1)])
def test_what_is_no_scorer_is_refused(text: str) -> None:
    """Whatever stands there."""
    with pytest.raises(InvalidInput, match="run ibidem fit again"):
        from_json(text, BASE, "base")
