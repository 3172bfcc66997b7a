"""The key of a LlamaIndex call: model, messages, arguments, context; and how answers return."""

from __future__ import annotations

import asyncio
import base64
import copy
import gc
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any
from weakref import ref

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.agent.workflow import CodeActAgent, FunctionAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    LLMMetadata,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI, OpenAIResponses
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from ibidem.adapter.options import AdapterOptions
from ibidem.cache import SemanticCache
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.types import Hit, Request
from llama_index_ibidem import (
    CachedLLM,
    CachedSynthesizer,
    IbidemCallbackHandler,
)
from llama_index_ibidem.request import RequestBuilder, chat_prompt, completion_prompt, identity, parameters
from llama_index_ibidem.responses import ResponseMetadata, decode, encode
from llama_index_ibidem.spans import span_watcher
from tests.conftest import OpenCache
from tests.contracts.llama_index import CountingCompletion, CountingFunctionCalling
from tests.openai_server import OpenAIServer

Messages = list[ChatMessage]
# LlamaIndex's workflows look at every attribute of an agent, also at those that pydantic advises against.
of_agents = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ASKED = "What is the capital of France?"


@pytest.fixture(autouse=True)
def _loop_of_sync_code() -> Iterator[None]:
    """LlamaIndex's synchronous methods take the loop of the thread; left to itself it is never closed."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


def openai(**options: Any) -> OpenAI:
    return OpenAI(**{"model": "gpt-4o", "api_key": "sk-1", **options})


def said(text: str, role: str = "user", **extras: Any) -> ChatMessage:
    return ChatMessage(text, role=MessageRole(role), additional_kwargs=extras)


def made_of(*blocks: ContentBlock, role: str = "user", **extras: Any) -> ChatMessage:
    return ChatMessage(role=MessageRole(role), blocks=list(blocks), additional_kwargs=extras)


def request_of(messages: Messages, llm: LLM | None = None, **arguments: Any) -> Request:
    """The request of a chat that is compared whole, whatever its last message stands for."""
    options = AdapterOptions(history="exact")
    return RequestBuilder(options).of_chat(llm or CountingFunctionCalling(), messages, arguments)


class Plain(CustomLLM):
    """A model with as little as a model can have."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="plain")

    @llm_completion_callback()
    def complete(self, prompt: str, **kwargs: Any) -> CompletionResponse:  # type: ignore[override]
        return CompletionResponse(text=f"with {sorted(kwargs)}")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, **kwargs: Any) -> Iterator[CompletionResponse]:  # type: ignore[override]
        def stream() -> Iterator[CompletionResponse]:
            yield CompletionResponse(text="streamed", delta="streamed")

        return stream()


# the model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "gpt-4o-mini"},
        {"temperature": 0.7},
        {"max_tokens": 5},
        {"api_base": "http://elsewhere/v1"},
        {"api_version": "2"},
        {"additional_kwargs": {"seed": 1}},
        {"additional_kwargs": {"stop": ["a"]}},
        {"default_headers": {"OpenAI-Organization": "other"}},
        {"strict": True},
        {"reasoning_effort": "high"},
        {"modalities": ["text", "audio"]},
        {"audio_config": {"voice": "alloy"}},
        {"logprobs": True},
        {"system_prompt": "Be brief."},
        {"messages_to_prompt": lambda messages: "other"},
        {"completion_to_prompt": lambda prompt: f"<s>{prompt}"},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_every_setting_of_a_model_counts(changed: dict[str, Any]) -> None:
    assert identity(openai(**changed)) != identity(openai())


