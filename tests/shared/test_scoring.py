"""The score of two questions."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ibidem.errors import InvalidInput
from ibidem.matching.learned import LearnedScorer, features
from ibidem.matching.pair_model import PairModel
from ibidem.matching.scorers import COSINES, CosineScorer, Thresholds
from ibidem.matching.shipped import learned_scorer, pair_model, rule_for, scorer_for
from ibidem.matching.text import parse_question
from ibidem.settings import ERROR_RATES

WORDS = (
    "how do i can you the a to from not never no please and or is which how many who when before after "
    "flight flights Boston Denver cheap cheapest bake baking bread card cards can't colour color "
    "accommodation acommodation accomodations transfer tranfer account 3 12"
).split()
QUESTIONS = st.one_of(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), st.text(max_size=30))
SIMILARITIES = st.floats(-1.0, 1.0)
TABLES = [COSINES, learned_scorer().thresholds]
SCORERS: list[LearnedScorer | CosineScorer] = [learned_scorer(), CosineScorer()]


@pytest.mark.parametrize("scorer", SCORERS)
@given(QUESTIONS, QUESTIONS, SIMILARITIES, SIMILARITIES)
def test_the_score_rises_with_the_cosine(
    scorer: LearnedScorer | CosineScorer, one: str, other: str, low: float, high: float
) -> None:
    """Whatever was learned, a nearer question is no worse."""
    low, high = sorted((low, high))

    assert scorer.score(one, other, low) <= scorer.score(one, other, high) <= 1.0


@pytest.mark.parametrize("scorer", SCORERS)
@given(QUESTIONS, QUESTIONS, SIMILARITIES, st.floats(0.01, 1.0))
def test_min_cosine_is_a_bound(
    scorer: LearnedScorer | CosineScorer, one: str, other: str, cosine: float, threshold: float
) -> None:
    """Nothing below it reaches the threshold, so candidates there need not be scored."""
    reached = scorer.score(one, other, cosine) >= threshold

    assert not reached or cosine >= scorer.min_cosine(threshold) - 1e-9


@given(QUESTIONS)
def test_a_question_is_sure_of_itself(question: str) -> None:
    """Identical words score 1 and differ in nothing."""
    found = features(question, question)

    assert found.pop("rephrased") == 1.0
    assert not any(found.values())
    assert learned_scorer().nearness(question, question, 1.0) == pytest.approx(1.0)
    assert learned_scorer().score(question, question, 1.0) > 0.95


@given(QUESTIONS, QUESTIONS)
def test_differences_are_the_same_from_both_sides(one: str, other: str) -> None:
    """Which question came first does not matter."""
    assert features(one, other) == features(other, one)


@given(QUESTIONS, QUESTIONS, SIMILARITIES)
@example("¿cuánto cuesta abrir una cuenta?", "¿cuánto cuesta abrir una cuenta nueva?", 0.95)
def test_no_bonus_where_the_words_are_not_understood(one: str, other: str, cosine: float) -> None:
    """In other languages the score is never above the cosine."""
    if not (parse_question(one).is_english and parse_question(other).is_english):
        assert learned_scorer().nearness(one, other, cosine) <= cosine + 1e-12


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("inserted", "How do I bake bread?", "How do I bake fresh rye bread?"),
        ("one_word", "Is a dog mammal or reptile?", "Is a frog mammal or reptile?"),
        ("question_word", "Who wrote the book?", "When was the book written?"),
        ("amount", "How many people live there?", "Who lives there?"),
        ("comparison", "Is it cheaper than that?", "Is it cheap and more than that?"),
        ("negation", "Is the water safe to drink?", "Is the water not safe to drink?"),
    ],
)
def test_a_difference_of_meaning_costs(name: str, one: str, other: str) -> None:
    """The feature is seen, and the score is below the cosine."""
    assert features(one, other)[name] >= 1.0
    assert learned_scorer().nearness(one, other, 0.97) < 0.97


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I reset my PIN?", "how can i reset my pin please"),
        ("What's the capital of Peru?", "What is the capital of Peru?"),
        ("Which colour is it?", "Which color is it?"),
    ],
)
def test_chatter_costs_nothing(one: str, other: str) -> None:
    """Politeness, contractions and spelling raise the score above the cosine."""
    assert learned_scorer().nearness(one, other, 0.94) > 0.94


def test_negation_must_agree() -> None:
    """Not even 0.99 is enough where one question says not."""
    pair = ("Is it safe to eat?", "Is it not safe to eat?")

    assert learned_scorer().nearness(*pair, 0.99) < 0.95
    assert CosineScorer().score(*pair, 0.99) < 0.95
    assert CosineScorer().score(*pair, 0.999) > 0.95


def test_the_weights_have_the_signs_that_were_promised() -> None:
    """Differences of meaning never help, and every feature has a weight."""
    weights = dict(learned_scorer().weights)

    assert weights.keys() == features("x", "x").keys()
    assert weights["negation"] <= -1.5
    assert weights.pop("fillers") >= 0 <= weights.pop("rephrased")
    assert all(weight <= 0 for weight in weights.values())


def test_the_learned_scorer_is_for_its_embedder_only() -> None:
    """Weights say nothing about the cosines of another model."""
    own = learned_scorer().embedder

    assert rule_for(own) is scorer_for(own, "none") is learned_scorer()
    assert isinstance(scorer_for("another"), CosineScorer)


def test_the_pair_model_is_the_default_for_its_embedder_only() -> None:
    """Its package is part of the installation, and its calibration used the cosines of that embedder."""
    model = scorer_for(learned_scorer().embedder)

    assert isinstance(model, PairModel)
    assert model is pair_model()
    assert 1 > model.thresholds.at(ERROR_RATES["strict"]) > model.thresholds.at(ERROR_RATES["generous"]) > 0


@given(st.sampled_from(TABLES), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_more_wrong_hits_allow_a_lower_threshold(table: Thresholds, strict: float, lax: float) -> None:
    """The calibration is monotone and yields thresholds that can be set."""
    strict, lax = sorted(max(1e-9, share * table.highest) for share in (strict, lax))

    assert 1.0 >= table.at(strict) >= table.at(lax) > 0.0


@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0))
def test_a_nearer_question_is_likelier_the_same(low: float, high: float) -> None:
    """The probability rises with the nearness, strictly where floats can tell."""
    low, high = sorted((low, high))
    scorer = learned_scorer()

    assert 0.0 <= scorer.probability(low) <= scorer.probability(high) <= 1.0
    assert high - low < 1e-6 or scorer.probability(low) < scorer.probability(high)


@pytest.mark.parametrize("share", [0.0, 0.5, -0.1, 2.0, float("nan"), COSINES.highest + 1e-6])
def test_max_wrong_is_a_share_that_was_measured(share: float) -> None:
    """2 for 2 % is told to be wrong, and what no threshold is known for."""
    with pytest.raises(InvalidInput, match=rf"above 0 and at most {COSINES.highest:g}"):
        COSINES.at(share)
