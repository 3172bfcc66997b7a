"""Audits: the model answers some questions that the cache could answer, and the answers are compared.

Each cache has an `Auditor`; the caches of one location share judgements and budgets (`ibidem.audits.ledger`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ibidem.active_model import read_promotion
from ibidem.audits.budget import WINDOW, AuditPolicy, Decision, PendingAudit, restore_budget
from ibidem.audits.judge import AnswerJudge
from ibidem.audits.ledger import REPORTED, AuditStats, JudgementLog, audit_stats
from ibidem.embedding import resolve_embedder
from ibidem.errors import EmbedderUnavailable
from ibidem.matching.shipped import rule_for, scorer_for
from ibidem.storage.logs import JudgementRow
from ibidem.types import Answer, Request

if TYPE_CHECKING:
    from ibidem.audits.judge import Compare
    from ibidem.embedding.base import Embedder
    from ibidem.matching.scorers import Candidate
    from ibidem.settings import Settings
    from ibidem.storage.store import Store


ASSUMED_RATE = 0.05  # audit rate of tools that read judgements, where the settings have none


class Auditor:
    """The audits of one cache.

    Args:
        log: The judgements of its location.
        max_error_rate: Accepted share of wrong hits by meaning.
        audit_rate: Share of the hits by meaning that are audited.
        compare: Compares a stored answer with the model's.
    """

    def __init__(
        self,
        log: JudgementLog,
        max_error_rate: float,
        audit_rate: float,
        compare: Compare,
    ) -> None:
        self._log, self._compare = log, compare
        self._max_error_rate, self._audit_rate = max_error_rate, audit_rate

    def decide(self, request: Request, candidate: Candidate, scorer: str, now: float) -> Decision:
        """Decide whether to serve a candidate, to which the verifier named `scorer` gave its score.

        An audit or a probe is pending until `record_answer`. Vetted answers are neither audited nor probed.

        Raises:
            StorageError: The judgements cannot be read.
        """
        policy = AuditPolicy(request.namespace, self._max_error_rate, self._audit_rate, scorer)
        if candidate.entry.pinned:  # that the model would say something else is no wrong hit
            return "serve" if candidate.score >= self._log.threshold(policy) else "refuse"
        decision = self._log.decide(policy, candidate.score)
        if decision in ("audit", "probe"):
            row = JudgementRow(
                at=now,
                namespace=request.namespace,
                scope=request.scope_digest,
                entry_id=candidate.entry.id,
                asked=request.question,
                stored=candidate.entry.question or "",
                similarity=candidate.similarity,
                score=candidate.score,
                scorer=scorer,
                right=False,
                source=decision,
            )
            self._log.await_answer(PendingAudit(request.key, row, candidate.entry.answer.text, self._compare))
        return decision

    def threshold(self, namespace: str, scorer: str) -> float:
        """Return the least score that is served in a namespace now, infinity while nothing is.

        Raises:
            StorageError: The judgements cannot be read.
        """
        return self._log.threshold(AuditPolicy(namespace, self._max_error_rate, self._audit_rate, scorer))

    def record_answer(self, request: Request, fresh: Answer | None) -> None:
        """Compare a pending audit with the model's answer, in the background; None cancels it."""
        self._log.record_answer(request.key, fresh)

    def report(self, scorer: str) -> tuple[AuditStats, ...]:
        """Return the statistics of the judgements of these scores; raises `StorageError`."""
        return self._log.report(self._max_error_rate, self._audit_rate, scorer)


def auditor_for(
    settings: Settings,
    compare: Compare | None,
    *,
    log: JudgementLog,
    store: Store,
    embedder: Embedder,
) -> Auditor | None:
    """Create the auditor of a cache with these settings; None if they ask for no audits."""
    if not settings.audit_rate:
        return None
    chosen = compare or AnswerJudge(_judging_embedder(settings, store, embedder))
    return Auditor(log, settings.max_error_rate, settings.audit_rate, chosen)


def _judging_embedder(settings: Settings, store: Store, embedder: Embedder) -> Embedder:
    """Return the default model where another was promoted: that one is tuned to questions only."""
    promotion = None if settings.embedder is not None else read_promotion(store)
    if promotion is not None and promotion.current.promoted:
        with contextlib.suppress(EmbedderUnavailable):  # then the promoted one must do
            return resolve_embedder(None)
    return embedder


def report_of(
    store: Store, max_error_rate: float, audit_rate: float, namespace: str | None = None
) -> tuple[AuditStats, ...]:
    """Return the statistics of a database as a cache that is opened now will see them.

    They cover the namespaces judged last, or one. Judgements of scores that no scorer gives any more, such as
    those that version 0.1 fitted, do not count.

    Raises:
        StorageError: The database failed.
    """
    table, found = store.judgements, []
    known = store.embedders.registered()
    promotion = read_promotion(store)
    scorers = list(dict.fromkeys(of(one).name for one in known for of in (scorer_for, rule_for)))
    scorers += sorted(promotion.verifiers) if promotion else []
    for name, scorer in table.namespaces(REPORTED, namespace, scorers or None):
        rows = [row for _, row in table.newest(WINDOW, name, scorer)]
        budget = restore_budget(AuditPolicy(name, max_error_rate, audit_rate, scorer), rows)
        found.append(audit_stats(name, rows, budget))
    return tuple(found)
