"""The sets on which caches are compared. None is part of the project but as figures."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.conversations.__main__ import fow_cache as fow_conversations
from tests.benchmarks.pair_decisions import fow_cache as fow_questions

Turns = tuple[str, ...]  # what user and model say in turns, the user first and last
SEED = 7
STREAMS = ("clinc150", "banking77", "atis", "advising")


class Missing(Exception):
    """A set that is not here: says what brings it."""


class TurnPair(NamedTuple):
    """What is stored, what is asked, and whether one answer serves both."""

    stored: Turns
    asked: Turns
    same: bool


class Row(NamedTuple):
    """A question, and what it means: those of one meaning may share an answer."""

    text: str
    meaning: Hashable


@dataclass(frozen=True)
class Where:
    """What the user names: folders with the data of others, and how many to take."""

    data: Path | None = None
    meancache: Path | None = None
    gptcache: Path | None = None
    pairs: int = 500
    requests: int = 2_000


def questions(where: Where) -> list[TurnPair]:
    """The pairs of questions of fow-cache."""
    found = fow_questions()
    if not found:
        raise Missing("pip install fow-cache")
    return [TurnPair((one.stored,), (one.asked,), bool(one.same)) for one in found]


def conversations(where: Where) -> list[TurnPair]:
    """The pairs of conversations of fow-cache."""
    spec = find_spec("fow_cache")
    if spec is None or spec.origin is None:
        raise Missing("pip install fow-cache")
    found = fow_conversations(Path(spec.origin).parent / "data")
    return [TurnPair(one.first, one.second, one.same) for one in found]


def meancache(where: Where) -> list[TurnPair]:
    """The test pairs of MeanCache, shuffled."""
    rows = list(csv.DictReader(_text(where.meancache, "test.csv", "--meancache").splitlines()))
    random.Random(SEED).shuffle(rows)
    return [
        TurnPair((row["question1"],), (row["question2"],), row["is_duplicate"] == "1")
        for row in rows[: where.pairs]
        if row["question1"].strip() and row["question2"].strip()
    ]


def gptcache(where: Where) -> list[TurnPair]:
    """The sample sentences of GPTCache, all of one meaning with theirs; each is stored once."""
    rows = json.loads(_text(where.gptcache, "mock_data.json", "--gptcache"))
    once = {row["origin"]: row["similar"] for row in rows}
    return [TurnPair((stored,), (asked,), True) for stored, asked in list(once.items())[: where.pairs]]


def stream(name: str, where: Where) -> list[Row]:
    """One stream of labelled questions, shuffled."""
    folder = None if where.data is None else where.data / "streams"
    rows = [json.loads(line) for line in _text(folder, f"{name}.jsonl", "--data").splitlines()]
    random.Random(SEED).shuffle(rows)
    return [Row(row["text"], row["meaning"]) for row in rows if row["text"].strip()][: where.requests]


def _text(folder: Path | None, name: str, option: str) -> str:
    if folder is None:
        raise Missing(f"{option} FOLDER names no folder with {name}")
    if not (folder / name).is_file():
        raise Missing(f"there is no {name} in {folder}, which {option} names")
    return (folder / name).read_text(encoding="utf-8")


PAIRS: Mapping[str, Callable[[Where], list[TurnPair]]] = {
    "questions": questions,
    "conversations": conversations,
    "meancache": meancache,
}
