"""What does `ibidem learn` bring, and does its gate hold? On labelled streams.

    python -m tests.benchmarks.learn domains --data FOLDER [--only advising atis] [--labels 300] [--runs 5]
    python -m tests.benchmarks.learn domains --data FOLDER --noise 0.2 --runs 20

FOLDER holds `streams/*.jsonl` with {"text", "meaning"}. `--states FOLDER` keeps what the pair model has read.
`tests.benchmarks.paper` measures the same on pairs of Natural Questions.

The first half of a stream's questions is stored. Questions of it, drawn by chance, are asked of
the others, and what they meet is labelled by meaning, `--labels` pairs in all; of them a share of
`--noise` is turned round. What is learned is judged by the gate, and then on the second half, asked of
the same store. "learned" is what it would serve there whatever the gate says; "in service" is what is
served with the gate: the shipped decision where it refuses. The shipped calibration and thresholds were
made on streams of banking77 and clinc150, on none of the others. The method was developed on advising.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ibidem.embedding import resolve_embedder
from ibidem.embedding.base import CheckedEmbedder
from ibidem.matching.pair_model import PairModel
from ibidem.matching.policy import guards_beside
from ibidem.matching.shipped import pair_model
from ibidem.types import cosine, normalise
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.choosing import Problem, held_out, learn_from, served
from ibidem_lab.learning.fitting import Basis, Pairs
from ibidem_lab.learning.gate import Judgement, judge
from ibidem_lab.learning.learn import margin_of
from ibidem_lab.learning.lookups import Met, Searcher, alone, distinct, look_up, read_pairs
from ibidem_lab.learning.reading import Reader
from ibidem_lab.learning.verifier_files import Shipped
from ibidem_lab.replay import share

LEVEL = 0.02
DOMAINS = ("advising", "atis", "overnight_basketball", "overnight_socialnetwork", "overnight_publications")
LABELS_OF_IBIDEM = Path(__file__).parents[2] / "shared/ibidem/matching/labelled_pairs.jsonl"


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


class Bench:
    """The models, and what the pair model reads.

    Args:
        states: Where that is kept.
    """

    def __init__(self, states: Path) -> None:
        model = pair_model()
        if model is None:
            raise SystemExit("pip install ibidem-models")
        self.model: PairModel = model
        self.shipped, self.states = Shipped.of(model), states
        self.embedder = CheckedEmbedder(resolve_embedder(None), lambda _, value: value)
        self.least = margin_of(model.thresholds.at(LEVEL))
        states.mkdir(parents=True, exist_ok=True)
        with self.reader("ibidem") as reader:
            rows = [json.loads(line) for line in LABELS_OF_IBIDEM.read_text(encoding="utf-8").splitlines()]
            labels = [Label(row["a"], row["b"], bool(row["same"])) for row in rows]
            self.anchors = self.read([self.alone(one) for one in labels], labels, reader)

    def reader(self, name: str) -> Reader:
        """Reads pairs of a workload."""
        return Reader(self.shipped, self.states / f"{name}.states")

    def alone(self, label: Label) -> Met:
        """A pair in a cache that holds nothing else."""
        vector = self.embedder.vector_of
        return alone(label, cosine(vector(normalise(label.asked)), vector(normalise(label.stored))))

    def read(self, met: Sequence[Met], labels: Sequence[Label], reader: Reader) -> Pairs:
        """What is read of labelled pairs."""
        pairs = read_pairs(met, reader, self.shipped, quiet)
        return pairs.labelled(np.array([one.right for one in labels]))


@dataclass(frozen=True)
class Domain:
    """Questions by meaning; the first half is stored."""

    name: str
    meanings: dict[str, object]
    stored: list[str]
    asked: list[str]

    @classmethod
    def load(cls, path: Path, count: int) -> Domain:
        """At most `count` different questions, shuffled."""
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        meanings: dict[str, object] = {}
        for row in rows:
            meanings.setdefault(normalise(row["text"]), row["meaning"])
        texts = list(meanings)
        random.Random(0).shuffle(texts)
        texts = texts[:count]
        return cls(path.stem, meanings, texts[: len(texts) // 2], texts[len(texts) // 2 :])

    @property
    def perfect(self) -> int:
        """How many of the questions asked have a stored one of their meaning."""
        known = {self.meanings[text] for text in self.stored}
        return sum(self.meanings[text] in known for text in self.asked)

    def label(self, one: Met) -> Label:
        """By meaning."""
        return Label(one.asked, one.stored, self.meanings[one.asked] == self.meanings[one.stored])


def drawn(domain: Domain, searcher: Searcher, count: int, noise: float, draw: random.Random) -> list[Label]:
    """So many labels of what stored questions meet among the others, some of them turned round."""
    texts, found = list(domain.stored), dict[tuple[str, str], Label]()
    draw.shuffle(texts)
    for text in texts:
        for one in searcher.met(text, []):
            label = domain.label(one)
            turned = draw.random() < noise
            key = (min(one.asked, one.stored), max(one.asked, one.stored))
            found.setdefault(key, Label(one.asked, one.stored, label.right ^ turned))
        if len(found) >= count:
            break
    return distinct(list(found.values()))[:count]


@dataclass(frozen=True)
class Run:
    """What one draw of labels led to: the gate's verdict, and (hits, wrong) of the second half."""

    judged: Judgement
    shipped: tuple[int, int]
    learned: tuple[int, int]


