"""The command line: look into a cache, empty it, check it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ibidem import __version__
from ibidem.cli import audit as cli_audit
from ibidem.cli import tables
from ibidem.cli.common import (
    DatabaseOption,
    IdArgument,
    JsonOption,
    LimitOption,
    NamespaceOption,
    PathOption,
    YesOption,
    confirmed,
    entry_of,
    existing_store,
    out,
    print_json,
    print_list,
    require_cache,
    sentences,
    settings_of,
    text_option,
)
from ibidem.cli.console import Commands, accept_any_encoding
from ibidem.cli.examples import examples_app
from ibidem.cli.invalidate import give_feedback, invalidate
from ibidem.cli.rebuild import rebuild_index
from ibidem.cli.stats import show_stats
from ibidem.doctor import examine

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


@app.command("ls")
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


@app.command("log")
def list_lookups(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List the last lookups: what was asked, and why it was a hit or a miss."""
    with existing_store(path, database) as store:
        rows = store.lookups.recent(limit)
    print_list(rows, as_json, asdict, tables.lookups, "No lookups yet.")


@app.command()
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
        found = cli_audit.report(store, settings, namespace)
        rows = store.judgements.recent(limit, namespace)
    if as_json:
        print_json({"namespaces": list(map(asdict, found)), "judgements": list(map(asdict, rows))})
    elif rows:
        out.print(cli_audit.estimates(found, settings.max_error_rate), cli_audit.judgements(rows))
    else:
        out.print("No audits yet; open the cache with audit_rate above 0 to have some.")


@app.command()
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


@app.command()
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
        count = store.clear(namespace)
    out.print(f"Deleted {count:,} {'entry' if count == 1 else 'entries'}.")


@app.command()
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
        findings = examine(settings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        out.print(tables.findings(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


app.add_typer(examples_app)
app.command("stats")(show_stats)
app.command("rebuild")(rebuild_index)
app.command("invalidate")(invalidate)
app.command("feedback")(give_feedback)


def main() -> None:
    """Entry point of the `ibidem` command."""
    accept_any_encoding()
    app()
