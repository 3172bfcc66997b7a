"""Vectors in PostgreSQL: found exactly or by an index; and what is said where there is no pgvector."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy.pool import NullPool

import ibidem
from ibidem import Answer, Request
from ibidem.cli.doctor import examine
from ibidem.index import pgvector
from ibidem.index.pgvector import PgvectorSearch, exact_limit
from ibidem.lifecycle.invalidation import Criteria
from ibidem.settings import read_settings
from ibidem.storage.logs import lookup_row
from ibidem.storage.pgvector import Place
from ibidem.storage.store import Store
from ibidem.testing import VectorIndexContract
from ibidem.types import Entry, digest, point_of
from tests.contracts import conversations
from tests.embedders import DenseWords
from tests.helpers import eventually, fill, finds, question, reworded
from tests.servers import running_postgres

DIMENSION = 16


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    """A database for the tests that mind no rows of others."""
    with running_postgres() as url:
        yield url


@pytest.fixture
def postgres() -> Iterator[str]:
    """A database without anything."""
    with running_postgres() as url:
        yield url


@pytest.fixture
def small_scopes_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 60 entries on a scope is searched by an index."""
    monkeypatch.setattr(pgvector, "EXACT_LIMIT", 60)
    monkeypatch.setattr(pgvector, "COST", 0)


def execute(url: str, *statements: str) -> list[sa.Row]:
    """Run statements as an administrator; returns the rows of the last one."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as db:
        for statement in statements:
            done = db.exec_driver_sql(statement)
        return list(done) if done.returns_rows else []


def entry(n: object, vector: NDArray[np.float32], namespace: str = "", scope: str = "s") -> Entry:
    answered = Answer("a")
    return Entry(
        digest(str(n)), namespace, scope, f"question {n}", "", True, answered, time.time(), vector=vector
    )


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def vectors_by_doctor(url: str, path: Path) -> str:
    """What `ibidem doctor` says of them."""
    found = examine(read_settings(database=url, path=path, embedder=DenseWords()))
    return next(one.text for one in found if one.check == "vector index")


class EntriesAsIndex:
    """The vectors of a database behind the protocol of an index, which has neither entries nor scopes."""

    def __init__(self, url: str, embedder: str) -> None:
        self._store, self._embedder = Store(url, pgvector=True), embedder
        self._rows = self._store.vectors(embedder).embeddings()
        self._points: dict[str, str] = {}

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        for id_, vector in zip(ids, vectors, strict=True):
            self._points[point_of("", "s", vector)] = id_
            self._store.entries.put(entry(self._embedder + id_, vector), self._embedder)

    def search(self, vector: NDArray[np.float32], k: int) -> list[str]:
        return [self._points[point] for point in self._rows.nearest("", [Place("place", "s")], vector, k)]

    def delete(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            gone = Criteria(entry=digest(self._embedder + id_))
            self._store.invalidations.invalidate(gone, time.time)

    def count(self) -> int:
        return self._rows.count()

    def close(self, *, clean: bool = True) -> None:
        self._store.close()


class TestAsIndex(VectorIndexContract):
    """What users' indexes promise, entries promise too."""

    @pytest.fixture(autouse=True)
    def _database(self, postgres: str, request: pytest.FixtureRequest) -> None:
        self.url, self.name = postgres, request.node.name

    def open_index(self, directory: Path) -> EntriesAsIndex:
        return EntriesAsIndex(self.url, self.name)

    def _open_cache(self, directory: Path, place: str = "index") -> ibidem.SemanticCache:
        from ibidem.testing import WordEmbedder

        return ibidem.open(directory / place, database=self.url, embedder=WordEmbedder(), min_similarity=0.75)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "store", "delete"]), st.integers(0, 9), st.sampled_from("ab")
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_what_is_found_is_what_brute_force_finds(shared: str, steps: list[tuple[str, int, str]]) -> None:
    """After any order of storing and deleting, in two scopes with the same questions."""
    vectors = unit(np.random.default_rng(0).normal(size=(10, DIMENSION)))
    asked = unit(np.random.default_rng(len(steps)).normal(size=DIMENSION))
    held: set[tuple[int, str]] = set()
    with closing(Store(shared, pgvector=True)) as store:
        store.clear()
        rows = store.vectors("e").embeddings()
        for step, n, scope in steps:
            if step == "store":
                store.entries.put(entry((n, scope), vectors[n], scope=scope), "e")
                held.add((n, scope))
            else:
                store.invalidations.invalidate(Criteria(entry=digest(str((n, scope)))), time.time)
                held.discard((n, scope))
        for scope in "ab":
            here = [vectors[n].astype(np.float16).astype(np.float32) for n, of in held if of == scope]
            best = sorted(here, key=lambda row: -float(row @ asked))[:4]
            assert rows.nearest("", [Place("place", scope)], asked, 4) == [
                point_of("", scope, row) for row in best
            ]
        assert (rows.count(), rows.count_lost()) == (len(held), 0)


