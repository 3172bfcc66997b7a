"""Selected examples are left out of what is compared, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibidem.prompts.documents import Prompt, Segment, plain
from ibidem.prompts.few_shot import FewShotBlock, settings_of, without_examples
from ibidem.prompts.key import MaskedPrompt

PAIRS = (("how long", "30 days"), ("how much", "5 euros"), ("how far", "30 days"))
BLOCK = FewShotBlock("k=3", PAIRS)


def compared(prompt: Prompt, block: FewShotBlock = BLOCK) -> list[Any]:
    """What is compared of the prompt."""
    return MaskedPrompt(without_examples(prompt, block)).to_json()


def text(pairs: Any = PAIRS, before: str = "Answer.", after: str = "Q: what\nA:") -> Prompt:
    """A prompt for a completion model."""
    return plain("\n\n".join([before, *(f"Q: {q}\nA: {a}" for q, a in pairs), after]))


def chat(pairs: Any = PAIRS, before: str = "Answer.", after: str = "what", form: str = "{}") -> Prompt:
    """A prompt for a chat model, as LangChain's adapter takes it apart."""
    said = [("system", before)]
    for question, answer in pairs:
        said += [("human", form.format(question)), ("ai", answer)]
    segments = [Segment(role, each) for role, each in (*said, ("human", after))]
    frames = [{"role": segment.role, "fields": {}} for segment in segments]
    return Prompt(json.dumps(frames, sort_keys=True), tuple(segments))


FORMS = {"text": text, "chat": chat}


@pytest.mark.parametrize("form", FORMS)
def test_other_examples_are_the_same_prompt(form: str) -> None:
    """With another text around, or other settings, it is another prompt."""
    make = FORMS[form]
    others = (("where", "here"), ("when", "now"))
    one = compared(make())

    assert compared(make(others), FewShotBlock("k=3", others)) == one
    assert compared(make(others), FewShotBlock("k=2", others)) != one
    assert compared(make(before="Be brief.")) != one
    assert compared(make(after="who")) != one
    assert compared(make(), FewShotBlock("k=3")) != one
    assert "how long" not in json.dumps(one)
    assert "how long" in json.dumps(compared(make(), FewShotBlock("k=3")))


def test_a_range_that_holds_all_of_another_text_is_not_the_block() -> None:
    """The other text may occur in the examples as well, but not only there."""
    one = compared(text())
    for said in ("what", "swallow", " ", "Answer"):
        assert compared(text(), replace(BLOCK, other_texts=frozenset((said,)))) == one
    for said in ("30 days", "how far\nA: 30 days\n\nQ: what"):
        assert "how long" in json.dumps(compared(text(), replace(BLOCK, other_texts=frozenset((said,)))))


def test_settings_are_the_same_in_each_process() -> None:
    """A function is described by its name."""
    assert settings_of(4, count_tokens=len) == '[4, {"count_tokens": "builtins.len"}]'
    assert " at 0x" not in settings_of(4, count_tokens=lambda text: len(text))
    assert settings_of(4, tags=("a",)) != settings_of(4, tags=("b",))


def test_the_form_of_messages_stays_in_the_key() -> None:
    others = (("where", "here"), ("when", "now"))
    one = compared(chat(form="Q: {}"))

    assert compared(chat(others, form="Q: {}"), FewShotBlock("k=3", others)) == one
    assert compared(chat(others, form="Asked: {}"), FewShotBlock("k=3", others)) != one
    assert "how long" not in json.dumps(one)


@pytest.mark.parametrize(
    "prompt",
    [
        text(before="how long"),
        text(after="Q: how far is it\nA:"),
        text(PAIRS[:2]),
        text(PAIRS[::-1]),
        text((*PAIRS, ("how long", "30 days"))),
        plain("Q: how long\nA: 30 days\n\nQ: how much\nAnswer: 5 euros\n\nQ: how far\nA: 30 days"),
        plain("Q: how long\nA: 30 days\n\nQ: how much\nA: 5 euros\n-\nQ: how far\nA: 30 days"),
        plain("how long how much how far 30 days 5 euros"),
        chat(before="how long"),
        chat(PAIRS[:2]),
        Prompt("[1]", chat().segments),
        Prompt("no list", chat().segments),
        plain(""),
    ],
)
def test_in_doubt_everything_is_compared(prompt: Prompt) -> None:
    """Examples twice, missing, in another order, with other texts between, in an unknown form."""
    assert without_examples(prompt, BLOCK) == prompt


def test_messages_of_different_kinds_are_compared() -> None:
    """One message with another name than its peers makes the examples differ in kind."""
    made = chat()
    frames = json.loads(made.frame)
    frames[3]["fields"] = {"name": "Ada"}
    odd = Prompt(json.dumps(frames, sort_keys=True), made.segments)

    assert without_examples(odd, BLOCK) == odd


def test_a_block_of_text_must_occur_exactly_once() -> None:
    """As LlamaIndex's templates show it."""
    block = FewShotBlock("s", text="Q: how long\nA: 30 days")
    once, twice = plain(f"Answer.\n{block.text}\nwhat"), plain(f"{block.text}\n{block.text}\nwhat")

    assert compared(once, block) == compared(plain("Answer.\nother\nwhat"), FewShotBlock("s", text="other"))
    assert without_examples(twice, block) == twice


short = st.text("ab\n", max_size=4)
spoken = short.filter(str.strip)
pairs = st.lists(st.tuples(spoken, spoken), min_size=1, max_size=3, unique_by=lambda pair: pair[0])


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from([*FORMS]),
    texts=st.tuples(short, short),
    others=st.tuples(short, short),
    data=st.data(),
)
def test_what_the_user_says_is_never_left_out(form: str, texts: Any, others: Any, data: Any) -> None:
    """Whatever the log holds, another text of the user gives another key. Texts are made to collide."""
    keys = []
    for before, after in (texts, others):
        selected = tuple(data.draw(pairs))
        prompt = FORMS[form](selected, before, after)
        keys.append(compared(prompt, FewShotBlock("s", selected)))

    if texts != others:
        assert keys[0] != keys[1]
