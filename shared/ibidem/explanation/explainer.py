"""Why a request would be answered from the cache, or would not: the steps of a lookup, with figures.

Nothing is stored, logged, audited or refreshed on the way, and no language model is asked.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ibidem.conversations import OtherConversation, is_bypassed
from ibidem.errors import IndexUnavailable
from ibidem.explanation.result import (
    SAME_PARTS,
    Explanation,
    Neighbour,
    differing,
    in_words,
)
from ibidem.matching.cross_encoder import CrossEncoderScorer
from ibidem.matching.documents import ADDED, CHANGED, DocumentChange, document_changes
from ibidem.matching.learned import LearnedScorer
from ibidem.matching.pair_model import SPARSE, PairModel
from ibidem.matching.policy import MAX_CANDIDATES, Policy, Verdict
from ibidem.matching.scorers import UNSCORED, Candidate, CosineScorer, Verifier
from ibidem.opinions.second_opinion import NO, UNSURE, YES
from ibidem.pipeline import NOTHING_NEAR, LookupPipeline
from ibidem.scope import BYPASSED
from ibidem.types import (
    ANY_DOCUMENTS,
    SECOND_OPINION,
    Entry,
    Hit,
    Request,
    Vector,
    cosine,
    differing_parts,
    read_parts,
    storable,
    vetted_key,
)

if TYPE_CHECKING:
    from ibidem.index.search import SemanticIndex
    from ibidem.lifecycle.rules import Admission
    from ibidem.opinions.second_opinion import SecondOpinion
    from ibidem.runtime import Runtime
    from ibidem.storage.entries import StoredQuestion

SCANNED = 10_000  # newest questions of a namespace among which those of other scopes are looked for
ELSEWHERE = 3  # questions of other scopes that are shown
DECIDERS: dict[type[object], str] = {
    PairModel: "the pair model",
    LearnedScorer: "the rule without a model",
    CosineScorer: "the cosine",
    CrossEncoderScorer: "your cross-encoder",
}
NOTHING = {
    None: "This scope holds no answers yet.",
    False: "The answers of this scope are for identical requests only.",
    True: "This scope holds no question near enough to be looked at.",
}
OPINIONS = {
    None: "a lookup would ask {} whether the answer serves",
    YES: "{} was asked, and said that the answer serves",
    NO: "{} was asked, and said that the answer does not serve",
    UNSURE: "{} was asked, and could not tell",
}


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
        admission: Knows which questions are private.
        lookups: The lookups explained.
    """

    def __init__(self, runtime: Runtime, admission: Admission, lookups: LookupPipeline) -> None:
        self._runtime, self._admission, self._lookups = runtime, admission, lookups

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

    def hit_of(self, found: Explanation) -> Hit | None:
        """Return the hit that was explained; None if there was none, or its entry was just deleted."""
        entry = self._runtime.store.entries.get(found.entry_id) if found.tier and found.entry_id else None
        if entry is None or found.tier is None:
            return None
        known = next((one for one in found.nearest if one.entry_id == entry.id), None)
        candidate = Candidate(entry, known.similarity if known else 1.0)
        if known is not None and known.score is not None:
            candidate = replace(candidate, score=known.score)
        hit = self._lookups.hit_of(candidate, found.tier, self._runtime.clock(), found.threshold)
        doubted = found.tier == "semantic" and candidate.score < (found.threshold or 0.0)
        return replace(hit, second_opinion=doubted)

    def _refusal(self, index: SemanticIndex, question: str) -> str | None:
        """Return why a question must not be compared by meaning, or None."""
        private = self._admission.is_private(question)
        return "question_private" if private else index.embedder.refusal(question)

    def _of_request(self, request: Request, now: float, max_age: float | None) -> Explanation:
        """Follow the steps of `LookupPipeline.run`."""
        told = Explanation(request.question, steps=_turns(request))
        # 1. The answer to the identical request.
        if not storable(request.namespace):
            return _with_step(told, "No database can hold the name of the namespace.", reason="empty")
        entries = self._runtime.store.entries
        identical, vetted = entries.get_both(request.key, vetted_key(request))
        for one in (identical, vetted):
            if one is not None and self._lookups.would_serve(one, now, max_age):
                step = f"An answer to the identical request is stored ({_age(one, now)}): it is repeated."
                return _with_step(told, step, tier="exact", entry_id=one.id)
        said = "No answer to the identical request is stored."
        if identical is not None:
            said = f"The answer to the identical request is expired ({_age(identical, now)})."
        told = _with_step(told, said)
        # 2. Can the question be compared by meaning?
        if not request.semantic:
            return _uncompared(told, "question_unknown", "" if identical is None else "expired")
        index = self._runtime.semantic_index
        if reason := self._refusal(index, request.question):
            return _uncompared(told, reason)
        # 3. and 4. Which of the nearest means the same, and may it be served?
        found = self._compared(told, index, request, now, max_age)
        if found.tier or _is_final(found):
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
        """Add what becomes of the nearest questions; no reason if there are none."""
        near = self._lookups.near(index, request)
        here = self._compared_here(told, index, request, near.here, now, max_age)
        alive = [one for one in near.elsewhere if self._lookups.is_alive(one.entry, now, max_age)]
        if here.tier or not alive:
            return here
        found = self._lookups.other_conversation(index, request, alive, ask=not _is_final(here))
        return here if found is None else self._with_other_conversation(here, found, now, max_age)

    def _compared_here(
        self,
        told: Explanation,
        index: SemanticIndex,
        request: Request,
        near: Iterable[Candidate],
        now: float,
        max_age: float | None,
    ) -> Explanation:
        """Add the nearest questions of the scope, and what becomes of them; no reason if there are none."""
        alive, expired = list[Candidate](), list[Candidate]()
        for one in near:
            (alive if self._lookups.is_alive(one.entry, now, max_age) else expired).append(one)
        judged = self._judged(index, request, alive, expired)
        least, verdict = self._least(judged, request.namespace), judged.verdict
        nearest = tuple(
            _neighbour(one, request, judged, least, self._lookups.would_serve(one.entry, now, max_age))
            for one in judged.candidates
        )
        told = _compared_with(told, judged.verifier, least, nearest)
        opinion = self._lookups.second_opinion
        doubted = opinion and opinion.doubted(judged.verifier, verdict)
        if opinion and doubted and doubted.score < least:
            return _in_doubt(
                told, opinion, doubted, served=self._lookups.would_serve(doubted.entry, now, max_age)
            )
        if (best := verdict.chosen) is None:
            return replace(told, reason=verdict.reason if verdict.nearest else "")
        if best.score < least:
            return replace(told, reason="below_budget")
        if not self._lookups.would_serve(best.entry, now, max_age):
            return replace(told, reason="expired")
        return replace(told, tier="semantic", entry_id=best.entry.id)

    def _with_other_conversation(
        self, told: Explanation, found: OtherConversation, now: float, max_age: float | None
    ) -> Explanation:
        """Add the answer of another conversation, which means the same or may do so."""
        one, opinion = found.candidate, self._lookups.second_opinion
        served = self._lookups.would_serve(one.entry, now, max_age)
        shown = Neighbour(one.entry.question or "", one.entry.id, one.similarity, one.score, "")
        step = f"Nearest in another conversation: {shown}."
        told = replace(told, nearest=(*told.nearest, shown), steps=(*told.steps, step))
        if found.likeness == "same":
            return replace(told, tier="semantic", entry_id=one.entry.id, reason="") if served else told
        return told if opinion is None else _in_doubt(told, opinion, one, served=served, asked=found.asked)

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
        if nearer and nearer[0].question == request.question:
            said = _same_question(nearer[0])
        else:
            said = f"This namespace has questions in {_counted(_scopes(others), 'other scope')}"
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
        for row in stored:
            if row.vector is not None and row.vector.shape == vector.shape:
                wordings.setdefault((row.namespace, row.question), []).append(row)
        near = heapq.nlargest(most, wordings.values(), key=lambda same: _cosine(vector, same[0]))
        shown: dict[str, tuple[Vector, int, tuple[str, ...]]] = {}
        for same in near:  # of each wording the entry in the most similar scope
            row, differs = _like(request, same)
            if row.vector is not None:
                shown[row.id] = row.vector, _scopes(same), differs
        candidates = [
            Candidate(
                replace(entry, documents=ANY_DOCUMENTS),
                cosine(vector, shown[entry.id][0]),
                vectors=(vector, shown[entry.id][0]),
            )
            for entry in self._runtime.store.entries.of_ids(list(shown))
        ]
        judged, nearest = self._judged(index, request, candidates), []
        for one in judged.candidates:
            least = self._least(judged, one.entry.namespace)
            served = self._lookups.would_serve(one.entry, now, None)
            found = _neighbour(one, request, judged, least, served)
            _, scopes, differs = shown[one.entry.id]
            nearest.append(replace(found, scopes=scopes, differs=differs))
        return judged.verifier, self._least(judged, request.namespace), tuple(nearest)

    def _judged(
        self,
        index: SemanticIndex,
        request: Request,
        alive: Iterable[Candidate],
        expired: Iterable[Candidate] = (),
    ) -> _Judged:
        """Judge as a lookup does; what it could score and does not is scored too, where that is quick."""
        nearest = _nearest(alive)
        verifier, policy, verdict = self._lookups.decide(index, request, nearest)
        scores = {one.entry.id: one.score for one in verdict.scored}
        shown = sorted([*nearest, *_nearest(expired)], key=lambda one: -one.similarity)
        if verifier.name in index.scorers:  # not a verifier of the user's, which may ask a service
            far = {one.entry.id for one, why in verdict.refused if why == "below_threshold"}
            others = [one for one in shown if one.entry.id not in scores.keys() | far]
            said = verifier.verify(request.question, others) if others else ()
            scores |= {one.entry.id: score for one, score in zip(others, said, strict=True)}
        candidates = [replace(one, score=scores.get(one.entry.id, one.score)) for one in shown]
        return _Judged(verifier, policy, verdict, candidates)

    def _least(self, judged: _Judged, namespace: str) -> float:
        """Return the least score that is served in a namespace now."""
        return self._lookups.threshold_in(namespace, judged.verifier, judged.policy)


