"""Delete stored answers by criteria, and record feedback on them; also for tools that open no cache."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ibidem.lifecycle.invalidation import Criteria, Invalidated
from ibidem.storage.logs import JudgementRow

if TYPE_CHECKING:
    from ibidem.storage.store import Store
    from ibidem.types import Entry

SHOWN = 20  # entries that a dry run returns


def delete_matching(
    store: Store, criteria: Criteria, clock: Callable[[], float], *, examples: bool = True
) -> tuple[list[str], int]:
    """Delete what fulfils the criteria; return ids of the entries and the number of examples.

    Without `examples` these stay. Raises `StorageError`.
    """
    done = [store.invalidations.invalidate(part, clock, examples=examples) for part in criteria.parts()]
    return [id_ for ids, _ in done for id_ in ids], sum(count for _, count in done)


def preview(store: Store, criteria: Criteria) -> Invalidated:
    """Return what `delete_matching` would delete. Raises `StorageError`."""
    found = [store.invalidations.preview(part, SHOWN) for part in criteria.parts()]
    newest = store.entries.of_ids([id_ for _, ids in found for id_ in ids])
    return Invalidated(sum(count for count, _ in found), tuple(newest[:SHOWN]))


def record_feedback(store: Store, entry: Entry, good: bool) -> None:
    """Record feedback, and delete the entry if it is bad. Raises `StorageError`."""
    store.examples.set_feedback_of(entry, good)
    if not good:
        delete_matching(store, Criteria(entry=entry.id), time.time, examples=False)
    store.judgements.add([replace(feedback_row(entry, good), at=time.time())])


def feedback_row(
    entry: Entry, good: bool, asked: str = "", marker: Mapping[str, Any] | None = None
) -> JudgementRow:
    """Build the judgement of feedback; `marker` is the hit's, with its similarity and score."""
    similarity, score = (_number((marker or {}).get(name)) for name in ("similarity", "score"))
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


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 1.0
