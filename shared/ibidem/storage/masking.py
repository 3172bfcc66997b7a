"""Logs written before `redact` was set, or by a process without it: redacted where they lie."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from ibidem.storage import tables
from ibidem.storage.engine import reading, writing
from ibidem.storage.meta import note, noted

BATCH = 200  # rows read, and written if they change, at a time
_TEXTS = {
    tables.judgements: ("asked", "stored"),
    tables.lookups: ("question",),
    tables.examples: ("question", "answer"),
}


class Masking:
    """Redacts the logs of one database. Raises `StorageError` when it fails.

    Args:
        engine: The database.
        redact: Returns a text as it may be kept; None if it cannot say. Then the row stays as it is, and is
            looked at again when a cache is opened next: an error of `redact` must cost no example.
        name: Names `redact`: what was seen by one of this name is not looked at again. "" names none.
    """

    def __init__(self, engine: sa.Engine, redact: Callable[[str], str | None], name: str) -> None:
        self._engine, self._redact, self._name = engine, redact, name
        self._seen: dict[str, int] = {}  # ids, by table
        self._failed: set[str] = set()  # tables with a row that could not be redacted

    def step(self) -> bool:
        """Look through one batch; returns whether there may be more."""
        return any(self._step(table, names) for table, names in _TEXTS.items())

    def _step(self, table: sa.Table, names: tuple[str, ...]) -> bool:
        key = f"redacted:{self._name}:{table.name}"
        with reading(self._engine) as db:
            last = self._seen.get(key, int(noted(db, key) or 0) if self._name else 0)
            columns = [table.c.id, *(table.c[name] for name in names)]
            query = sa.select(*columns).where(table.c.id > last).order_by(table.c.id).limit(BATCH)
            rows = db.execute(query).all()
        if not rows:
            return False
        changed, done = [], last
        for row in rows:
            shown = {name: self._redact(text) for name, text in zip(names, row[1:], strict=True) if text}
            if None in shown.values():
                self._failed.add(key)
            elif any(shown[name] != getattr(row, name) for name in shown):
                changed.append((row.id, shown))
            done = done if key in self._failed else row.id
        forget = {"vector": None, "embedder": ""} if table is tables.examples else {}  # of the text in clear
        with writing(self._engine) as db:
            for number, shown in changed:
                db.execute(sa.update(table).where(table.c.id == number).values({**shown, **forget}))
            if self._name and done > last:
                note(db, key, str(done))
        self._seen[key] = rows[-1].id
        return True
