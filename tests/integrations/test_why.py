"""What a program's requests would find, and why: the parts in which they differ from what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel
from llama_index.core import PromptTemplate, get_response_synthesizer
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from typer.testing import CliRunner

import ibidem
import langchain_ibidem
from ibidem.adapter.programs import ExplainedRun, explain_run
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app as commands
from ibidem.errors import InvalidInput
from llama_index_ibidem import CachedLLM, CachedSynthesizer
from tests.integrations.test_warming import Model, Shelf, edition, rag

ASKED = "How can I return the goods?"


class Fixed(BaseRetriever):
    """Always finds the same."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        self._nodes = nodes
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes


@pytest.fixture
def cache(open_cache: Callable[..., SemanticCache]) -> Iterator[SemanticCache]:
    """The cache of all LangChain models."""
    found = open_cache()
    langchain_ibidem.install(found)
    yield found
    langchain_ibidem.uninstall()


def chat(model: Any, clock: str, *history: Any) -> Any:
    """A chain with a system prompt."""
    prompt = ChatPromptTemplate([("system", f"It is {clock}."), *history, ("human", "{question}")])
    return prompt | model


def the_only(ran: ExplainedRun) -> ibidem.explanation.result.Explanation:
    """The explanation of the one request that was made."""
    (one,) = ran.requests
    return one.explanation


def test_the_part_of_a_chain_that_differs_is_named(cache: SemanticCache) -> None:
    """System prompt, conversation, parameters, tools or model; nothing is asked or kept meanwhile."""
    model = Model()
    chat(model, "10:00").invoke({"question": ASKED})
    cache.flush()
    before = cache.stats(), cache.recent(), cache.examples.recent()
    history = HumanMessage("Hello!"), AIMessage("Good morning.")
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    named = Model(tools=True)
    for changed, differs in (
        (chat(model, "10:01"), ("system prompt",)),
        (chat(model, "10:00", *history), ("conversation",)),
        (chat(model.bind(temperature=0.5), "10:00"), ("parameters",)),
        (chat(Model.bind(model, tools=[tool]), "10:01"), ("tools", "system prompt")),
        (chat(named, "10:00"), ("model",)),
    ):
        ran = explain_run(changed, ASKED)
        (near,) = the_only(ran).elsewhere
        assert (ran.answer, the_only(ran).reason) == (None, "empty")
        assert (sorted(near.differs), near.question) == (sorted(differs), ASKED)
    served = explain_run(chat(model, "10:00"), "How can I return goods?")
    assert (the_only(served).tier, served.answer) == ("semantic", "What the model said, for the 1th time.")
    cache.flush()

    assert (model.calls, named.calls) == (1, 0)
    assert (cache.stats(), cache.recent(), cache.examples.recent()) == before


def test_a_run_ends_where_a_model_would_be_asked(cache: SemanticCache) -> None:
    """Whatever the program does about errors; with `ask_models` it goes on, and nothing is stored."""
    model, shelf = Model(), Shelf(documents=edition())
    chain = rag(model, shelf)
    careful = RunnableParallel(one=chain, two=chain).with_fallbacks([chain]).with_retry(stop_after_attempt=3)
    assert len(explain_run(careful, ASKED, make_input=str).requests) in (1, 2)

    def steps(question: str) -> str:
        try:
            return chain.invoke(f"{chain.invoke(question)[:9]}, is it?")
        except Exception:
            return "sorry"

    ended = explain_run(steps, ASKED)
    assert (len(ended.requests), ended.answer, model.calls) == (1, None, 0)
    through = explain_run(steps, ASKED, ask_models=True)
    assert ([one.explanation.reason for one in through.requests], model.calls) == (["empty", "empty"], 2)
    assert through.answer == "What the model said, for the 2th time."
    assert cache.stats().entries == 0
    chain.invoke(ASKED)
    shelf.documents = [Document("Goods can be returned within 14 days.", id="terms"), edition()[1]]
    edited = the_only(explain_run(chain, "How can I return goods?"))
    assert edited.reason == "documents_changed"
    with pytest.raises(ZeroDivisionError):
        explain_run(lambda question: 1 / 0, ASKED)
    with pytest.raises(InvalidInput, match="cannot ask a int"):
        explain_run(3, ASKED)


