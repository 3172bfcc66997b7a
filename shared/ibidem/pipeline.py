"""The steps of a lookup and of a store, in order, and the wait for an identical request in between."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ibidem._util.concurrency import BoundedDict, ForkSafeLock, deadline, in_thread
from ibidem.conversations import Conversations, OtherConversation, is_bypassed, kept_turns, stands_alone
from ibidem.errors import CacheClosed
from ibidem.lifecycle.rules import Admission, Lifetime
from ibidem.lifecycle.told import Told
from ibidem.lifecycle.warming import DONE
from ibidem.matching.documents import NOTHING_TOLD, unknown_documents
from ibidem.matching.guards import GUARDS, NamedGuard
from ibidem.matching.pair_model import PairModelFailed
from ibidem.matching.policy import Policy, Strictness, Verdict, decide, least_cosine
from ibidem.matching.scorers import (
    NEIGHBOURS,
    UNSCORED,
    Candidate,
    CosineScorer,
    Vectors,
    Verifier,
    densities,
)
from ibidem.matching.shipped import Choice
from ibidem.matching.support import supporting
from ibidem.opinions.second_opinion import YES, Doubt
from ibidem.scope import freeze_scope
from ibidem.single_flight import Leader, Outcome, SingleFlight, Waiter, is_leading, set_leading
from ibidem.telemetry.telemetry import step
from ibidem.types import (
    ANY_DOCUMENTS,
    SECOND_OPINION,
    Answer,
    Entry,
    Hit,
    Miss,
    Rejected,
    Request,
    Source,
    Stored,
    Tier,
    Vector,
    cosine,
    parts_text,
    storable,
    vetted_key,
)

if TYPE_CHECKING:
    from ibidem.audits.auditor import Auditor
    from ibidem.examples.log import ExampleLog
    from ibidem.index.search import SemanticIndex
    from ibidem.opinions.second_opinion import SecondOpinion
    from ibidem.runtime import Runtime
    from ibidem.telemetry.telemetry import Telemetry


REFRESH_SECONDS = 60.0  # time for the caller that refreshes a stale answer, before another one does
REFRESHING = 10_000  # stale answers known to be refreshed at one time
# The reason of a miss without a candidate, by whether the scope has answers that are compared by meaning.
NOTHING_NEAR = {None: "empty", False: "answer_exact_only", True: "below_threshold"}


@dataclass(frozen=True, slots=True)
class Near:
    """Candidates near a question: those of its scope, and those of other conversations."""

    here: list[Candidate]
    elsewhere: list[Candidate]


class LookupPipeline:
    """Finds the answer to the identical request, or to a question with the same meaning.

    Args:
        runtime: Database and vectors.
        strictness: How sure the cache must be.
        auditor: Decides which candidates are served; None for no audits.
        lifetime: How long answers live.
        verifier: Scores candidates: the user's own, or which of those that come with Ibidem.
        guards: Refuse candidates whatever their score.
        second_opinion: Asked about candidates whose score leaves doubt; None to refuse them.
        is_private: Says which texts must not be embedded.
    """

    def __init__(
        self,
        runtime: Runtime,
        strictness: Strictness,
        auditor: Auditor | None,
        lifetime: Lifetime,
        verifier: Verifier | Choice = "default",
        guards: Sequence[NamedGuard] = GUARDS,
        second_opinion: SecondOpinion | None = None,
        is_private: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._runtime, self._strictness, self._auditor = runtime, strictness, auditor
        self._lifetime, self._verifier, self._guards = lifetime, verifier, guards
        self.second_opinion = second_opinion
        self.conversations = Conversations(runtime, self.decide, is_private)
        self._lock = ForkSafeLock()
        self._refreshing: BoundedDict[str, float] = BoundedDict(REFRESHING)  # until when, by entry

    def run(self, request: Request, now: float, max_age: float | None, private: bool) -> Hit | Miss:
        """Return the answer, or why there is none. Exceptions of storage, index and embedder pass through.

        Args:
            request: The request.
            now: Seconds since the epoch.
            max_age: Maximum age of the answer in seconds; None for its lifetime.
            private: Whether the question must not be embedded, and so not compared by meaning.
        """
        # 1. The answer to the identical request, or one that stands for itself, whatever was retrieved.
        if not storable(request.namespace):  # nothing can be stored there
            return Miss("empty")
        entries = self._runtime.store.entries
        identical, vetted = entries.get_both(request.key, vetted_key(request))
        for one in (identical, vetted):
            if one and (hit := self._serve(Candidate(one, 1.0), "exact", now, max_age, None)):
                return hit
        # 2. Can the question be compared by meaning?
        if not request.semantic:
            return Miss("question_unknown" if identical is None else "expired")
        index = self._runtime.semantic_index  # once: it may be swapped for that of another embedder
        reason = "question_private" if private else index.embedder.refusal(request.question)
        if reason:
            return Miss(reason)
        # 3. to 6. Does a near one mean the same, and may its answer be served?
        return self._by_meaning(index, request, identical, now, max_age)

    def _by_meaning(
        self, index: SemanticIndex, request: Request, expired: Entry | None, now: float, max_age: float | None
    ) -> Hit | Miss:
        """Serve what was answered to a question that means the same, or say why not."""
        # 3. Which of the nearest stored questions means the same, over the same documents?
        near = self.near(index, request)
        candidates = [one for one in near.here if self.is_alive(one.entry, now, max_age)]
        verifier, policy, verdict = self.decide(index, request, candidates)
        result = self._outcome(request, verifier, policy, verdict, now, max_age)
        # Or was it asked in another conversation, which means the same?
        if not isinstance(result, Hit) and near.elsewhere:
            elsewhere = [one for one in near.elsewhere if self.is_alive(one.entry, now, max_age)]
            found = self.other_conversation(index, request, elsewhere, ask=result is None)
            there = None if found is None else self._outcome_elsewhere(request, found, now, max_age)
            if isinstance(there, Hit) or result is None:
                result = there
        if result is not None:
            return result
        # 6. Why not?
        if expired is not None:  # the answer to the identical request
            return _miss("expired", Candidate(expired, 1.0))
        if verdict.nearest is not None:
            return _miss(verdict.reason, verdict.nearest, policy.threshold)
        kind = self._runtime.store.entries.kind_in_scope(request.namespace, request.scope_digest)
        return Miss(NOTHING_NEAR[kind])

    def _outcome(
        self,
        request: Request,
        verifier: Verifier,
        policy: Policy,
        verdict: Verdict,
        now: float,
        max_age: float | None,
    ) -> Hit | Miss | None:
        """Serve the chosen candidate, or a likely one, or say why it is not; None if there is neither."""
        # 4. May the answer be served, by the error budget and by its age?
        best, ruling = verdict.chosen, "refuse"
        if best is not None and self._auditor is not None:
            ruling = self._auditor.decide(request, best, verifier.name, now)
        elif best is not None:
            ruling = "serve"
        # 5. In doubt, what does a small model say? Where the large one is asked to compare, that is better.
        opinion = self.second_opinion if ruling == "refuse" else None
        doubted = None if opinion is None else opinion.doubted(verifier, verdict)
        if (found := best or doubted) is None:
            return None
        threshold = self.threshold_in(request.namespace, verifier, policy)
        if opinion is not None and doubted is not None:
            return self._ask(opinion, request, Doubt(doubted, verifier.name, threshold), now, max_age)
        refused = {"serve": "", "audit": "audit"}.get(ruling, "below_budget")
        hit = None if refused else self._serve(found, "semantic", now, max_age, threshold)
        return _miss(refused or "expired", found, threshold) if hit is None else hit

    def _ask(
        self, opinion: SecondOpinion, request: Request, doubt: Doubt, now: float, max_age: float | None
    ) -> Hit | Miss:
        """Serve a candidate if a small model says so."""
        with step("ibidem.second_opinion", "ibidem.second_opinion") as span:
            said = span.set_result(opinion.ask(request, doubt, now))
        if said != YES:
            return _miss(f"{SECOND_OPINION}:{said}", doubt.candidate, doubt.served_from)
        hit = self._serve(doubt.candidate, "semantic", now, max_age, doubt.served_from)
        if hit is None:
            return _miss("expired", doubt.candidate, doubt.served_from)
        return replace(hit, second_opinion=True)

    def other_conversation(
        self, index: SemanticIndex, request: Request, candidates: Sequence[Candidate], *, ask: bool = True
    ) -> OtherConversation | None:
        """Return an answer given in another conversation that serves, or may serve if one may `ask`.

        With audits there is none: they judge by the last question alone.
        """
        if self._auditor is not None or not candidates:
            return None
        verifier, policy = policy_of(self._verifier, index, self._strictness)
        asked_from, lowest = None, policy.threshold
        if ask and self.second_opinion is not None:
            asked_from = self.second_opinion.asked_from(verifier)
            lowest = min(lowest, asked_from)
        min_cosine = least_cosine(verifier, lowest)
        return self.conversations.find(index, request, candidates, min_cosine, asked_from)

    def _outcome_elsewhere(
        self, request: Request, found: OtherConversation, now: float, max_age: float | None
    ) -> Hit | Miss | None:
        """Serve what another conversation was answered, or say why not; a small model is asked in doubt."""
        threshold = self.threshold_in(request.namespace, found.verifier, found.policy)
        if found.likeness == "same":
            return self._serve(found.candidate, "semantic", now, max_age, threshold)
        if self.second_opinion is None:
            return None
        doubt = Doubt(found.candidate, found.verifier.name, threshold, found.stored, found.asked)
        return self._ask(self.second_opinion, request, doubt, now, max_age)

    def decide(
        self, index: SemanticIndex, request: Request, candidates: Sequence[Candidate]
    ) -> tuple[Verifier, Policy, Verdict]:
        """Decide by the cache's verifier; where the pair model fails, by the rule without it."""
        told = self._told(request, candidates)
        try:
            return self._decide(self._verifier, index, request, candidates, told)
        except PairModelFailed as error:
            self._runtime.faults.note("score candidates with the pair model", error)
        return self._decide("none", index, request, candidates, told)

    def _told(self, request: Request, candidates: Iterable[Candidate]) -> Told:
        """Return when the documents that a candidate does not know were told of; asks only if it matters."""
        if self._strictness.document_policy != "unchanged":
            return NOTHING_TOLD
        retrieved = {document.digest for document in request.documents}
        again = [one.entry for one in candidates if not one.entry.supporting.isdisjoint(retrieved)]
        unknown = {id(one): one for entry in again for one in unknown_documents(request, entry)}
        return self._runtime.store.told.of(unknown.values(), request.namespace) if unknown else NOTHING_TOLD

    def _decide(
        self,
        chosen: Verifier | Choice,
        index: SemanticIndex,
        request: Request,
        candidates: Sequence[Candidate],
        told: Told,
    ) -> tuple[Verifier, Policy, Verdict]:
        verifier, policy = policy_of(chosen, index, self._strictness)
        lowest = policy.threshold
        if self.second_opinion is not None:  # farther ones are looked at, too
            lowest = min(lowest, self.second_opinion.asked_from(verifier))
        min_cosine = least_cosine(verifier, lowest)
        verdict = decide(
            request, candidates, policy, verifier, guards=self._guards, min_cosine=min_cosine, told=told
        )
        return verifier, policy, verdict

    def threshold_in(self, namespace: str, verifier: Verifier, policy: Policy) -> float:
        """Return the least score that is served in a namespace now, infinite while audits serve nothing."""
        if self._auditor is None:
            return policy.threshold
        return max(policy.threshold, self._auditor.threshold(namespace, verifier.name))

    def refreshed(self, key: str) -> None:
        """Mark a stale answer as refreshed."""
        with self._lock:
            self._refreshing.pop(key)

    def near(self, index: SemanticIndex, request: Request) -> Near:
        """Embed the question, search the index, and read the entries found from the database.

        Expired ones are among them, the entry of the identical request is not.
        """
        history = request.history
        base = "" if history is None or history.words is None else history.base
        with step("ibidem.embed"):
            vector = index.embedder.vector_of(request.question)
        namespace, scope = request.namespace, request.scope_digest
        with step("ibidem.search"):
            points = index.vectors.nearest(namespace, scope, vector, NEIGHBOURS, base)
        with step("ibidem.confirm"):
            found = self._runtime.store.entries.near(
                points,
                namespace=namespace,
                scope=scope,
                embedder=index.fingerprint,
                documents=request.documents_digest,
                base=base,
            )
        compared = [
            (entry, cosine(vector, entry.vector), (vector, entry.vector))
            for entry in found
            if entry.vector is not None
            and entry.vector.shape == vector.shape
            and entry.id != request.key  # the identical request is looked up before
        ]
        split = ([one for one in compared if (one[0].scope == scope) is here] for here in (True, False))
        return Near(*map(_candidates, split))

    def is_alive(self, entry: Entry, now: float, max_age: float | None) -> bool:
        """Return whether an entry is not expired."""
        return self._lifetime.state(entry, now, max_age) != "expired"

    def would_serve(self, entry: Entry, now: float, max_age: float | None) -> bool:
        """Return whether the age of an entry lets its answer be served to this caller; refreshes nothing."""
        state = self._lifetime.state(entry, now, max_age)
        with self._lock:
            return state == "alive" or (state == "stale" and self._is_being_refreshed(entry))

    def _serve(
        self, candidate: Candidate, tier: Tier, now: float, max_age: float | None, threshold: float | None
    ) -> Hit | None:
        """Return the hit; None if the entry is expired, or stale and this caller is to refresh it."""
        entry = candidate.entry
        state = self._lifetime.state(entry, now, max_age)
        if state == "expired" or (state == "stale" and self._is_to_refresh(entry)):
            return None
        return self.hit_of(candidate, tier, now, threshold, stale=state == "stale")

    def hit_of(
        self, candidate: Candidate, tier: Tier, now: float, threshold: float | None, *, stale: bool = False
    ) -> Hit:
        """Return the hit on an entry, which may be served; `threshold` is the least score that is."""
        entry = candidate.entry
        return Hit(
            answer=entry.answer,
            entry_id=entry.id,
            tier=tier,
            similarity=candidate.similarity,
            score=candidate.score if tier == "semantic" else 1.0,
            question=entry.question,
            age=max(0.0, now - entry.created),
            stale=stale,
            place=self._runtime.cache_id,
            pinned=entry.pinned,
            threshold=threshold,
        )

    def _is_to_refresh(self, entry: Entry) -> bool:
        """Return whether this caller is to refresh the entry, as no other does."""
        with self._lock:
            if self._is_being_refreshed(entry):
                return False
            self._refreshing.put(entry.id, time.monotonic() + REFRESH_SECONDS)
            return True

    def _is_being_refreshed(self, entry: Entry) -> bool:
        return time.monotonic() < (self._refreshing.get(entry.id) or 0.0)


