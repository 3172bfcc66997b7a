"""The whole loop: serve, mine near misses, ask a teacher, tune, replay, promote while in use, roll back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ibidem
import ibidem_lab
from ibidem import Answer, Hit, Request
from ibidem.cache import SemanticCache
from ibidem.embedding import resolve_embedder
from ibidem.embedding.base import CheckedEmbedder
from ibidem.matching.shipped import scorer_for
from ibidem_lab import promote, rollback
from ibidem_lab.fitting.labels import Label
from ibidem_lab.labelling.teach import teach
from ibidem_lab.replay import Row, curve_rule, hindsight, replay
from tests.helpers import rounds
from tests.shop import products, stream

pytestmark = pytest.mark.slow

KNOWN, NEW = products()[:26], products()[44:]
MEANT = {row.text: str(row.meaning) for row in stream(products())}


def oracle(prompt: str) -> str:
    """A teacher that knows what is meant."""
    (line,) = (line for line in prompt.splitlines() if line.startswith('{"new question"'))
    questions = json.loads(line)
    same = MEANT[questions["new question"]] == MEANT[questions["stored question"]]
    return json.dumps({"same": same, "reason": "By what is meant."})


def serve(cache: SemanticCache, rows: list[Row]) -> None:
    """Ask every question; what is not answered is stored with its true answer."""
    for row in rows:
        request = Request(row.text, scope="shop")
        if not isinstance(cache.lookup(request), Hit):
            cache.store(request, Answer(f"All about the {row.meaning}."))


def most_hits(rows: list[Row], model: str | None) -> float:
    """The share of the questions that can be served with at most 2 % of the hits wrong."""
    embedder = CheckedEmbedder(resolve_embedder(model), lambda _, value: value)
    vectors = [embedder.vector_of(row.text) for row in rows]
    rule = curve_rule(scorer_for(embedder.fingerprint))
    point = hindsight(replay(rows, vectors, rule).judged, 0.02)
    return point.hits / len(rows) if point else 0.0


@contextmanager
def asking(cache: SemanticCache, rows: list[Row]) -> Iterator[list[str]]:
    """Ask stored questions all the while; yields what went wrong."""
    problems: list[str] = []
    end = threading.Event()
    asked = 0

    def ask() -> None:
        nonlocal asked
        while not end.is_set():
            for row in rows:
                result = cache.lookup(Request(row.text, scope="shop"))
                answer = result.answer.text if isinstance(result, Hit) else f"miss: {result.reason}"
                if answer != f"All about the {row.meaning}.":
                    problems.append(f"{row.text}: {answer}")
                asked += 1
                time.sleep(0.005)  # the promotion needs the processor too

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield problems
    finally:
        end.set()
        thread.join()
    assert asked > 100


def test_the_loop(tmp_path: Path) -> None:
    """More hits at the same share of wrong ones, for products that nobody had asked about."""
    import torch

    from ibidem_lab.tuning.training import Recipe
    from ibidem_lab.tuning.tune import tune

    torch.set_num_threads(1)  # beside other tests, two threads wait for each other
    tuned = tmp_path / "tuned"
    with ibidem.open(tmp_path / "cache", verifier=None) as cache:
        serve(cache, stream(KNOWN))

        mined = ibidem_lab.pairs(cache, limit=rounds(600, 1_200))
        assert {pair.source for pair in mined.pairs} >= {"near_miss", "neighbour"}
        taught = teach(mined.pairs, oracle, out=tmp_path / "labelled.jsonl")
        assert min(taught.same, taught.different) > 20
        labels = [Label(pair.a, pair.b, pair.same) for pair in taught.pairs if pair.same is not None]
        assert all(pair.right == (MEANT[pair.asked] == MEANT[pair.stored]) for pair in labels)

        report = tune(labels, tuned, recipe=Recipe(epochs=1, device="cpu"))
        assert report.gain[1] > 0

        fresh = stream(NEW, seed=1)
        before, after = most_hits(fresh, None), most_hits(fresh, str(tuned))
        assert after > before + 0.1

        known = [row for row in stream(KNOWN) if _is_stored(cache, row)]
        with asking(cache, known) as problems:
            promoted = promote(cache, tuned)
            assert promoted.changed
            assert promoted.embedded > 300
            back = rollback(cache)
        assert back.model == promoted.previous
        assert not problems
        assert not cache.stats().faults


def _is_stored(cache: SemanticCache, row: Row) -> bool:
    result: Any = cache.lookup(Request(row.text, scope="shop"))
    return isinstance(result, Hit) and result.tier == "exact"
