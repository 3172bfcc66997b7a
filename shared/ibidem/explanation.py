"""Why a request would be answered from the cache, or would not: the steps of a lookup, with figures.

Nothing is stored, logged, audited or refreshed on the way, and no language model is asked.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ibidem.errors import IndexUnavailable
from ibidem.matching.cross_encoder import CrossEncoderScorer
from ibidem.matching.learned import LearnedScorer
from ibidem.matching.pair_model import PairModel
from ibidem.matching.policy import MAX_CANDIDATES, DocumentPolicy, Policy, Strictness, Verdict
from ibidem.matching.scorers import Candidate, CosineScorer, Verifier
from ibidem.pipeline import NOTHING_NEAR, LookupPipeline, is_bypassed, policy_of
from ibidem.scope import BYPASSED
from ibidem.types import ANY_DOCUMENTS, Entry, Request, Tier, Vector, cosine, storable, vetted_key

if TYPE_CHECKING:
    from ibidem.audits.auditor import Auditor
    from ibidem.index.search import SemanticIndex
    from ibidem.lifecycle.rules import Admission
    from ibidem.runtime import Runtime
    from ibidem.storage.entries import StoredQuestion

SCANNED = 10_000  # newest questions of a namespace among which those of other scopes are looked for
ELSEWHERE = 3  # questions of other scopes that are shown
UNSCORED = -1.0  # the score of a candidate before
SHORT = 160  # characters of a stored question in a step
DECIDERS: dict[type[object], str] = {
    PairModel: "the pair model",
    LearnedScorer: "the rule without a model",
    CosineScorer: "the cosine",
    CrossEncoderScorer: "your cross-encoder",
}
REASONS = {
    "": "sure enough",
    "below_threshold": "not sure enough",
    "below_budget": "below what the audits of this namespace allow",
    "not_scored": "not read, as nearer ones are",
    "expired": "expired",
    "documents_changed": "other documents",
}
NOTHING = {
    None: "This scope holds no answers yet.",
    False: "The answers of this scope are for identical requests only.",
    True: "This scope holds no question near enough to be looked at.",
}
UNCOMPARED = {
    "question_unknown": "the question is not known apart from the rest of the prompt",
    "question_private": "`redact` would change the question",
    "question_too_long": "the question is longer than the embedder reads",
    "question_not_covered": "the question is in a language or in letters that the embedder does not know",
    "question_hides_text": "the question holds characters that nobody sees",
}


@dataclass(frozen=True, slots=True)
class DocumentChange:
    """A document in which a request differs from a stored answer.

    Attributes:
        id: Of the document.
        source: Id of the file, or the like, that it is a part of; "" if unknown.
        change: `missing` in the request; `changed`, if it is there with another text; `added` to the request.
    """

    id: str
    source: str
    change: Literal["missing", "changed", "added"]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored question near the one asked, and why its answer would not be repeated.

    Attributes:
        question: The stored question.
        entry_id: Id of the entry.
        similarity: The cosine of the two questions.
        score: What is compared with the threshold; None where a verifier of your own was not asked.
        reason: Why the answer would not be repeated, as of a `Miss`, or `not_scored`, as the verifier reads
            the nearest only; "" if it would.
        documents: Those that differ, if the reason is `documents_changed`.
        namespace: Of the entry.
        scopes: Of how many scopes it is, where those of several are looked at.
    """

    question: str
    entry_id: str
    similarity: float
    score: float | None
    reason: str
    documents: tuple[DocumentChange, ...] = ()
    namespace: str = ""
    scopes: int = 1

    def __str__(self) -> str:
        short = self.question if len(self.question) <= SHORT else f"{self.question[:SHORT]}..."
        scored = "" if self.score is None else f", score {self.score:.4f}"
        scopes = f", in {self.scopes:,} scopes" if self.scopes > 1 else ""
        figures = f"cosine {self.similarity:.4f}{scored}"
        return f"{short!r} ({self.entry_id[:8]}{scopes}): {figures}: {meaning_of(self)}"


