"""The decision alone: no storage, no embedder, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem import Answer, Document, Request
from ibidem.matching.policy import Policy, decide, documents_agree
from ibidem.matching.scorers import Candidate, CosineScorer
from ibidem.types import Entry, Source

POLICY, COSINE = Policy(0.955), CosineScorer()
ONE, TWO, THREE = Document("1", "one"), Document("2", "two"), Document("3", "three")


def stored(question: str, *documents: Document, supports: tuple[Document, ...] = ()) -> Entry:
    """An entry as the database returns it."""
    request = Request(question, documents=documents)
    return Entry(
        id=request.key,
        namespace="",
        scope=request.scope_digest,
        question=question,
        documents=request.documents_digest,
        semantic=True,
        answer=Answer("a"),
        created=0.0,
        sources=tuple(Source(d.id, d.digest, d in supports) for d in documents),
    )


def test_the_most_similar_candidate_is_served() -> None:
    """Order of the candidates does not matter."""
    far, near = Candidate(stored("x y"), 0.96), Candidate(stored("x"), 0.99)

    chosen = decide(Request("x z"), [far, near], POLICY, COSINE).chosen
    assert chosen is not None
    assert chosen.entry is near.entry


def test_a_refused_candidate_gives_way_to_the_next() -> None:
    """A nearer entry with another number does not hide the right one."""
    wrong, right = Candidate(stored("item 7"), 0.99), Candidate(stored("the item 8"), 0.96)

    chosen = decide(Request("item 8"), [wrong, right], POLICY, COSINE).chosen
    assert chosen is not None
    assert chosen.entry is right.entry


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (Candidate(stored("x"), 0.94), "below_threshold"),
        (Candidate(stored("x 7"), 0.99), "guard:numbers"),
        (Candidate(stored("not x"), 0.97), "below_threshold"),
        (Candidate(stored("x", ONE), 0.99), "documents_changed"),
    ],
)
def test_a_refusal_has_the_reason_of_the_nearest_candidate(candidate: Candidate, reason: str) -> None:
    """Each way to be refused has a name."""
    verdict = decide(Request("x"), [candidate, Candidate(stored("y"), 0.1)], POLICY, COSINE)

    assert (verdict.chosen, verdict.reason) == (None, reason)
    assert verdict.nearest is not None
    assert verdict.nearest.entry == candidate.entry


def test_an_entry_without_question_is_never_served_by_meaning() -> None:
    """Exact-only entries keep no text to compare."""
    entry = replace(stored("x"), question=None)

    assert decide(Request("x"), [Candidate(entry, 1.0)], POLICY, COSINE).chosen is None


@given(st.floats(0, 1), st.floats(0.5, 1), st.floats(0.5, 1))
def test_a_stricter_threshold_never_serves_more(similarity: float, one: float, other: float) -> None:
    """Whatever the similarity."""
    candidate = [Candidate(stored("x"), similarity)]
    low, high = sorted((one, other))

    if decide(Request("x z"), candidate, Policy(threshold=high), COSINE).chosen:
        assert decide(Request("x z"), candidate, Policy(threshold=low), COSINE).chosen


@pytest.mark.parametrize(
    ("policy", "entry", "asked", "agree"),
    [
        ("all", stored("x", ONE, TWO), (TWO, ONE), True),
        ("all", stored("x", ONE, TWO, supports=(ONE,)), (ONE,), False),
        ("supporting", stored("x", ONE, TWO, supports=(ONE,)), (ONE,), True),
        ("supporting", stored("x", ONE, TWO, supports=(ONE,)), (THREE, ONE), True),
        ("supporting", stored("x", ONE, TWO, supports=(ONE, TWO)), (ONE, THREE), False),
        ("supporting", stored("x", ONE, TWO, supports=(ONE,)), (TWO,), False),
        ("supporting", stored("x", ONE, TWO), (ONE,), False),
        ("supporting", stored("x"), (ONE,), False),
        ("ignore", stored("x", ONE), (), True),
    ],
)
def test_document_policies(policy, entry: Entry, asked: tuple[Document, ...], agree: bool) -> None:
    """`all` compares the sets, `supporting` the documents behind the answer, `ignore` nothing."""
    assert documents_agree(Request("x", documents=asked), entry, policy) is agree


@given(st.permutations([ONE, TWO, THREE]), st.sampled_from(["all", "supporting", "ignore"]))
def test_the_same_documents_always_agree(order: list[Document], policy) -> None:
    """Under every policy, in every order."""
    assert documents_agree(Request("x", documents=tuple(order)), stored("x", ONE, TWO, THREE), policy)


class ByVectors:
    """Sees the vectors: the score is their dot product."""

    name = "dot product"

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        assert all(one.vectors is not None for one in candidates)
        return [float(one.vectors[0] @ one.vectors[1]) for one in candidates if one.vectors is not None]


def test_a_verifier_sees_the_vectors_and_its_score_decides() -> None:
    """The candidate with the highest score is served, not the nearest."""
    asked = np.float32([1, 0])
    near = Candidate(stored("the x"), 0.99, vectors=(asked, np.float32([0.5, 0])))
    far = Candidate(stored("an x"), 0.9, vectors=(asked, np.float32([0.97, 0])))
    verdict = decide(Request("x"), [near, far], POLICY, ByVectors())

    assert verdict.chosen is not None
    assert (verdict.chosen.entry.question, verdict.chosen.score) == ("an x", pytest.approx(0.97))
