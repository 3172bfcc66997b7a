"""The logging handler: every answered question once, nothing else, and never in the user's way."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.postprocessor.rankGPT_rerank import RankGPTRerank
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, TransformQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.selectors import LLMSingleSelector, PydanticSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index_instrumentation.span import active_span_id
from pydantic import BaseModel

import ibidem
from ibidem.cache import SemanticCache
from ibidem.example import Example
from llama_index_ibidem import CachedLLM, CachedSynthesizer, IbidemCallbackHandler
from tests.conftest import OpenCache
from tests.contracts.llama_index import (
    ASKED,
    COUNTRIES,
    OTHER,
    REWORDED,
    Backend,
    Broke,
    CountingCompletion,
    CountingFunctionCalling,
    FakeBackend,
    Library,
    OpenAIBackend,
    Say,
    nodes_about,
    shelves,
)
from tests.embedders import BagOfWords
from tests.openai_server import OpenAIServer

pytestmark = [  # of workflows, which agents are
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `__fields(_set)?__` attribute:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_(computed_)?fields':DeprecationWarning"),
]

FRANCE = ("France-1", "France-2")
HISTORY = (ChatMessage("Tell me about rivers."), ChatMessage("They flow.", role="assistant"))


class Form(BaseModel):
    """What is to be found out."""

    subject: str
    detail: str


class Overriding(CountingFunctionCalling):
    """A user's subclass that does something before it asks."""

    def chat(self, messages: Any, **given: Any) -> Any:
        return super().chat(messages, **given)


class Spending(CustomLLM):
    """A completion model that tells what it costs."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="spending", context_window=32_000)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        return CompletionResponse(text="an answer", raw={"usage": usage, "finish_reason": "stop"})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        whole = self.complete(prompt, formatted=formatted)

        def stream() -> Iterator[CompletionResponse]:
            yield CompletionResponse(text="an", delta="an", raw={"finish_reason": None})
            yield CompletionResponse(text="an answer", delta=" answer", raw=whole.raw)

        return stream()


# The log -------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """What the handlers of one test write, in `logged`: not where its cached models store their answers."""

    cache: SemanticCache
    namespace: str
    handlers: list[IbidemCallbackHandler] = field(default_factory=list)

    def attach(self, **options: Any) -> IbidemCallbackHandler:
        """A handler that hears LlamaIndex from now on."""
        handler = IbidemCallbackHandler(self.cache, namespace=self.logged, serve=False, **options)
        Settings.callback_manager = CallbackManager([handler])
        self.handlers.append(handler)
        return handler

    def examples(self) -> list[Example]:
        """What was written; the oldest first."""
        return self.cache.examples.recent(1000, self.logged)[::-1]

    @property
    def logged(self) -> str:
        """The namespace of the handlers."""
        return f"{self.namespace} logged"

    @property
    def faults(self) -> dict[str, int]:
        """What the handlers in use have swallowed."""
        found = [
            each for each in Settings.callback_manager.handlers if isinstance(each, IbidemCallbackHandler)
        ]
        return {cause: n for handler in found for cause, n in handler.faults().items()}


Row = tuple[str, str, tuple[str, ...], bool]


def rows(examples: Sequence[Example]) -> list[Row]:
    """Question, answer, ids of the documents in the order of ids, and whether it was streamed."""
    return [
        (each.question, each.answer, tuple(sorted(doc.id for doc in each.documents)), each.streamed)
        for each in examples
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], SemanticCache]]:
    """Opens the cache of all tests here when the first one asks for it, in the environment of tests."""
    opened: list[SemanticCache] = []

    def get() -> SemanticCache:
        if not opened:
            path = tmp_path_factory.mktemp("shared")
            opened.append(ibidem.open(path, embedder=BagOfWords(), min_similarity=0.8))
        return opened[0]

    yield get
    for cache in opened:
        cache.close()


@pytest.fixture
def openai(server: OpenAIServer) -> OpenAIBackend:
    """LlamaIndex's own client of that server."""
    return OpenAIBackend(server)


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex's global settings are as before after each test."""
    for name in ("_llm", "_embed_model", "_callback_manager"):
        monkeypatch.setattr(Settings, name, getattr(Settings, name))
    Settings.embed_model = MockEmbedding(8)
    Settings.callback_manager = CallbackManager()


@pytest.fixture
def empty(shared: Callable[[], SemanticCache], request: pytest.FixtureRequest) -> Log:
    """A log with no handler yet."""
    return Log(shared(), request.node.nodeid)


@pytest.fixture
def log(empty: Log) -> Log:
    """A log with a handler."""
    empty.attach()
    return empty


# Programs ------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """What a program has: a model that can be told what to do, that model or one around it, a library."""

    backend: Backend
    llm: LLM
    library: Library
    heard: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, backend: Backend, llm: LLM | None = None) -> Stage:
        Settings.llm = llm or backend.model
        library = Library(shelves())
        library.callback_manager = Settings.callback_manager
        return cls(backend, Settings.llm, library)

    async def run(self, program: Callable[..., Any], *given: Any) -> Any:
        """Run a program: in this loop if it is async, else in a thread where there is none."""
        if inspect.iscoroutinefunction(getattr(program, "func", program)):
            return await program(self, *given)
        return await asyncio.to_thread(program, self, *given)


