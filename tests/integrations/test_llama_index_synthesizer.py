"""`CachedSynthesizer`: one entry per question in every mode; nothing incomplete; nobody else's answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import LLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.response_synthesizers.refine import StructuredRefineResponse
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from openai import APIError
from pydantic import BaseModel, Field, create_model

import ibidem
from ibidem.cache import SemanticCache
from llama_index_ibidem import CachedLLM, CachedSynthesizer
from tests.conftest import OpenCache
from tests.contracts.llama_index import (
    ASKED,
    COUNTRIES,
    ELSEWHERE,
    OPPOSITE,
    OTHER,
    REWORDED,
    Backend,
    Broke,
    CountingEvents,
    CountingFunctionCalling,
    FakeBackend,
    Library,
    OpenAIBackend,
    nodes_about,
    shelves,
)
from tests.embedders import BagOfWords
from tests.openai_server import OpenAIServer

WAYS = ("query", "aquery", "query streaming", "aquery streaming")
MODEL_CALLS = {
    "compact": 1,
    "refine": 2,
    "tree_summarize": 1,
    "simple_summarize": 1,
    "generation": 1,
    "accumulate": 2,
    "compact_accumulate": 1,
}
# What only comes whole: LlamaIndex does not stream what it accumulates.
ALL = [
    (mode, way)
    for mode in MODEL_CALLS
    for way in WAYS
    if not ("accumulate" in mode and way.endswith("streaming"))
]
STREAMS = [(mode, way) for mode, way in ALL if way.endswith("streaming")]
ABOUT_RIVERS = "The largest city of France lies at a broad river."


class Form(BaseModel):
    """What is to be found out."""

    subject: str
    detail: str


class Wordy(BaseModel):
    """What is to be found out."""

    subject: str
    detail: str
    source: str


@dataclass(frozen=True)
class Told:
    """What the user got: the text or form, and LlamaIndex's response."""

    text: Any
    response: Any

    @property
    def marker(self) -> dict[str, Any] | None:
        """What a hit says about itself."""
        told = (self.response.metadata or {}).get("ibidem")
        return told if told and told["hit"] else None


async def ask(engine: Any, question: str, way: str = "query") -> Told:
    """The answer in full, in one of the four ways of asking."""
    if way.startswith("query"):
        return await asyncio.to_thread(_ask, engine, question)
    response = await engine.aquery(question)
    if isinstance(response, AsyncStreamingResponse):
        return Told("".join([piece async for piece in response.async_response_gen()]), response)
    return Told(response.response, response)


def _ask(engine: Any, question: str) -> Told:
    response = engine.query(question)
    if isinstance(response, StreamingResponse):
        return Told("".join(response.response_gen), response)
    return Told(response.response, response)


def inner(llm: LLM, mode: str = "compact", way: str = "query", **options: Any) -> BaseSynthesizer:
    """LlamaIndex's own synthesizer."""
    streaming = way.endswith("streaming")
    return get_response_synthesizer(llm=llm, response_mode=mode, streaming=streaming, **options)


def engine_of(synthesizer: BaseSynthesizer, **edition: str) -> RetrieverQueryEngine:
    """A query engine over the library."""
    return RetrieverQueryEngine(Library(shelves(**edition)), synthesizer)


class Watched:
    """The cache that all tests share, since opening one takes long; and what one test does with it."""

    def __init__(self, core: SemanticCache) -> None:
        self.core = core
        self.steps = replace(core.steps, search=self._search, store=self.store)
        self.asked: list[str] = []
        self.stored: set[str] = set()
        self.rejected: list[str] = []

    def _search(self, request: ibidem.Request) -> ibidem.Hit | ibidem.Miss:
        self.asked.append(request.question)
        return self.core.steps.search(request)

    def store(self, request: ibidem.Request, answer: ibidem.Answer) -> ibidem.Stored | ibidem.Rejected:
        outcome = self.core.store(request, answer)
        if isinstance(outcome, ibidem.Stored):
            self.stored.add(outcome.entry_id)
        else:
            self.rejected.append(outcome.reason)
        return outcome


@dataclass
class Desk:
    """A model, a cache, and engines that have both; in a namespace that no other test has."""

    backend: Backend
    cache: Any
    namespace: str = ""

    def synthesizer(self, *kind: str, llm: LLM | None = None, **options: Any) -> CachedSynthesizer:
        """`kind` is a mode and a way."""
        semantic = options.pop("semantic", True)
        return self.wrap(inner(llm or self.backend.model, *kind, **options), semantic=semantic)

    def wrap(self, synthesizer: BaseSynthesizer, **options: Any) -> CachedSynthesizer:
        return CachedSynthesizer(synthesizer, self.cache, **{"namespace": self.namespace, **options})

    def engine(self, *kind: str, **options: Any) -> RetrieverQueryEngine:
        return engine_of(self.synthesizer(*kind, **options))

    def cached_model(self) -> CachedLLM:
        return CachedLLM(self.backend.model, self.cache, namespace=self.namespace)

    async def costs(self, engine: Any, question: str, way: str = "query") -> int:
        """How many calls of the model the answer takes."""
        before = self.backend.calls
        await ask(engine, question, way)
        return self.backend.calls - before

    @property
    def entries(self) -> int:
        return len(self.cache.stored)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], SemanticCache]]:
    """Opens the cache of all tests here when the first one asks for it, in the environment of tests."""
    opened: list[SemanticCache] = []

    def get() -> SemanticCache:
        if not opened:
            path = tmp_path_factory.mktemp("shared")
            opened.append(ibidem.open(path, embedder=BagOfWords(), min_similarity=0.8))
        return opened[0]

    yield get
    for cache in opened:
        cache.close()


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex's global settings are as before after each test."""
    for name in ("_llm", "_embed_model", "_callback_manager"):
        monkeypatch.setattr(Settings, name, getattr(Settings, name))
    Settings.embed_model = MockEmbedding(8)


@pytest.fixture
def fake() -> FakeBackend:
    """A model that counts."""
    return FakeBackend(CountingFunctionCalling())


@pytest.fixture
def desk(fake: FakeBackend, shared: Callable[[], SemanticCache], request: pytest.FixtureRequest) -> Desk:
    """A fake model and an empty cache."""
    return Desk(fake, Watched(shared()), request.node.nodeid)


