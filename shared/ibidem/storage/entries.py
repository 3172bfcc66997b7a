"""The tables `entries`, `entry_documents` and `entry_tags`: the stored answers. They confirm each hit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from ibidem.lifecycle.rules import DOCUMENT_BYTES, OVERHEAD, RANKINGS, UNBOUNDED, Bounds, cost_of
from ibidem.storage import tables
from ibidem.storage.deletion import InvalidationTable
from ibidem.storage.engine import (
    Prepared,
    fetch_all,
    fetch_value,
    in_namespace,
    insert_into,
    sql_min,
    valid_rows,
    writing,
)
from ibidem.storage.tables import MAX_NUMBER
from ibidem.storage.vectors import delete_vectors, embedder_id, put_vector
from ibidem.types import Answer, Entry, Source, Turns, Vector, to_vector

NEAR_LIMIT = 64  # candidates of one lookup; one wording over many document sets has many entries
SOME = 1_000  # entries of a scope that are looked at to say what it holds
BATCH = 500  # ids in one query: databases bound the number of parameters

_entries, _documents, _tags = tables.entries, tables.entry_documents, tables.entry_tags
_vectors = tables.entry_vectors
_e, _d = _entries.c, _documents.c
# The columns that make an entry, in the order in which `to_entry` reads them.
ENTRY_COLUMNS = (
    *(_e.id, _e.namespace, _e.scope, _e.question, _e.documents, _e.semantic),
    *(_e.answer, _e.payload, _e.model, _e.input_tokens, _e.output_tokens, _e.finish_reason, _e.seconds),
    *(_e.created, _e.expires, _e.ttl, _e.used, _e.hits, _e.pinned, _e.scope_parts, _e.requested),
    *(_e.base, _e.turns),
)
_ID, _SET_OF_DOCUMENTS = ENTRY_COLUMNS.index(_e.id), ENTRY_COLUMNS.index(_e.documents)
_TOKENS = ENTRY_COLUMNS.index(_e.input_tokens)  # followed by the output tokens
_TYPES: dict[str, tuple[type, ...]] = {"BOOLEAN": (int,), "INTEGER": (int,), "FLOAT": (int, float)}
# The types of a value in each of these columns, as SQLite's own driver returns it.
_COLUMN_TYPES = [
    (*_TYPES.get(str(column.type), (str,)), *((type(None),) if column.nullable else ()))
    for column in ENTRY_COLUMNS
]


def numbered_params(name: str, count: int) -> list[sa.BindParameter[str]]:
    """Make so many parameters for `column.in_(...)`; `pad_params` makes their values."""
    return [sa.bindparam(f"{name}_{number}", type_=sa.String) for number in range(count)]


def pad_params(name: str, values: Sequence[str], count: int) -> dict[str, str]:
    """Make the values of `numbered_params` from at least one value; the last one is repeated."""
    last = len(values) - 1
    return {f"{name}_{number}": values[min(number, last)] for number in range(count)}


_NO_BASE = "-"  # no digest
_CHUNK = 32  # points, or entries, in one statement
_BY_ID = Prepared(sa.select(*ENTRY_COLUMNS).where(_e.id == sa.bindparam("id")))
_BY_EITHER_ID = Prepared(sa.select(*ENTRY_COLUMNS).where(_e.id.in_(numbered_params("id", 2))))
_NEAR = Prepared(
    sa.select(*ENTRY_COLUMNS, _vectors.c.vector)
    .join(_vectors, _vectors.c.entry_id == _e.id)
    .where(
        _vectors.c.point.in_(numbered_params("point", _CHUNK)),
        _vectors.c.embedder == sa.bindparam("embedder"),
        # As an expression: by the index on the column SQLite would read all entries of the namespace.
        _e.namespace.concat("") == sa.bindparam("namespace"),
        sa.or_(_e.scope == sa.bindparam("scope"), _e.base == sa.bindparam("base")),
        _e.semantic,
    )
    .order_by(_e.created.desc())
    .limit(NEAR_LIMIT)
)
_SOURCES = Prepared(
    sa.select(_d.entry_id, _d.document_id, _d.digest, _d.supports, _d.source).where(
        _d.entry_id.in_(numbered_params("id", _CHUNK))
    )
)
# Each store replaces the documents and tags of its entry.
_REPLACE_DOCUMENTS, _REPLACE_TAGS = (
    (sa.delete(table).where(table.c.entry_id == sa.bindparam("of")), sa.insert(table))
    for table in (_documents, _tags)
)


_PINNED = sa.select(_e.pinned).where(
    _e.id.in_([sa.bindparam("id", type_=sa.String), sa.bindparam("vetted", type_=sa.String)]), _e.pinned != ""
)


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """A question that can be compared by meaning, with its answer.

    `documents` is the digest of the document set; `vector` the embedding, shape (d,), by the embedder asked
    for, if it exists; `scope_parts` as in `Entry`.
    """

    id: str
    namespace: str
    scope: str
    question: str
    documents: str
    answer: str
    vector: Vector | None = field(repr=False, compare=False)
    scope_parts: str = ""


@dataclass(frozen=True, slots=True)
class StoredScope:
    """A scope: its digest and parts as in `Entry`, how many answers it has, and since when."""

    scope: str
    parts: str
    answers: int
    since: float


class EntryTable:
    """The entries of one database. Every method raises `StorageError` when the database fails.

    Args:
        engine: Of the database.
        invalidations: Tells which answers must not be stored any more.
    """

    def __init__(self, engine: sa.Engine, invalidations: InvalidationTable) -> None:
        self._engine, self._invalidations = engine, invalidations

    def get(self, entry_id: str) -> Entry | None:
        """Return the entry of this id, without its sources and vector."""
        return next(valid_rows(to_entry, _BY_ID.rows(self._engine, {"id": entry_id})), None)

    def get_both(self, first: str, second: str) -> tuple[Entry | None, Entry | None]:
        """Return the entries of these ids as `get` does, by one statement."""
        rows = _BY_EITHER_ID.rows(self._engine, {"id_0": first, "id_1": second})
        found = {entry.id: entry for entry in valid_rows(to_entry, rows)}
        return found.get(first), found.get(second)

    def near(
        self,
        points: Sequence[str],
        *,
        namespace: str,
        scope: str,
        embedder: str,
        documents: str,
        base: str = "",
    ) -> list[Entry]:
        """Return the newest entries at these points of this namespace, scope and embedder, with vectors.

        Those with other `documents` (a digest of the set) come with their sources. With a `base`, those of
        other conversations with this base are among them.
        """
        same = {"namespace": namespace, "scope": scope, "embedder": embedder_id(embedder)}
        same |= {"base": base or _NO_BASE}
        rows: list[Sequence[Any]] = []
        for first in range(0, len(points), _CHUNK):
            values = pad_params("point", points[first : first + _CHUNK], _CHUNK)
            rows += _NEAR.rows(self._engine, {**values, **same})
        sources = self._sources([row[_ID] for row in rows if row[_SET_OF_DOCUMENTS] != documents])
        return list(valid_rows(lambda row: to_entry(row, sources.get(row[_ID], ()), row[-1]), rows))

    def put(
        self,
        entry: Entry,
        embedder: str,
        bounds: Bounds = UNBOUNDED,
        floor: float = 0.0,
        requested: float = math.inf,
        vetted: str = "",
    ) -> str:
        """Store the entry, replacing the one with the same id; durable against a killed process on return.

        Its vector was made by the embedder of this fingerprint, or is enqueued for it.

        Returns:
            "" if it is stored; `invalidated` if what it rests on was after it was `requested`; `pinned` if
            there is a vetted answer, under this id or the id `vetted`.
        """
        row = entry_row(entry)
        row["rank"] = bounds.rank(floor, 0, row["cost"], row["size"], row["used"])
        with writing(self._engine) as db:
            if self._invalidations.rejects(db, entry, requested):
                return "invalidated"
            if db.scalar(_PINNED, {"id": entry.id, "vetted": vetted}):
                return "pinned"  # and remains so: what pins excludes stores
            db.execute(_upsert(db.dialect.name, bounds.ranking), {**row, "floor": floor})
            put_related(db, entry, embedder)
        return ""

    def kind_in_scope(self, namespace: str, scope: str) -> bool | None:
        """Return whether this namespace and scope has answers to compare by meaning; None if it is empty.

        Looks at some of them only: a lookup that found nothing must not read a whole scope to say why.
        """
        some = sa.select(_e.semantic).where(_e.namespace == namespace, _e.scope == scope).limit(SOME)
        semantic = sa.cast(some.subquery().c.semantic, sa.Integer)
        found = fetch_value(self._engine, sa.select(sa.func.max(semantic)))
        return None if found is None else bool(found)

    def newest(self, limit: int = 20, namespace: str | None = None) -> list[Entry]:
        """Return the newest entries, newest first, with their sources."""
        query = sa.select(_entries).order_by(_e.created.desc()).limit(limit)
        return self._with_sources(in_namespace(query, _e.namespace, namespace))

    def find(self, prefix: str) -> list[Entry]:
        """Return up to 20 entries whose id begins with `prefix`, with their sources."""
        query = sa.select(_entries).where(_e.id.startswith(prefix, autoescape=True)).limit(20)
        return self._with_sources(query)

    def of_ids(self, ids: Sequence[str]) -> list[Entry]:
        """Return the entries of these ids, newest first, with their sources."""
        return self._with_sources(sa.select(_entries).where(_e.id.in_(ids)).order_by(_e.created.desc()))

    def newest_questions(
        self, limit: int, embedder: str, namespace: str | None = None
    ) -> list[StoredQuestion]:
        """Return the newest questions compared by meaning, newest first; all or those of one namespace."""
        columns = (_e.id, _e.namespace, _e.scope, _e.question, _e.documents, _e.answer)
        mine = sa.and_(_vectors.c.entry_id == _e.id, _vectors.c.embedder == embedder_id(embedder))
        query = sa.select(*columns, _vectors.c.vector, _e.scope_parts).outerjoin(_vectors, mine)
        query = query.where(_e.semantic, _e.question.is_not(None))
        query = in_namespace(query, _e.namespace, namespace)
        rows = fetch_all(self._engine, query.order_by(_e.created.desc(), _e.id).limit(limit))
        return list(valid_rows(_to_question, rows))

    def scopes(self, namespace: str, limit: int) -> list[StoredScope]:
        """Return the scopes of a namespace whose parts are known, those that were stored in last first."""
        first, last = sa.func.min(_e.created), sa.func.max(_e.created)
        columns = (_e.scope, _e.scope_parts, sa.func.count(), first)
        query = sa.select(*columns).where(_e.namespace == namespace, _e.scope_parts != "")
        query = query.group_by(_e.scope, _e.scope_parts).order_by(last.desc(), _e.scope).limit(limit)
        return [StoredScope(*row) for row in fetch_all(self._engine, query)]

    def scopes_of(self, namespace: str, questions: Sequence[str]) -> dict[str, list[StoredScope]]:
        """Return, by question, the scopes of a namespace that hold these questions, as `scopes` does."""
        found: dict[str, list[StoredScope]] = {}
        for start in range(0, len(questions), BATCH):
            some = _e.question.in_(questions[start : start + BATCH])
            columns = (_e.question, _e.scope, _e.scope_parts, sa.func.count(), sa.func.min(_e.created))
            query = sa.select(*columns).where(_e.namespace == namespace, _e.scope_parts != "", some)
            for question, *scope in fetch_all(self._engine, query.group_by(*columns[:3])):
                found.setdefault(question, []).append(StoredScope(*scope))
        return found

    def questions(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the questions of these entries by id; those of deleted or exact-only entries are missing."""
        found = {}
        for start in range(0, len(ids), BATCH):
            some = _e.id.in_(ids[start : start + BATCH])
            query = sa.select(_e.id, _e.question).where(some, _e.question.is_not(None))
            found.update({row.id: row.question for row in fetch_all(self._engine, query)})
        return found

    def _with_sources(self, query: sa.Select[Any]) -> list[Entry]:
        rows = fetch_all(self._engine, query.with_only_columns(*ENTRY_COLUMNS))
        sources = self._sources([row[_ID] for row in rows])
        return list(valid_rows(lambda row: to_entry(row, sources.get(row[_ID], ())), rows))

    def _sources(self, ids: Sequence[str]) -> dict[str, tuple[Source, ...]]:
        found: dict[str, tuple[Source, ...]] = {}
        for first in range(0, len(ids), _CHUNK):
            values = pad_params("id", ids[first : first + _CHUNK], _CHUNK)
            for entry_id, document, digest, supports, source in _SOURCES.rows(self._engine, values):
                if isinstance(digest, str):
                    cited = Source(document, digest, bool(supports), source)
                    found[entry_id] = (*found.get(entry_id, ()), cited)
        return found


