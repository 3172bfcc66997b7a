"""The runtime of a location, shared by all caches of this process that are opened on it."""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path

from ibidem._util.concurrency import Background, ForkSafeLock, deadline
from ibidem._util.faults import Faults, log
from ibidem.active_model import ActiveIndex, active_embedder, with_verifier
from ibidem.audits.ledger import JudgementLog
from ibidem.embedding import resolve_embedder
from ibidem.embedding.base import CheckedEmbedder, Embedder, fingerprint_of
from ibidem.errors import NoCache, StorageError
from ibidem.examples.log import SharedExamples
from ibidem.index.base import QuestionSearch, VectorIndex
from ibidem.index.chroma import open_embedded
from ibidem.index.chroma_server import open_server
from ibidem.index.compaction import CollectionRegistry, collection_name
from ibidem.index.external import open_external
from ibidem.index.pgvector import PgvectorSearch
from ibidem.index.search import SemanticIndex, VectorSearch
from ibidem.lifecycle.invalidation import Criteria, Invalidated
from ibidem.matching.fitted import warn_of_old_score
from ibidem.matching.shipped import rule_for
from ibidem.settings import Settings
from ibidem.single_flight import SingleFlight
from ibidem.storage.engine import set_aside_if_damaged, sqlite_url
from ibidem.storage.entries import entry_size
from ibidem.storage.logs import LogRedactor, LookupQueue, LookupRow
from ibidem.storage.maintenance import Housekeeping
from ibidem.storage.store import Store, no_cache
from ibidem.storage.turns import TurnQueue
from ibidem.telemetry import metrics
from ibidem.telemetry.telemetry import record_audit
from ibidem.types import Entry, digest

POLL_SECONDS = 2.0  # interval of looking for entries stored by other processes, while in use


