"""The embedders whose vectors a database holds: registered, kept while they are used, forgotten afterwards.

Every store notes, in its own transaction, that each registered embedder is to make a vector of the question.
So no entry is overlooked, whichever process stores it and whichever model that process uses.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from hashlib import blake2b

import sqlalchemy as sa

from ibidem.errors import StorageUnavailable
from ibidem.request import digest
from ibidem.storage import tables
from ibidem.storage.database import insert_into, reading, writing
from ibidem.storage.notes import note
from ibidem.storage.rows import LACKING

USED_SECONDS = 86_400.0  # so long the vectors of an embedder are kept after somebody used it
FEW = 5_000  # entries that are gone through in one transaction
BATCH = 500  # vectors deleted in one transaction, so that nobody waits long for the lock
FORGOTTEN = "forgotten:"  # begins the keys that say whose collections of the index are to be deleted

_embedders, _vectors, _dead = tables.embedders, tables.entry_vectors, tables.dead_points


def number_of(fingerprint: str) -> int:
    """The id of an embedder: 63 bits, the same in every database."""
    return int.from_bytes(blake2b(fingerprint.encode(), digest_size=8).digest(), "big") >> 1


def demand(db: sa.Connection, embedder: int, first: str = "") -> None:
    """Note of the entries whose ids begin so that this embedder is to make the vectors that there are not."""
    entries = tables.entries.c
    number, lacking = sa.literal(embedder, sa.BigInteger), sa.literal(LACKING, sa.String)
    wanted = sa.select(entries.id, number, lacking).where(entries.semantic, entries.id.startswith(first))
    insert = insert_into(db.dialect.name)(_vectors)
    demanded = insert.from_select(["entry_id", "embedder", "indexed_in"], wanted)
    db.execute(demanded.on_conflict_do_nothing())


class Embedders:
    """The table `embedders`. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def use(self, fingerprint: str, seconds: float = USED_SECONDS) -> None:
        """Keep the vectors of this embedder for so long at least; at first of all, have them made."""
        c, until = _embedders.c, time.time() + seconds
        mine = c.id == number_of(fingerprint)
        with reading(self._engine) as db:
            kept = db.scalar(sa.select(c.until).where(mine, c.state == "used"))
        if kept is None:
            self._register(fingerprint, until)
        elif kept < until - seconds / 2:
            change = sa.update(_embedders).where(mine, c.until < until)
            with contextlib.suppress(StorageUnavailable), writing(self._engine) as db:  # then the next time
                db.execute(change.values(until=until))

    def _register(self, fingerprint: str, until: float) -> None:
        """Have it make a vector of every entry; the stores that begin now see to theirs themselves."""
        c, number = _embedders.c, number_of(fingerprint)
        row = {"id": number, "fingerprint": fingerprint, "until": until, "state": "new"}
        insert = insert_into(self._engine.dialect.name)(_embedders).values(row)
        changes = {"until": until, "state": "new"}
        with writing(self._engine) as db:
            _exclude_stores(db)
            db.execute(insert.on_conflict_do_update(index_elements=[c.id], set_=changes))
            db.execute(sa.delete(tables.meta).where(tables.meta.c.key == FORGOTTEN + digest(fingerprint)))
        with reading(self._engine) as db:
            some = sa.select(tables.entries.c.id).limit(FEW + 1).subquery()
            few = (db.scalar(sa.select(sa.func.count()).select_from(some)) or 0) <= FEW
        for first in ("",) if few else "0123456789abcdef":  # in parts, so that stores do not wait long
            with writing(self._engine) as db:
                demand(db, number, first)
        with writing(self._engine) as db:
            db.execute(sa.update(_embedders).where(c.id == number, c.state == "new").values(state="used"))

    def known(self) -> dict[str, float]:
        """The fingerprints of all that are registered, and until when they are kept."""
        c = _embedders.c
        with reading(self._engine) as db:
            return {row.fingerprint: row.until for row in db.execute(sa.select(c.fingerprint, c.until))}

    def forget(self, keep: Collection[str]) -> bool:
        """Delete a batch of the vectors of embedders that nobody uses; returns whether there may be more.

        Args:
            keep: Fingerprints of those that are kept in any case.
        """
        if not (number := self._retire(keep)):
            return False
        mine = sa.select(_vectors.c.entry_id).where(_vectors.c.embedder == number).limit(BATCH)
        with writing(self._engine) as db:
            fingerprint = db.scalar(
                sa.select(_embedders.c.fingerprint).where(
                    _embedders.c.id == number, _embedders.c.state == "retired"
                )
            )
            if fingerprint is None:  # it is used again
                return True
            found = list(db.scalars(mine))
            of = _vectors.c.embedder == number
            db.execute(sa.delete(_vectors).where(of, _vectors.c.entry_id.in_(found)))
            if len(found) == BATCH:
                return True
            db.execute(sa.delete(_dead).where(_dead.c.embedder == number))
            db.execute(sa.delete(tables.model_files).where(tables.model_files.c.model == digest(fingerprint)))
            db.execute(sa.delete(_embedders).where(_embedders.c.id == number))
            note(db, FORGOTTEN + digest(fingerprint), "")
        return True

    def _retire(self, keep: Collection[str]) -> int | None:
        """One that is not needed any more; nobody makes vectors for it from now on."""
        c = _embedders.c
        unused = c.fingerprint.not_in(list(keep)) & ((c.state == "retired") | (c.until < time.time()))
        with reading(self._engine) as db:
            row = db.execute(sa.select(c.id, c.state).where(unused).limit(1)).first()
        if row is None or row.state == "retired":
            return None if row is None else int(row.id)
        with writing(self._engine) as db:
            _exclude_stores(db)
            change = sa.update(_embedders).where(c.id == row.id, c.until < time.time())
            done = db.execute(change.values(state="retired"))
        return int(row.id) if done.rowcount else None


def _exclude_stores(db: sa.Connection) -> None:
    """Wait until no store is under way, and let none begin before this transaction ends."""
    if db.dialect.name == "postgresql":  # a store has read the table in its transaction, and so locked it
        db.exec_driver_sql(f"LOCK TABLE {_embedders.name} IN ACCESS EXCLUSIVE MODE")
    # In SQLite whoever writes is alone.
