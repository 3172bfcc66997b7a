"""Ibidem: a semantic answer cache that compares the question by meaning and everything else exactly.

`ibidem.open()` gives a cache; `langchain_ibidem` and `llama_index_ibidem` are for the frameworks. Importing
this package is cheap: Chroma, the embedding model and the database load when a cache is opened or first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from ibidem.example import Example
from ibidem.lifecycle.invalidation import Invalidated
from ibidem.provenance import aforget, forget
from ibidem.renamed import refuse_old_arguments
from ibidem.scope import scope
from ibidem.types import Answer, Document, Hit, Miss, Rejected, Request, Stored, namespace_of

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.embedding.base import Embedder
    from ibidem.index.base import VectorIndex
    from ibidem.lifecycle.rules import Eviction
    from ibidem.matching.guards import Guard
    from ibidem.matching.policy import DocumentPolicy, Verifier

__version__ = "0.2.0"

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
    "Invalidated",
    "Miss",
    "MissingExtra",
    "Rejected",
    "Request",
    "StorageError",
    "Stored",
    "aforget",
    "forget",
    "namespace_of",
    "open",
    "scope",
]


@refuse_old_arguments
def open(
    path: str | Path | None = None,
    *,
    database: str | None = None,
    chroma: str | None = None,
    chroma_headers: Mapping[str, str] | None = None,
    index: Callable[[str], VectorIndex] | None = None,
    embedder: str | Embedder | Any = None,
    threshold: float | None = None,
    document_policy: DocumentPolicy | None = None,
    max_error_rate: float | None = None,
    audit_rate: float | None = None,
    compare: Callable[[str, str, str], bool] | None = None,
    ttl: float | None = None,
    namespace_ttl: Mapping[str, float] | None = None,
    jitter: float | None = None,
    sliding: bool | None = None,
    stale_while_revalidate: float | None = None,
    max_entries: int | None = None,
    max_bytes: int | None = None,
    eviction: Eviction | None = None,
    max_temperature: float | None = None,
    max_writes_per_hour: int | None = None,
    redact: Callable[[str], str] | None = None,
    should_store: Callable[[Request, Answer], bool] | None = None,
    single_flight: float | None = None,
    examples: bool | None = None,
    example_ttl: float | None = None,
    on_lookup: Callable[[Request, Hit | Miss], None] | None = None,
    verifier: Verifier | None = None,
    guards: Sequence[Guard] | None = None,
    prices: str | Path | Mapping[str, Any] | None = None,
    telemetry_namespace: bool | None = None,
) -> SemanticCache:
    """Open a cache. What is not given comes from `IBIDEM_*` variables, then from the defaults.

    Args:
        path: Directory for the database and the vector index; default: the user's data directory.
        database: SQLAlchemy URL of a PostgreSQL or SQLite database; default: a SQLite file in `path`.
        chroma: URL of a Chroma server; default: an embedded index in `path`, for one process at a time.
        chroma_headers: Sent to it with each request, such as the token that a proxy before it asks for.
        index: Opens a vector index of your own (`ibidem.index.base.VectorIndex`) instead of Chroma, for the
            collection of the name that it is given: at the first use, after a failure and in a forked child.
        embedder: What embeds the questions: a model name, a directory, a `SentenceTransformer`, a LangChain
            `Embeddings`, a LlamaIndex `BaseEmbedding` or any `ibidem.embedding.Embedder`; default:
            all-MiniLM-L6-v2 on onnxruntime.
        threshold: Least score of a candidate (0.5 to 1; it reads like a cosine similarity). Not given,
            `max_error_rate` decides.
        max_error_rate: Wrong answers per hit by meaning that you accept (above 0, at most 0.0375, or below
            0.5 with `audit_rate` or `threshold`; 0.02).
        audit_rate: Share of the hits by meaning that are audited (0 to 1; 0): the model is asked although
            an answer is stored, and `compare` judges the two. Above 0, nothing is served by meaning until
            the judgements show that `max_error_rate` is kept. At 0 a threshold that was measured for
            `max_error_rate` on other traffic decides.
        compare: Called with question, stored answer and fresh answer, in a background thread; returns
            whether the stored one would have been right. Default: `ibidem.audits.judge.AnswerJudge`, a
            stand-in for short answers.
        document_policy: Which documents must be unchanged: `supporting` (those that support the answer;
            default), `all` or `ignore` (none).
        ttl: Seconds an answer lives (30 days); `math.inf` for ever.
        namespace_ttl: The same for single namespaces, by their names.
        jitter: Share of its life (0 to below 1; 0) by which an answer may die earlier, so that those stored
            together do not expire together.
        sliding: True to let the life of an answer begin anew whenever it is served. A wrong answer that is
            often asked for then lives for ever.
        stale_while_revalidate: Seconds (0) after its life in which an answer is still served while one caller
            refreshes it.
        max_entries: Answers kept (any number); then the least useful are evicted, within about a second.
        max_bytes: Bytes they may take in the database (any number), estimated from texts and vectors.
        eviction: What is evicted: `cost`, what saves the fewest tokens (default), or `lru`, what was not
            asked for the longest.
        max_temperature: Answers sampled at a higher temperature are not stored (1.0, where providers
            sample unless told otherwise: above it somebody wants variety).
        max_writes_per_hour: Answers stored per namespace by this process (any number), against poisoning.
        redact: Returns a text without what must not be stored, such as names or keys. A question that it
            changes is compared exactly and written to logs as it returns it; an answer that it changes is
            not stored. What the logs hold already is redacted in the background.
        should_store: Called with a request and its answer; returns whether the answer may be stored.
        single_flight: Seconds that a request waits while an identical one asks the model (30), instead of
            asking too; 0 switches it off.
        examples: False to keep no examples: questions and answers, by default those that are stored, for
            few-shot prompts and fine-tuning (`SemanticCache.examples`). They outlive the stored answers.
        example_ttl: Seconds an example is kept (for ever); at most the newest 100,000 are.
        on_lookup: Called with each request and its `Hit` or `Miss`: to log, count or debug.
        verifier: Scores candidates instead of the shipped score (`ibidem.matching.policy.Verifier`); needs
            `threshold`, on the scale of its scores, or `audit_rate`.
        guards: Functions of the features of two questions (`ibidem.matching.text.QuestionFeatures`) that
            return whether one answer must not serve both; they run behind the shipped guards.
        prices: What models cost, before the dated list prices that are shipped: a JSON file, or what it would
            hold (see `ibidem.costs`).
        telemetry_namespace: True to tell OpenTelemetry and the log the namespace too, which may name a person
            (False).

    Raises:
        ConfigurationError: A setting is wrong, or another cache that is open on this place contradicts it.
        InvalidInput: `compare`, `redact`, `should_store`, `verifier` or a guard cannot be called, the
            verifier has no threshold, or an argument has another name since 0.2.
        EmbedderUnavailable: No embedding model was found.
        StorageError: The place cannot be used.
    """
    given = dict(locals())
    from ibidem.cache import SemanticCache
    from ibidem.opening import build_parts, read_arguments

    return SemanticCache(**build_parts(*read_arguments(given)))
