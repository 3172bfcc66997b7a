"""What the index lacks: read from the truth into memory, embedded if it has no vector yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ibidem.faults import Faults
from ibidem.index.catalogue import Catalogue
from ibidem.index.memory import Memory
from ibidem.index.small import SmallIndex
from ibidem.index.vector_index import VectorIndex, coded
from ibidem.storage.rows import StoredVector
from ibidem.storage.vector_table import VectorTable

if TYPE_CHECKING:
    from ibidem.embedding.embedder import CheckedEmbedder

PAGE = 5_000  # entries read from the database at a time
EMBED_BATCH = 32  # questions embedded at a time
REFUSED_SECONDS = 60.0  # how long a question that could not be embedded is left alone


class Lacking:
    """Reads and embeds it, some at a time.

    Args:
        table: The vectors of the embedder.
        catalogue: Says which collections there are.
        embedder: Makes vectors where there are none.
        faults: Where its failures go.
    """

    def __init__(
        self, table: VectorTable, catalogue: Catalogue, embedder: CheckedEmbedder, faults: Faults
    ) -> None:
        self._table, self._catalogue = table, catalogue
        self._embedder, self._faults = embedder, faults
        self._refused: dict[str, float] = {}  # entries whose question was not embedded, and when to try again

    def fill(self, generation: str, most: int | None) -> tuple[Memory, bool]:
        """A page of what the index lacks, in memory.

        All that the index has comes before, and True is returned, if that is at most `most`.
        """
        self._refused = {}
        memory, complete = Memory(), False
        other = self._catalogue.read().generation
        if most is not None:
            indexed = self._table.indexed(generation, most + 1, other)
            complete = len(indexed) <= most
            if complete:
                load(memory, indexed)
                memory.indexed(len(memory))
        load(memory, self._table.unindexed(generation, max(PAGE, most or 0), other))
        return memory, complete

    def fetch(self, memory: Memory, generation: str) -> None:
        """Read the next page; embed a batch of what has no vector."""
        page = self._table.unindexed(generation, PAGE, self._catalogue.read().generation)
        # Another entry with the same vector may have been indexed before.
        known = [row.point for row in page if row.point is not None and memory.holds(row.point)]
        if known:
            self._table.mark_indexed(known, generation)
        load(memory, page)
        load(memory, self.embed())

    def left(self, memory: Memory, index: VectorIndex) -> bool:
        """Whether there is a question to embed now, or one that neither memory nor this index has."""
        if self.due():
            return True
        if isinstance(index, SmallIndex):  # all that had vectors were read when it was opened
            return False
        page = self._table.unindexed(index.generation, PAGE, self._catalogue.read().generation)
        return len(page) == PAGE or not all(memory.holds(row.point) for row in page if row.point)

    def embed(self) -> list[StoredVector]:
        """Some of the questions that lack a vector, now with vectors, also in the truth."""
        made = self._embedded(self.due()[:EMBED_BATCH])
        if made:
            self._table.set_vectors(made)
        return made

    def due(self) -> list[StoredVector]:
        """Some of the questions that lack a vector and are to be tried now."""
        now = time.monotonic()
        self._refused = {id_: until for id_, until in self._refused.items() if until > now}
        lacking = self._table.lacking(EMBED_BATCH + len(self._refused))
        return [row for row in lacking if row.id not in self._refused]

    def _embedded(self, rows: Sequence[StoredVector]) -> list[StoredVector]:
        """The rows with vectors, one by one: a question that the embedder refuses keeps no other waiting.

        It is tried again after a while, and is compared exactly if it is longer than the embedder's window.
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


def load(memory: Memory, rows: Sequence[StoredVector]) -> None:
    """Take the rows that have a vector into memory."""
    for row in rows:
        if row.vector is not None and row.point is not None:
            memory.add(row.point, coded(row.vector, row.namespace, row.scope))
