"""Several processes, forks, threads and servers on one cache: real ones, nothing mocked."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ibidem
from ibidem import runtime
from ibidem.index import chroma_server
from ibidem.index import search as vectors
from tests.embedders import BagOfWords
from tests.helpers import Child, answer, eventually, question, reworded, rounds
from tests.servers import ChromaServer, running_chroma, running_postgres

# Obeys: `store N`, `exact N`, `reworded N`, `index`, `close`; one reply each. Arguments: the path, the URL of
# a server or "", how many vectors are searched in memory, and how many if another has the index.
WORKER = """
import sys, logging
logging.basicConfig(level=logging.WARNING)
import ibidem
from ibidem import runtime
from ibidem.index import search as vectors
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

vectors.RETRY_SECONDS = 0.5
server = sys.argv[2] if sys.argv[2:] else ""
where = {"database" if server.startswith("postgresql") else "chroma": server} if server else {}
if sys.argv[3:]:
    vectors.EXACT_LIMIT, vectors.MEMORY_LIMIT = map(int, sys.argv[3:])
cache = ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.9, **where)
print("ready", flush=True)
for line in sys.stdin:
    verb, _, n = line.strip().partition(" ")
    if verb == "store":
        print(cache.store(ibidem.Request(question(int(n))), ibidem.Answer(answer(int(n)))), flush=True)
    elif verb in ("exact", "reworded"):
        text = question(int(n)) if verb == "exact" else reworded(int(n))
        found = cache.lookup(ibidem.Request(text))
        print(f"{found.tier}: {found.answer.text}" if found else found.reason, flush=True)
    elif verb == "index":
        print(cache.stats().index, flush=True)
    elif verb == "close":
        cache.close()
        print("closed", flush=True)
"""


def open_cache(path: Path, **settings: object) -> ibidem.SemanticCache:
    return ibidem.open(path, embedder=BagOfWords(), min_similarity=0.9, **settings)


def store(cache: ibidem.SemanticCache, *numbers: int) -> None:
    for n in numbers:
        assert cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n)))


def exact(cache: ibidem.SemanticCache, n: int) -> str:
    """The tier and text of the answer to the very same question, or the reason of the miss."""
    return _said(cache.lookup(ibidem.Request(question(n))))


def by_meaning(cache: ibidem.SemanticCache, n: int) -> str:
    """The tier and text of the answer to the reworded question, or the reason of the miss."""
    return _said(cache.lookup(ibidem.Request(reworded(n))))


def _said(found: ibidem.Hit | ibidem.Miss) -> str:
    return f"{found.tier}: {found.answer.text}" if found else found.reason


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed index is tried again after half a second, other processes' entries looked for as often."""
    monkeypatch.setattr(vectors, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(runtime, "POLL_SECONDS", 0.5)


@pytest.fixture(params=[10_000, 0], ids=["in memory", "in the index"])
def searched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small caches are searched in memory, large ones in Chroma: both."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", request.param)


# Arguments of a worker on a cache that is large enough for an index, or too large to be searched without.
LARGE, HUGE = ("", 0, 100_000), ("", 0, 0)


@pytest.fixture
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


