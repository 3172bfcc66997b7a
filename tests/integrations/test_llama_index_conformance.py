"""Every way of calling a LlamaIndex model: one row each, columns as tests.

Each with a `CachedLLM` in its place, with a callback handler alone, and after `install()`: every row in the
first column, in the others a row in one of these ways, in turn. `make thorough` runs every row in every way.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.query_engine import (
    CitationQueryEngine,
    NLSQLTableQueryEngine,
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import Refine, TreeSummarize
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.utilities.sql_wrapper import SQLDatabase
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from pydantic import BaseModel
from sqlalchemy import StaticPool, create_engine, text

from llama_index_ibidem import CachedLLM, IbidemCallbackHandler, install, uninstall
from tests.conftest import OpenCache
from tests.contracts.llama_index import (
    ASKED,
    ELSEWHERE,
    ENDPOINTS,
    OPPOSITE,
    OTHER,
    REWORDED,
    Backend,
    CountingCompletion,
    CountingEvents,
    CountingFunctionCalling,
    CountingInstrumentation,
    FakeBackend,
    Library,
    OpenAIBackend,
    Say,
    answer_of,
    listening,
    nodes_about,
    settings_restored,
    shelves,
)
from tests.openai_server import OpenAIServer

pytestmark = [  # of workflows, which agents are
    pytest.mark.filterwarnings("ignore:The `json` method is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `__fields(_set)?__` attribute:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_(computed_)?fields':DeprecationWarning"),
]


class Form(BaseModel):
    """What is to be found out."""

    subject: str
    detail: str


def look_up(subject: str) -> str:
    """Look something up."""
    return f"the atlas on {subject}"


TOOLS = [FunctionTool.from_defaults(look_up)]
EXTRACT = PromptTemplate("Fill in the form.\nQuestion: {question}")
EXPLAIN = PromptTemplate("You are a {role}.\nQuestion: {question}\nAnswer:")
HISTORY = [ChatMessage("Tell me about rivers."), ChatMessage("They flow.", role="assistant")]


@dataclass
class Stage:
    """A model and the library from which it is to answer."""

    llm: LLM
    library: Library


# Ways of calling -----------------------------------------------------------------------------------------


def engine(stage: Stage, mode: str = "compact", **options: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(stage.library, llm=stage.llm, response_mode=mode, **options)


def query(stage: Stage, asked: str, mode: str = "compact", **options: Any) -> str:
    return str(engine(stage, mode, **options).query(asked))


async def aquery(stage: Stage, asked: str, mode: str = "compact", **options: Any) -> str:
    return str(await engine(stage, mode, **options).aquery(asked))


def query_streaming(stage: Stage, asked: str, mode: str = "compact") -> str:
    return "".join(engine(stage, mode, streaming=True).query(asked).response_gen)


async def aquery_streaming(stage: Stage, asked: str, mode: str = "compact") -> str:
    response = await engine(stage, mode, streaming=True).aquery(asked)
    return "".join([piece async for piece in response.async_response_gen()])


def query_filtering(stage: Stage, asked: str) -> str:
    """The model says beside each answer whether it is one."""
    refine = Refine(llm=stage.llm, structured_answer_filtering=True)
    return str(RetrieverQueryEngine(stage.library, refine).query(asked))


def query_in_a_tree(stage: Stage, asked: str) -> str:
    """So little room that the nodes are summarised one by one, and then their summaries."""
    narrow = PromptHelper(context_window=4096, chunk_size_limit=24, chunk_overlap_ratio=0.0)
    summarize = TreeSummarize(llm=stage.llm, prompt_helper=narrow)
    return str(RetrieverQueryEngine(stage.library, summarize).query(asked))


def cite(stage: Stage, asked: str) -> str:
    return str(CitationQueryEngine.from_args(None, llm=stage.llm, retriever=stage.library).query(asked))


def transformed(stage: Stage, asked: str) -> str:
    """The model writes the passage to search with."""
    return str(TransformQueryEngine(engine(stage), HyDEQueryTransform(stage.llm)).query(asked))


def routed(stage: Stage, asked: str) -> str:
    """The model chooses who is to answer."""
    tools = [QueryEngineTool.from_defaults(engine(stage), name=name, description=name) for name in "ab"]
    router = RouterQueryEngine(LLMSingleSelector.from_defaults(stage.llm), tools, llm=stage.llm)
    return str(router.query(asked))


def divided(stage: Stage, asked: str) -> str:
    """The model divides the question into two, and makes one answer of the answers."""
    tools = [QueryEngineTool.from_defaults(engine(stage), name="atlas", description="Knows all.")]
    generator = LLMQuestionGenerator.from_defaults(stage.llm)
    made = SubQuestionQueryEngine.from_defaults(
        tools, stage.llm, question_gen=generator, verbose=False, use_async=False
    )
    return str(made.query(asked))


def from_tables(stage: Stage, asked: str) -> str:
    """The model writes SQL and then puts what was found into words."""
    database = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE rivers (name TEXT)"))
    made = NLSQLTableQueryEngine(SQLDatabase(database), tables=["rivers"], llm=stage.llm)
    try:
        return str(made.query(asked))
    finally:
        database.dispose()


def summary_index(stage: Stage, asked: str) -> str:
    index = SummaryIndex(nodes=list(stage.library.shelves["France"]))
    return str(index.as_query_engine(llm=stage.llm).query(asked))


def vector_index(stage: Stage, asked: str) -> str:
    index = VectorStoreIndex(stage.library.shelves["France"], embed_model=MockEmbedding(8))
    return str(index.as_query_engine(llm=stage.llm).query(asked))


def chat_engine(stage: Stage, kind: Any) -> Any:
    memory = ChatMemoryBuffer.from_defaults()  # the default one leaves a database connection open
    if kind in (CondenseQuestionChatEngine, CondensePlusContextChatEngine):
        memory.put_messages(list(HISTORY))
    if kind is CondenseQuestionChatEngine:
        return kind.from_defaults(engine(stage), llm=stage.llm, memory=memory)
    given = {} if kind is SimpleChatEngine else {"retriever": stage.library}
    return kind.from_defaults(**given, llm=stage.llm, memory=memory, system_prompt="Be brief.")


def chat(stage: Stage, asked: str, kind: Any) -> str:
    return str(chat_engine(stage, kind).chat(asked))


async def achat(stage: Stage, asked: str, kind: Any) -> str:
    return str(await chat_engine(stage, kind).achat(asked))


def stream_chat(stage: Stage, asked: str, kind: Any) -> str:
    return "".join(chat_engine(stage, kind).stream_chat(asked).response_gen)


async def astream_chat(stage: Stage, asked: str, kind: Any) -> str:
    response = await chat_engine(stage, kind).astream_chat(asked)
    return "".join([piece async for piece in response.async_response_gen()])


def structured_predict(stage: Stage, asked: str) -> str:
    return stage.llm.structured_predict(Form, EXTRACT, question=asked).model_dump_json()


async def astructured_predict(stage: Stage, asked: str) -> str:
    return (await stage.llm.astructured_predict(Form, EXTRACT, question=asked)).model_dump_json()


def stream_structured_predict(stage: Stage, asked: str) -> str:
    *_, last = stage.llm.stream_structured_predict(Form, EXTRACT, question=asked)
    return last.model_dump_json()


async def astream_structured_predict(stage: Stage, asked: str) -> str:
    stream = await stage.llm.astream_structured_predict(Form, EXTRACT, question=asked)
    return [form async for form in stream][-1].model_dump_json()


def structured_chat(stage: Stage, asked: str) -> str:
    return str(stage.llm.as_structured_llm(Form).chat([ChatMessage(asked)]).message.content)


async def structured_achat(stage: Stage, asked: str) -> str:
    return str((await stage.llm.as_structured_llm(Form).achat([ChatMessage(asked)])).message.content)


def structured_stream_chat(stage: Stage, asked: str) -> str:
    *_, last = stage.llm.as_structured_llm(Form).stream_chat([ChatMessage(asked)])
    return str(last.message.content)


def structured_complete(stage: Stage, asked: str) -> str:
    return stage.llm.as_structured_llm(Form).complete(asked).text


def structured_query(stage: Stage, asked: str) -> str:
    return query(Stage(stage.llm.as_structured_llm(Form), stage.library), asked)


def call_tool(stage: Stage, asked: str) -> str:
    return str(stage.llm.predict_and_call(TOOLS, user_msg=asked))


async def acall_tool(stage: Stage, asked: str) -> str:
    return str(await stage.llm.apredict_and_call(TOOLS, user_msg=asked))


async def agent(stage: Stage, asked: str, kind: Any, *, streaming: bool = True) -> str:
    return str(await kind(tools=TOOLS, llm=stage.llm, streaming=streaming).run(asked))


async def agents(stage: Stage, asked: str) -> str:
    return str(await AgentWorkflow.from_tools_or_functions([look_up], llm=stage.llm).run(asked))


async def agent_without_tools(stage: Stage, asked: str) -> str:
    return str(await FunctionAgent(llm=stage.llm, system_prompt="Be brief.").run(asked))


def predict(stage: Stage, asked: str) -> str:
    return stage.llm.predict(EXPLAIN, role="guide", question=asked)


def predict_rich(stage: Stage, asked: str) -> str:
    return stage.llm.predict(RichPromptTemplate("Question: {{ question }}\nAnswer:"), question=asked)


async def apredict(stage: Stage, asked: str) -> str:
    return await stage.llm.apredict(EXPLAIN, role="guide", question=asked)


def stream(stage: Stage, asked: str) -> str:
    return "".join(stage.llm.stream(EXPLAIN, role="guide", question=asked))


async def astream(stage: Stage, asked: str) -> str:
    return "".join([piece async for piece in await stage.llm.astream(EXPLAIN, role="guide", question=asked)])


async def bare(stage: Stage, asked: str, endpoint: str) -> str:
    return await answer_of(stage.llm, endpoint, asked)


def by_hand(found: list[Any], asked: str) -> str:
    texts = "\n\n".join(node.get_content() for node in found)
    return f"Answer from these texts only.\n\n{texts}\n\nNow answer: {asked}"


def hand_built(stage: Stage, asked: str) -> str:
    return stage.llm.complete(by_hand(stage.library.retrieve(asked), asked)).text


class Found(Event):
    """What was retrieved."""

    asked: str
    nodes: list[Any]


class ByHand(Workflow):
    """Retrieves in one step and asks the model in the next."""

    stage: Stage

    @step
    async def look_up(self, ctx: Context, event: StartEvent) -> Found:
        return Found(asked=event.asked, nodes=await self.stage.library.aretrieve(event.asked))

    @step
    async def answer(self, ctx: Context, event: Found) -> StopEvent:
        response = await self.stage.llm.acomplete(by_hand(event.nodes, event.asked))
        return StopEvent(result=response.text)


async def workflow(stage: Stage, asked: str) -> str:
    made = ByHand()
    made.stage = stage
    return str(await made.run(asked=asked))


# What the models say where "answer 1" would not do --------------------------------------------------------


def condensing(last: str, number: int) -> str:
    """Condenses a follow-up question to itself."""
    found = re.search(r"(?:<Follow Up Message>\n|Follow Up Input: )(.*)", last)
    return found[1] if found else f"answer {number}"


def spelling(last: str, number: int) -> str:
    """Answers with a number that is not that of a source."""
    return f"answer {number:03}"


def choosing(last: str, number: int) -> str:
    """Chooses the first."""
    return '[{"choice": 1, "reason": "why not"}]' if "choice" in last else f"answer {number}"


def dividing(last: str, number: int) -> str:
    """Divides a question into itself and another."""
    if "<Output>" not in last:
        return f"answer {number}"
    asked = re.findall(r"<User Question>\n(.*)", last)[-1]
    parts = [{"sub_question": part, "tool_name": "atlas"} for part in (asked, "Name mountains.")]
    return json.dumps({"items": parts})


def selecting(last: str, number: int) -> str:
    """Writes SQL if it is asked for."""
    return "SELECT name FROM rivers" if last.rstrip().endswith("SQLQuery:") else f"answer {number}"


def reasoning(last: str, number: int) -> str:
    """Uses a tool once, in ReAct's form."""
    if "Observation: the atlas on" in last:
        return f"Thought: I can answer without using any more tools.\nAnswer: answer {number}"
    return f'Thought: I need a tool.\nAction: look_up\nAction Input: {{"subject": "answer {number}"}}'


