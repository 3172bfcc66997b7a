"""A small embedded cache has its vectors in memory and needs no Chroma; a larger one gets it on the way."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ibidem import Answer, Request
from ibidem.index import search as vectors
from ibidem.index.memory import InMemoryIndex
from tests.embedders import BagOfWords, DenseWords
from tests.helpers import answer, fill, finds, question


def test_chroma_is_not_even_loaded(tmp_path: Path) -> None:
    """It takes a third of a second, and makes files."""
    code = (
        "import sys, ibidem\n"
        "from tests.embedders import BagOfWords\n"
        "with ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.8) as cache:\n"
        "    cache.store(ibidem.Request('what is the state'), ibidem.Answer('fine'))\n"
        "    assert cache.lookup(ibidem.Request('what is the state now ok')).tier == 'semantic'\n"
        "print('chromadb' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == "False", done.stderr
    assert not (tmp_path / "chroma").exists()


def test_what_is_deleted_leaves_buffer(open_cache) -> None:
    """And nothing waits any more; what stays is found, also after reopening."""
    cache = open_cache()
    fill(cache, range(80), namespace="gone")
    fill(cache, range(80, 90), namespace="kept")
    cache.clear(namespace="gone")
    cache.flush()
    held = cache._runtime.vectors

    assert isinstance(held._index, InMemoryIndex)
    assert cache._runtime.vectors.table.count_dead() == 0
    assert (len(held._buffer), cache.stats().unindexed) == (10, 0)
    cache.close()
    again = open_cache()
    assert all(finds(again, n, "kept") for n in range(80, 90))
    assert not finds(again, 3, "gone")


def test_buffer_stays_bounded_however_much_is_stored(open_cache) -> None:
    """A cache of 50 entries through which 1,000 go."""
    cache = open_cache(max_entries=50)
    for n in range(0, 1000, 100):
        fill(cache, range(n, n + 100))
    cache.flush()

    assert len(cache._runtime.vectors._buffer) <= 50
    assert finds(cache, 999)


@pytest.mark.parametrize("first", [0, 10_000], ids=["chroma", "memory"])
def test_a_cache_may_change_from_one_to_the_other(open_cache, monkeypatch, first: int) -> None:
    """It was larger, or made by an older version; or the limit is another now."""
    for limit in (first, 10_000 - first, first):
        monkeypatch.setattr(vectors, "EXACT_LIMIT", limit)
        cache = open_cache()
        fill(cache, range(20))
        assert isinstance(cache._runtime.vectors._index, InMemoryIndex) == (limit > 0)
        assert all(finds(cache, n) for n in range(20))
        assert cache.stats().faults == {}
        cache.close()


def test_it_grows_out_of_buffer_while_four_threads_ask(open_cache, monkeypatch) -> None:
    """Every question that was stored is found, all the time."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", 100)
    cache = open_cache(embedder=DenseWords())
    stored, lost, stop = [0], [], threading.Event()

    def ask(start: int) -> None:
        n = start
        while not stop.wait(0.002):
            n = (n + 7) % max(1, stored[0])
            if stored[0] and not finds(cache, n):
                lost.append(n)

    cache.lookup(Request("opens the index"))
    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for n in range(150):
        cache.store(Request(question(n)), Answer(answer(n)))
        stored[0] = n + 1
    assert cache.flush()
    stop.set()
    for thread in threads:
        thread.join(20)

    assert lost == []
    assert not isinstance(cache._runtime.vectors._index, InMemoryIndex)
    assert cache._runtime.vectors._index.count() == 150
    assert cache.stats().faults == {}
    cache.close()
    again = open_cache(embedder=DenseWords())
    assert all(finds(again, n) for n in range(150))


def test_vectors_of_another_embedder_are_made_anew(open_cache) -> None:
    """They are marked as held by the memory of the other one."""
    first = open_cache()
    fill(first, range(10))
    first.close()
    again = open_cache(embedder=BagOfWords(128))
    again.lookup(Request("opens the index"))
    again.flush()

    assert all(finds(again, n) for n in range(10))


def test_clearing_deletes_what_chroma_once_held(open_cache, monkeypatch, tmp_path: Path) -> None:
    """The vectors of the questions, too, are to be forgotten."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", 0)
    first = open_cache()
    fill(first, range(10))
    first.close()
    monkeypatch.undo()
    assert (tmp_path / "cache" / "chroma").exists()
    cache = open_cache()
    assert finds(cache, 3)
    cache.clear()

    assert not (tmp_path / "cache" / "chroma").exists()
