"""The fault table, first half: servers that die, restart or freeze while a program uses them.

In each row: the user's call succeeds, the state heals by itself, the counters tell. The second half is in
test_faults_here.py; kills of the process itself in test_killed.py, of its index in test_processes.py.
"""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

import ibidem
from ibidem._util.concurrency import DEADLINE_SECONDS
from tests.e2e.load import Load, Seen
from tests.e2e.test_processes import by_meaning, exact, open_cache, store
from tests.helpers import answer, eventually, reworded
from tests.servers import ChromaServer, PostgresServer, running_chroma, running_postgres_server

OPEN = 0.050  # what a lookup may cost while it is known that the server is down
FIRST = DEADLINE_SECONDS + 0.7  # and what it may cost to find out, on a machine that does much else
HEALS = 1.0  # until a server that is up again is used, in one of `TRIES` restarts: a machine may be busy
TRIES = 3
DOWN = 3.5  # what an outage lasts after which pauses that go on growing would be longer than that
KNOWN = 20


@pytest.fixture(scope="module")
def running() -> Iterator[PostgresServer]:
    with running_postgres_server() as server:
        yield server


@pytest.fixture
def postgres(running: PostgresServer) -> Iterator[PostgresServer]:
    """A running PostgreSQL with an empty database; running again afterwards."""
    engine = sqlalchemy.create_engine(running.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.execute(sqlalchemy.text("DROP SCHEMA public CASCADE"))
        db.execute(sqlalchemy.text("CREATE SCHEMA public"))
    engine.dispose()
    yield running
    running.thaw()
    if running.process is None:
        running.start()


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[ChromaServer]:
    with running_chroma(tmp_path / "server") as server:
        yield server


def filled(cache: ibidem.SemanticCache) -> None:
    """Give the cache the questions that the load knows, indexed."""
    store(cache, *range(KNOWN))
    assert eventually(lambda: by_meaning(cache, 1) == f"semantic: {answer(1)}")
    assert cache.flush()


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def report(row: str, **figures: float) -> None:
    """What was measured, for docs/operations.md; seen with `pytest -rP`."""
    print(row, *(f"{name} {1000 * value:.1f} ms" for name, value in figures.items()), sep=" | ")


def in_flight(call: Callable[[int], object], threads: int = 32) -> list[float]:
    """How long each of many threads is kept that call at the same moment."""
    took: list[float] = []
    working = [
        threading.Thread(target=lambda n=n: took.append(timed(lambda: call(n))), daemon=True)
        for n in range(threads)
    ]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join(20)
    assert len(took) == threads, "a call never returned"
    return took


def restarted(end: Callable[[], None], start: Callable[[], None], seen: Seen, down: float) -> float:
    """End a server and start it again; how long after that the first lookup by meaning is a hit, at best."""
    took = float("inf")
    for _ in range(TRIES):
        time.sleep(0.5)
        end()
        time.sleep(down)
        start()
        up = time.monotonic()
        assert eventually(
            lambda up=up: any(at > up and how == "semantic" for at, _, how in seen.lookups[-40:]), 15, 0.02
        )
        took = min(took, seen.first_after(up, "semantic"))
        if took < HEALS:
            break
    time.sleep(0.3)
    return took


def _refusal(cache: ibidem.SemanticCache) -> str:
    """Why the database of a cache is not used."""
    try:
        cache.recent()
    except ibidem.StorageError as error:
        return str(error)
    return ""


class TestPostgres:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "how",
        [signal.SIGINT, pytest.param(signal.SIGQUIT, marks=pytest.mark.thorough), signal.SIGKILL],
        ids=lambda how: how.name,
    )
    def test_restarted_under_load(
        self, tmp_path: Path, postgres: PostgresServer, how: signal.Signals
    ) -> None:
        """Meanwhile misses and rejections at once; then hits again, and the logs are complete."""

        def end() -> None:
            postgres.kill() if how is signal.SIGKILL else postgres.stop(how)

        with open_cache(tmp_path / "c", database=postgres.url) as cache:
            filled(cache)
            before = sum(cache.stats().hits.values()) + sum(cache.stats().misses.values())
            with Load(cache, KNOWN, pause=0.02) as seen:
                heals = restarted(end, postgres.start, seen, DOWN if how is signal.SIGKILL else 1.0)
            assert seen.wrong == []
            assert heals < HEALS
            assert set(seen.outcomes) == {"exact", "semantic", "error"}
            assert seen.slowest("error") < FIRST
            assert eventually(cache.flush, 40)
            stats = cache.stats()
            dropped = stats.faults.get("write the lookup log: too many wait", 0)  # beyond 10,000
            logged = sum(stats.hits.values()) + sum(stats.misses.values())
            assert logged + dropped == before + len(seen.lookups)
            assert stats.faults["look up a question: StorageUnavailable"] > 0
            assert stats.faults["store an answer: StorageUnavailable"] == stats.rejected["error"]
            for n in seen.stored:
                assert exact(cache, n) == f"exact: {answer(n)}"
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"
            report(
                f"postgres {how.name}",
                miss_p50=seen.median("error"),
                miss_max=seen.slowest("error"),
                heals=heals,
            )

    @pytest.mark.alone
    def test_frozen(self, tmp_path: Path, postgres: PostgresServer) -> None:
        """Of 32 callers in flight each is released after a second; the next pay next to nothing."""
        with open_cache(tmp_path / "c", database=postgres.url) as cache:
            filled(cache)
            in_flight(lambda n: by_meaning(cache, n % KNOWN))  # as many connections as there will be
            postgres.freeze()
            first = in_flight(lambda n: by_meaning(cache, n % KNOWN))
            then = [timed(lambda: by_meaning(cache, 1)) for _ in range(300)]
            stores = [timed(lambda: cache.store(ibidem.Request("q"), ibidem.Answer("a"))) for _ in range(50)]
            assert exact(cache, 1) == "error"
            postgres.thaw()
            heals = timed(lambda: eventually(lambda: exact(cache, 1).startswith("exact"), 10, 0.02))
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert eventually(cache.flush, 40)
            assert cache.stats().faults["look up a question: StorageUnavailable"] > 332
            report(
                "postgres frozen", first=max(first), p50=statistics.median(then), max=max(then), heals=heals
            )
        assert max(first) < FIRST
        assert max(then) < OPEN
        assert max(stores) < OPEN

    def test_sessions_that_were_ended_are_replaced(self, tmp_path: Path, postgres: PostgresServer) -> None:
        """No lookup fails because the server, or a firewall, closed connections that were idle."""
        with open_cache(tmp_path / "c", database=postgres.url) as cache:
            filled(cache)
            in_flight(lambda n: exact(cache, n % KNOWN))
            engine = sqlalchemy.create_engine(postgres.url, isolation_level="AUTOCOMMIT")
            with engine.connect() as db:
                db.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "  # waits for its end
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
            engine.dispose()
            found: list[str] = []
            in_flight(lambda n: found.append(exact(cache, n % KNOWN)))
            assert all(said.startswith("exact") for said in found)
            assert cache.stats().faults == {}

    def test_what_waits_is_written_without_another_call(
        self, tmp_path: Path, postgres: PostgresServer
    ) -> None:
        """Lookups, examples: of a program that is idle when the database comes back."""
        with open_cache(tmp_path / "c", database=postgres.url) as cache:
            filled(cache)
            postgres.stop()
            for n in range(5):
                assert exact(cache, n) == "error"
                assert cache.examples.add(ibidem.Example(reworded(n), answer(n)))
            time.sleep(1.5)  # the background has tried, and failed
            postgres.start()
            engine = sqlalchemy.create_engine(postgres.url, isolation_level="AUTOCOMMIT")
            with engine.connect() as db:

                def written() -> bool:
                    lookups = db.exec_driver_sql(
                        "SELECT count(*) FROM lookups WHERE reason = 'error'"
                    ).scalar()
                    added = "SELECT count(*) FROM examples WHERE entry_id IS NULL"
                    return (lookups, db.exec_driver_sql(added).scalar()) == (5, 5)

                assert eventually(written, 20)
            engine.dispose()

    def test_failover_to_another_server(self, tmp_path: Path, postgres: PostgresServer) -> None:
        """To an empty one, then to one with another cache: neither is touched; then the right one is back."""
        with open_cache(tmp_path / "c", database=postgres.url) as cache:
            filled(cache)
            in_flight(lambda n: exact(cache, n % KNOWN))
            postgres.stop(signal.SIGQUIT)
            with running_postgres_server(instead_of=postgres) as other:
                assert eventually(lambda: exact(cache, 1) == "other_cache", 20, 0.02)
                assert cache.store(ibidem.Request("q"), ibidem.Answer("a")).reason == "other_cache"
                with pytest.raises(ibidem.StorageError, match="is empty, or no cache, and not the cache"):
                    cache.stats()
                time.sleep(1.0)  # the background has tried, and failed
                engine = sqlalchemy.create_engine(other.url)
                assert sqlalchemy.inspect(engine).get_table_names() == []
                engine.dispose()
                with open_cache(tmp_path / "d", database=f"{other.url}?application_name=d") as begun:
                    store(begun, 1)
                    assert eventually(lambda: "is the cache" in _refusal(cache), 40, 0.1)
                    assert exact(cache, 1) == "other_cache"
                    assert exact(begun, 1) == f"exact: {answer(1)}"
                    assert begun.stats().entries == 1
            postgres.start()
            heals = timed(lambda: eventually(lambda: exact(cache, 1) == f"exact: {answer(1)}", 40, 0.02))
            assert eventually(cache.flush, 40)
            assert cache.stats().faults["use the database: OtherCache"] > 2
            report("failover", heals=heals)

    def test_not_there_at_opening(self, tmp_path: Path) -> None:
        """That is an error, as a wrong URL would be: nothing was answered by this cache yet."""
        with pytest.raises(ibidem.StorageError, match="postgresql"):
            open_cache(tmp_path / "c", database="postgresql+psycopg://ibidem:hunter2@127.0.0.1:9/x")


