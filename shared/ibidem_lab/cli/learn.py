"""`ibidem learn`: makes a cache better from its own log; its steps are subcommands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import ibidem
from ibidem.cache import SemanticCache
from ibidem.cli.output import (
    DatabaseOption,
    JsonOption,
    PathOption,
    YesOption,
    confirmed,
    err,
    out,
    print_json,
    progress,
    require_cache,
    sentences,
    settings_of,
    text_option,
)
from ibidem.cli.panels import LEARNING, in_panel
from ibidem.cli.rebuild import ChromaOption
from ibidem_lab.cli.fit import fit
from ibidem_lab.cli.teach import PriceIn, PriceOut, ask, cost_of, mine_pairs, teach_pairs
from ibidem_lab.cli.tune import evaluate_models, tune_model
from ibidem_lab.labelling.teach import Lesson
from ibidem_lab.learning.asking import worth_asking
from ibidem_lab.learning.evidence import labels_in, verdicts_file
from ibidem_lab.learning.gate import Counts, Judgement, LearnReport
from ibidem_lab.learning.learn import learn
from ibidem_lab.promotion import rollback as roll_back

learn_app = in_panel(LEARNING)(
    typer.Typer(
        name="learn",
        help="Make a cache better from its own log: train, judge; --promote puts it in service.",
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
)

Files = Annotated[
    list[Path] | None,
    typer.Option(
        "--pairs", help='Further labels, lines of {"a", "b", "same"}; may be given again. They count most.'
    ),
]
TeacherName = Annotated[
    str | None, text_option("--teacher", help="Ask this chat model first: PROVIDER:MODEL, cost told before.")
]
Calls = Annotated[int, typer.Option("--calls", min=1, help="Ask the teacher about so many pairs at most.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell how many labels there are.")]
Promote = Annotated[bool, typer.Option("--promote", help="Put it in service if it is better.")]
Rollback = Annotated[bool, typer.Option("--rollback", help="Return to what was in service before.")]


@learn_app.callback()
def run(
    context: typer.Context,
    pairs: Files = None,
    teacher: TeacherName = None,
    calls: Calls = 300,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    dry_run: DryRun = False,
    promote: Promote = False,
    rollback: Rollback = False,
    path: PathOption = None,
    database: DatabaseOption = None,
    chroma: ChromaOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Learn from the labels of a cache, judge on held-out lookups, and promote what is better."""
    if context.invoked_subcommand is not None:
        return
    with sentences():
        require_cache(settings_of(path, database, chroma))
        given = [label for file in pairs or () for label in labels_in(file)]
        with ibidem.open(path, database=database, chroma=chroma) as cache:
            if rollback:
                out.print(f"Used from now on: {roll_back(cache).model}", soft_wrap=True)
                return
            if teacher is not None and not dry_run:
                _ask(cache, teacher, calls, (price_in, price_out), yes=yes)
            with progress("read the labels") as show:
                report = learn(cache, given, promote=promote, dry_run=dry_run, progress=show)
    if as_json:
        print_json(asdict(report) | {"directory": str(report.directory or "")})
    else:
        _show(report, dry_run=dry_run, promote=promote)


learn_app.command("pairs")(mine_pairs)
learn_app.command("ask")(teach_pairs)
learn_app.command("threshold")(fit)
learn_app.command("encoder")(tune_model)
learn_app.command("compare")(evaluate_models)


def _ask(
    cache: SemanticCache, name: str, calls: int, prices: tuple[float | None, float | None], *, yes: bool
) -> None:
    """Let a teacher label pairs that nobody has labelled; what it said before is not asked again.

    In two rounds: what the first labels say chooses the pairs of the second.
    """
    file = verdicts_file(cache._runtime.settings, name)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number, part in enumerate(filter(None, (calls - calls // 2, calls // 2)), 1):
        with progress("look for the pairs that would teach most") as show:
            found = worth_asking(cache, part, show)
        if not found:
            err.print("There are no pairs to ask about.")
            return
        lesson = Lesson(found, name, out=file, check=0)
        out.print(f"Round {number} of 2. {cost_of(lesson, *prices)}", soft_wrap=True)
        if lesson.to_ask and not yes and not confirmed("Ask?"):
            raise typer.Exit(1)
        ask(lesson, 4, file)


def _show(report: LearnReport, *, dry_run: bool, promote: bool) -> None:
    """Tell what was found."""
    out.print(_labels(report))
    judged = report.judged
    if report.lacking:
        out.print(f"N{report.lacking[1:]}. Nothing was changed.", soft_wrap=True)
        out.print(
            "More come from ibidem review, feedback, audit_rate, or ibidem learn --teacher.", soft_wrap=True
        )
    if judged is None:
        low, high = report.expected
        told = f"With as many hits as labels that say yes, {report.level:.1%} wrong would be known as"
        out.print(f"{told} {low:.1%} to {high:.1%}.", soft_wrap=True)
        return
    out.print(_table(report, judged))
    if not judged.better:
        out.print("Not better: " + "; ".join(judged.reasons) + ". Nothing was changed.", soft_wrap=True)
    elif report.promoted:
        out.print("It is in service. ibidem learn --rollback returns to what was before.", soft_wrap=True)
    else:
        out.print("It is better. ibidem learn --promote puts it in service.", soft_wrap=True)


def _labels(report: LearnReport) -> Table:
    table = Table("labels", "pairs", title=f"{report.total:,} labelled pairs, {report.right:,} the same")
    table.columns[1].justify = "right"
    for source, count in sorted(report.labels.items()):
        table.add_row(source, f"{count:,}")
    return table


def _table(report: LearnReport, judged: Judgement) -> Table:
    title = f"{judged.lookups:,} held-out lookups in {judged.groups:,} groups; {report.recipe}"
    table = Table(f"for max_error_rate {judged.level:g}", "in use", "learned", title=title)
    table.columns[1].justify = table.columns[2].justify = "right"

    def line(name: str, cell: Callable[[Counts], object]) -> None:
        table.add_row(name, str(cell(judged.before)), str(cell(judged.after)))

    line("hits", lambda one: f"{one.hits:,}")
    line("wrong", lambda one: f"{one.wrong:,}")
    line("wrong per judged hit", lambda one: one.wrong_per_hit)
    line("hits without a label", lambda one: f"{one.unjudged:,}")
    gain = judged.gain
    table.add_row("more hits per lookup", "", f"{gain.value:+.1%} ({gain.low:+.1%} to {gain.high:+.1%})")
    table.add_row(
        "shipped pairs served, same / different",
        f"{judged.anchors_before.same} / {judged.anchors_before.different}",
        f"{judged.anchors_after.same} / {judged.anchors_after.different}",
    )
    return table
