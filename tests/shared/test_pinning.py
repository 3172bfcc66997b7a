"""Vetted answers: what a text can replace, audits, old databases, the review's list, the report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
from starlette.testclient import TestClient

import ibidem
from ibidem import Answer, Document, Request
from ibidem.costs import read_prices
from ibidem.errors import InvalidInput
from ibidem.lifecycle.invalidation import Criteria
from ibidem.lifecycle.pinning import corrected
from ibidem.lifecycle.rules import Bounds
from ibidem.settings import read_settings
from ibidem.storage.logs import LookupRow
from ibidem.storage.statistics import LogFilter
from ibidem.storage.store import Store
from ibidem_lab.report.facts import gather
from ibidem_lab.report.page import page
from ibidem_lab.review.app import Pages
from ibidem_lab.review.session import ReviewSession, review_queue
from ibidem_lab.review.vetted import VettedAnswers
from tests import reviewed
from tests.servers import running_postgres

ENTRY = reviewed.entry("How long can I return goods?", "30 days.")
TERMS = Document("terms#4", "Goods can be returned within 30 days.", source="terms.md")
CHANGED = Document("terms#4", "Goods can be returned within 14 days.", source="terms.md")


# What a text can replace


@pytest.mark.parametrize(
    ("payload", "replaced"),
    [
        ("", ""),
        ("text", "text"),  # it names a form
        ('{"content":"30 days.","role":"30 days."}', '{"content":"14.","role":"30 days."}'),
        ('[{"text":"30 days.","logprobs":{"content":["30 days."]}}]', '[{"text":"14."}]'),
        (
            '{"content":[{"type":"thinking","text":"Hm."},{"text":"30 days."}]}',
            '{"content":[{"text":"14."}]}',
        ),
        ('{"content":[{"text":"30 "},{"text":"days."}]}', '{"content":[{"text":"14."},{"text":""}]}'),
        ('{"content":["30 days."],"annotations":[1]}', '{"content":["14."],"annotations":[]}'),
    ],
)
def test_the_text_is_replaced_in_the_payload(payload: str, replaced: str) -> None:
    """There alone, without what was only true of the model's words."""
    entry = replace(ENTRY, answer=replace(ENTRY.answer, payload=payload, finish_reason="length"))
    answer = corrected(entry, "14.")

    assert (answer.text, answer.payload, answer.finish_reason) == ("14.", replaced, "")
    assert (answer.model, answer.input_tokens) == (ENTRY.answer.model, ENTRY.answer.input_tokens)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ('{"content":"30 days!"}', "parts beside its text"),
        ("{not json}", "not in JSON"),
        ("MzAgZGF5cy4" * 5, "not in JSON"),
        ("[" * 100_000, "not in JSON"),
        ('{"content":[{"text":"30 "},{"text":"30 "}]}', "parts beside its text"),
    ],
)
def test_what_is_not_understood_is_refused(payload: str, why: str) -> None:
    """The adapter would repeat the former answer."""
    entry = replace(ENTRY, answer=replace(ENTRY.answer, payload=payload))
    with pytest.raises(InvalidInput, match=why):
        corrected(entry, "14.")


@pytest.mark.parametrize(
    "answer",
    [
        Answer('{"days": 30}', semantic=False),
        Answer("x", payload='{"message":{"tool_calls":[{"name":"f"}],"content":"x"}}', semantic=False),
        Answer("x", payload='[{"content":[{"type":"tool_use"},{"text":"x"}]}]', semantic=False),
        Answer("", payload='{"content":""}', semantic=False),
    ],
)
def test_a_text_is_no_answer_for_a_program(answer: Answer) -> None:
    """It would not be understood; a text that is only compared exactly is one for people."""
    with pytest.raises(InvalidInput, match="for a program"):
        corrected(replace(ENTRY, semantic=False, answer=answer), "14.")
    exact = Answer("30 days.", payload='{"content":"30 days.","tool_calls":[]}', semantic=False)
    assert corrected(replace(ENTRY, semantic=False, answer=exact), "14.").text == "14."


# Audits


