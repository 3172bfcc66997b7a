"""Vectors that PostgreSQL searches itself, by pgvector: the table `entry_embeddings`.

It is made only where the extension is, so it is none of `ibidem.storage.tables`. A row is written in the
transaction that stores its vector and goes with it, whoever deletes it, so no process can find what another
has deleted, or miss what it has stored. A scope of moderate size is searched exactly; for larger ones an HNSW
index of the embedder is built when one is first searched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa

from ibidem._util.concurrency import deadline
from ibidem.errors import StorageError
from ibidem.storage.engine import exclusive, fetch_all, fetch_value, reading, writing
from ibidem.storage.tables import entry_vectors
from ibidem.types import Vector, point_of

LEAST = (0, 8)  # the version that has iterative scans: a search goes on until it has found enough in a scope
GENERATION = "pgvector"  # the value of entry_vectors.indexed_in for what this table holds
MOST_DIMENSIONS = 4_000  # of an HNSW index in half precision
BUILD_SECONDS = 7 * 86_400.0  # limit for building an HNSW index
BUILD_LOCK = 0x1B1DE4  # our advisory lock while an HNSW index is built; see `engine.EXCLUSIVE_LOCK`
_MEMORY = 256 * 1024  # kB for building; beyond it a graph is built several times more slowly
_INDEX = "ix_entry_embeddings_"  # prefix of the names of HNSW indexes, before the embedder's number

_TABLE = (
    "DROP TABLE IF EXISTS entry_embeddings",
    """
    CREATE TABLE entry_embeddings (
        entry_id varchar(32) NOT NULL,
        embedder bigint NOT NULL,
        place bigint NOT NULL,
        base bigint,
        point varchar(32) NOT NULL,
        embedding halfvec NOT NULL,
        PRIMARY KEY (entry_id, embedder),
        FOREIGN KEY (entry_id, embedder) REFERENCES entry_vectors (entry_id, embedder) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX ix_entry_embeddings_place ON entry_embeddings (embedder, place)",
    "CREATE INDEX ix_entry_embeddings_base ON entry_embeddings (embedder, base) WHERE base IS NOT NULL",
)
# With all columns: one of type halfvec goes with the extension, and older tables have no base.
_HAS_TABLE = (
    "(SELECT count(*) = 2 FROM pg_attribute WHERE attrelid = to_regclass('entry_embeddings') "
    "AND attname IN ('embedding', 'base') AND NOT attisdropped)"
)
_ADD = sa.text(
    "INSERT INTO entry_embeddings (entry_id, embedder, place, base, point, embedding) "
    "VALUES (:entry_id, :embedder, :place, :base, :point, CAST(:embedding AS halfvec)) ON CONFLICT DO NOTHING"
)
_vectors, _embeddings = (
    entry_vectors,
    sa.table("entry_embeddings", sa.column("entry_id"), sa.column("embedder")),
)


# Whether there is pgvector.


def prepare(engine: sa.Engine) -> str:
    """Have this engine keep vectors in PostgreSQL; makes extension and table if they are missing.

    Returns:
        "", or why that is not possible, and who can help with which statement.
    """
    try:
        problem = _prepared(engine)
    except StorageError as error:
        problem = f"this role may not make the table entry_embeddings ({error}): let the owner of the other "
        problem += "tables open the cache once, or grant CREATE on their schema"
    if not problem:
        engine.update_execution_options(ibidem_pgvector=True)
    return problem


def is_used(place: sa.Engine | sa.Connection) -> bool:
    """Return whether this engine, or that of this connection, keeps vectors in PostgreSQL."""
    return bool(place.get_execution_options().get("ibidem_pgvector"))


def _prepared(engine: sa.Engine) -> str:
    found = _extension(engine)
    if found.installed is None and (problem := _install(engine, found)):
        return problem
    found = _extension(engine)
    least = ".".join(map(str, LEAST))
    if _version(found.installed) < LEAST:
        return (
            f"pgvector {found.installed} is too old, {least} is needed: let the owner of the extension, or a "
            f"superuser, run ALTER EXTENSION vector UPDATE (the server offers {found.available or 'none'})"
        )
    if not found.usable:
        return (
            f"pgvector is in the schema {found.schema}, where this role does not look: let it, or a "
            f"superuser, run ALTER ROLE {found.role} SET search_path = public, {found.schema}"
        )
    if not found.table:
        with exclusive(engine) as db:
            if db.scalar(sa.text(f"SELECT {_HAS_TABLE}")):  # another process was first
                return ""
            for statement in _TABLE:
                db.exec_driver_sql(statement)
            # What another table held, such as one that was dropped with the extension, is entered again.
            db.execute(sa.update(_vectors).where(_vectors.c.indexed_in == GENERATION).values(indexed_in=""))
    elif not found.allowed:
        return (
            "this role may not use the table entry_embeddings: let its owner run GRANT SELECT, INSERT ON "
            f"entry_embeddings TO {found.role}"
        )
    return ""


