"""The key of a request: what is equal, what is not, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem import Answer, Document, InvalidInput, Request
from ibidem.types import digest, normalise

texts = st.text(max_size=40)
questions = st.text(min_size=1, max_size=40).filter(lambda text: text.strip() != "")
documents = st.lists(st.builds(Document, st.text(max_size=5), texts), max_size=4).map(tuple)


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_digest_depends_on_where_parts_end(one: list[str], other: list[str]) -> None:
    """Two lists of parts have the same digest only if they are the same list."""
    assert (digest(*one) == digest(*other)) == (one == other)


@given(questions, texts, texts, documents, questions, texts, texts, documents)
def test_requests_share_a_key_only_if_all_four_parts_agree(
    question: str, scope: str, namespace: str, docs: tuple[Document, ...],
    question2: str, scope2: str, namespace2: str, docs2: tuple[Document, ...],
) -> None:  # fmt: skip
    """No part can stand in for another."""
    one = Request(question, scope=scope, namespace=namespace, documents=docs)
    other = Request(question2, scope=scope2, namespace=namespace2, documents=docs2)

    same_parts = (
        normalise(question) == normalise(question2)
        and scope == scope2
        and namespace == namespace2
        and {d.digest for d in docs} == {d.digest for d in docs2}
    )
    assert (one.key == other.key) == same_parts


@given(questions, documents, st.randoms())
def test_order_and_repetition_of_documents_do_not_matter(question, docs, random) -> None:
    """Retrievers return the same documents in another order, or twice."""
    shuffled = [*docs, *docs]
    random.shuffle(shuffled)

    assert Request(question, documents=docs).key == Request(question, documents=tuple(shuffled)).key


def test_document_ids_are_not_compared() -> None:
    """Re-indexing gives documents new ids; only their content counts."""
    assert (
        Request("q", documents=(Document("1", "text"),)).key
        == Request("q", documents=(Document("2", "text"),)).key
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (" how are you\n", "how are you", True),
        ("split 'a  b'", "split 'a b'", False),
        ("cafe\u0301", "café", True),
        ("if x:\n    y", "if x:\n  y", False),
        ("What is US?", "What is us?", False),
        ("x²", "x2", False),
    ],
)
def test_normalisation_removes_only_what_never_matters(one: str, other: str, same: bool) -> None:
    """Blanks around it and Unicode composition go; the rest stays."""
    assert (Request(one).key == Request(other).key) == same


def test_exact_only_requests_are_not_normalised() -> None:
    """Where the question is unknown, every byte of the prompt counts."""
    assert Request("a  b", semantic=False).key != Request("a b", semantic=False).key


def test_exact_only_and_semantic_requests_are_never_the_same() -> None:
    """A prompt that looks like somebody's question is not that question."""
    assert Request("a b", semantic=False).key != Request("a b").key


def test_the_scope_is_forgotten() -> None:
    """No attribute of a request gives the scope's text back."""
    request = Request("q", scope="Authorization: Bearer SECRET")

    assert "SECRET" not in repr(dataclasses.asdict(request)) + repr(request)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question: str) -> None:
    """An empty question would match every other one."""
    with pytest.raises(InvalidInput, match="question is empty"):
        Request(question)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Request(None), "question must be a str, not NoneType"),
        (lambda: Request("q", scope=3), "scope must be a str, or a mapping of texts by name, not int"),
        (lambda: Request("q", namespace=b"x"), "namespace must be a str, not bytes"),
        (lambda: Request("q", documents="text"), "sequence of ibidem.Document"),
        (lambda: Request("q", documents=["text"]), "sequence of ibidem.Document"),
        (lambda: Document("1", None), "Document.text must be a str"),
        (lambda: Answer(1), "Answer.text must be a str, not int"),
    ],
)
def test_wrong_types_are_named(build, message: str) -> None:
    """The error says which argument it was."""
    with pytest.raises(InvalidInput, match=message):
        build()


def test_lone_surrogates_have_keys() -> None:
    """Text cut in the middle of a character can be asked, and is told apart."""
    assert Request("a\ud800").key != Request("a\ud801").key