@pytest.mark.parametrize(
    "changed",
    [
        {"api_key": "sk-2"},
        {"timeout": 3.0},
        {"max_retries": 9},
        {"reuse_client": False},
        {"default_headers": {"Authorization": "Bearer x"}},
        {"default_headers": {"api_key": "x"}},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_operational_settings_do_not_count(changed: dict[str, Any]) -> None:
    before = openai(default_headers={}) if "default_headers" in changed else openai()
    assert identity(openai(**changed)) == identity(before)


def test_the_temperature_is_known() -> None:
    """Of the model or of the call; hot samples are not stored."""
    question = [said("What is the capital of France?")]

    assert request_of(question, openai(temperature=0.0)).temperature == 0.0
    assert request_of(question, openai(temperature=0.0), temperature=1.5).temperature == 1.5
    assert request_of(question, Plain()).temperature is None


def test_a_model_id_and_the_class_count() -> None:
    class Other(OpenAI):
        """Another class with the same settings."""

    assert identity(openai(), "a") != identity(openai(), "b") != identity(openai())
    assert identity(Other(model="gpt-4o", api_key="k")) != identity(openai())


def test_extra_fields_and_nested_settings_count() -> None:
    class Open(Plain):
        model_config = ConfigDict(extra="allow")

    assert identity(Open(top_k=1)) != identity(Open(top_k=2))


class Hidden(Plain):
    """Keeps a setting out of its dump."""

    generate_kwargs: dict[str, Any] = Field(default_factory=dict, exclude=True)


class Configured(Plain):
    """Keeps its settings in a private attribute, as `GoogleGenAI` does."""

    _config: Any = PrivateAttr()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._config = config


class Routed(Plain):
    """Asks another model."""

    inner: LLM


class Family(Plain):
    """Asks several."""

    members: list[LLM]


class Marked(Plain):
    """Has settings whose names look secret."""

    stop_token: str = ""
    secret_persona: str = ""


class OfLangChain(Plain):
    """Wraps a LangChain model as `LangChainLLM` does."""

    _llm: Any = PrivateAttr()

    def __init__(self, llm: Any) -> None:
        super().__init__()
        self._llm = llm

    @property
    def llm(self) -> Any:
        return self._llm


class Silent(BaseModel):
    """A LangChain model that says nothing of itself, as those that define no `_identifying_params`."""

    model: str

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {}


def _last(count: int) -> Callable[[Sequence[ChatMessage]], str]:
    return lambda messages: "\n".join(map(str, messages[-count:]))


UNSEEN: dict[str, Callable[[], tuple[LLM, LLM]]] = {
    "field left out of the dump": lambda: (
        Hidden(generate_kwargs={"temperature": 0}),
        Hidden(generate_kwargs={"temperature": 1}),
    ),
    "private mapping": lambda: (Configured({"top_p": 0}), Configured({"top_p": 1})),
    "private number": lambda: (Configured(0.0), Configured(1.0)),
    "model inside": lambda: (Routed(inner=openai()), Routed(inner=openai(model="o"))),
    "models inside": lambda: (Family(members=[openai()]), Family(members=[openai(model="o")])),
    "a token that is no secret": lambda: (Marked(stop_token="</s>"), Marked(stop_token="<end>")),
    "a secret that is none": lambda: (Marked(secret_persona="poet"), Marked(secret_persona="pirate")),
    "LangChain model": lambda: (OfLangChain(Silent(model="a")), OfLangChain(Silent(model="b"))),
    "how many messages are shown": lambda: (
        Plain(messages_to_prompt=_last(10)),
        Plain(messages_to_prompt=_last(100)),
    ),
    "a form that depends on the prompt": lambda: (
        Plain(completion_to_prompt=lambda prompt: prompt),
        Plain(completion_to_prompt=lambda prompt: prompt + (" In French." if "?" in prompt else "")),
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_settings_that_are_hard_to_see_count(name: str) -> None:
    """Such models must have other keys, or must not be cached."""
    one, other = UNSEEN[name]()
    try:
        same = identity(one) == identity(other)
    except NotCacheable:
        same = False
    assert not same


def test_a_formatting_function_may_change_what_it_gets() -> None:
    """It gets messages of its own, here as elsewhere."""

    def in_tags(messages: Sequence[ChatMessage]) -> str:
        for message in messages:
            message.content = f"<s>{message.content}"
        return "".join(str(message.content) for message in messages)

    llm = Plain(messages_to_prompt=in_tags)
    assert identity(llm) == identity(llm)


def test_what_a_formatting_function_refers_to_counts_as_it_is_now() -> None:
    """It is not read again for every call, but whenever it or its surroundings have changed."""
    limits = {"words": 10}
    llm = Plain(completion_to_prompt=lambda prompt: prompt if len(prompt) < 5 else str(limits["words"]))
    before = identity(llm)
    assert identity(llm) == before
    limits["words"] = 20
    assert identity(llm) != before


def test_a_formatting_function_is_not_kept_alive() -> None:
    """Programs that make models in a loop do not grow."""
    llm = Plain(messages_to_prompt=lambda messages: f"{len(messages)} messages")
    living = ref(llm.messages_to_prompt)
    identity(llm)
    del llm
    gc.collect()
    assert living() is None


def test_a_formatting_function_gets_a_list() -> None:
    def opened(messages: list[ChatMessage]) -> str:
        messages.append(said("", "assistant"))
        return str(messages)

    identity(Plain(messages_to_prompt=opened))


@pytest.mark.parametrize(
    "options",
    [
        {"default_headers": {"X-Api-Key": "hush"}},
        {"additional_kwargs": {"extra_headers": {"Authorization": "hush"}}},
    ],
    ids=["header", "nested"],
)
def test_an_identity_holds_no_secret(options: dict[str, Any]) -> None:
    assert "hush" not in identity(openai(**options))


KEYS_OF_ANOTHER_PROCESS = """
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI
from ibidem.adapter.options import AdapterOptions
from llama_index_ibidem.request import RequestBuilder
llm = OpenAI(model="gpt-4o", api_key="k", additional_kwargs={"b": 1, "a": {"x": 1, "y": 2}})
arguments = {"allowed": {"one", "two", "three", "four"}, "options": {"z": 1, "y": [1]}}
for text in ("What is the capital of France?", "Translate: a cat"):
    print(RequestBuilder(AdapterOptions("n")).of_chat(llm, [ChatMessage(text)], arguments).key)
"""


def test_keys_are_the_same_in_every_process() -> None:
    """Neither the seed of hashes nor addresses of objects are part of them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", KEYS_OF_ANOTHER_PROCESS],
            env={**environment, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    one, other = (child.communicate(timeout=60)[0] for child in children)
    assert len(one.split()) == 2
    assert one == other


# the arguments of a call ------------------------------------------------------------------------------

ATOMS = st.none() | st.booleans() | st.integers(-3, 3) | st.text('ab{}":,[]', max_size=4)
JSON_VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(
    one=st.dictionaries(st.text("ab", max_size=2), JSON_VALUES, max_size=3),
    other=st.dictionaries(st.text("ab", max_size=2), JSON_VALUES, max_size=3),
)
def test_arguments_are_told_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal texts mean equal arguments, and the other way round."""
    canonical = [json.dumps(each, sort_keys=True) for each in (one, other)]
    assert (parameters(one) == parameters(other)) == (canonical[0] == canonical[1])


def test_names_that_look_secret_count_in_arguments() -> None:
    """A tool may have a parameter called password; what a call is given is always compared."""

    def tool(name: str) -> dict[str, Any]:
        return {"tools": [{"function": {"parameters": {"properties": {name: {"type": "string"}}}}}]}

    assert parameters(tool("password")) != parameters(tool("api_key")) != parameters({"tools": [{}]})
    assert parameters({"api_key": "a"}) != parameters({"api_key": "b"})
    assert "a" in parameters({"verbose": True, "a": 1})
    assert parameters({"timeout": 1}) == parameters({"timeout": object()}) == parameters({})


@pytest.mark.parametrize("spent", [io.BytesIO(b"x"), iter([1])], ids=["file", "iterator"])
def test_what_is_used_up_by_reading_is_not_cached(spent: object) -> None:
    with pytest.raises(NotCacheable):
        parameters({"x": {"y": [spent]}})


@pytest.mark.parametrize(
    "pair", [(object(), object()), (b"a", b"b"), (print, len)], ids=["objects", "bytes", "functions"]
)
def test_other_objects_are_compared_by_identity_or_by_what_they_say(pair: tuple[Any, Any]) -> None:
    one, other = ({"x": {"y": [each]}} for each in pair)
    assert parameters(one) == parameters(one) != parameters(other)


def test_the_order_of_properties_counts() -> None:
    def form(*names: str) -> dict[str, Any]:
        return {"response_format": {"schema": {"properties": {name: {"type": "string"} for name in names}}}}

    assert parameters(form("reasoning", "answer")) != parameters(form("answer", "reasoning"))


# the messages -----------------------------------------------------------------------------------------


def called(id_: str | None = "1", name: str = "f", **arguments: Any) -> ToolCallBlock:
    return ToolCallBlock(tool_call_id=id_, tool_name=name, tool_kwargs=arguments)


CHATS: list[Messages] = [
    [said(ASKED)],
    [said(ASKED, "system")],
    [said(ASKED, "developer")],
    [said(ASKED, "assistant")],
    [said(ASKED, "chatbot")],
    [said(ASKED, "model")],
    [said(ASKED, "tool")],
    [said(ASKED, "function")],
    [said(ASKED), said(ASKED)],
    [said(""), said(ASKED)],
    [made_of()],
    [made_of(TextBlock(text="What is"), TextBlock(text="the capital of France?"))],
    [said("What is\nthe capital of France?")],
    [said(ASKED, name="bob")],
    [said(ASKED, name="eve")],
    [said('{"question": true}')],
    [said('[["chat", []], ["' + ASKED + '"]]')],
    [made_of(TextBlock(text=ASKED), ImageBlock(image=b"one" * 9))],
    [made_of(TextBlock(text=ASKED), ImageBlock(image=b"two" * 9))],
    [made_of(ImageBlock(image=b"two" * 9), TextBlock(text=ASKED))],
    [made_of(TextBlock(text=ASKED), ImageBlock(image=b"two" * 9, detail="low"))],
    [made_of(TextBlock(text=ASKED), ImageBlock(url="http://a/1.png"))],
    [made_of(TextBlock(text=ASKED), ImageBlock(url="http://a/2.png"))],
    [made_of(TextBlock(text=ASKED), AudioBlock(audio=b"two" * 9))],
    [made_of(TextBlock(text=ASKED), AudioBlock(audio=b"two" * 9, format="mp3"))],
    [made_of(TextBlock(text=ASKED), VideoBlock(video=b"two" * 9))],
    [made_of(TextBlock(text=ASKED), DocumentBlock(data=b"two" * 9))],
    [made_of(TextBlock(text=ASKED), DocumentBlock(data=b"two" * 9, title="T"))],
    [made_of(TextBlock(text=ASKED), CachePoint(cache_control=CacheControl(type="ephemeral")))],
    [made_of(CitableBlock(title="T", source="S", content="one"), TextBlock(text=ASKED))],
    [made_of(CitableBlock(title="T", source="S", content="two"), TextBlock(text=ASKED))],
    [made_of(CitableBlock(title="U", source="S", content="two"), TextBlock(text=ASKED))],
    [
        made_of(
            CitationBlock(cited_content="c", source="s", title="t", additional_location_info={"page": 1}),
            TextBlock(text=ASKED),
        )
    ],
    [made_of(ThinkingBlock(content="one"), role="assistant"), said(ASKED)],
    [made_of(ThinkingBlock(content="two"), role="assistant"), said(ASKED)],
    [
        made_of(ThinkingBlock(content="two", additional_information={"signature": "s"}), role="assistant"),
        said(ASKED),
    ],
    [made_of(called(a=1), role="assistant"), said("r", "tool", tool_call_id="1"), said(ASKED)],
    [made_of(called(a=2), role="assistant"), said("r", "tool", tool_call_id="1"), said(ASKED)],
    [made_of(called(name="g", a=2), role="assistant"), said("r", "tool", tool_call_id="1"), said(ASKED)],
    [made_of(called(a=2), role="assistant"), said("s", "tool", tool_call_id="1"), said(ASKED)],
    [made_of(called(a=2), role="assistant"), said("s", "tool", tool_call_id="9"), said(ASKED)],
    [made_of(called(a=2), called("2", a=3), role="assistant"), said("s", "tool", tool_call_id="1")],
    [made_of(called(a=2), called("2", a=3), role="assistant"), said("s", "tool", tool_call_id="2")],
    [said("", "assistant", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "{}"}}])],
    [said("", "assistant", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "[]"}}])],
]


