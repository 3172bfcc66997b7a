"""A database of an older version is migrated when it is opened."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.schema import CreateTable

import ibidem
from ibidem import Answer, Document, Example, Request
from ibidem.cache import SemanticCache
from ibidem.storage import migrations, tables
from ibidem.storage.engine import reading
from ibidem.storage.store import Store
from ibidem.types import point_of, to_vector
from tests.embedders import BagOfWords
from tests.helpers import eventually
from tests.servers import running_postgres

# What version 0.1.0 wrote before schema 2, as `iterdump` gives it.
SCHEMA_1 = (Path(__file__).parent / "data" / "schema_1.sql").read_text()
POINT = point_of("", "s", to_vector(b"\x00\x00\x00\x3c"))
OLD_ENTRY = (
    "INSERT INTO entries (id, namespace, scope, question, documents, semantic, answer, payload, model, "
    "finish_reason, created, hits, embedder, vector, point, indexed_in) "
    r"VALUES ('i', '', 's', 'q', 'd', true, 'a', '', '', '', 1.0, 0, 'e', '\x0000003c', "
    f"'{POINT}', 'g')"
)
DOCUMENT = Document("d1", "Goods can be returned within 30 days of delivery.")


def old_database(file: Path) -> None:
    """Write a database of schema 1: a semantic and an exact entry, a lookup and an example."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as db:
        db.executescript(SCHEMA_1)


def columns(file: Path) -> dict[str, set[str]]:
    """Return the columns of each table."""
    with closing(sqlite3.connect(file)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: {row[1] for row in db.execute(f"PRAGMA table_info({name})")} for name in names}
    return {name: columns for name, columns in found.items() if not name.startswith("sqlite_")}


def test_nothing_is_lost(tmp_path: Path) -> None:
    """Answers with their documents, hits and vectors; logs and examples."""
    old_database(tmp_path / "ibidem.sqlite3")
    with ibidem.open(tmp_path, embedder=BagOfWords(16), min_similarity=0.5, ttl=1e9) as cache:
        exact = cache.lookup(Request("where is the station", semantic=False))
        reworded = Request("how long to return goods ok", documents=(DOCUMENT,), namespace="shop")
        assert (exact.answer.text, exact.answer.payload) == ("There.", "{}")
        assert cache.lookup(reworded).answer == Answer(
            "Within 30 days of delivery.", model="m", input_tokens=7, output_tokens=5
        )
        stats = cache.stats()
        assert (stats.entries, stats.examples, stats.hits, stats.faults) == (
            2,
            1,
            {"exact": 2, "semantic": 1},
            {},
        )
        assert stats.bytes > 2000


def test_the_migrated_schema_equals_a_new_one(tmp_path: Path) -> None:
    """Columns, indexes and version."""
    old, new = tmp_path / "old" / "ibidem.sqlite3", tmp_path / "new" / "ibidem.sqlite3"
    old_database(old)
    new.parent.mkdir()
    found = []
    for file in (old, new):
        Store(f"sqlite:///{file}").close()
        with closing(sqlite3.connect(file)) as db:
            names = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
            version = db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
        found.append((columns(file), names, version))

    assert found[0] == found[1]
    assert found[0][2] == (str(tables.SCHEMA_VERSION),)


def test_threads_migrate_once(tmp_path: Path) -> None:
    """One migrates, the others wait for it."""
    file = tmp_path / "ibidem.sqlite3"
    old_database(file)
    failures: list[BaseException] = []

    def open_it() -> None:
        try:
            Store(f"sqlite:///{file}").close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert failures == []


def test_a_failed_migration_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    """Neither columns nor version; the next opening tries again."""
    file = tmp_path / "ibidem.sqlite3"
    old_database(file)
    before = columns(file)

    def half(db: sqlalchemy.Connection) -> None:
        db.exec_driver_sql("ALTER TABLE entries ADD COLUMN ttl FLOAT")
        db.exec_driver_sql("ALTER TABLE nothing ADD COLUMN ttl FLOAT")

    monkeypatch.setitem(migrations._MIGRATIONS, 2, half)
    with pytest.raises(ibidem.StorageError, match="nothing"):
        Store(f"sqlite:///{file}")
    assert {name: found for name, found in columns(file).items() if name in before} == before
    monkeypatch.undo()
    Store(f"sqlite:///{file}").close()
    assert "rank" in columns(file)["entries"]


