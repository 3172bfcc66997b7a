"""Rows of the truth as values, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ibidem.examples.example import DocumentRef, Example
from ibidem.lifecycle.eviction import DOCUMENT_BYTES, OVERHEAD, cost_of
from ibidem.storage import tables
from ibidem.storage.columns import LARGEST
from ibidem.types import (
    Answer,
    Entry,
    Hit,
    Miss,
    Request,
    Source,
    Vector,
    point_of,
    storable,
    to_bytes,
    to_vector,
)

_entries = tables.entries.c
# The columns that make an entry, in the order in which `to_entry` reads them.
ENTRY = (
    *(_entries.id, _entries.namespace, _entries.scope, _entries.question, _entries.documents),
    *(_entries.semantic, _entries.answer, _entries.payload, _entries.model),
    *(_entries.input_tokens, _entries.output_tokens, _entries.finish_reason, _entries.seconds),
    *(_entries.created, _entries.expires, _entries.ttl, _entries.used, _entries.hits),
)
_EXAMPLE = [field.name for field in fields(Example)]  # are the columns of `examples`

# Values of entry_vectors.indexed_in: the vector is in no index yet; there is none yet. By any collation the
# first sorts before all generations and the other after them.
WAITING, LACKING = "", "zz"


@dataclass(frozen=True, slots=True)
class LookupRow:
    """One line of the lookup log; the columns of the table `lookups`."""

    at: float
    namespace: str
    scope: str
    question: str | None
    tier: str
    reason: str
    entry_id: str | None
    similarity: float | None
    seconds: float
    tokens_saved: int


@dataclass(frozen=True, slots=True)
class JudgementRow:
    """Whether a stored answer would have been right for a question; the columns of the table `judgements`.

    `entry_id` is the entry whose answer, given to the question `stored`, was compared with the model's to
    `asked`. `source` is `audit` if it would have been served, `probe` if not, `fit` for the label of a pair
    to which a fit gave a new score, `feedback` if somebody said so, `review` if a reviewer did; `scorer` says
    what gave the `score`.
    """

    at: float
    namespace: str
    scope: str
    entry_id: str
    asked: str
    stored: str
    similarity: float
    score: float
    scorer: str
    right: bool
    source: str


@dataclass(frozen=True, slots=True)
class EmbeddedExample:
    """An example with the vector of its question, if `embedder` has made it already.

    `told` is when it was told of, in seconds since the epoch: what is invalidated later is not written.
    """

    example: Example
    vector: Vector | None = field(default=None, repr=False, compare=False)
    embedder: str = ""
    told: float = field(default=math.inf, compare=False)


@dataclass(frozen=True, slots=True)
class StoredVector:
    """A stored question as the index needs it; `vector` is None if it is still to be made."""

    id: str
    namespace: str
    scope: str
    question: str
    vector: Vector | None

    @property
    def point(self) -> str | None:
        """Where the vector belongs in the index."""
        return None if self.vector is None else point_of(self.namespace, self.scope, self.vector)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Sums over the lookup log: hits by tier, misses by reason."""

    hits: dict[str, int]
    misses: dict[str, int]
    tokens_saved: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the database; lookups are those still in the log."""

    entries: int
    semantic_entries: int
    unindexed: int
    hits: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)
    tokens_saved: int = 0
    examples: int = 0
    audits: int = 0
    audits_wrong: int = 0
    bytes: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Hits per lookup; None before the first."""
        hits, misses = sum(self.hits.values()), sum(self.misses.values())
        return hits / (hits + misses) if hits + misses else None


def lookup_row(request: Request, question: str, result: Hit | Miss, at: float) -> LookupRow:
    """The line of the lookup log for a lookup at this time, with the question as it may be shown.

    Text that cannot be stored is left out.
    """
    return LookupRow(
        at=at,
        namespace=request.namespace if storable(request.namespace) else "",
        scope=request.scope_digest,
        question=question if request.semantic and storable(question) else None,
        tier=result.tier if isinstance(result, Hit) else "",
        reason="" if isinstance(result, Hit) else result.reason,
        entry_id=result.entry_id,
        similarity=result.similarity,
        seconds=result.seconds,
        tokens_saved=result.answer.tokens if isinstance(result, Hit) else 0,
    )


def entry_row(entry: Entry) -> dict[str, Any]:
    """The columns of `entries` for an entry."""
    answer = entry.answer
    return {
        "id": entry.id,
        "namespace": entry.namespace,
        "scope": entry.scope,
        "question": entry.question,
        "documents": entry.documents,
        "semantic": entry.semantic,
        "answer": answer.text,
        "payload": answer.payload,
        "model": answer.model,
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "finish_reason": answer.finish_reason,
        "seconds": answer.seconds,
        "created": entry.created,
        "expires": entry.expires,
        "ttl": entry.ttl,
        "hits": 0,
        "used": max(entry.created, entry.used),
        "size": size_of(entry),
        "cost": cost_of(answer),
    }


