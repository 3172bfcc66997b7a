"""`answer_first`: no retrieval for a hit, and no answer that the chain would not give over this corpus."""

from __future__ import annotations

import asyncio
import random
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
from langchain_classic.indexes import SQLRecordManager
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager, RecordManager, index
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import PrivateAttr

import ibidem
from ibidem.adapter import corpus
from ibidem.adapter.programs import explain_run
from ibidem.cache import SemanticCache
from ibidem.errors import InvalidInput
from langchain_ibidem import IbidemCache, answer_first, install, invalidating, uninstall, warm
from langchain_ibidem.indexing import record_keys
from tests.conftest import OpenCache
from tests.contracts.langchain import Calls
from tests.embedders import BagOfWords
from tests.helpers import rounds

PROMPT = ChatPromptTemplate.from_template("Answer from:\n{context}\n\nQuestion: {question}")
ASKED = "How many days does the lamp take to arrive in France?"
REWORDED = "How many days does the lamp take to arrive in France, please?"
OTHER = "How much does the kettle weigh when it is empty?"
# As far from one another as the questions of different people.
QUESTIONS = {
    "lamp": "When will my lamp be here?",
    "kettle": "Tell me how long a kettle needs.",
    "sofa": "Could you say by which date our sofa comes?",
    "fan": "Delivery time for one fan to Paris, please",
    "desk": "Is your desk quick?",
}


class Words(Embeddings):
    """Bags of words, for the vector store."""

    def __init__(self) -> None:
        self._bag = BagOfWords(512)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(x) for x in row] for row in self._bag.embed(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class Extractive(BaseChatModel):
    """Says what it reads in the context: an answer from another context is another answer."""

    temperature: float = 0.0
    ends: str = "stop"
    fails: bool = False
    _calls: Calls = PrivateAttr(default_factory=Calls)
    _begun: threading.Event = PrivateAttr(default_factory=threading.Event)
    _goes_on: threading.Event | None = PrivateAttr(default=None)

    @property
    def calls(self) -> int:
        return self._calls.count

    @property
    def _llm_type(self) -> str:
        return "extractive"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": "extractive"}

    def _said(self, messages: list[BaseMessage]) -> str:
        self._calls.next()
        self._begun.set()
        if self._goes_on is not None:
            assert self._goes_on.wait(20)
        if self.fails:
            raise ConnectionError("the model is down")
        return messages[-1].text.split("Question:")[0].removeprefix("Answer from:").strip() or "Nothing."

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        used = {"input_tokens": 20, "output_tokens": 5, "total_tokens": 25}
        about = {"finish_reason": self.ends, "model_name": "extractive"}
        said = AIMessage(self._said(messages), usage_metadata=used, response_metadata=about)
        return ChatResult(generations=[ChatGeneration(message=said)])

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in self._said(messages).split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(f"{word} "))
        yield ChatGenerationChunk(message=AIMessageChunk("", response_metadata={"finish_reason": self.ends}))


class Counting(BaseRetriever):
    """The retriever of a vector store, which counts."""

    found: BaseRetriever
    _calls: Calls = PrivateAttr(default_factory=Calls)

    @property
    def calls(self) -> int:
        return self._calls.count

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self._calls.next()
        return self.found.invoke(query)


class Shop:
    """A corpus with an index, and a chain over it."""

    def __init__(self, cache: SemanticCache, texts: dict[str, str] | None = None) -> None:
        self.cache = cache
        self.store = InMemoryVectorStore(Words())
        self.records = InMemoryRecordManager("shop")
        self.records.create_schema()
        self.model = Extractive()
        self.retriever = Counting(found=self.store.as_retriever(search_kwargs={"k": 2}))
        self.texts = texts or {
            "lamp.md": "The lamp takes 3 days to France.",
            "kettle.md": "The kettle weighs 1 kg.",
        }
        self.index()

    def index(self, cleanup: str = "full", records: RecordManager | None = None) -> None:
        """Index the files as they are now."""
        documents = [Document(text, metadata={"source": name}) for name, text in self.texts.items()]
        found: Any = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
        index(documents, records or self.records, self.store, **found)

    def chain(self, prompt: ChatPromptTemplate = PROMPT) -> Runnable[Any, str]:
        """The chain."""
        return (
            {"context": self.retriever | joined, "question": RunnablePassthrough()}
            | prompt
            | self.model
            | StrOutputParser()
        )

    def first(self, **options: Any) -> Any:
        """The chain with the cache before it."""
        return answer_first(self.chain(), self.cache, **{"corpus": self.records, **options})


def joined(documents: list[Document]) -> str:
    """The context of a prompt."""
    return "\n".join(sorted(document.page_content for document in documents))


@pytest.fixture
def shop(cache: SemanticCache) -> Shop:
    """A shop whose corpus is indexed."""
    return Shop(cache)