def fake(model: type[Any] = CountingFunctionCalling, say: Say | None = None) -> FakeBackend:
    backend = FakeBackend(model())
    backend.obey(say)
    return backend


def engine(stage: Stage, mode: str = "compact", **options: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(stage.library, llm=stage.llm, response_mode=mode, **options)


def query(stage: Stage, mode: str = "compact", question: str = ASKED, **options: Any) -> str:
    return str(engine(stage, mode, **options).query(question))


async def aquery(stage: Stage, mode: str = "compact", question: str = ASKED) -> str:
    return str(await engine(stage, mode).aquery(question))


def query_stream(stage: Stage, mode: str = "compact", question: str = ASKED) -> str:
    return "".join(engine(stage, mode, streaming=True).query(question).response_gen)


async def aquery_stream(stage: Stage, mode: str = "compact", question: str = ASKED) -> str:
    response = await engine(stage, mode, streaming=True).aquery(question)
    return "".join([piece async for piece in response.async_response_gen()])


def chat_engine(stage: Stage, kind: Any) -> Any:
    memory = ChatMemoryBuffer.from_defaults()  # the default one leaves a database connection open
    if kind in (CondensePlusContextChatEngine, CondenseQuestionChatEngine):
        memory.put_messages(list(HISTORY))
    if kind is CondenseQuestionChatEngine:
        return kind.from_defaults(engine(stage), llm=stage.llm, memory=memory)
    given = {} if kind is SimpleChatEngine else {"retriever": stage.library}
    return kind.from_defaults(**given, llm=stage.llm, memory=memory, system_prompt="Be brief.")


def chat(stage: Stage, kind: Any) -> str:
    return str(chat_engine(stage, kind).chat(ASKED))


async def achat(stage: Stage, kind: Any) -> str:
    return str(await chat_engine(stage, kind).achat(ASKED))


def stream_chat(stage: Stage, kind: Any) -> str:
    return "".join(chat_engine(stage, kind).stream_chat(ASKED).response_gen)


async def astream_chat(stage: Stage, kind: Any) -> str:
    response = await chat_engine(stage, kind).astream_chat(ASKED)
    pieces = "".join([piece async for piece in response.async_response_gen()])
    if (writing := response.awrite_response_to_history_task) is not None:
        await writing
    return pieces


def messages(asked: str = ASKED) -> list[ChatMessage]:
    return [ChatMessage("Be brief.", role="system"), ChatMessage(asked)]


def llm_chat(stage: Stage) -> str:
    return str(stage.llm.chat(messages()).message.content)


async def llm_achat(stage: Stage) -> str:
    return str((await stage.llm.achat(messages())).message.content)


def llm_stream_chat(stage: Stage) -> str:
    return "".join(chunk.delta or "" for chunk in stage.llm.stream_chat(messages()))


async def llm_astream_chat(stage: Stage) -> str:
    return "".join([chunk.delta or "" async for chunk in await stage.llm.astream_chat(messages())])


def llm_complete(stage: Stage) -> str:
    return stage.llm.complete(ASKED).text


async def llm_acomplete(stage: Stage) -> str:
    return (await stage.llm.acomplete(ASKED)).text


def llm_stream_complete(stage: Stage) -> str:
    return "".join(chunk.delta or "" for chunk in stage.llm.stream_complete(ASKED))


async def llm_astream_complete(stage: Stage) -> str:
    return "".join([chunk.delta or "" async for chunk in await stage.llm.astream_complete(ASKED)])


def look_up(subject: str) -> str:
    """Look something up."""
    return f"the atlas on {subject}"


TOOLS = [FunctionTool.from_defaults(look_up)]


async def agent(stage: Stage, *, streaming: bool = True) -> str:
    return str(await FunctionAgent(tools=TOOLS, llm=stage.llm, streaming=streaming).run(ASKED))


def condensing(last: str, number: int) -> str:
    """Condenses a follow-up question to itself."""
    found = re.search(r"(?:<Follow Up Message>\n|Follow Up Input: )(.*)", last)
    return found[1] if found else f"answer {number}"


@dataclass(frozen=True)
class Case:
    """A program that answers one question."""

    name: str
    program: Callable[..., Any]
    documents: tuple[str, ...] = FRANCE
    streamed: bool = False


ENGINES = [
    Case(f"{way.__name__} {mode}", partial(way, mode=mode), streamed=streamed)
    for mode in "compact refine tree_summarize simple_summarize generation accumulate".split()
    for way in (query, aquery, query_stream, aquery_stream)
    if not ((streamed := "stream" in way.__name__) and mode == "accumulate")
]
CHATS = [
    Case(
        f"{way.__name__} {kind.__name__}",
        partial(way, kind=kind),
        documents=() if kind is SimpleChatEngine else FRANCE,
        streamed="stream" in way.__name__,
    )
    for kind in (
        ContextChatEngine,
        SimpleChatEngine,
        CondensePlusContextChatEngine,
        CondenseQuestionChatEngine,
    )
    for way in (chat, achat, stream_chat, astream_chat)
]
BARE = [
    Case(way.__name__, way, documents=(), streamed="stream" in way.__name__)
    for way in (
        llm_chat,
        llm_achat,
        llm_stream_chat,
        llm_astream_chat,
        llm_complete,
        llm_acomplete,
        llm_stream_complete,
        llm_astream_complete,
    )
]
AGENTS = [
    Case("agent", partial(agent, streaming=False), documents=()),
    Case("agent streaming", agent, documents=(), streamed=True),
]
CASES = [*ENGINES, *CHATS, *BARE, *AGENTS]


def cases(given: Sequence[Case]) -> Any:
    """The cases as parameters."""
    return pytest.mark.parametrize("case", given, ids=lambda case: case.name)


# What is logged ------------------------------------------------------------------------------------------


@cases(CASES)
async def test_an_answered_question_is_logged_once(case: Case, log: Log) -> None:
    """Question, the answer that the user saw, documents and model: once, whatever steps there were."""
    stage = Stage.of(fake(say=condensing))
    seen = await stage.run(case.program)
    (example,) = log.examples()
    assert rows([example]) == [(ASKED, seen, case.documents, case.streamed)]
    assert re.search(r"answer \d+", seen)
    assert example.model == "counting-chat"
    assert example.entry_id is None
    assert (example.input_tokens, example.output_tokens) == (None, None)
    assert example.seconds is not None
    assert 0 < example.seconds < 60
    assert log.faults == {}


@cases([case for case in CASES if case.documents])
async def test_documents_are_in_the_order_that_the_model_saw(case: Case, log: Log) -> None:
    """The ids come in the order of the source nodes."""
    await Stage.of(fake(say=condensing)).run(case.program)
    (example,) = log.examples()
    assert tuple(document.id for document in example.documents) == FRANCE


@pytest.mark.parametrize(
    ("mode", "streaming"), [("compact", False), ("tree_summarize", True), ("compact", True)]
)
async def test_nodes_that_no_retriever_found_are_logged(mode: str, streaming: bool, log: Log) -> None:
    """A program may hand its nodes to the synthesizer itself."""
    stage = Stage.of(fake())
    own = get_response_synthesizer(llm=stage.llm, response_mode=mode, streaming=streaming)
    text = f"The Loire is in no library of ours ({mode}, {streaming})."
    nodes = [NodeWithScore(node=TextNode(text=text, id_="mine"))]
    response = await asyncio.to_thread(own.synthesize, ASKED, nodes)
    seen = "".join(response.response_gen) if streaming else str(response)
    assert rows(log.examples()) == [(ASKED, seen, ("mine",), streaming)]


async def test_a_document_is_logged_with_the_digest_of_what_the_model_saw(log: Log) -> None:
    """One reference for each node, of its text with metadata."""
    stage = Stage.of(fake())
    query(stage)
    (example,) = log.examples()
    texts = [node.get_content("llm") for node in nodes_about("France")]
    expected = [ibidem.Document(id_, text).digest for id_, text in zip(FRANCE, texts, strict=True)]
    assert [document.digest for document in example.documents] == expected


@cases([*ENGINES, *CHATS, *BARE])
async def test_a_completion_model_is_logged_once(case: Case, log: Log) -> None:
    """A `CustomLLM` calls itself in async code and in chats; that is one answer."""
    seen = await Stage.of(fake(CountingCompletion, condensing)).run(case.program)
    assert rows(log.examples()) == [(ASKED, seen, case.documents, case.streamed)]
    assert log.examples()[0].model == "counting-completion"


@cases(BARE)
async def test_tokens_of_nested_calls_are_counted_once(case: Case, log: Log) -> None:
    """What the innermost call of a `CustomLLM` tells is what the answer cost."""
    Settings.llm = model = Spending()
    stage = Stage(fake(), model, Library({}))
    model.callback_manager = Settings.callback_manager
    assert await stage.run(case.program) == "an answer"
    told = [(each.answer, each.input_tokens, each.output_tokens) for each in log.examples()]
    assert told == [("an answer", 11, 7)]


async def test_an_agent_that_reasons_is_logged_with_its_answer(log: Log) -> None:
    """The answer is what the user sees, not what ReAct says to itself."""
    said = "Thought: I can answer without using any more tools.\nAnswer: answer {}"
    stage = Stage.of(fake(say=lambda last, number: said.format(number)))
    seen = str(await ReActAgent(tools=TOOLS, llm=stage.llm).run(ASKED))
    assert seen == "answer 1"
    assert rows(log.examples()) == [(ASKED, seen, (), True)]


async def test_an_agent_that_reasons_is_logged_after_a_tool_too(log: Log) -> None:
    """The step that calls the tool is no answer; what the agent says of its result is."""
    step = 'Thought: I need it.\nAction: look_up\nAction Input: {"subject": "rivers"}'
    stage = Stage.of(
        fake(say=lambda last, number: step if number == 1 else "Thought: I know.\nAnswer: answer 2")
    )
    seen = str(await ReActAgent(tools=TOOLS, llm=stage.llm).run(ASKED))
    assert (seen, stage.backend.calls) == ("answer 2", 2)
    assert rows(log.examples()) == [(ASKED, seen, (), True)]


async def test_streams_that_are_read_late_and_out_of_order_are_kept_apart(log: Log) -> None:
    """The same question twice, read the other way round, and one by hand from the same template between."""
    stage = Stage.of(fake())
    late = [await asyncio.to_thread(engine(stage, streaming=True).query, ASKED) for _ in range(3)]
    at_once = query(stage)  # the first call, or after the streams': that depends on LlamaIndex's version
    read = ["".join(response.response_gen) for response in late[1::-1]]
    assert rows(log.examples()) == [
        (ASKED, at_once, FRANCE, False),
        *((ASKED, text, FRANCE, True) for text in read),
    ]


async def test_a_model_that_overrides_a_method_is_logged_once(log: Log) -> None:
    """A method that calls `super()` is one call."""
    stage = Stage.of(fake(Overriding))
    for program in (query, llm_chat):
        await stage.run(program)
    assert rows(log.examples()) == [(ASKED, "answer 1", FRANCE, False), (ASKED, "answer 2", (), False)]


async def test_an_engine_over_a_nested_model_counts_its_tokens_once(log: Log) -> None:
    """The same for a query in each way that is whole."""
    Settings.llm = model = Spending()
    stage = Stage(fake(), model, Library(shelves()))
    query(stage)
    await aquery(stage)
    told = [(each.input_tokens, each.output_tokens) for each in log.examples()]
    assert told == [(11, 7), (11, 7)]


@pytest.mark.parametrize(("mode", "calls"), [("compact", 1), ("refine", 2), ("accumulate", 2)])
async def test_tokens_of_all_calls_are_added_up(
    mode: str, calls: int, openai: OpenAIBackend, log: Log
) -> None:
    """What an answer cost is what all calls behind it cost, as the provider told."""
    stage = Stage.of(openai)
    query(stage, mode)
    await aquery(stage, mode)
    for example in log.examples():
        assert (example.input_tokens, example.output_tokens) == (11 * calls, 7 * calls)
        assert example.model == "gpt-4o-mini"


@pytest.mark.parametrize("usage", [True, False])
async def test_tokens_of_a_stream_are_logged_if_they_are_told(
    usage: bool, openai: OpenAIBackend, log: Log
) -> None:
    """OpenAI tells them of a stream where it is asked to; otherwise they stay unknown."""
    if usage:
        openai.model.additional_kwargs = {"stream_options": {"include_usage": True}}
    stage = Stage.of(openai)
    for program in (query_stream, aquery_stream, partial(query_stream, mode="tree_summarize")):
        await stage.run(program)
    for program in (llm_stream_chat, llm_astream_chat):
        await stage.run(program)
    told = {(each.input_tokens, each.output_tokens, each.streamed) for each in log.examples()}
    assert told == {(11, 7, True) if usage else (None, None, True)}
    assert len(log.examples()) == 5


async def test_the_time_is_that_of_the_answer(log: Log) -> None:
    """`seconds` spans the call of the model, direct or behind an engine."""
    backend = fake()
    stage = Stage.of(backend)
    query(stage)  # the first query of a process loads what LlamaIndex loads late
    backend.wait(0.05)
    for program in (query, aquery, llm_chat, llm_acomplete):
        await stage.run(program)
    assert all(0.05 <= (example.seconds or 0) < 5 for example in log.examples()[1:])


async def test_a_synthesizer_with_a_form_is_logged_as_json(log: Log) -> None:
    """An object is logged as the JSON that it is."""
    stage = Stage.of(fake())
    response = engine(stage, output_cls=Form).query(ASKED)
    (example,) = log.examples()
    assert Form.model_validate_json(example.answer) == response.response


@pytest.mark.parametrize("asked", ["I lost my card", "Thanks!"])
async def test_any_message_can_be_logged(asked: str, empty: Log) -> None:
    """In a support chat every line is a question, if the program says so."""
    stage = Stage.of(fake())
    with_it = empty.attach(any_message=True)
    assert with_it.faults() == {}
    Stage.of(fake()).llm.chat([ChatMessage(asked)])
    assert [each.question for each in empty.examples()] == [asked]
    assert stage.backend.calls == 0


# What is not logged --------------------------------------------------------------------------------------


def _statements(stage: Stage) -> None:
    stage.llm.complete("Translate into French: The cat sat on the mat.")
    stage.llm.complete("The cat sat on the mat.")
    stage.llm.chat([ChatMessage("I lost my card")])
    stage.llm.chat([ChatMessage("Context: a, b, c.\nQuestion: which?")])
    stage.llm.predict(PromptTemplate("Summarise.\n{context_str}"), context_str="a b c")
    stage.llm.predict(PromptTemplate("Write the {number} keywords."), number="3")


def _tool_calls(stage: Stage) -> None:
    stage.llm.predict_and_call(TOOLS, user_msg=ASKED)
    stage.llm.chat_with_tools(TOOLS, user_msg=ASKED)
    "".join(chunk.delta or "" for chunk in stage.llm.stream_chat_with_tools(TOOLS, user_msg=ASKED))


def _forms(stage: Stage) -> None:
    stage.llm.structured_predict(Form, PromptTemplate("Fill in the form.\n{question}"), question=ASKED)
    list(stage.llm.stream_structured_predict(Form, PromptTemplate("Fill in.\n{question}"), question=ASKED))


def _selectors(stage: Stage) -> None:
    choices = ["about rivers", "about parliaments"]
    PydanticSingleSelector.from_defaults(llm=stage.llm).select(choices, ASKED)
    stage.backend.obey(lambda last, number: '[{"choice": 1, "reason": "rivers"}]')
    LLMSingleSelector.from_defaults(llm=stage.llm).select(choices, ASKED)


def _hypothetical(stage: Stage) -> None:
    HyDEQueryTransform(llm=stage.llm).run(ASKED)


def _nothing_found(stage: Stage) -> None:
    nothing = Stage(stage.backend, stage.llm, Library({}))
    assert query(nothing) == query_stream(nothing) == "Empty Response"
    assert query(nothing, "tree_summarize") == "Empty Response"


async def _nothing_found_async(stage: Stage) -> None:
    nothing = Stage(stage.backend, stage.llm, Library({}))
    assert await aquery(nothing) == await aquery_stream(nothing) == "Empty Response"


def _no_text(stage: Stage) -> None:
    engine(stage, "no_text").query(ASKED)
    engine(stage, "context_only").query(ASKED)


STREAMED = ("compact", "refine", "tree_summarize", "generation")


def _unread(stage: Stage) -> None:
    stage.llm.stream_chat(messages())
    stage.llm.stream_complete(ASKED)
    for mode in STREAMED:
        engine(stage, mode, streaming=True).query(ASKED)


def _half_read(stage: Stage) -> None:
    engines = [engine(stage, mode, streaming=True) for mode in STREAMED]
    streams = [stage.llm.stream_chat(messages()), stage.llm.stream_complete(ASKED)]
    for stream in [*streams, *(each.query(ASKED).response_gen for each in engines)]:
        next(stream)
        stream.close()


async def _half_read_async(stage: Stage) -> None:
    engines = [engine(stage, mode, streaming=True) for mode in STREAMED]
    streams = [await stage.llm.astream_chat(messages()), await stage.llm.astream_complete(ASKED)]
    for stream in [*streams, *[(await each.aquery(ASKED)).response_gen for each in engines]]:
        await anext(stream)
        await stream.aclose()


def _silent(stage: Stage) -> None:
    stage.backend.obey(lambda last, number: " ")
    for program in (query, query_stream, llm_chat, llm_stream_chat, llm_complete):
        program(stage)


def _follow_ups(stage: Stage) -> None:
    for asked in ("And how long are they?", "Which of them is the longest?", "What about the others?"):
        stage.llm.chat([*HISTORY, ChatMessage(asked)])
        "".join(chunk.delta or "" for chunk in stage.llm.stream_chat([*HISTORY, ChatMessage(asked)]))


NOT_LOGGED = (
    _statements,
    _follow_ups,
    _tool_calls,
    _forms,
    _selectors,
    _hypothetical,
    _nothing_found,
    _nothing_found_async,
    _no_text,
    _unread,
    _half_read,
    _half_read_async,
    _silent,
)


@pytest.mark.parametrize("program", NOT_LOGGED, ids=lambda program: program.__name__.strip("_"))
async def test_what_answers_no_question_is_not_logged(program: Callable[..., Any], log: Log) -> None:
    """Steps, statements, and answers that are none or that nobody has read leave no example."""
    await Stage.of(fake()).run(program)
    assert rows(log.examples()) == []
    assert log.faults == {}


@cases([*ENGINES, *CHATS, *BARE])
async def test_truncated_answers_are_not_logged(case: Case, log: Log) -> None:
    """There is nothing to learn from an answer that was cut off."""
    backend = fake(say=condensing)
    backend.stop_with("length")
    await Stage.of(backend).run(case.program)
    assert rows(log.examples()) == []


@pytest.mark.parametrize(("number", "logged"), [(1, 3), (2, 0), (3, 0)])
async def test_reasons_may_be_numbers(number: Any, logged: int, log: Log) -> None:
    """As Google's protocol has them: of these only 1 means that the answer is whole."""
    backend = fake()
    backend.stop_with(number)
    for program in (llm_chat, llm_stream_chat, query):
        await Stage.of(backend).run(program)
    assert len(rows(log.examples())) == logged


@pytest.mark.parametrize("usage", [True, False])
async def test_truncated_streams_of_openai_are_not_logged(
    usage: bool, openai: OpenAIBackend, log: Log
) -> None:
    """The chunk that tells the usage does not hide the reason before it."""
    if usage:
        openai.model.additional_kwargs = {"stream_options": {"include_usage": True}}
    openai.stop_with("length")
    stage = Stage.of(openai)
    for program in (query, query_stream, aquery_stream, partial(query_stream, mode="tree_summarize")):
        await stage.run(program)
    for program in (llm_chat, llm_stream_chat, llm_astream_chat):
        await stage.run(program)
    assert rows(log.examples()) == []


# LlamaIndex's chat engines lose errors of a stream in a thread or task of their own.
@cases([*ENGINES, *(case for case in CHATS if not case.streamed), *BARE])
async def test_failures_are_the_users_and_are_not_logged(case: Case, log: Log) -> None:
    """The error of the model reaches the program as ever; the next answer is logged as ever."""
    backend = fake(say=condensing)
    stage = Stage.of(backend)
    backend.fail_next()
    with pytest.raises(Broke):
        await stage.run(case.program)
    assert rows(log.examples()) == []
    seen = await stage.run(case.program)
    assert [(each.question, each.answer) for each in log.examples()] == [(ASKED, seen)]


async def test_broken_streams_are_not_logged(log: Log) -> None:
    """The user gets what came and the error; the log gets nothing."""
    backend = fake(say=lambda last, number: "an answer of many words")
    stage = Stage.of(backend)
    programs = [llm_stream_chat, llm_astream_complete, query_stream, aquery_stream]
    for program in [*programs, partial(query_stream, mode="tree_summarize")]:
        backend.break_stream_after(2)
        with pytest.raises(Broke):
            await stage.run(program)
    assert rows(log.examples()) == []


# Steps of a program that does answer ---------------------------------------------------------------------


def _router(stage: Stage, selector: Any) -> str:
    tools = [QueryEngineTool.from_defaults(engine(stage), name=n, description=n) for n in ("one", "other")]
    return str(RouterQueryEngine(selector=selector, query_engine_tools=tools, llm=stage.llm).query(ASKED))


def _routed_by_tool(stage: Stage) -> str:
    return _router(stage, PydanticSingleSelector.from_defaults(llm=stage.llm))


def _routed_by_text(stage: Stage) -> str:
    stage.backend.obey(
        lambda last, number: '[{"choice": 1, "reason": "b"}]' if "choices" in last else f"answer {number}"
    )
    return _router(stage, LLMSingleSelector.from_defaults(llm=stage.llm))


def _transformed(stage: Stage) -> str:
    return str(TransformQueryEngine(engine(stage), HyDEQueryTransform(llm=stage.llm)).query(ASKED))


def _reranked(stage: Stage) -> str:
    judged = "Doc: 1, Relevance: 7\nDoc: 2, Relevance: 5"
    stage.backend.obey(lambda last, number: judged if "relevance" in last.lower() else f"answer {number}")
    return query(stage, node_postprocessors=[LLMRerank(llm=stage.llm, top_n=2)])


def _ranked(stage: Stage) -> str:
    stage.backend.obey(lambda last, number: "[1] > [2]" if "Rank" in last else f"answer {number}")
    return query(stage, node_postprocessors=[RankGPTRerank(llm=stage.llm, top_n=2)])


@pytest.mark.parametrize(
    "program",
    [
        _routed_by_tool,
        _routed_by_text,
        _transformed,
        _reranked,
        _ranked,
    ],
    ids=lambda program: program.__name__.strip("_"),
)
async def test_steps_are_not_logged(program: Callable[..., Any], log: Log) -> None:
    """Choosing an engine, rewriting the question and ranking nodes are no answers; the answer is."""
    stage = Stage.of(fake())
    seen = await stage.run(program)
    assert stage.backend.calls == 2
    assert rows(log.examples()) == [(ASKED, seen, FRANCE, False)]


@pytest.mark.parametrize("quoting", [False, True])
async def test_condensing_a_follow_up_is_not_logged(quoting: bool, log: Log) -> None:
    """Two questions are two examples, though the second was first condensed."""
    text = nodes_about("France")[0].text if quoting else "It is a broad one."

    def say(last: str, number: int) -> str:
        return condensing(last, number) if "Follow Up" in last else text

    stage = Stage.of(fake(say=say))
    talk = CondensePlusContextChatEngine.from_defaults(
        stage.library, llm=stage.llm, memory=ChatMemoryBuffer.from_defaults()
    )
    await asyncio.to_thread(lambda: [talk.chat(question) for question in (ASKED, OTHER)])
    assert stage.backend.calls == 3
    assert rows(log.examples()) == [(ASKED, text, FRANCE, False), (OTHER, text, FRANCE, False)]


# Hits ----------------------------------------------------------------------------------------------------


@cases([*ENGINES, *CHATS, *BARE])
async def test_a_cached_model_and_a_handler_log_one_example(case: Case, open_cache: OpenCache) -> None:
    """In one namespace it is one example, and steps are none."""
    cache = open_cache()
    handler = IbidemCallbackHandler(cache)
    Settings.callback_manager = CallbackManager([handler])
    backend = fake(say=condensing)
    seen = await Stage.of(backend, CachedLLM(backend.model, cache)).run(case.program)
    (example,) = cache.examples.recent()
    assert rows([example]) == [(ASKED, seen, case.documents, case.streamed)]
    assert handler.faults() == cache.stats().faults == {}


@cases([*ENGINES, *BARE])
async def test_a_cached_model_alone_logs_direct_calls(case: Case, open_cache: OpenCache) -> None:
    """Without a handler: of a synthesis, of which it sees single calls, nothing."""
    cache = open_cache()
    backend = fake()
    seen = await Stage.of(backend, CachedLLM(backend.model, cache)).run(case.program)
    told = [(example.question, example.answer) for example in cache.examples.recent()]
    assert told == ([(ASKED, seen)] if case in BARE else [])
    assert cache.stats().entries > 0


@pytest.mark.parametrize("mode", ["compact", "refine"])
async def test_a_cached_synthesizer_alone_logs_its_answer(mode: str, open_cache: OpenCache) -> None:
    """Of a whole answer, once, also around a cached model and beside a handler."""
    cache = open_cache()
    backend = fake()
    stage = Stage.of(backend, CachedLLM(backend.model, cache))
    inner = get_response_synthesizer(llm=stage.llm, response_mode=mode)
    engine_ = RetrieverQueryEngine(stage.library, CachedSynthesizer(inner, cache))
    seen = str(await asyncio.to_thread(engine_.query, ASKED))
    (example,) = cache.examples.recent()
    assert (example.question, example.answer) == (ASKED, seen)
    assert example.entry_id is not None


@cases([*ENGINES, *CHATS, *BARE])
async def test_a_hit_of_a_cached_model_is_no_new_example(case: Case, log: Log) -> None:
    """The model's answer is one already; repeating it teaches nothing."""
    backend = fake(say=condensing)
    stage = Stage.of(backend, CachedLLM(backend.model, log.cache, namespace=log.namespace))
    seen = await stage.run(case.program)
    calls = backend.calls
    assert await stage.run(case.program) == seen
    assert backend.calls == calls
    assert rows(log.examples()) == [(ASKED, seen, case.documents, case.streamed)]


WAYS = (query, aquery, query_stream, aquery_stream)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_hit_of_a_cached_synthesizer_is_no_new_example(
    way: Callable[..., Any], mode: str, log: Log
) -> None:
    """The model is not even called: the lookup log has the question as it was asked now."""
    backend = fake()
    streaming = "stream" in way.__name__
    stage = Stage.of(backend)
    inner = get_response_synthesizer(llm=stage.llm, response_mode=mode, streaming=streaming)
    cached = RetrieverQueryEngine(stage.library, CachedSynthesizer(inner, log.cache, namespace=log.namespace))
    texts, markers = [], []
    for question in (ASKED, REWORDED):
        if way in (aquery, aquery_stream):
            response = await cached.aquery(question)
        else:
            response = await asyncio.to_thread(cached.query, question)
        if not streaming:
            texts.append(str(response))
        elif way is aquery_stream:
            texts.append("".join([piece async for piece in response.async_response_gen()]))
        else:
            texts.append("".join(response.response_gen))
        markers.append((response.metadata or {}).get("ibidem"))
    assert texts[0] == texts[1]
    (cold,) = log.examples()
    assert (cold.question, cold.answer, cold.streamed) == (ASKED, texts[0], streaming)
    assert tuple(document.id for document in cold.documents) == FRANCE
    assert (cold.model, markers[0]["hit"], markers[1]["model"]) == ("counting-chat", False, "counting-chat")
    assert cold.seconds is not None
    assert cold.seconds > 0


@pytest.mark.parametrize("read", [0, 1])
@pytest.mark.parametrize("layer", ["model", "synthesizer"])
async def test_an_abandoned_stream_of_a_hit_is_not_logged(layer: str, read: int, log: Log) -> None:
    """What the user has not read is no answered question, whoever would have given it."""
    backend = fake(say=lambda last, number: "an answer of many words that takes a while to be read")
    ours = CachedLLM(backend.model, log.cache, namespace=log.namespace)
    stage = Stage.of(backend, ours if layer == "model" else None)
    own = get_response_synthesizer(llm=stage.llm, response_mode="tree_summarize", streaming=True)
    if layer == "synthesizer":
        own = CachedSynthesizer(own, log.cache, namespace=log.namespace)
    streams = RetrieverQueryEngine(stage.library, own)
    assert "".join((await asyncio.to_thread(streams.query, ASKED)).response_gen)
    stream = (await asyncio.to_thread(streams.query, ASKED)).response_gen
    for _ in range(read):
        next(stream)
    stream.close()
    assert backend.calls == 1
    assert [example.entry_id for example in log.examples()] == [None]


async def test_an_answer_with_one_new_part_names_no_entry(log: Log) -> None:
    """Only an answer that the model had no part in comes from the cache."""
    backend = fake()
    stage = Stage.of(backend, CachedLLM(backend.model, log.cache, namespace=log.namespace))
    query(stage, "refine")
    stage.library.shelves = {"France": [*nodes_about("France"), *nodes_about("Peru")[:1]]}
    query(stage, "refine")
    assert backend.calls == 3
    assert [example.entry_id for example in log.examples()] == [None, None]


# At once ---------------------------------------------------------------------------------------


def _city(country: str) -> str:
    return f"The largest city of {country} lies at a broad river."


def _asked_of(country: str) -> str:
    return ASKED.replace("France", country)


def _about_the_country(last: str, number: int) -> str:
    found = re.search(r"city of (\w+)\?", last)
    return _city(found[1] if found else "nowhere")


def _of_countries(streamed: bool, mode: str) -> list[Row]:
    answer = (
        "Response 1: {0}\n---------------------\nResponse 2: {0}" if mode == "accumulate" else "{0}"
    ).format
    return sorted(
        (_asked_of(country), answer(_city(country)), (f"{country}-1", f"{country}-2"), streamed)
        for country in COUNTRIES
    )


@pytest.mark.parametrize(
    ("way", "mode"),
    [
        (query, "compact"),
        (query, "accumulate"),
        (query_stream, "compact"),
        (query_stream, "tree_summarize"),
    ],
)
def test_threads_do_not_mix(way: Callable[..., Any], mode: str, log: Log) -> None:
    """Ten queries at once leave ten examples, each with its own answer and documents."""
    stage = Stage.of(fake(say=_about_the_country))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda country: way(stage, mode, _asked_of(country)), COUNTRIES))
    assert sorted(rows(log.examples())) == _of_countries(way is query_stream, mode)


