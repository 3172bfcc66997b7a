"""Asks a teacher about many pairs, several at once, and again where it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ibidem_lab.labelling.pairs import QuestionPair
from ibidem_lab.labelling.prompt import Verdict, prompt_of, verdict_of
from ibidem_lab.labelling.teachers import Teacher

RETRIES = 3  # times that a call is tried again
PAUSE_SECONDS = 1.0  # before it is, then twice as long, and so on
UNREAD = "the teacher's answer could not be read"
ONE_WAY = "the answer to the one serves the other, but not the other way round"


@dataclass(frozen=True, slots=True)
class Answered:
    """What the teacher said of a pair: `same` is None if that is of no use, `error` is set if it failed."""

    pair: QuestionPair
    same: bool | None = None
    reason: str = ""
    error: Exception | None = None


class Asker:
    """One run over some pairs.

    Args:
        teacher: Takes a prompt, returns a text.
        pairs: What to ask about, in this order.
        parallel: Calls in flight at most.
        both_ways: Ask (a, b) and (b, a), and keep what is said of both.
    """

    def __init__(
        self, teacher: Teacher, pairs: Iterable[QuestionPair], *, parallel: int, both_ways: bool
    ) -> None:
        self._teacher, self._pairs, self._both_ways = teacher, iter(pairs), both_ways
        self._parallel = parallel
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._done: SimpleQueue[Answered | None] = SimpleQueue()

    def run(self) -> Iterator[Answered]:
        """Begin; what is answered, as it comes."""
        # Daemons, so that a call that hangs does not keep the program from ending.
        for number in range(self._parallel):
            threading.Thread(target=self._work, name=f"ibidem-teacher-{number}", daemon=True).start()
        running = self._parallel
        while running:
            if (answered := self._done.get()) is None:
                running -= 1
            else:
                yield answered

    def stop(self) -> Iterator[Answered]:
        """Begin no further call; what has been answered and not been taken yet."""
        self._stopped.set()
        while True:
            try:
                answered = self._done.get_nowait()
            except Empty:
                return
            if answered is not None:
                yield answered

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                pair = next(self._pairs, None)
            if pair is None:
                break
            try:
                self._done.put(self._ask(pair))
            except Exception as error:
                self._done.put(Answered(pair, error=error))
        self._done.put(None)

    def _ask(self, pair: QuestionPair) -> Answered:
        there = self._verdict(pair.a, pair.b)
        if there is None or not self._both_ways:
            return Answered(pair, there.same if there else None, there.reason if there else UNREAD)
        back = self._verdict(pair.b, pair.a)
        if back is None or there.same != back.same:
            return Answered(pair, None, UNREAD if back is None else ONE_WAY)
        return Answered(pair, there.same, there.reason)

    def _verdict(self, asked: str, stored: str) -> Verdict | None:
        """What is said of the pair, asked once more if it cannot be read; raises what the teacher raises."""
        prompt = prompt_of(asked, stored)
        return verdict_of(self._say(prompt)) or verdict_of(self._say(prompt))

    def _say(self, prompt: str) -> str:
        for attempt in range(RETRIES):
            try:
                return self._teacher(prompt)
            except Exception:
                if self._stopped.wait(PAUSE_SECONDS * 2**attempt):
                    raise
        return self._teacher(prompt)
