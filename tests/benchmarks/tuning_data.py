"""Labelled pairs of questions from public data: what to tune on, and what to measure with."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ibidem.embedding import Embedder
from ibidem_lab.fitting.labels import Label
from ibidem_lab.tuning.data import Division, distinct, divide
from tests.benchmarks.streams import Stream, load_streams

HELD_OUT = ("overnight_calendar", "overnight_publications")  # domains that no model is tuned on
TAUGHT = ("overnight_basketball", "overnight_blocks", "overnight_socialnetwork", "advising")
SIMILAR = ("banking77", "clinc150")  # plain similarity; never tuned on either
NEIGHBOURS = 10
NEAR = 0.6  # least cosine of two questions that are paired
PAIRS_OF_A_STREAM = 3_000
SHARES = (0.1, 0.3)  # of the hard pairs: to choose by, to measure with


@dataclass(frozen=True)
class Data:
    """Pairs to learn from, to choose the epoch by, and sets to measure with, by name; and whole streams."""

    train: list[Label]
    validation: list[Label]
    tests: dict[str, list[Label]]
    streams: list[Stream]


def load(data: Path, embedder: Embedder, kept: Path | None, seed: int = 0) -> Data:
    """Everything; no question that is measured with is learned from."""
    division = _hard(data, seed)
    streams = {stream.name: stream for stream in load_streams(data, embedder, kept)}
    held = {text for pair in (*division.validation, *division.test) for text in (pair.asked, pair.stored)}
    taught = [
        *division.train,
        *_answered(data / "nq_questions.jsonl", embedder, held, seed),
        *(pair for name in TAUGHT for pair in _even(neighbours(streams[name]), PAIRS_OF_A_STREAM, seed)),
    ]
    tests = held_out(data, list(streams.values()), seed)
    return Data(distinct(taught), division.validation, tests, [streams[name] for name in SIMILAR])


def held_out(data: Path, streams: Sequence[Stream], seed: int = 0) -> dict[str, list[Label]]:
    """The pairs to measure with, by name."""
    pairs = {stream.name: neighbours(stream) for stream in streams if stream.name in HELD_OUT}
    return {"nq_hard": _hard(data, seed).test, **pairs}


def _hard(data: Path, seed: int) -> Division:
    rows = _lines(data / "pairs" / "nq_hard.jsonl")
    return divide(distinct(Label(row["a"], row["b"], bool(row["same"])) for row in rows), SHARES, seed)


def neighbours(stream: Stream) -> list[Label]:
    """Each question with its nearest others, and whether they mean the same."""
    return _pairs(stream.texts, stream.vectors, stream.same)


def _answered(path: Path, embedder: Embedder, held: set[str], seed: int) -> list[Label]:
    """Natural Questions near each other; the same if their answers meet. Those held out take no part."""
    answers = {
        row["question"]: frozenset(map(_plain, row["answers"])) - {""}
        for row in _lines(path)
        if row["question"] not in held
    }
    texts = sorted(answers)
    found = _pairs(
        texts, embedder.embed(texts), lambda one, other: bool(answers[texts[one]] & answers[texts[other]])
    )
    return _even(found, len(found), seed)


def _pairs(texts: Sequence[str], vectors: np.ndarray, same: Callable[[int, int], bool]) -> list[Label]:
    found: dict[tuple[int, int], Label] = {}
    for start in range(0, len(texts), 1_000):
        cosines = vectors[start : start + 1_000] @ vectors.T
        for row, near in enumerate(cosines):
            one = start + row
            for other in np.argpartition(-near, NEIGHBOURS)[: NEIGHBOURS + 1].tolist():
                if texts[one] != texts[other] and near[other] >= NEAR:
                    key = min(one, other), max(one, other)
                    found[key] = Label(texts[key[0]], texts[key[1]], same(*key))
    return distinct(found.values())


def _even(pairs: list[Label], most: int, seed: int) -> list[Label]:
    """At most so many, as many of one kind as of the other."""
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    right, wrong = ([pair for pair in shuffled if pair.right is kind] for kind in (True, False))
    each = min(len(right), len(wrong), most // 2)
    return right[:each] + wrong[:each]


def _plain(answer: str) -> str:
    words = answer.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return " ".join(word for word in words if word not in ("the", "a", "an"))


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
