"""The example log: appended to; only feedback, vectors and redacted texts of its rows ever change."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import sqlalchemy as sa

from ibidem.example import DocumentRef, Example
from ibidem.lifecycle.invalidation import Criteria
from ibidem.storage import tables
from ibidem.storage.engine import fetch_all, fetch_column, fetch_value, in_namespace, valid_rows, writing
from ibidem.storage.logs import delete_oldest
from ibidem.types import Entry, Vector, to_bytes

EXAMPLE_LIMIT = 100_000  # examples kept; the oldest are deleted
BATCH = 500  # ids in one statement

_examples = tables.examples
_c = _examples.c
_FIELDS = [one.name for one in fields(Example)]  # are columns of `examples`
_EXAMPLE = [column for column in _c if column.name not in ("vector", "embedder")]


@dataclass(frozen=True, slots=True)
class EmbeddedExample:
    """An example with the vector of its question, if `embedder` has made it already.

    `submitted` is when it was added, in seconds since the epoch; if invalidated since, it is not stored.
    """

    example: Example
    vector: Vector | None = field(default=None, repr=False, compare=False)
    embedder: str = ""
    submitted: float = field(default=math.inf, compare=False)


@dataclass(frozen=True, slots=True)
class ExampleStats:
    """Counts of the example log.

    `namespaces` and `models` hold counts by name, `good` and `bad` count feedback; `input_tokens` and
    `output_tokens` are sums, where known.
    """

    total: int = 0
    namespaces: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    good: int = 0
    bad: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def unknown(self) -> int:
        """Examples without feedback."""
        return self.total - self.good - self.bad

    @classmethod
    def of(cls, groups: Iterable[tuple[str, str, bool | None, int, int, int]]) -> ExampleStats:
        """Sum up groups: namespace, model, feedback, count, input tokens, output tokens."""
        rows = list(groups)
        namespaces, models, feedbacks = Counter[str](), Counter[str](), Counter[bool | None]()
        for namespace, model, feedback, count, _, _ in rows:
            namespaces[namespace] += count
            models[model] += count
            feedbacks[feedback] += count
        return cls(
            feedbacks.total(),
            dict(namespaces),
            dict(models),
            good=feedbacks[True],
            bad=feedbacks[False],
            input_tokens=sum(int(row[4] or 0) for row in rows),
            output_tokens=sum(int(row[5]) for row in rows),
        )


def example_row(example: Example | EmbeddedExample) -> dict[str, Any]:
    """Return the columns of `examples` for an example."""
    embedded = example if isinstance(example, EmbeddedExample) else EmbeddedExample(example)
    plain = embedded.example
    columns = {name: getattr(plain, name) for name in _FIELDS if name != "id"}  # which the database gives
    return {
        **columns,
        "at": float(plain.at),
        "seconds": None if plain.seconds is None else float(plain.seconds),
        "documents": json.dumps([(d.id, d.digest, d.source) for d in plain.documents]),
        "tags": json.dumps(plain.tags),
        "embedder": "" if embedded.vector is None else embedded.embedder,
        "vector": None if embedded.vector is None else to_bytes(embedded.vector),
    }


def to_example(row: Any) -> Example:
    """Convert a row of `examples` to its example."""
    columns = {name: row[name] for name in _FIELDS}
    tags = json.loads(row["tags"])
    return Example(**{**columns, "documents": to_documents(row["documents"]), "tags": tags})


def to_documents(text: str) -> list[DocumentRef]:
    """Convert the column `documents` to its documents."""
    return [DocumentRef(*ref) for ref in json.loads(text)]


class ExampleTable:
    """The example log of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, examples: Sequence[Example | EmbeddedExample]) -> None:
        """Append examples, except for those that were invalidated since they were submitted."""
        rows = [(one, example_row(one)) for one in examples]
        with writing(self._engine) as db:
            kept = set(map(id, _without_invalidated(db, examples)))
            if not kept:
                return
            db.execute(sa.insert(_examples), [row for one, row in rows if id(one) in kept])
            delete_oldest(db, _examples, EXAMPLE_LIMIT)

    def recent(self, limit: int = 20, namespace: str | None = None) -> list[Example]:
        """Return the last examples, newest first; all or those of one namespace."""
        return self._read(_within(sa.select(*_EXAMPLE), namespace).order_by(_c.id.desc()).limit(limit))

    def of_ids(self, ids: Sequence[int]) -> list[Example]:
        """Return the examples of these ids, in no order; deleted ones are missing."""
        found: list[Example] = []
        for start in range(0, len(ids), BATCH):
            found += self._read(sa.select(*_EXAMPLE).where(_c.id.in_(ids[start : start + BATCH])))
        return found

    def count(self, namespace: str | None = None) -> int:
        """Count the examples; all or those of one namespace."""
        return (
            fetch_value(
                self._engine,
                _within(sa.select(sa.func.count()).select_from(_examples), namespace),
            )
            or 0
        )

    def stats(self, namespace: str | None = None) -> ExampleStats:
        """Return counts by namespace, model and feedback; of all or of one namespace."""
        columns = (_c.namespace, _c.model, _c.feedback)
        sums = [sa.func.coalesce(sa.func.sum(column), 0) for column in (_c.input_tokens, _c.output_tokens)]
        query = in_namespace(
            sa.select(*columns, sa.func.count(), *sums).group_by(*columns), _c.namespace, namespace
        )
        return ExampleStats.of(tuple(row) for row in fetch_all(self._engine, query))

    def set_feedback(self, example_id: int, good: bool | None) -> bool:
        """Set the feedback of an example; return whether there is one of this id."""
        with writing(self._engine) as db:
            done = db.execute(sa.update(_examples).where(_c.id == example_id).values(feedback=good))
        return int(done.rowcount) > 0

    def set_feedback_of(self, entry: Entry, good: bool) -> int:
        """Set the feedback of the examples with the answer of an entry; return how many."""
        where = _c.entry_id == entry.id
        if entry.question is not None:  # logged without knowing of the entry
            same = (_c.namespace == entry.namespace, _c.question == entry.question)
            where = sa.or_(where, sa.and_(_c.entry_id.is_(None), *same))
        # The entry may have been replaced, and an older answer is not meant.
        where = sa.and_(where, _c.answer == entry.answer.text)
        with writing(self._engine) as db:
            return int(db.execute(sa.update(_examples).where(where).values(feedback=good)).rowcount)

    def delete_before(self, at: float) -> int:
        """Delete the examples that were answered before this time; return how many."""
        with writing(self._engine) as db:
            return int(db.execute(sa.delete(_examples).where(_c.at < at)).rowcount)

    def each(self, namespace: str | None, embedder: str) -> Iterator[tuple[Example, bytes | None]]:
        """Yield the examples there are now, oldest first, read in pages, with vectors of this embedder."""
        newest = fetch_value(self._engine, _within(sa.select(sa.func.max(_c.id)), namespace)) or 0
        query = _within(sa.select(*_EXAMPLE, _c.vector, _c.embedder), namespace).where(_c.id <= newest)
        last = 0
        while last < newest:
            page = fetch_all(self._engine, query.where(_c.id > last).order_by(_c.id).limit(BATCH))
            yield from valid_rows(partial(_with_vector, embedder), page)
            last = page[-1].id if page else newest

    # For the selection of few-shot examples.

    def matching(self, namespace: str, *, model: str | None, tags: Sequence[str], good: bool) -> set[int]:
        """Return ids of the examples of a namespace, of this model, with all tags, with good feedback.

        Those called bad are among them, whatever else they are: they spoil others with the same answer.
        """
        wanted = [_c.tags.contains(json.dumps(tag), autoescape=True) for tag in tags]  # finds too many
        if model is not None:
            wanted.append(_c.model == model)
        if good:
            wanted.append(_c.feedback.is_(True))
        query = sa.select(_c.id, _c.tags, _c.feedback).where(
            _c.namespace == namespace, sa.or_(sa.and_(sa.true(), *wanted), _c.feedback.is_(False))
        )
        rows = fetch_all(self._engine, query)
        if not tags:
            return {row.id for row in rows}
        return {id_ for id_, actual, bad in valid_rows(_with_tags, rows) if bad or {*tags} <= actual}

    def vector_range(self, namespace: str, embedder: str) -> tuple[int, int]:
        """Return the lowest and highest id of the embedded examples of a namespace, or 0."""
        # Two queries: together, SQLite would read the index from one end to the other.
        low, high = (
            fetch_value(
                self._engine, sa.select(end).where(_c.namespace == namespace, _c.embedder == embedder)
            )
            for end in (sa.func.min(_c.id), sa.func.max(_c.id))
        )
        return low or 0, high or 0

    def count_vectors(self, namespace: str, embedder: str) -> int:
        """Count the embedded examples of a namespace; reads the index of all of them."""
        query = sa.select(sa.func.count()).where(_c.namespace == namespace, _c.embedder == embedder)
        return fetch_value(self._engine, query) or 0

    def vector_ids(self, namespace: str, embedder: str) -> list[int]:
        """Return ids of the embedded examples of a namespace."""
        query = sa.select(_c.id).where(_c.namespace == namespace, _c.embedder == embedder)
        return list(fetch_column(self._engine, query))

    def vectors(
        self, namespace: str, embedder: str, *, after: int = 0, ids: Sequence[int] | None = None
    ) -> list[tuple[int, bytes | None]]:
        """Return vectors by id, of the examples after this id or of these ids; None: too long to embed."""
        query = sa.select(_c.id, _c.vector).where(_c.namespace == namespace, _c.embedder == embedder)
        if ids is None:
            return self._pairs(query.where(_c.id > after))
        found: list[tuple[int, bytes | None]] = []
        for start in range(0, len(ids), BATCH):
            found += self._pairs(query.where(_c.id.in_(ids[start : start + BATCH])))
        return found

    def without_vectors(self, namespace: str, embedder: str, limit: int) -> list[tuple[int, str]]:
        """Return the newest questions that are not embedded yet, by id."""
        found: list[tuple[int, str]] = []
        for other in (_c.embedder < embedder, _c.embedder > embedder):  # ranges of the index, unlike "!="
            newest = sa.select(_c.id).where(_c.namespace == namespace, other)
            ids = newest.order_by(_c.id.desc()).limit(limit)
            found += self._pairs(sa.select(_c.id, _c.question).where(_c.id.in_(ids)))
        return sorted(found, reverse=True)[:limit]

    def set_vectors(self, rows: Sequence[tuple[int, Any]], embedder: str) -> None:
        """Store vectors by id; None for a question that cannot be embedded."""
        change = sa.update(_examples).where(_c.id == sa.bindparam("example_id"))
        values = change.values(vector=sa.bindparam("bytes"), embedder=embedder)
        changes = [
            {"example_id": id_, "bytes": None if vector is None else to_bytes(vector)} for id_, vector in rows
        ]
        with writing(self._engine) as db:
            db.execute(values, changes)

    def _read(self, query: sa.Select[Any]) -> list[Example]:
        return list(valid_rows(lambda row: to_example(row._mapping), fetch_all(self._engine, query)))

    def _pairs(self, query: sa.Select[Any]) -> list[tuple[int, Any]]:
        return [(row[0], row[1]) for row in fetch_all(self._engine, query)]


