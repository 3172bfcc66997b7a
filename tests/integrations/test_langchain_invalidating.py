"""A document changes and is indexed anew; the answers that rested on it go, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import CharacterTextSplitter

from ibidem.cache import SemanticCache
from ibidem.errors import StorageError
from langchain_ibidem import IbidemCache, invalidating
from tests.conftest import OpenCache

RETURNS = "Goods can be returned within {} days of delivery."
SHOPS = "Our shops are in Lyon and in Nice."
PROMPT = ChatPromptTemplate.from_template("Answer from:\n{context}\n\nQuestion: {question}")


class Shop:
    """A small RAG program over two files, its index, and a cache."""

    def __init__(self, cache: SemanticCache) -> None:
        self.cache = cache
        self.store = InMemoryVectorStore(DeterministicFakeEmbedding(size=16))
        self.records = InMemoryRecordManager("shop")
        self.records.create_schema()
        self.chains = {source: self._chain(source) for source in ("returns.md", "shops.md")}

    def _chain(self, source: str) -> Runnable[str, str]:
        kept = {"k": 4, "filter": lambda document: document.metadata["source"] == source}
        retriever = self.store.as_retriever(search_kwargs=kept)
        # A program that shows the model an old text although the index has a new one must not be served it.
        model = FakeListChatModel(
            responses=[f"{n} from {source}" for n in range(50)], cache=IbidemCache(self.cache)
        )
        context = retriever | (lambda found: "\n".join(document.page_content for document in found))
        return {"context": context, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()

    def documents(self, days: int) -> list[Document]:
        """The files, cut into chunks."""
        files = {"returns.md": RETURNS.format(days), "shops.md": SHOPS}
        whole = [Document(text, metadata={"source": source}) for source, text in files.items()]
        return CharacterTextSplitter(chunk_size=60, chunk_overlap=0).split_documents(whole)

    def index(self, days: int) -> dict[str, Any]:
        """Index the files as they are now."""
        return dict(
            index(
                self.documents(days),
                invalidating(self.records, self.cache),
                self.store,
                cleanup="incremental",
                source_id_key="source",
                key_encoder="sha256",
            )
        )

    def ask(self, source: str) -> str:
        """What the program answers."""
        return self.chains[source].invoke("What do you know about it?")

    def entries(self) -> int:
        """How many answers are stored."""
        return self.cache.stats().entries


@pytest.fixture
def shop(cache: SemanticCache) -> Shop:
    """A shop whose files are indexed and were asked about."""
    made = Shop(cache)
    made.index(30)
    for source in made.chains:
        assert made.ask(source) == made.ask(source) == f"0 from {source}"
    return made


def test_the_chunk_and_its_source_are_behind_the_answer(shop: Shop) -> None:
    """By the ids that the vector store and the loader gave them."""
    (entry,) = shop.cache.invalidate(document="returns.md", dry_run=True).entries
    (source,) = entry.sources
    assert source.id in shop.records.list_keys()
    assert source.source == "returns.md"
    assert shop.cache.invalidate(document=source.id, dry_run=True).count == 1


def test_a_changed_file_takes_its_answers_along(shop: Shop) -> None:
    """Those of the other file stay; the new answer is stored."""
    assert shop.index(30)["num_deleted"] == 0
    assert shop.entries() == 2
    assert shop.index(14)["num_deleted"] == 1
    assert shop.entries() == 1
    assert shop.ask("shops.md") == "0 from shops.md"
    assert shop.ask("returns.md") == shop.ask("returns.md") == "1 from returns.md"


async def test_async_indexing_does_the_same(shop: Shop) -> None:
    """With every method of the record manager that it calls."""
    records = invalidating(shop.records, shop.cache)
    await records.acreate_schema()
    for cleanup in ("incremental", "full"):
        await aindex(
            shop.documents(14)[:1],
            records,
            shop.store,
            cleanup=cleanup,
            source_id_key="source",
            key_encoder="sha256",
        )
    assert shop.entries() == 0
    assert await records.alist_keys() == records.list_keys()
    assert await records.aexists(["x"]) == records.exists(["x"]) == [False]


def test_a_file_that_is_gone_takes_its_answers_along(shop: Shop) -> None:
    """By a full clean-up."""
    records = invalidating(shop.records, shop.cache)
    records.create_schema()
    index(shop.documents(30)[1:], records, shop.store, cleanup="full", key_encoder="sha256")
    assert shop.entries() == 1
    assert records.get_time() > 0


def test_if_the_cache_fails_indexing_can_be_repeated(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys are still known, and so is what rests on them."""

    def fail(**_: object) -> None:
        raise StorageError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(shop.cache, "invalidate", fail)
        with pytest.raises(StorageError):
            shop.index(14)
    assert shop.entries() == 2
    shop.index(14)
    assert shop.entries() == 1


def test_by_hand_it_is_one_line(shop: Shop) -> None:
    """By the name of the file; with its present chunks only what they do not say."""
    now = [document.page_content for document in shop.documents(30)]
    assert shop.cache.invalidate(document="returns.md", current=now).count == 0
    assert shop.cache.invalidate(document="returns.md").count == 1


@pytest.mark.parametrize("mark", [lambda m: m, lambda m: m["ibidem"]], ids=["metadata", "marker"])
def test_a_message_tells_which_answer_was_bad(cache: SemanticCache, mark: Callable[[Any], Any]) -> None:
    """A repeated one; of a fresh one nothing is known."""
    model = FakeListChatModel(responses=["bad", "good"], cache=IbidemCache(cache))
    fresh, repeated = (model.invoke("How long can I return goods?") for _ in range(2))
    assert cache.feedback(fresh.response_metadata, good=False) is False
    assert cache.feedback(mark(repeated.response_metadata), good=False)
    assert model.invoke("How long can I return goods?").content == "good"
    assert model.invoke("How long can I return goods?").content == "good"


class _Found(BaseRetriever):
    """Finds what the test says."""

    found: Any

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return list(self.found)


@pytest.mark.parametrize("relaxed", [False, True])
async def test_what_is_indexed_anew_is_new_to_answers_made_before(
    open_cache: OpenCache, relaxed: bool
) -> None:
    """A passage that was added and is retrieved now; one that was indexed again is not new."""
    cache = open_cache(new_documents="ignore" if relaxed else "miss")
    shop = Shop(cache)
    retrieved: list[Document] = []
    model = FakeListChatModel(
        responses=["Goods can be returned within 30 days."] * 9, cache=IbidemCache(cache)
    )
    context = _Found(found=retrieved) | (lambda found: "\n".join(one.page_content for one in found))
    chain = {"context": context, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()

    def ask(question: str) -> str:
        chain.invoke(question)
        (last,) = cache.recent(1)
        return last.tier or last.reason

    shop.index(30)
    retrieved[:] = shop.store.similarity_search("returned", k=1, filter=lambda one: "30" in one.page_content)
    assert ask("How long can I return goods?") == "empty"
    retrieved += shop.store.similarity_search("shops", k=1, filter=lambda one: "Lyon" in one.page_content)
    assert ask("How long can I return the goods?") == "semantic"
    shop.index(30)
    assert ask("How long can I return the goods ok?") == "semantic"
    sale = Document("Sale goods cannot be returned.", metadata={"source": "sale.md"})
    records = invalidating(shop.records, cache)
    await aindex([sale], records, shop.store, cleanup=None, key_encoder="sha256")
    retrieved += shop.store.similarity_search("sale", k=1, filter=lambda one: "Sale" in one.page_content)
    assert ask("How long can I return the goods please?") == ("semantic" if relaxed else "documents_added")
