"""`ibidem_lab.pairs`: mine a cache for pairs of questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ibidem.errors import InvalidInput
from ibidem.types import require_name
from ibidem_lab.labelling.mining import LIMIT, Mined, Miner

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


def pairs(cache: SemanticCache, *, namespace: str | None = None, limit: int = LIMIT) -> Mined:
    """Pairs of questions from this cache's own life, for `teaching.labelling.teach` and what learns from it.

    They come from near misses, hits by meaning, audits, feedback, and from stored questions and examples
    near one another. Only questions that are compared by meaning, that `redact` leaves as they are, and that
    are of one namespace. No pair that a guard refuses, and each pair once. Of more than 10,000 questions of
    one kind the newest are looked at. Takes up to a minute; lookups go on meanwhile.

    Args:
        namespace: Only this one; default: all, each for itcache.
        limit: At most so many: first those with a known label, then by turns those that the cache is least
            sure of and those drawn evenly over the cosine.

    Raises:
        InvalidInput: An argument has the wrong type, or `limit` is below 1.
        StorageError: The database failed.
        CacheClosed: The cache was closed.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidInput(f"limit must be a whole number of pairs above 0, not {limit!r}")
    if namespace is not None:
        require_name("namespace", namespace)
    cache.flush()
    runtime = cache._runtime
    miner = Miner(
        runtime.store,
        runtime.embedder,
        runtime.semantic_index.scorer,
        cache.policy.threshold,
        cache._admission.is_private,
    )
    return miner.mine(namespace, limit)