@pytest.fixture
def openai(server: OpenAIServer, desk: Desk) -> Desk:
    """LlamaIndex's own client of such a server, and an empty cache."""
    return Desk(OpenAIBackend(server), desk.cache, desk.namespace)


# Every mode, every way -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "way"), ALL)
async def test_an_answered_question_costs_no_call_in_any_mode(mode: str, way: str, desk: Desk) -> None:
    """The same and a reworded question cost no call and get the same answer, and say that it is repeated."""
    engine = desk.engine(mode, way)
    cold = await ask(engine, ASKED, way)
    assert desk.backend.calls == MODEL_CALLS[mode]
    assert cold.marker is None
    for question, tier in ((ASKED, "exact"), (REWORDED, "semantic"), (ASKED, "exact")):
        again = await ask(engine, question, way)
        assert again.text == cold.text
        assert type(again.response) is type(cold.response)
        assert again.marker is not None
        assert (again.marker["tier"], again.marker["question"]) == (tier, ASKED)
    assert desk.backend.calls == MODEL_CALLS[mode]
    assert desk.entries == 1


@pytest.mark.parametrize(("mode", "way"), ALL)
async def test_another_question_is_answered_by_the_model(mode: str, way: str, desk: Desk) -> None:
    """Another question costs as many calls as the first, also if it only differs in one word."""
    engine = desk.engine(mode, way)
    texts = {(await ask(engine, ASKED, way)).text}
    for question in (OTHER, OPPOSITE, ELSEWHERE):
        told = await ask(engine, question, way)
        texts.add(told.text)
        assert told.marker is None
    assert desk.backend.calls == 4 * MODEL_CALLS[mode]
    assert len(texts) == desk.entries == 4


@pytest.mark.parametrize("mode", [mode for mode in MODEL_CALLS if mode != "generation"])
async def test_what_the_answer_was_made_with_must_be_unchanged(mode: str, desk: Desk) -> None:
    """A changed document costs a call, whether it supports the answer or not; then it is known."""
    desk.backend.obey(lambda last, number: ABOUT_RIVERS)
    await ask(desk.engine(mode), ASKED)
    synthesizer = desk.synthesizer(mode)
    assert await desk.costs(engine_of(synthesizer, later=" new"), ASKED) == MODEL_CALLS[mode]
    assert await desk.costs(engine_of(synthesizer, later=" new"), REWORDED) == 0
    assert await desk.costs(engine_of(synthesizer, edition=" new"), ASKED) == MODEL_CALLS[mode]
    assert await desk.costs(engine_of(synthesizer, edition=" new"), REWORDED) == 0


async def test_metadata_that_the_model_sees_is_part_of_the_document(desk: Desk) -> None:
    """Nodes are shown to the model with their metadata: where that changes, the document does."""
    await ask(desk.engine(), ASKED)
    library = shelves()
    for node in library["France"]:
        node.metadata = {"shelf": "elsewhere"}
    assert await desk.costs(RetrieverQueryEngine(Library(library), desk.synthesizer()), ASKED) == 1


async def test_documents_may_have_new_ids_and_come_in_another_order(desk: Desk) -> None:
    """Only the content of documents counts: an index that was built anew still hits."""
    await ask(desk.engine(), ASKED)
    again = [TextNode(text=node.text, metadata=node.metadata) for node in nodes_about("France")]
    library = Library({"France": again[::-1]})
    assert await desk.costs(RetrieverQueryEngine(library, desk.synthesizer()), ASKED) == 0


async def test_all_documents_must_be_the_same_under_the_strict_rule(
    fake: FakeBackend, open_cache: OpenCache
) -> None:
    """Under `document_policy="all"` any changed document costs a call."""
    desk = Desk(fake, open_cache(document_policy="all"))
    fake.obey(lambda last, number: ABOUT_RIVERS)
    synthesizer = desk.synthesizer()
    await ask(engine_of(synthesizer), ASKED)
    assert await desk.costs(engine_of(synthesizer), REWORDED) == 0
    assert await desk.costs(engine_of(synthesizer, later=" new"), ASKED) == 1


async def test_many_model_calls_become_one_entry(openai: Desk) -> None:
    """Refining over ten nodes is ten calls once, one entry that knows their tokens, and none afterwards."""
    shelf = [TextNode(text=f"Chapter {n} on rivers.", id_=f"chapter-{n}") for n in range(10)]
    engine = RetrieverQueryEngine(Library({"France": shelf}), openai.synthesizer("refine"))
    cold = await ask(engine, ASKED)
    assert (cold.text, openai.backend.calls) == ("answer 10", 10)
    hit = await ask(engine, REWORDED)
    assert (hit.text, openai.backend.calls) == ("answer 10", 10)
    assert hit.marker is not None
    assert hit.marker["saved_tokens"] == {"input_tokens": 110, "output_tokens": 70, "total_tokens": 180}
    assert openai.entries == 1


async def test_a_tree_of_summaries_becomes_one_entry(desk: Desk) -> None:
    """So little room that the nodes are summarised before their summaries are: three calls, one entry."""
    narrow = PromptHelper(context_window=4096, chunk_size_limit=24, chunk_overlap_ratio=0.0)
    for use_async in (False, True):
        engine = desk.engine("tree_summarize", prompt_helper=narrow, use_async=use_async)
        assert await desk.costs(engine, ASKED) == (0 if use_async else 3)
    assert await desk.costs(desk.engine("tree_summarize", prompt_helper=narrow), REWORDED) == 0
    assert desk.entries == 1


async def test_the_ways_of_asking_share_answers(desk: Desk) -> None:
    """What was answered whole is streamed from the cache, what was streamed is given whole, async or not."""
    for first in WAYS:
        desk.namespace += "!"
        cold = await ask(desk.engine("tree_summarize", first), ASKED, first)
        for way in WAYS:
            told = await ask(desk.engine("tree_summarize", way), REWORDED, way)
            assert told.text == cold.text
            assert told.marker
    assert desk.backend.calls == len(WAYS)