@lru_cache
def _upsert(dialect: str, ranking: str) -> Any:
    """Build the statement that inserts an entry, or replaces its answer but keeps its hits.

    Once, as each store runs it: building it takes as long as running it. Its parameters are the columns, and
    `floor`, that of the ranking, one of `RANKINGS`.
    """
    insert = insert_into(dialect)(_entries)
    new, old = insert.excluded, _entries.c
    floor = sa.bindparam("floor", type_=sa.Float)
    changes = {column.name: new[column.name] for column in old if column.name not in ("id", "hits")}
    changes["rank"] = RANKINGS[ranking].rank(floor, old.hits, new.cost, new.size, new.used, sql_min)
    return insert.on_conflict_do_update(index_elements=[old.id], set_=changes)


def put_related(db: sa.Connection, entry: Entry, embedder: str) -> None:
    """Store the documents, tags and vector of an entry, in place of those it had."""
    replaced = ((_REPLACE_DOCUMENTS, _source_rows(entry)), (_REPLACE_TAGS, _tag_rows(entry)))
    for (delete, insert), rows in replaced:
        db.execute(delete, {"of": entry.id})
        if rows:
            db.execute(insert, rows)
    if entry.semantic:
        put_vector(db, entry, embedder_id(embedder))
    else:
        delete_vectors(db, sa.select(_e.id).where(_e.id == entry.id))


