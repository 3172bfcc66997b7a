"""Scores of candidates: what a verifier is given and returns, and the thresholds that were measured for it.

A score is the probability that the stored answer serves the question asked, where that is known: for the pair
model that comes with Ibidem and for the rule without it. For another embedder it is the cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from ibidem.errors import InvalidInput
from ibidem.matching.text import parse_question
from ibidem.types import Document, Entry, Vector, digest, require_text

Vectors = tuple[Vector, Vector]  # of the question asked and of the stored one: unit length, shape (d,)


UNSCORED = -1.0  # the score of a candidate before the verifier has given one
NEIGHBOURS = 16  # points searched for; as the vectors carry the scope, the right one is nearly always first


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored answer near the question asked.

    Attributes:
        entry: The stored question, its answer and the ids of its documents.
        similarity: The cosine similarity of the two questions.
        score: What the verifier says; `UNSCORED` before.
        vectors: The embeddings of the question asked and of the stored one.
        density: How near the other stored questions are, as `densities` says; 0 if nothing is known of them.
        documents: Documents the stored answer was given with that were retrieved again, with their text.
    """

    entry: Entry
    similarity: float
    score: float = UNSCORED
    vectors: Vectors | None = field(default=None, compare=False, repr=False)
    density: float = field(default=0.0, compare=False)
    documents: tuple[Document, ...] = field(default=(), compare=False, repr=False)


def densities(questions: Sequence[str | None], cosines: Sequence[float]) -> list[float]:
    """Return for each candidate the mean cosine of the other stored questions near the one asked.

    The more of them are near, the likelier a near one is another question. Each question counts once, however
    often it is stored; where fewer than `NEIGHBOURS` are, those that lack count as 0.
    """
    nearest: dict[str | None, float] = {}
    for question, cosine in zip(questions, cosines, strict=True):
        nearest[question] = max(cosine, nearest.get(question, -1.0))
    total = sum(nearest.values())
    return [(total - nearest[question]) / (NEIGHBOURS - 1) for question in questions]


class Verifier(Protocol):
    """Scores candidates: how sure it is that the stored answer of each serves the question asked.

    Called at most once per lookup, with those of the nearest candidates that neither guards nor documents
    refuse, the most similar first, of a cosine of at least `VERIFIED_FROM`; in the thread of the lookup,
    which waits for it. What it raises is a miss with reason `error`.

    What it may have besides, as the pair model has:

    * `min_cosine(threshold)`: returns the least cosine of the candidates that it is shown;
    * `most`: it is shown so many at most, one by one until one is certain;
    * `reads_both`: True if a guard need not refuse what only one of the questions says.
    """

    @property
    def name(self) -> str:
        """Identify the verifier and its version: audits keep judgements of its scores by this name."""
        ...

    def verify(self, question: str, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Return a score for each candidate, at most 1, to compare with the threshold; higher is surer."""
        ...


class Scorer(Verifier, Protocol):
    """A verifier of ours: it compares the two questions alone, and the meaning of its scores was measured."""

    @property
    def thresholds(self) -> Thresholds:
        """What share of the hits is wrong at which score."""
        ...

    @property
    def floor(self) -> float:
        """The least score of candidates that audits and fits look at."""
        ...

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """Score two questions; `vectors` are None where only the texts and their cosine are known."""
        ...

    def min_cosine(self, threshold: float) -> float:
        """Return a cosine below which no pair of questions reaches the threshold."""
        ...

    def usual_cosine(self, threshold: float) -> float | None:
        """Return the cosine from which on ordinary rewordings reach it; None if cosines do not tell."""
        ...


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds by the share of hits that is wrong at them, measured on streams of questions.

    Args:
        table: Pairs of a share and its threshold, both monotone: the more may be wrong, the lower.
    """

    table: tuple[tuple[float, float], ...]

    @property
    def highest(self) -> float:
        """The largest share of wrong hits that a threshold is known for."""
        return self.table[-1][0]

    def at(self, max_error_rate: float) -> float:
        """Return the threshold at which about `max_error_rate` of the hits are wrong, interpolated.

        Raises:
            InvalidInput: `max_error_rate` is no share above 0, or more than was measured.
        """
        if not 0.0 < max_error_rate <= self.highest:
            raise InvalidInput(
                f"max_error_rate is a share of the hits above 0 and at most {self.highest:g}, the highest "
                f"that was measured for this score (not {max_error_rate!r}); for more give the least score, "
                "or audit_rate so that audits decide"
            )
        for (level, threshold), (next_level, next_threshold) in pairwise(self.table):
            if max_error_rate < next_level:
                part = (max_error_rate - level) / (next_level - level)
                return threshold + part * (next_threshold - threshold)
        return self.table[-1][1]


def score_each(
    score: Callable[[str, str, float, Vectors | None], float],
    question: str,
    candidates: Sequence[Candidate],
) -> list[float]:
    """Score the question asked and each stored one."""
    return [score(question, one.entry.question or "", one.similarity, one.vectors) for one in candidates]


# Of the corrected cosine of all-MiniLM-L6-v2 (`ibidem.matching.learned`) on streams of customers' questions.
COSINES = Thresholds(((0.0, 1.0), (0.0171, 0.965), (0.02, 0.955), (0.0264, 0.94), (0.0375, 0.9)))


class CosineScorer:
    """The cosine itself, for embedders that the learned scorer does not know.

    With another number of negations the questions must be nearly identical: 0.9975 instead of 0.95 ("safe"
    and "not safe" reach 0.991).

    Args:
        embedder: Fingerprint of the embedder.
    """

    floor = 0.8
    thresholds = COSINES  # nobody has measured those of an embedder that is not known

    def __init__(self, embedder: str = "") -> None:
        # Judgements in databases are kept by this name, so it must not change.
        self.name = digest(embedder, "CosineScorer", "")

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """Return the cosine; its distance from 1 counts twenty times if the number of negations differs."""
        same = parse_question(asked).negations == parse_question(stored).negations
        return cosine if same else 1.0 - 20.0 * (1.0 - cosine)

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        """Score the question asked and each stored one."""
        return score_each(self.score, question, candidates)

    def min_cosine(self, threshold: float) -> float:
        """Return the threshold itself."""
        return threshold

    def usual_cosine(self, threshold: float) -> float:
        """Return the threshold itself."""
        return threshold


class CheckedVerifier:
    """A user's verifier whose results are checked, so that a wrong one cannot become a wrong hit.

    Candidates are shown to it from the cosine on that its `min_cosine` says, if it has one.

    Args:
        verifier: The verifier.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self.name = digest("Verifier", require_text("verifier.name", verifier.name))
        self.min_cosine: Callable[[float], float] | None = getattr(verifier, "min_cosine", None)

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        """Return the scores of the verifier; raises `InvalidInput` if they are no scores, or too few."""
        scores = [float(score) for score in self._verifier.verify(question, candidates)]
        if len(scores) != len(candidates) or any(map(math.isnan, scores)):
            raise InvalidInput(
                f"verifier {self._verifier.name!r} must return a number for each of {len(candidates)} "
                f"candidates, not {scores}"
            )
        return scores
