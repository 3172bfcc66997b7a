"""Which pairs are to be judged, and in which order: those first from which most is learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ibidem.audits.auditor import ASSUMED_RATE, report_of
from ibidem.matching.fitted import policy_in_force
from ibidem.matching.guards import failed_guard
from ibidem.matching.policy import scorer_for
from ibidem.types import normalise
from ibidem_lab.report.facts import BELOW, boundary_of

if TYPE_CHECKING:
    from ibidem.matching.policy import Scorer
    from ibidem.settings import Settings
    from ibidem.storage.browsing import ReviewPair
    from ibidem.storage.store import Store

LIMIT = 2_000  # pairs of audits, and of lookups, that are looked at: the nearest to the boundary
SCORED = ("", "audit", *BELOW)  # outcomes that the score decided
KINDS = ("audit", "hit", "near_miss")


@dataclass(frozen=True, slots=True)
class Sieve:
    """Finds the pairs of one place.

    Args:
        store: The database of the place.
        scorer: What scores pairs there.
        boundary: The score from which on answers are served.
        namespace: Only this one; None for all.
    """

    store: Store
    scorer: Scorer
    boundary: float
    namespace: str | None = None

    def pairs(self) -> list[ReviewPair]:
        """Pairs that no person has judged, each once. Raises `StorageError`.

        Audits come first, as budgets rest on them; then hits and near misses by how close their score is to
        the boundary; last what a guard or a changed document refused, which a score cannot change.
        """
        reviews, wanted = self.store.reviews, (self.boundary, LIMIT, self.namespace)
        found: dict[str, ReviewPair] = {}
        for met in (*reviews.audited(*wanted), *self._scored(reviews.looked_up(*wanted))):
            if normalise(met.asked) != normalise(met.stored):
                found.setdefault(met.id, met)
        return sorted(found.values(), key=self._place)

    def _scored(self, found: Iterable[ReviewPair]) -> Iterable[ReviewPair]:
        """With the score that they have now: the log tells only the cosine."""
        for met in found:
            score = self.scorer.score(met.asked, met.stored, met.similarity)
            guard = failed_guard(met.asked, met.stored)
            reason = f"guard:{guard}" if guard and not met.reason.startswith("guard:") else met.reason
            yield replace(met, score=score, reason=reason)

    def _place(self, met: ReviewPair) -> tuple[int, float, str]:
        score = met.similarity if met.score is None else met.score
        last = met.kind != "audit" and met.reason not in SCORED
        return 0 if met.kind == "audit" else 1 + last, abs(score - self.boundary), met.id


def sieve_of(store: Store, settings: Settings, namespace: str | None) -> Sieve:
    """The sieve of a place as a cache that is opened now decides there; no model is loaded.

    Raises:
        StorageError: The database failed.
    """
    known = store.embedders.registered()
    scorer = scorer_for(max(known, key=lambda one: known[one], default=""))
    rate = settings.audit_rate or ASSUMED_RATE
    audits = report_of(store, settings.max_error_rate, rate, namespace)
    boundary = boundary_of(store, settings, audits)
    if boundary is None:
        boundary = policy_in_force(store, settings.policy).threshold
    return Sieve(store, scorer, boundary, namespace)
