"""`ibidem promote`: use a tuned embedding model, return to the one before, or show what is used."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import ibidem
from ibidem.active_model import read_promotion
from ibidem.cache import SemanticCache
from ibidem.cli.output import (
    DatabaseOption,
    JsonOption,
    PathOption,
    fail,
    out,
    print_json,
    progress,
    require_cache,
    sentences,
    settings_of,
)
from ibidem.cli.panels import LEARNING, in_panel
from ibidem.cli.rebuild import ChromaOption
from ibidem.runtime import open_store
from ibidem.settings import Settings
from ibidem_lab import promotion as lab


@in_panel(LEARNING)
def promote(
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="What `ibidem learn encoder` wrote: model, thresholds, metrics."
        ),
    ] = None,
    path: PathOption = None,
    database: DatabaseOption = None,
    chroma: ChromaOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also if its metrics say that it is worse, or nothing.")
    ] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Return to the model used before.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only show which model is used.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Use a tuned embedding model in all caches on this place, while they serve.

    All stored questions are embedded first; interrupted, it goes on where it was when it is called again.
    """
    if (directory is not None) + rollback + status != 1:
        fail("give a model directory, or --rollback, or --status")
    with sentences():
        settings = settings_of(path, database, chroma)
        require_cache(settings)
        if status:
            _show(settings, as_json)
            return
        with ibidem.open(path, database=database, chroma=chroma) as cache:
            report = _promoted(cache, directory, force) if directory is not None else lab.rollback(cache)
    if as_json:
        print_json(asdict(report))
    else:
        out.print(*_said(report), sep="\n")


def _promoted(cache: SemanticCache, directory: Path, force: bool) -> lab.PromotionReport:
    with progress("Embedding") as show:
        return lab.promote(cache, directory, force=force, progress=partial(show, "Embedding"))


def _said(report: lab.PromotionReport) -> list[str]:
    said = [str(figure) for figure in report.figures]
    if report.embedded:
        rate = report.embedded / max(report.seconds, 1e-9)
        said.append(
            f"Embedded {report.embedded:,} questions in {report.seconds:.1f} s, {rate:,.0f} a second."
        )
    if not report.changed:
        return [*said, f"{report.model} is in use already."]
    return [
        *said,
        f"Used from now on: {report.model}",
        f"Before: {report.previous}; ibidem promote --rollback returns to it.",
    ]


def _show(settings: Settings, as_json: bool) -> None:
    store = open_store(settings)
    try:
        promotion = read_promotion(store)
        known = sorted(store.embedders.registered())
        tables = {one: store.vectors(one) for one in known}
        counts = {one: (table.count(), table.count_missing()) for one, table in tables.items()}
    finally:
        store.close()
    if as_json:
        models = [{"model": one, "questions": n, "lacking": left} for one, (n, left) in counts.items()]
        print_json({"promotion": promotion and asdict(promotion), "embedders": models})
        return
    if promotion is None:
        out.print("No model was promoted: the default is used.")
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(promotion.at))
        out.print(f"Used since {since}: {promotion.current.fingerprint}")
        out.print(f"Before: {promotion.previous.fingerprint}")
    for one, (count, lacking) in counts.items():
        left = f", {lacking:,} still to be embedded" if lacking else ""
        out.print(f"  {one}: {count:,} questions{left}")
