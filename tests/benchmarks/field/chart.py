"""A chart of two bars for each cache, with their intervals; light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from ibidem.cli.formatting import percent
from ibidem_lab.replay import Share

NAMES, WIDTH, VALUES = 300, 420, 60  # for names, for bars, for the figures behind them
TOP, ROW, BAR = 76, 46, 13
SCALE = (0, 25, 50, 75, 100)
STYLE = """
    svg { --page: #ffffff; --line: #c9d1dc; --ink: #1c2430; --dim: #55606f;
          --same: #2f5bd7; --trap: #b85c00 }
    @media (prefers-color-scheme: dark) {
      svg { --page: #12161d; --line: #39424f; --ink: #e8edf4; --dim: #a3aebd;
            --same: #8fb0ff; --trap: #f2a65a }
    }
    text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--ink) }
    .dim { fill: var(--dim); font-size: 12px } .end { text-anchor: end } .mid { text-anchor: middle }
    .same { fill: var(--same) } .trap { fill: var(--trap) }
    .interval { stroke: var(--ink); stroke-width: 1.5 } .grid { stroke: var(--line) }
"""


class Bars(NamedTuple):
    """What one cache serves of the same, and of the traps."""

    name: str
    same: Share
    traps: Share


def draw(rows: Sequence[Bars]) -> str:
    """The chart as an SVG that says in words what it shows."""
    height, width = TOP + ROW * len(rows) + 14, NAMES + WIDTH + VALUES
    title = "Share served of the same questions, and of the traps, by each cache at its default"
    told = "; ".join(
        f"{row.name}: {percent(row.same.value, 0)} and {percent(row.traps.value, 0)}" for row in rows
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'aria-labelledby="title desc">',
            f'  <title id="title">{title}</title>',
            f'  <desc id="desc">{escape(told)}.</desc>',
            f"  <style>{STYLE}  </style>",
            f'  <rect width="{width}" height="{height}" fill="var(--page)"/>',
            *_head(height),
            *(line for number, row in enumerate(rows) for line in _row(TOP + ROW * number, row)),
            "</svg>\n",
        )
    )


def _head(height: int) -> Iterator[str]:
    """The legend, and the scale."""
    for left, kind, text in (
        (NAMES, "same", "served of the same"),
        (NAMES + 170, "trap", "served of the traps"),
    ):
        yield f'  <rect x="{left}" y="14" width="13" height="13" class="{kind}"/>'
        yield f'  <text x="{left + 20}" y="25">{text}</text>'
    for share in SCALE:
        x = _x(share / 100)
        yield f'  <line x1="{x}" y1="{TOP - 14}" x2="{x}" y2="{height - 10}" class="grid"/>'
        yield f'  <text x="{x}" y="{TOP - 20}" class="dim mid">{share} %</text>'


def _row(top: int, row: Bars) -> Iterator[str]:
    yield f'  <text x="{NAMES - 12}" y="{top + 19}" class="end">{escape(row.name)}</text>'
    for y, kind, told in ((top, "same", row.same), (top + BAR + 2, "trap", row.traps)):
        long, middle, low, high = _x(told.value) - NAMES, y + BAR / 2, _x(told.low), _x(told.high)
        yield f'  <rect x="{NAMES}" y="{y}" width="{long:g}" height="{BAR}" class="{kind}"/>'
        yield f'  <line x1="{low}" y1="{middle}" x2="{high}" y2="{middle}" class="interval"/>'
        yield f'  <text x="{high + 6:g}" y="{y + 11}" class="dim">{percent(told.value, 0)}</text>'


def _x(share: float) -> float:
    return round(NAMES + WIDTH * share, 1)
