"""`ibidem rebuild`: fill a new vector index from the database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from ibidem.backend import catalogue_of, index_opener, open_records
from ibidem.cli_tables import plain
from ibidem.doctor_index import holder
from ibidem.embedding import CheckedEmbedder, resolve_embedder
from ibidem.errors import IbidemError, IndexInUse, InvalidInput
from ibidem.faults import Faults
from ibidem.settings import Settings, read_settings
from ibidem.vectors import Vectors

out = Console()
err = Console(stderr=True)

PathOption = Annotated[
    Path | None, typer.Option("--path", help="Directory of the cache; default: IBIDEM_PATH, else your own.")
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", help="SQLAlchemy URL, if the cache is on a database server.")
]
ChromaOption = Annotated[str | None, typer.Option("--chroma", help="URL of a Chroma server.")]
EmbedderOption = Annotated[
    str | None,
    typer.Option("--embedder", help="Name or directory of the embedding model, if not the default."),
]


def rebuild_index(
    path: PathOption = None,
    database: DatabaseOption = None,
    chroma: ChromaOption = None,
    embedder: EmbedderOption = None,
) -> None:
    """Fill a new vector index from the database and put it in place of the old one."""
    try:
        settings = read_settings(path=path, database=database, chroma=chroma, embedder=embedder)
        if settings.database is None and not settings.database_file.is_file():
            raise InvalidInput(f"there is no cache in {settings.path}; give its directory with --path")
        count = _rebuilt(settings)
    except IndexInUse:
        whose = f"another process{holder(settings)} is using the index in {settings.path}"
        _fail(f"{whose}; stop it and try again")
    except IbidemError as error:
        _fail(str(error))
    else:
        out.print(f"The index holds {count:,} {'vector' if count == 1 else 'vectors'}.")


def _rebuilt(settings: Settings) -> int:
    records, faults = open_records(settings), Faults()
    try:
        embedder = CheckedEmbedder(resolve_embedder(settings.embedder), records.meta_once)
        catalogue = catalogue_of(settings, embedder, records)
        vectors = Vectors(
            records,
            embedder,
            index_opener(settings, catalogue),
            faults,
            catalogue,
            alone=settings.chroma is None,
        )
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as progress:
            task = progress.add_task("Indexing", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            return _run(vectors, show)
    finally:
        records.close()


def _run(vectors: Vectors, show: Callable[[int, int], None]) -> int:
    try:
        return vectors.rebuild(show)
    finally:
        vectors.close()


def _fail(message: str) -> None:
    err.print(f"[red]error:[/] {plain(message)}", soft_wrap=True)
    raise typer.Exit(2)
