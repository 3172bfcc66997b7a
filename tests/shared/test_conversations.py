"""Do two conversations mean the same? By their words, without a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem.prompts.likeness import Conversation, Relations, answers_agree, compare, plain

WORDS = Relations(
    same=lambda one, other: plain(one) == plain(other),
    near=lambda one, other: plain(one) == plain(other),
    related=lambda one, other: not set(plain(one).split()).isdisjoint(plain(other).split()),
    alike=lambda one, other: plain(one)[:4] == plain(other)[:4],
)
CLEAR = (
    "How do I wash a woollen jumper?",
    "Where does Lumo make candles?",
    "What do parrots eat in winter?",
)
UNCLEAR = ("And how long does that take?", "Is it expensive?", "What about two?")
SAYING = ("I live in Peru.", "Answer in French from now on.", "Yes please", "No, I meant silk.")
turns = st.lists(
    st.tuples(st.sampled_from((*CLEAR, *UNCLEAR, *SAYING)), st.sampled_from(("So.", "Sold out.")))
)
talks = st.builds(
    lambda last, said: Conversation(last, tuple(said)), st.sampled_from((*CLEAR, *UNCLEAR)), turns
)


@given(talks, talks)
def test_it_is_the_same_both_ways(one: Conversation, other: Conversation) -> None:
    """Which of them was stored does not matter."""
    assert compare(one, one, WORDS) == "same"
    if one.last == other.last:
        assert compare(one, other, WORDS) == compare(other, one, WORDS)


@given(talks, st.sampled_from(SAYING), st.data())
def test_what_only_one_tells_makes_another_conversation(
    talk: Conversation, told: str, data: st.DataObject
) -> None:
    """Wherever it is told; a reply or a correction too."""
    at = data.draw(st.integers(0, len(talk.turns)))
    more = Conversation(talk.last, (*talk.turns[:at], (told, "So."), *talk.turns[at:]))

    assert compare(more, talk, WORDS) != "same"


@given(talks, st.data())
def test_a_needed_turn_with_other_words_makes_another_conversation(
    talk: Conversation, data: st.DataObject
) -> None:
    """Any of those back to the one that is clear by itself."""
    if not talk.needed:
        return
    at = len(talk.turns) - 1 - data.draw(st.integers(0, talk.needed - 1))
    changed = list(talk.turns)
    changed[at] = ("How do I dye a linen curtain?", talk.turns[at][1])

    assert compare(Conversation(talk.last, tuple(changed)), talk, WORDS) != "same"


@pytest.mark.parametrize(
    ("last", "said", "needed"),
    [
        (CLEAR[0], UNCLEAR, 0),
        (UNCLEAR[0], (*CLEAR, CLEAR[1]), 1),
        (UNCLEAR[0], (*CLEAR, UNCLEAR[1], UNCLEAR[2]), 3),
        (UNCLEAR[0], UNCLEAR, 3),
        ("Which of both is cheaper?", CLEAR, 3),
        ("Shorten that", CLEAR, 3),
    ],
)
def test_how_many_turns_are_needed(last: str, said: tuple[str, ...], needed: int) -> None:
    """Back to one that is clear by itself; all where the message is about several."""
    assert Conversation(last, tuple((one, "So.") for one in said)).needed == needed


@pytest.mark.parametrize(
    ("one", "other", "follows", "agree"),
    [
        ("Send it back.", "send  it back.", "Shorten that", True),
        ("Send it back.", "You can return it.", "And how long does that take?", True),
        ("Send it back.", "You can return it. Anything else?", "And how long does that take?", True),
        ("Yes.", "No.", "And how long does that take?", False),
        ("Send it back.", "You can return it.", "Shorten that", False),
        ("Send it back.", "You can return it.", "Why?", False),
        ("A and B.", "B and A.", "How much is the second one?", False),
        ("Shall I send it?", "Shall I cancel it?", "yes", False),
        ("Shall I send it?", "I send it.", "And how long does that take?", False),
        ("In 2 days.", "In 3 days.", "Is it expensive?", False),
        ("In 2 days.", "In two days.", "Is it expensive?", True),
        ("It is sold.", "It is not sold.", "Is it expensive?", False),
    ],
)
def test_answers_agree(one: str, other: str, follows: str, agree: bool) -> None:
    """Where the user goes on with what he asked, their wording does not matter."""
    assert answers_agree(one, other, [follows]) is answers_agree(other, one, [follows]) is agree