@pytest.mark.parametrize(
    ("way", "mode"),
    [
        (aquery, "compact"),
        (aquery, "accumulate"),
        (aquery_stream, "compact"),
        (aquery_stream, "tree_summarize"),
    ],
)
async def test_tasks_do_not_mix(way: Callable[..., Any], mode: str, log: Log) -> None:
    """The same in one event loop, where they run between each other."""
    backend = fake(say=_about_the_country)
    backend.wait(0.002)
    stage = Stage.of(backend)
    await asyncio.gather(*(way(stage, mode, _asked_of(country)) for country in COUNTRIES))
    assert sorted(rows(log.examples())) == _of_countries(way is aquery_stream, mode)


# Never in the way ----------------------------------------------------------------------------------------


async def _works(stage: Stage) -> None:
    """All that the user does gives all that the user expects."""
    for case in (*ENGINES[:4], *CHATS[:4], *BARE):
        assert re.fullmatch(r"answer \d+", await stage.run(case.program))


async def test_a_closed_cache_is_not_the_users_problem(cache: SemanticCache) -> None:
    """The program goes on, streams are whole, and the handler counts what it could not write."""
    log = Log(cache, "")
    handler = log.attach()
    cache.close()
    await _works(Stage.of(fake()))
    assert list(handler.faults()) == ["log what LlamaIndex answered: CacheClosed"]
    assert handler.faults()["log what LlamaIndex answered: CacheClosed"] >= 16