class TestSeveralProcessesOnOnePath:
    @pytest.mark.parametrize("others", [(), LARGE, None], ids=["in memory", "beside an index", "PostgreSQL"])
    def test_each_finds_at_once_what_the_others_stored(
        self, tmp_path: Path, others: tuple[object, ...] | None, request: pytest.FixtureRequest
    ) -> None:
        """By meaning: 4 processes store 4 answers each, and each finds all 16."""
        others = (request.getfixturevalue("postgres"),) if others is None else others
        workers = [Child(WORKER, tmp_path / "c", *others) for _ in range(4)]
        try:
            assert [worker.line() for worker in workers] == ["ready"] * 4
            assert [worker.ask("reworded 99") for worker in workers] == ["empty"] * 4
            for n in range(16):
                assert workers[n % 4].ask(f"store {n}").startswith("Stored")
                assert {worker.ask(f"reworded {n}") for worker in workers} == {f"semantic: {answer(n)}"}
            for worker in workers:
                assert [worker.ask(f"reworded {n}") for n in range(16)] == [
                    f"semantic: {answer(n)}" for n in range(16)
                ]
            assert {worker.ask("index") for worker in workers} == {"open"}
            assert [worker.end() for worker in workers] == [0] * 4
        finally:
            for worker in workers:
                worker.__exit__()

    @pytest.mark.usefixtures("searched")
    def test_all_find_while_one_after_the_other_is_killed(self, tmp_path: Path) -> None:
        """Killed in the middle of storing: nothing acknowledged is lost, the others go on."""
        path, stored = tmp_path / "c", list[int]()
        with open_cache(path) as cache:
            assert by_meaning(cache, 0) == "empty"
            for first in range(0, rounds(60, 100), 20):
                with Child(WORKER, path) as worker:
                    worker.line()
                    for n in range(first, first + 10):
                        assert worker.ask(f"store {n}").startswith("Stored")
                    for n in range(first + 10, first + 20):
                        worker.tell(f"store {n}")
                    acknowledged = sum(line.startswith("Stored") for line in worker.kill())
                stored += range(first, first + 10 + acknowledged)
                for n in stored:
                    eventually(lambda n=n: by_meaning(cache, n) == f"semantic: {answer(n)}", 5)
                    assert by_meaning(cache, n) == f"semantic: {answer(n)}"
            assert cache.stats().faults == {}

    def test_deletions_leave_the_memory_of_all(self, tmp_path: Path) -> None:
        """Invalidated, evicted or cleared in another process: each holds what the database holds."""
        with open_cache(tmp_path / "c", max_entries=40) as one, Child(WORKER, tmp_path / "c") as other:
            held = one._runtime.vectors
            other.line()
            store(one, *range(30))
            assert other.ask("reworded 29") == f"semantic: {answer(29)}"
            one.invalidate(entry=one.lookup(ibidem.Request(question(3))).entry_id)
            assert other.ask("reworded 3") == "below_threshold"
            for n in range(30, 80):  # by a process without bounds
                assert other.ask(f"store {n}").startswith("Stored")
            assert by_meaning(one, 79) == f"semantic: {answer(79)}"
            assert len(held._buffer) == 79
            store(one, 80)
            eventually(lambda: by_meaning(one, 80) and len(held._buffer) <= 40)
            assert len(held._buffer) <= 40
            assert one.clear() <= 40
            assert by_meaning(one, 80) == other.ask("reworded 80") == "empty"
            assert len(held._buffer) == 0
            assert other.ask("store 81").startswith("Stored")
            assert by_meaning(one, 81) == f"semantic: {answer(81)}"

    def test_a_cache_grows_while_all_search(self, tmp_path: Path) -> None:
        """One takes the index, the others go on in memory, also when it is killed."""
        limits = ("", 50, 100_000)
        with Child(WORKER, tmp_path / "c", *limits) as one, Child(WORKER, tmp_path / "c", *limits) as other:
            assert [one.line(), other.line()] == ["ready"] * 2
            assert one.ask("reworded 0") == other.ask("reworded 0") == "empty"
            for n in range(120):
                assert (one, other)[n % 2].ask(f"store {n}").startswith("Stored")
                if n % 10 == 0:
                    found = one.ask(f"reworded {n // 2}"), other.ask(f"reworded {n // 2}")
                    assert found == (f"semantic: {answer(n // 2)}",) * 2
            eventually((tmp_path / "c" / "chroma").exists)
            one.kill()
            assert {other.ask(f"reworded {n}")[:8] for n in range(120)} == {"semantic"}
            with Child(WORKER, tmp_path / "c", *limits) as third:
                third.line()
                assert {third.ask(f"reworded {n}")[:8] for n in range(120)} == {"semantic"}

    def test_beyond_the_limit_the_second_repeats_answers_to_identical_questions(self, tmp_path: Path) -> None:
        """It reads and writes the database, finds nothing by meaning and says once how to get that."""
        log = tmp_path / "stderr"
        with Child(WORKER, tmp_path / "c", *HUGE) as owner:
            owner.line()
            assert owner.ask("store 1").startswith("Stored")
            assert owner.ask("reworded 1") == f"semantic: {answer(1)}"
            with Child(WORKER, tmp_path / "c", *HUGE, stderr=log) as second:
                second.line()
                assert second.ask("exact 1") == f"exact: {answer(1)}"
                assert second.ask("reworded 1") == "no_index"
                assert second.ask("store 2").startswith("Stored")
                assert second.ask("exact 2") == f"exact: {answer(2)}"
                time.sleep(0.6)  # over its pause: it tries again
                assert second.ask("reworded 1") == "no_index"
                assert "chroma run --path" in second.ask("index")
                assert second.end() == 0
        said = log.read_text()
        assert said.count("chroma run --path") == 1
        assert "another process is using the vector index" in said
        assert "Traceback" not in said

    @pytest.mark.parametrize("end", ["close", "kill"])
    def test_beyond_the_limit_the_second_takes_the_index_over(self, tmp_path: Path, end: str) -> None:
        """Closed or killed: some seconds after the first the other process finds by meaning."""
        with Child(WORKER, tmp_path / "c", *HUGE) as owner, Child(WORKER, tmp_path / "c", *HUGE) as second:
            owner.line(), second.line()
            assert owner.ask("store 1").startswith("Stored")
            assert owner.ask("reworded 1") == f"semantic: {answer(1)}"
            assert second.ask("reworded 1") == "no_index"
            if end == "close":
                assert owner.ask("close") == "closed"
            else:
                owner.kill()
            eventually(lambda: second.ask("reworded 1") == f"semantic: {answer(1)}")
            assert second.ask("reworded 1") == f"semantic: {answer(1)}"
            assert second.end() == 0

    @pytest.mark.usefixtures("searched")
    def test_the_owner_finds_by_meaning_what_the_second_stored(self, tmp_path: Path) -> None:
        """At once, whether it searches in memory or in the index."""
        with open_cache(tmp_path / "c") as owner, Child(WORKER, tmp_path / "c") as second:
            assert by_meaning(owner, 1) == "empty"
            second.line()
            for n in range(5):
                assert second.ask(f"store {n}").startswith("Stored")
                assert by_meaning(owner, n) == f"semantic: {answer(n)}"

    def test_many_processes_open_a_new_path_at_once(self, tmp_path: Path) -> None:
        """None fails, each store is seen by all."""
        count = rounds(4, 8)
        workers = [Child(WORKER, tmp_path / "c") for _ in range(count)]
        try:
            assert [worker.line() for worker in workers] == ["ready"] * count
            for n, worker in enumerate(workers):
                worker.tell(f"store {n}")
            assert [worker.line()[:6] for worker in workers] == ["Stored"] * count
            for worker in workers:
                for n in range(count):
                    assert worker.ask(f"exact {n}") == f"exact: {answer(n)}"
            states = [worker.ask("reworded 3") for worker in workers]
            assert states == [f"semantic: {answer(3)}"] * count
            assert [worker.end() for worker in workers] == [0] * count
        finally:
            for worker in workers:
                worker.__exit__()


