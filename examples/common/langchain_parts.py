"""What the LangChain demo needs beside the app: an offline model, its documents, Ibidem's embedder."""

from __future__ import annotations

import time
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.vectorstores import VectorStore

from common.corpus import Passage
from common.reader import LABEL, estimated_tokens, extract
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
        return {"model": LABEL}  # without the delay: it does not change the answer

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        time.sleep(self.delay)
        prompt = "\n\n".join(str(m.content) for m in messages if m.type == "system")
        # The first paragraph is the instruction, the rest are the excerpts.
        answer = extract(str(messages[-1].content), prompt.partition("\n\n")[2])
        asked, said = (estimated_tokens(text) for text in (f"{prompt} {messages[-1].content}", answer))
        message = AIMessage(
            answer,
            usage_metadata={"input_tokens": asked, "output_tokens": said, "total_tokens": asked + said},
            response_metadata={"model_name": LABEL, "finish_reason": "stop"},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


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
