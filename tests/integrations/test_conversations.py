"""Chats of several turns through the real memories of both frameworks: what is repeated, and what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.query_engine import RetrieverQueryEngine

from ibidem import InvalidInput
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from llama_index_ibidem import CachedLLM
from tests.contracts.llama_index import CountingFunctionCalling, Library, shelves

RESET, REWORDED = "how do I reset my password", "how do I reset my old password"
HOW_LONG = "And how long does it take?"
PAELLA = "Which rice belongs into a paella?"  # shares no word with the others
Say = Callable[[str, str], str]  # a message in a session; returns the answer


class Model(BaseChatModel):
    """Answers what is asked with a number, or with what `condense` makes of it."""

    calls: int = 0
    condense: str = ""

    @property
    def _llm_type(self) -> str:
        return "numbers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": "numbers"}

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.calls += 1
        condenses = self.condense and "standalone" in str(messages[0].content)
        text = self.condense if condenses else f"Answer {self.calls}."
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


@pytest.fixture
def model(cache: SemanticCache) -> Iterator[Model]:
    """A model with a cache."""
    with IbidemCache(cache, any_message=True) as wrapped:
        yield Model(cache=wrapped)


def by_runnable(model: Model) -> Say:
    """`RunnableWithMessageHistory`."""
    template = [("system", "Help."), MessagesPlaceholder("history"), ("human", "{question}")]
    chats: dict[str, InMemoryChatMessageHistory] = {}
    chat = RunnableWithMessageHistory(
        ChatPromptTemplate(template) | model,
        lambda session: chats.setdefault(session, InMemoryChatMessageHistory()),
        input_messages_key="question",
        history_messages_key="history",
    )

    def say(session: str, text: str) -> str:
        return str(chat.invoke({"question": text}, {"configurable": {"session_id": session}}).content)

    return say


def by_graph(model: Model) -> Say:
    """A LangGraph with a checkpointer."""
    graph = StateGraph(MessagesState)
    graph.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_edge(START, "answer")
    compiled = graph.compile(checkpointer=InMemorySaver())

    def say(session: str, text: str) -> str:
        state = compiled.invoke({"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": session}})
        return str(state["messages"][-1].content)

    return say


@pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")
@pytest.mark.parametrize("made", [by_runnable, by_graph])
def test_a_chat_of_langchain(model: Model, made: Callable[[Model], Say]) -> None:
    """Rewording an early turn loses no later one, another subject does; what stands alone is asked alone."""
    say = made(model)
    first = [say("ann", text) for text in (RESET, HOW_LONG, PAELLA)]
    assert (len(set(first)), model.calls) == (3, 3)

    assert [say("bob", text) for text in (REWORDED, HOW_LONG, PAELLA)] == first
    assert say("eve", PAELLA) == first[2]
    assert model.calls == 3
    assert say("eve", HOW_LONG) not in first
    assert say("kim", "I have forgotten all my words") not in first
    assert say("kim", PAELLA) not in first


def test_examples_of_a_template_are_no_turns(model: Model) -> None:
    """Two programs with other examples share nothing, though each question stands alone."""
    pairs = [[{"input": "2 🦜 2", "output": "4"}], [{"input": "2 🦜 2", "output": "0"}]]
    answers = []
    for examples in pairs:
        example = ChatPromptTemplate([("human", "{input}"), ("ai", "{output}")])
        few = FewShotChatMessagePromptTemplate(example_prompt=example, examples=examples)
        chain = ChatPromptTemplate([few, ("human", "{question}")]) | model
        answers += [chain.invoke({"question": PAELLA}).content for _ in range(2)]

    assert answers == ["Answer 1.", "Answer 1.", "Answer 2.", "Answer 2."]


def test_history_is_a_setting(cache: SemanticCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the adapter, else of the environment; another word is an error that names it."""
    turns = [HumanMessage(RESET), AIMessage("Click."), HumanMessage(PAELLA)]
    for history, calls in (("exact", 2), ("standalone", 1), ("meaning", 1), ("ignore", 1)):
        model = Model(cache=IbidemCache(cache, namespace=history, any_message=True, history=history))
        model.invoke(PAELLA)
        model.invoke(turns)
        assert model.calls == calls, history
    monkeypatch.setenv("IBIDEM_HISTORY", "exact")
    model = Model(cache=IbidemCache(cache, namespace="by variable", any_message=True))
    model.invoke(PAELLA)
    model.invoke(turns)
    assert model.calls == 2
    monkeypatch.setenv("IBIDEM_HISTORY", "none")
    with pytest.raises(
        InvalidInput, match="IBIDEM_HISTORY must be one of exact, standalone, meaning, ignore"
    ):
        IbidemCache(cache)
    with pytest.raises(InvalidInput, match="history must be one of"):
        CachedLLM(CountingFunctionCalling(), cache, history="all")


