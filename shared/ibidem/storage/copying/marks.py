"""In each of two databases: which cache it is being copied to or from, or was moved to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from ibidem.storage.meta import MOVED_KEY, set_meta
from ibidem.storage.store import Store


@dataclass(frozen=True, slots=True)
class Mark:
    """Which cache a database is copied to or from, or was moved to; of a `namespace` alone, or all of it."""

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


def read_moves(store: Store) -> list[Mark]:
    """Return where the cache, or namespaces of it, were moved to."""
    with suppress(ValueError, TypeError):
        return [Mark(**one) for one in json.loads(store.meta.get(MOVED_KEY) or "[]")]
    return []


def write_moves(db: sa.Connection, moves: Sequence[Mark]) -> None:
    """Replace what `read_moves` returns, in the caller's transaction."""
    set_meta(db, MOVED_KEY, json.dumps([asdict(one) for one in moves]))
