"""`warm`: known answers given to chains, engines and agents, which then ask no model."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from llama_index.core import Settings
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever as Retriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import PrivateAttr
from typer.testing import CliRunner

import ibidem
import langchain_ibidem
import llama_index_ibidem
from ibidem.adapter.warming import KnownAnswer, WarmingPlan
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app as commands
from ibidem.errors import InvalidInput
from ibidem.lifecycle.rules import Bounds
from ibidem_lab.review.vetted import VettedAnswers
from tests.contracts.langchain import RAG, Calls, join
from tests.helpers import Child, eventually, question, rounds

MANY = rounds(120, 500)
ROWS = [(f"{question(n)}?", f"The known answer number {n}, {question(n + 7000, 5)}.") for n in range(MANY)]


class Model(BaseChatModel):
    """Answers what it is asked with a number; with tools it calls the first one first."""

    tools: bool = False
    _calls: Calls = PrivateAttr(default_factory=Calls)

    @property
    def _llm_type(self) -> str:
        return "warmed"

    @property
    def calls(self) -> int:
        return self._calls.count

    def bind_tools(self, tools: Any, **options: Any) -> Runnable[Any, Any]:
        return self.bind(tools=[tool.name for tool in tools], **options)

    def _generate(self, messages: list[BaseMessage], *args: Any, **options: Any) -> ChatResult:
        said = f"What the model said, for the {self._calls.next()}th time."
        message = AIMessage(
            said, usage_metadata={"input_tokens": 90, "output_tokens": 10, "total_tokens": 100}
        )
        if options.get("tools") and messages[-1].type == "human":
            call = {"name": options["tools"][0], "args": {"words": messages[-1].content[:9]}, "id": said}
            message = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=message)])


class Shelf(BaseRetriever):
    """Always returns its documents."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.documents


def rag(model: Model, shelf: Shelf) -> Runnable[Any, Any]:
    """The usual chain."""
    return {"context": shelf | join, "question": RunnablePassthrough()} | RAG | model | StrOutputParser()


def edition(text: str = "30 days") -> list[Document]:
    """The documents, as they stand now."""
    return [
        Document(f"Goods can be returned within {text}.", id="terms", metadata={"source": "terms.md"}),
        Document("Parcels leave Lyon every morning.", id="lyon"),
    ]


@pytest.fixture
def cache(open_cache) -> Iterator[SemanticCache]:
    """The cache of all LangChain models."""
    found = open_cache()
    langchain_ibidem.install(found)
    yield found
    langchain_ibidem.uninstall()


def test_a_chain_answers_many_questions_without_its_model(cache: SemanticCache) -> None:
    """The first one is asked, to see which call answers; the others are not. Again, nothing is."""
    model, shelf = Model(), Shelf(documents=edition())
    chain, plans = rag(model, shelf), list[WarmingPlan]()

    done = langchain_ibidem.warm(chain, ROWS, on_plan=lambda plan: not plans.append(plan))
    assert (done.answered, done.calls, done.problems) == (MANY, 1, [])
    assert (plans[0].questions, plans[0].calls, plans[0].tokens, plans[0].learned) == (MANY - 2, 0, 0, True)
    assert model.calls == 1
    assert [chain.invoke(asked) for asked, _ in ROWS] == [answer for _, answer in ROWS]
    shelf.documents = edition("14 days")  # an FAQ stands for itself
    assert [chain.invoke(asked) for asked, _ in ROWS[:9]] == [answer for _, answer in ROWS[:9]]
    assert "".join(chain.stream(ROWS[3][0])) == ROWS[3][1]
    assert model.calls == 1
    cache.flush()
    assert {row.tier for row in cache.recent(MANY)} == {"exact"}
    assert cache.stats().pinned == MANY

    again = langchain_ibidem.warm(chain, [*ROWS[:20], (ROWS[20][0], "Another answer.")])
    assert (again.answered, again.calls) == (21, 0)
    assert chain.invoke(ROWS[20][0]) == "Another answer."


