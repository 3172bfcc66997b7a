"""Each process holds the vectors of the database in memory, whatever the others do to it."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ibidem
from ibidem import Answer, Request
from ibidem.index import memory
from ibidem.index.memory import InMemoryIndex, VectorBuffer
from ibidem.storage import tables
from ibidem.storage.deletion import delete_entries
from ibidem.storage.engine import writing
from ibidem.storage.store import Store
from ibidem.types import Entry
from tests.embedders import BagOfWords
from tests.helpers import eventually, fill, finds
from tests.servers import running_postgres

EMBEDDER = BagOfWords(128)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of the database."""
    return tmp_path / "store.sqlite3"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    """An empty database; what each process has."""
    opened = Store(f"sqlite:///{file}")
    yield opened
    opened.close()


def entry(n: int, *, namespace: str = "", embedded: bool = True) -> Entry:
    """The n-th entry; each two after another have the same vector."""
    request = Request(f"question {n // 2}", namespace=namespace, scope=str(n % 2))
    return Entry(
        id=request.key,
        namespace=namespace,
        scope="s" * 32,
        question=request.question,
        documents=request.documents_digest,
        semantic=True,
        answer=Answer("a"),
        created=0.0,
        vector=EMBEDDER.embed([request.question])[0] if embedded else None,
    )


def put(store: Store, *numbers: int, embedded: bool = True) -> None:
    for n in numbers:
        store.entries.put(entry(n, embedded=embedded), EMBEDDER.fingerprint)


def delete(store: Store, *numbers: int) -> None:
    with writing(store._engine) as db:
        delete_entries(db, tables.entries.c.id.in_([entry(n).id for n in numbers]))


class Follower:
    """The memory of another process."""

    def __init__(self, file: Path) -> None:
        self.store, self.buffer = Store(f"sqlite:///{file}"), VectorBuffer()
        self.table = self.store.vectors(EMBEDDER.fingerprint)
        self.index = InMemoryIndex(self.table, self.buffer)

    def is_right(self) -> bool:
        """Whether it holds what the database holds, after it has followed."""
        self.index.follow()
        return self.buffer.points() == self.table.all_points()


@pytest.fixture
def other(file: Path, store: Store) -> Iterator[Follower]:
    """Another process."""
    found = Follower(file)
    yield found
    found.store.close()


steps = st.tuples(st.sampled_from(["put", "put", "delete", "clear", "embed", "follow"]), st.integers(0, 12))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=25))
def test_memory_equals_the_database(tmp_path: Path, taken: list[tuple[str, int]]) -> None:
    """After any order of steps, of which a follower sees any part at once."""
    file = tmp_path / f"{random.SystemRandom().random()}.sqlite3"
    store = Store(f"sqlite:///{file}")
    one, other = Follower(file), Follower(file)
    for step, n in taken:
        if step == "put":
            put(store, n)
        elif step == "embed":  # stored without a vector, which is made later
            put(store, n, embedded=False)
            lacking = store.vectors(EMBEDDER.fingerprint).missing(100)
            made = [e for e in map(entry, range(13)) if e.id in {row.id for row in lacking}]
            rows = [memory.StoredVector(e.id, "", e.scope, e.question or "", e.vector) for e in made]
            store.vectors(EMBEDDER.fingerprint).set_vectors(rows)
        elif step == "delete":
            delete(store, n, n + 1)
        elif step == "clear":
            store.clear()
        else:
            assert one.is_right()
    assert one.is_right()
    assert other.is_right()
    for opened in (store, one.store, other.store):
        opened.close()