def _candidates(compared: Sequence[tuple[Entry, float, Vectors]]) -> list[Candidate]:
    """Return candidates of one kind, each with the density of the others around it."""
    near = densities([entry.question for entry, _, _ in compared], [near for _, near, _ in compared])
    return [
        Candidate(entry, similarity, vectors=vectors, density=density)
        for (entry, similarity, vectors), density in zip(compared, near, strict=True)
    ]


def _miss(reason: str, candidate: Candidate, threshold: float | None = None) -> Miss:
    """Return a miss with its candidate, and the least score that is served, if scores counted."""
    score = None if threshold is None or candidate.score == UNSCORED else candidate.score
    found = (candidate.entry.question, candidate.entry.id, candidate.similarity)
    return Miss(reason, *found, score=score, threshold=threshold)


def policy_of(
    chosen: Verifier | Choice, index: SemanticIndex, strictness: Strictness
) -> tuple[Verifier, Policy]:
    """Return what scores candidates with this index, and the policy for its scores."""
    verifier = verifier_of(chosen, index)
    return verifier, strictness.policy(verifier, index.fitted_thresholds(verifier))


def verifier_of(chosen: Verifier | Choice, index: SemanticIndex) -> Verifier:
    """Return what scores candidates with this index: a user's verifier, the pair model, or the rule."""
    if isinstance(chosen, str):
        return index.rule if chosen == "none" else index.scorer
    return chosen


