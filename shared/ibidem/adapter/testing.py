# ruff: noqa: S101  (tests assert)
"""Tests to inherit for an adapter of your own: see `ibidem.testing`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibidem
from ibidem.cache import SemanticCache
from ibidem.testing import OTHER, QUESTION, REWORDED, WordEmbedder


class Model:
    """A model that counts its calls, and answers each differently."""

    def __init__(self) -> None:
        self.calls, self.fails, self.seconds = 0, False, 0.0
        self._lock = threading.Lock()

    def __call__(self, question: str) -> str:
        """Answer; raises `ConnectionError` if it `fails`."""
        with self._lock:
            self.calls += 1
            calls = self.calls
        time.sleep(self.seconds)
        if self.fails:
            raise ConnectionError("the model is down")
        return f"answer number {calls}"


@dataclass(frozen=True)
class App:
    """A program whose calls an adapter sends through the cache.

    `ask` returns the framework's response to a question, `text` the text of a response. `stream` yields the
    pieces of an answer; None if the framework has no streams.
    """

    ask: Callable[[str], Any]
    text: Callable[[Any], str]
    stream: Callable[[str], Iterable[str]] | None = None


class AdapterContract:
    """Promises of an adapter."""

    def make_app(self, cache: SemanticCache, model: Model) -> App:
        """Make a program that asks this model through the adapter and this cache."""
        raise NotImplementedError

    def _start(self, directory: Path) -> tuple[SemanticCache, Model, App]:
        cache = ibidem.open(directory, embedder=WordEmbedder(), min_similarity=0.75)
        model = Model()
        return cache, model, self.make_app(cache, model)

    def test_a_question_is_asked_once(self, tmp_path: Path) -> None:
        """Repeated or reworded it is answered from the cache; another question is not."""
        cache, model, app = self._start(tmp_path)
        with cache:
            answers = [app.text(app.ask(question)) for question in (QUESTION, QUESTION, REWORDED, OTHER)]

        assert answers == ["answer number 1"] * 3 + ["answer number 2"]
        assert model.calls == 2

    def test_tenants_share_nothing(self, tmp_path: Path) -> None:
        """Each namespace has its own answer."""
        cache, model, app = self._start(tmp_path)
        with cache:
            for namespace in ("one", "other", "one"):
                with ibidem.scope(namespace=namespace):
                    app.ask(QUESTION)

        assert model.calls == 2

    def test_a_stream_is_stored_and_repeated(self, tmp_path: Path) -> None:
        """When it was read to its end."""
        cache, model, app = self._start(tmp_path)
        with cache:
            if app.stream is not None:
                texts = ["".join(app.stream(question)) for question in (QUESTION, QUESTION, REWORDED)]
                assert texts == ["answer number 1"] * 3
                assert model.calls == 1

    def test_a_failed_call_raises_and_is_not_stored(self, tmp_path: Path) -> None:
        """The next call asks the model again."""
        cache, model, app = self._start(tmp_path)
        with cache:
            model.fails, failed = True, False
            try:
                app.ask(QUESTION)
            except ConnectionError:
                failed = True
            model.fails = False

            assert failed
            assert app.text(app.ask(QUESTION)) == f"answer number {model.calls}"

    def test_without_the_cache_the_model_is_asked(self, tmp_path: Path) -> None:
        """The caller does not notice that the cache was closed."""
        cache, _, app = self._start(tmp_path)
        cache.close()

        assert [app.text(app.ask(QUESTION)) for _ in range(2)] == ["answer number 1", "answer number 2"]

    def test_an_answer_can_be_forgotten(self, tmp_path: Path) -> None:
        """By the response that came from the cache."""
        cache, model, app = self._start(tmp_path)
        with cache:
            app.ask(QUESTION)
            assert ibidem.forget(app.ask(QUESTION))
            app.ask(QUESTION)

        assert model.calls == 2

    def test_a_corrected_answer_is_repeated(self, tmp_path: Path) -> None:
        """Whole, and as a stream: it is in the payload, too."""
        cache, model, app = self._start(tmp_path)
        with cache:
            for _ in range(2):
                app.ask(QUESTION)
            hit = cache.recent(1)[0]
            assert cache.correct(hit.entry_id or "", "A person's answer, in some more words.")
            texts = [app.text(app.ask(question)) for question in (QUESTION, REWORDED)]
            texts += ["".join(app.stream(QUESTION))] if app.stream else []

        assert {*texts} == {"A person's answer, in some more words."}
        assert model.calls == 1

    def test_one_of_many_asks(self, tmp_path: Path) -> None:
        """The others wait for its answer."""
        cache, model, app = self._start(tmp_path)
        model.seconds = 0.3
        with cache, ThreadPoolExecutor(4) as pool:
            texts = list(pool.map(lambda _: app.text(app.ask(QUESTION)), range(4)))

        assert texts == ["answer number 1"] * 4
        assert model.calls == 1
