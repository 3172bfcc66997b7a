"""May a stored answer be repeated for this question? Pure: no clock, no I/O, no model."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from ibidem.decision.guards import vetoed_by
from ibidem.decision.scoring import CosineScorer, Scorer, Vectors
from ibidem.entry import Entry
from ibidem.request import Request

ContextRule = Literal["evidence", "same", "ignore"]
_COSINE = CosineScorer()
LOOKED_AT = 6  # candidates judged, the most similar ones: a judgement costs up to 0.2 ms


@dataclass(frozen=True, slots=True)
class Policy:
    """How sure the cache must be.

    Args:
        threshold: Least score of a candidate. A score reads like a cosine similarity: see
            `ibidem.decision.scoring`.
        context: Which documents must be the same. `same`: all of them; `evidence`: those that support the
            stored answer must be retrieved again, unchanged; `ignore`: none.
        max_wrong: The share of wrong hits that the threshold was chosen for; None if it was given.
    """

    threshold: float = 0.955
    context: ContextRule = "evidence"
    max_wrong: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored answer near the question asked: the cosine similarity of the two questions, and the score.

    `vectors` are the embeddings of the question asked and of the stored one, for a scorer that looks at them.
    """

    entry: Entry
    similarity: float
    score: float = -1.0
    vectors: Vectors | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`chosen` may be served; if None, `reason` says why `nearest`, the best candidate, may not.

    `best` is the candidate with the highest score that nothing but its score may speak against.
    """

    chosen: Candidate | None
    reason: str
    nearest: Candidate | None
    best: Candidate | None = None


def decide(
    request: Request,
    candidates: Iterable[Candidate],
    policy: Policy,
    scorer: Scorer = _COSINE,
    least: float | None = None,
) -> Verdict:
    """Choose the candidate with the highest score that nothing speaks against.

    The candidates are already confirmed by the truth: alive, same namespace and scope. Those whose cosine is
    below `least` are not looked at; by default those that cannot reach the threshold. The reason of a refusal
    is that of the most similar candidate.
    """
    floor = scorer.least_cosine(policy.threshold) if least is None else least
    nearby = heapq.nlargest(LOOKED_AT, candidates, key=lambda c: c.similarity)
    nearest: Candidate | None = None
    best: Candidate | None = None
    reason = "below_threshold"
    for candidate in nearby:
        scored, objection = _judged(request, candidate, policy, scorer, floor)
        if nearest is None:
            nearest, reason = scored, objection
        if not objection and (best is None or scored.score > best.score):
            best = scored
        if candidate.similarity < floor:
            break
    if best is not None and best.score >= policy.threshold:
        return Verdict(best, "", best, best)
    return Verdict(None, reason or "below_threshold", nearest, best)


def _judged(
    request: Request, candidate: Candidate, policy: Policy, scorer: Scorer, floor: float
) -> tuple[Candidate, str]:
    """The candidate with its score, and what speaks against it but the score; "" if nothing does."""
    entry = candidate.entry
    if entry.question is None or candidate.similarity < floor:
        return candidate, "below_threshold"
    if guard := vetoed_by(request.question, entry.question):
        return candidate, f"guard:{guard}"
    score = scorer.score(request.question, entry.question, candidate.similarity, candidate.vectors)
    scored = replace(candidate, score=score)
    return scored, "" if documents_agree(request, entry, policy.context) else "documents_changed"


def documents_agree(request: Request, entry: Entry, rule: ContextRule) -> bool:
    """Whether the documents of the request allow the stored answer under the context rule."""
    if rule == "ignore" or request.documents_digest == entry.documents:
        return True
    if rule == "same":
        return False
    evidence = entry.evidence
    return bool(evidence) and evidence <= {document.digest for document in request.documents}
