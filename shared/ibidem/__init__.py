"""Ibidem: a semantic answer cache that compares the question by meaning and everything else exactly.

`ibidem.open()` gives a cache; see `langchain_ibidem` for LangChain. Importing this package is cheap: Chroma,
the embedding model and the database load when a cache is opened or first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibidem.errors import (
    CacheClosed,
    ConfigurationError,
    EmbedderUnavailable,
    IbidemError,
    IndexUnavailable,
    InvalidInput,
    MissingExtra,
    StorageError,
)
from ibidem.examples import Example
from ibidem.request import Answer, Document, Hit, Miss, Rejected, Request, Stored

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.decision import ContextRule
    from ibidem.embedding import Embedder

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "CacheClosed",
    "ConfigurationError",
    "Document",
    "EmbedderUnavailable",
    "Example",
    "Hit",
    "IbidemError",
    "IndexUnavailable",
    "InvalidInput",
    "Miss",
    "MissingExtra",
    "Rejected",
    "Request",
    "StorageError",
    "Stored",
    "open",
]


def open(
    path: str | Path | None = None,
    *,
    database: str | None = None,
    chroma: str | None = None,
    chroma_headers: Mapping[str, str] | None = None,
    embedder: str | Embedder | Any = None,
    threshold: float | None = None,
    context: ContextRule | None = None,
    max_wrong: float | None = None,
    audit_rate: float | None = None,
    judge: Callable[[str, str, str], bool] | None = None,
    ttl: float | None = None,
    on_lookup: Callable[[Request, Hit | Miss], None] | None = None,
) -> SemanticCache:
    """Open a cache. What is not given comes from `IBIDEM_*` variables, then from the defaults.

    Args:
        path: Directory for the database and the vector index; default: the user's data directory.
        database: SQLAlchemy URL of a PostgreSQL or SQLite database; default: a SQLite file in `path`.
        chroma: URL of a Chroma server; default: an embedded index in `path`, for one process at a time.
        chroma_headers: Sent to it with each request, such as the token that a proxy before it asks for.
        embedder: What embeds the questions: a model name, a directory, a `SentenceTransformer`, a LangChain
            `Embeddings`, a LlamaIndex `BaseEmbedding` or any `ibidem.embedding.Embedder`; default:
            all-MiniLM-L6-v2 on onnxruntime.
        threshold: Least score of a candidate (0.5 to 1; it reads like a cosine similarity). Not given,
            `max_wrong` decides.
        max_wrong: Wrong answers per hit by meaning that you accept (above 0, below 0.5; 0.02).
        audit_rate: Share of the hits by meaning that are audited (0 to 1; 0): the model is asked although
            an answer is stored, and `judge` compares the two. Above 0, nothing is served by meaning until
            the judgements show that `max_wrong` is kept. At 0 a threshold that was measured for
            `max_wrong` on other traffic decides.
        judge: Called with question, stored answer and fresh answer, in a background thread; returns
            whether the stored one would have been right. Default: `ibidem.judging.AnswerJudge`, a
            stand-in for short answers.
        context: Which documents must be unchanged: `evidence` (those that support the answer; default),
            `same` (all of them) or `ignore`.
        ttl: Seconds an answer lives (30 days); `math.inf` for ever.
        on_lookup: Called with each request and its `Hit` or `Miss`: to log, count or debug.

    Raises:
        ConfigurationError: A setting is wrong.
        InvalidInput: `judge` cannot be called.
        EmbedderUnavailable: No embedding model was found.
        StorageError: The place cannot be used.
    """
    from ibidem import backend
    from ibidem.audit import auditor_for
    from ibidem.cache import SemanticCache
    from ibidem.embedding import resolve_embedder
    from ibidem.settings import read_settings

    settings = read_settings(
        path=path,
        database=database,
        chroma=chroma,
        chroma_headers=chroma_headers,
        embedder=embedder,
        threshold=threshold,
        context=context,
        max_wrong=max_wrong,
        audit_rate=audit_rate,
        ttl=ttl,
    )
    if judge is not None and not callable(judge):
        raise InvalidInput(f"judge must be callable, not {type(judge).__name__}")
    shared = backend.acquire(settings, resolve_embedder(settings.embedder))
    auditor = auditor_for(shared, settings, judge)
    return SemanticCache(shared, settings.policy, auditor=auditor, ttl=settings.ttl, on_lookup=on_lookup)