def vector_row(entry: Entry, embedder: int) -> dict[str, Any]:
    """The columns of `entry_vectors` for an entry whose vector this embedder made, or is to make."""
    return {
        "entry_id": entry.id,
        "embedder": embedder,
        "vector": None if entry.vector is None else to_bytes(entry.vector),
        "point": entry.point,
        "indexed_in": LACKING if entry.vector is None else WAITING,
    }


def size_of(entry: Entry) -> int:
    """Bytes that the entry takes in the database, about."""
    texts = (entry.answer.text, entry.answer.payload, entry.question or "", entry.namespace)
    vector = 0 if entry.vector is None else 2 * len(entry.vector)
    documents = DOCUMENT_BYTES * len(entry.sources)
    return OVERHEAD + sum(len(text.encode()) for text in texts) + vector + documents


def source_rows(entry: Entry) -> list[dict[str, Any]]:
    """The rows of `entry_documents` for an entry; each content of a document once."""
    return [
        {
            "entry_id": entry.id,
            "digest": s.digest,
            "document_id": s.id,
            "supports": s.supports,
            "source": s.source,
        }
        for s in {(source.id, source.digest): source for source in entry.sources}.values()
    ]


def tag_rows(entry: Entry) -> list[dict[str, str]]:
    """The rows of `entry_tags` for an entry."""
    return [{"entry_id": entry.id, "tag": tag} for tag in sorted(set(entry.tags))]


_TYPES: dict[str, tuple[type, ...]] = {"BOOLEAN": (int,), "INTEGER": (int,), "FLOAT": (int, float)}
# What a value in each of the columns `ENTRY` is, as SQLite's own driver gives it.
_KINDS = [
    (*_TYPES.get(str(column.type), (str,)), *((type(None),) if column.nullable else ())) for column in ENTRY
]


_TOKENS = ENTRY.index(_entries.input_tokens)  # and then those of the output


def to_entry(row: Sequence[Any], sources: tuple[Source, ...] = (), vector: bytes | None = None) -> Entry:
    """The entry of a row that begins with the columns `ENTRY`.

    Raises:
        ValueError: The row is damaged.
    """
    if not all(map(isinstance, row, _KINDS)) or max(row[_TOKENS] or 0, row[_TOKENS + 1] or 0) > LARGEST:
        raise ValueError("a value that its column does not hold")
    id_, namespace, scope, question, documents, semantic, text, payload, model, spent, said, *rest = row
    finish_reason, seconds, created, expires, ttl, used, hits = rest[:7]
    semantic = bool(semantic)  # SQLite's own driver says 0 or 1
    return Entry(
        id=id_,
        namespace=namespace,
        scope=scope,
        question=question,
        documents=documents,
        semantic=semantic,
        answer=Answer(
            text,
            payload=payload,
            model=model,
            input_tokens=spent,
            output_tokens=said,
            finish_reason=finish_reason,
            seconds=seconds,
            semantic=semantic,
        ),
        created=created,
        expires=expires,
        ttl=ttl,
        used=used,
        hits=hits,
        sources=sources,
        vector=None if vector is None else to_vector(vector),
    )


def to_stored_vector(row: Any) -> StoredVector:
    """The question of a row, with its vector if it has one."""
    vector = None if row.vector is None else to_vector(row.vector)
    if not (row.id and row.scope and isinstance(row.question, str)):
        raise ValueError("a damaged row")
    stored = StoredVector(row.id, row.namespace, row.scope, row.question, vector)
    if stored.point != row.point:  # it would be indexed again and again
        raise ValueError("a damaged row")
    return stored


def example_row(given: Example | EmbeddedExample) -> dict[str, Any]:
    """The columns of `examples` for an example."""
    one = given if isinstance(given, EmbeddedExample) else EmbeddedExample(given)
    example = one.example
    return {
        "at": float(example.at),
        "namespace": example.namespace,
        "question": example.question,
        "answer": example.answer,
        "model": example.model,
        "documents": json.dumps([(d.id, d.digest, d.source) for d in example.documents]),
        "input_tokens": example.input_tokens,
        "output_tokens": example.output_tokens,
        "seconds": None if example.seconds is None else float(example.seconds),
        "streamed": example.streamed,
        "entry_id": example.entry_id,
        "scope": example.scope,
        "feedback": example.feedback,
        "tags": json.dumps(example.tags),
        "embedder": "" if one.vector is None else one.embedder,
        "vector": None if one.vector is None else to_bytes(one.vector),
    }


def to_example(row: Any) -> Example:
    """The example of a row of `examples`."""
    documents = [DocumentRef(*ref) for ref in json.loads(row["documents"])]
    columns = {name: row[name] for name in _EXAMPLE}
    return Example(**{**columns, "documents": documents, "tags": json.loads(row["tags"])})


def lineage_of(row: Any) -> Example:
    """The example of a row without its texts: for what it rests on."""
    return Example(
        "-",
        "-",
        at=row.at,
        namespace=row.namespace,
        model=row.model,
        documents=tuple(DocumentRef(*ref) for ref in json.loads(row.documents)),
        entry_id=row.entry_id,
        tags=json.loads(row.tags),
    )
