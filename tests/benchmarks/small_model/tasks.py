"""What the model is asked: messages to be sorted by intent, and questions whose answers documents hold.

The intents of a stream are numbers; `intent_names.json` names them in words of ours. The ferry lines, their
passages and the questions on them (`ferries.json`) were written for this.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ibidem.embedding import Embedder

HERE = Path(__file__).parent
LEAST = 50  # rows of an intent; what clinc150 holds out of scope has one each

Pair = tuple[str, str]  # a question and its answer


@dataclass(frozen=True)
class Task:
    """A log of answered questions, and questions that are not in it.

    Args:
        name: For the tables.
        says: Heads every prompt.
        question: Stands before a question.
        answer: Stands before its answer.
        log: The newest last.
        asked: With the right answers.
        labels: The answers to choose from; without, the model answers in its own words.
        passages: The document that is retrieved for a question.
        told: Questions asked whose answer the log holds in other words; empty if that is not the point.
    """

    name: str
    says: str
    question: str
    answer: str
    log: Sequence[Pair]
    asked: Sequence[Pair]
    labels: tuple[str, ...] = ()
    passages: Mapping[str, str] = field(default_factory=dict)
    told: frozenset[str] = frozenset()

    def right(self, said: str, answer: str) -> bool:
        """Whether an answer is the right one, up to case, blanks and the last point."""
        return said.strip(" .\n").casefold() == answer.casefold()


def load_intents(data: Path, name: str, log: int, asked: int) -> Task:
    """Messages of a stream; logs of other sizes begin alike, and the same is asked of them."""
    lines = (data / "streams" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [(row["text"].strip(), row["meaning"]) for row in map(json.loads, lines)]
    counts = Counter(meaning for _, meaning in rows)
    names = _names(name, [meaning for meaning, count in counts.items() if count >= LEAST])
    pairs = list({text: (text, names[meaning]) for text, meaning in rows if meaning in names}.values())
    random.Random(0).shuffle(pairs)
    return Task(
        name,
        "Each message of a customer, and its topic in a few words.",
        "Message:",
        "Topic:",
        pairs[asked : asked + log],
        pairs[:asked],
        tuple(sorted(names.values())),
    )


def _names(stream: str, meanings: Sequence[object]) -> dict[object, str]:
    """The words for each intent: its own, or ours for its number."""
    ours = json.loads((HERE / "intent_names.json").read_text(encoding="utf-8")).get(stream)
    if all(isinstance(one, str) for one in meanings) or ours is None:
        return {one: str(one).replace("_", " ") for one in meanings}
    return {one: ours["names"][int(str(one)) - ours["first"]] for one in meanings}


def load_ferries(embedder: Embedder, log: int, asked: int) -> Task:
    """Questions on ferry lines: half of them on facts that the log tells in other words, half on new ones.

    A passage tells six facts of one line. That of a question is the nearest by the embedder. The log has at
    most 180 questions.
    """
    read = json.loads((HERE / "ferries.json").read_text(encoding="utf-8"))
    draw = random.Random(0)
    for fact in read["facts"]:
        draw.shuffle(fact["values"])
    kept, old, new, passages = list[Pair](), list[Pair](), list[Pair](), list[str]()
    for number, line in enumerate(read["lines"]):
        said = []
        for fact in read["facts"]:
            value = fact["values"][number]
            said.append(fact["said"].format(value))
            asks = [(wording.format(line), value) for wording in fact["asked"]]
            draw.shuffle(asks)
            known = number < len(read["lines"]) // 2
            (old if known else new).append(asks[0])
            kept += asks[1:] if known else []
        passages.append(f"{line} line. {' '.join(said)}")
    for some in (kept, old, new):
        draw.shuffle(some)
    told = frozenset(question for question, _ in old[: asked // 2])
    asks = [*old[: asked // 2], *new[: asked // 2]]
    draw.shuffle(asks)
    return Task(
        "ferries",
        "Questions on ferries, with short answers.",
        "Question:",
        "Answer:",
        kept := kept[:log],
        asks,
        passages=_retrieved([question for question, _ in (*asks, *kept)], passages, embedder),
        told=told,
    )


def _retrieved(questions: Sequence[str], passages: Sequence[str], embedder: Embedder) -> dict[str, str]:
    vectors = np.asarray(embedder.embed(passages))
    nearest = (np.asarray(embedder.embed(questions)) @ vectors.T).argmax(axis=1)
    return {question: passages[at] for question, at in zip(questions, nearest, strict=True)}