class StorePipeline:
    """Stores the answer to a request.

    Args:
        runtime: Database and vectors.
        admission: What may be stored.
        lifetime: How long answers live.
        examples: Receives the stored answers as examples.
    """

    def __init__(
        self, runtime: Runtime, admission: Admission, lifetime: Lifetime, examples: ExampleLog
    ) -> None:
        self._runtime, self._admission, self._lifetime = runtime, admission, lifetime
        self._examples = examples

    def run(
        self, request: Request, answer: Answer, now: float, ttl: float | None, tags: tuple[str, ...]
    ) -> str | None:
        """Store the answer; return None, or why it is not stored. Errors of the database pass through."""
        # 1. May it be stored?
        if reason := self._admission.refusal(request, answer):
            return reason
        with deadline():
            return self._put(request, answer, now, ttl, tags)

    def _put(
        self, request: Request, answer: Answer, now: float, ttl: float | None, tags: tuple[str, ...]
    ) -> str | None:
        index = self._runtime.semantic_index  # once, as in a lookup
        entry = self._entry(index, request, answer, now, tags, self._lifetime.of(request.namespace, ttl))
        # 4. Store it, unless one of its documents was invalidated meanwhile: one transaction.
        if reason := self._runtime.put(entry, request.made, index, vetted_key(request)):
            return reason
        # 5. Keep it as an example, unless it is a part of a conversation that says nothing by itself.
        if request.example and stands_alone(request, answer):
            self._examples.of_entry(entry, answer, index.fingerprint)
        return None

    def pin(self, request: Request, answer: Answer, *, alone: bool) -> tuple[str, str]:
        """Store a given answer, which a person vouches for; return the id of its entry, and "" or why not.

        If it stands `alone` it is served whatever is retrieved, else over these documents. `DONE` if it is
        there already.
        """
        if self._admission.is_private(answer.text):
            return "", "private"
        index, now = self._runtime.semantic_index, self._runtime.clock()
        tags = () if request.scope_context is None else request.scope_context.tags
        entry = replace(self._entry(index, request, answer, now, tags, math.inf), pinned="warmed")
        if alone:
            entry = replace(entry, id=vetted_key(request), documents=ANY_DOCUMENTS, sources=())
        known = self._runtime.store.entries.get(entry.id)
        if known is not None and known.pinned and known.answer.text == answer.text:
            return entry.id, DONE
        other = request.key if alone else vetted_key(request)
        if reason := self._runtime.pin(entry, request.made, index, replaces=other):
            return "", reason
        if request.example:
            self._examples.of_entry(entry, answer, index.fingerprint)
        return entry.id, ""

    def _entry(
        self,
        index: SemanticIndex,
        request: Request,
        answer: Answer,
        now: float,
        tags: tuple[str, ...],
        life: float,
    ) -> Entry:
        # 2. Can the question be found by meaning, and in other conversations?
        readable = request.semantic and not self._admission.is_private(request.question)
        semantic, vector = self._embed(index, request) if readable and answer.semantic else (False, None)
        turns = kept_turns(request, self._admission.is_private) if semantic else ()
        # 3. Which documents does the answer rest on?
        documents = (*request.documents, *answer.documents)
        supports = self._supporting(index, request, answer)
        return Entry(
            id=request.key,
            namespace=request.namespace,
            scope=request.scope_digest,
            question=request.question if readable else None,
            documents=request.documents_digest,
            semantic=semantic,
            answer=answer,
            created=now,
            expires=self._lifetime.expires(life, now),
            ttl=None if math.isinf(life) else life,
            used=now,
            sources=tuple(Source(d.id, d.digest, d.digest in supports, d.source) for d in documents),
            tags=tags,
            scope_parts=parts_text(request.scope_parts),
            requested=request.made,
            base=request.history.base if request.history and turns else "",
            turns=turns,
            vector=vector,
        )

    def _supporting(self, index: SemanticIndex, request: Request, answer: Answer) -> frozenset[str]:
        """Return the digests of the documents that support the answer; by meaning only with our embedder."""
        documents = (*request.documents, *answer.documents)
        ours = request.documents and request.semantic and not isinstance(index.rule, CosineScorer)
        try:
            return supporting(
                answer.text, request.question, documents, index.embedder.embed if ours else None
            )
        except Exception as error:
            self._runtime.faults.note("find what supports an answer", error)
            return frozenset()

    def _embed(self, index: SemanticIndex, request: Request) -> tuple[bool, Vector | None]:
        """Return whether the question can be found by meaning, and its vector unless embedding failed."""
        try:
            if index.embedder.refusal(request.question) is not None:
                return False, None
            with step("ibidem.embed"):
                return True, index.embedder.vector_of(request.question)
        except Exception as error:  # store the answer nevertheless; the background embeds it later
            self._runtime.faults.note("embed a question", error)
            return True, None


