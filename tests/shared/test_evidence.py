"""Which documents an answer rests on."""

from __future__ import annotations

from ibidem import Document
from ibidem.matching.support import supporting

RETURNS = Document("returns", "Goods can be returned within 30 days of delivery with the receipt.")
SHIPPING = Document("shipping", "Parcels leave our warehouse in Lyon every morning by courier.")
HOLIDAYS = Document("holidays", "The shop is closed on public holidays and during August.")
ALL = (RETURNS, SHIPPING, HOLIDAYS)


def test_the_document_that_holds_the_answer_supports_it() -> None:
    """The others were only retrieved."""
    answer = "You may return them within 30 days of delivery if you have the receipt."

    assert supporting(answer, "How long can I return goods?", ALL) == {RETURNS.digest}


def test_every_sentence_names_its_own_documents() -> None:
    """An answer from two sources rests on both."""
    answer = "Within 30 days of delivery, with the receipt. Parcels leave Lyon every morning by courier."

    assert supporting(answer, "returns and shipping?", ALL) == {RETURNS.digest, SHIPPING.digest}


def test_words_of_the_question_are_no_evidence() -> None:
    """A document that only repeats the question supports nothing."""
    assert supporting("Yes.", "Is the shop closed in August?", ALL) == frozenset()


def test_an_answer_from_elsewhere_rests_on_nothing() -> None:
    """Then the whole document set must be the same again (`documents_agree`)."""
    assert supporting("Paris has been the capital since 987.", "capital?", ALL) == frozenset()


def test_pleasantries_do_not_spoil_the_evidence() -> None:
    """Sentences that ask back or exclaim need no source."""
    answer = "Within 30 days of delivery, with the receipt. Anything else you would like to know?"

    assert supporting(answer, "How long can I return goods?", ALL) == {RETURNS.digest}


def test_no_documents_no_evidence() -> None:
    """Also for an empty answer."""
    assert supporting("x", "y", ()) == frozenset()
    assert supporting("", "y", ALL) == frozenset()


def test_a_sentence_without_a_source_spoils_the_evidence() -> None:
    """It may rest on a document in words that are not recognised; then all must be the same."""
    postage = Document("postage", "For postage we charge five euros.")
    answer = "Goods can be returned within 30 days of delivery. Shipping costs 5 EUR."

    assert supporting(answer, "returns?", (RETURNS, postage)) == frozenset()


def test_a_document_that_holds_a_number_of_the_answer_supports_it() -> None:
    """However few words they share."""
    apps = Document("apps", "Apps: 14 days.")
    software = Document("software", "Opened software can be returned within two weeks of delivery.")
    answer = "Opened software can be returned within 14 days."

    assert supporting(answer, "software?", (software, apps)) == {software.digest, apps.digest}