class Runtime:
    """The database, the semantic index and the background work of one location.

    Args:
        key: Identifies it among the runtimes of this process.
        settings: Those of the cache that was opened first.
        embedder: The one given to `ibidem.open`; None for the active one.
    """

    def __init__(self, key: tuple[Hashable, ...], settings: Settings, embedder: Embedder | None) -> None:
        self.key, self.users, self.settings = key, 0, settings
        self.cache_id = digest(settings.database or str(settings.path.resolve()))  # contains no password
        self.faults, self.flights = Faults(), SingleFlight()
        self.clock: Callable[[], float] = time.time  # seconds since the epoch; a test may set its own
        self.store = open_store(settings, create=settings.create)
        _warn_of(self.store.pgvector_problem)
        self.housekeeping = Housekeeping(
            self.store.evictor, settings.bounds, settings.lifetime, lambda: self.clock()
        )
        try:
            index = self._build(embedder or active_embedder(settings, self.store))
        except BaseException:
            self.store.close()
            raise
        self.active = ActiveIndex(index, settings, self.store, self._build, self._adopt, self.faults)
        self.judgement_log = JudgementLog(
            self.store.judgements,
            index.scorers,
            self.faults,
            partial(record_audit, self.cache_id),
        )
        self._lookups = LookupQueue(self.store.lookups, self.faults)
        self.turns = TurnQueue(self.store.turns)
        self._masking = collections.deque[LogRedactor]()
        self.examples = SharedExamples(
            self.store.examples,
            index.embedder,
            self.faults,
            lambda: self.clock(),
            ttl=settings.example_ttl,
            wake=self.wake,
        )
        self._writing = ForkSafeLock()  # held from taking rows out of a queue until they are written
        self._background = self._jobs()
        self._process, self._poll_at = os.getpid(), 0.0
        metrics.observe(self)

    def _jobs(self) -> Background:
        return Background(
            {
                "index questions": lambda: self.vectors.index_batch(),
                "write the lookup log": self._write_lookups,
                "write answered turns": self._write_turns,
                "keep examples": self._write_examples,
                "delete old examples": self.examples.expiry.work,
                "delete entries": self.housekeeping.work,
                "redact the logs": self._mask,
            },
            self.faults.note,
            idle_jobs={
                "renew the vector index": lambda: self.vectors.compact(),
                "embed examples": self.examples.embed,
                "follow a promotion": self.active.step,
            },
        )

    def _build(self, embedder: Embedder) -> SemanticIndex:
        return build_semantic_index(self.settings, self.store, embedder, self.faults, self.wake)

    def _adopt(self, index: SemanticIndex) -> None:
        """Switch to a new semantic index."""
        self.judgement_log.set_scorers(index.scorers)
        self.examples.adopt(index.embedder)
        self.wake()

    @property
    def semantic_index(self) -> SemanticIndex:
        """The semantic index in use; each lookup and each store reads it once."""
        return self.active.current

    @property
    def embedder(self) -> CheckedEmbedder:
        """The embedder in use."""
        return self.active.current.embedder

    @property
    def vectors(self) -> QuestionSearch:
        """The vectors of the embedder in use."""
        return self.active.current.vectors

    def check_process(self) -> None:
        """Start afresh in a forked child: threads, connections and index stayed with the parent."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.store.after_fork()
            self.active.after_fork()
            self._background.after_fork()
            self.judgement_log.after_fork()
            self.flights.after_fork()
            self._lookups.drop()
            self.turns.drop()
            self.examples.queue.drop()

    def put(self, entry: Entry, requested: float, index: SemanticIndex, vetted: str) -> str:
        """Store and index an entry. Errors of the database pass through.

        Args:
            entry: The entry; its vector was made by the embedder of `index`.
            requested: When the request was made.
            index: The semantic index in use when the store began.
            vetted: The id of a vetted answer to this question over any documents, if there is one.

        Returns:
            "", or why it is not stored: `invalidated` after the request was made, or `pinned`.
        """
        house, fingerprint = self.housekeeping, index.fingerprint
        reason = self.store.entries.put(entry, fingerprint, house.ranking, house.floor, requested, vetted)
        if not reason:
            self._index(entry, index)
        elif reason == "pinned":
            self.flights.stored(entry.id)  # those who wait find the vetted answer
        return reason

    def pin(self, entry: Entry, requested: float, index: SemanticIndex, replaces: str) -> str:
        """Store and index a vetted answer; return "", or why not (as `PinTable.pin`)."""
        bounds = self.housekeeping.bounds
        reason = self.store.pins.pin(entry, index.fingerprint, requested, bounds, replaces)
        if not reason:
            self._index(entry, index)
        return reason

    def _index(self, entry: Entry, index: SemanticIndex) -> None:
        if entry.vector is not None:
            index.vectors.add(entry.namespace, entry.scope, entry.vector, entry.base)
            # `next` first: it may become the current one at any moment.
            if self.active.next is not None or self.active.current.embedder is not index.embedder:
                self.active.embed_for_next(entry, index)
        self.housekeeping.grown(entry_size(entry))
        self._background.wake()
        self.flights.stored(entry.id)

    def log_lookup(self, row: LookupRow) -> None:
        """Write a lookup to the log, in the background."""
        self._lookups.put(row)
        if len(self._lookups) == 1 or self._is_poll_due():
            self._background.wake()

    def _is_poll_due(self) -> bool:
        """Return whether it is time to look for entries stored by other processes."""
        now = time.monotonic()
        if now < self._poll_at:
            return False
        self._poll_at = now + POLL_SECONDS
        return True

    def mask(self, redact: Callable[[str], str | None], name: str) -> None:
        """Redact the existing log rows, in the background; `name` identifies the function."""
        self._masking.append(self.store.redactor(redact, name))
        self.wake()

    def _mask(self) -> bool:
        if self._masking and not self._masking[0].step():
            self._masking.popleft()
        return bool(self._masking)

    def _write_lookups(self) -> bool:
        house = self.housekeeping
        with self._writing:
            return self._lookups.write(house.ranking, house.floor, house.lifetime)

    def _write_turns(self) -> bool:
        with self._writing:
            return self.turns.write()

    def _write_examples(self) -> bool:
        with self._writing:
            return self.examples.write()

    def invalidate(self, criteria: Criteria, *, examples: bool = True) -> Invalidated:
        """Delete the matching answers with their pending audits, and by default their examples."""
        ids, deleted = self.store.invalidations.invalidate(criteria, self.clock, examples=examples)
        self.judgement_log.forget(set(ids))
        self.examples.queue.forget_reports()
        return Invalidated(len(ids), examples=deleted)

    def clear(self, namespace: str | None) -> int:
        """Delete all answers and logs, or those of a namespace; return the number of answers."""
        with self._writing:
            count = self.judgement_log.clear(namespace, partial(self.store.clear, namespace))
            self._lookups.drop(namespace)
            self.turns.drop(namespace)
            self.examples.queue.drop(namespace)
        if namespace is None:
            self.vectors.reset()
        self.wake()  # an index that cannot be emptied at once deletes in the background
        return count

    def wake(self) -> None:
        """Wake the background thread."""
        self._background.wake()

    def flush(self) -> bool:
        """Wait until everything known now is indexed and logged; False if that takes too long.

        Audits may take longer, as they may ask a model: `judgement_log.flush` waits for them.
        """
        return self._background.flush()

    def size(self) -> tuple[int, int] | None:
        """Return the number of entries and their bytes; None while the database is unavailable."""
        with contextlib.suppress(StorageError), deadline():
            self.check_process()  # the caller may be a forked child
            return self.store.evictor.size()
        return None

    def queue_lengths(self) -> dict[str, int]:
        """Return the lengths of the queues."""
        return {
            "lookups": len(self._lookups),
            "examples": len(self.examples.queue),
            "audits": self.judgement_log.waiting(),
        }

    def close(self) -> None:
        """Finish the background work and close everything."""
        metrics.stop_observing(self)
        self.check_process()
        self.flights.close()
        self._background.stop()
        if left := len(self._lookups) + len(self.examples.queue):
            message = f"dropped {left:,} rows of its logs at closing"
            self.faults.count("write the logs: closed before", message)
        self.judgement_log.close()
        self.active.close()
        self.store.close()


_open: dict[tuple[Hashable, ...], Runtime] = {}
_open_lock = ForkSafeLock()


def acquire(settings: Settings) -> Runtime:
    """Open the runtime for these settings, or share the open one with the same location and embedder."""
    embedder = None if settings.embedder is None else resolve_embedder(settings.embedder)
    chroma = settings.chroma or str(settings.path / "chroma"), *settings.tenant_and_database
    headers = digest(*(text for pair in sorted(settings.headers.items()) for text in pair))
    fingerprint = "" if embedder is None else fingerprint_of(embedder)
    location = settings.database or str(settings.path)
    key = (location, chroma, headers, fingerprint, _key_of(settings.index))
    with _open_lock:
        runtime = _open.get(key)
        if runtime is not None:
            runtime.check_process()
            runtime.housekeeping.tighten(settings.bounds, settings.sliding)
            runtime.examples.expiry.tighten(settings.example_ttl)
        else:
            runtime = _open[key] = Runtime(key, settings, embedder)
        runtime.users += 1
        return runtime


def _key_of(index: object) -> Hashable:
    """Return a key for a user's index: itself if it can be hashed, else its identity."""
    try:
        hash(index)
    except TypeError:
        return id(index)
    return index


