"""Few-shot examples in LangChain: selected from the log, and no part of the key where that is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_core.prompts import (
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    FewShotPromptTemplate,
    PromptTemplate,
)

import ibidem
from ibidem import Example, InvalidInput, StorageError
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache, IbidemExampleSelector
from langchain_ibidem.tracking import tracker
from tests.contracts.langchain import CountingChat, CountingCompletion
from tests.embedders import BagOfWords

ASKED = "How do I return my shoes?"
REWORDED = "How do I return my shoes, please?"
FIRST = (
    "How do I return my coat?",
    "How do I return a hat?",
    "May I return socks?",
    "Who may return gloves?",
)
LATER = ("How do I return my boots?", "How do I return my scarf?")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[SemanticCache]:
    """A cache with four examples, which all models use; answers are no examples here."""
    tracker().clear()
    with ibidem.open(tmp_path, embedder=BagOfWords(), min_similarity=0.8) as opened:
        learn(opened, *FIRST)
        set_llm_cache(IbidemCache(opened, namespace="answers"))
        yield opened
        set_llm_cache(None)


def learn(cache: SemanticCache, *questions: str, **fields: Any) -> None:
    """Add examples."""
    for question in questions:
        cache.examples.add(Example(question, f"See page {len(question)} of the guide.", **fields))
    cache.flush()


def text_template(selector: IbidemExampleSelector, prefix: str = "Answer as these.") -> FewShotPromptTemplate:
    """A completion prompt."""
    return FewShotPromptTemplate(
        example_selector=selector,
        example_prompt=PromptTemplate.from_template("Q: {question}\nA: {answer}"),
        prefix=prefix,
        suffix="Q: {input}\nA:",
        input_variables=["input"],
    )


def chat_template(selector: IbidemExampleSelector, system: str = "Answer as these.") -> ChatPromptTemplate:
    """A chat prompt, whose examples are messages."""
    shots = FewShotChatMessagePromptTemplate(
        example_selector=selector,
        example_prompt=ChatPromptTemplate.from_messages([("human", "{question}"), ("ai", "{answer}")]),
        input_variables=["input"],
    )
    return ChatPromptTemplate.from_messages([("system", system), shots, ("human", "{input}")])


FORMS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "text": (text_template, CountingCompletion),
    "text for a chat model": (text_template, CountingChat),
    "chat": (chat_template, CountingChat),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """A template and a model."""
    return FORMS[request.param]


def test_examples_reach_the_prompt(cache: SemanticCache) -> None:
    """The nearest, which is the last, in both templates, with and without a run, and in async code."""
    selector = IbidemExampleSelector(cache, 2, diversity=0.0)
    nearest, other = (one.question for one in cache.examples.select(ASKED, 2, diversity=0.0))
    for template in (text_template(selector), chat_template(selector)):
        told = template.invoke({"input": ASKED}).to_string()
        assert {nearest, other} == {"How do I return my coat?", "How do I return a hat?"}
        assert 0 < told.index(other) < told.index(nearest)
        assert "May I return socks?" not in told
        assert template.format_prompt(input=ASKED).to_string() == told
        assert asyncio.run(template.ainvoke({"input": ASKED})).to_string() == told


def test_a_growing_log_ends_no_hits(form: Any, cache: SemanticCache) -> None:
    """The prompt has other examples, and the question is answered from the cache, reworded too."""
    make, model = form[0], form[1]()
    chain = make(IbidemExampleSelector(cache, 3)) | model
    before = make(IbidemExampleSelector(cache, 3)).invoke({"input": ASKED}).to_string()
    chain.invoke({"input": ASKED})
    learn(cache, *LATER)
    assert make(IbidemExampleSelector(cache, 3)).invoke({"input": ASKED}).to_string() != before
    chain.invoke({"input": ASKED})
    chain.invoke({"input": REWORDED})
    asyncio.run(chain.ainvoke({"input": ASKED}))

    assert model.calls == 1


def test_the_number_of_examples_may_change_too(cache: SemanticCache) -> None:
    """In messages from one on, in a text from two on: a budget gives one question more than another."""
    for make, model in ((chat_template, CountingChat()), (text_template, CountingCompletion())):
        template = make(IbidemExampleSelector(cache, 5))
        (template | model).invoke({"input": ASKED})
        learn(cache, *LATER, model=str(make))
        (template | model).invoke({"input": ASKED})
        assert model.calls == 1
        cache.examples._shared.table.delete_before(1e12)
        learn(cache, *FIRST)


def test_in_key_compares_the_examples(form: Any, cache: SemanticCache) -> None:
    """Then other examples are another prompt."""
    make, model = form[0], form[1]()
    chain = make(IbidemExampleSelector(cache, 3, in_key=True)) | model
    chain.invoke({"input": ASKED})
    chain.invoke({"input": ASKED})
    assert model.calls == 1
    learn(cache, *LATER)
    chain.invoke({"input": ASKED})
    assert model.calls == 2


def test_other_settings_are_another_prompt(form: Any, cache: SemanticCache) -> None:
    """Who asks for more examples wants to see what they do."""
    make, model = form[0], form[1]()
    for options in ({"k": 3}, {"k": 2}, {"k": 3, "diversity": 0.0}, {"k": 3}):
        (make(IbidemExampleSelector(cache, **options)) | model).invoke({"input": ASKED})

    assert model.calls == 3


def test_examples_of_another_namespace_are_another_prompt(form: Any, cache: SemanticCache) -> None:
    """What was answered with the examples of one tenant is not for the other."""
    make, model = form[0], form[1]()
    for tenant in ("one", "other", "one"):
        learn(cache, *FIRST, namespace=tenant)
        (make(IbidemExampleSelector(cache, 2, namespace=tenant)) | model).invoke({"input": ASKED})

    assert model.calls == 2


def test_an_answer_elsewhere_in_the_prompt_is_no_example(cache: SemanticCache) -> None:
    """The template shows questions alone; the answer stands in what the user gave."""
    model = CountingCompletion()
    for said in ("no", "yes"):
        learn(cache, "How do I return my shoes again?")
        cache.examples.add(Example("How do I return my shoes again?", said))
        cache.flush()
        template = FewShotPromptTemplate(
            example_selector=IbidemExampleSelector(cache, 1),
            example_prompt=PromptTemplate.from_template("Q: {question}"),
            suffix="My contract says: {context}.\nQ: {input}\nA:",
            input_variables=["input", "context"],
        )
        (template | model).invoke({"input": ASKED, "context": said})

    assert model.calls == 2


def test_what_the_user_says_always_counts(form: Any, cache: SemanticCache) -> None:
    """Also if it is, word for word, a question or an answer of the log."""
    make, model = form[0], form[1]()
    own = [*FIRST, *(f"See page {len(question)} of the guide." for question in FIRST)]
    whole = f"Q: {FIRST[0]}\nA: See page {len(FIRST[0])} of the guide."
    texts = [*dict.fromkeys(["Be brief.", *own, whole])]
    for text in texts:
        (make(IbidemExampleSelector(cache, 3), text) | model).invoke({"input": ASKED})
    assert model.calls == len(texts)
    learn(cache, *LATER)
    for text in texts[:1]:
        (make(IbidemExampleSelector(cache, 3), text) | model).invoke({"input": ASKED})
    assert model.calls == len(texts)


def test_fixed_examples_are_compared(cache: SemanticCache) -> None:
    """Those that the program wrote itself, though the log has the same."""
    model = CountingCompletion()
    for question in FIRST[:2]:
        pair = {"question": question, "answer": f"See page {len(question)} of the guide."}
        template = FewShotPromptTemplate(
            examples=[pair],
            example_prompt=PromptTemplate.from_template("Q: {question}\nA: {answer}"),
            suffix="Q: {input}\nA:",
            input_variables=["input"],
        )
        (template | model).invoke({"input": ASKED})

    assert model.calls == 2


def test_examples_of_another_run_are_compared(cache: SemanticCache) -> None:
    """A text that was selected for one prompt is the user's own in another."""
    model, selector = CountingCompletion(), IbidemExampleSelector(cache, 2)
    template = text_template(selector)
    template.invoke({"input": ASKED})
    shown = [template.format(input=ASKED)]
    learn(cache, *LATER)
    shown.append(template.format(input=ASKED))
    assert shown[0] != shown[1]
    bare = PromptTemplate.from_template("{shown}\n\n{question}")
    for text in shown:
        (bare | model).invoke({"shown": text, "question": "What may I return?"})

    assert model.calls == 2


