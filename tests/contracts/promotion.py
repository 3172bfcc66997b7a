"""What a promotion promises, wherever database and index are. A subclass provides the fixture `place`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ibidem
from ibidem import Answer, CacheClosed, Miss, Request
from ibidem.cache import SemanticCache
from ibidem.matching.fitted import FittedThresholds, Level, to_json
from ibidem.storage import tables
from ibidem.storage.engine import writing
from ibidem.storage.store import Store
from ibidem.types import digest
from ibidem_lab.promotion import promote, rollback
from tests.helpers import Child, answer, eventually, question, reworded, rounds
from tests.models import flipped

Open = Callable[..., SemanticCache]
KNOWN = rounds(20, 60)  # questions; with the default model it takes 40 ms to ask one

# Obeys: `ask N`, `store N`, `model`; one reply each.
OTHER = """
import json, sys
import ibidem
from ibidem.index import search as vectors
from tests.helpers import answer, question, reworded

vectors.EXACT_LIMIT = int(sys.argv[2])
cache = ibidem.open(**json.loads(sys.argv[1]), min_probability=0.5)
print("ready", flush=True)
for line in sys.stdin:
    verb, _, n = line.strip().partition(" ")
    if verb == "ask":
        found = cache.lookup(ibidem.Request(reworded(int(n))))
        print(found.answer.text if found else found.reason, flush=True)
    elif verb == "store":
        print(bool(cache.store(ibidem.Request(question(int(n))), ibidem.Answer(answer(int(n))))), flush=True)
    elif verb == "model":
        print(cache._runtime.embedder.fingerprint, flush=True)
cache.close()
"""


def fill(cache: SemanticCache, *numbers: int) -> None:
    for n in numbers:
        assert cache.store(Request(question(n)), Answer(answer(n)))


def ask(cache: SemanticCache, n: int) -> str:
    """The answer to the reworded question, or the reason of the miss."""
    found = cache.lookup(Request(reworded(n)))
    return found.reason if isinstance(found, Miss) else f"{found.tier} {found.answer.text}"


def right(n: int) -> str:
    return f"semantic {answer(n)}"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three model directories, each with a threshold that serves the rewordings here."""
    root = tmp_path_factory.mktemp("tuned")
    found = [flipped(root / f"model{seed}", seed) for seed in range(3)]
    for one in found:
        (one / "thresholds.json").write_text(to_json(FittedThresholds((Level(0.02, 0.8),), 500)))
    return found


def expire(store: Store, *fingerprints: str) -> None:
    """Nobody has said for an hour that he uses these embedders."""
    c = tables.embedders.c
    with writing(store._engine) as db:
        db.execute(tables.embedders.update().where(c.fingerprint.in_(fingerprints)).values(until=0.0))


class Traffic:
    """Threads that ask and store all the while, and note each answer that is wrong or missing."""

    def __init__(self, cache: SemanticCache, known: int) -> None:
        self.cache, self.known, self.asked = cache, known, 0
        self.wrong: list[tuple[int, str]] = []
        self.stored: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(first,)) for first in range(2)]
        self._threads.append(threading.Thread(target=self._store))

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, n: int) -> None:
        while not self._stop.is_set():
            n = (n + 7) % self.known
            self._check(n)
            time.sleep(0.01)

    def _store(self) -> None:
        n = 10_000
        while not self._stop.is_set():
            fill(self.cache, n)
            self.stored.append(n)
            self._check(n)
            n += 1
            time.sleep(0.03)

    def _check(self, n: int) -> None:
        self.asked += 1
        if (found := ask(self.cache, n)) != right(n):
            self.wrong.append((n, found))


