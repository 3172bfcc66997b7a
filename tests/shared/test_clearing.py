"""Clearing and deleting many entries: in short transactions, and never what was refreshed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import ibidem
from ibidem import Answer, Example, Request, StorageError
from ibidem.lifecycle.invalidation import Criteria
from ibidem.storage import deletion
from ibidem.storage.store import Store
from tests.embedders import BagOfWords
from tests.helpers import eventually
from tests.servers import running_postgres


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Delete at most seven entries in a transaction, and list how many each deleted."""
    monkeypatch.setattr(deletion, "BATCH", 7)
    monkeypatch.setattr(deletion, "MIN_BATCH", 7)
    monkeypatch.setattr(deletion, "MAX_BATCH", 7)
    monkeypatch.setattr(deletion, "LOG_BATCH", 5)
    deleted: list[int] = []
    delete_entries = deletion.delete_entries

    def delete(db: Any, where: Any) -> int:
        deleted.append(delete_entries(db, where))
        return deleted[-1]

    monkeypatch.setattr(deletion, "delete_entries", delete)
    return deleted


def fill(cache: ibidem.SemanticCache, count: int, namespace: str) -> None:
    """Entries, lookups and examples."""
    for n in range(count):
        cache.store(Request(f"question {n}", namespace=namespace), Answer(f"answer {n}"))
        cache.lookup(Request(f"question {n}", namespace=namespace))
        cache.examples.add(Example(f"example {n}", "x", namespace=namespace))
    cache.flush()


@contextmanager
def between(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> Iterator[None]:
    """Call `do` before each search of a clear, in another thread."""
    reading = deletion.reading

    def search(engine: Any) -> Any:
        thread = threading.Thread(target=do)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        return reading(engine)

    monkeypatch.setattr(deletion, "reading", search)
    yield
    monkeypatch.setattr(deletion, "reading", reading)


@pytest.mark.parametrize("namespace", [None, "acme"])
def test_stores_between_the_batches_of_a_clear(
    open_cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_batches: list[int],
    namespace: str | None,
) -> None:
    """What is stored before it ends is deleted too, what is stored later stays."""
    cache = open_cache()
    fill(cache, 40, "acme")
    fill(cache, 10, "other")
    said: list[str] = []

    def store() -> None:
        said.append(f"meanwhile {len(said)}")
        for named in ("acme", "other"):
            assert cache.store(Request(said[-1], namespace=named), Answer("x"))

    with between(monkeypatch, store):
        gone = cache.clear(namespace)
    kept = 10 + len(said) if namespace else 0

    assert len(said) > 5
    assert max(small_batches[:-1]) <= 7
    assert small_batches[-1] <= 2 * 7
    assert gone == 50 + 2 * len(said) - kept
    assert cache.stats().entries == kept
    assert not any(cache.lookup(Request(text, namespace="acme")) for text in [*said, "question 3"])
    store()
    assert cache.lookup(Request(said[-1], namespace="acme"))
    assert {example.namespace for example in cache.examples.recent(100)} == (
        {"other", "acme"} if namespace else {"acme", "other"}
    )


def test_a_failed_clear_can_be_repeated(
    open_cache, monkeypatch: pytest.MonkeyPatch, small_batches: list[int]
) -> None:
    """A part is deleted, the rest is still served."""
    cache = open_cache()
    fill(cache, 30, "acme")

    deleted = deletion.delete_entries

    def delete(db: Any, where: Any) -> int:
        if len(small_batches) == 2:
            raise StorageError("the disk is gone")
        return deleted(db, where)

    with monkeypatch.context() as patch:
        patch.setattr(deletion, "delete_entries", delete)
        with pytest.raises(StorageError, match="the disk is gone"):
            cache.clear("acme")
    left = [n for n in range(30) if cache.lookup(Request(f"question {n}", namespace="acme"))]
    assert len(left) == 16
    assert cache.clear("acme") == 16
    assert not cache.lookup(Request("question 29", namespace="acme"))


def test_clear_deletes_a_namespace_and_its_users_only(open_cache) -> None:
    """Also if other names begin with its name."""
    cache = open_cache()
    names = ["a", "a/user=x", "a/user=~", "a/user", "a/user>", "ab", "A", "a/users=x", ""]
    for name in names:
        cache.store(Request("q", namespace=name), Answer(name or "-"))
    assert cache.clear("a") == 3
    assert [name for name in names if cache.lookup(Request("q", namespace=name))] == names[3:]


# PostgreSQL -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


RACES: dict[str, tuple[Callable[[Store], object], dict[str, float]]] = {
    "purge": (lambda store: store.evictor.delete_expired(1e9), {"expires": 2e9}),
    "evict": (lambda store: store.evictor.evict(1, 0), {"used": 2e9, "rank": 2e9}),
    "invalidate": (
        lambda store: store.invalidations.invalidate(Criteria(before=1.5e9), time.time),
        {"created": 2e9},
    ),
}


@pytest.mark.parametrize(("delete", "refresh"), RACES.values(), ids=RACES.keys())
@pytest.mark.parametrize("commits", [True, False], ids=["refreshed", "rolled back"])
def test_entries_refreshed_meanwhile_stay(
    postgres: str,
    tmp_path: Path,
    delete: Callable[[Store], object],
    refresh: dict[str, float],
    commits: bool,
) -> None:
    """The refresh is not committed yet when another process looks for entries to delete."""
    with ibidem.open(tmp_path, database=postgres, embedder=BagOfWords()) as cache:
        cache.clear()
        cache.store(
            Request("fresh", documents=(ibidem.Document("d", "text"),)), Answer("an answer"), tags=["t"]
        )
    engine, store = sa.create_engine(postgres), Store(postgres)
    with engine.begin() as db:
        db.execute(sa.text("UPDATE entries SET expires = 5e8, created = 5e8, used = 5e8, rank = 0"))
    changes = ", ".join(f"{name} = {value}" for name, value in refresh.items())
    with engine.connect() as db:
        db.execute(sa.text(f"UPDATE entries SET {changes}"))
        thread = threading.Thread(target=delete, args=(store,))
        thread.start()
        # Within one transaction the server always tells what it told first.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            waits = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            assert eventually(lambda: bool(other.scalar(waits)), 10)
            (db.commit if commits else db.rollback)()
        thread.join(20)
    with engine.connect() as db:
        counts = [
            db.scalar(sa.text(f"SELECT count(*) FROM {table}"))
            for table in ("entries", "entry_tags", "entry_documents", "entry_vectors")
        ]
    assert counts == [int(commits)] * 4
    store.close()
    engine.dispose()
