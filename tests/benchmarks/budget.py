"""Does the budget keep its promise? Replays labelled streams of a cache that serves what is proved only.

    python -m tests.benchmarks.budget --data FOLDER [--requests 9000] [--seeds 3] [--vectors FOLDER]

FOLDER holds `streams/*.jsonl` with {"text", "meaning"}; audits and probes are judged by the labels. Each
stream is shuffled and asked in order, as the cache decides, by the model that is shipped (*: trained on this
stream) and by the plain cosine. "A -> B" asks half as many questions of A, then of B: the traffic changes.
In "A, broken" 3 of 10 right answers are wrong from half-way on: they have gone stale, which no score tells.

Columns: hits by meaning, audits, probes per request; wrong hits per hit with the Clopper-Pearson interval;
wrong/hits among the first 1,000 requests; most wrong per hit in any 1,000 requests, by seed; wrong/hits in
the 500 requests after the change, and later; alarms by seed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ibidem._util.intervals import clopper_pearson
from ibidem.audits.budget import Budget
from ibidem.embedding import resolve_embedder
from ibidem.matching.policy import Policy, Verdict, decide
from ibidem.matching.scorers import Candidate, CosineScorer, Scorer
from ibidem.matching.shipped import scorer_for
from ibidem.types import Request
from ibidem_lab.replay import Row, replay
from tests.benchmarks.decisions import trained_on
from tests.benchmarks.streams import Stream, load_streams

WINDOW, LEAST_HITS = 1000, 50  # requests; a window with fewer hits than that says nothing
BROKEN = 0.3  # of right answers that are wrong after the break
AFTER = 500  # requests within which serving should stop after a break
DRIFT = ("banking77", "atis")
BROKEN_STREAMS = ("banking77", "clinc150")
HEADS = (
    "stream|rule|hits|audits|probes|wrong|wrong/hit (95 %)|first 1,000|worst 1,000|after, later|alarms".split(
        "|"
    )
)


@dataclass
class Run:
    """The cache's decision with a budget in the place of the threshold; what it did, request by request."""

    rows: Sequence[Row]
    scorer: Scorer
    budget: Budget
    broken: Sequence[bool]  # whether the stored answer is wrong in spite of the label
    number: int = 0
    rulings: list[str] = field(default_factory=list)
    wrong: list[bool] = field(default_factory=list)

    def __call__(self, request: Request, near: list[Candidate]) -> Verdict:
        """A rule of `ibidem_lab.replay`."""
        verdict = decide(request, near, Policy(self.scorer.floor), self.scorer)
        best = verdict.chosen
        if best is None:
            return verdict
        meant = self.rows[int(best.entry.id)].meaning == self.rows[self.number].meaning
        right = meant and not self.broken[self.number]
        ruling = self.budget.decide(best.score)
        if ruling in ("audit", "probe"):
            self.budget.record(best.score, right, ruling == "audit")
        self.rulings[-1], self.wrong[-1] = ruling, ruling == "serve" and not right
        return verdict if ruling == "serve" else Verdict(None, "below_budget", best, best)

    def next(self) -> None:
        """The next request begins."""
        self.number = len(self.rulings)
        self.rulings.append("")
        self.wrong.append(False)


def run(stream: Stream, scorer: Scorer, given: argparse.Namespace, seed: int, broken_from: int) -> Run:
    """One replay of a stream."""
    draw, rows = random.Random(seed), stream.rows
    broken = [number >= broken_from and draw.random() < BROKEN for number in range(len(rows))]
    budget = Budget(
        max_error_rate=given.max_error_rate, audit_rate=given.audit_rate, random=random.Random(seed).random
    )
    done = Run(rows, scorer, budget, broken)
    done.next()
    replay(rows, [vector if vector.any() else None for vector in stream.vectors], done, done.next)
    done.rulings.pop(), done.wrong.pop()
    return done


def joined(one: Stream, other: Stream) -> Stream:
    """First the one, then the other."""
    meanings = [f"{stream.name} {meaning}" for stream in (one, other) for meaning in stream.meanings]
    vectors = np.concatenate([one.vectors, other.vectors])
    return Stream(f"{one.name} -> {other.name}", one.texts + other.texts, meanings, vectors)