def _same_question(nearest: Neighbour) -> str:
    """Say that the question asked is stored in other scopes, and in what the most similar one differs."""
    said = f"The same question is stored in {_counted(nearest.scopes, 'other scope')} of this namespace"
    if known := differing(nearest.differs):
        return f"{said}; in the most similar one {known}:" if nearest.scopes > 1 else f"{said}: {known}:"
    return f"{said}: something else differs ({SAME_PARTS}; which of them is only known of scopes in parts):"


def _like(request: Request, same: Iterable[StoredQuestion]) -> tuple[StoredQuestion, tuple[str, ...]]:
    """Return the entry whose scope is most like that of the request, and the parts in which it differs."""
    found = [(one, differing_parts(request.scope_parts, read_parts(one.scope_parts))) for one in same]
    return min(found, key=lambda pair: len(pair[1]) or math.inf)  # none: they are not known


def _cosine(vector: Vector, stored: StoredQuestion) -> float:
    return -1.0 if stored.vector is None else cosine(vector, stored.vector)


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
    read = any(scored.entry.id == entry.id for scored in verdict.scored)  # by the lookup, and not only here
    if not reason and one.score != UNSCORED and one.score < least and (read or served):
        reason = "below_threshold" if one.score < judged.policy.threshold else "below_budget"
    elif not reason and not served:
        reason = "expired"
    elif not reason and not read:
        reason = "not_scored"
    changes: tuple[DocumentChange, ...] = ()
    if reason in (CHANGED, ADDED):
        policy = judged.policy
        changes = document_changes(request, entry, policy.document_policy, policy.new_documents, verdict.told)
    score = one.score if one.score != UNSCORED else None
    found = Neighbour(entry.question or "", entry.id, one.similarity, score, reason, changes, entry.namespace)
    counts = isinstance(judged.verifier, PairModel) and one.density > SPARSE
    return replace(found, density=one.density) if counts else found


