"""Edits by rule: which change what, and that they keep what they promise to keep."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem_lab.models import rewording
from ibidem_lab.models.groups import load_groups, words

ALL = {edit.__name__: edit for edit in (*rewording.SAME, *rewording.DIFFERENT, *rewording.UNSURE)}
QUESTIONS = [group.question for group in load_groups()][::11]


@pytest.mark.parametrize(
    ("edit", "text", "expected"),
    [
        ("equal_words", "What is DNS?", {"what's DNS?", "which is DNS?"}),
        ("equal_words", "the photo", {"the picture"}),
        ("no_article", "Where is the key?", {"Where is key?"}),
        ("time_first", "Who won the cup in 1998?", {"In 1998, who won the cup?"}),
        ("time_first", "In 1998, who won the cup?", {"Who won the cup in 1998?"}),
        ("careless", "Where is it?", {"where is it", "Where is it", "Where is it??", "where is it?"}),
        ("other_identifier", "Reset an X2", {f"Reset an X{n}" for n in "13456789"}),
        ("exchanged", "tea with milk", {"tea without milk"}),
        ("other_number", "wait 4 days", {"wait 5 days", "wait 8 days", "wait 3 days"}),
        ("roles_exchanged", "drive from Rome to Bari", {"drive from Bari to Rome"}),
        ("roles_exchanged", "is Rome older than Athens", {"is Athens older than Rome"}),
    ],
)  # fmt: skip
def test_what_an_edit_makes(edit: str, text: str, expected: set[str]) -> None:
    found = {ALL[edit](text, random.Random(seed)) for seed in range(300)}
    assert found == expected


@pytest.mark.parametrize("edit", ALL)
def test_where_an_edit_does_not_apply_there_is_none(edit: str) -> None:
    if edit not in ("polite", "careless"):
        assert ALL[edit]("xy zz", random.Random(0)) is None


@given(st.sampled_from(QUESTIONS), st.integers(0, 10**6))
def test_small_edits_touch_no_number_and_no_identifier(text: str, seed: int) -> None:
    """But spelled-out numbers, which have a sign too."""
    edited = rewording.edited(
        text, [e for e in rewording.SAME if e is not rewording.equal_words], random.Random(seed)
    )
    if edited is not None:
        assert edited != text
        numbers, left = (sorted(re.findall(r"\w*\d\w*", one.upper())) for one in (text, edited))
        assert left == numbers
        capitals = {word for word in re.findall(r"\w+", text) if word.isupper() and len(word) > 1}
        assert capitals <= set(re.findall(r"\w+", edited.upper()))


@given(st.sampled_from(QUESTIONS), st.integers(0, 10**6))
def test_edits_that_change_the_answer_change_one_word(text: str, seed: int) -> None:
    edited = rewording.edited(text, rewording.DIFFERENT, random.Random(seed))
    if edited is not None:
        before, after = words(text), words(edited)
        assert len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@given(st.text(max_size=60), st.sampled_from(sorted(ALL)), st.integers(0, 10**6))
def test_any_text(text: str, edit: str, seed: int) -> None:
    """Nothing that somebody has written ends a training."""
    if text:
        assert isinstance(ALL[edit](text, random.Random(seed)), str | None)
