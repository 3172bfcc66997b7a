"""Audits: some questions that the cache could answer go to the model, and the answers are compared.

`Auditor` is one cache's part of it; judgements and budgets are shared by
the caches of one place (`ibidem.audits.ledger`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ibidem.active_model import read_promotion
from ibidem.audits.budget import WINDOW, Pending, Ruling, Terms, resumed, scorer_name
from ibidem.audits.judge import AnswerJudge
from ibidem.audits.ledger import REPORTED, Ledger
from ibidem.embedding import resolve_embedder
from ibidem.errors import EmbedderUnavailable
from ibidem.matching.policy import scorer_for
from ibidem.stats import AuditStats, audit_stats
from ibidem.storage.logs import JudgementRow
from ibidem.types import Answer, Request

if TYPE_CHECKING:
    from ibidem.audits.judge import Judge
    from ibidem.embedding.base import Embedder
    from ibidem.matching.policy import Candidate, Scorer
    from ibidem.runtime import Runtime
    from ibidem.settings import Settings
    from ibidem.storage.store import Store


ASSUMED_RATE = 0.05  # of audits where the settings make none: those who look need not have it set


class Auditor:
    """The audits of one cache.

    Args:
        ledger: The judgements of its place.
        max_error_rate: Wrong answers per hit by meaning that are accepted.
        audit_rate: Share of the hits by meaning that are audited.
        judge: Compares a stored answer with the model's.
    """

    def __init__(self, ledger: Ledger, max_error_rate: float, audit_rate: float, judge: Judge) -> None:
        self._ledger, self._judge = ledger, judge
        self._max_error_rate, self._audit_rate = max_error_rate, audit_rate

    def rule(self, request: Request, candidate: Candidate, scorer: Scorer, now: float) -> Ruling:
        """Whether the candidate is served; if it is to be compared, the answer of the model is awaited.

        `scorer` gave the candidate its score.

        Raises:
            StorageError: The judgements cannot be read.
        """
        terms = Terms(request.namespace, self._max_error_rate, self._audit_rate)
        name = self._ledger.scorer
        ruling = self._ledger.rule(terms, candidate.score, scorer)
        if ruling in ("audit", "probe"):
            row = JudgementRow(
                at=now,
                namespace=request.namespace,
                scope=request.scope_digest,
                entry_id=candidate.entry.id,
                asked=request.question,
                stored=candidate.entry.question or "",
                similarity=candidate.similarity,
                score=candidate.score,
                scorer=name,
                right=False,
                source=ruling,
            )
            self._ledger.expect(Pending(request.key, row, candidate.entry.answer.text, self._judge))
        return ruling

    def compare(self, request: Request, fresh: Answer | None) -> None:
        """The model has answered the request; None if its answer is not worth keeping. Judged later."""
        self._ledger.compare(request.key, fresh)

    def report(self) -> tuple[AuditStats, ...]:
        """What the judgements say; raises `StorageError`."""
        return self._ledger.report(self._max_error_rate, self._audit_rate)


def auditor_for(runtime: Runtime, settings: Settings, judge: Judge | None) -> Auditor | None:
    """The auditor of a cache with these settings; None if it makes no audits."""
    if not settings.audit_rate:
        return None
    chosen = judge or AnswerJudge(_comparing(runtime, settings))
    return Auditor(runtime.ledger, settings.max_error_rate, settings.audit_rate, chosen)


def _comparing(runtime: Runtime, settings: Settings) -> Embedder:
    """What compares answers: the default model also where another was promoted, tuned to questions only."""
    promotion = None if settings.embedder is not None else read_promotion(runtime.store)
    if promotion is not None and promotion.current.promoted:
        with contextlib.suppress(EmbedderUnavailable):  # then the promoted one must do
            return resolve_embedder(None)
    return runtime.embedder


def report_of(
    store: Store, max_error_rate: float, audit_rate: float, namespace: str | None = None
) -> tuple[AuditStats, ...]:
    """What the judgements of a database say, as a cache that is opened now will see them.

    Of the namespaces judged last, or of one. Judgements of scores that nothing gives any more, such as those
    that version 0.1 fitted, say nothing.

    Raises:
        StorageError: The database failed.
    """
    table, found = store.judgements, []
    scorers = [scorer_name(one, scorer_for(one)) for one in store.embedders.registered()]
    for name, scorer in table.namespaces(REPORTED, namespace, scorers or None):
        rows = [row for _, row in table.newest(WINDOW, name, scorer)]
        budget = resumed(Terms(name, max_error_rate, audit_rate), rows)
        found.append(audit_stats(name, rows, budget.threshold, budget.alarms))
    return tuple(found)
