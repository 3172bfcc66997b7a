"""`ibidem decide`: what this cache would do with pairs of questions from a file."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import ibidem
from ibidem.cache import SemanticCache
from ibidem.cli.formatting import percent
from ibidem.cli.output import (
    DatabaseOption,
    PathOption,
    out,
    progress,
    require_cache,
    sentences,
    settings_of,
    text_option,
)
from ibidem.cli.panels import MEASURING, in_panel
from ibidem.explanation.result import in_words
from ibidem.matching.decisions import PairDecision
from ibidem.settings import read_settings
from ibidem_lab.decisions import (
    DecisionReport,
    LabelledPair,
    read_labelled_pairs,
    report_decisions,
)

Pairs = Annotated[
    Path,
    typer.Argument(
        metavar="PAIRS",
        help='JSON lines, or .csv with a header: "a" (stored), "b" (asked) and, if known, "same".',
    ),
]
MaxErrorRate = Annotated[
    str | None,
    text_option(
        "--max-error-rate",
        help="Instead of the cache's own: the share of hits that may be wrong, or strict, default, generous.",
    ),
]
MinProbability = Annotated[
    float | None, typer.Option("--min-probability", help="Instead: the least probability of a hit.")
]
Namespace = Annotated[
    str, text_option("--namespace", help="Whose audits set the threshold, where there are audits.")
]

AT_ONCE = 256  # pairs decided between two looks of the progress


@in_panel(MEASURING)
def decide_pairs(
    pairs: Pairs,
    max_error_rate: MaxErrorRate = None,
    min_probability: MinProbability = None,
    namespace: Namespace = "",
    path: PathOption = None,
    database: DatabaseOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each pair.")] = False,
) -> None:
    """Say for pairs of questions whether the answer to one would be repeated for the other, and why not.

    With labels also: how many of the same and of the different are served. Without a cache yet, the defaults
    decide. Nothing is stored.
    """
    with sentences():
        given = read_labelled_pairs(pairs)
        with (
            _cache(path, database, max_error_rate=max_error_rate, min_probability=min_probability) as cache,
            progress("Comparing pairs") as show,
        ):
            decisions: list[PairDecision] = []
            for start in range(0, len(given), AT_ONCE):
                some = [(one.stored, one.asked) for one in given[start : start + AT_ONCE]]
                decisions += cache.decide(some, namespace=namespace)
                show("Comparing pairs", len(decisions), len(given))
    if as_json:
        for pair, decision in zip(given, decisions, strict=True):
            out.print(Text(_line(pair, decision)), soft_wrap=True)  # in ASCII: what is not is escaped
    else:
        allowed = read_settings(path=path, database=database, max_error_rate=max_error_rate).max_error_rate
        report = report_decisions(decisions, [pair.same for pair in given], allowed)
        out.print(_table(report, pairs.name))
        for note in _notes(report):
            out.print(note)


@contextmanager
def _cache(path: Path | None, database: str | None, **given: str | float | None) -> Iterator[SemanticCache]:
    """The cache in this place; if none was named and there is none yet, a new one that is gone afterwards."""
    settings = settings_of(path, database)
    with ExitStack() as stack:
        if path is not None or settings.database or settings.database_file.is_file():
            require_cache(settings)
        else:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        yield stack.enter_context(ibidem.open(path, database=database, **given))  # type: ignore[arg-type]


def _line(pair: LabelledPair, decision: PairDecision) -> str:
    score, similarity = (
        None if math.isnan(value) else round(value, 4) for value in (decision.score, decision.similarity)
    )
    told: dict[str, Any] = {
        "a": pair.stored,
        "b": pair.asked,
        "same": pair.same,
        "served": decision.served,
        "score": score,
        "similarity": similarity,
        "reason": decision.reason,
        **pair.extra,
    }
    return json.dumps(told, ensure_ascii=True)


def _table(report: DecisionReport, name: str) -> Table:
    table = Table("", "pairs", "the same", "different", title=f"{report.pairs:,} pairs of {name}")
    for column in table.columns[1:]:
        column.justify = "right"
    different = report.labelled - report.same
    table.add_row("all", *_counts(report.pairs, report.same, different, report.labelled))
    served = (str(report.served_same), str(report.served_different)) if report.labelled else ("", "")
    table.add_row("served", f"{report.served:,}", *served)
    for reason, refused in report.reasons.items():
        table.add_row(f"  not: {in_words(reason)}", *_counts(*refused, report.labelled))
    return table


def _counts(pairs: int, same: int, different: int, labelled: int) -> tuple[str, str, str]:
    return (f"{pairs:,}", f"{same:,}", f"{different:,}") if labelled else (f"{pairs:,}", "", "")


def _notes(report: DecisionReport) -> Iterator[str]:
    """What else is to be said of labelled pairs."""
    if not report.labelled:
        return
    if report.served:
        yield f"Wrong per hit, among these pairs: {report.wrong_per_hit}."
    if not math.isnan(report.auc):
        yield f"AUC of the score, guards aside: {report.auc:.3f}."
    wanted = f"at most {percent(report.max_error_rate)} wrong per hit, among these pairs"
    if report.threshold is None:
        yield f"No threshold has {wanted}."
    else:
        serves = f"serves {report.served_at} of the same"
        yield f"A least score of {report.threshold:.4f} has {wanted}, and {serves}."
