"""Finding the stored questions nearest to one asked: in the index, and in memory what it lacks yet."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ibidem._util.circuit_breaker import CircuitBreaker
from ibidem._util.faults import Faults
from ibidem.embedding.base import CheckedEmbedder
from ibidem.errors import IndexBusy, IndexInUse, IndexRefused, IndexUnavailable
from ibidem.index.backfill import Backfill
from ibidem.index.base import Compactable, QuestionSearch, Resettable, VectorIndex, generation_of
from ibidem.index.chroma_lock import delete_unused
from ibidem.index.compaction import CollectionRegistry, IndexCompactor
from ibidem.index.memory import ChangeFollower, InMemoryIndex, VectorBuffer, with_scope_code
from ibidem.matching.fitted import SHIPPED, FittedThresholds
from ibidem.matching.scorers import Scorer, Verifier
from ibidem.storage.store import Store
from ibidem.types import Vector, point_of

BATCH = 50  # vectors per index write: each write holds the GIL, half a millisecond per vector
# Up to here all vectors are held in memory (16 MB) and searched exactly: as fast as the index, and never
# misses. An HNSW graph can: of 2,000 questions from one template it lost 1,766 with a bag-of-words embedder.
EXACT_LIMIT = 10_000
# Up to here (160 MB) a process searches exactly if another one has the index: only one can have it.
MEMORY_LIMIT = 100_000
RETRY_SECONDS = 5.0  # how long an embedded index that failed is left alone
FIRST_SECONDS = 5.0  # how long the first lookup of a process waits for a server's index to be opened


@dataclass(frozen=True, slots=True)
class SemanticIndex:
    """An embedder, the search among its vectors, what scores them, and the thresholds fitted to these scores.

    A lookup or a store takes one when it begins and keeps to it: vectors and scores of two embedders are
    never compared, also while another model is promoted.

    Attributes:
        embedder: Makes the vectors.
        vectors: The search.
        scorer: Scores candidates: the pair model, where there is one for the embedder.
        rule: Scores without a model: where a cache is opened without it, and where the pair model fails.
        fitted: The fitted thresholds by the name of the scorer.
        promoted_verifier: The name of the verifier promoted for the embedder; "" if there is none.
    """

    embedder: CheckedEmbedder
    vectors: QuestionSearch
    scorer: Scorer
    rule: Scorer
    fitted: Mapping[str, FittedThresholds]
    promoted_verifier: str = ""

    @property
    def scorers(self) -> frozenset[str]:
        """The names of both."""
        return frozenset((self.scorer.name, self.rule.name))

    def fitted_thresholds(self, verifier: Verifier) -> FittedThresholds:
        """Return the thresholds fitted to the scores of a verifier."""
        return self.fitted.get(verifier.name, SHIPPED)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the embedder."""
        return self.embedder.fingerprint


