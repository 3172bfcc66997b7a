"""How often is the decision right? Replays labelled questions: hits, and wrong hits per hit and per request.

    python -m tests.benchmarks.decisions --data FOLDER [--requests 4000] [--min-probability P]
        [--vectors FOLDER]

FOLDER holds `streams/*.jsonl` with {"text", "meaning"}: two texts of one meaning may share an answer. Each
stream is shuffled with a fixed seed and asked in order; every request that is no hit is stored. The rules:

- cosine: a plain semantic cache;
- cosine, hindsight: the threshold that serves most with 2 % wrong hits, had one known it;
- guards: the cosine, and nothing a guard refuses;
- scorer, held out: guards and weights fitted here without this stream and its family;
- Ibidem: guards and the pair model that is shipped; * where it was trained on this stream;
- perfect: every meaning that came before is a hit.

The labels have noise of their own: how often identical texts disagree is the floor of all wrong hits.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ibidem.embedding import Embedder, resolve_embedder
from ibidem.matching.learned import LearnedScorer
from ibidem.matching.policy import Policy
from ibidem.matching.scorers import COSINES, CosineScorer, Scorer
from ibidem.matching.shipped import scorer_for
from ibidem.settings import read_settings
from ibidem.types import normalise
from ibidem_lab.models.pairs import NEIGHBOURS
from ibidem_lab.replay import (
    Outcome,
    Row,
    Share,
    by_cosine,
    by_policy,
    ceiling,
    curve_rule,
    hindsight,
    replay,
    share,
)
from tests.benchmarks.fit_scorer import fit, without
from tests.benchmarks.pairs import pairs_by_family
from tests.benchmarks.streams import Stream, load_answers, load_streams

SEED, LEVEL, GUARDED = 7, 0.02, 0.95


def noise(rows: list[Row]) -> str:
    """How many of the repeated identical texts have another label than at first."""
    first: dict[str, object] = {}
    differing = [first.setdefault(normalise(row.text), row.meaning) != row.meaning for row in rows]
    return f"{sum(differing)} of {len(rows) - len(first)}"


class Held:
    """Scorers that have not seen what they are tested on."""

    def __init__(self, streams: list[Stream], embedder: Embedder) -> None:
        self.embedder = embedder
        families = {stream.family for stream in streams}
        self.pairs = pairs_by_family(streams) if len(families) > 1 else {}
        self._fitted: dict[str, LearnedScorer | None] = {}

    def scorer(self, family: str) -> LearnedScorer | None:
        """Fitted without the family; None if there is no other."""
        if family not in self._fitted:
            self._fitted[family] = self._fit_without(family)
        return self._fitted[family]

    def _fit_without(self, family: str) -> LearnedScorer | None:
        rest = {name: found for name, found in without(self.pairs, family).items() if found.requests}
        taught = {name: found for name, found in rest.items() if len(set(found.undecided.right)) > 1}
        return fit(taught, self.embedder.fingerprint) if taught else None


def outcomes(stream: Stream, held: Held, policy: Policy) -> dict[str, Outcome | None]:
    """What every rule does; None for one that cannot be tried."""
    shipped = scorer_for(held.embedder.fingerprint)
    own = held.scorer(stream.family)
    mark = "*" if stream.name in trained_on(shipped) else ""
    at, near = f"{policy.threshold:.3g}", COSINES.at(LEVEL)
    rules = {
        "cosine 0.90": by_cosine(0.90),
        "cosine 0.95": by_cosine(0.95),
        f"guards {GUARDED}": by_policy(Policy(threshold=GUARDED), CosineScorer()),
        f"scorer {near:.3g}, held out": None
        if own is None
        else by_policy(Policy(own.probability(near)), own),
        f"Ibidem {at}{mark}": by_policy(policy, shipped),
    }
    rows, vectors = stream.rows, list(stream.vectors)
    return {name: None if rule is None else replay(rows, vectors, rule) for name, rule in rules.items()}


def trained_on(scorer: Scorer) -> set[str]:
    """The streams whose questions had a part in what scores."""
    if isinstance(scorer, LearnedScorer):
        held = json.loads((files("ibidem.matching") / "scorer.json").read_text(encoding="utf-8"))
        return set(held["trained_on"])
    return set(NEIGHBOURS)


def in_hindsight(stream: Stream) -> tuple[Share, Share, Share]:
    """Hits, wrong per hit and per request of the plain cosine at the best threshold."""
    tried = replay(stream.rows, list(stream.vectors), curve_rule(None))
    best = hindsight(tried.judged, LEVEL)
    hits, wrong = (best.hits, best.wrong) if best else (0, 0)
    return share(hits, tried.requests), share(wrong, hits), share(wrong, tried.requests)


def add(table: Table, stream: Stream, found: dict[str, Outcome | None]) -> None:
    """The lines of a stream."""
    begin = (stream.name, f"{len(stream.texts):,}", noise(stream.rows))
    lines: dict[str, tuple[object, ...]] = {}
    for rule, outcome in found.items():
        if outcome is None:
            lines[rule] = ("-", "needs another family of streams", "")
        else:
            lines[rule] = (f"{outcome.hit_ratio.value:.1%}", outcome.wrong_per_hit, outcome.wrong_per_request)
        if rule == "cosine 0.95":
            hits, per_hit, per_request = in_hindsight(stream)
            lines["cosine, hindsight"] = (f"{hits.value:.1%}", per_hit, per_request)
    lines["perfect"] = (f"{ceiling(stream.rows):.1%}", "", "")
    for number, (rule, cells) in enumerate(lines.items()):
        table.add_row(*(begin if number == 0 else (stream.name, "", "")), rule, *map(str, cells))
    table.add_section()


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="folder with streams/*.jsonl")
    options.add_argument("--requests", type=int, default=4000, help="at most this many per stream")
    options.add_argument("--min-probability", type=float, help="default: that of the default error rate")
    options.add_argument("--vectors", type=Path, help="folder that keeps vectors between runs")
    given = options.parse_args()
    embedder = resolve_embedder(None)
    scorer = scorer_for(embedder.fingerprint)
    policy = Policy(given.min_probability or read_settings().strictness.policy(scorer).threshold)
    streams = load_streams(given.data, embedder, given.vectors)
    held = Held([*streams, *load_answers(given.data, embedder, given.vectors)], embedder)
    columns = ("stream", "requests", "label noise", "rule", "hits", "wrong per hit", "wrong per request")
    table = Table(*columns, title=f"{embedder.fingerprint}, at most {given.requests} requests, seed {SEED}")
    refused: Counter[tuple[str, int]] = Counter()
    for stream in streams:
        sample = stream.sample(given.requests, SEED)
        found = outcomes(sample, held, policy)
        add(table, sample, found)
        for name, tally in (list(found.values())[-1] or Outcome()).refused.items():
            refused.update({(name, 0): tally[0], (name, 1): tally[1]})
    out = Console(width=130)
    out.print(table)
    for name in sorted({name for name, _ in refused}):
        out.print(f"guard:{name}: refused {refused[name, 0]} rightly, {refused[name, 1]} wrongly")


if __name__ == "__main__":
    main()
