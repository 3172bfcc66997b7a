"""Many answers put into a database at once, as they would be after storing them one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from ibidem import Answer, Request
from ibidem.storage import pgvector
from ibidem.storage.engine import writing
from ibidem.storage.entries import entry_row
from ibidem.storage.store import Store
from ibidem.storage.tables import entries, entry_vectors
from ibidem.storage.vectors import embedder_id, vector_row
from ibidem.types import Entry
from tests.helpers import question

BATCH = 1_000


def text(n: int) -> str:
    """The n-th question."""
    return question(n, 6)


def asked(n: int) -> str:
    """The n-th question, in other words: a cosine of 0.93."""
    return f"please {text(n)}"


def request_of(question: str, scope: int) -> Request:
    """The request for a question in one of the scopes."""
    return Request(question, scope=f"scope {scope}")


def entry_of(question: str, scope: int, vector: NDArray[np.float32]) -> Entry:
    """The entry that answers it."""
    request, now = request_of(question, scope), time.time()
    return Entry(
        id=request.key, namespace="", scope=request.scope_digest, question=question,
        documents=request.documents_digest, semantic=True, answer=Answer(f"the answer to {question}"),
        created=now, used=now, requested=now, vector=vector,
    )  # fmt: skip


def fill(
    store: Store, embedder: str, questions: Sequence[str], vectors: NDArray[np.float16], scopes: int
) -> None:
    """Store an answer to each question, the n-th in the scope n modulo `scopes`."""
    store.embedders.register(embedder)
    number, inside = embedder_id(embedder), store.vectors(embedder).pgvector
    for first in range(0, len(questions), BATCH):
        some = range(first, min(first + BATCH, len(questions)))
        made = [entry_of(questions[n], n % scopes, vectors[n].astype(np.float32)) for n in some]
        rows = [vector_row(one, number) for one in made]
        if inside:
            rows = [{**row, "indexed_in": pgvector.GENERATION} for row in rows]
        with writing(store._engine) as db:
            db.execute(sa.insert(entries), [entry_row(one) for one in made])
            db.execute(sa.insert(entry_vectors), rows)
            if inside:
                of = [(one.id, number, one.namespace, one.scope, one.vector) for one in made]
                pgvector.add(db, [pgvector.embedding_row(*one) for one in of])  # type: ignore[arg-type]
