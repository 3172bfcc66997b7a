"""What turns a question into a vector: the `Embedder` protocol, and `resolve_embedder` to get one.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import inspect
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ibidem._util.concurrency import ForkSafeLock
from ibidem._util.text import has_hidden
from ibidem.embedding.minilm_files import MODEL_FILE, MODEL_NAME, REPOSITORY, TOKENIZER_FILE
from ibidem.errors import ConfigurationError, EmbedderUnavailable, IbidemError, InvalidInput, MissingExtra
from ibidem.types import digest

REMEMBERED = 1024  # vectors of questions kept at hand

ACCEPTED = (
    f"None or {MODEL_NAME!r} (the default model), a directory with {MODEL_FILE} and {TOKENIZER_FILE}, "
    "the name or directory of a sentence-transformers model, a SentenceTransformer, a LangChain Embeddings, "
    "a LlamaIndex BaseEmbedding, or an object with fingerprint, max_tokens, embed() and count_tokens()"
)


@runtime_checkable
class Embedder(Protocol):
    """Maps texts to unit vectors. Must be usable from several threads."""

    @property
    def fingerprint(self) -> str:
        """Identifies model, weights and precision: differs whenever vectors would."""

    @property
    def max_tokens(self) -> int:
        """Length of the window in tokens, special tokens included."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row of unit length per text, float32[n, d]; `(0, d)` for no texts."""

    def count_tokens(self, text: str) -> int:
        """Tokens of the text, special tokens included: exact, or a bound from above."""


