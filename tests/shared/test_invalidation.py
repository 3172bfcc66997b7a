"""Criteria and tombstones; the contract holds the promises of the cache."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ibidem import Answer, Document, Rejected, Request
from ibidem.lifecycle.invalidation import KEPT_SECONDS, NAMES, Criteria, Tombstones, criteria_of
from ibidem.storage.logs import LookupRow
from ibidem.storage.store import Store
from ibidem.types import Entry, Source, digest
from tests.helpers import Clock, rounds
from tests.servers import running_postgres

names = st.sampled_from(["a", "b", "c%", "c", '\N{GREEK SMALL LETTER PI}"\\', "A"])
times = st.integers(0, 5).map(float)
digests = names.map(digest)
entries = st.builds(
    Entry,
    id=st.integers(0, 10**9).map(lambda n: digest(str(n))),
    namespace=names,
    scope=st.just("s"),
    question=st.just("q"),
    documents=st.just("d"),
    semantic=st.just(False),
    answer=names.map(lambda model: Answer("text", model=model)),
    created=times,
    tags=st.sets(names, max_size=2).map(lambda tags: tuple(sorted(tags))),
    sources=st.lists(
        st.builds(Source, names, digests, st.booleans(), st.just("") | names),
        max_size=3,
        unique_by=lambda source: (source.id, source.digest),
    ).map(tuple),
)
some_criteria = st.builds(
    Criteria,
    documents=st.lists(names, max_size=3, unique=True).map(tuple),
    current=st.none() | st.frozensets(digests, max_size=2),
    tag=st.none() | names,
    namespace=st.none() | names,
    model=st.none() | names,
    entry=st.none(),
    before=st.none() | times,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that the examples of a property share, one after another."""
    opened = Store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'x.sqlite3'}")
    yield opened
    opened.close()


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=rounds(100, 1_000), deadline=None)
@given(
    stored=st.lists(entries, max_size=8, unique_by=lambda entry: entry.id),
    criteria=some_criteria,
    data=st.data(),
)
def test_sql_and_criteria_agree(store: Store, stored, criteria, data) -> None:
    """Exactly the matching entries are deleted; a dry run counts them."""
    store.clear()
    with store._engine.begin() as db:
        db.exec_driver_sql("DELETE FROM invalidations")
    store.invalidations._tombstones = Tombstones()
    if stored and data.draw(st.booleans()):
        criteria = replace(criteria, entry=data.draw(st.sampled_from(stored)).id)
    for entry in stored:
        store.entries.put(entry, "e")
    matching = {entry.id for entry in stored if criteria.matches_entry(entry)}
    count, newest = store.invalidations.preview(criteria, 100)
    gone, _ = store.invalidations.invalidate(criteria, lambda: 0.0)

    assert (count, set(newest), set(gone)) == (len(matching), matching, matching)
    assert {entry.id for entry in store.entries.newest(100)} == {entry.id for entry in stored} - matching
    with store._engine.connect() as db:
        left = db.exec_driver_sql(
            "SELECT entry_id FROM entry_documents UNION SELECT entry_id FROM entry_tags"
        )
        assert not matching & {row[0] for row in left}


@given(criteria=some_criteria)
def test_criteria_round_trip(criteria: Criteria) -> None:
    """As text and back."""
    assert Criteria.read(criteria.as_json()) == (None if criteria == Criteria() else criteria)


@given(
    st.recursive(st.none() | st.integers() | st.text() | st.booleans(), st.lists).map(json.dumps) | st.text()
)
def test_other_text_is_read_as_none(text: str) -> None:
    """A row may come from a newer version, or be damaged."""
    assert Criteria.read(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"tag": 3}',
        '{"documents": "a"}',
        '{"documents": [1]}',
        '{"current": ["a"], "new": 1}',
        '{"before": "now"}',
        '{"before": true}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_damaged_criteria_are_read_as_none(text: str) -> None:
    """A wrong type in a known place."""
    assert Criteria.read(text) is None


def entry(**given) -> Entry:
    """An entry with the source `guide`."""
    sources = (Source("guide#1", digest("old"), True, "guide"),)
    default = Entry("1" * 32, "", "s", "q", "d", True, Answer("a"), created=1000.0, sources=sources)
    return replace(default, **given)