def test_the_question_is_asked_under_any_usual_name(cache: SemanticCache) -> None:
    """Or that which is given; without one there are no examples."""
    selector = IbidemExampleSelector(cache, 1)
    for name in ("question", "query", "input"):
        assert len(selector.select_examples({name: ASKED, "other": 7})) == 1
    assert selector.select_examples({"words": ASKED}) == []
    assert selector.select_examples({}) == []
    assert len(IbidemExampleSelector(cache, 1, input_key="words").select_examples({"words": ASKED})) == 1


def test_examples_can_be_added(cache: SemanticCache) -> None:
    """Under the names of the template; they are in the log, and selected."""
    selector = IbidemExampleSelector(cache, 9, question_key="input", answer_key="output", namespace="n")
    assert selector.add_example({"input": LATER[0], "output": "yes"})
    assert asyncio.run(selector.aadd_example({"input": LATER[1], "output": "no"}))
    cache.flush()
    found = selector.select_examples({"input": ASKED})

    assert {one["input"]: one["output"] for one in found} == {LATER[0]: "yes", LATER[1]: "no"}
    with pytest.raises(InvalidInput, match="'output' is missing"):
        selector.add_example({"input": LATER[0]})
    with pytest.raises(InvalidInput, match="Example.answer is empty"):
        selector.add_example({"input": LATER[0], "output": ""})


