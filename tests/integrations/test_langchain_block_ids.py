"""Ids that LangChain makes for content blocks are random: they tell no two prompts apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.content import (
    create_audio_block,
    create_citation,
    create_file_block,
    create_image_block,
    create_non_standard_block,
    create_plaintext_block,
    create_reasoning_block,
    create_text_block,
    create_tool_call,
    create_video_block,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

from langchain_ibidem import install, uninstall
from langchain_ibidem.messages import of_messages, parse
from tests.conftest import OpenCache

Made = Callable[[], Any]

A_UUID = "9b6f4b23-55fd-421d-a3c1-29784353194c"
TEXTS = st.text("abc ?", min_size=1, max_size=6)
MEDIA = [create_image_block, create_video_block, create_audio_block, create_file_block]


def made(factory: Callable[..., Any], *args: Any, **given: Any) -> Made:
    """The block, made anew each time."""
    return lambda: factory(*args, **given)


def cited(text: str, *urls: str) -> dict[str, Any]:
    return dict(create_text_block(text, annotations=[create_citation(url=url) for url in urls]))


def within(value: Made) -> dict[str, Any]:
    """A block of a provider's own around another one."""
    return dict(create_non_standard_block({"type": "tool_result", "content": [value()]}))


LEAVES = st.one_of(
    TEXTS.map(lambda text: made(create_text_block, text)),
    TEXTS.map(lambda text: made(create_plaintext_block, text)),
    TEXTS.map(lambda text: made(create_reasoning_block, text)),
    st.lists(TEXTS, max_size=2).map(lambda urls: made(cited, "See", *urls)),
    st.builds(lambda kind, data: made(kind, base64=data, mime_type="a/b"), st.sampled_from(MEDIA), TEXTS),
    st.builds(lambda kind, file: made(kind, file_id=file), st.sampled_from(MEDIA), TEXTS),
    TEXTS.map(lambda name: made(create_tool_call, name, {"id": name})),
)
BLOCKS = LEAVES | LEAVES.map(lambda leaf: made(within, leaf))
KINDS = [
    HumanMessage,
    SystemMessage,
    AIMessage,
    lambda **given: ToolMessage(tool_call_id=f"call_{uuid4()}", **given),
]
PROMPTS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.lists(BLOCKS, min_size=1, max_size=3)), min_size=1, max_size=3
)


def prompt(parts: list[tuple[Any, list[Made]]], argument: str = "content") -> list[BaseMessage]:
    return [kind(**{argument: [block() for block in blocks]}) for kind, blocks in parts]


@given(PROMPTS)
def test_a_prompt_that_is_made_twice_is_the_same(parts: list[tuple[Any, list[Made]]]) -> None:
    once, again = prompt(parts), prompt(parts, "content_blocks")
    assert once != again or all(not block.get("id") for m in once for block in m.content)  # type: ignore[union-attr]
    assert of_messages(once) == of_messages(prompt(parts))
    assert parse(dumps(again)) == parse(dumps(prompt(parts, "content_blocks")))
    assert parse(dumps(once)) == of_messages(once)


@given(PROMPTS, st.data())
def test_everything_else_in_a_block_counts(parts: list[tuple[Any, list[Made]]], data: st.DataObject) -> None:
    known, other = prompt(parts), prompt(parts)
    message = data.draw(st.sampled_from(other))
    block = copy.deepcopy(data.draw(st.sampled_from(message.content)))  # type: ignore[arg-type]
    names = sorted(set(block) - {"id", "type", "annotations"})
    changed = data.draw(st.sampled_from(names))
    block[changed] = {**block[changed], "b": 1} if isinstance(block[changed], dict) else block[changed] + "x"
    message.content = [block if one["id"] == block["id"] else one for one in message.content]  # type: ignore
    assert of_messages(known) != of_messages(other)


def fingerprint(*blocks: Any, kind: Any = HumanMessage, **given: Any) -> str:
    return of_messages([kind(list(blocks), **given)]).fingerprint


def test_a_block_is_the_one_that_was_written_by_hand() -> None:
    assert fingerprint(create_text_block("Hi")) == fingerprint({"type": "text", "text": "Hi"})
    url = create_image_block(url="http://a/1")
    assert fingerprint(url) == fingerprint({"type": "image", "url": "http://a/1"})
    assert fingerprint(cited("So.", "http://a")) == fingerprint(
        {"type": "text", "text": "So.", "annotations": [{"type": "citation", "url": "http://a"}]}
    )


