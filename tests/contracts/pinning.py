"""What every cache promises of vetted answers, whatever it is built on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import ibidem
from ibidem import Answer, Document, InvalidInput, Rejected, Request, Stored
from ibidem.lifecycle.rules import Bounds
from ibidem.storage.maintenance import LATE_SECONDS
from tests.helpers import Clock, eventually, wait_until

TERMS = Document("terms#4", "Goods can be returned within 30 days.", source="terms.md")
QUESTION = Request("what is the state", documents=(TERMS,))  # made before all tests
REWORDED = Request("what is the state now ok", documents=(TERMS,))
WRONG = Answer("bad", payload='[{"text": "bad"}]', model="m", input_tokens=90, output_tokens=10)


def corrected(cache, text: str = "fine") -> str:
    """Store a wrong answer and correct it; returns the id of its entry."""
    stored = cache.store(asked_now(), WRONG, tags=["state"])
    assert cache.correct(stored, text) == stored
    return str(stored.entry_id)


def asked_now() -> Request:
    """The question, made after what was invalidated so far."""
    return Request("what is the state", documents=(TERMS,))


class PinningContract:
    """Promises of `correct`, and of what becomes of pinned answers."""

    def test_a_corrected_answer_is_served(self, cache) -> None:
        """For these words and others, also in what the adapter reads; a hit saves what the model costs."""
        entry_id = corrected(cache)
        assert eventually(lambda: cache.lookup(REWORDED))  # a server is tried for the first time

        for request, tier in ((QUESTION, "exact"), (REWORDED, "semantic")):
            hit = cache.lookup(request)
            assert (hit.tier, hit.answer.text, hit.answer.payload) == (tier, "fine", '[{"text":"fine"}]')
            assert (hit.entry_id, hit.pinned, hit.answer.tokens) == (entry_id, "corrected", 100)
            assert hit.provenance()["pinned"] == "corrected"
        assert (cache.stats().pinned, cache.stats().withdrawn) == (1, 0)

    def test_it_does_not_expire(self, open_cache) -> None:
        """Not by its own lifetime, nor for a caller that wants fresh answers, nor stale."""
        for settings in ({"sliding": False}, {"sliding": True, "stale_while_revalidate": 10}):
            cache = open_cache(ttl=100, **settings)
            clock = Clock(cache)
            corrected(cache)
            for _ in range(2):
                clock.advance(100 * LATE_SECONDS)
                cache._runtime.housekeeping._purge_at = 0.0
                cache.flush()
                hit = cache.lookup(QUESTION, max_age=5)
                assert (hit.answer.text, hit.stale) == ("fine", False)
                assert cache.lookup(REWORDED).answer.text == "fine"
            cache.clear()
            cache.close()

    def test_it_is_not_evicted(self, open_cache) -> None:
        """Whatever comes, and though it cost nothing."""
        cache = open_cache(max_entries=5)
        corrected(cache)
        for n in range(30):
            cache.store(Request(f"tell me about subject{n}"), Answer("x", input_tokens=9000))
        cache.flush()

        assert cache.stats().entries <= 5
        assert cache.lookup(QUESTION).answer.text == "fine"

    def test_pinned_answers_do_not_exceed_the_bounds(self, open_cache, monkeypatch) -> None:
        """The next one is refused; one that is corrected again takes no more room."""
        cache = open_cache()
        requests = [Request(f"tell me about subject{n}") for n in range(3)]
        stored = [cache.store(request, WRONG) for request in requests]
        assert all(cache.correct(one, "fine") for one in stored[:2])
        monkeypatch.setattr(cache._runtime.housekeeping, "_evict", lambda now: False)  # not yet
        cache._runtime.housekeeping.bounds = Bounds(max_entries=2)

        assert cache.correct(stored[2], "fine") == Rejected("pins_full")
        assert cache.lookup(requests[2]).pinned == ""
        assert cache.correct(stored[0], "better")
        assert cache.stats().rejected == {"pins_full": 1}

    def test_pinned_answers_do_not_exceed_the_bytes(self, open_cache) -> None:
        """Nothing would make room for them."""
        cache = open_cache()
        stored = cache.store(QUESTION, WRONG)
        cache._runtime.housekeeping.bounds = Bounds(max_bytes=20_000)
        assert cache.correct(stored, "x" * 30_000) == Rejected("pins_full")
        assert cache.correct(stored, "x" * 3_000)

    def test_no_answer_of_the_model_takes_its_place(self, cache) -> None:
        """Nor its documents or tags; and it is no example."""
        corrected(cache)
        assert cache.store(QUESTION, WRONG, tags=["other"]) == Rejected("pinned")
        assert cache.lookup(QUESTION).answer.text == "fine"
        assert not cache.invalidate(tag="other", dry_run=True)
        assert cache.invalidate(tag="state", dry_run=True)
        assert {one.feedback for one in cache.examples.recent() if one.answer == "bad"} == {False}

    def test_who_waits_for_the_model_gets_the_corrected_answer(self, open_cache) -> None:
        """It was corrected while the model was asked once more."""
        cache = open_cache(single_flight=10)
        entry_id = corrected(cache)
        cache.invalidate(entry=entry_id)
        asked, go, answers = threading.Event(), threading.Event(), []

        def ask(_: Request) -> Answer:
            asked.set()
            assert go.wait(10)
            return WRONG

        leader = threading.Thread(target=lambda: answers.append(cache.answer(asked_now(), ask)))
        leader.start()
        assert asked.wait(10)
        waiter = threading.Thread(target=lambda: answers.append(cache.answer(asked_now(), ask)))
        waiter.start()
        wait_until(lambda: cache._runtime.flights._leaders[QUESTION.key].waiters)
        assert not cache._runtime.store.pins.restore(
            entry_id, lambda entry: entry.answer, cache._runtime.clock()
        )
        go.set()
        leader.join(10)
        waiter.join(10)

        assert [one.text for one in answers] == ["bad", "fine"]
        assert cache.lookup(QUESTION).answer.text == "fine"

    def test_correcting_and_storing_at_once(self, cache) -> None:
        """Whichever comes last: the vetted answer is there, whole, with one of the two texts."""
        stored = cache.store(QUESTION, WRONG)
        texts = ["fine", "very fine"]
        with ThreadPoolExecutor(8) as pool:
            doing = [pool.submit(cache.store, QUESTION, WRONG) for _ in range(10)]
            doing += [pool.submit(cache.correct, stored, texts[n % 2]) for n in range(4)]
            doing += [pool.submit(cache.store, QUESTION, WRONG) for _ in range(10)]
            results = [one.result() for one in doing]

        hit = cache.lookup(QUESTION)
        assert hit.answer.text in texts
        assert hit.answer.payload == f'[{{"text":"{hit.answer.text}"}}]'
        assert all(isinstance(one, Stored) or one == Rejected("pinned") for one in results)

    @pytest.mark.parametrize(
        "criteria",
        [{"document": "terms.md"}, {"tag": "state"}, {"namespace": ""}, {"model": "m"}, {"before": 9e9}],
        ids=str,
    )
    def test_what_invalidates_it_withdraws_it(self, cache, criteria: dict) -> None:
        """It is not served, is on the list of the review, and the model's next answer is stored."""
        entry_id = corrected(cache)
        assert cache.invalidate(**criteria).count == 1

        assert not cache.lookup(QUESTION)
        assert not cache.lookup(REWORDED)
        (waiting,) = cache._runtime.store.pins.withdrawn(10)
        assert (waiting.entry.id, waiting.entry.answer.text, waiting.entry.tags) == (
            entry_id,
            "fine",
            ("state",),
        )
        assert [one.id for one in waiting.entry.sources] == ["terms#4"]
        assert (cache.stats().pinned, cache.stats().withdrawn) == (0, 1)
        assert cache.store(asked_now(), WRONG)
        assert cache.lookup(QUESTION).pinned == ""

    def test_bad_feedback_and_forget_withdraw_it(self, cache) -> None:
        """People may err: another one decides."""
        for drop in (lambda hit: cache.feedback(hit, good=False), ibidem.forget):
            corrected(cache)
            assert drop(cache.lookup(QUESTION))
            assert not cache.lookup(QUESTION)
            assert cache.stats().withdrawn == 1
            cache.clear()
            assert cache.stats().withdrawn == 0

    def test_a_withdrawn_answer_is_served_again(self, cache) -> None:
        """With the words of the reviewer; found by meaning, once the cache has embedded its question."""
        entry_id = corrected(cache)
        cache.invalidate(entry=entry_id)
        pins, clock = cache._runtime.store.pins, cache._runtime.clock
        change = lambda entry: Answer("still fine", model=entry.answer.model)  # noqa: E731

        assert pins.restore(entry_id, change, clock()) == ""
        assert pins.restore(entry_id, change, clock()) == "unknown_entry"
        assert cache.lookup(QUESTION).answer.text == "still fine"
        assert eventually(
            lambda: cache.lookup(REWORDED) and cache.lookup(REWORDED).answer.text == "still fine"
        )
        assert cache.invalidate(tag="state").count == 1
        assert pins.discard(entry_id)
        assert not pins.discard(entry_id)

    def test_it_rests_on_all_its_documents(self, cache) -> None:
        """Which of them the new words rest on is not known: none of them may change."""
        lyon = Document("d2", "Parcels leave Lyon every morning.")
        request = Request("how do I reset my password", documents=(TERMS, lyon))
        stored = cache.store(request, Answer("Within 30 days."))
        cache.correct(stored, "Parcels leave Lyon at noon.")
        reworded = "how do I reset my old password"

        assert cache.lookup(Request(reworded, documents=(lyon, TERMS)))
        assert cache.lookup(Request(reworded, documents=(TERMS,))).reason == "documents_changed"

    def test_who_may_correct_what(self, cache) -> None:
        """Within a scope only its own; what is not there cannot be corrected."""
        corrected(cache)
        entry_id = QUESTION.key
        with ibidem.scope(namespace="acme"):
            assert cache.correct(entry_id, "hacked") == Rejected("unknown_entry")
            own = cache.store(Request("what is the state"), WRONG)
            assert cache.correct(own, "fine")
        assert cache.correct("0" * 32, "fine") == Rejected("unknown_entry")
        assert cache.correct({"no": "marker"}, "fine") == Rejected("unknown_entry")
        assert cache.lookup(QUESTION).answer.text == "fine"
        assert cache.clear("acme") == 1

    def test_what_no_text_can_replace(self, cache) -> None:
        """A blank one, a tool call; an `Answer` with a payload can."""
        stored = cache.store(QUESTION, WRONG)
        for blank in ("", "  \n"):
            with pytest.raises(InvalidInput, match="blank"):
                cache.correct(stored, blank)
        for wrong in (None, 3, b"fine", "\0"):
            with pytest.raises(InvalidInput, match="answer"):
                cache.correct(stored, wrong)
        called = Answer("I look it up.", payload='{"tool_calls": [{"name": "f"}]}', semantic=False)
        stored = cache.store(Request("call it"), called)
        with pytest.raises(InvalidInput, match="for a program"):
            cache.correct(stored, "fine")
        assert cache.lookup(Request("call it")).pinned == ""
        assert cache.correct(stored, Answer("", payload='{"tool_calls": [{"name": "g"}]}', semantic=False))
        assert cache.lookup(Request("call it")).answer.payload == '{"tool_calls": [{"name": "g"}]}'

    def test_what_must_not_be_stored_is_no_correction(self, open_cache) -> None:
        """`redact` knows it."""
        cache = open_cache(redact=lambda text: text.replace("Bob", "[name]"))
        stored = cache.store(QUESTION, WRONG)
        assert cache.correct(stored, "Ask Bob.") == Rejected("private")
        assert cache.lookup(QUESTION).answer.text == "bad"

    def test_examples_have_the_corrected_answer(self, cache) -> None:
        """The model's is a bad one; who confirms an answer makes a good one of it."""
        stored = cache.store(QUESTION, WRONG)
        cache.correct(stored, "bad")
        assert [(one.answer, one.feedback) for one in cache.examples.recent()] == [("bad", True)]
        cache.correct(stored, "fine")
        cache.correct(stored, "better")

        said = {one.answer: one.feedback for one in cache.examples.recent()}
        assert said == {"bad": False, "fine": False, "better": True}
        assert [one.answer for one in cache.examples.select("what is the state now")] == ["better"]

    def test_an_invalidation_under_way_is_not_outrun(self, cache, monkeypatch) -> None:
        """It has found the answer, which another process corrects before it is deleted."""
        stored = cache.store(QUESTION, WRONG)
        cache.flush()
        monkeypatch.setattr(cache._runtime, "flush", lambda: True)  # waits for this process's invalidation
        from ibidem.storage import deletion

        delete, results = deletion._delete, []

        def late(db, some, *rest):
            if not results:  # in the same thread: another transaction cannot begin before this one on SQLite
                results.append(None)
            return delete(db, some, *rest)

        reading = deletion.reading

        def read(engine):
            results.append(cache.correct(stored, "fine")) if not results else None
            return reading(engine)

        monkeypatch.setattr(deletion, "_delete", late)
        monkeypatch.setattr(deletion, "reading", read)
        cache.invalidate(document="terms#4")
        assert results[0] == Rejected("invalidated")
        assert not cache.lookup(QUESTION)
