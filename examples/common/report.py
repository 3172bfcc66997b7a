"""What came of each question, as a table with totals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import ibidem

WIDTH = 100

# Reasons that say what speaks against the nearest question; others (`error`, `no_index`) explain nothing.
_EXPLAINED = ("below_threshold", "documents_changed", "documents_added", "guard:")


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, in which part of the demo, and what it differs in from `neighbour`, asked before it.

    Only a reworded question may get its neighbour's answer.
    """

    text: str
    part: str
    neighbour: str | None = None
    difference: str = ""


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, part by part: all first ones before the first reworded one."""
    groups = json.loads(path.read_text(encoding="utf-8"))
    first = [Question(group["first"], "first time") for group in groups]
    reworded = [Question(group["reworded"], "reworded", group["first"]) for group in groups]
    near = [
        Question(text, "near miss", group["first"], difference)
        for group in groups
        for difference, text in group["near"].items()
    ]
    return first + reworded + near


@dataclass(frozen=True, slots=True)
class Row:
    """One question asked: the answer, what the cache said to it, and how long the whole chain took."""

    question: Question
    answer: str
    lookup: ibidem.Hit | ibidem.Miss | None
    seconds: float

    @property
    def hit(self) -> ibidem.Hit | None:
        """The hit, if it was one."""
        return self.lookup if isinstance(self.lookup, ibidem.Hit) else None

    @property
    def wrong(self) -> bool:
        """Whether it got the answer to another question."""
        allowed = {self.question.text}
        if self.question.part == "reworded":
            allowed.add(str(self.question.neighbour))
        return self.hit is not None and self.hit.question not in allowed

    @property
    def explained(self) -> bool:
        """Whether it was answered from the cache, or the cache can say what spoke against it."""
        return isinstance(self.lookup, ibidem.Hit) or (
            isinstance(self.lookup, ibidem.Miss) and self.lookup.reason.startswith(_EXPLAINED)
        )

    @property
    def outcome(self) -> str:
        """Hit or miss, and why."""
        if self.hit:
            return f"{'WRONG HIT' if self.wrong else 'hit'}, {self.hit.tier}"
        return f"miss, {self.lookup.reason}" if isinstance(self.lookup, ibidem.Miss) else "not looked up"

    @property
    def tokens_saved(self) -> int:
        """Tokens the model was spared."""
        return self.hit.answer.tokens if self.hit else 0

    @property
    def seconds_saved(self) -> float:
        """Seconds the model took when it gave the answer, less those of the lookup."""
        return (self.hit.answer.seconds or 0.0) - self.hit.seconds if self.hit else 0.0


def make_console(plain: bool) -> Console:
    """At most 100 columns on a terminal, exactly 100 in a log."""
    console = Console(color_system=None if plain else "auto", highlight=False)
    console.width = min(WIDTH, console.width) if sys.stdout.isatty() else WIDTH
    return console


def print_rows(console: Console, rows: list[Row]) -> None:
    """Every question with what came of it."""
    table = Table("question", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("hit or miss, and why", no_wrap=True)
    for name in ("sim.", "lookup ms", "total ms", "tokens saved"):
        table.add_column(name, justify="right", max_width=6)
    for number, row in enumerate(rows):
        part = row.question.part
        if number == 0 or part != rows[number - 1].question.part:
            table.add_section()
            table.add_row(f"[bold]{part.upper()}[/]")
        table.add_row(*_cells(row))
    console.print(table)


def print_totals(console: Console, rows: list[Row], note: str) -> None:
    """Counts by part of the demo."""
    table = Table("totals", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("asked", "from the cache", "wrong", "tokens saved", "time saved"):
        table.add_column(name, justify="right")
    for part in dict.fromkeys(row.question.part for row in rows):
        table.add_row(part, *_totals([row for row in rows if row.question.part == part]))
    table.add_section()
    table.add_row("all", *_totals(rows))
    console.print(table)
    console.print(f"[dim]{note}[/]\n")


def print_checks(console: Console, rows: list[Row], checks: dict[str, bool]) -> bool:
    """Whether all went as it must, and what did not."""
    reworded = [row for row in rows if row.question.part == "reworded"]
    near = [row for row in rows if row.question.part == "near miss"]
    hits, explained = sum(row.hit is not None for row in reworded), sum(row.explained for row in reworded)
    wrong_near, wrong = sum(row.wrong for row in near), sum(row.wrong for row in rows)
    rewordings = (
        f"{explained} of {len(reworded)} rewordings answered from the cache ({hits}) or an explained miss"
    )
    near_misses = f"{wrong_near} wrong among {len(near)} near misses, {wrong} among all {len(rows)} questions"
    checks = {rewordings: explained == len(reworded), near_misses: wrong == 0, **checks}
    for text, good in checks.items():
        console.print(f"[{'green' if good else 'red'}]{'ok    ' if good else 'FAILED'}[/] {text}")
    return all(checks.values())


def _cells(row: Row) -> tuple[str, ...]:
    question, lookup = row.question, row.lookup
    similarity = None if lookup is None else lookup.similarity
    return (
        escape(question.text) + (f" [dim]({escape(question.difference)})[/]" if question.difference else ""),
        f"[{_colour(row)}]{row.outcome}[/]",
        "" if similarity is None else f"{similarity:.3f}",
        "" if lookup is None else f"{lookup.seconds * 1000:.1f}",
        f"{row.seconds * 1000:.0f}",
        f"{row.tokens_saved:,}" if row.hit else "",
    )


def _totals(rows: list[Row]) -> tuple[str, ...]:
    def total(value: Callable[[Row], float]) -> float:
        return sum(map(value, rows))

    return (
        f"{len(rows)}",
        f"{total(lambda row: row.hit is not None):.0f}",
        f"{total(lambda row: row.wrong):.0f}",
        f"{total(lambda row: row.tokens_saved):,.0f}",
        f"{total(lambda row: row.seconds_saved):.1f} s",
    )


def _colour(row: Row) -> str:
    return "bold red" if row.wrong else "green" if row.hit else "yellow" if row.explained else "default"
