"""One reviewer's session: the pairs to judge in order, judgements (written at once), undo."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ibidem.audits.auditor import ASSUMED_RATE, report_of
from ibidem.lifecycle.rules import UNBOUNDED, Bounds
from ibidem.matching.guards import failed_guard
from ibidem.matching.shipped import last_fingerprint, policy_in_force, rule_for
from ibidem.types import normalise
from ibidem_lab.report.facts import boundary_of, is_below, scorer_in_force

if TYPE_CHECKING:
    from ibidem.matching.scorers import Scorer
    from ibidem.settings import Settings
    from ibidem.storage.reviews import Review, ReviewPair
    from ibidem.storage.store import Store
    from ibidem.types import Entry

LIMIT = 2_000  # pairs of audits, and of lookups, that are read: the nearest to the boundary
_VERDICTS = {True: "the same answer", False: "not the same answer"}


@dataclass(frozen=True, slots=True)
class ReviewQueue:
    """Find the pairs that no person has judged.

    Args:
        store: The database.
        scorer: Scores pairs as the cache does, or nearly so.
        boundary: The score from which on answers are served.
        line: The cosine about which answers begin to be served.
        namespace: Only this one; None for all.
        bounds: Limits on the size of the cache, which pinned answers must not exceed.
    """

    store: Store
    scorer: Scorer
    boundary: float
    line: float
    namespace: str | None = None
    bounds: Bounds = UNBOUNDED

    def pairs(self) -> list[ReviewPair]:
        """Return each pair once, the most informative first. Raises `StorageError`.

        Audits come first, as budgets rest on them; then hits and near misses by how close their score is to
        the boundary; last the refusals by a guard or a changed document, which a score cannot change.
        """
        reviews, wanted = self.store.reviews, (LIMIT, self.namespace)
        looked_up = self._scored(reviews.looked_up(self.line, *wanted))
        found: dict[str, ReviewPair] = {}
        for pair in (*reviews.audited(self.boundary, *wanted), *looked_up):
            if normalise(pair.asked) != normalise(pair.stored):
                found.setdefault(pair.id, pair)
        return sorted(found.values(), key=self._rank)

    def _scored(self, pairs: Iterable[ReviewPair]) -> Iterable[ReviewPair]:
        """Add the score that pairs have now: the log holds only the cosine."""
        for pair in pairs:
            score = self.scorer.score(pair.asked, pair.stored, pair.similarity)
            guard = failed_guard(pair.asked, pair.stored)
            reason = f"guard:{guard}" if guard and not pair.reason.startswith("guard:") else pair.reason
            yield replace(pair, score=score, reason=reason)

    def _rank(self, pair: ReviewPair) -> tuple[int, float, str]:
        score = pair.similarity if pair.score is None else pair.score
        last = pair.kind != "audit" and pair.reason not in ("", "audit") and not is_below(pair.reason)
        return 0 if pair.kind == "audit" else 1 + last, abs(score - self.boundary), pair.id


def review_queue(store: Store, settings: Settings, namespace: str | None) -> ReviewQueue:
    """Return the queue of a database as a cache that is opened now decides there; no model is loaded.

    Raises:
        StorageError: The database failed.
    """
    fingerprint = last_fingerprint(store)
    rate = settings.audit_rate or ASSUMED_RATE
    audits = report_of(store, settings.max_error_rate, rate, namespace)
    boundary = boundary_of(store, settings, audits)
    if boundary is None:
        boundary = policy_in_force(store, settings.strictness, scorer_in_force(store, settings)).threshold
    # Thousands of pairs are ranked for a page: the pair model would take half a minute, the rule does not.
    rule = rule_for(fingerprint)
    line = rule.usual_cosine(policy_in_force(store, settings.strictness, rule).threshold) or boundary
    return ReviewQueue(store, rule, boundary, line, namespace, settings.bounds)


class ReviewSession:
    """Hold the pairs to be judged. Thread-safe; methods raise `StorageError` when the database fails.

    `notice` is shown once; with it goes the id of an entry that was served and was just called wrong.

    Args:
        queue: Finds the pairs.
    """

    def __init__(self, queue: ReviewQueue) -> None:
        self.queue, self._store = queue, queue.store
        self._lock = threading.Lock()
        self._pairs: dict[str, ReviewPair] = {}  # in order
        self._undone = ""  # the pair to be shown before all others
        self.skipped: set[str] = set()
        self.done: list[tuple[ReviewPair, Review | None]] = []
        self.notice = self._doubted = ""

    def take_notice(self) -> tuple[str, str]:
        """Return notice and doubted entry, and forget them."""
        notice, doubted = self.notice, self._doubted
        self.notice = self._doubted = ""
        return notice, doubted

    def next(self) -> tuple[ReviewPair, Entry] | None:
        """Return the next pair with the stored entry; None if all are judged, also those met meanwhile."""
        with self._lock:
            if (found := self._first()) is None:
                self._pairs = {pair.id: pair for pair in self.queue.pairs()}
                found = self._first()
            return found

    def waiting(self) -> int:
        """Count the pairs that wait."""
        with self._lock:
            return len(self._pairs)

    def judge(self, pair_id: str, right: bool) -> Review | None:
        """Write a judgement; None if the pair is not known any more."""
        with self._lock:
            pair = self._pairs.get(pair_id)
            if pair is None:
                self.notice = "That pair is not waiting any more: it was judged, or its answer is gone."
                return None
            review = self._store.reviews.judge(pair, right, time.time())
            del self._pairs[pair_id]
            if review.again:
                self.notice = f"That pair was judged elsewhere: {_VERDICTS[review.right]}."
            else:
                self.done.append((pair, review))
                self._doubted = pair.entry_id if pair.kind == "hit" and not right else ""
        return review

    def skip(self, pair_id: str) -> None:
        """Do not show the pair again in this session."""
        with self._lock:
            if pair := self._pairs.get(pair_id):
                self.skipped.add(pair_id)
                self.done.append((pair, None))

    def undo(self) -> None:
        """Take back the last judgement or skip, and show its pair again."""
        with self._lock:
            if not self.done:
                self.notice = "There is nothing to undo."
                return
            pair, review = self.done.pop()
            self.skipped.discard(pair.id)
            if review is not None and not self._store.reviews.undo(review):
                self.notice = "That judgement is not in the log any more."
                return
            self.notice, self._undone = "Undone.", pair.id
            self._pairs = {pair.id: pair, **self._pairs}

    def _first(self) -> tuple[ReviewPair, Entry] | None:
        """Return the first pair that is still stored and was not judged elsewhere. Under the lock."""
        undone, self._undone = self._undone, ""
        for id_ in [undone, *self._pairs]:
            pair = self._pairs.get(id_)
            if pair is None or id_ in self.skipped:
                continue
            stored = self._store.entries.of_ids([pair.entry_id])
            if stored and self._store.reviews.verdict(pair) is None:
                return pair, stored[0]
            del self._pairs[id_]
        return None
