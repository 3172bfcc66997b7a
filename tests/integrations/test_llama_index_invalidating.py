"""A document changes and is indexed anew; the answers that rested on it go, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters, SimpleVectorStore

from ibidem.cache import SemanticCache
from ibidem.errors import StorageError
from llama_index_ibidem import CachedLLM, CachedSynthesizer, invalidating
from tests.conftest import OpenCache
from tests.contracts.llama_index import settings_restored

KINDS = ("model", "synthesizer")


@pytest.fixture(autouse=True)
def _settings() -> Any:
    with settings_restored():
        Settings.embed_model = MockEmbedding(embed_dim=4)
        Settings.transformations = [SentenceSplitter()]
        yield


def documents(days: int) -> list[Document]:
    """Two files."""
    texts = {
        "returns.md": f"Goods can be returned within {days} days.",
        "shops.md": "We are in Lyon and Nice.",
    }
    return [Document(text=text, id_=name, metadata={"file": name}) for name, text in texts.items()]


def ask(index: VectorStoreIndex, cache: SemanticCache, kind: str, file: str) -> str:
    """Ask about one file; the model answers with its prompt."""
    filters = MetadataFilters(filters=[ExactMatchFilter(key="file", value=file)])
    model = MockLLM()
    if kind == "model":
        engine = index.as_query_engine(llm=CachedLLM(model, cache), filters=filters)
    else:
        synthesizer = CachedSynthesizer(get_response_synthesizer(llm=model), cache)
        engine = RetrieverQueryEngine(index.as_retriever(filters=filters), synthesizer)
    return str(engine.query("What do you know about it?"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What is cached."""
    return str(request.param)


@pytest.fixture
def index(cache: SemanticCache, kind: str) -> VectorStoreIndex:
    """An index of both files that were asked about."""
    made = VectorStoreIndex.from_documents(documents(30))
    for file in ("returns.md", "shops.md"):
        ask(made, cache, kind, file)
    assert cache.stats().entries == 2
    return made


def test_the_node_and_its_document_are_behind_the_answer(
    index: VectorStoreIndex, cache: SemanticCache
) -> None:
    """By the ids that LlamaIndex gave them."""
    (entry,) = cache.invalidate(document="returns.md", dry_run=True).entries
    (source,) = entry.sources
    assert source.id in index.docstore.docs
    assert cache.invalidate(document=source.id, dry_run=True).count == 1


def test_a_refreshed_document_takes_its_answers_along(
    index: VectorStoreIndex, cache: SemanticCache, kind: str
) -> None:
    """Those of the other file stay; the new answer is stored."""
    with invalidating(index.docstore, cache):
        assert index.refresh_ref_docs(documents(30)) == [False, False]
    assert cache.stats().entries == 2
    with invalidating(index.docstore, cache):
        assert index.refresh_ref_docs(documents(14)) == [True, False]
    assert cache.stats().entries == 1
    assert "14 days" in ask(index, cache, kind, "returns.md")
    assert cache.stats().entries == 2


def test_a_deleted_document_takes_its_answers_along(index: VectorStoreIndex, cache: SemanticCache) -> None:
    """Once its hash is deleted."""
    with invalidating(index.docstore, cache):
        index.delete_ref_doc("shops.md", delete_from_docstore=True)
    assert cache.stats().entries == 1
    assert cache.invalidate(document="returns.md").count == 1


def test_a_new_document_costs_nothing(index: VectorStoreIndex, cache: SemanticCache) -> None:
    """Nothing rests on it."""
    with invalidating(index.docstore, cache):
        index.insert(Document(text="We open at nine.", id_="hours.md"))
    assert cache.stats().entries == 2


def test_if_the_work_fails_what_changed_is_invalidated(index: VectorStoreIndex, cache: SemanticCache) -> None:
    """And the failure is the program's."""

    def fail_on_the_way() -> None:
        with invalidating(index.docstore, cache):
            index.refresh_ref_docs(documents(14))
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail_on_the_way()
    assert cache.stats().entries == 1


