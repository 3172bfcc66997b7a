"""The cache: look up, store, answer, invalidate, count."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from ibidem._util.concurrency import ForkSafeLock, deadline, in_thread
from ibidem.audits.auditor import Auditor
from ibidem.audits.ledger import AuditStats
from ibidem.conversations import in_conversation, is_bypassed
from ibidem.costs import Prices, read_prices, savings
from ibidem.errors import CacheClosed, IndexUnavailable, InvalidInput
from ibidem.examples.log import ExampleLog
from ibidem.explanation.explainer import Explainer
from ibidem.explanation.result import Explanation
from ibidem.explanation.trial import current_trial
from ibidem.lifecycle.invalidation import Criteria, Invalidated, criteria_of, names_of
from ibidem.lifecycle.rules import Admission, Lifetime
from ibidem.lifecycle.warming import current_run
from ibidem.matching.decisions import PairDecision, decide_pairs
from ibidem.matching.guards import GUARDS, NamedGuard
from ibidem.matching.policy import Policy, Strictness
from ibidem.matching.scorers import Verifier
from ibidem.matching.shipped import Choice
from ibidem.opening import Opening, build_parts
from ibidem.opinions.second_opinion import SecondOpinion
from ibidem.pipeline import (
    CacheSteps,
    LookupPipeline,
    PendingRequest,
    StorePipeline,
    policy_of,
)
from ibidem.provenance import entry_of, register
from ibidem.runtime import Runtime, release
from ibidem.scope import BYPASSED, EMPTY_SCOPE, freeze_scope
from ibidem.scope import current as current_scope
from ibidem.settings import Settings
from ibidem.storage.logs import JudgementRow, LookupRow, feedback_row, lookup_row
from ibidem.storage.statistics import LogFilter
from ibidem.telemetry.telemetry import Telemetry
from ibidem.types import (
    Answer,
    Document,
    Entry,
    Hit,
    Miss,
    Rejected,
    Request,
    Stored,
    normalise,
    require_bool,
    require_name,
    require_seconds,
    require_tags,
    require_text,
    storable,
)

REOPEN_SECONDS = 10.0  # until an unpickled cache that could not be opened is tried again

OnLookup = Callable[[Request, Hit | Miss], None]


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of a cache; sums over all processes that used the database.

    `hits` by tier and `misses` by reason count the lookups still in the log (the last 100,000), `rejected`
    by reason and `faults` by cause are of this process since opening. `unindexed` entries are stored but not
    yet in the vector index; `examples` counts the example log; `index` says whether the index is in use, or
    why not. `waits` counts the requests of this process that waited for an identical one, by outcome: `hit`,
    `asked` (the other failed, or its answer was rejected) or `timeout`. `audits` covers the 20 namespaces
    audited last; it is empty without audits.

    `money_saved` is what the answers of hits would have cost, in `currency`; None if no price is known.
    `prices_as_of` is the date of the shipped prices, "" if only your own count. `unpriced` counts, by model,
    the hits whose cost is unknown: no price, or no token count. `pinned` entries were vetted by a person,
    `withdrawn` ones also, but are not served: they wait for `ibidem review`.

    `second_opinions` of the hits by meaning needed one. `tokens_spent` and `money_spent` (None if no price is
    known) are what the small model has taken, which is subtracted from what is saved.
    """

    entries: int
    semantic_entries: int
    unindexed: int
    hits: dict[str, int]
    misses: dict[str, int]
    tokens_saved: int
    examples: int
    rejected: dict[str, int]
    faults: dict[str, int]
    index: str
    audits: tuple[AuditStats, ...] = ()
    bytes: int = 0
    evicted: int = 0
    expired: int = 0
    waits: dict[str, int] = field(default_factory=dict)
    money_saved: float | None = None
    currency: str = ""
    prices_as_of: str = ""
    unpriced: dict[str, int] = field(default_factory=dict)
    pinned: int = 0
    withdrawn: int = 0
    second_opinions: int = 0
    tokens_spent: int = 0
    money_spent: float | None = None


