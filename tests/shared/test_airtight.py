"""Nothing that was stored in one namespace or scope is ever served in another, however near it is."""

from __future__ import annotations

import random

import pytest

from ibidem import Answer, Hit, Request
from ibidem.index import search as vectors
from tests.embedders import BagOfWords, Constant
from tests.helpers import rounds

WORDS = "how do I reset change open close my new old account card order".split()
OPERATIONS = rounds(600, 20_000)


@pytest.mark.parametrize("embedder", [BagOfWords, Constant], ids=["near", "all the same"])
@pytest.mark.parametrize("limit", [10_000, 0], ids=["in memory", "in the index"])
def test_namespaces_and_scopes_are_airtight(open_cache, monkeypatch, embedder, limit: int) -> None:
    """Random stores and lookups in 120 scopes of 12 namespaces; the answers say where they belong."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", limit)
    cache = open_cache(embedder=embedder(), min_similarity=0.6)
    draw, hits, by_meaning = random.Random(7), 0, 0
    for _ in range(OPERATIONS):
        # Names that run together if they are not kept apart: "a" + "aa" and "aa" + "a".
        namespace, scope = "a" * draw.randrange(12), "a" * draw.randrange(10)
        question = " ".join(draw.choices(WORDS, k=draw.randint(3, 6)))
        request = Request(question, namespace=namespace, scope=scope)
        if draw.random() < 0.3:
            cache.store(request, Answer(f"{len(namespace)}/{len(scope)}"))
            continue
        found = cache.lookup(request)
        if isinstance(found, Hit):
            hits, by_meaning = hits + 1, by_meaning + (found.tier == "semantic")
            assert found.answer.text == f"{len(namespace)}/{len(scope)}"

    assert by_meaning > 20
    assert hits < OPERATIONS
    assert cache.stats().faults == {}