def echoing(last: str, number: int) -> str:
    """Repeats a question for which it is to write a passage."""
    found = re.search(r"Try to include as many key details as possible\.\n+(.*)", last)
    return found[1] if found else f"answer {number}"


def knowing(last: str, number: int) -> str:
    """Answers at once, in ReAct's form."""
    return f"Thought: I can answer without using any more tools.\nAnswer: answer {number}"


# The table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One way of calling.

    `calls` are the model calls of one answer. `nested` if the model tells of each call twice: LlamaIndex's
    `CustomLLM` makes one endpoint of another, each with events of its own. `reads` if the answer rests on the
    library; `exact` if a program acts upon it, so that it fits the very same question only.
    """

    name: str
    ask: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    calls: int = 1
    model: str = "chat"
    say: Say | None = None
    nested: bool = False
    reads: bool = False
    exact: bool = False

    @property
    def rewrites(self) -> bool:
        """Whether a model rewrites the question before anything is retrieved, with nothing to check it by."""
        return self.say is condensing


def row(name: str, ask: Callable[..., Any], *, calls: int = 1, **given: Any) -> Row:
    about = {key: given.pop(key) for key in ("model", "say", "nested") if key in given}
    return Row(name, ask, given, calls, **about)


COMPLETION: dict[str, Any] = {"model": "completion"}
NESTED = {**COMPLETION, "nested": True}
SIMPLE, CONTEXT = SimpleChatEngine, ContextChatEngine
CONDENSE, CONDENSE_PLUS = CondenseQuestionChatEngine, CondensePlusContextChatEngine

BY_HANDLER = " by handler"

#: Answers that people read, from documents.
READING = [
    row("query compact", query),
    row("query refine", query, mode="refine", calls=2),
    row("query tree_summarize", query, mode="tree_summarize"),
    row("query tree_summarize in levels", query_in_a_tree, calls=3),
    row("query simple_summarize", query, mode="simple_summarize"),
    row("query accumulate", query, mode="accumulate", calls=2),
    row("query accumulate use_async", query, mode="accumulate", use_async=True, calls=2),
    row("query compact_accumulate", query, mode="compact_accumulate"),
    row("query streaming compact", query_streaming),
    row("query streaming refine", query_streaming, mode="refine", calls=2),
    row("aquery compact", aquery),
    row("aquery refine", aquery, mode="refine", calls=2),
    row("aquery tree_summarize use_async", aquery, mode="tree_summarize", use_async=True),
    row("aquery accumulate", aquery, mode="accumulate", calls=2),
    row("aquery streaming compact", aquery_streaming),
    row("summary index", summary_index),
    row("vector index", vector_index),
    row("completion model query", query, **COMPLETION),
    row("completion model query refine", query, mode="refine", **COMPLETION, calls=2),
    row("completion model query streaming", query_streaming, **COMPLETION),
    row("completion model aquery", aquery, **NESTED),
    row("chat engine context", chat, kind=CONTEXT),
    row("chat engine context achat", achat, kind=CONTEXT),
    row("chat engine context stream_chat", stream_chat, kind=CONTEXT),
    row("chat engine context astream_chat", astream_chat, kind=CONTEXT),
    row("chat engine condense_question", chat, kind=CONDENSE, say=condensing, calls=2),
    row("chat engine condense_question achat", achat, kind=CONDENSE, say=condensing, calls=2),
    row("chat engine condense_plus", chat, kind=CONDENSE_PLUS, say=condensing, calls=2),
    row("chat engine condense_plus astream_chat", astream_chat, kind=CONDENSE_PLUS, say=condensing, calls=2),
    row("query citing", cite, say=spelling),
    row("query with hyde", transformed, calls=2, say=echoing),
    row("prompt built by hand", hand_built),
    row("workflow built by hand", workflow),
]
#: Answers that people read, from the model alone.
TALKING = [
    row("query generation", query, mode="generation"),
    row("chat engine simple", chat, kind=SIMPLE),
    row("chat engine simple achat", achat, kind=SIMPLE),
    row("chat engine simple stream_chat", stream_chat, kind=SIMPLE),
    row("chat engine simple astream_chat", astream_chat, kind=SIMPLE),
    row("completion model chat engine", chat, kind=SIMPLE, **NESTED),
    row("agent function without tools", agent_without_tools),
    row("agent react that knows", agent, kind=ReActAgent, say=knowing),
    row("predict", predict),
    row("predict rich template", predict_rich),
    row("apredict", apredict),
    row("stream", stream),
    row("astream", astream),
    *(row(f"llm.{name}", bare, endpoint=name) for name in ENDPOINTS),
    row("completion model complete", bare, endpoint="complete", **COMPLETION),
    row("completion model acomplete", bare, endpoint="acomplete", **NESTED),
    row("completion model astream_complete", bare, endpoint="astream_complete", **NESTED),
    row("completion model chat", bare, endpoint="chat", **NESTED),
]
#: Answers that a program acts upon, or answers after such, from documents.
FILING = [
    row("output_cls query", query, output_cls=Form),
    row("output_cls aquery", aquery, output_cls=Form),
    row("structured llm query", structured_query),
    row("query filtering", query_filtering, calls=2),
    row("query routed", routed, say=choosing, calls=2),
    row("query divided", divided, say=dividing, calls=3),
]
#: The same from the model alone.
ACTING = [
    row("structured llm chat", structured_chat),
    row("structured llm achat", structured_achat),
    row("structured llm stream_chat", structured_stream_chat),
    row("structured llm complete", structured_complete),
    row("query of tables", from_tables, say=selecting, calls=2),
    row("structured_predict", structured_predict),
    row("astructured_predict", astructured_predict),
    row("stream_structured_predict", stream_structured_predict),
    row("astream_structured_predict", astream_structured_predict),
    row("predict_and_call", call_tool),
    row("apredict_and_call", acall_tool),
    row("agent function", agent, kind=FunctionAgent, streaming=False, calls=2),
    row("agent function streaming", agent, kind=FunctionAgent, calls=2),
    row("agent workflow", agents, calls=2),
    row("agent react", agent, kind=ReActAgent, streaming=False, say=reasoning, calls=2),
    row("agent react streaming", agent, kind=ReActAgent, say=reasoning, calls=2),
    row("agent react completion model", agent, kind=ReActAgent, say=reasoning, calls=2, **NESTED),
]
ROWS = [
    *(replace(one, reads=True) for one in READING),
    *TALKING,
    *(replace(one, reads=True, exact=True) for one in FILING),
    *(replace(one, exact=True) for one in ACTING),
]


def on(rows: Iterable[Row], *kinds: str, in_turn: bool = False) -> Any:
    """Each row on the fakes and on OpenAI's client, which is for chat models; `CachedLLM` or a handler.

    In turn: on one of them, the next row on the next; only `make thorough` runs the others.
    """
    cases = []
    for number, one in enumerate(rows):
        possible = [kind for kind in kinds if one.model == "chat" or kind != "openai"]
        for kind in possible:
            client = "fake" if one.model != "chat" else kind.removesuffix(BY_HANDLER)
            handler = kind.endswith(BY_HANDLER)
            left_out = in_turn and kind != possible[number % len(possible)]
            cases.append(
                pytest.param(
                    *(one, client, handler),
                    id=f"{one.name}-{client}{BY_HANDLER * handler}",
                    marks=[pytest.mark.thorough] * left_out,
                )
            )
    return pytest.mark.parametrize(("case", "kind", "by_handler"), cases)


def on_all(rows: Iterable[Row], *, in_turn: bool = False) -> Any:
    """The rows on both, and on OpenAI's client by a handler."""
    return on(rows, "fake", "openai", f"openai{BY_HANDLER}", in_turn=in_turn)


