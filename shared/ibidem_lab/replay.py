"""What would a cache have done? Replays a labelled stream of questions in memory, as the cache decides.

Each question is asked in order: first of the exact tier, then of the nearest stored ones. What is no hit is
stored. Pure but for numpy: no storage, no index, no model; the vectors are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ibidem._util.intervals import clopper_pearson
from ibidem.cli.formatting import percent
from ibidem.matching.decisions import as_entry
from ibidem.matching.policy import Policy, Verdict, decide
from ibidem.matching.scorers import NEIGHBOURS, Candidate, Scorer, densities
from ibidem.types import Entry, Request, Vector, normalise, to_bytes, to_vector

if TYPE_CHECKING:
    from ibidem.embedding.base import CheckedEmbedder

CURVE_FROM = 0.7  # cosine of the farthest candidates that curves show
LEVELS = (0.01, 0.02, 0.05)  # of wrong hits, at which rules are compared
LAXEST = 0.5  # the least threshold that can be set

Rule = Callable[[Request, list[Candidate]], Verdict]


class Row(NamedTuple):
    """A question, what it means (rows of one meaning may share an answer), and the tokens its answer cost."""

    text: str
    meaning: Hashable
    tokens: int = 0


class Judged(NamedTuple):
    """The best candidate of a question: its score (infinite in the exact tier), and whether it is right."""

    score: float
    right: bool


class Share(NamedTuple):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{percent(self.value)} ({100 * self.low:.1f} to {100 * self.high:.1f})"


class Point(NamedTuple):
    """What one threshold serves."""

    threshold: float
    hits: int
    wrong: int

    @property
    def wrong_per_hit(self) -> float:
        """0 without hits."""
        return self.wrong / self.hits if self.hits else 0.0


@dataclass(slots=True)
class Outcome:
    """What a rule did on a stream.

    `refused` counts, by guard, what it refused rightly and wrongly (the nearest candidate was right).
    `judged` holds the best candidate of each question that had one.
    """

    requests: int = 0
    hits: int = 0
    exact: int = 0
    wrong: int = 0
    tokens: int = 0
    tokens_saved: int = 0
    refused: dict[str, list[int]] = field(default_factory=dict)
    judged: list[Judged] = field(default_factory=list)

    @property
    def hit_ratio(self) -> Share:
        """Hits per request."""
        return share(self.hits, self.requests)

    @property
    def wrong_per_hit(self) -> Share:
        """The share of hits that were wrong."""
        return share(self.wrong, self.hits)

    @property
    def wrong_per_request(self) -> Share:
        """The share of requests that were answered wrongly from the cache."""
        return share(self.wrong, self.requests)


def by_policy(policy: Policy, scorer: Scorer, least: float | None = None) -> Rule:
    """The cache's own decision; `least` as in `decide`."""
    return lambda request, near: decide(request, near, policy, scorer, min_cosine=least)


def by_cosine(threshold: float) -> Rule:
    """What a plain semantic cache does: the nearest question, if its cosine reaches the threshold."""

    def nearest(request: Request, near: list[Candidate]) -> Verdict:
        best = max(near, key=lambda candidate: candidate.similarity, default=None)
        if best is not None:
            best = replace(best, score=best.similarity)
        served = best is not None and best.similarity >= threshold
        return Verdict(best if served else None, "" if served else "below_threshold", best, best)

    return nearest


def curve_rule(scorer: Scorer | None) -> Rule:
    """A rule that serves nothing by meaning, so that `judged` holds what every threshold would have served.

    None stands for the plain cosine.
    """
    if scorer is None:
        return by_cosine(math.inf)
    return by_policy(Policy(threshold=math.inf), scorer, CURVE_FROM)


def replay(
    rows: Sequence[Row],
    vectors: Sequence[Vector | None],
    rule: Rule,
    seen: Callable[[], object] = lambda: None,
) -> Outcome:
    """Ask every row of a cache that holds the rows before it that were no hits.

    Args:
        rows: The stream, in order.
        vectors: The unit vector of each row; None for a question that is not compared by meaning.
        rule: Who decides: `by_policy`, `by_cosine`, `curve_rule`.
        seen: Called after each row.
    """
    if len(rows) != len(vectors):
        raise ValueError(f"{len(rows)} rows, but {len(vectors)} vectors")
    outcome, store = Outcome(), _Store(rows, vectors)
    for number, row in enumerate(rows):
        outcome.requests += 1
        outcome.tokens += row.tokens
        request = Request(row.text)
        twin = store.exact.get(request.key)
        served = twin if twin is not None else _by_meaning(request, row, number, store, rule, outcome)
        if twin is not None:
            outcome.exact += 1
            outcome.judged.append(Judged(math.inf, rows[twin].meaning == row.meaning))
        if served is None:
            store.add(request, number)
        else:
            outcome.hits += 1
            outcome.tokens_saved += row.tokens
            outcome.wrong += rows[served].meaning != row.meaning
        seen()
    return outcome


