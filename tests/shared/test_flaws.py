"""What is no example is told from its words, and what only sounds like it is not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibidem.examples.flaws import flaw_of
from tests.benchmarks.clean.labelled import answers, judged_answers

choose = st.sampled_from
LEADS = choose(
    [
        "",
        "I'm sorry, but ",
        "Sorry, ",
        "Unfortunately, ",
        "As an AI language model, ",
        "I apologize, but ",
        "No, ",
    ]
)
CANNOT = choose(
    [
        "I can't ",
        "I cannot ",
        "I can\u2019t ",
        "I'm unable to ",
        "I am not able to ",
        "I won't ",
        "I will not ",
    ]
)
HELP = choose(
    [
        "help with that",
        "assist with this request",
        "provide such information",
        "answer that",
        "do that",
        "comply",
    ]
)
TAILS = choose(
    ["", " If you have other questions, feel free to ask.", " Is there anything else I can help with?",
     " It is important to respect the privacy of others.", " Please consult a lawyer."]
)  # fmt: skip
SOURCES = choose(
    ["the context", "The provided context", "the documents", "The given text", "the knowledge base"]
)
LACKS = choose([" does not contain ", " doesn't mention ", " do not specify ", " says nothing about "])
THINGS = choose(["the price of the ticket", "any opening hours", "how long it takes", "refunds"])
WRAPPED = choose(["{}", "**{}**", '"{}"', "\n{}\n", "Assistant: {}", "> {}"])
BUSINESS = choose(["We cannot ", "You can't ", "Customers are not able to ", "The card does not "])
DONE = choose(
    [
        "ship to Norway",
        "combine two vouchers",
        "refund gift cards",
        "change the date later",
        "cover water damage",
    ]
)
ADVICE = choose(
    ["open the settings, choose Network, and press Reset; the device restarts within two minutes",
     "the usual cause is a worn seal, which any hardware shop sells for about five euro"]
)  # fmt: skip


@given(LEADS, CANNOT, HELP, TAILS, WRAPPED)
def test_refusals(lead: str, cannot: str, help_: str, tail: str, wrapped: str) -> None:
    """Whatever courtesy is before it and whatever offer after it."""
    assert flaw_of(wrapped.format(f"{lead}{cannot}{help_}.{tail}")) == "refusal"


@given(SOURCES, LACKS, THINGS, WRAPPED)
def test_that_there_is_no_answer(source: str, lacks: str, thing: str, wrapped: str) -> None:
    """It is told apart from a refusal."""
    assert flaw_of(wrapped.format(f"{source}{lacks}{thing}.")) == "no_answer"


@given(BUSINESS, DONE, LEADS.filter(lambda lead: "AI" not in lead), CANNOT, ADVICE)
def test_what_only_sounds_like_it(who: str, done: str, lead: str, cannot: str, advice: str) -> None:
    """What a business does not do; and a refusal of a part, with an answer."""
    assert flaw_of(f"{lead}{who}{done}.") is None
    assert flaw_of(f"{cannot}see your screen, but {advice}.") is None
    assert flaw_of(f"{advice.capitalize()}. {cannot}say more.") is None


@given(
    st.text(alphabet="abcdefgh ", min_size=30).filter(lambda text: text.strip()),
    choose([",", " (", " and", " the"]),
)
def test_what_is_cut_off(text: str, end: str) -> None:
    """In a sentence, a list, a bracket, a block of code; whole, it is not."""
    begun = f"There is more to say {text.strip()} xx"
    assert flaw_of(f"{begun}{end}") == "truncated"
    assert flaw_of(f"{begun}.") is None
    assert flaw_of(f"So:\n```python\n{begun}") == "truncated"
    assert flaw_of(f"So:\n```python\n{begun}{end}\n```") is None


@settings(max_examples=300)
@given(
    st.text(max_size=400)
    | st.lists(
        choose(["I ", "can't", " help", ". ", "but ", "```", "{", '"error": 1', "}", "As an AI", ", "])
    ).map("".join)
)
def test_any_text_is_bearable(text: str) -> None:
    """It returns the same again, also for what nobody would say."""
    assert flaw_of(text) == flaw_of(text)


@pytest.mark.parametrize(
    ("name", "recall", "precision"), [("answers.txt", 0.95, 0.99), ("answers_held_out.txt", 0.45, 0.9)]
)
def test_labelled_answers(name: str, recall: float, precision: float) -> None:
    """Half of them near misses; `python -m tests.benchmarks.clean` has the figures with their intervals."""
    rows = answers(name)
    found = judged_answers(rows)

    assert sum(label == "answer" for label, _ in rows) >= 0.45 * len(rows)
    assert found.recall >= recall, found.mistakes
    assert found.precision >= precision, found.mistakes
