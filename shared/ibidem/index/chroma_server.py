"""A collection on a Chroma server or in Chroma Cloud, by its HTTP API.

Chroma's own client is not used for it: it has no timeouts, hides what the server says of its limits, and
takes half a second and 25 MB to load.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from ibidem._util.concurrency import DEADLINE_SECONDS, MIN_SECONDS, charge, deadline, remaining
from ibidem._util.urls import redact_url
from ibidem.errors import IndexBusy, IndexRefused, IndexUnavailable
from ibidem.index.chroma import HNSW, unavailable
from ibidem.types import Vector

if TYPE_CHECKING:
    import httpx

HTTP_SECONDS = 5.0  # the timeout of one request
# Quotas of Chroma Cloud for one collection. The `max_batch_size` that it tells is larger than what it accepts
# (https://github.com/chroma-core/chroma/issues/5453), so it is not asked.
AT_ONCE = 10  # requests under way
PAGE = 300  # records in one request
NOT_FOUND, TOO_MANY, UNAVAILABLE = 404, 429, 503
WAIT_SECONDS = 0.1  # after a 429 or 503 without a `Retry-After`; doubles from refusal to refusal
WAIT_MAX_SECONDS = 5.0
# Pauses after which a search that failed in the server is repeated: it may fail while the first vectors are
# written, for which a loaded server takes the longer one.
SEARCH_AGAIN = (0.05, 0.2)
_draw = random.SystemRandom()  # the module's own generator is the program's, which may have seeded it


class ChromaApi:
    """The API of a Chroma server, within its limits and the time of the caller. Thread-safe.

    Args:
        url: Of the server.
        headers: Sent with each request; they appear in no error, although a proxy may quote them.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        import httpx

        parts = urlsplit(url)
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        self.address, self.place = redact_url(address), ""
        # A proxy may quote only the second half of "Bearer abc".
        self._secrets = sorted(
            {part for text in headers.values() for part in (text, text.split()[-1])}, key=len
        )
        self._client = httpx.Client(
            base_url=f"{address}/api/v2",
            headers={**headers, "Content-Type": "application/json"},
            verify=parts.scheme == "https",  # else reading certificates would take 20 ms for nothing
            limits=httpx.Limits(max_keepalive_connections=AT_ONCE, keepalive_expiry=40.0),
        )
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._refusals, self._resume_at = 0, 0.0  # in a row, and until when nothing is asked
        self._refusal = IndexUnavailable()
        self._using = threading.Condition()
        self._users, self._closed = 0, False

    def enter(self, tenant: str | None, database: str | None) -> None:
        """Choose the database: the given one, else the one that the key belongs to, as Chroma's clients do.

        Raises:
            IndexUnavailable: There is no such database, or the key belongs to several.
        """
        # The first lookup waits for this request.
        doing = f"be reached at {self.address}"
        known = self.ask(doing, "GET", "/auth/identity", seconds=DEADLINE_SECONDS)
        tenant = tenant or _named(known.get("tenant")) or "default_tenant"
        databases = sorted(filter(None, map(_named, known.get("databases") or ())))
        if database is None and len(databases) > 1:
            several = ", ".join(databases)
            raise IndexRefused(f"the key belongs to several databases ({several}): name one, chroma_database")
        database = database or (databases[0] if databases else "default_database")
        self.place = f"database {database} of tenant {tenant}"
        path = f"/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}"
        self.ask(f"open {self.place} (chroma_database, chroma_tenant)", "GET", path)
        self.collections = f"{path}/collections"

    def ask(
        self,
        doing: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        again: Sequence[float] = (),
        absent: bool = False,
        seconds: float = HTTP_SECONDS,
    ) -> Any:
        """Make a request, return its answer; again if the server has too many, while the caller may wait.

        Args:
            doing: What for, as in "the index could not ...".
            method: Of HTTP.
            path: Below the API's.
            body: Sent as JSON; may hold arrays.
            again: Pauses after which it is repeated when it failed in the server.
            absent: Whether what is asked for may not exist; then None is returned.
            seconds: Its timeout.

        Raises:
            IndexBusy: The server has too many requests.
            IndexRefused: It refuses this one.
            IndexUnavailable: It cannot be reached, or fails.
        """
        until, pauses = time.monotonic() + remaining(), iter(again)
        with self._in_use(), charge():
            while True:
                with self._turn(until):
                    response = self._send(doing, method, path, body, min(seconds, until - time.monotonic()))
                if response.is_success:
                    self._refusals = 0
                    return self._content(doing, response)
                if absent and response.status_code == NOT_FOUND:
                    return None
                failure = self._failure(doing, response)
                if response.status_code in (TOO_MANY, UNAVAILABLE):
                    self._hold_back(response, failure)  # the next turn waits for it
                    continue
                pause = next(pauses, None) if response.status_code >= 500 else None
                if pause is None or time.monotonic() + pause > until:
                    raise failure
                self._sleep(pause)

    @contextlib.contextmanager
    def _turn(self, until: float) -> Iterator[None]:
        """Wait for a turn to ask; raise what the server said last if that takes longer than `until`."""
        if not self._slots.acquire(timeout=max(0.0, until - time.monotonic())):
            raise IndexBusy(f"{AT_ONCE} requests to the vector index are under way")
        try:
            pause = self._resume_at - time.monotonic()
            if pause > 0.0:
                if time.monotonic() + pause > until:
                    raise type(self._refusal)(str(self._refusal))
                self._sleep(pause)
            yield
        finally:
            self._slots.release()

    def _sleep(self, seconds: float) -> None:
        """Wait, but no longer than the connections are open."""
        with self._using:
            if self._using.wait_for(lambda: self._closed, seconds):
                raise IndexUnavailable("the vector index was closed")

    def _hold_back(self, response: httpx.Response, failure: IndexUnavailable) -> None:
        """Ask nothing for as long as the server says, else for longer from refusal to refusal."""
        now = time.monotonic()
        if now >= self._resume_at:  # not for each of those that were under way together
            self._refusals += 1
        doubled = WAIT_SECONDS * 2.0 ** min(self._refusals - 1, 30)
        wait = _retry_after(response.headers.get("Retry-After"))
        if wait is None:
            wait = min(doubled, WAIT_MAX_SECONDS) * _draw.uniform(0.75, 1.25)
        self._refusal = failure
        self._resume_at = max(self._resume_at, now + wait)

    def _send(
        self, doing: str, method: str, path: str, body: Mapping[str, Any] | None, seconds: float
    ) -> httpx.Response:
        try:
            content = None if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
            return self._client.request(method, path, content=content, timeout=max(MIN_SECONDS, seconds))
        except Exception as error:  # httpx's and orjson's
            raise self._unavailable(doing, str(error) or type(error).__name__) from None

    def _content(self, doing: str, response: httpx.Response) -> Any:
        try:
            return orjson.loads(response.content)
        except ValueError:  # a page of a proxy
            raise self._unavailable(doing, f"this is no answer of Chroma: {response.text[:200]}") from None

    def _failure(self, doing: str, response: httpx.Response) -> IndexUnavailable:
        try:
            said = str(orjson.loads(response.content)["message"])
        except (ValueError, LookupError, TypeError):
            said = response.text[:1000]
        said = f"{response.status_code} {response.reason_phrase}: {said}"
        if response.status_code in (401, 403):
            said += " (the key is CHROMA_API_KEY for Chroma Cloud, else one of chroma_headers)"
        if response.status_code == TOO_MANY:
            return self._unavailable(doing, said, IndexBusy)
        return self._unavailable(doing, said, IndexRefused if response.is_client_error else IndexUnavailable)

    def _unavailable(
        self, doing: str, why: str, kind: type[IndexUnavailable] = IndexUnavailable
    ) -> IndexUnavailable:
        message = f"the vector index could not {doing}: {why}"
        for secret in reversed(self._secrets):
            message = message.replace(secret, "***")
        return kind(message)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the connections open: another thread would read the response of a closed one."""
        with self._using:
            if self._closed:
                raise IndexUnavailable("the vector index was closed")
            self._users += 1
        try:
            yield
        finally:
            with self._using:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                self._client.close()

    def close(self) -> None:
        """Close the connections, after the last request under way."""
        with self._using:
            if self._closed:
                return
            self._closed = True
            self._using.notify_all()
            if self._users:
                return
        self._client.close()


class ServerIndex:
    """A collection on a server; open it with `open_server`.

    Args:
        api: The server's.
        name: Of the collection.
        generation: Identifier of its content, if it is new.
    """

    def __init__(self, api: ChromaApi, name: str, generation: str | None = None) -> None:
        self._api, self.name = api, name
        self._open(generation)

    def _open(self, generation: str | None = None) -> None:
        """Get or make the collection, which keeps its metadata. Of HNSW's, Chroma Cloud takes the space."""
        body = {
            "name": self.name,
            "get_or_create": True,
            "metadata": {"generation": generation or uuid.uuid4().hex},
            "configuration": {"hnsw": HNSW},
        }
        with unavailable("open its collection"):  # another answer than Chroma's is an error, too
            made = self._api.ask("open its collection", "POST", self._api.collections, body)
            self._path = f"{self._api.collections}/{made['id']}"
            self.generation = str((made.get("metadata") or {}).get("generation", made["id"]))

    @property
    def place(self) -> str:
        """Database and tenant, for people."""
        return self._api.place

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace vectors."""
        rows = np.ascontiguousarray(vectors, np.float32)
        for first in range(0, len(ids), PAGE):
            body = {"ids": list(ids[first : first + PAGE]), "embeddings": rows[first : first + PAGE]}
            self._api.ask("store vectors", "POST", f"{self._path}/upsert", body)

    def search(self, vector: Vector, k: int) -> list[str]:
        """Return the ids of the k nearest; about two milliseconds."""
        rows = np.ascontiguousarray(vector, np.float32)[None]
        body = {"query_embeddings": rows, "n_results": k, "include": ()}
        with unavailable("search"):
            found = self._api.ask("search", "POST", f"{self._path}/query", body, again=SEARCH_AGAIN)
            return [str(id_) for id_ in found["ids"][0]]

    def delete(self, ids: Sequence[str]) -> None:
        """Mark vectors as deleted; only a new collection is free of them."""
        for first in range(0, len(ids), PAGE):
            body = {"ids": list(ids[first : first + PAGE])}
            self._api.ask("delete vectors", "POST", f"{self._path}/delete", body)

    def present(self, ids: Sequence[str]) -> set[str]:
        """Return those of these ids that the collection holds."""
        held: set[str] = set()
        for first in range(0, len(ids), PAGE):
            body = {"ids": list(ids[first : first + PAGE]), "include": ()}
            with unavailable("look for vectors"):
                held.update(self._api.ask("look for vectors", "POST", f"{self._path}/get", body)["ids"])
        return held

    def ids(self, offset: int, limit: int) -> list[str]:
        """Return a page of all ids, at most 300 of them."""
        body = {"offset": offset, "limit": min(limit, PAGE), "include": ()}
        with unavailable("list its vectors"):
            return list(self._api.ask("list its vectors", "POST", f"{self._path}/get", body)["ids"])

    def sibling(self, name: str, generation: str | None = None) -> ServerIndex:
        """Open another collection with the same connections."""
        return ServerIndex(self._api, name, generation)

    def drop(self, name: str) -> None:
        """Delete another collection, if it exists."""
        path = f"{self._api.collections}/{quote(name, safe='')}"
        self._api.ask("delete a collection", "DELETE", path, absent=True)

    def count(self) -> int:
        """Return the number of vectors."""
        with unavailable("count"):
            return int(self._api.ask("count", "GET", f"{self._path}/count"))

    def reset(self) -> None:
        """Delete the collection and create a new one."""
        self.drop(self.name)
        self._open()

    def close(self, *, clean: bool = True) -> None:
        """Release the connections, also those of the siblings."""
        self._api.close()


def open_server(
    url: str,
    name: str,
    headers: Mapping[str, str] | None = None,
    tenant: str | None = None,
    database: str | None = None,
) -> ServerIndex:
    """Open a collection on a Chroma server.

    Args:
        url: Of the server.
        name: Of the collection.
        headers: Sent with each request.
        tenant: By default that of the key, or Chroma's default one.
        database: By default that of the key, or Chroma's default one.

    Raises:
        IndexUnavailable: The server cannot be reached, or refuses.
    """
    try:
        api = ChromaApi(url, headers or {})
    except Exception as error:  # a file of certificates that cannot be read
        raise IndexUnavailable(
            f"the vector index could not be opened: {type(error).__name__}: {error}"
        ) from None
    try:
        with deadline(HTTP_SECONDS), unavailable("be opened"):  # then the caller tries again
            api.enter(tenant, database)
            return ServerIndex(api, name)
    except BaseException:
        api.close()
        raise


def _named(name: Any) -> str | None:
    """Return a name that a server gave; None for `*`, which stands for any."""
    return name if isinstance(name, str) and name not in ("", "*") else None


def _retry_after(header: str | None) -> float | None:
    """Return the seconds of a `Retry-After`, which may be a date; None if there is none, or it is invalid."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
