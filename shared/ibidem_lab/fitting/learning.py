"""Fit the threshold of a cache to its own labels: gather, prove, tell, adopt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np

from ibidem.errors import InvalidInput
from ibidem.matching import fitted as adoption
from ibidem.matching.decisions import as_entry
from ibidem.matching.fitted import SHIPPED, FittedThresholds
from ibidem.matching.guards import GUARDS, NamedGuard
from ibidem.matching.policy import Strictness, guards_beside
from ibidem.matching.scorers import Candidate, Scorer
from ibidem.pipeline import verifier_of
from ibidem.types import Request
from ibidem_lab.fitting.labels import MOST, Label, Pair, of_judgements, pairs_of
from ibidem_lab.fitting.proof import prove_thresholds, served
from ibidem_lab.replay import Judged, Row, Share, most_hits

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.index.search import SemanticIndex
    from ibidem.settings import Settings
    from ibidem.storage.store import Store

LEAST_LABELS, LEAST_OF_A_KIND = 200, 20  # with fewer, nothing is proved at 2 %
FOLDS = 10

Decided = Literal["fit", "given", "audits"]


class Served(NamedTuple):
    """What a threshold serves of the labelled questions."""

    hits: int
    wrong: int


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit found. It moves the threshold only; the score of a pair stays the shipped one.

    `questions` labelled, `right` the share of them whose best candidate is right. `threshold_before` is the
    shipped threshold for `max_error_rate`, `threshold_after` the one that these labels lead to
    (`ibidem.matching.fitted.NEVER`: none, nothing is served by meaning). `served_before` and `served_after`
    are what they serve of the labelled questions; after, each question is counted at the threshold that the
    others lead to. `hindsight` gives, for 1, 2 and 5 % wrong per hit, the share of the questions that could
    be served at most, had one known the best threshold. `adopted` tells whether caches use it from now on; if
    not, `reason` says why. `decided_by` tells what decides in this cache: the `fit`, a least score that was
    `given`, or the budget of its `audits`; the latter two a fit does not move.
    """

    questions: int
    right: float
    max_error_rate: float
    threshold_before: float
    threshold_after: float
    served_before: Served
    served_after: Served
    hindsight: dict[float, Share]
    decided_by: Decided
    adopted: bool
    reason: str
    fitted: FittedThresholds


def fit(
    cache: SemanticCache, labels: Sequence[Label | Row] | None = None, *, dry_run: bool = False
) -> FitReport:
    """Move the threshold to where labels put it: here at once, elsewhere when a cache is opened.

    The score of a pair stays the shipped one. The threshold is lowered where the labels prove that fewer than
    `max_error_rate` of the hits are wrong above the lower one, and raised where they disprove the shipped
    one. Lookups go on meanwhile. No text of a label is kept.

    Args:
        labels: `ibidem_lab.fitting.labels.Label(asked, stored, right)`, or
            `ibidem_lab.replay.Row(text, meaning)` in the order in which they were asked; not given, what
            audits of this cache have judged. The newest 4,000 count. Those with a question that `redact`
            would change are left out, as such questions are not compared by meaning.
        dry_run: Only report.

    Raises:
        InvalidInput: There are too few labels, or they are none.
        StorageError: The database failed.
        CacheClosed: The cache was closed.
    """
    cache.flush()
    runtime, index = cache._runtime, cache._runtime.semantic_index
    scorer = _scorer_of(cache, index)
    place = Place(
        runtime.store,
        index.embedder,
        runtime.settings,
        scorer,
        cache._admission.is_private,
        cache._guards,
    )
    report = place.fit(labels, cache._strictness, dry_run=dry_run)
    if not dry_run:
        runtime.active.adopt_thresholds(index, scorer, report.fitted if report.adopted else SHIPPED)
    return report


def drop_fit(cache: SemanticCache) -> bool:
    """Return to the threshold that is shipped, here at once; whether a fitted one was kept.

    Raises:
        StorageError: The database failed.
        CacheClosed: The cache was closed.
    """
    cache.flush()
    runtime, index = cache._runtime, cache._runtime.semantic_index
    scorer = _scorer_of(cache, index)
    there = adoption.drop(runtime.store, scorer, index.fingerprint)
    runtime.active.adopt_thresholds(index, scorer, SHIPPED)
    return there


def _scorer_of(cache: SemanticCache, index: SemanticIndex) -> Scorer:
    """What a fit can move: the thresholds of a score that comes with Ibidem.

    Raises:
        InvalidInput: The cache has a verifier of the user's own.
    """
    if not isinstance(cache._verifier, str):
        raise InvalidInput(
            "the scores of a verifier of your own have no threshold that a fit could move: give the cache "
            "min_probability, or audit_rate"
        )
    return cast("Scorer", verifier_of(cache._verifier, index))


