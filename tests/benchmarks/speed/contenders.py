"""The caches that are compared, each as its own documentation says to use it."""

from __future__ import annotations

import hashlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Batch = tuple[list[str], list[str], Vectors]  # questions, their answers, vectors
COSINE = 0.95  # from which the caches that are written by hand repeat an answer
SCOPE = "benchmark"


class Contender(ABC):
    """One cache in a folder of its own: filled in one process, measured in another."""

    name: str
    semantic = True

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width

    @abstractmethod
    def fill(self, batches: Iterable[Batch], entries: int) -> None:
        """Store so many entries whose vectors are known already."""

    @abstractmethod
    def open(self) -> None:
        """Make ready to be asked."""

    @abstractmethod
    def lookup(self, text: str) -> str | None:
        """The answer, if there is one."""

    @abstractmethod
    def store(self, text: str, answer: str) -> None:
        """Keep an answer."""

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Write what is left."""


def folder_size(folder: Path) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class IbidemCore(Contender):
    """`ibidem.open`, with everything at its default."""

    name = "Ibidem"
    options: ClassVar[dict[str, Any]] = {}

    def fill(self, batches: Iterable[Batch], entries: int) -> None:
        from ibidem import Request
        from ibidem.index.search import EXACT_LIMIT
        from tests.benchmarks.speed.filling import fill

        requests = (([Request(text, scope=SCOPE) for text in texts], *rest) for texts, *rest in batches)
        fill(self.folder, requests, indexed=entries > EXACT_LIMIT)

    def open(self) -> None:
        import ibidem

        self._ibidem = ibidem
        self.cache = ibidem.open(self.folder, **self.options)

    def lookup(self, text: str) -> str | None:
        found = self.cache.lookup(self._ibidem.Request(text, scope=SCOPE))
        return found.answer.text if isinstance(found, self._ibidem.Hit) else None

    def store(self, text: str, answer: str) -> None:
        self.cache.store(self._ibidem.Request(text, scope=SCOPE), self._ibidem.Answer(answer))

    def close(self) -> None:
        self.cache.close()


class IbidemWithoutModel(IbidemCore):
    """The rule decides instead of the pair model."""

    name = "Ibidem, verifier=None"
    options: ClassVar[dict[str, Any]] = {"verifier": None}


class Floor(Contender):
    """The least that can be done: encode in int8, compare with all vectors in memory, no rules, no disk."""

    name = "numpy + int8 (floor)"

    def fill(self, batches: Iterable[Batch], entries: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for at, (texts, answers, vectors) in enumerate(batches):
            np.savez(self.folder / f"{at:05}.npz", vectors=vectors, answers=answers, texts=texts)

    def open(self) -> None:
        from ibidem.embedding import resolve_embedder

        self.embed = resolve_embedder(None).embed
        parts = [np.load(file) for file in sorted(self.folder.glob("*.npz"))]
        self.answers = [str(answer) for part in parts for answer in part["answers"]]
        self.exact = dict(
            zip((str(text) for part in parts for text in part["texts"]), self.answers, strict=True)
        )
        held = np.concatenate([part["vectors"] for part in parts])
        self.rows = np.concatenate([held, np.zeros((10_000, self.width), np.float32)])
        self.rows = self.rows.astype(np.float32)
        self.count = len(held)

    def lookup(self, text: str) -> str | None:
        if (same := self.exact.get(text)) is not None:
            return same
        scores = self.rows[: self.count] @ self.embed([text])[0]
        best = int(scores.argmax())
        return self.answers[best] if scores[best] >= COSINE else None

    def store(self, text: str, answer: str) -> None:
        self.rows[self.count] = self.embed([text])[0]
        self.count += 1
        self.answers.append(answer)
        self.exact[text] = answer


class SentenceTransformersChroma(Contender):
    """A semantic cache as tutorials write it: a Chroma collection and sentence-transformers."""

    name = "Chroma + sentence-transformers"

    def _collection(self) -> Any:
        import chromadb

        self._client = chromadb.PersistentClient(
            path=str(self.folder), settings=chromadb.Settings(anonymized_telemetry=False)
        )
        return self._client.get_or_create_collection(
            "cache", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    def fill(self, batches: Iterable[Batch], entries: int) -> None:
        collection = self._collection()
        for texts, answers, vectors in batches:
            collection.add(
                ids=[_name(text) for text in texts],
                embeddings=vectors,
                documents=texts,
                metadatas=[{"answer": answer} for answer in answers],
            )

    def open(self) -> None:
        self.model = sentence_transformer()
        self.collection = self._collection()

    def lookup(self, text: str) -> str | None:
        vector = self.model.encode(text, normalize_embeddings=True)
        found = self.collection.query(
            query_embeddings=[vector], n_results=1, include=["metadatas", "distances"]
        )
        if not found["ids"][0] or 1 - found["distances"][0][0] < COSINE:
            return None
        return str(found["metadatas"][0][0]["answer"])

    def store(self, text: str, answer: str) -> None:
        vector = self.model.encode(text, normalize_embeddings=True)
        self.collection.add(
            ids=[_name(text)],
            embeddings=[vector],
            documents=[text],
            metadatas=[{"answer": answer}],
        )


class GPTCache(Contender):
    """GPTCache with SQLite and FAISS; its own SBERT embedding, which is sentence-transformers."""

    name = "GPTCache, SBERT"
    threshold = 0.975  # 1 - d/4 for the squared distance d = 2 - 2 cosine

    def _encoder(self) -> Callable[..., Any]:
        model = sentence_transformer()
        return lambda text, **_: np.asarray(model.encode(text), dtype=np.float32)

    def _open(self, encoder: Callable[..., Any]) -> Any:
        from gptcache import Cache, Config
        from gptcache.manager import CacheBase, VectorBase, get_data_manager
        from gptcache.processor.pre import get_prompt
        from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation

        self.folder.mkdir(parents=True, exist_ok=True)
        manager = get_data_manager(
            CacheBase("sqlite", sql_url=f"sqlite:///{self.folder}/gptcache.db"),
            VectorBase("faiss", dimension=self.width, index_path=str(self.folder / "faiss.index")),
            max_size=10_000_000,
        )
        cache = Cache()
        cache.init(
            pre_embedding_func=get_prompt,
            embedding_func=encoder,
            data_manager=manager,
            similarity_evaluation=SearchDistanceEvaluation(),
            config=Config(similarity_threshold=self.threshold),
        )
        return cache

    def fill(self, batches: Iterable[Batch], entries: int) -> None:
        cache = self._open(lambda text, **_: None)
        for texts, answers, vectors in batches:
            cache.data_manager.import_data(texts, answers, list(vectors), [None] * len(texts))
        cache.flush()

    def open(self) -> None:
        from gptcache.adapter import api

        self.api = api
        self.cache = self._open(self._encoder())

    def lookup(self, text: str) -> str | None:
        found = self.api.get(text, cache_obj=self.cache)
        return str(found) if found else None

    def store(self, text: str, answer: str) -> None:
        self.api.put(text, answer, cache_obj=self.cache)

    def close(self) -> None:
        self.cache.flush()


class GPTCacheInt8(GPTCache):
    """The same with Ibidem's encoder: what is left is GPTCache's own."""

    name = "GPTCache, int8"

    def _encoder(self) -> Callable[..., Any]:
        from ibidem.embedding import resolve_embedder

        embed = resolve_embedder(None).embed
        return lambda text, **_: np.asarray(embed([text])[0], dtype=np.float32)


def _name(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sentence_transformer() -> Any:
    """The same weights in sentence-transformers, from the files that are installed."""
    from sentence_transformers import SentenceTransformer

    from ibidem_lab.minilm import published_folder

    return SentenceTransformer(str(published_folder()), device="cpu")


CONTENDERS: dict[str, type[Contender]] = {
    "ibidem": IbidemCore,
    "ibidem-rule": IbidemWithoutModel,
    "floor": Floor,
    "chroma": SentenceTransformersChroma,
    "gptcache": GPTCache,
    "gptcache-int8": GPTCacheInt8,
}


def emptied(folder: Path) -> Path:
    """The folder, without what a run before left there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
