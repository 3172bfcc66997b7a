"""Whatever way a program calls its model, the core must be asked the user's question about its documents."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langgraph.graph import END, START, StateGraph

import ibidem
from langchain_ibidem import IbidemCache
from langchain_ibidem.tracking import tracker
from tests.contracts.langchain import (
    COUNTRIES,
    RAG,
    CountingChat,
    CountingCompletion,
    Library,
    Recording,
    join,
    shelves,
)
from tests.embedders import BagOfWords

COMPLETION = PromptTemplate.from_template("Use the context.\n{context}\n\nQuestion: {question}\nAnswer:")


def question(country: str) -> str:
    return f"What is the capital of {country}?"


def reworded(country: str) -> str:
    return f"What is the capital city of {country}, please?"


@dataclass
class World:
    """The parts of a program, and the way its questions come in."""

    library: Library = field(default_factory=lambda: Library(shelves=shelves()))
    chat: CountingChat = field(default_factory=CountingChat)
    completion: CountingCompletion = field(default_factory=CountingCompletion)

    @property
    def calls(self) -> int:
        return self.chat.calls + self.completion.calls

    def rag(self, model: Any = None, prompt: Any = RAG) -> Runnable[str, str]:
        source = {"context": self.library | join, "question": RunnablePassthrough()}
        return source | prompt | (model or self.chat) | StrOutputParser()


# How a situation is run: questions in, answers out, in order.
Program = Callable[[World], Runnable[str, Any]]
SITUATIONS: dict[str, tuple[Program, str]] = {}


def situation(style: str = "invoke") -> Callable[[Program], Program]:
    def register(program: Program) -> Program:
        SITUATIONS[program.__name__] = (program, style)
        return program

    return register


@situation()
def chain(world: World) -> Runnable[str, Any]:
    return world.rag()


@situation("batch")
def chain_batch(world: World) -> Runnable[str, Any]:
    return world.rag()


@situation("at once")
def chain_20_at_once(world: World) -> Runnable[str, Any]:
    return world.rag()


@situation("threads")
def chain_in_raw_threads(world: World) -> Runnable[str, Any]:
    return world.rag()


@situation("stream")
def chain_stream(world: World) -> Runnable[str, Any]:
    return world.rag()


@situation("events")
def chain_stream_events(world: World) -> Runnable[str, Any]:
    return world.rag()


@situation()
def completion_model(world: World) -> Runnable[str, Any]:
    return world.rag(world.completion, COMPLETION)


@situation("batch")
def completion_model_batch(world: World) -> Runnable[str, Any]:
    return world.rag(world.completion, COMPLETION)


@situation()
def completion_model_chat_template(world: World) -> Runnable[str, Any]:
    return world.rag(world.completion)


@situation()
def chat_model_string_template(world: World) -> Runnable[str, Any]:
    return world.rag(world.chat, COMPLETION)


@situation()
def inside_a_lambda(world: World) -> Runnable[str, Any]:
    def run(asked: str) -> Any:
        prompt = RAG.invoke({"context": join(world.library.invoke(asked)), "question": asked})
        return world.chat.invoke(prompt).content

    async def arun(asked: str) -> Any:
        prompt = await RAG.ainvoke({"context": join(await world.library.ainvoke(asked)), "question": asked})
        return (await world.chat.ainvoke(prompt)).content

    return RunnableLambda(run, arun)


class PlainPython:
    """A program without any chain around the steps."""

    def __init__(self, world: World, template: Callable[[str, str], Any]) -> None:
        self.world, self.template = world, template

    def invoke(self, asked: str) -> Any:
        return self.world.chat.invoke(self.template(join(self.world.library.invoke(asked)), asked)).content

    async def ainvoke(self, asked: str) -> Any:
        documents = await self.world.library.ainvoke(asked)
        return (await self.world.chat.ainvoke(self.template(join(documents), asked))).content


@situation()
def plain_python(world: World) -> Any:
    return PlainPython(world, lambda context, asked: RAG.invoke({"context": context, "question": asked}))


@situation()
def plain_python_format_messages(world: World) -> Any:
    return PlainPython(world, lambda context, asked: RAG.format_messages(context=context, question=asked))


@situation()
def plain_python_own_text(world: World) -> Any:
    return PlainPython(world, lambda context, asked: f"Context:\n{context}\n\nQuestion: {asked}\nAnswer:")


@situation()
def agent_with_tool_result(world: World) -> Any:
    def messages(context: str, asked: str) -> list[Any]:
        call = {"name": "search", "args": {"topic": "capitals"}, "id": f"call_{random.random()}"}
        return [
            SystemMessage("You are an agent."),
            HumanMessage(asked),
            AIMessage("", tool_calls=[call]),
            ToolMessage(context, tool_call_id=call["id"], name="search"),
        ]

    return PlainPython(world, messages)


@situation()
def retriever_outside_the_chain(world: World) -> Any:
    chain = RAG | world.chat | StrOutputParser()

    class Outside:
        def invoke(self, asked: str) -> Any:
            return chain.invoke({"context": join(world.library.invoke(asked)), "question": asked})

        async def ainvoke(self, asked: str) -> Any:
            return await chain.ainvoke(
                {"context": join(await world.library.ainvoke(asked)), "question": asked}
            )

    return Outside()


@situation()
def documents_not_formatted(world: World) -> Runnable[str, Any]:
    return (
        {"context": world.library, "question": RunnablePassthrough()} | RAG | world.chat | StrOutputParser()
    )


@situation()
def numbered_documents(world: World) -> Runnable[str, Any]:
    numbered = RunnableLambda(
        lambda found: "\n".join(f"[{i}] {d.page_content}" for i, d in enumerate(found, start=1))
    )
    source = {"context": world.library | numbered, "question": RunnablePassthrough()}
    return source | RAG | world.chat | StrOutputParser()


@situation()
def unusual_variable_name(world: World) -> Runnable[str, Any]:
    prompt = ChatPromptTemplate.from_template("Kontext:\n{kontext}\n\nFrage: {frage}")
    source = {"kontext": world.library | join, "frage": RunnablePassthrough()}
    return source | prompt | world.chat | StrOutputParser()


@situation()
def two_models_in_parallel(world: World) -> Runnable[str, Any]:
    other = CountingChat(name_of_model="other")
    source = {"context": world.library | join, "question": RunnablePassthrough()}
    return source | RAG | {"a": world.chat | StrOutputParser(), "b": other | StrOutputParser()}


class Failing(CountingChat):
    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the provider is down")


@situation()
def with_fallbacks(world: World) -> Runnable[str, Any]:
    return world.rag(Failing(name_of_model="down").with_fallbacks([world.chat]))


@situation()
def with_retry(world: World) -> Runnable[str, Any]:
    return world.rag(world.chat.with_retry(stop_after_attempt=2))


@situation()
def messages_placeholder(world: World) -> Runnable[str, Any]:
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Context:\n{context}"), MessagesPlaceholder("chat")]
    )
    source = {"context": world.library | join, "chat": RunnableLambda(lambda asked: [HumanMessage(asked)])}
    return source | prompt | world.chat | StrOutputParser()


@situation()
def history_before_the_question(world: World) -> Runnable[str, Any]:
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Context:\n{context}"), MessagesPlaceholder("history"), ("human", "{input}")]
    )
    past = [HumanMessage("Hello, who are you?"), AIMessage("A guide to capitals.")]
    source = {
        "context": world.library | join,
        "history": RunnableLambda(lambda _: past),
        "input": RunnablePassthrough(),
    }
    return source | prompt | world.chat | StrOutputParser()


@situation()
def classic_retrieval_chain(world: World) -> Runnable[str, Any]:
    prompt = ChatPromptTemplate.from_messages([("system", "Use this:\n{context}"), ("human", "{input}")])
    chain = create_retrieval_chain(world.library, create_stuff_documents_chain(world.chat, prompt))
    return RunnableLambda(lambda asked: {"input": asked}) | chain | (lambda result: result["answer"])


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    answer: str


def graph(world: World) -> Runnable[str, Any]:
    def retrieve(state: State) -> State:
        return {"documents": world.library.invoke(state["question"])}

    def generate(state: State) -> State:
        prompt = RAG.invoke({"context": join(state["documents"]), "question": state["question"]})
        return {"answer": str(world.chat.invoke(prompt).content)}

    async def aretrieve(state: State) -> State:
        return {"documents": await world.library.ainvoke(state["question"])}

    async def agenerate(state: State) -> State:
        prompt = await RAG.ainvoke({"context": join(state["documents"]), "question": state["question"]})
        return {"answer": str((await world.chat.ainvoke(prompt)).content)}

    builder = StateGraph(State)
    builder.add_node("retrieve", RunnableLambda(retrieve, aretrieve))
    builder.add_node("generate", RunnableLambda(generate, agenerate))
    builder.add_edge(START, "retrieve")
    builder.add_edge("retrieve", "generate")
    builder.add_edge("generate", END)
    return RunnableLambda(lambda asked: {"question": asked}) | builder.compile() | (lambda end: end["answer"])


@situation()
def langgraph(world: World) -> Runnable[str, Any]:
    return graph(world)


@situation("batch")
def langgraph_batch(world: World) -> Runnable[str, Any]:
    return graph(world)


def run_sync(program: Any, style: str, asked: list[str]) -> list[Any]:
    if style == "batch":
        return program.batch(asked)
    if style in ("threads", "at once"):
        with ThreadPoolExecutor(16) as threads:
            return list(threads.map(program.invoke, asked))
    if style == "stream":
        return ["".join(program.stream(one)) for one in asked]
    if style == "events":  # stream_events exists in async only; transform is its way through the chain
        return ["".join(program.transform(iter([one]))) for one in asked]
    return [program.invoke(one) for one in asked]


async def run_async(program: Any, style: str, asked: list[str]) -> list[Any]:
    if style == "batch":
        return await program.abatch(asked)
    if style == "at once":
        return list(await asyncio.gather(*map(program.ainvoke, asked)))
    if style == "threads":
        return await asyncio.to_thread(_in_threads_with_loops, program, asked)
    if style == "stream":
        return [await _joined(program.astream(one)) for one in asked]
    if style == "events":
        return [await _last_event(program, one) for one in asked]
    return [await program.ainvoke(one) for one in asked]


def _in_threads_with_loops(program: Any, asked: list[str]) -> list[Any]:
    async def ask(one: str) -> Any:
        return await program.ainvoke(one)

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda one: asyncio.run(ask(one)), asked))


async def _joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


async def _last_event(program: Any, asked: str) -> Any:
    events = [event async for event in program.astream_events(asked, version="v2")]
    return events[-1]["data"]["output"]


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Recording]:
    with ibidem.open(tmp_path, embedder=BagOfWords(), min_similarity=0.8) as opened:
        recording = Recording(opened)
        tracker().clear()
        set_llm_cache(IbidemCache(recording))
        yield recording
        set_llm_cache(None)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[[Any, str, list[str]], list[Any]]:
    if request.param == "sync":
        return run_sync
    return lambda program, style, asked: asyncio.run(run_async(program, style, asked))


# Here the order is part of the prompt: ids stand between the documents, or numbers that an answer may cite.
ORDERED = ("documents_not_formatted", "numbered_documents")


@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(name: str, core: Recording, run: Callable[..., list[Any]]) -> None:
    world = World()
    make, style = SITUATIONS[name]
    program = make(world)
    countries = COUNTRIES if style in ("at once", "threads") else COUNTRIES[:3]
    asked, again = [question(c) for c in countries], [reworded(c) for c in countries]

    first = run(program, style, asked)
    assert len({str(answer) for answer in first}) == len(countries)
    assert_understood(core.stored, countries, question)

    calls, before = world.calls, len(core.looked_up)
    assert run(program, style, again) == first, "a reworded question about the same documents"
    assert world.calls == calls
    assert_understood(core.looked_up[before:], countries, reworded)

    for shelf in world.library.shelves.values():
        shelf.reverse()
    repeated = run(program, style, asked)
    if name not in ORDERED:
        assert repeated == first, "the same documents in another order"
        assert world.calls == calls

    world.library.shelves = shelves(" of the north")
    calls = world.calls
    changed = run(program, style, asked)
    assert not {str(answer) for answer in changed} & {str(answer) for answer in first}
    assert world.calls == calls + len(countries), "other documents"


def assert_understood(
    requests: list[ibidem.Request], countries: list[str], form: Callable[[str], str]
) -> None:
    expected = {
        form(c): {
            f"The largest city of {c} lies at a river.",
            f"The parliament of {c} sits in its second city.",
        }
        for c in countries
    }
    assert {request.question for request in requests} == set(expected)
    for request in requests:
        assert request.semantic
        assert {document.text for document in request.documents} == expected[request.question]
        assert {document.id[-2:] for document in request.documents} == {"-1", "-2"}
