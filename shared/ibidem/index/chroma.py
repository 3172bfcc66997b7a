"""The vector index in Chroma, embedded or on a server; the only module that imports chromadb.

Settings follow measurements: ef_search cannot be raised later in a process and 200 gives recall 1.0 for
neighbours worth serving; the default sync_threshold of 1000 makes single writes slower by half than 100;
documents or payload in Chroma cost up to 70 ms per write, so there are none.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ibidem._util.concurrency import DEADLINE_SECONDS, charge, keep_alive_after_fork, remaining
from ibidem._util.faults import log
from ibidem._util.urls import redact_url
from ibidem.errors import IndexUnavailable
from ibidem.index.chroma_lock import DirectoryLock, delete_orphaned_folders, loads
from ibidem.types import Vector

_HNSW = {"space": "cosine", "ef_search": 200, "sync_threshold": 100}


@contextlib.contextmanager
def unavailable(doing: str) -> Iterator[None]:
    """Raise `IndexUnavailable` for all that Chroma raises: its errors, httpx's, ValueError, bare Exception.

    A panic in its native part is a BaseException, which nobody up the stack would catch.
    """
    try:
        yield
    except (IndexUnavailable, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise IndexUnavailable(f"the vector index could not {doing}: {error}") from error


class ChromaIndex:
    """A collection in Chroma; open it with `open_embedded` or `open_server`."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self._name = client, name
        with unavailable("open its collection"):
            self._collection = self._open()

    def _open(self, generation: str | None = None) -> Any:
        """Get or make the collection; `get_or_create` keeps an existing collection's metadata."""
        metadata = {"generation": generation or uuid.uuid4().hex}
        return self._client.get_or_create_collection(
            self._name, configuration={"hnsw": _HNSW}, metadata=metadata, embedding_function=None
        )

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
        with unavailable("store vectors"):
            self._collection.upsert(ids=list(ids), embeddings=vectors)

    def search(self, vector: Vector, k: int) -> list[str]:
        """Return the ids of the k nearest; about a millisecond at 100,000 vectors."""
        with unavailable("search"):
            found = self._collection.query(query_embeddings=[vector], n_results=k, include=[])
            return list(found["ids"][0])

    def delete(self, ids: Sequence[str]) -> None:
        """Mark vectors as deleted, one to two milliseconds each; only a new collection is free of them."""
        with unavailable("delete vectors"):
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

    def sibling(self, name: str, generation: str | None = None) -> ChromaIndex:
        """Open another collection with the same client."""
        other = copy.copy(self)
        other._name = name
        with unavailable("open its collection"):
            other._collection = other._open(generation)
        return other

    def drop(self, name: str) -> None:
        """Delete another collection, if it exists."""
        with unavailable("delete a collection"):
            if name in {collection.name for collection in self._client.list_collections()}:
                self._client.delete_collection(name)

    def count(self) -> int:
        """Return the number of vectors; a scan, 6 ms at 100,000."""
        with unavailable("count"):
            return int(self._collection.count())

    def reset(self) -> None:
        """Delete the collection and create a new one."""
        with unavailable("reset"):
            self._client.delete_collection(self._name)
            self._collection = self._open()

    def close(self, *, clean: bool = True) -> None:
        """Release the client; a server needs no check for corruption."""
        with unavailable("close"):
            self._client.close()