def test_nothing_is_read_when_nothing_has_changed(
    store: Store, other: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor when another embedder's vectors have, or what this process has stored itself is in memory."""
    put(store, 1)
    assert other.is_right()
    monkeypatch.setattr(other.table, "_stored", lambda *_: pytest.fail("read again"))
    other.index.follow()
    store.entries.put(entry(3), "another embedder")
    other.index.follow()
    own = entry(5)
    assert own.vector is not None
    assert own.point is not None
    other.store.entries.put(own, EMBEDDER.fingerprint)
    other.buffer.add(own.point, memory.with_scope_code(own.vector, "", own.scope))
    assert other.is_right()


def test_who_is_far_behind_compares_all_points(store: Store, other: Follower) -> None:
    """More has changed than the database lists, which it does within bounds."""
    put(store, *range(0, 40, 2))
    assert other.is_right()
    with writing(store._engine) as db:
        for _ in range(tables.KEPT_CHANGES + 10):
            db.exec_driver_sql("UPDATE entry_vectors SET point = point WHERE rowid = 1")
        assert db.exec_driver_sql("SELECT count(*) FROM vector_changes").scalar() == tables.KEPT_CHANGES
    delete(store, 0, 2)
    put(store, 100)

    assert other.table.changes(other.index._last) is None
    assert other.is_right()


@pytest.mark.parametrize("harm", ["DELETE FROM vector_changes", "VACUUM"])
def test_a_list_that_somebody_has_emptied_or_moved(
    file: Path, store: Store, other: Follower, harm: str
) -> None:
    """All points are compared then, once; and afterwards it goes on as before."""
    put(store, *range(0, 20, 2))
    assert other.is_right()
    delete(store, *range(10))
    with closing(sqlite3.connect(file)) as db:
        db.execute(harm)
        db.commit()
    put(store, 30)
    assert other.is_right()
    put(store, 32)
    assert other.is_right()


def test_a_change_that_is_not_listed_is_found(file: Path, store: Store, other: Follower) -> None:
    """Within a minute: by somebody who has removed the triggers, or a damaged row."""
    put(store, 1)
    with closing(sqlite3.connect(file)) as db:
        db.execute("DROP TRIGGER vector_deleted")
        db.commit()
    assert other.is_right()
    delete(store, 1)
    assert not other.is_right()
    other.index._full_at = 0.0
    other.index.compare()
    assert other.is_right()


def test_threads_that_store_delete_and_follow(store: Store, other: Follower) -> None:
    """The memory of a process whose threads do all of it at once: its own last store is always there."""
    lost: list[int] = []

    def work(first: int) -> None:
        for step in range(40):
            n = 2 * (first + 4 * (step % 5))
            made = entry(n)
            assert made.vector is not None
            assert made.point is not None
            other.store.entries.put(made, EMBEDDER.fingerprint)
            other.buffer.add(made.point, memory.with_scope_code(made.vector, "", made.scope))
            other.index.follow()
            if made.point not in other.buffer:
                lost.append(n)
            delete(other.store, n)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert lost == []
    other.index.compare()
    assert other.is_right()


def test_a_closed_index_leaves_the_buffer_alone(store: Store, other: Follower) -> None:
    """As when another index takes its place."""
    other.index.close()
    put(store, 1)
    other.index.follow()
    other.index.compare()

    assert len(other.buffer) == 0


def test_on_postgresql_the_background_compares(tmp_path: Path) -> None:
    """Processes with a database server and no server for vectors: what is stored and deleted is followed."""
    with running_postgres() as url:
        places = [
            {"path": tmp_path / name, "database": url, "chroma": "embedded"} for name in ("one", "other")
        ]
        with (
            ibidem.open(**places[0], embedder=EMBEDDER, min_similarity=0.8) as one,
            ibidem.open(**places[1], embedder=EMBEDDER, min_similarity=0.8) as two,
        ):
            assert not finds(two, 1)
            fill(one, range(20))
            assert finds(one, 1)
            assert eventually(lambda: two.flush() and all(finds(two, n) for n in range(20)))
            assert one.clear() == 20
            assert eventually(lambda: two.flush() and not len(two._runtime.vectors._buffer))
            assert one.flush()
            assert not len(one._runtime.vectors._buffer)
            assert one.stats().faults == two.stats().faults == {}
