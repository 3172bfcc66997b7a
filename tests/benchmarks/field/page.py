"""Puts the figures into the tables of the page, between the comments that name them, and draws the chart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ibidem_lab.replay import share
from tests.benchmarks.field.chart import Bars, draw
from tests.benchmarks.field.results import Results, Row
from tests.benchmarks.field.sets import PAIRS, STREAMS

SAMPLE, LATENCY, CHARTED, GLANCE = "gptcache-sample", "latency", "questions", "at a glance"
BLOCK = "<!-- figures: {name} -->\n{body}\n<!-- end of figures -->"
NONE, GAP = "*Not measured.*", "\N{NO-BREAK SPACE}"
HEADS: dict[str, Sequence[str]] = {
    **dict.fromkeys(PAIRS, ("served of the same", "served of the traps", "AUC")),
    SAMPLE: ("its own answer", "another's answer"),
    **dict.fromkeys(STREAMS, ("hits", "wrong per hit")),
    LATENCY: ("times a lookup of the plain cosine", "ms at the median (95 %)"),
}
# Where on the page each set is, and what it is called in the first table.
SECTIONS = {
    "questions": ("questions", "questions-fow-cache"),
    "conversations": ("chats", "conversations-fow-cache"),
    "meancache": ("Quora", "quoras-questions-meancache"),
    SAMPLE: ("sentences", "sentences-in-one-cache-gptcaches-sample-data"),
    **{name: (name, name) for name in STREAMS},
}
UNITS = {
    **dict.fromkeys(PAIRS, "pairs"),
    SAMPLE: "sentences",
    **dict.fromkeys(STREAMS, "questions"),
    LATENCY: "answers stored",
}


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
            rows = {one: list(results.rows(one, self.order)) for one in HEADS}
            return BLOCK.format(name=name, body=glance(rows) if name == GLANCE else table(name, rows[name]))

        before = self.file.read_text(encoding="utf-8")
        return re.sub(BLOCK.format(name=r"(?P<name>[\w -]+)", body=r".*?"), block, before, flags=re.DOTALL)

    def drawing(self, results: Results) -> str:
        """What each serves of one set at its default."""
        rows = [row for row in results.rows(CHARTED, self.order) if row.default]
        bars = [Bars(row.cache, share(*row.counts["same"]), share(*row.counts["different"])) for row in rows]
        return draw(bars)


def table(name: str, rows: list[Row]) -> str:
    """The table of one set, and when its rows were measured."""
    if not rows:
        return NONE
    head = HEADS[name]
    lines = [f"| cache | setting | {' | '.join(head)} |", f"|---|---|{'---|' * len(head)}"]
    size = max(size_of(row.counts) for row in rows)
    lines += [_line(row, size, _cells(name, row.counts)) for row in rows]
    return "\n".join([*lines, "", f"Measured {_days(rows)}, {size:,} {UNITS[name]}. Defaults are in bold."])


def glance(rows: dict[str, list[Row]]) -> str:
    """Each cache at its default on all sets, in two figures; those that tie on all share a line."""
    heads = [f"[{title}](#{section})" for title, section in SECTIONS.values()]
    lines = [f"| cache | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    told: dict[str, dict[str, str]] = {}
    for name in SECTIONS:
        most = max((size_of(row.counts) for row in rows[name]), default=0)
        for row in rows[name]:
            if row.default and row.setting != "exact":
                fewer = size_of(row.counts) < most
                told.setdefault(row.name, {})[name] = _short(name, row.counts) + (f"{GAP}*" if fewer else "")
    tied: dict[tuple[str, ...], list[str]] = {}
    for cache, cells in told.items():
        tied.setdefault(tuple(cells.get(name, "") for name in SECTIONS), []).append(cache)
    lines += [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in tied.items()]
    if any(cell.endswith("*") for cells in tied for cell in cells):
        lines += ["", "\\* Of fewer questions than the others in its column, which have more hits for it."]
    return "\n".join(lines)


def _short(name: str, counts: dict[str, Any]) -> str:
    return f"{GAP}/{GAP}".join(
        f"{100 * part / whole:.0f}" if whole else "-" for part, whole in counted(name, counts)
    )


def counted(name: str, counts: dict[str, Any]) -> list[tuple[int, int]]:
    """What is served rightly and wrongly of a set, as parts of a whole; of streams, hits and wrong ones."""
    if name in PAIRS:
        return [(served, of) for served, of in (counts["same"], counts["different"])]
    hits, wrong, asked = counts["hits"], counts["wrong"], counts["asked"]
    return [(hits - wrong, asked), (wrong, asked)] if name == SAMPLE else [(hits, asked), (wrong, hits)]


def size_of(counts: dict[str, Any]) -> int:
    """How many were asked, or stored where the time is taken."""
    if "same" in counts:
        return int(counts["same"][1] + counts["different"][1])
    return int(counts.get("asked", counts.get("stored", 0)))


def _line(row: Row, size: int, cells: Iterator[str]) -> str:
    name = row.cache if row.default else ""
    setting = f"**{row.setting}**" if row.default else row.setting
    if size_of(row.counts) < size:
        setting += f", of {size_of(row.counts):,}"
    return f"| {name} | {setting} | {' | '.join(cells)} |"


def _days(rows: list[Row]) -> str:
    days = sorted({date.fromisoformat(row.measured) for row in rows})
    return " and ".join(f"{day.day} {day:%B %Y}" for day in ([days[0], days[-1]] if days[1:] else days))


def _cells(name: str, counts: dict[str, Any]) -> Iterator[str]:
    if name == LATENCY:
        yield f"{counts['ratio']:.2f}"
        yield f"{counts['ms']['p50']:.1f} ({counts['ms']['p95']:.1f})"
        return
    for part, whole in counted(name, counts):
        yield str(share(part, whole)) if whole else "-"
    if name in PAIRS:
        yield "-" if counts["auc"] is None else f"{counts['auc']:.3f}"