def test_an_index_finds_what_all_comparisons_find(shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a scope of half of all, and one of a tenth; a point counts once, however many entries it has."""
    draw = np.random.default_rng(1)
    centres = draw.normal(size=(40, DIMENSION))
    vectors = unit(centres[draw.integers(0, 40, 600)] + 0.5 * draw.normal(size=(600, DIMENSION)))
    with closing(Store(shared, pgvector=True)) as store:
        for n, vector in enumerate(vectors):
            scope = "half" if n % 2 else "tenth" if n % 10 == 0 else f"small {n}"
            store.entries.put(entry(n, vector, scope=scope), "indexed")
        for n in range(100):
            store.entries.put(entry(f"same {n}", vectors[1], scope="half"), "indexed")
        rows = store.vectors("indexed").embeddings()
        assert rows.index.rows() is None
        assert rows.index.build(DIMENSION)
        assert rows.index.rows() == 700
        plan = execute(shared, f"SELECT indexdef FROM pg_indexes WHERE indexname = '{rows.index.name}'")
        assert "hnsw" in plan[0][0]
        missed = 0
        for vector in vectors[:100]:
            for scope in ("half", "tenth"):
                best = rows.nearest("", [Place("place", scope)], vector, 8)
                found = rows.nearest("", [Place("place", scope, by_index=True)], vector, 8)
                missed += len(set(best) - set(found))
                assert len(best) == len(found) == 8
        assert missed <= 16  # of 1,600


@pytest.mark.usefixtures("small_scopes_are_large")
def test_an_index_is_built_beside_stores_and_again_if_that_was_interrupted(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stores waits for nothing, who searches compares all meanwhile."""
    monkeypatch.setattr(pgvector, "KNOWN_SECONDS", 0.0)
    building = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%%'"
    state = "SELECT indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
    state += "JOIN pg_am ON pg_am.oid = relam WHERE amname = 'hnsw'"
    engine = sa.create_engine(postgres, poolclass=NullPool)
    with (
        ibidem.open(tmp_path, database=postgres, embedder=DenseWords(), min_similarity=0.8) as cache,
        engine.connect() as held,
    ):
        fill(cache, range(80))
        held.exec_driver_sql("INSERT INTO entry_tags VALUES ('x', 'y')")
        held.exec_driver_sql("LOCK TABLE entry_embeddings IN ROW EXCLUSIVE MODE")  # as an unfinished store
        assert finds(cache, 1)
        cache.flush()
        assert eventually(lambda: execute(postgres, building), 20)
        fill(cache, range(80, 90))
        assert all(finds(cache, n) for n in range(75, 90))
        execute(postgres, f"SELECT pg_terminate_backend(pid) FROM ({building}) AS found")
        assert eventually(lambda: not execute(postgres, building))
        assert execute(postgres, state) == [(False,)]
        held.rollback()
        assert eventually(cache.flush, 20)  # for a moment the server was taken for one that shuts down
        assert cache.stats().faults["build the vector index in PostgreSQL: StorageUnavailable"] == 1
        assert finds(cache, 2)
        assert eventually(lambda: cache.flush() and execute(postgres, state) == [(True,)], 20)
        assert all(finds(cache, n) for n in range(90))
        search = cache._runtime.vectors
        assert isinstance(search, PgvectorSearch)
        assert search._is_large("", Place("place", Request(question(1)).scope_digest), 384)
    assert "an HNSW index of" in vectors_by_doctor(postgres, tmp_path)
    engine.dispose()


def test_what_a_lookup_asks_postgresql(postgres: str, tmp_path: Path) -> None:
    """For both ids, for what is near, for its entries; in a conversation for its turns, and no second search.

    Each question is one exchange. Hits on one entry are counted together, in the background.
    """
    texts = (conversations.REWORDED, conversations.STEPS, conversations.HOW_LONG)
    chat = conversations.request(texts, mode="meaning")
    said: list[tuple[int, int]] = []

    def note(_: Any, __: Any, ___: str, values: Any, ____: Any, many: bool) -> None:
        said.append((threading.get_ident(), len(values) if many else 1))

    def asked(call: Callable[[], object]) -> list[int]:
        """The statements of a call in this thread: for how many rows each is."""
        said.clear()
        call()
        return [rows for thread, rows in said if thread == threading.get_ident()]

    with ibidem.open(tmp_path, database=postgres, embedder=DenseWords(), min_similarity=0.8) as cache:
        fill(cache, range(20))
        conversations.told(cache, conversations.PASSWORD, *texts[1:], conversations.MINUTES, mode="meaning")
        assert finds(cache, 1)  # how large a scope is, is asked once a minute
        assert cache.lookup(chat).tier == "semantic"
        store = cache._runtime.store
        sa.event.listen(store.engine, "before_cursor_execute", note)
        lookups = (lambda: cache.lookup(Request(question(1))), lambda: finds(cache, 2))
        assert [len(asked(lookup)) for lookup in (*lookups, lambda: cache.lookup(chat))] == [1, 3, 4]

        served = [cache.lookup(Request(question(n % 5))) for n in range(50)]
        rows = [lookup_row(Request(hit.question or ""), hit.question or "", hit, 1.0) for hit in served]
        assert asked(lambda: store.lookups.add(rows)) == [50, 5, 1]


@pytest.mark.parametrize(
    ("rows", "limit"), [(0, 2_000), (10_000, 2_000), (100_000, 5_477), (1_000_000, 17_320)]
)
def test_how_large_a_scope_is_compared_one_by_one(rows: int, limit: int) -> None:
    assert exact_limit(rows) == limit


def test_a_search_goes_on_where_the_extension_was_dropped(
    postgres: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No call fails: identical questions are answered, and when it is opened again all is found again."""
    with ibidem.open(tmp_path, database=postgres, embedder=DenseWords(), min_similarity=0.8) as cache:
        fill(cache, range(3))
        assert finds(cache, 1)
        execute(postgres, "DROP EXTENSION vector CASCADE")
        assert cache.lookup(Request(reworded(1))).reason == "no_index"
        assert cache.lookup(Request(question(1))).tier == "exact"
        assert cache.stats().faults == {"search by meaning: IndexUnavailable": 1}
    with ibidem.open(tmp_path, database=postgres, embedder=DenseWords(), min_similarity=0.8) as cache:
        assert cache.flush()
        assert all(finds(cache, n) for n in range(3))


def test_what_was_lost_is_noticed_and_mended(postgres: str, tmp_path: Path) -> None:
    """By `ibidem doctor` and `ibidem rebuild`."""
    with ibidem.open(tmp_path, database=postgres, embedder=DenseWords(), min_similarity=0.8) as cache:
        fill(cache, range(5))
        execute(postgres, "DELETE FROM entry_embeddings")
        assert not finds(cache, 1)
        assert "5 are missing; run `ibidem rebuild`" in vectors_by_doctor(postgres, tmp_path)
        cache._runtime.vectors.compact(wanted=True)
        assert all(finds(cache, n) for n in range(5))
        assert "5 vectors in PostgreSQL (pgvector), compared one by one" in vectors_by_doctor(
            postgres, tmp_path
        )


class TestWithoutPgvector:
    """It goes on as before: in memory, and by an embedded Chroma."""

    @pytest.fixture
    def plain(self, postgres: str) -> Iterator[str]:
        """The database for a role that may make tables, and no extension."""
        role = f"plain{threading.get_ident()}"
        name = sa.make_url(postgres).database
        execute(
            postgres, f"CREATE ROLE {role} LOGIN", f"GRANT ALL ON SCHEMA public TO {role}",
            f"GRANT ALL ON DATABASE {name} TO {role}",
        )  # fmt: skip
        yield postgres.replace("ibidem@", f"{role}@")
        execute(postgres, f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    def test_it_is_said_once_and_picked_up_when_it_is_there(
        self, postgres: str, plain: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With the statement and who can run it; what was stored before is entered in the background."""

        def open_it(path: str) -> ibidem.SemanticCache:
            return ibidem.open(tmp_path / path, database=plain, embedder=DenseWords(), min_similarity=0.8)

        caplog.set_level(logging.WARNING, "ibidem")
        with open_it("c") as cache:
            fill(cache, range(5))
            assert finds(cache, 1)
            assert cache.stats().faults == {}
            (said,) = [one for one in caplog.messages if "pgvector" in one or "PostgreSQL" in one]
            assert "let a superuser run in this database CREATE EXTENSION vector" in said
            found = examine(read_settings(database=plain, path=tmp_path / "c"))
            assert [one.ok for one in found if "CREATE EXTENSION vector" in one.text] == [False]
            execute(postgres, "CREATE EXTENSION vector")
            with open_it("other") as other:
                assert isinstance(other._runtime.vectors, PgvectorSearch)
                assert eventually(lambda: other.flush() and other.stats().unindexed == 0)
                assert all(finds(other, n) for n in range(5))
                fill(other, range(5, 10))
                fill(cache, range(10, 15))  # by the one that was opened before, and does not know
                assert eventually(lambda: other.flush() and all(finds(other, n) for n in range(15)))
                assert eventually(lambda: cache.flush() and all(finds(cache, n) for n in range(15)))
                other.clear()
                assert execute(postgres, "SELECT count(*) FROM entry_embeddings") == [(0,)]
        assert not any("pgvector" in one for one in caplog.messages if one != said)

    def test_the_old_way_may_be_wanted(
        self, postgres: str, plain: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Then nothing is made, and nothing said."""
        with ibidem.open(
            tmp_path, database=plain, chroma="embedded", embedder=DenseWords(), min_similarity=0.8
        ) as cache:
            fill(cache, range(3))
            assert finds(cache, 1)
        assert caplog.messages == []
        assert execute(postgres, "SELECT to_regclass('entry_embeddings')") == [(None,)]

    def test_a_role_that_may_not_use_the_table_goes_on_without(self, postgres: str, plain: str) -> None:
        """Else each of its stores would fail."""
        Store(postgres, pgvector=True).close()
        role = sa.make_url(plain).username
        execute(postgres, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
                f"REVOKE ALL ON entry_embeddings FROM {role}")  # fmt: skip
        with closing(Store(plain, pgvector=True)) as store:
            assert "GRANT SELECT, INSERT ON entry_embeddings TO plain" in store.pgvector_problem
            assert store.entries.put(entry(1, unit(np.ones(DIMENSION))), "e") == ""

    @pytest.mark.parametrize(
        ("change", "advice"),
        [
            ("UPDATE pg_extension SET extversion = '0.7.4'", "ALTER EXTENSION vector UPDATE"),
            (
                "CREATE SCHEMA apart; ALTER EXTENSION vector SET SCHEMA apart",
                "SET search_path = public, apart",
            ),
            (
                "DROP EXTENSION vector; "
                "CREATE TABLE pg_available_extensions (name text, default_version text)",
                "install it there (on Debian postgresql-18-pgvector)",
            ),
        ],
        ids=["too old", "in another schema", "not on the server"],
    )
    def test_what_is_in_the_way_is_said(self, postgres: str, change: str, advice: str) -> None:
        url = f"{postgres}?options=-csearch_path%3Dpublic,pg_catalog"
        execute(postgres, "CREATE EXTENSION vector", *change.split("; "))
        with closing(Store(url, pgvector=True)) as store:
            assert advice in store.pgvector_problem
            assert not store.vectors("e").pgvector
