"""Models of both frameworks as teachers: real clients on a real HTTP server."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from llama_index.core.callbacks import CallbackManager
from llama_index.llms.openai import OpenAI
from typer.testing import CliRunner

from ibidem import ConfigurationError, InvalidInput, MissingExtra
from ibidem.cli.commands import app
from ibidem.errors import TeacherUnavailable
from ibidem_lab.labelling import teachers
from ibidem_lab.labelling.pairs import QuestionPair, read_pairs, write_pairs
from ibidem_lab.labelling.teach import teach
from ibidem_lab.labelling.teachers import resolve_teacher
from langchain_ibidem import IbidemCache
from llama_index_ibidem import CachedLLM, IbidemCallbackHandler
from tests.openai_server import OpenAIServer, running_openai

PAIRS = [QuestionPair("can I get my money back", "how do refunds work"), QuestionPair("in 1999?", "in 2004?")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """A provider that knows years from refunds, found by the usual variables."""

    def says(body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"]
        return json.dumps({"same": "1999" not in asked, "reason": "So it is."})

    monkeypatch.setattr(teachers, "PAUSE_SECONDS", 0.001)
    with running_openai() as running:
        running.say = says
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_BASE", running.url)
        yield running


def chat(server: OpenAIServer, **changes: Any) -> ChatOpenAI:
    """LangChain's client."""
    return ChatOpenAI(model="gpt-test", base_url=server.url, api_key="none", max_retries=0, **changes)


def llm(server: OpenAIServer) -> OpenAI:
    """LlamaIndex's client."""
    return OpenAI(model="gpt-4o-mini", api_base=server.url, api_key="none", max_retries=0)


def labels(teacher: object) -> list[bool | None]:
    """What the teacher says of the pairs."""
    return [pair.same for pair in teach(PAIRS, teacher).pairs]


def test_a_name_on_the_command_line(server: OpenAIServer, tmp_path) -> None:
    """`openai:...` is LangChain's chat model of this provider."""
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    arguments = [str(tmp_path / "pairs.jsonl"), "--teacher", "openai:gpt-test", "--yes"]

    result = CliRunner().invoke(app, ["learn", "ask", *arguments])

    assert result.exit_code == 0, result.output
    assert {pair.a: pair.same for pair in read_pairs(tmp_path / "pairs.labelled.jsonl")} == {
        PAIRS[0].a: True,
        PAIRS[1].a: False,
    }
    assert {request["body"]["model"] for request in server.requests} == {"gpt-test"}


@pytest.mark.parametrize("kind", ["langchain", "langchain bound", "llama_index"])
def test_a_model_object(server: OpenAIServer, kind: str) -> None:
    """Told by its methods."""
    model = llm(server) if kind == "llama_index" else chat(server)
    model = model.bind(stop=["\n\n\n"]) if kind == "langchain bound" else model

    assert labels(model) == [True, False]
    assert server.count == 2
    if kind == "langchain bound":
        assert server.requests[0]["body"]["stop"] == ["\n\n\n"]


@pytest.mark.parametrize("bound", [False, True])
def test_the_global_cache_of_langchain_neither_answers_nor_learns(
    server: OpenAIServer, open_cache, bound: bool
) -> None:
    """Also where it compares nothing but lines of users: a label is the teacher's own, each time."""
    cache = open_cache(min_similarity=0.5)
    set_llm_cache(IbidemCache(cache, any_message=True))
    try:
        model = chat(server).bind(stop=["x"]) if bound else chat(server)
        first, second = labels(model), labels(model)
        within = labels(lambda prompt: chat(server).invoke(prompt).content)
    finally:
        set_llm_cache(None)

    assert first == second == within == [True, False]
    assert server.count == 6
    assert (cache.stats().entries, cache.recent(), cache.examples.count()) == (0, [], 0)


def test_a_cached_model_of_llama_index_is_asked_itself(server: OpenAIServer, open_cache) -> None:
    """Its handlers note nothing of it."""
    cache = open_cache(min_similarity=0.5)
    model = CachedLLM(llm(server), cache, any_message=True)
    handler = IbidemCallbackHandler(cache)
    model.callback_manager = CallbackManager([handler])
    assert labels(model) == labels(model) == [True, False]
    assert handler.faults() == {}

    assert server.count == 4
    assert (cache.stats().entries, cache.recent(), cache.examples.count()) == (0, [], 0)


def test_a_chain_is_no_teacher(server: OpenAIServer) -> None:
    """The model within could be answered from a cache."""
    with pytest.raises(InvalidInput, match="give the chat model itself"):
        resolve_teacher(ChatPromptTemplate.from_template("{x}") | chat(server))


def test_an_answer_in_parts_is_put_together() -> None:
    """As newer models give them."""
    model = FakeListChatModel(responses=["Yes."])
    teacher, name = resolve_teacher(model)

    assert teacher("?") == "Yes."
    assert name == "FakeListChatModel"


def test_a_provider_that_refuses_ends_the_run(server: OpenAIServer) -> None:
    """With its own words."""
    server.fail_next(401, times=100)

    with pytest.raises(TeacherUnavailable, match="error 401"):
        teach([QuestionPair(f"a {n}", "b") for n in range(6)], chat(server))


def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain, the provider's package, its key, the provider."""
    with pytest.raises(ConfigurationError, match="nobody:x"):
        resolve_teacher("nobody:x")
    with pytest.raises(ConfigurationError, match="package: .*langchain-cohere"):
        resolve_teacher("cohere:command")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        resolve_teacher("openai:gpt-test")

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'ibidem-cache\[teach\]'"):
        resolve_teacher("openai:gpt-test")
