"""What the models are trained on: pairs with a label, and pairs that the teacher labels."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ibidem_lab.models import rewording
from ibidem_lab.models.groups import Group, Pair
from ibidem_lab.models.reserved import KeepOut, for_calibration, for_tuning
from ibidem_lab.replay import Row

Encode = Callable[[Sequence[str]], NDArray[np.float32]]

NATURAL = "nq_teacher"  # neighbours among Natural Questions, a part of which is kept for measuring
# Files of labelled pairs, and how often each is seen: open questions are few beside the groups.
LABELLED = {NATURAL: 4, "support_teacher": 2, "trivia_teacher": 4}
# Streams whose questions are paired with their neighbours, for the teacher to label; all CC BY.
NEIGHBOURS = ("banking77", "clinc150")
NEAREST = 8  # neighbours of a question that are paired with it
LEAST_COSINE = 0.5  # pairs below are told apart by the encoder


@dataclass(frozen=True)
class Workloads:
    """A folder of public workloads, without the texts that are kept for measuring."""

    folder: Path

    @property
    def keep_out(self) -> KeepOut:
        """What nothing is trained on."""
        return KeepOut(self.folder / "keep_out.txt")

    def labelled(self, name: str) -> Iterator[Pair]:
        """The pairs of a file whose labels its teacher was sure of, to train on."""
        return (pair for pair in self._sure(name) if not _for_calibration(pair))

    def development(self, name: str) -> Iterator[Pair]:
        """Pairs like those to train on, of other questions: to choose by, and to calibrate."""
        return (pair for pair in self._sure(name) if _for_calibration(pair))

    def _sure(self, name: str) -> Iterator[Pair]:
        for pair, sure in self._pairs(name):
            if sure and not (name == NATURAL and _for_tuning(pair)):
                yield pair

    def kept_for_tuning(self) -> list[Pair]:
        """The pairs of Natural Questions that nothing is trained on or chosen by."""
        return [pair for pair, _ in self._pairs(NATURAL) if _for_tuning(pair)]

    def _pairs(self, name: str) -> Iterator[tuple[Pair, bool]]:
        """All pairs of a file, each with whether its teacher was sure."""
        for row in _rows(self.folder / "pairs" / f"{name}.jsonl"):
            yield Pair(row["a"], row["b"], float(row["same"])), bool(row["sure"])

    def stream(self, name: str) -> list[Row]:
        """The questions of a labelled stream, in a random order; their labels are never trained on."""
        rows = [Row(row["text"], row["meaning"]) for row in _rows(self.folder / "streams" / f"{name}.jsonl")]
        random.Random(7).shuffle(rows)  # noqa: S311
        return rows

    def questions(self) -> dict[str, list[str]]:
        """Unlabelled questions by source, sorted."""
        found = {
            name: [row["text"] for row in _rows(self.folder / "streams" / f"{name}.jsonl")]
            for name in NEIGHBOURS
        }
        natural = (row["question"] for row in _rows(self.folder / "nq_questions.jsonl"))
        found["nq"] = [text for text in natural if not for_tuning(text)]
        return {
            name: sorted({text for text in texts if not for_calibration(text)})
            for name, texts in found.items()
        }


def _for_tuning(pair: Pair) -> bool:
    return for_tuning(pair.a) or for_tuning(pair.b)


def _for_calibration(pair: Pair) -> bool:
    return for_calibration(pair.a) or for_calibration(pair.b)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def groups_as_stream(groups: Sequence[Group], seed: int = 7) -> list[Row]:
    """The held-out groups as questions of users: all rewordings, and to every sixth a near miss."""
    rng = random.Random(seed)  # noqa: S311
    rows = []
    for number, group in enumerate(group for group in groups if group.held_out):
        rows += [Row(text, number) for text in (group.question, *group.same)]
        if number % 2:
            rows.append(Row(rng.choice(group.diff), f"beside {number}"))
    rng.shuffle(rows)
    return rows


def labelled_pairs(groups: Sequence[Group], workloads: Workloads, seed: int = 7) -> list[Pair]:
    """All pairs with a label that may be trained on, shuffled.

    Beside those of the groups and of the workloads: small edits that keep the answer, small edits of a year
    or an identifier that change it, and pairs of questions that have nothing to do with each other.
    """
    rng = random.Random(seed)  # noqa: S311
    pairs = [pair for group in groups if not group.held_out for pair in group.pairs()]
    for name, times in LABELLED.items():
        pairs += list(workloads.labelled(name)) * times
    texts = sorted({text for pair in pairs for text in (pair.a, pair.b)})
    rng.shuffle(texts)
    pairs += _edits(texts, rewording.SAME, 1.0, len(texts) // 3, rng)
    rng.shuffle(texts)
    pairs += _edits(texts, rewording.DIFFERENT, 0.0, len(texts) // 10, rng)
    rng.shuffle(texts)
    pairs += [Pair(a, b, 0.0) for a, b in pairwise(texts[: len(texts) // 12])]
    allowed = _allowed(pairs, groups, workloads)
    rng.shuffle(allowed)
    return allowed


def unlabelled_pairs(
    groups: Sequence[Group], workloads: Workloads, encode: Encode, seed: int = 11
) -> list[Pair]:
    """Pairs for the teacher to label, each once, `same` 0.5: neighbours, cross pairs, edits by rule."""
    rng = random.Random(seed)  # noqa: S311
    train = [group for group in groups if not group.held_out]
    pairs = []
    for texts in workloads.questions().values():
        pairs += _neighbours(texts, encode)
        pairs += _edits(texts, rewording.SAME, 0.5, len(texts) // 2, rng)
        pairs += _edits(texts, rewording.DIFFERENT, 0.5, len(texts) // 4, rng)
        pairs += _edits(texts, rewording.UNSURE, 0.5, len(texts) // 2, rng)
    own = sorted({text for group in train for text in group.texts})
    pairs += _neighbours(own, encode)
    for edits in (rewording.SAME, rewording.UNSURE):
        pairs += _edits(own, edits, 0.5, len(own), rng)
    pairs += _near_misses_of_one_group(train)
    once = list({(pair.a, pair.b): pair for pair in pairs}.values())
    allowed = _allowed(once, groups, workloads)
    rng.shuffle(allowed)
    return allowed


def near_questions(groups: Sequence[Group], workloads: Workloads, encode: Encode) -> list[Pair]:
    """Each question of the workloads that may be trained on with its nearest ones, `same` 0.5, shuffled."""
    pairs = [pair for texts in workloads.questions().values() for pair in _neighbours(texts, encode)]
    random.Random(13).shuffle(pairs)  # noqa: S311
    return _allowed(pairs, groups, workloads)


def _edits(
    texts: Sequence[str], edits: Sequence[rewording.Edit], same: float, count: int, rng: random.Random
) -> list[Pair]:
    found = ((text, rewording.edited(text, edits, rng)) for text in texts)
    pairs = []
    for text, result in found:
        if result is not None:
            pairs.append(Pair(text, result, same))
        if len(pairs) >= count:
            break
    return pairs


def _near_misses_of_one_group(groups: Iterable[Group]) -> list[Pair]:
    """Near misses among each other: nobody has said whether one answer serves two of them."""
    return [Pair(a, b, 0.5) for group in groups for a, b in pairwise(group.diff)]


def _neighbours(texts: Sequence[str], encode: Encode, block: int = 1024) -> list[Pair]:
    """Each text with those nearest to it by cosine."""
    vectors = encode(texts)
    found: dict[tuple[int, int], None] = {}  # in order, each once
    for start in range(0, len(texts), block):
        cosines = vectors[start : start + block] @ vectors.T
        nearest = np.argpartition(-cosines, NEAREST, axis=1)[:, : NEAREST + 1]
        for row, columns in enumerate(nearest.tolist()):
            left = start + row
            found |= {
                (min(left, right), max(left, right)): None
                for right in columns
                if right != left and cosines[row, right] >= LEAST_COSINE
            }
    return [Pair(texts[left], texts[right], 0.5) for left, right in found]


def _allowed(pairs: Iterable[Pair], groups: Iterable[Group], workloads: Workloads) -> list[Pair]:
    """Those without a text that is kept for measuring, be it in a list or in a held-out group."""
    keep_out = workloads.keep_out
    held_out = {text for group in groups if group.held_out for text in group.texts}
    return [p for p in pairs if not held_out & {p.a, p.b} and not keep_out.any_of((p.a, p.b))]
