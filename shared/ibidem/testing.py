# ruff: noqa: S101  (tests assert)
"""Tests to inherit for a vector index, an embedder, a verifier or a guard of your own.

Subclass a contract in a module that pytest collects, under a name that begins with `Test`, and say what to
test. `pytest.register_assert_rewrite("ibidem.testing")` in `conftest.py` shows the values in a failure. The
contract of adapters is in `ibidem.adapter.testing`. Nothing that a cache needs imports either.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import ibidem
from ibidem.cache import SemanticCache
from ibidem.embedding.base import CheckedEmbedder, Embedder
from ibidem.index.base import VectorIndex
from ibidem.matching.guards import Guard
from ibidem.matching.scorers import Candidate, Verifier
from ibidem.matching.text import parse_question
from ibidem.types import Entry

QUESTION, REWORDED = "how do I reset my password", "how do I reset my old password"
OTHER = "when does the parcel arrive"
UNUSUAL = ("", " ", "?", "ÄÖÜ ß", "質問", "e\u0301", "a\x00b", "word " * 2000)


class WordEmbedder:
    """A hashed bag of words: needs no model; questions that share most of their words are near."""

    fingerprint, max_tokens = "ibidem.testing.words-256", 256

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row per text, shape (n, 256)."""
        rows = np.zeros((len(texts), 256), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in _words(text) or [text]:
                hashed = blake2b(word.encode("utf-8", "replace"), digest_size=4).digest()
                row[int.from_bytes(hashed, "big") % 256] += 1.0
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def count_tokens(self, text: str) -> int:
        """Count the words, and two special tokens."""
        return len(_words(text)) + 2


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until it holds, at most this long; returns whether it does."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _points(n: int) -> list[str]:
    """Ids of the form that Ibidem uses: 32 hexadecimal digits, which are a UUID too."""
    return [blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(n)]


def _vectors(n: int, dimension: int = 64) -> NDArray[np.float32]:
    rows = np.random.default_rng(7).normal(size=(n, dimension))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


class VectorIndexContract:
    """Promises of a `VectorIndex`, alone and in a cache."""

    def open_index(self, directory: Path) -> VectorIndex:
        """Open an index; an index on disk keeps its files in this directory, which exists."""
        raise NotImplementedError

    def test_the_nearest_comes_first(self, tmp_path: Path) -> None:
        """Each vector finds itself; of 200 an approximate index may miss two."""
        index, points, vectors = self.open_index(tmp_path), _points(200), _vectors(200)
        index.upsert(points, vectors)
        found = [index.search(vector, 3) for vector in vectors]

        assert index.count() == 200
        assert all(len(near) == 3 for near in found)
        assert sum(near[0] == point for near, point in zip(found, points, strict=True)) >= 198
        index.close()

    def test_an_empty_index_finds_nothing(self, tmp_path: Path) -> None:
        """It returns no ids, and does not raise."""
        index = self.open_index(tmp_path)

        assert index.count() == 0
        assert list(index.search(_vectors(1)[0], 5)) == []
        index.close()

    def test_more_are_asked_for_than_there_are(self, tmp_path: Path) -> None:
        """It returns all."""
        index, points, vectors = self.open_index(tmp_path), _points(3), _vectors(3)
        index.upsert(points, vectors)

        assert set(index.search(vectors[0], 10)) == set(points)
        index.close()

    def test_what_is_put_twice_is_held_once(self, tmp_path: Path) -> None:
        """`upsert` replaces."""
        index, points, vectors = self.open_index(tmp_path), _points(3), _vectors(3)
        for _ in range(2):
            index.upsert(points, vectors)

        assert index.count() == 3
        assert len(set(index.search(vectors[0], 3))) == 3
        index.close()

    def test_what_is_deleted_is_not_found(self, tmp_path: Path) -> None:
        """Ids that the index does not hold are ignored."""
        index, points, vectors = self.open_index(tmp_path), _points(20), _vectors(20)
        index.upsert(points[:10], vectors[:10])
        index.delete([points[0], points[15]])

        assert index.count() == 9
        assert points[0] not in index.search(vectors[0], 10)
        index.upsert(points[:1], vectors[:1])
        assert list(index.search(vectors[0], 1)) == points[:1]
        index.close()

    def test_a_cache_finds_what_it_stored(self, tmp_path: Path) -> None:
        """At once, from the index alone, and when it is opened again; not what was deleted."""
        with self._open_cache(tmp_path) as cache:
            stored = cache.store(ibidem.Request(QUESTION), ibidem.Answer("in the menu"))
            cache.store(ibidem.Request(OTHER), ibidem.Answer("on Monday"))
            assert stored
            assert cache.lookup(ibidem.Request(REWORDED))
            assert wait_until(lambda: cache.stats().unindexed == 0)
            assert cache.lookup(ibidem.Request(REWORDED))
        with self._open_cache(tmp_path) as cache:
            hit = cache.lookup(ibidem.Request(REWORDED))
            assert isinstance(hit, ibidem.Hit), hit
            assert (hit.answer.text, hit.tier) == ("in the menu", "semantic")
            assert not cache.lookup(ibidem.Request(REWORDED, scope="another model"))
            cache.feedback(hit, good=False)
            assert not cache.lookup(ibidem.Request(REWORDED))
            assert cache.stats().faults == {}

    def test_a_lost_index_is_filled_again(self, tmp_path: Path) -> None:
        """It is opened in another directory, where it is empty."""
        with self._open_cache(tmp_path) as cache:
            cache.store(ibidem.Request(QUESTION), ibidem.Answer("in the menu"))
            assert cache.lookup(ibidem.Request(REWORDED))
            assert wait_until(lambda: cache.stats().unindexed == 0)
        with self._open_cache(tmp_path, "elsewhere") as cache:
            assert wait_until(lambda: bool(cache.lookup(ibidem.Request(REWORDED))))

    def _open_cache(self, directory: Path, place: str = "index") -> SemanticCache:
        def open_here(name: str) -> VectorIndex:
            (directory / place / name).mkdir(parents=True, exist_ok=True)
            return self.open_index(directory / place / name)

        return ibidem.open(directory / "cache", index=open_here, embedder=WordEmbedder(), min_similarity=0.75)


class EmbedderContract:
    """Promises of an `Embedder`."""

    near: ClassVar[tuple[str, str]] = (QUESTION, REWORDED)
    far: ClassVar[str] = OTHER

    def make_embedder(self) -> Embedder:
        """Make the embedder; called once per test."""
        raise NotImplementedError

    def test_a_row_of_numbers_for_each_text(self) -> None:
        """Finite, of one dimension; no texts have no rows."""
        embedder = self.make_embedder()
        rows = CheckedEmbedder(embedder, lambda key, value: value).embed([*self.near, self.far])

        assert rows.shape[0] == 3
        assert np.asarray(embedder.embed([])).shape[0] == 0

    def test_a_text_has_one_vector(self) -> None:
        """Alone and among others, from one instance and another."""
        one, other = self.make_embedder(), self.make_embedder()
        together = np.asarray(one.embed([*self.near, self.far]))

        assert np.allclose(together[0], np.asarray(one.embed([self.near[0]]))[0], atol=1e-3)
        assert np.allclose(together, np.asarray(other.embed([*self.near, self.far])), atol=1e-3)
        assert one.fingerprint == other.fingerprint != ""

    def test_what_means_the_same_is_nearer(self) -> None:
        """The texts of `near` are nearer to one another than to `far`."""
        checked = CheckedEmbedder(self.make_embedder(), lambda key, value: value)
        asked, near, far = checked.embed([*self.near, self.far])

        assert float(asked @ near) > float(asked @ far)

    def test_tokens_are_not_counted_too_low(self) -> None:
        """The longer text has more, and one that is too long says so."""
        embedder = self.make_embedder()

        assert 0 < embedder.count_tokens(QUESTION) <= embedder.count_tokens(f"{QUESTION} {QUESTION}")
        assert embedder.count_tokens("word " * 2 * embedder.max_tokens) > embedder.max_tokens


def candidate(question: str, answer: str = "yes", similarity: float = 0.9) -> Candidate:
    """Make a candidate as a verifier sees it."""
    entry = Entry("1", "", "s", question, "", True, ibidem.Answer(answer), time.time())
    return Candidate(entry, similarity)


class VerifierContract:
    """Promises of a `Verifier`."""

    def make_verifier(self) -> Verifier:
        """Make the verifier; called once per test."""
        raise NotImplementedError

    def test_a_score_for_each_candidate_in_order(self) -> None:
        """The same in a batch as alone."""
        verifier, texts = self.make_verifier(), [OTHER, REWORDED, QUESTION]
        scores = list(verifier.verify(QUESTION, [candidate(text) for text in texts]))
        alone = [verifier.verify(QUESTION, [candidate(text)])[0] for text in texts]

        assert len(scores) == 3
        assert all(math.isfinite(score) and score <= 1.0 for score in scores)
        assert np.allclose(scores, alone, atol=1e-3)

    def test_it_has_a_name_that_stays(self) -> None:
        """Audits keep their judgements by it."""
        name = self.make_verifier().name

        assert isinstance(name, str)
        assert name == self.make_verifier().name != ""


class GuardContract:
    """Promises of a `Guard`: which questions must not share an answer, and which may."""

    guard: ClassVar[Any]  # staticmethod(the function)
    differ: ClassVar[Sequence[tuple[str, str]]]
    agree: ClassVar[Sequence[tuple[str, str]]]

    def test_questions_that_differ_are_refused(self) -> None:
        """Whichever of the two is asked."""
        assert [pair for pair in _both_ways(self.differ) if not self._refuses(*pair)] == []

    def test_questions_that_agree_are_not(self) -> None:
        """Whichever of the two is asked."""
        assert [pair for pair in _both_ways(self.agree) if self._refuses(*pair)] == []

    def test_a_question_agrees_with_itself(self) -> None:
        """Also one that is empty, long or unusual."""
        texts = [*UNUSUAL, *(text for pair in (*self.differ, *self.agree) for text in pair)]

        assert [text for text in texts if self._refuses(text, text)] == []

    def test_a_cache_takes_it(self, tmp_path: Path) -> None:
        """It has a name, by which misses are counted, that no other guard has."""
        guards: list[Guard] = [self.guard]
        ibidem.open(tmp_path, guards=guards, embedder=WordEmbedder(), min_similarity=0.75).close()

    def _refuses(self, asked: str, stored: str) -> bool:
        return bool(self.guard(parse_question(asked), parse_question(stored)))


def _both_ways(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for one, other in pairs:
        yield one, other
        yield other, one
