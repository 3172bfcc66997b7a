"""A cache whose process is killed with SIGKILL, again and again: what was acknowledged stays."""

from __future__ import annotations

import logging
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

import ibidem
from ibidem.index import search as vectors
from tests.embedders import BagOfWords
from tests.helpers import Child, answer, eventually, question, reworded, rounds

ROUNDS = rounds(10, 100)
INDEXED = 5  # in each fifth the index is open too: to try it after a kill takes a second
TORN_ROUNDS = rounds(2, 20)
THRESHOLD = 0.9
LIVES = 0.25  # seconds a child lives at most after its first acknowledged answer
SHORT_LIVES = 0.12  # where there are many

# Stores answer after answer; prints each number once `store` said Stored. Every fifth lookup is reworded.
WRITER = """
import sys, logging
logging.basicConfig(level=logging.WARNING)
import ibidem
from ibidem._util import concurrency
from ibidem.index import chroma
from ibidem.index import search as vectors
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

path, first, sync, exact = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chroma.HNSW["sync_threshold"] = sync
vectors.EXACT_LIMIT = exact
concurrency.GATHER_SECONDS = 0.02  # as many index writes as a short life allows
vectors.BATCH = 3 if sync == 2 else vectors.BATCH
cache = ibidem.open(path, embedder=BagOfWords(), min_similarity=0.9)
cache.lookup(ibidem.Request(question(10**6)))  # opens the index
for n in range(first, first + 100_000):
    stored = cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n)))
    if stored:
        print(n, flush=True)
    if n % 5 == 0:
        cache.lookup(ibidem.Request(reworded(n)))
"""


def open_cache(path: Path) -> ibidem.SemanticCache:
    return ibidem.open(path, embedder=BagOfWords(), min_similarity=THRESHOLD)


def write_and_kill(path: Path, first: int, seconds: float, *, sync: int, exact: int) -> list[int]:
    """Let a child write from number `first`, kill it; returns the numbers it acknowledged."""
    with Child(WRITER, path, first, sync, exact) as child:
        acknowledged = [int(child.line())]
        time.sleep(seconds)
        acknowledged += [int(line) for line in child.kill()]
    assert child.process.returncode == -9
    return acknowledged


def check_exact(cache: ibidem.SemanticCache, numbers: list[int]) -> None:
    """Each of these questions gets its own answer."""
    for n in numbers:
        hit = cache.lookup(ibidem.Request(question(n)))
        assert isinstance(hit, ibidem.Hit), f"{n} was acknowledged and is gone: {hit}"
        assert hit.answer.text == answer(n)


def check_unacknowledged(cache: ibidem.SemanticCache, n: int) -> None:
    """A store in flight when the kill came may have landed or not, but never with a wrong answer."""
    found = cache.lookup(ibidem.Request(question(n)))
    assert not found or found.answer.text == answer(n)


def check_reworded(cache: ibidem.SemanticCache, numbers: list[int]) -> None:
    """Each of these questions, worded otherwise, gets its own answer."""
    for n in numbers:
        hit = cache.lookup(ibidem.Request(reworded(n)))
        assert isinstance(hit, ibidem.Hit), f"{n} is not found by meaning: {hit}"
        assert hit.answer.text == answer(n)
        assert hit.tier == "semantic"


