"""May a stored answer be repeated for this question? Pure: no clock, no I/O, no model."""

from __future__ import annotations

import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from itertools import chain, pairwise
from typing import Any, Literal, Protocol

from ibidem.errors import InvalidInput
from ibidem.matching.guards import failed_guard
from ibidem.matching.text import QuestionFeatures, parse_question
from ibidem.matching.words_en import COMMON_WORDS, DISTINCT_PREFIXES
from ibidem.types import Document, Entry, Request, Vector

REACH = 1.02  # a little above 1, so that identical vectors have a finite logarithm
Vectors = tuple[Vector, Vector]  # of the question asked and of the stored one: unit length, shape (d,)
MAX_COUNTS = {"inserted": 2, "replaced": 3, "fillers": 5, "comparison": 2}  # counts saturate here
_MAX_MISSPELT = 64  # words of one side that are compared with all of the other


class Scorer(Protocol):
    """Turns two questions into a score that is compared with the threshold."""

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """At most 1; higher is surer. `vectors` are None where only the texts and their cosine are known."""
        ...

    def min_cosine(self, threshold: float) -> float:
        """A cosine below which no pair of questions reaches the threshold."""
        ...


class CosineScorer:
    """The cosine itself, for embedders that the learned scorer does not know.

    With another number of negations the questions must be nearly identical: 0.9975 instead of 0.95 ("safe"
    and "not safe" reach 0.991).
    """

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """The cosine; its distance from 1 counts twenty times if the number of negations differs."""
        same = parse_question(asked).negations == parse_question(stored).negations
        return cosine if same else 1.0 - 20.0 * (1.0 - cosine)

    def min_cosine(self, threshold: float) -> float:
        """The threshold itself."""
        return threshold


@dataclass(frozen=True, slots=True)
class LearnedScorer:
    """Weights of the features, learned for the embedder of this fingerprint. See the module's docstring."""

    weights: Mapping[str, float]
    bias: float
    embedder: str = ""

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """The cosine, corrected for the words that differ."""
        found = features(asked, stored)
        penalty = self.bias - sum(self.weights[name] * value for name, value in found.items())
        if not (parse_question(asked).is_english and parse_question(stored).is_english):
            penalty = max(penalty, 0.0)  # no bonus where the words are not understood
        return max(-1.0, min(1.0, REACH - (REACH - cosine) * math.exp(penalty)))

    def min_cosine(self, threshold: float) -> float:
        """Where the highest bonus ends."""
        bonus = sum(weight * MAX_COUNTS.get(name, 1) for name, weight in self.weights.items() if weight > 0)
        return REACH - (REACH - threshold) * math.exp(max(0.0, bonus - self.bias))


@lru_cache(maxsize=1)
def shipped() -> LearnedScorer:
    """The scorer that comes with Ibidem, for the default embedder."""
    held = _held()
    return LearnedScorer(held["weights"], held["bias"], held["embedder"])


def highest_error_rate() -> float:
    """The largest share of wrong hits that a threshold is known for."""
    table: list[list[float]] = _held()["calibration"]
    return table[-1][0]