def meaning_of(one: Neighbour) -> str:
    """Say why the answer to a neighbour would not be repeated, or that it would."""
    if one.reason == "below_threshold" and one.score is None:
        return "too far off to be scored"
    changes = ", ".join(f"{change.id} {change.change}" for change in one.documents)
    return REASONS.get(one.reason, one.reason) + (f": {changes}" if changes else "")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a lookup would do with a request now, and why; as a `str` the steps, a line each.

    Attributes:
        question: The question asked.
        tier: How the answer would be found, as of a `Hit`; None if it would not.
        reason: Why there would be none, as of a `Miss`; "" if there would. `scope_unknown` where a question
            alone is explained. Audits draw by chance: what would be a hit may be an audit instead.
        entry_id: Id of the entry whose answer would be repeated.
        threshold: The least score that is served, infinite while audits serve nothing; None if the question
            is not compared by meaning.
        decided_by: What gives the scores; "" if the question is not compared by meaning.
        nearest: The nearest stored questions of its scope, the most similar first; of a question alone, those
            of all scopes.
        elsewhere: Where the scope holds nothing near enough: nearer ones of the same namespace in other
            scopes, whatever their documents.
        steps: The steps as sentences.
    """

    question: str
    tier: Tier | None = None
    reason: str = ""
    entry_id: str | None = None
    threshold: float | None = None
    decided_by: str = ""
    nearest: tuple[Neighbour, ...] = ()
    elsewhere: tuple[Neighbour, ...] = ()
    steps: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.tier is not None

    def __str__(self) -> str:
        return "\n".join(self.steps)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Candidates with their scores, the most similar first, and what a lookup makes of them."""

    verifier: Verifier
    policy: Policy
    verdict: Verdict
    candidates: list[Candidate]


