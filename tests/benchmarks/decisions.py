"""How often is the decision right? Replays labelled questions: hits, and wrong hits per hit and per request.

    python -m tests.benchmarks.decisions --data FOLDER [--requests 4000] [--threshold 0.95]

FOLDER holds `streams/*.jsonl` with {"text", "meaning"}: two texts of one meaning may share an answer. Each
stream is shuffled with a fixed seed and asked in order; every request that is no hit is stored. The labels
have noise of their own: the last column is how often identical texts disagree, the floor of all wrong hits.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ibidem import Answer, Request
from ibidem.decision import Candidate, Policy, decide
from ibidem.embedding import resolve_embedder
from ibidem.entry import Entry, Vector
from ibidem.request import normalise

Rule = Callable[[str, list[Candidate]], Candidate | None]
NEIGHBOURS = 16


@dataclass
class Outcome:
    """What one rule did on one stream."""

    requests: int = 0
    hits: int = 0
    wrong: int = 0
    reasons: dict[str, list[int]] = field(
        default_factory=dict
    )  # reason -> [refused rightly, refused wrongly]


def load(path: Path, requests: int) -> list[tuple[str, str]]:
    """(text, meaning) in a fixed random order."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    random.Random(7).shuffle(rows)
    return [(row["text"], row["meaning"]) for row in rows[:requests] if row["text"].strip()]


def as_entry(number: int, text: str) -> Entry:
    """The question as the truth would return it, without an answer."""
    request = Request(text)
    return Entry(
        id=str(number),
        namespace="",
        scope=request.scope_digest,
        question=request.question,
        documents=request.documents_digest,
        semantic=True,
        answer=Answer("-"),
        created=0.0,
    )


def replay(rows: list[tuple[str, str]], vectors: Vector, policy: Policy, *, guards: bool) -> Outcome:
    """Ask every row of a cache that holds the rows before it that were no hits."""
    outcome, exact, held = Outcome(), {}, []
    stored = np.empty_like(vectors)
    entries: list[Entry] = []
    for number, (text, meaning) in enumerate(rows):
        outcome.requests += 1
        twin = exact.get(normalise(text))
        chosen = twin if twin is not None else None
        if chosen is None and held:
            scores = stored[: len(held)] @ vectors[number]
            best = np.argsort(-scores)[:NEIGHBOURS]
            near = [Candidate(entries[at], float(scores[at])) for at in best]
            chosen = _choose(text, near, policy, guards, outcome, meaning, rows)
        if chosen is None:
            exact[normalise(text)] = number
            stored[len(held)] = vectors[number]
            held.append(number)
            entries.append(as_entry(number, text))
        else:
            outcome.hits += 1
            outcome.wrong += rows[chosen][1] != meaning
    return outcome


def _choose(
    text: str, near: list[Candidate], policy: Policy, guards: bool, outcome: Outcome, meaning: str, rows: list
) -> int | None:
    if not guards:
        return int(near[0].entry.id) if near[0].similarity >= policy.threshold else None
    verdict = decide(Request(text), near, policy)
    if verdict.chosen is not None:
        return int(verdict.chosen.entry.id)
    if verdict.reason != "below_threshold" and verdict.nearest is not None:
        tally = outcome.reasons.setdefault(verdict.reason, [0, 0])
        tally[rows[int(verdict.nearest.entry.id)][1] == meaning] += 1
    return None


def floor(rows: list[tuple[str, str]]) -> str:
    """How many of the repeated identical texts have another label than at first."""
    first: dict[str, str] = {}
    differing = [first.setdefault(normalise(text), meaning) != meaning for text, meaning in rows]
    return f"{sum(differing)} of {len(rows) - len(first)}"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="folder with streams/*.jsonl")
    options.add_argument("--requests", type=int, default=4000, help="at most this many per stream")
    options.add_argument("--threshold", type=float, default=0.95)
    given = options.parse_args()
    streams = sorted((given.data / "streams").glob("*.jsonl"))
    if not streams:
        raise SystemExit(f"no streams/*.jsonl in {given.data}")
    embedder, policy = resolve_embedder(None), Policy(threshold=given.threshold)
    table = Table(
        title=f"threshold {given.threshold}, {embedder.fingerprint}, at most {given.requests} requests"
    )
    for name in ("stream", "rule", "requests", "hits", "wrong/hit", "wrong/request", "label noise"):
        table.add_column(name, justify="left" if name in ("stream", "rule") else "right")
    refused: dict[str, list[int]] = {}
    for stream in streams:
        rows = load(stream, given.requests)
        vectors = np.stack([embedder.embed([text])[0] for text, _ in rows])
        for rule, guards in (("cosine", False), ("cosine + guards", True)):
            told = replay(rows, vectors, policy, guards=guards)
            share = told.wrong / told.hits if told.hits else 0.0
            table.add_row(
                stream.stem, rule, f"{told.requests:,}", f"{told.hits / told.requests:.1%}", f"{share:.1%}",
                f"{told.wrong / told.requests:.2%}", floor(rows),
            )  # fmt: skip
            for reason, (rightly, wrongly) in told.reasons.items():
                tally = refused.setdefault(reason, [0, 0])
                tally[0] += rightly
                tally[1] += wrongly
    console = Console(width=110)
    console.print(table)
    for reason, (rightly, wrongly) in sorted(refused.items()):
        console.print(f"{reason}: refused {rightly} wrong and {wrongly} right neighbours above the threshold")


if __name__ == "__main__":
    main()
