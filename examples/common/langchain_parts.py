"""What the LangChain demos need beside the app: offline models, their documents, Ibidem's embedder."""

from __future__ import annotations

import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from langchain.chat_models import init_chat_model
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import BaseTool
from langchain_core.vectorstores import VectorStore

from common.corpus import Passage
from common.reader import LABEL, estimated_tokens, extract, rare_words
from ibidem.embedding import Embedder


class LocalEmbeddings(Embeddings):
    """Ibidem's own embedder for a LangChain vector store, so that the demo needs no second model."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        return self.embedder.embed(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of what is searched for."""
        return self.embed_documents([text])[0]


class OfflineReader(BaseChatModel):
    """Quotes from the system message what fits the last message. See `common.reader`.

    `delay` seconds are slept before an answer, to stand for the time a real model takes.
    """

    delay: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "offline-extractive-reader"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": LABEL}

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        time.sleep(self.delay)
        return self._answer(messages, **kwargs)

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        """The same word by word, which takes as long."""
        (whole,) = self._answer(messages, **kwargs).generations
        message = whole.message
        words = re.findall(r"\s*\S+", message.text) or [""]
        for word in words:
            time.sleep(self.delay / len(words))
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        told = {"tool_calls", "usage_metadata", "response_metadata"}
        yield ChatGenerationChunk(
            message=AIMessageChunk("", chunk_position="last", **message.model_dump(include=told))
        )

    def _answer(self, messages: list[BaseMessage], **kwargs: Any) -> ChatResult:
        prompt = "\n\n".join(str(m.content) for m in messages if m.type == "system")
        # The first paragraph is the instruction, the rest are the excerpts.
        answer = extract(str(messages[-1].content), prompt.partition("\n\n")[2])
        return self._saying(AIMessage(answer), f"{prompt} {messages[-1].content}")

    @staticmethod
    def _saying(message: AIMessage, prompt: str) -> ChatResult:
        """The message as a model gives it, with what it took."""
        asked, said = estimated_tokens(prompt), estimated_tokens(message.text)
        message.usage_metadata = {"input_tokens": asked, "output_tokens": said, "total_tokens": asked + said}
        message.response_metadata = {"model_name": LABEL, "finish_reason": "stop"}
        return ChatResult(generations=[ChatGeneration(message=message)])


class OfflineAgent(OfflineReader):
    """Calls the tool whose description shares rare words with the question, then quotes from what it gave.

    A tool that takes nothing is called for what its description names; any other is given the question's
    rare words.
    """

    def bind_tools(self, tools: Sequence[BaseTool], **kwargs: Any) -> Any:
        """Offer these tools."""
        offered = [{"name": one.name, "about": one.description, "takes": list(one.args)} for one in tools]
        return self.bind(tools=offered, **kwargs)

    def _answer(self, messages: list[BaseMessage], tools: Sequence[Any] = (), **kwargs: Any) -> ChatResult:
        question = next(str(m.content) for m in reversed(messages) if m.type == "human")
        shown = " ".join(str(message.content) for message in messages)
        if isinstance(messages[-1], ToolMessage):
            found = str(messages[-1].content)
            answer = found if len(found.splitlines()) == 1 else extract(question, found)
            return self._saying(AIMessage(answer), shown)
        words = rare_words(question)
        chosen = next(
            (one for one in tools if not one["takes"] and rare_words(one["about"]) & words), tools[-1]
        )
        given = dict.fromkeys(chosen["takes"], " ".join(sorted(words)))
        call = ToolCall(name=chosen["name"], args=given, id=f"call_{uuid4()}")
        return self._saying(AIMessage("", tool_calls=[call]), shown)


def choose_model(options: Namespace, offline: BaseChatModel) -> BaseChatModel:
    """The model asked for, else the offline one."""
    if not options.model:
        return offline
    try:
        return init_chat_model(options.model, temperature=0)
    except Exception as error:  # every provider has its own
        sys.exit(f"--model {options.model}: {error}\nWithout --model, an offline reader answers.")


def as_document(passage: Passage) -> Document:
    """A passage as LangChain indexes it."""
    return Document(passage.text, id=passage.id, metadata={"topic": passage.topic})


class StoredPassages:
    """The passages in a LangChain vector store. See `common.demo.Documents`."""

    def __init__(self, store: VectorStore) -> None:
        self.store = store

    def nearest(self, text: str, count: int) -> list[Passage]:
        """Those that the app would retrieve for a text."""
        found = self.store.similarity_search(text, k=count)
        return [Passage(str(d.id), d.metadata["topic"], d.page_content) for d in found]

    def replace(self, passage: Passage) -> None:
        """Put a passage in the place of the one with its id."""
        self.store.delete([passage.id])
        self.store.add_documents([as_document(passage)])