def test_everything_in_a_message_counts() -> None:
    """No two of these chats share a fingerprint or a key."""
    assert len({chat_prompt(chat).fingerprint for chat in CHATS}) == len(CHATS)
    assert len({request_of(chat).key for chat in CHATS}) == len(CHATS)


def test_random_ids_and_bookkeeping_do_not_count() -> None:
    def chat(id_: str, tokens: int) -> Messages:
        thought = ThinkingBlock(
            content="Hm.", additional_information={"id": f"rs_{id_}", "type": "reasoning"}
        )
        return [
            said(ASKED),
            made_of(thought, role="assistant"),
            made_of(called(id_, a=1), role="assistant", usage={"total_tokens": tokens}, nothing=None),
            said("r", "tool", tool_call_id=id_),
        ]

    assert chat_prompt(chat("call_1", 5)) == chat_prompt(chat("call_2", 7))


def test_a_copy_of_the_tool_calls_beside_the_blocks_does_not_count() -> None:
    """Restored messages hold it as mappings, those that come from the model as objects."""
    plain = [made_of(called(a=1), role="assistant")]
    copied = [made_of(called(a=1), role="assistant", tool_calls=[{"id": "x"}])]
    assert chat_prompt(plain) == chat_prompt(copied)


def test_completions_and_chats_are_different_calls() -> None:
    fingerprints = {
        completion_prompt(ASKED, formatted=False).fingerprint,
        completion_prompt(ASKED, formatted=True).fingerprint,
        chat_prompt([said(ASKED)]).fingerprint,
    }
    assert len(fingerprints) == 3