def test_a_vetted_answer_is_not_compared_with_the_model(open_cache) -> None:
    """That they differ is no wrong hit. What the budget has not proved is not served by meaning either."""
    cache = open_cache(audit_rate=1.0, max_error_rate=0.05)
    asked, reworded = Request("what is the state"), Request("what is the state now ok")
    cache.correct(cache.store(asked, Answer("bad")), "fine")

    assert cache.lookup(asked).answer.text == "fine"
    for _ in range(3):
        assert cache.lookup(reworded).reason == "below_budget"
        cache.store(reworded, Answer("something else"))
        cache.invalidate(entry=reworded.key)
    assert cache.flush()
    assert cache.judgements() == []


# The review


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL."""
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty database."""
    on_postgres = request.param == "postgresql"
    url = request.getfixturevalue("postgres") if on_postgres else f"sqlite:///{tmp_path / 'one.sqlite3'}"
    if on_postgres:
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as db:  # tombstones, too
            db.exec_driver_sql("DROP SCHEMA public CASCADE")
            db.exec_driver_sql("CREATE SCHEMA public")
        engine.dispose()
    with closing(Store(url)) as found:
        yield found


def vetted(store: Store, *documents: Document) -> str:
    """Store a pinned answer over these documents; returns its id."""
    sources = tuple(ibidem.types.Source(d.id, d.digest, True, d.source) for d in documents)
    entry = reviewed.entry("How long can I return goods?", "40 days.", docs=sources)
    store.entries.put(entry, "embedder")
    assert store.correct(entry.id, "30 days.", reviewed.AT + 10) == ""
    return entry.id


def of(store: Store, namespace: str | None = None, bounds: Bounds | None = None) -> VettedAnswers:
    return VettedAnswers(store, namespace, bounds or Bounds())


def test_an_edited_document_puts_it_on_the_list(store: Store) -> None:
    """The reviewer's text takes the place of what the model has said since, over the new documents."""
    old = vetted(store, TERMS)
    store.invalidations.invalidate(Criteria(documents=("terms.md",)), time.time)
    assert store.entries.get(old) is None
    (waiting,) = of(store).waiting()
    assert (waiting.entry.answer.text, waiting.fresh, waiting.reason) == (
        "30 days.",
        None,
        "terms.md changed",
    )
    fresh = reviewed.entry(
        "How long can I return goods?",
        "About 14 days.",
        docs=(ibidem.types.Source("terms#4", CHANGED.digest, True, "terms.md"),),
        at=time.time(),
    )
    store.entries.put(fresh, "embedder")
    (waiting,) = of(store).waiting()
    assert waiting.fresh is not None
    assert waiting.fresh.answer.text == "About 14 days."

    assert "pinned" in of(store).keep(old, "14 days.")
    served = store.entries.get(fresh.id)
    assert served is not None
    assert (served.answer.text, served.pinned) == ("14 days.", "corrected")
    assert of(store).waiting() == []


def test_a_document_that_changed_unannounced_puts_it_on_the_list(store: Store) -> None:
    """A lookup found it, and other documents; until the reviewer has looked at it."""
    id_ = vetted(store, TERMS)
    row = LookupRow(time.time(), "", reviewed.SCOPE, "How?", "", "documents_changed", id_, 1.0, 0.1, 0)
    store.lookups.add([row])

    (waiting,) = of(store).waiting()
    assert waiting.reason == "Asked again over other documents"
    assert "pinned" in of(store).keep(id_, "30 days.")
    assert of(store).waiting() == []
    store.lookups.add([replace(row, at=time.time() + 1)])
    assert of(store).drop(id_) == "The answer was dropped."
    assert store.entries.get(id_) is None
    assert of(store).waiting() == []


def test_the_list_is_that_of_the_namespace(store: Store) -> None:
    """Of whoever opened the review."""
    vetted(store, TERMS)
    store.invalidations.invalidate(Criteria(tag="terms"), time.time)

    assert [one.reason for one in of(store).waiting()] == ["Invalidated with tag terms"]
    assert of(store, "acme").waiting() == []
    assert "not there" in of(store, "acme").keep(ENTRY.id, "hacked")
    assert "not there" in of(store, "acme").drop(ENTRY.id)


def test_it_waits_where_the_bounds_are_full(store: Store) -> None:
    """Nothing is lost by trying."""
    id_ = vetted(store)
    store.invalidations.invalidate(Criteria(entry=id_), time.time)

    assert "max_entries" in of(store, bounds=Bounds(max_entries=0)).keep(id_, "30 days.")
    assert "Not done: the answer is blank" in of(store).keep(id_, " ")
    assert len(of(store).waiting()) == 1
    assert "pinned" in of(store).keep(id_, "30 days.")
    restored = store.entries.of_ids([id_])[0]
    assert (restored.answer.text, restored.pinned, restored.expires) == ("30 days.", "corrected", None)


