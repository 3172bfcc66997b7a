"""What every cache promises of answers that were given in other conversations: `history="meaning"`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import ibidem
from ibidem import Answer
from tests.contracts import conversations
from tests.contracts.conversations import HOW_LONG, MINUTES, PAELLA, PASSWORD, REWORDED, RICE, STEPS, request

ask = partial(conversations.ask, mode="meaning")
told = partial(conversations.told, mode="meaning")
RESTATED = "Simply click on the key."  # says what `STEPS` says


class OtherConversationsContract:
    """Promises of the search across histories. A subclass provides the fixture `open_cache`."""

    @pytest.fixture
    def having(self, cache: Any) -> Any:
        """A cache that holds one conversation."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
        return cache

    def test_the_wording_of_answers_and_early_turns_does_not_matter(self, having: Any) -> None:
        """Nor do turns on other subjects before; it is told why, and not in the other ways to compare."""
        other = (REWORDED, RESTATED, HOW_LONG)
        for texts in (other, (PAELLA, RICE, *other), (PASSWORD, RESTATED, "and how long does it take")):
            found = ask(having, *texts)
            assert (found.answer.text, found.tier) == (MINUTES, "semantic"), texts
            told_why = having.why(request(texts, mode="meaning"))
            assert (told_why.tier, told_why.entry_id) == ("semantic", found.entry_id)
            assert "another conversation" in str(told_why)
        for mode in ("standalone", "exact"):
            assert not conversations.ask(having, *other, mode=mode)

    @pytest.mark.parametrize(
        "texts",
        [
            ("where do I paint my fence", STEPS, HOW_LONG),  # another subject
            (PASSWORD, RESTATED, PAELLA, RICE, HOW_LONG),  # what it refers to is not what was said last
            (PASSWORD, "Shall I send you a link?", HOW_LONG),  # that is about the link
            (PASSWORD, "No key can be clicked.", HOW_LONG),
            (PASSWORD, RESTATED, "Why?"),  # another question
            ("I use a tablet.", "I see.", PASSWORD, RESTATED, HOW_LONG),  # a fact
            ("Be brief from now on.", "Yes.", PASSWORD, RESTATED, HOW_LONG),  # an instruction
            (HOW_LONG,),
        ],
    )
    def test_what_was_said_matters(self, having: Any, texts: tuple[str, ...]) -> None:
        """In doubt it is a miss."""
        assert not ask(having, *texts)

    def test_a_reply_is_to_the_same_words(self, cache: Any) -> None:
        """What the user says yes to is in the answer."""
        offer = "I can send you a link. Shall I?"
        told(cache, PASSWORD, offer, "Yes please", "It is sent.")

        assert ask(cache, REWORDED, offer, "Yes please").answer.text == "It is sent."
        assert not ask(cache, PASSWORD, "I can send you a key. Shall I?", "Yes please")

    def test_all_else_is_compared_exactly(self, having: Any) -> None:
        """Model, system prompt, tools and tenant."""
        other = (REWORDED, RESTATED, HOW_LONG)
        for options in ({"system": "Be kind."}, {"model": "n"}, {"tools": "a search"}):
            assert not ask(having, *other, **options)
        with ibidem.scope(namespace="acme"):
            assert not ask(having, *other)
        with ibidem.scope(user="ann"):
            assert not ask(having, *other)

    def test_what_makes_history_matter_to_all_answers_ends_it(self, cache: Any) -> None:
        """A system prompt that says so; an answer that refers back."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES, system="Remember what the user likes.")
        told(cache, PASSWORD, STEPS, HOW_LONG, "As I said, two minutes.", system="Be kind.")

        for system in ("Remember what the user likes.", "Be kind."):
            assert not ask(cache, REWORDED, RESTATED, HOW_LONG, system=system)

    def test_another_process_finds_it_until_it_is_deleted(self, open_cache: Any) -> None:
        """Its turns are in the database, and go with it."""
        with open_cache() as cache:
            told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
            cache.flush()
        with open_cache() as cache:
            found = ask(cache, REWORDED, RESTATED, HOW_LONG)
            assert found.answer.text == MINUTES
            cache.invalidate(entry=found.entry_id)
            assert not ask(cache, REWORDED, RESTATED, HOW_LONG)

    def test_the_own_conversation_is_found_among_many(self, having: Any) -> None:
        """Also if many others end in words that are nearer to those that are asked."""
        asked = "And how long does it all take?"
        for number in range(40):
            texts = (f"how do I paint house number {number}", "With a brush.", asked, "Days.")
            told(having, *texts)

        assert ask(having, PASSWORD, STEPS, "And how long does it take??").answer.text == MINUTES

    def test_private_turns_are_not_kept(self, open_cache: Any) -> None:
        """Neither in the database, nor does another conversation meet them."""
        cache = open_cache(redact=lambda text: text.replace("Ann", "[name]"))
        assert cache.store(request(("who is Ann", "A cook.", HOW_LONG), mode="meaning"), Answer("Ages."))
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)

        kept = {one.turns for one in cache._runtime.store.entries.newest(9)}
        assert kept == {(), ((PASSWORD, STEPS),)}
        assert not ask(cache, "who is Ann Lee", "A cook.", HOW_LONG)

    def test_in_doubt_a_small_model_reads_both_conversations(self, open_cache: Any) -> None:
        """Once: what it says is remembered, also for what explains a lookup."""
        shown: list[tuple[str, str, str]] = []

        def opinion(*texts: str) -> bool:
            shown.append(texts)
            return "tablet" not in texts[1]

        cache = open_cache(second_opinion=opinion, second_opinion_timeout=60.0)
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
        doubtful = (PASSWORD, "Whatever you like!", HOW_LONG)
        for _ in range(2):
            assert ask(cache, *doubtful).second_opinion
        assert cache.why(request(doubtful, mode="meaning")).tier == "semantic"
        assert shown == [
            (
                f"User: {PASSWORD}\nAssistant: {STEPS}\nUser: {HOW_LONG}",
                f"User: {PASSWORD}\nAssistant: Whatever you like!\nUser: {HOW_LONG}",
                MINUTES,
            )
        ]
        with_fact = ("I use a tablet.", "I see.", PASSWORD, STEPS, HOW_LONG)
        assert ask(cache, *with_fact).reason == "second_opinion:no"
        assert cache.why(request(with_fact, mode="meaning")).reason == "second_opinion:no"

    def test_audits_compare_history(self, open_cache: Any) -> None:
        """They judge by the last questions alone."""
        cache = open_cache(audit_rate=0.5)
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)

        assert ask(cache, REWORDED, RESTATED, HOW_LONG).reason == "empty"