TEXTS = st.sampled_from([ASKED, "Why?", "", '{"question": true}', "a", '"]]', "\0", "a\nb", "Why? Why?"])
ROLES = st.sampled_from([role.value for role in MessageRole])
CHAT = st.lists(st.builds(said, TEXTS, ROLES), max_size=3)


@settings(max_examples=300, deadline=None)
@given(one=CHAT, other=CHAT)
def test_only_the_same_chat_has_the_same_key(one: Messages, other: Messages) -> None:
    """Without documents, the question and the rest determine the prompt."""
    assert (request_of(one).key == request_of(other).key) == (one == other)


@pytest.mark.parametrize("kind", [ImageBlock, AudioBlock, VideoBlock, DocumentBlock])
def test_a_file_counts_with_what_is_in_it(kind: Any, tmp_path: Path) -> None:
    """Its name alone does not say what the model sees."""
    path = tmp_path / "file"
    keys = set()
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        keys.add(chat_prompt([made_of(kind(path=path))]).fingerprint)
    assert len(keys) == 2


@pytest.mark.parametrize("kind", [ImageBlock, DocumentBlock])
def test_a_file_within_a_citable_block_counts_with_what_is_in_it(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    keys = set()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        block = CitableBlock(title="T", source="S", content=[kind(path=path)])
        keys.add(chat_prompt([made_of(block)]).fingerprint)
    assert len(keys) == 2


@pytest.mark.parametrize(
    "block",
    [
        ImageBlock(image=io.BytesIO(b"x")),
        AudioBlock(audio=io.BytesIO(b"x")),
        VideoBlock(video=io.BytesIO(b"x")),
        DocumentBlock(data=io.BytesIO(b"x")),
        DocumentBlock(path="/nowhere/at/all"),
    ],
    ids=lambda block: block.block_type,
)
def test_open_and_unreadable_files_are_not_cached(block: ContentBlock) -> None:
    with pytest.raises(NotCacheable):
        chat_prompt([made_of(block)])


class Tagged(ChatMessage):
    """A message with a field of its own."""

    persona: str = ""


def test_fields_of_a_message_class_count() -> None:
    one, other = (Tagged(ASKED, persona=persona) for persona in ("poet", "pirate"))
    assert chat_prompt([one]) != chat_prompt([other])


# the context of the call ------------------------------------------------------------------------------


class Shelf(BaseRetriever):
    """Returns the same texts to every query."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self._texts = texts

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=text)) for text in self._texts]


class Mirror(BaseRetriever):
    """Returns a node that quotes the query, and one that all share."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        texts = [f"Asked was: {query_bundle.query_str} So it is.", "Common text of all."]
        return [NodeWithScore(node=TextNode(text=text)) for text in texts]


Looked = list[tuple[Request, Any]]


@pytest.fixture
def looked() -> Looked:
    """What was asked of `watched`, and what came of it."""
    return []


@pytest.fixture
def watched(open_cache: OpenCache, looked: Looked) -> SemanticCache:
    """An empty cache that tells what it is asked."""
    return open_cache(min_similarity=0.95, on_lookup=lambda *what: looked.append(what))


def test_a_document_that_quotes_the_question_is_not_it(watched: SemanticCache, looked: Looked) -> None:
    llm = CachedLLM(CountingFunctionCalling(), watched)
    RetrieverQueryEngine(Mirror(), get_response_synthesizer(llm=llm)).query(ASKED)
    [(request, _)] = looked
    assert (request.question, request.semantic, len(request.documents)) == (ASKED, True, 2)


def test_concurrent_queries_do_not_mix(watched: SemanticCache, looked: Looked) -> None:
    """Pools, tasks, and streams that others read: each answer belongs to its own question."""
    inner = CountingFunctionCalling()
    inner.script.say = lambda text, number: " ".join(sorted(set(re.findall(r"zz\w+", text))))
    llm = CachedLLM(inner, watched)
    whole, refined, streamed = (
        RetrieverQueryEngine(Mirror(), get_response_synthesizer(llm=llm, **options))
        for options in ({}, {"response_mode": "refine"}, {"streaming": True})
    )
    words = [f"zz{letter}{other}" for letter in "abcde" for other in "fghij"]

    def ask(word: str) -> None:
        assert str(whole.query(f"What about {word} today?")) == word
        assert str(refined.query(f"Who needs {word} most?")) == word

    def begin(word: str) -> Any:
        return streamed.query(f"Where is {word} kept?")

    async def main() -> None:
        found = await asyncio.gather(*(whole.aquery(f"When was {word} made?") for word in words))
        assert list(map(str, found)) == words

    with ThreadPoolExecutor(6) as pool, ThreadPoolExecutor(3) as readers:
        list(pool.map(ask, words))
        streams = list(pool.map(begin, words))
        assert list(readers.map(lambda stream: "".join(stream.response_gen), streams)) == words
    asyncio.run(main())

    assert all(request.semantic for request, _ in looked)
    assert llm.faults() == {}


@of_agents
def test_concurrent_agents_do_not_mix(watched: SemanticCache) -> None:
    inner = CountingFunctionCalling()
    inner.script.say = lambda text, number: " ".join(sorted(set(re.findall(r"zz\w+", text)))) or "none"
    llm = CachedLLM(inner, watched)

    def look_up(word: str) -> str:
        """Look it up."""
        return word

    async def ask(word: str) -> str:
        agent = FunctionAgent(tools=[FunctionTool.from_defaults(look_up)], llm=llm, streaming=False)
        return str(await agent.run(user_msg=f"What is {word}?"))

    async def main() -> list[str]:
        return list(await asyncio.gather(*map(ask, ("zza", "zzb", "zzc", "zzd"))))

    assert asyncio.run(main()) == ["zza", "zzb", "zzc", "zzd"]


@of_agents
def test_an_agent_with_memory_hits_in_a_new_session(watched: SemanticCache, server: OpenAIServer) -> None:
    """Call ids are no part of the keys, and restored messages are as those that the model gave."""

    def look_up(word: str) -> str:
        """Look it up."""
        return f"found {word}"

    llm = CachedLLM(openai(api_base=server.url, max_retries=0), watched)

    async def session() -> list[str]:
        agent = FunctionAgent(tools=[FunctionTool.from_defaults(look_up)], llm=llm)
        remembered = ChatMemoryBuffer.from_defaults()
        return [str(await agent.run(user_msg=q, memory=remembered)) for q in (ASKED, "And how old is it?")]

    first = asyncio.run(session())
    calls = server.count
    assert asyncio.run(session()) == first
    assert server.count == calls == 4


def test_a_call_within_a_template_is_not_made_by_it(watched: SemanticCache, looked: Looked) -> None:
    """A function of the template asks the model to work on a text; alone, that call is compared exactly."""
    llm = CachedLLM(CountingFunctionCalling(), watched)
    work: dict[str, Callable[..., str]] = {
        "spelt": lambda **given: llm.complete(f"Spell backwards: {given['query_str']}").text
    }
    template = PromptTemplate("{spelt}\n\nQuestion: {query_str}", function_mappings=work)
    llm.predict(template, query_str="reset my lost account password")
    assert not looked[0][0].semantic


def test_what_others_retrieve_does_not_change_an_exact_request() -> None:
    span_watcher.watch()
    chat = [said("Summarise: Goods can be returned within thirty days, says the law.")]
    before = request_of(chat)
    assert not before.semantic
    Shelf("returned within thirty days").retrieve("something else")
    assert request_of(chat).key == before.key


PLANS = ["The customer is on the Gold plan.", "The customer is on the Basic plan."]


def test_a_fact_that_others_retrieved_is_no_document(watched: SemanticCache, looked: Looked) -> None:
    """It fills a variable of its own, beside the context."""
    inner = CountingFunctionCalling()
    inner.script.say = lambda text, number: "Goods can be returned within 30 days."
    llm = CachedLLM(inner, watched)
    template = PromptTemplate("Facts:\n{plan}\nContext:\n{context}\n\nQuestion: {query_str}")
    Shelf(*PLANS, "Goods can be returned within 30 days.").retrieve("anything")
    for plan in PLANS:
        llm.predict(template, plan=plan, context="Goods can be returned within 30 days.", query_str=ASKED)
    assert not any(isinstance(result, Hit) for _, result in looked)


# answers ----------------------------------------------------------------------------------------------


def there_and_back(response: Any) -> Any:
    answer = encode(response, ResponseMetadata.of(response), model="m", seconds=0.0)
    return decode(Hit(answer, "id", "exact", 1.0, None, 0.0), type(response))


def without_raw(response: Any) -> Any:
    return response.model_copy(update={"raw": None, "delta": None})


BLOCKS = st.one_of(
    st.builds(TextBlock, text=st.text(st.characters(codec="utf-8"), max_size=9)),
    st.builds(called, st.none() | st.text("ab", max_size=2), st.text("ab", min_size=1), a=JSON_VALUES),
    st.builds(ThinkingBlock, content=st.none() | st.text("ab"), num_tokens=st.none() | st.integers(0, 9)),
    st.builds(lambda data: ImageBlock(image=base64.b64encode(data)), st.binary(min_size=9, max_size=20)),
    st.builds(lambda url: ImageBlock(url=f"http://a/{url}"), st.text("ab", min_size=1)),
    st.builds(lambda text: CitableBlock(title=text, source="s", content=text), st.text("ab")),
)


@settings(max_examples=150, deadline=None)
@given(
    blocks=st.lists(BLOCKS, max_size=3),
    role=ROLES,
    extras=st.dictionaries(st.text("ab", max_size=2), JSON_VALUES, max_size=2),
    logprobs=st.none() | st.just([[LogProb(token="a", logprob=-0.25, bytes=[97])]]),
)
def test_responses_return_unchanged(
    blocks: list[ContentBlock], role: str, extras: dict[str, Any], logprobs: Any
) -> None:
    """Or they are not stored."""
    message = made_of(*blocks, role=role, **extras)
    response = ChatResponse(message=message, raw=object(), logprobs=logprobs, additional_kwargs=extras)
    assert without_raw(there_and_back(response)) == without_raw(response)
    completion = CompletionResponse(text="t", additional_kwargs=extras, logprobs=logprobs)
    assert without_raw(there_and_back(completion)) == completion


class Cited(ChatResponse):
    """A response with more than others, as Anthropic's."""

    citations: list[dict[str, Any]] = Field(default_factory=list)


def test_a_subclass_returns_as_itself() -> None:
    response = Cited(message=said("a", "assistant"), citations=[{"at": 1}])
    found = there_and_back(response)
    assert type(found) is Cited
    assert found.citations == [{"at": 1}]


@pytest.mark.parametrize(
    "response",
    [
        ChatResponse(message=said("a"), logprobs=[[LogProb(logprob=float("-inf"))]]),
        ChatResponse(message=said("a"), additional_kwargs={"of": object()}),
        ChatResponse(message=made_of(ImageBlock(image=io.BytesIO(b"x")))),
        ChatResponse(message=made_of(ThinkingBlock(additional_information={"signature": b"x"}))),
    ],
    ids=["infinite", "object", "open file", "bytes"],
)
def test_what_json_cannot_hold_is_not_stored(response: ChatResponse) -> None:
    with pytest.raises(NotCacheable):
        there_and_back(response)


class Function(BaseModel):
    """What a provider's client makes of a tool call."""

    name: str


LOSSY: dict[str, ChatResponse | CompletionResponse] = {
    "not a number": CompletionResponse(text="a", additional_kwargs={"score": float("nan")}),
    "object": ChatResponse(message=said("a", "assistant", tool_calls=[Function(name="f")])),
    "bytes": ChatResponse(message=said("a", "assistant", signature=b"x")),
    "date": CompletionResponse(text="a", additional_kwargs={"at": date(2020, 1, 1)}),
    "tuple": ChatResponse(message=said("a", "assistant"), additional_kwargs={"at": (1, 2)}),
    "numbered": ChatResponse(message=said("a", "assistant"), additional_kwargs={"at": {1: 2}}),
    "message class": ChatResponse(message=Tagged("a", role=MessageRole.ASSISTANT, persona="x")),
}


@pytest.mark.parametrize("name", LOSSY)
def test_what_json_changes_is_not_stored(name: str) -> None:
    """Stored and restored it would be something else: a program that takes it for what it was, fails."""
    try:
        found = there_and_back(LOSSY[name])
    except NotCacheable:
        return
    assert without_raw(found) == LOSSY[name]


class Calling(CountingFunctionCalling):
    """Streams a text and a tool call; `late` is what the last chunk still holds."""

    late: list[Any] = Field(default_factory=list)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:  # type: ignore[override]
        self._turn(messages)

        def stream() -> Iterator[ChatResponse]:
            text = TextBlock(text="Let me see.")
            for blocks, delta in (([text], "Let me see."), ([text, called()], ""), ([text, *self.late], "")):
                yield ChatResponse(message=made_of(*blocks, role="assistant"), delta=delta, raw={})

        return stream()


def calls_in(chunk: ChatResponse) -> bool:
    return any(isinstance(block, ToolCallBlock) for block in chunk.message.blocks)


def test_a_tool_call_that_the_last_chunk_does_not_repeat_is_not_lost(watched: SemanticCache) -> None:
    llm = CachedLLM(Calling(), watched)
    for _ in range(2):
        assert any(list(map(calls_in, llm.stream_chat([said(ASKED)]))))  # all of it, so that it is stored


def test_what_a_program_does_to_a_chunk_is_not_stored(watched: SemanticCache) -> None:
    """`force_single_tool_call` of LlamaIndex's own models takes blocks out of responses."""
    llm = CachedLLM(Calling(late=[called()]), watched)
    for chunk in llm.stream_chat([said(ASKED)]):
        chunk.message.blocks = [TextBlock(text="Let me see.")]
    assert any(list(map(calls_in, llm.stream_chat([said(ASKED)]))))


# the user's call --------------------------------------------------------------------------------------


def test_arguments_by_name_and_by_place(watched: SemanticCache) -> None:
    """Also those whose names are those of ours."""
    inner = CountingFunctionCalling()
    llm = CachedLLM(inner, watched)
    first = llm.chat(messages=[said(ASKED)], llm=1, kind=2, request=3, response=4)
    again = llm.chat([said(ASKED)], llm=1, kind=2, request=3, response=4)
    assert again.message.content == first.message.content
    assert (
        llm.complete(prompt=ASKED).text == llm.complete(ASKED, False).text != llm.complete(ASKED, True).text
    )
    assert len(inner.script.asked) == 3


def test_a_closed_cache_costs_hits_only(open_cache: OpenCache) -> None:
    cache = open_cache()
    llm = CachedLLM(CountingFunctionCalling(), cache)
    cache.close()
    assert llm.chat([said(ASKED)]).message.content == "answer 1"
    assert sum(llm.faults().values()) == 2


def test_copying_and_pickling(watched: SemanticCache) -> None:
    """A deep copy asks the same cache with a model of its own; sent away, the model travels alone."""
    llm = CachedLLM(Plain(), watched)
    copied = copy.deepcopy(llm)
    assert copied.cache is llm.cache
    assert copied.llm is not llm.llm
    assert type(pickle.loads(pickle.dumps(llm))) is Plain
    assert "sk-1" not in repr(CachedLLM(openai(), watched))


def test_a_model_with_a_handler_is_copied_and_pickled(watched: SemanticCache) -> None:
    """Its handler is copied as it is, and stays behind."""
    handler = IbidemCallbackHandler(watched)
    assert copy.deepcopy(handler) is handler
    with pytest.raises(InvalidInput, match="add one in the other process"):
        pickle.dumps(handler)
    llm = CachedLLM(Plain(callback_manager=CallbackManager([handler])), watched)
    assert copy.deepcopy(llm).callback_manager.handlers == [handler]
    assert pickle.loads(pickle.dumps(llm)).callback_manager.handlers == []


def test_a_synthesizer_is_copied_and_pickled(watched: SemanticCache) -> None:
    synthesizer = CachedSynthesizer(get_response_synthesizer(llm=Plain()), watched, namespace="acme")
    for copied in (copy.copy(synthesizer), copy.deepcopy(synthesizer)):
        assert type(copied) is CachedSynthesizer
        assert (copied.cache, copied._options.namespace) == (watched, "acme")
    assert copy.deepcopy(synthesizer)._synthesizer is not synthesizer._synthesizer
    assert type(pickle.loads(pickle.dumps(synthesizer))) is type(synthesizer._synthesizer)


class Form(BaseModel):
    """What structured output fills."""

    name: str


def with_another_model(llm: CachedLLM, server: OpenAIServer) -> CachedLLM:
    """A shallow copy that wraps another model."""
    return llm.model_copy(update={"llm": openai(api_base=server.url, model="gpt-4o-mini")})


def deep_copy_with_another_model(llm: CachedLLM, server: OpenAIServer) -> CachedLLM:
    """A deep copy whose model is then another."""
    copied = copy.deepcopy(llm)
    copied.llm.model = "gpt-4o-mini"  # type: ignore[attr-defined]
    return copied


@pytest.mark.parametrize(
    "copied",
    [deep_copy_with_another_model, with_another_model],
)
def test_a_copy_uses_its_own_model_for_structured_output(
    copied: Callable[[CachedLLM, OpenAIServer], CachedLLM], watched: SemanticCache, server: OpenAIServer
) -> None:
    llm = CachedLLM(openai(api_base=server.url), watched)
    copied(llm, server).structured_predict(Form, PromptTemplate("Fill it: {query_str}"), query_str="Bob")
    assert [request["body"]["model"] for request in server.requests] == ["gpt-4o-mini"]


def test_a_model_gets_the_arguments_that_were_given(watched: SemanticCache) -> None:
    """Many custom models take `complete(prompt, **kwargs)` and hand the rest to their client."""
    assert CachedLLM(Plain(), watched).complete(ASKED).text == Plain().complete(ASKED).text


def test_a_frozen_model_can_be_wrapped(watched: SemanticCache) -> None:
    class Frozen(Plain):
        model_config = ConfigDict(frozen=True)

    inner = Frozen(messages_to_prompt=str, completion_to_prompt=str)
    assert inner.complete(ASKED).text
    assert CachedLLM(inner, watched).complete(ASKED).text


def test_settings_can_be_changed_as_on_the_model(watched: SemanticCache) -> None:
    llm: Any = CachedLLM(openai(), watched)
    llm.temperature = 1.0
    assert llm.llm.temperature == 1.0


def test_the_rate_limiter_is_the_models(watched: SemanticCache) -> None:
    class Limiter:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1

    inner, limiter = CountingFunctionCalling(), Limiter()
    llm = CachedLLM(inner, watched)
    llm.rate_limiter = limiter
    llm.chat([said(ASKED)])
    assert limiter.asked == 1


@of_agents
async def test_a_code_agent_on_a_model_without_tools(watched: SemanticCache) -> None:
    async def ask(llm: LLM) -> str:
        agent = CodeActAgent(llm=llm, tools=[], code_execute_fn=lambda code: "1")
        return str(await agent.run(user_msg=ASKED))

    assert await ask(CountingCompletion()) == "answer 1"
    assert await ask(CachedLLM(CountingCompletion(), watched)) == "answer 1"


def test_tools_that_fill_the_pool_of_threads_get_answers(watched: SemanticCache) -> None:
    """The model alone needs no thread."""
    llm = CachedLLM(CountingFunctionCalling(), watched)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))

        def tool() -> None:
            asyncio.run_coroutine_threadsafe(llm.achat([said(ASKED)]), loop).result(1.0)

        await asyncio.to_thread(tool)

    asyncio.run(main())


