"""Is the cache sound? What `ibidem doctor` looks at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ibidem.backend import index_opener, open_records
from ibidem.embedding import Embedder, resolve_embedder
from ibidem.errors import IbidemError, IndexInUse, IndexUnavailable, StorageError
from ibidem.records import Records
from ibidem.settings import Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check: `ok`, or a `text` that says what is wrong and what to do."""

    check: str
    ok: bool
    text: str


def examine(settings: Settings) -> list[Finding]:
    """Check place, database, model and index of a cache; opens it as `ibidem.open` would.

    Raises:
        StorageError: The database cannot be opened at all.
    """
    records = open_records(settings)
    try:
        findings = [*_leftovers(settings), _database(records)]
        if not findings[-1].ok:
            return findings
        try:
            embedder = resolve_embedder(settings.embedder)
        except IbidemError as error:
            return [*findings, Finding("embedding model", False, str(error))]
        findings.append(Finding("embedding model", True, embedder.fingerprint))
        return [*findings, *_index(settings, records, embedder)]
    finally:
        records.close()


def _leftovers(settings: Settings) -> Iterator[Finding]:
    if settings.database is None:
        yield Finding("directory", True, str(settings.path))
        for kept in sorted(settings.path.glob("*.damaged-*")):
            text = f"{kept} was damaged and moved aside; delete it when you have looked at it"
            yield Finding("leftovers", False, text)


def _database(records: Records) -> Finding:
    started = time.perf_counter()
    try:
        schema = records.meta("schema_version")
        took = _ms(started)
        problems = records.check()
    except StorageError as error:
        problems = [str(error)]
    if problems:
        text = f"{problems[0]}; restore {records.url} from a backup, or move it away to begin a new one"
        return Finding("database", False, text)
    text = f"{records.totals().entries:,} entries in {records.url}, schema {schema}, answers in {took}"
    return Finding("database", True, text)


def _ms(started: float) -> str:
    return f"{1000 * (time.perf_counter() - started):.1f} ms"


def _index(settings: Settings, records: Records, embedder: Embedder) -> Iterator[Finding]:
    try:
        index = index_opener(settings, embedder)()
    except IndexInUse:
        yield Finding("vector index", True, f"in use by {_holder(settings)}, which looks after it")
        return
    except IndexUnavailable as error:
        yield Finding("vector index", False, str(error))
        return
    try:
        started = time.perf_counter()
        held = index.count()
        if settings.chroma is not None:
            yield Finding("Chroma server", True, f"answers in {_ms(started)}")
        wanted = records.count_indexed(index.generation)
        waiting = len(records.unindexed(index.generation, embedder.fingerprint, limit=100_000))
    finally:
        index.close()
    if held < wanted:
        text = f"holds {held:,} of {wanted:,} vectors; it is rebuilt from the database at the next use"
        yield Finding("vector index", False, text)
    else:
        yield Finding("vector index", True, f"{held:,} vectors, {waiting:,} waiting to be indexed")


def _holder(settings: Settings) -> str:
    """The process that has the embedded index open, as it noted itself."""
    with suppress(OSError):
        if noted := settings.path.joinpath("index.in-use").read_text().strip():
            return f"another process (pid {noted})"
    return "another process"