def test_a_damaged_row_costs_one_row(store: Store) -> None:
    """The list is still shown."""
    vetted(store)
    store.invalidations.invalidate(Criteria(tag="terms"), time.time)
    with store._engine.begin() as db:
        db.exec_driver_sql("INSERT INTO withdrawn VALUES ('damaged', '', 9.0, '{', '[')")

    assert [one.entry.answer.text for one in of(store).waiting()] == ["30 days."]


def test_the_pages_of_the_review(store: Store) -> None:
    """A stored answer is corrected, marked, withdrawn, kept: each with a form, hostile text as text."""
    reviewed.fill(store)
    app = Pages(ReviewSession(review_queue(store, read_settings(), None))).app()
    client = TestClient(app)
    first = client.get("/").text
    assert "/vetted" not in first
    entry_id = first.split('action="/correct">')[1].split('value="')[1].split('"')[0]
    answer = "Under <b>Account</b>,\r\nSecurity. " + "x" * 20_000
    after = client.post("/correct", data={"entry": entry_id, "answer": answer})
    found = store.entries.get(entry_id)
    assert found is not None
    assert found.answer.text == answer.replace("\r\n", "\n")
    assert "served from now on" in after.text
    assert "corrected by a person" in after.text
    assert "<b>Account" not in after.text

    store.invalidations.invalidate(Criteria(entry=entry_id), time.time)
    assert "1 vetted answer was invalidated" in client.get("/").text
    listed = client.get("/vetted").text
    assert "Are these answers still right?" in listed
    assert "<b>Account" not in listed
    kept = client.post("/keep", data={"entry": entry_id, "answer": "Under Account."}).text
    assert "No vetted answer waits" in kept
    found = store.entries.get(entry_id)
    assert found is not None
    assert found.answer.text == "Under Account."
    store.invalidations.invalidate(Criteria(entry=entry_id), time.time)
    assert "was dropped" in client.post("/drop", data={"entry": entry_id}).text
    assert "not there any more" in client.post("/correct", data={"entry": "gone", "answer": "x"}).text


def test_the_report_marks_vetted_answers(store: Store) -> None:
    """How many, and what waits."""
    id_ = vetted(store, TERMS)
    store.lookups.add([LookupRow(time.time(), "", reviewed.SCOPE, "How?", "exact", "", id_, 1.0, 0.1, 50)])

    def report() -> str:
        facts = gather(store, read_settings(), read_prices(), LogFilter(), time.time())
        return page(facts, "0", ())

    assert "A person vouches for 1: 1 corrected, 0 given." in report()
    assert "<strong>corrected</strong>" in report()
    store.invalidations.invalidate(Criteria(entry=id_), time.time)
    fresh = reviewed.entry("Another question?", "Another answer.")
    store.entries.put(fresh, "embedder")
    assert "1 vetted answer not served" in report()


def test_the_export_has_the_corrected_answer(cache, tmp_path: Path) -> None:
    """And not the wrong one."""
    import ibidem_lab

    request = Request("How long can I return the goods that I bought?")
    cache.correct(cache.store(request, Answer("About forty days, I think, or more.")), "Within 30 days.")
    ibidem_lab.export(cache.examples, tmp_path / "out")
    text = "".join(file.read_text() for file in (tmp_path / "out").rglob("*.jsonl"))

    assert "Within 30 days." in text
    assert "forty" not in text


def test_nothing_is_lost_of_json(store: Store) -> None:
    """What is withdrawn is kept as it is, whatever it holds."""
    entry = reviewed.entry(reviewed.PLANTED, reviewed.PLANTED)
    store.entries.put(entry, "embedder")
    text = f"{reviewed.HEBREW} {json.dumps(reviewed.PLANTED)} \u2028"
    assert store.correct(entry.id, text, time.time()) == ""
    before = store.entries.of_ids([entry.id])[0]
    store.invalidations.invalidate(Criteria(entry=entry.id), time.time)
    (waiting,) = store.pins.withdrawn(10)

    assert replace(waiting.entry, tags=()) == before