# A hit


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda chain, given: chain.invoke(given),
    "batch": lambda chain, given: chain.batch([given])[0],
    "stream": lambda chain, given: "".join(chain.stream(given)),
    "ainvoke": lambda chain, given: asyncio.run(chain.ainvoke(given)),
    "abatch": lambda chain, given: asyncio.run(chain.abatch([given]))[0],
    "astream": lambda chain, given: asyncio.run(_whole(chain.astream(given))),
    "with_config": lambda chain, given: chain.with_config(tags=["x"]).invoke(given),
    "piped": lambda chain, given: (chain | RunnableLambda(str)).invoke(given),
    "transform": lambda chain, given: "".join(chain.transform(iter([given]))),
}


async def _whole(chunks: AsyncIterator[str]) -> str:
    return "".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("asks", WAYS)
def test_a_hit_retrieves_nothing_whoever_asked_and_asks(shop: Shop, asks: str) -> None:
    """However it is called, by the same words and others."""
    first = shop.first()
    said = WAYS[asks](first, ASKED).strip()
    assert "3 days" in said
    assert (shop.retriever.calls, shop.model.calls) == (1, 1)
    for repeat in WAYS.values():
        for question in (ASKED, REWORDED):
            assert repeat(first, question).strip() == said
    assert (shop.retriever.calls, shop.model.calls) == (1, 1)
    assert first.faults() == {}


def test_another_question_runs_the_chain(shop: Shop) -> None:
    """And an answer in pieces comes in several."""
    first = shop.first()
    for question in (ASKED, OTHER):
        first.invoke(question)
    assert shop.retriever.calls == 2
    assert len(list(first.stream(ASKED))) > 1


def test_a_hit_is_a_run_to_handlers(shop: Shop) -> None:
    """It starts and ends with input and output, and within it nothing runs."""
    seen: list[Any] = []

    class Handler(BaseCallbackHandler):
        def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
            seen.append(("start", inputs))

        def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
            seen.append(("end", outputs))

    first = shop.first()
    said = first.invoke(ASKED)
    first.invoke(ASKED, config={"callbacks": [Handler()]})
    assert seen == [("start", ASKED), ("end", said)]


def test_schemas_and_graph_are_those_of_the_chain(shop: Shop) -> None:
    """So it goes where the chain went."""
    chain, first = shop.chain(), shop.first()
    assert first.get_output_schema().model_json_schema() == chain.get_output_schema().model_json_schema()
    assert first.InputType == chain.InputType
    assert len(first.get_graph().nodes) == len(chain.get_graph().nodes)
    assert len(first.get_prompts()) == 1


# The corpus changes


def test_changes(cache: SemanticCache) -> None:
    """After each (500 with the next test) the answer is the chain's; asked again, nothing is retrieved."""
    draw = random.Random(7)
    shop = Shop(cache, {})
    shop.retriever.found = shop.store.as_retriever(search_kwargs={"k": 20})  # all: whatever is old is seen
    things = ("lamp", "kettle", "sofa", "fan")
    questions = [QUESTIONS[thing] for thing in things]
    first, chain = shop.first(), shop.chain()
    hits = 0
    for change in range(rounds(200, 500)):
        name = f"{draw.choice(things)}-{draw.randrange(2)}.md"
        kind = draw.choice(("add", "edit", "delete", "again"))
        if kind == "delete":
            shop.texts.pop(name, None)
        elif kind == "again":  # what it said at the beginning, and may have said since
            shop.texts[name] = f"The {name.partition('-')[0]} takes 1 day to France."
        else:
            shop.texts[name] = f"The {name.partition('-')[0]} takes {draw.randrange(4)} days to France."
        records = shop.records if change % 5 else invalidating(shop.records, cache)
        shop.index("full", records)
        question = draw.choice(questions)
        before = shop.retriever.calls
        said = first.invoke(question)
        hits += shop.retriever.calls == before
        right = chain.invoke(question)
        assert said == right, (change, kind, name)
        before = shop.retriever.calls
        assert first.invoke(question) == right
        assert shop.retriever.calls == before
    assert hits > 5  # in a state of the corpus that it was in before
    assert first.faults() == {}


def test_changes_of_a_version(cache: SemanticCache) -> None:
    """The same where the program says the version, without a record manager."""
    draw = random.Random(8)
    held, versions = {"number": 0, "text": "nothing"}, set[object]()
    model, calls = Extractive(), Calls()

    def search(_: str) -> str:
        calls.next()
        return str(held["text"])

    chain = (
        {"context": RunnableLambda(search), "question": RunnablePassthrough()}
        | PROMPT
        | model
        | StrOutputParser()
    )
    first = answer_first(chain, cache, corpus=lambda: f"version {held['number']}")
    for change in range(rounds(300, 500)):
        held["number"] = draw.randrange(60)
        versions.add(held["number"])
        held["text"] = f"It says {held['number']}."
        assert first.invoke(ASKED) == f"It says {held['number']}.", change
    assert calls.count == len(versions)


