"""The index follows the database: deletions reach it, and it is replaced while it serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ibidem
from ibidem import Answer, Document, IndexUnavailable, Request
from ibidem.index import compaction
from ibidem.index.memory import VectorBuffer
from ibidem.storage import tables
from ibidem.storage.deletion import delete_entries
from ibidem.storage.engine import writing
from tests.embedders import BagOfWords, DenseWords
from tests.helpers import Child, answer, eventually, fill, finds, question
from tests.servers import running_chroma


@pytest.fixture(autouse=True)
def searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a large cache, whose vectors are in Chroma."""
    monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced as soon as more is stale than alive, and looked at all the time."""
    monkeypatch.setattr(compaction, "LEAST_STALE", 10)
    monkeypatch.setattr(compaction, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("ibidem._util.concurrency.PAUSE_SECONDS", 0.01)


def folders(path: Path) -> int:
    """How many collections have files."""
    return sum(one.is_dir() for one in (path / "chroma").iterdir())


steps = st.tuples(st.sampled_from(["add", "indexed", "forget", "remove"]), st.integers(0, 40))


@settings(deadline=None)
@given(st.lists(steps, max_size=80))
def test_a_buffer_removes_as_a_dict_does(taken: list[tuple[str, int]]) -> None:
    """After any order of steps it holds, finds and hands to the index what a list of pairs would."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(41, 8)).astype(np.float32)
    buffer = VectorBuffer()
    held: dict[str, bool] = {}  # in order; whether it is in the index
    for step, n in taken:
        if step == "add":
            buffer.add(str(n), vectors[n])
            held.setdefault(str(n), False)
        elif step == "remove":
            gone = {str(n), str(n + 1), str(n + 20)}
            buffer.remove(gone)
            held = {point: there for point, there in held.items() if point not in gone}
        elif step == "indexed":
            points, rows = buffer.next_batch(n)
            assert points == [point for point, there in held.items() if not there][:n]
            assert np.array_equal(rows, vectors[[int(point) for point in points]]) or not points
            buffer.mark_indexed(len(points))
            held.update(dict.fromkeys(points, True))
        else:
            buffer.drop_indexed()
            held = {point: there for point, there in held.items() if not there}
        query = random.normal(size=8).astype(np.float32)
        best = sorted(held, key=lambda point: -float(vectors[int(point)] @ query))[:5]
        assert buffer.nearest(query, 5) == best
        assert (len(buffer), buffer.waiting) == (len(held), sum(not there for there in held.values()))