def test_a_cache_that_fails_says_so(
    index: VectorStoreIndex, cache: SemanticCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it may be out of date."""

    def fail(**_: object) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(cache, "invalidate", fail)
    with pytest.raises(StorageError), invalidating(index.docstore, cache):
        index.refresh_ref_docs(documents(14))


@pytest.mark.parametrize("strategy", [DocstoreStrategy.UPSERTS, DocstoreStrategy.UPSERTS_AND_DELETE])
async def test_a_pipeline_takes_the_answers_along(cache: SemanticCache, kind: str, strategy: Any) -> None:
    """Of documents that it updates, and of those that it deletes."""
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), Settings.embed_model],
        docstore=SimpleDocumentStore(),
        vector_store=SimpleVectorStore(stores_text=False),
        docstore_strategy=strategy,
    )
    nodes = pipeline.run(documents=documents(30))
    index = VectorStoreIndex(nodes)
    for file in ("returns.md", "shops.md"):
        ask(index, cache, kind, file)
    with invalidating(pipeline.docstore, cache):
        await pipeline.arun(documents=documents(14))
    assert cache.stats().entries == 1
    with invalidating(pipeline.docstore, cache):
        pipeline.run(documents=documents(14)[:1])
    assert cache.stats().entries == (0 if "delete" in strategy.value else 1)


def test_a_response_tells_which_answer_was_bad(index: VectorStoreIndex, cache: SemanticCache) -> None:
    """That of a synthesizer in its metadata, that of a model in `raw`."""
    synthesizer = CachedSynthesizer(get_response_synthesizer(llm=MockLLM()), cache)
    engine = RetrieverQueryEngine(index.as_retriever(), synthesizer)
    fresh, repeated = (engine.query("How long can I return goods?") for _ in range(2))
    assert cache.feedback(fresh.metadata, good=False) is False
    assert cache.feedback(repeated.metadata, good=False)
    assert engine.query("How long can I return goods?").metadata["ibidem"] == {"hit": False}

    llm = CachedLLM(MockLLM(), cache)
    fresh, repeated = (llm.complete("How long can I return goods?") for _ in range(2))
    assert cache.feedback(repeated.raw, good=False)
    assert not llm.complete("How long can I return goods?").raw


class CustomMock(CustomLLM):
    """Says the same always."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text="Goods can be returned within 30 days.")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        yield self.complete(prompt)


class Found(BaseRetriever):
    """Finds the nodes that hold one of the words."""

    def __init__(self, index: VectorStoreIndex, *words: str) -> None:
        self._index, self._words = index, words
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        nodes = self._index.docstore.docs.values()
        held = [one for one in nodes if any(word in one.get_content() for word in self._words)]
        return [NodeWithScore(node=node) for node in held]


@pytest.mark.parametrize("relaxed", [False, True])
def test_what_is_new_is_new_to_answers_made_before(open_cache: OpenCache, kind: str, relaxed: bool) -> None:
    """A document that was inserted and is retrieved now; one that was refreshed unchanged is not new."""
    cache = open_cache(new_documents="ignore" if relaxed else "miss")
    index = VectorStoreIndex.from_documents(documents(30))

    def asked(question: str, *words: str) -> str:
        model = CustomMock()
        llm = CachedLLM(model, cache) if kind == "model" else model
        synthesizer = get_response_synthesizer(llm=llm)
        if kind == "synthesizer":
            synthesizer = CachedSynthesizer(synthesizer, cache)
        RetrieverQueryEngine(Found(index, *words), synthesizer).query(question)
        (last,) = cache.recent(1)
        return last.tier or last.reason

    assert asked("How long can I return goods?", "returned") == "empty"
    assert asked("How long can I return the goods?", "returned", "Lyon") == "semantic"
    with invalidating(index.docstore, cache):
        index.refresh_ref_docs(documents(30))
    assert asked("How long can I return the goods ok?", "returned", "Lyon") == "semantic"
    with invalidating(index.docstore, cache):
        index.insert(Document(text="Sale goods cannot be returned.", id_="sale.md"))
    wanted = "semantic" if relaxed else "documents_added"
    assert asked("How long can I return the goods please?", "returned", "Lyon") == wanted
    assert asked("How long can I return the goods please ok?", "30", "Lyon") == "semantic"
