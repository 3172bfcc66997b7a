"""`ibidem learn threshold`: the threshold moved to where labels put it, and what that brings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table

from ibidem.active_model import active_scorer, checked_active_embedder
from ibidem.cli.formatting import percent
from ibidem.cli.output import DatabaseOption, PathOption, err, existing_store, out, settings_of
from ibidem.matching import fitted as adoption
from ibidem.matching.fitted import NEVER
from ibidem.settings import Settings
from ibidem.storage.store import Store
from ibidem_lab.fitting.labels import read_labels
from ibidem_lab.fitting.learning import FitReport, Place, Served
from ibidem_lab.replay import share

Labels = Annotated[
    Path | None,
    typer.Argument(
        metavar="[LABELS.jsonl]",
        help='Lines of {"asked", "stored", "right"}, or of {"text", "meaning"}; default: what audits judged.',
    ),
]
ONLY = "A fit moves the threshold only; the score of a pair stays the one that is shipped."
NOT_MOVED = {
    "given": "With these settings a given least score decides, which a fit does not move.",
    "audits": "With these settings audits decide, by their budget, which a fit does not move.",
}


def fit(
    labels: Labels = None,
    path: PathOption = None,
    database: DatabaseOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would bring.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Return to the threshold that is shipped.")] = False,
) -> None:
    """Move the threshold, and only that, to where labels put it: what audits judged, or a file."""
    with existing_store(path, database) as store, err.status("Comparing the labelled questions"):
        place = place_of(store, settings_of(path, database))
        said = _dropped(place) if drop else _fitted(place, labels, dry_run=dry_run)
    out.print(*said, sep="\n")


def place_of(store: Store, settings: Settings) -> Place:
    """Where a cache that is opened with these settings fits its threshold."""
    embedder = checked_active_embedder(settings, store)
    return Place(store, embedder, settings, active_scorer(settings, store, embedder.fingerprint))


def _dropped(place: Place) -> list[RenderableType]:
    """Return to the shipped threshold; what to say."""
    there = adoption.drop(place.store, place.scorer, place.embedder.fingerprint)
    return [
        "Caches opened from now on use the threshold that is shipped."
        if there
        else "There is no fitted threshold."
    ]


def _fitted(place: Place, labels: Path | None, *, dry_run: bool) -> list[RenderableType]:
    """Fit, adopt; what to say."""
    given = None if labels is None else read_labels(labels)
    report = place.fit(given, place.settings.strictness, dry_run=dry_run)
    return [_table(report), *_said(report, dry_run)]


def _said(report: FitReport, dry_run: bool) -> list[str]:
    if not report.adopted:
        return [f"The threshold stays as it is: {report.reason}."]
    said = "Caches opened from now on use the new threshold; --drop returns to the shipped one."
    if dry_run:
        said = "Without --dry-run caches would use the new threshold."
    return [ONLY, said, *filter(None, [NOT_MOVED.get(report.decided_by)])]


def _table(report: FitReport) -> Table:
    """Before and after."""
    title = f"{report.questions:,} labelled questions, {percent(report.right, 0)} right"
    found = Table(f"for max_error_rate {report.max_error_rate:g}", "shipped", "fitted", title=title)
    found.columns[1].justify = found.columns[2].justify = "right"
    found.add_row("threshold", *map(_threshold, (report.threshold_before, report.threshold_after)))
    for name, cells in (("hits", _hits), ("wrong per hit", _wrong)):
        row = (cells(one, report.questions) for one in (report.served_before, report.served_after))
        found.add_row(f"{name} of the labelled questions (fitted: cross-validated)", *row)
    for level, most in report.hindsight.items():
        found.add_row(f"most hits at {percent(level, 0)} wrong per hit, in hindsight", "", str(most))
    return found


def _threshold(value: float) -> str:
    return "serves nothing by meaning" if value == NEVER else f"{value:.4f}"


def _hits(served: Served, questions: int) -> str:
    return str(share(served.hits, questions))


def _wrong(served: Served, _: int) -> str:
    return str(share(served.wrong, served.hits)) if served.hits else "-"