class Explainer:
    """Explains lookups of one cache. A failure is told as the lookup tells it, and in what way it failed.

    Args:
        runtime: Database and vectors.
        strictness: How sure the cache must be.
        auditor: Knows which scores are served; None for no audits.
        admission: Knows which questions are private.
        lookups: The lookups explained.
    """

    def __init__(
        self,
        runtime: Runtime,
        strictness: Strictness,
        auditor: Auditor | None,
        admission: Admission,
        lookups: LookupPipeline,
    ) -> None:
        self._runtime, self._strictness, self._auditor = runtime, strictness, auditor
        self._admission, self._lookups = admission, lookups

    def of_request(self, request: Request, max_age: float | None = None) -> Explanation:
        """Explain a lookup of a request; `max_age` in seconds, None for that of its scope."""
        if is_bypassed(request):
            return Explanation(
                request.question, reason=BYPASSED, steps=("Its scope keeps it from the cache.",)
            )
        if max_age is None and request.scope_context is not None:
            max_age = request.scope_context.max_age
        return _told(request.question, lambda: self._of_request(request, self._runtime.clock(), max_age))

    def of_question(self, question: str, namespace: str | None = None) -> Explanation:
        """Explain what a question alone is near to, in all scopes of one namespace, or of all."""
        request = Request(question, namespace=namespace or "")
        return _told(question, lambda: self._of_question(request, namespace, self._runtime.clock()))

    def _refusal(self, index: SemanticIndex, question: str) -> str | None:
        """Return why a question must not be compared by meaning, or None."""
        private = self._admission.is_private(question)
        return "question_private" if private else index.embedder.refusal(question)

    def _of_request(self, request: Request, now: float, max_age: float | None) -> Explanation:
        """Follow the steps of `LookupPipeline.run`."""
        told = Explanation(request.question)
        # 1. The answer to the identical request.
        if not storable(request.namespace):
            return replace(told, reason="empty", steps=("No database can hold the name of the namespace.",))
        entries = self._runtime.store.entries
        identical, vetted = entries.get(request.key), entries.get(vetted_key(request))
        for one in (identical, vetted):
            if one is not None and self._lookups.would_serve(one, now, max_age):
                step = f"An answer to the identical request is stored ({_age(one, now)}): it is repeated."
                return replace(told, tier="exact", entry_id=one.id, steps=(step,))
        said = "No answer to the identical request is stored."
        if identical is not None:
            said = f"The answer to the identical request is expired ({_age(identical, now)})."
        told = replace(told, steps=(said,))
        # 2. Can the question be compared by meaning?
        if not request.semantic:
            return _uncompared(told, "question_unknown", "" if identical is None else "expired")
        index = self._runtime.semantic_index
        if reason := self._refusal(index, request.question):
            return _uncompared(told, reason)
        # 3. and 4. Which of the nearest means the same, and may it be served?
        found = self._compared(told, index, request, now, max_age)
        if found.tier or found.reason in ("below_budget", "expired"):
            return found
        # 5. Why not?
        if not found.reason:
            kind = entries.kind_in_scope(request.namespace, request.scope_digest)
            found = replace(found, reason=NOTHING_NEAR[kind], steps=(*found.steps, NOTHING[kind]))
        if found.reason in NOTHING_NEAR.values():
            found = self._with_other_scopes(found, index, request, now)
        return found if identical is None else replace(found, reason="expired")

    def _of_question(self, request: Request, namespace: str | None, now: float) -> Explanation:
        """Compare with the stored questions of all scopes."""
        told, index = Explanation(request.question), self._runtime.semantic_index
        if reason := self._refusal(index, request.question):
            return _uncompared(told, reason)
        stored = self._newest(index, namespace)
        verifier, least, nearest = self._anywhere(index, request, stored, MAX_CANDIDATES, now)
        where = "in all namespaces" if namespace is None else f"in the namespace {namespace!r}"
        counted = (
            f"{_counted(len(stored), 'stored question')} in {_counted(_scopes(stored), 'scope')} {where}"
        )
        steps = (
            f"Compared with {'the newest ' if len(stored) == SCANNED else ''}{counted}.",
            "A program compares with those of its own scope, and documents, only.",
        )
        told = replace(told, reason="scope_unknown" if nearest else "empty", steps=steps)
        return _compared_with(told, verifier, least, nearest)

    def _compared(
        self, told: Explanation, index: SemanticIndex, request: Request, now: float, max_age: float | None
    ) -> Explanation:
        """Add the nearest questions of the scope, and what becomes of them; no reason if there are none."""
        alive, expired = list[Candidate](), list[Candidate]()
        for one in self._lookups.near(index, request):
            (alive if self._lookups.is_alive(one.entry, now, max_age) else expired).append(one)
        judged = self._judged(index, request, alive, expired)
        least, verdict = self._least(judged, request.namespace), judged.verdict
        nearest = tuple(
            _neighbour(one, request, judged, least, self._lookups.would_serve(one.entry, now, max_age))
            for one in judged.candidates
        )
        told = _compared_with(told, judged.verifier, least, nearest)
        if (best := verdict.chosen) is None:
            return replace(told, reason=verdict.reason if verdict.nearest else "")
        if best.score < least:
            return replace(told, reason="below_budget")
        if not self._lookups.would_serve(best.entry, now, max_age):
            return replace(told, reason="expired")
        return replace(told, tier="semantic", entry_id=best.entry.id)

    def _with_other_scopes(
        self, told: Explanation, index: SemanticIndex, request: Request, now: float
    ) -> Explanation:
        """Add the nearest questions of the same namespace in other scopes."""
        stored = self._newest(index, request.namespace)
        others = [one for one in stored if one.scope != request.scope_digest]
        if not others:
            return replace(told, steps=(*told.steps, "No other scope of this namespace holds a question."))
        _, _, found = self._anywhere(index, request, others, ELSEWHERE, now)
        here = told.nearest[0].similarity if told.nearest else -1.0
        nearer = tuple(one for one in found if one.similarity > here)
        said = f"This namespace has questions in {_counted(_scopes(others), 'other scope')}"
        if nearer and nearer[0].question == request.question:
            scopes = _counted(nearer[0].scopes, "other scope")
            said = f"The same question is stored in {scopes} of this namespace: something else differs "
            said += "(system prompt, history, tools, model or parameters):"
        else:
            said += "; the nearest there:" if nearer else ", but none that is nearer."
        return replace(told, elsewhere=nearer, steps=(*told.steps, said, *map(str, nearer)))

    def _newest(self, index: SemanticIndex, namespace: str | None) -> list[StoredQuestion]:
        """Read the newest questions of a namespace, or of all, that have a vector."""
        stored = self._runtime.store.entries.newest_questions(SCANNED, index.fingerprint, namespace)
        return [one for one in stored if one.vector is not None]

    def _anywhere(
        self, index: SemanticIndex, request: Request, stored: Iterable[StoredQuestion], most: int, now: float
    ) -> tuple[Verifier, float, tuple[Neighbour, ...]]:
        """Compare with stored questions of any scope, each wording once, whatever their documents."""
        vector = index.embedder.vector_of(request.question)
        wordings: dict[tuple[str, str], list[StoredQuestion]] = {}
        vectors: dict[str, Vector] = {}  # by the id of the newest entry of each wording
        for row in stored:
            if row.vector is not None and row.vector.shape == vector.shape:
                same = wordings.setdefault((row.namespace, row.question), [])
                same.append(row)
                vectors.setdefault(same[0].id, row.vector)
        scopes = {same[0].id: _scopes(same) for same in wordings.values()}
        cosines = {id_: cosine(vector, one) for id_, one in vectors.items()}
        ids = heapq.nlargest(most, cosines, key=cosines.__getitem__)
        candidates = [
            Candidate(
                replace(entry, documents=ANY_DOCUMENTS),
                cosines[entry.id],
                vectors=(vector, vectors[entry.id]),
            )
            for entry in self._runtime.store.entries.of_ids(ids)
        ]
        judged, nearest = self._judged(index, request, candidates), []
        for one in judged.candidates:
            least = self._least(judged, one.entry.namespace)
            served = self._lookups.would_serve(one.entry, now, None)
            found = _neighbour(one, request, judged, least, served)
            nearest.append(replace(found, scopes=scopes[one.entry.id]))
        return judged.verifier, self._least(judged, request.namespace), tuple(nearest)

    def _judged(
        self,
        index: SemanticIndex,
        request: Request,
        alive: Iterable[Candidate],
        expired: Iterable[Candidate] = (),
    ) -> _Judged:
        """Judge as a lookup does; what it does not score is scored too, where that takes milliseconds."""
        nearest = _nearest(alive)
        verifier, verdict = self._lookups.decide(index, request, nearest)
        _, policy = policy_of(verifier, index, self._strictness)
        scores = {one.entry.id: one.score for one in verdict.scored}
        shown = sorted([*nearest, *_nearest(expired)], key=lambda one: -one.similarity)
        if verifier.name in index.scorers:  # not a verifier of the user's, which may ask a service
            others = [one for one in shown if one.entry.id not in scores]
            said = verifier.verify(request.question, others) if others else ()
            scores |= {one.entry.id: score for one, score in zip(others, said, strict=True)}
        candidates = [replace(one, score=scores.get(one.entry.id, one.score)) for one in shown]
        return _Judged(verifier, policy, verdict, candidates)

    def _least(self, judged: _Judged, namespace: str) -> float:
        """Return the least score that is served in a namespace now."""
        least = judged.policy.threshold
        return (
            max(least, self._auditor.threshold(namespace, judged.verifier.name)) if self._auditor else least
        )


