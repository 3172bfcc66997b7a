"""The judgements of one place: waiting to be made, written, learned; and the budgets that follow from them.

Whatever takes time (the judge, the database) happens in a thread of its own, apart from the one that indexes.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ibidem._util.background import Background
from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.audits.budget import SOURCES, WINDOW, Budget, Comparison, Pending, Ruling, Terms, judged, resumed
from ibidem.errors import StorageError, StorageUnavailable
from ibidem.stats import AuditStats, audit_stats
from ibidem.storage.logs import JudgementRow, JudgementTable
from ibidem.types import Answer, is_in_namespace

if TYPE_CHECKING:
    from ibidem.matching.policy import Scorer

PENDING = 1_000  # questions that went to the model and whose answer is awaited; the oldest are forgotten
WAITING = 1_000  # comparisons that may wait for the judge
BUDGETS = 256  # namespaces whose budget is at hand, some 200 KB each; others are read from the log again
POLL_SECONDS = 1.0  # at most so often it is asked what other processes judged
LEARN_BATCH = 500  # judgements read at once
JUDGE_SECONDS = 0.2  # after so long what was judged is written, and the rest judged next
REPORTED = 20  # namespaces told about, those judged last


@dataclass(slots=True)
class _Kept:
    """A budget and the id of the last judgement that it knows."""

    terms: Terms
    budget: Budget
    last: int


class Ledger:
    """The judgements of one place and the budgets that follow from them. Thread-safe.

    A judgement counts when it is written, and so in the same way for every process that uses the database:
    in this one some moments after it was made, in others within about a second of their next lookup that
    asks for a ruling. (On PostgreSQL one that is committed after a later one may be overlooked by others.)

    Args:
        table: Where judgements are kept.
        scorer: What gives the scores.
        name: Its name; judgements of others are left alone.
        faults: Where failures are counted.
        judged: Told of each judgement.
    """

    def __init__(
        self,
        table: JudgementTable,
        scorer: Scorer,
        name: str,
        faults: Faults,
        judged: Callable[[JudgementRow], None] = lambda row: None,
    ) -> None:
        self._table, self._faults, self._judged = table, faults, judged
        self._scored_by, self.scorer = scorer, name
        self._lock = ForkSafeLock()
        self._writing = ForkSafeLock()  # held from taking rows out of a queue until they are written
        self._background = Background(
            {
                "judge answers": self._judge,
                "write judgements": self._write,
                "learn judgements": self._learn,
            },
            faults,
        )
        self._reset()

    def _reset(self) -> None:
        self._budgets: BoundedDict[Terms, _Kept] = BoundedDict(BUDGETS)
        self._pending: BoundedDict[str, Pending] = BoundedDict(PENDING)
        self._waiting: collections.deque[Comparison] = collections.deque()
        self._rows: collections.deque[JudgementRow] = collections.deque()
        self._told = 0  # so many of the first rows could not be written, and are known to the budgets
        self._corrected = ""  # the mark of what people had corrected when the budgets were read
        self._last: int | None = None  # id of the newest judgement seen; None before the first budget
        self._polled = 0.0
        self._clears = 0

    def after_fork(self) -> None:
        """Start afresh in a forked child: what waits belongs to the parent."""
        self._background.after_fork()
        self._reset()

    def adopt(self, scorer: Scorer, name: str) -> None:
        """Another scorer gives the scores from now on; budgets begin with what is known of its scores."""
        with self._lock:
            self._scored_by, self.scorer = scorer, name
            self._pending.clear()
            self._budgets.clear()

    def rule(self, terms: Terms, score: float, scorer: Scorer) -> Ruling:
        """What the budget of these terms says of a candidate to which this scorer gave this score.

        Raises:
            StorageError: The judgements of this namespace cannot be read.
        """
        with self._lock:
            if scorer is not self._scored_by:  # exchanged since: scores of two are not compared
                return "refuse"
            ruling = self._kept(terms).budget.decide(score)
            due = time.monotonic() - self._polled > POLL_SECONDS
            if due:
                self._polled = time.monotonic()
        if due:
            self._background.wake()
        return ruling

    def _kept(self, terms: Terms) -> _Kept:
        """The budget of these terms, made of the newest judgements if not at hand. Under the lock."""
        kept = self._budgets.get(terms)
        if kept is None:
            if self._last is None:
                self._corrected = self._table.corrected()
                self._last = self._table.last_id()
            rows = self._table.newest(WINDOW, terms.namespace, self.scorer)
            budget = resumed(terms, (row for _, row in rows))
            kept = _Kept(terms, budget, rows[-1][0] if rows else 0)
            self._budgets.put(terms, kept)
        return kept

    def expect(self, pending: Pending) -> None:
        """The model is being asked; `compare` follows if it answers."""
        with self._lock:
            self._pending.put(pending.key, pending)

    def compare(self, key: str, fresh: Answer | None) -> None:
        """The model has answered the request of this key, with nothing to compare if None; judged later."""
        with self._lock:
            pending = self._pending.pop(key)
        if pending is None or fresh is None:
            return
        if len(self._waiting) >= WAITING:
            self._faults.count(
                "judge answers: too many wait", f"dropped an audit: {WAITING:,} wait for the judge"
            )
            return
        self._waiting.append(Comparison(pending, fresh))
        self._background.wake()

    def clear(self, namespace: str | None, delete: Callable[[], int]) -> int:
        """What `delete` returns; then forget what is known of the namespace and waits, all if it is None."""
        with self._writing:
            count = delete()
            self._clears += 1
            kept = [(at, row) for at, row in enumerate(self._rows) if not _within(row, namespace)]
            self._told = sum(at < self._told for at, _ in kept)
            self._rows = collections.deque(row for _, row in kept)
            for _ in range(len(self._waiting)):
                comparison = self._waiting.popleft()
                if not _within(comparison.asked.row, namespace):
                    self._waiting.append(comparison)
        with self._lock:
            for pending in self._pending:
                if _within(pending.row, namespace):
                    self._pending.pop(pending.key)
            self._budgets.clear()  # those of other namespaces are read from the log again
        return count

    def forget(self, ids: Collection[str]) -> None:
        """These entries were invalidated: what is still to be compared with them proves nothing any more."""
        with self._writing, self._lock:
            for pending in self._pending:
                if pending.row.entry_id in ids:
                    self._pending.pop(pending.key)
            left = (one for one in self._waiting if one.asked.row.entry_id not in ids)
            self._waiting = collections.deque(left)

    def flush(self) -> bool:
        """Wait until what is known now is judged, written and learned; False if that took too long."""
        return self._last is None or self._background.flush()

    def waiting(self) -> int:
        """How many answers wait to be judged."""
        return len(self._waiting)

    def close(self) -> None:
        """Judge and write what is left; waits for a judge for at most 20 s."""
        self._background.stop()

    def report(self, max_error_rate: float, audit_rate: float) -> tuple[AuditStats, ...]:
        """What the judgements say of the namespaces that were judged last.

        Raises:
            StorageError: The database failed.
        """
        found = []
        for namespace, _ in self._table.namespaces(REPORTED, scorers=[self.scorer]):
            rows = [row for _, row in self._table.newest(WINDOW, namespace, self.scorer)]
            with self._lock:
                budget = self._kept(Terms(namespace, max_error_rate, audit_rate)).budget
                found.append(audit_stats(namespace, rows, budget.threshold, budget.alarms))
        return tuple(found)

    def _judge(self) -> bool:
        """Judge what waits, for a while."""
        until = time.monotonic() + JUDGE_SECONDS
        while time.monotonic() < until:
            with self._writing:
                if not self._waiting:
                    break
                comparison, clears = self._waiting.popleft(), self._clears
            try:
                right = comparison.is_right()
            except Exception as error:
                self._faults.note("judge an answer", error)
                continue
            with self._writing:
                if clears != self._clears:  # it may be one of those that were to be forgotten
                    continue
                row = replace(comparison.asked.row, right=right)
                self._rows.append(row)
            self._judged(row)
        return len(self._waiting) > 0

    def _write(self) -> bool:
        with self._writing:
            rows, self._rows = list(self._rows), collections.deque()
            if not rows:
                return False
            try:
                self._table.add(rows)
            except StorageError as error:
                with self._lock:  # what is served here must not go on unwatched
                    for row in rows[self._told :]:
                        self._tell(row, None)
                self._told = 0
                if isinstance(error, StorageUnavailable):
                    self._keep_for_later(rows)
                raise
            if self._told:
                with self._lock:
                    self._budgets.clear()  # they know these already: what is in the log is read again
                self._told = 0
        return False

    def _keep_for_later(self, rows: list[JudgementRow]) -> None:
        """Rows that the budgets know and the log does not, in front of those that are judged next."""
        for _ in rows[WAITING:]:
            self._faults.count("write judgements: too many wait", "dropped a judgement: too many wait")
        self._rows.extendleft(reversed(rows[-WAITING:]))
        self._told = min(len(rows), WAITING)

    def _learn(self) -> bool:
        """Learn what was written since the last time, by whichever process."""
        with self._lock:
            last = self._last
        if last is None:
            return False
        corrected = self._table.corrected()
        found = self._table.after(last, LEARN_BATCH, self.scorer)
        with self._lock:
            if corrected != self._corrected:
                self._corrected = corrected
                self._budgets.clear()  # and read again, as a person has corrected them
            for number, row in found:
                self._tell(row, number)
                self._last = number
        return len(found) == LEARN_BATCH

    def _tell(self, row: JudgementRow, number: int | None) -> None:
        """Tell the budgets at hand, unless they know it: `number` is its id in the log. Under the lock."""
        if row.source not in SOURCES or row.scorer != self.scorer:
            return
        for kept in self._budgets:
            if kept.terms.namespace == row.namespace and (number is None or number > kept.last):
                kept.budget.record(*judged(row))
                kept.last = max(kept.last, number or 0)


def _within(row: JudgementRow, namespace: str | None) -> bool:
    return namespace is None or is_in_namespace(row.namespace, namespace)
