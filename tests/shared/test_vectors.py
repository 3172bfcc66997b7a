"""Finding near questions: exact while small, from the index when large, rebuilt when lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibidem import Answer, IndexUnavailable, Request
from ibidem.index.memory import VectorBuffer, scope_code, with_scope_code
from tests.embedders import BagOfWords, DenseWords

unit = np.eye(8, dtype=np.float32)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "indexed", "forget"]), st.integers(0, 40)), max_size=60))
def test_a_buffer_finds_what_brute_force_finds(steps: list[tuple[str, int]]) -> None:
    """After any order of adding, indexing and forgetting."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(41, 8)).astype(np.float32)
    buffer, held, waiting = VectorBuffer(), [], 0
    for step, n in steps:
        if step == "add":
            buffer.add(str(n), vectors[n])
            if n not in held:
                held.append(n)
                waiting += 1
        elif step == "indexed":
            done = len(buffer.next_batch(n)[0])
            buffer.mark_indexed(done)
            waiting -= done
        else:
            buffer.drop_indexed()
            held = held[len(held) - waiting :]
        query = random.normal(size=8).astype(np.float32)
        best = sorted(held, key=lambda at: -float(vectors[at] @ query))[:5]
        assert buffer.nearest(query, 5) == [str(at) for at in best]
        assert (len(buffer), buffer.waiting) == (len(held), waiting)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_a_scope_code_is_a_unit_vector_of_both_parts(namespace: str, scope: str, other: str) -> None:
    """The same for the same namespace and scope, another for another."""
    code = scope_code(namespace, scope)

    assert np.linalg.norm(code) == pytest.approx(1.0, abs=1e-5)
    assert (code == scope_code(namespace, scope)).all()
    if other != scope:
        assert float(code @ scope_code(namespace, other)) < 0.95
    if other != namespace:
        assert float(code @ scope_code(other, scope)) < 0.95


def test_scope_codes_never_change() -> None:
    """Indexes on disk hold them: this is the code of an Ibidem written before."""
    known = [-0.1398928, 0.0080849, 0.2109999]

    assert scope_code("tenant", "0" * 32)[:3].tolist() == pytest.approx(known, abs=1e-6)


def test_other_scopes_are_farther_than_other_wordings() -> None:
    """The same question in another scope lies behind a reworded one in this scope."""
    same = with_scope_code(unit[0], "n", "a")
    near = (unit[0] * 0.9 + unit[1] * np.sqrt(1 - 0.81)).astype(np.float32)
    others = [float(same @ with_scope_code(unit[0], "n", f"scope {n}")) for n in range(1000)]

    assert float(same @ with_scope_code(near, "n", "a")) > max(others)


def test_a_deleted_index_is_rebuilt_from_the_database(open_cache, tmp_path: Path, monkeypatch) -> None:
    """Deleting chroma/ between two openings loses nothing."""
    monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)
    first = open_cache()
    for question in ("what is the state", "how do I reset my password"):
        first.store(Request(question), Answer(question))
    first.lookup(Request("opens the index"))
    first.close()
    shutil.rmtree(tmp_path / "cache" / "chroma")
    again = open_cache()

    assert again.lookup(Request("what is the state now ok")).answer.text == "what is the state"
    again.flush()
    assert again.stats().unindexed == 0
    assert again._runtime.vectors._index.count() == 2


@pytest.mark.parametrize("mark", ["index.writing", "index.in-use"])
def test_a_doubtful_index_is_rebuilt_or_tried(open_cache, tmp_path: Path, monkeypatch, mark: str) -> None:
    """Interrupted while writing it is not trusted; after another unclean end it is, if it can be searched."""
    monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)
    first = open_cache()
    first.lookup(Request("opens the index"))
    first.store(Request("what is the state"), Answer("a"))
    first.flush()
    generation = first._runtime.vectors._index.generation
    first.close()
    (tmp_path / "cache" / mark).touch()
    again = open_cache()

    assert again.lookup(Request("what is the state now ok")).tier == "semantic"
    assert (again._runtime.vectors._index.generation == generation) == (mark == "index.in-use")
    assert not (tmp_path / "cache" / "index.writing").exists()


