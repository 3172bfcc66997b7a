"""The cache: what happens, in order, when a question is looked up and when an answer is stored."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ibidem._util.concurrency import ForkSafeLock, in_thread
from ibidem._util.deadline import deadline
from ibidem.answering import Asking
from ibidem.audits.auditor import Auditor
from ibidem.costs import Prices, read_prices
from ibidem.errors import CacheClosed, IndexUnavailable, InvalidInput
from ibidem.examples.log import ExampleLog
from ibidem.lifecycle.correcting import Correcting
from ibidem.lifecycle.rules import Admission, Lifetime
from ibidem.matching.guards import GUARDS, NamedGuard
from ibidem.matching.policy import Policy, Verifier
from ibidem.pending import PendingRequest
from ibidem.pipeline import Finder, Keeper
from ibidem.provenance import opened
from ibidem.runtime import Runtime, release
from ibidem.scope import BYPASSED, bind_scope, is_bypassed
from ibidem.stats import Stats, stats_of
from ibidem.storage.logs import JudgementRow, LookupRow, lookup_row
from ibidem.telemetry.telemetry import Telemetry
from ibidem.types import (
    Answer,
    Hit,
    Miss,
    Rejected,
    Request,
    Stored,
    require_name,
    require_seconds,
    require_tags,
)

if TYPE_CHECKING:
    from ibidem.settings import Settings

OnLookup = Callable[[Request, Hit | Miss], None]


class SemanticCache(Correcting):
    """Answers by question; open one with `ibidem.open`. Thread-safe.

    Args:
        runtime: Database, vectors and background work, shared by the caches of one place.
        policy: How sure the cache must be.
        lifetime: How long answers live.
        admission: What may be stored.
        auditor: Asked which candidates may be served and which are compared; None for no audits.
        verifier: Scores candidates; None for the scorer of the embedder.
        guards: Refuse candidates whatever their score.
        single_flight: Seconds to wait for the answer to an identical request; 0 not to wait.
        on_lookup: Called with each request and what came of it, in the thread that asked.
        examples: Whether what is stored is an example too.
        prices: What models cost; the shipped prices, if None.
        telemetry_namespace: Whether namespaces may be told to telemetry.
    """

    def __init__(
        self,
        runtime: Runtime,
        policy: Policy,
        lifetime: Lifetime,
        admission: Admission,
        *,
        auditor: Auditor | None = None,
        verifier: Verifier | None = None,
        guards: Sequence[NamedGuard] = GUARDS,
        single_flight: float = 0.0,
        on_lookup: OnLookup | None = None,
        examples: bool = True,
        prices: Prices | None = None,
        telemetry_namespace: bool = False,
    ) -> None:
        self._runtime, self._policy, self.lifetime = runtime, policy, lifetime
        self._admission, self._auditor, self._on_lookup = admission, auditor, on_lookup
        self._finder = Finder(runtime, policy, auditor, lifetime, verifier, guards)
        # Answered questions, for later use.
        self.examples = ExampleLog(
            runtime.examples, self._ready, admission.redacted, runtime.flush, kept=examples
        )
        self._keeper = Keeper(runtime, admission, lifetime, self.examples)
        self._lock = ForkSafeLock()
        self.prices = prices or read_prices()
        self.telemetry = Telemetry(
            runtime.cache_id,
            lambda: self.policy.threshold,
            runtime.faults,
            self.prices,
            namespaced=telemetry_namespace,
        )
        self.flights, self.single_flight = runtime.flights, single_flight
        self._rejected: dict[str, int] = {}
        self._closed = False
        opened(self, runtime.cache_id)

    opened_with: tuple[Settings, Mapping[str, Any]] | None = None  # settings and hooks, by `ibidem.open`

    @property
    def policy(self) -> Policy:
        """How sure the cache must be now: a fit may have moved the threshold."""
        return self._runtime.semantic_index.calibration.applied(self._policy)

    def lookup(self, request: Request, *, max_age: float | None = None) -> Hit | Miss:
        """The stored answer to this question, or why there is none.

        Never raises because storage, index or embedder failed: that is a miss with reason `error` (or
        `no_index`), counted in `stats().faults`.

        Args:
            request: What is asked.
            max_age: The most seconds since the answer was given; not given, its lifetime decides.

        Raises:
            InvalidInput: `request` is not a `Request`, or `max_age` no such number.
            CacheClosed: The cache was closed.
        """
        self._ready(request)
        asked = bind_scope(request)
        with self.telemetry.start_lookup(asked) as span:
            result = span.set_result(self._search(asked, max_age))
        self._log(asked, result)
        return result

    def _search(self, request: Request, max_age: float | None = None) -> Hit | Miss:
        self._ready(request)
        require_seconds("max_age", max_age)
        if max_age is None and request.scope_context is not None:
            max_age = request.scope_context.max_age
        if is_bypassed(request):
            return Miss(BYPASSED)
        started, now = time.perf_counter(), self._runtime.clock()
        private = request.semantic and self._admission.is_private(request.question)
        result: Hit | Miss
        try:
            with deadline():
                result = self._finder.find(request, now, max_age, private)
        except IndexUnavailable as error:
            self._runtime.faults.note("search by meaning", error)
            result = Miss("no_index")
        except Exception as error:
            self._runtime.faults.note("look up a question", error)
            result = Miss("error")
        spent = time.perf_counter() - started
        if isinstance(result, Hit):
            return replace(result, seconds=spent, place=self._runtime.cache_id)
        return replace(result, seconds=spent)

    def store(
        self, request: Request, answer: Answer, *, ttl: float | None = None, tags: Sequence[str] = ()
    ) -> Stored | Rejected:
        """Keep the answer, if it is worth keeping; replaces the one to the very same request.

        On `Stored` the answer is durable against a killed process and found by the next lookup. Never
        raises because something failed inside: that is `Rejected("error")`.

        Args:
            request: What was asked.
            answer: What the model said.
            ttl: Seconds this answer lives, at most those of the cache.
            tags: Names under which it can be invalidated later.

        Raises:
            InvalidInput: An argument has the wrong type.
            CacheClosed: The cache was closed.
        """
        self._ready(request)
        if not isinstance(answer, Answer):
            raise InvalidInput(f"answer must be an ibidem.Answer, not {type(answer).__name__}")
        require_seconds("ttl", ttl)
        labels, request = require_tags(tags), bind_scope(request)
        if (scope := request.scope_context) is not None:
            ttl, labels = ttl or scope.ttl, tuple(dict.fromkeys((*labels, *scope.tags)))
        with self.telemetry.start_store(request, answer) as span:
            result = span.set_result(self._store(request, answer, ttl, labels))
        self.telemetry.record_store(request, answer, result)
        return result

    def _store(
        self, request: Request, answer: Answer, ttl: float | None, labels: tuple[str, ...]
    ) -> Stored | Rejected:
        if is_bypassed(request):
            return Rejected(BYPASSED)
        try:
            reason = self._admission.refusal(request, answer)
            if not reason:
                with deadline():
                    reason = self._keeper.keep(request, answer, self._runtime.clock(), ttl, labels)
            if not reason:
                self._finder.refreshed(request.key)
            if self._auditor is not None:
                self._auditor.record_answer(request, None if reason else answer)
        except Exception as error:
            self._runtime.faults.note("store an answer", error)
            self._admission.give_back(request.namespace)
            return self._reject("error")
        return self._reject(reason) if reason else Stored(request.key, self._runtime.cache_id)

    def answer(self, request: Request, ask: Callable[[Request], Answer]) -> Answer:
        """Return the stored answer, or that of `ask`, which is then stored.

        Of identical requests that come meanwhile, from threads or tasks, only one calls `ask`; the others
        wait for its answer, at most `single_flight` seconds.

        Raises:
            InvalidInput: `request` is not a `Request`, or `ask` did not return an `Answer`.
            CacheClosed: The cache was closed.
            Exception: What `ask` raises. One of those who wait tries for itself.
        """
        pending = PendingRequest(self, request)
        while (hit := pending.lookup()) is None and pending.wait():
            pass
        if hit is not None:
            return hit.answer
        with pending:
            answer = ask(request)
            with suppress(CacheClosed):
                pending.store(answer)
        return answer

    async def aanswer(self, request: Request, ask: Callable[[Request], Awaitable[Answer]]) -> Answer:
        """As `answer`, for async code: the cache is asked in a thread, and waiting needs none."""
        pending = PendingRequest(self, request)
        while (hit := await in_thread(pending.lookup)) is None and await pending.await_():
            pass
        if hit is not None:
            return hit.answer
        with pending:
            answer = await ask(request)
            with suppress(CacheClosed):
                await in_thread(pending.store, answer)
        return answer

    def asking(self, request: Request) -> Asking:
        """The request on its way; for adapters."""
        return Asking(self, request)

    def clear(self, namespace: str | None = None) -> int:
        """Delete all answers, or those of one namespace and its users; returns how many answers.

        Everything else that is kept of it goes too: lookups, examples and judgements of audits, also those
        that wait to be written. What other processes have not written yet, they still will.

        It deletes in batches, between which others store. What was stored before it ended is gone when it
        returns; what is stored after that stays.

        Raises:
            StorageError: The database failed; a part may be deleted. Call it again.
            InvalidInput: The namespace is not a str that can be stored.
        """
        self._ready()
        if namespace is not None:
            require_name("namespace", namespace)
        return self._runtime.clear(namespace)

    def stats(self) -> Stats:
        """Counts, after writing what is still to be written."""
        self._ready()
        self._runtime.flush()
        with self._lock:
            rejected = dict(self._rejected)
        return stats_of(self._runtime, self._auditor, self.prices, rejected)

    def recent(self, limit: int = 20) -> list[LookupRow]:
        """The last lookups in the log with what came of each, newest first; also of other processes."""
        self._ready()
        self._runtime.flush()
        return self._runtime.store.lookups.recent(limit)

    def judgements(self, limit: int = 20, namespace: str | None = None) -> list[JudgementRow]:
        """The last audits that were judged, newest first; also of other processes. `flush` waits for them."""
        self._ready()
        if namespace is not None:
            require_name("namespace", namespace)
        return self._runtime.store.judgements.recent(limit, namespace)

    def flush(self) -> bool:
        """Wait until all is indexed, logged and judged; False if that took too long (10 s, judges 10 s)."""
        self._ready()
        return self._runtime.flush() and self._runtime.judgement_log.flush()

    def close(self) -> None:
        """Write what is left and release files. A second call does nothing."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            release(self._runtime)

    def __enter__(self) -> SemanticCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SemanticCache({self._runtime.store.url!r}, {self.policy})"

    def __copy__(self) -> SemanticCache:
        return self  # a copy of what holds it asks the same cache

    def __deepcopy__(self, memo: dict[int, Any]) -> SemanticCache:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        from ibidem.pickling import pickled

        return pickled(self)

    def _ready(self, *requests: object) -> None:
        if self._closed:
            raise CacheClosed("this cache was closed; open another with ibidem.open()")
        for request in requests:
            if not isinstance(request, Request):
                raise InvalidInput(f"expected an ibidem.Request, not {type(request).__name__}")
        self._runtime.check_process()

    def _log(self, request: Request, result: Hit | Miss) -> None:
        self.telemetry.record_lookup(request, result)
        if is_bypassed(request):
            return
        question = self._admission.redacted(request.question)
        self._runtime.log_lookup(lookup_row(request, question, result, self._runtime.clock()))
        if self._on_lookup is not None:
            try:
                self._on_lookup(request, result)
            except Exception as error:
                self._runtime.faults.note("call on_lookup", error)

    def _reject(self, reason: str) -> Rejected:
        with self._lock:
            self._rejected[reason] = self._rejected.get(reason, 0) + 1
        return Rejected(reason)
