"""Fit the weights of the learned scorer (`ibidem.matching.policy`), and report every stream as held out.

    python -m tests.benchmarks.fit_scorer --data FOLDER [--report] [--out FILE] [--vectors FOLDER]
        [--embedder MODEL --words-of BASE --tuned-on STREAM ...]

FOLDER holds `streams/*.jsonl` and `nq_questions.jsonl`. Every question is asked of all before it; its four
nearest that no guard refuses are the pairs. A logistic regression learns from them which differences forbid
one answer: an intercept and a cosine slope for each family of streams, weights for all, their signs given.
`atis` is only tested on (its licence forbids more). `--vectors` keeps vectors between runs, by embedder.

For an embedder that was itself tuned on some of the streams, the weights of words are learned with the
cosines of the model it was tuned from: where it has learned, its own are better than elsewhere, and words
would seem to matter less than they do. What a score means is measured with its own, on streams that are new
to it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ibidem._util.statistics import logistic
from ibidem.embedding import Embedder, resolve_embedder
from ibidem.matching.learned import REACH, LearnedScorer
from ibidem.matching.scorers import COSINES, Candidate, CosineScorer, Scorer, Thresholds, Vectors, score_each
from ibidem.matching.shipped import learned_scorer
from ibidem_lab.fitting.thresholds import measure, thresholds
from ibidem_lab.replay import Judged, curve_rule, hindsight, replay
from tests.benchmarks.pairs import NAMES, Array, Pairs, pairs_by_family
from tests.benchmarks.streams import Stream, load_answers, load_streams

UNKNOWN = (1.0, 0.0)  # slope and offset of the probability, until it is fitted
HELPFUL = {"fillers", "rephrased"}  # their weights are at least 0, all others at most 0
NEVER_TRAINED = {"atis"}
INTENTS = ("banking77", "clinc150")  # their labels call other slots the same, so they count half
NEGATION = -1.5  # at most: a wrong "not" is the worst of errors, and the streams hold few
ORDINARY = (0.94, 0.96)  # cosines of the right pairs whose score is to be their cosine
NOTE = (
    "Written by tests/benchmarks/fit_scorer.py, which tells how: families of streams, signs, ridge; "
    "slope, offset, calibration ([wrong per hit, threshold]): on banking77 and clinc150, each held out."
)
THRESHOLDS = (0.97, 0.96, 0.95, 0.94)  # nearness
REQUESTS, REPLAYED = 4_000, (7, 8, 9)  # of the calibration: requests, seeds
# Nearness at which wrong hits are counted.
GRID = (
    0.995,
    0.99,
    *(percent / 1000 for percent in range(985, 945, -5)),
    *(n / 100 for n in range(94, 79, -1)),
)


# fitting ----------------------------------------------------------------------------------------------


def fit(pairs: Mapping[str, Pairs], embedder: str, usual: Mapping[str, Pairs] | None = None) -> LearnedScorer:
    """The scorer that these families teach; `usual` are pairs with the cosines that it will be given."""
    taught = {name: found.undecided for name, found in pairs.items() if len(found.undecided.request)}
    found, slopes = _regression(taught)
    weights = dict(zip(NAMES, found / max(1.0, float(slopes.mean())), strict=True))
    weights["negation"] = min(weights["negation"], NEGATION)
    bias = _bias(
        {name: found.undecided for name, found in (usual or pairs).items()}, np.array(list(weights.values()))
    )
    rounded = {name: round(weight, 4) for name, weight in weights.items()}
    return LearnedScorer(rounded, round(bias, 4), *UNKNOWN, COSINES, embedder)


def _regression(taught: Mapping[str, Pairs]) -> tuple[Array, Array]:
    """Weights of the features, and the slope of the nearness in each family."""
    from scipy.optimize import minimize  # comes with sentence-transformers

    families, count = len(taught), len(NAMES)
    rows = np.concatenate([found.features for found in taught.values()])
    spread = rows.std(axis=0) + 1e-6
    member = np.concatenate([np.full(len(p.right), at) for at, p in enumerate(taught.values())])
    near = -np.log(REACH - np.minimum(np.concatenate([p.cosine for p in taught.values()]), 1.0))
    own = np.zeros((len(rows), 2 * families))
    own[np.arange(len(rows)), member] = 1.0
    own[np.arange(len(rows)), families + member] = near - 3.0
    design = np.concatenate([rows / spread, own], axis=1)
    sign = np.where(np.concatenate([p.right for p in taught.values()]), 1.0, -1.0)
    mass = np.concatenate([np.full(len(p.right), _mass(name) / len(p.right)) for name, p in taught.items()])
    mass /= mass.sum()
    centre = np.concatenate([np.zeros(count + families), np.full(families, 1.5)])
    ridge = np.concatenate([np.full(count, 3e-3), np.zeros(families), np.full(families, 3e-4)])

    def loss(at: Array) -> tuple[float, Array]:
        margin, off = (design @ at) * sign, at - centre
        pull = design.T @ (-sign * mass / (1.0 + np.exp(margin)))
        return float(mass @ np.logaddexp(0, -margin) + ridge @ off**2), pull + 2.0 * ridge * off

    bounds = [(0, None) if name in HELPFUL else (None, 0) for name in NAMES]
    bounds += [(None, None)] * families + [(0, None)] * families
    found = minimize(loss, centre, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 500}).x
    return found[:count] / spread, found[count + families :]


def _mass(family: str) -> float:
    return 0.5 if family in INTENTS else 1.0


def _bias(taught: Mapping[str, Pairs], weights: Array) -> float:
    """Such that the score of an ordinary right pair is its cosine."""
    usual = []
    for found in taught.values():
        ordinary = found.first & found.right & (found.cosine >= ORDINARY[0]) & (found.cosine < ORDINARY[1])
        if ordinary.any():
            usual.append(float((found.features[ordinary] @ weights).mean()))
    return float(np.mean(usual)) if usual else 0.0


def without(pairs: Mapping[str, Pairs], family: str) -> dict[str, Pairs]:
    """The families to train on for a test on `family`."""
    return {name: found for name, found in pairs.items() if name not in {family, *NEVER_TRAINED}}


# measuring --------------------------------------------------------------------------------------------


def scores(pairs: Pairs, scorer: LearnedScorer) -> Array:
    """As `LearnedScorer.nearness`, for all pairs at once."""
    weights = np.array([scorer.weights[name] for name in NAMES])
    penalty = scorer.bias - pairs.features @ weights
    penalty = np.where(pairs.english, penalty, np.maximum(penalty, 0.0))
    return np.clip(REACH - (REACH - pairs.cosine) * np.exp(penalty), -1.0, 1.0)


def judged(pairs: Pairs, score: Array) -> list[Judged]:
    """The best candidate of each question, if every question is stored."""
    score = np.where(pairs.exact, np.inf, score)
    best: dict[int, tuple[float, bool]] = {}
    allowed = np.flatnonzero(~pairs.refused | pairs.exact)
    for at in allowed[np.argsort(-score[allowed], kind="stable")]:
        best.setdefault(int(pairs.request[at]), (float(score[at]), bool(pairs.right[at])))
    return [Judged(*one) for one in best.values()]


def report(pairs: Mapping[str, Pairs], held_out: Callable[[str], LearnedScorer]) -> Table:
    """Each family with the scorer that was fitted without it, beside the one that is shipped."""
    columns = ("family", "score", *(f"≥ {at}: hits, wrong/hit" for at in THRESHOLDS), "hits at 2 % wrong")
    table = Table(*columns, title="leave one family out; every question stored")
    for family, tested in pairs.items():
        scorers: dict[str, Array] = {
            "cosine and guards": tested.cosine,
            "held out": scores(tested, held_out(family)),
            "shipped": scores(tested, learned_scorer()),
        }
        for name, score in scorers.items():
            best = judged(tested, score)
            cells = [_cell(best, tested.requests, threshold) for threshold in THRESHOLDS]
            most = hindsight(best, 0.02)
            table.add_row(family, name, *cells, f"{most.hits / tested.requests:.1%}" if most else "-")
        table.add_section()
    return table


def _cell(best: list[Judged], requests: int, threshold: float) -> str:
    served = [right for score, right in best if score >= threshold]
    wrong = (len(served) - sum(served)) / max(1, len(served))
    return f"{len(served) / requests:.1%}, {wrong:.1%}"


# calibration ------------------------------------------------------------------------------------------


def with_probability(
    scorer: LearnedScorer,
    streams: Sequence[Stream],
    held_out: Callable[[str], LearnedScorer],
    tell: Callable[[str], object],
) -> LearnedScorer:
    """Add slope, offset and thresholds: of the intent streams, with weights that are new to them."""
    intents = [stream for stream in streams if stream.name in INTENTS]
    samples = {
        stream.name: [(one.rows, list(one.vectors)) for one in (stream.sample(REQUESTS, n) for n in REPLAYED)]
        for stream in intents
    }
    judged = {
        stream.name: [
            (one.score, one.right)
            for sample in samples[stream.name]
            for one in replay(*sample, curve_rule(_ByNearness(held_out(stream.family)))).judged
            if one.score <= 1.0
        ]
        for stream in intents
    }
    slope, offset = _probability(list(judged.values()))
    measured = {}
    for stream in intents:
        own = replace(held_out(stream.family), slope=slope, offset=offset)
        grid = [round(own.probability(near), 4) for near in GRID]
        measured[stream.name] = measure(_Remembered(own), samples[stream.name], grid)
        for threshold, one in measured[stream.name].items():
            tell(f"{stream.name} {threshold}: hits {one.hit_ratio}, wrong/hit {one.wrong_per_hit}")
    return replace(scorer, slope=slope, offset=offset, thresholds=Thresholds(tuple(thresholds(measured))))


class _ByNearness(CosineScorer):
    """Scores by the nearness itself."""

    def __init__(self, scorer: LearnedScorer) -> None:
        super().__init__()
        self._scorer = scorer

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        return self._scorer.nearness(asked, stored, cosine)


class _Remembered:
    """A scorer that compares the two questions alone, and keeps what it said of each pair."""

    def __init__(self, scorer: Scorer) -> None:
        self.name, self.floor, self.thresholds = scorer.name, scorer.floor, scorer.thresholds
        self.min_cosine, self.usual_cosine = scorer.min_cosine, scorer.usual_cosine
        self._score = lru_cache(maxsize=None)(scorer.score)

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        return self._score(asked, stored, cosine)

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        return score_each(self.score, question, candidates)


def _probability(streams: Sequence[Sequence[tuple[float, bool]]]) -> tuple[float, float]:
    """Slope and offset by maximum likelihood; each stream counts alike."""
    near = np.concatenate([[-np.log(REACH - nearness) for nearness, _ in stream] for stream in streams])
    right = np.concatenate([[float(right) for _, right in stream] for stream in streams])
    weights = np.concatenate([np.full(len(stream), 1.0 / len(stream)) for stream in streams])
    found = logistic(np.column_stack([near, np.ones(len(near))]), right, weights * len(near))
    return round(float(found[0]), 4), round(float(found[1]), 4)


def _taught(given: argparse.Namespace, embedder: Embedder) -> list[Stream]:
    kept = given.vectors and given.vectors / embedder.fingerprint.replace("/", "-")
    return [*load_streams(given.data, embedder, kept), *load_answers(given.data, embedder, kept)]


def main() -> None:
    """Fit, report, write."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="folder with streams/*.jsonl")
    options.add_argument("--vectors", type=Path, help="folder that keeps vectors between runs")
    options.add_argument("--embedder", help="name or directory of the model; the default one if not given")
    options.add_argument("--words-of", help="the model that it was tuned from")
    options.add_argument("--tuned-on", nargs="*", default=[], help="streams that it has learned from")
    options.add_argument("--report", action="store_true", help="print the leave-one-family-out table")
    options.add_argument("--out", type=Path, help="write the weights here")
    given = options.parse_args()
    embedder, out = resolve_embedder(given.embedder), Console(width=160)
    streams = [one for one in _taught(given, embedder) if one.name not in given.tuned_on]
    pairs, words, taught = pairs_by_family(streams), None, streams
    if given.words_of:
        taught = _taught(given, resolve_embedder(given.words_of))
        words = pairs_by_family(taught)

    def held_out(family: str) -> LearnedScorer:
        usual = without(pairs, family)
        return fit(without(words or pairs, family), embedder.fingerprint, usual)

    if given.report:
        out.print(report(pairs, held_out))
    scorer = with_probability(held_out(""), streams, held_out, out.print)
    held: dict[str, Any] = {
        "note": NOTE,
        "embedder": scorer.embedder,
        "weights": scorer.weights,
        "bias": scorer.bias,
        "slope": scorer.slope,
        "offset": scorer.offset,
        "trained_on": sorted(stream.name for stream in taught if stream.family not in NEVER_TRAINED),
        "pairs": sum(len(found.undecided.request) for found in without(words or pairs, "").values()),
        "calibration": scorer.thresholds.table,
    }
    out.print_json(json.dumps(held))
    if given.out is not None:
        given.out.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
