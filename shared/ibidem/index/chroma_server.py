"""The vector index on a Chroma server, directly or behind a proxy that asks for a header."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ibidem.entry import Vector
from ibidem.errors import IndexUnavailable
from ibidem.index.chroma import ChromaIndex, unavailable
from ibidem.patience import HURRIED_SECONDS, allowance, waiting
from ibidem.urls import shown_url

HTTP_SECONDS = 5.0  # Chroma's client has no timeout of its own
RETRY_SECONDS = (0.05, 0.2)  # a loaded server takes the longer one to write the first vectors
# What Chroma's client asks while it is made, when it cannot be given a timeout yet.
_ASKED_FIRST = (
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
        secrets: Texts that must not be told in an error, whatever a proxy answers.
    """

    def __init__(self, client: Any, name: str, secrets: Sequence[str] = ()) -> None:
        self._secrets = secrets
        self._using = threading.Condition()
        self._users, self._left = 0, False
        with self._in_use():
            super().__init__(client, name)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """The connections stay open meanwhile: another thread would get what is read from a closed one."""
        with self._using:
            if self._left:
                raise IndexUnavailable("the vector index was closed")
            self._users += 1
        try:
            with _silent_about(self._secrets), waiting():
                yield
        finally:
            with self._using:
                self._users -= 1
                last = self._left and not self._users
            if last:
                self._release()

    def search(self, vector: Vector, k: int) -> list[str]:
        """Ids of the k nearest; asked again, as a server may fail while it writes the first vectors."""
        for pause in RETRY_SECONDS:
            try:
                return self._search(vector, k)
            except IndexUnavailable as error:
                if _is_away(error) or allowance() < pause:
                    raise
            time.sleep(pause)
        return self._search(vector, k)

    def _search(self, vector: Vector, k: int) -> list[str]:
        with self._in_use():
            return super().search(vector, k)

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or move vectors."""
        with self._in_use():
            super().upsert(ids, vectors)

    def count(self) -> int:
        """How many vectors it holds."""
        with self._in_use():
            return super().count()

    def reset(self) -> None:
        """Delete the collection and make a new one."""
        with self._in_use():
            super().reset()

    def close(self, *, sound: bool = True) -> None:
        """Release the client, once nobody uses it any more."""
        with self._using:
            if self._left:
                return
            self._left = True
            if self._users:
                return
        self._release()

    def _release(self) -> None:
        """Close the connections too, which Chroma's own `close` leaves open."""
        super().close()
        for session in _sessions(self._client):
            session.close()


def _sessions(client: Any) -> list[Any]:
    """The httpx clients inside Chroma's, which have no public name."""
    parts = (client, getattr(client, "_admin_client", None))
    found = (getattr(getattr(part, "_server", None), "_session", None) for part in parts)
    return [session for session in found if session is not None]


def _is_away(error: IndexUnavailable) -> bool:
    import httpx

    return isinstance(error.__cause__, (httpx.TransportError, OSError))


@contextlib.contextmanager
def _silent_about(secrets: Sequence[str]) -> Iterator[None]:
    """Proxies quote headers in their error pages, and these would stand in our log."""
    try:
        yield
    except IndexUnavailable as error:
        told = str(error)
        for secret in secrets:
            told = told.replace(secret, "***")
        if told == str(error):
            raise
        raise IndexUnavailable(told) from None


def _limit(request: Any) -> None:
    """No request lasts longer than its thread may wait; httpx calls this before each."""
    seconds = min(HTTP_SECONDS, allowance())
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)


def open_server(url: str, name: str, headers: Mapping[str, str] | None = None) -> ServerIndex:
    """Open a collection on a Chroma server.

    Raises:
        IndexUnavailable: The server cannot be reached, or refuses.
    """
    parts = urlsplit(url)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    sent = dict(headers or {})
    # Of "Bearer abc" a proxy may quote the second half only.
    secrets = sorted({part for value in sent.values() for part in (value, value.split()[-1])}, key=len)[::-1]
    with _silent_about(secrets), unavailable(f"be reached at {shown_url(address)}"):
        import chromadb
        import httpx
        from chromadb.config import Settings

        with httpx.Client(headers=sent, timeout=HURRIED_SECONDS) as first:  # the first lookup waits for this
            for path in _ASKED_FIRST:
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