def _nearest(candidates: Iterable[Candidate]) -> list[Candidate]:
    return heapq.nlargest(MAX_CANDIDATES, candidates, key=lambda one: one.similarity)


def _scopes(stored: Iterable[StoredQuestion]) -> int:
    return len({(one.namespace, one.scope) for one in stored})


def _is_final(told: Explanation) -> bool:
    """Return whether a lookup ends here, if no other conversation serves."""
    return told.reason.partition(":")[0] in ("below_budget", "expired", SECOND_OPINION)


def _turns(request: Request) -> tuple[str, ...]:
    """Say in a step how the earlier turns of a conversation count, if there are any."""
    history = request.history
    if history is None or not history.turns:
        return ()
    said = _counted(len(history.turns), "turn")
    if history.alone:
        return (f"The message stands alone: it is compared without the {said} before it.",)
    return (f"Compared as what follows the {said} before it.",)


def _with_step(told: Explanation, step: str, **changes: Any) -> Explanation:
    return replace(told, steps=(*told.steps, step), **changes)


def _uncompared(told: Explanation, why: str, reason: str = "") -> Explanation:
    """End an explanation, as the question is not compared by meaning; `reason` is that of the lookup."""
    step = f"It cannot be compared by meaning: {in_words(why)}."
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


def _in_doubt(
    told: Explanation, opinion: SecondOpinion, doubted: Candidate, *, served: bool, asked: str = ""
) -> Explanation:
    """Add what a small model said of a candidate; `served` says whether its age allows it to be served.

    `asked` is the conversation that it was asked about, if it was one.
    """
    said = opinion.remembered(doubted.entry, asked or told.question)
    step = f"In doubt about {doubted.entry.id[:8]}: {OPINIONS[said].format(opinion.name)}."
    told = replace(told, steps=(*told.steps, step))
    if said == YES and served:
        return replace(told, tier="semantic", entry_id=doubted.entry.id, reason="")
    outcome = SECOND_OPINION if said is None else f"{SECOND_OPINION}:{said}"
    return replace(told, reason="expired" if said == YES else outcome)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _age(entry: Entry, now: float) -> str:
    seconds = max(0.0, now - entry.created)
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"entry {entry.id[:8]}, {seconds / unit:.0f} {name} old"
    return f"entry {entry.id[:8]}, {seconds:.0f} s old"