def test_only_its_own_documents_count(cache: SemanticCache) -> None:
    """With `ignore` an answer stays while its documents do; 120 changes of all kinds."""
    draw = random.Random(9)
    things = ("lamp", "kettle", "sofa", "fan", "desk")
    shop = Shop(cache, {f"{thing}.md": f"The {thing} takes 0 days to France." for thing in things})
    first = shop.first(new_documents="ignore")
    kept = 0
    for number in range(120):
        name = f"{draw.choice(things)}.md"
        if draw.random() < 0.3:
            shop.texts.pop(name, None)
        else:
            shop.texts[name] = f"The {name.removesuffix('.md')} takes {draw.randrange(3)} days to France."
        shop.index()
        if not shop.texts:
            continue
        before = shop.retriever.calls
        said = first.invoke(QUESTIONS[draw.choice(things)])
        kept += shop.retriever.calls == before
        assert set(said.split("\n")) <= set(shop.texts.values()), number
    assert kept > 20
    assert first.faults() == {}


def test_ignore_keeps_what_miss_ends(shop: Shop) -> None:
    """A document is added that has nothing to do with the answer."""
    strict, lenient = shop.first(), shop.first(new_documents="ignore")
    for first in (strict, lenient):
        first.invoke(ASKED)
    shop.texts["sofa.md"] = "The sofa is red."
    shop.index()
    before = shop.retriever.calls
    lenient.invoke(ASKED)
    assert shop.retriever.calls == before
    strict.invoke(ASKED)
    assert shop.retriever.calls == before + 1


def test_what_was_answered_while_the_corpus_changed_is_not_stored(shop: Shop) -> None:
    """Nobody knows which of the two it rests on."""
    first = shop.first()
    shop.model._goes_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(first.invoke, ASKED)
        assert shop.model._begun.wait(20)
        shop.texts["sofa.md"] = "The sofa is red."
        shop.index()
        shop.model._goes_on.set()
        assert "3 days" in asked.result()
    assert first.faults() == {"corpus_changed": 1}
    assert shop.cache.stats().entries == 0


def test_a_document_that_is_not_recorded_yet_is_not_relied_on(shop: Shop) -> None:
    """`index` writes to the vector store before it writes to the record manager."""
    first = shop.first()
    shop.store.add_documents([Document("The lamp takes 9 days to France.", id="new")])
    assert "9 days" in first.invoke(ASKED)
    assert first.faults() == {"unknown_document": 1}
    assert shop.cache.stats().entries == 0


def test_the_documents_of_an_answer_can_be_invalidated(shop: Shop) -> None:
    """By their ids and sources, as those of any answer."""
    first = shop.first(corpus="v1")
    first.invoke(ASKED)
    assert shop.cache.invalidate(document="sofa.md").count == 0
    (entry,) = shop.cache.invalidate(document="lamp.md", dry_run=True).entries
    assert {source.id for source in entry.sources} <= set(shop.records.list_keys())
    assert shop.cache.invalidate(document="lamp.md").count == 1
    first.invoke(ASKED)
    assert shop.retriever.calls == 2


def test_indexing_with_invalidation_ends_answers_of_a_constant_version(shop: Shop) -> None:
    """The third way: `corpus` only names the corpus, and `invalidating` does the rest."""
    first = shop.first(corpus="shop")
    first.invoke(ASKED)
    shop.texts["lamp.md"] = "The lamp takes 9 days to France."
    shop.index("incremental", invalidating(shop.records, shop.cache))
    assert "9 days" in first.invoke(ASKED)


# How the corpus is told


async def test_a_version_may_be_read_in_async_code(shop: Shop) -> None:
    """A function that is async is awaited; in sync code the chain runs without the cache."""
    version = ["a"]

    async def read() -> str:
        return version[0]

    first = shop.first(corpus=read)
    for _ in range(2):
        await first.ainvoke(ASKED)
        assert "".join([chunk async for chunk in first.astream(ASKED)])
    assert shop.retriever.calls == 1
    version[0] = "b"
    assert [chunk async for chunk in first.astream(ASKED)]
    await first.ainvoke(ASKED)
    assert shop.retriever.calls == 2
    first.invoke(ASKED)
    assert shop.retriever.calls == 3
    assert first.faults() == {"async_corpus": 1}


async def test_a_record_manager_with_async_methods_only(shop: Shop) -> None:
    """As one of SQL with an async engine."""

    class Async(InMemoryRecordManager):
        def list_keys(self, **kwargs: Any) -> list[str]:
            raise AssertionError("this method is not supported for async engines")

        async def alist_keys(self, **kwargs: Any) -> list[str]:
            return InMemoryRecordManager.list_keys(self, **kwargs)

    records = Async("shop")
    records.records = shop.records.records
    first = shop.first(corpus=records)
    assert await first.ainvoke(ASKED) == await first.ainvoke(ASKED)
    assert shop.retriever.calls == 1


def test_a_record_manager_of_sql(shop: Shop, tmp_path: Path) -> None:
    """Within one second a document is deleted and comes back; then the answer does too."""
    records = SQLRecordManager("shop", db_url=f"sqlite:///{tmp_path}/records.sqlite3")
    records.create_schema()
    first, texts = shop.first(corpus=records), dict(shop.texts)
    retrieved = []
    for held in (texts, {}, texts, {**texts, "sofa.md": "Sofas come red."}, texts):
        shop.texts = held
        shop.index("full", records)
        before = shop.retriever.calls
        assert ("3 days" in first.invoke(ASKED)) is bool(held)
        retrieved.append(shop.retriever.calls - before)
    assert retrieved == [1, 1, 0, 1, 0]
    other = SQLRecordManager("other", engine=records.engine)
    other.update(["key"])
    assert record_keys(other) == {"key": ""}
    assert record_keys(invalidating(records, shop.cache)) == dict.fromkeys(records.list_keys(), "")