def test_a_loop_that_ends_still_answers(watched: SemanticCache) -> None:
    llm = CachedLLM(CountingFunctionCalling(), watched)

    async def main() -> str | None:
        await asyncio.to_thread(int)
        await asyncio.get_running_loop().shutdown_default_executor()
        return (await llm.achat([said(ASKED)])).message.content

    assert asyncio.run(main()) == "answer 1"


def _responses() -> httpx.Client:
    """A client of a server of OpenAI's Responses API that numbers its answers."""
    count = iter(range(1, 100))
    tokens = {
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        number = next(count)
        content = [{"type": "output_text", "text": f"answer {number}", "annotations": []}]
        message = {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
        return httpx.Response(
            200,
            json={
                "id": f"resp_{number}",
                "object": "response",
                "created_at": 1,
                "status": "completed",
                "model": "gpt-4o",
                "output": [{**message, "content": content}],
                "parallel_tool_calls": True,
                "tool_choice": "auto",
                "tools": [],
                "usage": {**tokens, "input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
            },
        )

    return httpx.Client(transport=httpx.MockTransport(answer))


def test_conversations_that_the_provider_keeps_do_not_mix(watched: SemanticCache) -> None:
    """After a repeated first answer the follow-up question is asked in no conversation: that of all."""
    client = _responses()

    def conversation(*questions: str) -> list[str | None]:
        inner = OpenAIResponses(
            model="gpt-4o", api_key="k", track_previous_responses=True, http_client=client, max_retries=0
        )
        llm = CachedLLM(inner, watched)
        return [llm.chat([said(question)]).message.content for question in questions]

    for first in ("Tell me about France.", "Where do pandas live?"):
        conversation(first)
    one = conversation("Tell me about France.", "How many are there?")
    other = conversation("Where do pandas live?", "How many are there?")
    client.close()
    assert one[1] != other[1]


# secrets ----------------------------------------------------------------------------------------------


def test_secrets_are_not_stored_or_logged(
    open_cache: OpenCache, server: OpenAIServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the files of the cache, not in the log, not in what is told of failures."""
    caplog.set_level(logging.DEBUG, logger="ibidem")
    secrets = {name: f"hush{name}4711" for name in ("key", "header", "named", "argument", "system")}
    cache = open_cache()
    inner = openai(
        api_key=secrets["key"],
        api_base=server.url,
        max_retries=0,
        default_headers={"Authorization": f"Bearer {secrets['header']}", "X-Api-Key": secrets["header"]},
        additional_kwargs={"user": secrets["named"]},
        system_prompt=secrets["system"],
    )
    llm = CachedLLM(inner, cache)
    for _ in range(2):
        llm.chat([said(secrets["system"], "system"), said(ASKED)], extra_body={"x": secrets["argument"]})
        llm.predict(PromptTemplate("Q: {query_str}"), query_str=ASKED)
        llm.chat([said(secrets["system"], "system"), said("Write of " + secrets["argument"])])
    with pytest.raises(TypeError):
        llm.chat([said(ASKED)], no_such_argument=object())
    told = str([llm.faults(), cache.stats(), cache.recent(), repr(llm), caplog.text])
    cache.close()

    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"answer 1" in kept
    assert [name for name, secret in secrets.items() if secret.encode() in kept or secret in told] == []


def test_a_request_forgets_its_scope() -> None:
    """What is hashed is not kept."""
    request = request_of([said("hush", "system"), said(ASKED)], password="hush")
    assert "hush" not in repr(request)


def test_a_verdict_is_not_repeated_for_another_statement(watched: SemanticCache, looked: Looked) -> None:
    """An evaluator has a statement judged where a question stands: nearly the same is not the same."""
    from llama_index.core.evaluation import FaithfulnessEvaluator

    evaluator = FaithfulnessEvaluator(llm=CachedLLM(CountingFunctionCalling(), watched))
    for statement in (
        "Goods can be returned within thirty days.",
        "Goods can be returned, within thirty days.",
    ):
        evaluator.evaluate(response=statement, contexts=["Goods can be returned within thirty days."])
    assert not any(request.semantic for request, _ in looked)
    assert len({request.key for request, _ in looked}) == 2
