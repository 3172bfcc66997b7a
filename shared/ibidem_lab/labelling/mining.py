"""Mine pairs of questions from a cache's logs, the most informative first.

Labels that are known come first. Of the rest, one half are those that the cache is least sure of (the score
is close to the threshold), the other half are drawn evenly over the cosine, so that training also sees
the easy ones. Nothing is drawn at random: the same cache gives the same pairs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import numpy as np

from ibidem._util.words_en import COMMON_WORDS
from ibidem.audits.judge import contradict, words_and_signs
from ibidem.errors import InvalidInput
from ibidem.examples.flaws import flaw_of
from ibidem.matching.guards import failed_guard
from ibidem.pipeline import policy_of
from ibidem.types import Vector, digest, require_name
from ibidem_lab.labelling.gathering import Gathered, Kept, gather, sift
from ibidem_lab.labelling.pairs import JUDGED, QuestionPair

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.matching.scorers import Scorer
    from ibidem.storage.store import Store

LIMIT = 2_000
NEIGHBOURS = 4  # of each question
LEAST = 0.5  # cosine of the farthest neighbours
BANDS = 10  # of the cosine, from LEAST to 1
EACH = 5  # pairs of one question, so that a frequent one does not fill the set
_BATCH, _ROWS = 64, 512  # questions embedded, and compared with all, at once
VETOED = "a guard refuses the pair: it needs no label"

EQUAL, DIFFER = "the stored answers are equal", "the stored answers differ"
SHORT = 8  # words of an answer up to which a difference is taken for a difference of meaning
# Least mean cosine of questions with one answer, above that of all questions. With the default model no
# intent of banking77 is below it and 2 % of clinc150, but 99 % of five questions drawn at random.
TOGETHER = 0.15
_TELLING = re.compile(r"[^\W\d_]{3,}")
_VERDICTS = frozenset(("yes", "true", "false", "none"))

Answers = tuple[str, str]  # scope, and the words of an answer

Private = Callable[[str], bool]
Vectors = Mapping[str, Vector]
PairKey = tuple[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Mined:
    """Pairs of questions, and the number left out by reason."""

    pairs: tuple[QuestionPair, ...]
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Miner:
    """Mine the pairs of one database.

    Args:
        store: The database.
        embedder: The embedder that compares the questions.
        scorer: Ranks pairs: the rule without a model, as there are many.
        threshold: The lowest score that the cache serves.
        is_private: Whether `redact` would change a text; such questions are in no pair.
    """

    store: Store
    embedder: CheckedEmbedder
    scorer: Scorer
    threshold: float
    is_private: Private = lambda text: False

    def mine(self, namespace: str | None = None, limit: int = LIMIT) -> Mined:
        """Return at most `limit` pairs, of all namespaces or of one; never two questions of different ones.

        Raises:
            StorageError: The database failed.
            Exception: Whatever the embedder raises.
        """
        gathered = sift(gather(self.store, self.embedder.fingerprint, namespace), self._refusal)
        left_out = gathered.left_out
        vectors = self._vectors(gathered)
        labelled = [_with_cosine(pair, vectors) for pair in gathered.met if pair.labelled_by in JUDGED]
        found = self._unlabelled(gathered, vectors, limit)
        chosen = labelled[:limit] + _chosen(found, self.threshold, max(0, limit - len(labelled)))
        left_out["over the limit"] = len(labelled) + len(found) - len(chosen)
        pairs = tuple(_with_answers(chosen, gathered, vectors))
        return Mined(pairs, {why: count for why, count in left_out.items() if count})

    def _unlabelled(
        self, gathered: Gathered, vectors: Vectors, limit: int
    ) -> list[tuple[QuestionPair, float]]:
        """Return unjudged pairs and neighbours with their scores, without those that a guard refuses."""
        judged = {_key(pair) for pair in gathered.met if pair.labelled_by in JUDGED}
        pairs: dict[PairKey, QuestionPair] = {}
        for pair in chain(gathered.met, self._neighbours(gathered, vectors, limit)):
            if _key(pair) not in judged:
                pairs.setdefault(_key(pair), pair)
        fit = [pair for pair in pairs.values() if not failed_guard(pair.a, pair.b)]
        gathered.left_out[VETOED] += len(pairs) - len(fit)
        known = (_with_cosine(pair, vectors) for pair in fit)
        return [(pair, self._score(pair, vectors)) for pair in known]

    def _refusal(self, text: str) -> str | None:
        return "redact would change the question" if self.is_private(text) else self.embedder.refusal(text)

    def _vectors(self, gathered: Gathered) -> Vectors:
        """Return the vectors of all questions by text; only those that are not stored are computed."""
        questions = [one for kept in gathered.kept.values() for one in kept.values()]
        found = {one.text: one.vector for one in questions if one.vector is not None}
        texts = (text for pair in gathered.met for text in (pair.a, pair.b))
        wanted = dict.fromkeys(chain((one.text for one in questions), texts))
        lacking = [text for text in wanted if text not in found]
        for start in range(0, len(lacking), _BATCH):
            some = lacking[start : start + _BATCH]
            found.update(zip(some, self.embedder.embed(some), strict=True))
        return found

    def _score(self, pair: QuestionPair, vectors: Vectors) -> float:
        return self.scorer.score(pair.a, pair.b, pair.cosine or 0.0, (vectors[pair.a], vectors[pair.b]))

    def _neighbours(self, gathered: Gathered, vectors: Vectors, limit: int) -> Iterator[QuestionPair]:
        """Yield neighbouring questions, at most `limit` of each band of the cosine."""
        by_band: dict[int, list[QuestionPair]] = {}
        for namespace, kept in gathered.kept.items():
            texts = list(kept)
            for newer, older, cosine in nearest([vectors[text] for text in texts]):
                pair = QuestionPair(
                    texts[newer], texts[older], cosine=cosine, source="neighbour", namespace=namespace
                )
                by_band.setdefault(_band(cosine), []).append(pair)
        for pairs in by_band.values():
            yield from sorted(pairs, key=_drawn)[:limit]


def _with_cosine(pair: QuestionPair, vectors: Vectors) -> QuestionPair:
    return replace(pair, cosine=float(np.clip(vectors[pair.a] @ vectors[pair.b], -1.0, 1.0)))


def nearest(vectors: Sequence[Vector]) -> Iterator[tuple[int, int, float]]:
    """Yield the nearest neighbours as `(lower index, higher index, cosine)`, each pair once."""
    if len(vectors) < 2:
        return
    matrix = np.stack(vectors)
    count, seen = min(NEIGHBOURS, len(vectors) - 1), set()
    for start in range(0, len(matrix), _ROWS):
        cosines = matrix[start : start + _ROWS] @ matrix.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -2.0
        top = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        for row, places in zip(rows.tolist(), top.tolist(), strict=True):
            for place in places:
                pair = (min(start + row, place), max(start + row, place))
                if cosines[row, place] >= LEAST and pair not in seen:
                    seen.add(pair)
                    yield (*pair, min(1.0, float(cosines[row, place])))


def _chosen(found: Iterable[tuple[QuestionPair, float]], threshold: float, limit: int) -> list[QuestionPair]:
    """Select at most `limit`, alternating between uncertain pairs and the next band of the cosine."""
    drawn = sorted(found, key=lambda one: _drawn(one[0]))
    unsure = [pair for pair, _ in sorted(drawn, key=lambda one: abs(one[1] - threshold))]
    bands: dict[int, list[QuestionPair]] = {}
    for pair, _ in drawn:
        bands.setdefault(_band(pair.cosine or 0.0), []).append(pair)
    even = chain.from_iterable(zip_longest(*(bands[band] for band in sorted(bands, reverse=True))))
    turns = chain.from_iterable(zip_longest(unsure, (pair for pair in even if pair is not None)))
    chosen: dict[PairKey, QuestionPair] = {}
    used: Counter[tuple[str, str]] = Counter()
    for pair in turns:
        if len(chosen) >= limit:
            break
        if pair is None or _key(pair) in chosen:
            continue
        ends = [(pair.namespace, pair.a), (pair.namespace, pair.b)]
        if all(used[end] < EACH for end in ends):
            used.update(ends)
            chosen[_key(pair)] = pair
    return list(chosen.values())


def _with_answers(
    pairs: Iterable[QuestionPair], gathered: Gathered, vectors: Vectors
) -> Iterator[QuestionPair]:
    """Label the pairs where the stored answers do."""
    stock = {name: stock_answers(kept.values(), vectors) for name, kept in gathered.kept.items()}
    nothing: dict[str, Kept] = {}
    for pair in pairs:
        kept = gathered.kept.get(pair.namespace, nothing)
        one, other = kept.get(pair.a), kept.get(pair.b)
        if pair.same is None and one is not None and other is not None:
            same, why = compared(one, other, stock[pair.namespace])
            if same is not None:
                pair = replace(pair, same=same, labelled_by="answers", reason=why)
        yield pair


def _key(pair: QuestionPair) -> PairKey:
    return pair.namespace, frozenset((pair.a, pair.b))


def _band(cosine: float) -> int:
    return max(0, min(BANDS - 1, int((cosine - LEAST) / (1.0 - LEAST) * BANDS)))


def _drawn(pair: QuestionPair) -> str:
    """Return a sort key that is independent of the content, and stable."""
    return digest(pair.namespace, *sorted((pair.a, pair.b)))


def stock_answers(questions: Iterable[Kept], vectors: Mapping[str, Vector]) -> frozenset[Answers]:
    """Return answers that fit anything ("I do not know."): those of three dissimilar questions or more."""
    questions = [one for one in questions if one.text in vectors]
    least = _mean_cosine([one.text for one in questions], vectors) + TOGETHER
    asked: dict[Answers, set[str]] = {}
    for one in questions:
        for (scope, _), answer in one.answers.items():
            asked.setdefault((scope, _said(answer)), set()).add(one.text)
    many = ((said, texts) for said, texts in asked.items() if len(texts) > 2)
    return frozenset(said for said, texts in many if _mean_cosine(texts, vectors) < least)


def _mean_cosine(texts: Collection[str], vectors: Mapping[str, Vector]) -> float:
    """Return the mean over all pairs of different questions; 0 for fewer than two."""
    count = len(texts)
    if count < 2:
        return 0.0
    total = np.stack([vectors[text] for text in texts]).sum(axis=0, dtype=np.float64)
    return (float(total @ total) - count) / (count * (count - 1))


def compared(one: Kept, other: Kept, stock: frozenset[Answers]) -> tuple[bool | None, str]:
    """Compare the stored answers: whether one serves both questions, and why; None if that stays open.

    Equal answers of one scope say yes, unless they are a yes or no, a bare number or a stock answer. Short
    answers that share no word, or contradict one another in a number, a name or the like, say no, if they
    were given over the same documents. Longer ones may be worded otherwise. A refusal, an error and what is
    cut off say nothing.
    """
    found: tuple[bool | None, str] = (None, "")
    for (scope, documents), answer in one.answers.items():
        for (other_scope, others), there in other.answers.items():
            if scope != other_scope or (scope, _said(answer)) in stock or (scope, _said(there)) in stock:
                continue
            if flaw_of(answer) is not None or flaw_of(there) is not None:
                continue
            if _said(answer) == _said(there):
                if _telling(answer):
                    return True, EQUAL
            elif documents == others and _differ(answer, there):
                found = (False, DIFFER)
    return found


def _said(answer: str) -> str:
    words, signs = words_and_signs(answer)
    return " ".join((*words, *signs))


def _telling(answer: str) -> bool:
    words = words_and_signs(answer)[0]
    return bool(words) and words[0] not in _VERDICTS and bool(_TELLING.search(answer)) and words != ["no"]


def _differ(one: str, other: str) -> bool:
    here, there = words_and_signs(one)[0], words_and_signs(other)[0]
    if not here or not there or max(len(here), len(there)) > SHORT:
        return False
    shared = (set(here) & set(there)) - COMMON_WORDS
    return not shared or contradict(one, other)


def pairs(cache: SemanticCache, *, namespace: str | None = None, limit: int = LIMIT) -> Mined:
    """Mine pairs of questions from this cache's logs, for `ibidem_lab.teach` and for training.

    They come from near misses, hits by meaning, audits, feedback, and from stored questions and examples
    near one another. Only questions that are compared by meaning, that `redact` leaves as they are, and that
    are of one namespace. No pair that a guard refuses, and each pair once. Of more than 10,000 questions of
    one kind the newest are looked at. Takes up to a minute; lookups go on meanwhile.

    Args:
        namespace: Only this one; default: all, each by itself.
        limit: Maximum number: first those with a known label, then alternately those that the cache is least
            sure of and those drawn evenly over the cosine.

    Raises:
        InvalidInput: An argument has the wrong type, or `limit` is below 1.
        StorageError: The database failed.
        CacheClosed: The cache was closed.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidInput(f"limit must be a whole number of pairs above 0, not {limit!r}")
    if namespace is not None:
        require_name("namespace", namespace)
    cache.flush()
    return miner_of(cache).mine(namespace, limit)


def miner_of(cache: SemanticCache) -> Miner:
    """Return what mines the pairs of an open cache."""
    runtime, index = cache._runtime, cache._runtime.semantic_index
    return Miner(
        runtime.store,
        runtime.embedder,
        index.rule,
        policy_of("none", index, cache._strictness)[1].threshold,
        cache._admission.is_private,
    )
