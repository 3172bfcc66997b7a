"""The judgements of one location, the budgets computed from them, and their statistics.

Slow work (comparisons, the database) runs in a thread of its own, apart from the one that indexes.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from ibidem._util.concurrency import Background, BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem._util.intervals import clopper_pearson
from ibidem.audits.budget import (
    SOURCES,
    WINDOW,
    AuditPolicy,
    Budget,
    Comparison,
    Decision,
    PendingAudit,
    restore_budget,
    to_judged,
)
from ibidem.errors import StorageError, StorageUnavailable
from ibidem.storage.logs import JudgementRow, JudgementTable
from ibidem.types import Answer, is_in_namespace

MAX_PENDING = 1_000  # audits whose fresh answer is awaited; the oldest are dropped
MAX_WAITING = 1_000  # comparisons, and judgements, in a queue
MAX_BUDGETS = 256  # budgets in memory, some 200 KB each; others are restored from the database
POLL_SECONDS = 1.0  # between two looks for judgements of other processes
LEARN_BATCH = 500  # judgements read at once
JUDGE_SECONDS = 0.2  # of comparing between two writes
REPORTED = 20  # namespaces in the statistics, those judged last


@dataclass(frozen=True, slots=True)
class AuditStats:
    """Statistics of the last 1,500 judgements of one namespace.

    `audits` compared answers that would have been served, `wrong` of them were wrong; `probes` compared those
    that would not have been served, and include the labels of a fit. `wrong_per_hit` estimates the share of
    wrong hits by meaning (None before the first audit), `interval` is its Clopper-Pearson 95 % interval.
    `threshold` is the least score that is served now, None while nothing is served by meaning; `alarms`
    counts how often the evidence was dropped because served answers went wrong or the traffic changed.
    """

    namespace: str
    audits: int
    wrong: int
    probes: int
    wrong_per_hit: float | None
    interval: tuple[float, float]
    threshold: float | None
    alarms: int


def audit_stats(namespace: str, rows: Sequence[JudgementRow], budget: Budget) -> AuditStats:
    """Summarize the judgements of one namespace and its budget."""
    audits = [row for row in rows if row.source == "audit"]
    wrong = sum(not row.right for row in audits)
    return AuditStats(
        namespace=namespace,
        audits=len(audits),
        wrong=wrong,
        probes=len(rows) - len(audits),
        wrong_per_hit=wrong / len(audits) if audits else None,
        interval=clopper_pearson(wrong, len(audits)),
        threshold=budget.threshold if math.isfinite(budget.threshold) else None,
        alarms=budget.alarms,
    )


@dataclass(slots=True)
class _BudgetState:
    """A budget and the id of the last judgement that it has seen."""

    policy: AuditPolicy
    budget: Budget
    last: int


class JudgementLog:
    """The judgements of one location and the budgets computed from them. Thread-safe.

    A judgement counts once it is written, and so in the same way for every process that uses the database:
    in this one some moments after it was made, in others within about a second of their next lookup that
    asks for a decision. (On PostgreSQL one that is committed after a later one may be overlooked by others.)

    Args:
        table: The judgements in the database.
        scorers: Names of the scorers in use.
        faults: Counts failures.
        on_judgement: Called with each judgement of this process.
    """

    def __init__(
        self,
        table: JudgementTable,
        scorers: frozenset[str],
        faults: Faults,
        on_judgement: Callable[[JudgementRow], None] = lambda row: None,
    ) -> None:
        self._table, self._faults, self._on_judgement = table, faults, on_judgement
        self._scorers, self._retired = scorers, frozenset[str]()
        self._lock = ForkSafeLock()
        self._writing = ForkSafeLock()  # held from taking rows out of a queue until they are written
        self._background = Background(
            {
                "judge answers": self._judge,
                "write judgements": self._write,
                "learn judgements": self._learn,
            },
            faults.note,
        )
        self._reset()

    def _reset(self) -> None:
        self._budgets: BoundedDict[AuditPolicy, _BudgetState] = BoundedDict(MAX_BUDGETS)
        self._pending: BoundedDict[str, PendingAudit] = BoundedDict(MAX_PENDING)
        self._waiting: collections.deque[Comparison] = collections.deque()
        self._rows: collections.deque[JudgementRow] = collections.deque()
        self._known = 0  # the first rows that could not be written, but are known to the budgets
        self._corrected = ""  # version of the corrections by people that the budgets contain
        self._last: int | None = None  # id of the newest judgement seen; None before the first budget
        self._polled = 0.0
        self._clears = 0

    def after_fork(self) -> None:
        """Start afresh in a forked child: queued work belongs to the parent."""
        self._background.after_fork()
        self._reset()

    def set_scorers(self, scorers: frozenset[str]) -> None:
        """Switch to other scorers; budgets are restored from the judgements of its scores."""
        with self._lock:
            self._retired = (self._retired | self._scorers) - scorers
            self._scorers = scorers
            self._pending.clear()
            self._budgets.clear()

    def decide(self, policy: AuditPolicy, score: float) -> Decision:
        """Decide, by the budget of this policy, about a candidate with this score.

        Raises:
            StorageError: The judgements of this namespace cannot be read.
        """
        with self._lock:
            if policy.scorer in self._retired:  # switched meanwhile: scores of two are not comparable
                return "refuse"
            decision = self._state(policy).budget.decide(score)
            due = time.monotonic() - self._polled > POLL_SECONDS
            if due:
                self._polled = time.monotonic()
        if due:
            self._background.wake()
        return decision

    def threshold(self, policy: AuditPolicy) -> float:
        """Return the least score that the budget of this policy serves, infinity while it serves none.

        Raises:
            StorageError: The judgements of this namespace cannot be read.
        """
        with self._lock:
            return self._state(policy).budget.threshold

    def _state(self, policy: AuditPolicy) -> _BudgetState:
        """Return the budget of a policy, restored from judgements if needed. The caller holds the lock."""
        state = self._budgets.get(policy)
        if state is None:
            if self._last is None:
                self._corrected = self._table.corrected()
                self._last = self._table.last_id()
            rows = self._table.newest(WINDOW, policy.namespace, policy.scorer)
            budget = restore_budget(policy, (row for _, row in rows))
            state = _BudgetState(policy, budget, rows[-1][0] if rows else 0)
            self._budgets.put(policy, state)
        return state

    def await_answer(self, pending: PendingAudit) -> None:
        """Add an audit whose fresh answer is awaited; `record_answer` follows if the model answers."""
        with self._lock:
            self._pending.put(pending.key, pending)

    def record_answer(self, key: str, fresh: Answer | None) -> None:
        """Queue the comparison with a fresh answer to the request of this key; None cancels it."""
        with self._lock:
            pending = self._pending.pop(key)
        if pending is None or fresh is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._faults.count(
                "judge answers: too many wait", f"dropped an audit: {MAX_WAITING:,} wait for the judge"
            )
            return
        self._waiting.append(Comparison(pending, fresh))
        self._background.wake()

    def clear(self, namespace: str | None, delete: Callable[[], int]) -> int:
        """Call `delete`, drop what is queued of the namespace (None: all) and return the result."""
        with self._writing:
            count = delete()
            self._clears += 1
            rest = [(at, row) for at, row in enumerate(self._rows) if not _within(row, namespace)]
            self._known = sum(at < self._known for at, _ in rest)
            self._rows = collections.deque(row for _, row in rest)
            for _ in range(len(self._waiting)):
                comparison = self._waiting.popleft()
                if not _within(comparison.audit.row, namespace):
                    self._waiting.append(comparison)
        with self._lock:
            for pending in self._pending:
                if _within(pending.row, namespace):
                    self._pending.pop(pending.key)
            self._budgets.clear()  # those of other namespaces are restored when needed
        return count

    def forget(self, ids: Collection[str]) -> None:
        """Drop queued comparisons with these entries, which were invalidated."""
        with self._writing, self._lock:
            for pending in self._pending:
                if pending.row.entry_id in ids:
                    self._pending.pop(pending.key)
            left = (one for one in self._waiting if one.audit.row.entry_id not in ids)
            self._waiting = collections.deque(left)

    def flush(self) -> bool:
        """Wait until queued work is done and counted; False if that took too long."""
        return self._last is None or self._background.flush()

    def waiting(self) -> int:
        """Return the number of queued comparisons."""
        return len(self._waiting)

    def close(self) -> None:
        """Finish queued work; waits for a comparison for at most 20 s."""
        self._background.stop()

    def report(self, max_error_rate: float, audit_rate: float, scorer: str) -> tuple[AuditStats, ...]:
        """Return the statistics of the namespaces in which scores of this scorer were judged last.

        Raises:
            StorageError: The database failed.
        """
        found = []
        for namespace, _ in self._table.namespaces(REPORTED, scorers=[scorer]):
            rows = [row for _, row in self._table.newest(WINDOW, namespace, scorer)]
            with self._lock:
                budget = self._state(AuditPolicy(namespace, max_error_rate, audit_rate, scorer)).budget
                found.append(audit_stats(namespace, rows, budget))
        return tuple(found)

    def _judge(self) -> bool:
        """Compare queued answers, for a while."""
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
                if clears != self._clears:  # it may be one of those that were deleted
                    continue
                row = replace(comparison.audit.row, right=right)
                self._rows.append(row)
            self._on_judgement(row)
        return len(self._waiting) > 0

    def _write(self) -> bool:
        with self._writing:
            rows, self._rows = list(self._rows), collections.deque()
            if not rows:
                return False
            try:
                self._table.add(rows)
            except StorageError as error:
                with self._lock:  # audits must go on although the database is away
                    for row in rows[self._known :]:
                        self._add_to_budgets(row, None)
                self._known = 0
                if isinstance(error, StorageUnavailable):
                    self._keep_for_later(rows)
                raise
            if self._known:
                with self._lock:
                    self._budgets.clear()  # they know these already: restore them from the database
                self._known = 0
        return False

    def _keep_for_later(self, rows: list[JudgementRow]) -> None:
        """Queue again, first, rows that the budgets know and the database does not."""
        for _ in rows[MAX_WAITING:]:
            self._faults.count("write judgements: too many wait", "dropped a judgement: too many wait")
        self._rows.extendleft(reversed(rows[-MAX_WAITING:]))
        self._known = min(len(rows), MAX_WAITING)

    def _learn(self) -> bool:
        """Add to the budgets what any process has written since the last time."""
        with self._lock:
            last = self._last
        if last is None:
            return False
        corrected = self._table.corrected()
        found = self._table.after(last, LEARN_BATCH)
        with self._lock:
            if corrected != self._corrected:
                self._corrected = corrected
                self._budgets.clear()  # restored when needed: a person has corrected judgements
            for number, row in found:
                self._add_to_budgets(row, number)
                self._last = number
        return len(found) == LEARN_BATCH

    def _add_to_budgets(self, row: JudgementRow, number: int | None) -> None:
        """Add a judgement, whose id is `number`, to the budgets that lack it. The caller holds the lock."""
        if row.source not in SOURCES:
            return
        for state in self._budgets:
            same = (state.policy.namespace, state.policy.scorer) == (row.namespace, row.scorer)
            if same and (number is None or number > state.last):
                state.budget.record(*to_judged(row))
                state.last = max(state.last, number or 0)


def _within(row: JudgementRow, namespace: str | None) -> bool:
    return namespace is None or is_in_namespace(row.namespace, namespace)
