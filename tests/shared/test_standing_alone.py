"""Does a message stand alone? On examples; the held-out ones were written before the rules were tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ibidem._util.intervals import clopper_pearson
from ibidem.embedding import resolve_embedder
from ibidem.errors import EmbedderUnavailable
from ibidem.prompts.documents import Message, Segment, of_messages
from ibidem.prompts.history import split_history
from ibidem.prompts.standing_alone import RELATED, dependence, is_small_talk, refers_back, unclear

DATA = Path(__file__).parent / "data"


def judged(name: str) -> tuple[int, int, int, int]:
    """How many examples of a file are found alone rightly, wrongly, missed, and found dependent rightly."""
    try:
        embedder = resolve_embedder(None)
    except EmbedderUnavailable as error:
        pytest.skip(f"the default embedder is not available: {error}")
    counts = dict.fromkeys([(True, True), (True, False), (False, True), (False, False)], 0)
    for line in (DATA / f"standing_alone_{name}.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        turns = [(said, "Sure.") for said in row["said"] if not is_small_talk(said, "Sure.")]
        found = not dependence(row["asked"], turns)
        if found and turns:
            *said, asked = embedder.embed([*(said for said, _ in turns), row["asked"]])
            found = max(float(vector @ asked) for vector in said) < RELATED
        counts[found, row["alone"]] += 1
    return counts[True, True], counts[True, False], counts[False, True], counts[False, False]


@pytest.mark.parametrize(("name", "wrong", "recall"), [("development", 0.05, 0.8), ("held_out", 0.10, 0.6)])
def test_few_of_what_depends_is_found_alone(name: str, wrong: float, recall: float) -> None:
    """Half of the examples and more are traps by design; the interval is printed with the figures."""
    right, falsely, missed, kept = judged(name)
    traps, alone = falsely + kept, right + missed
    print(f"{name}: traps found alone {falsely} of {traps}, interval {clopper_pearson(falsely, traps)};")
    print(f"found of those that stand alone {right} of {alone}, interval {clopper_pearson(right, alone)}")

    assert falsely / traps <= wrong
    assert right / alone >= recall


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("And for children?", "goes on"),
        ("How do I cancel it?", "refers"),
        ("Is there a cheaper plan for families?", "refers"),
        ("Which would be right for a beginner?", "refers"),
        ("Which do beginners like?", "incomplete"),
        ("What are the opening hours?", "no subject"),
        ("What did you say about camels?", "about the conversation"),
        ("Snow in Norway", "no question"),
        ("Was kostet die Fahrkarte nach Berlin?", "language"),
        ("How do I write this?\nprint(1)", "long"),
        ("Is it possible to bring a dog?", ""),
        ("How long does it take to boil an egg?", ""),
    ],
)
def test_a_message_by_itself(asked: str, reason: str) -> None:
    """In what way it depends on what was said."""
    assert unclear(asked) == reason


@pytest.mark.parametrize(
    ("said", "answer", "small"),
    [
        ("Hi there!", "Hello! How can I help?", True),
        ("thanks, that was really helpful", "You are welcome.", True),
        ("Hi, where is my order?", "In Lyon.", False),
        ("Hello", "Hello! Your order 4711 is on its way.", False),
        ("ok", "So I cancel the contract. " * 10, False),
    ],
)
def test_greetings_and_thanks(said: str, answer: str, small: bool) -> None:
    """An answer that says more makes a turn of it."""
    assert is_small_talk(said, answer) is small


@pytest.mark.parametrize(
    ("answer", "refers"),
    [
        ("As I said, within 30 days.", True),
        ("As mentioned above, use the menu.", True),
        ("You mentioned that you live in Peru, so no.", True),
        ("Within 30 days, as the law says.", False),
        ("Press Save. The file is in the folder above the project.", False),
    ],
)
def test_answers_that_refer_back(answer: str, refers: bool) -> None:
    """They are stored with their conversation."""
    assert refers_back(answer) is refers


def test_turns_are_told_apart_message_by_message() -> None:
    """Two messages are not one with a line break, nor is one without an answer one with an empty answer."""

    def turns(*said: tuple[str, str]) -> tuple[str, ...]:
        said = (*said, ("human", "the last"))
        messages = [Message(role, "{}", (Segment(role, text),), plain=True) for role, text in said]
        split = split_history(of_messages(messages))
        assert split is not None
        return tuple(turn.digest for turn in split[1])

    found = [
        turns(("human", "a"), ("human", "b"), ("ai", "c")),
        turns(("human", "a\nb"), ("ai", "c")),
        turns(("human", "a"), ("ai", ""), ("human", "b"), ("ai", "c")),
        turns(("human", "a"), ("ai", "b")),
        turns(("human", "a"), ("ai", "b"), ("ai", "")),
        turns(("ai", "b")),
        turns(("human", ""), ("ai", "b")),
        turns(("human", "a")),
        turns(("human", "a"), ("ai", "")),
    ]
    assert len(set(found)) == len(found)
