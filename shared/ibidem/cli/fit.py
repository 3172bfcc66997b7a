"""`ibidem fit`: the score of a cache fitted to its own labels, and what that brings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table

from ibidem.cli.common import err
from ibidem.fit import adoption
from ibidem.fit.labels import read_labels
from ibidem.fit.learning import FitReport, Place, Served
from ibidem.models.chosen import checked_embedder_of
from ibidem.replay import share
from ibidem.settings import Settings
from ibidem.storage.records import Records

Labels = Annotated[
    Path | None,
    typer.Argument(
        metavar="[LABELS.jsonl]",
        help='Lines of {"asked", "stored", "right"}, or of {"text", "meaning"}; default: what audits judged.',
    ),
]


def place_of(records: Records, settings: Settings) -> Place:
    """Where a cache that is opened with these settings fits its score."""
    embedder = checked_embedder_of(settings, records)
    return Place(records, embedder, settings.policy.threshold, settings.audit_rate > 0)


def dropped(place: Place) -> list[RenderableType]:
    """Return to the shipped score; what to say."""
    there = adoption.drop(place.records, place.embedder.fingerprint)
    return [
        "Caches opened from now on use the score that is shipped." if there else "There is no fitted score."
    ]


def fitted(place: Place, labels: Path | None, namespace: str, *, dry_run: bool) -> list[RenderableType]:
    """Fit, adopt; what to say."""
    given = None if labels is None else read_labels(labels)
    with err.status("Fitting; this takes about half a minute"):
        report = place.fit(given, namespace=namespace, dry_run=dry_run)
    return [table(report), _said(report, dry_run)]


def _said(report: FitReport, dry_run: bool) -> str:
    if not report.adopted:
        return f"The score stays as it is: {report.reason}."
    if dry_run:
        return "The fitted score is better; without --dry-run it would be used."
    return "Caches opened from now on use the fitted score; ibidem fit --drop returns to the shipped one."


def table(report: FitReport) -> Table:
    """Before and after, by cross-validation."""
    title = f"{report.questions:,} labelled questions, {report.right:.0%} right; model: {report.model}"
    found = Table("cross-validated", "shipped score", "fitted score", title=title)
    found.columns[1].justify = found.columns[2].justify = "right"
    for level, before in report.before.items():
        name = f"most hits at {level:.0%} wrong per hit, in hindsight"
        found.add_row(name, str(before), str(report.after[level]))
    if report.audited:
        found.add_row("served", "by audits", "by audits")
    else:
        for name, cells in (("hits", _hits), ("wrong per hit", _wrong)):
            row = (cells(one, report.questions) for one in (report.served_before, report.served_after))
            found.add_row(f"{name} at threshold {report.threshold:.4g}", *row)
    return found


def _hits(served: Served, questions: int) -> str:
    return str(share(served.hits, questions))


def _wrong(served: Served, _: int) -> str:
    return str(share(served.wrong, served.hits)) if served.hits else "-"
