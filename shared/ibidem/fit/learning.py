"""Fit the score of a cache to its own labels: gather, learn, compare with what is used now, adopt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from ibidem.audits.terms import scorer_name
from ibidem.decision.scoring import scorer_for, wrong_at
from ibidem.fit import adoption
from ibidem.fit.fitting import Fit, Pair, learn
from ibidem.fit.labels import MOST, Label, of_judgements, pairs_of
from ibidem.fit.scale import is_broken
from ibidem.replay import Judged, Row, Share, most_hits
from ibidem.request import normalise, require_name
from ibidem.storage.rows import JudgementRow

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.embedding.embedder import CheckedEmbedder
    from ibidem.fit.fitted import Array, FittedScorer
    from ibidem.fit.fitting import Places
    from ibidem.storage.records import Records

FIT = "fit"  # source of judgements that a fit wrote


class Served(NamedTuple):
    """What a threshold serves of the labelled questions."""

    hits: int
    wrong: int


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit found; all figures are cross-validated, of the labelled questions.

    `questions` labelled, `right` the share of them whose best candidate is right. `before` and `after` give,
    for 1, 2 and 5 % wrong per hit, the share of the questions that could be served at most, had one known the
    best threshold, by the shipped score and by the fitted one. `served_before` and `served_after` are what
    the cache's own threshold serves; with audits their budget decides instead. `adopted` tells whether the
    fitted score is used from now on; if not, `reason` says why.
    """

    questions: int
    right: float
    model: str
    before: dict[float, Share]
    after: dict[float, Share]
    served_before: Served
    served_after: Served
    threshold: float
    audited: bool
    adopted: bool
    reason: str
    scorer: FittedScorer


def fit_cache(
    self: SemanticCache,
    labels: Sequence[Label | Row] | None = None,
    *,
    namespace: str = "",
    dry_run: bool = False,
) -> FitReport:
    """Fit the score to labels, and use it if it is better: here at once, elsewhere when a cache is opened.

    Takes about half a minute of one core; lookups go on meanwhile. Audits begin with what the labels prove.

    Args:
        labels: `ibidem.fit.labels.Label(asked, stored, right)`, or `ibidem.replay.Row(text, meaning)` in the
            order in which they were asked; not given, what audits of this cache have judged. The newest
            4,000 count. Those with a question that `redact` would change are left out, as such questions
            are not compared by meaning.
        namespace: Whose audits begin with what given labels prove; judgements stay with their own.
        dry_run: Only report.

    Raises:
        InvalidInput: There are too few labels, or they are none; or the namespace cannot be stored.
        StorageError: The database failed.
        CacheClosed: The cache was closed.
    """
    require_name("namespace", namespace)
    self.flush()
    if labels is not None:  # their texts are kept: as judgements, and as words that the scorer knows
        labels = [label for label in labels if not any(map(self._admission.is_private, _texts(label)))]
    backend, matcher = self._backend, self._backend.matcher
    place = Place(backend.records, matcher.embedder, self.policy.threshold, self._auditor is not None)
    report = place.fit(labels, namespace=namespace, dry_run=dry_run)
    if report.adopted and not dry_run:
        backend.following.rescore(matcher, report.scorer)
    return report


def drop_cache(self: SemanticCache) -> bool:
    """Return to the score that is shipped, here at once; whether a fitted one was used.

    Raises:
        StorageError: The database failed.
        CacheClosed: The cache was closed.
    """
    self.flush()
    backend, matcher = self._backend, self._backend.matcher
    there = adoption.drop(backend.records, matcher.fingerprint)
    if there:
        backend.following.rescore(matcher, scorer_for(matcher.fingerprint))
    return there


def _texts(label: object) -> tuple[str, ...]:
    if isinstance(label, Label):
        return label.asked, label.stored
    return (label.text,) if isinstance(label, Row) else ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a score is fitted: a truth, an embedder, and what decides there.

    Args:
        records: The truth; holds judgements and the fitted scorer.
        embedder: Whose scores are fitted.
        threshold: The least score that is served if there are no audits.
        audited: Whether a budget decides instead.
    """

    records: Records
    embedder: CheckedEmbedder
    threshold: float
    audited: bool

    def fit(
        self, labels: Sequence[Label | Row] | None = None, *, namespace: str = "", dry_run: bool = False
    ) -> FitReport:
        """As `fit_cache`; the caller tells its own process."""
        rows: list[JudgementRow] | None = None
        if labels is None:
            judged = of_judgements(reversed(self.records.judgements.recent(2 * MOST)))
            labels, rows = [label for label, _ in judged], [row for _, row in judged]
        pairs = pairs_of(labels, self.embedder)
        fingerprint = self.embedder.fingerprint
        base = scorer_for(fingerprint)
        found = learn(pairs, base, scorer_name(fingerprint, base))
        report = report_of(found, self.threshold, self.audited)
        if report.adopted and not dry_run:
            self._hand_on(found, pairs, rows, namespace)
            adoption.adopt(self.records, fingerprint, found.scorer)
        return report

    def _hand_on(
        self, found: Fit, pairs: Sequence[Pair], rows: Sequence[JudgementRow] | None, namespace: str
    ) -> None:
        """Note the out-of-fold scores as judgements, so that audits do not begin from zero."""
        name = scorer_name(self.embedder.fingerprint, found.scorer)
        known = {} if rows is None else {(normalise(row.asked), normalise(row.stored)): row for row in rows}
        table, now, noted = self.records.judgements, time.time(), []
        for at in sorted(found.best.tolist()):
            pair = pairs[at]
            row = known.get((pair.asked, pair.stored)) or JudgementRow(
                at=now,
                namespace=namespace,
                scope="",
                entry_id="",
                asked=pair.asked,
                stored=pair.stored,
                similarity=pair.cosine,
                score=0.0,
                scorer=name,
                right=pair.right,
                source=FIT,
            )
            noted.append(replace(row, at=now, score=float(found.scores[at]), scorer=name, source=FIT))
        if not any(table.newest(1, one, name) for one in {row.namespace for row in noted}):
            table.add(noted)


def report_of(found: Fit, threshold: float, audited: bool) -> FitReport:
    """What a fit brings where this threshold, or a budget, decides; whether it is to be adopted."""
    best, shipped = (
        _judged(found.scores, found.best, found),
        _judged(found.shipped, found.best_shipped, found),
    )
    count = found.scorer.labels
    before, after = _served(shipped, threshold), _served(best, threshold)
    broken = is_broken(before.wrong, before.hits, wrong_at(threshold))
    reason = ""
    if not (found.better or broken or after.hits > before.hits):
        reason = "the fitted score is no better than the shipped one on these labels"
    elif not (audited or broken or after.hits >= before.hits):
        reason = (
            f"the labels are too few to prove the threshold {threshold:.3f} for as many hits as the "
            "shipped score has: give more, or turn on audits"
        )
    return FitReport(
        questions=count,
        right=sum(one.right for one in shipped) / count,
        model=found.model,
        before=most_hits(shipped, count),
        after=most_hits(best, count),
        served_before=before,
        served_after=after,
        threshold=threshold,
        audited=audited,
        adopted=not reason,
        reason=reason,
        scorer=found.scorer,
    )


def _judged(scores: Array, best: Places, found: Fit) -> list[Judged]:
    return [Judged(float(scores[at]), bool(found.right[at])) for at in best]


def _served(judged: Sequence[Judged], threshold: float) -> Served:
    served = [one.right for one in judged if one.score >= threshold]
    return Served(len(served), len(served) - sum(served))
