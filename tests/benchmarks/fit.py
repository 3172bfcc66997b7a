"""What does a fit bring? Labels of the first half of a stream, everything measured on the second half.

    python -m tests.benchmarks.fit --data FOLDER [--requests 13000] [--labels 2000] [--seeds 2]

FOLDER holds `streams/*.jsonl` with {"text", "meaning"}. Each stream is shuffled with a seed and asked in
order; every question is stored. Of at most `--labels` questions of the first half the best candidate is
judged by the label, as audits and probes do: the one with the highest shipped score, from 0.8. From these the
threshold is fitted; nothing of the second half is seen before it is asked. The rules:

- cosine: a plain semantic cache; hindsight: at the threshold that serves most with 2 % wrong, had one known;
- guards: the cosine, and nothing a guard refuses;
- shipped: guards and the shipped score; * where its weights were trained on this stream;
- fitted: the same score at the threshold that the labels of the first half led to;
- perfect: every meaning that came before is a hit.

Only hits by meaning are counted: questions in the very same words are served by all of them alike. "of
cosine" is the ratio of the hits to those of the plain cosine in hindsight. Sums over the seeds.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ibidem.embedding import resolve_embedder
from ibidem.errors import InvalidInput
from ibidem.matching.policy import Policy, Verdict, decide
from ibidem.matching.scorers import Candidate, CosineScorer, Scorer
from ibidem.matching.shipped import scorer_for
from ibidem.types import Request, Vector, normalise
from ibidem_lab.fitting.labels import Label, pairs_of
from ibidem_lab.fitting.learning import best_of, report_of
from ibidem_lab.replay import CURVE_FROM, Judged, by_cosine, hindsight, replay, share
from tests.benchmarks.decisions import trained_on
from tests.benchmarks.streams import Stream, load_streams

LEVEL = 0.02
EVERYTHING = Policy(threshold=math.inf)
HEADS = "stream|rule|hits|wrong per hit (95 %)|wrong per request|of cosine".split("|")


@dataclass
class Known:
    """The vectors of a stream, as an embedder gives them."""

    vectors: dict[str, Vector]

    def refusal(self, text: str) -> str | None:
        """Blank texts have none."""
        return None if text in self.vectors else "question_not_covered"

    def vector_of(self, text: str) -> Vector:
        """Shape (d,)."""
        return self.vectors[text]


@dataclass
class Halves:
    """A rule of `ibidem_lab.replay`: collects labels, fits half-way, then notes what every score says."""

    stream: Stream
    fingerprint: str
    most: int
    seed: int
    number: int = 0
    labels: list[Label] = field(default_factory=list)
    judged: dict[str, list[Judged]] = field(default_factory=dict)
    fitted: bool = False
    threshold: float = 1.0
    told: str = ""

    def __post_init__(self) -> None:
        """The scorers that are known before."""
        self.half = len(self.stream.texts) // 2
        self.scorers: dict[str, Scorer] = {
            "guards": CosineScorer(),
            "shipped": scorer_for(self.fingerprint),
        }
        self.threshold = self.scorers["shipped"].thresholds.at(LEVEL)

    def __call__(self, request: Request, near: list[Candidate]) -> Verdict:
        """Serves nothing, so that everything is stored."""
        if self.number >= self.half:
            if not self.fitted:
                self.fit()
            for name, scorer in self.scorers.items():
                least = min(CURVE_FROM, scorer.min_cosine(scorer.floor))
                self.note(name, decide(request, near, EVERYTHING, scorer, min_cosine=least))
            self.note("cosine", by_cosine(math.inf)(request, near))
        else:
            best = decide(request, near, EVERYTHING, self.scorers["shipped"], min_cosine=CURVE_FROM).best
            if best is not None and best.score >= self.scorers["shipped"].floor:
                self.labels.append(Label(request.question, best.entry.question or "", self.right(best)))
        return Verdict(None, "below_threshold", None)

    def right(self, candidate: Candidate) -> bool:
        """By the label."""
        return self.stream.same(int(candidate.entry.id), self.number)

    def note(self, name: str, verdict: Verdict) -> None:
        """The best candidate of this rule."""
        if verdict.best is not None:
            found = Judged(verdict.best.score, self.right(verdict.best))
            self.judged.setdefault(name, []).append(found)

    def next(self) -> None:
        """The next request begins."""
        self.number += 1

    def fit(self) -> None:
        """As `ibidem learn threshold` does; where labels are too few the shipped threshold stays."""
        self.fitted = True
        picked = sorted(
            random.Random(self.seed).sample(range(len(self.labels)), min(self.most, len(self.labels)))
        )
        texts = [normalise(text) for text in self.stream.texts[: self.half]]
        vectors = zip(texts, self.stream.vectors, strict=False)
        known = Known({text: vector for text, vector in vectors if vector.any()})
        pairs = pairs_of([self.labels[at] for at in picked], known)  # type: ignore[arg-type]
        try:
            report = report_of(best_of(pairs, self.scorers["shipped"]), LEVEL, self.scorers["shipped"])
        except InvalidInput as error:
            self.told = str(error).partition(";")[0]
            return
        self.threshold = report.threshold_after
        moved = report.threshold_after != report.threshold_before  # for this share; others may have been
        self.told = "moved" if moved else report.reason or "not moved at this share of wrong hits"


def halved(stream: Stream, fingerprint: str, most: int, seed: int) -> Halves:
    """One stream, from its beginning to its end."""
    done = Halves(stream, fingerprint, most, seed)
    replay(stream.rows, [vector if vector.any() else None for vector in stream.vectors], done, done.next)
    return done


def ceiling(stream: Stream) -> int:
    """Hits by meaning of a perfect cache on the second half."""
    texts, half = [normalise(text) for text in stream.texts], len(stream.texts) // 2
    seen, said, found = set(stream.meanings[:half]), set(texts[:half]), 0
    for text, meaning in zip(texts[half:], stream.meanings[half:], strict=True):
        found += meaning in seen and text not in said
        seen.add(meaning)
        said.add(text)
    return found


Counted = tuple[int, int]  # hits, wrong


def served(runs: Sequence[Halves], name: str, threshold: float) -> Counted:
    """By a rule at a threshold."""
    hits = [one.right for run in runs for one in run.judged.get(name, ()) if one.score >= threshold]
    return len(hits), len(hits) - sum(hits)


def added(counts: Iterable[Counted]) -> Counted:
    """The sums."""
    hits, wrong = zip(*counts, strict=True)
    return sum(hits), sum(wrong)


def in_hindsight(runs: Sequence[Halves], name: str) -> Counted:
    """By a rule at the best threshold of each run."""
    points = [hindsight(run.judged.get(name, ()), LEVEL) for run in runs]
    return sum(point.hits for point in points if point), sum(point.wrong for point in points if point)


def add_lines(table: Table, name: str, runs: Sequence[Halves]) -> None:
    """The lines of a stream."""
    requests = sum(len(run.stream.texts) - run.half for run in runs)
    shipped = scorer_for(runs[0].fingerprint)
    at, mark = shipped.thresholds.at(LEVEL), "*" if name in trained_on(shipped) else ""
    plain = in_hindsight(runs, "cosine")
    lines: dict[str, Counted] = {
        "cosine 0.90": served(runs, "cosine", 0.9),
        "cosine 0.95": served(runs, "cosine", 0.95),
        "cosine, hindsight": plain,
        "guards 0.95": served(runs, "guards", 0.95),
        f"shipped{mark} {at:.3g}": served(runs, "shipped", at),
        f"shipped{mark}, hindsight": in_hindsight(runs, "shipped"),
        "fitted": added(served([run], "shipped", run.threshold) for run in runs),
        "perfect": (sum(ceiling(run.stream) for run in runs), 0),
    }
    labels = ", ".join(f"{min(len(run.labels), run.most):,}" for run in runs)
    for rule, (hits, wrong) in lines.items():
        ratio = f"{hits / plain[0]:.2f}" if plain[0] else "-"
        cells = (
            name,
            rule,
            f"{hits / requests:.1%}",
            str(share(wrong, hits)),
            f"{wrong / requests:.2%}",
            ratio,
        )
        print(" | ".join(cells), file=sys.stderr, flush=True)
        table.add_row(*cells)
    for run in runs:
        print(f"  labels {labels}; threshold {run.threshold:.4g}; {run.told}", file=sys.stderr, flush=True)
    table.add_section()


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="folder with streams/*.jsonl")
    options.add_argument("--requests", type=int, default=13_000, help="at most this many per stream")
    options.add_argument("--labels", type=int, default=2000, help="at most this many per stream")
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--vectors", type=Path, help="folder to keep vectors in")
    options.add_argument("--only", nargs="*", help="only these streams")
    given = options.parse_args()
    embedder = resolve_embedder(None)
    title = (
        f"second half of at most {given.requests:,} requests, at most {given.labels:,} labels of the first"
    )
    table = Table(*HEADS, title=f"{title}, {given.seeds} seeds, {embedder.fingerprint}")
    for column in table.columns[2:]:
        column.justify = "right"
    for stream in load_streams(given.data, embedder, given.vectors):
        if not given.only or stream.name in given.only:
            samples = [stream.sample(given.requests, seed) for seed in range(given.seeds)]
            runs = [halved(one, embedder.fingerprint, given.labels, n) for n, one in enumerate(samples)]
            add_lines(table, stream.name, runs)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