def test_tombstones_reject_earlier_requests() -> None:
    """By any name of a document; other answers are stored."""
    tombstones = Tombstones()
    tombstones.add([(1, 500.0, Criteria(documents=("guide",)).as_json())])

    assert [tombstones.refuse(entry(), made) for made in (499.0, 500.0, 500.1)] == [True, True, False]
    assert not tombstones.refuse(entry(sources=()), 499.0)
    tombstones.add(
        [(2, 600.0, Criteria(entry="1" * 32).as_json()), (3, 700.0, Criteria(model="m").as_json())]
    )
    assert [tombstones.refuse(entry(sources=()), made) for made in (600.0, 600.1)] == [True, False]
    assert tombstones.refuse(entry(answer=Answer("a", model="m")), 650.0)
    assert tombstones.last == 3


def test_tombstones_expire() -> None:
    """Also those with current content."""
    tombstones = Tombstones()
    dead = Criteria(documents=("guide",), current=frozenset({digest("new")}))
    tombstones.add([(1, 500.0, dead.as_json())])

    assert tombstones.refuse(entry(created=500.0 + KEPT_SECONDS), 1e9)
    assert not tombstones.refuse(entry(created=501.0 + KEPT_SECONDS), 1e9)


@given(st.lists(st.tuples(names, st.sampled_from([None, "", "other"])), max_size=5), names, st.integers(0, 6))
def test_the_last_edit_of_a_document_decides(
    edits: list[tuple[str, str | None]], rests_on: str, made: int
) -> None:
    """An answer from a text that is back is stored; what is said of other namespaces does not matter."""
    tombstones, state = Tombstones(), None
    for number, (text, namespace) in enumerate(edits, 1):
        said = Criteria(documents=("guide", "b"), current=frozenset({digest(text)}), namespace=namespace)
        tombstones.add([(number, 500.0 + number, said.as_json())])
        state = text if namespace in (None, "") else state

    answer = entry(sources=(Source("guide#1", digest(rests_on), True, "guide"),))
    assert tombstones.refuse(answer, 500.0 + made) == (state not in (None, rests_on))


def test_unreadable_tombstones_reject_all_earlier_requests() -> None:
    """They may have matched anything."""
    tombstones = Tombstones()
    tombstones.add([(1, 500.0, "?")])

    assert [tombstones.refuse(entry(sources=()), made) for made in (499.0, 501.0)] == [True, False]


def test_dropped_tombstones_reject_all_earlier_requests(monkeypatch) -> None:
    """Beyond the limit: that costs hits and never causes one."""
    monkeypatch.setattr("ibidem.lifecycle.invalidation.LIMIT", 10)
    tombstones = Tombstones()
    tombstones.add((n, float(n), Criteria(documents=(f"d{n}",)).as_json()) for n in range(1, 21))

    assert tombstones.refuse(entry(), 10.0)
    assert not tombstones.refuse(entry(), 11.0)


def test_a_long_list_of_documents_is_split() -> None:
    """No database takes a hundred thousand parameters."""
    criteria = criteria_of(
        document=[str(n) for n in range(2 * NAMES + 1)], current=None, before=None, tag="t"
    )
    parts = list(criteria.parts())

    assert [(len(part.documents), part.tag) for part in parts] == [(NAMES, "t"), (NAMES, "t"), (1, "t")]
    assert list(Criteria(tag="t").parts()) == [Criteria(tag="t")]


def test_old_tombstones_are_deleted(open_cache, tmp_path: Path) -> None:
    """Except the newest: its id must not be given again."""
    cache = open_cache()
    clock = Clock(cache)
    for _ in range(3):
        cache.invalidate(document="guide")
    clock.advance(3 * KEPT_SECONDS)
    cache._runtime.store.evictor.delete_expired(clock.now)
    with sqlite3.connect(tmp_path / "cache" / "ibidem.sqlite3") as db:
        assert [row[0] for row in db.execute("SELECT id FROM invalidations")] == [3]
    db.close()
    clock.advance(1)
    cache.invalidate(tag="t")
    assert cache._runtime.store.invalidations._tombstones.last <= 4
    asked = Request("q", made=clock.now - 1)
    assert cache.store(asked, Answer("a"), tags=["t"]) == Rejected("invalidated")


def test_documents_with_the_same_text_are_told_apart(open_cache) -> None:
    """Either of them invalidates the answer."""
    cache = open_cache()
    for gone in ("a", "b"):
        twins = (Document("a", "the same text"), Document("b", "the same text"))
        cache.store(Request("q", documents=twins), Answer("a"))
        assert cache.invalidate(document=gone).count == 1


