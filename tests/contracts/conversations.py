"""What every cache promises of conversations. A subclass provides the fixture `open_cache`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

import ibidem
from ibidem import Answer, Hit, Miss, Request
from ibidem.prompts.documents import Message, Segment, of_messages
from ibidem.prompts.history import HistoryMode
from ibidem.prompts.key import PromptContext, QuestionFinder, build_request
from ibidem.scope import current

PASSWORD, REWORDED = "how do I reset my password", "how do I reset my old password"
STEPS, HOW_LONG, MINUTES = "Click on the key.", "And how long does it take?", "Two minutes."
PAELLA, RICE = "Which rice belongs into a paella?", "Bomba."  # shares no word with the others


def message(role: str, text: str, *, plain: bool = True) -> Message:
    """A message as an adapter reads it."""
    return Message(role, json.dumps({"role": role}), (Segment(role, text),), plain)


def request(
    texts: Sequence[str], *, system: str = "", mode: HistoryMode = "standalone", **model: str
) -> Request:
    """The request for the last of these texts; user and model say them in turns."""
    said = [message("human" if at % 2 == 0 else "ai", text) for at, text in enumerate(texts)]
    return build_request(
        of_messages([message("system", system), *said] if system else said),
        PromptContext(),
        QuestionFinder(any_message=True),
        model={"model": "m", **model},
        scope=current(),
        history=mode,
    )


def ask(cache: Any, *texts: str, **options: Any) -> Hit | Miss:
    """Look up what a program would ask."""
    found: Hit | Miss = cache.lookup(request(texts, **options))
    return found


def told(cache: Any, *texts: str, **options: Any) -> None:
    """Store a whole conversation, turn by turn, as it was had without a hit."""
    for at in range(1, len(texts), 2):
        assert cache.store(request(texts[:at], **options), Answer(texts[at]))


class ConversationContract:
    """Promises of the earlier turns of a chat."""

    def test_an_answered_turn_counts_as_the_stored_one(self, cache) -> None:
        """At once, when it is written, and for each turn after it; with another answer it does not."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES, "Why?", "Security.")
        assert not ask(cache, REWORDED, STEPS, HOW_LONG)
        assert ask(cache, REWORDED).answer.text == STEPS

        for _ in range(2):
            assert ask(cache, REWORDED, STEPS, HOW_LONG).tier == "exact"
            assert ask(cache, f" {REWORDED}\n", f"{STEPS} ", HOW_LONG).tier == "exact"
            assert ask(cache, REWORDED, STEPS, HOW_LONG, MINUTES, "Why?").answer.text == "Security."
            assert not ask(cache, REWORDED, "Use the menu.", HOW_LONG)
            assert not ask(cache, PASSWORD, "Use the menu.", HOW_LONG)
            cache.flush()

    def test_a_fact_beside_a_question_is_not_lost(self, cache) -> None:
        """The answer may be the same; what follows is not."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
        with_fact = f"{PASSWORD}, I moved"
        assert ask(cache, with_fact).answer.text == STEPS

        assert not ask(cache, with_fact, STEPS, HOW_LONG)

    def test_what_is_stored_after_an_answered_turn_serves_the_stored_conversation(self, cache) -> None:
        """Both ways: the new turn is one of the conversation that was there."""
        told(cache, PASSWORD, STEPS)
        assert ask(cache, REWORDED)
        told(cache, REWORDED, STEPS, HOW_LONG, MINUTES)

        assert ask(cache, PASSWORD, STEPS, HOW_LONG).answer.text == MINUTES

    def test_a_later_turn_that_was_answered_counts_too(self, cache) -> None:
        """The last answered turn holds those before it."""
        told(cache, PASSWORD, STEPS, "how do I see it again", "In the list.", "Why?", "Security.")
        ask(cache, REWORDED)
        assert ask(cache, REWORDED, STEPS, "how do I see it again now").tier == "semantic"
        follow_up = (REWORDED, STEPS, "how do I see it again now", "In the list.", "Why?")

        assert ask(cache, *follow_up).answer.text == "Security."
        cache.flush()
        assert ask(cache, *follow_up).answer.text == "Security."

    def test_conversations_of_tenants_stay_apart(self, cache) -> None:
        """An answered turn of one counts for no other; it does for the steps of one program."""
        for namespace in ("acme", "other"):
            with ibidem.scope(namespace=namespace):
                told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
                told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES, system="Be kind.")
        with ibidem.scope(namespace="acme"):
            assert ask(cache, REWORDED)
        cache.flush()

        with ibidem.scope(namespace="acme"):
            assert ask(cache, REWORDED, STEPS, HOW_LONG)
            assert ask(cache, REWORDED, STEPS, HOW_LONG, system="Be kind.")
            assert not ask(cache, REWORDED, STEPS, HOW_LONG, system="Be rude.")
        with ibidem.scope(namespace="other"):
            assert not ask(cache, REWORDED, STEPS, HOW_LONG)
        with ibidem.scope(namespace="acme", user="ann"):
            assert not ask(cache, REWORDED, STEPS, HOW_LONG)

    @pytest.mark.parametrize("forget", ["invalidate", "clear"])
    def test_an_answered_turn_goes_with_its_entry(self, cache, forget: str) -> None:
        """Nothing of it stays in the database."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
        hit = ask(cache, REWORDED)
        cache.flush()
        turns = cache._runtime.store.turns
        history = request((REWORDED, STEPS, HOW_LONG)).history
        with pytest.MonkeyPatch.context() as patch:
            asked: list[Sequence[str]] = []
            find = type(turns).find
            patch.setattr(type(turns), "find", lambda self, keys: asked.append(keys) or find(self, keys))
            assert ask(cache, REWORDED, STEPS, HOW_LONG)
        assert len(asked) == len(history.turns) == 1
        assert turns.find(asked[0])
        cache.clear() if forget == "clear" else cache.invalidate(entry=hit.entry_id)

        assert turns.find(asked[0]) == {}

    def test_another_process_knows_the_answered_turns(self, open_cache) -> None:
        """They are in the database, and none is lost when a cache is closed."""
        with open_cache() as cache:
            told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
            assert ask(cache, REWORDED)
        with open_cache() as cache:
            assert ask(cache, REWORDED, STEPS, HOW_LONG).answer.text == MINUTES

    def test_a_message_that_stands_alone_is_asked_without_its_history(self, cache) -> None:
        """It and a first message serve each other; the pieces of the scope say so."""
        told(cache, PASSWORD, STEPS, PAELLA, RICE)

        assert ask(cache, PAELLA).answer.text == RICE
        assert ask(cache, HOW_LONG, MINUTES, PAELLA).answer.text == RICE
        assert not ask(cache, HOW_LONG, MINUTES, PAELLA, mode="exact")
        assert "history" not in request((PASSWORD, STEPS, PAELLA)).scope_parts
        assert "history" in request((PASSWORD, STEPS, HOW_LONG)).scope_parts
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
        cache.flush()
        near = cache.why(request((PAELLA, RICE, HOW_LONG))).elsewhere[0]
        assert (near.question, near.differs) == (HOW_LONG, ("history",))
        for texts, said in (
            ((PASSWORD, STEPS, PAELLA), "stands alone"),
            ((PASSWORD, STEPS, "Why?"), "1 turn"),
        ):
            assert said in cache.why(request(texts)).steps[0]

    def test_history_can_be_ignored_or_compared(self, cache) -> None:
        """`ignore` asks as if each message were the first, `exact` never does."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES, mode="ignore")

        assert ask(cache, PAELLA, RICE, HOW_LONG, mode="ignore").answer.text == MINUTES
        assert not ask(cache, PAELLA, RICE, HOW_LONG, mode="exact")
        assert not ask(cache, PAELLA, RICE, HOW_LONG)

    def test_an_answer_that_refers_to_the_conversation_is_stored_with_it(self, cache) -> None:
        """It would say to others what they never heard of."""
        told(cache, PASSWORD, STEPS, PAELLA, "As I said above, Bomba.")

        assert not ask(cache, PAELLA)
        assert cache.stats().entries == 2

    @pytest.mark.parametrize("mode", ["standalone", "exact", "meaning"])
    def test_what_says_nothing_without_its_conversation_is_no_example(self, cache, mode: HistoryMode) -> None:
        """A question that means something said before, or an answer that does; the others are."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES, PAELLA, RICE, mode=mode)
        told(cache, REWORDED, STEPS, PAELLA, "As I said above, Bomba.", mode=mode)
        cache.flush()

        assert {one.question for one in cache.examples.recent()} == {PASSWORD, REWORDED, PAELLA}
        assert {one.answer for one in cache.examples.recent()} == {STEPS, RICE}

    def test_what_makes_history_matter(self, cache) -> None:
        """Told facts and instructions, tools, a system prompt that says so, the same subject."""
        told(cache, PAELLA, RICE)
        assert ask(cache, PASSWORD, STEPS, PAELLA)

        assert not ask(cache, "I am allergic to seafood.", "I see.", PAELLA)
        assert not ask(cache, "Answer in Latin.", "Ita.", PAELLA)
        assert not ask(cache, "Tell me of the paella of Valencia.", "It has snails.", PAELLA)
        told(cache, PAELLA, RICE, tools="a search")
        assert not ask(cache, PASSWORD, STEPS, PAELLA, tools="a search")
        told(cache, PAELLA, RICE, system="Remember what the user likes.")
        assert not ask(cache, PASSWORD, STEPS, PAELLA, system="Remember what the user likes.")

    def test_greetings_and_thanks_are_no_turns(self, cache) -> None:
        """Where their answers say no more than that."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)

        assert ask(cache, "Hi!", "Hello, what can I do for you?", PASSWORD, STEPS, HOW_LONG)
        assert ask(cache, PASSWORD, STEPS, "Thanks!", "You are welcome.", HOW_LONG)
        assert not ask(cache, "Hi!", "Hello, your order 17 is late.", PASSWORD, STEPS, HOW_LONG)

    def test_a_private_turn_is_not_embedded(self, open_cache) -> None:
        """What `redact` would change in an earlier turn goes to no model: then history is compared."""
        cache = open_cache(redact=lambda text: text.replace("Ann", "[name]"))
        seen: list[str] = []
        embed = cache._runtime.embedder.vector_of
        cache._runtime.embedder.vector_of = lambda text: seen.append(text) or embed(text)
        told(cache, PAELLA, RICE)

        assert not ask(cache, "who is Ann", "A cook.", PAELLA)
        assert not any("Ann" in text for text in seen)

    def test_a_fault_only_costs_the_hit(self, cache, monkeypatch: pytest.MonkeyPatch) -> None:
        """The turns are compared as they were said, and the fault is counted."""
        told(cache, PASSWORD, STEPS, HOW_LONG, MINUTES)
        assert ask(cache, REWORDED)
        cache.flush()

        def fail(*_: object) -> None:
            raise OSError("gone")

        monkeypatch.setattr("ibidem.storage.turns.TurnTable.find", fail)
        assert not ask(cache, REWORDED, STEPS, HOW_LONG)
        assert ask(cache, PASSWORD, STEPS, HOW_LONG)
        assert any("earlier turns" in cause for cause in cache.stats().faults)
