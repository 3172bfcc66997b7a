"""What the caches of one process share when opened on the same place: database, vectors, one thread."""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ibidem._util.background import Background
from ibidem._util.concurrency import ForkSafeLock
from ibidem._util.deadline import deadline
from ibidem._util.faults import Faults, log
from ibidem.active_model import embedder_of
from ibidem.audits.budget import scorer_name
from ibidem.audits.ledger import Ledger
from ibidem.embedding.base import CheckedEmbedder, fingerprint_of, resolve_embedder
from ibidem.errors import StorageError, StorageUnavailable
from ibidem.examples.log import ExampleQueue, Forgetting
from ibidem.examples.selection import Selector, Wanted
from ibidem.index.base import VectorIndex
from ibidem.index.chroma import open_embedded, open_server
from ibidem.index.compaction import CollectionRegistry, collection_name
from ibidem.index.memory import InMemoryIndex, VectorBuffer
from ibidem.index.search import IndexOpener, VectorSearch
from ibidem.maintenance import Housekeeping
from ibidem.matching.fitted import SHIPPED, Calibration, adopted, warn_of_old_score
from ibidem.matching.policy import scorer_for
from ibidem.models.following import Following
from ibidem.settings import Settings
from ibidem.single_flight import Flights
from ibidem.storage.engine import set_aside_if_damaged, sqlite_url
from ibidem.storage.entries import entry_size
from ibidem.storage.examples import EmbeddedExample
from ibidem.storage.logs import LogRedactor, LookupRow
from ibidem.storage.store import Store
from ibidem.telemetry import metrics
from ibidem.telemetry.telemetry import record_audit
from ibidem.types import digest, is_in_namespace

if TYPE_CHECKING:
    from ibidem._util.faults import Faults
    from ibidem.embedding.base import CheckedEmbedder, Embedder
    from ibidem.examples.example import Example
    from ibidem.matching.policy import Scorer
    from ibidem.settings import Settings
    from ibidem.storage.store import Store
    from ibidem.types import Entry


POLL_SECONDS = 2.0  # how often entries stored by other processes are looked for, while in use
LOG_BATCH = 500
LOG_WAITING = 10_000  # rows that may wait to be written, so that a slow database fills no memory


