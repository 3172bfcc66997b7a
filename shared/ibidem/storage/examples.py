"""The example log in SQL: appended to; only feedback and vectors of its rows ever change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from ibidem.examples.example import Example, ExampleStats
from ibidem.storage import tables
from ibidem.storage.columns import sound
from ibidem.storage.engine import reading, writing
from ibidem.storage.invalidation import without_invalidated
from ibidem.storage.logs import forget_oldest
from ibidem.storage.rows import EmbeddedExample, example_row, to_example
from ibidem.types import Entry, to_bytes

EXAMPLE_LIMIT = 100_000  # examples kept; the oldest go first
BATCH = 500  # ids in one statement

_examples = tables.examples
_c = _examples.c
_EXAMPLE = [column for column in _c if column.name not in ("vector", "embedder")]


class ExampleTable:
    """The example log of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, examples: Sequence[Example | EmbeddedExample]) -> None:
        """Append examples, but for those invalidated since they were told of; forget the oldest."""
        rows = [(one, example_row(one)) for one in examples]
        with writing(self._engine) as db:
            left = set(map(id, without_invalidated(db, examples)))
            if not left:
                return
            db.execute(sa.insert(_examples), [row for one, row in rows if id(one) in left])
            forget_oldest(db, _examples, EXAMPLE_LIMIT)

    def recent(self, limit: int = 20, namespace: str | None = None) -> list[Example]:
        """The last examples added, newest first; all or those of one namespace."""
        return self._read(_within(sa.select(*_EXAMPLE), namespace).order_by(_c.id.desc()).limit(limit))

    def of_ids(self, ids: Sequence[int]) -> list[Example]:
        """Those of these examples that are still there, in no order."""
        found: list[Example] = []
        for start in range(0, len(ids), BATCH):
            found += self._read(sa.select(*_EXAMPLE).where(_c.id.in_(ids[start : start + BATCH])))
        return found

    def count(self, namespace: str | None = None) -> int:
        """How many there are, in all or of one namespace."""
        with reading(self._engine) as db:
            return db.scalar(_within(sa.select(sa.func.count()).select_from(_examples), namespace)) or 0

    def stats(self, namespace: str | None = None) -> ExampleStats:
        """Counts, of all or of one namespace."""
        columns = (_c.namespace, _c.model, _c.feedback)
        sums = [sa.func.coalesce(sa.func.sum(column), 0) for column in (_c.input_tokens, _c.output_tokens)]
        query = _within(sa.select(*columns, sa.func.count(), *sums).group_by(*columns), namespace)
        with reading(self._engine) as db:
            return ExampleStats.of(tuple(row) for row in db.execute(query))

    def set_feedback(self, example_id: int, good: bool | None) -> bool:
        """Note what somebody thinks of an example; False if there is none of this id."""
        with writing(self._engine) as db:
            done = db.execute(sa.update(_examples).where(_c.id == example_id).values(feedback=good))
        return int(done.rowcount) > 0

    def set_feedback_of(self, entry: Entry, good: bool) -> int:
        """Note what somebody thinks of the answer of an entry, with the examples of it; how many."""
        where = _c.entry_id == entry.id
        if entry.question is not None:  # logged by somebody who did not know of the entry
            same = (_c.namespace == entry.namespace, _c.question == entry.question)
            where = sa.or_(where, sa.and_(_c.entry_id.is_(None), *same))
        # The entry may have been replaced, and an older answer is not meant.
        where = sa.and_(where, _c.answer == entry.answer.text)
        with writing(self._engine) as db:
            return int(db.execute(sa.update(_examples).where(where).values(feedback=good)).rowcount)

    def forget_before(self, at: float) -> int:
        """Delete what was answered before; returns how many."""
        with writing(self._engine) as db:
            return int(db.execute(sa.delete(_examples).where(_c.at < at)).rowcount)

    def each(self, namespace: str | None, embedder: str) -> Iterator[tuple[Example, bytes | None]]:
        """All there are at the first call, oldest first, read in pages, with vectors of this embedder."""
        with reading(self._engine) as db:
            newest = db.scalar(_within(sa.select(sa.func.max(_c.id)), namespace)) or 0
        query = _within(sa.select(*_EXAMPLE, _c.vector, _c.embedder), namespace).where(_c.id <= newest)
        last = 0
        while last < newest:
            with reading(self._engine) as db:
                page = db.execute(query.where(_c.id > last).order_by(_c.id).limit(BATCH)).all()
            yield from sound(partial(_with_vector, embedder), page)
            last = page[-1].id if page else newest

    # What a selection needs.

    def fitting(self, namespace: str, *, model: str | None, tags: Sequence[str], good: bool) -> set[int]:
        """Ids of the examples of a namespace that a model gave, that have all tags, that are called good."""
        query = sa.select(_c.id, _c.tags).where(_c.namespace == namespace)
        if model is not None:
            query = query.where(_c.model == model)
        if good:
            query = query.where(_c.feedback.is_(True))
        for tag in tags:  # as JSON writes it; LIKE finds too many, never too few
            query = query.where(_c.tags.contains(json.dumps(tag), autoescape=True))
        with reading(self._engine) as db:
            rows = db.execute(query)
            if not tags:
                return {row.id for row in rows}
            return {id_ for id_, held in sound(_with_tags, rows) if {*tags} <= held}

    def ends_of_vectors(self, namespace: str, embedder: str) -> tuple[int, int]:
        """Lowest and highest id of the examples of the namespace that the embedder has seen, or 0."""
        # Two queries: together, SQLite would read the index from one end to the other.
        ends = []
        with reading(self._engine) as db:
            for end in (sa.func.min(_c.id), sa.func.max(_c.id)):
                query = sa.select(end).where(_c.namespace == namespace, _c.embedder == embedder)
                ends.append(int(db.scalar(query) or 0))
        return ends[0], ends[1]

    def count_vectors(self, namespace: str, embedder: str) -> int:
        """How many examples of the namespace the embedder has seen; reads the index of all of them."""
        query = sa.select(sa.func.count()).where(_c.namespace == namespace, _c.embedder == embedder)
        with reading(self._engine) as db:
            return db.scalar(query) or 0

    def vector_ids(self, namespace: str, embedder: str) -> list[int]:
        """Ids of the examples of the namespace that the embedder has seen."""
        query = sa.select(_c.id).where(_c.namespace == namespace, _c.embedder == embedder)
        with reading(self._engine) as db:
            return list(db.scalars(query))

    def vectors(
        self, namespace: str, embedder: str, *, after: int = 0, ids: Sequence[int] | None = None
    ) -> list[tuple[int, bytes | None]]:
        """Vectors by id, of the examples that came after one or of these; None: too long to embed."""
        query = sa.select(_c.id, _c.vector).where(_c.namespace == namespace, _c.embedder == embedder)
        if ids is None:
            return self._pairs(query.where(_c.id > after))
        found: list[tuple[int, bytes | None]] = []
        for start in range(0, len(ids), BATCH):
            found += self._pairs(query.where(_c.id.in_(ids[start : start + BATCH])))
        return found

    def unseen(self, namespace: str, embedder: str, limit: int) -> list[tuple[int, str]]:
        """The newest questions that the embedder has not seen, by id."""
        found: list[tuple[int, str]] = []
        for other in (_c.embedder < embedder, _c.embedder > embedder):  # ranges of the index, unlike "!="
            newest = sa.select(_c.id).where(_c.namespace == namespace, other)
            ids = newest.order_by(_c.id.desc()).limit(limit)
            found += self._pairs(sa.select(_c.id, _c.question).where(_c.id.in_(ids)))
        return sorted(found, reverse=True)[:limit]

    def set_vectors(self, rows: Sequence[tuple[int, Any]], embedder: str) -> None:
        """Keep vectors that were made after the fact; None for a question that cannot be embedded."""
        change = sa.update(_examples).where(_c.id == sa.bindparam("example_id"))
        values = change.values(vector=sa.bindparam("bytes"), embedder=embedder)
        changes = [
            {"example_id": id_, "bytes": None if vector is None else to_bytes(vector)} for id_, vector in rows
        ]
        with writing(self._engine) as db:
            db.execute(values, changes)

    def _read(self, query: sa.Select[Any]) -> list[Example]:
        with reading(self._engine) as db:
            return list(sound(lambda row: to_example(row._mapping), db.execute(query)))

    def _pairs(self, query: sa.Select[Any]) -> list[tuple[int, Any]]:
        with reading(self._engine) as db:
            return [(row[0], row[1]) for row in db.execute(query)]


def _with_vector(embedder: str, row: Any) -> tuple[Example, bytes | None]:
    return to_example(row._mapping), row.vector if row.embedder == embedder else None


def _with_tags(row: Any) -> tuple[int, set[str]]:
    return row.id, set(json.loads(row.tags))


def _within(query: sa.Select[Any], namespace: str | None) -> sa.Select[Any]:
    return query if namespace is None else query.where(_c.namespace == namespace)
