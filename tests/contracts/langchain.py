"""What the tests of the LangChain adapter share: models that count, a retriever, a core that remembers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import LLM, BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from pydantic import PrivateAttr

import ibidem

COUNTRIES = (
    "France Peru Japan Kenya Chile Ghana India Italy Spain Egypt Qatar Nepal Tonga Samoa Malta Libya Sudan "
    "Yemen Syria Gabon"
).split()
RAG = ChatPromptTemplate.from_messages(
    [
        ("system", "You answer briefly, from the context only.\nContext:\n{context}"),
        ("human", "Question: {question}\nAnswer:"),
    ]
)


class Recording:
    """Passes everything on to a core and remembers the requests that were looked up and stored."""

    def __init__(self, core: ibidem.cache.SemanticCache) -> None:
        self.core = core
        self.steps = replace(core.steps, search=self._search, store=self.store)
        self.looked_up: list[ibidem.Request] = []
        self.stored: list[ibidem.Request] = []
        self.hits: list[ibidem.Hit] = []

    def _search(self, request: ibidem.Request) -> ibidem.Hit | ibidem.Miss:
        self.looked_up.append(request)
        found = self.core.steps.search(request)
        if isinstance(found, ibidem.Hit):
            self.hits.append(found)
        return found

    def store(self, request: ibidem.Request, answer: ibidem.Answer) -> ibidem.Stored | ibidem.Rejected:
        self.stored.append(request)
        return self.core.store(request, answer)

    def clear(self, namespace: str | None = None) -> int:
        return self.core.clear(namespace)

    def close(self) -> None:
        self.core.close()


class Calls:
    """A thread-safe counter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def next(self) -> int:
        with self._lock:
            self.count += 1
            return self.count


class CountingChat(BaseChatModel):
    """Answers "answer 1", "answer 2", ... or what `say` holds; does not stream."""

    name_of_model: str = "counting"
    say: tuple[AIMessage, ...] = ()
    _calls: Calls = PrivateAttr(default_factory=Calls)

    @property
    def calls(self) -> int:
        return self._calls.count

    @property
    def _llm_type(self) -> str:
        return "counting-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.name_of_model}

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        number = self._calls.next()
        message = self.say[(number - 1) % len(self.say)] if self.say else AIMessage(f"answer {number}")
        return ChatResult(generations=[ChatGeneration(message=message.model_copy(deep=True))])


class CountingCompletion(LLM):
    """The same as a completion model."""

    _calls: Calls = PrivateAttr(default_factory=Calls)

    @property
    def calls(self) -> int:
        return self._calls.count

    @property
    def _llm_type(self) -> str:
        return "counting-completion"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": "counting"}

    def _call(self, prompt: str, *args: Any, **kwargs: Any) -> str:
        return f"answer {self._calls.next()}"


class Library(BaseRetriever):
    """Returns the documents whose keyword stands in the query."""

    shelves: dict[str, list[Document]]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [document for word, shelf in self.shelves.items() if word in query for document in shelf]


def join(documents: Sequence[Document]) -> str:
    """The usual way to put documents into a prompt."""
    return "\n\n".join(document.page_content for document in documents)


def shelves(edition: str = "") -> dict[str, list[Document]]:
    return {
        country: [
            Document(f"The largest city of {country} lies at a river{edition}.", id=f"{country}-1"),
            Document(f"The parliament of {country} sits in its second city{edition}.", id=f"{country}-2"),
        ]
        for country in COUNTRIES
    }
