"""Bounds: how much is evicted, by several processes on one database."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from ibidem import Answer
from ibidem.lifecycle.rules import Bounds, Lifetime
from ibidem.storage import tables
from ibidem.storage.engine import sqlite_url
from ibidem.storage.entries import entry_size
from ibidem.storage.logs import LookupRow
from ibidem.storage.maintenance import Housekeeping
from ibidem.storage.store import Store
from ibidem.types import Entry, digest

BOUND = 100


class Process:
    """What one process does with the database: its own count, its own floor."""

    def __init__(self, path: Path) -> None:
        self.store = Store(sqlite_url(path / "ibidem.sqlite3"))
        self.house = Housekeeping(self.store.evictor, Bounds(max_entries=BOUND), Lifetime(), clock=time.time)

    def put(self, *names: str) -> None:
        """Store an entry of each name, then evict what is too much."""
        for name in names:
            self.add(name)
        while self.house.work():
            pass

    def add(self, name: str) -> None:
        """Store an entry of this name."""
        answer = Answer("x", input_tokens=100, output_tokens=0)
        entry = Entry(digest(name), "", "", None, "", False, answer, created=time.time())
        self.store.entries.put(entry, None, self.house.bounds, self.house.floor)
        self.house.grown(entry_size(entry))

    def holds(self, name: str) -> bool:
        """Whether the entry of this name is still there."""
        return self.store.entries.get(digest(name)) is not None


@pytest.fixture
def processes(tmp_path: Path):
    """Two that were started together."""
    found = Process(tmp_path), Process(tmp_path)
    yield found
    for process in found:
        process.store.close()


def names(prefix: str, count: int) -> list[str]:
    """So many names."""
    return [f"{prefix}{n}" for n in range(count)]


def test_what_is_stored_again_evicts_nothing(processes) -> None:
    """A full cache that is filled with the same answers again keeps them all."""
    one, _ = processes
    for _ in range(3):
        one.put(*names("a", BOUND))
    assert all(map(one.holds, names("a", BOUND)))


@pytest.mark.parametrize("counted_first", [True, False])
def test_what_is_stored_during_a_count_is_not_forgotten(processes, monkeypatch, counted_first: bool) -> None:
    """Whether the count has seen it or not: the bound holds afterwards, and no more than needed goes."""
    one, _ = processes
    one.put(*names("a", BOUND))
    count = one.store.evictor.size
    late = iter([names("b", 10)])

    def stored_meanwhile() -> tuple[int, int]:
        found = count() if counted_first else None
        for name in next(late, ()):
            one.add(name)
        return found or count()

    monkeypatch.setattr(one.store.evictor, "size", stored_meanwhile)
    one.house._count_at = 0.0  # a minute later
    one.put()

    assert BOUND - 1 <= count()[0] <= BOUND


def test_what_others_deleted_makes_room(processes) -> None:
    """After another process cleared a full cache, a few answers fit."""
    one, other = processes
    one.put(*names("a", BOUND))
    other.store.clear()
    one.put(*names("b", BOUND // 2))
    assert all(map(one.holds, names("b", BOUND // 2)))


def test_no_process_evicts_first_what_another_stored_last(processes) -> None:
    """The floor of the ranks rises in all processes, whichever evicts."""
    one, other = processes
    other.put("first")
    for batch in range(10):
        one.put(*names(f"a{batch}-", BOUND))
    other.house._count_at = 0.0  # a minute later
    other.put(*names("b", 3))
    other.put(*names("c", 3))
    one.put("last")
    assert all(map(one.holds, names("c", 3)))


def test_a_bound_of_one_keeps_one(processes) -> None:
    """What is freed beyond the bound is never all."""
    one, _ = processes
    one.house.bounds = Bounds(max_entries=1)
    for name in names("a", 4):
        one.put(name)
        assert one.store.evictor.size()[0] == 1


def test_entries_without_a_size_are_ranked(processes) -> None:
    """A process of before schema 2 that still runs writes such; the log of hits must not be lost for it."""
    one, _ = processes
    one.house.bounds = bounds = Bounds(max_bytes=1_000_000)
    one.put("a")
    with one.store._engine.begin() as db:
        db.execute(sa.update(tables.entries).values(size=0))
        db.execute(sa.delete(tables.meta).where(tables.meta.c.key == "eviction_ranking"))
    hit = LookupRow(time.time(), "", "", None, "exact", "", digest("a"), 1.0, 0.0, 1)
    one.store.lookups.add([hit], bounds)
    assert one.store.totals().hits == {"exact": 1}
    assert one.store.evictor.rerank(bounds) == 0.0


def test_a_process_without_bounds_ranks_as_the_place_does(tmp_path: Path) -> None:
    """Else its answers would be compared with others by different measures."""
    with closing(Process(tmp_path).store) as store:
        Housekeeping(store.evictor, Bounds(max_bytes=10**9), Lifetime(), time.time).work()
        free = Housekeeping(store.evictor, Bounds(), Lifetime(), time.time)
        assert free.ranking.ranking == "cost/byte"
        Housekeeping(store.evictor, Bounds(eviction="lru", max_entries=9), Lifetime(), time.time).work()
        free._count_at = 0.0
        free.work()
        assert free.ranking.ranking == "lru"