class TestChroma:
    @pytest.mark.slow
    def test_killed_and_restarted_under_load(self, tmp_path: Path, chroma: ChromaServer) -> None:
        """Identical questions are answered all the time, all are stored, and by meaning soon again."""
        with open_cache(tmp_path / "c", chroma=chroma.url) as cache:
            filled(cache)
            with Load(cache, KNOWN, pause=0.02) as seen:
                heals = restarted(chroma.kill, chroma.start, seen, DOWN)
            assert seen.wrong == []
            assert heals < HEALS
            assert set(seen.outcomes) == {"exact", "semantic", "no_index"}
            assert {outcome for _, _, outcome in seen.stores} == {"stored"}
            assert seen.slowest("no_index") < FIRST
            assert eventually(lambda: cache.flush() and cache.stats().unindexed == 0, 40)
            assert any(cause.startswith("search by meaning") for cause in cache.stats().faults)
            for n in seen.stored[::25]:
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"
            report(
                "chroma killed",
                miss_p50=seen.median("no_index"),
                miss_max=seen.slowest("no_index"),
                heals=heals,
            )

    @pytest.mark.alone
    def test_frozen(self, tmp_path: Path, chroma: ChromaServer) -> None:
        """Of 32 callers in flight each is released after a second; the next pay next to nothing."""
        with open_cache(tmp_path / "c", chroma=chroma.url) as cache:
            filled(cache)
            in_flight(lambda n: by_meaning(cache, n % KNOWN))
            chroma.freeze()
            first = in_flight(lambda n: by_meaning(cache, n % KNOWN))
            then = [timed(lambda: by_meaning(cache, 1)) for _ in range(300)]
            stores = [timed(lambda n=n: store(cache, n)) for n in range(100, 150)]
            assert by_meaning(cache, 1) == "no_index"
            assert exact(cache, 120) == f"exact: {answer(120)}"
            chroma.thaw()
            heals = timed(lambda: eventually(lambda: by_meaning(cache, 1).startswith("semantic"), 15, 0.02))
            assert eventually(lambda: cache.flush() and cache.stats().unindexed == 0, 20)
            assert by_meaning(cache, 120) == f"semantic: {answer(120)}"
            report("chroma frozen", first=max(first), p50=statistics.median(then), max=max(then), heals=heals)
        assert max(first) < FIRST
        assert max(then) < OPEN
        assert max(stores) < OPEN

    @pytest.mark.alone
    def test_frozen_from_the_start(self, tmp_path: Path, chroma: ChromaServer) -> None:
        """While the first lookup waits for the index to be opened, nobody who stores does."""
        chroma.freeze()
        with open_cache(tmp_path / "c", chroma=chroma.url) as cache:
            store(cache, 0)
            waits = threading.Thread(target=by_meaning, args=(cache, 0))
            waits.start()
            stores = [timed(lambda n=n: store(cache, n)) for n in range(1, 50)]
            waits.join(20)
            assert timed(lambda: by_meaning(cache, 1)) < OPEN
            chroma.thaw()
            assert eventually(lambda: by_meaning(cache, 40) == f"semantic: {answer(40)}", 20)
        assert max(stores) < OPEN * 2

    def test_what_was_not_indexed_when_the_process_ended_is(
        self, tmp_path: Path, chroma: ChromaServer
    ) -> None:
        """The queue before the index is the database itself: it survives any end."""
        with open_cache(tmp_path / "c", chroma=chroma.url) as cache:
            filled(cache)
            chroma.kill()
            assert by_meaning(cache, 1) == "no_index"
            store(cache, *range(100, 160))
        chroma.start()
        with open_cache(tmp_path / "c", chroma=chroma.url) as cache:
            for n in range(100, 160):
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"
            assert eventually(lambda: cache.flush() and cache.stats().unindexed == 0, 20)
