"""The store: entries, logs and vectors survive the round trip to the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ibidem import Answer, Document, Example, Request, StorageError
from ibidem._util.concurrency import deadline
from ibidem.errors import StorageUnavailable
from ibidem.storage.engine import set_aside_if_damaged, writing
from ibidem.storage.logs import LookupRow
from ibidem.storage.store import Store
from ibidem.types import Entry, Source, to_bytes, to_vector
from tests.embedders import BagOfWords

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
answers = st.builds(
    Answer,
    text,
    payload=text,
    model=text,
    input_tokens=st.none() | st.integers(0, 10**6),
    output_tokens=st.none() | st.integers(0, 10**6),
    finish_reason=text,
    seconds=st.none() | st.floats(0, 1e6),
)
documents = st.lists(st.builds(Document, text, text), max_size=3, unique_by=lambda d: d.digest).map(tuple)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty database."""
    opened = Store(f"sqlite:///{tmp_path / 'store.sqlite3'}")
    yield opened
    opened.close()


def entry(
    question: str = "what is the state", *, namespace: str = "", answer: str = "a", created: float = 0.0
) -> Entry:
    """A semantic entry with the vector of its question."""
    request = Request(question, namespace=namespace)
    return Entry(
        id=request.key,
        namespace=namespace,
        scope=request.scope_digest,
        question=question,
        documents=request.documents_digest,
        semantic=True,
        answer=Answer(answer),
        created=created,
        vector=BagOfWords().embed([question])[0],
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(answer=answers, docs=documents, namespace=text, semantic=st.booleans())
def test_entry_round_trip(store: Store, answer, docs, namespace, semantic) -> None:
    """Every field comes back as stored, for any text a database can hold."""
    answer = replace(answer, semantic=semantic)
    sources = tuple(Source(d.id, d.digest, n == 0) for n, d in enumerate(docs))
    stored = replace(entry(namespace=namespace), answer=answer, semantic=semantic, sources=sources)
    store.entries.put(stored, "e")
    (found,) = store.entries.find(stored.id)

    assert replace(found, sources=()) == replace(stored, sources=())
    assert set(found.sources) == set(sources)
    assert store.entries.get(stored.id) == replace(stored, sources=())


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50).filter(lambda row: np.linalg.norm(row) > 0.1))
def test_half_precision_keeps_cosines(row: list[float]) -> None:
    """To one part in a thousand, the rounding that the matching allows for."""
    vector = np.asarray(row, dtype=np.float32) / np.float32(np.linalg.norm(row))

    assert float(to_vector(to_bytes(vector)) @ vector) == pytest.approx(1.0, abs=1e-3)


def test_near_confirms_namespace_scope_and_embedder(store: Store) -> None:
    """A point from the index is no hit unless the database confirms it."""
    mine = entry()
    store.entries.put(mine, "e")
    right = {"namespace": "", "scope": mine.scope, "embedder": "e", "documents": mine.documents}

    assert [found.id for found in store.entries.near([mine.point], **right)] == [mine.id]
    for wrong in ({"namespace": "n"}, {"scope": "s"}, {"embedder": "f"}):
        assert store.entries.near([mine.point], **{**right, **wrong}) == []
    assert store.entries.near([], **right) == []


def test_a_replaced_answer_keeps_its_vector(store: Store) -> None:
    """The question is the same, so there is nothing to index again."""
    store.entries.put(entry(answer="old"), "e")
    store.vectors("e").mark_indexed([entry().point], "g")
    store.entries.put(entry(answer="new"), "e")

    assert store.entries.get(entry().id).answer.text == "new"
    vectors = store.vectors("e")
    assert (vectors.unindexed("g", 10), vectors.missing(10), vectors.count_indexed("g")) == ([], [], 1)


def test_points_of_another_generation_are_unindexed(store: Store) -> None:
    """A rebuilt or deleted index is filled without changing a row first."""
    for n in range(3):
        store.entries.put(entry(f"question {n}", created=n), "e")
    vectors = store.vectors("e")
    vectors.mark_indexed([entry("question 0").point], "old")

    found = sorted(row.question for row in vectors.unindexed("new", 10))
    assert found == [f"question {n}" for n in range(3)]


def test_exact_only_entries_are_never_indexed(store: Store) -> None:
    """They have no vector to index."""
    store.entries.put(replace(entry(), semantic=False, vector=None), "e")

    assert store.vectors("e").count() == 0