def test_an_index_that_fails_is_left_alone_for_a_while_and_then_healed(open_cache, monkeypatch) -> None:
    """One failed search costs one miss; until the retry no time is lost on it."""
    monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)
    cache = open_cache()
    cache.store(Request("what is the state"), Answer("a"))
    cache.lookup(Request("opens the index"))
    cache.flush()

    def fail(*_: object) -> list[str]:
        raise IndexUnavailable("disk on fire")

    vectors = cache._runtime.vectors
    monkeypatch.setattr(vectors._index, "search", fail)
    assert cache.lookup(Request("what is the state now ok")).reason == "no_index"
    assert vectors.state == "disk on fire"
    assert cache.lookup(Request("what is the state now ok")).reason == "no_index"
    vectors._retry_at = 0.0
    assert cache.lookup(Request("what is the state now ok")).tier == "semantic"


def test_entries_stored_while_the_index_was_away_are_found_later(open_cache, monkeypatch) -> None:
    """They wait in the database."""
    cache = open_cache()
    cache.lookup(Request("opens the index"))
    vectors = cache._runtime.vectors
    vectors._abandon(vectors._index, IndexUnavailable("gone"))
    cache.store(Request("what is the state"), Answer("a"))
    assert cache.lookup(Request("what is the state now ok")).reason == "no_index"
    vectors._retry_at = 0.0

    assert cache.lookup(Request("what is the state now ok")).tier == "semantic"


def test_more_entries_than_memory_holds_move_to_the_index(open_cache, monkeypatch) -> None:
    """Beyond the limit only what waits is kept in buffer."""
    monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 50)
    cache = open_cache(embedder=DenseWords())
    for n in range(120):
        cache.store(Request(f"what is the state of project number{n}x"), Answer(f"{n}"))
        if n == 40:
            cache.lookup(Request("opens the index"))
    cache.flush()
    vectors = cache._runtime.vectors

    assert not vectors._complete
    assert (len(vectors._buffer), vectors._index.count()) == (0, 120)
    for n in range(120):
        found = cache.lookup(Request(f"what is the current state of project number{n}x"))
        assert found.answer.text == f"{n}"


def test_a_lookup_under_way_does_not_reopen_a_closed_index(open_cache, tmp_path: Path) -> None:
    """Its lock would be held until the process ends."""
    cache = open_cache()
    vectors = cache._runtime.vectors
    cache.close()
    with pytest.raises(IndexUnavailable, match="closed"):
        vectors.nearest("", "", unit[0], 1)

    assert open_cache().lookup(Request("is it free")).reason == "empty"


def test_what_could_not_be_embedded_is_embedded_later(open_cache, monkeypatch) -> None:
    """A short outage of the embedder costs meaning for a short while only."""
    monkeypatch.setattr("ibidem.index.backfill.REFUSED_SECONDS", 0.0)
    embedder = Flaky()
    cache = open_cache(embedder=embedder)
    cache.lookup(Request("opens the index"))
    embedder.down = True
    for n in range(5):
        cache.store(Request(f"what is the state of number{n}x"), Answer(f"{n}"))
    cache.flush()
    assert cache.stats().unindexed == 5
    embedder.down = False
    cache.flush()

    assert cache.stats().unindexed == 0
    assert cache.lookup(Request("what is the exact state of number3x")).answer.text == "3"


def test_a_new_embedder_with_a_shorter_window_compares_long_questions_exactly(open_cache) -> None:
    """It would see their beginning only."""
    long = Request("word " * 100 + "what is the capital of France")
    first = open_cache()
    first.store(long, Answer("Paris"))
    first.close()
    narrow = Flaky()
    narrow.max_tokens = 50
    again = open_cache(embedder=narrow)
    again.lookup(Request("opens the index"))
    again.flush()

    assert again.lookup(long).tier == "exact"
    assert (again.stats().semantic_entries, again.stats().unindexed) == (0, 0)


class Flaky(BagOfWords):
    """Bag of words that can be down."""

    def __init__(self) -> None:
        super().__init__(512)
        self.fingerprint = "flaky"
        self.down = False

    def embed(self, texts):
        if self.down:
            raise RuntimeError("embedding service is down")
        return super().embed(texts)
