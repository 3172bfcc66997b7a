"""The keyword arguments that constructors pass on, for editors and type checkers; nothing is imported here.

`tests/integrations/test_options.py` holds them against the functions that take them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from ibidem.embedding.base import Embedder
    from ibidem.index.base import VectorIndex
    from ibidem.lifecycle.rules import Eviction
    from ibidem.matching.documents import DocumentPolicy, NewDocuments
    from ibidem.matching.guards import Guard
    from ibidem.matching.scorers import Verifier
    from ibidem.opinions.models import Opinion
    from ibidem.types import Answer, Hit, Miss, Request


class CacheOptions(TypedDict, total=False):
    """The arguments of `ibidem.open`, which says what each means, without `new_documents`."""

    path: str | Path | None
    database: str | None
    create: bool | None
    chroma: str | None
    chroma_headers: Mapping[str, str] | None
    chroma_tenant: str | None
    chroma_database: str | None
    index: Callable[[str], VectorIndex] | None
    embedder: str | Embedder | Any
    verifier: Verifier | Literal["default"] | None
    min_probability: float | None
    min_similarity: float | None
    document_policy: DocumentPolicy | None
    max_error_rate: float | Literal["strict", "default", "generous"] | None
    audit_rate: float | None
    compare: Callable[[str, str, str], bool] | None
    second_opinion: str | Opinion | Any
    second_opinion_from: float | None
    second_opinion_timeout: float | None
    ttl: float | None
    namespace_ttl: Mapping[str, float] | None
    jitter: float | None
    sliding: bool | None
    stale_while_revalidate: float | None
    max_entries: int | None
    max_bytes: int | None
    eviction: Eviction | None
    max_temperature: float | None
    max_writes_per_hour: int | None
    redact: Callable[[str], str] | None
    should_store: Callable[[Request, Answer], bool] | None
    single_flight: float | None
    examples: bool | None
    example_ttl: float | None
    on_lookup: Callable[[Request, Hit | Miss], None] | None
    guards: Sequence[Guard] | None
    prices: str | Path | Mapping[str, Any] | None
    telemetry_namespace: bool | None


class OpenOptions(CacheOptions, total=False):
    """All arguments of `ibidem.open`."""

    new_documents: NewDocuments | None


class RequestOptions(TypedDict, total=False):
    """How an adapter makes requests of calls: see `ibidem.adapter.options.AdapterOptions`."""

    namespace: str
    question_keys: Sequence[str]
    model_id: str
    any_message: bool
    semantic: bool
    require_namespace: bool
    history: str | None


class AdapterCacheOptions(OpenOptions, RequestOptions, total=False):
    """For what makes an adapter's cache, and opens the cache below it."""


class AnswerFirstOptions(CacheOptions, RequestOptions, total=False):
    """The same for what has a `new_documents` of its own."""


class ExampleOptions(TypedDict, total=False):
    """The arguments of `cache.examples.select` that choose among the examples of a namespace."""

    min_feedback: bool | None
    diversity: float
    tags: Sequence[str]
    model: str | None
    count_tokens: Callable[[str], int] | None