@pytest.mark.parametrize(("mode", "way"), [("compact", way) for way in WAYS] + [("refine", "query")])
async def test_it_works_on_the_real_openai_client(
    mode: str, way: str, server: OpenAIServer, openai: Desk
) -> None:
    """Nothing goes over the wire for a hit; what does is what goes without a cache."""
    plain = await ask(engine_of(inner(openai.backend.model, mode, way)), ASKED, way)
    calls, sent = server.count, [request["body"] for request in server.requests]
    server.reset()
    engine = openai.engine(mode, way)
    cold = await ask(engine, ASKED, way)
    assert (cold.text, server.count) == (plain.text, calls)
    assert [request["body"] for request in server.requests] == sent
    for question in (ASKED, REWORDED):
        assert (await ask(engine, question, way)).text == plain.text
    assert server.count == calls
    assert (await ask(engine, OTHER, way)).text != plain.text
    assert server.count == 2 * calls


# What else is compared -----------------------------------------------------------------------------------


async def test_another_template_is_another_question(desk: Desk) -> None:
    """An answer is not repeated for another template, nor for the same with other fixed variables."""
    rude = PromptTemplate("Be {tone}.\n{context_str}\n{query_str}", prompt_type="text_qa")
    engines = [
        desk.engine(),
        desk.engine(text_qa_template=rude.partial_format(tone="rude")),
        desk.engine(text_qa_template=rude.partial_format(tone="kind")),
        desk.engine(refine_template=PromptTemplate("{context_msg}{query_str}{existing_answer} Go on.")),
    ]
    for engine in engines:
        assert await desk.costs(engine, ASKED) == 1
    for engine in engines:
        assert await desk.costs(engine, REWORDED) == 0


async def test_a_template_that_names_its_variables_otherwise_is_another(desk: Desk) -> None:
    """`template_var_mappings` and the names in the template count."""
    texts = ("{context_str}\n{query_str}", "{docs}\n{q}")
    mapped = [None, {"context_str": "docs", "query_str": "q"}]
    for text, names in zip(texts, mapped, strict=True):
        engine = desk.engine(text_qa_template=PromptTemplate(text, template_var_mappings=names))
        assert await desk.costs(engine, ASKED) == 1
        assert await desk.costs(engine, REWORDED) == 0


async def test_another_mode_is_another_question(desk: Desk) -> None:
    """Each mode answers for itself, also those that have the same templates."""
    for mode, calls in MODEL_CALLS.items():
        assert await desk.costs(desk.engine(mode), ASKED) == calls
    for mode in MODEL_CALLS:
        assert await desk.costs(desk.engine(mode), REWORDED) == 0
    assert desk.entries == len(MODEL_CALLS)


async def test_settings_of_the_synthesizer_count(desk: Desk) -> None:
    """Settings that change what comes out are compared, those that change how it works are not."""
    assert await desk.costs(desk.engine("accumulate", use_async=True), ASKED) == 2
    assert await desk.costs(desk.engine("accumulate", use_async=False), ASKED) == 0
    strict = desk.synthesizer("simple_summarize")
    assert await desk.costs(engine_of(strict), ASKED) == 1
    strict._synthesizer._strict_truncation = True
    assert await desk.costs(engine_of(strict), ASKED) == 1


async def test_another_model_or_temperature_is_another_question(server: OpenAIServer, desk: Desk) -> None:
    """A small model's answer is never served for a large one, nor a cold one's for a warm one."""
    given = {"api_base": server.url, "api_key": "sk-test", "max_retries": 0}
    models = [
        OpenAI(model="gpt-4o-mini", temperature=0.0, **given),
        OpenAI(model="gpt-4o", temperature=0.0, **given),
        OpenAI(model="gpt-4o-mini", temperature=0.9, **given),
    ]
    for number, model in enumerate(models, 1):
        assert (await ask(desk.engine(llm=model), ASKED)).text == f"answer {number}"
    other_key = OpenAI(model="gpt-4o-mini", temperature=0.0, **{**given, "api_key": "sk-other"})
    assert (await ask(desk.engine(llm=other_key), ASKED)).text == "answer 1"
    assert server.count == len(models)


async def test_the_system_prompt_of_the_model_counts(desk: Desk) -> None:
    """A system prompt that the model is given later makes another question."""
    engine = desk.engine()
    await ask(engine, ASKED)
    desk.backend.model.system_prompt = "Answer in French."
    assert await desk.costs(engine, ASKED) == 1


async def test_the_system_prompt_of_a_cached_model_counts(desk: Desk) -> None:
    """A system prompt that a `CachedLLM` is given later makes another question."""
    llm = desk.cached_model()
    engine = desk.engine(llm=llm)
    await ask(engine, ASKED)
    llm.system_prompt = "Answer in French."
    assert await desk.costs(engine, ASKED) == 1
    assert "French" in desk.backend.asked[-1]


async def test_arguments_of_the_response_count(desk: Desk) -> None:
    """What is passed on to the model with a question is compared, an object by identity."""
    synthesizer = desk.synthesizer("tree_summarize")
    nodes = [NodeWithScore(node=node) for node in nodes_about("France")]

    def costs(**given: Any) -> int:
        before = desk.backend.calls
        synthesizer.synthesize(ASKED, nodes, **given)
        return desk.backend.calls - before

    assert [costs(audience=audience) for audience in ("children", "experts", "children")] == [1, 1, 0]
    assert costs() == 1
    assert [costs(audience=object()) for _ in range(2)] == [1, 1]
    audience = object()
    assert [costs(audience=audience) for _ in range(2)] == [1, 0]
    assert synthesizer.faults() == {}


async def test_namespaces_never_share_answers(fake: FakeBackend, cache: SemanticCache) -> None:
    """What was stored for one tenant is not served to another, and is cleared alone."""
    ada, bob, nobody = (Desk(fake, cache, namespace) for namespace in ("ada", "bob", ""))
    for desk in (ada, bob, nobody):
        assert await desk.costs(desk.engine(), ASKED) == 1
        assert await desk.costs(desk.engine(), REWORDED) == 0
    assert cache.clear("ada") == 1
    assert await ada.costs(ada.engine(), ASKED) == 1
    assert await bob.costs(bob.engine(), ASKED) == 0


async def test_without_semantics_only_the_very_question_is_repeated(desk: Desk) -> None:
    """`semantic=False` is for material that looks alike and is not."""
    engine = desk.engine(semantic=False)
    assert [await desk.costs(engine, question) for question in (ASKED, ASKED, REWORDED)] == [1, 0, 1]


