"""The store: one database, and a table object for each of its tables."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from ibidem.errors import NoCache, StorageError, StorageUnavailable
from ibidem.example import example_of
from ibidem.lifecycle.invalidation import Criteria, Invalidated
from ibidem.lifecycle.pinning import corrected
from ibidem.lifecycle.rules import UNBOUNDED, Bounds
from ibidem.storage import deletion
from ibidem.storage.deletion import Evictor, InvalidationTable
from ibidem.storage.engine import (
    breaker_of,
    cause_of,
    close_engine,
    open_engine,
    reading,
    safe_url,
    storage_error,
)
from ibidem.storage.entries import EntryTable
from ibidem.storage.examples import ExampleTable
from ibidem.storage.logs import JudgementTable, LogRedactor, LookupTable, feedback_row
from ibidem.storage.meta import ID_KEY, Identity, MetaTable, require_here
from ibidem.storage.migrations import is_cache, migrate
from ibidem.storage.pgvector import prepare
from ibidem.storage.pins import PinTable
from ibidem.storage.reviews import ReviewTable
from ibidem.storage.statistics import Statistics
from ibidem.storage.told import ToldTable
from ibidem.storage.turns import TurnTable
from ibidem.storage.vectors import EmbedderTable, ModelFilesTable, VectorTable
from ibidem.types import Answer, Entry

SHOWN = 20  # entries that the preview of an invalidation shows


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the database; lookups are those still in the log."""

    entries: int
    semantic_entries: int
    unindexed: int
    hits: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)
    examples: int = 0
    audits: int = 0
    audits_wrong: int = 0
    bytes: int = 0
    second_opinions: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Hits per lookup; None before the first."""
        hits, misses = sum(self.hits.values()), sum(self.misses.values())
        return hits / (hits + misses) if hits + misses else None


def no_cache(place: str) -> str:
    """Return what to say if there is no cache in a place that must have one."""
    return (
        f"there is no cache in {place}, and none is begun here (create=False); if it is the right place, "
        "open it once with create=True"
    )


class Store:
    """Access to one database.

    `id` is that of the cache: if the database becomes another one, every method raises `OtherCache`.

    Args:
        url: SQLAlchemy URL.
        create: Whether an empty database becomes a cache.
        pgvector: Whether PostgreSQL is to search the vectors itself, if it can. `pgvector_problem` says why
            it cannot, and who can help.

    Raises:
        NoCache: The database is empty, and `create` is False.
        StorageError: The database cannot be opened, or was made by a newer Ibidem. Every method raises it
            when the database fails.
    """

    def __init__(self, url: str, *, create: bool = True, pgvector: bool = False) -> None:
        engine = self._engine = open_engine(url)
        self.meta = MetaTable(engine)
        self.invalidations = InvalidationTable(engine)
        self.entries = EntryTable(engine, self.invalidations)
        self.embedders, self.model_files = EmbedderTable(engine), ModelFilesTable(engine)
        self.lookups, self.judgements = LookupTable(engine), JudgementTable(engine)
        self.examples = ExampleTable(engine)
        self.turns = TurnTable(engine)
        self.evictor = Evictor(engine)
        self.statistics = Statistics(engine)
        self.reviews = ReviewTable(engine)
        self.pins = PinTable(engine, self.invalidations, self.entries)
        self.told = ToldTable(engine)
        identity = Identity(engine)
        self.pgvector_problem = ""
        try:
            if not create and not is_cache(engine):
                raise NoCache(no_cache(self.url))
            migrate(engine)
            self.id = self.meta.get(ID_KEY) or self.meta.set_default(ID_KEY, uuid.uuid4().hex)
            identity.expect(self.id)
            if pgvector:
                self.pgvector_problem = prepare(engine)
        except NoCache:
            engine.dispose()
            raise
        except Exception as error:  # also of drivers, for options of the URL that they do not take
            engine.dispose()
            advice = "move it away to begin a new one, or use another path"
            if isinstance(error, StorageUnavailable):
                advice = "the disk may be full, another program may hold it, or its server is down"
            reason, cause = storage_error(error, engine), cause_of(error, engine)
            raise StorageError(f"cannot open the database {self.url}: {reason}; {advice}") from cause

    @property
    def engine(self) -> sa.Engine:
        """The connections to the database."""
        return self._engine

    @property
    def url(self) -> str:
        """The URL of the database, without its password."""
        return safe_url(self._engine)

    def after_fork(self) -> None:
        """Forget the parent's connections, which are not ours to close."""
        self._engine.dispose(close=False)
        if breaker := breaker_of(self._engine):
            breaker.after_fork()

    def close(self) -> None:
        """Close all connections."""
        if breaker := breaker_of(self._engine):
            breaker.stop()
        close_engine(self._engine)

    def vectors(self, embedder: str) -> VectorTable:
        """Return the vectors of the embedder with this fingerprint."""
        return VectorTable(self._engine, embedder)

    def redactor(self, redact: Callable[[str], str | None], name: str) -> LogRedactor:
        """Return what redacts the logs written so far."""
        return LogRedactor(self._engine, redact, name)

    def clear(self, namespace: str | None = None) -> int:
        """Delete all entries and logs, or those of one namespace and its users; return how many entries.

        In batches: if it fails on the way, a part is deleted; call it again.
        """
        return deletion.clear(self._engine, namespace)

    def preview(self, criteria: Criteria) -> Invalidated:
        """Return what `invalidations.invalidate` would delete, with the newest entries."""
        count, ids = self.invalidations.preview(criteria, SHOWN)
        return Invalidated(count, tuple(self.entries.of_ids(ids)[:SHOWN]))

    def require_here(self, namespace: str) -> None:
        """Raise `CacheMoved` if the namespace was moved to another place."""
        with reading(self._engine) as db:
            require_here(db, namespace)

    def record_feedback(self, entry: Entry, good: bool) -> None:
        """Record feedback, and delete the entry if it is bad; for tools that open no cache."""
        self.require_here(entry.namespace)
        self.examples.set_feedback_of(entry, good)
        if not good:
            self.invalidations.invalidate(Criteria(entry=entry.id), time.time, examples=False)
        self.judgements.add([replace(feedback_row(entry, good), at=time.time())])

    def correct(
        self,
        entry_id: str,
        given: str | Answer,
        now: float,
        bounds: Bounds = UNBOUNDED,
        *,
        examples: bool = True,
    ) -> str:
        """Put a vetted answer in place of that of an entry; return "", or why not (as `PinTable.correct`).

        Examples of the former answer are called bad, and the vetted one is a good example; if it is the same,
        it is called good.

        Raises:
            InvalidInput: The stored answer cannot be replaced by a text.
        """
        change, reason = self.pins.correct(entry_id, lambda entry: corrected(entry, given), now, bounds)
        if change is None:
            return reason
        before, answer = change[0], change[1].answer
        self.examples.set_feedback_of(before, answer.text == before.answer.text)
        if examples and before.semantic and before.question and answer.text != before.answer.text:
            self.examples.add([example_of(before, answer, at=now, feedback=True)])
        return ""

    def totals(self, embedder: str | None = None) -> Totals:
        """Count entries, logged lookups by outcome, examples and audits.

        Entries that can be found by meaning are counted for this embedder, by default the one used last.
        """
        entries, size = self.evictor.size()
        if embedder is None:
            registered = self.embedders.registered()
            embedder = max(registered, key=lambda one: registered[one], default="")
        vectors = self.vectors(embedder)
        lookups = self.lookups.counts()
        audits, wrong = self.judgements.audits()
        return Totals(
            entries=entries,
            semantic_entries=vectors.count(),
            unindexed=vectors.count_pending(),
            hits=lookups.hits,
            misses=lookups.misses,
            examples=self.examples.count(),
            audits=audits,
            audits_wrong=wrong,
            bytes=size,
            second_opinions=lookups.second_opinions,
        )

    def check(self) -> list[str]:
        """Return the problems that the database finds in its own file; empty if none (SQLite only)."""
        if self._engine.dialect.name != "sqlite":
            return []
        with reading(self._engine) as db:
            found = [str(row[0]) for row in db.exec_driver_sql("PRAGMA quick_check(10)")]
        return [] if found == ["ok"] else found
