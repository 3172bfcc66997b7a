"""Threads that look up and store without end, and what they saw."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import ibidem
from tests.helpers import answer, question, reworded


@dataclass
class Seen:
    """What came of the calls: `(when it ended, seconds, outcome)` of each; anything wrong in words."""

    lookups: list[tuple[float, float, str]] = field(default_factory=list)
    stores: list[tuple[float, float, str]] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> Counter[str]:
        """Lookups by tier or reason."""
        return Counter(outcome for _, _, outcome in self.lookups)

    def slowest(self, *outcomes: str) -> float:
        """Seconds of the slowest lookup that ended so."""
        return max((took for _, took, outcome in self.lookups if outcome in outcomes), default=0.0)

    def median(self, *outcomes: str) -> float:
        """Seconds of the median lookup that ended so."""
        return statistics.median([took for _, took, outcome in self.lookups if outcome in outcomes] or [0.0])

    def first_after(self, moment: float, outcome: str) -> float:
        """Seconds from the moment to the first lookup after it that ended so."""
        return min(ended for ended, _, found in self.lookups if found == outcome and ended > moment) - moment


class Load:
    """Looks up and stores in some threads until it is left; `seen` says what came of it.

    Each thread asks the very words, then other words of one of `known`, then stores a question of its own.
    """

    def __init__(
        self, cache: ibidem.SemanticCache, known: int, threads: int = 8, pause: float = 0.005
    ) -> None:
        self.seen = Seen()
        self._cache, self._known, self._pause = cache, known, pause
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(threads)]

    def __enter__(self) -> Seen:
        for thread in self._threads:
            thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "a call never returned"

    def _work(self, thread: int) -> None:
        step = 0
        while not self._end.wait(self._pause):
            step += 1
            try:
                self._ask(question((step + thread) % self._known), (step + thread) % self._known)
                self._ask(reworded((step + thread) % self._known), (step + thread) % self._known)
                self._store(10_000 * (thread + 1) + step)
            except BaseException as error:
                self.seen.wrong.append(repr(error))
                raise

    def _ask(self, text: str, n: int) -> None:
        started = time.perf_counter()
        found = self._cache.lookup(ibidem.Request(text))
        took = time.perf_counter() - started
        if found and found.answer.text != answer(n):
            self.seen.wrong.append(f"{text} got {found.answer.text}")
        self.seen.lookups.append((time.monotonic(), took, found.tier if found else found.reason))

    def _store(self, n: int) -> None:
        started = time.perf_counter()
        result = self._cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n)))
        took = time.perf_counter() - started
        if result:
            self.seen.stored.append(n)
        self.seen.stores.append((time.monotonic(), took, "stored" if result else result.reason))
