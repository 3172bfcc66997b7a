"""Embedding objects of other libraries as an `Embedder`; none of the libraries is imported here.

Questions are compared with questions, so both go through the *query* encoder of a model that has two: an
asymmetric model (E5, BGE, Cohere) maps queries and documents to different regions. Every call is for one
text, since the query methods take one.
"""

from __future__ import annotations

import math
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibidem.embedding.base import unit_rows
from ibidem.errors import ConfigurationError, EmbedderUnavailable

# Attributes that name a model or change its vectors; an allow-list, since objects also hold API keys.
NAME_ATTRIBUTES = (
    "model", "model_name", "model_id", "model_path", "deployment", "deployment_name", "azure_deployment",
    "engine", "repo_id",
)  # fmt: skip
VARIANT_ATTRIBUTES = ("revision", "model_revision", "dimensions", "query_instruction", "query_encode_prompt")
WINDOW_ATTRIBUTES = ("max_seq_length", "max_length", "embedding_ctx_length")

# A local model silently drops what exceeds its maximum length, and two long questions with one beginning get
# one vector: a wrong hit. 128 is the smallest maximum in common use (paraphrase-multilingual-MiniLM-L12-v2,
# distiluse); longer questions are compared exactly. Users who know better pass max_tokens.
DEFAULT_MAX_TOKENS = 128

LONGEST_WORD = 20

PROBE = "The quick brown fox jumps over the lazy dog."
PROBE_SEED = 0
PROBE_NUMBERS = 8
PROBE_STEP = 0.25


def estimate_tokens(text: str) -> int:
    """Estimate the number of tokens from above without a tokenizer, for any common vocabulary.

    Words: 3 letters to a token (English has 4 to 5), but a run of more than 20 is a key or noise: one token
    per letter, as for digits and signs. Other scripts: one per byte of UTF-8, the worst case of a byte-level
    vocabulary. And 4 for special tokens and prompts. On 8,000 questions never below MiniLM's own count, 1.7
    times it at the median.
    """
    words = re.findall(r"[A-Za-z]+", text)
    letters = sum(map(len, words))
    blanks = sum(text.count(blank) for blank in " \t\r\n")
    others = len(text.encode("utf-8", "replace")) - letters - blanks
    pieces = sum(len(word) if len(word) > LONGEST_WORD else math.ceil(len(word) / 3) for word in words)
    return pieces + others + 4


def vector_signature(vector: NDArray[np.float32]) -> str:
    """Compute a short digest that distinguishes models by the vector of one text, and tolerates rounding.

    Eight fixed random projections (of variance 1 for a unit vector) in steps of 0.25: noise of 1e-6 changes
    the digest with a probability below 1e-4, and other models agree by chance with one below 1e-8.
    """
    directions = np.random.default_rng(PROBE_SEED).standard_normal((PROBE_NUMBERS, len(vector)))
    steps = np.rint(directions @ vector.astype(np.float64) / PROBE_STEP).astype(int)
    return sha256(",".join(map(str, steps)).encode()).hexdigest()[:12]