# Has imported everything, and forks a process that works until it is killed: `NUMBER 1` opens the index too.
# What a step does stands in OPERATIONS; each says before and after what it did, so that a kill between the
# two leaves both outcomes possible, and nothing else.
FORKING = """
import os, sys
import chromadb, ibidem
from ibidem._util import concurrency
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

concurrency.GATHER_SECONDS = 0.02

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())  # whole or not at all

def store(cache, n):
    if cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n))):
        say("stored", n)

def clear(cache, n):
    for m in range(n, n + 3):
        cache.store(ibidem.Request(question(m), namespace=str(n)), ibidem.Answer(answer(m)))
    say("filled", n)
    cache.clear(str(n))
    say("cleared", n)

def invalidate(cache, n):
    for m in range(n, n + 3):
        request = ibidem.Request(question(m), namespace=str(n))
        cache.store(request, ibidem.Answer(answer(m)), tags=[f"of {n}"])
    say("filled", n)
    cache.invalidate(tag=f"of {n}")
    say("cleared", n)

OPERATIONS = [store] * 8 + [clear, invalidate]

def work(first, index):
    say("pid", os.getpid())
    cache = ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.9)
    if index:
        cache.lookup(ibidem.Request(question(10**6)))
    for n in range(first, first + 100_000):
        OPERATIONS[n % len(OPERATIONS)](cache, n)
        if n % 5 == 0:
            cache.lookup(ibidem.Request(reworded(n)))

say("ready")
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        work(*map(int, line.split()))
    say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def fork_and_kill(forker: Child, first: int, seconds: float, *, index: bool) -> dict[str, list[int]]:
    """Let a forked process work from number `first`, kill it; returns the numbers of what it said it did."""
    forker.tell(f"{first} {index:d}")
    pid = int(forker.line().removeprefix("pid "))
    said: dict[str, list[int]] = {"stored": [], "filled": [], "cleared": []}
    while not said["stored"]:
        _note(said, forker.line())
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    while (line := forker.line()) != "ended -9":
        _note(said, line)
    return said


def _note(said: dict[str, list[int]], line: str) -> None:
    verb, _, n = line.partition(" ")
    said[verb].append(int(n))


def check_cleared(cache: ibidem.SemanticCache, said: dict[str, list[int]]) -> None:
    """What was said to be cleared is gone; where the kill came first, all of a namespace is there or none."""
    for n in said["filled"]:
        found = [bool(cache.lookup(ibidem.Request(question(m), namespace=str(n)))) for m in range(n, n + 3)]
        assert found in ([[False] * 3] if n in said["cleared"] else [[False] * 3, [True] * 3])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(rounds(280, 1800))
def test_no_acknowledged_answer_is_lost_over_many_kills(tmp_path: Path) -> None:
    """After each kill the cache opens, and in the end holds what it ever acknowledged, no more."""
    draw = random.Random(7)
    stored: list[int] = []
    with Child(FORKING, tmp_path / "c") as forker:
        assert forker.line() == "ready"
        for step in range(ROUNDS):
            first = stored[-1] + 3 if stored else 0
            said = fork_and_kill(forker, first, draw.uniform(0, SHORT_LIVES), index=step % INDEXED == 0)
            with open_cache(tmp_path / "c") as cache:
                check_exact(cache, said["stored"])
                check_cleared(cache, said)
                check_unacknowledged(cache, max(said["stored"]) + 1)
            stored += said["stored"]
    with open_cache(tmp_path / "c") as cache:
        check_exact(cache, stored)
        check_reworded(cache, random.Random(8).sample(stored, min(100, len(stored))))
        assert cache.flush()
        assert cache.stats().unindexed == 0
    with closing(sqlite3.connect(tmp_path / "c" / "ibidem.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
def test_a_kill_inside_an_index_sync_is_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the index written to disk all the time, and searched at every size, questions stay findable."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", 0)
    draw = random.Random(9)
    acknowledged: list[int] = []
    for _ in range(TORN_ROUNDS):
        first = acknowledged[-1] + 2 if acknowledged else 0
        new = write_and_kill(tmp_path / "c", first, draw.uniform(0.05, LIVES), sync=2, exact=0)
        acknowledged += new
        with open_cache(tmp_path / "c") as cache:
            asked_again = min(20, len(acknowledged))  # a loaded machine acknowledges few
            check_reworded(cache, random.Random(len(acknowledged)).sample(acknowledged, asked_again))
            check_exact(cache, new)
    with open_cache(tmp_path / "c") as cache:
        check_reworded(cache, acknowledged)
        assert cache.flush()
        assert cache.stats().unindexed == 0


@pytest.mark.parametrize("size", ["empty", "half"])
def test_a_torn_index_file_is_rebuilt_from_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: str
) -> None:
    """A pickle of the index cut short, as a kill inside a sync leaves it: one warning, and all is found."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", 0)
    acknowledged = write_and_kill(tmp_path / "c", 0, LIVES, sync=2, exact=0)
    pickles = list((tmp_path / "c" / "chroma").rglob("index_metadata.pickle"))
    assert pickles, "no index file was written"
    for file in pickles:
        whole = file.read_bytes()
        file.write_bytes(b"" if size == "empty" else whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING, logger="ibidem"), open_cache(tmp_path / "c") as cache:
        check_reworded(cache, acknowledged)
        check_exact(cache, acknowledged)
        assert cache.flush()
        assert cache.stats().unindexed == 0
        assert cache.stats().index == "open"
    assert "rebuilt from the database" in caplog.text


def test_a_torn_index_after_a_clean_end_is_rebuilt_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the mark of an unclean end nothing is tried first, yet damage is found and healed."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", 0)
    monkeypatch.setattr(vectors, "RETRY_SECONDS", 0.2)
    numbers = list(range(300))
    with open_cache(tmp_path / "c") as cache:
        cache.lookup(ibidem.Request(question(0)))
        for n in numbers:
            assert cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n)))
        assert cache.flush()
    pickles = list((tmp_path / "c" / "chroma").rglob("index_metadata.pickle"))
    assert pickles, "no index file was written"
    for file in pickles:
        file.write_bytes(file.read_bytes()[:100])
    with open_cache(tmp_path / "c") as cache:
        eventually(lambda: cache.lookup(ibidem.Request(reworded(0))), every=0.2)
        check_exact(cache, numbers)
        check_reworded(cache, numbers)


RENEWER = """
import sys
import ibidem
from ibidem.index import chroma
from ibidem.index import compaction as upkeep
from ibidem.index import search as vectors
from tests.embedders import BagOfWords
from tests.helpers import question

chroma.HNSW["sync_threshold"] = 2
vectors.EXACT_LIMIT, upkeep.BATCH = 0, 5
cache = ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.9)
cache.lookup(ibidem.Request(question(10**6)))
print("open", flush=True)
while True:
    cache._runtime.vectors.compact(wanted=True)
    cache._runtime.vectors.index_batch()
"""


@pytest.mark.slow
def test_a_kill_while_the_index_is_replaced_is_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the kill comes, every question is found at the next opening."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", 0)
    numbers = list(range(60))
    with open_cache(tmp_path / "c") as cache:
        cache.lookup(ibidem.Request(question(10**6)))
        for n in numbers:
            assert cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n)))
        assert cache.flush()
    draw = random.Random(11)
    for _ in range(TORN_ROUNDS):
        with Child(RENEWER, tmp_path / "c") as child:
            assert child.line() == "open"
            time.sleep(draw.uniform(0.02, 0.6))
            child.kill()
        with open_cache(tmp_path / "c") as cache:
            check_reworded(cache, numbers)
            assert cache.flush()
            check_reworded(cache, numbers)
            assert cache.stats().unindexed == 0
    folders = [one for one in (tmp_path / "c" / "chroma").iterdir() if one.is_dir()]
    assert len(folders) <= 3
