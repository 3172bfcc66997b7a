"""`ibidem stats`: once, or again and again as it changes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.live import Live

from ibidem.cli import common, tables
from ibidem.cli.common import DatabaseOption, JsonOption, PathOption, PricesOption
from ibidem.cli.console import styled
from ibidem.costs import Prices, Savings, read_prices, savings
from ibidem.errors import StorageError
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store, Totals

EVERY = 2.0  # seconds
pause = time.sleep


def show_stats(
    seconds: Annotated[
        float | None, typer.Argument(metavar="SECONDS", min=0.1, help="How often, with --watch.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show them again every 2 SECONDS; Ctrl-C ends it.")
    ] = False,
    path: PathOption = None,
    database: DatabaseOption = None,
    prices: PricesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count entries, hits, misses and examples, and what hits saved; the lookups are the last 100,000."""
    if seconds is not None and not watch:
        common.fail("SECONDS are for --watch")
    with common.existing_store(path, database) as store:
        known = read_prices(prices or common.settings_of(path, database).prices)
        if watch:
            with suppress(KeyboardInterrupt):
                (_print_lines if as_json else _show)(store, known, seconds or EVERY)
        elif as_json:
            common.print_json(_plain(*_read(store, known), known))
        else:
            rows = tables.figures(*_read(store, known), known)
            common.out.print(tables.totals(rows, f"Ibidem cache {store.url}"))


def _show(store: Store, known: Prices, seconds: float) -> None:
    first: dict[str, int | str] | None = None
    with Live(console=common.out, auto_refresh=False) as live:
        for found in _watched(store, known, seconds):
            if isinstance(found, StorageError):
                live.console.print(styled("error:", "red"), str(found), soft_wrap=True)
                continue
            rows = tables.figures(*found, known)
            first = rows if first is None else first
            table = tables.totals(rows, f"Ibidem cache {store.url}", first)
            table.caption = f"{time.strftime('%H:%M:%S')}, every {seconds:g} s; Ctrl-C ends it"
            live.update(table, refresh=True)


def _print_lines(store: Store, known: Prices, seconds: float) -> None:
    for found in _watched(store, known, seconds):
        told = {"error": str(found)} if isinstance(found, StorageError) else _plain(*found, known)
        typer.echo(json.dumps({"at": time.time(), **told}))


def _watched(store: Store, known: Prices, seconds: float) -> Iterator[tuple[Totals, Savings] | StorageError]:
    """The figures, now and then for ever; a database that is away may come back."""
    while True:
        try:
            yield _read(store, known)
        except StorageError as error:
            yield error
        pause(seconds)


def _read(store: Store, known: Prices) -> tuple[Totals, Savings]:
    return store.totals(), savings(store.statistics.lookups(LogFilter()), known)


def _plain(counted: Totals, saved: Savings, known: Prices) -> dict[str, Any]:
    told = {**asdict(saved), "currency": known.currency, "prices_as_of": known.as_of or None}
    return {**asdict(counted), "hit_rate": counted.hit_rate, "saved": told}
