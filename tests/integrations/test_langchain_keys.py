"""From prompt to request: the question is found, all else is compared exactly, nothing can be forged."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import threading
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI

import ibidem
from ibidem.adapter.model_state import temperature_of
from ibidem.adapter.options import AdapterOptions
from ibidem.errors import NotCacheable
from ibidem.prompts.documents import (
    RECENT_DOCUMENTS,
    DocumentMatch,
    Prompt,
    Retrieved,
    Segment,
    contains,
    match_documents,
    plain,
)
from ibidem.prompts.key import GENERAL_KEYS, QUESTION_KEYS, MaskedPrompt
from langchain_ibidem.cache import RequestBuilder
from langchain_ibidem.messages import of_messages, parse
from langchain_ibidem.tracking import Tracker
from tests.contracts.langchain import Library

ASKED = "What is the capital of France?"


class Desk:
    """A tracker of its own, and the requests that are built from what it saw."""

    def __init__(self, *question_keys: str) -> None:
        self.tracker = Tracker()
        self.builder = RequestBuilder(self.tracker, AdapterOptions(question_keys=question_keys))

    def retrieve(self, query: str, *texts: str) -> list[Document]:
        found = [Document(text) for text in texts]
        library = Library(shelves={"": found})
        return library.invoke(query, config={"callbacks": [self.tracker]})

    def of(self, template: Any, **variables: Any) -> ibidem.Request:
        value = template.invoke(variables, config={"callbacks": [self.tracker]})
        return self.of_messages(value.to_messages())

    def of_messages(self, messages: list[BaseMessage], llm_string: str = "m") -> ibidem.Request:
        return self.builder.build(dumps(messages), llm_string)

    def of_text(self, text: str) -> ibidem.Request:
        return self.builder.build(text, "m")


def human(template: str) -> ChatPromptTemplate:
    return ChatPromptTemplate.from_messages([("human", template)])


# the prompt as the model sees it ----------------------------------------------------------------------

CALL = {"name": "f", "args": {"b": 1, "a": [1, "x"]}, "id": "call_1"}
CONVERSATION: list[BaseMessage] = [
    SystemMessage("Be brief.", additional_kwargs={"__openai_role__": "developer"}),
    HumanMessage(
        [{"type": "text", "text": "See"}, "this", {"type": "image_url", "image_url": {"url": "http://x/1"}}]
    ),
    AIMessage(
        "", tool_calls=[CALL], usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    ),
    ToolMessage("result", tool_call_id="call_1", artifact=[Document("d")], name="f"),
    AIMessage(
        [{"type": "reasoning", "id": "rs_1", "summary": []}, {"type": "text", "text": "So.", "id": "msg_1"}]
    ),
    AIMessageChunk("streamed", response_metadata={"id": "chatcmpl-1"}, id="run-1"),
    FunctionMessage(name="g", content="1"),
    ChatMessage(role="user", content="and?", name="bob"),
]


def test_a_dump_and_the_live_messages_are_the_same_prompt() -> None:
    assert parse(dumps(CONVERSATION)) == of_messages(CONVERSATION)
    assert [s.role for s in of_messages(CONVERSATION).segments] == (
        "system human human ai tool ai ai function human".split()
    )


def variant(index: int, **changes: Any) -> str:
    messages = list(CONVERSATION)
    messages[index] = messages[index].model_copy(update=changes)
    return of_messages(messages).fingerprint


def test_what_no_model_sees_does_not_count() -> None:
    same = {
        variant(2, id="other", response_metadata={"id": "x"}, usage_metadata=None),
        variant(2, tool_calls=[{**CALL, "args": {"a": [1, "x"], "b": 1}}]),
        variant(2, additional_kwargs={"tool_calls": [{"id": "call_1"}], "refusal": None, "parsed": {"a": 1}}),
        variant(3, artifact=None, id="t"),
        variant(
            4, content=[{"type": "reasoning", "id": "rs_2", "summary": []}, {"type": "text", "text": "So."}]
        ),
        variant(
            1, content=[{"type": "text", "text": "See", "cache_control": {}}, *CONVERSATION[1].content[1:]]
        ),
    }
    assert same == {of_messages(CONVERSATION).fingerprint}


def test_random_call_ids_become_ordinals() -> None:
    def calls(first: str, second: str, answered: str) -> str:
        made = [{"name": "f", "args": {}, "id": first}, {"name": "f", "args": {}, "id": second}]
        blocks = [{"type": "tool_use", "id": first, "name": "f", "input": {}}]
        messages = [AIMessage(blocks, tool_calls=made), ToolMessage("1", tool_call_id=answered)]
        return of_messages(messages).fingerprint

    assert calls("a", "b", "a") == calls("x", "y", "x")
    assert calls("a", "b", "a") != calls("a", "b", "b")


def test_what_a_model_sees_counts() -> None:
    base = of_messages(CONVERSATION).fingerprint
    others = [
        variant(0, additional_kwargs={}),
        variant(1, content=["See", "this"]),
        variant(1, name="alice"),
        variant(2, tool_calls=[{**CALL, "args": {"a": 1}}]),
        variant(2, additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}}),
        variant(2, additional_kwargs={"reasoning_content": "Hm."}),
        variant(2, invalid_tool_calls=[{"name": "f", "args": "{", "id": "2", "error": "?"}]),
        variant(3, status="error"),
        variant(3, content=["result"]),
        variant(7, role="assistant"),
        of_messages([HumanMessage("Be brief."), *CONVERSATION[1:]]).fingerprint,
        of_messages(CONVERSATION[:-1]).fingerprint,
    ]
    assert len({base, *others}) == len(others) + 1


@pytest.mark.parametrize(
    "text",
    [
        dumps([RemoveMessage(id="1")]),
        '[{"lc": 1, "type": "constructor"',
        '[{"lc": 1, "type": "constructor", "kwargs": {"content": 5, "type": "human"}}]',
        '[{"lc": 1, "type": "not_implemented", "kwargs": {"content": "x", "type": "human"}}]',
        '[{"lc": [1, 2]}, 3]',
    ],
)
def test_what_is_not_understood_is_compared_as_a_whole(text: str) -> None:
    request = Desk().of_text(text)
    assert not request.semantic
    assert request.key != Desk().of_text(text + " ").key


# which text is the question ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*QUESTION_KEYS, *GENERAL_KEYS])
def test_the_name_of_the_variable_says_so(name: str) -> None:
    template = human("You are {who}. {" + name + "}\nAnswer in {language}.")
    request = Desk().of(template, who="a guide", language="German", **{name: ASKED})
    assert (request.question, request.semantic) == (ASKED, True)
    assert (
        request.scope_digest
        != Desk().of(template, who="a cook", language="German", **{name: ASKED}).scope_digest
    )
    other = Desk().of(template, who="a guide", language="German", **{name: "Why?"})
    assert (other.question, other.scope_digest) == ("Why?", request.scope_digest)


def test_a_variable_may_hold_a_ready_made_prompt() -> None:
    glued = f"Context: {DOCS[0]}\nQuestion: {ASKED}"
    assert not Desk().of(human("{input}"), input=glued).semantic
    assert not Desk().of(human("{question}"), question=glued, given=[Document(DOCS[0])]).semantic
    assert Desk().of(human("{question}"), question=f"{ASKED}\nI forgot it.").semantic


def test_names_of_the_user_come_first() -> None:
    template = human("{query} {wish}")
    assert Desk("wish").of(template, query="A", wish="B").question == "B"
    assert Desk().of(template, query="A", wish="B").question == "A"


def test_a_variable_that_is_not_in_the_prompt_is_not_the_question() -> None:
    request = Desk().of(human("Say: {input}"), question="only searched with", input="Why so?")
    assert request.question == "Why so?"


STATEMENTS = [
    "He go to school every day.",
    "Summarize: Peter resigned. Who follows?",
    "Answer from the context. Context: Anna is the chief executive. Question: who is the chief executive?",
    " ".join(["word"] * 31) + "?",
    "first line\nsecond line?",
]


@pytest.mark.parametrize("text", STATEMENTS)
def test_text_that_nothing_vouches_for_must_look_like_a_question(text: str) -> None:
    """It may be material to work on, or a prompt put together by hand: then it is compared exactly."""
    general = Desk().of(human("{input}"), input=text)
    plain_message = Desk().of_messages([HumanMessage(text)])
    completion = Desk().of_text(text)
    assert [r.semantic for r in (general, plain_message, completion)] == [False] * 3
    assert Desk("input").of(human("{input}"), input=text).semantic
    assert Desk().of(human("{question}"), question=text).semantic


@pytest.mark.parametrize("text", ["Where is it?", "tell me about Rome", "What is 10:30 in Tokyo", "是什么？"])
def test_what_looks_like_a_question_is_one(text: str) -> None:
    """Without a template, or in a variable of a general name."""
    assert Desk().of(human("{input}"), input=text).question == text
    assert Desk().of_messages([HumanMessage(text)]).question == text


def test_a_model_without_a_name_is_not_cached_unless_named() -> None:
    """Two models of one provider would share their answers."""
    nameless = "[('_type', 'chat-ollama'), ('seed', 1), ('stop', None), ('temperature', 0)]"
    prompt = dumps([HumanMessage(ASKED)])
    with pytest.raises(NotCacheable, match="model_unknown"):
        RequestBuilder(Tracker()).build(prompt, nameless)
    one, other = (RequestBuilder(Tracker(), AdapterOptions(model_id=name)) for name in ("a", "b"))
    assert one.build(prompt, nameless).key != other.build(prompt, nameless).key


def test_meaning_can_be_switched_off() -> None:
    """For models that translate or rewrite."""
    builder = RequestBuilder(Tracker(), AdapterOptions(semantic=False))
    assert not builder.build(dumps([HumanMessage(ASKED)]), "m").semantic


def test_blanks_around_the_question_do_not_matter() -> None:
    template = human("Say: {question}\nAnswer:")
    clean, blank = (Desk().of(template, question=q) for q in ("Why?", " Why? \n"))
    assert clean.key == blank.key
    cut_off = Desk().of(human("Say: {clean}\nAnswer:"), question=" Why? \n", clean="Why?")
    assert cut_off.key == clean.key


def test_the_input_of_the_program_is_the_question() -> None:
    desk, template = Desk(), human("Tell me: {wish}")
    value = template.invoke("where Rome is", config={"callbacks": [desk.tracker]})
    assert desk.of_messages(value.to_messages()).question == "where Rome is"


def test_the_last_message_is_the_question_if_a_variable_says_all_of_it() -> None:
    template = ChatPromptTemplate.from_messages([("system", "Be brief."), MessagesPlaceholder("chat")])
    for chat in ([HumanMessage(ASKED)], [("human", "Hi"), ("ai", "Yes?"), ("human", ASKED)]):
        assert Desk().of(template, chat=chat).question == ASKED
    assert Desk().of(human("{text}"), text=ASKED).question == ASKED


def test_a_part_of_the_last_message_is_no_question_without_a_name() -> None:
    request = Desk().of(human("Translate to {language}: {text}"), language="German", text="the cat")
    assert not request.semantic


def test_without_a_template_one_line_of_the_user_is_the_question() -> None:
    history = [SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("Yes?")]
    request = Desk().of_messages([*history, HumanMessage(ASKED)])
    assert (request.question, request.semantic) == (ASKED, True)
    assert Desk().of_text(ASKED).question == ASKED


def test_without_a_template_several_lines_are_somebodys_template() -> None:
    text = f"Context: Paris is a city.\n\nQuestion: {ASKED}"
    assert not Desk().of_messages([HumanMessage(text)]).semantic
    assert not Desk().of_text(text).semantic
    assert Desk().of_text(text).key != Desk().of_text(text + " ").key


def test_without_a_template_the_query_of_the_documents_is_the_question() -> None:
    desk = Desk()
    desk.retrieve(ASKED, "Paris is the capital.", "Lyon is not.")
    for form in (desk.of_text, lambda text: desk.of_messages([HumanMessage(text)])):
        request = form(f"Context: Lyon is not.\n\nParis is the capital.\n\nQuestion: {ASKED}\nAnswer:")
        assert (request.question, request.semantic, len(request.documents)) == (ASKED, True, 2)
    assert not desk.of_text("Context: Lyon is not.\n\nQuestion: What is the capital of Franceland?").semantic


def test_a_document_is_remembered_with_all_its_queries() -> None:
    desk = Desk()
    for asked in (ASKED, "How big is it?", "Is it big?"):
        desk.retrieve(asked, DOCS[0])
    for asked in (ASKED, "How big is it?", "Is it big?"):
        assert desk.of_text(f"{DOCS[0]}\n\n{asked}").question == asked


def test_documents_given_to_the_template_count() -> None:
    documents = [Document("Paris is the capital.", id="1"), Document("Lyon.", metadata={"source": "f.txt"})]
    template = human("{context}\n{question}")
    request = Desk().of(
        template, context="Paris is the capital.\n\nLyon.", question=ASKED, given={"x": [documents]}
    )
    assert [(d.id, d.text) for d in request.documents] == [("1", "Paris is the capital."), ("f.txt", "Lyon.")]


def test_multimodal_questions_keep_their_pictures_exactly() -> None:
    def ask(text: str, url: str) -> ibidem.Request:
        blocks = [
            {"type": "text", "text": "A note."},
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": text},
        ]
        return Desk().of_messages([HumanMessage(blocks)])

    one = ask("What is this?", "http://x/1")
    assert (one.question, one.semantic) == ("What is this?", True)
    assert ask("What is it?", "http://x/1").scope_digest == one.scope_digest
    assert ask("What is this?", "http://x/2").scope_digest != one.scope_digest


def test_an_empty_message_is_no_question() -> None:
    assert not Desk().of_messages([HumanMessage("")]).semantic
    assert not Desk().of_text(" \n").semantic
    assert not Desk().of(human("Go on. {question}"), question="  ").semantic


def test_scripts_without_blanks_have_no_word_borders() -> None:
    assert (
        Desk().of(human("请回答{question}谢谢"), question="法国的首都是哪里").question == "法国的首都是哪里"
    )
    assert not Desk().of(human("pre{question}post"), question="word").semantic


# documents --------------------------------------------------------------------------------------------

DOCS = ["Paris is the capital of France.", "Lyon lies at the Rhone.", "Nice lies at the sea."]


def with_context(separate: Any, documents: list[str], **more: str) -> ibidem.Request:
    desk = Desk()
    given = [Document(text) for text in documents]
    template = human("Context:\n{context}\n\nQuestion: {question}")
    return desk.of(template, context=separate(documents), question=ASKED, given=given, **more)


LISTS = {
    "blank lines": "\n\n".join,
    "rulers": "\n---\n".join,
    "bullets": lambda texts: "\n".join(f"* {text}" for text in texts),
}
NUMBERED = {
    "numbers": lambda texts: "\n".join(f"[{i}] {text}" for i, text in enumerate(texts, 1)),
    "from zero": lambda texts: "\n".join(f"{i}. {text}" for i, text in enumerate(texts)),
    "labels": lambda texts: "\n\n".join(f"Source {i}:\n{text}" for i, text in enumerate(texts, 1)),
    "tags": lambda texts: "\n".join(
        f'<document index="{i}">{text}</document>' for i, text in enumerate(texts, 1)
    ),
}


@pytest.mark.parametrize("form", NUMBERED)
def test_the_order_of_numbered_documents_is_part_of_the_prompt(form: str) -> None:
    """The answer may cite "[2]", which is another document when they are swapped."""
    straight, again, reverse = (with_context(NUMBERED[form], some) for some in (DOCS, DOCS, DOCS[::-1]))

    assert straight.key == again.key
    assert straight.scope_digest != reverse.scope_digest
    assert straight.documents_digest == reverse.documents_digest
    assert straight.semantic


@pytest.mark.parametrize("form", LISTS)
def test_the_scope_depends_neither_on_number_nor_order_of_documents(form: str) -> None:
    make = LISTS[form]
    requests = [with_context(make, some) for some in (DOCS, DOCS[::-1], DOCS[:2], DOCS[2:])]
    assert len({request.scope_digest for request in requests}) == 1
    assert requests[0].key == requests[1].key
    assert len({request.documents_digest for request in requests}) == 3
    assert all(request.semantic for request in requests)


NAMED = {
    "metadata": lambda texts: "\n".join(f"From {len(text)}.txt: {text}" for text in texts),
    "names of their own": lambda texts: "\n".join(f"[{len(text)}] {text}" for text in texts),
    "huge numbers": lambda texts: "\n".join("9" * 5000 + text for text in texts),
    "not counting": lambda texts: "\n".join(f"[{min(i, 2)}] {text}" for i, text in enumerate(texts, 1)),
    "users": lambda texts: "\n".join(f"Alice{len(text)} wrote: {text}" for text in texts),
}


@pytest.mark.parametrize("form", NAMED)
def test_what_names_a_document_stays_exact(form: str) -> None:
    make = NAMED[form]
    assert with_context(make, DOCS).scope_digest != with_context(make, DOCS[::-1]).scope_digest
    assert with_context(make, DOCS).scope_digest != with_context(make, DOCS[:2]).scope_digest


def test_a_number_that_does_not_count_is_a_name() -> None:
    one, other = (with_context(f"{{0[0]}}\n[{page}] {{0[1]}}".format, DOCS[:2]) for page in (31, 57))
    assert one.documents_digest == other.documents_digest
    assert one.scope_digest != other.scope_digest


def test_an_answer_that_quotes_a_document_is_not_one_more_place() -> None:
    template = ChatPromptTemplate.from_messages(
        [("system", "{context}"), ("ai", "I know: " + DOCS[0]), ("human", "{question}")]
    )

    def ask(documents: list[str]) -> ibidem.Request:
        given = [Document(text) for text in documents]
        return Desk().of(template, context="\n".join(documents), question=ASKED, given=given)

    assert ask(DOCS).scope_digest == ask(DOCS[:2]).scope_digest


def test_documents_in_two_places_cannot_change_places() -> None:
    def roles(texts: list[str]) -> str:
        return f"Contract of Alice: {texts[0]} Contract of Bob: {texts[1]}"

    one, other = with_context(roles, DOCS[:2]), with_context(roles, DOCS[1::-1])
    assert one.documents_digest == other.documents_digest
    assert one.scope_digest != other.scope_digest


def test_a_text_inside_a_longer_one_is_not_a_document_of_its_own() -> None:
    desk = Desk()
    given = [Document("The sea."), Document("Nice lies at The sea. It is warm.")]
    request = desk.of(
        human("{context}\n{question}"), context=given[1].page_content, question=ASKED, given=given
    )
    assert [d.text for d in request.documents] == ["Nice lies at The sea. It is warm."]


def test_a_document_may_quote_the_question_or_be_it() -> None:
    faq = f"FAQ: {ASKED} It is Paris."
    for document in (faq, ASKED, "What is the capital", "capital"):
        request = with_context("\n".join, [document])
        assert (request.question, request.semantic) == (ASKED, True)
        assert [d.text for d in request.documents] == [document]


def test_the_question_may_look_like_the_template() -> None:
    template = human("Question: {question} Answer the Question in English.")
    english, why = (Desk().of(template, question=q) for q in ("English", "Why"))
    assert english.semantic
    assert why.question == "Why"
    assert english.scope_digest != why.scope_digest, (
        "the template's own word was taken: no match, but no mix-up"
    )


def test_documents_of_other_runs_must_be_long_and_whole_words() -> None:
    recent = [Retrieved(text, text) for text in ("What", "is the capital of Fra", "capital of France")]
    assert [d.text for d in match_documents(plain(ASKED), [], lambda: recent)] == ["capital of France"]


def test_earlier_answers_are_not_documents() -> None:
    desk = Desk()
    desk.retrieve(ASKED, DOCS[0])
    request = desk.of_messages([HumanMessage(ASKED), AIMessage(DOCS[0]), HumanMessage("Sure?")])
    assert request.documents == ()
    assert request.question == "Sure?"


def test_a_prompt_compared_as_a_whole_still_names_its_documents() -> None:
    request = Desk().of(
        human("Sum up for {who}: {context}"), who="me", context=DOCS[0], given=[Document(DOCS[0])]
    )
    assert not request.semantic
    assert [d.text for d in request.documents] == [DOCS[0]]


# the model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    ["<class '__main__.Out'>", "<function f at 0x7f00aa>", "<X object at 0x7F>"],
    ids=["class", "function", "object"],
)
def test_parameters_that_do_not_show_what_they_hold_are_not_cacheable(shown: str) -> None:
    with pytest.raises(NotCacheable):
        Desk().of_messages([HumanMessage(ASKED)], f"[('response_format', {shown})]")


@pytest.mark.parametrize(
    "parameters",
    [
        "[('model', 'm'), ('response_format', {'type': 'json_object'})]",
        "[('format', 'json'), ('model', 'm'), ('stop', None)]",
    ],
)
def test_answers_in_a_given_form_are_for_the_same_words_only(parameters: str) -> None:
    assert not Desk().of_messages([HumanMessage(ASKED)], parameters).semantic


# nothing can be forged --------------------------------------------------------------------------------

NASTY = st.text(st.sampled_from('ab \n\\"{}[]()$^.*?|\0\x01é東\u2028\ud800\U0001f600'), max_size=12)
MARKS = st.sampled_from(
    ['{"question": true}', '"}, {"question": true}, "', '{"documents": []}', "\\u0000", "\0Q"]
)
TEXT = st.one_of(NASTY, MARKS)


def filled(masked: list[Any], question: str, document: str) -> list[str]:
    """Restore the texts of the prompt from its masked form."""

    def piece(part: Any) -> str:
        if isinstance(part, str):
            return part
        return question if "question" in part else document

    return ["".join(map(piece, text)) for text in masked[1]]


@given(st.lists(TEXT, min_size=1, max_size=4), TEXT, TEXT, TEXT)
def test_masked_prompt_question_and_document_determine_the_prompt(
    texts: list[str], question: str, document: str, glue: str
) -> None:
    texts = [*texts, glue.join([question, document, question])]
    prompt = Prompt("frame", tuple(Segment("human", text) for text in texts))
    prompt_masked = MaskedPrompt(prompt)
    prompt_masked.mask_question(question)
    prompt_masked.mask_document(DocumentMatch((), document, (), whole_words=False))
    masked = json.loads(json.dumps(prompt_masked.to_json()))
    # Between neighbouring documents only separators are lost; a single kind of separator is put back.
    if sum("documents" in part for text in masked[1] for part in text if not isinstance(part, str)) == sum(
        text.count(document) for text in _without_question(texts, question) if document
    ):
        restored = filled(masked, question, document)
        if "documents" in str(masked):  # blanks beside documents are not kept
            restored, texts = [["".join(text.split()) for text in kept] for kept in (restored, texts)]
        assert restored == texts


def _without_question(texts: list[str], question: str) -> list[str]:
    masked = MaskedPrompt(Prompt("", tuple(Segment("human", text) for text in texts)))
    masked.mask_question(question)
    return [part for text in masked.to_json()[1] for part in text if isinstance(part, str)]


@given(TEXT, TEXT)
def test_no_text_is_a_placeholder(one: str, other: str) -> None:
    """A masked question never gives the same JSON as a text in which nothing is masked."""
    masked, whole = MaskedPrompt(plain(f"a {one}: {other}")), MaskedPrompt(plain(f"a {one}: {other}"))
    if masked.mask_question(other):
        assert json.dumps(masked.to_json()) != json.dumps(whole.to_json())


@settings(max_examples=60)
@given(TEXT, TEXT, TEXT)
def test_any_question_is_found_as_it_is(question: str, who: str, context: str) -> None:
    template = ChatPromptTemplate.from_messages(
        [("system", "Help <{who}>"), ("human", "<{context}> <{question}>")]
    )
    request = Desk().of(template, who=who, context=context, question=question)
    assert request.semantic == bool(question.strip())
    if request.semantic:
        assert request.question == ibidem.Request(question).question
        other = Desk().of(template, who=who, context=context, question="zz")
        assert other.scope_digest == request.scope_digest or question.strip() in f"<{context}> <"


@settings(max_examples=60)
@given(TEXT, TEXT, TEXT, TEXT)
def test_other_variables_are_never_shared(who: str, context: str, who2: str, context2: str) -> None:
    template = ChatPromptTemplate.from_messages(
        [("system", "Help <{who}>"), ("human", "<{context}> <{question}>")]
    )
    one = Desk().of(template, who=who, context=context, question="Why?")
    two = Desk().of(template, who=who2, context=context2, question="Why?")
    assert (one.scope_digest == two.scope_digest) == ((who, context) == (who2, context2))


POOL = st.sampled_from(["Paris is big.", "Lyon is small.", "Paris is", "is small", "Nizza - is - far", ASKED])


@settings(max_examples=200)
@given(st.lists(POOL, max_size=4), st.lists(POOL, max_size=4), st.one_of(POOL, TEXT), st.one_of(POOL, TEXT))
def test_other_variables_are_never_shared_whatever_the_documents(
    some: list[str], others: list[str], who: str, who2: str
) -> None:
    template = human("<{who}> {context} <{question}>")

    def ask(who: str, documents: list[str]) -> ibidem.Request:
        given = [Document(text) for text in documents]
        return Desk().of(template, who=who, context="\n".join(documents), question="Why?", given=given)

    if ask(who, some).key == ask(who2, others).key:
        assert sorted([who, *some]) == sorted([who2, *others])
        assert who == who2 or {who, who2} <= {*some, *others}


@given(TEXT, TEXT)
def test_contains_agrees_with_the_text(text: str, passage: str) -> None:
    assert contains(text, passage, whole_words=False) == bool(passage and passage in text)
    assert not contains(text, passage, whole_words=True) or contains(text, passage, whole_words=False)


# memory -----------------------------------------------------------------------------------------------


def test_the_tracker_forgets_what_is_old() -> None:
    desk = Desk()
    for number in range(RECENT_DOCUMENTS + 50):
        desk.retrieve(f"query {number}", f"The document number {number}.", "The common document.")
    recent = desk.tracker.retrievals.recent()
    assert len(recent) == RECENT_DOCUMENTS
    assert max(len(document.queries) for document in recent) <= 32


KEYS_OF_ANOTHER_PROCESS = """
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from tests.integrations.test_langchain_keys import CALL, Desk, human