# Asking ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of one question: what the user sees, the model calls, the events."""

    answer: str
    calls: int
    events: Counter[str]


def shape(answer: str) -> tuple[str, list[str]]:
    """An answer without the order of its parts, which is left to chance where calls are concurrent."""
    return re.sub(r"\d+", "N", answer), sorted(re.findall(r"\d+", answer))


def told_once(events: Counter[str], calls: int) -> Counter[str]:
    """The events of a model that tells of each call twice, without the inner ones."""
    outer = "Chat" if events["LLMChatStartEvent"] else "Completion"
    pairs = ("start llm", "end llm", f"LLM{outer}StartEvent", f"LLM{outer}EndEvent")
    others = {name: n for name, n in events.items() if name not in pairs and "LLMCompletion" not in name}
    return Counter(others | dict.fromkeys(pairs, calls))


class Show:
    """A row on stage: questions are asked and counted."""

    def __init__(
        self,
        case: Row,
        backend: Backend,
        llm: LLM,
        heard: CountingInstrumentation,
        handler: IbidemCallbackHandler | None = None,
    ) -> None:
        self._case, self._backend, self._heard, self._legacy = case, backend, heard, CountingEvents()
        self._manager = CallbackManager([self._legacy, *([handler] if handler else [])])
        self.stage = Stage(llm, Library(shelves()))
        self.faults = handler.faults if handler else getattr(llm, "faults", dict)
        self._enter()

    async def ask(self, question: str) -> Outcome:
        """Ask it, and see to it that the answer is one to this question."""
        self._enter()
        calls, events = self._backend.calls, self._events()
        ask = partial(self._case.ask, self.stage, question, **self._case.options)
        answer = await (ask() if inspect.iscoroutinefunction(self._case.ask) else asyncio.to_thread(ask))
        for number in map(int, re.findall(r"answer (\d+)", answer)):
            prompt = self._backend.asked[number - 1]
            assert question in prompt or (question == REWORDED and ASKED in prompt)
        return Outcome(answer, self._backend.calls - calls, self._events() - events)

    def _enter(self) -> None:
        """What a program sets."""
        Settings.llm, Settings.callback_manager = self.stage.llm, self._manager
        self.stage.llm.callback_manager = self._manager

    def _events(self) -> Counter[str]:
        return self._legacy.counts + self._heard.counts


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """LlamaIndex's global settings are as before after each test."""
    with settings_restored():
        Settings.embed_model = MockEmbedding(8)
        yield


