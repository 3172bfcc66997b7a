"""The `Embedder` protocol, and the validation of its vectors."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ibidem._util.text import has_hidden
from ibidem.errors import EmbedderUnavailable, IbidemError, InvalidInput
from ibidem.types import digest

CACHED_VECTORS = 1024  # vectors of questions kept in memory


@runtime_checkable
class Embedder(Protocol):
    """Maps texts to unit vectors. Must be usable from several threads."""

    @property
    def fingerprint(self) -> str:
        """Identifies model, weights and precision: differs whenever vectors would."""

    @property
    def max_tokens(self) -> int:
        """Maximum length of a text in tokens, special tokens included."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row of unit length per text, float32[n, d]; `(0, d)` for no texts."""

    def count_tokens(self, text: str) -> int:
        """Number of tokens of the text, special tokens included: exact, or an upper bound."""


def unit_rows(vectors: object, count: int) -> NDArray[np.float32]:
    """Convert `count` vectors to float32[count, d], each scaled to length 1.

    Raises:
        InvalidInput: Not `count` vectors of one dimension, or one is zero or not finite.
    """
    try:
        array = np.asarray(vectors, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the embedder returned no matrix of numbers: {error}") from None
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] == 0:
        raise InvalidInput(
            f"the embedder returned shape {array.shape} for {count} texts; needed ({count}, d)"
        )
    if not np.isfinite(array).all():
        raise InvalidInput("the embedder returned NaN or infinity")
    # by the largest entry first, so that the squares neither overflow nor vanish
    peaks = np.abs(array).max(axis=1, keepdims=True)
    if not (peaks > 0).all():
        raise InvalidInput("the embedder returned a zero vector, which has no direction to compare")
    array = array / peaks
    rows: NDArray[np.float32] = (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)
    return rows


def fingerprint_of(embedder: Embedder) -> str:
    """Return the fingerprint of an embedder, for which some must ask their model.

    Raises:
        EmbedderUnavailable: The model does not answer.
    """
    try:
        return embedder.fingerprint
    except IbidemError:
        raise
    except Exception as error:
        raise EmbedderUnavailable(f"the embedder does not work: {type(error).__name__}: {error}") from error


class CheckedEmbedder:
    """An embedder whose vectors are validated before they are compared or stored.

    A NaN would pass for a similarity of 1, and vectors of another dimension would corrupt the index.

    Args:
        embedder: Makes the vectors.
        set_once: Keeps the first value set for a key, and returns it; for the dimension of a fingerprint.
    """

    def __init__(self, embedder: Embedder, set_once: Callable[[str, str], str]) -> None:
        self._embedder, self._set_once = embedder, set_once
        self._dimension: int | None = None
        # No lock: each operation on it is atomic, and one held at a fork would stay held in the child.
        self._cached: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self.fingerprint = fingerprint_of(embedder)

    @property
    def max_tokens(self) -> int:
        """Maximum length of a text in tokens."""
        return self._embedder.max_tokens

    def count_tokens(self, text: str) -> int:
        """Number of tokens of the text."""
        return self._embedder.count_tokens(text)

    def refusal(self, text: str) -> str | None:
        """Return the reason why the text must not be compared by meaning, or None.

        `question_hides_text` if it contains characters that people do not see and models may read
        (`ibidem._util.text`); `question_too_long` if its end would be cut off; `question_not_covered` if the
        embedder has a method `covers` that returns False: a text that a model cannot read gets the vector of
        another. So does one without a letter or a digit.
        """
        if text in self._cached:
            return None
        if not (text.isascii() and text.isprintable()) and has_hidden(text):
            return "question_hides_text"
        if self.count_tokens(text) > self.max_tokens:
            return "question_too_long"
        if not any(map(str.isalnum, text)):
            return "question_not_covered"
        covers = getattr(self._embedder, "covers", None)
        return None if covers is None or covers(text) else "question_not_covered"

    def vector_of(self, question: str) -> NDArray[np.float32]:
        """Return the vector of a question without a `refusal`, shape (d,); raises as `embed` does.

        It is kept in memory, since a miss is followed by a store.
        """
        known = self._cached.get(question)
        if known is not None:
            return known
        vector: NDArray[np.float32] = self.embed([question])[0]
        self._cached[question] = vector
        with contextlib.suppress(KeyError):  # other threads may have made room
            while len(self._cached) > CACHED_VECTORS:
                self._cached.popitem(last=False)
        return vector

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as unit rows of one dimension, shape (n, d).

        Raises:
            InvalidInput: The embedder returned something else.
        """
        rows = unit_rows(self._embedder.embed(texts), len(texts))
        dimension = rows.shape[1]
        if self._dimension is None:
            key = f"dimension:{digest(self.fingerprint)}"
            noted = self._set_once(key, str(dimension))
            readable = noted.isascii() and noted.isdecimal() and len(noted) < 7  # else it is damaged
            self._dimension = (int(noted) if readable else 0) or dimension
        if dimension != self._dimension:
            raise InvalidInput(
                f"the embedder returned {dimension} dimensions, but {self._dimension} are stored under its "
                f"fingerprint {self.fingerprint!r}: give it another fingerprint"
            )
        return rows
