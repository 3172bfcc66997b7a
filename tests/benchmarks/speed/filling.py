"""Filling a cache of Ibidem in bulk: rows and index as `store` would write them, without embedding again."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ibidem
from ibidem import Answer, Request
from ibidem.index.base import VectorIndex, generation_of
from ibidem.index.memory import with_scope_code
from ibidem.runtime import index_opener, open_store, registry_of
from ibidem.settings import read_settings
from ibidem.storage.engine import open_engine, sqlite_url
from ibidem.storage.entries import entry_row
from ibidem.storage.tables import entries as entries_table
from ibidem.storage.tables import entry_vectors
from ibidem.storage.vectors import embedder_id, vector_row
from ibidem.types import Entry, to_bytes, to_vector

Batch = tuple[list[Request], list[str], NDArray[np.float32]]  # requests, their answers, vectors


def fill(folder: Path, batches: Iterable[Batch], *, indexed: bool) -> None:
    """Add the entries.

    Args:
        folder: Where the cache is.
        batches: What is stored.
        indexed: Whether there are so many that they belong into the vector index.
    """
    with ibidem.open(folder) as cache:  # makes the tables
        fingerprint = cache._runtime.embedder.fingerprint
    settings, number = read_settings(path=folder), embedder_id(fingerprint)
    store = open_store(settings)
    engine = open_engine(sqlite_url(settings.path / "ibidem.sqlite3"))
    index: VectorIndex | None = None
    if indexed:
        index = index_opener(settings, registry_of(settings, fingerprint, store))()
    for requests, answers, vectors in batches:
        entries = [_entry(*one) for one in zip(requests, answers, vectors, strict=True)]
        rows = [vector_row(entry, number) for entry in entries]
        if index is not None:
            points = {
                str(one.point): with_scope_code(one.vector, "", one.scope)
                for one in entries
                if one.vector is not None
            }
            index.upsert(list(points), np.stack(list(points.values())))
            rows = [{**row, "indexed_in": generation_of(index)} for row in rows]
        with engine.begin() as db:
            db.execute(entries_table.insert().prefix_with("OR IGNORE"), list(map(entry_row, entries)))
            db.execute(entry_vectors.insert().prefix_with("OR IGNORE"), rows)
    if index is not None:
        index.close()
    store.close()
    engine.dispose()


def _entry(request: Request, answer: str, vector: NDArray[np.float32]) -> Entry:
    return Entry(
        id=request.key,
        namespace=request.namespace,
        scope=request.scope_digest,
        question=request.question,
        documents=request.documents_digest,
        semantic=True,
        answer=Answer(answer),
        created=time.time(),
        vector=to_vector(to_bytes(vector)),
    )
