"""The command line: look into a cache, empty it, check it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.live import Live

from ibidem import __version__
from ibidem.audits.auditor import ASSUMED_RATE, report_of
from ibidem.cli import tables
from ibidem.cli.copy import copy_cache
from ibidem.cli.doctor import examine
from ibidem.cli.examples import examples_app
from ibidem.cli.invalidate import correct, give_feedback, invalidate
from ibidem.cli.output import (
    DatabaseOption,
    IdArgument,
    JsonOption,
    LimitOption,
    NamespaceOption,
    PathOption,
    PricesOption,
    YesOption,
    accept_any_encoding,
    confirmed,
    entry_of,
    err,
    existing_store,
    fail,
    out,
    print_json,
    print_list,
    require_cache,
    sentences,
    settings_of,
    styled,
    text_option,
)
from ibidem.cli.panels import DAILY, ENTRIES, LEARNING, MEASURING, OPERATING
from ibidem.cli.plugins import Commands
from ibidem.cli.rebuild import rebuild_index
from ibidem.cli.warm import warm_cache
from ibidem.cli.why import explain
from ibidem.costs import Prices, Savings, read_prices, savings
from ibidem.errors import StorageError
from ibidem.explanation.logged import explain_log
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store, Totals

EVERY = 2.0  # seconds
pause = time.sleep

app = typer.Typer(
    name="ibidem",
    cls=Commands,
    help="Look into an Ibidem answer cache. Settings not given are read from IBIDEM_* variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"ibidem {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def list_entries(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest entries."""
    with existing_store(path, database) as store:
        entries = store.entries.newest(limit, namespace)
    print_list(entries, as_json, tables.summary, tables.entries, "No entries.")


def list_lookups(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    namespace: NamespaceOption = None,
    reason: Annotated[
        str | None, text_option("--reason", help="Only misses for this reason; guard: of all guards.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the last lookups: what was asked, and why it was a hit or a miss.

    With the score that decided, the one it needed to reach, and the nearest stored question.
    """
    with existing_store(path, database) as store:
        found = explain_log(store, store.lookups.recent(limit, namespace, reason))
    nothing = "No lookups yet." if namespace is None and reason is None else "No such lookups."
    print_list(found, as_json, tables.lookup_values, tables.lookups, nothing)


def audit(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how often hits by meaning are wrong, by the answers that were compared, and the last of these."""
    with existing_store(path, database) as store:
        settings = settings_of(path, database)
        rate = settings.audit_rate or ASSUMED_RATE
        found = report_of(store, settings.max_error_rate, rate, namespace)
        rows = store.judgements.recent(limit, namespace)
    if as_json:
        print_json({"namespaces": list(map(asdict, found)), "judgements": list(map(asdict, rows))})
    elif rows:
        out.print(tables.audit_estimates(found, settings.max_error_rate), tables.audit_judgements(rows))
    else:
        out.print("No audits yet; open the cache with audit_rate above 0 to have some.")


def show(
    entry_id: IdArgument,
    path: PathOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one entry: question, answer, documents behind it."""
    with existing_store(path, database) as store:
        found = entry_of(store, entry_id)
    if as_json:
        print_json({**tables.summary(found), "answer": found.answer.text})
    else:
        out.print(tables.entry(found))


def clear(
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    yes: YesOption = False,
) -> None:
    """Delete all entries, lookups and examples, or those of one namespace and its users."""
    with existing_store(path, database) as store:
        where = "" if namespace is None else f"of namespace {namespace!r} "
        what = f"all entries, lookups and examples {where}in {store.url}"
        if not yes and not confirmed(f"Delete {what}?"):
            raise typer.Exit(1)
        with err.status("Deleting"):
            count = store.clear(namespace)
    out.print(f"Deleted {count:,} {'entry' if count == 1 else 'entries'}.")


def doctor(
    path: PathOption = None,
    database: DatabaseOption = None,
    chroma: Annotated[str | None, text_option("--chroma", help="URL of a Chroma server.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check database, vector index and embedding model; exit code 1 if something needs you."""
    with sentences():
        settings = settings_of(path, database, chroma)
        require_cache(settings)
        with err.status("Opening the database") as status:
            findings = examine(settings, status.update)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        out.print(tables.findings(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


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
        fail("SECONDS are for --watch")
    with existing_store(path, database) as store:
        known = read_prices(prices or settings_of(path, database).prices)
        if watch:
            with suppress(KeyboardInterrupt):
                (_print_lines if as_json else _show)(store, known, seconds or EVERY)
            return
        with err.status("Counting"):
            found = _read(store, known)
        if as_json:
            print_json(_plain(*found, known))
        else:
            out.print(tables.totals(tables.figures(*found, known), f"Ibidem cache {store.url}"))


def _show(store: Store, known: Prices, seconds: float) -> None:
    first: dict[str, int | str] | None = None
    with Live(console=out, auto_refresh=False) as live:
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
    """Yield the figures at intervals, for ever; an unavailable database may come back."""
    while True:
        try:
            yield _read(store, known)
        except StorageError as error:
            yield error
        pause(seconds)


def _read(store: Store, known: Prices) -> tuple[Totals, Savings]:
    sums = store.statistics
    return store.totals(), savings(sums.lookups(LogFilter()), known, sums.opinions(LogFilter()))


def _plain(counted: Totals, saved: Savings, known: Prices) -> dict[str, Any]:
    told = {**asdict(saved), "currency": known.currency, "prices_as_of": known.as_of or None}
    return {**asdict(counted), "tokens_saved": saved.tokens, "hit_rate": counted.hit_rate, "saved": told}


# In the order in which `--help` lists them; commands of plugins follow in each panel.
app.command("stats", rich_help_panel=DAILY)(show_stats)
app.command("log", rich_help_panel=DAILY)(list_lookups)
app.command("why", rich_help_panel=DAILY)(explain)
app.command("ls", rich_help_panel=ENTRIES)(list_entries)
app.command("show", rich_help_panel=ENTRIES)(show)
app.command("warm", rich_help_panel=ENTRIES)(warm_cache)
app.command("feedback", rich_help_panel=ENTRIES)(give_feedback)
app.command("correct", rich_help_panel=ENTRIES)(correct)
app.command("invalidate", rich_help_panel=ENTRIES)(invalidate)
app.command("audit", rich_help_panel=MEASURING)(audit)
app.add_typer(examples_app, rich_help_panel=LEARNING)
app.command("doctor", rich_help_panel=OPERATING)(doctor)
app.command("rebuild", rich_help_panel=OPERATING)(rebuild_index)
app.command("copy", rich_help_panel=OPERATING)(copy_cache)
app.command("clear", rich_help_panel=OPERATING)(clear)


def run() -> None:
    """Run the command that the process was started with."""
    accept_any_encoding()
    app()