class ForeignEmbedder(ABC):
    """Base of the adapters: validation, fingerprint, maximum length, token estimate.

    Args:
        model: The embedding object.
        fingerprint: Identifies its vectors; default: class and model name, or a probe if it has no name.
        max_tokens: Its maximum length; default: the object's own attribute, or 128.

    Raises:
        ConfigurationError: `max_tokens` is not positive, or `fingerprint` is empty.
    """

    def __init__(self, model: Any, *, fingerprint: str | None = None, max_tokens: int | None = None) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ConfigurationError(f"max_tokens must be at least 1, not {max_tokens}")
        if fingerprint is not None and not fingerprint.strip():
            raise ConfigurationError("fingerprint must not be empty")
        self._model = model
        self._fingerprint = fingerprint
        self._max_tokens = max_tokens or _first_number(model, WINDOW_ATTRIBUTES) or DEFAULT_MAX_TOKENS
        self._probe_vector: NDArray[np.float32] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._model).__name__})"

    @abstractmethod
    def _vectors(self, texts: list[str]) -> object:
        """Return one vector per text, not validated."""

    @property
    def fingerprint(self) -> str:
        """The given fingerprint, or a derived one; the first call may embed a probe."""
        if self._fingerprint is None:
            self._fingerprint = self._find_fingerprint()
        return self._fingerprint

    @property
    def max_tokens(self) -> int:
        """Maximum length of a text in tokens."""
        return self._max_tokens

    def count_tokens(self, text: str) -> int:
        """Estimate from above, see `estimate_tokens`."""
        return estimate_tokens(text)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as unit vectors, float32[n, d].

        Raises:
            InvalidInput: The object did not return one finite non-zero vector per text.
        """
        if not texts:
            return np.empty((0, len(self._probe())), np.float32)
        return unit_rows(self._vectors(list(texts)), len(texts))

    def _probe(self) -> NDArray[np.float32]:
        with self._lock:
            if self._probe_vector is None:
                self._probe_vector = self.embed([PROBE])[0]
            return self._probe_vector

    def _find_fingerprint(self) -> str:
        probe = self._probe()
        names = _described(self._model, NAME_ATTRIBUTES)
        parts = [type(self._model).__name__, *names, *_described(self._model, VARIANT_ATTRIBUTES)]
        if not names or self._is_local or any(Path(name.partition("=")[2]).exists() for name in names):
            parts.append(f"probe={vector_signature(probe)}")
        return "/".join([*parts, str(len(probe))])

    # A local model is deterministic, and its name (often a path) may stay while its weights change. For a
    # served model neither is true: its vectors vary in the third digit, and its name stands for one model.
    _is_local = False


class LangChainEmbedder(ForeignEmbedder):
    """A LangChain `Embeddings`."""

    def _vectors(self, texts: list[str]) -> object:
        return [self._model.embed_query(text) for text in texts]


class LlamaIndexEmbedder(ForeignEmbedder):
    """A LlamaIndex `BaseEmbedding`.

    The public methods report each call to the callback manager, where tokens are counted and logged as the
    application's own. The hook that every subclass must define does not.
    """

    def _vectors(self, texts: list[str]) -> object:
        quiet = getattr(self._model, "_get_query_embedding", None) or self._model.get_query_embedding
        limiter = getattr(self._model, "rate_limiter", None)
        vectors = []
        for text in texts:
            if limiter is not None:
                limiter.acquire()
            vectors.append(quiet(text))
        return vectors


class SentenceTransformerEmbedder(ForeignEmbedder):
    """A `SentenceTransformer`. Tokens are counted with its own tokenizer."""

    _is_local = True

    @classmethod
    def load(cls, name: str) -> SentenceTransformerEmbedder:
        """Load a model by name or directory; needs the package."""
        from sentence_transformers import (  # type: ignore[import-not-found,unused-ignore]
            SentenceTransformer,
        )

        try:
            return cls(SentenceTransformer(name))
        except Exception as error:  # of huggingface_hub, transformers, safetensors, torch
            raise EmbedderUnavailable(f"sentence-transformers cannot load {name!r}: {error}") from error

    def _vectors(self, texts: list[str]) -> object:
        encode = getattr(self._model, "encode_query", None) or self._model.encode  # encode_query since 5.0
        return encode(texts, convert_to_numpy=True, show_progress_bar=False)

    def count_tokens(self, text: str) -> int:
        """Count exactly if the tokenizer is callable as usual, else estimate."""
        try:
            return len(self._model.tokenizer(text)["input_ids"])
        except (AttributeError, TypeError, KeyError):
            return estimate_tokens(text)


def _described(model: Any, names: Sequence[str]) -> list[str]:
    """Format the attributes that are a usable string or number as `name=value`."""
    found = []
    for name in names:
        value = getattr(model, name, None)
        usable = isinstance(value, (str, int)) and not isinstance(value, bool)
        if usable and value not in ("", "unknown"):  # "unknown" is LlamaIndex's default model name
            found.append(f"{name}={value}")
    return found


def _first_number(model: Any, names: Sequence[str]) -> int | None:
    for name in names:
        value = getattr(model, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