def runs(bench: Bench, domain: Domain, labels: int, noise: float, count: int) -> Iterator[Run]:
    """Learn from several draws of labels."""
    guards = guards_beside(bench.model)
    vectors = {text: bench.embedder.vector_of(text) for text in domain.stored}
    searcher = Searcher(vectors, bench.embedder, guards, bench.model, bench.model.thresholds.at(LEVEL))
    with bench.reader(domain.name) as reader:
        met = [one for text in domain.asked for one in searcher.met(text, [])]
        test = bench.read(met, [domain.label(one) for one in met], reader)
        first = np.unique([one.asked for one in met], return_inverse=True)[1]
        for seed in range(count):
            told = drawn(domain, searcher, labels, noise, random.Random(seed))
            lookups = look_up(told, searcher, reader, bench.shipped, quiet)
            basis = Basis.of(np.vstack([lookups.pairs.states, bench.anchors.states]))
            calibration = bench.shipped.calibration
            problem = Problem(lookups, calibration, bench.least, LEVEL, basis, bench.anchors)
            learned = learn_from(problem, np.flatnonzero(lookups.known))
            before = served(lookups, lookups.pairs.margins(calibration), bench.least)
            plain, changed = bench.anchors.margins(calibration), learned.margins(problem, bench.anchors)
            yield Run(
                judge(problem, learned, before, held_out(problem), plain, changed),
                hits_of(test, test.margins(calibration), first, bench.least),
                hits_of(test, learned.margins(problem, test), first, bench.least),
            )


def hits_of(
    pairs: Pairs, values: NDArray[np.float64], lookup: NDArray[np.int64], least: float
) -> tuple[int, int]:
    """Hits and wrong ones: of each lookup the first pair that reaches the least margin."""
    rows = np.flatnonzero(values >= least)
    _, first = np.unique(lookup[rows], return_index=True)
    right = pairs.right[rows[first]]
    return len(right), int((~right).sum())


def domains(given: argparse.Namespace) -> None:
    """Print a line for each stream."""
    bench = Bench(given.states)
    heads = "stream|perfect|shipped: hits, wrong per hit|learned: hits, wrong per hit|promoted|in service"
    title = (
        f"{given.labels} labels, {given.noise:.0%} of them wrong, {given.runs} runs; sums of the second half"
    )
    table = Table(*heads.split("|"), title=title)
    for name in given.only or DOMAINS:
        domain = Domain.load(given.data / "streams" / f"{name}.jsonl", given.questions)
        found = list(runs(bench, domain, given.labels, given.noise, given.runs))
        better = [one for one in found if one.judged.better]
        service = [one.learned if one.judged.better else one.shipped for one in found]
        cells = [told([one.shipped for one in found]), told([one.learned for one in found])]
        promoted = f"{len(better)} of {len(found)}"
        table.add_row(name, f"{domain.perfect * len(found):,}", *cells, promoted, told(service))
        reasons = [one.judged.reasons[0] for one in found if one.judged.reasons]
        print(name, *cells, promoted, told(service), reasons[:1], sep=" | ", flush=True)
    Console(width=180).print(table)


def told(counts: Sequence[tuple[int, int]]) -> str:
    """Hits, and the share of the wrong ones."""
    hits, wrong = (sum(column) for column in zip(*counts, strict=True))
    return f"{hits:,}, {share(wrong, hits)}"


def main() -> None:
    """Print a table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("what", choices=("domains",))
    options.add_argument("--data", type=Path, required=True, help="folder with streams/")
    options.add_argument("--states", type=Path, default=Path("/tmp/ibidem-states"), help="folder")
    options.add_argument("--only", nargs="*", help="only these streams")
    options.add_argument("--labels", type=int, default=300)
    options.add_argument("--questions", type=int, default=1_600, help="at most so many of a stream")
    options.add_argument("--noise", type=float, default=0.0, help="share of the labels that are turned round")
    options.add_argument("--runs", type=int, default=5)
    given = options.parse_args()
    if not (given.data / "streams").is_dir():
        raise SystemExit(f"skipped: no streams/ in {given.data}")
    domains(given)


if __name__ == "__main__":
    main()