# Opens path after path, each at the moment it is told, and says how that went.
OPENER = """
import sys, time
import ibidem
from tests.embedders import BagOfWords

ibidem.open(sys.argv[1], embedder=BagOfWords()).close()
print("ready", flush=True)
for line in sys.stdin:
    path, moment = line.split()
    time.sleep(max(0.0, float(moment) - time.time()))
    try:
        with ibidem.open(path, embedder=BagOfWords()) as cache:
            print(bool(cache.store(ibidem.Request("q " + sys.argv[1][-1]), ibidem.Answer("a"))), flush=True)
    except Exception as error:
        print(repr(error), flush=True)
"""


@pytest.mark.slow
def test_new_paths_opened_at_the_same_moment(tmp_path: Path) -> None:
    """Many times 4 processes make one database at once, store and close: none is told that it is locked."""
    openers = [Child(OPENER, tmp_path / f"own{n}") for n in range(4)]
    draw, said = random.Random(3), []
    try:
        assert [opener.line() for opener in openers] == ["ready"] * 4
        for number in range(rounds(12, 40)):
            moment = time.time() + 0.02
            for opener in openers:
                opener.tell(f"{tmp_path / str(number)} {moment + draw.random() * 0.02}")
            said += [opener.line() for opener in openers]
    finally:
        for opener in openers:
            opener.__exit__()
    assert set(said) == {"True"}