async def test_how_much_of_the_documents_is_shown_counts(desk: Desk) -> None:
    """An answer that was made from the first words alone is not given where there is room for all of them."""
    narrow = PromptHelper(context_window=600, num_output=0, chunk_size_limit=8, chunk_overlap_ratio=0.0)
    assert await desk.costs(desk.engine("simple_summarize", prompt_helper=narrow), ASKED) == 1
    assert "parliament" not in desk.backend.asked[-1]
    assert await desk.costs(desk.engine("simple_summarize"), ASKED) == 1
    assert "parliament" in desk.backend.asked[-1]


class Toned(BaseSynthesizer):
    """A synthesizer of the user's own; its tone may be any object."""

    def __init__(self, tone: Any, **given: Any) -> None:
        super().__init__(**given)
        self._tone = tone

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: dict[str, Any]) -> None:
        """There are none."""

    def get_response(self, query_str: str, text_chunks: Any, **given: Any) -> str:
        return self._llm.complete(f"{self._tone} {query_str} {text_chunks}").text

    async def aget_response(self, query_str: str, text_chunks: Any, **given: Any) -> str:
        return self.get_response(query_str, text_chunks)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kind", "rude"),
        ({"tone": "kind"}, {"tone": "rude"}),
        (Form(subject="kind", detail=""), Form(subject="rude", detail="")),
    ],
    ids=["text", "mapping", "model"],
)
async def test_settings_of_a_synthesizer_of_ones_own_count(one: Any, other: Any, desk: Desk) -> None:
    """A synthesizer that works otherwise is another one, whatever its settings are made of."""
    for tone in (one, other):
        engine = engine_of(desk.wrap(Toned(tone, llm=desk.backend.model)))
        assert await desk.costs(engine, ASKED) == 1
        assert await desk.costs(engine, REWORDED) == 0


def _program(description: str) -> Callable[..., Any]:
    answer = (str, Field(description=description))
    form = create_model("Filtered", __base__=StructuredRefineResponse, answer=answer)

    def make(prompt: Any) -> Any:
        return FunctionCallingProgram.from_defaults(output_cls=form, prompt=prompt, llm=Settings.llm)

    return make


async def test_the_program_that_filters_answers_counts(desk: Desk) -> None:
    """Another `program_factory` asks the model for something else."""
    Settings.llm = desk.backend.model
    for description in ("the answer in French", "the answer in verse"):
        filtered = {"structured_answer_filtering": True, "program_factory": _program(description)}
        assert await desk.costs(desk.engine(**filtered), ASKED) == 1


async def test_what_an_output_parser_asks_for_counts(desk: Desk) -> None:
    """A parser adds its schema to the prompt, so another schema is another prompt."""
    desk.backend.obey(lambda last, number: f'{{"subject": "river {number}", "detail": "", "source": ""}}')
    for form in (Form, Wordy):
        template = PromptTemplate(
            "{context_str}\n{query_str}", output_parser=PydanticOutputParser(output_cls=form)
        )
        assert await desk.costs(desk.engine(text_qa_template=template), ASKED) == 1


async def test_an_answer_that_a_parser_reads_fits_the_very_question_only(desk: Desk) -> None:
    """As with `CachedLLM`, text that a program acts upon is not repeated for a reworded question."""
    desk.backend.obey(lambda last, number: f'{{"subject": "river {number}", "detail": ""}}')
    template = PromptTemplate(
        "{context_str}\n{query_str}", output_parser=PydanticOutputParser(output_cls=Form)
    )
    engine = desk.engine(text_qa_template=template)
    assert [await desk.costs(engine, question) for question in (ASKED, ASKED, REWORDED)] == [1, 0, 1]


# Forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["query", "aquery"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
async def test_a_form_is_restored_as_its_class(mode: str, way: str, desk: Desk) -> None:
    """With `output_cls` a hit is an object of the class; programs read it, so only the very question fits."""
    engine = desk.engine(mode, way, output_cls=Form)
    cold = await ask(engine, ASKED, way)
    again = await ask(engine, ASKED, way)
    assert isinstance(cold.text, Form)
    assert isinstance(again.text, Form)
    assert isinstance(again.response, PydanticResponse)
    assert again.text == cold.text
    assert (again.marker or {})["tier"] == "exact"
    assert desk.backend.calls == MODEL_CALLS[mode]
    assert await desk.costs(engine, REWORDED, way) == MODEL_CALLS[mode]


async def test_a_changed_form_is_another_question(desk: Desk) -> None:
    """A class with other fields gets answers of its own, even under the same name."""
    other = create_model("Form", __doc__=Form.__doc__, subject=(str, ...), detail=(str, ...), when=(str, ...))
    for form in (Form, other):
        engine = desk.engine(output_cls=form)
        assert await desk.costs(engine, ASKED) == 1
        assert isinstance((await ask(engine, ASKED)).text, form)
    assert await desk.costs(desk.engine(), ASKED) == 1


@pytest.mark.parametrize("mode", ["accumulate", "compact_accumulate"])
async def test_accumulated_forms_are_repeated_as_text(mode: str, desk: Desk) -> None:
    """LlamaIndex accumulates forms to one text; that text is the answer to repeat."""
    engine = desk.engine(mode, output_cls=Form)
    cold = await ask(engine, ASKED)
    again = await ask(engine, ASKED)
    assert again.text == cold.text
    assert again.marker
    assert desk.backend.calls == MODEL_CALLS[mode]


async def test_a_stream_of_a_synthesizer_with_a_form_is_repeated_as_text(desk: Desk) -> None:
    """LlamaIndex's tree summary streams text even if it was given a form."""
    engine = desk.engine("tree_summarize", "query streaming", output_cls=Form)
    cold = await ask(engine, ASKED)
    assert (await ask(engine, ASKED)).text == cold.text
    assert desk.backend.calls == 1


