"""The rule without a model: the cosine, corrected for the words that differ, as a probability.

It decides where `verifier=None` was given or the pair model cannot be used. It was learned for the default
embedder, by `tests/benchmarks/fit_scorer.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ibidem._util.words_en import DISTINCT_PREFIXES
from ibidem.matching.scorers import Candidate, Thresholds, Vectors, score_each
from ibidem.matching.text import QuestionFeatures, parse_question
from ibidem.types import digest

REACH = 1.02  # a little above 1, so that identical vectors have a finite logarithm
MAX_COUNTS = {"inserted": 2, "replaced": 3, "fillers": 5, "comparison": 2}  # counts saturate here
FARTHEST = 0.8  # nearness of the farthest candidates that audits and fits look at
_MAX_MISSPELT = 64  # words of one side that are compared with all of the other


@dataclass(frozen=True)
class LearnedScorer:
    """Weights of the features, learned for the embedder of this fingerprint.

    The features correct the cosine to a `nearness`, which still reads like one. Its probability is
    sigmoid(slope * -log(REACH - nearness) + offset), fitted to two streams of customers' questions.

    Args:
        weights: Of the features, by name.
        bias: Such that an ordinary rewording has its cosine as nearness.
        slope: Of the probability.
        offset: Of the probability.
        thresholds: Of the probability, measured on the same streams with weights fitted without them.
        embedder: Fingerprint.
    """

    weights: Mapping[str, float]
    bias: float
    slope: float
    offset: float
    thresholds: Thresholds
    embedder: str = ""

    @cached_property  # each lookup asks for it
    def name(self) -> str:
        """Identify the weights, as judgements in databases are kept by this name."""
        return digest(self.embedder, "LearnedScorer", repr(self))

    @property
    def floor(self) -> float:
        """The probability of the farthest candidates that are looked at."""
        return self.probability(FARTHEST)

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """Return the probability that one answer serves both."""
        return self.probability(self.nearness(asked, stored, cosine))

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        """Score the question asked and each stored one."""
        return score_each(self.score, question, candidates)

    def nearness(self, asked: str, stored: str, cosine: float) -> float:
        """Return the cosine, corrected for the words that differ."""
        found = features(asked, stored)
        penalty = self.bias - sum(self.weights[name] * value for name, value in found.items())
        if not (parse_question(asked).is_english and parse_question(stored).is_english):
            penalty = max(penalty, 0.0)  # no bonus where the words are not understood
        return max(-1.0, min(1.0, REACH - (REACH - cosine) * math.exp(penalty)))

    def probability(self, nearness: float) -> float:
        """Convert a nearness, from -1 to 1; it rises strictly."""
        return 0.5 + 0.5 * math.tanh(0.5 * (self.offset - self.slope * math.log(REACH - nearness)))

    def usual_cosine(self, threshold: float) -> float:
        """Return the nearness of this probability: the bias makes it the cosine of ordinary rewordings."""
        if not 0.0 < threshold < 1.0:
            return math.copysign(1.0, threshold - 0.5)
        return REACH - math.exp((self.offset - math.log(threshold / (1.0 - threshold))) / self.slope)

    def min_cosine(self, threshold: float) -> float:
        """Return where the highest bonus ends."""
        near = self.usual_cosine(threshold)
        bonus = sum(weight * MAX_COUNTS.get(name, 1) for name, weight in self.weights.items() if weight > 0)
        return REACH - (REACH - near) * math.exp(max(0.0, bonus - self.bias))


def features(asked: str, stored: str) -> dict[str, float]:
    """Describe what differs: all 0 for two questions of the same words, but `rephrased` is 1.

    `inserted` and `replaced` content words; `one_word` if one was replaced in its place; another
    `question_word`; an `amount` asked for by one only; words of `comparison`; `negation`; `fillers`.
    """
    one, other = parse_question(asked), parse_question(stored)
    ours, theirs = unshared_words(one, other)
    found = {
        "inserted": abs(len(ours) - len(theirs)),
        "replaced": min(len(ours), len(theirs)),
        "one_word": len(ours) == len(theirs) == 1 and differ_in_one_place(one.words, other.words),
        "question_word": bool(one.asks and other.asks) and one.asks != other.asks,
        "amount": ("amount" in one.asks) != ("amount" in other.asks),
        "comparison": _difference(one.comparisons, other.comparisons),
        "negation": one.negations != other.negations,
    }
    found["rephrased"] = not any(found.values()) and _built_alike(one, other)
    found["fillers"] = _difference(one.fillers, other.fillers)
    return {name: float(min(value, MAX_COUNTS.get(name, 1))) for name, value in found.items()}


def _built_alike(one: QuestionFeatures, other: QuestionFeatures) -> bool:
    """Return whether prepositions are the same and content words, if all are shared, in the same order."""
    moved = one.stems != other.stems and sorted(one.stems) == sorted(other.stems)
    return one.prepositions == other.prepositions and not moved


def _difference(one: Counter[str], other: Counter[str]) -> int:
    return 0 if one == other else sum(((one - other) + (other - one)).values())


def unshared_words(one: QuestionFeatures, other: QuestionFeatures) -> tuple[list[str], list[str]]:
    """Return the content words of one side only; a word and its misspelling count as shared."""
    if one.stems == other.stems:
        return [], []
    a, b = Counter(one.stems), Counter(other.stems)
    ours, theirs = list((a - b).elements()), list((b - a).elements())
    # Where more words differ, misspellings do not make the same question.
    for word in list(ours) if max(len(ours), len(theirs)) <= _MAX_MISSPELT else ():
        twin = next((candidate for candidate in theirs if is_misspelling(word, candidate)), None)
        if twin is not None:
            ours.remove(word)
            theirs.remove(twin)
    return ([], []) if "".join(ours) == "".join(theirs) else (ours, theirs)


@lru_cache(maxsize=16384)
def is_misspelling(one: str, other: str) -> bool:
    """Return whether one word is likely the other, misspelt or with another ending."""
    if min(len(one), len(other)) < 4 or one.isdigit() or other.isdigit():
        return False
    if any({one[: len(a)], other[: len(b)]} == {a, b} for x in DISTINCT_PREFIXES for a, b in (x, x[::-1])):
        return False
    of_one_kind = min(len(one), len(other)) >= 5 and abs(len(one) - len(other)) <= 4
    if of_one_kind and (one.startswith(other[:-2]) or other.startswith(one[:-2])):
        return True
    a, b = _bigrams(one), _bigrams(other)
    overlap = 2 * len(a & b) / (len(a) + len(b))
    return overlap >= (0.62 if one[0] == other[0] else 0.75)


def _bigrams(word: str) -> frozenset[str]:
    word = f"^{word}$"
    return frozenset(word[at : at + 2] for at in range(len(word) - 1))


def differ_in_one_place(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether the two have as many words, and at most two neighbouring ones differ."""
    if len(one) != len(other):
        return False
    differing = [at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    return bool(differing) and differing[-1] - differing[0] <= 1
