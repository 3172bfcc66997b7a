"""In each of two databases: which cache it is being copied to or from, or was moved to."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass

from ibidem.storage.store import Store


@dataclass(frozen=True, slots=True)
class Mark:
    """In each of the two databases: which cache it is copied to or from."""

    cache: str
    place: str
    at: float
    namespace: str | None = None
    cut_over: bool = False

    def text(self) -> str:
        """Serialize."""
        return json.dumps(asdict(self))


def read_mark(store: Store, key: str) -> Mark | None:
    """Return the mark under this key of `meta`; None if there is none that can be read."""
    with suppress(ValueError, TypeError):
        return Mark(**json.loads(store.meta.get(key) or ""))
    return None
