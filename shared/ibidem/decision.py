"""May a stored answer be repeated for this question? Pure: no clock, no I/O, no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ibidem.entry import Entry
from ibidem.guards import required_similarity, vetoed_by
from ibidem.request import Request

ContextRule = Literal["evidence", "same", "ignore"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How sure the cache must be.

    Args:
        threshold: Least cosine similarity of the two questions.
        context: Which documents must be the same. `same`: all of them; `evidence`: those that support the
            stored answer must be retrieved again, unchanged; `ignore`: none.
    """

    threshold: float = 0.95
    context: ContextRule = "evidence"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored answer near the question asked, with the cosine similarity of the two questions."""

    entry: Entry
    similarity: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`chosen` may be served; if None, `reason` says why `nearest`, the best candidate, may not."""

    chosen: Candidate | None
    reason: str
    nearest: Candidate | None


def decide(request: Request, candidates: Iterable[Candidate], policy: Policy) -> Verdict:
    """Choose the most similar candidate that nothing speaks against.

    The candidates are already confirmed by the truth: alive, same namespace and scope. The reason of a
    refusal is that of the most similar candidate.
    """
    nearest: Candidate | None = None
    reason = "below_threshold"
    for candidate in sorted(candidates, key=lambda c: c.similarity, reverse=True):
        objection = _objection(request, candidate, policy)
        if objection is None:
            return Verdict(candidate, "", candidate)
        if nearest is None:
            nearest, reason = candidate, objection
        if objection == "below_threshold":
            break
    return Verdict(None, reason, nearest)


def _objection(request: Request, candidate: Candidate, policy: Policy) -> str | None:
    entry, similarity = candidate.entry, candidate.similarity
    if entry.question is None or similarity < policy.threshold:
        return "below_threshold"
    if guard := vetoed_by(request.question, entry.question):
        return f"guard:{guard}"
    if similarity < required_similarity(request.question, entry.question, policy.threshold):
        return "guard:negation"
    if not documents_agree(request, entry, policy.context):
        return "documents_changed"
    return None


def documents_agree(request: Request, entry: Entry, rule: ContextRule) -> bool:
    """Whether the documents of the request allow the stored answer under the context rule."""
    if rule == "ignore" or request.documents_digest == entry.documents:
        return True
    if rule == "same":
        return False
    evidence = entry.evidence
    return bool(evidence) and evidence <= {document.digest for document in request.documents}