def test_clear_deletes_documents_and_logs(store: Store) -> None:
    """Nothing of a cleared namespace is left."""
    for namespace in ("a", "b"):
        sources = (Source("d", namespace, True),)
        store.entries.put(replace(entry(namespace=namespace), sources=sources), "e")
        store.lookups.add([LookupRow(1.0, namespace, "s", "q", "", "empty", None, None, 0.1, 0)])
        store.examples.add([Example("q", "a", at=1.0, namespace=namespace)])

    assert store.clear("a") == 1
    assert [found.namespace for found in store.entries.newest()] == ["b"]
    assert [row.namespace for row in store.lookups.recent()] == ["b"]
    assert [example.namespace for example in store.examples.recent()] == ["b"]
    assert store.clear() == 1
    assert (store.totals().entries, store.totals().examples) == (0, 0)


def test_the_lookup_log_is_bounded(store: Store, monkeypatch) -> None:
    """The oldest lookups are deleted; the hits of the entries are still counted."""
    monkeypatch.setattr("ibidem.storage.logs.LOG_LIMIT", 10)
    stored = entry()
    store.entries.put(stored, "e")
    for n in range(15):
        store.lookups.add([LookupRow(n, "", "s", "q", "exact", "", stored.id, 1.0, 0.1, 5)])

    assert [row.at for row in store.lookups.recent(99)] == list(range(14, 4, -1))
    assert store.entries.get(stored.id).hits == 15
    assert store.totals().hits == {"exact": 10}


def test_a_newer_schema_is_rejected(tmp_path: Path) -> None:
    """An older version does not write to it."""
    url = f"sqlite:///{tmp_path / 'x.sqlite3'}"
    Store(url).close()
    with sqlite3.connect(tmp_path / "x.sqlite3") as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    db.close()

    with pytest.raises(StorageError, match="newer Ibidem .schema 99.: upgrade"):
        Store(url)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "no url", "sqlite:////proc/nowhere/x.sqlite3"])
def test_errors_name_the_database_without_its_password(url: str) -> None:
    """For a database that cannot be opened."""
    with pytest.raises(StorageError) as raised:
        Store(url)

    assert "secret" not in str(raised.value)


def test_a_damaged_database_file_is_set_aside(tmp_path: Path) -> None:
    """It is renamed, with all its bytes."""
    file = tmp_path / "ibidem.sqlite3"
    file.write_bytes(b"something else entirely")
    aside = set_aside_if_damaged(file)

    assert not file.exists()
    assert aside.read_bytes() == b"something else entirely"
    file.write_bytes(b"")
    assert set_aside_if_damaged(file) is None


def test_one_thread_writes_at_a_time(store: Store, monkeypatch) -> None:
    """A thread that waits too long for the lock gets an error, and holds up no other."""

    def write(n: int) -> None:
        with deadline():
            store.meta.set(f"thread {n}", "wrote")

    with ThreadPoolExecutor(40) as pool:
        for done in [pool.submit(write, n) for n in range(40)]:
            done.result(10)
        monkeypatch.setattr("ibidem.storage.engine.DEADLINE_SECONDS", 0.05)
        with (
            writing(store._engine),
            pytest.raises(StorageUnavailable, match="database is locked"),
        ):
            pool.submit(write, 0).result(5)
        pool.submit(write, 0).result(5)


def test_lookups_use_indexes(store: Store, tmp_path: Path) -> None:
    """No query of a lookup scans a table."""
    statements: list[str] = []

    def listen(connection, *_rest) -> None:
        connection.set_trace_callback(statements.append)

    sqlalchemy.event.listen(store._engine, "connect", listen)
    store._engine.dispose()
    store.entries.get("x")
    store.entries.near(["x", "y"], namespace="", scope="s", embedder="e", documents="d")
    store.entries.kind_in_scope("", "s")
    store.vectors("e").unindexed("g", 10)
    with sqlite3.connect(tmp_path / "store.sqlite3") as db:
        plans = [
            " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}"))
            for statement in statements
            if statement.startswith("SELECT")
        ]
    db.close()

    expected = (
        "autoindex_entries_1",
        "ix_entry_vectors_point (embedder=? AND point=?)",
        "ix_entries_scope",
        *["ix_entry_vectors_indexed_in (embedder=? AND indexed_in"] * 3,
    )
    assert [part in plan for part, plan in zip(expected, plans, strict=True)] == [True] * 6, plans
    assert not [plan for plan in plans if "SCAN" in plan]


def test_a_connection_returned_after_closing_is_closed(store: Store) -> None:
    """A read that is late gets another one, which does not stay open either."""
    pool: Any = store._engine.pool
    used = pool._do_get()
    store.close()
    pool._do_return_conn(used)

    assert used.dbapi_connection is None
    assert store.entries.get("x") is None
    assert not store._engine.pool._free  # type: ignore[attr-defined]