class PromotionContract:
    """Promises of `promote` and `rollback`."""

    limit = 10_000  # vectors up to which an embedded cache is searched in memory

    @pytest.fixture
    def open_here(self, place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
        """Opens caches at the place; closes them afterwards."""
        monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", self.limit)
        opened: list[SemanticCache] = []

        def open_one(**settings: Any) -> SemanticCache:
            least = "min_similarity" if "embedder" in settings else "min_probability"
            opened.append(ibidem.open(**{**place, least: 0.8, **settings}))
            return opened[-1]

        yield open_one
        for cache in opened:
            cache.close()

    def test_all_is_found_with_the_promoted_model(self, open_here: Open, models: list[Path]) -> None:
        """What was stored before, and after; also by who opens the cache later."""
        cache = open_here()
        fill(cache, *range(20))
        told: list[tuple[int, int]] = []
        report = promote(cache, models[0], progress=lambda done, total: told.append((done, total)))

        assert (report.changed, report.embedded, told[-1]) == (True, 20, (20, 20))
        assert report.model.startswith("flipped-0/")
        assert report.previous.startswith("all-MiniLM-L6-v2/")
        assert cache._runtime.embedder.fingerprint == report.model
        fill(cache, 20)
        assert [ask(cache, n) for n in range(21)] == [right(n) for n in range(21)]
        assert cache.stats().faults == {}
        cache.close()
        again = open_here()
        assert again._runtime.embedder.fingerprint == report.model
        assert [ask(again, n) for n in range(21)] == [right(n) for n in range(21)]

    def test_a_rollback_returns_to_what_was_used_before(self, open_here: Open, models: list[Path]) -> None:
        """At once; what was stored since is found too. Called again it returns to the promoted model."""
        cache = open_here()
        fill(cache, *range(5))
        first = promote(cache, models[0])
        fill(cache, 5)
        back = rollback(cache)

        assert (back.model, back.previous) == (first.previous, first.model)
        assert cache._runtime.embedder.fingerprint == first.previous
        assert [ask(cache, n) for n in range(6)] == [right(n) for n in range(6)]
        assert rollback(cache).model == cache._runtime.embedder.fingerprint == first.model
        assert [ask(cache, n) for n in range(6)] == [right(n) for n in range(6)]

    def test_closing_ends_a_promotion(self, open_here: Open, models: list[Path]) -> None:
        """Nothing is opened any more: it would keep the index from other processes."""
        cache = open_here()
        fill(cache, *range(20))
        with pytest.raises(CacheClosed):
            promote(cache, models[0], progress=lambda done, total: cache.close())
        assert cache._runtime.vectors.state != "open"
        again = open_here()
        assert again._runtime.embedder.fingerprint == cache._runtime.embedder.fingerprint
        assert ask(again, 3) == right(3)

    def test_traffic_goes_on_meanwhile(self, open_here: Open, models: list[Path]) -> None:
        """No error, no wrong answer, nothing missing: what was stored a moment ago neither."""
        cache = open_here()
        fill(cache, *range(KNOWN))
        assert ask(cache, 1) == right(1)
        with Traffic(cache, KNOWN) as traffic:
            for model in (models[0], None):
                before = traffic.asked
                promote(cache, model) if model else rollback(cache)
                assert eventually(lambda before=before: traffic.asked > before + KNOWN)
            assert eventually(lambda: len(traffic.stored) > KNOWN // 3)

        assert traffic.wrong == []
        assert all(ask(cache, n) == right(n) for n in (*range(KNOWN), *traffic.stored))
        assert cache.stats().faults == {}

    def test_another_process_follows(
        self, open_here: Open, place: dict[str, Any], models: list[Path]
    ) -> None:
        """Within seconds; what it stores while it uses the old model is found by all afterwards."""
        cache = open_here()
        fill(cache, *range(10))
        assert ask(cache, 1) == right(1)
        with Child(OTHER, json.dumps(place, default=str), self.limit) as other:
            other.line()
            assert eventually(lambda: other.ask("ask 3") == answer(3))
            report = promote(cache, models[0])
            assert other.ask("store 100") == "True"
            assert eventually(lambda: other.ask("ask 3") and other.ask("model") == report.model)
            assert other.ask("store 101") == "True"
            assert all(eventually(lambda n=n: other.ask(f"ask {n}") == answer(n)) for n in (3, 100, 101))
            assert all(eventually(lambda n=n: ask(cache, n) == right(n)) for n in (3, 100, 101))
            back = rollback(cache)
            assert eventually(lambda: other.ask("ask 3") and other.ask("model") == back.model)
            assert all(eventually(lambda n=n: ask(cache, n) == right(n)) for n in (3, 100, 101))
            assert other.end() == 0
        assert cache.stats().faults == {}

    def test_a_given_embedder_keeps_its_own_vectors(self, open_here: Open, models: list[Path]) -> None:
        """It is neither replaced by a promotion nor can it begin one; nobody overwrites its vectors."""
        cache = open_here()
        fill(cache, *range(5))
        own = open_here(embedder=str(models[1]))
        assert eventually(lambda: own.flush() and all(ask(own, n) == right(n) for n in range(5)))
        with pytest.raises(ibidem.ConfigurationError, match="opened with an embedder of its own"):
            promote(own, models[0])
        report = promote(cache, models[0])
        fill(cache, 5)
        fill(own, 6)

        assert own._runtime.embedder.fingerprint != report.model
        for one in (cache, own):
            assert eventually(lambda one=one: [ask(one, n) for n in range(7)] == [right(n) for n in range(7)])
        assert own._runtime.store.vectors(report.model).count() == 7

    def test_models_that_nobody_uses_are_forgotten(
        self, open_here: Open, models: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither current nor previous: vectors, files and collections go; rollback still works."""
        monkeypatch.setattr("ibidem.active_model.RETIRED_SECONDS", 0.0)
        monkeypatch.setattr("ibidem.active_model.LOOK_SECONDS", 0.0)
        monkeypatch.setattr("ibidem.index.compaction.LOOK_SECONDS", 0.0)
        cache = open_here()
        fill(cache, *range(5))
        store = cache._runtime.store
        reports = [promote(cache, model) for model in models[:2]]
        first = reports[0].previous
        kept = {report.model for report in reports}

        def step() -> bool:
            ask(cache, 1)
            done = self.limit or not store.meta.suffixes(
                "forgotten:"
            )  # without Chroma there is nothing to drop
            return done and set(store.embedders.registered()) == kept

        for _ in range(3):
            ask(cache, 1)
            cache.flush()
        assert store.vectors(first).count() == 5  # somebody may use it
        expire(store, first)
        assert eventually(step)
        assert store.vectors(first).count() == 0
        last = promote(cache, models[2])
        kept = {reports[1].model, last.model}
        expire(store, *(report.model for report in reports))
        assert eventually(step)
        gone, left = (store.model_files.names(digest(report.model)) for report in reports)
        assert (gone, left) == (set(), {"model.onnx", "tokenizer.json", "metrics.json", "manifest.json"})
        rollback(cache)
        assert all(ask(cache, n) == right(n) for n in range(5))

    def test_clearing_forgets_the_vectors_of_all_models(self, open_here: Open, models: list[Path]) -> None:
        """And what is stored afterwards is found, also after a rollback."""
        cache = open_here()
        fill(cache, *range(5))
        report = promote(cache, models[0])
        assert cache.clear() == 5
        store = cache._runtime.store
        assert [store.vectors(one).count() for one in (report.model, report.previous)] == [0, 0]
        fill(cache, 7)
        assert ask(cache, 7) == right(7)
        rollback(cache)
        assert ask(cache, 7) == right(7)
        assert ask(cache, 1) in ("below_threshold", "empty")
