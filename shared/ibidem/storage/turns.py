"""The table `answered_turns`: conversations whose last answer came from the cache, and the stored wording.

A turn that was answered from the cache counts as the stored one: what follows is compared with what followed
that. Only digests are kept. Rows go with their entry, with their namespace, and as the oldest of many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem.storage import tables
from ibidem.storage.engine import fetch_all, insert_into, writing
from ibidem.storage.logs import delete_oldest
from ibidem.types import History, conversation_digests, digest, is_in_namespace

TURN_LIMIT = 100_000  # rows kept; the oldest are deleted
WAITING = 10_000  # turns that wait to be written; beyond it the oldest are dropped
BATCH = 500  # rows written in one transaction, and conversations looked for in one query

_turns = tables.answered_turns


@dataclass(frozen=True, slots=True)
class AnsweredTurn:
    """A row of the table.

    `conversation` is the digest of a conversation up to an answer that was repeated, as it was said, with its
    namespace; `stored` that with the stored question, as in `History`; `entry_id` the entry. Whatever else a
    prompt holds does not matter: the steps of a program may all have the turns in theirs.
    """

    conversation: str
    stored: str
    entry_id: str
    namespace: str


def said_in(namespace: str, conversation: str) -> str:
    """Return the digest of a conversation in a namespace: no two tenants share one."""
    return digest(namespace, conversation)


class TurnTable:
    """The answered turns of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, rows: Sequence[AnsweredTurn]) -> None:
        """Insert rows; a conversation that is known gets the new values."""
        insert = insert_into(self._engine.dialect.name)(_turns)
        changed = {name: insert.excluded[name] for name in ("stored", "entry_id", "namespace")}
        upsert = insert.on_conflict_do_update(index_elements=[_turns.c.conversation], set_=changed)
        names = AnsweredTurn.__slots__
        with writing(self._engine) as db:
            # In one order everywhere, against deadlocks on PostgreSQL.
            ordered = sorted(rows, key=lambda row: row.conversation)
            db.execute(upsert, [{name: getattr(row, name) for name in names} for row in ordered])
            delete_oldest(db, _turns, TURN_LIMIT)

    def find(self, conversations: Sequence[str]) -> dict[str, str]:
        """Return the stored wording of those of these conversations that are known."""
        c = _turns.c
        query = sa.select(c.conversation, c.stored).where(c.conversation.in_(conversations), c.stored != "")
        return dict(map(tuple, fetch_all(self._engine, query)))


class TurnQueue:
    """Answered turns that wait to be written, and are known until then. Thread-safe.

    Args:
        table: Where they are written.
    """

    def __init__(self, table: TurnTable) -> None:
        self._table = table
        self._lock = ForkSafeLock()
        self._waiting: BoundedDict[str, AnsweredTurn] = BoundedDict(WAITING)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, row: AnsweredTurn) -> None:
        """Append a turn."""
        with self._lock:
            self._waiting.put(row.conversation, row)

    def stored_wording(self, namespace: str, history: History) -> str:
        """Return the digest of a conversation in which answered turns have the stored wording.

        The last answered turn decides, as its row holds those before it.
        """
        said = conversation_digests(history.turns)
        keys = [said_in(namespace, conversation) for conversation in said[-BATCH:]]
        with self._lock:
            known = {key: row.stored for key in keys if (row := self._waiting.get(key)) is not None}
        known = self._table.find(keys) | known
        for before, key in enumerate(reversed(keys)):
            if key in known:
                later = history.turns[len(history.turns) - before :]
                return [known[key], *conversation_digests(later, known[key])][-1]
        return history.conversation

    def write(self) -> bool:
        """Write a batch and return whether there is more; raises `StorageError`, and keeps it for later."""
        with self._lock:
            rows = list(self._waiting)[:BATCH]
        if rows:
            self._table.add(rows)
        with self._lock:
            for row in rows:
                if self._waiting.get(row.conversation) is row:
                    self._waiting.pop(row.conversation)
            return len(self._waiting) > 0

    def drop(self, namespace: str | None = None) -> None:
        """Drop the turns of a namespace, or all of them."""
        with self._lock:
            for row in self._waiting:
                if namespace is None or is_in_namespace(row.namespace, namespace):
                    self._waiting.pop(row.conversation)
