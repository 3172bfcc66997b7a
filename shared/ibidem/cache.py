"""The cache: what happens, in order, when a question is looked up and when an answer is stored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from ibidem import backend as backends
from ibidem.admission import refusal, storable
from ibidem.audit import Auditor
from ibidem.backend import Backend
from ibidem.decision import Candidate, Policy, decide
from ibidem.entry import Entry, Source, Vector, cosine
from ibidem.errors import CacheClosed, IndexUnavailable, InvalidInput
from ibidem.evidence import supporting
from ibidem.examples import ExampleLog
from ibidem.learning import drop_cache, fit_cache
from ibidem.locks import ForkSafeLock
from ibidem.request import Answer, Hit, Miss, Rejected, Request, Stored, Tier, require_text
from ibidem.rows import JudgementRow, LookupRow, lookup_row
from ibidem.stats import Stats

OnLookup = Callable[[Request, Hit | Miss], None]

NEIGHBOURS = 16  # candidates looked at; with the scope code the right one is nearly always the first


class SemanticCache:
    """Answers by question; open one with `ibidem.open`. Thread-safe.

    Args:
        backend: Truth, vectors and background work, shared by the caches of one place.
        policy: How sure the cache must be.
        auditor: Asked which candidates may be served and which are compared; None for no audits.
        ttl: Seconds an answer lives.
        on_lookup: Called with each request and what came of it, in the thread that asked.
        clock: Seconds since the epoch; a test may pass its own.
    """

    def __init__(
        self,
        backend: Backend,
        policy: Policy,
        *,
        auditor: Auditor | None = None,
        ttl: float = math.inf,
        on_lookup: OnLookup | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._backend, self.policy, self.ttl, self._clock = backend, policy, ttl, clock
        self._auditor, self._on_lookup = auditor, on_lookup
        self._lock = ForkSafeLock()
        self._rejected: dict[str, int] = {}
        self._closed = False
        self.examples = ExampleLog(backend, self._ready, clock)  # answered questions, for later use

    def lookup(self, request: Request) -> Hit | Miss:
        """The stored answer to this question, or why there is none.

        Never raises because storage, index or embedder failed: that is a miss with reason `error` (or
        `no_index`), counted in `stats().faults`.

        Raises:
            InvalidInput: `request` is not a `Request`.
            CacheClosed: The cache was closed.
        """
        self._ready(request)
        started = time.perf_counter()
        result: Hit | Miss
        try:
            result = self._find(request)
        except IndexUnavailable as error:
            self._backend.faults.note("search by meaning", error)
            result = Miss("no_index")
        except Exception as error:
            self._backend.faults.note("look up a question", error)
            result = Miss("error")
        result = replace(result, seconds=time.perf_counter() - started)
        self._backend.note_lookup(lookup_row(request, result, self._clock()))
        self._tell(request, result)
        return result

    def store(self, request: Request, answer: Answer) -> Stored | Rejected:
        """Keep the answer, if it is worth keeping; replaces the one to the very same request.

        On `Stored` the answer is durable against a killed process and found by the next lookup. Never
        raises because something failed inside: that is `Rejected("error")`.

        Raises:
            InvalidInput: An argument has the wrong type.
            CacheClosed: The cache was closed.
        """
        self._ready(request)
        if not isinstance(answer, Answer):
            raise InvalidInput(f"answer must be an ibidem.Answer, not {type(answer).__name__}")
        reason = refusal(request, answer)
        try:
            if not reason:
                self._keep(request, answer)
            if self._auditor is not None:
                self._auditor.compare(request, None if reason else answer)
        except Exception as error:
            self._backend.faults.note("store an answer", error)
            return self._reject("error")
        return self._reject(reason) if reason else Stored(request.key)

    def clear(self, namespace: str | None = None) -> int:
        """Delete all answers, or those of one namespace; returns how many answers.

        Everything else that is kept of it goes too: lookups, examples and judgements of audits, also those
        that wait to be written. What other processes have not written yet, they still will.

        Raises:
            StorageError: The database refused; nothing was deleted.
            InvalidInput: The namespace is not a str.
        """
        self._ready()
        if namespace is not None:
            require_text("namespace", namespace)
            if not storable(namespace):  # then nothing is stored there
                return 0
        count = self._backend.clear(namespace)
        if namespace is None:
            self._backend.vectors.reset()
        return count

    def stats(self) -> Stats:
        """Counts, after writing what is still to be written."""
        self._ready()
        self._backend.flush()
        totals = self._backend.records.totals()
        with self._lock:
            rejected = dict(self._rejected)
        return Stats(
            entries=totals.entries,
            semantic_entries=totals.semantic_entries,
            unindexed=totals.unindexed,
            hits=totals.hits,
            misses=totals.misses,
            tokens_saved=totals.tokens_saved,
            examples=totals.examples,
            rejected=rejected,
            faults=self._backend.faults.counts(),
            index=self._backend.vectors.state,
            audits=self._auditor.report() if self._auditor else (),
        )

    def recent(self, limit: int = 20) -> list[LookupRow]:
        """The last lookups in the log with what came of each, newest first; also of other processes."""
        self._ready()
        self._backend.flush()
        return self._backend.records.lookups.recent(limit)

    def judgements(self, limit: int = 20, namespace: str | None = None) -> list[JudgementRow]:
        """The last audits that were judged, newest first; also of other processes. `flush` waits for them."""
        self._ready()
        if namespace is not None and not storable(require_text("namespace", namespace)):
            return []
        return self._backend.records.judgements.recent(limit, namespace)

    fit = fit_cache
    drop_fit = drop_cache

    def flush(self) -> bool:
        """Wait until all is indexed, logged and judged; False if that took too long (10 s, judges 10 s)."""
        self._ready()
        return self._backend.flush() and self._backend.ledger.flush()

    def close(self) -> None:
        """Write what is left and release files. A second call does nothing."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            backends.release(self._backend)

    def __enter__(self) -> SemanticCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SemanticCache({self._backend.records.url!r}, {self.policy})"

    def _find(self, request: Request) -> Hit | Miss:
        now = self._clock()
        if not storable(request.namespace):  # nothing can be stored there
            return Miss("empty")
        same = self._backend.records.get(request.key)
        if same is not None and self._alive(same, now):
            return _hit(Candidate(same, 1.0), "exact", now)
        missing = "empty" if same is None else "expired"
        if not request.semantic:
            return Miss("question_unknown" if same is None else missing)
        if refused := self._backend.embedder.refusal(request.question):
            return Miss(refused)
        vector = self._backend.embedder.vector_of(request.question)
        candidates = self._candidates(request, vector, now)
        scorer = self._backend.scorer
        verdict = decide(request, candidates, self.policy, scorer)
        if (best := verdict.chosen) is not None:
            ruling = "serve" if self._auditor is None else self._auditor.rule(request, best, scorer, now)
            if ruling == "serve":
                return _hit(best, "semantic", now)
            return _missed("audit" if ruling == "audit" else "below_budget", best)
        if verdict.nearest is not None:
            return _missed(verdict.reason, verdict.nearest)
        if same is not None:
            return Miss(missing)
        kind = self._backend.records.kind_in_scope(request.namespace, request.scope_digest)
        return Miss({None: "empty", False: "answer_exact_only", True: "below_threshold"}[kind])

    def _alive(self, entry: Entry, now: float) -> bool:
        """Whether the entry may still be served, by the time it was given and by that of this cache."""
        return entry.alive(now) and now < entry.created + self.ttl

    def _candidates(self, request: Request, vector: Vector, now: float) -> list[Candidate]:
        namespace, scope = request.namespace, request.scope_digest
        points = self._backend.vectors.nearest(namespace, scope, vector, NEIGHBOURS)
        found = self._backend.records.near(
            points,
            namespace=namespace,
            scope=scope,
            embedder=self._backend.embedder.fingerprint,
            documents=request.documents_digest,
        )
        return [
            Candidate(entry, cosine(vector, entry.vector), vectors=(vector, entry.vector))
            for entry in found
            if entry.vector is not None and self._alive(entry, now)
        ]

    def _keep(self, request: Request, answer: Answer) -> None:
        semantic = request.semantic and answer.semantic
        vector: Vector | None = None
        if semantic:
            try:
                semantic = self._backend.embedder.refusal(request.question) is None
                vector = self._backend.embedder.vector_of(request.question) if semantic else None
            except Exception as error:  # the answer is worth keeping; its vector is made later
                self._backend.faults.note("embed a question", error)
        evidence = supporting(answer.text, request.question, request.documents)
        now = self._clock()
        entry = Entry(
            id=request.key,
            namespace=request.namespace,
            scope=request.scope_digest,
            question=request.question if request.semantic else None,
            documents=request.documents_digest,
            semantic=semantic,
            answer=answer,
            created=now,
            expires=None if math.isinf(self.ttl) else now + self.ttl,
            sources=tuple(Source(d.id, d.digest, d.digest in evidence) for d in request.documents),
            vector=vector,
        )
        self._backend.records.put(entry, self._backend.embedder.fingerprint)
        if vector is not None:
            self._backend.vectors.add(entry.namespace, entry.scope, vector)
        self._backend.wake()

    def _ready(self, *requests: object) -> None:
        if self._closed:
            raise CacheClosed("this cache was closed; open another with ibidem.open()")
        for request in requests:
            if not isinstance(request, Request):
                raise InvalidInput(f"expected an ibidem.Request, not {type(request).__name__}")
        self._backend.check_process()

    def _tell(self, request: Request, result: Hit | Miss) -> None:
        if self._on_lookup is not None:
            try:
                self._on_lookup(request, result)
            except Exception as error:
                self._backend.faults.note("call on_lookup", error)

    def _reject(self, reason: str) -> Rejected:
        with self._lock:
            self._rejected[reason] = self._rejected.get(reason, 0) + 1
        return Rejected(reason)


def _hit(candidate: Candidate, tier: Tier, now: float) -> Hit:
    entry = candidate.entry
    return Hit(
        answer=entry.answer,
        entry_id=entry.id,
        tier=tier,
        similarity=candidate.similarity,
        score=candidate.score if tier == "semantic" else 1.0,
        question=entry.question,
        age=max(0.0, now - entry.created),
    )


def _missed(reason: str, candidate: Candidate) -> Miss:
    return Miss(reason, candidate.entry.question, candidate.entry.id, candidate.similarity)
