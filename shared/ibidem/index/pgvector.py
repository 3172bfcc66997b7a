"""Finding the stored questions nearest to one asked, by PostgreSQL itself."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.embedding.base import CheckedEmbedder
from ibidem.errors import IndexUnavailable, StorageError, StorageUnavailable
from ibidem.index.backfill import MissingVectors
from ibidem.storage.pgvector import GENERATION, MOST_DIMENSIONS, Place
from ibidem.storage.vectors import VectorTable
from ibidem.types import Vector

BATCH = 500  # vectors that were stored without pgvector and are entered in one transaction
# Up to here the entries of a scope are compared one by one, and none is missed. Beyond, it depends on n, the
# entries of all scopes: an index finds one of the scope's s entries every n / s, and each takes as long as 3
# to 30 comparisons; 3 if the table is not in PostgreSQL's memory. So for the 32 that a search reads the index
# is faster if s * s > 100 to 1,000 * n.
EXACT_LIMIT = 2_000
COST = 300
KNOWN_SCOPES, KNOWN_SECONDS = 4_096, 60.0  # sizes of scopes that are remembered, and for how long


def exact_limit(entries: int) -> int:
    """Return how many entries a scope may have to be compared one by one, if all scopes have so many."""
    return max(EXACT_LIMIT, math.isqrt(COST * entries))


class PgvectorSearch:
    """The vectors of one embedder in PostgreSQL, where each store puts them in its transaction. Thread-safe.

    Nothing is held here, so each process finds at once what another has stored.

    Args:
        table: The vectors of the embedder, in a database with pgvector.
        embedder: Makes vectors that are missing there.
        faults: Receives failures in the background.
        wake: Wakes the background thread.
    """

    def __init__(
        self, table: VectorTable, embedder: CheckedEmbedder, faults: Faults, wake: Callable[[], None]
    ) -> None:
        self.table = table
        self._embeddings = self.table.embeddings()
        self._missing = MissingVectors(self.table, embedder, faults)
        self._faults, self._wake = faults, wake
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """Forget the thread that builds an index, which stayed with the parent."""
        self._lock = ForkSafeLock()
        self._sizes: BoundedDict[tuple[str, Place], tuple[int, float]] = BoundedDict(KNOWN_SCOPES)
        self._rows: int | None = None  # of the HNSW index; None if there is none
        self._look_at = 0.0  # when to look for it again
        self._dimensions = 0  # of the HNSW index that a search has missed
        self._builder: threading.Thread | None = None

    @property
    def state(self) -> str:
        """Always open: the database answers for it."""
        return "closed" if self._closed else "open"

    def open(self) -> None:
        """Do nothing: there is nothing but the database."""

    def add(self, namespace: str, scope: str, vector: Vector, base: str = "") -> None:
        """Do nothing: the transaction that stored the entry has made it findable."""

    def nearest(self, namespace: str, scope: str, vector: Vector, k: int, base: str = "") -> list[str]:
        """Return points of this namespace and scope near the vector, nearest first.

        With a `base`, those of conversations on this base follow.

        Raises:
            IndexUnavailable: The cache was closed, or PostgreSQL cannot search.
            StorageUnavailable: The database is away.
        """
        if self._closed:
            raise IndexUnavailable("the cache was closed")
        try:
            places = [Place("place", scope), *([Place("base", base)] if base else [])]
            large = [self._is_large(namespace, one, len(vector)) for one in places]
            places = [replace(one, by_index=is_large) for one, is_large in zip(places, large, strict=True)]
            return list(dict.fromkeys(self._embeddings.nearest(namespace, places, vector, k)))
        except StorageUnavailable:
            raise
        except StorageError as error:  # such as an extension that was dropped
            raise IndexUnavailable(f"PostgreSQL cannot search vectors: {error}") from error

    def _is_large(self, namespace: str, place: Place, dimensions: int) -> bool:
        """Return whether to search a scope by the HNSW index, and note that it is missed if there is none."""
        now = time.monotonic()
        if now >= self._look_at:
            self._rows, self._look_at = self._embeddings.index.rows(), now + KNOWN_SECONDS
        rows = self._rows
        limit = exact_limit(rows or 0)
        with self._lock:
            size, until = self._sizes.get((namespace, place)) or (0, 0.0)
        if now >= until:
            size = self._embeddings.size(namespace, place, limit + 1)
            with self._lock:
                self._sizes.put((namespace, place), (size, now + KNOWN_SECONDS))
        if size <= limit or dimensions > MOST_DIMENSIONS:
            return False
        if rows is None and not self._dimensions:
            self._dimensions = dimensions
            self._wake()
        return rows is not None

    def index_batch(self) -> bool:
        """Enter one batch of vectors that were stored without pgvector, and make some that are missing."""
        held = self.table.unindexed(GENERATION, BATCH)
        moved = self.table.enter(held) if held else 0
        return bool(self._missing.embed_batch()) or moved > 0

    def caught_up(self) -> bool:
        """Return whether all questions that can be embedded now are findable."""
        return not self.table.unindexed(GENERATION, 1) and not self._missing.due()

    def compact(self, *, wanted: bool = False) -> bool:
        """Begin to build the HNSW index, in a thread, if a search missed it; if `wanted`, mend all now."""
        if wanted:
            self._mend()
        elif self._dimensions and not self._closed and not (self._builder and self._builder.is_alive()):
            self._builder = threading.Thread(target=self._build, name="ibidem-hnsw", daemon=True)
            self._builder.start()
        return False

    def _build(self) -> None:
        try:
            if self._embeddings.largest() > exact_limit(self._embeddings.count()):
                self._embeddings.index.build(self._dimensions)
            self._look_at = 0.0
        except Exception as error:  # searches go on without it
            self._faults.note("build the vector index in PostgreSQL", error)
        self._dimensions = 0

    def _mend(self) -> None:
        """Enter what was lost, and build the HNSW index anew if there is one."""
        self._embeddings.requeue_lost()
        while self.index_batch():
            pass
        if (dimension := self._embeddings.dimension()) and self._embeddings.index.exists():
            self._embeddings.index.build(dimension, anew=True)

    def reset(self) -> None:
        """Do nothing: what is cleared is gone from the index in the same transaction."""

    def close(self) -> None:
        """Search no more. An index that is being built is finished by the server."""
        self._closed = True