@pytest.fixture
def backend(case: Row, kind: str, server: OpenAIServer) -> Backend:
    """The model of the row."""
    fakes = {"chat": CountingFunctionCalling, "completion": CountingCompletion}
    made = FakeBackend(fakes[case.model]()) if kind == "fake" else OpenAIBackend(server)
    made.reset()
    made.obey(case.say)
    return made


@pytest.fixture
def heard() -> Iterator[CountingInstrumentation]:
    """Counts instrumentation events during the test."""
    with listening() as handler:
        yield handler


@pytest.fixture
def cached(
    case: Row, backend: Backend, by_handler: bool, heard: CountingInstrumentation, open_cache: OpenCache
) -> Show:
    """The row with a cache."""
    if by_handler:
        return Show(case, backend, backend.model, heard, IbidemCallbackHandler(open_cache()))
    return Show(case, backend, CachedLLM(backend.model, open_cache()), heard)


# The columns ----------------------------------------------------------------------------------------------


@on_all(ROWS)
async def test_an_identical_question_costs_no_call(
    case: Row, backend: Backend, heard: CountingInstrumentation, cached: Show
) -> None:
    """Cold, all is as without a cache; again, answer and events are the same, and the model is not asked."""
    plain = await Show(case, backend, backend.model, heard).ask(ASKED)
    backend.reset()
    backend.obey(case.say)
    cold = await cached.ask(ASKED)
    assert (shape(cold.answer), cold.calls, cold.events) == (shape(plain.answer), case.calls, plain.events)
    again = await cached.ask(ASKED)
    assert (again.answer, again.calls) == (cold.answer, 0)
    assert again.events == (told_once(plain.events, case.calls) if case.nested else plain.events)
    assert cached.faults() == {}