class VectorSearch:
    """Vectors of one embedder: writes behind, reads its own writes, rebuilds itself. Thread-safe.

    Args:
        store: The database.
        embedder: Makes vectors that are missing there.
        open_index: Opens the index; called at the first use, and again some seconds after a failure.
        faults: Receives failures in the background.
        registry: Names the collection in use.
        directory: Of an embedded index, which one process can open; a small one is searched in memory
            instead, by each process. None for a server's, opened in another thread: no caller waits for it.
        on_open: Called when a server's index is open, as entries may wait for it.
    """

    def __init__(
        self,
        store: Store,
        embedder: CheckedEmbedder,
        open_index: Callable[[], VectorIndex],
        faults: Faults,
        registry: CollectionRegistry,
        *,
        directory: Path | None,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        self.table = store.vectors(embedder.fingerprint)
        self._embedder, self._faults, self._registry = embedder, faults, registry
        self._directory, self._alone = directory, (alone := directory is not None)
        self._compactor = IndexCompactor(self.table, registry, alone=alone)
        self._open_index = open_index
        self._closed = False
        self._breaker: CircuitBreaker | None = None
        if not alone:
            refusals = (IndexRefused, IndexBusy)
            self._breaker = CircuitBreaker(self._open, closed=False, on_closed=on_open, refusals=refusals)
        self.after_fork()

    def after_fork(self) -> None:
        """Leave the parent's index alone: its threads do not exist here, its files are not ours."""
        self._lock = threading.RLock()  # held for moments, while index and buffer are exchanged
        self._opening = threading.Lock()  # held while an embedded index is opened; taken before `_lock`
        self._working = threading.Lock()  # held while the index is written; taken before `_lock`
        self._index: VectorIndex | InMemoryIndex | None = None
        self._buffer = VectorBuffer()
        self._follower: ChangeFollower | None = None  # of an embedded index, keeps the buffer up to date
        self._complete = False  # whether the buffer holds all that the index holds
        self._arrived: list[tuple[str, Vector]] | None = None  # entries stored while the index is opened
        self._backfill = Backfill(self.table, self._registry, self._embedder, self._faults)
        self._retry_at = self._index_at = 0.0
        self._failure: IndexUnavailable | None = None
        if self._breaker is not None:
            self._breaker.after_fork()
        self._compactor.forget()

    @property
    def state(self) -> str:
        """`open`, `unused` (not needed yet), or why the index cannot be used."""
        return "open" if self._index else str(self._failure or "unused")

    def add(self, namespace: str, scope: str, vector: Vector, base: str = "") -> None:
        """Make a stored entry findable at once. If the index is not open, opening it will find the entry."""
        point = point_of(namespace, scope, vector)
        indexed = with_scope_code(vector, namespace, scope, base)
        with self._lock:
            if self._index is not None:
                self._buffer.add(point, indexed)
            elif self._arrived is not None:  # the opening may have read the database already
                self._arrived.append((point, indexed))

    def nearest(self, namespace: str, scope: str, vector: Vector, k: int, base: str = "") -> list[str]:
        """Return points near the vector, most of them of this namespace and scope.

        With a `base`, points of other conversations on this base come after those.

        Raises:
            IndexUnavailable: The index belongs to another process, or is down.
        """
        index = self.open()
        if (follower := self._follower) is not None:
            follower.follow()
        target = with_scope_code(vector, namespace, scope, base)
        near = self._buffer.nearest(target, k)
        if self._complete:
            return near
        index = self.open()  # read again: the vectors may just have moved there from memory
        further = [] if isinstance(index, InMemoryIndex) else self._search(index, target, k)
        return list(dict.fromkeys([*near, *further]))

    def _search(self, index: VectorIndex, target: Vector, k: int) -> list[str]:
        """Search the index; once more if the collection was replaced meanwhile."""
        try:
            return index.search(target, k)
        except IndexUnavailable as error:
            if (current := self._current(index)) is not index:
                return current.search(target, k)
            self._abandon(index, error)
            raise

    def _current(self, index: VectorIndex) -> VectorIndex:
        """Return the index in use, which this or another process may have exchanged for another."""
        with self._lock:
            if self._index is index and not self._alone and isinstance(index, Compactable):
                name = self._registry.read().name
                self._index = index if name == index.name else index.sibling(name)
            current = self._index
            return index if current is None or isinstance(current, InMemoryIndex) else current

    def index_batch(self) -> bool:
        """Index one batch of stored questions; returns whether there may be more."""
        with self._working:
            index, buffer = self._index, self._buffer
            if index is None:
                self._compactor.limit_backlog()
                return False
            if isinstance(index, InMemoryIndex):
                return self._tend(index, buffer)
            try:
                return self._index_batch(index, buffer)
            except IndexUnavailable as error:
                self._abandon(index, error)
                raise

    def _index_batch(self, index: VectorIndex, buffer: VectorBuffer) -> bool:
        index = self._current(index)
        more = self._compactor.delete_stale(index, buffer, self._lock)
        if not buffer.waiting:
            self._backfill.fetch(buffer, generation_of(index))
        points, rows = buffer.next_batch(BATCH)
        if not points:
            return more
        self.table.mark_indexed(points, self._compactor.put(index, points, rows))
        buffer.mark_indexed(len(points))
        if not self._complete or len(buffer) > EXACT_LIMIT:
            self._complete = False  # before dropping: a search that finds less here asks the index
            buffer.drop_indexed()
        return True

    def _tend(self, index: InMemoryIndex, buffer: VectorBuffer) -> bool:
        """Embed a batch of questions that lack a vector; move to Chroma when there are too many vectors."""
        index.follow()
        index.compare()
        if len(buffer) > EXACT_LIMIT:
            if time.monotonic() >= self._index_at and self._move_to_chroma(index, buffer):
                return True
            more = False
        else:
            if self._directory is not None and self._directory.exists():  # an index from when it was larger
                self._compactor.limit_backlog()
            else:
                self._compactor.drop_dead()
            more = self.table.mark_in_memory()
        return bool(self._backfill.embed_batch()) or more

    def _move_to_chroma(self, small: InMemoryIndex, buffer: VectorBuffer) -> bool:
        """Begin to search in Chroma instead, unless another process does: this one goes on in memory."""
        try:
            index = self._open_index()
        except IndexUnavailable as error:
            self._index_at = time.monotonic() + RETRY_SECONDS
            if len(buffer) > MEMORY_LIMIT:
                self._abandon(small, error)
                raise
            if not isinstance(error, IndexInUse):
                self._faults.note("open the vector index", error)
            return False
        self._compactor.on_open(index)
        follower = ChangeFollower(self.table, buffer)
        small.follow()
        small.stop()
        with self._lock:
            buffer.mark_all_waiting()
            self._index, self._follower = index, follower
        return True

    def caught_up(self) -> bool:
        """Return whether the index is open and holds all questions that can be embedded now."""
        with self._working:
            index = self._index
            if index is None or self._backfill.due():
                return False
            if isinstance(index, InMemoryIndex):
                index.follow()
                index.compare()
                return True
            return self._backfill.is_read(self._buffer, generation_of(index))

    def compact(self, *, wanted: bool = False) -> bool:
        """Do one step towards a fresh collection, if one is due or wanted; returns whether there is more."""
        with self._working:
            if self._index is None or isinstance(self._index, InMemoryIndex):
                return False
            index = self._current(self._index)
            try:
                fresh = self._compactor.step(index, wanted=wanted)
            except IndexUnavailable as error:
                self._abandon(index, error)
                raise
            if fresh is not None:
                with self._lock:  # searches under way end in the old one, which is deleted at a later step
                    self._index = fresh
            return self._compactor.busy or fresh is not None

    def reset(self) -> None:
        """Empty the index; used when all entries are cleared."""
        with self._working:
            with self._lock:
                index = self._index
                if index is not None and not isinstance(index, InMemoryIndex):
                    self._buffer.clear()
                    self._complete = False
            if index is None:
                return
            if isinstance(index, InMemoryIndex):  # follows by itself
                if self._directory is not None and delete_unused(self._directory):
                    self._compactor.on_reset()
                return
            try:
                if isinstance(index, Resettable):  # else its vectors are deleted a batch at a time
                    index.reset()
                    self._compactor.on_reset()
                with self._lock:
                    self._complete = self._alone and self._index is index
            except IndexUnavailable as error:
                # What it still holds, the database does not confirm.
                self._faults.note("empty the vector index", error)
                self._abandon(index, IndexUnavailable(str(error)))

    def close(self) -> None:
        """Close the index; what waits is found again at the next opening."""
        with self._working, self._lock:
            self._closed = True  # a lookup under way must not open it again
            index, self._index, self._follower = self._index, None, None
            if self._breaker is not None:
                self._breaker.stop()
            self._compactor.forget()
            if index is not None:
                index.close()

    def open(self) -> VectorIndex | InMemoryIndex:
        """Return the index, opened if that needs no waiting for a server that is down.

        Raises:
            IndexUnavailable: The index belongs to another process, or is down.
        """
        if (index := self._index) is not None:
            return index
        if self._breaker is None:
            self._open_here()
        else:
            self._await_server(self._breaker)
        if (index := self._index) is None:  # closed or abandoned this very moment
            raise self._unavailable()
        return index

    def _await_server(self, breaker: CircuitBreaker) -> None:
        epoch = breaker.epoch
        try:
            breaker.check(FIRST_SECONDS)
        except Exception as error:
            raise IndexUnavailable(str(error)) from None
        if self._index is None and not self._closed:  # it failed while it was being taken for open
            breaker.trip(self._unavailable(), epoch)

    def _open_here(self) -> None:
        with self._opening:
            if self._index is not None:
                return
            if self._failure is not None and time.monotonic() < self._retry_at:
                raise self._unavailable()
            self._open()

    def _open(self) -> None:
        """Open the index and read what it lacks; what is stored meanwhile neither waits nor is missed."""
        with self._lock:
            if self._closed:
                raise self._unavailable()
            self._arrived = []
        try:
            buffer = VectorBuffer()
            index, follower, complete = self._opened(buffer)
        except Exception as error:
            self._remember_failure(error)
            raise
        with self._lock:
            for point, vector in self._arrived or ():
                buffer.add(point, vector)
            self._arrived = None
            if not self._closed:
                self._buffer, self._complete, self._follower = buffer, complete, follower
                self._index = index
                self._failure = None
                return
        index.close()

    def _opened(
        self, buffer: VectorBuffer
    ) -> tuple[VectorIndex | InMemoryIndex, ChangeFollower | None, bool]:
        """Open the index and fill the buffer; returns, too, whether the buffer holds all its vectors."""
        count = self.table.count(MEMORY_LIMIT + 1) if self._alone else 0
        if self._alone and count <= EXACT_LIMIT and EXACT_LIMIT > 0:
            small = InMemoryIndex(self.table, buffer)
            return small, small, True
        try:
            index = self._open_index()
        except IndexInUse:
            if count > MEMORY_LIMIT:
                raise
            self._index_at = time.monotonic() + RETRY_SECONDS
            small = InMemoryIndex(self.table, buffer)
            return small, small, True
        follower = ChangeFollower(self.table, buffer) if self._alone else None
        return index, follower, self._fill(buffer, index)

    def _fill(self, buffer: VectorBuffer, index: VectorIndex) -> bool:
        """Read what is not in the index, and if it is small all that is; closes the index if that fails."""
        try:
            self._compactor.on_open(index)
            return self._backfill.fill(buffer, generation_of(index), EXACT_LIMIT if self._alone else None)
        except BaseException:
            with contextlib.suppress(IndexUnavailable):
                index.close(clean=False)
            raise

    def _abandon(self, index: VectorIndex | InMemoryIndex, error: IndexUnavailable) -> None:
        """Close an index that failed; it is opened, and if need be rebuilt, after a pause."""
        if isinstance(error, IndexBusy):  # it works: there are too many requests for now
            return
        with self._lock:
            epoch = self._breaker.epoch if self._breaker is not None else 0
            if self._index is not index:  # another thread was first, or it is a new one already
                return
            self._index = None
            self._compactor.forget()
            self._buffer, self._follower, self._complete = VectorBuffer(), None, False
            self._remember_failure(error)
        try:
            index.close(clean=False)
        except IndexUnavailable as problem:
            self._faults.note("close the vector index", problem)
        if self._breaker is not None:
            self._breaker.trip(error, epoch)

    def _remember_failure(self, error: Exception) -> None:
        """Answer with this failure, without trying again, for a while."""
        with self._lock:
            self._arrived = None
            # A copy: the error itself holds on to the frames that it came through.
            kind = type(error) if isinstance(error, IndexUnavailable) else IndexUnavailable
            self._failure = kind(str(error))
            self._retry_at = time.monotonic() + RETRY_SECONDS

    def _unavailable(self) -> IndexUnavailable:
        if self._closed:
            return IndexUnavailable("the cache was closed")
        failure = self._failure or IndexUnavailable("the vector index is being opened")
        return type(failure)(str(failure))