def release(runtime: Runtime) -> None:
    """Release one reference; the last closes the runtime."""
    with _open_lock:
        runtime.users -= 1
        if runtime.users > 0:
            return
        _open.pop(runtime.key, None)
    runtime.close()


@atexit.register
def _close_all() -> None:
    """Finish the background work when the program ends without closing its caches."""
    with _open_lock:
        left = list(_open.values())
        _open.clear()
    for runtime in left:
        runtime.close()


def open_store(settings: Settings, *, create: bool = True) -> Store:
    """Open the database for these settings; by default creates directory and file, private to the user.

    An existing file keeps its mode: to share a cache with a group, create it first. A file that is not a
    database is renamed, never deleted, and a new database created.

    Raises:
        NoCache: There is none in this place, and `create` is False.
        StorageError: The location cannot be used.
    """
    if settings.database is None:
        file = settings.database_file
        if not create and not file.exists():
            raise NoCache(no_cache(str(settings.path)))
        _make_private(settings.path)
        try:
            if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would be read for ever
                raise StorageError(f"cannot use {file}: it is no file; move it away, or use another path")
            aside = set_aside_if_damaged(file) if create and file.exists() else None
            if not file.exists():
                file.touch(mode=0o600)  # SQLite would let others read it; its log files take the same mode
        except OSError as error:
            raise StorageError(f"cannot use {file}: {error.strerror}") from error
        if aside:
            about = {"event.name": "ibidem.database.replaced", "ibidem.path": str(file)}
            log.warning(
                "%s is not a database; it was kept as %s and a new one begun", file, aside, extra=about
            )
    url = settings.database or sqlite_url(settings.database_file)
    return Store(url, create=create, pgvector=settings.wants_pgvector)