def test_invalidated_answers_are_not_audited(open_cache) -> None:
    """Another answer is no proof against the old one: its document has changed."""
    judged = []
    cache = open_cache(audit_rate=1.0, compare=lambda *texts: judged.append(texts) or True)
    document = Document("guide", "Hold the button.")
    cache.store(Request("how do I reset my radio", documents=(document,)), Answer("Hold it."))
    reworded = Request("how do I reset my old radio", documents=(document,))
    assert cache.lookup(reworded).reason == "below_budget"
    cache.invalidate(document="guide")
    cache.store(Request(reworded.question, documents=(document,)), Answer("Press it."))
    cache.flush()

    assert judged == []
    assert cache.judgements() == []


def test_feedback_does_not_crowd_out_audits(open_cache, monkeypatch) -> None:
    """A budget reads the last judgements of its namespace: those of audits."""
    cache = open_cache(audit_rate=1.0)
    cache.store(Request("how do I reset my radio"), Answer("Hold it."))
    cache.lookup(Request("how do I reset my old radio"))
    cache.store(Request("how do I reset my old radio"), Answer("Hold it."))
    cache.flush()
    for _ in range(5):
        cache.feedback(Request("how do I reset my radio").key, good=True)
    table, scorer = cache._runtime.store.judgements, cache._runtime.semantic_index.scorer.name

    assert [row.source for _, row in table.newest(2, "", scorer)] == ["probe"]
    assert table.namespaces(5) == [("", scorer)]
    assert [one.probes for one in cache.stats().audits] == [1]


def test_feedback_is_redacted(open_cache) -> None:
    """As the log of lookups is."""
    cache = open_cache(redact=lambda text: text.replace("Ada", "[name]"))
    hit = cache.store(Request("how do I reset it"), Answer("Hold it."))
    cache.feedback(hit, good=True, question="how does Ada reset it")

    assert cache.judgements()[0].asked == "how does [name] reset it"


def test_invalidation_uses_indexes(store: Store) -> None:
    """Neither a store nor a query by document, tag or entry scans a table."""
    statements: list[tuple[str, object]] = []

    def note(_connection, _cursor, statement, parameters, *_rest) -> None:
        statements.append((statement, parameters))

    store.entries.put(entry(), "e")
    sqlalchemy.event.listen(store._engine, "before_cursor_execute", note)
    for criteria in (
        Criteria(documents=("a", "b")),
        Criteria(documents=("a",), current=frozenset({"c"})),
        Criteria(tag="t"),
        Criteria(entry="e"),
        Criteria(namespace="n"),
        Criteria(before=1.0),
    ):
        store.invalidations.preview(criteria, 5)
    with store._engine.begin() as db:
        store.invalidations.rejects(db, entry(), 1.0)
    sqlalchemy.event.remove(store._engine, "before_cursor_execute", note)
    with store._engine.connect() as db:
        plans = [
            " ".join(row[3] for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
            for statement, parameters in statements
            if statement.startswith("SELECT")
        ]

    assert len(plans) == 13
    assert [plan for plan in plans if "SCAN" in plan] == []


def test_counting_hits_and_invalidating_do_not_deadlock() -> None:
    """On a server, where each locks many rows, in the same order."""
    numbers = range(rounds(40, 100))
    with running_postgres() as url, closing(Store(url)) as store, ThreadPoolExecutor(3) as pool:
        stop = threading.Event()

        def count_hits(seed: int) -> None:
            draw = random.Random(seed)
            while not stop.is_set():
                ids = draw.sample([digest(str(n)) for n in numbers], len(numbers) * 4 // 5)
                store.lookups.add(
                    [LookupRow(1.0, "", "s", "q", "exact", "", id_, 1.0, 0.1, 1) for id_ in ids]
                )

        writers = [pool.submit(count_hits, seed) for seed in range(3)]
        for round_ in range(rounds(3, 10)):
            for n in numbers:
                store.entries.put(entry(id=digest(str(n)), created=float(round_)), "e")
            assert len(store.invalidations.invalidate(Criteria(documents=("guide",)), lambda: 0.0)[0]) == len(
                numbers
            )
        stop.set()
        assert [writer.result(30) for writer in writers] == [None] * 3
