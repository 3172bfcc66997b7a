"""What an answer before retrieval takes, beside the whole chain or engine, and what reading the corpus costs.

The corpus is a document for each of many products. Its vector store is the framework's own, in memory;
questions are embedded by the default embedder, for the search as for the cache. The model takes no time: what
a real one takes comes on top of the whole chain. Medians.

    python -m tests.benchmarks.answer_first [--documents 10000] [--asks 50]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice, product
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from pydantic import PrivateAttr
from rich.console import Console
from rich.table import Table

import ibidem
from ibidem.embedding import resolve_embedder
from langchain_ibidem import IbidemCache, answer_first
from llama_index_ibidem import AnswerFirst, CachedLLM
from tests.embedders import BagOfWords
from tests.shop import products

ASKED = "How long can I return the Borun lamp?"
REWORDED = "How long can I return a Borun lamp?"
PROMPT = ChatPromptTemplate.from_template("Answer from:\n{context}\n\nQuestion: {question}")


class Store(Embeddings):
    """Documents as bags of words, which takes no time; questions by the default embedder."""

    def __init__(self) -> None:
        self.model, self.bag = resolve_embedder(None), BagOfWords(384)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(x) for x in row] for row in self.bag.embed(texts)]

    def embed_query(self, text: str) -> list[float]:
        return [float(x) for x in self.model.embed([text])[0]]


class OfIndex(BaseEmbedding):
    """The same for LlamaIndex."""

    _store: Store = PrivateAttr(default_factory=Store)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._store.embed_documents([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._store.embed_query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._store.embed_query(query)


def texts(count: int) -> list[str]:
    """So many documents."""
    found = (
        f"The {name} can be returned within {days} days." for days, name in product(range(count), products())
    )
    return list(islice(found, count))


def median(ask: Callable[[], Any], asks: int) -> float:
    """Milliseconds of one call."""
    times = []
    ask()
    for _ in range(asks):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def langchain(cache: Any, documents: list[str], asks: int) -> list[tuple[str, list[float]]]:
    """Rows of LangChain."""
    store, records = InMemoryVectorStore(Store()), InMemoryRecordManager("shop")
    ids = [f"{number:064x}" for number in range(len(documents))]
    store.add_documents([Document(text) for text in documents], ids=ids)
    records.update(ids)

    def chain(**given: Any) -> Any:
        model = FakeListChatModel(responses=["Within 30 days."], **given)
        context = store.as_retriever() | (lambda found: "\n".join(each.page_content for each in found))
        return {"context": context, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()

    before = answer_first(chain(), cache, corpus="v1"), answer_first(chain(), cache, corpus=records)
    plain, cached = chain(), chain(cache=IbidemCache(cache))
    return [
        ("whole chain", [median(lambda: plain.invoke(ASKED), asks)]),
        ("its model cached", [median(lambda: cached.invoke(ASKED), asks)]),
        ("answer_first, the same words", [median(partial(each.invoke, ASKED), asks) for each in before]),
        ("answer_first, other words", [median(partial(each.invoke, REWORDED), asks) for each in before]),
    ]


def llama_index(cache: Any, documents: list[str], asks: int) -> list[tuple[str, list[float]]]:
    """Rows of LlamaIndex."""
    Settings.embed_model, Settings.llm = OfIndex(), MockLLM()
    index = VectorStoreIndex([TextNode(text=text) for text in documents])
    plain, cached = index.as_query_engine(), index.as_query_engine(llm=CachedLLM(MockLLM(), cache))
    before = [AnswerFirst(index.as_query_engine(), cache, corpus=each) for each in ("v1", index.docstore)]
    return [
        ("whole engine", [median(lambda: plain.query(ASKED), asks)]),
        ("its model cached", [median(lambda: cached.query(ASKED), asks)]),
        ("AnswerFirst, the same words", [median(partial(each.query, ASKED), asks) for each in before]),
        ("AnswerFirst, other words", [median(partial(each.query, REWORDED), asks) for each in before]),
    ]


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--documents", type=int, default=10_000)
    options.add_argument("--asks", type=int, default=50)
    chosen = options.parse_args()
    documents = texts(chosen.documents)
    title = f"A question over {chosen.documents:,} documents, ms"
    table = Table("", "version", "record manager, document store", title=title)
    with tempfile.TemporaryDirectory() as place, ibidem.open(place) as cache:
        for rows in (langchain(cache, documents, chosen.asks), llama_index(cache, documents, chosen.asks)):
            for name, times in rows:
                table.add_row(name, *(f"{each:.2f}" for each in times))
            table.add_section()
        by_meaning = cache.stats().hits.get("semantic", 0)
        assert by_meaning > 4 * chosen.asks, "the other words were not taken for the same question"
    Console().print(table)


if __name__ == "__main__":
    main()
