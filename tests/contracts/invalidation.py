"""What every cache promises of taking answers back, whatever it is built on."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from ibidem import Answer, Document, Example, InvalidInput, Rejected, Request, Stored

TERMS = Document("terms#4", "Goods can be returned within 30 days of delivery.", source="terms.md")
NEWS = Document("news#1", "Parcels leave Lyon every morning.", source="news.md")
QUESTION = Request("how long to return goods", documents=(TERMS, NEWS))
REWORDED = Request("how long to return the goods ok", documents=(TERMS, NEWS))
SALE = Document("sale#1", "Goods from the sale cannot be returned.", source="sale.md")
AMONG_NEW = Request("how long to return the goods ok", documents=(TERMS, SALE))
ANSWER = Answer("Within 30 days of delivery.", model="m")


class InvalidationContract:
    """Promises of `invalidate` and `feedback`."""

    @pytest.mark.parametrize(
        ("criteria", "count"),
        [
            ({"document": "terms#4"}, 1),
            ({"document": "terms.md"}, 1),
            ({"document": ["nothing", NEWS]}, 1),
            ({"document": "terms#4", "current": TERMS.text + "\n"}, 0),
            ({"document": "terms.md", "current": ["Goods can", TERMS.text]}, 0),
            ({"document": "terms.md", "current": "Within 14 days."}, 1),
            ({"document": "terms.md", "current": []}, 1),
            ({"current": Document("terms#4", "Within 14 days.")}, 1),
            ({"current": TERMS}, 0),
            ({"tag": "returns"}, 1),
            ({"tag": "return"}, 0),
            ({"namespace": ""}, 2),
            ({"namespace": "other"}, 1),
            ({"model": "m"}, 1),
            ({"entry": QUESTION.key}, 1),
            ({"entry": QUESTION.key[:8]}, 0),
            ({"before": 4e9}, 3),
            ({"before": datetime.now(UTC) - timedelta(days=1)}, 0),
            ({"document": "terms#4", "namespace": "other"}, 0),
            ({"document": "terms#4", "model": "m", "tag": "returns", "namespace": ""}, 1),
        ],
        ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
    )
    def test_what_fulfils_all_criteria_goes(self, cache, criteria, count) -> None:
        """A dry run says so before; what is gone is found neither exactly nor by meaning."""
        cache.store(QUESTION, ANSWER, tags=["returns", "shop"])
        cache.store(Request("where is the station"), Answer("there", model="n"))
        cache.store(Request("what is the state", namespace="other"), Answer("fine"))
        cache.flush()
        foretold = cache.invalidate(**criteria, dry_run=True)
        assert foretold.count == len(foretold.entries) == count
        assert cache.stats().entries == 3
        assert cache.invalidate(**criteria).count == count
        assert cache.stats().entries == 3 - count
        gone = QUESTION.key in {entry.id for entry in foretold.entries}
        assert [bool(cache.lookup(request)) for request in (QUESTION, REWORDED)] == [not gone] * 2
        assert cache.stats().faults == {}

    def test_an_answer_that_was_being_made_is_not_stored(self, cache) -> None:
        """One that was asked for afterwards is."""
        before = Request(QUESTION.question, documents=QUESTION.documents)
        other = Request("where is the station")
        cache.invalidate(document="terms.md")
        assert cache.store(before, ANSWER) == Rejected("invalidated")
        assert isinstance(cache.store(other, ANSWER), Stored)
        assert isinstance(cache.store(Request(before.question, documents=before.documents), ANSWER), Stored)
        assert cache.stats().rejected == {"invalidated": 1}

    def test_dead_content_is_refused_whenever_it_was_asked(self, cache) -> None:
        """A retriever that still has it in memory brings nothing back; what the document says now is fine."""
        cache.invalidate(document="terms.md", current="Goods can be returned within 14 days.")
        now = Document("terms#5", "Goods can be returned within 14 days.", source="terms.md")
        assert cache.store(Request("how long", documents=(TERMS,)), ANSWER) == Rejected("invalidated")
        assert cache.store(Request("how long", documents=(now,)), Answer("14 days"))

    def test_many_are_deleted_in_batches(self, cache, monkeypatch) -> None:
        """And their documents and examples with them."""
        monkeypatch.setattr("ibidem.storage.deletion.BATCH", 7)
        monkeypatch.setattr("ibidem.storage.deletion.BATCH", 7)
        monkeypatch.setattr("ibidem.storage.deletion.MAX_BATCH", 7)
        for n in range(30):
            request = Request(f"what about subject{n}", documents=(TERMS,))
            stored = cache.store(request, Answer(f"answer {n}"))
            cache.examples.add(Example("again", "x", entry_id=stored.entry_id))
        cache.examples.add(Example("what about subject3", "answer 3"))  # the model's own answer
        cache.examples.add(Example("what about the shop", "open", documents=(TERMS,)))  # never stored
        cache.examples.add(Example("what about subject3", "another answer"))
        cache.examples.count()  # written
        done = cache.invalidate(document="terms#4")

        assert (done.count, done.examples) == (30, 61)
        assert [example.answer for example in cache.examples.recent()] == ["another answer"]

    def test_examples_go_by_their_tags_too(self, cache) -> None:
        """Also those whose answer is gone, or was never stored; a tag is no part of another."""
        for tags in ((), ("shop",), ("shops",), ("return", "shop")):
            cache.examples.add(Example(f"about {' '.join(tags)}", "x", tags=tags))
        cache.examples.count()  # written

        assert cache.invalidate(tag="shop").examples == 2
        assert sorted(example.tags for example in cache.examples.recent()) == [(), ("shops",)]

    def test_examples_that_wait_to_be_written_go_too(self, cache) -> None:
        """Also if another process invalidates; what is told of later is kept."""
        for told in range(3):
            cache.store(QUESTION, ANSWER)
            cache.examples.add(Example(f"what of {told}", "x", documents=QUESTION.documents))
            cache.invalidate(document=QUESTION.documents[0].id)
        cache.examples.add(Example("afterwards", "x", at=1.0, documents=QUESTION.documents))

        assert [example.question for example in cache.examples.recent()] == ["afterwards"]

    @pytest.mark.parametrize(
        "tell",
        [
            lambda cache: cache.announce("sale#1"),
            lambda cache: cache.announce(["other", SALE]),
            lambda cache: cache.announce("sale.md", namespace=""),
            lambda cache: cache.invalidate(document="sale.md"),
            lambda cache: cache.invalidate(document="sale#1", namespace=""),
            lambda cache: cache.invalidate(document="sale.md", current=SALE.text),
            lambda cache: cache.invalidate(document="sale.md", current="The whole file.\n\n" + SALE.text),
            lambda cache: cache.invalidate(document=["sale.md", "other.md"], current=[SALE.text]),
        ],
    )
    def test_an_answer_is_not_repeated_where_a_new_document_is_found(self, open_cache, tell) -> None:
        """Told of since it was asked for; an answer that was made with it is."""
        cache = open_cache()
        cache.store(QUESTION, ANSWER)
        assert cache.lookup(AMONG_NEW)
        tell(cache)
        assert cache.lookup(AMONG_NEW).reason == "documents_added"
        assert cache.why(AMONG_NEW).reason == "documents_added"
        assert [one.change for one in cache.why(AMONG_NEW).nearest[0].documents] == ["added"]
        assert cache.lookup(REWORDED)  # where it is not found
        assert open_cache(new_documents="ignore").lookup(AMONG_NEW)
        assert open_cache(document_policy="supporting").lookup(AMONG_NEW)
        new = Request("how long to return the goods", documents=(TERMS, SALE))
        if stored := cache.store(new, Answer("Within 30 days of delivery, unless from the sale.")):
            assert cache.lookup(AMONG_NEW).entry_id == new.key
        assert stored or stored.reason == "invalidated"  # the whole file is another text than this part of it
        assert cache.stats().faults == {}

    @pytest.mark.parametrize(
        "tell",
        [
            lambda cache: None,
            lambda cache: cache.announce(["sale#2", "sale"]),
            lambda cache: cache.announce("sale.md", namespace="other"),
            lambda cache: cache.announce("terms#4"),  # with the text that the answer knows
            lambda cache: cache.invalidate(document="sale.md", namespace="other"),
            lambda cache: cache.invalidate(document="sale.md", tag="other"),
            lambda cache: cache.invalidate(document="sale.md", dry_run=True),
        ],
    )
    def test_what_was_told_of_others_costs_nothing(self, cache, tell) -> None:
        """Of other documents, for other namespaces, or of some answers only."""
        cache.store(QUESTION, ANSWER)
        tell(cache)
        assert cache.lookup(AMONG_NEW)

    def test_what_was_told_before_is_not_new(self, cache) -> None:
        """Nor a text that a document said before, as far as that was told; one that was gone meanwhile is."""
        texts = [f"On sale {number}." for number in range(3)]

        def asked(text: str) -> str:
            documents = (TERMS, Document("sale", text, source="sale.md"))
            found = cache.lookup(Request("how long to return the goods ok", documents=documents))
            return "" if found else found.reason

        cache.announce("sale.md")
        cache.invalidate(document="sale.md", current=texts[:2])
        cache.store(Request(QUESTION.question, documents=QUESTION.documents), ANSWER)
        cache.invalidate(document="sale.md", current=texts[1:])
        assert [asked(text) for text in texts] == ["documents_added", "", "documents_added"]
        cache.invalidate(document="sale.md", current=[])
        cache.invalidate(document="sale.md", current=texts[1:])
        assert [asked(text) for text in texts] == ["documents_added"] * 3

    def test_what_is_told_while_an_answer_is_made_is_new(self, cache) -> None:
        """The model has not seen it; nor has one whose answer is stored for another entry."""
        asked = Request(QUESTION.question, documents=QUESTION.documents)
        cache.announce("sale#1")
        assert cache.store(asked, ANSWER)
        assert cache.lookup(AMONG_NEW).reason == "documents_added"
        assert cache.store(Request(QUESTION.question, documents=QUESTION.documents), ANSWER)
        assert cache.lookup(AMONG_NEW)

    def test_a_vetted_answer_knows_what_there_is_when_it_is_vetted(self, cache) -> None:
        """Until something else is told."""
        cache.store(QUESTION, ANSWER)
        cache.announce("sale#1")
        assert cache.correct(QUESTION.key, "Within 30 days.")
        beside = Request(AMONG_NEW.question, documents=(TERMS, NEWS, SALE))
        assert cache.lookup(beside).pinned == "corrected"
        cache.announce("sale#1")
        assert cache.lookup(beside).reason == "documents_added"
        assert cache.lookup(AMONG_NEW).reason == "documents_changed"

    def test_what_was_told_is_bounded(self, cache, monkeypatch) -> None:
        """What may be forgotten counts as new for answers of that time, and not for later ones."""
        monkeypatch.setattr("ibidem.storage.told.KEPT", 5)
        cache.store(QUESTION, ANSWER)
        cache.announce([f"d{number}" for number in range(40)])
        assert cache.lookup(AMONG_NEW)
        cache._runtime.store.evictor.delete_expired(0.0)
        assert cache.lookup(AMONG_NEW).reason == "documents_added"
        assert cache.lookup(REWORDED)
        cache.store(Request(QUESTION.question, documents=QUESTION.documents), ANSWER)
        assert cache.lookup(AMONG_NEW)
        cache._runtime.store.evictor.delete_expired(0.0)
        assert cache.lookup(AMONG_NEW)

    def test_tellings_at_once_do_not_lock_one_another(self, open_cache) -> None:
        """Of the same documents, in any order, beside invalidations of them."""
        cache = open_cache()
        names = [f"d{number}" for number in range(40)]

        def tell(worker: int) -> None:
            for round_ in range(6):
                shown = names[:: 1 if worker % 2 else -1]
                if (worker + round_) % 3:
                    cache.announce(shown)
                else:
                    cache.invalidate(document=shown[0], current=shown)

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(tell, worker) for worker in range(4)]:
                done.result(60)

    def test_feedback_keeps_the_examples(self, cache) -> None:
        """Marked; the answer is gone."""
        stored = cache.store(QUESTION, ANSWER)
        assert cache.feedback(stored, good=False)

        assert [example.feedback for example in cache.examples.recent()] == [False]
        assert not cache.lookup(QUESTION)

    def test_stores_and_invalidations_at_once_leave_nothing_behind(self, open_cache) -> None:
        """However they meet: what was asked before the last invalidation is not there after it."""
        cache = open_cache()
        failures: list[str] = []
        stop = threading.Event()

        def store(worker: int) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                document = Document(f"d{n % 3}", f"text {n % 3}")
                request = Request(f"subject{worker}x{n}", documents=(document,))
                time.sleep(0.002)  # the model
                cache.store(request, Answer(repr(request.made)))

        with ThreadPoolExecutor(3) as pool:
            workers = [pool.submit(store, worker) for worker in range(3)]
            for round_ in range(15):
                time.sleep(0.01)
                asked = time.time()
                cache.invalidate(document=f"d{round_ % 3}")
                left = cache.invalidate(document=f"d{round_ % 3}", dry_run=True).entries
                failures += [str(entry) for entry in left if float(entry.answer.text) <= asked]
            stop.set()
            for worker in workers:
                worker.result(30)

        assert failures == []
        assert cache.stats().faults == {}

    def test_a_bad_answer_is_gone_at_once(self, cache) -> None:
        """And may be stored anew when the model gives another; what was said is kept."""
        cache.store(QUESTION, ANSWER)
        hit = cache.lookup(REWORDED)
        assert cache.feedback(hit, good=True, question="how long?")
        assert cache.feedback({"ibidem": hit.provenance()}, good=False)
        assert not cache.lookup(QUESTION)
        assert not cache.lookup(REWORDED)
        assert cache.store(QUESTION, ANSWER) == Rejected("invalidated")
        assert cache.store(Request(QUESTION.question, documents=QUESTION.documents), Answer("30 days"))
        bad, good = cache.judgements()
        assert (bad.right, bad.source, bad.entry_id) == (False, "feedback", QUESTION.key)
        assert (good.right, good.asked, good.stored) == (True, "how long?", QUESTION.question)
        assert good.score == pytest.approx(hit.score)

    @pytest.mark.parametrize("unknown", ["f" * 32, "", "a\0b", {}, {"model": "gpt"}, {"ibidem": 3}], ids=str)
    def test_feedback_on_what_is_not_there_is_no_error(self, cache, unknown) -> None:
        """An answer may be evicted before somebody reads it, or come from the model."""
        assert cache.feedback(unknown, good=False) is False
        assert cache.judgements() == []

    def test_misuse_of_criteria_is_an_error(self, cache) -> None:
        """Nothing given must not mean everything."""
        for criteria, match in (
            ({}, "say what to invalidate"),
            ({"document": []}, "holds what is none, or nothing"),
            ({"document": ""}, "holds what is none"),
            ({"document": 3}, "an id or several, not int"),
            ({"document": [None]}, "holds what is none"),
            ({"document": "a\0b"}, "no database"),
            ({"current": "text"}, "say which one"),
            ({"document": "d", "current": 3}, "a text, an ibidem.Document"),
            ({"tag": 3}, "tag must be a str"),
            ({"before": datetime.now()}, "no time zone"),
            ({"before": "yesterday"}, "seconds since the epoch or a datetime"),
            ({"before": True}, "seconds since the epoch"),
            ({"before": float("nan")}, "seconds since the epoch"),
            ({"tag": "t", "dry_run": 1}, "dry_run must be a bool"),
        ):
            with pytest.raises(InvalidInput, match=match):
                cache.invalidate(**criteria)
        for document in (None, [], "", [None], "a\0b"):
            with pytest.raises(InvalidInput):
                cache.announce(document)
        with pytest.raises(InvalidInput, match="namespace must be a str"):
            cache.announce("d", namespace=3)
        with pytest.raises(InvalidInput, match="must be a Hit"):
            cache.feedback(None, good=True)
        with pytest.raises(InvalidInput, match="good must be a bool"):
            cache.feedback("x", good="yes")
