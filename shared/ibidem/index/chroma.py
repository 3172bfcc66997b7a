"""The vector index in Chroma, embedded in this process; the only module that imports chromadb.

Settings follow measurements: ef_search cannot be raised later in a process and 200 gives recall 1.0 for
neighbours worth serving; the default sync_threshold of 1000 makes single writes slower by half than 100;
documents or payload in Chroma cost up to 70 ms per write, so there are none.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibidem._util.concurrency import keep_alive_after_fork
from ibidem._util.faults import log
from ibidem.errors import IndexUnavailable
from ibidem.index.chroma_lock import DirectoryLock, delete_orphaned_folders, loads
from ibidem.types import Vector

HNSW = {"space": "cosine", "ef_search": 200, "sync_threshold": 100}


@contextlib.contextmanager
def unavailable(doing: str) -> Iterator[None]:
    """Raise `IndexUnavailable` for all that Chroma raises: its errors, ValueError, bare Exception.

    A panic in its native part is a BaseException, which nobody up the stack would catch.
    """
    try:
        yield
    except (IndexUnavailable, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise IndexUnavailable(f"the vector index could not {doing}: {error}") from error


class EmbeddedIndex:
    """A collection of Chroma in this process, on a directory that no other process uses meanwhile.

    Two files beside the directory tell the next process how this one ended: `index.in-use` exists while the
    index is open, `index.writing` while its files change.
    """

    def __init__(self, client: Any, name: str, lock: DirectoryLock, directory: Path) -> None:
        self._client, self._name, self._directory = client, name, directory
        self._lock, self._markers = lock, lock.markers
        self._replayed = False  # the first search also writes: it takes what was stored last into the graph
        with unavailable("open its collection"):
            self._collection = self._open()
        self._markers.claim()
        # Chroma's destructor waits for threads that exist only in the parent.
        keep_alive_after_fork(self, client)

    def _open(self, generation: str | None = None) -> Any:
        """Get or make the collection; `get_or_create` keeps an existing collection's metadata."""
        metadata = {"generation": generation or uuid.uuid4().hex}
        return self._client.get_or_create_collection(
            self._name, configuration={"hnsw": HNSW}, metadata=metadata, embedding_function=None
        )

    @contextlib.contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        """Change the files; an interruption leaves a mark."""
        with self._markers.while_writing(), unavailable(doing):
            yield

    @property
    def name(self) -> str:
        """Name of the collection."""
        return self._name

    @property
    def generation(self) -> str:
        """Identifier of this content."""
        return str((self._collection.metadata or {}).get("generation", self._collection.id))

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace vectors; a few milliseconds per call plus half a millisecond each."""
        with self._writing("store vectors"):
            self._collection.upsert(ids=list(ids), embeddings=vectors)

    def search(self, vector: Vector, k: int) -> list[str]:
        """Return the ids of the k nearest; about a millisecond at 100,000 vectors."""
        if self._replayed:
            return self._search(vector, k)
        with self._markers.while_writing():
            found = self._search(vector, k)
        self._replayed = True
        return found

    def _search(self, vector: Vector, k: int) -> list[str]:
        with unavailable("search"):
            found = self._collection.query(query_embeddings=[vector], n_results=k, include=[])
            return list(found["ids"][0])

    def delete(self, ids: Sequence[str]) -> None:
        """Mark vectors as deleted, one to two milliseconds each; only a new collection is free of them."""
        with self._writing("delete vectors"):
            self._collection.delete(ids=list(ids))

    def present(self, ids: Sequence[str]) -> set[str]:
        """Return those of these ids that the collection holds."""
        if not ids:
            return set()
        with unavailable("look for vectors"):
            return set(self._collection.get(ids=list(ids), include=[])["ids"])

    def ids(self, offset: int, limit: int) -> list[str]:
        """Return a page of all ids."""
        with unavailable("list its vectors"):
            return list(self._collection.get(offset=offset, limit=limit, include=[])["ids"])

    def sibling(self, name: str, generation: str | None = None) -> EmbeddedIndex:
        """Open another collection in the same directory with the same client."""
        other = copy.copy(self)
        other._name, other._replayed = name, False
        with self._writing("open its collection"):
            other._collection = other._open(generation)
        keep_alive_after_fork(other)
        return other

    def drop(self, name: str) -> None:
        """Delete another collection with its folder, if it exists."""
        with self._writing("delete a collection"):
            if name in {collection.name for collection in self._client.list_collections()}:
                self._client.delete_collection(name)
            delete_orphaned_folders(self._directory)

    def count(self) -> int:
        """Return the number of vectors; a scan, 6 ms at 100,000."""
        with unavailable("count"):
            return int(self._collection.count())

    def reset(self) -> None:
        """Delete the collection with its folder and create a new one."""
        with self._writing("reset"):
            self._client.delete_collection(self._name)
            self._collection = self._open()
            delete_orphaned_folders(self._directory)

    def close(self, *, clean: bool = True) -> None:
        """Release the directory; the last index of this process leaves it to others."""
        closed = False
        try:
            with unavailable("close"):
                self._client.close()
            closed = clean
        finally:
            with self._lock.opening:
                self._lock.clients -= 1
            self._lock.release(clean=closed)


def open_embedded(directory: Path, name: str, lock: DirectoryLock | None = None) -> EmbeddedIndex:
    """Open Chroma on a directory that no other process may use: two processes would corrupt it.

    A process killed while it wrote may leave a torn index, which loads and searches and crashes the process
    at a later write: it is deleted. After another unclean end the files are first tried in a process of
    their own. The caller fills a new index from the database. A `lock` of the directory is taken over.

    Raises:
        IndexUnavailable: Another process has it open, or it cannot be opened.
    """
    lock = lock or DirectoryLock.acquire(directory)
    try:
        with lock.opening:
            open_ = _open_another if lock.clients else _open_first
            index = open_(directory, name, lock)
            lock.clients += 1
            return index
    except OSError as error:  # the place of our files is taken by something else
        lock.release(clean=not lock.dirty)
        raise IndexUnavailable(f"the vector index could not be opened in {directory}: {error}") from error
    except BaseException:
        lock.release(clean=not lock.dirty)
        raise


def _open_another(directory: Path, name: str, lock: DirectoryLock) -> EmbeddedIndex:
    """Open another collection, while this process uses the directory."""
    with lock.markers.while_writing():
        return EmbeddedIndex(_embedded_client(directory), name, lock, directory)


def _open_first(directory: Path, name: str, lock: DirectoryLock) -> EmbeddedIndex:
    """Open the first collection of this process, after a check for corruption."""
    markers, interrupted = lock.markers, lock.markers.writing.exists()
    database = directory / "chroma.sqlite3"
    if database.exists() and not database.is_file():  # Chroma and its check would wait for a pipe
        _warn_rebuilt(directory, "cannot be opened")
        _set_aside(directory)
    if directory.exists() and (interrupted or (lock.dirty and not loads(directory, name))):
        _warn_rebuilt(directory, "may be damaged")
        shutil.rmtree(directory)
    markers.writing.unlink(missing_ok=True)
    delete_orphaned_folders(directory)
    try:
        index = EmbeddedIndex(_embedded_client(directory), name, lock, directory)
    except IndexUnavailable:
        _warn_rebuilt(directory, "cannot be opened")
        _set_aside(directory)
        index = EmbeddedIndex(_embedded_client(directory), name, lock, directory)
    lock.dirty = False
    return index


def _warn_rebuilt(directory: Path, why: str) -> None:
    about = {"event.name": "ibidem.index.rebuilt", "ibidem.path": str(directory)}
    log.warning("The vector index in %s %s; it is rebuilt from the database", directory, why, extra=about)


def _embedded_client(directory: Path) -> Any:
    with unavailable(f"be opened in {directory}"):
        import chromadb
        from chromadb.config import Settings

        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = Settings(anonymized_telemetry=False)
        return chromadb.PersistentClient(path=str(directory), settings=settings)


def _set_aside(directory: Path) -> None:
    """Rename a directory that Chroma refuses; it may hold something that is not ours."""
    if directory.exists():
        directory.rename(f"{directory}.damaged-{uuid.uuid4().hex[:8]}")
