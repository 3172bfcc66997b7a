"""The decision alone: no storage, no embedder, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem import Answer, Document, Request
from ibidem.matching.documents import document_objection
from ibidem.matching.policy import Policy, decide
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
        sources=tuple(Source(d.id, d.digest, d in supports, d.source) for d in documents),
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
        ("unchanged", stored("x", ONE, TWO, supports=(ONE,)), (ONE, THREE), True),
        ("unchanged", stored("x", ONE, TWO, supports=(ONE, TWO)), (ONE, THREE), True),
        ("unchanged", stored("x", ONE, TWO, supports=(ONE,)), (TWO, THREE), False),
        ("unchanged", stored("x", ONE, TWO), (ONE, TWO), True),
        ("unchanged", stored("x", ONE, TWO), (ONE,), False),
        ("unchanged", stored("x", ONE, supports=(ONE,)), (), False),
    ],
)
def test_document_policies(policy, entry: Entry, asked: tuple[Document, ...], agree: bool) -> None:
    """`all` compares the sets, `supporting` and `unchanged` the documents behind it, `ignore` nothing."""
    objection = document_objection(Request("x", documents=asked), entry, policy)
    assert objection == ("" if agree else "documents_changed")


A4, B4 = "3f2a0c1e-7d55-4c11-9a3e-0123456789ab", "0b1c2d3e-4f50-4a61-8b72-abcdef012345"
A5, B5 = "3f2a0c1e-7d55-5c11-9a3e-0123456789ab", "0b1c2d3e-4f50-5a61-8b72-abcdef012345"


def passage(id_: str, text: str, source: str = "") -> Document:
    """A passage of a source."""
    return Document(id_, text, source=source)


@pytest.mark.parametrize(
    ("known", "asked", "agree"),
    [
        # A name, as far as one knows: of another text it says that the passage has changed.
        ([("a", "A"), ("b", "B")], [("a", "A"), ("c", "C")], True),
        ([("a", "A"), ("b", "B")], [("a", "A"), ("b", "edited")], False),
        ([("a", "A", "f"), ("b", "B", "g")], [("a", "A", "f"), ("b", "edited", "g")], False),
        ([("a", "A", "f"), ("b", "B", "f")], [("a", "A", "f"), ("c", "C", "f")], True),
        # Nothing shows that its source was not cut anew.
        ([("a", "A", "f"), ("b", "B", "g")], [("a", "A", "f"), ("c", "C", "g")], False),
        ([("a", "A", "f"), ("b", "B", "g")], [("a", "A", "f"), ("c", "C", "h")], True),
        # The same text has another name: its source was cut anew, and what became of the rest is not known.
        ([("a", "A", "f"), ("b", "B", "f")], [("x", "A", "f"), ("c", "C", "f")], False),
        ([("a", "A", "f"), ("b", "B", "f")], [("x", "A", "f")], True),
        ([("a", "A", "f"), ("b", "B", "f")], [("x", "A", "f"), ("c", "C", "h")], True),
        ([("a", "A"), ("b", "B")], [("x", "A"), ("c", "C")], False),
        ([(A4, "A"), (B4, "B")], [(A4, "A"), ("c", "C")], True),
        # Even the source has another name.
        ([("a", "A", "f"), ("b", "B", "g")], [("x", "A", "f2"), ("y", "C", "g2")], False),
        (
            [("a", "A", "f"), ("b", "B", "g"), ("c", "C", "f")],
            [("a", "A", "f"), ("y", "B", "g2"), ("d", "D", "h")],
            False,
        ),
        (
            [("a", "A", "f"), ("b", "B", "f"), ("c", "C", "f")],
            [("a", "A", "f"), ("x", "B", "f"), ("d", "D", "f")],
            False,
        ),
        # Made from source, position or text.
        ([("a", "A", "f"), ("b", "B", "f")], [("a", "A", "f"), ("f#7", "C", "f")], False),
        ([("f", "A", "f"), ("f", "B", "f")], [("f", "A", "f"), ("f", "C", "f")], False),
        ([("f", "A", "f"), ("f", "B", "f")], [("f", "A", "f")], True),
        ([("f#0", "A", "f"), ("f#1", "B", "f")], [("f#0", "A", "f"), ("f#2", "C", "f")], False),
        ([("f#0", "A", "f"), ("f#1", "B", "f")], [("f#0", "new", "f"), ("f#1", "A", "f")], False),
        ([("f#0", "A", "f"), ("g#1", "B", "g")], [("f#0", "new", "h"), ("f#1", "A", "f")], True),
        ([("chunk-0", "A", "f"), ("1", "B", "f")], [("chunk-0", "A", "f"), ("2", "C", "f")], False),
        ([(A5, "A", "f"), (B5, "B", "f")], [(A5, "A", "f"), ("c", "C", "f")], False),
        ([("a" * 40, "A"), ("b" * 40, "B")], [("a" * 40, "A"), ("c" * 40, "C")], False),
        # Nothing is known of them.
        ([("", "A"), ("", "B")], [("", "A"), ("", "C")], False),
        ([(passage("", "A").digest, "A"), ("b", "B")], [(passage("", "A").digest, "A"), ("c", "C")], False),
    ],
)
def test_what_has_changed(known, asked, agree: bool) -> None:
    """By ids that stay with a passage, else by its source: `docs/invalidation.md` has the table."""
    before = [passage(*one) for one in known]
    entry = stored("x", *before, supports=tuple(before))
    request = Request("x", documents=tuple(passage(*one) for one in asked))

    assert document_objection(request, entry, "unchanged") == ("" if agree else "documents_changed")


@given(st.permutations([ONE, TWO, THREE]), st.sampled_from(["unchanged", "all", "supporting", "ignore"]))
def test_the_same_documents_always_agree(order: list[Document], policy) -> None:
    """Under every policy, in every order."""
    asked = Request("x", documents=tuple(order))
    assert not document_objection(asked, stored("x", ONE, TWO, THREE), policy)


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
