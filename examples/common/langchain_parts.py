"""What the LangChain demo needs beside the app: an offline model, edited documents."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.vectorstores import VectorStore

import ibidem
from common.reader import LABEL, estimated_tokens, extract
from ibidem.embedding import Embedder
from ibidem.evidence import supporting


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


@contextlib.contextmanager
def edited(store: VectorStore, document: Document) -> Iterator[None]:
    """The vector store with one more sentence in a document; as before at the end, for the next run."""
    text = f"{document.page_content}\n\nThis passage was edited on {datetime.now()}."
    try:
        _replace(store, document.model_copy(update={"page_content": text}))
        yield
    finally:
        _replace(store, document)


def _replace(store: VectorStore, document: Document) -> None:
    store.delete([str(document.id)])
    store.add_documents([document])


def resting_on(answer: str, question: str, documents: list[Document]) -> list[Document]:
    """Those of the documents that the answer is taken from, by Ibidem's own rule; all if it cannot tell."""
    pairs = [(document, ibidem.Document(document.id or "", document.page_content)) for document in documents]
    evidence = supporting(answer, question, [known for _, known in pairs])
    return [document for document, known in pairs if known.digest in evidence] or documents