def threshold_for(max_error_rate: float) -> float:
    """The threshold at which about `max_error_rate` of the hits are wrong.

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
    table: list[list[float]] = _held()["calibration"]
    for (level, threshold), (next_level, next_threshold) in pairwise(table):
        if max_error_rate < next_level:
            part = (max_error_rate - level) / (next_level - level)
            return threshold + part * (next_threshold - threshold)
    return table[-1][1]


@lru_cache(maxsize=1)
def _held() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("ibidem.matching") / "scorer.json").read_text(encoding="utf-8"))
    return found


def scorer_for(fingerprint: str) -> Scorer:
    """The learned scorer for the embedder it was learned for, else the cosine."""
    learned = shipped()
    return learned if fingerprint == learned.embedder else CosineScorer()


def features(asked: str, stored: str) -> dict[str, float]:
    """What differs. All are 0 for two questions of the same words, but `rephrased` is 1.

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
MAX_CANDIDATES = 6  # candidates judged, the most similar ones: a judgement costs up to 0.2 ms


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
    """A stored answer near the question asked: the cosine similarity of the two questions, and the score.

    `vectors` are the embeddings of the question asked and of the stored one, for a scorer that looks at them.
    """

    entry: Entry
    similarity: float
    score: float = -1.0
    vectors: Vectors | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`chosen` may be served; if None, `reason` says why `nearest`, the best candidate, may not.

    `best` is the candidate with the highest score that nothing but its score may speak against.
    """

    chosen: Candidate | None
    reason: str
    nearest: Candidate | None
    best: Candidate | None = None


def decide(
    request: Request,
    candidates: Iterable[Candidate],
    policy: Policy,
    scorer: Scorer = _COSINE,
    least: float | None = None,
) -> Verdict:
    """Choose the candidate with the highest score that nothing speaks against.

    The candidates are confirmed by the database: alive, same namespace and scope. Those whose cosine is
    below `least` are not looked at; by default those that cannot reach the threshold. The reason of a refusal
    is that of the most similar candidate.
    """
    floor = scorer.min_cosine(policy.threshold) if least is None else least
    nearby = heapq.nlargest(MAX_CANDIDATES, candidates, key=lambda c: c.similarity)
    nearest: Candidate | None = None
    best: Candidate | None = None
    reason = "below_threshold"
    for candidate in nearby:
        scored, objection = _judged(request, candidate, policy, scorer, floor)
        if nearest is None:
            nearest, reason = scored, objection
        if not objection and (best is None or scored.score > best.score):
            best = scored
        if candidate.similarity < floor:
            break
    if best is not None and best.score >= policy.threshold:
        return Verdict(best, "", best, best)
    return Verdict(None, reason or "below_threshold", nearest, best)


def _judged(
    request: Request, candidate: Candidate, policy: Policy, scorer: Scorer, floor: float
) -> tuple[Candidate, str]:
    """The candidate with its score, and what speaks against it but the score; "" if nothing does."""
    entry = candidate.entry
    if entry.question is None or candidate.similarity < floor:
        return candidate, "below_threshold"
    if guard := failed_guard(request.question, entry.question):
        return candidate, f"guard:{guard}"
    score = scorer.score(request.question, entry.question, candidate.similarity, candidate.vectors)
    scored = replace(candidate, score=score)
    return scored, "" if documents_agree(request, entry, policy.document_policy) else "documents_changed"


def documents_agree(request: Request, entry: Entry, document_policy: DocumentPolicy) -> bool:
    """Whether the documents of the request allow the stored answer under the document policy."""
    if document_policy == "ignore" or request.documents_digest == entry.documents:
        return True
    if document_policy == "all":
        return False
    evidence = entry.evidence
    return bool(evidence) and evidence <= {document.digest for document in request.documents}


# Share of a sentence's new words a document must hold to count, and share of the best document's share.
LEAST_SHARE = 0.2
SHARE_OF_BEST = 0.5
# Pairs of a word of the answer and a document that holds it which are looked at: so many have an answer of
# 4,000 words and 500 documents with a fifth of its words each. Of more it cannot be told.
MOST_PAIRS = 400_000

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def supporting(answer: str, question: str, documents: Sequence[Document]) -> frozenset[str]:
    """Digests of the documents that support the answer; empty if that cannot be told."""
    known = _words(question)
    sentences = [(sentence, _words(sentence)) for sentence in _SENTENCE_END.split(answer)]
    holders = _holders(frozenset().union(*(words for _, words in sentences)), documents)
    found, pairs = set[str](), 0
    for sentence, words in sentences:
        # A sentence that only repeats the question affirms it, which has a source as well.
        new = words - known or words
        pairs += sum(len(holders.get(word, ())) for word in new)
        if pairs > MOST_PAIRS:
            return frozenset()
        supporters = _supporters(new, holders) if words else frozenset()
        if words and not supporters and not sentence.endswith("?"):  # asking back needs no source
            return frozenset()
        found |= supporters
    return frozenset(found)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower())) - COMMON_WORDS


def _holders(words: frozenset[str], documents: Sequence[Document]) -> dict[str, list[str]]:
    """The words -> digests of the documents that hold them."""
    holders: dict[str, list[str]] = {}
    for digest, text in {document.digest: document.text for document in documents}.items():
        for word in _words(text) & words:
            holders.setdefault(word, []).append(digest)
    return holders


def _supporters(new: frozenset[str], holders: dict[str, list[str]]) -> frozenset[str]:
    names = {word: holders.get(word, ()) for word in new}
    counts = Counter(chain.from_iterable(names.values()))
    best = max(counts.values(), default=0)
    if best < LEAST_SHARE * len(new):
        return frozenset()
    telling = {those[0] for those in names.values() if len(those) == 1}
    telling.update(*(those for word, those in names.items() if word[0].isdecimal()))
    least = SHARE_OF_BEST * best
    return frozenset(name for name, count in counts.items() if count >= least or name in telling)