async def test_a_broken_database_is_not_the_users_problem(
    cache: SemanticCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written is counted, there or here, and told once; the program goes on."""
    caplog.set_level(logging.WARNING)
    log = Log(cache, "")
    handler = log.attach()

    def fail(*_: Any) -> None:
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as broken:
        broken.setattr(cache._runtime.store.examples, "add", fail)
        await _works(Stage.of(fake()))
        assert cache.stats().faults
    with monkeypatch.context() as broken:
        broken.setattr(cache.examples, "add", fail)
        await _works(Stage.of(fake()))
    assert list(handler.faults()) == ["log what LlamaIndex answered: RuntimeError"]
    query(Stage.of(fake()))
    assert len(cache.examples.recent()) == 1
    assert "the disk is on fire" not in caplog.text


PAYLOADS: tuple[Any, ...] = (
    None,
    {},
    {EventPayload.MESSAGES: object()},
    {EventPayload.MESSAGES: [1, None]},
    {EventPayload.MESSAGES: [ChatMessage(ASKED, additional_kwargs={"x": object()})]},
    {EventPayload.PROMPT: object()},
    {EventPayload.PROMPT: None, EventPayload.COMPLETION: "text"},
    {EventPayload.RESPONSE: object()},
    {EventPayload.RESPONSE: "text"},
    {EventPayload.EXCEPTION: ValueError()},
    "text",
    object(),
)


@pytest.mark.parametrize("span", [None, "Model.chat-00000000-0000-0000-0000-000000000000", "x"])
async def test_weird_payloads_never_raise(span: str | None, empty: Log) -> None:
    """LlamaIndex does not guard its handlers: whatever they are told, they return."""
    handler = empty.attach()
    token = active_span_id.set(span)
    try:
        for event in CBEventType:
            for payload in PAYLOADS:
                assert handler.on_event_start(event, payload, event_id="e", parent_id="p") == "e"
                handler.on_event_end(event, payload, event_id="e")
                handler.on_event_end(event, payload, event_id="never began")
                handler.on_event_end(event, payload)
        handler.start_trace()
        handler.start_trace(trace_id=None)
        handler.end_trace(trace_id="t", trace_map=None)
        handler.end_trace()
    finally:
        active_span_id.reset(token)
    assert handler.faults()
    assert empty.examples() == []
    await Stage.of(fake()).run(query)
    assert len(empty.examples()) == 1


async def test_a_stream_is_never_touched(log: Log) -> None:
    """A response that the handlers have seen still has all of its text, read late or by `str` as well."""
    stage = Stage.of(fake(say=lambda last, number: "an answer of many words"))
    for mode in ("compact", "tree_summarize"):
        late = await asyncio.to_thread(engine(stage, mode, streaming=True).query, ASKED)
        at_once = await asyncio.to_thread(engine(stage, mode, streaming=True).query, ASKED)
        assert str(at_once) == "an answer of many words"
        assert "".join(late.response_gen) == "an answer of many words"
    assert [example.answer for example in log.examples()] == ["an answer of many words"] * 4


async def test_namespaces_are_kept(empty: Log) -> None:
    """Examples belong to the namespace of their handler and go with it."""
    empty.attach()
    await Stage.of(fake()).run(query)
    assert [example.namespace for example in empty.examples()] == [empty.logged]
    empty.cache.clear(empty.logged)
    assert empty.examples() == []


def test_invalid_arguments_raise_at_once(cache: SemanticCache) -> None:
    """An option that does not exist, a cache and options, a namespace that is no text."""
    with pytest.raises(ibidem.InvalidInput, match="did you mean 'min_similarity'"):
        IbidemCallbackHandler(min_similarty=0.9)
    with pytest.raises(ibidem.InvalidInput, match="not both"):
        IbidemCallbackHandler(cache, min_similarity=0.9)
    with pytest.raises(ibidem.InvalidInput, match="namespace must be a str"):
        IbidemCallbackHandler(cache, namespace=7)


def test_a_handler_closes_the_cache_that_it_opened(open_cache: OpenCache, tmp_path: Path) -> None:
    """An own cache is closed with it, a given one stays open."""
    own = IbidemCallbackHandler(path=tmp_path / "own", embedder=BagOfWords())
    given = IbidemCallbackHandler(open_cache())
    own.close()
    given.close()
    with pytest.raises(ibidem.CacheClosed):
        own.cache.examples.recent()
    assert given.cache.examples.recent() == []