@pytest.mark.parametrize(("case", "kind"), [pytest.param(one, "fake", id=one.name) for one in ROWS])
async def test_after_install(
    case: Row, backend: Backend, heard: CountingInstrumentation, open_cache: OpenCache
) -> None:
    """The same for a program that has called `install()`."""
    Settings.llm = backend.model
    handler = install(open_cache())
    try:
        show = Show(case, backend, Settings.llm, heard, handler)
        cold, again = await show.ask(ASKED), await show.ask(ASKED)
        faults = Settings.llm.faults()
    finally:
        uninstall()
    assert (cold.calls, again.calls, again.answer) == (case.calls, 0, cold.answer)
    assert faults == show.faults() == {}


_SOME = [
    one for one in READING if one.name in ("query compact", "chat engine context", "prompt built by hand")
]


@pytest.fixture
def supporting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches are opened with this policy."""
    monkeypatch.setenv("IBIDEM_DOCUMENT_POLICY", "supporting")


@on_all(_SOME)
async def test_a_document_that_the_answer_was_made_with_must_not_change(
    case: Row, backend: Backend, cached: Show
) -> None:
    """Though it does not support it."""
    backend.obey(lambda last, number: "At a broad one.")
    await cached.ask(ASKED)
    cached.stage.library = Library({"France": nodes_about("France", later=" new")})
    assert (await cached.ask(REWORDED)).calls == 1
    assert (await cached.ask(ASKED)).calls == 0


@pytest.mark.usefixtures("supporting")
@on_all(_SOME)
async def test_only_the_supporting_document_counts(case: Row, backend: Backend, cached: Show) -> None:
    """If the answer tells what it rests on, the other documents may change."""
    backend.obey(lambda last, number: "At a broad one.")
    await cached.ask(ASKED)
    cached.stage.library = Library({"France": nodes_about("France", later=" new")})
    assert (await cached.ask(REWORDED)).calls == 0
    cached.stage.library = Library({"France": nodes_about("France", edition=" new")})
    assert (await cached.ask(REWORDED)).calls == 1


@on_all(ROWS, in_turn=True)
async def test_another_question(case: Row, cached: Show) -> None:
    """Reworded, answers for people are repeated; otherwise the model is asked, however near it is."""
    cold = await cached.ask(ASKED)
    for question in (OTHER, OPPOSITE):
        assert (await cached.ask(question)).calls == case.calls
    reworded = await cached.ask(REWORDED)
    if case.exact:
        assert reworded.calls > 0
    else:
        assert (reworded.answer, reworded.calls) == (cold.answer, 0)
    again = await cached.ask(ASKED)
    assert (again.answer, again.calls) == (cold.answer, 0)


@on((one for one in ROWS if one.reads), "fake", f"fake{BY_HANDLER}", in_turn=True)
async def test_other_documents(case: Row, cached: Show) -> None:
    """The model is asked if a document has changed, or others are found; with the former ones it is not."""
    cold = await cached.ask(ASKED)
    for changed in (nodes_about("France", edition=" new"), nodes_about("France", later=" new")):
        cached.stage.library = Library({"France": changed})
        other = await cached.ask(ASKED)
        assert other.calls > 0
        assert other.answer != cold.answer
    cached.stage.library = Library(shelves())
    again = await cached.ask(ASKED)
    assert (again.answer, again.calls) == (cold.answer, 0)
    if not case.rewrites and case.ask not in (summary_index, vector_index):
        assert (await cached.ask(ELSEWHERE)).calls > 0


async def converse(stage: Stage, kind: Any, turns: Sequence[str]) -> list[str]:
    """What an engine or an agent answers, turn by turn."""
    if kind is FunctionAgent:
        made, memory = FunctionAgent(tools=TOOLS, llm=stage.llm), ChatMemoryBuffer.from_defaults()
        return [str(await made.run(turn, memory=memory)) for turn in turns]
    made = chat_engine(stage, kind)
    return [str(await made.achat(turn)) for turn in turns]


@pytest.mark.parametrize("kind_of_engine", [SIMPLE, CONTEXT, CONDENSE, CONDENSE_PLUS, FunctionAgent])
@on_all([row("conversation", converse, say=condensing)])
async def test_a_conversation_is_replayed(cached: Show, backend: Backend, kind_of_engine: Any) -> None:
    """Who says the same gets the same, in a new session too; after other words the model is asked."""
    turns = [ASKED, OTHER, "And how long has it been so in France?"]
    first = await converse(cached.stage, kind_of_engine, turns)
    calls = backend.calls
    assert await converse(cached.stage, kind_of_engine, turns) == first
    assert backend.calls == calls
    await converse(cached.stage, kind_of_engine, [OPPOSITE, *turns[1:]])
    assert backend.calls >= calls + len(turns)