blocks = [{"type": "tool_result", "call_id": "a", "tool_use_id": "b", "tool_call_id": "c", "content": "x"}]
agent = [HumanMessage(blocks), AIMessage("", tool_calls=[CALL]), ToolMessage("x", tool_call_id="c")]
print(Desk().of_messages([*agent, HumanMessage("q?")]).key)
given = [Document(text) for text in ("one document", "two documents", "2 documents", "another one")]
print(Desk().of(human("{c} {question}"), c="one document, 2 documents", question="q?", given=given).key)
"""


def test_keys_are_the_same_in_every_process() -> None:
    """Sets and hashes of texts differ from process to process; a key must not depend on their order."""
    keys = {
        subprocess.run(
            [sys.executable, "-c", KEYS_OF_ANOTHER_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(keys) == 1


async def test_events_of_async_runs_cost_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, told, threads = Tracker(), [], []
    monkeypatch.setattr(tracker, "_begin", lambda *_, **__: told.append(threading.get_ident()))
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "run_in_executor", lambda *given: threads.append(given))
    async_manager = AsyncCallbackManager([tracker])
    await async_manager.on_chain_start({}, {"a": 1})
    await async_manager.on_retriever_start({}, "q")
    assert (told, threads) == ([threading.get_ident()] * 2, [])
    CallbackManager([tracker]).on_chain_start({}, {"a": 1})
    assert len(told) == 3
    assert not inspect.iscoroutine(tracker.on_chain_error(ValueError(), run_id=uuid4()))


def test_runs_leave_nothing_behind() -> None:
    desk, root, child = Desk(), uuid4(), uuid4()
    tracker = desk.tracker
    tracker.on_chain_start({}, {"a": 1}, run_id=root)
    tracker.on_retriever_start({}, "q", run_id=child, parent_run_id=root)
    tracker.on_retriever_end([Document("The document.")], run_id=child)
    assert [d.text for d in tracker.retrievals.of_run(root.int)] == ["The document."]
    tracker.on_chain_end({}, run_id=root)
    assert tracker.retrievals.of_run(root.int) == []


def test_the_tracker_swallows_its_own_failures(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.tracker.on_retriever_end([object()], run_id=uuid4())
    desk.tracker.on_retriever_end([object()], run_id=uuid4())
    assert desk.tracker.faults.counts() == {"follow on_retriever_end: AttributeError": 2}
    assert len(caplog.records) == 1


def test_many_threads_use_one_tracker() -> None:
    desk, errors = Desk(), []
    template = human("{context}\nQ: {question}")

    def work(number: int) -> None:
        try:
            for turn in range(20):
                asked = f"What about {number} and {turn}?"
                desk.retrieve(asked, f"Text about {number}/{turn}.", "Common text.")
                request = desk.of(
                    template, context=f"Text about {number}/{turn}.\n\nCommon text.", question=asked
                )
                assert (request.question, len(request.documents)) == (asked, 2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert desk.tracker.faults.counts() == {}


def test_a_string_template_for_a_chat_model() -> None:
    request = Desk().of(PromptTemplate.from_template("{context} Q: {question}"), context="c", question=ASKED)
    assert (request.question, request.semantic) == (ASKED, True)


def test_blanks_around_a_document_belong_to_the_document() -> None:
    """A code chunk begins with some: with or without it, the question is asked in the same scope."""
    desk = Desk()
    template = ChatPromptTemplate.from_template("Use this.\n\n{context}\n\nQuestion: {question}")
    requests = []
    for chunks in (
        ["    indented code here", "plain text of some length\n"],
        ["plain text of some length\n"],
    ):
        found = desk.retrieve(ASKED, *chunks)
        context = "\n\n".join(document.page_content for document in found)
        requests.append(desk.of(template, context=context, question=ASKED))

    assert [len(request.documents) for request in requests] == [2, 1]
    assert requests[0].scope_digest == requests[1].scope_digest


def context_of(separator: str, texts: list[str]) -> ibidem.Request:
    """The request for a prompt with these documents after these separators."""
    desk = Desk()
    found = desk.retrieve(ASKED, *texts)
    context = "".join(separator.format(n=n) + document.page_content for n, document in enumerate(found, 1))
    template = ChatPromptTemplate.from_template("Use:{context}\n\nQuestion: {question}")
    return desk.of(template, context=context, question=ASKED)


@pytest.mark.parametrize(("one", "other"), [("\n✓ {n}", "\n✗ {n}"), ("\n+ ", "\n- "), ("\n★ ", "\n☆ ")])
def test_signs_between_documents_are_part_of_the_prompt(one: str, other: str) -> None:
    """They can mean that a document is revoked."""
    texts = ["first document of the shelf", "second document of the shelf"]
    assert context_of(one, texts).scope_digest != context_of(other, texts).scope_digest


def test_a_document_of_another_run_is_pinned_in_the_system_prompt() -> None:
    """It may stand there by coincidence: a plan of another customer, say."""
    desk = Desk()
    plans = ["The customer is on the Gold plan.", "The customer is on the Basic plan."]
    desk.retrieve("plans", *plans, "Goods can be returned within 30 days.")
    prompts = [
        [SystemMessage(f"{plan}\n\nGoods can be returned within 30 days."), HumanMessage(ASKED)]
        for plan in plans
    ]
    gold, basic = map(desk.of_messages, prompts)

    assert gold.semantic
    assert gold.scope_digest != basic.scope_digest


def test_a_labelled_prompt_is_no_question_even_if_it_is_called_so() -> None:
    """Context and question put into one variable by hand."""
    text = "Context: the plan is premium.\nQuestion: Which plan is it?"
    assert not Desk().of(human("{question}"), question=text).semantic


def test_the_input_of_a_chain_must_look_like_a_question() -> None:
    """A chain may be called with a text to work on."""
    desk = Desk()
    template = ChatPromptTemplate.from_template("Correct the grammar: {text}")
    chain = template | RunnableLambda(lambda value: desk.of_messages(value.to_messages()))
    assert not chain.invoke("He go to the school yesterday.", config={"callbacks": [desk.tracker]}).semantic
    assert chain.invoke("Where is he going?", config={"callbacks": [desk.tracker]}).semantic


def test_a_support_chat_can_say_that_every_message_is_a_question() -> None:
    """What a customer says may ask nothing and have an answer."""
    careful, trusting = (
        RequestBuilder(Tracker(), AdapterOptions(any_message=any_)) for any_ in (False, True)
    )
    prompt = dumps([HumanMessage("I lost my card.")])
    assert not careful.build(prompt, "m").semantic
    assert trusting.build(prompt, "m").question == "I lost my card."
    assert not trusting.build(dumps([HumanMessage("Context: a\nQuestion: b")]), "m").semantic


@pytest.mark.parametrize(("model", "expected"), [(None, None), (0, 0.0), (1.5, 1.5)])
def test_the_temperature_is_known(model: float | None, expected: float | None) -> None:
    """Of chat and completion models; a call may raise it, and it is part of the scope as before."""
    settings = {} if model is None else {"temperature": model}
    chat = ChatOpenAI(model="m", api_key="k", **settings)
    told = [chat._get_llm_string(), str(sorted({**settings, "model_name": "m"}.items()))]

    assert [temperature_of([one]) for one in told] == [expected] * 2
    assert temperature_of([chat._get_llm_string(temperature=1.8)]) == 1.8
    assert Desk().builder.build("[]", told[1]).temperature == expected