def entry_row(entry: Entry) -> dict[str, Any]:
    """Return the columns of `entries` for an entry."""
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
        "pinned": entry.pinned,
        "scope_parts": entry.scope_parts,
        "requested": entry.requested,
        "base": entry.base,
        "turns": _turns_text(entry.turns),
        "size": entry_size(entry),
        "cost": cost_of(answer),
    }


def entry_size(entry: Entry) -> int:
    """Estimate the bytes that the entry takes in the database."""
    answer = entry.answer
    texts = [answer.text, answer.payload, entry.question or "", entry.namespace, entry.scope_parts]
    vector = 0 if entry.vector is None else 2 * len(entry.vector)
    documents = DOCUMENT_BYTES * len(entry.sources)
    texts += (*(text for turn in entry.turns for text in turn),)
    return OVERHEAD + sum(len(text.encode()) for text in texts) + vector + documents


def _source_rows(entry: Entry) -> list[dict[str, Any]]:
    """Return the rows of `entry_documents` for an entry; each content of a document once."""
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


def _tag_rows(entry: Entry) -> list[dict[str, str]]:
    """Return the rows of `entry_tags` for an entry."""
    return [{"entry_id": entry.id, "tag": tag} for tag in sorted(set(entry.tags))]


def to_entry(row: Sequence[Any], sources: tuple[Source, ...] = (), vector: bytes | None = None) -> Entry:
    """Convert a row that begins with the columns `ENTRY_COLUMNS` to its entry.

    Raises:
        ValueError: The row is damaged.
    """
    plausible = all(map(isinstance, row, _COLUMN_TYPES))
    if not plausible or max(row[_TOKENS] or 0, row[_TOKENS + 1] or 0) > MAX_NUMBER:
        raise ValueError("a value that its column does not hold")
    id_, namespace, scope, question, documents, semantic, text, payload, model, *rest = row
    input_tokens, output_tokens, finish_reason, seconds, created, expires, ttl, used, hits, *rest = rest
    pinned, scope_parts, requested, base, turns = rest[:5]
    semantic = bool(semantic)  # SQLite's own driver returns 0 or 1
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
            input_tokens=input_tokens,
            output_tokens=output_tokens,
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
        pinned=pinned,
        scope_parts=scope_parts,
        requested=requested,
        base=base,
        turns=_read_turns(turns),
        vector=None if vector is None else to_vector(vector),
    )


def _turns_text(turns: Turns) -> str:
    """Format turns for the database; "" if there are none."""
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":")) if turns else ""


def _read_turns(text: str) -> Turns:
    """Read the output of `_turns_text`.

    Raises:
        ValueError: It is damaged.
    """
    try:
        found = tuple((said, answered) for said, answered in json.loads(text)) if text else ()
    except (TypeError, RecursionError) as error:
        raise ValueError("no turns") from error
    if not all(isinstance(said, str) for turn in found for said in turn):
        raise ValueError("no turns")
    return found


def _to_question(row: Any) -> StoredQuestion:
    if row.question is None:
        raise ValueError("a damaged row")
    vector = row.vector and to_vector(row.vector)
    of = (row.id, row.namespace, row.scope, row.question, row.documents, row.answer)
    return StoredQuestion(*of, vector, row.scope_parts)
