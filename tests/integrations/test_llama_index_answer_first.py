"""`AnswerFirst`: no retrieval for a hit, and no answer that the engine would not give over this corpus."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core import Document, Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine, RouterQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import QueryEngineTool, ToolMetadata
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import PrivateAttr

import ibidem
from ibidem.cache import SemanticCache
from ibidem.errors import InvalidInput
from llama_index_ibidem import AnswerFirst, CachedLLM, CachedSynthesizer, invalidating
from tests.conftest import OpenCache
from tests.contracts.llama_index import Broke, CountingEvents, CountingFunctionCalling, settings_restored
from tests.embedders import BagOfWords
from tests.integrations.test_langchain_answer_first import ASKED, OTHER, QUESTIONS, REWORDED


class Words(BaseEmbedding):
    """Bags of words, for the vector store."""

    _bag: BagOfWords = PrivateAttr(default_factory=lambda: BagOfWords(512))

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(x) for x in self._bag.embed([text])[0]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def read(prompt: str, number: int) -> str:
    """What a model says that reads out its context: over another context it is another answer."""
    return prompt.split("---------------------")[1].strip() if "-----" in prompt else prompt


class Shop:
    """A corpus with an index, and engines over it."""

    def __init__(self, cache: SemanticCache, texts: dict[str, str] | None = None) -> None:
        self.cache = cache
        told = {"lamp.md": "The lamp takes 3 days to France.", "kettle.md": "The kettle weighs 1 kg."}
        self.texts = told if texts is None else texts
        self.model = CountingFunctionCalling()
        self.script.say = read
        self.index = VectorStoreIndex.from_documents([self.document(name) for name in self.texts])
        self.searches = 0

    @property
    def script(self) -> Any:
        return self.model.script

    def document(self, name: str) -> Document:
        """A file as it is now."""
        return Document(text=self.texts[name], id_=name)

    def engine(self, **options: Any) -> BaseQueryEngine:
        """An engine over the index as it is now, which counts its searches."""
        top = options.pop("similarity_top_k", 2)
        engine: Any = self.index.as_query_engine(llm=self.model, similarity_top_k=top, **options)
        engine._retriever = Counting(engine._retriever, self)
        return engine  # type: ignore[no-any-return]

    def first(self, engine: BaseQueryEngine | None = None, **options: Any) -> AnswerFirst:
        """The same with the cache before it."""
        return AnswerFirst(engine or self.engine(), self.cache, **{"corpus": self.index, **options})


class Counting(BaseRetriever):
    """A retriever that counts for the shop."""

    def __init__(self, retriever: BaseRetriever, shop: Shop) -> None:
        self._found, self._count = retriever, lambda: setattr(shop, "searches", shop.searches + 1)
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._count()
        return self._found.retrieve(query_bundle)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with settings_restored():
        Settings.embed_model = Words()
        Settings.transformations = [SentenceSplitter()]
        yield


@pytest.fixture
def shop(cache: SemanticCache) -> Shop:
    """A shop whose corpus is indexed."""
    return Shop(cache)


# A hit


def _in_async(engine: BaseQueryEngine, question: str) -> Any:
    async def ask() -> Any:
        response = await engine.aquery(question)
        if isinstance(response, AsyncStreamingResponse):
            text = "".join([piece async for piece in response.response_gen])
            return Response(text, response.source_nodes, response.metadata)
        return response

    return asyncio.run(ask())


def _in_sync(engine: BaseQueryEngine, question: str) -> Any:
    response = engine.query(question)
    return response.get_response() if isinstance(response, StreamingResponse) else response


WAYS: dict[str, Callable[[BaseQueryEngine, str], Any]] = {"query": _in_sync, "aquery": _in_async}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("asks", WAYS)
def test_a_hit_retrieves_nothing(shop: Shop, asks: str, streaming: bool) -> None:
    """The response is equal, with its source nodes, and says that it is repeated."""
    first = shop.first(shop.engine(streaming=streaming))
    said = WAYS[asks](first, ASKED)
    assert "3 days" in str(said)
    assert shop.searches == len(shop.script.asked) == 1
    assert not said.metadata["ibidem"]["hit"]
    for repeat in WAYS.values():
        for question in (ASKED, REWORDED):
            again = repeat(first, question)
            assert str(again) == str(said)
            assert again.source_nodes == said.source_nodes
            assert again.metadata["ibidem"]["hit"]
            assert again.metadata.keys() == said.metadata.keys()
    assert shop.searches == len(shop.script.asked) == 1
    assert first.faults() == {}


def test_a_streaming_engine_gets_a_stream(shop: Shop) -> None:
    """In pieces, on a miss and a hit."""
    first = shop.first(shop.engine(streaming=True))
    for _ in range(2):
        response = first.query(ASKED)
        assert isinstance(response, StreamingResponse)
        assert len(list(response.response_gen)) > 1
    assert shop.searches == 1
    assert isinstance(asyncio.run(first.aquery(ASKED)), AsyncStreamingResponse)


def test_an_engine_that_is_made_anew_shares_the_answers(shop: Shop) -> None:
    """Of the same settings, over the same index; another one does not."""
    shop.first().query(ASKED)
    shop.first().query(ASKED)
    assert shop.searches == 1
    prompt = PromptTemplate("In French:\n-----\n{context_str}\n---------------------\n{query_str}")
    others = [
        shop.engine(similarity_top_k=1),
        shop.engine(response_mode="refine"),
        shop.engine(text_qa_template=prompt),
        RetrieverQueryEngine(
            shop.index.as_retriever(), get_response_synthesizer(llm=CountingFunctionCalling(model="x"))
        ),
    ]
    for engine in others:
        shop.first(engine).query(ASKED)
    assert shop.cache.stats().entries == 1 + len(others)


def test_prompts_are_those_of_the_engine(shop: Shop) -> None:
    """They can be read and replaced; then it is another engine."""
    first = shop.first()
    first.query(ASKED)
    (name,) = (name for name in first.get_prompts() if name.endswith("text_qa_template"))
    first.update_prompts(
        {name: PromptTemplate("-----\n---------------------{context_str}---------------------{query_str}")}
    )
    assert not first.query(ASKED).metadata["ibidem"]["hit"]


def test_handlers_see_a_query(shop: Shop) -> None:
    """One, with its response, on a miss and on a hit."""
    engine = shop.engine()
    events = CountingEvents()
    engine.callback_manager = CallbackManager([events])
    first = shop.first(engine)
    for number in (1, 2):
        first.query(ASKED)
        assert events.counts["start query"] == events.counts["end query"] == number


def test_it_goes_where_an_engine_goes(shop: Shop) -> None:
    """As a tool, behind a router, and around an engine of the program."""

    class Own(CustomQueryEngine):
        retriever: BaseRetriever

        def custom_query(self, query_str: str) -> str:
            return self.retriever.retrieve(query_str)[0].node.get_content()

    retriever: Any = Counting(shop.index.as_retriever(), shop)
    own = AnswerFirst(Own(retriever=retriever), shop.cache, corpus="v1")
    assert [str(own.query(each)) for each in (ASKED, REWORDED)] == ["The lamp takes 3 days to France."] * 2
    assert shop.searches == 1

    first = shop.first()
    tool = QueryEngineTool(first, ToolMetadata("terms", name="terms"))
    router = RouterQueryEngine(selector=_First(), query_engine_tools=[tool], llm=shop.model)
    said = str(tool.call(ASKED))
    response = router.query(REWORDED)
    assert str(response) == said
    assert response.metadata["ibidem"]["hit"]
    assert shop.searches == 2


class _First(BaseSelector):
    """Chooses the first."""

    def _select(self, choices: Any, query: Any) -> SelectorResult:
        return SelectorResult(selections=[SingleSelection(index=0, reason="")])

    async def _aselect(self, choices: Any, query: Any) -> SelectorResult:
        return self._select(choices, query)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        """There are none."""


@pytest.mark.parametrize("streaming", [False, True])
def test_a_response_can_be_forgotten(shop: Shop, streaming: bool) -> None:
    """What was just stored, of a stream once it was read, and that of a hit; or judged."""
    first = shop.first(shop.engine(streaming=streaming))
    for asks in (1, 2):  # the response of the engine, and one that is repeated
        for _ in range(asks):
            response = first.query(ASKED)
            str(response)
        assert ibidem.forget(response)
        assert not ibidem.forget(response)
    for _ in range(2):
        response = first.query(ASKED)
        str(response)
    assert shop.cache.feedback(response.metadata, good=False)
    assert shop.searches == 3
    first.query(ASKED)
    assert shop.searches == 4


# The corpus changes


CORPORA: dict[str, Callable[[Shop], Any]] = {
    "index": lambda shop: shop.index,
    "docstore": lambda shop: shop.index.docstore,
    "function": lambda shop: lambda: dict(shop.texts),
}


@pytest.mark.parametrize("corpus", CORPORA)
def test_changes(cache: SemanticCache, corpus: str) -> None:
    """After each of 60 the answer is that of the engine; asked again, nothing is retrieved."""
    draw = random.Random(7)
    shop = Shop(cache, {"lamp-9.md": "The lamp is old."})
    things = ("lamp", "kettle", "sofa", "fan")
    for change in range(60):
        name = f"{draw.choice(things)}-{draw.randrange(2)}.md"
        if name in shop.texts and draw.random() < 0.4:
            del shop.texts[name]
            shop.index.delete_ref_doc(name, delete_from_docstore=True)
        else:
            shop.texts[name] = f"The {name.partition('-')[0]} takes {draw.randrange(3)} days to France."
            shop.index.refresh_ref_docs([shop.document(name)])
        question = QUESTIONS[draw.choice(things)]
        first = shop.first(corpus=CORPORA[corpus](shop), name="shop")
        right = shop.engine().query(question)
        assert str(first.query(question)) == str(right), change
        before = shop.searches
        again = first.query(question)
        assert str(again) == str(right)
        assert [node.text for node in again.source_nodes] == [node.text for node in right.source_nodes]
        assert shop.searches == before
        assert first.faults() == {}


def test_a_pipeline(cache: SemanticCache) -> None:
    """Its document store tells what it has put into the vector store."""
    docstore, vectors = SimpleDocumentStore(), SimpleVectorStore(stores_text=True)
    shop = Shop(cache, {})
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), Settings.embed_model],
        docstore=docstore,
        vector_store=vectors,
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    answers = []
    for days in (3, 4, 4, 3):
        with invalidating(docstore, cache):
            nodes = pipeline.run(documents=[Document(text=f"The lamp takes {days} days.", id_="lamp.md")])
        if nodes:
            shop.index = VectorStoreIndex(nodes)
        first = shop.first(corpus=docstore, name="shop")
        first.query(ASKED)
        answers.append(str(first.query(ASKED)))
    assert [text[:16] for text in answers] == [f"The lamp takes {days}" for days in (3, 4, 4, 3)]


def test_what_leaves_the_index_alone_is_noticed(shop: Shop) -> None:
    """`delete_ref_doc` leaves the document store as it is; the index tells."""
    shop.first().query(ASKED)
    shop.index.delete_ref_doc("lamp.md")
    assert "3 days" not in str(shop.first().query(ASKED))


def test_documents_that_say_the_same_are_told_apart(shop: Shop) -> None:
    """LlamaIndex lists documents by what they say: of these two it names one."""
    shop.texts |= {"one.md": "Sofas come red.", "two.md": "Sofas come red."}
    shop.index.refresh_ref_docs([shop.document("one.md"), shop.document("two.md")])
    first = shop.first(corpus=shop.index.docstore)
    for name in ("one.md", "two.md"):
        first.query(ASKED)
        shop.index.delete_ref_doc(name, delete_from_docstore=True)
        assert not first.query(ASKED).metadata["ibidem"]["hit"]


def test_only_its_own_documents_count(cache: SemanticCache) -> None:
    """With `ignore` an answer stays while its documents do."""
    shop = Shop(cache)
    first = shop.first(shop.engine(similarity_top_k=1), corpus=shop.index.docstore, new_documents="ignore")
    first.query(ASKED)
    shop.texts["sofa.md"] = "Sofas come red."
    shop.index.refresh_ref_docs([shop.document("sofa.md")])
    assert first.query(ASKED).metadata["ibidem"]["hit"]
    shop.texts["kettle.md"] = "The kettle weighs 2 kg."
    shop.index.refresh_ref_docs([shop.document("kettle.md")])
    assert first.query(ASKED).metadata["ibidem"]["hit"]
    shop.index.delete_ref_doc("lamp.md", delete_from_docstore=True)
    assert not first.query(ASKED).metadata["ibidem"]["hit"]


def test_the_documents_of_an_answer_can_be_invalidated(shop: Shop) -> None:
    """By the hook around changes too, where the version is constant."""
    first = shop.first(corpus="shop")
    first.query(ASKED)
    assert shop.cache.invalidate(document="sofa.md", dry_run=True).count == 0
    shop.texts["lamp.md"] = "The lamp takes 9 days to France."
    with invalidating(shop.index.docstore, shop.cache):
        shop.index.refresh_ref_docs([shop.document("lamp.md")])
    assert not first.query(ASKED).metadata["ibidem"]["hit"]


def test_what_was_answered_while_the_corpus_changed_is_not_stored(shop: Shop) -> None:
    """Nobody knows which of the two it rests on."""
    first = shop.first()

    def say(prompt: str, number: int) -> str:
        shop.index.insert(Document(text="Sofas come red.", id_="sofa.md"))
        return "3 days"

    shop.script.say = say
    assert str(first.query(ASKED)) == "3 days"
    assert first.faults() == {"corpus_changed": 1}
    assert shop.cache.stats().entries == 0


async def test_the_version_may_be_read_in_async_code(shop: Shop) -> None:
    """Streams too."""
    version = ["a"]

    async def state() -> str:
        return version[0]

    first, streams = (shop.first(shop.engine(streaming=each), corpus=state) for each in (False, True))
    for _ in range(2):
        await first.aquery(ASKED)
        response = await streams.aquery(ASKED)
        assert [piece async for piece in response.response_gen]
    assert shop.searches == 2
    version[0] = "b"
    await first.aquery(ASKED)
    assert shop.searches == 3


# Whose answer it is


def test_two_corpora_never_answer_each_other(cache: SemanticCache) -> None:
    """Not under one version either."""
    one, other = Shop(cache), Shop(cache, {"lamp.md": "The lamp takes 8 days to France."})
    for corpus in ({}, {"corpus": "v1"}):
        for _ in range(2):
            assert "3 days" in str(one.first(**corpus).query(ASKED))
            assert "8 days" in str(other.first(**corpus).query(ASKED))
    assert one.searches == other.searches == 2


def test_tenants_never_answer_each_other(shop: Shop) -> None:
    """A stream keeps its own, whoever reads it."""
    first = shop.first(shop.engine(streaming=True), require_namespace=True)
    for namespace in ("acme", "globex"):
        with ibidem.scope(namespace=namespace):
            stream = first.query(ASKED)
        str(stream)
        with ibidem.scope(namespace=namespace):
            str(first.query(ASKED))
    assert shop.searches == 2
    str(first.query(ASKED))
    assert first.faults() == {"no_namespace": 1}
    with ibidem.scope(namespace="acme", bypass=True):
        str(first.query(ASKED))
    assert shop.searches == 4


def test_what_else_a_query_holds_counts(shop: Shop) -> None:
    """Such as the texts that are searched for in place of the question."""
    first = shop.first()
    first.query(QueryBundle(ASKED))
    first.query(QueryBundle(ASKED, custom_embedding_strs=["kettle"]))
    first.query(QueryBundle(REWORDED, custom_embedding_strs=["kettle"]))
    assert shop.searches == 2


# What is not stored


def test_an_error_passes_through(shop: Shop) -> None:
    """And who waits is released."""
    first = shop.first()
    for ask in WAYS.values():
        shop.script.failures.append(Broke("down"))
        with pytest.raises(Broke):
            ask(first, ASKED)
    assert "3 days" in str(first.query(ASKED))


def test_what_was_cut_off_or_abandoned_is_not_stored(shop: Shop) -> None:
    """Streams and whole answers."""
    shop.script.finish_reason = "length"
    shop.first().query(ASKED)
    shop.script.finish_reason = "stop"
    first = shop.first(shop.engine(streaming=True))
    response: Any = first.query(ASKED)
    next(response.response_gen)
    response.response_gen.close()
    shop.script.breaks += [(2, True), (2, False)]
    assert "3 days" not in str(first.query(ASKED))  # it just ends
    with pytest.raises(Broke):
        str(first.query(ASKED))
    assert shop.cache.stats().entries == 0
    assert "3 days" in str(first.query(ASKED))
    assert shop.cache.stats().entries == 1


def test_what_asks_for_variety_is_not_stored(shop: Shop) -> None:
    """By its temperature, whatever the model within the engine is."""

    class Varied(CountingFunctionCalling):
        temperature: float = 1.5

    shop.first(shop.index.as_query_engine(llm=Varied())).query(ASKED)
    assert shop.cache.stats().rejected == {"temperature": 1}


def test_one_of_many_asks(shop: Shop) -> None:
    """The others wait for its answer."""
    first, goes_on, begun = shop.first(), threading.Event(), threading.Event()

    def say(prompt: str, number: int) -> str:
        begun.set()
        assert goes_on.wait(20)
        return "3 days"

    shop.script.say = say
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(lambda: str(first.query(ASKED))) for _ in range(6)]
        assert begun.wait(20)
        goes_on.set()
        assert {each.result() for each in asked} == {"3 days"}
    assert shop.searches == 1


@pytest.mark.parametrize("inner", ["model", "synthesizer"])
def test_beside_another_cache(shop: Shop, inner: str) -> None:
    """What a cache within repeats for other words is not stored again; examples are kept once."""
    if inner == "model":
        engine: Any = shop.index.as_query_engine(llm=CachedLLM(shop.model, shop.cache))
    else:
        synthesizer = CachedSynthesizer(get_response_synthesizer(llm=shop.model), shop.cache)
        engine = RetrieverQueryEngine(shop.index.as_retriever(), synthesizer)
    engine._retriever = Counting(engine._retriever, shop)
    first = shop.first(engine)
    engine.query(ASKED)
    entries = shop.cache.stats().entries
    first.query(REWORDED)
    assert shop.cache.stats().entries == entries
    first.query(ASKED)
    assert shop.cache.stats().entries == entries + 1
    assert first.query(REWORDED).metadata["ibidem"]["hit"]
    assert (shop.searches, len(shop.script.asked)) == (3, 1)
    assert shop.cache.stats().examples == 1


# What it cannot be around, and its life


def test_what_is_refused(shop: Shop) -> None:
    """With what to do instead."""
    memory = ChatMemoryBuffer.from_defaults(llm=shop.model)
    chat = CondenseQuestionChatEngine.from_defaults(shop.engine(), llm=shop.model, memory=memory)
    for engine, advice in (
        (chat, "query engine that it asks"),
        (shop.first(), "already"),
        (shop.index, "must be"),
    ):
        with pytest.raises(InvalidInput, match=advice):
            AnswerFirst(engine, shop.cache, corpus="v1")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="a version"):
        shop.first(corpus=None)
    with pytest.raises(InvalidInput, match="ignore"):
        shop.first(corpus="v1", new_documents="ignore")


def test_prompts_that_functions_fill_are_not_cached(shop: Shop) -> None:
    """What they return is not known before."""
    prompt = PromptTemplate(
        "-----\n---------------------{day}{context_str}---------------------{query_str}",
        function_mappings={"day": lambda **_: "Monday"},
    )
    first = shop.first(shop.engine(text_qa_template=prompt))
    first.query(ASKED)
    assert first.faults() == {"function_mappings": 1}


def test_a_closed_cache_costs_hits_only(open_cache: OpenCache) -> None:
    """The engine is asked."""
    shop = Shop(open_cache())
    first = shop.first()
    first.query(ASKED)
    shop.cache.close()
    assert "3 days" in str(first.query(ASKED))
    assert shop.searches == 2


def test_a_damaged_entry_is_a_miss(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in a row."""
    first = shop.first()
    first.query(ASKED)
    monkeypatch.setattr("llama_index_ibidem.before_retrieval._name", lambda kind: "x")
    assert "3 days" in str(first.query(ASKED))
    assert shop.searches == 2


def test_a_summary_index(shop: Shop) -> None:
    """Which is a list of nodes."""
    index = SummaryIndex.from_documents([shop.document("lamp.md")])
    engine = index.as_query_engine(llm=shop.model)
    first = AnswerFirst(engine, shop.cache, corpus=index)
    first.query(ASKED)
    assert first.query(ASKED).metadata["ibidem"]["hit"]
    index.insert(Document(text="Sofas come red.", id_="sofa.md"))
    assert "red" in str(first.query(ASKED))
    assert str(first.query(OTHER))
