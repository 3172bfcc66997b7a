"""What a cache decides about pairs of questions, without an answer being stored or given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ibidem.embedding.base import CheckedEmbedder
from ibidem.errors import InvalidInput
from ibidem.matching.guards import NamedGuard
from ibidem.matching.policy import Policy, decide
from ibidem.matching.scorers import Candidate, Verifier
from ibidem.types import Answer, Entry, Request, Vector, cosine, to_bytes, to_vector

BATCH = 64  # questions that are embedded at a time
_NO_ANSWER = Answer("")


@dataclass(frozen=True, slots=True)
class PairDecision:
    """Whether the answer to a stored question would be repeated for another one.

    Attributes:
        stored: The question whose answer is stored.
        asked: The question asked.
        served: Whether the answer would be repeated.
        score: What is compared with the threshold; 1 for the same request, NaN where the questions are not
            compared by meaning. A pair that a guard refuses has its score too.
        similarity: The cosine of the two questions; NaN where they are not compared by meaning.
        reason: Why it would not be repeated, as of a `Miss`; "" if it would.
    """

    stored: str
    asked: str
    served: bool
    score: float
    similarity: float
    reason: str = ""


def decide_pairs(
    pairs: Iterable[tuple[str, str]],
    *,
    embedder: CheckedEmbedder,
    policy: Policy,
    verifier: Verifier,
    guards: Sequence[NamedGuard],
    is_private: Callable[[str], bool],
) -> list[PairDecision]:
    """Decide about each pair as a lookup does that finds the stored question, and no other.

    Args:
        pairs: A stored question and one asked.
        embedder: Makes the vectors.
        policy: How sure the cache must be.
        verifier: Scores the pairs.
        guards: Refuse pairs whatever their score.
        is_private: Whether a question must not be embedded.

    Raises:
        InvalidInput: One is no pair of questions.
        Exception: What the embedder or the verifier raises.
    """
    requests = [_requests(pair) for pair in pairs]
    texts = {one.question for pair in requests for one in pair}
    refused = {
        text: "question_private" if is_private(text) else embedder.refusal(text) or "" for text in texts
    }
    vectors = _embedded([text for text in texts if not refused[text]], embedder)
    found = []
    for stored, asked in requests:
        one, other = stored.question, asked.question
        if stored.key == asked.key:
            found.append(PairDecision(one, other, True, 1.0, 1.0))
        elif reason := refused[other] or refused[one]:
            found.append(PairDecision(one, other, False, math.nan, math.nan, reason))
        else:
            candidate = _candidate(stored, vectors[other], vectors[one])
            verdict = decide(asked, [candidate], policy, verifier, guards=guards)
            scored = verdict.best.score if verdict.best else verifier.verify(other, [candidate])[0]
            served = verdict.chosen is not None
            found.append(PairDecision(one, other, served, scored, candidate.similarity, verdict.reason))
    return found


def _embedded(texts: Iterable[str], embedder: CheckedEmbedder) -> dict[str, Vector]:
    vectors: dict[str, Vector] = {}
    ordered = sorted(texts, key=len)  # a batch is padded to its longest
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        vectors |= zip(batch, embedder.embed(batch), strict=True)
    return vectors


def _requests(pair: tuple[str, str]) -> tuple[Request, Request]:
    """The request whose answer is stored, and the one asked."""
    if isinstance(pair, str) or len(pair) != 2:
        raise InvalidInput(f"pairs must be tuples of a stored question and one asked, not {pair!r}")
    stored, asked = pair
    return Request(stored), Request(asked)


def _candidate(stored: Request, asked: Vector, vector: Vector) -> Candidate:
    """The stored question as an index would find it, with its vector as the database keeps it."""
    kept = to_vector(to_bytes(vector))
    return Candidate(as_entry(stored, stored.key), cosine(asked, kept), vectors=(asked, kept))


def as_entry(request: Request, name: str) -> Entry:
    """Return the request as the database would, with an answer of no interest."""
    return Entry(
        id=name,
        namespace=request.namespace,
        scope=request.scope_digest,
        question=request.question,
        documents=request.documents_digest,
        semantic=True,
        answer=_NO_ANSWER,
        created=0.0,
    )