@dataclass(frozen=True, slots=True)
class _Extension:
    """The versions that are installed in the database and available on the server, and what can be used."""

    installed: str | None
    available: str | None
    schema: str | None
    usable: bool
    role: str
    server: int
    allowed: bool | None
    table: bool


def _extension(engine: sa.Engine) -> _Extension:
    query = (
        "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector'), "
        "(SELECT default_version FROM pg_available_extensions WHERE name = 'vector'), "
        "(SELECT nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace "
        "WHERE extname = 'vector'), to_regtype('halfvec') IS NOT NULL, "
        "quote_ident(current_user), current_setting('server_version_num')::int / 10000, "
        "has_table_privilege(to_regclass('entry_embeddings'), 'SELECT') "
        "AND has_table_privilege(to_regclass('entry_embeddings'), 'INSERT'), "
    )
    return _Extension(*fetch_all(engine, sa.text(query + _HAS_TABLE))[0])


def _version(text: str | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text or "")[:2]))


def _install(engine: sa.Engine, found: _Extension) -> str:
    """Make the extension; return "", or why that is not possible."""
    if found.available is None:
        return (
            f"the server has no pgvector: install it there (on Debian postgresql-{found.server}-pgvector), "
            "then let a superuser run in this database CREATE EXTENSION vector"
        )
    try:
        with exclusive(engine) as db:
            db.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
    except StorageError as error:
        reason = str(error).splitlines()[0]
        return (
            f"this role may not make the extension ({reason}): let a superuser run in this database "
            "CREATE EXTENSION vector"
        )
    return ""


# Within the caller's transaction.