def _told(question: str, explain: Callable[[], Explanation]) -> Explanation:
    """Explain; a failure is told as a lookup tells it."""
    try:
        return explain()
    except IndexUnavailable as error:
        return Explanation(
            question, reason="no_index", steps=(f"The vector index cannot be searched: {error}",)
        )
    except Exception as error:
        return Explanation(question, reason="error", steps=(f"It fails: {type(error).__name__}: {error}",))


def _neighbour(one: Candidate, request: Request, judged: _Judged, least: float, served: bool) -> Neighbour:
    """Describe a candidate; `served` says whether its age allows it to be served."""
    entry, verdict = one.entry, judged.verdict
    reason = next((why for refused, why in verdict.refused if refused.entry.id == entry.id), "")
    if not reason and not any(scored.entry.id == entry.id for scored in verdict.scored):
        reason = "not_scored" if served else "expired"
    elif not reason and one.score < least:
        reason = "below_threshold" if one.score < judged.policy.threshold else "below_budget"
    elif not reason and not served:
        reason = "expired"
    changes: tuple[DocumentChange, ...] = ()
    if reason == "documents_changed":
        changes = _changes(request, entry, judged.policy.document_policy)
    score = one.score if one.score != UNSCORED else None
    return Neighbour(entry.question or "", entry.id, one.similarity, score, reason, changes, entry.namespace)


def _changes(request: Request, entry: Entry, document_policy: DocumentPolicy) -> tuple[DocumentChange, ...]:
    """List the documents because of which the stored answer is refused."""
    asked = {document.digest for document in request.documents}
    names, known = {one.id for one in request.documents}, {source.digest for source in entry.sources}
    supporting = document_policy == "supporting" and bool(entry.evidence)  # else all of them count
    gone = [one for one in entry.sources if one.digest not in asked and (one.supports or not supporting)]
    found = [DocumentChange(one.id, one.source, "changed" if one.id in names else "missing") for one in gone]
    if not supporting:
        told = {one.id for one in gone}
        new = [one for one in request.documents if one.digest not in known and one.id not in told]
        found += [DocumentChange(one.id, one.source, "added") for one in new]
    return tuple(found)


def _nearest(candidates: Iterable[Candidate]) -> list[Candidate]:
    return heapq.nlargest(MAX_CANDIDATES, candidates, key=lambda one: one.similarity)


def _scopes(stored: Iterable[StoredQuestion]) -> int:
    return len({(one.namespace, one.scope) for one in stored})


def _uncompared(told: Explanation, why: str, reason: str = "") -> Explanation:
    """End an explanation, as the question is not compared by meaning; `reason` is that of the lookup."""
    step = f"It cannot be compared by meaning: {UNCOMPARED.get(why, why)}."
    return replace(told, reason=reason or why, steps=(*told.steps, step))


def _name(verifier: Verifier) -> str:
    return DECIDERS.get(type(verifier), "your verifier")


def _compared_with(
    told: Explanation, verifier: Verifier, least: float, nearest: tuple[Neighbour, ...]
) -> Explanation:
    """Add what decides, from which score on, and the nearest questions."""
    step = f"Compared by meaning: {_name(verifier)} decides, from a score of {least:.4f} on."
    if math.isinf(least):
        step = f"Compared by meaning: audits let nothing be served yet; {_name(verifier)} gives the scores."
    steps = (*told.steps, step, *map(str, nearest))
    return replace(told, threshold=least, decided_by=_name(verifier), nearest=nearest, steps=steps)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _age(entry: Entry, now: float) -> str:
    seconds = max(0.0, now - entry.created)
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"entry {entry.id[:8]}, {seconds / unit:.0f} {name} old"
    return f"entry {entry.id[:8]}, {seconds:.0f} s old"
