"""What waits for a database that is away: bounded, in order, written later, counted when dropped."""

from __future__ import annotations

import pytest

from ibidem import Answer, Example, Miss, Request
from ibidem.errors import StorageUnavailable
from tests.helpers import eventually


@pytest.fixture
def away(cache, monkeypatch):
    """Takes the logs of the cache's database away; a second call brings them back."""
    store = cache._runtime.store
    broken = pytest.MonkeyPatch()

    def fail(_: object, **__: object) -> None:
        raise StorageUnavailable("database is locked")

    for table in (store.lookups, store.examples):
        broken.setattr(table, "add", fail)
    monkeypatch.setattr("ibidem._util.concurrency.RETRY_SECONDS", 0.05)
    yield broken.undo
    broken.undo()


def test_logs_wait_in_their_order(cache, away) -> None:
    """Nothing is lost, nothing is doubled."""
    for n in range(700):  # more than one batch
        cache.lookup(Request(f"q{n}"))
        cache.examples.add(Example(f"q{n}", "a"))
    assert not cache.flush()
    away()

    assert eventually(cache.flush, 5)
    assert [row.question for row in cache.recent(1000)] == [f"q{n}" for n in reversed(range(700))]
    assert [example.question for example in cache.examples.recent(1000)] == [
        f"q{n}" for n in reversed(range(700))
    ]
    assert set(cache.stats().faults) == {
        "write the lookup log: StorageUnavailable",
        "keep examples: StorageUnavailable",
    }


def test_too_many_are_dropped_and_counted(cache, away, monkeypatch) -> None:
    """Of lookups the oldest, of examples the newest."""
    monkeypatch.setattr("ibidem.storage.logs.QUEUE_LIMIT", 10)
    monkeypatch.setattr("ibidem.examples.log.QUEUE_LIMIT", 10)
    for n in range(15):
        cache.lookup(Request(f"q{n}"))
        cache.examples.add(Example(f"q{n}", "a"))
    away()
    assert eventually(cache.flush, 5)

    assert {row.question for row in cache.recent()} <= {f"q{n}" for n in range(15)}
    faults = cache.stats().faults
    dropped = faults["write the lookup log: too many wait"]
    assert len(cache.recent()) == 15 - dropped
    assert cache.recent()[0].question == "q14"
    assert faults["keep examples: too many wait"] == 5
    assert cache.examples.recent()[0].question == "q9"


def test_what_still_waits_at_closing_is_counted(cache, away, caplog) -> None:
    """One line of the log says how much."""
    cache.lookup(Request("q"))
    cache.close()

    assert "dropped 1 rows of its logs at closing" in caplog.text


def test_a_store_is_not_kept_waiting(cache, away) -> None:
    """Only logs wait."""
    assert cache.store(Request("q"), Answer("a"))
    assert not isinstance(cache.lookup(Request("q")), Miss)
