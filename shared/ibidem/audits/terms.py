"""What a budget is kept to, what it is told, and what is compared for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING

from ibidem.audits.budget import Budget, Judged
from ibidem.request import Answer, digest
from ibidem.storage.rows import JudgementRow

if TYPE_CHECKING:
    from ibidem.audits.judging import Judge
    from ibidem.decision.scoring import Scorer

SOURCES = ("audit", "probe")  # judgements that a budget learns from


@dataclass(frozen=True, slots=True)
class Terms:
    """What a budget is kept to; caches of one place that differ in it have budgets of their own."""

    namespace: str
    max_wrong: float
    audit_rate: float


@dataclass(frozen=True, slots=True)
class Pending:
    """A question that was given to the model although an answer was stored; `row.right` is not known yet."""

    key: str
    row: JudgementRow
    cached: str
    judge: Judge


@dataclass(frozen=True, slots=True)
class Comparison:
    """A question that was given to the model, and its answer."""

    asked: Pending
    fresh: Answer

    def is_right(self) -> bool:
        """Whether the stored answer would have been right; raises what the judge raises."""
        if not self.fresh.semantic:  # the model called a tool, or the like; a text is no substitute
            return False
        return bool(self.asked.judge(self.asked.row.asked, self.asked.cached, self.fresh.text))


def scorer_name(embedder: str, scorer: Scorer) -> str:
    """A name for what gives the scores: the embedder of this fingerprint and the scorer with its weights."""
    kind = type(scorer).__name__
    return digest(embedder, kind, repr(scorer) if is_dataclass(scorer) else "")


def resumed(terms: Terms, rows: Iterable[JudgementRow]) -> Budget:
    """The budget that follows from these judgements, oldest first."""
    known = (judged(row) for row in rows if row.source in SOURCES)
    return Budget.resumed(known, max_wrong=terms.max_wrong, audit_rate=terms.audit_rate)


def judged(row: JudgementRow) -> Judged:
    """A judgement as a budget records it."""
    return row.score, row.right, row.source == "audit"
