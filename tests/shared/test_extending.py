"""What users add keeps its contract: tried with what is shipped, and with parts as a third party has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import ibidem
from ibidem import Answer, ConfigurationError, Request
from ibidem.adapter.call import AdapterCache, CachedCall
from ibidem.adapter.testing import AdapterContract, App, Model
from ibidem.embedding import resolve_embedder
from ibidem.index.chroma import open_embedded
from ibidem.matching.guards import numbers_differ
from ibidem.matching.shipped import learned_scorer
from ibidem.testing import (
    EmbedderContract,
    GuardContract,
    VectorIndexContract,
    VerifierContract,
    WordEmbedder,
    wait_until,
)
from tests.helpers import answer, fill, finds, question, reworded


class FlatIndex:
    """Exact search in an array, in this process alone: as FAISS's `IndexFlatIP` with ids."""

    def __init__(self, name: str = "") -> None:
        self.name, self.down = name, False
        self._rows: dict[str, NDArray[np.float32]] = {}

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self._fail_if_down()
        self._rows.update(zip(ids, vectors.copy(), strict=True))

    def search(self, vector: NDArray[np.float32], k: int) -> list[str]:
        self._fail_if_down()
        rows = dict(self._rows)
        scores = {id_: float(row @ vector) for id_, row in rows.items()}
        return sorted(scores, key=lambda id_: -scores[id_])[:k]

    def delete(self, ids: Sequence[str]) -> None:
        self._fail_if_down()
        for id_ in ids:
            self._rows.pop(id_, None)

    def count(self) -> int:
        self._fail_if_down()
        return len(self._rows)

    def close(self, *, clean: bool = True) -> None:
        pass

    def _fail_if_down(self) -> None:
        if self.down:
            raise ConnectionError("refused")


class TestFlatIndex(VectorIndexContract):
    def open_index(self, directory: Path) -> FlatIndex:
        return FlatIndex()


class TestEmbeddedChroma(VectorIndexContract):
    def open_index(self, directory: Path):
        return open_embedded(directory, "questions")


class TestWordEmbedder(EmbedderContract):
    def make_embedder(self) -> WordEmbedder:
        return WordEmbedder()


class TestShippedEmbedder(EmbedderContract):
    def make_embedder(self):
        return resolve_embedder(None)


class TestShippedScorer(VerifierContract):
    def make_verifier(self):
        return learned_scorer()


class TestNumbers(GuardContract):
    differ = (("a fee of 20 euros", "a fee of 30 euros"),)
    agree = (("a fee of 20 euros", "the fee of 20 euros"),)

    @staticmethod
    def guard(asked, stored) -> bool:
        return numbers_differ(asked, stored)


@dataclass
class Response:
    """Of somebody's client."""

    text: str
    metadata: dict[str, object] = field(default_factory=dict)


class Accumulator:
    """The text of a stream."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, chunk: str) -> None:
        self._texts.append(chunk)

    def answer(self) -> Answer:
        return Answer("".join(self._texts))


class TestAdapter(AdapterContract):
    """Of a function from text to text."""

    def make_app(self, cache, model: Model) -> App:
        adapter = AdapterCache(cache, "a function")

        def begin(asked: str, read) -> CachedCall:
            return CachedCall(adapter, lambda: Request(asked, scope="model"), read)

        def response_of(hit) -> Response:
            return Response(hit.answer.text, {"ibidem": hit.provenance()})

        def ask(asked: str) -> Response:
            call = begin(asked, response_of)
            if (known := call.lookup()) is not None:
                return known
            with call:
                response = Response(model(asked))
            call.store(lambda: Answer(response.text), response)
            return response

        def stream(asked: str) -> Iterator[str]:
            call = begin(asked, lambda hit: hit.answer.text)
            if (known := call.lookup()) is not None:
                return call.replay(piece for piece in [known])
            with call:
                return call.record((piece for piece in model(asked).partition(" ")), Accumulator())

        return App(ask, lambda response: response.text, stream)


def test_the_index_is_opened_for_a_collection_and_used(open_cache) -> None:
    """Chroma is not touched; what is cleared leaves the index."""
    opened: list[FlatIndex] = []
    cache = open_cache(index=lambda name: opened.append(FlatIndex(name)) or opened[-1])
    fill(cache, range(60))

    assert all(finds(cache, n) for n in range(60))
    assert wait_until(lambda: cache.stats().unindexed == 0)
    assert [index.name.startswith("ibidem-") for index in opened] == [True]
    assert opened[0].count() == 60
    cache.clear()
    assert wait_until(lambda: opened[0].count() == 0)


def test_an_index_that_fails_is_a_miss_and_heals(open_cache) -> None:
    """Whatever it raises; the same question is still found."""
    index = FlatIndex()
    cache = open_cache(index=lambda name: index)
    fill(cache, range(3))
    assert wait_until(lambda: cache.stats().unindexed == 0)
    index.down = True

    assert cache.lookup(Request(reworded(1))).reason == "no_index"
    assert cache.lookup(Request(question(1)))
    assert "ConnectionError: refused" in cache.stats().index
    index.down = False
    assert wait_until(lambda: bool(cache.lookup(Request(reworded(1)))), 20)


def test_an_index_without_a_method_is_named(open_cache) -> None:
    cache = open_cache(index=lambda name: [])
    cache.store(Request(question(1)), Answer(answer(1)))

    assert cache.lookup(Request(reworded(1))).reason == "no_index"
    assert "gave a list, which lacks upsert, search, delete, close" in cache.stats().index


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="index: must be a function"):
        ibidem.open(tmp_path, index=FlatIndex(), embedder=WordEmbedder())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="index: and chroma exclude each other"):
        ibidem.open(tmp_path, index=FlatIndex, chroma="http://localhost:1", embedder=WordEmbedder())


def test_caches_share_a_runtime_only_with_the_same_index(open_cache) -> None:
    """What one finds in its index says nothing of the other."""
    one, same = open_cache(index=FlatIndex), open_cache(index=FlatIndex)
    other, chroma = open_cache(index=lambda name: FlatIndex(name)), open_cache()

    assert one._runtime is same._runtime
    assert len({id(cache._runtime) for cache in (one, other, chroma)}) == 3


def test_from_chroma_to_another_index_and_back(open_cache) -> None:
    """Each is filled from the database."""
    with open_cache() as cache:
        fill(cache, range(5))
        assert wait_until(lambda: cache.stats().unindexed == 0)
    with open_cache(index=FlatIndex) as cache:
        assert all(finds(cache, n) for n in range(5))
        assert wait_until(lambda: cache.stats().unindexed == 0)
    with open_cache() as cache:
        assert all(finds(cache, n) for n in range(5))
