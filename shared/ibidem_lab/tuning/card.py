"""Write the metrics of a tuned model: `metrics.json`, and the model card `README.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibidem.active_model import CARD_FILE, METRICS_FILE
from ibidem.cli.formatting import percent
from ibidem_lab.tuning.metrics import PairMetrics

FORMAT = 1


def figures(found: PairMetrics) -> dict[str, Any]:
    """Convert metrics for JSON: shares from 0 to 1, None for unknown ones.

    `ibidem promote` refuses a model whose `auc` is lower than before, or whose hits are fewer beyond chance.
    """
    return {
        "pairs": found.pairs,
        "right": found.right,
        "auc": _known(found.auc.value),
        "auc_interval": [_known(found.auc.low), _known(found.auc.high)],
        "grey_zone": {"pairs": found.grey, "separation": _known(found.grey_auc)},
        "hits": {str(level): hits._asdict() for level, hits in found.hits.items()},
        "p_chr": found.p_chr,
    }


def write_metrics(directory: Path, before: PairMetrics, after: PairMetrics, more: Mapping[str, Any]) -> None:
    """Write `metrics.json`; `more` describes the training."""
    held = {"format": FORMAT, "before": figures(before), "after": figures(after), **more}
    (directory / METRICS_FILE).write_text(json.dumps(held, indent=1, sort_keys=True), encoding="utf-8")


def write_card(directory: Path, before: PairMetrics, after: PairMetrics, more: Mapping[str, Any]) -> None:
    """Write the model card `README.md`."""
    training, data, gain = more["training"], more["data"], more["gain"]
    lines = [
        f"# {more['name']}",
        "",
        f"An embedding of questions for the answer cache Ibidem: `{more['base']}`, fine-tuned to tell "
        "whether one answer serves two questions. Made by `ibidem learn encoder`; use it with "
        "`ibidem promote`, or as `embedder=` this directory.",
        "",
        "## Held-out questions",
        "",
        f"{after.pairs:,} pairs, {percent(after.right, 0)} of them right; no question of them was learned "
        f"from, nor one paired with it{_but(data['dropped'])}. Intervals are 95 %, by the bootstrap over "
        "groups of connected questions. Hits are those of the best threshold in hindsight.",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in figure_rows([before, after])),
        "",
        f"Gain in AUC: {gain['auc']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}).",
        "",
        "## Data",
        "",
        f"{data['train']:,} pairs to learn from, {data['validation']:,} to choose the epoch by, "
        f"{data['test']:,} to measure with, {data['dropped']:,} left out because they crossed these. "
        f"SHA-256 of the pairs: `{data['sha256']}`.",
        "",
        "## Training",
        "",
        *(f"* {name.replace('_', ' ')}: {value}" for name, value in training.items()),
        "",
        "## Threshold",
        "",
        str(more["threshold"]["said"]),
    ]
    (directory / CARD_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _but(dropped: int) -> str:
    return f", but for those of the {dropped:,} pairs left out" if dropped else ""


def figure_rows(found: Sequence[PairMetrics]) -> list[tuple[str, list[str]]]:
    """Format the metrics of several models as rows: a name, and a cell for each model."""
    return [
        ("AUC", [f"{one.auc.value:.3f} ({one.auc.low:.3f}-{one.auc.high:.3f})" for one in found]),
        (f"AUC in the grey zone ({found[0].grey:,} pairs)", [f"{one.grey_auc:.3f}" for one in found]),
        *((most_hits_at(level), [str(one.hits[level]) for one in found]) for level in found[0].hits),
        ("P-CHR AUC", [f"{one.p_chr:.3f}" for one in found]),
    ]


def most_hits_at(level: float) -> str:
    """Name the metric of a level."""
    return f"most hits at {percent(level, 0)} wrong per hit"


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