class SemanticCache:
    """A cache of answers by question; open one with `ibidem.open`. Thread-safe.

    Args:
        runtime: Database, vectors and background work, shared by the caches of one location.
        strictness: How sure the cache must be.
        lifetime: How long answers live.
        admission: What may be stored.
        auditor: Decides which candidates are served and which are audited; None for no audits.
        verifier: Scores candidates: the user's own, or which of those that come with Ibidem.
        guards: Refuse candidates whatever their score.
        single_flight: Seconds to wait for the answer to an identical request; 0 not to wait.
        on_lookup: Called with each request and its result, in the caller's thread.
        examples: Whether to keep stored answers as examples too.
        prices: Prices of models; by default the shipped ones.
        telemetry_namespace: Whether to report namespaces to telemetry.
        second_opinion: Asked where scores leave doubt; None to refuse what they do not prove.
        opened_with: Settings and hooks of `ibidem.open`, for pickling.
    """

    def __init__(
        self,
        runtime: Runtime,
        strictness: Strictness,
        lifetime: Lifetime,
        admission: Admission,
        *,
        auditor: Auditor | None = None,
        verifier: Verifier | Choice = "default",
        guards: Sequence[NamedGuard] = GUARDS,
        single_flight: float = 0.0,
        on_lookup: OnLookup | None = None,
        examples: bool = True,
        prices: Prices | None = None,
        telemetry_namespace: bool = False,
        second_opinion: SecondOpinion | None = None,
        opened_with: tuple[Settings, Mapping[str, Any]] | None = None,
    ) -> None:
        self._runtime, self._strictness, self._lifetime = runtime, strictness, lifetime
        self._admission, self._auditor, self._on_lookup = admission, auditor, on_lookup
        self.examples = ExampleLog(
            runtime.examples, self._ready, admission.redacted, runtime.flush, kept=examples
        )
        self._verifier, self._guards = verifier, guards
        self._lookups = LookupPipeline(
            runtime, strictness, auditor, lifetime, verifier, guards, second_opinion, admission.is_private
        )
        self._explainer = Explainer(runtime, admission, self._lookups)
        self._stores = StorePipeline(runtime, admission, lifetime, self.examples)
        self._lock = ForkSafeLock()
        self._prices = prices or read_prices()
        self._telemetry = Telemetry(
            runtime.cache_id,
            lambda: self.policy.threshold,
            runtime.faults,
            self._prices,
            namespaced=telemetry_namespace,
        )
        self.steps = CacheSteps(
            self._ready,
            self._lookups.conversations.resolve,
            self._search,
            self._log,
            self.store,
            self._telemetry,
            runtime.flights,
            single_flight,
        )
        self._rejected: dict[str, int] = {}
        self.opened_with, self._closed = opened_with, False
        register(self, runtime.cache_id)

    @property
    def policy(self) -> Policy:
        """The matching policy in force: a fit may have moved the threshold."""
        return policy_of(self._verifier, self._runtime.semantic_index, self._strictness)[1]

    def lookup(self, request: Request, *, max_age: float | None = None) -> Hit | Miss:
        """Return the stored answer to this question, or why there is none.

        Never raises because storage, index or embedder failed: that is a miss with reason `error` (or
        `no_index`), counted in `stats().faults`.

        Args:
            request: The question, with everything its answer depends on.
            max_age: Maximum age of the answer in seconds; by default its lifetime decides.

        Raises:
            InvalidInput: `request` is not a `Request`, or `max_age` no such number.
            CacheClosed: The cache was closed.
        """
        self._ready(request)
        require_seconds("max_age", max_age)
        if current_scope() is not EMPTY_SCOPE:
            request = freeze_scope(request)
        request = self._lookups.conversations.resolve(request)
        with self._telemetry.start_lookup(request) as span:
            result = span.set_result(self._search(request, max_age))
        self._log(request, result)
        return result

    async def alookup(self, request: Request, *, max_age: float | None = None) -> Hit | Miss:
        """As `lookup`, in one of the cache's threads."""
        return await in_thread(partial(self.lookup, request, max_age=max_age))

    def _search(self, request: Request, max_age: float | None = None) -> Hit | Miss:
        if (trial := current_trial()) is not None:
            return trial.lookup(request, self._explainer, max_age)
        if is_bypassed(request):
            return Miss(BYPASSED)
        if max_age is None and request.scope_context is not None:
            max_age = request.scope_context.max_age
        started, now = time.perf_counter(), self._runtime.clock()
        private = request.semantic and self._admission.is_private(request.question)
        if (warming := current_run()) is not None:
            warming.before_lookup(request, self._stores.pin)
        result: Hit | Miss
        try:
            with deadline():
                result = self._lookups.run(request, now, max_age, private)
        except IndexUnavailable as error:
            self._runtime.faults.note("search by meaning", error)
            result = Miss("no_index")
        except Exception as error:
            result = Miss(self._runtime.faults.reason("look up a question", error))
        if warming is not None:
            warming.after_lookup(request, result, self._stores.pin)
        object.__setattr__(result, "seconds", time.perf_counter() - started)  # nobody else has it yet
        return result

    def store(
        self, request: Request, answer: Answer, *, ttl: float | None = None, tags: Sequence[str] = ()
    ) -> Stored | Rejected:
        """Store the answer if it is worth keeping; replaces the one to the identical request.

        `Stored` means that the answer survives a killed process and that the next lookup finds it. Never
        raises because something failed inside: that is `Rejected("error")`.

        Args:
            request: The request that was answered.
            answer: The model's answer.
            ttl: Lifetime of this answer in seconds, at most that of the cache.
            tags: Names by which it can be invalidated later.

        Raises:
            InvalidInput: An argument has the wrong type.
            CacheClosed: The cache was closed.
        """
        self._ready(request)
        if not isinstance(answer, Answer):
            raise InvalidInput(f"answer must be an ibidem.Answer, not {type(answer).__name__}")
        require_seconds("ttl", ttl)
        labels = require_tags(tags)
        if current_scope() is not EMPTY_SCOPE:
            request = freeze_scope(request)
        request = self._lookups.conversations.resolve(request)
        if (scope := request.scope_context) is not None:
            ttl, labels = ttl or scope.ttl, tuple(dict.fromkeys((*labels, *scope.tags)))
        with self._telemetry.start_store(request, answer) as span:
            result = span.set_result(self._store(request, answer, ttl, labels))
        self._telemetry.record_store(request, answer, result)
        return result

    async def astore(
        self, request: Request, answer: Answer, *, ttl: float | None = None, tags: Sequence[str] = ()
    ) -> Stored | Rejected:
        """As `store`, in one of the cache's threads."""
        return await in_thread(partial(self.store, request, answer, ttl=ttl, tags=tags))

    def _store(
        self, request: Request, answer: Answer, ttl: float | None, labels: tuple[str, ...]
    ) -> Stored | Rejected:
        if is_bypassed(request) or current_trial() is not None:
            return Rejected(BYPASSED)
        placed = in_conversation(request, answer)
        try:
            reason = self._stores.run(placed, answer, self._runtime.clock(), ttl, labels)
            if not reason:
                self._lookups.refreshed(request.key)
            if self._auditor is not None:
                self._auditor.record_answer(request, None if reason else answer)
        except Exception as error:
            self._admission.give_back(request.namespace)
            return self._reject(self._runtime.faults.reason("store an answer", error))
        if (warming := current_run()) is not None:
            warming.after_store(request, answer, self._stores.pin, reason)
        return self._reject(reason) if reason else Stored(placed.key, self._runtime.cache_id)

    def answer(self, request: Request, ask: Callable[[Request], Answer]) -> Answer:
        """Return the stored answer, or call `ask` and store its answer.

        Of identical concurrent requests, from threads or tasks, only one calls `ask`; the others wait for its
        answer, at most `single_flight` seconds.

        Raises:
            InvalidInput: `request` is not a `Request`, or `ask` did not return an `Answer`.
            CacheClosed: The cache was closed.
            Exception: Whatever `ask` raises; then one of the waiting callers calls its own.
        """
        pending = PendingRequest(self.steps, request)
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
        """As `answer`, for async code: the cache runs in a thread, waiting needs none."""
        pending = PendingRequest(self.steps, request)
        while (hit := await in_thread(pending.lookup)) is None and await pending.await_():
            pass
        if hit is not None:
            return hit.answer
        with pending:
            answer = await ask(request)
            with suppress(CacheClosed):
                await in_thread(pending.store, answer)
        return answer

    def decide(self, pairs: Iterable[tuple[str, str]], *, namespace: str = "") -> list[PairDecision]:
        """Say for each pair of a stored question and one asked whether the answer would be repeated.

        Nothing is stored, logged or learned, and no model is asked: for trying the cache on pairs of your own
        (`ibidem decide` does it with a file). With audits, the threshold is what the budget of the namespace
        has come to so far.

        Raises:
            InvalidInput: One is no pair of questions.
            EmbedderUnavailable: The embedder does not work.
            StorageError: The judgements of audits cannot be read.
            CacheClosed: The cache was closed.
        """
        self._ready()
        index = self._runtime.semantic_index
        verifier, policy = policy_of(self._verifier, index, self._strictness)
        if self._auditor is not None:
            least = max(policy.threshold, self._auditor.threshold(namespace, verifier.name))
            policy = replace(policy, threshold=least)
        return decide_pairs(
            pairs,
            embedder=index.embedder,
            policy=policy,
            verifier=verifier,
            guards=self._guards,
            is_private=self._admission.is_private,
        )

    def load_models(self) -> None:
        """Load the models now; otherwise the first lookup by meaning does, which takes half a second.

        A server that forks its workers afterwards (`gunicorn --preload`) has them in memory once, on Linux.

        Raises:
            EmbedderUnavailable: A model cannot be loaded.
            CacheClosed: The cache was closed.
        """
        self.decide([("What does it cost?", "How much is it?")])

    def why(
        self, asked: Request | str, *, namespace: str | None = None, max_age: float | None = None
    ) -> Explanation:
        """Explain what a lookup would do with a request now, and why: step by step, with figures.

        Nothing is stored, logged, audited or refreshed, and no language model is asked; a verifier of your
        own is called, as in a lookup. It shows stored questions of the whole namespace, whatever their scope:
        for those who run the program, not for its users.

        Args:
            asked: The request; or the question alone: then it is compared with the stored questions of all
                scopes, whatever their documents.
            namespace: With a question alone: its namespace; by default all of them.
            max_age: As of `lookup`.

        Raises:
            InvalidInput: An argument cannot be used.
            CacheClosed: The cache was closed.
        """
        self._ready(*([] if isinstance(asked, str) else [asked]))
        if namespace is not None:
            require_name("namespace", namespace)
        require_seconds("max_age", max_age)
        if isinstance(asked, str):
            return self._explainer.of_question(asked, namespace)
        request = asked if current_scope() is EMPTY_SCOPE else freeze_scope(asked)
        return self._explainer.of_request(self._lookups.conversations.resolve(request), max_age)

    def invalidate(
        self,
        *,
        document: str | Document | Iterable[str | Document] | None = None,
        current: str | Document | Iterable[str | Document] | None = None,
        tag: str | None = None,
        namespace: str | None = None,
        model: str | None = None,
        entry: str | None = None,
        before: float | datetime | None = None,
        dry_run: bool = False,
    ) -> Invalidated:
        """Delete the answers that meet all of the given criteria.

        A lookup that begins after this has returned finds none of them, in any process on the same database.
        An answer still being generated is not stored either (`Rejected("invalidated")`) if its request was
        made before, by the clocks of both hosts. The examples made of the answers are deleted with them.
        Vetted answers are not served either, but kept: they wait in `ibidem review`.

        Args:
            document: Ids of documents, or of their sources: answers with any of them in the prompt, whether
                it supports the answer or not, which can only be estimated.
            current: The present text of the document, whole or in parts, empty if it was deleted: spares
                answers that rest on this text. Other versions of it are rejected for an hour, even in
                requests made later.
            tag: One of the names given to `store`.
            namespace: Tenant, user or application.
            model: Name of the model that answered.
            entry: Id of one entry; within `ibidem.scope` only of its namespace, unless `namespace` is given.
            before: Only answers stored before this time: seconds since the epoch, or a datetime with a time
                zone.
            dry_run: True to delete nothing.

        Returns:
            The number of answers; of a dry run also the newest 20.

        Raises:
            InvalidInput: No criterion is given, or one cannot be used.
            StorageError: The database failed. Some answers may be left: call it again.
            CacheClosed: The cache was closed.
        """
        self._ready()
        require_bool("dry_run", dry_run)
        criteria = criteria_of(
            document=document,
            current=current,
            before=before,
            tag=tag,
            namespace=namespace,
            model=model,
            entry=entry,
        )
        if entry is not None and namespace is None:
            criteria = self._in_scope(criteria, entry)
        if dry_run:
            return self._runtime.store.preview(criteria)
        return self._runtime.invalidate(criteria)

    def announce(
        self, document: str | Document | Iterable[str | Document], *, namespace: str | None = None
    ) -> None:
        """Tell that documents are new: an answer made before is not repeated where one of them is retrieved.

        Under `document_policy="unchanged"`, unless the answer was made with it: `documents_added`. Nothing is
        deleted. `invalidate` tells so too of the documents it is given; `invalidating` of the adapters does
        both.

        Args:
            document: Ids of documents, or of their sources.
            namespace: Only for answers of this namespace.

        Raises:
            InvalidInput: An argument cannot be used.
            StorageError: The database failed.
            CacheClosed: The cache was closed.
        """
        self._ready()
        if namespace is not None:
            require_name("namespace", namespace)
        self._runtime.store.told.add(names_of(document), namespace, self._runtime.clock())

    def feedback(
        self, answer: str | Hit | Stored | Mapping[str, Any], *, good: bool, question: str | None = None
    ) -> bool:
        """Record a user's feedback on a stored answer, and delete the answer at once if it is bad.

        A lookup that begins after this has returned does not find a bad answer; the model's next one may be
        stored in its place. Its examples are marked good or bad, and kept. The judgement is kept too
        (`judgements`, source `feedback`), but no error budget learns from it: feedback is no random sample.

        Args:
            answer: A `Hit`, the id of an entry, or the metadata of a framework's message:
                `message.response_metadata` in LangChain, `response.metadata` or `response.raw` in LlamaIndex.
            good: Whether it was right.
            question: The question asked, if another one than the answer was stored for.

        Returns:
            Whether the entry exists (within `ibidem.scope`, in its namespace); False also for a message that
            does not come from the cache.

        Raises:
            InvalidInput: An argument has the wrong type.
            StorageError: The database failed.
            CacheClosed: The cache was closed.
        """
        self._ready()
        require_bool("good", good)
        asked = "" if question is None else normalise(require_text("question", question))
        entry_id, marker = entry_of(answer)
        store, found = self._runtime.store, self._in_reach(entry_id)
        if found is None:
            return False
        store.require_here(found.namespace)
        self._runtime.flush()  # also the examples that wait
        store.examples.set_feedback_of(found, good)
        if not good:
            self._runtime.invalidate(Criteria(entry=entry_id), examples=False)
        shown = self._admission.redacted(asked)
        row = feedback_row(found, good, shown if storable(shown) else "", marker)
        scorer = policy_of(self._verifier, self._runtime.semantic_index, self._strictness)[0].name
        store.judgements.add([replace(row, at=self._runtime.clock(), scorer=scorer)])
        return True

    def correct(
        self, entry: str | Hit | Stored | Mapping[str, Any], answer: str | Answer
    ) -> Stored | Rejected:
        """Put a vetted answer in the place of a stored one, and pin it.

        A lookup that begins after this has returned finds it. A pinned answer does not expire, is not
        evicted, and no answer of the model takes its place. What invalidates it puts it on the list of
        `ibidem review`, and it is not served. Examples of the former answer are called bad; the new one is a
        good example.

        Args:
            entry: A `Hit`, the id of an entry, or the metadata of a framework's message, as for `feedback`.
            answer: The text in place of the model's. For answers that a program acts upon (tool calls,
                structured output) an `Answer` with the adapter's payload.

        Returns:
            `Rejected` with the reason `unknown_entry` (within `ibidem.scope`: not in its namespace),
            `pins_full` (pinned answers fill `max_entries` or `max_bytes`), `private` (`redact` changes it) or
            `invalidated` (it is just being deleted).

        Raises:
            InvalidInput: An argument cannot be used, or a text cannot take the place of the stored answer.
            StorageError: The database failed.
            CacheClosed: The cache was closed.
        """
        self._ready()
        texts = (answer.text, answer.payload) if isinstance(answer, Answer) else (answer,)
        if any(self._admission.is_private(require_name("answer", text)) for text in texts):
            return self._reject("private")
        entry_id, _ = entry_of(entry)
        if self._in_reach(entry_id) is None:
            return self._reject("unknown_entry")
        runtime = self._runtime
        runtime.flush()  # also the examples that wait
        now, bounds = runtime.clock(), runtime.housekeeping.bounds
        if reason := runtime.store.correct(entry_id, answer, now, bounds, examples=self.examples.kept):
            return self._reject(reason)
        self._lookups.refreshed(entry_id)
        runtime.judgement_log.forget({entry_id})  # they would compare the former answer
        runtime.flights.stored(entry_id)
        return Stored(entry_id, runtime.cache_id)

    def _in_reach(self, entry_id: str) -> Entry | None:
        """Return the entry, unless there is none in the current scope."""
        found = self._runtime.store.entries.of_ids([entry_id]) if entry_id and storable(entry_id) else []
        return found[0] if found and current_scope().covers(found[0].namespace) else None

    def _in_scope(self, criteria: Criteria, entry_id: str) -> Criteria:
        """Restrict the deletion of an entry to the namespace of the current scope: its id is no secret."""
        scope = current_scope()
        if not (scope.namespace or scope.user):
            return criteria
        found = self._runtime.store.entries.of_ids([entry_id])
        covered = [one.namespace for one in found if scope.covers(one.namespace)]
        return replace(criteria, namespace=covered[0] if covered else scope.name())

    def clear(self, namespace: str | None = None) -> int:
        """Delete all answers, or those of one namespace and its users; return how many.

        The logs are deleted too: lookups, examples and judgements, also those not yet written. Those that
        other processes have not yet written, they still write.

        Deletes in batches, between which others may store. Whatever was stored before it ended is gone when
        it returns; what is stored afterwards stays.

        Raises:
            StorageError: The database failed; a part may be deleted. Call it again.
            InvalidInput: The namespace is not a str, or cannot be stored.
        """
        self._ready()
        if namespace is not None:
            require_name("namespace", namespace)
        return self._runtime.clear(namespace)

    def stats(self) -> Stats:
        """Return the statistics; first writes what waits to be written."""
        self._ready()
        self._runtime.flush()
        with self._lock:
            rejected = dict(self._rejected)
        runtime, prices = self._runtime, self._prices
        totals = runtime.store.totals(runtime.embedder.fingerprint)
        figures = runtime.store.statistics
        saved = savings(figures.lookups(LogFilter()), prices, figures.opinions(LogFilter()))
        verifier, _ = policy_of(self._verifier, runtime.semantic_index, self._strictness)
        pins = runtime.store.pins.counts()
        return Stats(
            entries=totals.entries,
            semantic_entries=totals.semantic_entries,
            unindexed=totals.unindexed,
            hits=totals.hits,
            misses=totals.misses,
            tokens_saved=saved.tokens,
            examples=totals.examples,
            rejected=rejected,
            faults=runtime.faults.counts(),
            index=runtime.vectors.state,
            waits=runtime.flights.waits(),
            audits=self._auditor.report(verifier.name) if self._auditor else (),
            bytes=totals.bytes,
            evicted=runtime.housekeeping.evicted,
            expired=runtime.housekeeping.expired,
            money_saved=saved.money if saved.priced else None,
            currency=prices.currency,
            prices_as_of=prices.as_of,
            unpriced=saved.unpriced,
            pinned=pins.corrected + pins.warmed,
            withdrawn=pins.withdrawn,
            second_opinions=totals.second_opinions,
            tokens_spent=saved.tokens_spent,
            money_spent=saved.known_spent,
        )

    def recent(
        self, limit: int = 20, namespace: str | None = None, reason: str | None = None
    ) -> list[LookupRow]:
        """Return the last lookups in the log with their results, newest first; of all processes.

        All, or those of one namespace, or the misses for one reason (`guard` stands for all guards).
        """
        self._ready()
        for name, given in (("namespace", namespace), ("reason", reason)):
            if given is not None:
                require_name(name, given)
        self._runtime.flush()
        return self._runtime.store.lookups.recent(limit, namespace, reason)

    def judgements(self, limit: int = 20, namespace: str | None = None) -> list[JudgementRow]:
        """Return the last judgements, newest first; of all processes. `flush` waits for those being made."""
        self._ready()
        if namespace is not None:
            require_name("namespace", namespace)
        return self._runtime.store.judgements.recent(limit, namespace)

    def flush(self) -> bool:
        """Wait until all is indexed, logged and judged; False if that takes too long (10 s and 10 s)."""
        self._ready()
        return self._runtime.flush() and self._runtime.judgement_log.flush()

    def close(self) -> None:
        """Write what waits to be written and release the files. A second call does nothing."""
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
        return self  # a copied owner shares the cache

    def __deepcopy__(self, memo: dict[int, Any]) -> SemanticCache:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle how the cache is opened; raises as `Opening.of`."""
        if self.opened_with is None:
            raise InvalidInput("only a cache opened by ibidem.open() can be pickled")
        return UnopenedCache, (Opening.of(*self.opened_with),)

    def _ready(self, *requests: object) -> None:
        if self._closed:
            raise CacheClosed("this cache was closed; open another with ibidem.open()")
        for request in requests:
            if not isinstance(request, Request):
                raise InvalidInput(f"expected an ibidem.Request, not {type(request).__name__}")
        self._runtime.check_process()

    def _log(self, request: Request, result: Hit | Miss) -> None:
        if (trial := current_trial()) is not None:
            trial.looked_up(request, result)
            return
        self._telemetry.record_lookup(request, result)
        if is_bypassed(request):
            return
        if isinstance(result, Hit):
            self._lookups.conversations.remember(request, result)
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


class UnopenedCache(SemanticCache):
    """An unpickled cache. Its first use opens it and makes it a `SemanticCache`.

    If it cannot be opened, each use raises what `ibidem.open` raises.
    """

    def __init__(self, opening: Opening | None) -> None:
        self._opening, self._opening_lock = opening, ForkSafeLock()
        self._failure: tuple[float, Exception] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return UnopenedCache, (self._opening,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy, inspect and the like ask for these
            raise AttributeError(name)
        self._open()
        return getattr(self, name)

    def __repr__(self) -> str:
        return "SemanticCache(not opened yet)"

    def close(self) -> None:
        """Prevent it from being opened."""
        self._opening = None

    def _open(self) -> None:
        with self._opening_lock:
            if type(self) is not UnopenedCache:
                return  # another thread has
            if self._opening is None:
                raise CacheClosed("this cache was closed; open another with ibidem.open()")
            if self._failure is not None and time.monotonic() < self._failure[0] + REOPEN_SECONDS:
                raise self._failure[1].with_traceback(None)
            try:
                parts = build_parts(self._opening.read(), self._opening.hooks)
            except Exception as error:
                self._failure = time.monotonic(), error
                raise
            super().__init__(**parts)
            self.__class__ = SemanticCache  # type: ignore[assignment]
