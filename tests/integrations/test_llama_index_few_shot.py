"""Few-shot examples in LlamaIndex: a function for templates, whose text is no part of the key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer

from ibidem import Example, InvalidInput, StorageError
from ibidem.cache import SemanticCache
from llama_index_ibidem import CachedLLM, CachedSynthesizer, few_shot
from tests.contracts.llama_index import ASKED, REWORDED, CountingFunctionCalling, Library, shelves

FIRST = tuple(f"Which river runs through the largest city of {name}?" for name in ("Peru", "Chad", "Laos"))
LATER = ("Which river runs through the very largest city of Mali?",)
FORM = "{examples}\n\nContext:\n{context_str}\n\nQuery: {query_str}\nAnswer: "


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex's global settings are as before after each test."""
    for name in ("_llm", "_embed_model", "_callback_manager"):
        monkeypatch.setattr(Settings, name, getattr(Settings, name))
    Settings.embed_model = MockEmbedding(8)
    Settings.callback_manager = CallbackManager()


@pytest.fixture
def model() -> CountingFunctionCalling:
    """A model that counts."""
    return CountingFunctionCalling()


@pytest.fixture
def log(cache: SemanticCache) -> SemanticCache:
    """A cache with examples."""
    learn(cache, *FIRST)
    return cache


def learn(cache: SemanticCache, *questions: str) -> None:
    """Add examples."""
    for question in questions:
        cache.examples.add(Example(question, f"See page {len(question)}."))
    cache.flush()


def template(log: SemanticCache, form: str = FORM, **options: Any) -> PromptTemplate:
    """A template with examples."""
    return PromptTemplate(form, function_mappings={"examples": few_shot(log, **options)})


def engine(llm: LLM, log: SemanticCache, mode: str = "compact", **options: Any) -> RetrieverQueryEngine:
    """A query engine with such a template."""
    synthesizer = get_response_synthesizer(
        llm=llm, response_mode=mode, text_qa_template=template(log, **options)
    )
    return RetrieverQueryEngine(Library(shelves()), synthesizer)


def cached_model(model: LLM, log: SemanticCache, **options: Any) -> RetrieverQueryEngine:
    """An engine that asks a cached model."""
    return engine(CachedLLM(model, log, namespace="answers"), log, **options)


def cached_synthesizer(model: LLM, log: SemanticCache, **options: Any) -> RetrieverQueryEngine:
    """An engine whose answers are cached as a whole."""
    plain = get_response_synthesizer(llm=model, text_qa_template=template(log, **options))
    return RetrieverQueryEngine(Library(shelves()), CachedSynthesizer(plain, log, namespace="answers"))


LAYERS = {"model": cached_model, "synthesizer": cached_synthesizer}
Make = Callable[..., RetrieverQueryEngine]


@pytest.fixture(params=LAYERS)
def make(request: pytest.FixtureRequest) -> Make:
    """Where answers are cached."""
    return LAYERS[request.param]


@pytest.mark.parametrize("mode", ["compact", "refine", "simple_summarize"])
async def test_examples_reach_the_model(
    model: CountingFunctionCalling, log: SemanticCache, mode: str
) -> None:
    """Those for the question, and no text that was only there to be measured."""
    await asyncio.to_thread(engine(model, log, mode, k=2, diversity=0.0).query, ASKED)
    await engine(model, log, mode, k=2, diversity=0.0).aquery(ASKED)

    for asked in model.script.asked:
        if "Original Answer" not in asked:
            assert asked.count("Question: Which river") == 2
            assert "x x x" not in asked
    assert len(model.script.asked) == (4 if mode == "refine" else 2)


async def test_a_growing_log_costs_no_hits(
    make: Make, model: CountingFunctionCalling, log: SemanticCache
) -> None:
    """Other examples, the same question, also reworded: one call of the model."""
    asked = make(model, log, k=2)
    assert str(await asked.aquery(ASKED)) == "answer 1"
    learn(log, *LATER)
    assert "Mali" in few_shot(log, k=2)(query_str=ASKED)
    assert str(await asyncio.to_thread(asked.query, ASKED)) == "answer 1"
    assert str(await asyncio.to_thread(asked.query, REWORDED)) == "answer 1"
    assert str(await asked.aquery(ASKED)) == "answer 1"


