"""Ibidem: a semantic answer cache that compares the question by meaning and everything else exactly.

`ibidem.open()` opens a cache; `langchain_ibidem` and `llama_index_ibidem` are for the frameworks. Importing
this package is fast: Chroma, the embedding model and the database load when a cache is opened or first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ibidem._util.renamed import refuse_old_arguments
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
from ibidem.scope import scope
from ibidem.types import Answer, Document, Hit, Miss, Rejected, Request, Stored, namespace_of

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.embedding.base import Embedder
    from ibidem.index.base import VectorIndex
    from ibidem.lifecycle.rules import Eviction
    from ibidem.matching.documents import DocumentPolicy, NewDocuments
    from ibidem.matching.guards import Guard
    from ibidem.matching.scorers import Verifier
    from ibidem.opinions.models import Opinion

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
    create: bool | None = None,
    chroma: str | None = None,
    chroma_headers: Mapping[str, str] | None = None,
    chroma_tenant: str | None = None,
    chroma_database: str | None = None,
    index: Callable[[str], VectorIndex] | None = None,
    embedder: str | Embedder | Any = None,
    verifier: Verifier | Literal["default"] | None = "default",
    min_probability: float | None = None,
    min_similarity: float | None = None,
    document_policy: DocumentPolicy | None = None,
    new_documents: NewDocuments | None = None,
    max_error_rate: float | Literal["strict", "default", "generous"] | None = None,
    audit_rate: float | None = None,
    compare: Callable[[str, str, str], bool] | None = None,
    second_opinion: str | Opinion | Any = None,
    second_opinion_from: float | None = None,
    second_opinion_timeout: float | None = None,
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
    guards: Sequence[Guard] | None = None,
    prices: str | Path | Mapping[str, Any] | None = None,
    telemetry_namespace: bool | None = None,
) -> SemanticCache:
    """Open a cache. Arguments not given come from `IBIDEM_*` variables, or are the defaults.

    Args:
        path: Directory for the database and the vector index; default: the user's data directory.
        database: SQLAlchemy URL of a PostgreSQL or SQLite database; default: a SQLite file in `path`.
            PostgreSQL with pgvector searches the vectors, too.
        create: False to refuse a place without a cache (True: begin one). For production: a wrong URL, or a
            database that was lost, is an error then, and not an empty cache.
        chroma: URL of a Chroma server, or of Chroma Cloud (`https://api.trychroma.com`), whose key is in
            `CHROMA_API_KEY`; default: PostgreSQL, if it can search vectors, else an embedded index in `path`,
            for one process at a time, as "embedded" asks for in any case.
        chroma_headers: Headers of each request to the server, such as the token of a proxy or, instead of
            `CHROMA_API_KEY`, `{"x-chroma-token": key}`.
        chroma_tenant: Tenant on the server; default: that of the key. Chroma Cloud: `CHROMA_TENANT`.
        chroma_database: Database on the server; default: that of the key. Chroma Cloud: `CHROMA_DATABASE`.
        index: Function that opens your own vector index (`ibidem.index.base.VectorIndex`) instead of Chroma,
            by the name of the collection; called at the first use, after a failure and in a forked child.
        embedder: Embeds the questions: a model name, a directory, a `SentenceTransformer`, a LangChain
            `Embeddings`, a LlamaIndex `BaseEmbedding` or any `ibidem.embedding.Embedder`; default:
            all-MiniLM-L6-v2 on onnxruntime.
        verifier: Scores candidates (`ibidem.matching.scorers.Verifier`); default: the pair model that comes
            with Ibidem, where the embedder is the default one; None for the rule of 0.1, without a model.
            One of your own needs `min_probability`, on the scale of its scores, or `audit_rate`.
        min_probability: Least probability, above 0 and at most 1, that the stored answer serves the question;
            default: the one for `max_error_rate`.
        min_similarity: With an embedder of your own, whose scores are cosines: the least cosine of a hit (0.5
            to 1); default: 0.955, or less by `max_error_rate`.
        max_error_rate: Accepted share of wrong answers among the hits by meaning: `strict` (0.005), `default`
            (0.02), `generous` (0.05), or a number above 0 and below 0.5.
        audit_rate: Share of the hits by meaning that are audited (0 to 1; 0): the model is asked although
            an answer is stored, and `compare` compares the two. Above 0, nothing is served by meaning until
            the audits show that `max_error_rate` is kept. At 0, the threshold is the one measured for
            `max_error_rate` on other traffic.
        compare: Called with question, stored answer and fresh answer, in a background thread; returns
            whether the stored one would have been right. Default: `ibidem.audits.judge.AnswerJudge`, a
            stand-in for short answers.
        second_opinion: A small model that is asked, where the score leaves doubt, whether the stored answer
            serves the question (nothing is asked): a name such as `openai:gpt-5-nano` (LangChain's
            `init_chat_model` resolves it), a LangChain chat model, a LlamaIndex LLM, or a function, sync or
            async, of the stored question, the question asked and the stored answer that returns True, False,
            or None if it cannot tell. Only True serves.
        second_opinion_from: Least score of what it is asked about, below that of a hit (0.5; with an embedder
            of your own a cosine of 0.8).
        second_opinion_timeout: Seconds that a lookup waits for it (1.5); then it is a miss.
        document_policy: Which of the documents retrieved must be those of the stored answer: `unchanged`
            (default: one that supports it, and none that it knows has changed), `supporting` (all that
            support it), `all`, or `ignore` (none).
        new_documents: What `unchanged` makes of a retrieved document that was added after the answer, as far
            as that was told (`SemanticCache.announce` and the like): a `miss` (default), or `ignore` it.
        ttl: Lifetime of an answer in seconds (30 days); `math.inf` for ever.
        namespace_ttl: Lifetimes for single namespaces, by name.
        jitter: Share of its lifetime (0 to below 1; 0) by which an answer may expire earlier, so that answers
            stored together do not expire together.
        sliding: True to restart the lifetime of an answer whenever it is served. A wrong answer that is often
            asked for then lives for ever.
        stale_while_revalidate: Seconds (0) after its lifetime in which an answer is still served while one
            caller refreshes it.
        max_entries: Most answers to keep (no limit); beyond it they are evicted, within about a second.
        max_bytes: Most bytes they may take in the database (no limit), estimated from texts and vectors.
        eviction: Which are evicted: `cost`, those that save the fewest tokens (default), or `lru`, the least
            recently used.
        max_temperature: Answers sampled at a higher temperature are not stored (1.0, the default of
            providers: a higher one asks for variety).
        max_writes_per_hour: Most answers stored per namespace and hour by this process (no limit), against
            poisoning.
        redact: Returns a text without what must not be stored, such as names or keys. A question that it
            changes is compared exactly and logged as redacted; an answer that it changes is not stored.
            Existing logs are redacted in the background.
        should_store: Called with a request and its answer; returns whether the answer may be stored.
        single_flight: Seconds that a request waits while an identical one asks the model (30), instead of
            asking too; 0 switches it off.
        examples: False to keep no examples (`SemanticCache.examples`): by default, stored questions and
            answers are kept for few-shot prompts and fine-tuning. They outlive the stored answers.
        example_ttl: Seconds an example is kept (for ever); at most the newest 100,000 are kept.
        on_lookup: Called with each request and its `Hit` or `Miss`: to log, count or debug.
        guards: Functions of the features of two questions (`ibidem.matching.text.QuestionFeatures`) that
            return whether one answer must not serve both; they run after the shipped guards.
        prices: Prices of models, which override the shipped list prices: a JSON file, or a mapping like it
            (see `ibidem.costs`).
        telemetry_namespace: True to report the namespace, which may name a person, to OpenTelemetry and the
            log (False).

    Raises:
        ConfigurationError: A setting is wrong, or contradicts a cache that is open on this location.
        InvalidInput: `compare`, `redact`, `should_store` or a guard cannot be called, or an argument was
            renamed in 0.2.
        EmbedderUnavailable: No embedding model was found.
        StorageError: The location cannot be used, or holds no cache with `create=False`.
    """
    given = dict(locals())
    from ibidem.cache import SemanticCache
    from ibidem.opening import build_parts, read_arguments

    return SemanticCache(**build_parts(*read_arguments(given)))