def in_fork(work: Callable[[], str], timeout: float = 20.0) -> str:
    """What `work` returns in a forked child that ends through the interpreter; never hangs."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(timeout) + 5)
        try:
            said = work()
        except BaseException as error:
            said = f"raised {error!r}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    ended = eventually(lambda: os.waitpid(pid, os.WNOHANG)[0], timeout)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    return said if ended else f"hung after: {said!r}"


# Forks after use; the child works and both end through the interpreter, atexit handlers included.
FORKER = """
import os, sys
import ibidem
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

cache = ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.9)
cache.lookup(ibidem.Request(reworded(1)))
for n in range(150):
    cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n)))
cache.flush()
pid = os.fork()
if pid == 0:
    found = cache.lookup(ibidem.Request(question(1)))
    stored = cache.store(ibidem.Request(question(1000)), ibidem.Answer(answer(1000)))
    print("child", found.tier, bool(stored), cache.lookup(ibidem.Request(reworded(2))).tier, flush=True)
    sys.exit(3)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print("child ended", status, flush=True)
found = cache.lookup(ibidem.Request(reworded(1)))
print("parent", found.tier, cache.lookup(ibidem.Request(question(1000))).tier, flush=True)
"""


# What a server with `preload` does: opens, and with an argument uses, the cache, and forks 4 workers.
PRELOADED = """
import os, sys
import ibidem
from tests.embedders import BagOfWords
from tests.helpers import answer, eventually, question, reworded

cache = ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.9)
if sys.argv[2:]:
    cache.store(ibidem.Request(question(99)), ibidem.Answer(answer(99)))
    assert cache.lookup(ibidem.Request(reworded(99))).tier == "semantic"
