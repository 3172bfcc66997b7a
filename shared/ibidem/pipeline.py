"""The steps of a lookup and of a store, in order."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.deadline import deadline
from ibidem.lifecycle.rules import Admission, Lifetime
from ibidem.matching.guards import GUARDS, NamedGuard
from ibidem.matching.policy import Candidate, Policy, Verifier, decide, supporting
from ibidem.telemetry.telemetry import step
from ibidem.types import Answer, Entry, Hit, Miss, Request, Source, Tier, Vector, cosine, storable

if TYPE_CHECKING:
    from ibidem.audits.auditor import Auditor
    from ibidem.examples.log import ExampleLog
    from ibidem.index.search import SemanticIndex
    from ibidem.runtime import Runtime


NEIGHBOURS = 16  # candidates looked at; with the scope code the right one is nearly always the first
REFRESH_SECONDS = 60.0  # how long the caller that refreshes a stale answer is waited for before another does
REFRESHED = 10_000  # stale answers whose refreshing is remembered


class LookupPipeline:
    """Finds the answer to a request: that to the identical one, or to a question of the same meaning.

    Args:
        runtime: Database and vectors.
        policy: How sure the cache must be.
        auditor: Asked which candidates may be served; None for no audits.
        lifetime: How long answers are repeated.
        verifier: Scores candidates; None for the scorer of the embedder.
        guards: Refuse candidates whatever their score.
    """

    def __init__(
        self,
        runtime: Runtime,
        policy: Policy,
        auditor: Auditor | None,
        lifetime: Lifetime,
        verifier: Verifier | None = None,
        guards: Sequence[NamedGuard] = GUARDS,
    ) -> None:
        self._runtime, self._policy, self._auditor = runtime, policy, auditor
        self._lifetime, self._verifier, self._guards = lifetime, verifier, guards
        self._lock = ForkSafeLock()
        self._refreshing: BoundedDict[str, float] = BoundedDict(REFRESHED)  # until when, by entry

    def run(self, request: Request, now: float, max_age: float | None, private: bool) -> Hit | Miss:
        """Return the answer, or why there is none. Exceptions of storage, index and embedder pass through.

        Args:
            request: What is asked.
            now: Seconds since the epoch.
            max_age: The most seconds since the answer was stored; None for its lifetime.
            private: Whether the question must not be compared by meaning, as it must not be embedded.
        """
        # 1. The answer to the identical request.
        if not storable(request.namespace):  # nothing can be stored there
            return Miss("empty")
        identical = self._runtime.store.entries.get(request.key)
        if identical and (hit := self._serve(Candidate(identical, 1.0), "exact", now, max_age)):
            return hit
        # 2. Can the question be compared by meaning?
        if not request.semantic:
            return Miss("question_unknown" if identical is None else "expired")
        index = self._runtime.semantic_index  # once: all that follows is of one embedder
        reason = "question_private" if private else index.embedder.refusal(request.question)
        if reason:
            return Miss(reason)
        # 3. Which of the nearest stored questions means the same, over the same documents?
        candidates = self._candidates(index, request, now, max_age)
        policy, verifier = index.calibration.applied(self._policy), self._verifier or index.scorer
        verdict = decide(request, candidates, policy, verifier, guards=self._guards)
        # 4. May its answer be served, by the error budget and by its age?
        if (best := verdict.chosen) is not None:
            auditor = self._auditor
            ruling = "serve" if auditor is None else auditor.decide(request, best, verifier.name, now)
            if ruling != "serve":
                return _miss("audit" if ruling == "audit" else "below_budget", best)
            return self._serve(best, "semantic", now, max_age) or _miss("expired", best)
        # 5. Why not?
        if identical is not None:
            return _miss("expired", Candidate(identical, 1.0))
        if verdict.nearest is not None:
            return _miss(verdict.reason, verdict.nearest)
        kind = self._runtime.store.entries.kind_in_scope(request.namespace, request.scope_digest)
        return Miss({None: "empty", False: "answer_exact_only", True: "below_threshold"}[kind])

    def refreshed(self, key: str) -> None:
        """Note that the answer to the request of this key was stored anew."""
        with self._lock:
            self._refreshing.pop(key)

    def _candidates(
        self, index: SemanticIndex, request: Request, now: float, max_age: float | None
    ) -> list[Candidate]:
        """Embed the question, search the index, and read the entries found from the database."""
        with step("ibidem.embed"):
            vector = index.embedder.vector_of(request.question)
        namespace, scope = request.namespace, request.scope_digest
        with step("ibidem.search"):
            points = index.vectors.nearest(namespace, scope, vector, NEIGHBOURS)
        with step("ibidem.confirm"):
            found = self._runtime.store.entries.near(
                points,
                namespace=namespace,
                scope=scope,
                embedder=index.fingerprint,
                documents=request.documents_digest,
            )
        return [
            Candidate(entry, cosine(vector, entry.vector), vectors=(vector, entry.vector))
            for entry in found
            if entry.vector is not None
            and entry.vector.shape == vector.shape
            and entry.id != request.key  # the identical request was looked at before
            and self._lifetime.state(entry, now, max_age) != "expired"
        ]

    def _serve(self, candidate: Candidate, tier: Tier, now: float, max_age: float | None) -> Hit | None:
        """The hit, unless the entry is expired, or stale and the caller is the one to refresh it."""
        entry = candidate.entry
        state = self._lifetime.state(entry, now, max_age)
        if state == "expired" or (state == "stale" and self._is_to_refresh(entry)):
            return None
        return Hit(
            answer=entry.answer,
            entry_id=entry.id,
            tier=tier,
            similarity=candidate.similarity,
            score=candidate.score if tier == "semantic" else 1.0,
            question=entry.question,
            age=max(0.0, now - entry.created),
            stale=state == "stale",
        )

    def _is_to_refresh(self, entry: Entry) -> bool:
        """Whether nobody refreshes the entry yet; then the caller does."""
        now = time.monotonic()
        with self._lock:
            if now < (self._refreshing.get(entry.id) or 0.0):
                return False
            self._refreshing.put(entry.id, now + REFRESH_SECONDS)
            return True


def _miss(reason: str, candidate: Candidate) -> Miss:
    return Miss(reason, candidate.entry.question, candidate.entry.id, candidate.similarity)


class StorePipeline:
    """Stores the answer to a request.

    Args:
        runtime: Database and vectors.
        admission: What may be stored.
        lifetime: How long answers live.
        examples: Logs what is stored as an example too.
    """

    def __init__(
        self, runtime: Runtime, admission: Admission, lifetime: Lifetime, examples: ExampleLog
    ) -> None:
        self._runtime, self._admission, self._lifetime = runtime, admission, lifetime
        self._examples = examples

    def run(
        self, request: Request, answer: Answer, now: float, ttl: float | None, tags: tuple[str, ...]
    ) -> str | None:
        """Return why the answer is not stored, or None if it is. Exceptions of the database pass through."""
        # 1. May it be stored?
        if reason := self._admission.refusal(request, answer):
            return reason
        with deadline():
            return self._put(request, answer, now, ttl, tags)

    def _put(
        self, request: Request, answer: Answer, now: float, ttl: float | None, tags: tuple[str, ...]
    ) -> str | None:
        # 2. Can the question be found by meaning?
        readable = request.semantic and not self._admission.is_private(request.question)
        index = self._runtime.semantic_index  # once: the vector is of the embedder that it is stored for
        semantic, vector = self._embed(index, request) if readable and answer.semantic else (False, None)
        # 3. Which documents does the answer rest on, and how long does it live?
        evidence = supporting(answer.text, request.question, request.documents)
        life = self._lifetime.of(request.namespace, ttl)
        entry = Entry(
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
            sources=tuple(Source(d.id, d.digest, d.digest in evidence, d.source) for d in request.documents),
            tags=tags,
            vector=vector,
        )
        # 4. Store it, unless one of its documents was invalidated meanwhile: one transaction.
        if not self._runtime.put(entry, request.made, index):
            return "invalidated"
        # 5. It is an example, too.
        if request.example:
            self._examples.of_entry(entry, answer, index.fingerprint)
        return None

    def _embed(self, index: SemanticIndex, request: Request) -> tuple[bool, Vector | None]:
        """Whether the question can be found by meaning, and its vector, if it could be made now."""
        try:
            if index.embedder.refusal(request.question) is not None:
                return False, None
            with step("ibidem.embed"):
                return True, index.embedder.vector_of(request.question)
        except Exception as error:  # the answer is worth keeping; its vector is made later
            self._runtime.faults.note("embed a question", error)
            return True, None
