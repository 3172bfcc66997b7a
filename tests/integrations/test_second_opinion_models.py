"""Models of both frameworks that give a second opinion: real clients on a real HTTP server."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.llms.openai import OpenAI

import langchain_ibidem
from ibidem import Answer, ConfigurationError, Request
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from llama_index_ibidem import CachedLLM, IbidemCallbackHandler
from tests.embedders import BagOfWords
from tests.helpers import question, reworded
from tests.openai_server import OpenAIServer

YES, NO = '{"same": true}', '{"same": false}'
SMALL, LARGE = "gpt-5-nano", "gpt-4o"
KINDS = ["name", "langchain", "langchain bound", "llama_index", "llama_index cached"]


@pytest.fixture
def provider(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> OpenAIServer:
    """A provider, found by the usual variables, whose small model says yes."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_BASE", server.url)
    server.say = lambda body: YES if body["model"] == SMALL else f"answer {server.count}"
    return server


class Heard(BaseCallbackHandler):
    """Notes the runs of models."""

    def __init__(self) -> None:
        self.models: list[str] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.models.append(kwargs["invocation_params"]["model"])


def chat(server: OpenAIServer, model: str = SMALL, **changes: Any) -> ChatOpenAI:
    """LangChain's client."""
    return ChatOpenAI(model=model, base_url=server.url, api_key="none", max_retries=0, **changes)


def llm(server: OpenAIServer, model: str = SMALL, **changes: Any) -> OpenAI:
    """LlamaIndex's client."""
    return OpenAI(model=model, api_base=server.url, api_key="none", max_retries=0, **changes)


@pytest.fixture
def model(provider: OpenAIServer, request: pytest.FixtureRequest, open_cache) -> Iterator[Any]:
    """A small model of each kind."""
    kind = getattr(request, "param", "langchain")
    cached = CachedLLM(llm(provider), open_cache(path=None)) if kind == "llama_index cached" else None
    yield {
        "name": f"openai:{SMALL}",
        "langchain": chat(provider),
        "langchain bound": chat(provider).bind(stop=["\n\n\n"]),
        "llama_index": llm(provider),
        "llama_index cached": cached,
    }[kind]
    if cached is not None:
        cached.close()


def in_doubt(open_cache: Callable[..., SemanticCache], model: Any, **options: Any) -> SemanticCache:
    """A cache that is in doubt about every rewording, with one answer."""
    options = {"second_opinion_timeout": 20.0, **options}
    cache = open_cache(second_opinion=model, min_similarity=0.99, **options)
    cache.store(Request(question(1)), Answer("an answer"))
    return cache


def ask(cache: SemanticCache, text: str = reworded(1)) -> Any:
    return cache.lookup(Request(text))


@pytest.mark.parametrize("model", KINDS, indirect=True)
def test_a_model_is_asked_once(provider: OpenAIServer, open_cache, model: Any) -> None:
    """With the three texts as data; it tells its tokens."""
    cache = in_doubt(open_cache, model)
    hit, again = ask(cache), ask(cache)
    (request,) = provider.requests
    prompt = request["body"]["messages"][-1]["content"]
    told = json.loads(prompt.split("\n##########\n")[1])

    assert hit.second_opinion
    assert again.second_opinion
    assert told == {
        "stored question": question(1),
        "stored answer": "an answer",
        "new question": reworded(1),
    }
    assert request["body"]["model"] == SMALL
    (row,) = cache.judgements()
    assert (row.source, row.right, row.input_tokens, row.output_tokens) == ("opinion", True, 11, 7)
    assert cache.stats().tokens_spent == 18
    assert cache.stats().money_spent
    assert cache.stats().faults == {}


