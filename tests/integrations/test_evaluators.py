"""What an evaluator says of an answer is no answer: no example, and nothing for another wording."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_classic.evaluation import load_evaluator
from langchain_classic.evaluation.qa import QAEvalChain
from langchain_core.documents import Document as Found
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.evaluation import (
    AnswerRelevancyEvaluator,
    BaseEvaluator,
    BatchEvalRunner,
    ContextRelevancyEvaluator,
    CorrectnessEvaluator,
    EvaluationResult,
    FaithfulnessEvaluator,
    GuidelineEvaluator,
    PairwiseComparisonEvaluator,
    RelevancyEvaluator,
)
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.prompts import PromptTemplate as Template
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore

from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from langchain_ibidem.tracking import tracker
from llama_index_ibidem import CachedLLM, CachedSynthesizer, IbidemCallbackHandler
from tests.contracts.langchain import RAG, Library, join
from tests.contracts.llama_index import CountingFunctionCalling, nodes_about, shelves
from tests.contracts.llama_index import Library as Nodes

ASKED = "How long can I return the goods?"
SAID = "Goods can be returned within thirty days, as the terms say."


# LlamaIndex -------------------------------------------------------------------------------------------


class Own(BaseEvaluator):
    """A user's: it asks a model directly, and in words of its own."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def _get_prompts(self) -> Any:
        return {}

    def _update_prompts(self, prompts: Any) -> None: ...

    async def aevaluate(self, query: Any = None, response: Any = None, **kwargs: Any) -> EvaluationResult:
        asked = await self.llm.apredict(Template("{question}"), question=f"Is {response} polite?")
        told = await self.llm.acomplete("Is the answer short?")
        return EvaluationResult(feedback=asked + told.text)


class Synthesizing(Own):
    """It has its question synthesised, and cached by us."""

    async def aevaluate(self, query: Any = None, response: Any = None, **kwargs: Any) -> EvaluationResult:
        synthesizer = CachedSynthesizer(get_response_synthesizer(llm=self.llm.llm), self.llm.cache)  # type: ignore[attr-defined]
        found = await synthesizer.asynthesize(
            "Is it supported?", nodes=[NodeWithScore(node=node) for node in nodes_about("France")]
        )
        return EvaluationResult(feedback=str(found))


def parsed(verdict: str) -> tuple[float, str]:
    return 1.0, verdict


JUDGES: dict[str, Callable[[LLM], BaseEvaluator]] = {
    "faithfulness": lambda llm: FaithfulnessEvaluator(llm=llm),
    "faithfulness in other words": lambda llm: FaithfulnessEvaluator(
        llm=llm,
        eval_template=Template("Is {query_str} said here?\n{context_str}"),
        refine_template=Template("Is {query_str} said here?\n{context_msg}\n{existing_answer}"),
    ),
    "relevancy": lambda llm: RelevancyEvaluator(llm=llm),
    "context": lambda llm: ContextRelevancyEvaluator(llm=llm, parser_function=parsed),
    "answer": lambda llm: AnswerRelevancyEvaluator(llm=llm, parser_function=parsed),
    "correctness": lambda llm: CorrectnessEvaluator(llm=llm, parser_function=parsed),
    "guideline": lambda llm: GuidelineEvaluator(llm=llm),
    "pairwise": lambda llm: PairwiseComparisonEvaluator(
        llm=llm, parser_function=lambda verdict: (True, 1.0, verdict)
    ),
    "own": Own,
    "synthesizing": Synthesizing,
}


@pytest.fixture
def watched(cache: SemanticCache) -> Iterator[SemanticCache]:
    """Answers of LlamaIndex's models are logged."""
    handler, before = IbidemCallbackHandler(cache), Settings.callback_manager
    Settings.callback_manager = CallbackManager([handler])
    Settings.embed_model = MockEmbedding(embed_dim=8)
    yield cache
    Settings.callback_manager = before
    assert handler.faults() == {}


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The one that `evaluate` runs in; LlamaIndex would make one and leave it open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield made
    asyncio.set_event_loop(None)
    made.close()


def given(name: str) -> dict[str, Any]:
    contexts = [node.get_content() for node in nodes_about("France")]
    # The answer quotes a document, as answers do.
    shown = {"query": ASKED, "response": contexts[0], "contexts": contexts}
    if name == "correctness":
        return {**shown, "reference": contexts[0]}
    return {**shown, "second_response": contexts[1]} if name == "pairwise" else shown


def questions(cache: SemanticCache) -> list[str]:
    cache.flush()
    return list(dict.fromkeys(example.question for example in cache.examples.recent()))


