"""The fault table, second half: full disk, locked file, many processes, wrong clock, broken embedder."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import ibidem
from ibidem._util.concurrency import DEADLINE_SECONDS
from ibidem.index import backfill as lacking
from ibidem.index import search as vectors
from ibidem.lifecycle.rules import CLOCK_SKEW
from tests.e2e.test_faults import report, timed
from tests.e2e.test_processes import by_meaning, exact, open_cache, store
from tests.embedders import BagOfWords
from tests.helpers import Child, Clock, answer, eventually, question, reworded
from tests.servers import PostgresServer

DAY = 86_400.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB of its own; skips where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, 16):
        yield place


@contextlib.contextmanager
def mounted(place: Path, megabytes: int) -> Iterator[None]:
    """A file system of this size in a directory; skips where none may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave not one page of the disk; returns the file to delete for room."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


@pytest.mark.parametrize("limit", [10_000, 0], ids=["in memory", "in the index"])
def test_disk_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Lookups go on, stores are rejected; with room again all works, and what was stored is all there."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", limit)
    monkeypatch.setattr(vectors, "RETRY_SECONDS", 0.5)
    with open_cache(small_disk / "c") as cache:
        store(cache, *range(20))
        assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
        assert cache.flush()
        ballast = fill(small_disk)
        large, stored, rejected = "word " * 2000, [], 0
        for n in range(100, 160):
            request, fresh = ibidem.Request(question(n)), ibidem.Answer(answer(n), payload=large)
            if cache.store(request, fresh):
                stored.append(n)
            else:
                rejected += 1
        assert rejected > 30
        for n in range(20):
            assert exact(cache, n) == f"exact: {answer(n)}"
            assert by_meaning(cache, n) in (f"semantic: {answer(n)}", "no_index")
        cache.flush()
        counts = cache.stats().faults
        assert counts["store an answer: StorageUnavailable"] == rejected
        ballast.unlink()
        store(cache, 200)
        assert eventually(lambda: cache.flush() and by_meaning(cache, 200) == f"semantic: {answer(200)}", 30)
        for n in (*range(20), *stored):
            assert exact(cache, n) == f"exact: {answer(n)}"
        assert eventually(lambda: by_meaning(cache, 1) and cache.stats().unindexed == 0, 20)
        assert cache.stats().rejected == {"error": rejected}
    with open_cache(small_disk / "c") as cache:
        for n in (*range(20), *stored, 200):
            assert by_meaning(cache, n) == f"semantic: {answer(n)}"
    with closing(sqlite3.connect(small_disk / "c" / "ibidem.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_disk_of_postgresql_full(tmp_path: Path) -> None:
    """Lookups go on, also by meaning, stores are rejected; with room again all works, and all is there."""
    with tempfile.TemporaryDirectory() as place, mounted(Path(place), 150):
        data = Path(place, "data")
        data.mkdir()
        server = PostgresServer(data)
        server.start()
        try:
            with open_cache(tmp_path / "c", database=server.url) as cache:
                store(cache, *range(20))
                assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
                assert cache.flush()
                ballast, stored, rejected = fill(Path(place)), list[int](), 0
                for n in range(100, 160):
                    large = random.Random(n).randbytes(20_000).hex()
                    fresh = ibidem.Answer(answer(n), payload=large)
                    if cache.store(ibidem.Request(question(n)), fresh):
                        stored.append(n)
                    else:
                        rejected += 1
                assert rejected > 20
                for n in range(20):
                    assert exact(cache, n) == f"exact: {answer(n)}"
                    assert by_meaning(cache, n) == f"semantic: {answer(n)}"
                ballast.unlink()
                store(cache, 200)
                for n in (*range(20), *stored, 200):
                    assert by_meaning(cache, n) == f"semantic: {answer(n)}"
                assert cache.stats().rejected == {"error": rejected}
        finally:
            server.stop()


def test_opened_on_a_full_disk(small_disk: Path) -> None:
    """SQLite cannot read a file then: an error that says why, and nothing is moved or lost."""
    with open_cache(small_disk / "c") as cache:
        store(cache, 1)
    ballast = fill(small_disk)
    with pytest.raises(ibidem.StorageError, match="the disk may be full") as raised:
        open_cache(small_disk / "c")
    assert "move it away" not in str(raised.value)
    ballast.unlink()
    with open_cache(small_disk / "c") as cache:
        assert exact(cache, 1) == f"exact: {answer(1)}"
        assert by_meaning(cache, 1) == f"semantic: {answer(1)}"


# Holds a lock on a database until it is told to let go.
LOCKER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
if sys.argv[2] == "everything":
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
database.execute("BEGIN EXCLUSIVE")
database.execute("UPDATE meta SET value = value")
print("locked", flush=True)
sys.stdin.readline()
database.execute("COMMIT")
database.close()
print("free", flush=True)
"""


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["writes", "everything"])
def test_sqlite_locked(tmp_path: Path, kind: str) -> None:
    """By another process, for seconds: lookups do not wait, stores not longer than a second."""
    with open_cache(tmp_path / "c") as cache:
        store(cache, 1)
        assert exact(cache, 1) == f"exact: {answer(1)}"
        assert cache.flush()
        if kind == "everything":  # only who is alone can take it
            time.sleep(0.5)  # the background does one more step after a flush
            cache._runtime.store._engine.dispose()
        with Child(LOCKER, tmp_path / "c" / "ibidem.sqlite3", kind) as locker:
            assert locker.line() == "locked"
            found: list[str] = []
            looked = timed(lambda: found.append(exact(cache, 1)))
            assert found == [f"exact: {answer(1)}" if kind == "writes" else "error"]
            stored = timed(
                lambda: found.append(str(cache.store(ibidem.Request(question(2)), ibidem.Answer(answer(2)))))
            )
            assert "error" in found[1]
            time.sleep(1.0)
            assert locker.ask("") == "free"
        assert looked < (0.5 if kind == "writes" else DEADLINE_SECONDS + 0.7)
        assert stored < DEADLINE_SECONDS + 0.7
        store(cache, 2)
        assert exact(cache, 2) == f"exact: {answer(2)}"
        assert eventually(cache.flush, 20)
        stats = cache.stats()
        assert sum(stats.hits.values()) + sum(stats.misses.values()) == 3  # the log waited, and is complete
        assert stats.faults["store an answer: StorageUnavailable"] == 1
        report(f"sqlite locked, {kind}", lookup=looked, store=stored)


# Stores and looks up in four threads, questions of its own and those of its siblings; prints what was wrong.
WORKER = """
import sys, threading
import ibidem
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

path, own, steps, wrong = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), []

def work(thread):
    for step in range(steps):
        n = 10_000 * own + 1_000 * thread + step
        if not cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n))):
            wrong.append(f"{n} was rejected")
        found = cache.lookup(ibidem.Request(question(n)))
        if not found or found.answer.text != answer(n):
            wrong.append(f"{n} exactly: {found}")
        other = 10_000 * (step % 4) + 1_000 * thread + step // 2
        for text in (question(other), reworded(other)):
            found = cache.lookup(ibidem.Request(text))
            if found and found.answer.text != answer(other):
                wrong.append(f"{other}: {found}")
            elif not found and found.reason == "error":
                wrong.append(f"{other}: error")