found = lambda n: getattr(cache.lookup(ibidem.Request(reworded(n))), "answer", None)
for worker in range(4):
    if os.fork() == 0:
        for n in range(4 * worker, 4 * worker + 4):
            assert cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n)))
        seen = eventually(lambda: all(found(n) and found(n).text == answer(n) for n in range(16)))
        os._exit(0 if seen and cache.stats().faults == {} else 1)
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)]
print(codes, all(found(n).text == answer(n) for n in range(16)), cache.stats().faults, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestForks:
    def test_a_forked_child_works_and_ends(self, tmp_path: Path) -> None:
        """The child looks up and stores, ends through the interpreter; the parent goes on."""
        with Child(FORKER, tmp_path / "c", stderr=tmp_path / "stderr") as child:
            assert child.line(30) == "child exact True semantic"
            assert child.line(30) == "child ended 3"
            assert child.line(30) == "parent semantic exact"
            assert child.end() == 0

    @pytest.mark.parametrize("used", [(), ("used",)], ids=["opened before", "used before"])
    def test_four_workers_of_a_server_that_loads_before_it_forks(
        self, tmp_path: Path, used: tuple[str, ...]
    ) -> None:
        """Each finds all 16 answers by meaning, and so does their parent."""
        with Child(PRELOADED, tmp_path / "c", *used) as server:
            assert server.line() == "[0, 0, 0, 0] True {}"

    @pytest.mark.usefixtures("searched")
    def test_the_parent_finds_what_a_forked_child_stored(self, tmp_path: Path) -> None:
        """By meaning too, at once."""
        with open_cache(tmp_path / "c") as cache:
            store(cache, 1)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"

            def work() -> str:
                store(cache, 2)
                return exact(cache, 1) + "|" + exact(cache, 2) + "|" + by_meaning(cache, 1)

            assert in_fork(work) == f"exact: {answer(1)}|exact: {answer(2)}|semantic: {answer(1)}"
            assert by_meaning(cache, 2) == f"semantic: {answer(2)}"

    def test_a_forked_child_may_open_the_same_path(self, tmp_path: Path) -> None:
        """A cache opened in the child, on a path the parent has open, does not use the parent's threads."""
        with open_cache(tmp_path / "c") as cache:
            store(cache, 1)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert cache.flush()

            def work() -> str:
                with open_cache(tmp_path / "c") as mine:
                    store(mine, 2)
                    flushed = mine.flush()
                    return f"{exact(mine, 1)}|{exact(mine, 2)}|{by_meaning(mine, 1)}|{flushed}"

            assert in_fork(work) == f"exact: {answer(1)}|exact: {answer(2)}|semantic: {answer(1)}|True"
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"

    def test_closing_in_a_forked_child_leaves_the_parent_working(self, tmp_path: Path) -> None:
        """The child's `close` ends nothing of the parent's."""
        with open_cache(tmp_path / "c") as cache:
            store(cache, 1)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"

            def work() -> str:
                cache.close()
                return "closed"

            assert in_fork(work) == "closed"
            store(cache, 2)
            assert by_meaning(cache, 2) == f"semantic: {answer(2)}"
            with Child(WORKER, tmp_path / "c") as second:
                second.line()
                assert second.ask("reworded 1") == f"semantic: {answer(1)}"

    def test_a_child_forked_before_the_first_use_may_own_the_index(self, tmp_path: Path) -> None:
        """The pattern of preloading servers: open in the parent, use in the workers."""
        with open_cache(tmp_path / "c") as cache:

            def work() -> str:
                store(cache, 1)
                found = by_meaning(cache, 1)
                cache.close()
                return found

            assert in_fork(work) == f"semantic: {answer(1)}"
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"

    def test_parent_and_child_ask_a_server_at_once(self, tmp_path: Path) -> None:
        """They share no connection: nobody reads the other's reply."""
        with (
            running_chroma(tmp_path / "server") as server,
            open_cache(tmp_path / "c", chroma=server.url) as cache,
        ):
            store(cache, *range(50))
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert cache.flush()

            def ask() -> str:
                wrong = [
                    said
                    for n in [*range(50)] * 4
                    if (said := by_meaning(cache, n)) != f"semantic: {answer(n)}"
                ]
                return f"{len(wrong)} wrong {wrong[:1]}"

            mine: list[str] = []
            asking = threading.Thread(target=lambda: mine.append(ask()))
            asking.start()
            assert in_fork(ask, 60) == "0 wrong []"  # 200 lookups, beside as many
            asking.join(60)
            assert mine == ["0 wrong []"]
            assert cache.stats().faults == {}

    def test_a_server_is_shared_by_forked_workers(self, tmp_path: Path) -> None:
        """With a Chroma server, parent and child both find by meaning."""
        with (
            running_chroma(tmp_path / "server") as server,
            open_cache(tmp_path / "c", chroma=server.url) as cache,
        ):
            store(cache, 1)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"

            def work() -> str:
                store(cache, 2)
                return by_meaning(cache, 1) + "|" + by_meaning(cache, 2)

            assert in_fork(work) == f"semantic: {answer(1)}|semantic: {answer(2)}"
            eventually(lambda: by_meaning(cache, 2).startswith("semantic"))
            assert by_meaning(cache, 2) == f"semantic: {answer(2)}"


class TestThreads:
    @pytest.mark.usefixtures("searched")
    def test_eight_threads_get_right_answers(self, tmp_path: Path) -> None:
        """Mixed lookups and stores, reworded and exact: each finds its own, nothing fails inside."""
        wrong: list[str] = []

        def work(cache: ibidem.SemanticCache, thread: int) -> None:
            for step in range(40):
                n = thread * 1000 + step
                store(cache, n)
                if exact(cache, n) != f"exact: {answer(n)}":
                    wrong.append(f"exact {n}")
                if by_meaning(cache, n) != f"semantic: {answer(n)}":
                    wrong.append(f"just stored {n}: {by_meaning(cache, n)}")
                old = thread * 1000 + step // 2
                if by_meaning(cache, old) != f"semantic: {answer(old)}":
                    wrong.append(f"stored before {old}: {by_meaning(cache, old)}")

        with open_cache(tmp_path / "c") as cache:
            by_meaning(cache, 0)
            threads = [threading.Thread(target=work, args=(cache, t)) for t in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
            assert not wrong
            stats = cache.stats()
            assert stats.faults == {}
            assert stats.entries == 320
            assert stats.unindexed == 0
            assert sum(stats.hits.values()) == 8 * 40 * 3

    def test_closing_while_others_look_up(self, tmp_path: Path) -> None:
        """The others get answers, misses or `CacheClosed`, nothing else, and `close` returns."""
        cache, strange = open_cache(tmp_path / "c"), []
        store(cache, *range(20))

        def work() -> None:
            try:
                for n in range(100_000):
                    said = by_meaning(cache, n % 20)
                    if said not in (f"semantic: {answer(n % 20)}", "error", "no_index"):
                        strange.append(said)
            except ibidem.CacheClosed:
                return
            except BaseException as error:
                strange.append(repr(error))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        cache.close()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert not strange


class TestTwoOpensInOneProcess:
    def test_they_share_what_is_stored_and_closing_one_leaves_the_other(self, tmp_path: Path) -> None:
        """Both find by meaning; the index stays open until the last is closed."""
        one, other = open_cache(tmp_path / "c"), open_cache(tmp_path / "c")
        store(one, 1)
        assert by_meaning(other, 1) == f"semantic: {answer(1)}"
        one.close()
        store(other, 2)
        assert by_meaning(other, 2) == f"semantic: {answer(2)}"
        with pytest.raises(ibidem.CacheClosed, match=r"ibidem\.open"):
            one.lookup(ibidem.Request(question(1)))
        other.close()
        with open_cache(tmp_path / "c") as again:
            assert by_meaning(again, 1) == f"semantic: {answer(1)}"

    def test_one_path_spelled_in_two_ways_is_one_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Relative, absolute or through a link: both find by meaning."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "c")
        with open_cache(Path("c")) as one, open_cache(tmp_path / "c") as other:
            store(one, 1)
            assert by_meaning(one, 1) == f"semantic: {answer(1)}"
            assert by_meaning(other, 1) == f"semantic: {answer(1)}"
            with open_cache(tmp_path / "link") as third:
                assert by_meaning(third, 1) == f"semantic: {answer(1)}"

    def test_a_relative_path_stays_where_it_was_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Changing the working directory afterwards moves nothing, in any thread."""
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        with open_cache(Path("c")) as cache:
            store(cache, 1)
            monkeypatch.chdir(tmp_path / "elsewhere")
            found: list[str] = []
            threads = [threading.Thread(target=lambda: found.append(exact(cache, 1))) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [f"exact: {answer(1)}"] * 4
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_another_embedder_on_the_same_path(self, tmp_path: Path) -> None:
        """Or is told the truth: that another embedder, not another process, is in the way."""
        with open_cache(tmp_path / "c") as one:
            store(one, 1)
            assert by_meaning(one, 1) == f"semantic: {answer(1)}"
            with ibidem.open(tmp_path / "c", embedder=BagOfWords(128), min_similarity=0.9) as other:
                assert exact(other, 1) == f"exact: {answer(1)}"
                store(other, 2)
                found, state = by_meaning(other, 2), other.stats().index
                assert found == f"semantic: {answer(2)}" or "embedder" in state


@pytest.mark.usefixtures("quick", "searched")
def test_the_thread_that_closes_need_not_be_the_one_that_opened(tmp_path: Path) -> None:
    """The index is given up all the same, and the next cache has it."""
    for first in (0, 20):
        with ThreadPoolExecutor(1) as elsewhere:
            cache = elsewhere.submit(open_cache, tmp_path / "c").result()
            elsewhere.submit(by_meaning, cache, first).result()  # opens the index
            elsewhere.submit(store, cache, *range(first, first + 20)).result()
            found = [by_meaning(cache, n) for n in range(first + 20)]
        assert found == [f"semantic: {answer(n)}" for n in range(first + 20)]
        cache.close()


class TestIndexDirectoryDeleted:
    def test_between_two_openings(self, tmp_path: Path) -> None:
        """Everything is found by meaning again, without a word from the user."""
        with open_cache(tmp_path / "c") as cache:
            store(cache, *range(250))
            assert by_meaning(cache, 7) == f"semantic: {answer(7)}"
            assert cache.flush()
        shutil.rmtree(tmp_path / "c" / "chroma", ignore_errors=True)  # not there in memory
        with open_cache(tmp_path / "c") as cache:
            for n in range(250):
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"
            assert cache.flush()
            assert cache.stats().unindexed == 0
        assert (tmp_path / "c" / "chroma" / "chroma.sqlite3").exists() == (vectors.EXACT_LIMIT == 0)

    def test_while_running(self, tmp_path: Path) -> None:
        """Nothing is lost, stores go on, and soon questions are found by meaning in a new index."""
        with open_cache(tmp_path / "c") as cache:
            store(cache, *range(150))
            assert by_meaning(cache, 7) == f"semantic: {answer(7)}"
            assert cache.flush()
            shutil.rmtree(tmp_path / "c" / "chroma", ignore_errors=True)  # not there in memory
            store(cache, *range(150, 300))
            for n in range(300):
                assert exact(cache, n) == f"exact: {answer(n)}"
            eventually(lambda: _indexed(cache) and by_meaning(cache, 299).startswith("semantic"))
            for n in range(300):
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"
            assert cache.stats().unindexed == 0
        with open_cache(tmp_path / "c") as cache:
            for n in range(300):
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"


def _indexed(cache: ibidem.SemanticCache) -> bool:
    by_meaning(cache, 0)  # an index that failed is opened again by the next use
    return cache.stats().unindexed == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChromaServer]:
    with running_chroma(tmp_path / "server") as running:
        yield running


@pytest.mark.usefixtures("quick")
class TestChromaServer:
    def test_store_find_and_clear(self, tmp_path: Path, server: ChromaServer) -> None:
        """As with an index of one's own."""
        with open_cache(tmp_path / "c", chroma=server.url) as cache:
            store(cache, *range(120))
            assert by_meaning(cache, 5) == f"semantic: {answer(5)}"
            assert cache.flush()
            for n in range(120):
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"
            assert cache.stats().unindexed == 0
            assert cache.clear() == 120
            assert by_meaning(cache, 5) == "empty"
            store(cache, 5)
            assert by_meaning(cache, 5) == f"semantic: {answer(5)}"
            assert cache.stats().faults == {}

    def test_two_processes_find_each_others_answers(self, tmp_path: Path, server: ChromaServer) -> None:
        """By meaning, at once or within seconds, and neither says that the index is taken."""
        with (
            Child(WORKER, tmp_path / "c", server.url) as one,
            Child(WORKER, tmp_path / "c", server.url) as other,
        ):
            one.line(), other.line()
            assert one.ask("reworded 1") == other.ask("reworded 1") == "empty"
            assert one.ask("store 1").startswith("Stored")
            assert other.ask("store 2").startswith("Stored")
            for worker, n in ((one, 2), (other, 1)):
                expected = f"semantic: {answer(n)}"
                eventually(lambda w=worker, n=n, e=expected: w.ask(f"reworded {n}") == e)
                assert worker.ask(f"reworded {n}") == expected
            assert one.end() == other.end() == 0

    def test_killed_and_started_again(self, tmp_path: Path, server: ChromaServer) -> None:
        """Meanwhile exact hits, `no_index` and `Stored`; afterwards all is found by meaning."""
        with open_cache(tmp_path / "c", chroma=server.url) as cache:
            store(cache, *range(30))
            assert by_meaning(cache, 5) == f"semantic: {answer(5)}"
            assert cache.flush()
            server.kill()
            assert by_meaning(cache, 5) == "no_index"
            assert exact(cache, 5) == f"exact: {answer(5)}"
            store(cache, *range(30, 60))
            assert by_meaning(cache, 35) == "no_index"
            assert exact(cache, 35) == f"exact: {answer(35)}"
            server.start()
            eventually(lambda: by_meaning(cache, 35).startswith("semantic"))
            eventually(lambda: _indexed(cache))
            for n in range(60):
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"
            assert cache.stats().unindexed == 0

    def test_started_again_empty(self, tmp_path: Path, server: ChromaServer) -> None:
        """A server that lost its directory is filled again from the database."""
        with open_cache(tmp_path / "c", chroma=server.url) as cache:
            store(cache, *range(30))
            assert by_meaning(cache, 5) == f"semantic: {answer(5)}"
            assert cache.flush()
            server.kill()
            shutil.rmtree(server.directory)
            server.start()
            eventually(lambda: _indexed(cache) and by_meaning(cache, 5).startswith("semantic"))
            for n in range(30):
                assert by_meaning(cache, n) == f"semantic: {answer(n)}"

    def test_frozen(self, tmp_path: Path, server: ChromaServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that accepts and never answers delays lookups by the timeout, never for ever."""
        monkeypatch.setattr(chroma_server, "HTTP_SECONDS", 1.0)
        with open_cache(tmp_path / "c", chroma=server.url) as cache:
            store(cache, 1)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert cache.flush()
            server.freeze()
            said: list[str] = []

            def ask() -> None:
                said.append(by_meaning(cache, 1))
                time.sleep(0.7)  # over the pause: the next lookup opens it anew
                said.append(by_meaning(cache, 1))
                said.append(exact(cache, 1))

            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(15)
            in_time = list(said)
            server.thaw()
            asking.join(15)
            assert in_time == ["no_index", "no_index", f"exact: {answer(1)}"]
            eventually(lambda: by_meaning(cache, 1).startswith("semantic"))
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"

    def test_clearing_while_the_server_is_down(self, tmp_path: Path, server: ChromaServer) -> None:
        """The answers are gone at once; nothing is raised for the index, which only makes finding cheap."""
        with open_cache(tmp_path / "c", chroma=server.url) as cache:
            store(cache, 1, 2)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            server.kill()
            assert cache.clear() == 2
            assert exact(cache, 1) in ("no_index", "empty")
            server.start()
            store(cache, 1)
            eventually(lambda: by_meaning(cache, 1).startswith("semantic"))
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert by_meaning(cache, 2) == "below_threshold"

    def test_another_process_cleared_everything(self, tmp_path: Path, server: ChromaServer) -> None:
        """The collection is another one then: a pause, and it works again."""
        with open_cache(tmp_path / "c", chroma=server.url) as cache:
            store(cache, 1, 2)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert cache.flush()
            with Child(CLEARER, tmp_path / "c", server.url) as other:
                assert other.line() == "2"
            assert exact(cache, 1) in ("no_index", "empty")
            store(cache, 3)
            eventually(lambda: by_meaning(cache, 3).startswith("semantic"))
            assert by_meaning(cache, 3) == f"semantic: {answer(3)}"


CLEARER = """
import sys
import ibidem
from tests.embedders import BagOfWords

with ibidem.open(sys.argv[1], embedder=BagOfWords(), chroma=sys.argv[2]) as cache:
    cache.lookup(ibidem.Request("anything"))
    print(cache.clear(), flush=True)
"""


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_down_from_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Opening works, answers are stored and repeated exactly, one warning says where nothing listens."""
    server = ChromaServer(tmp_path / "server")
    with caplog.at_level(logging.WARNING, "ibidem"), open_cache(tmp_path / "c", chroma=server.url) as cache:
        store(cache, 1)
        assert exact(cache, 1) == f"exact: {answer(1)}"
        assert by_meaning(cache, 1) == by_meaning(cache, 2) == "no_index"
        assert server.url in cache.stats().index
        server.start()
        try:
            eventually(lambda: by_meaning(cache, 1).startswith("semantic"))
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
        finally:
            server.kill()
    assert sum(server.url in record.getMessage() for record in caplog.records) == 1