def test_an_answer_may_rest_on_what_is_retrieved(cache: SemanticCache) -> None:
    """Once that changes, it is on the review's list and not served."""
    model, shelf = Model(), Shelf(documents=edition())
    chain = rag(model, shelf)
    done = langchain_ibidem.warm(chain, [(ROWS[0][0], "Within 30 days.")], documents="retrieved")
    assert done.answered == 1
    assert chain.invoke(ROWS[0][0]) == "Within 30 days."

    shelf.documents = edition("14 days")
    assert chain.invoke(ROWS[0][0]).startswith("What the model said")
    cache.flush()
    assert [one.entry.answer.text for one in cache._runtime.store.pins.outdated(9)] == ["Within 30 days."]
    cache.invalidate(document="terms.md", current="Goods can be returned within 14 days.")
    assert [one.entry.answer.text for one in cache._runtime.store.pins.withdrawn(9)] == ["Within 30 days."]
    shelf.documents = edition()
    assert chain.invoke(ROWS[0][0]).startswith("What the model said")


def test_the_last_warming_says_what_an_answer_rests_on(cache: SemanticCache) -> None:
    """Neither kind is left over from before; a correction is kept, for its documents."""
    model, shelf = Model(), Shelf(documents=edition())
    chain, asked = rag(model, shelf), ROWS[0][0]
    for number, (documents, pinned) in enumerate((("ignore", 1), ("retrieved", 1), ("ignore", 1))):
        answer = f"The answer of warming {number}."
        assert langchain_ibidem.warm(chain, [(asked, answer)], documents=documents).answered == 1
        assert (chain.invoke(asked), cache.stats().entries, cache.stats().pinned) == (answer, pinned, pinned)
    shelf.documents = edition("14 days")
    assert chain.invoke(asked) == answer
    assert model.calls == 1


def test_a_known_answer_that_was_withdrawn_stands_for_itself_again(cache: SemanticCache) -> None:
    """In the place of what the model has said since, over whatever documents."""
    model, shelf = Model(), Shelf(documents=edition())
    chain, asked = rag(model, shelf), ROWS[0][0]
    langchain_ibidem.warm(chain, [KnownAnswer(*ROWS[0], tags=("faq",))])
    cache.invalidate(tag="faq")
    assert chain.invoke(asked).startswith("What the model said")
    store = cache._runtime.store
    (waiting,) = VettedAnswers(store, None, Bounds()).waiting()
    assert waiting.fresh is not None

    assert "pinned" in VettedAnswers(store, None, Bounds()).keep(waiting.entry.id, "Better words.")
    for documents in (edition(), edition("14 days")):
        shelf.documents = documents
        assert chain.invoke(asked) == "Better words."
    assert cache.stats().entries == 1


def test_paraphrases_have_answers_of_their_own(cache: SemanticCache) -> None:
    """Also with the same words in them: each is a hit for its very words."""
    chain = rag(Model(), Shelf(documents=edition()))
    asked, answer = ROWS[0]
    for rows in ([(asked, answer)], [(f"please {asked}", answer)]):
        assert langchain_ibidem.warm(chain, rows).answered == 1
    assert chain.invoke(f"please {asked}") == answer
    cache.flush()
    assert cache.recent(1)[0].tier == "exact"
    assert cache.stats().pinned == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's own
async def test_agents_of_llama_index_are_warmed_within_an_event_loop(open_cache) -> None:
    """As in a notebook."""
    model = Told()
    agent = ReActAgent(tools=[], llm=llama_index_ibidem.CachedLLM(model, open_cache()))
    done = llama_index_ibidem.warm(agent, ROWS[:3])
    assert (done.answered, model.calls) == (3, 1)
    assert str(await agent.run(ROWS[1][0])) == ROWS[1][1]
    assert model.calls == 1


