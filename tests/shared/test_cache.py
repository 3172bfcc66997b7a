"""The contract of the cache on each kind of storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

import ibidem
from ibidem.storage import tables
from tests.contracts.cache import CacheContract
from tests.contracts.conversations import ConversationContract
from tests.contracts.invalidation import InvalidationContract
from tests.contracts.lifecycle import LifecycleContract
from tests.contracts.other_conversations import OtherConversationsContract
from tests.contracts.pinning import PinningContract
from tests.embedders import BagOfWords, DenseWords
from tests.servers import running_chroma, running_postgres


class TestEmbedded(
    CacheContract,
    ConversationContract,
    OtherConversationsContract,
    LifecycleContract,
    InvalidationContract,
    PinningContract,
):
    """SQLite and an embedded Chroma; a small index is searched in memory."""


class TestEmbeddedBeyondMemory(
    CacheContract, OtherConversationsContract, LifecycleContract, InvalidationContract, PinningContract
):
    """SQLite and an embedded Chroma that is really searched, as in a large cache."""

    @pytest.fixture(autouse=True)
    def _nothing_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)

    @pytest.fixture
    def open_cache(self, open_cache):
        return lambda **settings: open_cache(**{"embedder": DenseWords(), **settings})


@pytest.fixture(scope="module")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Chroma server."""
    with running_chroma(tmp_path_factory.mktemp("chroma")) as server:
        yield server.url


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A real PostgreSQL."""
    with running_postgres() as url:
        yield url


class TestChromaServer(CacheContract, LifecycleContract, InvalidationContract, PinningContract):
    """SQLite and a Chroma server; each test on a collection of its own, named after its embedder."""

    @pytest.fixture
    def open_cache(self, open_cache, chroma_server: str, request: pytest.FixtureRequest):
        def open_one(**settings):
            embedder = settings.pop("embedder", None) or DenseWords()
            embedder.fingerprint += request.node.name
            return open_cache(embedder=embedder, chroma=chroma_server, **settings)

        return open_one


def empty(database: str) -> None:
    """Delete all rows but the version of the schema: to make all tables takes longer than most tests."""
    names = [table.name for table in tables.metadata.sorted_tables if table is not tables.meta]
    engine = sqlalchemy.create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        if sqlalchemy.inspect(db).has_table(tables.meta.name):
            db.exec_driver_sql(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE")
            db.execute(tables.meta.delete().where(tables.meta.c.key != "schema_version"))
    engine.dispose()


class TestServers(
    CacheContract, ConversationContract, LifecycleContract, InvalidationContract, PinningContract
):
    """PostgreSQL and a Chroma server; each test on an empty database and a collection of its own."""

    @pytest.fixture
    def open_cache(
        self, open_cache, postgres: str, chroma_server: str, request: pytest.FixtureRequest, patient: None
    ):
        empty(postgres)

        def open_one(**settings):
            embedder = settings.pop("embedder", None) or DenseWords()
            embedder.fingerprint += "on-servers" + request.node.name
            return open_cache(embedder=embedder, database=postgres, chroma=chroma_server, **settings)

        return open_one


class TestPgvector(
    CacheContract,
    ConversationContract,
    OtherConversationsContract,
    LifecycleContract,
    InvalidationContract,
    PinningContract,
):
    """PostgreSQL alone, which searches the vectors."""

    @pytest.fixture
    def open_cache(self, open_cache, postgres: str, patient: None):
        empty(postgres)
        return lambda **settings: open_cache(**{"database": postgres, **settings})


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Arguments win over variables, variables over defaults."""
    monkeypatch.setenv("IBIDEM_PATH", str(tmp_path / "from-env"))
    monkeypatch.setenv("IBIDEM_MIN_SIMILARITY", "0.9")
    monkeypatch.setenv("IBIDEM_DOCUMENT_POLICY", "all")
    with ibidem.open(embedder=BagOfWords(), document_policy="ignore") as cache:
        assert (tmp_path / "from-env" / "ibidem.sqlite3").exists()
        assert (cache.policy.threshold, cache.policy.document_policy) == (0.9, "ignore")


def test_two_caches_on_one_place_share_it(open_cache) -> None:
    """Running a notebook cell twice opens the same cache again."""
    one, two = open_cache(), open_cache(min_similarity=0.99)
    one.store(ibidem.Request("what is the state"), ibidem.Answer("fine"))

    assert two.lookup(ibidem.Request("what is the state")).tier == "exact"
    assert two.lookup(ibidem.Request("what is the state now ok")).reason == "below_threshold"
    two.close()
    assert one.lookup(ibidem.Request("what is the state now ok")).tier == "semantic"


def test_a_database_that_fails_costs_nothing_but_the_hit(open_cache, monkeypatch, caplog) -> None:
    """Lookups miss, stores are rejected, the cause is logged once and counted."""
    cache = open_cache()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk I/O error")

    monkeypatch.setattr(cache._runtime.store.entries, "get_both", fail)
    monkeypatch.setattr(cache._runtime.store.entries, "put", fail)
    for _ in range(3):
        assert cache.lookup(ibidem.Request("q")).reason == "error"
        assert cache.store(ibidem.Request("q"), ibidem.Answer("a")) == ibidem.Rejected("error")

    assert cache.stats().faults == {"look up a question: OSError": 3, "store an answer: OSError": 3}
    assert sum("disk I/O error" in record.message for record in caplog.records) == 2