async def test_a_record_manager_of_async_sql(shop: Shop, tmp_path: Path) -> None:
    """It has no sync methods."""
    place = f"sqlite+aiosqlite:///{tmp_path}/records.sqlite3"
    records = SQLRecordManager("shop", db_url=place, async_mode=True)
    await records.acreate_schema()
    await records.aupdate(shop.records.list_keys())
    first = shop.first(corpus=records)
    for _ in range(2):
        await first.ainvoke(ASKED)
    assert shop.retriever.calls == 1
    await records.adelete_keys(shop.records.list_keys()[:1])
    await first.ainvoke(ASKED)
    assert shop.retriever.calls == 2
    await cast(Any, records.engine).dispose()


def test_if_the_version_cannot_be_read_the_chain_runs(shop: Shop) -> None:
    """Before or after: the caller gets his answer, and nothing is stored."""
    answers: list[Any] = ["v1", ConnectionError("down"), ConnectionError("down")]

    def read() -> str:
        if isinstance(found := answers.pop(0), Exception):
            raise found
        return str(found)

    first = shop.first(corpus=read)
    assert "3 days" in first.invoke(ASKED)  # fails after the run
    assert "3 days" in first.invoke(ASKED)  # fails before it
    assert answers == []
    assert sum(first.faults().values()) == 2
    assert shop.cache.stats().entries == 0


@pytest.mark.parametrize(
    ("corpus", "new_documents", "advice"),
    [
        ("", "miss", "a version"),
        (None, "miss", "a version"),
        ("v1", "ignore", "RecordManager"),
        ("v1", "sometimes", "new_documents"),
    ],
)
def test_what_is_no_corpus(shop: Shop, corpus: Any, new_documents: str, advice: str) -> None:
    """Said when the chain is made, with what to do."""
    with pytest.raises(InvalidInput, match=advice):
        shop.first(corpus=corpus, new_documents=new_documents)


@pytest.mark.parametrize("returned", [None, True, b"v1", ["v1"], ""])
def test_what_is_no_version(shop: Shop, returned: Any) -> None:
    """Said in the log, and counted; nothing is cached."""
    first = shop.first(corpus=lambda: returned)
    first.invoke(ASKED)
    assert first.faults() == {"corpus_unknown": 1}


def test_a_function_may_return_the_version_of_each_document(shop: Shop) -> None:
    """By the names that loaders write into the metadata, such as paths."""
    versions = {"lamp.md": 1, "kettle.md": 1}
    first = shop.first(corpus=lambda: versions, new_documents="ignore")
    first.invoke(ASKED)
    versions |= {"sofa.md": 1}
    first.invoke(ASKED)
    assert shop.retriever.calls == 1
    versions["lamp.md"] = 2
    first.invoke(ASKED)
    assert shop.retriever.calls == 2


# Whose answer it is


def test_two_corpora_never_answer_each_other(cache: SemanticCache) -> None:
    """Whether the version or the vector store tells them apart, if the program's version does not."""
    one, other = Shop(cache), Shop(cache, {"lamp.md": "The lamp takes 8 days to France."})
    assert "3 days" in one.first().invoke(ASKED)
    assert "8 days" in other.first().invoke(ASKED)
    assert "3 days" in one.first(corpus="v1").invoke(ASKED)
    assert "8 days" in other.first(corpus="v1").invoke(ASKED)
    assert one.first(corpus="v1").invoke(ASKED) != other.first(corpus="v1").invoke(ASKED)
    for shop in (one, other):
        before = shop.retriever.calls
        shop.first().invoke(ASKED)
        assert shop.retriever.calls == before


def test_two_chains_never_answer_each_other(shop: Shop) -> None:
    """Another prompt, model, parameter or setting of the retriever is another chain, under one name too."""
    other_prompt = ChatPromptTemplate.from_template(
        "Answer in French from:\n{context}\n\nQuestion: {question}"
    )
    wider = Counting(found=shop.store.as_retriever(search_kwargs={"k": 1}))
    chains = [
        shop.chain(),
        shop.chain(other_prompt),
        {"context": wider | joined, "question": RunnablePassthrough()}
        | PROMPT
        | shop.model
        | StrOutputParser(),
        {"context": shop.retriever | joined, "question": RunnablePassthrough()}
        | PROMPT
        | Extractive(ends="end_turn")
        | StrOutputParser(),
        {"context": shop.retriever | joined, "question": RunnablePassthrough()}
        | PROMPT
        | shop.model.bind(stop=["x"])
        | StrOutputParser(),
        {"context": shop.retriever | (lambda found: joined(found[:1])), "question": RunnablePassthrough()}
        | PROMPT
        | shop.model
        | StrOutputParser(),
    ]
    for chain in chains:
        answer_first(chain, shop.cache, corpus="v1", name="shop").invoke(ASKED)
    assert shop.cache.stats().entries == len(chains)