def test_streams_and_query_engines_are_run(cache: SemanticCache, open_cache: Any, tmp_path: Path) -> None:
    """A hit is replayed; after a miss no stream of a model begins, and no synthesis."""
    model = Model()
    chat(model, "10:00").invoke({"question": ASKED})

    def stream(question: str, clock: str = "10:00") -> str:
        chain = chat(model, clock)
        return "".join(str(chunk.content) for chunk in chain.stream({"question": question}))

    assert explain_run(stream, ASKED).answer == "What the model said, for the 1th time."
    ended = explain_run(lambda question: stream(question, "10:01"), ASKED)
    assert (ended.answer, the_only(ended).elsewhere[0].differs, model.calls) == (None, ("system prompt",), 1)

    other = open_cache(path=tmp_path / "other")
    nodes = [NodeWithScore(node=TextNode(text="Goods can be returned within 30 days.", id_="terms"))]
    llm = MockLLM(max_tokens=5)

    def engine(words: str) -> RetrieverQueryEngine:
        template = PromptTemplate(words + " {context_str} {query_str}")
        synthesizer = get_response_synthesizer(llm=llm, text_qa_template=template)
        return RetrieverQueryEngine(Fixed(nodes), CachedSynthesizer(synthesizer, other))

    first = str(engine("Answer:").query(ASKED))
    assert explain_run(engine("Answer:"), ASKED).answer == first
    ended = explain_run(engine("Answer briefly:"), ASKED)
    assert (ended.answer, the_only(ended).elsewhere[0].differs) == (None, ("prompt",))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_agents_are_run(cache: SemanticCache) -> None:
    """LangChain's and LlamaIndex's; these run their steps as tasks."""

    def look(words: str) -> str:
        """Look something up."""
        return words

    model = Model()
    ran = explain_run(create_agent(model, tools=[look]), ASKED)
    assert (len(ran.requests), ran.answer, model.calls) == (1, None, 0)

    llm = CachedLLM(MockLLM(max_tokens=5), cache)

    def answer(question: str, style: str = "short") -> str:
        return str(llm.chat([ChatMessage(f"Be {style}.", role="system"), ChatMessage(question)]))

    answer(ASKED, "brief")
    ran = explain_run(answer, ASKED)
    (near,) = the_only(ran).elsewhere
    assert near.differs == ("system prompt",)
    ran = explain_run(ReActAgent(llm=llm, tools=[], streaming=False), ASKED)
    assert (len(ran.requests), ran.answer) == (1, None)


def test_the_command_explains_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 80 columns; as JSON too; with an error for what does not go together."""
    (tmp_path / "why_app.py").write_text(
        "import ibidem, langchain_ibidem\n"
        "from langchain_core.prompts import ChatPromptTemplate\n"
        "from tests.embedders import BagOfWords\n"
        "from tests.integrations.test_warming import Model\n"
        f"cache = ibidem.open({str(tmp_path / 'cache')!r}, embedder=BagOfWords(), min_similarity=0.8)\n"
        "langchain_ibidem.install(cache)\n"
        "model = Model()\n"
        "def at(clock):\n"
        "    return ChatPromptTemplate([('system', f'It is {clock}.'), ('human', '{question}')]) | model\n"
        "first, chain = at('10:00'), at('10:01')\n"
        f"first.invoke({{'question': {ASKED!r}}})\n"
        "def no_cache(question): return 'No.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("ibidem.cli.output.out._width", 80)

    def run(*options: str, code: int = 0) -> str:
        done = CliRunner().invoke(commands, ["why", ASKED, *options])
        assert done.exit_code == code, done.output
        return done.output

    try:
        said = run("--app", "why_app:chain", "--namespace", "")
        assert f"1. {ASKED}" in said
        assert "is stored in 1 other scope of this namespace: the system prompt differs" in said
        assert "Here a model would be asked" in said
        assert "No model would be asked." in run("--app", "why_app:first")
        assert "Models were asked after 1 of them" in run("--app", "why_app:chain", "--ask")
        (told,) = json.loads(run("--app", "why_app:chain", "--namespace", "acme", "--json"))
        assert (told["namespace"], told["reason"], told["elsewhere"]) == ("acme", "empty", [])
        assert "asked no cache" in run("--app", "why_app:no_cache")
        assert "leave out --path" in run("--app", "why_app:chain", "--path", str(tmp_path), code=2)
        assert "cannot import why_app:none" in run("--app", "why_app:none", code=2)
        assert "--ask is for --app" in run("--ask", code=2)
        import why_app  # type: ignore[import-not-found]

        why_app.cache.flush()
        assert (why_app.model.calls, why_app.cache.stats().entries, len(why_app.cache.recent())) == (2, 1, 1)
        why_app.cache.close()
    finally:
        langchain_ibidem.uninstall()
