"""Vetted answers that are not served any more, and corrections by the reviewer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ibidem.errors import InvalidInput
from ibidem.lifecycle.invalidation import Criteria
from ibidem.lifecycle.pinning import corrected
from ibidem.types import ANY_DOCUMENTS

if TYPE_CHECKING:
    from ibidem.lifecycle.rules import Bounds
    from ibidem.storage.pins import Withdrawn
    from ibidem.storage.store import Store
    from ibidem.types import Entry

LIMIT = 50  # shown at a time, the newest
_REFUSALS = {
    "": "The answer is pinned, and served from now on.",
    "unknown_entry": "That answer is not there any more.",
    "invalidated": "Its documents have changed: ask the question anew, and correct what is said.",
    "pins_full": "Pinned answers fill max_entries or max_bytes: raise it, or drop some.",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A vetted answer that waits; `fresh` is what the model has said to its question since, if stored."""

    entry: Entry
    at: float
    reason: str
    fresh: Entry | None


class VettedAnswers:
    """The vetted answers of a database.

    `correct`, `keep` and `drop` say what was done. Methods raise `StorageError` when the database fails.

    Args:
        store: The database.
        namespace: Only this one; None for all.
        bounds: What pinned answers must not exceed.
    """

    def __init__(self, store: Store, namespace: str | None, bounds: Bounds) -> None:
        self._store, self._namespace, self._bounds = store, namespace, bounds

    def waiting(self) -> list[Waiting]:
        """Return the answers that are not served any more, at most `LIMIT`, the last ones first."""
        pins = self._store.pins
        found = [*pins.withdrawn(LIMIT, self._namespace), *pins.outdated(LIMIT, self._namespace)]
        shown = sorted(found, key=lambda one: -one.at)[:LIMIT]
        return [Waiting(one.entry, one.at, reason_of(one), self._fresh(one)) for one in shown]

    def correct(self, entry_id: str, text: str) -> str:
        """Put an answer in the place of a stored one."""
        try:
            return _REFUSALS[self._store.correct(entry_id, text, time.time(), self._bounds)]
        except InvalidInput as error:
            return f"Not done: {error}."

    def keep(self, entry_id: str, text: str) -> str:
        """Serve a waiting answer with this text: in the place of what the model has said since, if it has."""
        found = self._find(entry_id)
        if found is None:
            return _REFUSALS["unknown_entry"]
        fresh = self._fresh(found)
        if fresh is not None and found.entry.documents != ANY_DOCUMENTS:
            said = self.correct(fresh.id, text)
            if said == _REFUSALS[""]:
                self._remove(found)
            return said
        if found.outdated:
            return self.correct(entry_id, text)
        try:
            return _REFUSALS[
                self._store.pins.restore(
                    entry_id, lambda one: corrected(one, text), time.time(), self._bounds
                )
            ]
        except InvalidInput as error:
            return f"Not done: {error}."

    def drop(self, entry_id: str) -> str:
        """Forget a waiting answer."""
        found = self._find(entry_id)
        if found is None:
            return _REFUSALS["unknown_entry"]
        self._remove(found)
        return "The answer was dropped."

    def _find(self, entry_id: str) -> Withdrawn | None:
        pins = self._store.pins
        found = (*pins.withdrawn(LIMIT, self._namespace), *pins.outdated(LIMIT, self._namespace))
        return next((one for one in found if one.entry.id == entry_id), None)

    def _fresh(self, one: Withdrawn) -> Entry | None:
        entry = one.entry
        if entry.question is None:
            return None
        found = self._store.reviews.answer_to(entry.namespace, entry.scope, entry.question)
        if not found or (one.outdated and found == entry.id):
            return None
        return next(iter(self._store.entries.of_ids([found])), None)

    def _remove(self, found: Withdrawn) -> None:
        if found.outdated:  # which withdraws it
            criteria = Criteria(entry=found.entry.id)
            self._store.invalidations.invalidate(criteria, time.time, examples=False)
        self._store.pins.discard(found.entry.id)


def reason_of(one: Withdrawn) -> str:
    """Say in words why an answer is not served."""
    if one.outdated:
        return "Asked again over other documents"
    criteria = one.criteria
    if criteria is None:
        return "Invalidated"
    if criteria.documents:
        several = len(criteria.documents) > 1
        return "Documents behind it changed" if several else f"{criteria.documents[0]} changed"
    if criteria.entry is not None:
        return "Somebody called it wrong, or deleted it"
    given = {name: getattr(criteria, name) for name in ("tag", "model", "namespace")}
    told = [f"{name} {value}" for name, value in given.items() if value is not None]
    before = [] if criteria.before is None else ["everything of before"]
    return f"Invalidated with {', '.join([*told, *before])}"
