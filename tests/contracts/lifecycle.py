"""What every cache promises of the life of its answers, whatever it is built on."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from ibidem import Answer, ConfigurationError, Example, Hit, InvalidInput, Miss, Rejected, Request
from ibidem.storage.maintenance import LATE_SECONDS
from tests.helpers import Clock, eventually

QUESTION = Request("what is the state")
REWORDED = Request("what is the state now ok")
ANSWER = Answer("fine", model="m", input_tokens=100, output_tokens=10)


def fill(cache, count: int, *, tokens: int = 10, first: int = 0, **given) -> list[Request]:
    """Store `count` answers that cost so many tokens; returns their requests."""
    requests = [Request(f"tell me about subject{n}", **given) for n in range(first, first + count)]
    for request in requests:
        cache.store(request, Answer("text", input_tokens=tokens, output_tokens=0))
    return requests


class LifecycleContract:
    """Promises of expiry, bounds and admission."""

    def test_a_namespace_may_have_a_life_of_its_own(self, open_cache) -> None:
        """Longer or shorter than that of the cache."""
        cache = open_cache(ttl=100, namespace_ttl={"news": 10, "law": math.inf})
        clock = Clock(cache)
        requests = [Request("what is the state", namespace=name) for name in ("", "news", "law")]
        for request in requests:
            cache.store(request, ANSWER)
        clock.advance(50)
        assert [bool(cache.lookup(request)) for request in requests] == [True, False, True]
        clock.advance(1e9)
        assert [bool(cache.lookup(request)) for request in requests] == [False, False, True]

    def test_a_single_answer_may_live_shorter(self, open_cache) -> None:
        """Not longer: the cache's own time is the most."""
        cache = open_cache(ttl=100)
        clock = Clock(cache)
        cache.store(QUESTION, ANSWER, ttl=10)
        cache.store(Request("where is the station"), ANSWER, ttl=1000)
        clock.advance(50)
        assert cache.lookup(QUESTION).reason == "expired"
        assert cache.lookup(Request("where is the station"))
        clock.advance(50)
        assert not cache.lookup(Request("where is the station"))

    def test_a_lookup_may_ask_for_fresh_answers_only(self, cache) -> None:
        """An older one is a miss for this lookup, by meaning too, and stays for others."""
        clock = Clock(cache)
        cache.store(QUESTION, ANSWER)
        clock.advance(60)
        for request in (QUESTION, REWORDED):
            assert cache.lookup(request, max_age=59).reason == "expired" or request is REWORDED
            assert not cache.lookup(request, max_age=59)
            assert cache.lookup(request, max_age=61).age == 60

    def test_a_sliding_life_begins_anew_with_every_hit(self, open_cache) -> None:
        """For as long as it is asked for, and no longer; without it, nothing prolongs a life."""
        cache = open_cache(ttl=LATE_SECONDS, sliding=True)
        clock = Clock(cache)
        cache.store(QUESTION, ANSWER)
        for _ in range(5):
            clock.advance(0.8 * LATE_SECONDS)
            assert cache.lookup(QUESTION)
            cache.flush()
            cache._runtime.housekeeping._purge_at = 0.0  # what deletes the expired must know of it too
            cache.flush()
        clock.advance(1.01 * LATE_SECONDS)
        assert not cache.lookup(QUESTION)

    def test_within_the_grace_one_caller_refreshes_and_the_others_are_served(self, open_cache) -> None:
        """Until the fresh answer is stored; after that nobody is served."""
        cache = open_cache(ttl=100, stale_while_revalidate=50)
        clock = Clock(cache)
        cache.store(QUESTION, ANSWER)
        clock.advance(120)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(cache.lookup, [QUESTION] * 16))
        missed = [one for one in found if isinstance(one, Miss)]
        assert [one.reason for one in missed] == ["expired"]
        assert {one.stale for one in found if isinstance(one, Hit)} == {True}
        cache.store(QUESTION, Answer("better"))
        hit = cache.lookup(QUESTION)
        assert (hit.answer.text, hit.stale) == ("better", False)
        clock.advance(151)
        assert not cache.lookup(QUESTION)
        assert not cache.lookup(QUESTION)

    def test_a_stale_answer_is_found_by_meaning_too(self, open_cache) -> None:
        """The first reworded question refreshes, the second is served."""
        cache = open_cache(ttl=100, stale_while_revalidate=50)
        clock = Clock(cache)
        cache.store(QUESTION, ANSWER)
        clock.advance(120)
        assert cache.lookup(REWORDED).reason == "expired"
        assert cache.lookup(REWORDED).stale

    def test_a_stale_answer_does_not_begin_a_new_life(self, open_cache) -> None:
        """Though lives slide: it is to be refreshed."""
        cache = open_cache(ttl=100, stale_while_revalidate=1000, sliding=True)
        clock = Clock(cache)
        cache.store(QUESTION, ANSWER)
        clock.advance(150)
        assert not cache.lookup(QUESTION)  # this caller refreshes, and fails
        for _ in range(3):
            assert cache.lookup(QUESTION).stale
            cache.flush()
            clock.advance(10)

    def test_the_expired_are_deleted(self, open_cache) -> None:
        """Not only hidden, some time after."""
        cache = open_cache(ttl=100)
        clock = Clock(cache)
        fill(cache, 20)
        clock.advance(101 + LATE_SECONDS)
        fill(cache, 5, first=100)
        cache._runtime.housekeeping._purge_at = 0.0
        cache.flush()
        stats = cache.stats()
        assert (stats.entries, stats.expired) == (5, 20)

    def test_an_answer_from_the_future_is_not_believed(self, cache) -> None:
        """The clock was set back by a day: it would live a day too long. A new one takes its place."""
        clock = Clock(cache)
        cache.store(QUESTION, ANSWER)
        clock.advance(-86_400)
        assert not cache.lookup(QUESTION)
        assert not cache.lookup(REWORDED)
        cache.store(QUESTION, Answer("new"))
        assert cache.lookup(QUESTION).age == 0.0

    def test_no_more_entries_than_allowed(self, open_cache) -> None:
        """After a flush at most so many; what was stored last is among them."""
        cache = open_cache(max_entries=50)
        requests = fill(cache, 200)
        cache.flush()
        stats = cache.stats()
        assert 40 <= stats.entries <= 50
        assert stats.evicted == 200 - stats.entries
        assert cache.lookup(requests[-1])

    def test_no_more_bytes_than_allowed(self, open_cache) -> None:
        """By the size of the texts."""
        cache = open_cache(max_bytes=1_000_000)
        for n in range(60):
            cache.store(Request(f"tell me about subject{n}"), Answer("x" * 50_000))
        assert eventually(cache.flush)  # False while a loaded machine needs longer
        assert 15 <= cache.stats().entries <= 20
        assert cache.stats().bytes <= 1_000_000

    def test_what_saves_most_is_kept(self, open_cache) -> None:
        """The dear answers outlive the cheap ones that came later."""
        cache = open_cache(max_entries=30)
        dear, _ = fill(cache, 10, tokens=5000), fill(cache, 100, tokens=10, first=100)
        assert eventually(cache.flush)
        assert all(map(cache.lookup, dear))

    def test_what_is_asked_for_is_kept(self, open_cache) -> None:
        """A hit is worth more than being new; by both rules."""
        for eviction, path in (("cost", "a"), ("lru", "b")):
            cache = open_cache(max_entries=30, eviction=eviction, namespace_ttl={path: 1e6})
            clock = Clock(cache)
            popular = fill(cache, 10, namespace=path)
            for batch in range(5):
                clock.advance(1)
                assert all(map(cache.lookup, popular)), eviction
                assert eventually(cache.flush)
                fill(cache, 15, first=100 * (batch + 1), namespace=path)
                assert eventually(cache.flush)
            assert all(map(cache.lookup, popular))
            cache.clear()
            cache.close()

    def test_two_caches_on_one_place_keep_the_stricter_bound(self, open_cache) -> None:
        """And one rule of eviction."""
        open_cache(max_entries=1000)
        strict = open_cache(max_entries=20)
        fill(strict, 40)
        strict.flush()
        assert strict.stats().entries <= 20
        with pytest.raises(ConfigurationError, match="use the same"):
            open_cache(eviction="lru")

    def test_an_evicted_answer_is_not_found_by_meaning(self, open_cache) -> None:
        """The index may still know its point."""
        cache = open_cache(max_entries=1)
        cache.store(QUESTION, ANSWER)
        cache.flush()
        cache.store(Request("where is the station"), Answer("x" * 4000))
        cache.flush()
        assert not cache.lookup(REWORDED)

    def test_a_private_question_is_compared_exactly_and_its_text_kept_nowhere(self, open_cache) -> None:
        """Not in entries, logs or vectors."""
        cache = open_cache(redact=lambda text: text.replace("Bob", "[name]"))
        request = Request("what is the state of Bob")
        assert cache.lookup(request).reason == "question_private"
        assert cache.store(request, ANSWER)
        assert cache.lookup(request).tier == "exact"
        assert cache.lookup(Request("what is the state of Bob ok")).reason == "question_private"
        cache.flush()
        assert {row.question for row in cache.recent()} == {
            "what is the state of [name]",
            "what is the state of [name] ok",
        }
        assert [entry.question for entry in cache._runtime.store.entries.newest()] == [None]

    def test_an_example_is_written_redacted(self, open_cache) -> None:
        """Question and answer; none is written while the hook is broken."""
        cache = open_cache(redact=lambda text: text.replace("Bob", "[name]"))
        assert cache.examples.add(Example("who is Bob", "Bob is a builder"))
        kept = cache.examples.recent()
        assert [(one.question, one.answer) for one in kept] == [("who is [name]", "[name] is a builder")]
        assert not open_cache(redact=lambda text: 1 / 0).examples.add(Example("who is Bob", "a builder"))

    def test_a_private_answer_is_not_stored(self, open_cache) -> None:
        """Nor is anything while the hook is broken."""
        cache = open_cache(redact=lambda text: text.replace("Bob", "[name]"))
        assert cache.store(QUESTION, Answer("Bob is fine")) == Rejected("private")
        broken = open_cache(redact=lambda text: None)
        assert broken.store(QUESTION, ANSWER) == Rejected("private")
        assert broken.lookup(QUESTION).reason == "question_private"
        assert broken.stats().faults["redact a text: TypeError"] >= 2

    def test_the_user_may_refuse_an_answer(self, open_cache) -> None:
        """A predicate that fails refuses too."""
        cache = open_cache(should_store=lambda request, answer: "fine" in answer.text)
        assert cache.store(QUESTION, ANSWER)
        assert cache.store(QUESTION, Answer("bad")) == Rejected("not_admitted")
        broken = open_cache(should_store=lambda request, answer: 1 / 0)
        assert broken.store(QUESTION, ANSWER) == Rejected("not_admitted")
        assert broken.stats().rejected == {"not_admitted": 1}

    def test_an_answer_from_hot_sampling_is_not_stored(self, open_cache) -> None:
        """Somebody wants variety; the limit can be set."""
        assert open_cache().store(Request("q", temperature=1.0), ANSWER)
        assert open_cache().store(Request("q", temperature=1.2), ANSWER) == Rejected("temperature")
        assert open_cache(max_temperature=2).store(Request("q", temperature=1.2), ANSWER)

    def test_a_namespace_writes_no_more_than_its_quota(self, open_cache) -> None:
        """Others go on."""
        cache = open_cache(max_writes_per_hour=3)
        stored = [bool(cache.store(Request(f"q{n}", namespace="a"), ANSWER)) for n in range(5)]
        assert stored == [True, True, True, False, False]
        assert cache.store(Request("q", namespace="b"), ANSWER)
        assert cache.stats().rejected == {"write_quota": 2}

    def test_a_store_that_fails_spends_no_quota(self, open_cache, monkeypatch) -> None:
        """The database was away for a moment."""
        cache = open_cache(max_writes_per_hour=1)
        with monkeypatch.context() as broken:
            broken.setattr(cache._runtime.store.entries, "put", None)
            assert cache.store(QUESTION, ANSWER) == Rejected("error")
        assert cache.store(QUESTION, ANSWER)
        assert cache.store(QUESTION, ANSWER) == Rejected("write_quota")

    def test_misuse_of_times_and_tags_is_an_error(self, cache) -> None:
        """With the name of the argument."""
        for wrong in (0, -1, "1", True, math.nan):
            with pytest.raises(InvalidInput, match="max_age must be a number of seconds"):
                cache.lookup(QUESTION, max_age=wrong)
            with pytest.raises(InvalidInput, match="ttl must be a number of seconds"):
                cache.store(QUESTION, ANSWER, ttl=wrong)
        for wrong in ("tag", [1], [""], None):
            with pytest.raises(InvalidInput, match="tags must be a list of names"):
                cache.store(QUESTION, ANSWER, tags=wrong)