def test_a_buffer_is_searched_while_it_changes() -> None:
    """A search never fails, and never misses what nobody removed."""
    buffer = VectorBuffer()
    vectors = np.random.default_rng(1).normal(size=(400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for n in range(100):
        buffer.add(str(n), vectors[n])
    stop, wrong = threading.Event(), []

    def search() -> None:
        n = 0
        while not stop.is_set():
            n = (n + 1) % 100
            if buffer.nearest(vectors[n], 1) != [str(n)]:
                wrong.append(n)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        for n in range(100, 400):
            buffer.add(str(n), vectors[n])
        buffer.remove(map(str, range(100, 400)))
    stop.set()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(buffer) == 100


def test_what_is_deleted_leaves_memory_and_index(open_cache) -> None:
    """And nothing waits any more; what stays is found."""
    cache = open_cache()
    fill(cache, range(80), namespace="gone")
    fill(cache, range(80, 90), namespace="kept")
    cache.clear(namespace="gone")
    cache.flush()
    vectors, table = cache._runtime.vectors, cache._runtime.vectors.table

    assert table.count_dead() == 0
    assert vectors._index.count() == 10
    assert len(vectors._buffer) in (0, 10)
    assert all(finds(cache, n, "kept") for n in range(80, 90))


def test_a_point_that_another_entry_has_stays(open_cache, monkeypatch) -> None:
    """The same question over other documents."""
    cache = open_cache()
    cache.lookup(Request("opens the index"))
    for text in ("one", "two"):
        cache.store(Request(question(1), documents=(Document(text, text),)), Answer(text))
    cache.flush()
    store = cache._runtime.store
    gone = store.entries.newest(1)[0]

    deleted: list[str] = []
    monkeypatch.setattr(cache._runtime.vectors._index, "delete", deleted.extend)
    with writing(store._engine) as db:
        assert delete_entries(db, tables.entries.c.id == gone.id) == 1
    cache.flush()

    assert (cache._runtime.vectors.table.count_dead(), deleted) == (0, [])
    assert cache._runtime.vectors._index.count() == 1


@pytest.mark.parametrize("moment", ["dead_points", "live_points", "delete_dead"])
def test_stored_again_while_it_is_deleted_from_the_index(open_cache, monkeypatch, moment: str) -> None:
    """Whenever that happens it is found at once, and still after everything is indexed."""
    cache = open_cache()
    fill(cache, range(5), namespace="n")
    vectors, table = cache._runtime.vectors, cache._runtime.vectors.table
    cache._runtime._background.stop()
    cache.clear(namespace="n")
    before = getattr(table, moment)
    again: list[bool] = []
    threads: list[threading.Thread] = []

    def store() -> None:
        request = Request(question(3), namespace="n")
        again.append(bool(cache.store(request, Answer(answer(3)))))

    def interrupted(*given: object) -> object:
        found = before(*given)
        if not threads:
            threads.append(threading.Thread(target=store))
            threads[0].start()
            threads[0].join(0.2)  # it may have to wait for a lock that is held here
        return found

    monkeypatch.setattr(table, moment, interrupted)
    vectors.index_batch()
    threads[0].join()
    assert again == [True]
    assert finds(cache, 3, "n")
    while vectors.index_batch():
        pass
    assert finds(cache, 3, "n")
    assert vectors._index.count() == 1
    assert table.count_dead() == 0


def test_interrupted_between_index_and_database(open_cache, monkeypatch) -> None:
    """Deleted from the index and not noted so: stored again it is found, also after a restart."""
    cache = open_cache()
    fill(cache, range(5), namespace="n")
    cache._runtime._background.stop()
    cache.clear(namespace="n")

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(cache._runtime.vectors.table, "delete_dead", killed)
        with pytest.raises(RuntimeError):
            cache._runtime.vectors.index_batch()
    cache.close()
    again = open_cache()
    again.store(Request(question(3), namespace="n"), Answer(answer(3)))
    assert finds(again, 3, "n")
    again.flush()

    assert finds(again, 3, "n")
    assert again._runtime.vectors._index.count() == 1
    assert again.stats().unindexed == 0


def test_points_lost_from_the_index_are_indexed_again(open_cache, monkeypatch) -> None:
    """Another process indexed a question again before this one deleted its old point."""
    cache = open_cache()
    fill(cache, range(3))
    vectors, store = cache._runtime.vectors, cache._runtime.store
    point = store.entries.newest(1)[0]
    row = next(row for row in vectors.table.indexed(vectors._index.generation, 9) if row.id == point.id)
    vectors._index.delete([row.point])

    with writing(store._engine) as db:
        db.execute(tables.dead_points.insert().values(embedder=vectors.table.embedder, point=row.point))
    assert not finds(cache, 2)
    cache._runtime._background.wake()
    cache.flush()

    assert finds(cache, 2)


@pytest.mark.usefixtures("brisk")
def test_a_stale_index_is_replaced_while_it_serves(open_cache, tmp_path: Path, monkeypatch) -> None:
    """Four threads ask all the time and always find; the old collection goes with its folder."""
    monkeypatch.setattr(compaction, "BATCH", 20)
    cache = open_cache(embedder=DenseWords())
    fill(cache, range(150), namespace="kept")
    fill(cache, range(1_000, 1_300), namespace="gone")
    vectors = cache._runtime.vectors
    old = vectors._index.name
    stop, lost, asked = threading.Event(), [], []

    def ask(first: int) -> None:
        n = first
        while not stop.is_set():
            n = (n + 7) % 150
            asked.append(n)
            if not finds(cache, n, "kept"):
                lost.append(n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    cache.clear(namespace="gone")
    late = range(150, 170)
    for n in late:
        assert cache.store(Request(question(n), namespace="kept"), Answer(answer(n)))
        assert finds(cache, n, "kept")
    replaced = eventually(
        lambda: vectors._index.name != old and not cache._runtime._background._idle_work_left, 30
    )
    stop.set()
    for thread in threads:
        thread.join()
    cache.flush()

    assert replaced
    assert (lost, len(asked) > 100) == ([], True)
    assert all(finds(cache, n, "kept") for n in range(170))
    assert vectors._index.count() == 170
    assert eventually(lambda: vectors.compact() or folders(tmp_path / "cache") == 1)
    assert cache.stats().faults == {}
    generation = vectors._index.generation
    cache.close()
    again = open_cache(embedder=DenseWords())
    assert all(finds(again, n, "kept") for n in range(170))
    assert again._runtime.vectors._index.generation == generation


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8])
def test_a_replacement_that_is_interrupted_is_gone_on_with(open_cache, monkeypatch, steps: int) -> None:
    """By whoever opens the index next; meanwhile nothing is missing."""
    monkeypatch.setattr(compaction, "BATCH", 10)
    cache = open_cache()
    fill(cache, range(50))
    old = cache._runtime.vectors._index.name
    cache._runtime._background.stop()
    for _ in range(steps):
        cache._runtime.vectors.compact(wanted=True)
    cache.close()
    again = open_cache()
    vectors = again._runtime.vectors
    assert all(finds(again, n) for n in range(50))
    again.flush()
    assert eventually(lambda: vectors.compact() or vectors._index.name != old)
    again.flush()

    assert all(finds(again, n) for n in range(50))
    assert (vectors._index.count(), again.stats().unindexed) == (50, 0)


def test_what_is_deleted_meanwhile_is_in_neither(open_cache, monkeypatch) -> None:
    """Deleted after it was copied, it leaves the new collection too."""
    monkeypatch.setattr(compaction, "BATCH", 10)
    cache = open_cache()
    fill(cache, range(30, 50), namespace="gone")  # copied first
    fill(cache, range(30), namespace="kept")
    vectors = cache._runtime.vectors
    old = vectors._index.name
    cache._runtime._background.stop()
    for _ in range(4):
        vectors.compact(wanted=True)
    cache.clear(namespace="gone")
    drain(vectors.index_batch)
    while vectors._index.name == old:
        vectors.compact(wanted=True)

    assert vectors._index.count() == 30
    assert all(finds(cache, n, "kept") for n in range(30))


def test_clearing_everything_ends_a_replacement(open_cache, monkeypatch) -> None:
    """There is nothing left to copy; later stores are found and indexed."""
    monkeypatch.setattr(compaction, "BATCH", 10)
    cache = open_cache()
    fill(cache, range(50))
    vectors = cache._runtime.vectors
    cache._runtime._background.stop()
    for _ in range(3):
        vectors.compact(wanted=True)
    assert cache.clear() == 50
    assert cache.store(Request(question(1)), Answer(answer(1)))
    drain(vectors.index_batch)
    drain(vectors.compact)

    assert finds(cache, 1)
    assert (vectors._index.count(), cache._runtime.vectors.table.count_dead()) == (1, 0)


def test_a_lost_new_collection_is_begun_again(open_cache, monkeypatch) -> None:
    """What was marked as held by it is not lost with it."""
    monkeypatch.setattr(compaction, "BATCH", 10)
    cache = open_cache()
    fill(cache, range(50))
    vectors = cache._runtime.vectors
    cache._runtime._background.stop()
    for _ in range(4):
        vectors.compact(wanted=True)
    vectors._index.drop(vectors._registry.read().next)
    vectors._abandon(vectors._index, IndexUnavailable("gone"))
    vectors._retry_at = 0.0
    assert finds(cache, 1)
    old = vectors._index.name
    for _ in range(30):
        vectors.compact(wanted=True)
        drain(vectors.index_batch)

    assert vectors._index.name != old
    assert all(finds(cache, n) for n in range(50))


def test_notes_for_an_index_that_is_never_opened_are_bounded(open_cache, monkeypatch) -> None:
    """Beyond the cap they are dropped: it is compared with the database when it is opened."""
    monkeypatch.setattr(compaction, "DEAD_LIMIT", 20)
    cache = open_cache()
    fill(cache, range(60))
    cache.close()
    again = open_cache()
    table = again._runtime.vectors.table
    again.clear()
    assert table.count_dead() == 60
    again._runtime.vectors.index_batch()
    assert table.count_dead() == 0
    monkeypatch.setattr(compaction, "LEAST_STALE", 10)
    again.lookup(Request("opens the index"))
    vectors = again._runtime.vectors
    assert eventually(lambda: not vectors.compact() and vectors._index.count() == 0)


def drain(job: Callable[[], bool]) -> None:
    """Call it until there is nothing left to do."""
    for _ in range(200):
        if not job():
            return
    raise AssertionError("it never ends")


def test_two_processes_worth_of_vectors_on_one_server(tmp_path: Path, monkeypatch) -> None:
    """One replaces the collection; the other goes on in the new one, without a miss."""
    monkeypatch.setattr(compaction, "BATCH", 10)
    with running_chroma(tmp_path / "server") as server:
        cache = ibidem.open(tmp_path / "c", embedder=BagOfWords(), min_similarity=0.9, chroma=server.url)
        with cache, Child(OTHER, tmp_path / "c", server.url) as other:
            assert other.line() == "ready"
            fill(cache, range(60))
            vectors = cache._runtime.vectors
            assert other.ask("find 7") == "True"
            old = vectors._index.name
            cache._runtime._background.stop()
            for _ in range(3):
                vectors.compact(wanted=True)
            assert other.ask("store 100") == other.ask("find 100") == "True"
            while vectors._index.name == old:
                vectors.compact(wanted=True)
            drain(vectors.index_batch)
            assert all(finds(cache, n) for n in (*range(60), 100))
            vectors._index.drop(old)
            assert all(other.ask(f"find {n}") == "True" for n in (*range(60), 100))
            assert other.ask("name") == vectors._index.name
            assert other.end() == 0


OTHER = """
import sys
import ibidem
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

cache = ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.9, chroma=sys.argv[2])
cache.lookup(ibidem.Request("opens the index"))
print("ready", flush=True)
for line in sys.stdin:
    verb, _, n = line.strip().partition(" ")
    if verb == "store":
        print(bool(cache.store(ibidem.Request(question(int(n))), ibidem.Answer(answer(int(n))))), flush=True)
        cache.flush()
    elif verb == "find":
        found = cache.lookup(ibidem.Request(reworded(int(n))))
        print(bool(found) and found.answer.text == answer(int(n)), flush=True)
    else:
        print(cache._runtime.vectors._index.name, flush=True)
"""