def test_without_the_cache_there_are_no_examples(cache: SemanticCache, monkeypatch) -> None:
    """A prompt never fails because of them; the failure is counted."""
    selector = IbidemExampleSelector(cache)

    def fail(*_: object, **__: object) -> None:
        raise StorageError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(cache._runtime.store.examples, "vector_range", fail)
        assert text_template(selector).invoke({"input": ASKED}).to_string().startswith("Answer as these.")
        assert asyncio.run(selector.aselect_examples({"input": ASKED})) == []
    assert selector.faults() == {"select examples: StorageError": 2}
    cache.close()
    assert selector.select_examples({"input": ASKED}) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": -1}, "k must be"),
        ({"diversity": 2}, "diversity must be"),
        ({"max_token": 2}, "max_token"),
        ({"in_key": 1}, "in_key must be a bool"),
        ({"input_key": None}, "input_key must be a str"),
        ({"namespace": None}, "namespace must be a str"),
        ({"count_tokens": 3}, "count_tokens must be callable"),
    ],
)
def test_misuse_is_told_at_once(cache: SemanticCache, given: dict[str, Any], message: str) -> None:
    """And not at the first prompt."""
    with pytest.raises(InvalidInput, match=message):
        IbidemExampleSelector(cache, **given)


def test_its_repr_is_stable(cache: SemanticCache) -> None:
    """LangChain puts it into the ids of templates."""
    assert repr(IbidemExampleSelector(cache, 3)) == "IbidemExampleSelector(k=3, namespace='')"


def test_answers_of_langchain_are_examples(cache: SemanticCache) -> None:
    """Once each, with the question alone."""
    model = CountingChat()
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    for _ in range(2):
        (prompt | model).invoke({"question": ASKED})
    (example,) = cache.examples.recent(9, "answers")

    assert example.question == ASKED
    assert example.entry_id is not None
