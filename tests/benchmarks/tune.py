"""How much better does tuning make the embedding? Several seeds, questions never learned from.

    python -m tests.benchmarks.tune --data FOLDER --out FOLDER [--seeds 3] [--epochs 3]

Learned from: the hard pairs of Natural Questions that are not held out, other near Natural Questions,
three Overnight domains and advising. Measured: hard pairs held out with all that hangs together with them,
two other Overnight domains, and two streams of plain similarity. Every run is kept in OUT and not repeated.
About a quarter of an hour a run on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ibidem.embedding import resolve_embedder
from ibidem_lab.models.base import minilm
from ibidem_lab.tuning.evaluate import stream_figures
from ibidem_lab.tuning.metrics import cosines, measure
from ibidem_lab.tuning.training import Recipe, embed, load, train
from tests.benchmarks import tuning_data

REQUESTS = 4_000
BEFORE = "before"


def main() -> None:
    """Train what is not there yet, print the table."""
    parser = argparse.ArgumentParser(description="Tune with several seeds.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    base = minilm()
    data = tuning_data.load(given.data, resolve_embedder(), given.out / "vectors")
    found: dict[str, list[dict[str, Any]]] = {BEFORE: [_before(given.out, base, data)]}
    for seed in range(given.seeds):
        recipe = Recipe(seed=seed, epochs=given.epochs, learning_rate=1.5e-4)
        found.setdefault("after", []).append(_run(given.out, base, data, recipe))
        print(_table(found), flush=True)


def _before(out: Path, base: Path, data: tuning_data.Data) -> dict[str, Any]:
    file = out / f"{BEFORE}.json"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_figures(load(str(base)), data)))
    held: dict[str, Any] = json.loads(file.read_text())
    return held


def _run(out: Path, base: Path, data: tuning_data.Data, recipe: Recipe) -> dict[str, Any]:
    file = out / f"after-{recipe.seed}.json"
    if not file.is_file():
        trained = train(str(base), data.train, data.validation, recipe)
        trained.model.save(str(file.with_suffix("")), create_model_card=False)
        figures = _figures(trained.model, data)
        file.write_text(json.dumps(figures | {"validation": {"auc": trained.validation_auc}}))
    held: dict[str, Any] = json.loads(file.read_text())
    return held


def _figures(model: Any, data: tuning_data.Data) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, pairs in data.tests.items():
        figures = measure(pairs, cosines(lambda texts: embed(model, texts), pairs))
        found[name] = {"auc": figures.auc.value, "hits@5%": figures.hits[0.05].value, "P-CHR": figures.p_chr}
    for stream in data.streams:
        drawn = stream.sample(REQUESTS, seed=0)
        figures = stream_figures(drawn.rows, list(embed(model, drawn.texts)))
        hits = {f"hits@{level:.0%}": value for level, value in figures.hits.items()}
        found[stream.name] = {"auc": figures.auc, "P-CHR": figures.p_chr, **hits}
    return found


def _table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["", f"| set | figure | {' | '.join(found)} |", "|---|---|" + "---|" * len(found)]
    for name, figures in found[BEFORE][0].items():
        for figure in figures:
            cells = (_spread(run[name][figure] for run in runs) for runs in found.values())
            lines.append(f"| {name} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Iterable[float]) -> str:
    known = list(values)
    return f"{mean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