def test_why_an_answer_cannot_be_given_is_said(open_cache) -> None:
    """The cache does not store what this program is told."""
    langchain_ibidem.install(open_cache(should_store=lambda request, answer: False))
    try:
        done = langchain_ibidem.warm(rag(Model(), Shelf(documents=edition())), ROWS[:1])
    finally:
        langchain_ibidem.uninstall()
    assert "not_admitted" in done.problems[0].reason


def test_the_other_calls_of_a_chain_reach_the_model(cache: SemanticCache) -> None:
    """Their number is told before; they are stored as ever, not pinned."""
    model = Model()
    grade = PromptTemplate.from_template("Is this a question: {question}") | model | StrOutputParser()
    context = Shelf(documents=edition()) | join
    answer = {"context": itemgetter("question") | context, "question": itemgetter("question")} | RAG | model
    chain = RunnablePassthrough.assign(grade=grade) | answer | StrOutputParser()
    plans = list[WarmingPlan]()

    rows = [KnownAnswer(asked, answer, tags=("faq",), namespace="acme") for asked, answer in ROWS[:5]]
    done = langchain_ibidem.warm(
        chain, rows, make_input=lambda asked: {"question": asked}, on_plan=lambda plan: not plans.append(plan)
    )
    assert (done.answered, done.problems) == (5, [])
    assert (plans[0].calls, plans[0].tokens, plans[0].learned) == (3, 300, True)
    assert model.calls == 1 + 5
    with ibidem.scope(namespace="acme"):
        assert [chain.invoke({"question": asked}) for asked, _ in ROWS[:5]] == [a for _, a in ROWS[:5]]
    assert model.calls == 1 + 5
    assert cache.stats().pinned == 5
    assert cache.invalidate(tag="faq", namespace="acme").count == 10


def test_who_does_not_agree_asks_no_more(cache: SemanticCache) -> None:
    """Two questions are warm."""
    model = Model()
    done = langchain_ibidem.warm(rag(model, Shelf(documents=edition())), ROWS[:5], on_plan=lambda plan: False)
    assert (done.answered, model.calls, cache.stats().pinned) == (2, 1, 2)


def test_an_agent_gives_known_answers(cache: SemanticCache) -> None:
    """Which call is its last is only seen when it has answered: that one is asked, too."""

    def look_up(words: str) -> str:
        """Look words up."""
        return f"found {words}"

    model = Model()
    agent = create_agent(model, tools=[look_up])
    plans = list[WarmingPlan]()
    done = langchain_ibidem.warm(agent, ROWS[:20], on_plan=lambda plan: not plans.append(plan))

    assert (done.answered, done.problems) == (20, [])
    assert (plans[0].calls, plans[0].learned) == (36, False)
    asked = model.calls
    for words, answer in ROWS[:20]:
        assert agent.invoke({"messages": [("user", words)]})["messages"][-1].content == answer
    assert model.calls == asked == 40