with ibidem.open(path, embedder=BagOfWords(), min_similarity=0.9) as cache:
    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    faults = {cause: n for cause, n in cache.stats().faults.items() if "IndexInUse" not in cause}
    print(len(wrong), wrong[:3], faults, flush=True)
"""


@pytest.mark.slow
def test_four_processes_with_four_threads_on_one_directory(tmp_path: Path) -> None:
    """Each store is taken and found, no answer is wrong, nothing fails; then all is found by meaning."""
    steps = 60
    workers = [Child(WORKER, tmp_path / "c", n, steps) for n in range(4)]
    try:
        assert [worker.line() for worker in workers] == ["ready"] * 4
        for worker in workers:
            worker.tell()
        assert [worker.line(120) for worker in workers] == ["0 [] {}"] * 4
        assert [worker.end() for worker in workers] == [0] * 4
    finally:
        for worker in workers:
            worker.__exit__()
    numbers = [
        10_000 * own + 1_000 * thread + step
        for own in range(4)
        for thread in range(4)
        for step in range(steps)
    ]
    with open_cache(tmp_path / "c") as cache:
        for n in numbers:
            assert exact(cache, n) == f"exact: {answer(n)}"
        for n in numbers[::9]:
            assert by_meaning(cache, n) == f"semantic: {answer(n)}"
        stats = cache.stats()
        assert stats.entries == len(numbers)
        assert stats.faults == {}


class TestClock:
    @pytest.mark.parametrize("back", [3600.0, 10 * DAY, 20_000 * DAY])
    def test_set_back_while_running(self, tmp_path: Path, back: float) -> None:
        """No age is negative; what seems to come from the far future is not served, but replaced."""
        with open_cache(tmp_path / "c", ttl=DAY) as cache:
            clock = Clock(cache)
            store(cache, 1)
            clock.advance(-back)
            found = cache.lookup(ibidem.Request(question(1)))
            if back <= CLOCK_SKEW:
                assert found.age == 0.0
                clock.advance(back + DAY + 1)
                assert exact(cache, 1) == "expired"
                clock.advance(-back - DAY - 1)
            else:
                assert found.reason == "expired"
                assert by_meaning(cache, 1) != f"semantic: {answer(1)}"
            store(cache, 1, 2)
            assert exact(cache, 1) == f"exact: {answer(1)}"
            assert by_meaning(cache, 2) == f"semantic: {answer(2)}"
            clock.advance(DAY + 1)
            assert exact(cache, 1) == "expired"
            assert all(row.seconds >= 0 for row in cache.recent())
            assert cache.stats().faults == {}

    def test_an_entry_from_the_future_lives_no_longer_than_others(self, tmp_path: Path) -> None:
        """Stored with a clock that was years ahead; also where answers live for ever."""
        with open_cache(tmp_path / "c", ttl=float("inf")) as cache:
            clock = Clock(cache)
            clock.advance(3650 * DAY)
            store(cache, 1)
            clock.advance(-3650 * DAY)
            assert exact(cache, 1) == "expired"
            store(cache, 1)
            assert exact(cache, 1) == f"exact: {answer(1)}"


class Moody(BagOfWords):
    """Raises while it is down."""

    down = False

    def embed(self, texts):
        if self.down:
            raise ConnectionError("the embedding service is down")
        return super().embed(texts)


def test_embedder_raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very words are answered, answers are stored, and found by meaning once it works again."""
    monkeypatch.setattr(lacking, "REFUSED_SECONDS", 0.2)
    embedder = Moody()
    with ibidem.open(tmp_path / "c", embedder=embedder, min_similarity=0.9) as cache:
        store(cache, 1)
        assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
        embedder.down = True
        store(cache, *range(2, 8))
        for n in range(1, 8):
            assert exact(cache, n) == f"exact: {answer(n)}"
        assert cache.lookup(ibidem.Request(f"could you {reworded(1)}")).reason == "error"
        assert cache.stats().unindexed == 6
        embedder.down = False
        assert eventually(lambda: cache.flush() and cache.stats().unindexed == 0, 10)
        for n in range(1, 8):
            assert by_meaning(cache, n) == f"semantic: {answer(n)}"
        faults = cache.stats().faults
        assert faults["embed a question: ConnectionError"] == 6
        assert faults["look up a question: ConnectionError"] == 1
