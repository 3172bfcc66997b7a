"""Reading stored vectors that the index lacks, and making those that do not exist yet."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace

from ibidem._util.faults import Faults
from ibidem.embedding.base import CheckedEmbedder
from ibidem.index.compaction import CollectionRegistry
from ibidem.index.memory import VectorBuffer, load
from ibidem.storage.vectors import StoredVector, VectorTable

PAGE = 5_000  # entries read from the database at a time
EMBED_BATCH = 32  # questions embedded at a time
SPREAD = 8  # drawn from so many batches: other processes may be embedding, too
REFUSED_SECONDS = 60.0  # how long a question that could not be embedded is left alone


class MissingVectors:
    """Makes the vectors of stored questions that have none, in batches.

    Args:
        table: The vectors of the embedder.
        embedder: Makes vectors.
        faults: Receives its failures.
    """

    def __init__(self, table: VectorTable, embedder: CheckedEmbedder, faults: Faults) -> None:
        self._table, self._embedder, self._faults = table, embedder, faults
        self._draw = random.SystemRandom()
        self._refused: dict[str, float] = {}  # entries whose question was not embedded, and when to try again

    def embed_batch(self) -> list[StoredVector]:
        """Embed some of the questions that lack a vector, and store their vectors."""
        due = self.due()
        made = self._embedded(self._draw.sample(due, min(EMBED_BATCH, len(due))))
        if made:
            self._table.set_vectors(made)
        return made

    def due(self) -> list[StoredVector]:
        """Return some of the questions that lack a vector and are to be tried now."""
        now = time.monotonic()
        self._refused = {id_: until for id_, until in self._refused.items() if until > now}
        lacking = self._table.missing(SPREAD * EMBED_BATCH + len(self._refused))
        return [row for row in lacking if row.id not in self._refused]

    def _embedded(self, rows: Sequence[StoredVector]) -> list[StoredVector]:
        """Return the rows with vectors, made one by one, so that one refused question delays no other.

        It is tried again after a while; one that is longer than the embedder's window is compared exactly.
        """
        made, unfit = [], []
        for row in rows:
            try:
                if self._embedder.refusal(row.question):
                    unfit.append(row.id)
                else:
                    made.append(replace(row, vector=self._embedder.embed([row.question])[0]))
            except Exception as error:
                self._refused[row.id] = time.monotonic() + REFUSED_SECONDS
                self._faults.note("embed a stored question", error)
                if len(self._refused) > 1 and not made:
                    break  # not this question: the embedder is down
        if unfit:
            self._table.set_exact_only(unfit)
        return made


class Backfill(MissingVectors):
    """Reads stored vectors that the index lacks, and makes those that are missing, in batches.

    Args:
        table: The vectors of the embedder.
        registry: Names the collections that exist.
        embedder: Makes vectors.
        faults: Receives its failures.
    """

    def __init__(
        self, table: VectorTable, registry: CollectionRegistry, embedder: CheckedEmbedder, faults: Faults
    ) -> None:
        super().__init__(table, embedder, faults)
        self._registry = registry

    def fill(self, buffer: VectorBuffer, generation: str, limit: int | None) -> bool:
        """Read a page of what the index lacks into an empty buffer.

        All that the index holds comes first, and True is returned, if that is at most `limit`.
        """
        self._refused = {}
        complete = False
        other = self._registry.read().generation
        if limit is not None:
            indexed = self._table.indexed(generation, limit + 1, other)
            complete = len(indexed) <= limit
            if complete:
                load(buffer, indexed)
                buffer.mark_indexed(len(buffer))
        load(buffer, self._table.unindexed(generation, max(PAGE, limit or 0), other))
        return complete

    def fetch(self, buffer: VectorBuffer, generation: str) -> None:
        """Read the next page; embed a batch of questions that have no vector."""
        page = self._table.unindexed(generation, PAGE, self._registry.read().generation)
        # Another entry with the same vector may have been indexed before.
        known = [row.point for row in page if row.point is not None and row.point in buffer]
        if known:
            self._table.mark_indexed(known, generation)
        load(buffer, page)
        load(buffer, self.embed_batch())

    def is_read(self, buffer: VectorBuffer, generation: str) -> bool:
        """Return whether each stored vector is in the buffer or in the index."""
        page = self._table.unindexed(generation, PAGE, self._registry.read().generation)
        return len(page) < PAGE and all(row.point in buffer for row in page if row.point)