@pytest.mark.parametrize("way", ["query", "aquery"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize", "generation"])
async def test_a_structured_model_fills_its_form_from_the_cache(mode: str, way: str, desk: Desk) -> None:
    """A `StructuredLLM` inside gives the same object again; only the very question fits."""
    llm = desk.backend.model.as_structured_llm(Form)
    engine = desk.engine(mode, way, llm=llm)
    cold = await ask(engine, ASKED, way)
    again = await ask(engine, ASKED, way)
    assert isinstance(again.text, Form)
    assert again.text == cold.text
    assert again.marker
    assert desk.backend.calls == MODEL_CALLS[mode]
    assert await desk.costs(engine, REWORDED, way) == MODEL_CALLS[mode]


async def test_a_structured_model_with_another_form_is_another_model(desk: Desk) -> None:
    """The form of a `StructuredLLM` counts, and so does whether there is one."""
    for llm in (desk.backend.model, *map(desk.backend.model.as_structured_llm, (Form, Wordy))):
        assert await desk.costs(desk.engine(llm=llm), ASKED) == 1


# What the user gets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "way"), ALL)
async def test_sources_and_metadata_are_those_of_this_question(mode: str, way: str, desk: Desk) -> None:
    """A hit has the nodes that were retrieved now, their metadata, and its entry beside; a miss has none."""
    library = shelves()
    engine = RetrieverQueryEngine(Library(library), desk.synthesizer(mode, way))
    cold = await ask(engine, ASKED, way)
    hit = await ask(engine, REWORDED, way)
    for told in (cold, hit):
        assert [scored.node for scored in told.response.source_nodes] == library["France"]
    assert cold.response.metadata.pop("ibidem") == {"hit": False}
    assert cold.response.metadata == {node.node_id: node.metadata for node in library["France"]}
    marker = hit.response.metadata.pop("ibidem")
    assert hit.response.metadata == cold.response.metadata
    assert marker.keys() >= {"entry_id", "tier", "similarity", "age_seconds", "saved_tokens", "question"}
    assert library["France"][0].metadata == {"shelf": "rivers"}


async def test_the_marker_belongs_to_one_response(desk: Desk) -> None:
    """After a hit the next miss is not marked, nor is an answer without nodes."""
    engine = desk.engine()
    await ask(engine, ASKED)
    assert (await ask(engine, ASKED)).marker
    nothing = RetrieverQueryEngine(Library({}), desk.synthesizer())
    assert (await ask(nothing, ASKED)).marker is None
    assert (await ask(engine, OTHER)).marker is None


async def test_additional_source_nodes_come_along(desk: Desk) -> None:
    """Nodes that are only to be named as sources are named, and are no part of the question."""
    synthesizer = desk.synthesizer()
    nodes = [NodeWithScore(node=node) for node in nodes_about("France")]
    for country in ("Peru", "Japan"):
        more = [NodeWithScore(node=node) for node in nodes_about(country)]
        response = synthesizer.synthesize(ASKED, nodes, additional_source_nodes=more)
        assert response.source_nodes == nodes + more
    assert desk.backend.calls == 1


async def test_templates_are_seen_and_replaced_through_it(desk: Desk) -> None:
    """`get_prompts` shows the synthesizer's own, `update_prompts` reaches it and makes another question."""
    plain = RetrieverQueryEngine(Library(shelves()), inner(desk.backend.model))
    engine = desk.engine()
    assert engine.get_prompts().keys() == plain.get_prompts().keys()
    assert "response_synthesizer:text_qa_template" in engine.get_prompts()
    await ask(engine, ASKED)
    new = PromptTemplate("From {context_str} tell a pirate: {query_str}")
    engine.update_prompts({"response_synthesizer:text_qa_template": new})
    shown = engine.get_prompts()["response_synthesizer:text_qa_template"]
    assert shown.get_template() == new.get_template()
    assert await desk.costs(engine, ASKED) == 1
    assert "pirate" in desk.backend.asked[-1]
    assert await desk.costs(engine, REWORDED) == 0


async def test_a_callback_manager_reaches_the_synthesizer_inside(desk: Desk) -> None:
    """Assigned later, it hears of the synthesis every time and of the model when it is asked."""
    synthesizer = desk.synthesizer()
    events = CountingEvents()
    manager = CallbackManager([events])
    synthesizer.callback_manager = manager
    assert synthesizer.callback_manager is manager
    assert synthesizer._synthesizer.callback_manager is manager
    assert desk.backend.model.callback_manager is manager
    nodes = [NodeWithScore(node=node) for node in nodes_about("France")]
    for _ in range(2):
        synthesizer.synthesize(ASKED, nodes)
    assert (events.counts["start synthesize"], events.counts["end synthesize"]) == (2, 2)
    assert (events.counts["start llm"], events.counts["end llm"]) == (1, 1)


# What is never stored ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["desk", "openai"])
@pytest.mark.parametrize(("mode", "way"), ALL)
async def test_a_truncated_answer_is_never_stored(
    mode: str, way: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """An answer that ends for lack of tokens reaches the user and nobody else."""
    desk = request.getfixturevalue(kind)
    desk.backend.stop_with("length")
    engine = desk.engine(mode, way)
    assert [await desk.costs(engine, ASKED, way) for _ in range(2)] == [MODEL_CALLS[mode]] * 2
    assert desk.cache.rejected == ["finish_reason:length"] * 2
    assert desk.entries == 0
    desk.backend.stop_with("stop")
    assert await desk.costs(engine, ASKED, way) == MODEL_CALLS[mode]
    assert await desk.costs(engine, REWORDED, way) == 0


@pytest.mark.parametrize(("mode", "way"), [case for case in STREAMS if case[0] != "refine"])
async def test_a_truncated_stream_that_tells_its_usage_is_never_stored(
    mode: str, way: str, openai: Desk
) -> None:
    """With `include_usage` the last chunk tells tokens and no reason; the reason before it counts."""
    openai.backend.model.additional_kwargs = {"stream_options": {"include_usage": True}}
    engine = openai.engine(mode, way)
    openai.backend.stop_with("length")
    assert [await openai.costs(engine, ASKED, way) for _ in range(2)] == [1, 1]
    openai.backend.stop_with("stop")
    await ask(engine, ASKED, way)
    assert (await ask(engine, ASKED, way)).marker
    assert openai.entries == 1


@pytest.mark.parametrize(("mode", "way"), STREAMS)
async def test_the_tokens_of_a_stream_are_kept_if_they_are_told(mode: str, way: str, openai: Desk) -> None:
    """A hit says what it has saved, all calls behind the answer together."""
    openai.backend.model.additional_kwargs = {"stream_options": {"include_usage": True}}
    engine = openai.engine(mode, way)
    await ask(engine, ASKED, way)
    hit = await ask(engine, ASKED, way)
    assert hit.marker is not None
    assert hit.marker["saved_tokens"]["total_tokens"] == 18 * MODEL_CALLS[mode]


class Overriding(CountingFunctionCalling):
    """A user's subclass that does something before it asks."""

    def chat(self, messages: Any, **given: Any) -> Any:
        return super().chat(messages, **given)


async def test_a_truncated_answer_of_a_subclass_is_never_stored(desk: Desk) -> None:
    """A method that calls `super()` is one call, and its finish reason counts."""
    desk = Desk(FakeBackend(Overriding()), desk.cache, desk.namespace)
    desk.backend.stop_with("length")
    engine = desk.engine()
    assert [await desk.costs(engine, ASKED) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("way", WAYS)
async def test_one_truncated_part_spoils_the_answer(way: str, cut: int, desk: Desk) -> None:
    """If a refining step was cut off, first or last, the whole answer rests on half a text."""

    def say(last: str, number: int) -> str:
        desk.backend.stop_with("length" if number == cut else "stop")
        return f"answer {number}"

    desk.backend.obey(say)
    assert await desk.costs(desk.engine("refine", way), ASKED, way) == 2
    assert desk.cache.rejected == ["finish_reason:length"]


@pytest.mark.parametrize(("mode", "way"), STREAMS)
async def test_an_abandoned_stream_is_never_stored(mode: str, way: str, desk: Desk) -> None:
    """Neither a stream that nobody reads nor one that is read half leaves an entry."""
    desk.backend.obey(lambda last, number: "an answer of many words that takes its time")
    engine = desk.engine(mode, way)
    for read in (0, 2):
        if way.startswith("query"):
            stream = engine.query(ASKED).response_gen
            for _ in range(read):
                next(stream)
            stream.close()
        else:
            astream = (await engine.aquery(ASKED)).response_gen
            for _ in range(read):
                await anext(astream)
            await astream.aclose()
    assert desk.entries == 0
    assert await desk.costs(engine, ASKED, way) == MODEL_CALLS[mode]
    assert desk.entries == 1


@pytest.mark.parametrize(("mode", "way"), STREAMS)
async def test_a_stream_that_breaks_raises_and_is_never_stored(mode: str, way: str, desk: Desk) -> None:
    """The user gets what came and then the model's own error."""
    desk.backend.obey(lambda last, number: "an answer of many words that takes its time")
    desk.backend.break_stream_after(3)
    engine = desk.engine(mode, way)
    with pytest.raises(Broke):
        await ask(engine, ASKED, way)
    assert desk.entries == 0
    assert await desk.costs(engine, ASKED, way) == MODEL_CALLS[mode]
    assert await desk.costs(engine, ASKED, way) == 0


@pytest.mark.parametrize("way", ["query streaming", "aquery streaming"])
@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "simple_summarize", "generation"])
async def test_a_stream_that_just_ends_is_never_stored(mode: str, way: str, openai: Desk) -> None:
    """A body that ends without a finish reason is half an answer, though no error tells so."""
    openai.backend.obey(lambda last, number: "an answer of many words")
    engine = openai.engine(mode, way)
    openai.backend.break_stream_after(3, politely=True)
    assert (await ask(engine, ASKED, way)).text == "an answer of"
    assert openai.entries == 0
    assert (await ask(engine, ASKED, way)).text == "an answer of many words"


@pytest.mark.parametrize(("mode", "way"), ALL)
async def test_the_error_of_the_model_is_the_users(mode: str, way: str, desk: Desk) -> None:
    """A failing model fails as without a cache, nothing is stored, and the next try works."""
    engine = desk.engine(mode, way)
    desk.backend.fail_next()
    with pytest.raises(Broke):
        await ask(engine, ASKED, way)
    assert desk.entries == 0
    assert (await ask(engine, ASKED, way)).marker is None
    assert (await ask(engine, REWORDED, way)).marker
    assert desk.entries == 1


async def test_the_error_of_the_real_client_is_the_users(openai: Desk) -> None:
    """An HTTP error comes as OpenAI's own exception, whole and streamed."""
    for way in WAYS:
        openai.backend.fail_next()
        with pytest.raises(APIError):
            await ask(openai.engine("tree_summarize", way), ASKED, way)
    assert openai.entries == 0


@pytest.mark.parametrize(("mode", "told"), [("compact", "Empty Response"), ("refine", "answer 2")])
async def test_an_answer_that_lacks_a_failed_part_is_never_stored(mode: str, told: str, desk: Desk) -> None:
    """Where LlamaIndex hides that a call failed, the answer is not made permanent."""
    engine = desk.engine(mode)
    desk.backend.script.failures.append(ValueError("no JSON"))
    with suppress(ValueError):  # which older versions do not hide
        assert (await ask(engine, ASKED)).text == told
    assert desk.entries == 0
    assert await desk.costs(engine, ASKED) == MODEL_CALLS[mode]


async def test_an_empty_answer_is_never_stored(desk: Desk) -> None:
    """A model that says nothing may have more to say the next time."""
    desk.backend.obey(lambda last, number: "")
    engine = desk.engine("tree_summarize")
    assert [await desk.costs(engine, ASKED) for _ in range(2)] == [1, 1]
    assert desk.entries == 0


@pytest.mark.parametrize("way", WAYS)
async def test_without_nodes_the_response_is_llama_indexs(way: str, desk: Desk) -> None:
    """Nothing was found: "Empty Response", no call, nothing stored."""
    engine = RetrieverQueryEngine(Library({}), desk.synthesizer("compact", way))
    for _ in range(2):
        assert (await ask(engine, ASKED, way)).text == "Empty Response"
    assert (desk.backend.calls, desk.entries) == (0, 0)


async def test_the_users_own_empty_response_is_kept(desk: Desk) -> None:
    """What the synthesizer says for want of nodes is what the user set."""
    own = inner(desk.backend.model)
    own._empty_response = "Nothing in the archive."
    engine = RetrieverQueryEngine(Library({}), desk.wrap(own))
    assert (await ask(engine, ASKED)).text == "Nothing in the archive."


@pytest.mark.parametrize("way", WAYS)
async def test_generation_asks_the_model_without_nodes_too(way: str, desk: Desk) -> None:
    """Mode `generation` needs no nodes, so it answers as it does without a cache."""
    engine = RetrieverQueryEngine(Library({}), desk.synthesizer("generation", way))
    assert (await ask(engine, ASKED, way)).text == "answer 1"
    assert (await ask(engine, REWORDED, way)).text == "answer 1"
    assert desk.backend.calls == 1


@pytest.mark.parametrize("way", ["query", "aquery"])
@pytest.mark.parametrize("mode", ["no_text", "context_only"])
async def test_modes_that_ask_no_model_answer_as_ever(mode: str, way: str, desk: Desk) -> None:
    """`no_text` gives the nodes alone, `context_only` their texts, the first time and again."""
    Settings.llm = desk.backend.model
    plain = await ask(engine_of(inner(desk.backend.model, mode)), ASKED, way)
    engine = desk.engine(mode)
    for _ in range(2):
        told = await ask(engine, ASKED, way)
        assert told.text == plain.text
        assert told.response.source_nodes == plain.response.source_nodes
    assert desk.backend.calls == 0


async def test_context_only_gives_the_nodes_of_this_question(desk: Desk) -> None:
    """When a node has come to those that were there, its text is in the answer."""
    Settings.llm = desk.backend.model
    synthesizer = desk.synthesizer("context_only")
    await ask(engine_of(synthesizer), ASKED)
    library = shelves()
    library["France"].append(TextNode(text="The capital of France is Paris."))
    told = await ask(RetrieverQueryEngine(Library(library), synthesizer), ASKED)
    assert "Paris" in told.text


async def test_templates_with_functions_are_not_cached(desk: Desk) -> None:
    """What a template's functions will say is unknown beforehand: counted, not cached, answered as ever."""
    template = PromptTemplate(
        "{shots}\n{context_str}\n{query_str}", function_mappings={"shots": lambda **_: "Q: 1? A: 1"}
    )
    synthesizer = desk.synthesizer(text_qa_template=template)
    engine = engine_of(synthesizer)
    assert [await desk.costs(engine, ASKED) for _ in range(2)] == [1, 1]
    assert "Q: 1? A: 1" in desk.backend.asked[-1]
    assert synthesizer.faults() == {"function_mappings": 2}
    assert desk.entries == 0


async def test_get_response_alone_is_not_cached(desk: Desk) -> None:
    """Called directly there are no nodes to compare: counted, not cached, answered as ever."""
    synthesizer = desk.synthesizer()
    assert [synthesizer.get_response(ASKED, ["some text"]) for _ in range(2)] == ["answer 1", "answer 2"]
    assert await synthesizer.aget_response(ASKED, ["some text"]) == "answer 3"
    assert synthesizer.faults() == {"no_synthesis": 3}


async def test_an_empty_question_is_not_cached(desk: Desk) -> None:
    """There is nothing to compare; the cause says so."""
    synthesizer = desk.synthesizer()
    synthesizer.synthesize(" ", [NodeWithScore(node=node) for node in nodes_about("France")])
    assert synthesizer.faults() == {"no_question": 1}


class Polite(type(inner(CountingFunctionCalling()))):  # type: ignore[misc]
    """A synthesizer of the user's own with a `synthesize` of its own."""

    def synthesize(self, *args: Any, **given: Any) -> Any:
        response = super().synthesize(*args, **given)
        response.metadata["polite"] = True
        return response


async def test_a_synthesize_of_ones_own_is_respected(desk: Desk) -> None:
    """What a subclass does around the answer is done for hits too."""
    engine = engine_of(desk.wrap(Polite(llm=desk.backend.model)))
    for question in (ASKED, REWORDED):
        assert (await ask(engine, question)).response.metadata["polite"]
    assert (desk.backend.calls, desk.entries) == (1, 1)


@pytest.mark.skipif(
    "multimodal" not in signature(get_response_synthesizer).parameters, reason="only newer LlamaIndex has it"
)
async def test_messages_are_not_cached(desk: Desk) -> None:
    """Multimodal synthesis works as ever, and is not marked after a hit either."""
    synthesizer = desk.synthesizer(multimodal=True)
    engine = engine_of(synthesizer)
    told = [await ask(engine, ASKED, way) for way in ("query", "aquery")]
    assert [each.text for each in told] == ["answer 1", "answer 2"]
    assert [each.marker for each in told] == [None, None]
    assert desk.entries == 0


# Beside other things -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
async def test_it_wraps_a_synthesizer_with_a_cached_model(mode: str, way: str, desk: Desk) -> None:
    """Over a `CachedLLM` a hit of the synthesizer does not even ask that; both layers keep their entries."""
    engine = desk.engine(mode, way, llm=desk.cached_model())
    cold = await ask(engine, ASKED, way)
    assert desk.cache.asked == [ASKED] * (1 + MODEL_CALLS[mode])
    hit = await ask(engine, REWORDED, way)
    assert (hit.text, bool(hit.marker)) == (cold.text, True)
    assert desk.cache.asked[1 + MODEL_CALLS[mode] :] == [REWORDED]
    assert desk.backend.calls == MODEL_CALLS[mode]
    assert desk.entries == MODEL_CALLS[mode] + 1


async def test_plain_and_cached_models_share_answers(desk: Desk) -> None:
    """A `CachedLLM` is the model that it wraps, so putting one in loses no answer."""
    await ask(desk.engine(), ASKED)
    assert await desk.costs(desk.engine(llm=desk.cached_model()), REWORDED) == 0


class Everything(BaseRetriever):
    """Returns the same node for all questions."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text="Letters have names.", id_="letters"))]


async def test_a_repeated_answer_is_not_stored_for_its_new_wording(desk: Desk) -> None:
    """From one question to a near one and on to the next, an answer would wander away from what was asked."""
    words = "What is the alpha beta gamma delta epsilon zeta eta"
    first, second, third = f"{words} theta iota?", f"{words} theta kappa mu?", f"{words} kappa mu nu xi?"
    vectors = BagOfWords().embed([first, second, third])
    assert vectors[0] @ vectors[1] > 0.8 > vectors[0] @ vectors[2]
    assert vectors[1] @ vectors[2] > 0.8
    llm = desk.cached_model()
    plain = RetrieverQueryEngine(Everything(), inner(llm))
    assert await desk.costs(plain, first) == 1
    cached = RetrieverQueryEngine(Everything(), desk.synthesizer(llm=llm))
    assert await desk.costs(cached, second) == 0
    assert await desk.costs(cached, third) == 1


def _city(country: str) -> str:
    return f"The largest city of {country} lies at a broad river."


def _asked_of(country: str) -> str:
    return ASKED.replace("France", country)


def _about_the_country(last: str, number: int) -> str:
    found = re.search(r"city of (\w+)\?", last)
    return _city(found[1] if found else "nowhere")


@pytest.mark.parametrize("mode", ["compact", "refine", "accumulate"])
def test_threads_do_not_mix_answers_or_markers(mode: str, desk: Desk) -> None:
    """Ten questions at once on one engine, twice: each gets its own answer, each hit its own marker."""
    desk.backend.obey(_about_the_country)
    engine = desk.engine(mode)
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(3):
            told = list(pool.map(lambda country: _ask(engine, _asked_of(country)), COUNTRIES))
            for country, each in zip(COUNTRIES, told, strict=True):
                assert _city(country) in each.text
                assert (each.marker or {}).get("question") == (_asked_of(country) if round_ else None)
    assert desk.backend.calls == MODEL_CALLS[mode] * len(COUNTRIES)


@pytest.mark.parametrize(
    ("mode", "way"),
    [("compact", "aquery"), ("refine", "aquery"), ("compact", "aquery streaming")],
)
async def test_tasks_do_not_mix_answers_or_markers(mode: str, way: str, desk: Desk) -> None:
    """The same in one event loop, where hits and misses run between each other."""
    desk.backend.obey(_about_the_country)
    desk.backend.wait(0.002)
    engine = desk.engine(mode, way)
    half = COUNTRIES[::2]
    for _ in range(2):
        await asyncio.gather(*(ask(engine, _asked_of(country), way) for country in half))
    told = await asyncio.gather(*(ask(engine, _asked_of(country), way) for country in COUNTRIES))
    for country, each in zip(COUNTRIES, told, strict=True):
        assert each.text == _city(country)
        known = _asked_of(country) if country in half else None
        assert (each.marker or {}).get("question") == known
    assert desk.backend.calls == MODEL_CALLS[mode] * len(COUNTRIES)


def _chat_over(engine: RetrieverQueryEngine, desk: Desk) -> CondenseQuestionChatEngine:
    memory = ChatMemoryBuffer.from_defaults()  # the default one leaves a database connection open
    return CondenseQuestionChatEngine.from_defaults(engine, memory=memory, llm=desk.backend.model)


@pytest.mark.parametrize("how", ["chat", "stream_chat"])
async def test_a_chat_engine_over_a_cached_engine_talks(how: str, desk: Desk) -> None:
    """`CondenseQuestionChatEngine` switches its engine between whole answers and streams; both are cached."""
    for _ in range(2):
        chat = _chat_over(desk.engine(), desk)
        response = await asyncio.to_thread(getattr(chat, how), ASKED)
        assert how == "chat" or "".join(response.response_gen)
        assert str(response) == "answer 1"
    assert desk.backend.calls == 1


async def test_a_chat_engine_over_a_streaming_engine_talks(desk: Desk) -> None:
    """The other way round: `chat` on an engine that streams."""
    chat = _chat_over(desk.engine("tree_summarize", "query streaming"), desk)
    response = await asyncio.to_thread(chat.chat, ASKED)
    assert isinstance(response.sources[0].raw_output, Response)
    assert str(response) == "answer 1"


async def test_a_closed_cache_is_not_the_users_problem(fake: FakeBackend, cache: SemanticCache) -> None:
    """The synthesizer answers without the cache, and counts that it had to."""
    desk = Desk(fake, cache)
    synthesizer = desk.synthesizer()
    engine = engine_of(synthesizer)
    await ask(engine, ASKED)
    cache.close()
    told = await ask(engine, ASKED)
    assert (told.text, told.marker) == ("answer 2", None)
    assert any("CacheClosed" in cause for cause in synthesizer.faults())


async def test_a_stored_answer_that_cannot_be_read_is_a_miss(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk may be anything: then the model is asked, and the marker does not lie."""
    synthesizer = desk.synthesizer(output_cls=Form)
    engine = engine_of(synthesizer)
    await ask(engine, ASKED)
    lookup = desk.cache.steps.search

    def garbled(asked: ibidem.Request) -> Any:
        found = lookup(asked)
        return (
            ibidem.Hit(ibidem.Answer("no JSON"), found.entry_id, found.tier, 1.0, None, 0.0)
            if isinstance(found, ibidem.Hit)
            else found
        )

    monkeypatch.setattr(desk.cache, "steps", replace(desk.cache.steps, search=garbled))
    told = await ask(engine, ASKED)
    assert isinstance(told.text, Form)
    assert told.marker is None
    assert synthesizer.faults() == {"read a stored answer: ValidationError": 1}


def test_only_synthesizers_can_be_wrapped(cache: SemanticCache, fake: FakeBackend) -> None:
    """Anything else, a wrong option, or a cache and options are told at once."""
    with pytest.raises(ibidem.InvalidInput, match="response synthesizer, not CountingFunctionCalling"):
        CachedSynthesizer(fake.model, cache)
    with pytest.raises(ibidem.InvalidInput, match="cached already"):
        CachedSynthesizer(CachedSynthesizer(inner(fake.model), cache), cache)
    with pytest.raises(ibidem.InvalidInput, match="did you mean 'min_similarity'"):
        CachedSynthesizer(inner(fake.model), min_similarty=0.9)
    with pytest.raises(ibidem.InvalidInput, match="not both"):
        CachedSynthesizer(inner(fake.model), cache, min_similarity=0.9)
    with pytest.raises(ibidem.InvalidInput, match="namespace must be a str"):
        CachedSynthesizer(inner(fake.model), cache, namespace=None)


def test_it_closes_the_cache_that_it_opened(cache: SemanticCache, fake: FakeBackend, tmp_path: Path) -> None:
    """An own cache is closed with it, a given one stays open."""
    own = CachedSynthesizer(inner(fake.model), path=tmp_path / "own", embedder=BagOfWords())
    given = CachedSynthesizer(inner(fake.model), cache)
    own.close()
    given.close()
    with pytest.raises(ibidem.CacheClosed):
        own.cache.stats()
    assert given.cache.stats().entries == 0
