"""`install()` and `uninstall()`: one line, once, and back to what was there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer

import ibidem
from ibidem.cache import SemanticCache
from llama_index_ibidem import CachedLLM, CachedSynthesizer, IbidemCallbackHandler, install, uninstall
from tests.conftest import OpenCache
from tests.contracts.llama_index import (
    ASKED,
    OTHER,
    REWORDED,
    CountingCompletion,
    CountingEvents,
    CountingFunctionCalling,
    Library,
    OpenAIBackend,
    shelves,
)
from tests.embedders import BagOfWords
from tests.helpers import ROOT
from tests.openai_server import running_openai


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LlamaIndex's global settings are as before after each test, and hold nothing in it."""
    for name in ("_llm", "_embed_model", "_callback_manager", "_prompt_helper"):
        monkeypatch.setattr(Settings, name, None)
    Settings._embed_model = MockEmbedding(8)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield
    uninstall()


@pytest.fixture
def model() -> CountingFunctionCalling:
    """The user's model, in the settings."""
    Settings.llm = model = CountingFunctionCalling()
    return model


def ask(engine: RetrieverQueryEngine, question: str) -> Any:
    """Ask it in a thread: in the main one LlamaIndex makes an event loop and leaves it open."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(engine.query, question).result()


def query(question: str = ASKED) -> str:
    """Ask as a program does that knows nothing of the cache."""
    return str(ask(RetrieverQueryEngine.from_args(Library(shelves())), question))


# Once ----------------------------------------------------------------------------------------------------


def test_one_line_caches_and_logs(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """After `install()` queries are answered from the cache, and what the model answered is in the log."""
    handler = install(cache)
    assert isinstance(handler, IbidemCallbackHandler)
    assert (query(), query(REWORDED), query(OTHER)) == ("answer 1", "answer 1", "answer 2")
    assert len(model.script.asked) == 2
    assert [example.question for example in cache.examples.recent()] == [OTHER, ASKED]
    assert handler.cache is cache


def test_a_second_install_changes_nothing(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """It returns the same handler, the model is wrapped once, the handler hears once."""
    handler = install(cache)
    cached = Settings.llm
    for again in ({}, {"cache": cache}):
        assert install(**again) is handler
        assert Settings.llm is cached
    assert Settings.callback_manager.handlers.count(handler) == 1
    query()
    assert cache.examples.count() == 1


def test_the_same_arguments_may_be_given_again(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """A program may run its setup twice, with a list of keys and the like."""
    given: dict[str, Any] = {"namespace": "ada", "question_keys": ["topic"], "any_message": True}
    handler = install(cache, **given)
    assert install(cache, **{**given, "question_keys": ["topic"]}) is handler
    assert install() is handler


@pytest.mark.parametrize(
    "other",
    [
        {"namespace": "bob"},
        {"model_id": "mine"},
        {"semantic": False},
        {"any_message": True},
        {"question_keys": ("topic",)},
        {"min_similarity": 0.9},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_arguments_are_an_error(
    other: dict[str, Any], model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """What was installed stays installed; the message says what to do."""
    handler = install(cache)
    cached = Settings.llm
    with pytest.raises(ibidem.ConfigurationError, match=r"uninstall\(\) first"):
        install(**other)
    assert Settings.llm is cached
    assert install() is handler


def test_another_cache_is_an_error(
    model: CountingFunctionCalling, open_cache: OpenCache, tmp_path: Path
) -> None:
    """Two caches in one process are two `CachedLLM`s, by hand."""
    install(open_cache())
    with pytest.raises(ibidem.ConfigurationError, match="other arguments"):
        install(open_cache(path=tmp_path / "other"))


def test_arguments_reach_the_model_and_the_handler(
    model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """Namespace and the rest hold for answers and examples alike."""
    install(cache, namespace="ada", any_message=True, semantic=False)
    for text in ("I lost my card", "I lost my card", "I have lost my card"):
        Settings.llm.chat([ChatMessage(text)])
    assert len(model.script.asked) == 2
    assert {example.namespace for example in cache.examples.recent()} == {"ada"}
    assert cache.examples.count("ada") == 2
    assert cache.clear("ada") == 2


def test_a_model_that_is_set_later_is_cached_too(
    model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """Called again, `install()` puts the new model on the same cache, with the same arguments."""
    handler = install(cache, namespace="ada")
    query()
    later = CountingFunctionCalling(model="later")
    Settings.llm = later
    query()
    query()
    assert len(later.script.asked) == 2
    assert install() is handler
    assert isinstance(Settings.llm, CachedLLM)
    assert Settings.llm.llm is later
    query()
    query(REWORDED)
    assert len(later.script.asked) == 3
    uninstall()
    assert Settings.llm is later


def test_a_cached_model_of_the_users_is_kept(open_cache: OpenCache, tmp_path: Path) -> None:
    """A `CachedLLM` in the settings stays the one it is, then and after `uninstall()`."""
    model = CountingFunctionCalling()
    Settings.llm = own = CachedLLM(model, open_cache())
    install(path=tmp_path / "log", embedder=BagOfWords())
    assert Settings.llm is own
    assert (query(), query()) == ("answer 1", "answer 1")
    assert len(model.script.asked) == 1
    install()
    assert Settings.llm is own
    uninstall()
    assert Settings.llm is own
    assert query() == "answer 1"
    assert own.faults() == {}


# And back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_manager", [True, False])
def test_uninstall_restores_what_was_there(
    with_manager: bool, model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """The very objects: the model, the manager or none, its handlers in their order."""
    mine = CountingEvents()
    manager = CallbackManager([mine]) if with_manager else None
    Settings._callback_manager = manager
    handler = install(cache)
    assert Settings.llm is not model
    uninstall()
    assert Settings._llm is model
    assert Settings._callback_manager is manager
    assert not with_manager or Settings.callback_manager.handlers == [mine]
    query()
    query()
    assert len(model.script.asked) == 2
    assert cache.examples.count() == 0
    assert handler.faults() == {}


def test_handlers_that_came_later_survive(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """What the user added after `install()` still hears LlamaIndex after `uninstall()`."""
    handler = install(cache)
    mine = CountingEvents()
    Settings.callback_manager.add_handler(mine)
    uninstall()
    assert Settings.callback_manager.handlers == [mine]
    query()
    assert mine.counts["end llm"] == 1
    assert handler not in Settings.callback_manager.handlers


def test_a_model_or_manager_that_came_later_survives(
    model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """What the user has put in the place of ours since is the user's."""
    install(cache)
    later, manager = CountingFunctionCalling(), CallbackManager([CountingEvents()])
    Settings.llm, Settings.callback_manager = later, manager
    uninstall()
    assert Settings._llm is later
    assert Settings._callback_manager is manager
    assert len(manager.handlers) == 1


