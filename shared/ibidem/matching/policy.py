"""Decide whether a stored answer may be repeated for a question. Pure: no clock, no I/O, no model."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from ibidem.lifecycle.told import Told
from ibidem.matching.documents import NOTHING_TOLD, DocumentPolicy, NewDocuments, document_objection
from ibidem.matching.fitted import SHIPPED, FittedThresholds
from ibidem.matching.guards import GUARDS, NamedGuard, failed_guard, where_read
from ibidem.matching.scorers import Candidate, CosineScorer, Scorer, Verifier
from ibidem.types import Document, Entry, Request

MAX_CANDIDATES = 6  # the most similar ones, which are judged: a rule scores one in up to 0.2 ms
# Cosine of the farthest candidates that a user's verifier sees: of those a little above it (to 0.85) 9 % are
# wrong on clinc150 and 21 % on banking77.
VERIFIED_FROM = 0.8
CERTAIN = 0.9  # score from which a verifier that reads candidates one by one reads no other
JUDGED_FROM = 0.5  # the least score of a user's verifier that audits look at


@dataclass(frozen=True, slots=True)
class Policy:
    """How sure the cache must be.

    Args:
        threshold: Least score of a candidate.
        document_policy: Which documents allow the stored answer (`ibidem.matching.documents`).
        new_documents: Whether `unchanged` refuses it where a passage is retrieved that was added since.
    """

    threshold: float
    document_policy: DocumentPolicy = "unchanged"
    new_documents: NewDocuments = "miss"


@dataclass(frozen=True, slots=True)
class Strictness:
    """How sure the settings want the cache to be, whatever scores its candidates.

    Args:
        max_error_rate: Accepted share of wrong hits.
        min_probability: Least score of a hit, where scores are probabilities; None for that which
            `max_error_rate` asks for.
        min_similarity: Likewise where the score is the cosine of an embedder that Ibidem does not know.
        audited: Whether an error budget decides, above the least score that is judged.
        document_policy: As in `Policy`.
        new_documents: As in `Policy`.
    """

    max_error_rate: float
    min_probability: float | None = None
    min_similarity: float | None = None
    audited: bool = False
    document_policy: DocumentPolicy = "unchanged"
    new_documents: NewDocuments = "miss"

    def given(self, verifier: Verifier) -> float | None:
        """Return the least score that was given for such a verifier, None if none was."""
        return self.min_similarity if isinstance(verifier, CosineScorer) else self.min_probability

    def is_by_rate(self, verifier: Verifier) -> bool:
        """Return whether `max_error_rate` chooses the threshold: none was given, and no budget decides."""
        return self.given(verifier) is None and not self.audited

    def policy(self, verifier: Verifier, fitted: FittedThresholds = SHIPPED) -> Policy:
        """Return the policy with these scores.

        Args:
            verifier: Gives the scores; a user's own needs audits, or a least score.
            fitted: Thresholds that labels of this place have moved.
        """
        threshold = self.given(verifier)
        if threshold is None and self.audited:
            threshold = getattr(verifier, "floor", JUDGED_FROM)
        if threshold is None:
            known = cast("Scorer", verifier).thresholds
            threshold = fitted.threshold(min(self.max_error_rate, known.highest), known)
        return Policy(threshold, self.document_policy, self.new_documents)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether `chosen` may be served; if None, `reason` says why `nearest`, the most similar, may not.

    `best` is the candidate with the highest score that is refused by nothing but its score. `scored` are all
    that have one, `refused` those that were refused whatever their score, each with the reason; `told` is
    when documents of the request were told of.
    """

    chosen: Candidate | None
    reason: str
    nearest: Candidate | None
    best: Candidate | None = None
    scored: Sequence[Candidate] = ()
    refused: Sequence[tuple[Candidate, str]] = ()
    told: Told = NOTHING_TOLD