class Told(CustomLLM):
    """A model of LlamaIndex that counts."""

    _calls: Calls = PrivateAttr(default_factory=Calls)

    @property
    def calls(self) -> int:
        return self._calls.count

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="told")

    def complete(self, prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
        return CompletionResponse(text=f"What the model said, for the {self._calls.next()}th time.")

    def stream_complete(self, prompt: str, formatted: bool = False, **options: Any) -> Any:
        yield self.complete(prompt)


class Nodes(Retriever):
    """Always returns these texts."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=TextNode(text=text, id_=str(n)), score=1.0)
            for n, text in enumerate(self.texts)
        ]


@pytest.mark.parametrize("layers", ["model", "both"])
def test_an_engine_answers_many_questions_without_its_model(open_cache, layers: str) -> None:
    """Also one that is cached in two layers."""
    cache, model = open_cache(), Told()
    rows = ROWS if layers == "both" else ROWS[:50]
    Settings.llm = model
    try:
        nodes = Nodes("Goods can be returned within 30 days.")
        if layers == "both":
            llama_index_ibidem.install(cache)
            engine = RetrieverQueryEngine.from_args(nodes)
        else:
            engine = RetrieverQueryEngine.from_args(nodes, llm=llama_index_ibidem.CachedLLM(model, cache))
        done = llama_index_ibidem.warm(engine, rows)
        assert (done.answered, done.calls, done.problems) == (len(rows), 1, [])
        nodes.texts = ("Something else.",)
        assert [engine.query(asked).response for asked, _ in rows] == [answer for _, answer in rows]
        assert model.calls == 1
    finally:
        llama_index_ibidem.uninstall()
        Settings.llm = None


def test_what_is_wrong_with_rows_and_programs_is_said(cache: SemanticCache) -> None:
    """By row, or before anything is asked."""
    model = Model()
    chain = rag(model, Shelf(documents=edition()))
    rows = [
        KnownAnswer("Is it?", "Yes, it is.", line=2),
        KnownAnswer("Is it? ", "Yes,  it is.", line=3),
        KnownAnswer("Is it?", "No.", line=4),
        KnownAnswer(" ", "x", line=5),
        KnownAnswer("Why?", "", line=6),
    ]
    done = langchain_ibidem.warm(chain, rows)
    assert [(one.line, one.reason) for one in done.problems] == [
        (3, "the question stands in line 2, with the same answer"),
        (4, "the question stands in line 2, with another answer"),
        (5, "the question is empty"),
        (6, "the answer is empty"),
    ]
    for wrong in ([("q",)], [{"q": "a"}], [3]):
        with pytest.raises(InvalidInput, match="a pair is"):
            langchain_ibidem.warm(chain, wrong)
    with pytest.raises(InvalidInput, match="documents"):
        langchain_ibidem.warm(chain, ROWS, documents="some")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="cannot ask"):
        langchain_ibidem.warm(3, ROWS)
    assert "reached the cache" in langchain_ibidem.warm(lambda asked: "x", ROWS[:1]).problems[0].reason
    shouting = chain | (lambda text: text.upper())
    assert "no single call" in langchain_ibidem.warm(shouting, [("How?", "So.")]).problems[0].reason


def test_a_program_that_fails_later_fails_for_its_question_only(cache: SemanticCache) -> None:
    """For the first question it is the caller's to see."""
    chain = rag(Model(), Shelf(documents=edition()))

    def ask(asked: str) -> Any:
        if asked == ROWS[2][0]:
            raise ConnectionError("down")
        return chain.invoke(asked)

    done = langchain_ibidem.warm(ask, ROWS[:4])
    assert (done.answered, [one.reason for one in done.problems]) == (
        3,
        ["the program failed: ConnectionError: down"],
    )
    with pytest.raises(ConnectionError):
        langchain_ibidem.warm(ask, ROWS[2:4])


def test_bounds_are_said_by_row(open_cache) -> None:
    """The others are pinned."""
    cache = open_cache(max_entries=3)
    langchain_ibidem.install(cache)
    try:
        done = langchain_ibidem.warm(rag(Model(), Shelf(documents=edition())), ROWS[:5])
    finally:
        langchain_ibidem.uninstall()
    assert done.answered == 3
    assert {one.reason for one in done.problems} == {
        "pinned answers fill max_entries or max_bytes (pins_full)"
    }


PROGRAM = """
import ibidem, langchain_ibidem, sys
from tests.embedders import BagOfWords
from tests.integrations.test_warming import Model, Shelf, edition, rag
cache = ibidem.open(PATH, embedder=BagOfWords(), min_similarity=0.8)
langchain_ibidem.install(cache)
model = Model()
chain = rag(model, Shelf(documents=edition()))
"""


def test_the_command_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill -9 in the middle: what was done is durable, and the next run asks the model nothing for it."""
    file = tmp_path / "faq.csv"
    lines = [f'"{asked}","{answer}"' for asked, answer in ROWS[:120]]
    file.write_text("question,answer\n" + "\n".join(lines) + "\n")
    (tmp_path / "warmed_app.py").write_text(PROGRAM.replace("PATH", repr(str(tmp_path / "cache"))))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from ibidem.cli.commands import app\n"
        f"sys.argv = ['ibidem', 'warm', {str(file)!r}, '--app', 'warmed_app:chain', '--yes']\n"
        "app()\n"
    )

    def pinned() -> int:
        with ibidem.open(tmp_path / "cache", embedder=BagOfWords(), min_similarity=0.8) as cache:
            return cache.stats().pinned

    from ibidem.storage.store import Store
    from tests.embedders import BagOfWords

    with Child(code) as child:
        database = tmp_path / "cache" / "ibidem.sqlite3"

        def begun() -> bool:
            if not database.exists() or child.process.poll() is not None:
                return child.process.poll() is not None
            store = Store(f"sqlite:///{database}")
            try:
                return store.pins.counts().warmed >= 5
            finally:
                store.close()

        assert eventually(begun, 60, 0.01)
        assert child.process.poll() is None, child.said()
        child.process.send_signal(signal.SIGKILL)
        child.process.wait(10)
    done = pinned()
    assert 5 <= done < 120

    monkeypatch.syspath_prepend(tmp_path)
    try:
        result = CliRunner().invoke(commands, ["warm", str(file), "--app", "warmed_app:chain", "--yes"])
        import warmed_app  # type: ignore[import-not-found]

        assert result.exit_code == 0, result.output
        assert "120 of 120 questions" in result.output
        assert "take no call of a model" in result.output
        assert warmed_app.model.calls == 0
        assert [warmed_app.chain.invoke(asked) for asked, _ in ROWS[:120]] == [a for _, a in ROWS[:120]]
        assert warmed_app.model.calls == 0
        warmed_app.cache.close()
    finally:
        langchain_ibidem.uninstall()


def test_the_command_reads_files(
    tmp_path: Path, cache: SemanticCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By line: blank, broken, doubled rows; quoted line ends; tags and namespaces."""
    from ibidem.cli.warm import read_answers

    sheet = tmp_path / "a.csv"
    sheet.write_text('\ufeffquestion,answer,tags\n"Is\nit?",Yes,"a, b"\n\nWhy?,\nHow?,"So,\nso.",\n')
    rows, problems = read_answers(sheet)
    assert [(row.line, row.question, row.tags) for row in rows] == [
        (2, "Is\nit?", ("a", "b")),
        (5, "Why?", ()),
        (6, "How?", ()),
    ]
    assert problems == []
    lines = tmp_path / "a.jsonl"
    rows_of = ['{"question": "Is it?", "answer": "Yes", "tags": ["a"], "namespace": "acme"}', "", "{", "[1]"]
    rows_of += ['{"question": 3, "answer": "x"}', json.dumps({"question": "a\0", "answer": "x"})]
    lines.write_text("\n".join(rows_of))
    rows, problems = read_answers(lines)
    assert rows == [KnownAnswer("Is it?", "Yes", ("a",), "acme", 1)]
    assert [one.line for one in problems] == [3, 4, 5, 6]

    run = CliRunner().invoke
    for file, text, said in (
        ("b.csv", "q,a\n1,2\n", "lacks answer and question"),
        ("c.csv", "question,answer\n,\n", "0 of"),
        ("d.jsonl", "\n", "holds no question"),
    ):
        (tmp_path / file).write_text(text)
        result = run(commands, ["warm", str(tmp_path / file), "--app", "json:dumps"])
        assert result.exit_code != 0
        assert said in result.output, result.output
    for spec, said in (
        ("nothing", "module:name"),
        ("no_such:x", "cannot import"),
        ("json:no", "cannot import"),
    ):
        (tmp_path / "e.csv").write_text("question,answer\nIs it?,Yes\n")
        result = run(commands, ["warm", str(tmp_path / "e.csv"), "--app", spec])
        assert (result.exit_code, said in result.output) == (2, True), result.output
