"""Do the claims of Zhu, Zhu and Jiao (arXiv 2402.01173) hold with a small encoder? On Natural Questions.

    python -m tests.benchmarks.paper --data FOLDER --out FOLDER

FOLDER holds `pairs/nq_teacher.jsonl`. The claims: on pairs of Natural Questions that the cosine does not tell
apart (AUC .51) the embedding, tuned on labels of "one answer serves both", reaches .81; with two losses, of
which each makes a cache save more.

The pairs are those that are kept for this (`ibidem_lab.models.reserved.for_tuning`), which trained nothing
that ships. Five splits by connected questions: half to learn from (100 labels of it, 300, all), half to test,
of which pairs are dropped until the cosine of the shipped encoder tells as little as chance. Each run of a
training is kept in the folder `--out` and not repeated.

encoder: all-MiniLM-L6-v2 with its upper layers tuned, alone; in the last row first on the pairs of the file
that are not kept for this and share no question with them. verifier: the pair model that ships, and with
its last layer learned as `ibidem learn` does. both: the sum of their log odds, each divided by its spread
over all pairs. Epochs and learning rate were chosen on other pairs of `nq_teacher`.

The simulation asks the questions of the whole test half (not matched) one after the other, in five orders, of
a cache that begins empty and keeps what it did not serve. A question meets the stored ones that it has a
label with; the likeliest is served if it reaches the threshold. Efficiency: the calls saved rightly less the
wrong answers served, as a share of what a perfect decision saves. The threshold is the best one of the other
half of the questions. How the paper computes its efficiency is not known.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ibidem._util.statistics import auc
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.fitting import Pairs, taught_margins
from ibidem_lab.learning.lookups import distinct
from ibidem_lab.models.base import minilm
from ibidem_lab.models.reserved import for_tuning
from ibidem_lab.tuning.data import components
from ibidem_lab.tuning.metrics import cosines
from tests.benchmarks.learn import Bench
from tests.benchmarks.upper_layers import LOSSES, UpperLayers

SPLITS, FEW = 5, (100, 300)
BAND = 0.02  # of the cosine, in which as many pairs are different as are the same
EPOCHS = 3
RESAMPLES = 500
ORDERS, THRESHOLDS = 5, 12

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows of the pairs: to learn from, in order; the test half; and of it those that are matched."""

    learn: Integers
    test: Integers
    matched: Integers


@dataclass(frozen=True)
class Problem:
    """The pairs with what the verifier read of them; `group` numbers what hangs together.

    `others` are the pairs of the file that share no question with these; the verifier that ships knows them.
    """

    labels: Sequence[Label]
    others: Sequence[Label]
    pairs: Pairs
    group: Integers
    splits: Sequence[Split]

    @classmethod
    def load(cls, data: Path, bench: Bench) -> Problem:
        """Read the pairs and split them."""
        rows = [json.loads(line) for line in (data / "pairs/nq_teacher.jsonl").open(encoding="utf-8")]
        every = [Label(row["a"], row["b"], bool(row["same"])) for row in rows]
        labels = distinct([one for one in every if for_tuning(one.asked) or for_tuning(one.stored)])
        known = {text for one in labels for text in (one.asked, one.stored)}
        others = [one for one in distinct(every) if not known & {one.asked, one.stored}]
        with bench.reader("nq") as reader:
            pairs = bench.read([bench.alone(one) for one in labels], labels, reader)
        number = components((one.asked, one.stored) for one in labels)
        group = np.array([number[one.asked] for one in labels])
        return cls(labels, others, pairs, group, [split(pairs, group, seed) for seed in range(SPLITS)])


def split(pairs: Pairs, group: Integers, seed: int) -> Split:
    """Half of the groups to learn from, the others to test."""
    draw = np.random.default_rng(seed)
    side = draw.random(int(group.max()) + 1)[group] < 0.5
    learn, test = np.flatnonzero(side), np.flatnonzero(~side)
    return Split(draw.permutation(learn), test, matched(pairs, test, draw))


