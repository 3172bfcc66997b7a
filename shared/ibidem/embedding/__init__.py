"""Embedding of questions: the `Embedder` protocol, and `resolve_embedder` to get one.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import inspect
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ibidem.embedding.base import Embedder
from ibidem.embedding.model_files import MODEL_FILE, TOKENIZER_FILE
from ibidem.errors import ConfigurationError, EmbedderUnavailable, MissingExtra

__all__ = ["Embedder", "resolve_embedder"]

DEFAULT = "all-MiniLM-L6-v2"  # the model that ships; its name on the hub is taken for it too

_ACCEPTED = (
    f"None or {DEFAULT!r} (the model that ships), a directory with {MODEL_FILE} and {TOKENIZER_FILE}, "
    "the name or directory of a sentence-transformers model, a SentenceTransformer, a LangChain Embeddings, "
    "a LlamaIndex BaseEmbedding, or an object with fingerprint, max_tokens, embed() and count_tokens()"
)


def resolve_embedder(
    spec: object = None, *, fingerprint: str | None = None, max_tokens: int | None = None
) -> Embedder:
    """Return the embedder that `spec` stands for.

    Args:
        spec: None for the default, all-MiniLM-L6-v2; a name, a directory, or an embedding object of
            sentence-transformers, LangChain or LlamaIndex; an `Embedder` is returned as it is.
        fingerprint: For an embedding object: identifies its vectors; found out if not given.
        max_tokens: For an embedding object: its maximum length; found out if not given.

    Raises:
        ConfigurationError: `spec` is none of these; the message lists them.
        EmbedderUnavailable: The model's files cannot be found or used.
        MissingExtra: A sentence-transformers name, and the package is not installed.
    """
    adapter = _adapter_for(spec)
    if adapter is not None:
        adapted: Embedder = adapter(spec, fingerprint=fingerprint, max_tokens=max_tokens)
        return adapted
    if fingerprint is not None or max_tokens is not None:
        kinds = "a LangChain, LlamaIndex or sentence-transformers object"
        raise ConfigurationError(f"fingerprint and max_tokens can be set only for {kinds}")
    if _implements_protocol(spec):
        return spec  # type: ignore[return-value]
    if is_default(spec):
        from ibidem.embedding.onnx_embedder import OnnxEmbedder

        return OnnxEmbedder.default()
    if isinstance(spec, (str, os.PathLike)) and spec:
        return _from_name(os.fspath(spec))
    raise ConfigurationError(f"embedder is {type(spec).__name__}; it must be {_ACCEPTED}")


def is_default(spec: object) -> bool:
    """Return whether `spec` stands for the default model."""
    return spec is None or (isinstance(spec, str) and spec.removeprefix("sentence-transformers/") == DEFAULT)


def _implements_protocol(spec: object) -> bool:
    """Like isinstance(spec, Embedder), which would call the properties: one may embed a probe."""
    missing = object()
    names = ("fingerprint", "max_tokens", "embed", "count_tokens")
    found = all(inspect.getattr_static(spec, name, missing) is not missing for name in names)
    return found and not isinstance(spec, type)


def _adapter_for(spec: object) -> Any:
    """Return the adapter class for a foreign embedding object, recognised by its methods, or None."""
    if spec is None or isinstance(spec, (str, os.PathLike, type)) or _implements_protocol(spec):
        return None

    def has(*names: str) -> bool:
        return all(callable(getattr(spec, name, None)) for name in names)

    from ibidem.embedding import adapters

    if has("embed_documents", "embed_query"):
        return adapters.LangChainEmbedder
    if has("get_text_embedding_batch", "get_query_embedding"):
        return adapters.LlamaIndexEmbedder
    if has("encode") and (has("get_embedding_dimension") or has("get_sentence_embedding_dimension")):
        return adapters.SentenceTransformerEmbedder
    return None


def _from_name(name: str | bytes) -> Embedder:
    from ibidem.embedding.adapters import SentenceTransformerEmbedder
    from ibidem.embedding.onnx_embedder import OnnxEmbedder

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
    """Refuse a sentence-transformers folder whose `modules.json` names a path outside it."""
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
