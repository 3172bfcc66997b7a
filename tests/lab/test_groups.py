"""The data that models are trained on: what it must hold, and what must not be in it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ibidem._util.statistics import auc
from ibidem_lab.models.groups import (
    Pair,
    commonest_frame,
    frame,
    load_groups,
    overlap,
    overlap_auc,
    words,
)
from ibidem_lab.models.pairs import Workloads, labelled_pairs
from ibidem_lab.models.reserved import OWN, KeepOut, text_hash, write_own
from tests.lab.reserved_texts import own_texts

GROUPS = load_groups()


def test_there_are_enough_of_each_kind() -> None:
    kinds = Counter(group.kind for group in GROUPS)
    assert sum(kinds.values()) >= 7_500
    for rare in (
        "code",
        "commands",
        "long",
        "statements",
        "opposites",
        "identifiers",
        "time_place",
        "conversation",
    ):
        assert kinds[rare] >= 150, rare


def test_groups_are_whole() -> None:
    """Three or four rewordings, four near misses, no text twice in the group."""
    wrong = [
        group.question
        for group in GROUPS
        if not (
            3 <= len(group.same) <= 4 and len(group.diff) == 4 and len(set(group.texts)) == len(group.texts)
        )
    ]
    assert wrong == []


def test_no_text_has_two_meanings() -> None:
    """A text that stands in two groups would be told from itself."""
    seen = Counter(
        " ".join(words(text)) or text for group in GROUPS for text in {t.lower() for t in group.texts}
    )
    twice = [text for text, count in seen.items() if count > 1]
    assert len(twice) <= 0.002 * len(seen), twice[:20]


def test_questions_are_written_one_by_one() -> None:
    """No frame (a question with its content words masked) in more than 1 % of the groups."""
    text, share = commonest_frame(GROUPS)
    assert share <= 0.01, text


def test_a_small_edit_does_not_betray_the_label() -> None:
    """On held-out groups the overlap of words says nothing about the label."""
    assert 0.45 <= overlap_auc(group for group in GROUPS if group.held_out) <= 0.55


def test_nothing_that_results_are_measured_on_is_in() -> None:
    """Neither texts of the suites and the demo, nor, with the folder of workloads, those of its list."""
    workloads = os.environ.get("STREAMS_DATA")
    reserved = KeepOut(*([Path(workloads) / "keep_out.txt"] if workloads else []))
    assert [text for group in GROUPS for text in group.texts if text in reserved] == []


@pytest.mark.skipif("STREAMS_DATA" not in os.environ, reason="STREAMS_DATA names no folder of workloads")
def test_nothing_that_results_are_measured_on_is_trained_on() -> None:
    """Of the labelled pairs of the workloads either, nor a held-out group."""
    workloads = Workloads(Path(os.environ["STREAMS_DATA"]))
    pairs = labelled_pairs(GROUPS, workloads)
    texts = {text for pair in pairs for text in (pair.a, pair.b)}
    held_out = {text for group in GROUPS if group.held_out for text in group.texts}
    assert len(pairs) > 90_000
    assert not workloads.keep_out.any_of(texts)
    assert not texts & held_out


def test_the_list_of_our_own_reserved_texts_is_current(tmp_path: Path) -> None:
    write_own(own_texts(), tmp_path / "now.txt")
    assert OWN.read_text() == (tmp_path / "now.txt").read_text(), "run: python -m tests.lab.reserved_texts"


def test_about_a_tenth_is_held_out() -> None:
    assert 0.08 < sum(group.held_out for group in GROUPS) / len(GROUPS) < 0.12


def test_the_pairs_of_a_group(tmp_path: Path) -> None:
    row = {"domain": "x", "q": "a", "same": ["b", "c"], "diff": ["d"]}
    (tmp_path / "some kind.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (group,) = load_groups(tmp_path)
    assert group.kind == "some kind"
    same = [Pair("a", "b", 1.0), Pair("a", "c", 1.0), Pair("b", "c", 1.0)]
    assert list(group.pairs()) == [*same, Pair("a", "d", 0.0), Pair("b", "d", 0.0), Pair("c", "d", 0.0)]


@pytest.mark.parametrize(
    "line", ["[", "[]", "3", "{}", '{"domain": "x", "q": "a", "same": [], "diff": ["b"]}']
)
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1"):
        load_groups(tmp_path)


def test_words_and_frames() -> None:
    assert words("Don't use v2.10, use x-ray!") == ["don't", "use", "v2.10", "use", "x-ray"]
    assert frame("How do I reset my PIN?") == "how do i _ my _"
    assert overlap("reset my PIN", "Reset your PIN") == pytest.approx(0.5)


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    positive, negative = [0.9, 0.4, 0.4], [0.4, 0.1]
    by_hand = sum((p > n) + (p == n) / 2 for p in positive for n in negative) / 6
    scores, same = np.array([*positive, *negative]), np.arange(5) < 3
    assert auc(scores, same) == pytest.approx(by_hand)


def test_hashes_ignore_case_and_blanks_around() -> None:
    assert text_hash(" What is DNS? ") == text_hash("what is dns?")