def decide(
    request: Request,
    candidates: Iterable[Candidate],
    policy: Policy,
    verifier: Verifier,
    *,
    guards: Sequence[NamedGuard] = GUARDS,
    min_cosine: float | None = None,
    told: Told = NOTHING_TOLD,
) -> Verdict:
    """Choose the candidate with the highest score that neither guards nor documents refuse.

    The reason of a refusal is that of the most similar candidate.

    Args:
        request: The question asked.
        candidates: Confirmed by the database: alive, same namespace and scope.
        policy: How sure the cache must be.
        verifier: Scores the candidates.
        guards: Refuse candidates whatever their score.
        min_cosine: Leave out candidates below it; default: those that cannot reach the threshold.
        told: When documents of the request were told of.
    """
    if min_cosine is None:
        min_cosine = least_cosine(verifier, policy.threshold)
    nearby = heapq.nlargest(MAX_CANDIDATES, candidates, key=lambda c: c.similarity)
    if not nearby:
        return Verdict(None, "below_threshold", None)
    guards = guards_beside(verifier, guards)
    objections = [_objection(request, candidate, policy, min_cosine, guards, told) for candidate in nearby]
    allowed = [one for one, objection in zip(nearby, objections, strict=True) if not objection]
    refused = [(one, objection) for one, objection in zip(nearby, objections, strict=True) if objection]
    scored = _verified(request, allowed, verifier, policy.threshold) if allowed else []
    nearest = nearby[0] if objections[0] else scored[0]
    best = max(scored, key=lambda candidate: candidate.score, default=None)
    if best is not None and best.score >= policy.threshold:
        return Verdict(best, "", best, best, scored, refused, told)
    return Verdict(None, objections[0] or "below_threshold", nearest, best, scored, refused, told)


def guards_beside(verifier: object, guards: Sequence[NamedGuard] = GUARDS) -> Sequence[NamedGuard]:
    """Return those of the guards, or what they are weakened to, that pay beside a verifier."""
    return where_read(tuple(guards)) if getattr(verifier, "reads_both", False) else guards


def least_cosine(verifier: Verifier, threshold: float) -> float:
    """Return the cosine below which candidates are not looked at, as they cannot reach the threshold."""
    min_cosine: Callable[[float], float] | None = getattr(verifier, "min_cosine", None)
    return VERIFIED_FROM if min_cosine is None else min_cosine(threshold)


def _objection(
    request: Request,
    candidate: Candidate,
    policy: Policy,
    min_cosine: float,
    guards: Sequence[NamedGuard],
    told: Told,
) -> str:
    """Return the reason why the candidate may not be served, whatever its score; "" if there is none."""
    entry = candidate.entry
    if entry.question is None or candidate.similarity < min_cosine:
        return "below_threshold"
    if guard := failed_guard(request.question, entry.question, guards):
        return f"guard:{guard}"
    return document_objection(request, entry, policy.document_policy, policy.new_documents, told)


def _verified(
    request: Request, candidates: Sequence[Candidate], verifier: Verifier, threshold: float
) -> list[Candidate]:
    """Score the candidates in one batch; where each takes long (`most`), one by one until one is certain."""
    shown = candidates
    if request.documents:
        shown = [replace(candidate, documents=_shared(request, candidate.entry)) for candidate in candidates]
    most: int | None = getattr(verifier, "most", None)
    if most is None:
        scores = verifier.verify(request.question, shown)
        return [replace(one, score=score) for one, score in zip(shown, scores, strict=True)]
    scored: list[Candidate] = []
    for one in shown[:most]:
        scored += (replace(one, score=score) for score in verifier.verify(request.question, [one]))
        if scored[-1].score >= max(threshold, CERTAIN):
            break
    return scored


def _shared(request: Request, entry: Entry) -> tuple[Document, ...]:
    """Return the documents of the request that the stored answer was given with too."""
    if request.documents_digest == entry.documents:  # then the entry comes without its sources
        return request.documents
    known = {source.digest for source in entry.sources}
    return tuple(document for document in request.documents if document.digest in known)
