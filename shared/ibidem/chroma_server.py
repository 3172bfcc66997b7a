"""The vector index on a Chroma server."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from ibidem.chroma import ChromaIndex, unavailable
from ibidem.entry import Vector
from ibidem.errors import IndexUnavailable

HTTP_SECONDS = 5.0  # Chroma's client has no timeout of its own
RETRY_SECONDS = 0.05


class ServerIndex(ChromaIndex):
    """A collection on a Chroma server."""

    def search(self, vector: Vector, k: int) -> list[str]:
        """Ids of the k nearest; asked twice, as a server may fail while it writes the first vectors."""
        try:
            return super().search(vector, k)
        except IndexUnavailable:
            time.sleep(RETRY_SECONDS)
            return super().search(vector, k)

    def close(self, *, sound: bool = True) -> None:
        """Release the client, and its connections, which Chroma's own `close` leaves open."""
        super().close(sound=sound)
        for session in _sessions(self._client):
            session.close()


def _sessions(client: Any) -> list[Any]:
    """The httpx clients inside Chroma's, which have no public name."""
    parts = (client, getattr(client, "_admin_client", None))
    found = (getattr(getattr(part, "_server", None), "_session", None) for part in parts)
    return [session for session in found if session is not None]


def open_server(url: str, name: str) -> ServerIndex:
    """Open a collection on a Chroma server.

    Raises:
        IndexUnavailable: The server cannot be reached.
    """
    parts = urlsplit(url)
    with unavailable(f"be reached at {url}"):
        import chromadb
        import httpx
        from chromadb.config import Settings

        # Chroma's client asks the server while it is made, and would wait for ever.
        httpx.get(f"{url.rstrip('/')}/api/v2/heartbeat", timeout=HTTP_SECONDS).raise_for_status()
        port = parts.port or (443 if parts.scheme == "https" else 80)
        settings = Settings(anonymized_telemetry=False)
        client = chromadb.HttpClient(
            host=str(parts.hostname), port=port, ssl=parts.scheme == "https", settings=settings
        )
        for session in _sessions(client):
            session.timeout = httpx.Timeout(HTTP_SECONDS)
        return ServerIndex(client, name)