def _texts(label: object) -> tuple[str, ...]:
    if isinstance(label, Label):
        return label.asked, label.stored
    return (label.text,) if isinstance(label, Row) else ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a threshold is fitted.

    Args:
        store: The database; holds judgements and the fitted thresholds.
        embedder: Of the caches there.
        settings: Of the caches there.
        scorer: For whose scores.
        is_private: Whether `redact` would change a text; such questions are no labels.
        guards: Of the caches there.
    """

    store: Store
    embedder: CheckedEmbedder
    settings: Settings
    scorer: Scorer
    is_private: Callable[[str], bool] = lambda text: False
    guards: Sequence[NamedGuard] = GUARDS

    def fit(
        self, labels: Sequence[Label | Row] | None, strictness: Strictness, *, dry_run: bool = False
    ) -> FitReport:
        """As `ibidem_lab.fit`; the caller tells its own process."""
        told: dict[tuple[str, str], float] = {}
        if labels is None:
            judged = of_judgements(reversed(self.store.judgements.recent(2 * MOST)))
            labels = [label for label, _ in judged]
            told = {(row.asked, row.stored): row.score for _, row in judged if row.scorer == self.scorer.name}
        labels = [label for label in labels if not any(map(self.is_private, _texts(label)))]
        pairs = pairs_of(labels, self.embedder, guards_beside(self.scorer, self.guards))
        best = best_of(pairs, self.scorer, told)
        level = min(strictness.max_error_rate, self.scorer.thresholds.highest)
        report = report_of(best, level, self.scorer, _decided_by(strictness, self.scorer))
        if not dry_run:
            adoption.drop(self.store, self.scorer, self.embedder.fingerprint)
            if report.adopted:
                adoption.adopt(self.store, self.scorer, report.fitted)
        return report


def _decided_by(strictness: Strictness, scorer: Scorer) -> Decided:
    if strictness.is_by_rate(scorer):
        return "fit"
    return "audits" if strictness.given(scorer) is None else "given"


def best_of(
    pairs: Sequence[Pair], scorer: Scorer, told: Mapping[tuple[str, str], float] | None = None
) -> list[Judged]:
    """The best candidate of each question, in their order.

    Args:
        pairs: The candidates of all questions.
        scorer: Scores them.
        told: What it said of a question and a stored one in a lookup, where it knew what else was near.

    Raises:
        InvalidInput: There are too few labels, or too few of one kind.
    """
    _require_enough(pairs)
    best: dict[int, Judged] = {}
    for pair in pairs:
        score = (told or {}).get((pair.asked, pair.stored))
        if score is None:
            (score,) = scorer.verify(pair.asked, [_candidate(pair)])
        if pair.request not in best or score > best[pair.request].score:
            best[pair.request] = Judged(score, pair.right)
    return list(best.values())


def _candidate(pair: Pair) -> Candidate:
    stored = as_entry(Request(pair.stored), "")
    return Candidate(stored, pair.cosine, vectors=pair.vectors, density=pair.density)


def _require_enough(pairs: Sequence[Pair]) -> None:
    questions, right = len({pair.request for pair in pairs}), sum(pair.right for pair in pairs)
    wrong = len(pairs) - right
    if questions < LEAST_LABELS or min(right, wrong) < LEAST_OF_A_KIND:
        raise InvalidInput(
            f"too few labels: {questions} questions, {right} pairs right and {wrong} wrong; at least "
            f"{LEAST_LABELS} questions and {LEAST_OF_A_KIND} pairs of each kind are needed, and "
            "1,000 to 2,000 questions are better; open the cache with audit_rate to collect them, or "
            "give a file of labels"
        )


def report_of(
    best: Sequence[Judged], max_error_rate: float, scorer: Scorer, decided_by: Decided = "fit"
) -> FitReport:
    """What these labels, one of each question, lead to."""
    fitted, before = prove_thresholds(best, scorer, max_error_rate), scorer.thresholds.at(max_error_rate)
    after = fitted.threshold(max_error_rate, scorer.thresholds)
    reason = "" if fitted.moved else "the labels neither prove a lower threshold nor disprove this one"
    return FitReport(
        questions=len(best),
        right=sum(one.right for one in best) / len(best),
        max_error_rate=max_error_rate,
        threshold_before=before,
        threshold_after=after,
        served_before=Served(*served(best, before)),
        served_after=_out_of_fold(best, max_error_rate, scorer),
        hindsight=most_hits(best, len(best)),
        decided_by=decided_by,
        adopted=fitted.moved,
        reason=reason,
        fitted=fitted,
    )


def _out_of_fold(best: Sequence[Judged], max_error_rate: float, scorer: Scorer, seed: int = 0) -> Served:
    """What is served if each tenth of the questions has the threshold that the other nine lead to."""
    fold = np.random.default_rng(seed).permutation(len(best)) % FOLDS
    hits = wrong = 0
    for at in range(FOLDS):
        others = [one for one, part in zip(best, fold, strict=True) if part != at]
        threshold = prove_thresholds(others, scorer, max_error_rate).threshold(
            max_error_rate, scorer.thresholds
        )
        held = [one for one, part in zip(best, fold, strict=True) if part == at]
        more, bad = served(held, threshold)
        hits, wrong = hits + more, wrong + bad
    return Served(hits, wrong)
