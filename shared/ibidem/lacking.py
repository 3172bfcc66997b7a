"""Stored questions that have no vector yet, because the embedder failed or is another one now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ibidem.faults import Faults
from ibidem.records import Records
from ibidem.rows import StoredVector

if TYPE_CHECKING:
    from ibidem.embedding import CheckedEmbedder

EMBED_BATCH = 32  # questions embedded at a time
REFUSED_SECONDS = 60.0  # how long a question that could not be embedded is left alone


class Lacking:
    """Embeds them, some at a time.

    Args:
        records: Where the vectors go.
        embedder: Makes them.
        faults: Where its failures go.
    """

    def __init__(self, records: Records, embedder: CheckedEmbedder, faults: Faults) -> None:
        self._records, self._embedder, self._faults = records, embedder, faults
        self._refused: dict[str, float] = {}  # entries whose question was not embedded, and when to try again

    def embed(self, page: Sequence[StoredVector]) -> list[StoredVector]:
        """Some of the rows that lack a vector, now with vectors, also in the truth."""
        now = time.monotonic()
        lacking = [row for row in page if row.vector is None and self._refused.get(row.id, 0.0) <= now]
        made = self._embedded(lacking[:EMBED_BATCH])
        if made:
            self._records.set_vectors(made, self._embedder.fingerprint)
        return made

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
                self._refused.pop(row.id, None)
            except Exception as error:
                self._refused[row.id] = time.monotonic() + REFUSED_SECONDS
                self._faults.note("embed a stored question", error)
                if len(self._refused) > 1 and not made:
                    break  # not this question: the embedder is down
        if unfit:
            self._records.set_exact_only(unfit)
        return made