def test_a_name_lets_answers_outlive_the_process(open_cache: OpenCache) -> None:
    """Without one, a vector store is compared by identity; another object is another store."""
    cache = open_cache()
    shops = Shop(cache), Shop(cache)  # as in two processes
    for name, calls in (("", 1), ("shop", 0)):
        for shop in shops:
            before = shop.retriever.calls
            shop.first(name=name).invoke(ASKED)
        assert shop.retriever.calls - before == calls


def test_tenants_never_answer_each_other(shop: Shop) -> None:
    """By scope, by metadata, and in a stream that is read elsewhere."""
    first = shop.first(require_namespace=True)
    for namespace in ("acme", "globex"):
        with ibidem.scope(namespace=namespace):
            first.invoke(ASKED)
        first.invoke(ASKED, config={"metadata": {"ibidem_namespace": namespace}})
    assert shop.retriever.calls == 2
    with ibidem.scope(namespace="initech"):
        stream = first.stream(ASKED)
    assert list(stream)
    with ibidem.scope(namespace="initech"):
        first.invoke(ASKED)
    assert shop.retriever.calls == 3
    first.invoke(ASKED)
    assert shop.retriever.calls == 4
    assert first.faults() == {"no_namespace": 1}


def test_what_is_not_named_is_said(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Once for the same kinds of objects, and how to name them."""
    corpus._told_of.clear()
    for _ in range(2):
        shop.first()
        shop.first(name="shop")
    (told,) = (
        record.getMessage() for record in caplog.records if "in this process only" in record.getMessage()
    )
    assert "InMemoryVectorStore" in told
    assert "name=" in told


def test_the_log_says_that_the_corpus_differs(shop: Shop) -> None:
    """And so does `ibidem why`, which stores nothing and asks no model."""
    first = shop.first()
    first.invoke(ASKED)
    shop.texts["sofa.md"] = "Sofas come red."
    shop.index()
    run = explain_run(first, ASKED)
    assert run.answer is None
    assert run.requests[0].explanation.reason == "empty"
    assert "corpus" in str(run.requests[0].explanation)
    assert shop.model.calls == 1
    first.invoke(ASKED)
    assert explain_run(first, ASKED).answer == first.invoke(ASKED)


def test_a_bypass_is_one(shop: Shop) -> None:
    """Nothing is looked up, and the corpus is not read."""
    read = Calls()
    first = shop.first(corpus=lambda: f"v{read.next()}")
    with ibidem.scope(bypass=True):
        first.invoke(ASKED)
        asyncio.run(first.ainvoke(ASKED))
    assert read.count == 0
    assert sum(shop.cache.stats().misses.values()) == 0


# The input


def test_other_inputs_are_compared_exactly(shop: Shop) -> None:
    """The history too, but for what no model sees of it."""
    prompt = ChatPromptTemplate.from_messages(
        [
            MessagesPlaceholder("history"),
            ("human", "Answer from:\n{context}\n\nQuestion: {question} For {reader}."),
        ]
    )
    context = RunnableLambda(lambda given: given["question"]) | shop.retriever | joined
    chain = RunnablePassthrough.assign(context=context) | prompt | shop.model | StrOutputParser()
    first = answer_first(chain, shop.cache, corpus=shop.records)

    def ask(question: str = ASKED, reader: str = "Ann", said: str = "Hello", **about: Any) -> int:
        before = shop.retriever.calls
        history = [HumanMessage(said), AIMessage("Hi.", **about)]
        first.invoke({"question": question, "reader": reader, "history": history})
        return shop.retriever.calls - before

    assert ask() == 1
    assert ask(REWORDED, id="run-1", response_metadata={"x": 1}) == 0
    assert ask(reader="Bob") == 1
    assert ask(said="Good bye") == 1
    assert first.invoke({"reader": "Ann", "history": [], "question": ASKED})
    assert first.faults() == {}


def test_the_input_that_holds_the_question(shop: Shop) -> None:
    """It can be named; if there is none, the chain runs and the log says what to do."""
    chain = RunnableLambda(lambda given: given["what"]) | shop.chain()
    unnamed, named = (answer_first(chain, shop.cache, corpus="v1", input_key=key) for key in ("", "what"))
    for question in (ASKED, REWORDED):
        unnamed.invoke({"what": question})
    assert unnamed.faults() == {"no_question": 2}
    for question in (ASKED, REWORDED):
        named.invoke({"what": question})
    assert shop.retriever.calls == 3


def test_what_functions_fill_into_a_prompt_counts(shop: Shop) -> None:
    """Such as the date: yesterday's answer is not today's."""
    today = ["Monday"]
    dated = ChatPromptTemplate.from_template("Answer from:\n{context}\n\nQuestion: {question} On {day}.")
    first = answer_first(shop.chain(dated.partial(day=lambda: today[0])), shop.cache, corpus="v1")
    first.invoke(ASKED)
    first.invoke(ASKED)
    assert shop.retriever.calls == 1
    today[0] = "Tuesday"
    first.invoke(ASKED)
    assert shop.retriever.calls == 2


def test_configuration_within_the_chain_counts(shop: Shop) -> None:
    """As far as it can change an answer."""
    chain = shop.chain()
    for number, config in enumerate(
        [{"tags": ["a"]}, {"tags": ["b"], "callbacks": [BaseCallbackHandler()]}, {"configurable": {"x": 1}}]
    ):
        within: Any = RunnableLambda(str) | chain.with_config(cast(Any, config))
        answer_first(within, shop.cache, corpus="v1").invoke(ASKED)
        assert shop.retriever.calls == (1, 1, 2)[number]


def test_configuration_counts(shop: Shop) -> None:
    """What is configured at the call, and what the call is given."""
    first = shop.first(corpus="v1")
    first.invoke(ASKED, config={"configurable": {"language": "French"}})
    first.invoke(ASKED, config={"configurable": {"language": "Latin"}, "tags": ["a"]})
    first.invoke(ASKED, config={"configurable": {"language": "Latin"}, "tags": ["b"], "run_name": "x"})
    assert shop.retriever.calls == 2


# The output


def test_a_dictionary_with_documents_and_a_message(shop: Shop) -> None:
    """Equal to what the chain returns, but for what a hit says of itself; `forget` finds it."""
    chain = RunnablePassthrough.assign(
        context=RunnableLambda(lambda given: given["question"]) | shop.retriever
    ) | RunnablePassthrough.assign(answer=PROMPT | shop.model)
    first = answer_first(chain, shop.cache, corpus=shop.records)
    asked = {"question": ASKED}
    said, again = first.invoke(asked), first.invoke(asked)
    assert shop.retriever.calls == 1
    assert list(again) == list(said)
    assert again["context"] == said["context"]
    assert again["answer"].content == said["answer"].content
    assert again["answer"].id != said["answer"].id
    assert again["answer"].usage_metadata == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    marker = again["answer"].response_metadata["ibidem"]
    assert marker["saved_tokens"] == {"input_tokens": 20, "output_tokens": 5, "total_tokens": 25}
    streamed: Any = None
    for piece in first.stream(asked):
        streamed = piece if streamed is None else streamed + piece
    assert streamed["context"] == said["context"]
    assert streamed["answer"].content == said["answer"].content
    assert ibidem.forget(again)
    assert not ibidem.forget(again)
    assert ibidem.forget(first.invoke(asked))  # what was just stored
    first.invoke(asked)
    assert shop.retriever.calls == 3


def test_a_dictionary_repeats_the_question_that_was_asked(shop: Shop) -> None:
    """Not the one that was answered first."""
    chain = RunnablePassthrough.assign(answer=RunnableLambda(lambda given: given["input"]) | shop.chain())
    first = answer_first(chain, shop.cache, corpus="v1")
    first.invoke({"input": ASKED, "reader": "Ann"})
    again = first.invoke({"input": REWORDED, "reader": "Ann"})
    assert shop.retriever.calls == 1
    assert again == chain.invoke({"input": REWORDED, "reader": "Ann"})
    assert again["input"] == REWORDED


def test_a_streamed_dictionary_is_stored_as_invoke_gives_it(shop: Shop) -> None:
    """Messages, not their chunks."""
    chain = RunnablePassthrough.assign(
        context=RunnableLambda(lambda given: given["question"]) | shop.retriever
    ) | RunnablePassthrough.assign(answer=PROMPT | shop.model | StrOutputParser())
    first = answer_first(chain, shop.cache, corpus=shop.records)
    assert len(list(first.stream({"question": ASKED}))) > 3
    again = first.invoke({"question": ASKED})
    assert shop.retriever.calls == 1
    assert again["answer"].strip() == chain.invoke({"question": ASKED})["answer"]
    assert ibidem.forget(again)


def test_a_person_corrects_the_answer_alone(shop: Shop) -> None:
    """In a dictionary too, documents stay."""
    chain = RunnablePassthrough.assign(
        context=RunnableLambda(lambda given: given["question"]) | shop.retriever
    ) | RunnablePassthrough.assign(answer=PROMPT | shop.model | StrOutputParser())
    first = answer_first(chain, shop.cache, corpus="v1")
    said = first.invoke({"question": ASKED})
    (entry,) = shop.cache.invalidate(document="lamp.md", dry_run=True).entries
    shop.cache.correct(entry.id, "Four days.")
    again = first.invoke({"question": ASKED})
    assert again["answer"] == "Four days."
    assert again["context"] == said["context"]


@pytest.mark.parametrize("output", ['{"days": 3}', {"days": 3}, ["a", "b"], 3])
def test_what_a_program_reads_is_compared_exactly(shop: Shop, output: Any) -> None:
    """The very same question is answered."""
    ran = Calls()
    chain = shop.chain() | RunnableLambda(lambda _: (ran.next(), output)[1])
    first = answer_first(chain, shop.cache, corpus="v1")
    assert [first.invoke(each) for each in (ASKED, ASKED, REWORDED)] == [output] * 3
    assert ran.count == 2


@pytest.mark.parametrize(
    ("output", "cause"), [((1, 2), "output_kind"), ({1: "x"}, "not_json"), (object, "output_kind")]
)
def test_what_cannot_be_restored_is_not_stored(shop: Shop, output: Any, cause: str) -> None:
    """It reaches the caller as it is."""
    first = answer_first(shop.chain() | RunnableLambda(lambda _: output), shop.cache, corpus="v1")
    assert first.invoke(ASKED) is output or first.invoke(ASKED) == output
    assert first.faults()[cause]


# What is not stored


def test_an_error_passes_through(shop: Shop) -> None:
    """As it is, by whatever way of calling; the next one asks again."""
    first = shop.first()
    shop.model.fails = True
    for ask in WAYS.values():
        with pytest.raises(ConnectionError, match="the model is down"):
            ask(first, ASKED)
    shop.model.fails = False
    assert "3 days" in first.invoke(ASKED)


@pytest.mark.parametrize("way", ["invoke", "stream", "astream"])
def test_what_was_cut_off_is_not_stored(shop: Shop, way: str) -> None:
    """Although the parser only passes on the text."""
    shop.model.ends = "length"
    first = shop.first()
    for _ in range(2):
        WAYS[way](first, ASKED)
    assert shop.retriever.calls == 2


def test_what_asks_for_variety_is_not_stored(shop: Shop) -> None:
    """By its temperature, whatever the model within the chain is."""
    shop.model.temperature = 1.5
    first = shop.first()
    for _ in range(2):
        first.invoke(ASKED)
    assert shop.cache.stats().rejected == {"temperature": 2}


def test_a_stream_without_a_finish_reason_is_not_stored(shop: Shop) -> None:
    """It may have been cut off."""
    shop.model.ends = ""
    first = shop.first()
    for _ in range(2):
        list(first.stream(ASKED))
    assert first.faults() == {"unfinished_stream": 2}
    assert first.invoke(ASKED) == first.invoke(ASKED)
    assert shop.retriever.calls == 3


def test_an_abandoned_stream_is_not_stored(shop: Shop) -> None:
    """And lets others ask."""
    first = shop.first()
    stream = first.stream(ASKED)
    next(stream)
    stream.close()
    del stream

    async def begin() -> None:
        chunks = first.astream(ASKED)
        await anext(chunks)
        await chunks.aclose()

    asyncio.run(begin())
    assert shop.cache.stats().entries == 0
    assert "3 days" in first.invoke(ASKED)


def test_an_answer_of_a_fallback_is_not_stored(shop: Shop) -> None:
    """The chain would give another, if nothing had failed."""
    failing = Extractive(fails=True)
    model = failing.with_fallbacks([shop.model])
    chain = (
        {"context": shop.retriever | joined, "question": RunnablePassthrough()}
        | PROMPT
        | model
        | StrOutputParser()
    )
    first = answer_first(chain, shop.cache, corpus="v1")
    assert "3 days" in first.invoke(ASKED)
    assert first.faults() == {"incomplete_run": 1}


def test_an_answer_with_tools_is_not_stored(shop: Shop) -> None:
    """A hit would not call them."""
    from langchain_core.tools import tool

    @tool
    def order(what: str) -> str:
        """Order something."""
        return what

    first = answer_first(order | shop.chain(), shop.cache, corpus="v1", input_key="what")
    first.invoke({"what": ASKED})
    assert first.faults() == {"tool_called": 1}


# At the same time


def test_one_of_many_runs_the_chain(shop: Shop) -> None:
    """Threads and tasks that ask the same wait for its answer."""
    first = shop.first()
    shop.model._goes_on = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(first.invoke, ASKED) for _ in range(8)]
        assert shop.model._begun.wait(20)
        shop.model._goes_on.set()
        assert len({each.result() for each in asked}) == 1
    assert shop.retriever.calls == 1

    async def ask() -> set[str]:
        return set(await asyncio.gather(*(first.ainvoke(OTHER) for _ in range(8))))

    assert len(asyncio.run(ask())) == 1
    assert shop.retriever.calls == 2


def test_changes_while_others_ask(cache: SemanticCache) -> None:
    """Between two states: what was answered in the midst of an indexing is not repeated in one of them."""
    shop = Shop(cache, {"lamp.md": "The lamp takes 1 days to France."})
    first, chain, ended = shop.first(), shop.chain(), threading.Event()

    def ask() -> None:
        while not ended.is_set():
            with suppress(RuntimeError, KeyError):  # the store of LangChain is none for threads
                first.invoke(ASKED)

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for number in range(40):
                shop.texts = {"lamp.md": f"The lamp takes {number % 2} days to France."}
                shop.index("incremental")
                assert first.invoke(ASKED) == chain.invoke(ASKED), number
        finally:
            ended.set()
    assert [each.result() for each in asking] == [None] * 3


def test_who_waits_is_released_if_the_chain_fails(shop: Shop) -> None:
    """One of them runs it."""
    first = shop.first()
    shop.model._goes_on, shop.model.fails = threading.Event(), True
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(first.invoke, ASKED)
        assert shop.model._begun.wait(20)
        waiting = pool.submit(first.invoke, ASKED)
        shop.model._goes_on.set()
        for each in (failing, waiting):
            with pytest.raises(ConnectionError):
                each.result()


# Beside the cache of models


@pytest.fixture
def installed(cache: SemanticCache) -> Iterator[IbidemCache]:
    """The global cache, on the same database."""
    yield install(cache)
    uninstall()


def test_it_asks_the_installed_cache(installed: IbidemCache, shop: Shop) -> None:
    """By default."""
    first = answer_first(shop.chain(), corpus=shop.records)
    assert first.cache is installed.cache
    first.close()
    installed.cache.lookup(ibidem.Request("Is it open?"))


def test_a_miss_may_be_a_hit_of_the_model(installed: IbidemCache, shop: Shop) -> None:
    """A hit for the very same prompt is stored with what it saved; each saving is logged once."""
    first = shop.first()
    first.invoke(ASKED)
    shop.texts["sofa.md"] = "Sofas come red."
    shop.index()
    first.invoke(ASKED)  # nothing before retrieval, but the model sees the same
    assert (shop.retriever.calls, shop.model.calls) == (2, 1)
    assert shop.cache.stats().tokens_saved == 25
    first.invoke(ASKED)
    assert (shop.retriever.calls, shop.model.calls) == (2, 1)
    assert shop.cache.stats().tokens_saved == 50
    assert shop.cache.stats().examples == 1


def test_an_answer_for_other_words_is_not_stored_again(installed: IbidemCache, shop: Shop) -> None:
    """Under the new wording it would drift away from its question."""
    chain = shop.chain()
    chain.invoke(ASKED)
    first = shop.first()
    for _ in range(2):
        first.invoke(REWORDED)
    assert (shop.retriever.calls, shop.model.calls) == (3, 1)
    assert first.faults() == {}


def test_known_answers_are_those_of_the_model(installed: IbidemCache, shop: Shop) -> None:
    """They hold whatever the corpus says, and follow a correction: nothing here copies them."""
    first = shop.first()
    assert warm(first, [(ASKED, "Four days."), (OTHER, "Two kilos.")]).answered == 2
    for text in ("Sofas come red.", "The lamp takes 9 days to France."):
        shop.texts["sofa.md"] = text
        shop.index()
        assert [first.invoke(ASKED), first.invoke(REWORDED)] == ["Four days."] * 2
    assert shop.cache.stats().pinned == 2


# What it cannot be around


def test_what_keeps_a_state_is_refused(shop: Shop) -> None:
    """With what to do instead."""
    from langchain_core._api.deprecation import LangChainDeprecationWarning
    from langchain_core.chat_history import InMemoryChatMessageHistory
    from langchain_core.runnables.history import RunnableWithMessageHistory

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainDeprecationWarning)
        with_history = RunnableWithMessageHistory(shop.chain(), lambda _: InMemoryChatMessageHistory())
    for chain in (with_history, with_history | StrOutputParser()):
        with pytest.raises(InvalidInput, match="history as an input"):
            answer_first(chain, shop.cache, corpus="v1")
    with pytest.raises(InvalidInput, match="already"):
        answer_first(shop.first() | StrOutputParser(), shop.cache, corpus="v1")
    with pytest.raises(InvalidInput, match="runnable"):
        answer_first(lambda question: question, shop.cache, corpus="v1")  # type: ignore[arg-type]


def test_an_agent_is_refused(cache: SemanticCache) -> None:
    """It acts."""
    from langchain.agents import create_agent

    agent = create_agent(FakeListChatModel(responses=["x"]), [])
    with pytest.raises(InvalidInput, match="IbidemMiddleware"):
        answer_first(agent, cache, corpus="v1")


# Its life


def test_a_closed_cache_costs_hits_only(open_cache: OpenCache) -> None:
    """The chain runs."""
    shop = Shop(open_cache())
    first = shop.first()
    first.invoke(ASKED)
    shop.cache.close()
    assert "3 days" in first.invoke(ASKED)
    assert "3 days" in "".join(first.stream(ASKED))
    assert shop.retriever.calls == 3


def test_a_damaged_entry_is_a_miss(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in a row."""
    first = shop.first()
    first.invoke(ASKED)
    monkeypatch.setattr("langchain_ibidem.outputs.json.loads", lambda text: [])
    assert "3 days" in first.invoke(ASKED)
    assert shop.retriever.calls == 2


def test_copies_ask_the_same_cache(cache: SemanticCache) -> None:
    """Deep ones too."""
    calls = Calls()
    _RUNS.append(calls)
    first = answer_first(RunnableLambda(_run), cache, corpus="v1", name="shop")
    first.invoke(ASKED)
    for other in (deepcopy(first), first.model_copy()):
        assert other.invoke(ASKED) == first.invoke(ASKED)
    assert calls.count == 1


_RUNS: list[Calls] = []


def _run(question: str) -> str:
    return f"{_RUNS[-1].next()} {question}"


def test_it_closes_what_it_opened(shop: Shop) -> None:
    """And nothing else."""
    own = answer_first(shop.chain(), corpus="v1", embedder=BagOfWords(), min_similarity=0.8)
    own.invoke(ASKED)
    own.close()
    with pytest.raises(ibidem.IbidemError):
        own.cache.lookup(ibidem.Request(ASKED))
    first = shop.first()
    first.close()
    shop.cache.lookup(ibidem.Request(ASKED))
