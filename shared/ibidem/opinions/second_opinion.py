"""The second opinion of a cache: whom it asks, when, how long, and what is remembered of it."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ibidem._util.circuit_breaker import CircuitState
from ibidem._util.concurrency import WORKERS, ForkSafeLock, deadline
from ibidem._util.faults import Faults
from ibidem.opinions.models import Adviser, Reply
from ibidem.scope import bypassing
from ibidem.storage.logs import NO_OPINION, OPINION, JudgementRow
from ibidem.types import storable

if TYPE_CHECKING:
    from ibidem.matching.policy import Verdict
    from ibidem.matching.scorers import Candidate, Verifier
    from ibidem.storage.store import Store
    from ibidem.types import Entry, Request

LIKELY = 0.5  # the least probability that is worth asking about: below, the answer is rather wrong than right
# Questions asked about at one time, so that async lookups, which have `WORKERS` threads, do not all wait.
AT_ONCE = WORKERS - 2

YES, NO, UNSURE = "yes", "no", "unsure"  # the model's verdicts, which are remembered
LATE, FAILED, NOT_ASKED, GONE = "late", "failed", "not_asked", "gone"  # why there is none
_ASKING = "ask for a second opinion"  # in the names of faults

Pair = tuple[str, float, str]  # id of an entry, when its answer was stored, question or conversation asked


@dataclass(frozen=True, slots=True)
class Doubt:
    """A candidate to ask about.

    Attributes:
        candidate: The stored answer, refused by nothing but its score, or by what was said before.
        scorer: Name of the verifier that gave the score.
        served_from: The least score that is served without asking.
        stored: The conversation that it was given in, if that is another one; else "".
        asked: Likewise that of the question asked.
    """

    candidate: Candidate
    scorer: str
    served_from: float
    stored: str = ""
    asked: str = ""


class SecondOpinion:
    """Asks a small model, in doubt, whether a stored answer serves the question asked. Thread-safe.

    It is asked once about each pair of question and stored answer, in a thread of its own, for all who wait
    for that at the time; only a call that failed is made again. Its verdicts are kept as judgements (source
    `opinion`, or `no_opinion` if it could not tell), for all processes. While it fails again and again, it
    is asked now and then only.

    Args:
        adviser: The small model.
        store: The database, which keeps the verdicts.
        least: Least score of what it is asked about; None for `LIKELY`, or the least that the meaning of the
            scores is known for.
        seconds: How long a lookup waits.
        redacted: Returns a text as it may leave the cache, None if that cannot be told.
        faults: Counts failures.
    """

    def __init__(
        self,
        adviser: Adviser,
        store: Store,
        *,
        least: float | None,
        seconds: float,
        redacted: Callable[[str], str | None],
        faults: Faults,
    ) -> None:
        self._adviser, self._store, self._least, self._seconds = adviser, store, least, seconds
        self._redacted, self._faults = redacted, faults
        self._lock = ForkSafeLock()
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._asking: dict[Pair, Future[str]] = {}
        self._circuit = CircuitState(closed=True)

    @property
    def name(self) -> str:
        """The name of the small model."""
        return self._adviser.name

    def asked_from(self, verifier: Verifier) -> float:
        """Return the least score of this verifier about which the model is asked."""
        return max(LIKELY, getattr(verifier, "floor", LIKELY)) if self._least is None else self._least

    def doubted(self, verifier: Verifier, verdict: Verdict) -> Candidate | None:
        """Return the candidate to ask about, if nothing is sure enough and one is likely."""
        best = verdict.best
        return None if best is None or best.score < self.asked_from(verifier) else best

    def ask(self, request: Request, doubt: Doubt, now: float) -> str:
        """Return `YES` if the candidate's answer may be served, else why not; after `seconds` it is `LATE`.

        Args:
            request: The question asked.
            doubt: The stored answer.
            now: When the lookup began; an answer that is stored later is another one.

        Raises:
            StorageError: What is remembered cannot be read.
        """
        entry = doubt.candidate.entry
        pair = (entry.id, entry.created, doubt.asked or request.question)
        with self._lock:
            if self._process != os.getpid():  # a forked child, where nobody asks
                self._reset()
            verdict, first = self._asking.get(pair), pair not in self._asking
            if verdict is None:
                if len(self._asking) >= AT_ONCE:
                    return NOT_ASKED
                verdict = self._asking[pair] = Future()
        if first:
            self._begin(pair, verdict, doubt, now)
        try:
            outcome = verdict.result(self._seconds)
        except TimeoutError:
            outcome = LATE
        if first and outcome == LATE:
            self._record(ok=False)
            self._faults.count(f"{_ASKING}: too slow", f"waited {self._seconds:g} s for {self.name}")
        return outcome

    def remembered(self, entry: Entry, question: str) -> str | None:
        """Return the verdict on this question and the entry's present answer; None if there is none.

        Raises:
            StorageError: The database failed.
        """
        known = self._store.judgements.opinion(entry.id, question, entry.created)
        if known is None:
            return None
        return UNSURE if known.source == NO_OPINION else YES if known.right else NO

    def _begin(self, pair: Pair, verdict: Future[str], doubt: Doubt, now: float) -> None:
        """Tell those who wait what is remembered, or why nobody is asked; else ask, in another thread."""
        entry, question = doubt.candidate.entry, pair[2]
        try:
            if known := self.remembered(entry, question):
                return self._end(pair, verdict, known)
            texts = self._sendable(doubt.stored or entry.question or "", question, entry.answer.text)
            if texts is None or not self._may_ask():
                return self._end(pair, verdict, NOT_ASKED)
            stored, asked, answer = texts
            row = JudgementRow(
                at=now,
                namespace=entry.namespace,
                scope=entry.scope,
                entry_id=entry.id,
                asked=asked,
                stored=stored,
                similarity=doubt.candidate.similarity,
                score=doubt.candidate.score,
                scorer=doubt.scorer,
                right=False,
                source=OPINION,
                model=self.name,
            )
            # In an empty context: it is no part of the caller's run, whose callbacks would tell of it.
            call = (self._ask, pair, verdict, row, answer)
            alone = contextvars.Context().run
            threading.Thread(target=alone, args=call, name="ibidem-opinion", daemon=True).start()
        except BaseException:
            self._end(pair, verdict, FAILED)
            raise

    def _sendable(self, *texts: str) -> list[str] | None:
        """Return the texts as they may be sent and kept; None if one of them may not."""
        shown = [text for text in map(self._redacted, texts) if text is not None and storable(text)]
        return shown if len(shown) == len(texts) else None

    def _ask(self, pair: Pair, verdict: Future[str], row: JudgementRow, answer: str) -> None:
        """Ask the model, and remember what it says."""
        started, outcome = time.monotonic(), FAILED
        try:
            with bypassing():  # whatever the model goes through
                reply = self._adviser.ask(row.stored, row.asked, answer, self._seconds)
            if self._is_there(pair):
                outcome = UNSURE if reply.same is None else YES if reply.same else NO
                self._keep(row, reply)
            else:
                outcome = GONE
            if not reply.readable:
                self._faults.count(f"{_ASKING}: unreadable", f"could not read what {self.name} said")
            if not self._is_late(started):
                self._record(ok=True)
        except BaseException as error:
            if self._is_late(started):  # who waited counts that
                outcome = LATE
            else:
                self._record(ok=False)
                self._faults.note(_ASKING, error)
        finally:
            self._end(pair, verdict, outcome)

    def _is_there(self, pair: Pair) -> bool:
        """Return whether the answer was neither deleted nor replaced meanwhile."""
        with deadline():
            entry = self._store.entries.get(pair[0])
        return entry is not None and entry.created == pair[1]

    def _keep(self, row: JudgementRow, reply: Reply) -> None:
        told = replace(
            row,
            right=bool(reply.same),
            source=NO_OPINION if reply.same is None else OPINION,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
        )
        try:
            with deadline():
                self._store.judgements.add([told])
        except Exception as error:
            self._faults.note("remember a second opinion", error)

    def _end(self, pair: Pair, verdict: Future[str], outcome: str) -> None:
        """Tell those who wait; who comes later finds it in the database."""
        verdict.set_result(outcome)
        with self._lock:
            self._asking.pop(pair, None)

    def _is_late(self, started: float) -> bool:
        return time.monotonic() - started >= self._seconds

    def _may_ask(self) -> bool:
        """Return whether to ask now: while the model fails, one call at a time, at growing intervals."""
        now = time.monotonic()
        with self._lock:
            if not self._circuit.closed:
                if now < self._circuit.due:
                    return False
                self._circuit.due = now + self._seconds
        return True

    def _record(self, *, ok: bool) -> None:
        now = time.monotonic()
        with self._lock:
            if not ok:
                self._circuit.record_failure(now, refused=True)  # a try costs its caller time, and money
            elif not self._circuit.closed:
                self._circuit.record_success(now)
