"""What every cache promises, whatever it is built on. A subclass provides the fixture `open_cache`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import ibidem
from ibidem import Answer, CacheClosed, Document, Example, Hit, InvalidInput, Miss, Rejected, Request, Stored
from tests.embedders import BagOfWords, Broken, Constant

DOCS = (
    Document("d1", "Goods can be returned within 30 days of delivery."),
    Document("d2", "Parcels leave Lyon every morning."),
)
CHANGED = (Document("d1", "Goods can be returned within 14 days of delivery."), DOCS[1])
ANSWER = Answer("Within 30 days of delivery.", model="m", input_tokens=7, output_tokens=5)


class CacheContract:
    """Promises of `SemanticCache`."""

    def test_an_empty_cache_says_so(self, cache) -> None:
        """The first miss of all is `empty`."""
        assert cache.lookup(Request("anything")).reason == "empty"

    def test_the_same_question_is_an_exact_hit(self, cache) -> None:
        """With everything that was stored."""
        stored = cache.store(Request("how do I reset it"), ANSWER)
        hit = cache.lookup(Request("how do I reset it"))

        assert isinstance(stored, Stored)
        assert (hit.answer, hit.entry_id, hit.tier, hit.similarity) == (ANSWER, stored.entry_id, "exact", 1.0)

    async def test_async_code_looks_up_and_stores(self, cache) -> None:
        """In the cache's own threads, within the scope and on the terms of the caller."""
        loop = threading.get_ident()
        threads = []
        cache._on_lookup = lambda *_: threads.append(threading.get_ident())
        with ibidem.scope(namespace="acme"):
            stored = await cache.astore(Request("how do I reset it"), ANSWER, ttl=3600, tags=["reset"])
            hit = await cache.alookup(Request("how do I reset it"))
            old = await cache.alookup(Request("how do I reset it"), max_age=1e-9)

        assert (hit.answer, hit.entry_id) == (ANSWER, stored.entry_id)
        assert old.reason == "expired"
        assert (await cache.alookup(Request("how do I reset it"))).reason == "empty"
        assert loop not in threads
        assert cache.invalidate(tag="reset").count == 1
        with pytest.raises(InvalidInput, match="max_age"):
            await cache.alookup(Request("how do I reset it"), max_age="old")

    def test_a_reworded_question_is_a_semantic_hit(self, cache) -> None:
        """It says which question it answered, and how near that was; at once and after indexing."""
        cache.store(Request("how do I reset my password"), ANSWER)
        reworded = Request("how do I reset my old password")

        for _ in range(2):
            hit = cache.lookup(reworded)
            assert (hit.tier, hit.question) == ("semantic", "how do I reset my password")
            assert hit.similarity == pytest.approx(0.926, abs=0.05)
            assert hit.seconds > 0
            cache.flush()

    def test_the_parts_in_which_scopes_differ_are_named(self, cache) -> None:
        """Of the most similar scope, as kept with its answers; nothing of a scope in one text."""
        asked = "how do I reset my password"
        parts = {"model": "m", "tools": "none", "system prompt": "It is 10:00."}
        for given in ("in one text", {**parts, "model": "n", "tools": "all"}, parts):
            cache.store(Request(asked, scope=given), ANSWER)
        cache.store(Request(asked, scope=parts, namespace="other"), ANSWER)
        (found,) = cache.why(Request(asked, scope={**parts, "system prompt": "It is 10:01."})).elsewhere
        (vague,) = cache.why(Request(asked, scope="in other words")).elsewhere

        assert (found.differs, found.scopes, found.entry_id) == (
            ("system prompt",),
            3,
            Request(asked, scope=parts).key,
        )
        assert (vague.differs, vague.scopes) == ((), 3)
        assert cache.lookup(Request(asked, scope=dict(reversed(parts.items())))).tier == "exact"
        assert not cache.lookup(Request(asked, scope={**parts, "system prompt": ""}))
        assert not cache.lookup(Request(asked, scope={**parts, "prompt": ""}))

    def test_the_log_knows_what_decided(self, cache) -> None:
        """Score and least score of a lookup by meaning, and of one namespace or reason."""
        cache.store(Request("how do I reset my password"), ANSWER)
        for asked in ("how do I reset my password", "how do I reset my old password", "who sells tea"):
            result = cache.lookup(Request(asked))
        cache.lookup(Request("how do I reset my password 2"))
        cache.lookup(Request("who sells tea", scope={"model": "m"}, namespace="other"))
        new, guarded, far, near, exact = cache.recent()

        assert (exact.tier, exact.score, exact.threshold) == ("exact", None, None)
        assert (near.tier, near.score >= near.threshold) == ("semantic", True)
        assert (far.reason, far.score, far.threshold) == ("below_threshold", None, near.threshold)
        assert (result.score, result.threshold) == (None, near.threshold)
        assert (guarded.reason, guarded.threshold) == ("guard:numbers", near.threshold)
        assert (new.reason, new.threshold) == ("empty", None)
        assert '"model"' in new.scope_parts
        assert [one.reason for one in cache.recent(namespace="other")] == ["empty"]
        assert cache.recent(reason="guard") == cache.recent(reason="guard:numbers") == [guarded]
        assert cache.recent(1, reason="empty") == [new]
        assert cache.recent(reason="empty", namespace="") == []

    def test_a_lookup_is_explained(self, cache) -> None:
        """With the nearest questions of its scope, and of others if there are none near."""
        for scope in ("morning", "evening"):
            cache.store(Request("how do I reset my password", scope=scope), ANSWER)
        near = cache.why(Request("how do I reset my old password", scope="morning"))
        far = cache.why(Request("how do I reset my password", scope="night"))

        assert (near.tier, near.entry_id) == ("semantic", near.nearest[0].entry_id)
        assert (far.reason, [one.scopes for one in far.elsewhere]) == ("empty", [2])
        assert cache.recent() == []
        assert (
            cache.lookup(Request("how do I reset my old password", scope="morning")).score
            == near.nearest[0].score
        )

    def test_an_unrelated_question_misses(self, cache) -> None:
        """The nearest candidate is named."""
        cache.store(Request("how do I reset my password"), ANSWER)
        miss = cache.lookup(Request("where is the station"))

        assert (miss.reason, miss.nearest) == ("below_threshold", "how do I reset my password")

    def test_scopes_and_namespaces_do_not_leak(self, open_cache) -> None:
        """Not even where every question is the same point and the foreign entry is the nearer one."""
        cache = open_cache(embedder=Constant())
        cache.store(Request("x", scope="a", namespace="n"), Answer("mine"))
        for _ in range(2):
            assert cache.lookup(Request("x", scope="b", namespace="n")).reason == "empty"
            assert cache.lookup(Request("x", scope="a", namespace="m")).reason == "empty"
            assert cache.lookup(Request("y", scope="a", namespace="n")).answer.text == "mine"
            cache.flush()

    def test_the_right_scope_is_found_among_many(self, open_cache) -> None:
        """100 scopes hold the same question; each finds its own answer."""
        cache = open_cache()
        for n in range(100):
            cache.store(Request("what is the opening time", scope=f"s{n}"), Answer(f"answer {n}"))
        cache.flush()
        found = [cache.lookup(Request("what is the usual opening time", scope=f"s{n}")) for n in range(100)]

        assert [hit.answer.text for hit in found if hit] == [f"answer {n}" for n in range(100)]

    def test_changed_documents_are_a_miss(self, cache) -> None:
        """The answer rested on the document that changed, in the same words or others."""
        cache.store(Request("how long to return goods", documents=DOCS), ANSWER)

        for question in ("how long to return goods", "how long to return the goods"):
            assert cache.lookup(Request(question, documents=CHANGED)).reason == "documents_changed"
            assert cache.lookup(Request(question, documents=())).reason == "documents_changed"
            assert cache.lookup(Request(question, documents=DOCS[::-1]))

    def test_documents_that_do_not_support_the_answer_may_change(self, open_cache) -> None:
        """Unless the document policy is `all`."""
        other = (DOCS[0], Document("d3", "We also have a shop in Nice."))
        asked, again = (
            Request("how long to return goods", documents=DOCS),
            Request("how long to return goods", documents=other),
        )
        supporting, every = open_cache(), open_cache(document_policy="all")
        supporting.store(asked, ANSWER)

        assert supporting.lookup(again).tier == "semantic"
        assert every.lookup(again).reason == "documents_changed"
        assert every.lookup(asked)

    def test_guards_refuse(self, cache) -> None:
        """The reason names the guard."""
        cache.store(Request("what was new in python version 3.11"), ANSWER)

        assert cache.lookup(Request("what was new in python version 3.12")).reason == "guard:numbers"

    def test_an_exact_only_request_is_only_found_by_itself(self, cache) -> None:
        """Where the question is unknown nothing is compared by meaning, in neither direction."""
        cache.store(Request("prompt with words", semantic=False), ANSWER)

        assert cache.lookup(Request("prompt with words", semantic=False)).tier == "exact"
        assert cache.lookup(Request("prompt with  words", semantic=False)).reason == "question_unknown"
        assert not cache.lookup(Request("prompt with words"))

    def test_an_exact_only_answer_is_not_found_by_meaning(self, cache) -> None:
        """A tool call with arguments fits one question only."""
        cache.store(Request("add one and two"), Answer("", payload="call", semantic=False))

        assert cache.lookup(Request("add one and two")).answer.payload == "call"
        assert cache.lookup(Request("add one and then two")).reason == "answer_exact_only"

    def test_a_question_longer_than_the_window_is_exact_only(self, cache) -> None:
        """The embedder would not see its end."""
        long = "word " * 300
        assert cache.lookup(Request(long)).reason == "question_too_long"
        cache.store(Request(long), ANSWER)

        assert cache.lookup(Request(long)).tier == "exact"
        assert cache.lookup(Request(long + "more")).reason == "question_too_long"

    def test_an_answer_is_replaced_by_a_newer_one(self, cache) -> None:
        """Also by meaning; there is one entry."""
        for text in ("old", "new"):
            cache.store(Request("what is the state"), Answer(text))
            cache.flush()

        assert cache.lookup(Request("what is the state now ok")).answer.text == "new"
        assert cache.stats().entries == 1

    def test_an_answer_dies_after_its_time(self, open_cache) -> None:
        """An expired entry is neither exact nor semantic hit; storing again revives it."""
        cache = open_cache(ttl=100.0)
        now = [1000.0]
        cache._runtime.clock = lambda: now[0]
        cache.store(Request("what is the state"), ANSWER)
        now[0] = 1099.0
        assert cache.lookup(Request("what is the state")).age == 99.0
        now[0] = 1100.0
        assert cache.lookup(Request("what is the state")).reason == "expired"
        assert not cache.lookup(Request("what is the state now"))
        cache.store(Request("what is the state"), ANSWER)
        assert cache.lookup(Request("what is the state now ok"))

    def test_a_shorter_time_to_live_counts_for_older_answers_too(self, open_cache) -> None:
        """Who opens a cache with a stricter time does not get what was stored with a laxer one."""
        open_cache().store(Request("what is the state"), ANSWER)
        strict = open_cache(ttl=100.0)
        now = strict._runtime.clock()
        strict._runtime.clock = lambda: now + 101.0

        assert strict.lookup(Request("what is the state")).reason == "expired"

    def test_incomplete_answers_are_rejected(self, cache) -> None:
        """And counted by reason."""
        assert cache.store(Request("q"), Answer("cut", finish_reason="length")) == Rejected(
            "finish_reason:length"
        )
        assert not cache.lookup(Request("q"))
        assert cache.stats().rejected == {"finish_reason:length": 1}

    def test_clear_forgets_everything_or_one_namespace(self, cache) -> None:
        """Indexed entries as well as waiting ones."""
        for namespace in ("a", "b"):
            cache.store(Request("what is the state", namespace=namespace), ANSWER)
        cache.flush()
        assert cache.clear("a") == 1
        assert cache.lookup(Request("what is the state now", namespace="a")).reason == "empty"
        assert cache.lookup(Request("what is the state now ok", namespace="b"))
        cache.store(Request("another", namespace="b"), ANSWER)
        assert cache.clear() == 2
        assert cache.lookup(Request("what is the state now", namespace="b")).reason == "empty"
        cache.store(Request("what is the state", namespace="b"), ANSWER)
        assert cache.lookup(Request("what is the state now ok", namespace="b"))

    def test_everything_is_there_after_reopening(self, open_cache) -> None:
        """Exact and semantic."""
        first = open_cache()
        for n in range(60):
            first.store(Request(f"what does topic{n} mean", documents=DOCS), Answer(f"{n}"))
        first.close()
        again = open_cache()
        for n in range(60):
            assert again.lookup(Request(f"what does topic{n} mean", documents=DOCS)).answer.text == f"{n}"
            hit = again.lookup(Request(f"what does topic{n} really mean", documents=DOCS))
            assert (hit.tier, hit.answer.text) == ("semantic", f"{n}")

    def test_a_changed_embedder_re_embeds_what_is_stored(self, open_cache) -> None:
        """Vectors of two models are never compared; the questions are embedded again."""
        first = open_cache()
        first.store(Request("what is the state"), ANSWER)
        first.close()
        again = open_cache(embedder=BagOfWords(128))
        again.lookup(Request("wake up"))
        again.flush()

        assert again.lookup(Request("what is the state now ok")).tier == "semantic"

    def test_a_broken_embedder_costs_only_the_meaning(self, open_cache) -> None:
        """Exact hits work, nothing is raised, nothing is lost."""
        broken = open_cache(embedder=Broken())
        assert broken.lookup(Request("q")).reason == "error"
        assert isinstance(broken.store(Request("q"), ANSWER), Stored)
        assert broken.lookup(Request("q")).tier == "exact"
        assert any("RuntimeError" in cause for cause in broken.stats().faults)

    def test_threads_get_right_answers(self, cache) -> None:
        """Eight threads store and look up at once."""

        def work(worker: int) -> list[Hit | Miss]:
            results = []
            for n in range(25):
                cache.store(Request(f"tell me about subject{worker}x{n} please"), Answer(f"{worker}.{n}"))
                results.append(cache.lookup(Request(f"tell me more about subject{worker}x{n} please")))
            return results

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(work, range(8)))

        assert [[hit.answer.text for hit in row if hit] for row in found] == [
            [f"{worker}.{n}" for n in range(25)] for worker in range(8)
        ]
        assert cache.stats().faults == {}

    def test_statistics_add_up(self, cache) -> None:
        """Every lookup is in the log with its outcome."""
        cache.lookup(Request("what is the state"))
        cache.store(Request("what is the state"), ANSWER)
        cache.lookup(Request("what is the state"))
        cache.lookup(Request("what is the state now ok"))
        stats = cache.stats()
        newest, exact, first = cache.recent()

        assert (stats.entries, stats.semantic_entries, stats.unindexed) == (1, 1, 0)
        assert (stats.hits, stats.misses) == ({"exact": 1, "semantic": 1}, {"empty": 1})
        assert stats.tokens_saved == 2 * ANSWER.tokens
        assert (newest.tier, exact.tier, first.reason) == ("semantic", "exact", "empty")

    def test_an_example_that_was_added_is_in_the_log(self, cache) -> None:
        """With all that was said of it but the texts of its documents; `clear` forgets it."""
        given = Example(
            "how long",
            "30 days",
            at=12.5,
            namespace="a",
            model="m",
            documents=DOCS,
            input_tokens=2**40,
            output_tokens=0,
            seconds=1,
            streamed=True,
            entry_id="e" * 40,
            scope=Request("how long").scope_digest,
            feedback=False,
            tags=("returns", "\N{GREEK SMALL LETTER PI}"),
        )
        assert cache.examples.add(given)
        assert cache.examples.add(Example("\N{GREEK SMALL LETTER PI}?", "3.14", namespace="b"))
        newest, oldest = cache.examples.recent()

        assert (oldest, newest.question) == (given, "\N{GREEK SMALL LETTER PI}?")
        assert oldest.id < newest.id
        assert cache.examples.recent(1) == [newest]
        assert (cache.examples.recent(20, "a"), cache.examples.count("a")) == ([given], 1)
        assert (cache.examples.count(), cache.stats().examples) == (2, 2)
        cache.clear("a")
        assert cache.examples.recent() == [newest]
        cache.clear()
        assert (cache.examples.count(), cache.stats().faults) == (0, {})

    def test_examples_are_selected_judged_and_counted(self, cache) -> None:
        """Stored answers and what was added; by the database, whichever database holds it."""
        cache.store(Request("how do I return my goods", namespace="a"), ANSWER, tags=["x"])
        hat = Example("how do I return my hat", "by mail", namespace="a", model="n", tags=("x",))
        cache.examples.add(hat)
        cache.examples.add(Example("how do I return my coat", "by mail", namespace="b", input_tokens=2**40))
        cache.flush()
        asked = "how do I return my shoes"
        found = cache.examples.select(asked, namespace="a", tags=["x"])

        assert {one.question for one in found} == {"how do I return my goods", "how do I return my hat"}
        (hat,) = cache.examples.select(asked, namespace="a", model="n")
        assert cache.examples.feedback(hat.id, good=False)
        assert cache.examples.select(asked, namespace="a", model="n") == []
        assert cache.examples.select(asked, namespace="a", min_feedback=True) == []
        assert cache.examples.feedback(hat.id, good=True)
        assert len(cache.examples.select(asked, namespace="a", min_feedback=True)) == 1
        stats = cache.examples.stats()
        assert (stats.namespaces, stats.good, stats.unknown) == ({"a": 2, "b": 1}, 1, 2)
        assert stats.input_tokens >= 2**40
        assert cache.examples.feedback(hat.id, good=False)
        cache.examples.add(
            Example("How do I return my hat?", "By mail", namespace="a", model="o", tags=("x",))
        )
        cache.flush()
        assert cache.examples.select(asked, namespace="a", model="o") == []  # the same bad answer again
        assert len(cache.examples.select(asked, namespace="a", tags=["x"])) == 1
        assert cache.stats().faults == {}

    def test_an_audit_is_judged_and_in_the_log(self, open_cache) -> None:
        """With what was asked, stored and compared, for every process to learn from; `clear` forgets it."""
        cache = open_cache(audit_rate=1.0)
        for namespace, fresh in (("a", ANSWER), ("b", Answer("It never can be returned."))):
            cache.store(Request("how do I return my goods", namespace=namespace), ANSWER)
            request = Request("how do I return my old goods", namespace=namespace, scope="")
            miss = cache.lookup(request)
            assert (miss.reason, miss.nearest) == ("below_budget", "how do I return my goods")
            cache.store(request, fresh)
            cache.flush()
        newest, oldest = cache.judgements()

        assert (newest.namespace, newest.right) == ("b", False)
        assert (oldest.namespace, oldest.right, oldest.source) == ("a", True, "probe")
        assert (oldest.asked, oldest.stored) == ("how do I return my old goods", "how do I return my goods")
        assert oldest.entry_id == Request("how do I return my goods", namespace="a").key
        assert cache.judgements(1) == cache.judgements(20, "b") == [newest]
        assert [(one.namespace, one.audits, one.probes) for one in cache.stats().audits] == [
            ("b", 0, 1),
            ("a", 0, 1),
        ]
        cache.close()
        again = open_cache(audit_rate=1.0)
        assert again.judgements() == [newest, oldest]
        again.clear("b")
        assert again.judgements() == [oldest]
        assert again.stats().faults == {}

    def test_text_that_no_database_holds_spoils_nothing(self, cache) -> None:
        """A question cut in the middle of a character or with a NUL misses; lookups beside it are logged."""
        for question in ("a\ud800", "a\0b", "what is the state"):
            cache.lookup(Request(question))
            cache.store(Request(question), ANSWER)
        stats = cache.stats()

        assert (stats.misses, stats.entries) == ({"empty": 2, "question_hides_text": 1}, 1)
        assert (stats.rejected, stats.faults) == ({"invalid_text": 2}, {})

    def test_a_callback_hears_of_every_lookup(self, open_cache) -> None:
        """What it raises is kept from the caller."""
        heard = []

        def listen(request: Request, result: Hit | Miss) -> None:
            heard.append((request.question, result))
            raise RuntimeError("listener is broken")

        cache = open_cache(on_lookup=listen)
        miss = cache.lookup(Request("what is the state"))

        assert heard == [("what is the state", miss)]
        assert cache.stats().faults == {"call on_lookup: RuntimeError": 1}

    def test_a_closed_cache_says_so(self, cache) -> None:
        """Closing twice does nothing."""
        cache.close()
        cache.close()
        with pytest.raises(CacheClosed, match="was closed"):
            cache.lookup(Request("q"))

    def test_misuse_is_an_error_not_a_miss(self, cache) -> None:
        """A str instead of a request is a bug of the caller."""
        with pytest.raises(InvalidInput, match="expected an ibidem.Request, not str"):
            cache.lookup("question")
        with pytest.raises(InvalidInput, match="answer must be an ibidem.Answer, not str"):
            cache.store(Request("q"), "answer")