@pytest.mark.parametrize("name", JUDGES)
def test_a_verdict_of_llama_index_is_no_example(
    name: str, watched: SemanticCache, loop: asyncio.AbstractEventLoop
) -> None:
    llm = CachedLLM(CountingFunctionCalling(), watched)
    asked = llm.llm.script.asked  # type: ignore[attr-defined]
    engine = RetrieverQueryEngine(Nodes(shelves()), response_synthesizer=get_response_synthesizer(llm=llm))
    engine.query("What is the parliament of France?")
    judge = JUDGES[name](llm)
    if name == "guideline":  # it wants JSON
        llm.llm.script.say = lambda *_: '{"passing": true, "feedback": "so it is"}'  # type: ignore[attr-defined]
    before = len(asked)
    first = loop.run_until_complete(judge.aevaluate(**given(name)))
    assert questions(watched) == ["What is the parliament of France?"]
    spent = len(asked)
    assert spent > before
    assert judge.evaluate(**given(name)) == first, "the very same verdict is repeated"
    assert len(asked) == spent
    engine.query("What is the second city of Peru?")
    assert len(questions(watched)) == 2, "after it all is as before"


@pytest.mark.filterwarnings("ignore:asyncio_module:DeprecationWarning")
def test_many_verdicts_at_once(watched: SemanticCache) -> None:
    llm = CachedLLM(CountingFunctionCalling(), watched)
    runner = BatchEvalRunner(
        {name: make(llm) for name, make in JUDGES.items() if name in ("faithfulness", "own")}
    )
    contexts = [given("")["contexts"]] * 3
    asyncio.run(runner.aevaluate_response_strs([ASKED] * 3, [f"{SAID} {n}" for n in range(3)], contexts))
    assert questions(watched) == []


@pytest.mark.usefixtures("loop")
def test_a_verdict_is_for_the_same_words_only(watched: SemanticCache) -> None:
    llm = CachedLLM(CountingFunctionCalling(), watched)
    judge = CorrectnessEvaluator(llm=llm, parser_function=parsed)
    shown = {"response": SAID, "reference": SAID}
    first = judge.evaluate("What is the capital of France?", **shown)
    other = judge.evaluate("What is France's capital?", **shown)
    assert first.feedback != other.feedback


def test_who_is_no_evaluator_may_have_such_a_method(watched: SemanticCache) -> None:
    class Program:
        def evaluate(self) -> str:
            return CachedLLM(MockLLM(), watched).complete("What is the capital of France?").text

    Program().evaluate()
    assert questions(watched) == ["What is the capital of France?"]


# LangChain --------------------------------------------------------------------------------------------

VERDICT = "CORRECT\nReasoning: so it is. Y\nY [[5]]\nScore: 5"
CHAINS: dict[str, dict[str, Any]] = {
    "qa": {"prediction": SAID, "input": ASKED, "reference": SAID},
    "context_qa": {"prediction": SAID, "input": ASKED, "reference": SAID},
    "criteria": {"prediction": SAID, "input": ASKED},
    "score_string": {"prediction": SAID, "input": ASKED},
    "pairwise_string": {"prediction": "Goods: yes. [[A]]", "prediction_b": SAID, "input": ASKED},
}


@pytest.fixture
def used(cache: SemanticCache) -> Iterator[IbidemCache]:
    tracker().clear()
    made = IbidemCache(cache)
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


def answered(cache: SemanticCache) -> None:
    """A program asks, and is answered with a document that the judges will see again."""
    library = Library(shelves={"goods": [Found(SAID, id="terms")]})
    rag = {"context": library | join, "question": RunnableLambda(str)} | RAG
    (rag | FakeListChatModel(responses=[SAID])).invoke(ASKED)
    assert questions(cache) == [ASKED]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "model"), [*((name, FakeListChatModel) for name in CHAINS), ("qa", FakeListLLM)]
)
def test_a_verdict_of_langchain_is_no_example(
    name: str, model: Any, used: IbidemCache, cache: SemanticCache
) -> None:
    answered(cache)
    verdict = VERDICT.replace("[[5]]", "[[A]]") if name == "pairwise_string" else VERDICT
    chain = load_evaluator(name, llm=model(responses=[verdict]))  # type: ignore[arg-type]
    method = "evaluate_string_pairs" if name == "pairwise_string" else "evaluate_strings"
    first = getattr(chain, method)(**CHAINS[name])
    again = asyncio.run(getattr(chain, f"a{method}")(**CHAINS[name]))
    assert first["reasoning" if "reasoning" in first else "value"]
    assert again == first
    assert questions(cache) == [ASKED]
    assert cache.recent(1)[0].tier == "exact", "the very same verdict is repeated"


class OwnChain(QAEvalChain):
    """A user's, with a template of its own in one line."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("in_async", [False, True])
def test_a_verdict_of_a_chain_of_ones_own(in_async: bool, used: IbidemCache, cache: SemanticCache) -> None:
    template = PromptTemplate.from_template("Is {result} right for {query} and {answer}?")
    chain = OwnChain.from_llm(FakeListChatModel(responses=[VERDICT]), prompt=template)
    for query in ("Paris", "Lima"):
        given = {"prediction": "a", "input": query, "reference": "b"}
        if in_async:
            asyncio.run(chain.aevaluate_strings(**given))
        else:
            chain.evaluate_strings(**given)
    assert questions(cache) == []
    assert all(row.question is None for row in cache.recent(2))
    FakeListChatModel(responses=[VERDICT]).invoke("Is Paris right for the capital of France?")
    assert len(questions(cache)) == 1, "without the evaluator it is a question"
