"""A worker: a process with a cache, which obeys lines on its input. Started by `__main__`."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import ibidem
from ibidem import Answer
from ibidem.index import search
from ibidem.types import Vector
from tests.benchmarks.servers.filling import Corpus, request_of

STORES, INVALIDATIONS, IDENTICAL = 0.05, 0.005, 0.25  # shares of the calls; the rest are lookups by meaning


class Worker:
    """Asks, stores and invalidates as its input says.

    Args:
        number: Of this worker.
        entries: How many answers there were at first.
        scopes: In so many scopes.
        nearest: A file with what a search finds for each question that is asked, for the search that is none.
        corpus: The folder of the questions, "" for those that are made up.
        settings: Of the cache.
    """

    def __init__(
        self, number: int, entries: int, scopes: int, nearest: str, corpus: str, settings: dict[str, Any]
    ) -> None:
        search.EXACT_LIMIT = search.MEMORY_LIMIT  # on a directory, what all workers but one do
        self.corpus = Corpus(corpus)
        own: dict[str, Any] = {} if corpus else {"embedder": self.corpus, "min_similarity": 0.85}
        self.cache = ibidem.open(**own, **settings)
        if corpus:
            self.cache.load_models()
        self.number, self.entries, self.scopes = number, entries, scopes
        self._fresh = entries + (number + 1) * 1_000_000  # the next new question
        self._points = np.load(nearest)
        self._draw, self._lock = random.Random(number), threading.Lock()
        self._weights = np.cumsum(1.0 / np.arange(1, len(self._points) + 1))
        self._asked = threading.local()
        self._nearest = self.cache._runtime.vectors.nearest
        self.ask(number)

    def ask(self, n: int) -> str:
        """Look the n-th question up in other words; returns what came of it.

        Questions that are made up have one answer each; among those of people some ask for the same.
        """
        found = self._lookup(n, self.corpus.asked(n))
        if isinstance(found, ibidem.Miss):
            return found.reason
        if found.question == self.corpus.text(n):
            return "hit"
        return "another's" if self.corpus.given else "wrong"

    def _lookup(self, n: int, text: str) -> ibidem.Hit | ibidem.Miss:
        self._asked.n = n
        return self.cache.lookup(request_of(text, n % self.scopes))

    def store(self, n: int) -> str:
        """Store an answer to the n-th question."""
        done = self.cache.store(
            request_of(self.corpus.text(n), n % self.scopes), Answer(f"the answer to {self.corpus.text(n)}")
        )
        return "stored" if done else str(done)

    def stub(self, namespace: str, scope: str, vector: Vector, k: int, base: str = "") -> list[str]:
        """Return what a search finds for the question that this thread asks, without a search."""
        return [point.decode() for point in self._points[self._asked.n][:k]]

    def run(self, seconds: float, rate: float, threads: int, *, stub: bool) -> dict[str, Any]:
        """Call for so long, `rate` times a second, or as fast as possible if that is 0."""
        vars(self.cache._runtime.vectors)["nearest"] = self.stub if stub else self._nearest
        took, outcomes = list[float](), Counter[str]()
        until, due = time.monotonic() + seconds, time.monotonic()

        def work() -> None:
            nonlocal due
            while time.monotonic() < until:
                with self._lock:
                    due += self._draw.expovariate(rate) if rate else 0.0
                    at = due if rate else time.monotonic()
                time.sleep(max(0.0, at - time.monotonic()))
                kind = self._call()
                took.append(1000 * (time.monotonic() - at))
                outcomes[kind] += 1

        working = [threading.Thread(target=work) for _ in range(threads)]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()
        faults = self.cache._runtime.faults.counts()
        return {"took": [round(one, 2) for one in took], "outcomes": outcomes, "faults": faults}

    def _call(self) -> str:
        with self._lock:
            kind, at = self._draw.random(), self._draw.random() * self._weights[-1]
            self._fresh += 1
            fresh = self._fresh
        if kind < STORES:
            return self.store(fresh)
        if kind < STORES + INVALIDATIONS:
            self.cache.invalidate(
                entry=request_of(self.corpus.text(fresh - 1), (fresh - 1) % self.scopes).key
            )
            return "invalidated"
        n = int(np.searchsorted(self._weights, at))  # Zipf: the n-th is asked n times less than the first
        if kind < STORES + INVALIDATIONS + IDENTICAL:
            found = self._lookup(n, self.corpus.text(n))
            return "identical" if found else f"identical: {found.reason}"
        return self.ask(n)


def main() -> None:
    """Obey `ask N`, `store N`, `run JSON`; one line of JSON in reply."""
    worker = Worker(**json.loads(Path(sys.argv[1]).read_text("utf-8")))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "run":
            said: Any = worker.run(**json.loads(rest))
        else:
            said = [getattr(worker, verb)(int(rest)), time.time()]
        print(json.dumps(said), flush=True)
    worker.cache.close()


if __name__ == "__main__":
    main()
