"""The questions of the benchmarks, and many answers put into a database at once, as if stored one by one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

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
from ibidem.types import Entry, Vector
from tests.helpers import question

BATCH = 1_000
DIMENSION, CENTRES = 384, 5_000
SYLLABLES = "ba ke di fo gu la me ni po ru sa te vi zo wu ja ce hi do lu".split()
PLEASE = "please tell me "


class Corpus:
    """Numbered questions: made up, with random vectors around 5,000 centres; or those of a folder.

    Args:
        folder: Holds `texts.json` and `vectors.npy`, which the default embedder has made of them.
    """

    fingerprint, max_tokens = "made up", 256

    def __init__(self, folder: str = "") -> None:
        self.given: list[str] = json.loads(Path(folder, "texts.json").read_text("utf-8")) if folder else []
        self._rows = np.load(Path(folder, "vectors.npy"), mmap_mode="r") if folder else None
        self._centres = np.random.default_rng(0).normal(size=(CENTRES, DIMENSION)).astype(np.float32)

    def text(self, n: int) -> str:
        """The n-th question."""
        if self.given:
            return self.given[n % len(self.given)]
        digits = [n // 20**place % 20 for place in range(8)]
        return " ".join(SYLLABLES[digit] + SYLLABLES[(7 * digit + 3) % 20] for digit in digits)

    def asked(self, n: int) -> str:
        """The n-th question, in other words: a cosine of 0.95 where it is made up."""
        return PLEASE + self.text(n)

    def vector(self, n: int) -> Vector:
        """The vector of the n-th question."""
        if self._rows is not None:
            return np.asarray(self._rows[n % len(self._rows)], np.float32)
        draw = np.random.default_rng(n)
        return _unit(self._centres[draw.integers(CENTRES)] + 0.7 * draw.normal(size=DIMENSION))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As an `Embedder`, of made-up questions."""
        rows = []
        for text in texts:
            words = text.removeprefix(PLEASE).split()
            n = sum(SYLLABLES.index(word[:2]) * 20**place for place, word in enumerate(words))
            moved = _unit(np.random.default_rng((n, 1)).normal(size=DIMENSION)) / 3 * text.startswith(PLEASE)
            rows.append(_unit(self.vector(n) + moved))
        return np.stack(rows)

    def count_tokens(self, text: str) -> int:
        """As an `Embedder`."""
        return len(text.split()) + 2


def _unit(row: NDArray[np.floating]) -> Vector:
    return np.asarray(row / np.linalg.norm(row), np.float32)


def text(n: int) -> str:
    """The n-th question for a bag of words."""
    return question(n, 6)


def asked(n: int) -> str:
    """The n-th question, in other words: a cosine of 0.93."""
    return f"please {text(n)}"


def request_of(question: str, scope: int) -> Request:
    """The request for a question in one of the scopes."""
    return Request(question, scope=f"scope {scope}")


def entry_of(question: str, scope: int, vector: Vector) -> Entry:
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
