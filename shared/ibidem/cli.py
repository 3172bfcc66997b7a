"""The command line: look into a cache, empty it, check it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ibidem import __version__
from ibidem.backend import open_records
from ibidem.doctor import examine
from ibidem.entry import Entry
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

NOT_KEPT = "(compared exactly; its text is not kept)"

PathOption = Annotated[
    Path | None,
    typer.Option("--path", help="Directory of the cache; default: IBIDEM_PATH, else your own."),
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", help="SQLAlchemy URL, if the cache is on a database server.")
]
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
    """Count entries, hits and misses; the lookups are the last 100,000."""
    with _records(path, database) as records:
        totals = records.totals()
    hits, misses = sum(totals.hits.values()), sum(totals.misses.values())
    rate = hits / (hits + misses) if hits + misses else None
    if as_json:
        _print_json({**asdict(totals), "hit_rate": rate})
        return
    table = Table("what", "count", title=f"Ibidem cache {records.url}")
    table.columns[1].justify = "right"
    table.add_row("entries", f"{totals.entries:,}")
    table.add_row("  compared by meaning", f"{totals.semantic_entries:,}")
    table.add_row("  waiting for the index", f"{totals.unindexed:,}")
    table.add_row("lookups", f"{hits + misses:,}")
    table.add_row("hit rate", "-" if rate is None else f"{rate:.1%}")
    for tier, count in sorted(totals.hits.items()):
        table.add_row(f"  hit: {tier}", f"{count:,}")
    for reason, count in sorted(totals.misses.items(), key=lambda item: -item[1]):
        table.add_row(f"  miss: {reason}", f"{count:,}")
    table.add_row("tokens saved", f"{totals.tokens_saved:,}")
    out.print(table)


@app.command("ls")
def list_entries(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Only this namespace.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest entries."""
    with _records(path, database) as records:
        entries = records.newest(limit, namespace)
    if as_json:
        _print_json([_summary(entry) for entry in entries])
        return
    table = Table("id", "age", "hits", "docs", "model", "question", box=SIMPLE_HEAD, pad_edge=False)
    for entry in entries:
        question = entry.question or NOT_KEPT
        cells = (entry.id[:8], _age(entry), str(entry.hits), str(len(entry.sources)), entry.answer.model)
        table.add_row(*map(_plain, (*cells, question)))
    out.print(table if entries else "No entries.")


@app.command("log")
def list_lookups(
    path: PathOption = None,
    database: DatabaseOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the last lookups: what was asked, and why it was a hit or a miss."""
    with _records(path, database) as records:
        rows = records.recent(limit)
    if as_json:
        _print_json([asdict(row) for row in rows])
        return
    table = Table("at", "outcome", "cosine", "ms", "nearest", "question", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for row in rows:
        cosine = "" if row.similarity is None else f"{row.similarity:.3f}"
        outcome = f"hit: {row.tier}" if row.tier else f"miss: {row.reason}"
        question = row.question or NOT_KEPT
        at, nearest = time.strftime("%m-%d %H:%M", time.localtime(row.at)), (row.entry_id or "")[:8]
        table.add_row(at, outcome, cosine, f"{row.seconds * 1000:.1f}", nearest, _plain(question))
    out.print(table if rows else "No lookups yet.")


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
    entry = found[0]
    if as_json:
        _print_json({**_summary(entry), "answer": entry.answer.text})
        return
    table = Table(show_header=False, box=None)
    for name, value in _summary(entry).items():
        if name != "documents":
            table.add_row(name, _plain(str(value)))
    for source in entry.sources:
        table.add_row("document", _plain(f"{source.id} ({'supports' if source.supports else 'retrieved'})"))
    table.add_row("answer", _plain(entry.answer.text))
    out.print(table)


@app.command()
def clear(
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Only this namespace.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete all entries, or those of one namespace."""
    with _records(path, database) as records:
        what = "all entries" if namespace is None else f"the entries of namespace {namespace!r}"
        if not yes and not typer.confirm(f"Delete {what} of {records.url}?"):
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
        table = Table("check", "state", "finding")
        for finding in findings:
            state = "[green]ok[/]" if finding.ok else "[red]problem[/]"
            table.add_row(finding.check, state, _plain(finding.text))
        out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


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
    err.print(f"[red]error:[/] {_plain(message)}", soft_wrap=True)
    raise typer.Exit(2)


def _summary(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "question": entry.question,
        "namespace": entry.namespace,
        "model": entry.answer.model,
        "created": _time(entry.created),
        "expires": None if entry.expires is None else _time(entry.expires),
        "hits": entry.hits,
        "semantic": entry.semantic,
        "tokens": entry.answer.tokens,
        "documents": [{"id": s.id, "supports": s.supports} for s in entry.sources],
    }


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _age(entry: Entry) -> str:
    minutes = max(0, int((time.time() - entry.created) / 60))
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} d"


def _plain(text: str) -> str:
    """Text from questions and answers, harmless to the terminal: no markup, no control characters."""
    printable = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return printable.replace("[", r"\[")


def _print_json(value: Any) -> None:
    out.print_json(json.dumps(value), indent=2)
