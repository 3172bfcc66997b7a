"""The ways in which a LangChain program begins a stream that asks a model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    Runnable,
    RunnableBranch,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph

from tests.contracts.langchain import CountingChat

Begin = Callable[[str], Any]  # takes a question, returns its stream, sync or async
PROMPT = ChatPromptTemplate.from_template("{q}")


def text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.text)


# what is streamed ---------------------------------------------------------------------------------------


class Down(CountingChat):
    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        raise OSError("down")


class Mine(Runnable[Any, Any]):
    """A class of the program, with a stream of its own."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return self.model.invoke(input, config)

    def stream(self, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        yield from self.model.stream(input, config)

    async def astream(self, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        async for chunk in self.model.astream(input, config):
            yield chunk


def pieces_of(model: Any) -> Any:
    """A generator function, which is a `RunnableGenerator` in a chain."""

    def pieces(asked: Iterator[str]) -> Iterator[str]:
        for question in asked:
            yield from map(text, model.stream(question))

    async def apieces(asked: AsyncIterator[str]) -> AsyncIterator[str]:
        async for question in asked:
            async for chunk in model.astream(question):
                yield text(chunk)

    return RunnableGenerator(pieces, apieces)


def graph_of(model: Any, *, streams: bool = False) -> Any:
    def node(state: Any) -> Any:
        asked = state["messages"][-1].text
        said = "".join(map(text, model.stream(asked))) if streams else text(model.invoke(asked))
        return {"messages": [AIMessage(said)]}

    async def anode(state: Any) -> Any:
        asked = state["messages"][-1].text
        if not streams:
            return {"messages": [AIMessage(text(await model.ainvoke(asked)))]}
        return {"messages": [AIMessage("".join([text(chunk) async for chunk in model.astream(asked)]))]}

    made = StateGraph(MessagesState)
    made.add_node("ask", RunnableLambda(node, anode))
    made.add_edge(START, "ask")
    made.add_edge("ask", END)
    return made.compile()


def nested(model: Any) -> Any:
    """A graph in a graph."""
    made = StateGraph(MessagesState)
    made.add_node("inner", graph_of(model))
    made.add_edge(START, "inner")
    made.add_edge("inner", END)
    return made.compile()


def functional(model: Any) -> Any:
    @task
    async def ask(question: str) -> str:
        return text(await model.ainvoke(question))

    @entrypoint()
    async def flow(given: Any) -> str:
        return await ask(given["messages"][0][1])

    return flow


# Runnables that take a question.
RUNNABLES: dict[str, Callable[[Any], Any]] = {
    "model": lambda m: m,
    "bind": lambda m: m.bind(stop=["x"]),
    "with_config": lambda m: m.with_config(tags=["a"]),
    "with_retry": lambda m: m.with_retry(),
    "with_fallbacks": lambda m: m.with_fallbacks([m]),
    "fallback": lambda m: Down().with_fallbacks([m]),
    "with_listeners": lambda m: m.with_listeners(on_end=lambda run: None),
    "with_types": lambda m: m.with_types(output_type=AIMessage),
    "parser": lambda m: m | StrOutputParser(),
    "prompt": lambda m: {"q": RunnablePassthrough()} | PROMPT | m | StrOutputParser(),
    "parallel": lambda m: RunnableParallel(one=m, two=RunnablePassthrough()),
    "assign": lambda m: RunnableLambda(lambda q: {"q": q}) | RunnablePassthrough.assign(a=PROMPT | m),
    "pick": lambda m: RUNNABLES["assign"](m).pick("a"),
    "lambda": lambda m: RunnableLambda(lambda q: text(m.invoke(q))),
    "lambda that returns a chain": lambda m: RunnableLambda(lambda q: m | StrOutputParser()),
    "generator": pieces_of,
    "branch": lambda m: RunnableBranch((lambda q: False, StrOutputParser()), m | StrOutputParser()),
    "router": lambda m: RunnableLambda(lambda q: {"key": "a", "input": q}) | RouterRunnable({"a": m}),
    "configurable_alternatives": lambda m: (
        CountingChat(name_of_model="other")
        .configurable_alternatives(ConfigurableField(id="which"), default_key="other", this=m)
        .with_config(configurable={"which": "this"})
    ),
    "configurable_fields": lambda m: m.configurable_fields(name_of_model=ConfigurableField(id="name")),
    "own": Mine,
}
GRAPHS: dict[str, Callable[[Any], Any]] = {
    "graph": graph_of,
    "graph whose node streams": lambda m: graph_of(m, streams=True),
    "graph in a graph": nested,
    "create_agent": lambda m: create_agent(m, []),
}


async def _each(question: str) -> AsyncIterator[str]:
    yield question


def _asked(question: str) -> Any:
    return {"messages": [("human", question)]}


# How a stream of one is begun.
METHODS: dict[str, Callable[[Any, str], Any]] = {
    "stream": lambda r, q: r.stream(q),
    "astream": lambda r, q: r.astream(q),
    "transform": lambda r, q: r.transform(iter([q])),
    "atransform": lambda r, q: r.atransform(_each(q)),
    "astream_events": lambda r, q: r.astream_events(q, version="v2"),
    "astream_log": lambda r, q: r.astream_log(q),  # deprecated
    "batch_as_completed": lambda r, q: r.batch_as_completed([q]),
    "abatch_as_completed": lambda r, q: r.abatch_as_completed([q]),
}
OF_GRAPHS: dict[str, Callable[[Any, str], Any]] = {
    "stream": lambda g, q: g.stream(_asked(q)),
    "stream messages": lambda g, q: g.stream(_asked(q), stream_mode="messages", subgraphs=True),
    "astream": lambda g, q: g.astream(_asked(q), stream_mode=["updates", "messages"]),
    "astream_events": lambda g, q: g.astream_events(_asked(q), version="v2"),
}


def _third(graph: Any, question: str) -> Any:
    return iter(graph.stream_events(_asked(question), version="v3"))


def _ways() -> Iterator[tuple[str, Callable[[Any], Any], Callable[[Any, str], Any]]]:
    for name, made in RUNNABLES.items():
        for how in METHODS if name in ("model", "parser") else ("stream", "astream"):
            yield f"{name}: {how}", made, METHODS[how]
    for name, made in GRAPHS.items():
        for how in OF_GRAPHS if name == "create_agent" else ("stream messages", "astream"):
            yield f"{name}: {how}", made, OF_GRAPHS[how]
    yield "functional: astream", functional, OF_GRAPHS["astream"]
    if hasattr(Runnable, "stream_events"):  # newer versions have a third protocol
        yield "model: stream_events", RUNNABLES["model"], lambda m, q: iter(m.stream_events(q, version="v3"))
        for name in ("graph", "create_agent"):
            yield f"{name}: stream_events", GRAPHS[name], _third


WAYS = {name: (made, begin) for name, made, begin in _ways()}

# Those in which also a model that does not stream is asked.
ANSWERED = [name for name in WAYS if name.split(":")[0] in ("own", "lambda", "graph", "create_agent")]
