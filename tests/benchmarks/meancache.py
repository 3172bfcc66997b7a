"""What does tuning bring on the pairs of MeanCache, beside the figures that it publishes? A table.

    python -m tests.benchmarks.meancache --pairs FOLDER --out FOLDER [--epochs 2] [--tested 2000]

FOLDER holds `val.csv` and `test.csv` of `dataset_public` in github.com/warisgill/MeanCache: pairs of
questions of Quora. Learned from: `val.csv` without the pairs that have a question of `test.csv`, four fifths
of its connected questions; with 500 of the others weights and thresholds are chosen (the best F1). A
measurement alone: no weight, threshold or label of it goes into anything that ships. all-MiniLM-L6-v2 was
trained on pairs of the same source.

encoder: all-MiniLM-L6-v2 with its upper layers tuned, alone. verifier: the pair model that ships, and with
its last layer learned from 500 pairs as `ibidem learn` does. whole: a logistic regression on both, tuned
and not. What is trained and read is kept in the folder `--out` and not repeated. The published figures are
the last lines of `csvs/plot_fl_training_dgptcache_*_20_50.csv`, measured on half of the test pairs.
"""

from __future__ import annotations

import argparse
import csv
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ibidem._util.statistics import logistic
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.fitting import taught_margins
from ibidem_lab.models.base import minilm
from ibidem_lab.tuning.data import distinct, divide
from ibidem_lab.tuning.metrics import cosines, labels_of, resampled
from tests.benchmarks.learn import Bench
from tests.benchmarks.upper_layers import UpperLayers, cross_entropy

CHOOSE_BY = 0.2  # share of the pairs that choose the weights and the threshold of the whole
READ = 500  # pairs that the verifier learns from, and that weights and thresholds are chosen by
PUBLISHED = {  # average precision, F1, precision, recall
    "MeanCache, Albert": (0.915, 0.868, 0.819, 0.924),
    "MeanCache, MPNet": (0.928, 0.883, 0.857, 0.910),
}

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Sides:
    """Pairs to learn from, to choose by, to test."""

    learn: list[Label]
    choose: list[Label]
    test: list[Label]

    @classmethod
    def load(cls, folder: Path, tested_pairs: int) -> Sides:
        """Read both files; no question is tested that was learned from."""
        test = _read(folder / "test.csv")
        tested = {text for pair in test for text in (pair.asked, pair.stored)}
        rest = _read(folder / "val.csv")
        apart = [pair for pair in rest if pair.asked not in tested and pair.stored not in tested]
        print(f"{len(rest) - len(apart):,} of {len(rest):,} pairs left out: they have a tested question")
        division = divide(apart, (0.0, CHOOSE_BY), 0)
        draw = random.Random(0)
        some = draw.sample(test, min(tested_pairs, len(test)))
        return cls(division.train, draw.sample(division.test, min(READ, len(division.test))), some)

    @property
    def held(self) -> list[Label]:
        """What is not learned from: first those to choose by, then those to test."""
        return [*self.choose, *self.test]


def _read(file: Path) -> list[Label]:
    if not file.is_file():
        raise SystemExit(f"skipped: no {file}")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [
            Label(row["question1"], row["question2"], row["is_duplicate"] == "1")
            for row in csv.DictReader(lines)
        ]
    return distinct(row for row in rows if row.asked.strip() and row.stored.strip())


def tuned(sides: Sides, file: Path, epochs: int) -> Array:
    """The cosines of the held pairs by the tuned encoder."""
    if not file.is_file():
        encoder = UpperLayers(minilm(), {})
        encoder.train(sides.learn, cross_entropy, epochs, seed=0)
        np.save(file, cosines(encoder.embed, sides.held))
    found: Array = np.load(file)
    return found


def average_precision(scores: Array, same: Bools) -> float:
    """The mean precision at the rank of each pair that is the same."""
    ranked = same[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())


def best_threshold(scores: Array, same: Bools) -> float:
    """That of the highest F1."""
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(same[order])
    return float(scores[order][np.argmax(2 * right / (np.arange(1, len(same) + 1) + same.sum()))])


def row(sides: Sides, scores: Array) -> list[str]:
    """Average precision with its interval; F1, precision and recall at the threshold chosen."""
    choose, test = scores[: len(sides.choose)], scores[len(sides.choose) :]
    same = labels_of(sides.test)
    low, high = resampled(sides.test, lambda at: average_precision(test[at], same[at]))
    served = test >= best_threshold(choose, labels_of(sides.choose))
    right = int((served & same).sum())
    precision, recall = right / max(1, int(served.sum())), right / int(same.sum())
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    ranked = f"{average_precision(test, same):.3f} ({low:.3f} to {high:.3f})"
    return [ranked, f"{f1:.3f}", f"{precision:.3f}", f"{recall:.3f}"]


def whole(sides: Sides, columns: list[Array]) -> Array:
    """A logistic regression on the columns, fitted to the pairs to choose by."""
    features = np.stack(columns, axis=1)
    features = np.hstack([(features - features.mean(0)) / features.std(0), np.ones((len(features), 1))])
    same = labels_of(sides.choose).astype(np.float64)
    found: Array = features @ logistic(features[: len(same)], same, np.ones(len(same)))
    return found


def main() -> None:
    """Train what is not there yet, print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--pairs", type=Path, required=True, help="folder with val.csv and test.csv")
    options.add_argument("--out", type=Path, required=True, help="folder of what is read and trained")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--tested", type=int, default=2_000, help="so many of the test pairs, by chance")
    given = options.parse_args()
    sides, bench = Sides.load(given.pairs, given.tested), Bench(given.out)
    encoder = tuned(sides, given.out / f"meancache-{given.epochs}-{given.tested}.npy", given.epochs)
    learn = sides.learn[:READ]
    with bench.reader("meancache") as reader:
        held = bench.read([bench.alone(one) for one in sides.held], sides.held, reader)
        taught = bench.read([bench.alone(one) for one in learn], learn, reader)
    head = taught_margins(held, taught, bench.shipped.calibration, bench.anchors)
    columns = {
        "cosine, untuned": held.cosines,
        "encoder, tuned": encoder,
        "verifier": held.margins(bench.shipped.calibration),
        "verifier, learned": head,
        "whole": whole(sides, [held.cosines, encoder, held.logits, head]),
    }
    sizes = [f"{len(side):,}" for side in (sides.learn, sides.choose, sides.test)]
    title = "{} pairs learned from, {} to choose by, {} tested".format(*sizes)
    table = Table("", "average precision", "F1", "precision", "recall", title=title)
    for name, scores in columns.items():
        table.add_row(name, *row(sides, scores))
    for name, figures in PUBLISHED.items():
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
