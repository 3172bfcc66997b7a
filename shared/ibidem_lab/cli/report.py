"""`ibidem report`: what a cache did, as one HTML page."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ibidem import __version__
from ibidem._util.files import write_private
from ibidem.cli.common import (
    DatabaseOption,
    NamespaceOption,
    PathOption,
    PricesOption,
    err,
    existing_store,
    fail,
    moment,
    out,
    settings_of,
)
from ibidem.costs import read_prices
from ibidem.storage.statistics import LogFilter
from ibidem_lab.report.facts import gather


def write_report(
    file: Annotated[Path, typer.Option("--out", help="Where the page is written.")] = Path(
        "ibidem-report.html"
    ),
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="An age (12h, 7d, 4w) or a time; default: the whole log.")
    ] = None,
    namespace: NamespaceOption = None,
    prices: PricesOption = None,
    path: PathOption = None,
    database: DatabaseOption = None,
) -> None:
    """Write what the cache did, saved and missed as one HTML page: no script, nothing to load."""
    with existing_store(path, database) as store:
        from ibidem_lab.report.page import page  # needs ibidem-cache[report]

        settings = settings_of(path, database)
        span = LogFilter(None if since is None else moment("--since", since), namespace)
        with err.status("Reading the logs"):
            known = read_prices(prices or settings.prices)
            facts = gather(store, settings, known, span, time.time())
            text = page(facts, __version__)
    try:
        write_private(file, [text.encode()])
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}")
    out.print(f"Wrote {file} ({len(text) // 1000:,} KB).", soft_wrap=True)
    if open_it and not webbrowser.open(file.resolve().as_uri()):
        out.print("No browser was found to show it.")
