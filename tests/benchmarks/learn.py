"""What does `ibidem learn` bring, and does its gate hold? On labelled streams.

    python -m tests.benchmarks.learn domains --data FOLDER [--only advising atis] [--by-chance]
    python -m tests.benchmarks.learn domains --data FOLDER --noise 0.2 --runs 20

FOLDER holds `streams/*.jsonl` with {"text", "meaning"}. `--states FOLDER` keeps what the pair model has read.
`tests.benchmarks.paper` measures the same on pairs of Natural Questions.

Half of a stream's questions, another one in each run, is stored. Each of them is asked of the others, and
of what they meet `--labels` pairs are labelled by meaning: those that `ibidem learn --teacher` asks about,
or with `--by-chance` any. Of the labels a share of `--noise` is turned round. What is learned is judged by
the gate, and then on the other half, asked of the same store. "learned" is what it would serve there
whatever the gate says; "in service" is what is served with the gate: the shipped decision where it refuses.
The shipped calibration and thresholds were made on streams of banking77 and clinc150, on none of the
others. The method was developed on advising and hwu64. Those of the third parties are made of
github.com/jianguoz/Few-Shot-Intent-Detection (hwu64), JerryWeiAI/COVID-Q and hellohaptik/HINT3: the text
and its class, where there is none one of its own.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ibidem.embedding import resolve_embedder
from ibidem.embedding.base import CheckedEmbedder
from ibidem.matching.pair_model import PairModel
from ibidem.matching.policy import guards_beside
from ibidem.matching.shipped import pair_model
from ibidem.types import Vector, cosine, normalise
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.asking import choose, margins_so_far
from ibidem_lab.learning.choosing import Problem, learn_from, served
from ibidem_lab.learning.fitting import Basis, Pairs
from ibidem_lab.learning.gate import Judgement, judge
from ibidem_lab.learning.lookups import Met, Searcher, alone, distinct, look_up, read_pairs
from ibidem_lab.learning.place import margin_of
from ibidem_lab.learning.reading import Reader
from ibidem_lab.learning.verifier_files import Shipped
from ibidem_lab.replay import share

LEVEL = 0.02
DOMAINS = ("advising", "atis", "hwu64", "covid_q", "overnight_basketball", "overnight_socialnetwork")
LABELS_OF_IBIDEM = Path(__file__).parents[2] / "shared/ibidem/matching/labelled_pairs.jsonl"


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


class Remembering(CheckedEmbedder):
    """Embeds each question once."""

    known: ClassVar[dict[str, Vector]] = {}

    def vector_of(self, question: str) -> Vector:
        if question not in self.known:
            self.known[question] = super().vector_of(question)
        return self.known[question]


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
        self.embedder = Remembering(resolve_embedder(None), lambda _, value: value)
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
    """Questions by meaning; one half is stored."""

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
        return cls.halved(path.stem, meanings, texts[:count])

    @classmethod
    def halved(cls, name: str, meanings: dict[str, object], texts: list[str]) -> Domain:
        """The first half of the questions is stored, the second is asked."""
        return cls(name, meanings, texts[: len(texts) // 2], texts[len(texts) // 2 :])

    def split(self, seed: int) -> Domain:
        """The same questions in other halves."""
        texts = [*self.stored, *self.asked]
        random.Random(seed).shuffle(texts)
        return self.halved(self.name, self.meanings, texts)

    @property
    def perfect(self) -> int:
        """How many of the questions asked have a stored one of their meaning."""
        known = {self.meanings[text] for text in self.stored}
        return sum(self.meanings[text] in known for text in self.asked)

    def label(self, one: Met) -> Label:
        """By meaning."""
        return Label(one.asked, one.stored, self.meanings[one.asked] == self.meanings[one.stored])


Labels = Mapping[frozenset[str], Label]


@dataclass(frozen=True)
class Store:
    """The stored half: what finds questions in it, and what these meet among one another, as it is read."""

    searcher: Searcher
    met: list[Met]
    pairs: Pairs

    @classmethod
    def of(cls, bench: Bench, domain: Domain, reader: Reader) -> Store:
        """Ask each stored question of the others."""
        vectors = {text: bench.embedder.vector_of(text) for text in domain.stored}
        threshold = bench.model.thresholds.at(LEVEL)
        searcher = Searcher(vectors, bench.embedder, guards_beside(bench.model), bench.model, threshold)
        met = [one for text in domain.stored for one in searcher.met(text, [])]
        return cls(searcher, met, bench.read(met, [domain.label(one) for one in met], reader))

    def labelled(self, bench: Bench, domain: Domain, given: argparse.Namespace, seed: int) -> list[Label]:
        """So many labels, some of them turned round."""
        draw, told, part = random.Random(seed), dict[frozenset[str], Label](), (given.labels + 1) // 2
        while len(told) < given.labels:
            count = min(part, given.labels - len(told))
            chosen = (
                self._by_chance(count, told, draw)
                if given.by_chance
                else self._asked(count, bench, told, draw)
            )
            for one in (self.met[at] for at in chosen):
                label = domain.label(one)
                turned = draw.random() < given.noise
                told.setdefault(_key(one), label._replace(right=label.right ^ turned))
            if not chosen:
                break
        return distinct(list(told.values()))

    def _by_chance(self, count: int, told: Labels, draw: random.Random) -> list[int]:
        """Of the pairs without a label."""
        left = [at for at, one in enumerate(self.met) if _key(one) not in told]
        return draw.sample(left, min(count, len(left)))

    def _asked(self, count: int, bench: Bench, told: Labels, draw: random.Random) -> list[int]:
        """What `ibidem learn` asks about, of the pairs without a label."""
        rows = [at for at, one in enumerate(self.met) if _key(one) in told]
        right = np.array([told[_key(self.met[at])].right for at in rows], np.bool_)
        known = self.pairs.at(rows).labelled(right)
        values = margins_so_far(self.pairs, known, bench.anchors, bench.shipped)
        return choose(self.met, values, bench.least, count, told.keys(), draw)


def _key(one: Met) -> frozenset[str]:
    return frozenset((one.asked, one.stored))


@dataclass(frozen=True)
class Run:
    """What one draw led to: the gate's verdict, and (hits, wrong) of the other half.

    `perfect` is how many of its questions have a stored one of their meaning.
    """

    perfect: int
    judged: Judgement
    shipped: tuple[int, int]
    learned: tuple[int, int]


def runs(bench: Bench, whole: Domain, given: argparse.Namespace) -> Iterator[Run]:
    """Learn from several draws of halves and labels."""
    with bench.reader(whole.name) as reader:
        for seed in range(given.runs):
            domain = whole.split(seed)
            store = Store.of(bench, domain, reader)
            told = store.labelled(bench, domain, given, seed)
            yield run(bench, domain, store, told, reader)


def run(bench: Bench, domain: Domain, store: Store, told: Sequence[Label], reader: Reader) -> Run:
    """Learn from labels, judge, and ask the other half."""
    met = [one for text in domain.asked for one in store.searcher.met(text, [])]
    test = bench.read(met, [domain.label(one) for one in met], reader)
    first = np.unique([one.asked for one in met], return_inverse=True)[1]
    lookups = look_up(told, store.searcher, reader, bench.shipped, quiet)
    basis = Basis.of(np.vstack([lookups.pairs.states, bench.anchors.states]))
    calibration = bench.shipped.calibration
    problem = Problem(lookups, calibration, bench.least, LEVEL, basis, bench.anchors)
    learned, after = learn_from(problem)
    before = served(lookups, lookups.pairs.margins(calibration), bench.least)
    return Run(
        domain.perfect,
        judge(problem, learned, before, after),
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
        f"{given.labels} labels, {given.noise:.0%} of them wrong, {given.runs} runs; sums of the other half"
    )
    table = Table(*heads.split("|"), title=title)
    for name in given.only or DOMAINS:
        if not (given.data / "streams" / f"{name}.jsonl").is_file():
            print(f"skipped: no {name} in {given.data / 'streams'}")
            continue
        domain = Domain.load(given.data / "streams" / f"{name}.jsonl", given.questions)
        found = list(runs(bench, domain, given))
        better = [one for one in found if one.judged.better]
        service = [one.learned if one.judged.better else one.shipped for one in found]
        cells = [told([one.shipped for one in found]), told([one.learned for one in found])]
        promoted = f"{len(better)} of {len(found)}"
        table.add_row(name, f"{sum(one.perfect for one in found):,}", *cells, promoted, told(service))
        reasons = Counter(one.judged.reasons[0] for one in found if one.judged.reasons).most_common(1)
        print(name, *cells, promoted, told(service), *reasons, sep=" | ", flush=True)
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
    options.add_argument("--by-chance", action="store_true", help="labels drawn by chance, not asked for")
    options.add_argument("--questions", type=int, default=4_000, help="at most so many of a stream")
    options.add_argument("--noise", type=float, default=0.0, help="share of the labels that are turned round")
    options.add_argument("--runs", type=int, default=5)
    given = options.parse_args()
    if not (given.data / "streams").is_dir():
        raise SystemExit(f"skipped: no streams/ in {given.data}")
    domains(given)


if __name__ == "__main__":
    main()
