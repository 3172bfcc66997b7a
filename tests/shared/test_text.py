"""The parse of a question, and what is compared of two."""

from __future__ import annotations

import pytest
from hypothesis import given

from ibidem.matching.guards import asks_differ, failed_guard, quantifiers_differ, roles_exchanged
from ibidem.matching.learned import differ_in_one_place, is_misspelling, unshared_words
from ibidem.matching.text import QuestionFeatures, american, parse_question, stem
from tests.shared.test_scoring import QUESTIONS


def parse(one: str, other: str) -> tuple[QuestionFeatures, QuestionFeatures]:
    return parse_question(one), parse_question(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What's the colour of the car?", "What is the color of the car?"),
        ("I can't log in", "I cannot log in"),
        ("It doesn\u2019t work", "It doesnt work"),
        ("Is VAT included?", "Is value added tax included?"),
        ("organise the files", "organize the files"),
    ],
)
def test_one_spelling(one: str, other: str) -> None:
    """Contractions, British spelling and abbreviations are written out."""
    assert parse_question(one).words == parse_question(other).words


@pytest.mark.parametrize("word", ["promise", "exercise", "otherwise", "rise", "wise"])
def test_words_that_only_look_british(word: str) -> None:
    """Not every -ise is an -ize."""
    assert american(word) == word


@pytest.mark.parametrize(
    ("one", "other"), [("flights", "flight"), ("sending", "send"), ("cities", "city"), ("planned", "plan")]
)
def test_stems(one: str, other: str) -> None:
    """The commonest endings do not matter."""
    assert stem(one) == stem(other)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("accommodation", "accomodation", True),
        ("transfer", "tranfer", True),
        ("increase", "decrease", False),
        ("cat", "car", False),
        ("2019", "2018", False),
    ],
)
def test_misspellings(one: str, other: str, same: bool) -> None:
    """A misspelling is the same word; short words and numbers are compared exactly."""
    assert is_misspelling(one, other) is is_misspelling(other, one) is same


def test_unshared_words() -> None:
    """Content words of one side only; a misspelling counts as shared."""
    assert unshared_words(*parse("how do I bake rye bread", "how can I bake the bred")) == (["rye"], [])


def test_words_that_differ_in_one_place() -> None:
    """One word replaced another."""
    assert differ_in_one_place(("a", "b", "c"), ("a", "x", "c"))
    assert not differ_in_one_place(("a", "b", "c"), ("x", "b", "y"))
    assert not differ_in_one_place(("a",), ("a",))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Does the dog bite the man?", "Does the man bite the dog?"),
        ("Can I sue you?", "Can you sue me?"),
        ("convert bytes to strings", "convert strings to bytes"),
        ("a flight from Boston", "a flight to Boston"),
    ],
)
def test_roles_exchanged(one: str, other: str) -> None:
    """The same words, but who does what to whom differs."""
    assert roles_exchanged(*parse(one, other))
    assert roles_exchanged(*parse(other, one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Which flights leave on Monday?", "On Monday, which flights leave?"),
        ("Is bread with eggs, onions and salt good?", "Is bread with salt, onions and eggs good?"),
        ("Why is it not charging?", "Why isn't it charging?"),
        ("flights from Boston to Denver", "flights to Denver from Boston"),
    ],
)
def test_roles_kept(one: str, other: str) -> None:
    """Phrases moved as a whole mean the same."""
    assert not roles_exchanged(*parse(one, other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Can I enter without a visa?", "Must I enter without a visa?"),
        ("Did the shop open today?", "Does the shop open today?"),
        ("who is the king of Spain", "where is the king of Spain"),
        ("May I tip the driver?", "Do I have to tip the driver?"),
    ],
)
def test_asks_differ(one: str, other: str) -> None:
    """May or must, did or does, who or where."""
    assert asks_differ(*parse(one, other))


def test_asks_alike() -> None:
    """Can and may are one."""
    assert not asks_differ(*parse("Can I tip the driver?", "May I tip the driver?"))


def test_quantifiers_differ() -> None:
    """All is not any."""
    assert quantifiers_differ(*parse("Are all snakes venomous?", "Are any snakes venomous?"))
    assert not quantifiers_differ(*parse("Are all snakes venomous?", "Is every snake venomous?"))


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("how do I open an account", True),
        ("wie eröffne ich ein Konto", False),
        ("¿cómo abro una cuenta?", False),
        ("", False),
    ],
)
def test_english_is_recognized_by_its_small_words(text: str, english: bool) -> None:
    """Other languages are not judged by English rules."""
    assert parse_question(text).is_english is english


@given(QUESTIONS, QUESTIONS)
def test_guards_are_the_same_from_both_sides(one: str, other: str) -> None:
    """Which question came first does not matter, and no guard fails for the very same question."""
    assert failed_guard(one, other) == failed_guard(other, one)
    assert failed_guard(one, one) is None
