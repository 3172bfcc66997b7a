"""What a cache takes back: answers whose documents have changed, and answers that somebody found wrong."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ibidem.errors import InvalidInput
from ibidem.lifecycle.invalidation import Criteria, Invalidated, criteria_of
from ibidem.scope import current
from ibidem.storage.logs import JudgementRow
from ibidem.types import Document, Hit, Stored, normalise, require_bool, require_text, storable

if TYPE_CHECKING:
    from ibidem.lifecycle.rules import Admission
    from ibidem.runtime import Runtime
    from ibidem.storage.store import Store
    from ibidem.types import Entry

MARKER = "ibidem"  # under which both integrations keep what a repeated answer says about itself
SHOWN = 20  # entries that a dry run returns


class Correcting(ABC):
    """The part of `SemanticCache` that takes answers back."""

    _runtime: Runtime
    _admission: Admission

    @abstractmethod
    def _ready(self, *requests: object) -> None: ...

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
        """Delete the answers that fulfil all that is given.

        A lookup that begins after this returned finds none of them, in any process on the same database.
        An answer that was just being made is not stored (`Rejected("invalidated")`): one to a request that
        was made before, by the clocks of both hosts. Examples of the example log go with their answers.

        Args:
            document: Ids of documents, or of their sources: answers that had any of them in their prompt,
                whether it supports the answer or not. That can only be estimated.
            current: What the document says now, in one piece or several, none if it is gone: only answers
                that rest on something else it said. These are refused for an hour, whenever they were asked.
            tag: One of the names given to `store`.
            namespace: Tenant, user or application.
            model: Name of the model that answered.
            entry: Id of one entry; within `ibidem.scope` of its namespace, unless `namespace` is given.
            before: Only what was stored before: seconds since the epoch, or a datetime with a time zone.
            dry_run: True to delete nothing.

        Returns:
            How many answers; of a dry run also the newest 20.

        Raises:
            InvalidInput: Nothing is given, or something cannot be used.
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
            return preview(self._runtime.store, criteria)
        return self._invalidated(criteria)

    def feedback(
        self, answer: str | Hit | Stored | Mapping[str, Any], *, good: bool, question: str | None = None
    ) -> bool:
        """Note what somebody thinks of a stored answer, and delete it at once if it is bad.

        A lookup that begins after this returned does not find a bad answer; the model's next one may be
        stored in its place. Its examples are marked good or bad, and kept. The judgement is kept too
        (`judgements`, source `feedback`), but no budget learns from it: people judge what annoys them, and
        not a sample.

        Args:
            answer: A `Hit`, the id of an entry, or what a framework's message says of itself:
                `message.response_metadata` in LangChain, `response.metadata` or `response.raw` in LlamaIndex.
            good: Whether it was right.
            question: What was asked, if not what the answer was stored for.

        Returns:
            Whether there is such an entry, within `ibidem.scope` in its namespace; False as well for a
            message that does not come from the cache.

        Raises:
            InvalidInput: An argument has the wrong type.
            StorageError: The database failed.
            CacheClosed: The cache was closed.
        """
        self._ready()
        require_bool("good", good)
        asked = "" if question is None else normalise(require_text("question", question))
        entry_id, told = _marker(answer)
        store = self._runtime.store
        found = store.entries.of_ids([entry_id]) if entry_id and storable(entry_id) else []
        if not found or not current().covers(found[0].namespace):
            return False
        self._runtime.flush()  # also the examples that wait
        store.examples.set_feedback_of(found[0], good)
        if not good:
            self._invalidated(Criteria(entry=entry_id), examples=False)
        shown = self._admission.redacted(asked)
        row = _judgement(found[0], good, shown if storable(shown) else "", told)
        store.judgements.add(
            [replace(row, at=self._runtime.clock(), scorer=self._runtime.judgement_log.scorer)]
        )
        return True

    def _in_scope(self, criteria: Criteria, entry_id: str) -> Criteria:
        """An entry is meant in the namespace in force only, if there is one: an id proves nothing."""
        scope = current()
        if not (scope.namespace or scope.user):
            return criteria
        found = self._runtime.store.entries.of_ids([entry_id])
        covered = [one.namespace for one in found if scope.covers(one.namespace)]
        return replace(criteria, namespace=covered[0] if covered else scope.name())

    def _invalidated(self, criteria: Criteria, *, examples: bool = True) -> Invalidated:
        ids, gone = run(self._runtime.store, criteria, self._runtime.clock, examples=examples)
        self._runtime.judgement_log.forget(set(ids))
        self._runtime.examples.queue.forget_reports()
        return Invalidated(len(ids), examples=gone)


def run(
    store: Store, criteria: Criteria, clock: Callable[[], float], *, examples: bool = True
) -> tuple[list[str], int]:
    """Delete what fulfils the criteria; ids of the entries, number of examples. Raises `StorageError`.

    Without `examples` these stay.
    """
    done = [store.invalidations.invalidate(part, clock, examples=examples) for part in criteria.parts()]
    return [id_ for ids, _ in done for id_ in ids], sum(gone for _, gone in done)


def preview(store: Store, criteria: Criteria) -> Invalidated:
    """What `run` would delete. Raises `StorageError`."""
    found = [store.invalidations.preview(part, SHOWN) for part in criteria.parts()]
    newest = store.entries.of_ids([id_ for _, ids in found for id_ in ids])
    return Invalidated(sum(count for count, _ in found), tuple(newest[:SHOWN]))


def judge(store: Store, entry: Entry, good: bool) -> None:
    """Note feedback, and delete the entry if it is bad. Raises `StorageError`."""
    store.examples.set_feedback_of(entry, good)
    if not good:
        run(store, Criteria(entry=entry.id), time.time, examples=False)
    store.judgements.add([replace(_judgement(entry, good), at=time.time())])


def _judgement(
    entry: Entry, good: bool, asked: str = "", told: Mapping[str, Any] | None = None
) -> JudgementRow:
    similarity, score = (_number((told or {}).get(name)) for name in ("similarity", "score"))
    return JudgementRow(
        at=0.0,
        namespace=entry.namespace,
        scope=entry.scope,
        entry_id=entry.id,
        asked=asked or entry.question or "",
        stored=entry.question or "",
        similarity=similarity,
        score=score,
        scorer="",
        right=good,
        source="feedback",
    )


def _marker(answer: object) -> tuple[str, Mapping[str, Any]]:
    """The id of the entry meant, empty if none is, and what else is told of the hit."""
    if isinstance(answer, str):
        return answer, {}
    if isinstance(answer, Stored):
        return answer.entry_id, {}
    if isinstance(answer, Hit):
        return answer.entry_id, {"similarity": answer.similarity, "score": answer.score}
    if not isinstance(answer, Mapping):
        kind = type(answer).__name__
        raise InvalidInput(f"answer must be a Hit, the id of an entry or a message's metadata, not {kind}")
    told = answer.get(MARKER, answer)
    entry_id = told.get("entry_id") if isinstance(told, Mapping) else None
    return (entry_id, told) if isinstance(entry_id, str) else ("", {})


def _number(value: object) -> float:
    usable = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if usable else 1.0  # type: ignore[arg-type]
