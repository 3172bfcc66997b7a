"""How a question is put."""

from __future__ import annotations

import pytest
from hypothesis import given

from ibidem.matching.guards import vetoed_by
from ibidem.matching.phrasing import (
    american,
    asks_otherwise,
    misspelt,
    quantified_otherwise,
    roles_exchanged,
    same_place,
    stem,
    take_apart,
    unshared,
)
from tests.shared.test_scoring import QUESTIONS


def apart(one: str, other: str) -> tuple:
    """Both, taken apart."""
    return take_apart(one), take_apart(other)


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
    assert take_apart(one).words == take_apart(other).words


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
def test_misspelt(one: str, other: str, same: bool) -> None:
    """A slip of the keyboard is no other word; short words and numbers are."""
    assert misspelt(one, other) is misspelt(other, one) is same


def test_unshared_words() -> None:
    """Content words of one side; a misspelling is shared."""
    assert unshared(*apart("how do I bake rye bread", "how can I bake the bred")) == (["rye"], [])


def test_same_place() -> None:
    """One word was put in the place of another."""
    assert same_place(("a", "b", "c"), ("a", "x", "c"))
    assert not same_place(("a", "b", "c"), ("x", "b", "y"))
    assert not same_place(("a",), ("a",))


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
    assert roles_exchanged(*apart(one, other))
    assert roles_exchanged(*apart(other, one))


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
    assert not roles_exchanged(*apart(one, other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Can I enter without a visa?", "Must I enter without a visa?"),
        ("Did the shop open today?", "Does the shop open today?"),
        ("who is the king of Spain", "where is the king of Spain"),
        ("May I tip the driver?", "Do I have to tip the driver?"),
    ],
)
def test_asks_otherwise(one: str, other: str) -> None:
    """May or must, did or does, who or where."""
    assert asks_otherwise(*apart(one, other))


def test_asks_alike() -> None:
    """Can and may are one."""
    assert not asks_otherwise(*apart("Can I tip the driver?", "May I tip the driver?"))


def test_quantified_otherwise() -> None:
    """All is not any."""
    assert quantified_otherwise(*apart("Are all snakes venomous?", "Are any snakes venomous?"))
    assert not quantified_otherwise(*apart("Are all snakes venomous?", "Is every snake venomous?"))


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("how do I open an account", True),
        ("wie eröffne ich ein Konto", False),
        ("¿cómo abro una cuenta?", False),
        ("", False),
    ],
)
def test_english_is_told_by_its_small_words(text: str, english: bool) -> None:
    """Other languages are not judged by English rules."""
    assert take_apart(text).is_english is english


@given(QUESTIONS, QUESTIONS)
def test_guards_are_the_same_from_both_sides(one: str, other: str) -> None:
    """Which question came first does not matter; and none speaks against the very same question."""
    assert vetoed_by(one, other) == vetoed_by(other, one)
    assert vetoed_by(one, one) is None