def matched(pairs: Pairs, rows: Integers, draw: np.random.Generator) -> Integers:
    """Of each narrow band of the cosine as many different pairs as there are the same."""
    kept: list[int] = []
    bands = np.floor(pairs.cosines[rows] / BAND)
    for band in np.unique(bands):
        inside = draw.permutation(rows[bands == band])
        same, other = inside[pairs.right[inside]], inside[~pairs.right[inside]]
        size = min(len(same), len(other))
        kept += [*same[:size], *other[:size]]
    return np.array(sorted(kept), np.int64)


class Encoders:
    """Encoders tuned on some labels of a split: the log odds that they give to all pairs.

    Args:
        problem: The pairs.
        kept: Folder of what was trained.
    """

    def __init__(self, problem: Problem, kept: Path) -> None:
        self._problem, self._kept = problem, kept
        self._lower: dict[str, Tensor] = {}
        kept.mkdir(parents=True, exist_ok=True)

    def log_odds(self, loss: str, count: int, seed: int, further: bool = False) -> Array:
        """Train, unless that was done; `further` on from an encoder that was tuned on the other pairs."""
        file = self._kept / f"{loss}-{count}-{seed}{'-further' * further}.npy"
        if not file.is_file():
            labels = self._problem.labels
            learn = [labels[row] for row in self._problem.splits[seed].learn[:count]]
            encoder = UpperLayers(minilm(), self._lower, self._start(loss) if further else None)
            temperature, offset = encoder.train(learn, LOSSES[loss], EPOCHS, seed)
            np.save(file, cosines(encoder.embed, labels) / temperature - offset)
            print(file.stem, flush=True)
        found: Array = np.load(file)
        return found

    def _start(self, loss: str) -> dict[str, Tensor]:
        """The weights that were tuned on the other pairs."""
        file = self._kept / f"{loss}-others.pt"
        if not file.is_file():
            encoder = UpperLayers(minilm(), self._lower)
            encoder.train(self._problem.others, LOSSES[loss], EPOCHS, 0)
            torch.save(encoder.weights, file)
        found: dict[str, Tensor] = torch.load(file, weights_only=True)
        return found


def verifier(problem: Problem, bench: Bench, count: int, seed: int) -> Array:
    """The margins of all pairs by the verifier whose last layer learned from some labels."""
    learn = problem.splits[seed].learn[:count]
    taught = problem.pairs.at(learn)
    return taught_margins(problem.pairs, taught, bench.shipped.calibration, bench.anchors)


Scores = dict[str, list[Array]]  # of all pairs, for each split, by the name of a column


def scored(problem: Problem, bench: Bench, encoders: Encoders, count: int, further: bool) -> Scores:
    """All columns for so many labels; the second loss with all of them only."""
    both_losses = count >= len(problem.labels) and not further
    seeds, losses = range(SPLITS), list(LOSSES) if both_losses else list(LOSSES)[:1]
    tuned = {loss: [encoders.log_odds(loss, count, seed, further) for seed in seeds] for loss in losses}
    learned = [verifier(problem, bench, count, seed) for seed in seeds]
    found: Scores = {
        "cosine": [problem.pairs.cosines] * SPLITS,
        **{f"encoder, {loss}": column for loss, column in tuned.items()},
        "verifier": [problem.pairs.margins(bench.shipped.calibration)] * SPLITS,
        "verifier, learned": learned,
    }
    for loss, column in tuned.items():
        both = zip(column, learned, strict=True)
        found[f"both, {loss}"] = [one / one.std() + other / other.std() for one, other in both]
    return found


