"""The gate before a promotion: held-out lookups before and after, and why something is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ibidem._util.intervals import clopper_pearson
from ibidem_lab.learning.choosing import Interval, Learned, Problem, Served, kept, resampled
from ibidem_lab.learning.evidence import LabelSet
from ibidem_lab.replay import Share, share

LEAST_LABELS, LEAST_OF_A_KIND = 50, 10
MOST_UNJUDGED = 0.3  # share of the hits that may lack a label: of these nothing is known


class Counts(NamedTuple):
    """What a decision serves of the held-out lookups; `unjudged` hits have no label."""

    hits: int
    wrong: int
    unjudged: int

    @property
    def wrong_per_hit(self) -> Share:
        """The share of the judged hits that are wrong."""
        return share(self.wrong, self.hits - self.unjudged)


class Anchored(NamedTuple):
    """What is served of the labelled pairs that come with Ibidem, each alone in a cache."""

    same: int
    different: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found: `gain` is in hits per lookup; `reasons` speak against a promotion."""

    lookups: int
    groups: int
    level: float
    before: Counts
    after: Counts
    gain: Interval
    wrong: Interval
    anchors_before: Anchored
    anchors_after: Anchored
    reasons: tuple[str, ...]

    @property
    def better(self) -> bool:
        """Whether it may be promoted."""
        return not self.reasons


def judge(problem: Problem, learned: Learned, before: Served, after: Served) -> Judgement:
    """Compare what is served before and after.

    Args:
        problem: What was learned from.
        learned: What was learned.
        before: By the decision in use.
        after: By what was learned without the group of each lookup.
    """
    lookups = problem.lookups
    group = np.zeros(lookups.count, np.int64)
    group[lookups.lookup] = lookups.group
    gain = resampled(
        group,
        lambda sums: (sums[:, 1] - sums[:, 0]) / sums[:, 2],
        (before.hits, after.hits, np.ones_like(group)),
    )
    wrong = resampled(
        group,
        lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1.0),
        (after.wrong, after.hits - after.unjudged),
    )
    right = problem.anchors.right
    plain, changed = problem.anchors.margins(problem.shipped), learned.margins(problem, problem.anchors)
    anchors = [
        Anchored(int((values[right] >= problem.least).sum()), int((values[~right] >= problem.least).sum()))
        for values in (plain, changed)
    ]
    found = Judgement(
        lookups.count,
        len(np.unique(group)),
        problem.level,
        _counts(before),
        _counts(after),
        gain,
        wrong,
        anchors[0],
        anchors[1],
        (),
    )
    return replace(found, reasons=tuple(_reasons(found, learned)))


def _counts(found: Served) -> Counts:
    return Counts(int(found.hits.sum()), int(found.wrong.sum()), int(found.unjudged.sum()))


def _reasons(found: Judgement, learned: Learned) -> list[str]:
    """Say what speaks against it."""
    after, said = found.after, []
    judged = after.hits - after.unjudged
    if learned.shift is None:
        said.append(f"no decision keeps {found.level:.1%} wrong per hit on lookups that it has not seen")
    if not found.gain.low > 0.0:
        low, high = found.gain.low, found.gain.high
        said.append(f"it has not more hits beyond chance ({low:+.1%} to {high:+.1%} of the lookups)")
    if after.hits and not kept(after.wrong, judged, found.level):
        said.append(f"{after.wrong} of {judged} judged hits are wrong, and {found.level:.1%} may be")
    if after.unjudged > MOST_UNJUDGED * max(after.hits, 1):
        said.append(
            f"of {after.unjudged} of {after.hits} hits nobody knows whether they are right: label them"
        )
    if found.anchors_after.different > found.anchors_before.different:
        said.append(
            f"of the pairs that come with Ibidem it serves {found.anchors_after.different} wrong ones, and "
            f"{found.anchors_before.different} are served now"
        )
    return said


def not_enough(known: LabelSet) -> str:
    """Return what is lacking to learn anything; "" if nothing is."""
    right = sum(one.right for one in known.labels)
    wrong = len(known.labels) - right
    if len(known.labels) >= LEAST_LABELS and min(right, wrong) >= LEAST_OF_A_KIND:
        return ""
    return (
        f"not enough labels: {right} pairs that one answer serves and {wrong} that need two; at least "
        f"{LEAST_LABELS} pairs and {LEAST_OF_A_KIND} of each kind are needed"
    )


@dataclass(frozen=True, slots=True)
class LearnReport:
    """What a run found.

    `labels` counts them by source, `right` those that one answer serves. `lacking` says what is lacking to
    learn anything, `expected` in which interval a share of wrong hits of `level` would be known to lie.
    `judged` is None where nothing was learned; else `recipe` says what was trained, and `directory` holds it.
    `promoted` tells whether it is in service.
    """

    labels: Mapping[str, int]
    right: int
    level: float
    lacking: str
    expected: tuple[float, float]
    judged: Judgement | None = None
    recipe: str = ""
    directory: Path | None = None
    promoted: bool = False

    @classmethod
    def of_labels(cls, known: LabelSet, lacking: str, level: float) -> LearnReport:
        """Report on the labels alone."""
        right = sum(one.right for one in known.labels)
        return cls(known.sources, right, level, lacking, clopper_pearson(round(level * right), max(right, 1)))

    @classmethod
    def of_judgement(
        cls, known: LabelSet, judged: Judgement, learned: Learned, directory: Path
    ) -> LearnReport:
        """Report on what was learned."""
        plain = cls.of_labels(known, "", judged.level)
        return replace(plain, judged=judged, recipe=learned.recipe.name, directory=directory)

    def in_service(self) -> LearnReport:
        """Return the report once it is promoted."""
        return replace(self, promoted=True)

    @property
    def total(self) -> int:
        """How many labels there are."""
        return sum(self.labels.values())

    def figures(self) -> dict[str, Any]:
        """Return the figures, for `metrics.json`."""
        judged = self.judged
        if judged is None:
            return {"labels": dict(self.labels)}
        return {
            "labels": dict(self.labels),
            "recipe": self.recipe,
            "lookups": judged.lookups,
            "max_error_rate": judged.level,
            "before": judged.before._asdict(),
            "after": judged.after._asdict(),
            "reasons": list(judged.reasons),
        }
