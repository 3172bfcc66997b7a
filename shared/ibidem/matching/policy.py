"""Decide whether a stored answer may be repeated for a question. Pure: no clock, no I/O, no model."""

from __future__ import annotations

import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from itertools import chain, pairwise
from typing import Any, Literal, Protocol

from ibidem.errors import InvalidInput
from ibidem.matching.guards import GUARDS, NamedGuard, failed_guard
from ibidem.matching.text import QuestionFeatures, parse_question
from ibidem.matching.words_en import COMMON_WORDS, DISTINCT_PREFIXES
from ibidem.types import Document, Entry, Request, Vector, digest, require_text

REACH = 1.02  # a little above 1, so that identical vectors have a finite logarithm
Vectors = tuple[Vector, Vector]  # of the question asked and of the stored one: unit length, shape (d,)
MAX_COUNTS = {"inserted": 2, "replaced": 3, "fillers": 5, "comparison": 2}  # counts saturate here
_MAX_MISSPELT = 64  # words of one side that are compared with all of the other


class Verifier(Protocol):
    """Scores candidates: how sure it is that the stored answer of each serves the question asked.

    Called at most once per lookup, with those of the nearest candidates that neither guards nor documents
    refuse, of a cosine of at least `VERIFIED_FROM`, or of what its method `min_cosine` returns, if it has
    one; in the thread of the lookup, which waits for it. What it raises is a miss with reason `error`.
    """

    @property
    def name(self) -> str:
        """Identify the verifier and its version: audits keep judgements of its scores by this name."""
        ...

    def verify(self, question: str, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Return a score for each candidate, at most 1, to compare with the threshold; higher is surer."""
        ...


class Scorer(Verifier, Protocol):
    """A verifier that compares the two questions alone, so that it also scores pairs without an answer."""

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """Score two questions; `vectors` are None where only the texts and their cosine are known."""
        ...

    def min_cosine(self, threshold: float) -> float:
        """Return a cosine below which no pair of questions reaches the threshold."""
        ...


class _PairScorer:
    """Verifies candidates one by one, by their questions."""

    __slots__ = ()

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        raise NotImplementedError

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        """Score the question asked and each stored one."""
        return [
            self.score(question, candidate.entry.question or "", candidate.similarity, candidate.vectors)
            for candidate in candidates
        ]


class CosineScorer(_PairScorer):
    """The cosine itself, for embedders that the learned scorer does not know.

    With another number of negations the questions must be nearly identical: 0.9975 instead of 0.95 ("safe"
    and "not safe" reach 0.991).

    Args:
        embedder: Fingerprint of the embedder.
    """

    def __init__(self, embedder: str = "") -> None:
        self._embedder = embedder

    @property
    def name(self) -> str:
        """Identify the scorer: judgements in databases are kept by this name, so it must not change."""
        return digest(self._embedder, "CosineScorer", "")

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """Return the cosine; its distance from 1 counts twenty times if the number of negations differs."""
        same = parse_question(asked).negations == parse_question(stored).negations
        return cosine if same else 1.0 - 20.0 * (1.0 - cosine)

    def min_cosine(self, threshold: float) -> float:
        """Return the threshold itself."""
        return threshold


@dataclass(frozen=True, slots=True)
class LearnedScorer(_PairScorer):
    """Weights of the features, learned for the embedder of this fingerprint."""

    weights: Mapping[str, float]
    bias: float
    embedder: str = ""

    @property
    def name(self) -> str:
        """Identify the weights, by class and fields, as judgements in databases are kept by this name."""
        return digest(self.embedder, "LearnedScorer", repr(self))

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """Return the cosine, corrected for the words that differ."""
        found = features(asked, stored)
        penalty = self.bias - sum(self.weights[name] * value for name, value in found.items())
        if not (parse_question(asked).is_english and parse_question(stored).is_english):
            penalty = max(penalty, 0.0)  # no bonus where the words are not understood
        return max(-1.0, min(1.0, REACH - (REACH - cosine) * math.exp(penalty)))

    def min_cosine(self, threshold: float) -> float:
        """Return where the highest bonus ends."""
        bonus = sum(weight * MAX_COUNTS.get(name, 1) for name, weight in self.weights.items() if weight > 0)
        return REACH - (REACH - threshold) * math.exp(max(0.0, bonus - self.bias))


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


@lru_cache(maxsize=1)
def shipped() -> LearnedScorer:
    """Return the scorer that comes with Ibidem, for the default embedder."""
    held = _scorer_file()
    return LearnedScorer(held["weights"], held["bias"], held["embedder"])


def highest_error_rate() -> float:
    """Return the largest share of wrong hits that a threshold is known for."""
    table: list[list[float]] = _scorer_file()["calibration"]
    return table[-1][0]


def threshold_for(max_error_rate: float) -> float:
    """Return the threshold at which about `max_error_rate` of the hits are wrong.

    For question-and-answer traffic like the two streams of customers' questions it was measured on, with the
    default embedder and weights that had not learned from them; the worse of the two, interpolated. Other
    traffic needs audits.

    Raises:
        InvalidInput: `max_error_rate` is no share above 0, or more than was measured.
    """
    most = highest_error_rate()
    if not 0.0 < max_error_rate <= most:
        raise InvalidInput(
            f"is a share of the hits above 0 and at most {most:g}, the highest for which a threshold of the "
            f"shipped score was measured (not {max_error_rate!r}); for more give threshold, or audit_rate so "
            "that audits decide"
        )
    table: list[list[float]] = _scorer_file()["calibration"]
    for (level, threshold), (next_level, next_threshold) in pairwise(table):
        if max_error_rate < next_level:
            part = (max_error_rate - level) / (next_level - level)
            return threshold + part * (next_threshold - threshold)
    return table[-1][1]


@lru_cache(maxsize=1)
def _scorer_file() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("ibidem.matching") / "scorer.json").read_text(encoding="utf-8"))
    return found


def scorer_for(fingerprint: str) -> Scorer:
    """Return the learned scorer for the embedder it was learned for, else the cosine."""
    learned = shipped()
    return learned if fingerprint == learned.embedder else CosineScorer(fingerprint)


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


DocumentPolicy = Literal["supporting", "all", "ignore"]
_COSINE = CosineScorer()
MAX_CANDIDATES = 6  # the most similar ones, which are judged: scoring one costs up to 0.2 ms
# Cosine of the farthest candidates that a user's verifier sees, as audits do: of those a little above it (to
# 0.85) 9 % are wrong on clinc150 and 21 % on banking77.
VERIFIED_FROM = 0.8


@dataclass(frozen=True, slots=True)
class Policy:
    """How sure the cache must be.

    Args:
        threshold: Least score of a candidate. A score reads like a cosine similarity: see
            `ibidem.matching.policy`.
        document_policy: Which documents must be the same. `all` of them; `supporting`: those that support the
            stored answer must be retrieved again, unchanged; `ignore`: none.
        max_error_rate: The share of wrong hits that the threshold was chosen for; None if it was given.
    """

    threshold: float = 0.955
    document_policy: DocumentPolicy = "supporting"
    max_error_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored answer near the question asked.

    Attributes:
        entry: The stored question, its answer and the ids of its documents.
        similarity: The cosine similarity of the two questions.
        score: What the verifier says; -1 before.
        vectors: The embeddings of the question asked and of the stored one.
        documents: Documents the stored answer was given with that were retrieved again, with their text.
    """

    entry: Entry
    similarity: float
    score: float = -1.0
    vectors: Vectors | None = field(default=None, compare=False, repr=False)
    documents: tuple[Document, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether `chosen` may be served; if None, `reason` says why `nearest`, the most similar, may not.

    `best` is the candidate with the highest score that is refused by nothing but its score.
    """

    chosen: Candidate | None
    reason: str
    nearest: Candidate | None
    best: Candidate | None = None


def decide(
    request: Request,
    candidates: Iterable[Candidate],
    policy: Policy,
    verifier: Verifier = _COSINE,
    *,
    guards: Sequence[NamedGuard] = GUARDS,
    min_cosine: float | None = None,
) -> Verdict:
    """Choose the candidate with the highest score that neither guards nor documents refuse.

    The reason of a refusal is that of the most similar candidate.

    Args:
        request: The question asked.
        candidates: Confirmed by the database: alive, same namespace and scope.
        policy: How sure the cache must be.
        verifier: Scores the candidates.
        guards: Refuse candidates whatever their score.
        min_cosine: Leave out candidates below it; default: those that cannot reach the threshold.
    """
    floor = _floor(verifier, policy.threshold) if min_cosine is None else min_cosine
    nearby = heapq.nlargest(MAX_CANDIDATES, candidates, key=lambda c: c.similarity)
    if not nearby:
        return Verdict(None, "below_threshold", None)
    objections = [_objection(request, candidate, policy, floor, guards) for candidate in nearby]
    allowed = [one for one, objection in zip(nearby, objections, strict=True) if not objection]
    scored = _verified(request, allowed, verifier) if allowed else []
    nearest = nearby[0] if objections[0] else scored[0]
    best = max(scored, key=lambda candidate: candidate.score, default=None)
    if best is not None and best.score >= policy.threshold:
        return Verdict(best, "", best, best)
    return Verdict(None, objections[0] or "below_threshold", nearest, best)


def _floor(verifier: Verifier, threshold: float) -> float:
    """Return the cosine below which candidates are not looked at."""
    min_cosine: Callable[[float], float] | None = getattr(verifier, "min_cosine", None)
    return VERIFIED_FROM if min_cosine is None else min_cosine(threshold)


def _objection(
    request: Request, candidate: Candidate, policy: Policy, floor: float, guards: Sequence[NamedGuard]
) -> str:
    """Return the reason why the candidate may not be served, whatever its score; "" if there is none."""
    entry = candidate.entry
    if entry.question is None or candidate.similarity < floor:
        return "below_threshold"
    if guard := failed_guard(request.question, entry.question, guards):
        return f"guard:{guard}"
    return "" if documents_agree(request, entry, policy.document_policy) else "documents_changed"


def _verified(request: Request, candidates: Sequence[Candidate], verifier: Verifier) -> list[Candidate]:
    """Score the candidates in one batch."""
    shown = candidates
    if request.documents:
        shown = [replace(candidate, documents=_shared(request, candidate.entry)) for candidate in candidates]
    scores = verifier.verify(request.question, shown)
    return [replace(one, score=score) for one, score in zip(shown, scores, strict=True)]


def _shared(request: Request, entry: Entry) -> tuple[Document, ...]:
    """Return the documents of the request that the stored answer was given with too."""
    if request.documents_digest == entry.documents:  # then the entry comes without its sources
        return request.documents
    known = {source.digest for source in entry.sources}
    return tuple(document for document in request.documents if document.digest in known)


def documents_agree(request: Request, entry: Entry, document_policy: DocumentPolicy) -> bool:
    """Return whether the documents of the request allow the stored answer under the document policy."""
    if document_policy == "ignore" or request.documents_digest == entry.documents:
        return True
    if document_policy == "all":
        return False
    evidence = entry.evidence
    return bool(evidence) and evidence <= {document.digest for document in request.documents}


# Share of a sentence's new words a document must hold to count, and share of the best document's share.
LEAST_SHARE = 0.2
SHARE_OF_BEST = 0.5
# Pairs of a word of the answer and a document that holds it: as many as an answer of 4,000 words has with 500
# documents that hold a fifth of its words each. With more, the support is unknown.
MAX_PAIRS = 400_000

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def supporting(answer: str, question: str, documents: Sequence[Document]) -> frozenset[str]:
    """Return the digests of the documents that support the answer; empty if unknown."""
    known = _words(question)
    sentences = [(sentence, _words(sentence)) for sentence in _SENTENCE_END.split(answer)]
    holders = _holders(frozenset().union(*(words for _, words in sentences)), documents)
    found, pairs = set[str](), 0
    for sentence, words in sentences:
        # A sentence that only repeats the question affirms it, which has a source as well.
        new = words - known or words
        pairs += sum(len(holders.get(word, ())) for word in new)
        if pairs > MAX_PAIRS:
            return frozenset()
        supporters = _supporters(new, holders) if words else frozenset()
        if words and not supporters and not sentence.endswith("?"):  # asking back needs no source
            return frozenset()
        found |= supporters
    return frozenset(found)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower())) - COMMON_WORDS


def _holders(words: frozenset[str], documents: Sequence[Document]) -> dict[str, list[str]]:
    """Map each word to the digests of the documents that hold it."""
    holders: dict[str, list[str]] = {}
    for key, text in {document.digest: document.text for document in documents}.items():
        for word in _words(text) & words:
            holders.setdefault(word, []).append(key)
    return holders


def _supporters(new: frozenset[str], holders: dict[str, list[str]]) -> frozenset[str]:
    names = {word: holders.get(word, ()) for word in new}
    counts = Counter(chain.from_iterable(names.values()))
    best = max(counts.values(), default=0)
    if best < LEAST_SHARE * len(new):
        return frozenset()
    distinctive = {digests[0] for digests in names.values() if len(digests) == 1}
    distinctive.update(*(digests for word, digests in names.items() if word[0].isdecimal()))
    least = SHARE_OF_BEST * best
    return frozenset(name for name, count in counts.items() if count >= least or name in distinctive)