@pytest.mark.parametrize("id_", ["file-1", "lc_1", f"img_{A_UUID}", A_UUID, f"lc_{A_UUID}x"])
def test_an_id_that_somebody_gave_counts(id_: str) -> None:
    given, bare = create_image_block(url="http://a/1", id=id_), create_image_block(url="http://a/1")
    assert fingerprint(given) != fingerprint(bare)


@pytest.mark.parametrize("form", ["lc_{}", "lc_run--{}", "lc_run--{}-0", "run-{}", "run--{}-12", "run-{}-0"])
def test_ids_of_runs_are_made_too(form: str) -> None:
    one, other = ({"type": "non_standard", "value": [{"id": form.format(uuid4()), "a": 1}]} for _ in range(2))
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint({"type": "non_standard", "value": [{"a": 2}]})


def test_texts_and_arguments_that_look_like_one_count() -> None:
    """They are what the model sees."""
    ids = [f"lc_{uuid4()}", f"lc_{uuid4()}"]
    assert len({fingerprint(create_text_block(id_)) for id_ in ids}) == 2
    calls = [{"type": "tool_use", "id": "1", "name": "look", "input": {"id": id_}} for id_ in ids]
    assert len({fingerprint(call, kind=AIMessage) for call in calls}) == 2
    named = [[{"name": "look", "args": {"id": id_}, "id": "1"}] for id_ in ids]
    assert len({fingerprint(kind=AIMessage, tool_calls=calls) for calls in named}) == 2


def test_ids_that_pair_a_call_with_its_result_still_do() -> None:
    def asked(answered: int) -> str:
        calls = [create_tool_call("f", {}) for _ in range(2)]
        result = {"type": "tool_result", "tool_use_id": calls[answered]["id"], "content": "x"}
        shown = [AIMessage(content_blocks=list(calls)), HumanMessage([result])]
        return of_messages([*shown, ToolMessage("x", tool_call_id=calls[answered]["id"])]).fingerprint

    assert asked(0) == asked(0) != asked(1)


def test_how_a_provider_calls_a_thought_does_not_count_wherever_it_stands() -> None:
    def thought(id_: str, said: str) -> dict[str, Any]:
        return {"type": "reasoning", "id": id_, "summary": [{"type": "summary_text", "text": said}]}

    for place in (
        lambda one: {"content": [one]},
        lambda one: {"content": "", "additional_kwargs": {"reasoning": one}},
    ):
        shown = {
            of_messages([AIMessage(**place(thought(id_, said)))]).fingerprint
            for id_, said in [("rs_1", "Hm."), ("rs_2", "Hm."), ("rs_1", "Ah.")]
        }
        assert len(shown) == 2


def ask(model: Any, blocks: list[Any], how: str) -> str:
    if how == "template":
        template = ChatPromptTemplate.from_messages(
            [SystemMessage([create_text_block("Be brief.")]), MessagesPlaceholder("said")]
        )
        return str((template | model).invoke({"said": [HumanMessage(blocks)]}).content)
    if how == "stream":
        return "".join(str(chunk.content) for chunk in model.stream([HumanMessage(blocks)]))
    return str(model.invoke([HumanMessage(content_blocks=blocks)]).content)


@pytest.mark.parametrize("how", ["invoke", "stream", "template"])
def test_a_question_in_blocks_is_answered_from_the_cache(
    how: str, open_cache: OpenCache, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(uninstall)
    install(open_cache())
    model = FakeListChatModel(responses=["first", "second", "third"])
    picture = {"base64": "AAAA", "mime_type": "image/png"}
    assert ask(model, [create_text_block("What is this?"), create_image_block(**picture)], how) == "first"
    assert ask(model, [create_text_block("What is this?"), create_image_block(**picture)], how) == "first"
    picture["base64"] = "AAAB"
    assert ask(model, [create_text_block("What is this?"), create_image_block(**picture)], how) == "second"
    if how != "template":  # by meaning, as if it were no block
        assert ask(model, [create_text_block("What time is it in Rome now?")], how) == "third"
        assert ask(model, [create_text_block("what time is it in Rome now?")], how) == "third"