@lru_cache(maxsize=4096)
def place_of(namespace: str, scope: str) -> int:
    """Return a number for namespace and scope. What is found by it is confirmed by both themselves."""
    hashed = blake2b(namespace.encode("utf-8", "surrogatepass"), digest_size=8, key=scope.encode()[:64])
    return int.from_bytes(hashed.digest(), "big", signed=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to search: the entries whose `column`, `place` or `base`, is that of a scope.

    They are compared one by one, or searched `by_index`, the HNSW index.
    """

    column: Literal["place", "base"]
    scope: str
    by_index: bool = False


def embedding_row(
    id_: str, embedder: int, namespace: str, scope: str, vector: Vector, base: str = ""
) -> dict[str, Any]:
    """Return the parameters of `add` for the vector of an entry."""
    return {
        "entry_id": id_,
        "embedder": embedder,
        "place": place_of(namespace, scope),
        "base": place_of(namespace, base) if base else None,
        "point": point_of(namespace, scope, vector),
        "embedding": _text(vector),
    }


def add(db: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make vectors findable that were just stored; those that are findable already stay as they are."""
    if rows:
        db.execute(_ADD, rows)


def _text(vector: Vector) -> str:
    """Write a vector as pgvector reads it, in half precision."""
    return f"[{','.join(map(repr, vector.astype(np.float16).tolist()))}]"


class EmbeddingTable:
    """The rows of `entry_embeddings` of one embedder. Every method raises `StorageError` when it fails.

    Args:
        engine: Of the database.
        embedder: Number of the embedder.
    """

    def __init__(self, engine: sa.Engine, embedder: int) -> None:
        self._engine, self._embedder = engine, embedder
        self.index = HnswIndex(engine, embedder)

    def nearest(self, namespace: str, places: Sequence[Place], vector: Vector, k: int) -> list[str]:
        """Return the k nearest points of each of these places of a namespace, nearest first.

        In one statement, unless many entries are at the same points: the vector is sent once.
        """
        parts = [self._ranked(number, place, len(vector)) for number, place in enumerate(places)]
        statement = sa.text(f"{' UNION ALL '.join(parts)} ORDER BY part, distance")
        values: dict[str, Any] = {"asked": _text(vector)}
        values |= {f"at_{number}": place_of(namespace, one.scope) for number, one in enumerate(places)}
        limit = 0
        with reading(self._engine) as db:
            while True:
                limit = max(2 * k, 8 * limit)
                rows = db.execute(statement, {**values, "rows": limit}).all()
                found = [[row.point for row in rows if row.part == part] for part in range(len(places))]
                distinct = [list(dict.fromkeys(points)) for points in found]
                if all(len(one) >= k or len(of) < limit for one, of in zip(distinct, found, strict=True)):
                    return [point for points in distinct for point in points[:k]]

    def _ranked(self, number: int, place: Place, dimensions: int) -> str:
        """Write the query of the first rows of a place, with their distances."""
        within, distance = f"{place.column} = :at_{number}", "embedding <#> CAST(:asked AS halfvec)"
        if place.by_index:
            # An expression, so that the index on the column is not used: a prepared statement would, which is
            # planned for a scope of average size.
            within, kind = f"{place.column} + 0 = :at_{number}", f"halfvec({dimensions:d})"
            distance = f"CAST(embedding AS {kind}) <=> CAST(:asked AS {kind})"
        ranked = f"{self._select(f'point, {distance} AS distance')} AND {within}"
        ranked += " ORDER BY distance LIMIT :rows"
        return f"SELECT {number} AS part, point, distance FROM ({ranked}) AS part_{number}"  # noqa: S608

    def size(self, namespace: str, place: Place, most: int) -> int:
        """Return how many entries this namespace and place has, at most so many."""
        found = f"{self._select('1')} AND {place.column} = :place LIMIT :most"
        query = sa.text(f"SELECT count(*) FROM ({found}) AS found")  # noqa: S608
        with reading(self._engine) as db:
            return int(db.scalar(query, {"place": place_of(namespace, place.scope), "most": most}) or 0)

    def count(self) -> int:
        """Return how many entries can be found."""
        return self._number("count(*)")

    def largest(self) -> int:
        """Return how many entries the largest scope has; reads all rows."""
        return self._number("count(*)", "GROUP BY place ORDER BY 1 DESC LIMIT 1")

    def dimension(self) -> int:
        """Return the dimension of the vectors; 0 if there are none."""
        return self._number("vector_dims(embedding)", "LIMIT 1")

    def _number(self, what: str, rest: str = "") -> int:
        return int(fetch_value(self._engine, sa.text(f"{self._select(what)} {rest}")) or 0)

    def _select(self, what: str) -> str:
        """Begin a query; the embedder is written out, as its partial index is found by that."""
        return f"SELECT {what} FROM entry_embeddings WHERE embedder = {self._embedder:d}"  # noqa: S608

    def requeue_lost(self) -> int:
        """Have vectors entered again whose rows were lost; return how many."""
        with writing(self._engine) as db:
            change = sa.update(_vectors).where(*self._lost()).values(indexed_in="")
            return int(db.execute(change).rowcount)

    def count_lost(self) -> int:
        """Return how many vectors have lost their row here."""
        query = sa.select(sa.func.count()).select_from(_vectors).where(*self._lost())
        return int(fetch_value(self._engine, query))

    def _lost(self) -> tuple[sa.ColumnElement[bool], ...]:
        c, key = _vectors.c, (_embeddings.c.entry_id, _embeddings.c.embedder)
        row = sa.select(*key).where(key[0] == c.entry_id, key[1] == c.embedder)
        return c.embedder == self._embedder, c.indexed_in == GENERATION, ~row.exists()


class HnswIndex:
    """The HNSW index of one embedder, which is there only if it was built.

    Args:
        engine: Of the database.
        embedder: Number of the embedder.
    """

    def __init__(self, engine: sa.Engine, embedder: int) -> None:
        self._engine, self._embedder = engine, embedder
        self.name = f"{_INDEX}{embedder:016x}"

    def rows(self) -> int | None:
        """Return about how many rows the index has; None if there is none that can be searched."""
        query = sa.text(
            "SELECT greatest(reltuples, 0)::bigint FROM pg_class JOIN pg_index ON indexrelid = oid "
            "WHERE oid = to_regclass(:name) AND indisvalid"
        )
        found: int | None = fetch_value(self._engine, query.bindparams(name=self.name))
        return found

    def exists(self) -> bool:
        """Return whether there is an index, be it incomplete."""
        query = sa.text("SELECT to_regclass(:name) IS NOT NULL").bindparams(name=self.name)
        return bool(fetch_value(self._engine, query))

    def build(self, dimension: int, *, anew: bool = False) -> bool:
        """Build the index, without keeping stores waiting; False if another process is building one.

        One that was interrupted is dropped first, and with `anew` any. It goes on, and ends, in the server
        if this process is killed.
        """
        with deadline(BUILD_SECONDS), _session(self._engine) as db:
            if not db.scalar(sa.text("SELECT pg_try_advisory_lock(:lock)"), {"lock": BUILD_LOCK}):
                return False
            if self.rows() is not None and not anew:
                return True
            try:
                self._create(db, dimension)
            except sa.exc.OperationalError as error:
                if not str(getattr(error.orig, "sqlstate", "")).startswith("53"):
                    raise
                # In a container there may be too little shared memory to build it in parallel.
                db.exec_driver_sql("SET max_parallel_maintenance_workers = 0")
                self._create(db, dimension)
            db.exec_driver_sql("ANALYZE entry_embeddings")
            return True

    def _create(self, db: sa.Connection, dimension: int) -> None:
        db.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {self.name}")
        db.exec_driver_sql(
            f"CREATE INDEX CONCURRENTLY {self.name} ON entry_embeddings USING hnsw "
            f"((CAST(embedding AS halfvec({dimension:d}))) halfvec_cosine_ops) "
            f"WHERE embedder = {self._embedder:d}"
        )


def drop_index(engine: sa.Engine, embedder: int) -> None:
    """Drop the HNSW index of an embedder that nobody uses any more."""
    with _session(engine) as db:
        db.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {HnswIndex(engine, embedder).name}")


@contextmanager
def _session(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a connection without transactions and limits, closed at the end with its settings and locks."""
    query = sa.text(
        "SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false), "
        "set_config(name, greatest(setting::int, :least)::text, false) "
        "FROM pg_settings WHERE name = 'maintenance_work_mem'"
    )
    with reading(engine) as connection:
        db = connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            db.execute(query, {"least": _MEMORY})
            yield db
        finally:
            db.invalidate()