def _within(query: Any, namespace: str | None) -> Any:
    return in_namespace(query, _c.namespace, namespace)


def _with_vector(embedder: str, row: Any) -> tuple[Example, bytes | None]:
    return to_example(row._mapping), row.vector if row.embedder == embedder else None


def _with_tags(row: Any) -> tuple[int, set[str], bool]:
    return row.id, set(json.loads(row.tags)), row.feedback is not None and not row.feedback


def _without_invalidated(
    db: sa.Connection, examples: Sequence[Example | EmbeddedExample]
) -> list[Example | EmbeddedExample]:
    """Drop the examples invalidated since they were submitted; first in its transaction."""
    oldest = min((one.submitted for one in examples if isinstance(one, EmbeddedExample)), default=math.inf)
    if math.isinf(oldest):
        return list(examples)
    c = tables.invalidations.c
    rows = db.execute(sa.select(c.at, c.criteria).where(c.at >= oldest)).all()
    tombstones = [(row.at, Criteria.read(row.criteria)) for row in rows]
    return [
        one for one in examples if not (isinstance(one, EmbeddedExample) and _invalidated(one, tombstones))
    ]


def _invalidated(embedded: EmbeddedExample, tombstones: Iterable[tuple[float, Criteria | None]]) -> bool:
    """Return whether a later tombstone matches; None, criteria of a newer version, matches everything."""
    return any(
        embedded.submitted <= at and (criteria is None or criteria.matches_example(embedded.example))
        for at, criteria in tombstones
    )
