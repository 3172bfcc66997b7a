"""The curve of all thresholds as one HTML file: an inline drawing, no script, nothing to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ibidem_lab.replay import Outcome, Point, Row, ceiling, curve, p_chr_auc

WIDTH, HEIGHT, LEFT, TOP = 860, 440, 64, 20
MOST_POINTS = 400
MARKED = (0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.90, 0.85, 0.80)

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; --ink: #1c1c1c; --faint: #d8d8d8; --line: #1f6feb; --here: #c2410c }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e8e8; --faint: #444; --line: #6ea8fe; --here: #fb923c }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: {width}px; margin: 2rem auto; padding: 0 1rem }}
svg {{ width: 100%; height: auto }} text {{ fill: var(--ink); font-size: 12px }}
.grid {{ stroke: var(--faint) }} .curve {{ fill: none; stroke: var(--line); stroke-width: 2 }}
.mark {{ fill: var(--line) }} .here {{ fill: var(--here) }} .bar {{ stroke: var(--here); stroke-width: 2 }}
</style></head><body>
<h1>Hits and wrong hits</h1><p>{title}</p>
{drawing}
<p>The line: what each threshold would serve if every question were stored. The cross: what the threshold
{threshold} served when only misses were stored, {hits} hits of {requests}, with the 95 % interval of the
wrong ones. A perfect cache has {ceiling} hits. P-CHR AUC {area}.</p>
</body></html>
"""


def page(title: str, rows: Sequence[Row], tried: Outcome, served: Outcome, threshold: float) -> str:
    """The page; `tried` comes from a replay with `curve_rule`, `served` from one with the threshold."""
    return _PAGE.format(
        title=escape(title),
        width=WIDTH,
        drawing=_drawing(curve(tried.judged), tried.requests, served),
        threshold=f"{threshold:.4g}",
        hits=f"{served.hits:,}",
        requests=f"{served.requests:,}",
        ceiling=f"{ceiling(rows):.1%}",
        area=f"{p_chr_auc(tried.judged, tried.requests):.3f}",
    )


class _Scale:
    """From shares to places in the drawing."""

    def __init__(self, hits: float, wrong: float) -> None:
        self.hits, self.wrong = max(hits, 0.01), max(wrong, 0.01)

    def x(self, hits: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * hits / self.hits

    def y(self, wrong: float) -> float:
        return HEIGHT - 48 - (HEIGHT - 48 - TOP) * min(1.0, wrong / self.wrong)


def _drawing(points: list[Point], requests: int, served: Outcome) -> str:
    hits = max([served.hit_ratio.value, *(point.hits / requests for point in points)])
    wrong = served.wrong_per_hit
    highest = max([wrong.high if served.hits else 0.0, *(point.wrong_per_hit for point in points)])
    scale = _Scale(hits, highest * 1.05)
    parts = [*_grid(scale), _line(points, requests, scale), *_marks(points, requests, scale)]
    if served.hits:
        x, y = scale.x(served.hit_ratio.value), scale.y(wrong.value)
        parts.append(
            f'<g><title>served: hits {served.hit_ratio}, wrong per hit {wrong}</title><path class="bar" '
            f'd="M{x:.1f} {scale.y(wrong.low):.1f}V{scale.y(wrong.high):.1f}M{x - 6:.1f} {y:.1f}h12"/>'
            f'<circle class="here" cx="{x:.1f}" cy="{y:.1f}" r="4"/></g>'
        )
    label = "Curve of the thresholds: hits across, wrong hits upwards"
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n{inside}\n</svg>'


def _grid(scale: _Scale) -> list[str]:
    """Lines and their shares, and what the axes mean."""
    parts = []
    for step in range(6):
        hits, wrong = scale.hits * step / 5, scale.wrong * step / 5
        x, y = scale.x(hits), scale.y(wrong)
        parts += [
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - 20}M{x:.1f} {TOP}V{HEIGHT - 48}"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{wrong:.1%}</text>',
            f'<text x="{x:.1f}" y="{HEIGHT - 30}" text-anchor="middle">{hits:.1%}</text>',
        ]
    middle = TOP + (HEIGHT - 48 - TOP) / 2
    return [
        *parts,
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">hits per request</text>',
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">wrong per hit</text>',
    ]


def _line(points: list[Point], requests: int, scale: _Scale) -> str:
    """The curve, thinned out to what can be seen."""
    step = max(1, math.ceil(len(points) / MOST_POINTS))
    kept = [*points[::step], *points[-1:]]
    places = " ".join(f"{scale.x(p.hits / requests):.1f},{scale.y(p.wrong_per_hit):.1f}" for p in kept)
    return f'<polyline class="curve" points="{places}"/>'


def _marks(points: list[Point], requests: int, scale: _Scale) -> list[str]:
    """Round thresholds on the curve."""
    parts = []
    for threshold in MARKED:
        point = next((p for p in reversed(points) if p.threshold >= threshold), None)
        if point is not None:
            x, y = scale.x(point.hits / requests), scale.y(point.wrong_per_hit)
            told = f"{threshold}: {point.hits} hits, {point.wrong} wrong ({point.wrong_per_hit:.1%})"
            parts.append(
                f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{told}</title></circle>'
                f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{threshold}</text>'
            )
    return parts