class Shelf(BaseRetriever):
    """Always finds the same."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [Document("The history of the Oslo desk is long; it is sent within three days.", id="oslo")]


def rag(model: Model) -> Any:
    """A chain with a retriever that knows the history."""
    history = MessagesPlaceholder("chat_history")
    condensing = ChatPromptTemplate(
        [("system", "Make a standalone question of it."), history, ("human", "{input}")]
    )
    answering = ChatPromptTemplate([("system", "Answer from this: {context}"), history, ("human", "{input}")])
    searching = create_history_aware_retriever(model, Shelf(), condensing)
    return create_retrieval_chain(searching, create_stuff_documents_chain(model, answering))


def test_the_condensed_question_is_the_key(model: Model) -> None:
    """Two chats that come to the same question share its answer; not where a fact was told."""
    model.condense = "How many days does the Oslo desk need?"
    chain = rag(model)
    said = [HumanMessage("Tell me of the Oslo desk."), AIMessage("It is made of oak.")]
    other = [HumanMessage("Which desks do you sell?"), AIMessage("Only the Oslo desk.")]
    fact = [HumanMessage("I live on an island. Which desks do you sell?"), AIMessage("Only the Oslo desk.")]
    asked = {"input": "And when will it come?", "chat_history": said}
    first = chain.invoke(asked)["answer"]
    calls = model.calls

    assert chain.invoke(asked | {"chat_history": other})["answer"] == first
    assert model.calls == calls + 1  # that which condenses
    assert chain.invoke({"input": model.condense, "chat_history": []})["answer"] == first
    assert chain.invoke(asked | {"chat_history": fact})["answer"] != first
    model.condense = "When will it come?"
    assert chain.invoke(asked | {"chat_history": [*other, *said]})["answer"] != first


SIMPLE, CONTEXT = SimpleChatEngine, ContextChatEngine


@pytest.mark.parametrize("memory", [ChatMemoryBuffer, Memory])
@pytest.mark.parametrize("kind", [SIMPLE, CONTEXT])
async def test_a_chat_engine_of_llama_index(cache: SemanticCache, kind: Any, memory: Any) -> None:
    """As in LangChain, with both kinds of memory."""
    counting = CountingFunctionCalling()
    llm = CachedLLM(counting, cache, any_message=True)
    given = {"retriever": Library({"": shelves()["France"]})} if kind is CONTEXT else {}

    async def chat(*texts: str) -> list[str]:
        remembered = memory.from_defaults()
        engine = kind.from_defaults(llm=llm, memory=remembered, **given)
        found = [str(await engine.achat(text)) for text in texts]
        if isinstance(remembered, Memory):
            await remembered.sql_store._async_engine.dispose()
        return found

    first = await chat(RESET, HOW_LONG, PAELLA)
    calls = len(counting.script.asked)
    assert await chat(REWORDED, HOW_LONG, PAELLA) == first
    assert await chat(PAELLA) == first[2:]
    assert len(counting.script.asked) == calls
    assert (await chat(PAELLA, HOW_LONG))[1] not in first


def condensing(prompt: str, number: int) -> str:
    """Condense what is to be condensed, the same for all; else answer with a number."""
    return "Where is the parliament of France?" if "standalone" in prompt.lower() else f"answer {number}"


@pytest.mark.parametrize("kind", [CondenseQuestionChatEngine, CondensePlusContextChatEngine])
def test_what_a_chat_engine_condenses_is_the_key(cache: SemanticCache, kind: Any) -> None:
    """Two chats that come to the same question share its answer."""
    counting = CountingFunctionCalling()
    counting.script.say = condensing
    llm = CachedLLM(counting, cache, any_message=True)
    library = Library(shelves())

    def chat(*texts: str) -> list[str]:
        source: Any = (
            library
            if kind is CondensePlusContextChatEngine
            else RetrieverQueryEngine.from_args(library, llm=llm)
        )
        engine = kind.from_defaults(source, llm=llm, memory=ChatMemoryBuffer.from_defaults())
        return [str(engine.chat(text)) for text in texts]

    first = chat("Tell me of the rivers of France", "And its parliament?")
    asked = len(counting.script.asked)
    other = chat("Which cities of France do you know", "And its parliament?")

    assert other[1] == first[1]
    assert len(counting.script.asked) <= asked + 2  # the other first message, and that which condenses


def test_openai_answers_a_conversation(cache: SemanticCache) -> None:
    """The wrapped client: each call brings the whole conversation."""
    openai = pytest.importorskip("openai")
    from ibidem.openai import wrap
    from tests.openai_server import running_openai

    with running_openai() as server:
        client = wrap(openai.OpenAI(base_url=server.url, api_key="k"), cache, any_message=True)

        def chat(*texts: str) -> list[str]:
            said: list[Any] = []
            for text in texts:
                said.append({"role": "user", "content": text})
                done = client.chat.completions.create(model="m", messages=said)
                said.append({"role": "assistant", "content": done.choices[0].message.content})
            return [message["content"] for message in said[1::2]]

        first = chat(RESET, HOW_LONG, PAELLA)
        calls = len(server.requests)
        assert chat(REWORDED, HOW_LONG, PAELLA) == first
        assert chat(PAELLA) == first[2:]
        assert len(server.requests) == calls