@dataclass(frozen=True, slots=True)
class CacheSteps:
    """The steps of a cache that a `PendingRequest` takes one by one.

    Attributes:
        check: Raises if the cache was closed, or its argument is not a request.
        resolve: Returns a request in its conversation as it is stored.
        search: Looks up; a failure is a miss. Writes no log entry.
        log: Logs the result of a lookup.
        store: Stores an answer.
        telemetry: Starts spans.
        flights: The requests that others wait for.
        timeout: Seconds to wait for the answer to an identical request; 0 not to wait.
    """

    check: Callable[[Request], None]
    resolve: Callable[[Request], Request]
    search: Callable[[Request], Hit | Miss]
    log: Callable[[Request, Hit | Miss], None]
    store: Callable[[Request, Answer], Stored | Rejected]
    telemetry: Telemetry
    flights: SingleFlight
    timeout: float


class PendingRequest:
    """A request that is looked up, waits for an identical one, or leads: asks the model for all of them.

    Call `lookup` until there is a hit or `wait` returns False. Then ask the model, and end with `store`,
    `reject` or `abort`, as identical requests may be waiting. The request is logged once: the hit, or the
    last miss. A hit costs no more than a plain lookup.
    """

    __slots__ = ("_deadline", "_leader", "_miss", "_since", "_steps", "_timeout", "request")

    def __init__(self, steps: CacheSteps, request: Request) -> None:
        valid = isinstance(request, Request)  # the lookup refuses others
        if valid and request.scope_context is None:  # one of an adapter has a scope already
            request = freeze_scope(request)
        self.request = request
        self._steps = steps
        bypassed = valid and is_bypassed(request)
        self._timeout = 0.0 if bypassed else steps.timeout
        self._deadline: float | None = None  # of waiting; None before
        self._since = 0
        self._miss: Miss | None = None  # not logged yet
        self._leader: Leader | None = None

    def lookup(self, objection: Callable[[Hit], str] | None = None) -> Hit | None:
        """Return the hit, or None. A miss is not logged before it is known that waiting does not help.

        Args:
            objection: Returns why a hit must not be served, which makes it a miss with this reason; "" if it
                may.

        Raises:
            CacheClosed: The cache was closed.
        """
        with self._steps.telemetry.start_lookup(self.request) as span:
            result = self._search()
            if isinstance(result, Hit) and objection is not None and (reason := objection(result)):
                result = _refused(result, reason)
            span.set_result(result)
        return self._finish(result)

    async def alookup(self, objection: Callable[[Hit], Awaitable[str]]) -> Hit | None:
        """As `lookup`, for async code: the cache runs in a thread, `objection` in the event loop."""
        with self._steps.telemetry.start_lookup(self.request) as span:
            result = await in_thread(self._search)
            if isinstance(result, Hit) and (reason := await objection(result)):
                result = _refused(result, reason)
            span.set_result(result)
        return await in_thread(self._finish, result)

    def wait(self) -> bool:
        """After a miss, wait for an identical request. True: look up again. False: ask the model."""
        try:
            # In the thread of an event loop the leader may be a task, which could then never end.
            turn = self._join(may_wait=not _in_event_loop())
            while isinstance(turn, Future):
                try:
                    concurrent.futures.wait([turn], self._remaining())
                except BaseException:
                    turn.cancel()
                    raise
                turn = self._next_turn(turn)
            if turn is Outcome.STORED:
                return True
            self._lead(turn)
            self._log_miss()
        except BaseException:
            self.abort()
            raise
        return False

    async def await_(self) -> bool:
        """As `wait`, without a thread."""
        try:
            turn = self._join()
            while isinstance(turn, Future):
                try:
                    await asyncio.wait([asyncio.wrap_future(turn)], timeout=self._remaining())
                except BaseException:
                    turn.cancel()
                    raise
                turn = self._next_turn(turn)
            if turn is Outcome.STORED:
                return True
            self._lead(turn)
            if self._miss is not None:
                await in_thread(self._log_miss)
        except BaseException:
            self.abort()
            raise
        return False

    def store(self, answer: Answer) -> Stored | Rejected:
        """Store the model's answer; the waiting requests find it.

        Raises:
            CacheClosed: The cache was closed.
        """
        try:
            result = self._steps.store(self.request, answer)
        except BaseException:
            self.abort()
            raise
        if not isinstance(result, Stored) or result.entry_id != self.request.key:
            self.reject()  # those who wait would find nothing
        return result

    def reject(self) -> None:
        """End without storing, as an answer to this request is never stored: all waiting requests ask."""
        if self._leader is not None:
            self._leader.end(Outcome.REJECTED)

    def abort(self) -> None:
        """End without an answer, if not ended yet: one of the waiting requests asks."""
        if self._leader is not None:
            self._leader.end()

    def __enter__(self) -> PendingRequest:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()

    @property
    def leading(self) -> bool:
        """Whether other requests may be waiting for this one."""
        return self._leader is not None and not self._leader.ended

    def _search(self) -> Hit | Miss | None:
        """Look up; None if the cache was closed while this waited: the program goes on without it."""
        self._since, self._miss = self._steps.flights.completed, None
        try:
            self._steps.check(self.request)
            self.request = self._steps.resolve(self.request)
            return self._steps.search(self.request)
        except CacheClosed:
            if self._deadline is None:
                raise
            return None

    def _finish(self, result: Hit | Miss | None) -> Hit | None:
        if isinstance(result, Hit):
            self._log(result, "hit")
            return result
        self._miss = result
        if result is not None and not self._timeout:
            self._log_miss()
        return None

    def _join(self, *, may_wait: bool = True) -> Leader | Waiter | Outcome:
        if not self._timeout or self._miss is None:  # switched off, closed, or the hit was not used
            return Outcome.REJECTED
        now = time.monotonic()
        may_wait = may_wait and not is_leading() and (self._deadline is None or now < self._deadline)
        turn = self._steps.flights.join(self.request.key, self._since, self._timeout, may_wait=may_wait)
        if self._deadline is None and isinstance(turn, Future):
            self._deadline = now + self._timeout
        return turn

    def _next_turn(self, waiter: Waiter) -> Leader | Waiter | Outcome:
        """Return the leader's outcome; join again if it failed, or did not end in time."""
        if waiter.cancel() or (outcome := waiter.result()) is Outcome.FAILED:
            return self._join()
        return outcome

    def _remaining(self) -> float:
        return max(0.0, (self._deadline or 0.0) - time.monotonic())

    def _lead(self, turn: Leader | Outcome) -> None:
        if isinstance(turn, Leader):
            self._leader = turn
            set_leading(turn)

    def _log_miss(self) -> None:
        if self._miss is not None:
            late = self._deadline is not None and time.monotonic() >= self._deadline
            self._log(self._miss, "timeout" if late else "asked")

    def _log(self, result: Hit | Miss, outcome: str) -> None:
        self._miss = None
        if self._deadline is not None:
            self._steps.flights.count_wait(outcome)
        self._steps.log(self.request, result)


def _refused(hit: Hit, reason: str) -> Miss:
    scored = (None if hit.threshold is None else hit.score), hit.threshold
    return Miss(reason, hit.question, hit.entry_id, hit.similarity, hit.seconds, *scored)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