class EmbeddedIndex(ChromaIndex):
    """Chroma in this process, on a directory that no other process uses meanwhile.

    Two files beside the directory tell the next process how this one ended: `index.in-use` exists while the
    index is open, `index.writing` while its files change.
    """

    def __init__(self, client: Any, name: str, lock: DirectoryLock, directory: Path) -> None:
        self._lock, self._markers, self._directory = lock, lock.markers, directory
        self._replayed = False  # the first search also writes: it takes what was stored last into the graph
        super().__init__(client, name)
        self._markers.claim()
        # Chroma's destructor waits for threads that exist only in the parent.
        keep_alive_after_fork(self, client)

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace vectors; an interruption leaves a mark."""
        with self._markers.while_writing():
            super().upsert(ids, vectors)

    def search(self, vector: Vector, k: int) -> list[str]:
        """Return the ids of the k nearest."""
        if self._replayed:
            return super().search(vector, k)
        with self._markers.while_writing():
            found = super().search(vector, k)
        self._replayed = True
        return found

    def delete(self, ids: Sequence[str]) -> None:
        """Mark vectors as deleted; an interruption leaves a mark."""
        with self._markers.while_writing():
            super().delete(ids)

    def sibling(self, name: str, generation: str | None = None) -> EmbeddedIndex:
        """Open another collection in the same directory."""
        with self._markers.while_writing():
            other = super().sibling(name, generation)
        assert isinstance(other, EmbeddedIndex)  # noqa: S101 (for the type checker)
        other._replayed = False
        keep_alive_after_fork(other)
        return other

    def drop(self, name: str) -> None:
        """Delete another collection with its folder."""
        with self._markers.while_writing():
            super().drop(name)
            delete_orphaned_folders(self._directory)

    def reset(self) -> None:
        """Delete the collection with its folder and create a new one."""
        with self._markers.while_writing():
            super().reset()
            delete_orphaned_folders(self._directory)

    def close(self, *, clean: bool = True) -> None:
        """Release the directory; the last index of this process leaves it to others."""
        closed = False
        try:
            super().close(clean=clean)
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


HTTP_SECONDS = 5.0  # Chroma's client has no timeout of its own
RETRY_SECONDS = (0.05, 0.2)  # a loaded server takes the longer one to write the first vectors
# The requests of Chroma's client in its constructor, when it cannot be given a timeout yet.
_FIRST_REQUESTS = (
    "heartbeat",
    "auth/identity",
    "tenants/default_tenant",
    "tenants/default_tenant/databases/default_database",
)


class ServerIndex(ChromaIndex):
    """A collection on a Chroma server.

    Args:
        client: Chroma's client.
        name: The collection.
        secrets: Texts to remove from error messages, since a proxy may quote headers.
    """

    def __init__(self, client: Any, name: str, secrets: Sequence[str] = ()) -> None:
        self._secrets = secrets
        self._using = threading.Condition()
        self._users, self._closed = 0, False
        with self._in_use():
            super().__init__(client, name)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the connections open: another thread would read the response of a closed one."""
        with self._using:
            if self._closed:
                raise IndexUnavailable("the vector index was closed")
            self._users += 1
        try:
            with _redacted_errors(self._secrets), charge():
                yield
        finally:
            with self._using:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                self._release()

    def search(self, vector: Vector, k: int) -> list[str]:
        """Return the ids of the k nearest; retried, as a server may fail during its first writes."""
        for pause in RETRY_SECONDS:
            try:
                return self._search(vector, k)
            except IndexUnavailable as error:
                if _is_unreachable(error) or remaining() < pause:
                    raise
            time.sleep(pause)
        return self._search(vector, k)

    def _search(self, vector: Vector, k: int) -> list[str]:
        with self._in_use():
            return super().search(vector, k)

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace vectors."""
        with self._in_use():
            super().upsert(ids, vectors)

    def count(self) -> int:
        """Return the number of vectors."""
        with self._in_use():
            return super().count()

    def reset(self) -> None:
        """Delete the collection and create a new one."""
        with self._in_use():
            super().reset()

    def close(self, *, clean: bool = True) -> None:
        """Release the client, after the last request under way."""
        with self._using:
            if self._closed:
                return
            self._closed = True
            if self._users:
                return
        self._release()

    def _release(self) -> None:
        """Also close the connections, which Chroma's own `close` leaves open."""
        super().close()
        for session in _sessions(self._client):
            session.close()


def _sessions(client: Any) -> list[Any]:
    """Return the httpx clients inside Chroma's client, which have no public name."""
    parts = (client, getattr(client, "_admin_client", None))
    found = (getattr(getattr(part, "_server", None), "_session", None) for part in parts)
    return [session for session in found if session is not None]


def _is_unreachable(error: IndexUnavailable) -> bool:
    import httpx

    return isinstance(error.__cause__, (httpx.TransportError, OSError))


@contextlib.contextmanager
def _redacted_errors(secrets: Sequence[str]) -> Iterator[None]:
    """Remove secrets from error messages, which are logged: a proxy may quote headers."""
    try:
        yield
    except IndexUnavailable as error:
        message = str(error)
        for secret in secrets:
            message = message.replace(secret, "***")
        if message == str(error):
            raise
        raise IndexUnavailable(message) from None


def _limit(request: Any) -> None:
    """Limit a request to the time that its thread may wait; httpx calls this before each."""
    seconds = min(HTTP_SECONDS, remaining())
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)


def open_server(url: str, name: str, headers: Mapping[str, str] | None = None) -> ServerIndex:
    """Open a collection on a Chroma server.

    Raises:
        IndexUnavailable: The server cannot be reached, or refuses.
    """
    parts = urlsplit(url)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    sent = dict(headers or {})
    # A proxy may quote only the second half of "Bearer abc".
    secrets = sorted({part for value in sent.values() for part in (value, value.split()[-1])}, key=len)[::-1]
    with _redacted_errors(secrets), unavailable(f"be reached at {redact_url(address)}"):
        import chromadb
        import httpx
        from chromadb.config import Settings

        with httpx.Client(headers=sent, timeout=DEADLINE_SECONDS) as first:  # the first lookup waits for this
            for path in _FIRST_REQUESTS:
                first.get(f"{address}/api/v2/{path}").raise_for_status()
        client = chromadb.HttpClient(
            host=address,
            port=parts.port or (443 if parts.scheme == "https" else 80),
            ssl=parts.scheme == "https",
            headers=sent,
            settings=Settings(anonymized_telemetry=False),
        )
        for session in _sessions(client):
            session.event_hooks = {"request": [_limit]}
        return ServerIndex(client, name, secrets)
