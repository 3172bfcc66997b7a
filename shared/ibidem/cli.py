"""The command line: look into a cache, empty it, check it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ibidem import __version__, cli_audit, cli_fit
from ibidem import cli_tables as tables
from ibidem.backend import open_records
from ibidem.cli_rebuild import rebuild_index
from ibidem.cli_replay import replay_workload
from ibidem.cli_tables import plain
from ibidem.doctor import examine
from ibidem.errors import IbidemError
from ibidem.records import Records
from ibidem.settings import Settings, read_settings

app = typer.Typer(
    name="ibidem",
    help="Look into an Ibidem answer cache. Settings not given are read from IBIDEM_* variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

PathOption = Annotated[
    Path | None,
    typer.Option("--path", help="Directory of the cache; default: IBIDEM_PATH, else your own."),
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", help="SQLAlchemy URL, if the cache is on a database server.")
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", help="Only this namespace.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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


@app.command()
def stats(path: PathOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Count entries, hits, misses and examples; the lookups are the last 100,000."""
    with _records(path, database) as records:
        totals = records.totals()
    if as_json:
        _print_json({**asdict(totals), "hit_rate": totals.hit_rate})
    else:
        out.print(tables.totals(totals, title=f"Ibidem cache {records.url}"))


@app.command("ls")
def list_entries(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest entries."""
    with _records(path, database) as records:
        entries = records.newest(limit, namespace)
    if as_json:
        _print_json([tables.summary(entry) for entry in entries])
    else:
        out.print(tables.entries(entries) if entries else "No entries.")


@app.command("log")
def list_lookups(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List the last lookups: what was asked, and why it was a hit or a miss."""
    with _records(path, database) as records:
        rows = records.lookups.recent(limit)
    if as_json:
        _print_json([asdict(row) for row in rows])
    else:
        out.print(tables.lookups(rows) if rows else "No lookups yet.")


@app.command("examples")
def list_examples(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest examples: questions that a model or the cache answered."""
    with _records(path, database) as records:
        examples = records.examples.recent(limit, namespace)
    if as_json:
        _print_json([asdict(example) for example in examples])
    else:
        out.print(tables.examples(examples) if examples else "No examples yet.")


@app.command()
def audit(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how often hits by meaning are wrong, by the answers that were compared, and the last of these."""
    with _records(path, database) as records:
        settings = _settings(path, database)
        found = cli_audit.report(records, settings, namespace)
        rows = records.judgements.recent(limit, namespace)
    if as_json:
        _print_json({"namespaces": list(map(asdict, found)), "judgements": list(map(asdict, rows))})
    elif rows:
        out.print(cli_audit.estimates(found, settings.max_wrong), cli_audit.judgements(rows))
    else:
        out.print("No audits yet; open the cache with audit_rate above 0 to have some.")


@app.command()
def show(
    entry_id: Annotated[str, typer.Argument(metavar="ID", help="An id, or the beginning of one.")],
    path: PathOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one entry: question, answer, documents behind it."""
    with _records(path, database) as records:
        found = records.find(entry_id)
    if len(found) != 1:
        ids = ", ".join(entry.id[:12] for entry in found)
        _fail(f"no entry begins with {entry_id!r}" if not found else f"several entries begin so: {ids}")
    if as_json:
        _print_json({**tables.summary(found[0]), "answer": found[0].answer.text})
    else:
        out.print(tables.entry(found[0]))


@app.command()
def clear(
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete all entries, lookups and examples, or those of one namespace."""
    with _records(path, database) as records:
        where = "" if namespace is None else f"of namespace {namespace!r} "
        what = f"all entries, lookups and examples {where}in {records.url}"
        if not yes and not typer.confirm(f"Delete {what}?"):
            raise typer.Exit(1)
        count = records.clear(namespace)
    out.print(f"Deleted {count:,} {'entry' if count == 1 else 'entries'}.")


@app.command()
def doctor(
    path: PathOption = None,
    database: DatabaseOption = None,
    chroma: Annotated[str | None, typer.Option("--chroma", help="URL of a Chroma server.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check database, vector index and embedding model; exit code 1 if something needs you."""
    with _errors():
        settings = _settings(path, database, chroma)
        _require_cache(settings)
        findings = examine(settings)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        out.print(tables.findings(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def fit(
    labels: cli_fit.Labels = None,
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: Annotated[
        str, typer.Option("--namespace", help="Whose audits begin with what a file of labels proves.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would bring.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Return to the score that is shipped.")] = False,
) -> None:
    """Fit the score to labels, what audits judged or a file; used if it is better, when a cache is opened."""
    with _records(path, database) as records:
        place = cli_fit.place_of(records, _settings(path, database))
        said = cli_fit.dropped(place) if drop else cli_fit.fitted(place, labels, namespace, dry_run=dry_run)
    out.print(*said, sep="\n")


app.command("rebuild")(rebuild_index)
app.command("replay")(replay_workload)


def main() -> None:
    """Entry point of the `ibidem` command."""
    app()


def _settings(path: Path | None, database: str | None, chroma: str | None = None) -> Settings:
    return read_settings(path=path, database=database, chroma=chroma)


@contextmanager
def _errors() -> Iterator[None]:
    """Print Ibidem's errors as one sentence instead of a traceback."""
    try:
        yield
    except IbidemError as error:
        _fail(str(error))


@contextmanager
def _records(path: Path | None, database: str | None) -> Iterator[Records]:
    """The truth of an existing cache; looking at one never creates it."""
    with _errors():
        settings = _settings(path, database)
        _require_cache(settings)
        records = open_records(settings)
        try:
            yield records
        finally:
            records.close()


def _require_cache(settings: Settings) -> None:
    if settings.database is None and not settings.database_file.is_file():
        _fail(f"there is no cache in {settings.path}; give its directory with --path or IBIDEM_PATH")


def _fail(message: str) -> None:
    err.print(f"[red]error:[/] {plain(message)}", soft_wrap=True)
    raise typer.Exit(2)


def _print_json(value: Any) -> None:
    out.print_json(json.dumps(value), indent=2)