class Runtime:
    """The shared parts behind one or more `SemanticCache` objects; see `ibidem.runtime`."""

    def __init__(self, key: tuple[str, ...], settings: Settings, embedder: Embedder | None) -> None:
        self.key, self.users, self.settings = key, 0, settings
        self.place = digest(settings.database or str(settings.path.resolve()))  # names it, and no password
        self.faults, self.flights = Faults(), Flights()
        self.clock: Callable[[], float] = time.time  # seconds since the epoch; a test may set its own
        self.store = open_store(settings)
        self.housekeeping = Housekeeping(
            self.store.evictor, settings.bounds, settings.lifetime, lambda: self.clock()
        )
        try:
            chosen = embedder or embedder_of(settings, self.store)
            # What lookups and stores that begin now use; exchanged as a whole. `coming` takes its place soon.
            self.matcher: Matcher = self.matcher_of(chosen)
        except BaseException:
            self.store.close()
            raise
        self.coming: Matcher | None = None
        self.following = Following(self)
        name, judged = self.matcher.scorer_name, partial(record_audit, self.place)
        self.ledger = Ledger(self.store.judgements, self.matcher.scorer, name, self.faults, judged)
        self._log, self._masking = collections.deque[LookupRow](), collections.deque[LogRedactor]()
        self._examples, self.selector = ExampleQueue(), Selector(self.store.examples, self.embedder)
        self.forgetting = Forgetting(self.store.examples, settings.example_ttl, lambda: self.clock())
        self._writing = ForkSafeLock()  # held from taking rows out of a queue until they are written
        self._background = Background(
            {
                "index questions": lambda: self.matcher.vectors.index_batch(),
                "write the lookup log": self._write_log,
                "keep examples": self._write_examples,
                "delete old examples": self.forgetting.work,
                "delete entries": self.housekeeping.work,
                "redact the logs": self._mask,
            },
            self.faults,
            idle_jobs={
                "renew the vector index": lambda: self.matcher.vectors.compact(),
                "embed examples": lambda: self.selector.work(),
                "follow a promotion": self.following.step,
            },
        )
        self._process, self._poll_at = os.getpid(), 0.0
        metrics.observe(self)

    def mask(self, redact: Callable[[str], str | None], name: str) -> None:
        """Redact in the background what the logs hold already, by the function of this name."""
        self._masking.append(self.store.redactor(redact, name))
        self.wake()

    def _mask(self) -> bool:
        if self._masking and not self._masking[0].step():
            self._masking.popleft()
        return bool(self._masking)

    def matcher_of(self, embedder: Embedder) -> Matcher:
        """What matches questions with this embedder; raises as `ibidem.runtime.matcher_of` does."""
        return matcher_of(self.settings, self.store, embedder, self.faults, self.wake)

    @property
    def embedder(self) -> CheckedEmbedder:
        """The embedder in use now."""
        return self.matcher.embedder

    @property
    def vectors(self) -> VectorSearch:
        """Its vectors."""
        return self.matcher.vectors

    @property
    def scorer(self) -> Scorer:
        """The scorer in use now."""
        return self.matcher.scorer

    def check_process(self) -> None:
        """Start afresh if this is a forked child: threads, connections and index stayed with the parent."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.store.after_fork()
            self.matcher.vectors.after_fork()
            self.following.after_fork()
            self._background.after_fork()
            self.ledger.after_fork()
            self.flights.after_fork()
            self._log.clear()
            self._examples.drop()

    def adopt(self, matcher: Matcher) -> None:
        """Match with this from now on; lookups under way end with what they began with."""
        self.ledger.adopt(matcher.scorer, matcher.scorer_name)
        if matcher.fingerprint != self.matcher.fingerprint:
            self.selector = Selector(self.store.examples, matcher.embedder)
        self.matcher = matcher

    def note_lookup(self, row: LookupRow) -> None:
        """Write a lookup to the log, later; if too many wait already, the oldest is dropped, counted."""
        self._log.append(row)
        if len(self._log) > LOG_WAITING:
            self._shorten_log()
        if len(self._log) == 1 or self._poll_due():
            self._background.wake()

    def _poll_due(self) -> bool:
        """Whether it is time to look for entries that other processes stored."""
        now = time.monotonic()
        if now < self._poll_at:
            return False
        self._poll_at = now + POLL_SECONDS
        return True

    def note_example(self, given: EmbeddedExample, *, stored: bool = False) -> bool:
        """Write an example to its log, later; False, counted, if too many wait already.

        `stored` if its answer was just stored.
        """
        if len(self._examples) >= LOG_WAITING:
            self.faults.count(
                "keep examples: too many wait", f"dropped an example: {LOG_WAITING:,} wait to be written"
            )
            return False
        self._examples.put(given, stored=stored)
        self._background.wake()
        return True

    def select(self, wanted: Wanted) -> list[Example]:
        """Examples for a prompt; raises what the database or the embedder does."""
        found = self.selector.select(wanted)
        if self.selector.behind:
            self._background.wake()
        return found

    def forget_told(self) -> None:
        """Examples may have been deleted."""
        self._examples.forget_told()

    def clear(self, namespace: str | None) -> int:
        """Delete what `Store.clear` deletes, and what waits to be written of it."""
        with self._writing:
            count = self.ledger.clear(namespace, partial(self.store.clear, namespace))
            _drop(self._log, namespace)
            self._examples.drop(namespace)
        return count

    def keep(self, entry: Entry, made: float, matcher: Matcher) -> bool:
        """Store an entry in the database, and make it findable; raises what the database does.

        False if it was asked for, at `made`, before what it rests on was invalidated. Its vector is the
        matcher's.
        """
        house = self.housekeeping
        if not self.store.entries.put(entry, matcher.fingerprint, house.ranking, house.floor, made):
            return False
        if entry.vector is not None:
            matcher.vectors.add(entry.namespace, entry.scope, entry.vector)
            self.following.take_along(entry, matcher)
        house.grown(entry_size(entry))
        self._background.wake()
        self.flights.stored(entry.id)
        return True

    def wake(self) -> None:
        """There is work in the background, such as questions to index."""
        self._background.wake()

    def flush(self) -> bool:
        """Wait until what is known now is indexed and logged; False if that took too long.

        Audits may take longer, as a judge may ask a model: `ledger.flush` waits for them.
        """
        return self._background.flush()

    def size(self) -> tuple[int, int] | None:
        """Return the entries and their bytes; None while the database is unavailable."""
        with contextlib.suppress(StorageError), deadline():
            self.check_process()  # the caller may be a forked child
            return self.store.evictor.size()
        return None

    def waiting(self) -> dict[str, int]:
        """How much waits to be written or judged."""
        return {
            "lookups": len(self._log),
            "examples": len(self._examples),
            "audits": self.ledger.waiting(),
        }

    def _shorten_log(self) -> None:
        with contextlib.suppress(IndexError):  # they may be written just now
            self._log.popleft()
            self.faults.count(
                "write the lookup log: too many wait", f"dropped a lookup: {LOG_WAITING:,} wait to be written"
            )

    def _write_log(self) -> bool:
        house = self.housekeeping
        with self._writing:
            rows = [self._log.popleft() for _ in range(min(LOG_BATCH, len(self._log)))]
            bounds, floor, life = house.ranking, house.floor, house.lifetime
            try:
                if rows:
                    self.store.lookups.add(rows, bounds=bounds, floor=floor, life=life)
            except StorageUnavailable:  # they wait again, in their place
                self._log.extendleft(reversed(rows))
                raise
        return len(self._log) > 0

    def _write_examples(self) -> bool:
        with self._writing:
            taken = self._examples.take(LOG_BATCH)
            try:
                if taken:
                    self.store.examples.add([one for _, one in taken])
            except StorageUnavailable:
                self._examples.put_back(taken)
                raise
        return len(self._examples) > 0

    def close(self) -> None:
        """Finish the background work and close everything."""
        metrics.stop_observing(self)
        self.check_process()
        self.flights.close()
        self._background.stop()
        if left := len(self._log) + len(self._examples):
            self.faults.count(
                "write the logs: closed before", f"dropped {left:,} rows of its logs at closing"
            )
        self.ledger.close()
        self.following.close()
        self.matcher.vectors.close()
        self.store.close()


def _drop(waiting: collections.deque[LookupRow], namespace: str | None) -> None:
    """Take the rows of a namespace, or all, out of the queue, while others append to it."""
    for _ in range(len(waiting)):
        row = waiting.popleft()
        if namespace is not None and not is_in_namespace(row.namespace, namespace):
            waiting.append(row)


_open: dict[tuple[str, ...], Runtime] = {}
_open_lock = ForkSafeLock()


def acquire(settings: Settings) -> Runtime:
    """The runtime for these settings; the same one for the same place and embedder."""
    embedder = None if settings.embedder is None else resolve_embedder(settings.embedder)
    place = settings.chroma or str(settings.path / "chroma")
    sent = digest(*(text for pair in sorted(settings.headers.items()) for text in pair))
    which = "" if embedder is None else fingerprint_of(embedder)
    key = (settings.database or str(settings.path), place, sent, which)
    with _open_lock:
        runtime = _open.get(key)
        if runtime is not None:
            runtime.check_process()
            runtime.housekeeping.tighten(settings.bounds, settings.sliding)
            runtime.forgetting.tighten(settings.example_ttl)
        else:
            runtime = _open[key] = Runtime(key, settings, embedder)
        runtime.users += 1
        return runtime


def release(runtime: Runtime) -> None:
    """Close the runtime when nobody uses it any more."""
    with _open_lock:
        runtime.users -= 1
        if runtime.users > 0:
            return
        _open.pop(runtime.key, None)
    runtime.close()


@atexit.register
def _close_all() -> None:
    """Index and log what is left when the program ends without closing its caches."""
    with _open_lock:
        left = list(_open.values())
        _open.clear()
    for runtime in left:
        runtime.close()


def open_store(settings: Settings) -> Store:
    """The database for these settings; makes the directory and the database file, private to the user.

    What exists keeps its mode: who shares a cache with a group says so by making it. A file in its place that
    is no database is moved aside, never deleted, and a new one begun.

    Raises:
        StorageError: The place cannot be used.
    """
    if settings.database is None:
        _make_private(settings.path)
        file = settings.database_file
        try:
            if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe is read from for ever
                raise StorageError(f"cannot use {file}: it is no file; move it away, or use another path")
            aside = set_aside_if_damaged(file) if file.exists() else None
            if not file.exists():
                file.touch(mode=0o600)  # SQLite would let others read it; its log files take the mode of this
        except OSError as error:
            raise StorageError(f"cannot use {file}: {error.strerror}") from error
        if aside:
            about = {"event.name": "ibidem.database.replaced", "ibidem.path": str(file)}
            log.warning(
                "%s is not a database; it was kept as %s and a new one begun", file, aside, extra=about
            )
    return Store(settings.database or sqlite_url(settings.database_file))


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
    """The registry of the collections with the vectors of the embedder with this fingerprint.

    On a server each database has collections of its own: what one deletes, another may still hold.
    """
    cache_id = "" if settings.chroma is None else store.meta.set_default("place", uuid.uuid4().hex)
    return CollectionRegistry(store, collection_name(digest(fingerprint), cache_id), cache_id)


def index_opener(settings: Settings, registry: CollectionRegistry) -> IndexOpener:
    """The function that opens the vector index, with the collection that is in use at that moment."""
    directory = settings.path / "chroma"

    def open_index(buffer: VectorBuffer | None = None) -> VectorIndex:
        name = registry.read().name
        if settings.chroma is not None:
            return open_server(settings.chroma, name, settings.headers)
        if buffer is not None:
            return InMemoryIndex(
                directory, registry.base, buffer, partial(open_embedded, directory, registry.base)
            )
        return open_embedded(directory, name)

    return open_index


@dataclass(frozen=True, slots=True)
class Matcher:
    """An embedder, the vectors it made, the scorer of their similarities, and the thresholds fitted to it.

    A lookup or a store takes one when it begins and keeps to it: vectors and scores of two embedders are
    never compared, also while another model is promoted.
    """

    embedder: CheckedEmbedder
    scorer: Scorer
    vectors: VectorSearch
    calibration: Calibration = SHIPPED

    @property
    def fingerprint(self) -> str:
        """Of the embedder."""
        return self.embedder.fingerprint

    @property
    def scorer_name(self) -> str:
        """What gives the scores: judgements are kept under it."""
        return scorer_name(self.fingerprint, self.scorer)


def matcher_of(
    settings: Settings, store: Store, embedder: Embedder, faults: Faults, opened: Callable[[], None]
) -> Matcher:
    """The matcher of this embedder, whose vectors are kept from now on.

    Args:
        settings: Say where the vector index is.
        store: The database.
        embedder: Makes the vectors.
        faults: Where failures in the background go.
        opened: Called when a server's index is open.

    Raises:
        EmbedderUnavailable: The embedder does not answer.
        StorageError: The database failed.
    """
    checked = CheckedEmbedder(embedder, store.meta.set_default)
    try:
        store.embedders.register(checked.fingerprint)
    except StorageError as error:  # the background tries again
        faults.note("note which embedder is used", error)
    registry = registry_of(settings, checked.fingerprint, store)
    vectors = VectorSearch(
        store,
        checked,
        index_opener(settings, registry),
        faults,
        registry,
        alone=settings.chroma is None,
        on_open=opened,
    )
    warn_of_old_score(store, checked.fingerprint)
    calibration = adopted(store, checked.fingerprint, faults)
    return Matcher(checked, scorer_for(checked.fingerprint), vectors, calibration)
