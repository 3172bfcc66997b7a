"""Every way of calling a LangChain model, each as one function from questions to answers.

`call(column, model, questions)` is what the matrix and the test of two tenants have in common.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.tools import StructuredTool
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel

from langchain_ibidem import IbidemMiddleware
from tests.contracts.langchain import RAG, CountingChat, Library, join, shelves

TEXT = PromptTemplate.from_template("Use the context.\n{context}\n\nQuestion: {question}\nAnswer:")
SCHEMA = {
    "title": "Capital",
    "description": "A capital.",
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


@dataclass
class World:
    """What a program has beside its model: documents, and the cache that an agent's middleware uses."""

    cache: Any = None
    library: Library = field(default_factory=lambda: Library(shelves=shelves()))

    def prompt(self, model: Any, question: str) -> Any:
        """The question over its documents."""
        template = RAG if isinstance(model, BaseChatModel) else TEXT
        return template.invoke({"context": join(self.library.invoke(question)), "question": question})

    def search(self, country: str) -> str:
        """Look a country up."""
        return join(self.library.invoke(country))


Call = Callable[[World, Any, Sequence[str]], list[Any]]


@dataclass(frozen=True)
class Column:
    """A way of calling, and how often the model is asked for one question.

    `cold` the first time; `reworded` if it was asked in other words; `changed` if its documents are other
    ones now. The very same question never, and another as often as the first time.
    """

    call: Call
    cold: int = 1
    reworded: int = 0
    changed: int = 1
    needs: str = ""  # what not every model can do


COLUMNS: dict[str, Column] = {}


def column(**costs: Any) -> Callable[[Call], Call]:
    """Put a way of calling into the matrix."""

    def put(call: Call) -> Call:
        COLUMNS[call.__name__] = Column(call, **costs)
        return call

    return put


def call(name: str, model: Any, questions: Sequence[str], world: World) -> list[Any]:
    """The answers, by the way of calling of this name."""
    return [_plain(answer) for answer in COLUMNS[name].call(world, model, questions)]


def _plain(answer: Any) -> Any:
    """What an answer says, without what is new in every message."""
    if isinstance(answer, AIMessage):
        return answer.text, [(call["name"], call["args"]) for call in answer.tool_calls]
    return answer


@column()
def invoke(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    return [model.invoke(world.prompt(model, question)) for question in questions]


@column()
def ainvoke(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    async def ask() -> list[Any]:
        return [await model.ainvoke(world.prompt(model, question)) for question in questions]

    return asyncio.run(ask())


@column()
def batch(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    return model.batch([world.prompt(model, question) for question in questions])


@column()
def abatch(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    return asyncio.run(model.abatch([world.prompt(model, question) for question in questions]))


@column()
def generate(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    result = model.generate_prompt([world.prompt(model, question) for question in questions])
    return [generations[0].text for generations in result.generations]


@column(reworded=1, needs="tools")
def tools(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    """The model answers with a tool call."""
    return invoke_with(model.bind_tools([_search(world)]), world, model, questions)


@column(reworded=1, needs="tools")
def structured_by_function_calling(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    chosen = {"method": "function_calling"} if _is_openai(model) else {}  # elsewhere it is the only one
    return invoke_with(model.with_structured_output(SCHEMA, **chosen), world, model, questions)


@column(reworded=1, needs="json_schema")
def structured_by_json_schema(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    return invoke_with(model.with_structured_output(SCHEMA, method="json_schema"), world, model, questions)


@column(reworded=1, needs="json_schema")
def structured_by_json_mode(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    return invoke_with(model.with_structured_output(SCHEMA, method="json_mode"), world, model, questions)


@column(cold=2, reworded=1, needs="tools")
def agent(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    """Reworded, the model is asked which tool to call; over the same results the answer is known."""
    return _run(create_agent(model, [_search(world)], system_prompt="Be brief."), questions)


@column(cold=2, reworded=1, needs="tools")
def agent_with_middleware(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    middleware = IbidemMiddleware(world.cache)
    made = create_agent(model, [_search(world)], system_prompt="Be brief.", middleware=[middleware])
    return _run(made, questions)


class State(TypedDict, total=False):
    question: str
    context: str
    answer: str


@column()
def langgraph(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    """A node that retrieves, and a node that answers."""

    def retrieve(state: State) -> State:
        return {"context": join(world.library.invoke(state["question"]))}

    def answer(state: State) -> State:
        template = RAG if isinstance(model, BaseChatModel) else TEXT
        said = model.invoke(template.invoke(dict(state)))
        return {"answer": said if isinstance(said, str) else said.text}

    builder = StateGraph(State)
    builder.add_sequence([retrieve, answer])
    builder.add_edge(START, "retrieve")
    builder.add_edge("answer", END)
    graph = builder.compile()
    return [graph.invoke({"question": question})["answer"] for question in questions]


class Down(CountingChat):
    """A model whose provider is down."""

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the provider is down")


@column()
def fallbacks(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    return invoke_with(Down(name_of_model="down").with_fallbacks([model]), world, model, questions)


@column()
def retry(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    return invoke_with(model.with_retry(stop_after_attempt=2), world, model, questions)


@column(needs="streams")
def stream(world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    return ["".join(c.text for c in model.stream(world.prompt(model, q))) for q in questions]


@column(needs="streams")
def astream(world: World, model: Any, questions: Sequence[str]) -> list[Any]:

    async def read(question: str) -> str:
        return "".join([c.text async for c in model.astream(world.prompt(model, question))])

    return [asyncio.run(read(question)) for question in questions]


@column(needs="streams")
def astream_events(world: World, model: Any, questions: Sequence[str]) -> list[Any]:

    async def read(question: str) -> str:
        events = model.astream_events(world.prompt(model, question), version="v2")
        ends = [event["data"]["output"] async for event in events if event["event"] == "on_chat_model_end"]
        return ends[-1].text

    return [asyncio.run(read(question)) for question in questions]


class Country(BaseModel):
    country: str


def invoke_with(runnable: Any, world: World, model: Any, questions: Sequence[str]) -> list[Any]:
    """The answers of what was made of the model."""
    return [runnable.invoke(world.prompt(model, question)) for question in questions]


def _run(made: Any, questions: Sequence[str]) -> list[Any]:
    return [made.invoke({"messages": [("user", question)]})["messages"][-1] for question in questions]


def _search(world: World) -> StructuredTool:
    return StructuredTool.from_function(
        world.search, name="search", description="Look a country up.", args_schema=Country
    )


def _is_openai(model: Any) -> bool:
    return bool(model._llm_type == "openai-chat")