def sums(runs: Sequence[Run], begin: int = 0, end: int | None = None) -> tuple[int, int]:
    """Wrong hits and hits of all runs, in these requests."""
    wrong = sum(sum(one.wrong[begin:end]) for one in runs)
    return wrong, sum(one.rulings[begin:end].count("serve") for one in runs)


def worst(one: Run) -> float:
    """Most wrong hits per hit in any window."""
    hits = np.cumsum([0, *(ruling == "serve" for ruling in one.rulings)])
    wrong = np.cumsum([0, *one.wrong])
    width = min(WINDOW, len(one.rulings))
    hits, wrong = hits[width:] - hits[:-width], wrong[width:] - wrong[:-width]
    telling = hits >= LEAST_HITS
    return float((wrong[telling] / hits[telling]).max()) if telling.any() else 0.0


def add_line(table: Table, name: str, rule: str, runs: Sequence[Run], broken_at: int | None) -> None:
    """What the runs of one stream and scorer came to."""
    requests = sum(len(one.rulings) for one in runs)
    wrong, hits = sums(runs)
    low, high = clopper_pearson(wrong, hits)

    def per_request(ruling: str) -> str:
        return f"{sum(one.rulings.count(ruling) for one in runs) / requests:.1%}"

    after = ""
    if broken_at is not None:
        spans = sums(runs, broken_at, broken_at + AFTER), sums(runs, broken_at + AFTER)
        after = ", ".join("{}/{}".format(*span) for span in spans)
    cells = (
        name,
        rule,
        f"{hits / requests:.1%}",
        per_request("audit"),
        per_request("probe"),
        f"{wrong}/{hits}",
        f"{wrong / hits:.1%} ({low:.1%}-{high:.1%})" if hits else "-",
        "{}/{}".format(*sums(runs, 0, WINDOW)),
        " ".join(f"{worst(one):.1%}" for one in runs) if hits else "-",
        after,
        " ".join(str(one.budget.alarms) for one in runs),
    )
    print(" | ".join(cells), file=sys.stderr, flush=True)
    table.add_row(*cells)


def arguments() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="folder with streams/*.jsonl")
    options.add_argument("--requests", type=int, default=9000, help="at most this many per stream")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--max-error-rate", type=float, default=0.02)
    options.add_argument("--audit-rate", type=float, default=0.05)
    options.add_argument("--vectors", type=Path, help="folder to keep vectors in")
    options.add_argument("--only", nargs="*", help="only these streams")
    return options.parse_args()


Case = tuple[str, list[Stream], int, int | None]  # name, samples, broken from, where something changes


def cases(streams: dict[str, Stream], given: argparse.Namespace) -> Iterator[Case]:
    """What is replayed."""
    half, seeds = given.requests // 2, range(given.seeds)
    for name in [one for one in streams if not given.only or one in given.only]:
        samples = [streams[name].sample(given.requests, seed) for seed in seeds]
        yield name, samples, given.requests, None
        if name in BROKEN_STREAMS:
            yield f"{name}, broken", samples, half, half
        if name == DRIFT[0] and DRIFT[1] in streams:
            pairs = [[streams[one].sample(half, seed) for one in DRIFT] for seed in seeds]
            yield " -> ".join(DRIFT), [joined(*pair) for pair in pairs], 2 * half, half


def main() -> None:
    """Print the table."""
    given = arguments()
    embedder = resolve_embedder(None)
    streams = {stream.name: stream for stream in load_streams(given.data, embedder, given.vectors)}
    table = Table(
        title=f"budget {given.max_error_rate:.1%}, audits {given.audit_rate:.0%}, {given.seeds} seeds, "
        f"at most {given.requests:,} requests each, {embedder.fingerprint}"
    )
    for head in HEADS:
        table.add_column(head, justify="left" if head in ("stream", "rule") else "right")
    for rule, scorer in (("Ibidem", scorer_for(embedder.fingerprint)), ("cosine", CosineScorer())):
        for name, samples, broken_from, changed in cases(streams, given):
            known = trained_on(scorer) if rule == "Ibidem" else ()
            mark = "*" if name.partition(",")[0] in known else ""
            runs = [run(sample, scorer, given, seed, broken_from) for seed, sample in enumerate(samples)]
            add_line(table, name, rule + mark, runs, changed)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
