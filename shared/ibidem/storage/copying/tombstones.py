"""Invalidations hold in a copy: what one refuses is not copied, and deleted if it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from ibidem.lifecycle.invalidation import Criteria, Tombstone
from ibidem.storage import tables
from ibidem.storage.deletion import delete_refused
from ibidem.types import Source

_c = tables.invalidations.c
_entries, _documents, _tags = tables.entries.name, tables.entry_documents.name, tables.entry_tags.name


class KnownTombstones:
    """The tombstones of the database that is copied to; its own, and those of the other."""

    def __init__(self) -> None:
        self._last = self._applied = 0
        self._all: list[tuple[int, Tombstone]] = []
        self._by_key: dict[str, list[Tombstone]] = {}

    def read(self, db: sa.Connection) -> None:
        """Read what is new, first in a transaction: what is invalidated later waits for its end."""
        rows = db.execute(sa.select(_c.id, _c.at, _c.criteria).where(_c.id > self._last).order_by(_c.id))
        for number, at, criteria in rows:
            tombstone, self._last = Tombstone(at, Criteria.read(criteria)), number
            self._all.append((number, tombstone))
            for key in tombstone.names():
                self._by_key.setdefault(key, []).append(tombstone)

    def refuse(self, entry: Mapping[str, Any], unit: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> bool:
        """Return whether an answer was asked for before something that it rests on was invalidated."""
        if not self._all:
            return False
        documents = [
            Source(row["document_id"], row["digest"], bool(row["supports"]), row["source"])
            for row in _of(_documents, unit)
        ]
        names = {f"document {name}" for one in documents for name in (one.id, one.source)}
        keys: Iterable[str] = {"", f"entry {entry['id']}", *names}
        found = [one for key in keys for one in self._by_key.get(key, ()) if one.at >= entry["requested"]]
        tags = [row["tag"] for row in _of(_tags, unit)] if found else []
        return any(
            one.criteria is not None
            and one.criteria.matches(
                namespace=entry["namespace"],
                model=entry["model"],
                entry=entry["id"],
                created=entry["created"],
                tags=tags,
                documents=documents,
            )
            for one in found
        )

    def delete_refused(self, db: sa.Connection) -> int:
        """Delete what is refused by the tombstones that were read since the last time; return how many."""
        new = [(number, one) for number, one in self._all if number > self._applied]
        self._applied = self._last
        return sum(delete_refused(db, one.criteria, one.at) for _, one in new if one.criteria is not None)


def _of(name: str, unit: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (row for key, row in unit.items() if key[0] == name)