def test_postgresql_is_migrated() -> None:
    """By the same steps, also if several processes open it at once."""
    with running_postgres() as url:
        engine = sqlalchemy.create_engine(url)
        Store(url).close()
        with engine.begin() as db:  # back to what schema 1 had
            for name in ("ttl", "used", "size", "cost", "rank"):
                db.exec_driver_sql(f"ALTER TABLE entries DROP COLUMN {name}")
            for column in ("embedder text", "vector bytea", "point text", "indexed_in text"):
                db.exec_driver_sql(f"ALTER TABLE entries ADD COLUMN {column}")
            db.exec_driver_sql(OLD_ENTRY)
            for name in ("scope", "feedback", "tags", "embedder", "vector"):
                db.exec_driver_sql(f"ALTER TABLE examples DROP COLUMN {name}")
            for name in ("score", "threshold", "scope_parts"):
                db.exec_driver_sql(f"ALTER TABLE lookups DROP COLUMN {name}")
            db.exec_driver_sql(
                "INSERT INTO examples (at, namespace, question, answer, model, documents, streamed) "
                "VALUES (1.0, '', 'an old question', 'a', '', '[]', false)"
            )
            for name in ("entry_tags", "invalidations", "dead_points", "entry_vectors", "embedders"):
                db.exec_driver_sql(f"DROP TABLE {name}")
            db.exec_driver_sql("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
        with ThreadPoolExecutor(4) as pool:
            for store in pool.map(Store, [url] * 4):
                store.close()
        columns, indexes = {}, set()
        for table in (tables.entries, tables.examples, tables.lookups):
            found = sqlalchemy.inspect(engine)
            columns[table] = {column["name"] for column in found.get_columns(table.name)}
            indexes |= {index["name"] for index in found.get_indexes(table.name)}
        engine.dispose()
        store = Store(url)
        store.examples.add([Example("a new one", "a", tags=("t",))])
        kept, vectors = store.examples.recent(), store.vectors("e")
        (vector,) = vectors.indexed("g", 10)
        assert vectors.count() == 1
        store.close()

    assert all(found == set(table.c.keys()) for table, found in columns.items())
    assert indexes >= {"ix_entries_rank", "ix_examples_entry", "ix_examples_vector"}
    assert (vector.question, list(vector.vector)) == ("q", [0.0, 1.0])
    assert kept == [Example("a new one", "a", tags=("t",)), Example("an old question", "a", at=1.0)]


def explained_after_schema_7(path: Path, database: str | None = None) -> None:
    """Store and log by schema 7, and ask why with that of today: older rows are read, and say no more."""
    words, clock = "how long to return goods", {"system prompt": "It is 10:00."}
    of_today = (
        ("entries", "scope_parts"),
        *(("lookups", name) for name in ("score", "threshold", "scope_parts")),
    )

    def open_it() -> SemanticCache:
        return ibidem.open(path, database=database, embedder=BagOfWords(16), min_similarity=0.5)

    with open_it() as cache:
        for asked in (words, "who sells tea"):
            cache.store(Request(asked, scope=clock), Answer("30 days."))
            cache.correct(cache.lookup(Request(asked, scope=clock)), "40 days.")
        cache.invalidate(entry=Request("who sells tea", scope=clock).key)
    engine = sqlalchemy.create_engine(database or f"sqlite:///{path / 'ibidem.sqlite3'}")
    with engine.begin() as db:
        for table, column in of_today:
            db.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        db.exec_driver_sql("""UPDATE withdrawn SET entry = replace(entry, '"scope_parts"', '"unknown"')""")
        db.exec_driver_sql("UPDATE meta SET value = '7' WHERE key = 'schema_version'")
    engine.dispose()
    with open_it() as cache:
        other = Request(words, scope={"system prompt": "It is 10:01."})
        (vague,) = cache.why(other).elsewhere
        assert vague.differs == ()
        assert "something else differs" in str(cache.why(other))
        assert cache.lookup(Request(words, scope=clock)).answer.text == "40 days."
        assert [(row.tier, row.score, row.scope_parts) for row in cache.recent()] == [("exact", None, "")] * 3
        assert [one.entry.question for one in cache._runtime.store.pins.withdrawn(9)] == ["who sells tea"]
        cache.store(Request(words, scope={"system prompt": "It is 9:00."}), Answer("30 days."))
        (found,) = cache.why(other).elsewhere
        assert (found.differs, found.scopes) == (("system prompt",), 2)


def test_schema_7_is_migrated(tmp_path: Path) -> None:
    """With its answers and logs; what explains them is only known of what comes."""
    explained_after_schema_7(tmp_path)


def test_schema_7_is_migrated_on_postgresql(tmp_path: Path) -> None:
    """Likewise."""
    with running_postgres() as url:
        explained_after_schema_7(tmp_path, url)


def test_ids_of_examples_are_not_reused(tmp_path: Path) -> None:
    """Another process may have read the newest example before it was deleted."""
    file = tmp_path / "ibidem.sqlite3"
    old_database(file)
    store = Store(f"sqlite:///{file}")
    assert store.examples.recent()[0].id == 1
    store.clear()
    store.examples.add([Example("q", "a")])

    assert store.examples.recent()[0].id == 2
    store.close()


def test_every_version_has_a_migration() -> None:
    """A new schema version without a migration would strand its users."""
    assert sorted(migrations._MIGRATIONS) == list(range(2, tables.SCHEMA_VERSION + 1))
    assert "rank" in str(CreateTable(tables.entries))


def test_a_connection_in_use_is_closed_after_use() -> None:
    """It returns to a closed pool: else the server would keep it until it is garbage-collected."""
    with running_postgres() as url, ThreadPoolExecutor(1) as pool:
        store, held, closed = Store(url), threading.Event(), threading.Event()

        def use() -> None:
            with reading(store._engine) as db:
                db.execute(sqlalchemy.text("SELECT 1"))
                held.set()
                assert closed.wait(10)

        using = pool.submit(use)
        assert held.wait(10)
        store.close()
        closed.set()
        using.result()
        # Within one transaction the server always tells what it told first.
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        with engine.connect() as db:
            count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            assert eventually(lambda: db.execute(sqlalchemy.text(count)).scalar() == 1)
