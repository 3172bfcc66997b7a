"""Embedders for tests: real vectors, but computed in microseconds and the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


class BagOfWords:
    """Hashed bag of lower-case words: questions that share words are near, deterministic."""

    max_tokens = 256

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension
        self.fingerprint = f"bag-of-words-{dimension}"
        self.calls = 0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One unit row per text."""
        self.calls += 1
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()) or [text]:
                bucket = blake2b(word.encode("utf-8", "replace"), digest_size=4).digest()
                row[int.from_bytes(bucket, "big") % self.dimension] += 1.0
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows / np.maximum(norms, 1e-9)).astype(np.float32)

    def count_tokens(self, text: str) -> int:
        """Words plus the two special tokens of a BERT-like model."""
        return len(re.findall(r"\w+", text)) + 2


class DenseWords(BagOfWords):
    """Sums of random word vectors: distances vary as those of real embeddings do.

    Bags of words from one template are all equally far from one another, which an HNSW graph cannot index.
    """

    def __init__(self) -> None:
        super().__init__(384)
        self.fingerprint = "dense-words"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One unit row per text."""
        self.calls += 1
        rows = np.stack([sum(map(self._word, re.findall(r"\w+", text.lower()) or [text])) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def _word(self, word: str) -> NDArray[np.float64]:
        seed = blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(seed, "big")).normal(size=self.dimension)


class Constant(BagOfWords):
    """Every text is the same point: only exact comparison can keep questions apart."""

    def __init__(self) -> None:
        super().__init__(8)
        self.fingerprint = "constant"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The first unit vector, once per text."""
        self.calls += 1
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        rows[:, 0] = 1.0
        return rows


class Broken(BagOfWords):
    """Raises on every use, as a model server that is down does."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Always raises."""
        raise RuntimeError("embedding service is down")