@pytest.mark.parametrize("model", ["name", "langchain", "llama_index"], indirect=True)
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (NO, "second_opinion:no"),
        ("no.", "second_opinion:no"),
        ("Yes and no", "second_opinion:unsure"),
        ('{"same": true, "same": false}', "second_opinion:unsure"),
        (f"{YES} {NO}", "second_opinion:unsure"),
        ('{"same": "true"}', "second_opinion:unsure"),
        ("", "second_opinion:unsure"),
        ("I am sorry, I cannot help with that.", "second_opinion:unsure"),
    ],
)
def test_a_model_that_lies_or_babbles_serves_nothing(
    provider: OpenAIServer, open_cache, model: Any, said: str, reason: str
) -> None:
    """What cannot be read is counted; neither is asked about again."""
    provider.say = lambda body: said
    cache = in_doubt(open_cache, model)

    assert [ask(cache).reason, ask(cache).reason] == [reason] * 2
    assert provider.count == 1
    unreadable = {"ask for a second opinion: unreadable": 1}
    assert cache.stats().faults == (unreadable if reason.endswith("unsure") else {})


@pytest.mark.parametrize("model", ["name", "langchain", "llama_index"], indirect=True)
def test_a_model_that_fails_serves_nothing(provider: OpenAIServer, open_cache, model: Any) -> None:
    """Once is enough: one that is given by its name is not asked a second time by itself."""
    provider.fail_next(500, times=9)
    cache = in_doubt(open_cache, model)

    assert ask(cache).reason == "second_opinion:failed"
    assert provider.count == 1
    ((fault, count),) = cache.stats().faults.items()
    assert (fault.partition(":")[0], count) == ("ask for a second opinion", 1)


@pytest.mark.parametrize("model", ["name", "langchain", "llama_index"], indirect=True)
def test_a_slow_model_serves_nothing(provider: OpenAIServer, open_cache, model: Any) -> None:
    provider.gate.clear()
    try:
        cache = in_doubt(open_cache, model, second_opinion_timeout=0.2)
        miss = ask(cache)
    finally:
        provider.gate.set()

    assert miss.reason == "second_opinion:late"
    assert 0.2 <= miss.seconds < 2.0
    assert cache.stats().faults == {"ask for a second opinion: too slow": 1}


@pytest.mark.parametrize("model", ["langchain", "langchain bound"], indirect=True)
def test_no_cache_of_langchain_answers_or_learns(provider: OpenAIServer, open_cache, model: Any) -> None:
    """Nor do the caller's callbacks, or those of the model, hear of it."""
    heard = Heard()
    getattr(model, "bound", model).callbacks = [heard]
    cache = in_doubt(open_cache, model)
    cache.store(Request(question(2)), Answer("an answer"))
    set_llm_cache(IbidemCache(cache, any_message=True))
    try:
        large = chat(provider, LARGE, callbacks=[heard])
        asked = [SystemMessage("Be kind."), HumanMessage(f"{question(3)}?")]
        large.invoke(asked)
        asked[-1] = HumanMessage(f"please {question(3)}?")
        told = large.invoke(asked, config={"callbacks": [heard]})
    finally:
        set_llm_cache(None)
    models = [request["body"]["model"] for request in provider.requests]

    assert told.response_metadata["ibidem"]["second_opinion"] is True
    assert models == [LARGE, SMALL]
    assert set(heard.models) == {LARGE}
    stats = cache.stats()
    assert (stats.entries, stats.examples, len(cache.recent())) == (3, 3, 2)


def test_no_handler_of_llama_index_hears_of_it(provider: OpenAIServer, open_cache) -> None:
    """Neither those of the model that was given, which stay, nor the global ones."""
    debug, global_ = LlamaDebugHandler(print_trace_on_end=False), LlamaDebugHandler(print_trace_on_end=False)
    before = Settings._callback_manager
    Settings.callback_manager = CallbackManager([global_])
    try:
        model = llm(provider, callback_manager=CallbackManager([debug]))
        cached = CachedLLM(model, open_cache(path=None))
        for small in (model, cached):
            cache = in_doubt(open_cache, small)
            cache.clear()
            cache.store(Request(question(1)), Answer("an answer"))
            assert ask(cache).second_opinion
        assert [one.get_event_pairs(CBEventType.LLM) for one in (debug, global_)] == [[], []]
        assert model.callback_manager.handlers[0] is debug
        model.complete("Really?")
        assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
        cached.close()
    finally:
        Settings._callback_manager = before


