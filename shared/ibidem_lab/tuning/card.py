"""What a model directory says about itself: `metrics.json`, the card `README.md`, the drawing `roc.svg`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibidem.active_model import CARD_FILE, METRICS_FILE
from ibidem_lab.tuning.metrics import Array, Bools, PairMetrics, roc

SIZE, MARGIN = 360, 40
COLOURS = ("#8a8a8a", "#1f6feb")  # before, after: told apart on light and on dark ground
MOST_POINTS = 300
ROC_FILE = "roc.svg"
FORMAT = 1


def figures(found: PairMetrics) -> dict[str, Any]:
    """As JSON holds them: shares from 0 to 1, None for what is not known.

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
    """Write `metrics.json`; `more` says how the model was made."""
    held = {"format": FORMAT, "before": figures(before), "after": figures(after), **more}
    (directory / METRICS_FILE).write_text(json.dumps(held, indent=1, sort_keys=True), encoding="utf-8")


def write_card(directory: Path, before: PairMetrics, after: PairMetrics, more: Mapping[str, Any]) -> None:
    """Write `README.md`, for people."""
    training, data, gain = more["training"], more["data"], more["gain"]
    lines = [
        f"# {more['name']}",
        "",
        f"An embedding of questions for the answer cache Ibidem: `{more['base']}`, fine-tuned to tell "
        "whether one answer serves two questions. Made by `ibidem tune`; use it with `ibidem promote`, or as "
        "`embedder=` this directory.",
        "",
        "## Held-out questions",
        "",
        f"{after.pairs:,} pairs, {after.right:.0%} of them right; no question of them was learned from, nor "
        f"one paired with it{_but(data['dropped'])}. Intervals are 95 %, by the bootstrap over groups of "
        "connected questions. Hits are those of the best threshold in hindsight.",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in figure_rows([before, after])),
        "",
        f"Gain in AUC: {gain['auc']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}).",
        "",
        f"![ROC curves before and after]({ROC_FILE})",
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
    """The figures of several models as text: a name, and a cell for each model."""
    return [
        ("AUC", [f"{one.auc.value:.3f} ({one.auc.low:.3f}-{one.auc.high:.3f})" for one in found]),
        (f"AUC in the grey zone ({found[0].grey:,} pairs)", [f"{one.grey_auc:.3f}" for one in found]),
        *((most_hits_at(level), [str(one.hits[level]) for one in found]) for level in found[0].hits),
        ("P-CHR AUC", [f"{one.p_chr:.3f}" for one in found]),
    ]


def most_hits_at(level: float) -> str:
    """The name of a figure."""
    return f"most hits at {level:.0%} wrong per hit"


def write_roc(path: Path, before: Array, after: Array, same: Bools) -> None:
    """Draw both ROC curves as SVG."""
    side = SIZE - 2 * MARGIN
    frame = f'<rect x="{MARGIN}" y="{MARGIN}" width="{side}" height="{side}" fill="none" stroke="#8a8a8a"/>'
    chance = f"M{MARGIN},{MARGIN + side}L{MARGIN + side},{MARGIN}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" font-family="sans-serif" '
        'font-size="12" fill="#8a8a8a" role="img" aria-label="ROC curves before and after tuning">',
        frame,
        f'<path d="{chance}" stroke="#8a8a8a" stroke-dasharray="4" fill="none"/>',
    ]
    for at, (name, scores) in enumerate((("before", before), ("after", after))):
        line = "L".join(
            f"{MARGIN + x * side:.1f},{MARGIN + (1 - y) * side:.1f}" for x, y in _thinned(*roc(scores, same))
        )
        parts.append(f'<path d="M{line}" fill="none" stroke="{COLOURS[at]}" stroke-width="2"/>')
        x, y = SIZE - MARGIN - 60, SIZE - MARGIN - 30 + 16 * at
        parts.append(f'<text x="{x}" y="{y}" fill="{COLOURS[at]}">{name}</text>')
    middle = SIZE // 2
    parts += [
        f'<text x="{middle}" y="{SIZE - 12}" text-anchor="middle">wrong pairs taken for right</text>',
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        "right pairs found</text>",
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _thinned(false: Array, true: Array) -> list[tuple[float, float]]:
    places = np.unique(np.linspace(0, len(false) - 1, min(MOST_POINTS, len(false))).astype(int))
    return [(float(false[at]), float(true[at])) for at in places]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