def _warn_of(problem: str) -> None:
    """Say why PostgreSQL does not search the vectors, if it does not."""
    if problem:
        log.warning(
            "The vectors are not kept in PostgreSQL: %s. Until then each process searches in memory, up to "
            "100,000 answers; chroma='embedded' says that this is wanted, and ibidem doctor how it stands",
            problem,
            extra={"event.name": "ibidem.pgvector.missing"},
        )


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}-{threading.get_ident()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot write to {path}: {error.strerror}; choose another place with path= or IBIDEM_PATH"
        ) from error


def registry_of(settings: Settings, fingerprint: str, store: Store) -> CollectionRegistry:
    """Return the registry of the collections that hold this embedder's vectors.

    On a server, or in a user's index, each database has its own collections: what is deleted from one may
    still be in another.
    """
    cache_id = "" if settings.embedded_index else store.id
    return CollectionRegistry(store, collection_name(digest(fingerprint), cache_id), cache_id)


def index_directory(settings: Settings) -> Path:
    """Return where an embedded index is, if there is one."""
    return settings.path / "chroma"


def index_opener(settings: Settings, registry: CollectionRegistry) -> Callable[[], VectorIndex]:
    """Return a function that opens the vector index on the collection in use."""

    def open_index() -> VectorIndex:
        name = registry.read().name
        if settings.index is not None:
            return open_external(settings.index, name)
        if (server := settings.chroma_server) is not None:
            return open_server(server, name, settings.headers, *settings.tenant_and_database)
        return open_embedded(index_directory(settings), name)

    return open_index


def build_search(
    settings: Settings, store: Store, embedder: CheckedEmbedder, faults: Faults, on_open: Callable[[], None]
) -> QuestionSearch:
    """Build the search among the vectors of an embedder; arguments as `build_semantic_index`."""
    table = store.vectors(embedder.fingerprint)
    if table.pgvector:
        return PgvectorSearch(table, embedder, faults, on_open)
    registry = registry_of(settings, embedder.fingerprint, store)
    opener = index_opener(settings, registry)
    directory = index_directory(settings) if settings.embedded_index else None
    return VectorSearch(store, embedder, opener, faults, registry, directory=directory, on_open=on_open)


def build_semantic_index(
    settings: Settings, store: Store, embedder: Embedder, faults: Faults, on_open: Callable[[], None]
) -> SemanticIndex:
    """Build the semantic index of an embedder, and register the embedder.

    Args:
        settings: Where the vector index is.
        store: The database.
        embedder: Computes the vectors.
        faults: Counts failures in the background.
        on_open: Called when a server's index is open.

    Raises:
        EmbedderUnavailable: The embedder does not answer.
        StorageError: The database failed.
    """
    checked = CheckedEmbedder(embedder, store.meta.set_default)
    fingerprint = checked.fingerprint
    try:
        store.embedders.register(fingerprint)
    except StorageError as error:  # the background tries again
        faults.note("note which embedder is used", error)
    vectors = build_search(settings, store, checked, faults, on_open)
    warn_of_old_score(store, fingerprint)
    rule = rule_for(fingerprint)
    return with_verifier(SemanticIndex(checked, vectors, rule, rule, {}), settings, store, faults)