def test_the_handler_of_llama_index_passes_it_on(provider: OpenAIServer, tmp_path) -> None:
    """As options: here the large model of LlamaIndex is helped by the small one."""
    options = {"path": tmp_path / "c", "embedder": BagOfWords(), "min_similarity": 0.99}
    handler = IbidemCallbackHandler(
        second_opinion=llm(provider), second_opinion_timeout=20.0, any_message=True, **options
    )
    large = llm(provider, LARGE, callback_manager=CallbackManager([handler]))
    first = large.complete(f"{question(1)}?")
    told = large.complete(f"please {question(1)}?")
    cache = handler.cache
    cache.flush()

    assert told.text == first.text
    assert [request["body"]["model"] for request in provider.requests] == [LARGE, SMALL]
    assert cache.stats().second_opinions == 1
    cache.close()


async def test_install_passes_it_on(provider: OpenAIServer, tmp_path) -> None:
    """In async code: identical calls at one time ask the small model once."""
    provider.gate.clear()
    options = {"path": tmp_path / "c", "embedder": BagOfWords(), "min_similarity": 0.99}
    langchain_ibidem.install(
        second_opinion=f"openai:{SMALL}", second_opinion_timeout=20.0, any_message=True, **options
    )
    try:
        large = chat(provider, LARGE)
        provider.gate.set()
        first = await large.ainvoke(f"{question(1)}?")
        found = await asyncio.gather(*(large.ainvoke(f"please {question(1)}?") for _ in range(4)))
    finally:
        langchain_ibidem.uninstall()

    assert {one.content for one in found} == {first.content}
    assert [request["body"]["model"] for request in provider.requests] == [LARGE, SMALL]


def test_what_is_lacking_is_named(
    provider: OpenAIServer, open_cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangChain, the provider's package, its key, the provider; and that a chain is no model."""
    with pytest.raises(ConfigurationError, match="nobody:x"):
        open_cache(second_opinion="nobody:x")
    with pytest.raises(ConfigurationError, match="package: .*langchain-cohere"):
        open_cache(second_opinion="cohere:command")
    with pytest.raises(ConfigurationError, match="give the chat model itself"):
        open_cache(second_opinion=ChatPromptTemplate.from_template("{x}") | chat(provider))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        open_cache(second_opinion=f"openai:{SMALL}")

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigurationError, match="pip install langchain and the provider's package"):
        open_cache(second_opinion=f"openai:{SMALL}")


def test_a_name_comes_from_the_environment(provider: OpenAIServer, open_cache, monkeypatch) -> None:
    monkeypatch.setenv("IBIDEM_SECOND_OPINION", f"openai:{SMALL}")
    monkeypatch.setenv("IBIDEM_SECOND_OPINION_FROM", "0.9")
    cache = in_doubt(open_cache, None)

    assert ask(cache).second_opinion


def test_a_model_goes_with_no_pickled_cache(provider: OpenAIServer, open_cache) -> None:
    """It holds a key."""
    import pickle

    with pytest.raises(ConfigurationError, match="whose second_opinion holds a secret"):
        pickle.dumps(in_doubt(open_cache, chat(provider)))


def test_fakes_answer_too(open_cache) -> None:
    """Without usage, and with content in parts."""
    from langchain_core.language_models import GenericFakeChatModel

    parts = AIMessage([{"type": "text", "text": '{"same": '}, {"type": "text", "text": "true}"}])
    assert ask(in_doubt(open_cache, GenericFakeChatModel(messages=iter([parts])))).second_opinion
    babbling = in_doubt(open_cache, MockLLM())  # it repeats the prompt
    babbling.clear()
    babbling.store(Request(question(1)), Answer("an answer"))
    assert ask(babbling).reason == "second_opinion:unsure"
    assert babbling.judgements()[0].input_tokens is None
