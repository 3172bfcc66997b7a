"""The places that are open in this process. Caches of one place and embedder share a backend."""

from __future__ import annotations

import atexit

from ibidem.backend import Backend
from ibidem.embedding.embedder import fingerprint_of, resolve_embedder
from ibidem.locks import ForkSafeLock
from ibidem.request import digest
from ibidem.settings import Settings

_open: dict[tuple[str, ...], Backend] = {}
_open_lock = ForkSafeLock()


def acquire(settings: Settings) -> Backend:
    """The backend for these settings; the same one for the same place and embedder."""
    embedder = None if settings.embedder is None else resolve_embedder(settings.embedder)
    place = settings.chroma or str(settings.path / "chroma")
    sent = digest(*(text for pair in sorted(settings.headers.items()) for text in pair))
    which = "" if embedder is None else fingerprint_of(embedder)
    key = (settings.database or str(settings.path), place, sent, which)
    with _open_lock:
        backend = _open.get(key)
        if backend is not None:
            backend.check_process()
            backend.housekeeping.tighten(settings.bounds, settings.sliding)
            backend.forgetting.tighten(settings.example_ttl)
        else:
            backend = _open[key] = Backend(key, settings, embedder)
        backend.users += 1
        return backend


def release(backend: Backend) -> None:
    """Close the backend when nobody uses it any more."""
    with _open_lock:
        backend.users -= 1
        if backend.users > 0:
            return
        _open.pop(backend.key, None)
    backend.close()


def backends() -> list[Backend]:
    """Those that are open now; does not wait for one that is being opened, as for a server that is down."""
    return list(_open.values())


@atexit.register
def _close_all() -> None:
    """Index and log what is left when the program ends without closing its caches."""
    with _open_lock:
        left = list(_open.values())
        _open.clear()
    for backend in left:
        backend.close()