def unit_rows(vectors: object, count: int) -> NDArray[np.float32]:
    """`count` vectors as float32[count, d], each scaled to length 1.

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


def resolve_embedder(
    spec: object = None, *, fingerprint: str | None = None, max_tokens: int | None = None
) -> Embedder:
    """The embedder that `spec` stands for.

    Args:
        spec: None for the default, all-MiniLM-L6-v2; a name, a directory, or an embedding object of
            sentence-transformers, LangChain or LlamaIndex; an `Embedder` is returned as it is.
        fingerprint: For an embedding object: identifies its vectors, in place of what is found out.
        max_tokens: For an embedding object: its window, in place of what is found out.

    Raises:
        ConfigurationError: `spec` is none of these; the message lists them.
        EmbedderUnavailable: The model's files cannot be found or used.
        MissingExtra: A sentence-transformers name, and the package is not installed.
    """
    wrapper = _wrapper(spec)
    if wrapper is not None:
        wrapped: Embedder = wrapper(spec, fingerprint=fingerprint, max_tokens=max_tokens)
        return wrapped
    if fingerprint is not None or max_tokens is not None:
        kinds = "a LangChain, LlamaIndex or sentence-transformers object"
        raise ConfigurationError(f"fingerprint and max_tokens can be set only for {kinds}")
    if _fulfils_protocol(spec):
        return spec  # type: ignore[return-value]
    if spec is None or (isinstance(spec, str) and spec in (MODEL_NAME, REPOSITORY)):
        from ibidem.embedding.minilm import OnnxEmbedder

        return OnnxEmbedder.default()
    if isinstance(spec, (str, os.PathLike)) and spec:
        return _from_name(os.fspath(spec))
    raise ConfigurationError(f"embedder is {type(spec).__name__}; it must be {ACCEPTED}")


def _fulfils_protocol(spec: object) -> bool:
    """Like isinstance(spec, Embedder), which would call the properties: one may embed a probe."""
    missing = object()
    names = ("fingerprint", "max_tokens", "embed", "count_tokens")
    found = all(inspect.getattr_static(spec, name, missing) is not missing for name in names)
    return found and not isinstance(spec, type)


def _wrapper(spec: object) -> Any:
    """The class that adapts a foreign embedding object, told by its methods; None if it is none."""
    if spec is None or isinstance(spec, (str, os.PathLike, type)) or _fulfils_protocol(spec):
        return None

    def has(*names: str) -> bool:
        return all(callable(getattr(spec, name, None)) for name in names)

    from ibidem.embedding import adapters as embedding_objects

    if has("embed_documents", "embed_query"):
        return embedding_objects.LangChainEmbedder
    if has("get_text_embedding_batch", "get_query_embedding"):
        return embedding_objects.LlamaIndexEmbedder
    if has("encode") and (has("get_embedding_dimension") or has("get_sentence_embedding_dimension")):
        return embedding_objects.SentenceTransformerEmbedder
    return None


def _from_name(name: str | bytes) -> Embedder:
    from ibidem.embedding.adapters import SentenceTransformerEmbedder
    from ibidem.embedding.minilm import OnnxEmbedder

    name = os.fsdecode(name)
    folder = Path(name).expanduser()
    is_folder = folder.is_dir()
    if (folder / MODEL_FILE).is_file() or (is_folder and not (folder / "modules.json").is_file()):
        return OnnxEmbedder.from_directory(folder)
    if not is_folder and (folder.is_absolute() or name.startswith((".", "~"))):
        raise ConfigurationError(f"embedder={name!r}: there is no such directory")
    if is_folder:
        _require_modules_inside(folder)
    if find_spec("sentence_transformers") is None:
        raise MissingExtra(f"the embedding model {name!r}", "sentence-transformers")
    return SentenceTransformerEmbedder.load(str(folder) if is_folder else name)


def _require_modules_inside(folder: Path) -> None:
    """A folder of sentence-transformers names its parts; none may be a path that leads out of it."""
    try:
        parts = ["" + part["path"] for part in json.loads((folder / "modules.json").read_text("utf-8"))]
        home = folder.resolve()
        outside = [part for part in parts if not (home / part).resolve().is_relative_to(home)]
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise EmbedderUnavailable(f"cannot use the model in {folder}: modules.json: {error!r}") from None
    if outside:
        raise EmbedderUnavailable(
            f"cannot use the model in {folder}: modules.json names {outside[0]!r} outside"
        )


def fingerprint_of(embedder: Embedder) -> str:
    """The embedder's fingerprint, for which some must ask their model.

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
    """An embedder whose vectors are checked before they are compared or stored.

    A NaN would pass for a similarity of 1, and vectors of another dimension would spoil the index.

    Args:
        embedder: What embeds.
        note_once: Keeps the value first given for a key, and returns it; for the dimension of a fingerprint.
    """

    def __init__(self, embedder: Embedder, note_once: Callable[[str, str], str]) -> None:
        self._embedder, self._note_once = embedder, note_once
        self._dimension: int | None = None
        self._lock = ForkSafeLock()
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self.fingerprint = fingerprint_of(embedder)

    @property
    def max_tokens(self) -> int:
        """The window of the embedder."""
        return self._embedder.max_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of the text, as the embedder counts them."""
        return self._embedder.count_tokens(text)

    def refusal(self, text: str) -> str | None:
        """Why the text must not be compared by meaning, or None.

        `question_hides_text` if it holds characters that people do not see and models may read
        (`ibidem._util.text`); `question_too_long` if its end would be cut off; `question_not_covered` if the
        embedder has a method `covers` that says so: what a model cannot read, it gives the vector of
        something else.
        """
        with self._lock:
            if text in self._known:
                return None
        if has_hidden(text):
            return "question_hides_text"
        if self.count_tokens(text) > self.max_tokens:
            return "question_too_long"
        covers = getattr(self._embedder, "covers", None)
        return None if covers is None or covers(text) else "question_not_covered"

    def vector_of(self, question: str) -> NDArray[np.float32]:
        """The question's vector, shape (d,); remembered, since a miss is followed by a store.

        For questions without a `refusal`. Raises as `embed` does.
        """
        with self._lock:
            known = self._known.get(question)
        if known is not None:
            return known
        vector: NDArray[np.float32] = self.embed([question])[0]
        with self._lock:
            self._known[question] = vector
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return vector

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit rows of one dimension, shape (n, d).

        Raises:
            InvalidInput: The embedder returned something else.
        """
        rows = unit_rows(self._embedder.embed(texts), len(texts))
        dimension = rows.shape[1]
        if self._dimension is None:
            key = f"dimension:{digest(self.fingerprint)}"
            noted = self._note_once(key, str(dimension))
            readable = noted.isascii() and noted.isdecimal() and len(noted) < 7  # else it is damaged
            self._dimension = (int(noted) if readable else 0) or dimension
        if dimension != self._dimension:
            raise InvalidInput(
                f"the embedder returned {dimension} dimensions, but {self._dimension} are stored under its "
                f"fingerprint {self.fingerprint!r}: give it another fingerprint"
            )
        return rows
