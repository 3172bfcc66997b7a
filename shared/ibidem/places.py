"""Where a cache is: its directory, its database, its vector index."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

from ibidem.errors import StorageError
from ibidem.faults import log
from ibidem.index.catalogue import Catalogue, base_of
from ibidem.index.chroma import open_embedded, open_small
from ibidem.index.chroma_server import open_server
from ibidem.index.vector_index import IndexOpener, VectorIndex
from ibidem.request import digest
from ibidem.settings import Settings
from ibidem.storage.database import set_aside_if_damaged, sqlite_url
from ibidem.storage.records import Records


def open_records(settings: Settings) -> Records:
    """The truth for these settings; makes the directory and the database file, private to the user.

    What exists keeps its mode: who shares a cache with a group says so by making it. A file in its place that
    is no database is moved aside, never deleted, and a new one begun.

    Raises:
        StorageError: The place cannot be used.
    """
    if settings.database is None:
        _make_private(settings.path)
        file = settings.database_file
        try:
            if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe is read from for ever
                raise StorageError(f"cannot use {file}: it is no file; move it away, or use another path")
            aside = set_aside_if_damaged(file) if file.exists() else None
            if not file.exists():
                file.touch(mode=0o600)  # SQLite would let others read it; its log files take the mode of this
        except OSError as error:
            raise StorageError(f"cannot use {file}: {error.strerror}") from error
        if aside:
            about = {"event.name": "ibidem.database.replaced", "ibidem.path": str(file)}
            log.warning(
                "%s is not a database; it was kept as %s and a new one begun", file, aside, extra=about
            )
    return Records(settings.database or sqlite_url(settings.database_file))


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}-{threading.get_ident()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot write to {path}: {error.strerror}; choose another place with path= or IBIDEM_PATH"
        ) from error


def catalogue_of(settings: Settings, fingerprint: str, records: Records) -> Catalogue:
    """Where the truth keeps which collection holds the vectors of the embedder with this fingerprint.

    On a server each truth has collections of its own: what one deletes, another may still hold.
    """
    place = "" if settings.chroma is None else records.meta_once("place", uuid.uuid4().hex)
    return Catalogue(records, base_of(digest(fingerprint), place), place)


def index_opener(settings: Settings, catalogue: Catalogue) -> IndexOpener:
    """How to open the vector index: the collection in use when it is opened."""

    def open_index(small: bool = False) -> VectorIndex:
        name = catalogue.read().name
        if settings.chroma is not None:
            return open_server(settings.chroma, name, settings.headers)
        if small:
            return open_small(settings.path / "chroma", catalogue.base)
        return open_embedded(settings.path / "chroma", name)

    return open_index