def test_in_key_compares_the_examples(model: CountingFunctionCalling, log: SemanticCache) -> None:
    """By the model; a synthesizer is not cached then, as before."""
    asked = cached_model(model, log, k=2, in_key=True)
    assert [str(asked.query(ASKED)) for _ in range(2)] == ["answer 1"] * 2
    learn(log, *LATER)
    assert str(asked.query(ASKED)) == "answer 2"
    other = cached_synthesizer(model, log, k=2, in_key=True)
    assert [str(other.query(ASKED)) for _ in range(2)] == ["answer 3", "answer 4"]


def test_other_few_shot_settings_are_another_prompt(
    make: Make, model: CountingFunctionCalling, log: SemanticCache
) -> None:
    """Number, form and diversity."""
    for options in ({"k": 2}, {"k": 3}, {"k": 2, "diversity": 0.0}, {"k": 2, "separator": "\n"}, {"k": 2}):
        make(model, log, **options).query(ASKED)

    assert len(model.script.asked) == 4


def test_other_template_functions_are_not_cached(model: CountingFunctionCalling, log: SemanticCache) -> None:
    """Only what comes from here is."""
    own = PromptTemplate(FORM, function_mappings={"examples": lambda **_: "mine"})
    plain = get_response_synthesizer(llm=model, text_qa_template=own)
    cached = CachedSynthesizer(plain, log)
    RetrieverQueryEngine(Library(shelves()), cached).query(ASKED)

    assert cached.faults() == {"function_mappings": 1}


def test_what_the_user_says_always_counts(model: CountingFunctionCalling, log: SemanticCache) -> None:
    """Also if it is, word for word, what was selected."""
    shown = few_shot(log, k=2)(query_str=ASKED)
    llm = CachedLLM(model, log, namespace="answers")
    forms = ["{said}\n{examples}\nQuery: {query_str}", "{examples}\n{said}\nQuery: {query_str}"]
    for form in forms:
        for said in (shown, "Be brief.", FIRST[0], shown.split("\n\n")[0]):
            llm.predict(template(log, form, k=2), said=said, query_str=ASKED)
    assert len(model.script.asked) == 7  # the first is one prompt in both forms
    learn(log, *LATER)
    bare = PromptTemplate("{said}\nQuery: {query_str}")
    for said in (shown, few_shot(log, k=2)(query_str=ASKED)):
        llm.predict(bare, said=said, query_str=ASKED)
    assert len(model.script.asked) == 9


async def test_a_chat_template_can_hold_examples(model: CountingFunctionCalling, log: SemanticCache) -> None:
    """In a message."""
    llm = CachedLLM(model, log, namespace="answers")
    messages = [ChatMessage("Answer as these:\n{examples}", role="system"), ChatMessage("{query_str}")]
    chat = ChatPromptTemplate(messages, function_mappings={"examples": few_shot(log, k=2)})
    first = await llm.apredict(chat, query_str=ASKED)
    learn(log, *LATER)
    assert await llm.apredict(chat, query_str=ASKED) == first
    assert await asyncio.to_thread(llm.predict, chat, query_str=ASKED) == first


def test_empty_texts_are_measured(log: SemanticCache) -> None:
    """At least as long as the examples may be; a question without a text has none."""
    examples = few_shot(log, k=2, max_tokens=50)
    assert len(examples(query_str="", context_str="").split()) == 50 + 32
    assert examples(query_str="", context_str="some text") == ""
    assert examples(topic="rivers") == ""
    assert examples(question=ASKED) == examples(query_str=ASKED) != ""
    assert few_shot(log, k=2, question_key="topic")(topic=ASKED) != ""


def test_without_the_cache_there_are_no_examples(log: SemanticCache, monkeypatch) -> None:
    """The prompt never fails."""
    examples = few_shot(log)

    def fail(*_: object, **__: object) -> None:
        raise StorageError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(log._runtime.store.examples, "vector_range", fail)
        assert examples(query_str=ASKED) == ""
    log.close()
    assert examples(query_str=ASKED) == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": -1}, "k must be"),
        ({"diversity": 2}, "diversity must be"),
        ({"max_token": 2}, "max_token"),
        ({"in_key": 1}, "in_key must be a bool"),
        ({"example": "{question}"}, "example must hold"),
        ({"example": "{question} {answer} {more}"}, "example must be"),
        ({"example": "{question} {answer"}, "example must be"),
        ({"separator": ""}, "separator must not be empty"),
        ({"question_key": None}, "question_key must be a str"),
    ],
)
def test_invalid_arguments_raise_at_once(log: SemanticCache, given: dict[str, Any], message: str) -> None:
    """And not in the middle of a query."""
    with pytest.raises(InvalidInput, match=message):
        few_shot(log, **given)
