"""`ibidem warm`: questions with known answers from a file, asked of a program, so that it has them cached."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ibidem._util.json_lines import parse_object
from ibidem.adapter.warming import Documents, KnownAnswer, Problem, Warmed, WarmingPlan, warm
from ibidem.cli.formatting import money
from ibidem.cli.output import (
    PricesOption,
    YesOption,
    bars,
    confirmed,
    fail,
    out,
    sentences,
    styled,
    text_option,
)
from ibidem.costs import Prices, read_prices
from ibidem.errors import InvalidInput

SHOWN = 20  # problems that are listed
_NEEDED = {"question", "answer"}


def warm_cache(
    file: Annotated[
        Path,
        typer.Argument(
            help="A .csv with a head, or a .jsonl: question, answer; tags and namespace if you like."
        ),
    ],
    app: Annotated[
        str, text_option("--app", help="module:name of a chain, an engine, an agent or a function.")
    ],
    documents: Annotated[
        str,
        text_option(
            "--documents", help="ignore: answers stand for themselves; retrieved: they rest on documents."
        ),
    ] = "ignore",
    prices: PricesOption = None,
    yes: YesOption = False,
) -> None:
    """Ask a program the questions of a file, and pin their answers as its own; run it again to go on."""
    if documents not in ("ignore", "retrieved"):
        fail(f"--documents is ignore or retrieved, not {documents!r}")
    kind: Documents = "ignore" if documents == "ignore" else "retrieved"
    with sentences():
        rows, problems = read_answers(file)
        if not rows:
            _show(problems)
            fail(f"{file} holds no question with an answer")
        known = read_prices(prices)
        program = load(app)
        out.print(f"Rows with a question: {len(rows):,}. The first two show which models the program calls.")
        with bars() as bar:
            task = bar.add_task("warming", total=len(rows))

            def agreed(plan: WarmingPlan) -> bool:
                bar.stop()
                out.print(told(plan, known), soft_wrap=True)
                go_on = yes or not plan.calls or confirmed("Go on?")
                if go_on:
                    bar.start()
                return go_on

            done = warm(
                program,
                rows,
                documents=kind,
                prices=known,
                on_plan=agreed,
                on_progress=lambda: bar.advance(task),
            )
    _finish(done, problems, len(rows))


def _finish(done: Warmed, problems: list[Problem], rows: int) -> None:
    problems = sorted([*problems, *done.problems], key=lambda one: one.line)
    out.print(f"{done.answered:,} of {rows:,} questions are answered from the cache.")
    out.print(f"Calls of models: {done.calls:,}.")
    _show(problems)
    if done.answered < rows:
        raise typer.Exit(1)


def _show(problems: list[Problem]) -> None:
    for one in problems[:SHOWN]:
        out.print(
            styled(f"line {one.line}:", "yellow"), f"{one.reason}: {one.question[:80]!r}", soft_wrap=True
        )
    if len(problems) > SHOWN:
        out.print(f"... and {len(problems) - SHOWN:,} more.")


def told(plan: WarmingPlan, prices: Prices) -> str:
    """Say what the other questions will take."""
    if not plan.calls:
        return f"The other {plan.questions:,} take no call of a model."
    cost = "at unknown cost" if plan.cost is None else f"about {money(plan.cost, prices)}"
    what = "besides the one that answers" if plan.learned else "the one that answers included"
    return (
        f"The other {plan.questions:,} take about {plan.calls:,} calls of models, {what}: "
        f"about {plan.tokens:,} tokens, {cost}."
    )


def load(spec: str) -> Any:
    """Import the program that `module:name` names; the current directory counts as a place of modules.

    Raises:
        InvalidInput: There is none.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise InvalidInput(f"--app is module:name, such as my_app:chain, not {spec!r}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise InvalidInput(f"cannot import {spec}: {type(error).__name__}: {error}") from error
    return found


def read_answers(file: Path) -> tuple[list[KnownAnswer], list[Problem]]:
    """Read the rows of a file; those that cannot be used are problems.

    Raises:
        InvalidInput: The file cannot be read, or lacks a column.
    """
    rows: list[KnownAnswer] = []
    problems: list[Problem] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for number, given in _csv(lines) if file.suffix == ".csv" else _jsonl(lines):
                try:
                    rows.append(_row(number, given))
                except (InvalidInput, ValueError) as error:
                    problems.append(Problem(number, str(given)[:80], str(error)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"cannot read {file}: {error}") from error
    return rows, problems


def _csv(lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines)
    head = next(reader, [])
    if missing := _NEEDED - set(head):
        raise InvalidInput(f"the head lacks {' and '.join(sorted(missing))}: it needs question and answer")
    line = reader.line_num + 1
    for cells in reader:
        if cells:
            yield line, dict(zip(head, cells, strict=False))
        line = reader.line_num + 1


def _jsonl(lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            given: dict[str, Any] = {}  # a problem of this line alone
            with suppress(InvalidInput):
                given = parse_object(line, str(number), "an object")
            yield number, given


def _row(line: int, given: dict[str, Any]) -> KnownAnswer:
    if missing := [name for name in sorted(_NEEDED) if not isinstance(given.get(name), str)]:
        raise InvalidInput(f"no {' and '.join(missing)}")
    tags = given.get("tags") or ()
    if isinstance(tags, str):
        tags = tuple(filter(None, map(str.strip, tags.split(","))))
    return KnownAnswer(given["question"], given["answer"], tags, given.get("namespace") or "", line)
