"""Puts the figures into the tables of the page, between the comments that name them, and draws the chart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ibidem_lab.replay import share
from tests.benchmarks.field.chart import Bars, draw
from tests.benchmarks.field.results import Results, Row
from tests.benchmarks.field.sets import PAIRS, STREAMS

SAMPLE, LATENCY, CHARTED = "gptcache-sample", "latency", "questions"
BLOCK = "<!-- figures: {name} -->\n{body}\n<!-- end of figures -->"
NONE = "*Not measured.*"
Cells = Callable[[dict[str, Any]], Iterator[str]]


@dataclass(frozen=True)
class Page:
    """The page, its chart, and the order of the caches on it."""

    file: Path
    chart: Path
    order: list[str]

    def write(self, results: Results) -> None:
        """Both anew."""
        self.file.write_text(self.text(results), encoding="utf-8")
        self.chart.write_text(self.drawing(results), encoding="utf-8")

    def text(self, results: Results) -> str:
        """The page with these figures."""

        def block(found: re.Match[str]) -> str:
            name = found["name"]
            return BLOCK.format(name=name, body=table(name, list(results.rows(name, self.order))))

        before = self.file.read_text(encoding="utf-8")
        return re.sub(BLOCK.format(name=r"(?P<name>[\w-]+)", body=r".*?"), block, before, flags=re.DOTALL)

    def drawing(self, results: Results) -> str:
        """What each serves of one set at its default."""
        rows = [row for row in results.rows(CHARTED, self.order) if row.default]
        bars = [Bars(row.cache, share(*row.counts["same"]), share(*row.counts["different"])) for row in rows]
        return draw(bars)


def table(name: str, rows: list[Row]) -> str:
    """The table of one set, and when its rows were measured."""
    if not rows:
        return NONE
    head, cells = COLUMNS[name]
    lines = [f"| cache | setting | {' | '.join(head)} |", f"|---|---|{'---|' * len(head)}"]
    lines += [_line(row, cells(row.counts)) for row in rows]
    return "\n".join([*lines, "", f"Measured {_days(rows)}. Defaults are in bold."])


def _line(row: Row, cells: Iterator[str]) -> str:
    name = row.cache if row.default else ""
    setting = f"**{row.setting}**" if row.default else row.setting
    return f"| {name} | {setting} | {' | '.join(cells)} |"


def _days(rows: list[Row]) -> str:
    days = sorted({date.fromisoformat(row.measured) for row in rows})
    return " and ".join(f"{day.day} {day:%B %Y}" for day in ([days[0], days[-1]] if days[1:] else days))


def percent(count: int, total: int) -> str:
    """A share with its 95 % interval."""
    if not total:
        return "-"
    told = share(count, total)
    return f"{told.value:.1%} ({told.low * 100:.1f} to {told.high * 100:.1f})".replace("%", " %")


def _pairs(counts: dict[str, Any]) -> Iterator[str]:
    yield percent(*counts["same"])
    yield percent(*counts["different"])
    yield "-" if counts["auc"] is None else f"{counts['auc']:.3f}"


def _sample(counts: dict[str, Any]) -> Iterator[str]:
    yield percent(counts["hits"] - counts["wrong"], counts["asked"])
    yield percent(counts["wrong"], counts["asked"])


def _stream(counts: dict[str, Any]) -> Iterator[str]:
    yield percent(counts["hits"], counts["asked"])
    yield percent(counts["wrong"], counts["hits"])


def _latency(counts: dict[str, Any]) -> Iterator[str]:
    yield f"{counts['ratio']:.2f}"
    yield f"{counts['ms']['p50']:.1f} ({counts['ms']['p95']:.1f})"


COLUMNS: dict[str, tuple[Sequence[str], Cells]] = {
    **dict.fromkeys(PAIRS, (("served of the same", "served of the traps", "AUC"), _pairs)),
    SAMPLE: (("its own answer", "another's answer"), _sample),
    **dict.fromkeys(STREAMS, (("hits", "wrong per hit"), _stream)),
    LATENCY: (("times a lookup of the plain cosine", "ms at the median (95 %)"), _latency),
}