def test_a_handler_that_the_user_has_taken_out_is_no_problem(
    model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """`uninstall()` does not insist on what is gone."""
    handler = install(cache)
    Settings.callback_manager.remove_handler(handler)
    uninstall()
    assert Settings._llm is model


def test_handlers_on_the_model_itself_survive(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """A manager that the user gave to the model alone hears its calls before, meanwhile and afterwards."""
    mine = CountingEvents()
    model.callback_manager = CallbackManager([mine])
    Settings.llm.complete("Who was that?")
    install(cache)
    Settings.llm.complete("Who is that?")
    uninstall()
    Settings.llm.complete("Who will that be?")
    assert len(model.script.asked) == 3
    assert mine.counts["end llm"] == 3


def test_uninstall_without_install_does_nothing(model: CountingFunctionCalling) -> None:
    """Nor does a second one."""
    uninstall()
    uninstall()
    assert Settings._llm is model


def test_install_again_after_uninstall(model: CountingFunctionCalling, open_cache: OpenCache) -> None:
    """The second installation is as good as the first, on another cache if one wants."""
    first = install(open_cache(), namespace="one")
    query()
    uninstall()
    second = install(open_cache(), namespace="other")
    assert second is not first
    assert (query(), query()) == ("answer 2", "answer 2")
    uninstall()
    install(open_cache(), namespace="one")
    assert query() == "answer 1"
    assert Settings.callback_manager.handlers == [install()]


def test_the_cache_that_was_opened_is_closed(model: CountingFunctionCalling, tmp_path: Path) -> None:
    """What `install()` opened `uninstall()` closes; what is stored is there the next time."""
    options: dict[str, Any] = {"path": tmp_path / "own", "embedder": BagOfWords(), "min_similarity": 0.8}
    handler = install(**options)
    assert install(**options) is handler
    query()
    uninstall()
    with pytest.raises(ibidem.CacheClosed):
        handler.cache.stats()
    again = install(**options)
    assert query(REWORDED) == "answer 1"
    assert again.cache.examples.count() == 1


def test_a_cache_that_was_given_stays_open(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """It is the user's to close."""
    install(cache)
    query()
    uninstall()
    assert cache.stats().entries == 1


def test_engines_outlive_the_installation(model: CountingFunctionCalling, tmp_path: Path) -> None:
    """An engine keeps the model that it was built with: without its cache it asks the model itself."""
    install(path=tmp_path / "own", embedder=BagOfWords())
    engine = RetrieverQueryEngine.from_args(Library(shelves()))
    assert str(ask(engine, ASKED)) == "answer 1"
    uninstall()
    assert str(ask(engine, ASKED)) == "answer 2"
    assert str(ask(engine, ASKED)) == "answer 3"


# What can be wrong ---------------------------------------------------------------------------------------


def test_without_a_model_there_is_nothing_to_cache(cache: SemanticCache) -> None:
    """No model is set and LlamaIndex cannot load its default: the message says what to do, on one line."""
    with pytest.raises(ibidem.ConfigurationError, match=r"set Settings\.llm to your model before") as caught:
        install(cache)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (Settings._llm, Settings._callback_manager) == (None, None)
    uninstall()
    Settings.llm = CountingFunctionCalling()
    install(cache)
    assert (query(), query()) == ("answer 1", "answer 1")


def test_llama_indexs_default_model_is_cached(cache: SemanticCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key LlamaIndex loads its default itself, and that is a model like any other."""
    with running_openai() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        install(cache)
        assert isinstance(Settings.llm, CachedLLM)
        assert (query(), query()) == ("answer 1", "answer 1")
        assert server.count == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"min_similarty": 0.9}, r"install\(\) has no option 'min_similarty'; did you mean 'min_similarity'"),
        ({"question_key": "topic"}, r"install\(\) has no option 'question_key'"),
        ({"namespace": 7}, "namespace must be a str, not int"),
        ({"model_id": None}, "model_id must be a str, not NoneType"),
        ({"min_similarity": 7.0}, "min_similarity"),
    ],
)
def test_invalid_options_raise_at_once(
    options: dict[str, Any], told: str, model: CountingFunctionCalling
) -> None:
    """With a hint, and nothing is half installed."""
    with pytest.raises((ibidem.InvalidInput, ibidem.ConfigurationError), match=told):
        install(**{"embedder": BagOfWords(), **options})
    assert Settings._llm is model
    assert Settings._callback_manager is None
    install(embedder=BagOfWords())
    assert (query(), query()) == ("answer 1", "answer 1")


def test_a_cache_with_options_is_an_error(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """One or the other."""
    with pytest.raises(ibidem.InvalidInput, match="not both"):
        install(cache, min_similarity=0.9)
    assert Settings._llm is model


def test_a_model_that_cannot_be_wrapped_raises(model: CountingFunctionCalling, cache: SemanticCache) -> None:
    """A structured model is wrapped inside; nothing is half installed."""
    from pydantic import create_model

    Settings.llm = structured = model.as_structured_llm(create_model("Form", subject=(str, ...)))
    with pytest.raises(ibidem.InvalidInput, match="wrap the model inside"):
        install(cache)
    assert Settings._llm is structured
    assert Settings._callback_manager is None
    assert install.__module__ == "llama_index_ibidem.install"


def test_a_mock_is_a_model_too(cache: SemanticCache) -> None:
    """As in the docs."""
    Settings.llm = MockLLM()
    install(cache)
    assert query() == query()
    assert cache.stats().hits == {"exact": 1}


# What hits cost ------------------------------------------------------------------------------------------


async def _complete(llm: Any) -> None:
    llm.complete(ASKED)


async def _chat(llm: Any) -> None:
    llm.chat([ChatMessage(ASKED)])


async def _stream_chat(llm: Any) -> None:
    list(llm.stream_chat([ChatMessage(ASKED)]))


async def _achat(llm: Any) -> None:
    await llm.achat([ChatMessage(ASKED)])


async def _astream_chat(llm: Any) -> None:
    [chunk async for chunk in await llm.astream_chat([ChatMessage(ASKED)])]


async def _query(llm: Any) -> None:
    query()


async def _query_stream(llm: Any) -> None:
    engine = RetrieverQueryEngine.from_args(Library(shelves()), streaming=True)
    "".join(ask(engine, ASKED).response_gen)


PROGRAMS = (_complete, _chat, _stream_chat, _achat, _astream_chat, _query, _query_stream)


async def _counted(llm: Any, program: Callable[..., Any]) -> list[tuple[int, int]]:
    """What LlamaIndex counts for a program that runs three times."""
    Settings.llm = llm
    counter = TokenCountingHandler()
    Settings.callback_manager = CallbackManager([counter])
    totals = [0]
    for _ in range(3):
        await program(Settings.llm)
        totals.append(counter.total_llm_token_count)
    assert counter.total_embedding_token_count == 0
    return list(zip(totals[1:], totals, strict=False))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__.strip("_"))
@pytest.mark.parametrize("kind", [CountingFunctionCalling, CountingCompletion])
async def test_tokens_are_counted_for_misses_only(
    kind: Any, program: Callable[..., Any], cache: SemanticCache
) -> None:
    """LlamaIndex's own counter counts a miss as without a cache, and a hit as nothing."""
    plain = await _counted(kind(), program)
    cached = await _counted(CachedLLM(kind(), cache), program)
    assert cached[0] == plain[0]
    assert cached[0][0] > 0
    assert [after - before for after, before in cached[1:]] == [0, 0]


@pytest.mark.parametrize("program", [_chat, _achat, _query], ids=lambda program: program.__name__.strip("_"))
async def test_tokens_that_the_provider_told_are_counted_for_misses_only(
    program: Callable[..., Any], cache: SemanticCache
) -> None:
    """The same where nothing needs to be estimated."""
    with running_openai() as server:
        counted = await _counted(CachedLLM(OpenAIBackend(server).model, cache), program)
    assert counted == [(18, 0), (18, 18), (18, 18)]


async def test_a_cached_synthesizer_costs_no_tokens(
    model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """A hit of the synthesizer calls no model, so there is nothing to count."""
    counter = TokenCountingHandler()
    Settings.callback_manager = CallbackManager([counter])
    synthesizer = CachedSynthesizer(get_response_synthesizer(response_mode="refine"), cache)
    engine = RetrieverQueryEngine(Library(shelves()), synthesizer)
    ask(engine, ASKED)
    spent = counter.total_llm_token_count
    assert len(counter.llm_token_counts) == 2
    assert spent > 0
    await engine.aquery(REWORDED)
    assert (counter.total_llm_token_count, len(counter.llm_token_counts)) == (spent, 2)


# One framework alone -------------------------------------------------------------------------------------

ALONE_LLAMA_INDEX = """
import sys
for name in ("langchain", "langchain_core", "langchain_classic", "langgraph"):
    sys.modules[name] = None

import llama_index_ibidem
from llama_index.core import Document, Settings, SummaryIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from tests.embedders import BagOfWords

Settings.llm, Settings.embed_model = MockLLM(), MockEmbedding(8)
handler = llama_index_ibidem.install(path=sys.argv[1], embedder=BagOfWords(), min_similarity=0.8)
index = SummaryIndex.from_documents([Document(text="Goods can be returned within 30 days.")])
engine = index.as_query_engine()
first = str(engine.query("For how many days can I return the goods that I bought?"))
again = str(engine.query("For how many days can I return the goods that I bought, please?"))
other = str(engine.query("Who pays for the parcel?"))
print(first == again != other, handler.cache.stats().hits, handler.cache.examples.count(), handler.faults())
llama_index_ibidem.uninstall()
others = [name for name, found in sys.modules.items() if found and name.startswith("lang")]
print(type(Settings.llm).__name__, others)
"""

ALONE_LANGCHAIN = """
import sys
for name in ("llama_index", "llama_index.core", "llama_index_instrumentation"):
    sys.modules[name] = None

from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_ibidem import IbidemCache
from tests.embedders import BagOfWords

class Named(FakeListChatModel):
    @property
    def _identifying_params(self):
        return {"model": "named"}

with IbidemCache(path=sys.argv[1], embedder=BagOfWords(), min_similarity=0.8) as cache:
    set_llm_cache(cache)
    model = Named(responses=["answer 1", "answer 2", "answer 3"])
    chain = ChatPromptTemplate.from_template("Be brief. Question: {question}") | model
    asked = ("For how many days can I return the goods that I bought?",
             "For how many days can I return the goods that I bought, please?",
             "Who pays for the parcel?")
    print(*(chain.invoke({"question": question}).content for question in asked))
    print(any(name.startswith("llama_index") for name, found in sys.modules.items() if found))
"""


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (ALONE_LLAMA_INDEX, ["True {'semantic': 1} 2 {}", "MockLLM []"]),
        (ALONE_LANGCHAIN, ["answer 1 answer 1 answer 2", "False"]),
    ],
    ids=["llama_index", "langchain"],
)
def test_each_framework_works_without_the_other(code: str, told: list[str], tmp_path: Path) -> None:
    """In a process where the other framework cannot be imported a real question is cached, reworded too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "answers")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert (done.stdout.splitlines(), done.returncode) == (told, 0), done.stderr


def test_without_llama_index_the_error_is_the_command() -> None:
    """Who has only LangChain is told what to install."""
    code = "import sys; sys.modules['llama_index.core'] = None; import llama_index_ibidem"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "pip install 'ibidem-cache[llama-index]'" in done.stderr


def test_one_question_key_may_be_given_as_a_string(
    model: CountingFunctionCalling, cache: SemanticCache
) -> None:
    """A list, a tuple and a single name ask for the same."""
    assert install(cache, question_keys=["a"]) is install(cache, question_keys=("a",))
    assert install(cache, question_keys="a") is install()