def _by_meaning(
    request: Request, row: Row, number: int, store: _Store, rule: Rule, outcome: Outcome
) -> int | None:
    """The row whose answer is served, if any; tallies what was judged."""
    verdict = rule(request, store.near(number))
    if verdict.best is not None:
        right = store.rows[int(verdict.best.entry.id)].meaning == row.meaning
        outcome.judged.append(Judged(verdict.best.score, right))
    if verdict.chosen is not None:
        return int(verdict.chosen.entry.id)
    if verdict.nearest is not None and verdict.reason.startswith("guard:"):
        right = store.rows[int(verdict.nearest.entry.id)].meaning == row.meaning
        outcome.refused.setdefault(verdict.reason.removeprefix("guard:"), [0, 0])[right] += 1
    return None


class _Store:
    """The rows that were stored: by their key, and by their vectors, rounded as the cache keeps them."""

    def __init__(self, rows: Sequence[Row], vectors: Sequence[Vector | None]) -> None:
        self.rows, self.vectors = rows, vectors
        self.exact: dict[str, int] = {}
        self._entries: list[Entry] = []
        dimension = next((vector.shape[0] for vector in vectors if vector is not None), 0)
        self._stored: NDArray[np.float32] = np.empty((len(rows), dimension), np.float32)

    def add(self, request: Request, number: int) -> None:
        self.exact[request.key] = number
        vector = self.vectors[number]
        if vector is not None:
            self._stored[len(self._entries)] = to_vector(to_bytes(vector))
            self._entries.append(as_entry(request, str(number)))

    def near(self, number: int) -> list[Candidate]:
        """The nearest stored entries, best first."""
        vector = self.vectors[number]
        if vector is None or not self._entries:
            return []
        stored, rounded = self._stored[: len(self._entries)], to_vector(to_bytes(vector))
        cosines = stored @ vector
        count = min(NEIGHBOURS, len(cosines))
        top = np.argpartition(-cosines, count - 1)[:count]
        nearest = top[np.argsort(-cosines[top], kind="stable")]
        entries = [self._entries[at] for at in nearest]
        told = [1.0 if (stored[at] == rounded).all() else min(1.0, float(cosines[at])) for at in nearest]
        around = densities([entry.question for entry in entries], told)
        return [
            Candidate(entry, similarity, vectors=(vector, stored[at]), density=density)
            for at, entry, similarity, density in zip(nearest, entries, told, around, strict=True)
        ]


def vectors_of(
    rows: Sequence[Row], embedder: CheckedEmbedder, seen: Callable[[], object] = lambda: None
) -> list[Vector | None]:
    """Embedded one by one, as the cache does; None for what it would compare exactly only."""
    known: dict[str, Vector | None] = {}
    for text in (normalise(row.text) for row in rows):
        if text not in known:
            known[text] = None if embedder.refusal(text) else embedder.vector_of(text)
        seen()
    return [known[normalise(row.text)] for row in rows]


def ceiling(rows: Iterable[Row]) -> float:
    """The hit ratio of a perfect cache: whatever was meant before is a hit."""
    meanings = [row.meaning for row in rows]
    return 1.0 - len(set(meanings)) / len(meanings) if meanings else 0.0


def curve(judged: Iterable[Judged]) -> list[Point]:
    """What every threshold that can be set would have served, the strictest first."""
    points: list[Point] = []
    hits = wrong = 0
    for score, right in sorted((one for one in judged if one.score >= LAXEST), key=lambda one: -one.score):
        hits, wrong = hits + 1, wrong + (not right)
        if points and points[-1].threshold == score:
            points.pop()
        points.append(Point(score, hits, wrong))
    return points


def hindsight(judged: Iterable[Judged], level: float) -> Point | None:
    """The threshold with the most hits at no more than `level` wrong per hit, had one known; None if none."""
    return next((point for point in reversed(curve(judged)) if point.wrong_per_hit <= level), None)


def most_hits(judged: Sequence[Judged], requests: int) -> dict[float, Share]:
    """For 1, 2 and 5 % wrong per hit, the share of the requests that `hindsight` would have served."""
    points = {level: hindsight(judged, level) for level in LEVELS}
    return {level: share(point.hits if point else 0, requests) for level, point in points.items()}


def p_chr_auc(judged: Iterable[Judged], requests: int) -> float:
    """Area under the precision over the cache-hit ratio (P-CHR AUC): how good the order of the scores is.

    Hit ratios that no threshold reaches count as precision 0: 1 means that each request was a right hit.
    """
    area, before = 0.0, 0
    for point in curve(judged):
        area += (1.0 - point.wrong_per_hit) * (point.hits - before)
        before = point.hits
    return area / requests if requests else 0.0


def share(count: int, total: int) -> Share:
    """`count` of `total` with its Clopper-Pearson interval."""
    return Share(count / total if total else 0.0, *clopper_pearson(count, total))