def interval(problem: Problem, figure: Callable[[int, Integers], float], rows: Iterable[Integers]) -> str:
    """The mean over the splits, with its 95 % interval by the bootstrap over groups.

    `figure` gets the split and its rows, some of them more than once.
    """
    tested, groups, draw = list(rows), int(problem.group.max()) + 1, np.random.default_rng(0)

    def mean(times: Integers) -> float:
        drawn = (np.repeat(some, times[problem.group[some]]) for some in tested)
        return float(np.mean([figure(seed, some) for seed, some in enumerate(drawn)]))

    resampled = [
        mean(np.bincount(draw.integers(groups, size=groups), minlength=groups)) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return f"{mean(np.ones(groups, np.int64)):.3f} ({low:.3f} to {high:.3f})"


def auc_of(problem: Problem, column: Sequence[Array]) -> str:
    """The AUC on the matched pairs."""

    def figure(seed: int, rows: Integers) -> float:
        return auc(column[seed][rows], problem.pairs.right[rows])

    return interval(problem, figure, (one.matched for one in problem.splits))


class Stream:
    """The questions of some rows, asked one after the other in several orders."""

    def __init__(self, problem: Problem, rows: Integers) -> None:
        self._right = problem.pairs.right
        self._near: dict[str, dict[str, int]] = {}
        for row in rows:
            asked, stored, _ = problem.labels[row]
            self._near.setdefault(asked, {})[stored] = int(row)
            self._near.setdefault(stored, {})[asked] = int(row)
        self._orders = [
            random.Random(seed).sample(sorted(self._near), len(self._near)) for seed in range(ORDERS)
        ]

    def gain(self, scores: Array, threshold: float) -> float:
        """Right hits less wrong ones, in the mean of the orders."""
        total = 0
        for order in self._orders:
            stored: set[str] = set()
            for question in order:
                met = [row for other, row in self._near[question].items() if other in stored]
                best = max(met, key=lambda row: scores[row], default=None)
                if best is None or scores[best] < threshold:
                    stored.add(question)
                else:
                    total += 1 if self._right[best] else -1
        return total / len(self._orders)

    @property
    def perfect(self) -> float:
        """What a perfect decision gains."""
        return self.gain(self._right.astype(np.float64), 0.5)


def efficiency(problem: Problem, column: Sequence[Array]) -> list[float]:
    """Of each split."""
    found = []
    for scores, one in zip(column, problem.splits, strict=True):
        streams = [Stream(problem, one.test[problem.group[one.test] % 2 == half]) for half in (0, 1)]
        tried = np.quantile(scores[one.test], np.linspace(0.5, 1.0, THRESHOLDS))
        gained = [[stream.gain(scores, least) for least in tried] for stream in streams]
        reached = gained[0][int(np.argmax(gained[1]))] + gained[1][int(np.argmax(gained[0]))]
        found.append(reached / sum(stream.perfect for stream in streams))
    return found


def show(problem: Problem, bench: Bench, encoders: Encoders) -> None:
    """Print both tables."""
    every = len(problem.labels)
    rows = [(f"{count}", count, False) for count in FEW]
    rows += [("all", every, False), (f"all, after {len(problem.others):,} others", every, True)]
    found = {name: scored(problem, bench, encoders, count, further) for name, count, further in rows}
    columns = list(found["all"])
    sizes = ", ".join(f"{len(one.matched)}" for one in problem.splits)
    told = Table("labels", *columns, title=f"AUC, mean of the splits (95 %); pairs tested: {sizes}")
    saved = Table("labels", *columns, title="caching efficiency, mean (least and most of the splits)")
    for name, scores in found.items():
        told.add_row(name, *(auc_of(problem, scores[one]) if one in scores else "" for one in columns))
        saved.add_row(name, *(saving(problem, scores[one]) if one in scores else "" for one in columns))
    learned = np.mean([len(one.learn) for one in problem.splits])
    console = Console(width=220)
    console.print(f"{every:,} pairs, {int(problem.pairs.right.sum())} the same; 'all' is {learned:.0f}")
    console.print(told, saved)


def saving(problem: Problem, column: Sequence[Array]) -> str:
    """The efficiency: its mean, and the least and the most of the splits."""
    found = efficiency(problem, column)
    return f"{np.mean(found):.1%} ({min(found):.0%} to {max(found):.0%})"


def main() -> None:
    """Train what is not there yet, print the tables."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="folder with pairs/nq_teacher.jsonl")
    options.add_argument("--out", type=Path, required=True, help="folder of what is read and trained")
    given = options.parse_args()
    if not (given.data / "pairs/nq_teacher.jsonl").is_file():
        raise SystemExit(f"skipped: no pairs/nq_teacher.jsonl in {given.data}")
    bench = Bench(given.out / "states")
    problem = Problem.load(given.data, bench)
    show(problem, bench, Encoders(problem, given.out / "encoders"))


if __name__ == "__main__":
    main()
