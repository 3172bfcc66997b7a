"""The steps of a lookup and of a store, in order, and the wait for an identical request between them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ibidem._util.concurrency import BoundedDict, ForkSafeLock, deadline, in_thread
from ibidem.errors import CacheClosed
from ibidem.lifecycle.rules import Admission, Lifetime
from ibidem.matching.guards import GUARDS, NamedGuard
from ibidem.matching.policy import Candidate, Policy, Verifier, decide, supporting
from ibidem.scope import current, freeze_scope
from ibidem.single_flight import Leader, Outcome, SingleFlight, Waiter, is_leading, set_leading
from ibidem.telemetry.telemetry import step
from ibidem.types import (
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
    storable,
)

if TYPE_CHECKING:
    from ibidem.audits.auditor import Auditor
    from ibidem.examples.log import ExampleLog
    from ibidem.index.search import SemanticIndex
    from ibidem.runtime import Runtime
    from ibidem.telemetry.telemetry import Telemetry


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
        fit, verifier = index.calibration, self._verifier or index.scorer
        policy = fit.applied(self._policy) if fit.levels else self._policy
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
            place=self._runtime.cache_id,
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


@dataclass(frozen=True, slots=True)
class CacheSteps:
    """The steps of a cache that a `PendingRequest` takes one by one.

    Attributes:
        check: Raises if the cache was closed, or its argument is not a request.
        search: Looks up; a failure is a miss. Writes no log entry.
        log: Logs the result of a lookup.
        store: Stores an answer.
        telemetry: Starts spans.
        flights: The requests that others wait for.
        timeout: Seconds to wait for the answer to an identical request; 0 not to wait.
    """

    check: Callable[[Request], None]
    search: Callable[[Request], Hit | Miss]
    log: Callable[[Request, Hit | Miss], None]
    store: Callable[[Request, Answer], Stored | Rejected]
    telemetry: Telemetry
    flights: SingleFlight
    timeout: float


def is_bypassed(request: Request) -> bool:
    """Return whether the current scope, or that of the request, keeps it from the cache."""
    scope = request.scope_context
    return current().bypass or (scope is not None and scope.bypass)


class PendingRequest:
    """A request that is looked up, waits for an identical one, or asks the model for all of them.

    `lookup` until there is a hit or `wait` returns False: then ask the model, and end by `store`, `reject` or
    `abort`, since identical requests may wait. The log gets one line for the request: the hit, or the miss
    that the model was asked for. A hit costs no more than a plain lookup.
    """

    __slots__ = ("_deadline", "_leader", "_miss", "_since", "_steps", "_timeout", "request")

    def __init__(self, steps: CacheSteps, request: Request) -> None:
        valid = isinstance(request, Request)  # the lookup refuses others
        self.request = freeze_scope(request) if valid else request
        self._steps = steps
        bypassed = valid and is_bypassed(self.request)
        self._timeout = 0.0 if bypassed else steps.timeout
        self._deadline: float | None = None  # when it has waited enough; None if it did not wait
        self._since = 0
        self._miss: Miss | None = None  # not logged yet
        self._leader: Leader | None = None

    def lookup(self, objection: Callable[[Hit], str] | None = None) -> Hit | None:
        """Return the hit. A miss is logged when it is clear that waiting will not make it a hit.

        Args:
            objection: Says why a hit must not be served, which makes it a miss for this reason; "" if it may.

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
        """As `lookup`, for async code: the cache is asked in a thread, and `objection` needs none."""
        with self._steps.telemetry.start_lookup(self.request) as span:
            result = await in_thread(self._search)
            if isinstance(result, Hit) and (reason := await objection(result)):
                result = _refused(result, reason)
            span.set_result(result)
        return await in_thread(self._finish, result)

    def wait(self) -> bool:
        """After a miss, whether to look up again; False if the model must be asked. Blocks, within bounds."""
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
        """As `wait`, without blocking: a task needs no thread to wait in."""
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
        """Store the model's answer, which those who wait get.

        Raises:
            CacheClosed: The cache was closed.
        """
        try:
            result = self._steps.store(self.request, answer)
        except BaseException:
            self.abort()
            raise
        if not result:
            self.reject()
        return result

    def reject(self) -> None:
        """End: the answer is not stored, nor will that to the same request be. All who wait ask."""
        if self._leader is not None:
            self._leader.end(Outcome.REJECTED)

    def abort(self) -> None:
        """End, if it has not ended: there is no answer. One of those who wait asks."""
        if self._leader is not None:
            self._leader.end()

    def __enter__(self) -> PendingRequest:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()

    @property
    def leading(self) -> bool:
        """Whether others may wait for its end."""
        return self._leader is not None and not self._leader.ended

    def _search(self) -> Hit | Miss | None:
        """The result; None if the cache was closed while this waited: the program goes on without it."""
        self._since, self._miss = self._steps.flights.completed, None
        try:
            self._steps.check(self.request)
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
        if not self._timeout or self._miss is None:  # switched off, closed, or a hit that was of no use
            return Outcome.REJECTED
        now = time.monotonic()
        may_wait = may_wait and not is_leading() and (self._deadline is None or now < self._deadline)
        turn = self._steps.flights.join(self.request.key, self._since, self._timeout, may_wait=may_wait)
        if self._deadline is None and isinstance(turn, Future):
            self._deadline = now + self._timeout
        return turn

    def _next_turn(self, waiter: Waiter) -> Leader | Waiter | Outcome:
        """The leader's outcome; if it failed, or did not end in time, what comes of joining again."""
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
    return Miss(reason, hit.question, hit.entry_id, hit.similarity, hit.seconds)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
