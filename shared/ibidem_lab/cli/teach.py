"""`ibidem learn pairs` and `ibidem learn ask`: pairs from a cache's own life, and a teacher's labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ibidem.cli.output import (
    DatabaseOption,
    NamespaceOption,
    PathOption,
    YesOption,
    bars,
    confirmed,
    err,
    existing_store,
    fail,
    out,
    sentences,
    settings_of,
    text_option,
)
from ibidem.matching.shipped import policy_in_force, rule_for
from ibidem_lab.cli.fit import place_of
from ibidem_lab.labelling.mining import LIMIT, Mined, Miner
from ibidem_lab.labelling.pairs import QuestionPair, read_pairs, write_pairs
from ibidem_lab.labelling.teach import CHECKED, PARALLEL, Lesson, Taught

Out = Annotated[Path, typer.Option("--out", help="The file to write, JSON lines.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many pairs.")]
PairsFile = Annotated[
    Path, typer.Argument(metavar="PAIRS.jsonl", help="What ibidem learn pairs has written.")
]
TeacherName = Annotated[str, text_option("--teacher", help="PROVIDER:MODEL, such as openai:gpt-4.1-mini.")]
Labelled = Annotated[
    Path | None,
    typer.Option("--out", help="Default: PAIRS.labelled.jsonl; what it holds is not asked again."),
]
Parallel = Annotated[int, typer.Option(min=1, help="Calls in flight at most.")]
BothWays = Annotated[bool, typer.Option("--both-ways", help="Ask in both directions; keep what agrees.")]
Check = Annotated[
    int, typer.Option(min=0, help="Pairs of known label to ask about too, to estimate the teacher's error.")
]
PriceIn = Annotated[float | None, typer.Option(min=0, help="Price of a million prompt tokens.")]
PriceOut = Annotated[float | None, typer.Option(min=0, help="Price of a million completion tokens.")]


def mine_pairs(
    file: Out,
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    limit: Limit = LIMIT,
    yes: YesOption = False,
) -> None:
    """Write pairs of questions from the cache's own life: near misses, audits, feedback, neighbours."""
    if file.exists() and not yes and not confirmed(f"Replace {file}?"):
        raise typer.Exit(1)
    with existing_store(path, database) as store:
        with err.status("Comparing questions; this may take a minute"):
            place = place_of(store, settings_of(path, database))
            scorer = rule_for(place.embedder.fingerprint)
            threshold = policy_in_force(store, place.settings.strictness, scorer).threshold
            mined = Miner(store, place.embedder, scorer, threshold).mine(namespace, limit)
        if not mined.pairs:
            fail("no pairs: questions must have been asked, and answers stored, that are near one another")
        write_pairs(file, mined.pairs)
    out.print(_mined(mined))
    out.print(f"Written to {file}.", *_next(mined.pairs, file), soft_wrap=True)


def _mined(mined: Mined) -> Table:
    table = Table("pairs", "count", "same", "not", "no label")
    for column in table.columns[1:]:
        column.justify = "right"

    def line(name: str, pairs: Iterable[QuestionPair]) -> None:
        labels = Counter(pair.same for pair in pairs)
        table.add_row(name, *(f"{n:,}" for n in (labels.total(), labels[True], labels[False], labels[None])))

    line("all", mined.pairs)
    for source in sorted({pair.source for pair in mined.pairs}):
        line(f"  {source}", (pair for pair in mined.pairs if pair.source == source))
    edges = (-1.0, 0.7, 0.8, 0.9, 0.95, 1.01)
    for low, high in pairwise(edges):
        named = f"  cosine below {high}" if low < 0 else f"  cosine from {low}"
        line(named, (pair for pair in mined.pairs if low <= (pair.cosine or 0.0) < high))
    for why, count in sorted(mined.left_out.items()):
        table.add_row(f"left out: {why}", f"{count:,}")
    return table


def _next(pairs: Iterable[QuestionPair], file: Path) -> list[str]:
    lacking = sum(pair.same is None for pair in pairs)
    if not lacking:
        return []
    return [f"Let a teacher label the {lacking:,} without a label: ibidem learn ask {file} --teacher ..."]


def teach_pairs(
    pairs: PairsFile,
    teacher: TeacherName,
    file: Labelled = None,
    parallel: Parallel = PARALLEL,
    both_ways: BothWays = False,
    check: Check = CHECKED,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    yes: YesOption = False,
) -> None:
    """Let a chat model label the pairs without a label; shows the cost first, goes on where it stopped."""
    target = file or pairs.with_name(f"{pairs.stem}.labelled.jsonl")
    with sentences():
        if target.resolve() == pairs.resolve():
            fail("--out must be another file than the pairs")
        lesson = Lesson(read_pairs(pairs), teacher, out=target, both_ways=both_ways, check=check)
        out.print(cost_of(lesson, price_in, price_out), soft_wrap=True)
        if lesson.to_ask and not yes and not confirmed("Ask?"):
            raise typer.Exit(1)
        taught = ask(lesson, parallel, target)
    out.print(_taught(taught))
    out.print(f"Written to {target}; ibidem learn --pairs takes it.", soft_wrap=True)
    if taught.failed:
        fail(f"{taught.failed:,} pairs failed; run the same command again to ask about them")


def ask(lesson: Lesson, parallel: int, target: Path) -> Taught:
    """Ask the teacher, with a progress bar; Ctrl-C keeps what was answered."""
    try:
        with bars() as bar:
            task = bar.add_task("ask", total=len(lesson.to_ask))
            return lesson.run(parallel, lambda: bar.advance(task))
    except KeyboardInterrupt:
        err.print(f"Stopped. {target} holds what was answered; the same command goes on.")
        raise typer.Exit(130) from None


def cost_of(lesson: Lesson, price_in: float | None = None, price_out: float | None = None) -> str:
    """Tell what a lesson will cost."""
    cost = lesson.cost(price_in, price_out)
    done = len(lesson.pairs) - cost.pairs
    price = "" if cost.price is None else f", about {cost.price:,.2f} at the prices given"
    tokens = f"about {cost.prompt_tokens:,} prompt and {cost.completion_tokens:,} completion tokens"
    return (
        f"{cost.pairs:,} pairs to ask {lesson.teacher} about, {done:,} need no asking: {cost.calls:,} "
        f"calls, {tokens}{price}. A model that thinks before it answers needs more."
    )


def _taught(taught: Taught) -> Table:
    table = Table("what", "count")
    table.columns[1].justify = "right"
    table.add_row("labelled: one answer serves both", f"{taught.same:,}")
    table.add_row("labelled: it does not", f"{taught.different:,}")
    table.add_row("no label: the answer was of no use", f"{taught.unread:,}")
    table.add_row("failed", f"{taught.failed:,}")
    agreement = taught.agreement
    if agreement.asked:
        table.add_row("known labels it was asked about", f"{agreement.asked:,}")
        table.add_row("  says yes where they say no", f"{agreement.yes_for_no:,}")
        table.add_row("  says no where they say yes", f"{agreement.no_for_yes:,}")
        table.add_row("  its error (95 % interval)", str(agreement.error))
    else:
        table.add_row("its error", "not known: no pair has a label of an audit")
    return table
