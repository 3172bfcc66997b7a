"""`ibidem report`: what a cache did, as one HTML page, and what to do next, as text too."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ibidem import __version__
from ibidem.active_model import checked_active_embedder
from ibidem.cli.output import (
    DatabaseOption,
    NamespaceOption,
    PathOption,
    PricesOption,
    err,
    existing_store,
    fail,
    moment,
    out,
    progress,
    settings_of,
    styled,
)
from ibidem.cli.panels import DAILY, in_panel
from ibidem.cli.tables import short
from ibidem.costs import read_prices
from ibidem.errors import EmbedderUnavailable
from ibidem.settings import Settings
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store
from ibidem_lab.files import write_private
from ibidem_lab.report.facts import gather
from ibidem_lab.report.next_steps import NextStep, judge_steps
from ibidem_lab.report.what_if import HEADS, WhatIf, rows_of, sentences_of, what_if


@in_panel(DAILY)
def write_report(
    file: Annotated[Path, typer.Option("--out", help="Where the page is written.")] = Path(
        "ibidem-report.html"
    ),
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="An age (12h, 7d, 4w) or a time; default: the whole log.")
    ] = None,
    with_what_if: Annotated[
        bool, typer.Option("--what-if", help="Also what strict, default and generous would have saved.")
    ] = False,
    namespace: NamespaceOption = None,
    prices: PricesOption = None,
    path: PathOption = None,
    database: DatabaseOption = None,
) -> None:
    """Write what the cache did, saved and missed as one HTML page without script; print what to do next."""
    with existing_store(path, database) as store:
        from ibidem_lab.report.page import page  # needs ibidem-cache[report]

        settings = settings_of(path, database)
        span = LogFilter(None if since is None else moment("--since", since), namespace)
        with progress("Reading the logs") as show:
            known = read_prices(prices or settings.prices)
            facts = gather(store, settings, known, span, time.time())
            worth = what_if(store, settings, known, span) if with_what_if else None
            steps = _next_steps(store, settings, namespace, partial(show, "Embedding questions"))
            text = page(facts, __version__, steps, worth, partial(show, "Drawing charts"))
    try:
        write_private(file, [text.encode()])
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}")
    out.print(f"Wrote {file} ({len(text) // 1000:,} KB).", soft_wrap=True)
    if with_what_if:
        _print_what_if(worth)
    _print_steps(steps)
    if open_it and not webbrowser.open(file.resolve().as_uri()):
        out.print("No browser was found to show it.")


def _next_steps(
    store: Store, settings: Settings, namespace: str | None, progress: Callable[[int, int], object]
) -> tuple[NextStep, ...]:
    """Judge the next steps; without the embedding model the report has no such section."""
    try:
        return judge_steps(store, checked_active_embedder(settings, store), namespace, progress)
    except EmbedderUnavailable as error:
        err.print(f"What to do next is left out: {error}", soft_wrap=True)
        return ()


def _print_steps(steps: Iterable[NextStep]) -> None:
    for step in steps:
        verdict = {True: "advised", False: "not advised", None: "cannot tell yet"}[step.advised]
        out.print(styled(f"{step.name.capitalize()}: {verdict}.", "bold"), f"{step.finding}.", soft_wrap=True)
        for name, value in step.figures.items():
            out.print(f"   {short(name)}: {value}", soft_wrap=True)
        if step.advised:
            out.print(f"   Do: {step.action}.\n   Not if {step.unless}.", soft_wrap=True)


def _print_what_if(found: WhatIf | None) -> None:
    if found is None:
        out.print("Nothing was asked, so nothing would have been saved.")
        return
    table = Table(*HEADS, title="Is it worth it?", box=SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows_of(found):
        table.add_row(*row)
    out.print(table)
    for sentence in sentences_of(found):
        out.print(sentence.replace("`", ""), soft_wrap=True)
