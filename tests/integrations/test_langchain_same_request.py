"""Which calls of LangChain's models are the same request: what the model does not see makes no difference."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import StdOutCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as CompletionOpenAI
from pydantic import BaseModel, PrivateAttr, SecretStr

from ibidem.adapter.options import AdapterOptions
from ibidem.errors import NotCacheable
from ibidem.types import normalise
from langchain_ibidem import IbidemCache
from langchain_ibidem.cache import RequestBuilder
from langchain_ibidem.call import ModelCall
from langchain_ibidem.tracking import Tracker
from tests.conftest import OpenCache
from tests.contracts.langchain import CountingCompletion

ASKED = "What is the capital of France?"
BUILDER = RequestBuilder(Tracker(), AdapterOptions(history="exact"))  # whatever the last message stands for


def key(model: BaseChatModel, messages: Any = ASKED, **parameters: Any) -> str:
    """As LangChain asks for it."""
    prompt = dumps(convert_to_messages([messages] if isinstance(messages, str) else messages))
    stop = parameters.pop("stop", None)
    shown = model._get_llm_string(stop=stop, **parameters)
    return BUILDER.build(prompt, shown, ModelCall(model, None, parameters, stop)).key


def chat(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(**{"model": "m", "api_key": "sk-1", **options})


# the model and its settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": 7},
        {"timeout": 9},
        {"request_timeout": (3, 4)},
        {"http_client": httpx.Client()},
        {"http_async_client": httpx.AsyncClient()},
        {"verbose": True},
        {"callbacks": [StdOutCallbackHandler()]},
        {"tags": ["a"]},
        {"metadata": {"a": 1}},
        {"name": "mine"},
        {"stream_usage": True},
        {"streaming": True},
        {"disable_streaming": True},
        {"rate_limiter": InMemoryRateLimiter(requests_per_second=1)},
        {"api_key": "sk-2"},
        {"api_key": SecretStr("sk-3")},
        {"cache": False},
    ],
    ids=lambda options: ",".join(options),
)
def test_settings_that_no_model_sees_do_not_count(options: dict[str, Any]) -> None:
    assert key(chat(**options)) == key(chat())


@pytest.mark.parametrize(
    "parameters",
    [{"timeout": 3}, {"stream": True}, {"stream_usage": True}, {"stream_options": {"a": 1}}],
    ids=str,
)
def test_nor_do_they_in_a_single_call(parameters: dict[str, Any]) -> None:
    assert key(chat(), **parameters) == key(chat())
    other = {"temperature": 1.0}
    assert key(chat(), **parameters, **other) == key(chat(), **other) != key(chat())


def test_where_the_key_comes_from_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-9")
    assert key(ChatOpenAI(model="m")) == key(chat())


@pytest.mark.parametrize(
    "options",
    [
        {"model": "n"},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"seed": 1},
        {"max_tokens": 5},
        {"n": 2},
        {"logprobs": True},
        {"stop": ["."]},
        {"reasoning_effort": "low"},
        {"model_kwargs": {"a": 1}},
        {"extra_body": {"a": 1}},
        {"default_headers": {"a": "b"}},
        {"organization": "o"},
        {"base_url": "http://elsewhere/v1"},
    ],
    ids=str,
)
def test_settings_that_change_the_answer_count(options: dict[str, Any]) -> None:
    assert key(chat(**options)) != key(chat())


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_two_endpoints_share_nothing_though_the_environment_names_them(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """LangChain's description holds what the model was made with, and no environment."""
    before = chat()
    monkeypatch.setenv(variable, "http://elsewhere/v1")
    after = chat()
    assert key(before) != key(after)


def test_a_setting_that_is_changed_later_counts() -> None:
    """LangChain describes a model once, when it is first used."""
    model = chat(temperature=0)
    before = key(model)
    model.temperature = 0.9
    assert key(model) != before
    model.temperature = 0
    assert key(model) == before


class Nameless(BaseChatModel):
    """Tells LangChain its provider only, as `ChatOllama` does."""

    model: str = "llama3.2:1b"
    temperature: float | None = None
    num_ctx: int | None = None
    base_url: str | None = None
    api_key: SecretStr | None = None
    keep: Any = None
    max_retries: int = 2
    _client: Any = PrivateAttr(default_factory=object)

    @property
    def _llm_type(self) -> str:
        return "nameless"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("x"))])


class Anonymous(Nameless):
    """Does not even have a field for its name."""

    model: int = 1  # type: ignore[assignment]


def test_a_model_that_does_not_tell_its_name_is_known_by_its_fields() -> None:
    same = [Nameless(), Nameless(max_retries=9, api_key=SecretStr("x"), verbose=True, tags=["a"])]
    assert len({key(model) for model in same}) == 1
    others = [
        Nameless(model="llama3.2:3b"),
        Nameless(temperature=0.1),
        Nameless(num_ctx=4096),
        Nameless(base_url="http://elsewhere"),
        Nameless(keep={"a": [1]}),
        type("Nameless2", (Nameless,), {"__annotations__": {}})(),
    ]
    assert len({key(model) for model in [*same, *others]}) == 1 + len(others)


def test_one_that_holds_an_object_is_known_by_this_very_object() -> None:
    """In this process; however it is bound to the model."""
    one, other = object(), object()
    assert key(Nameless(keep=one)) == key(Nameless(keep=one)) != key(Nameless(keep=other))
    assert key(Nameless(keep={"auth": [one]})) == key(Nameless(keep={"auth": [one]}))
    assert key(Nameless(keep={"auth": [one]})) != key(Nameless(keep={"auth": [other]}))
    assert key(Anonymous()) == key(Anonymous(model=1)) != key(Anonymous(model=2))


def test_an_object_that_takes_the_place_of_a_dead_one_is_another() -> None:
    class Auth:
        """Nothing says what it does."""

    seen = set()
    for _ in range(50):  # some of them get the same address
        seen.add(key(Nameless(keep=Auth())))
    assert len(seen) == 50


OPAQUE_IN_A_PROCESS = """
import os
from langchain_ollama import ChatOllama
from tests.integrations.test_langchain_same_request import key
class Auth:
    def __call__(self, request):
        return request
auth = Auth()
model = ChatOllama(model="m", client_kwargs={"auth": auth})
print(key(model), key(model.model_copy()), key(ChatOllama(model="m")), flush=True)
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, f"{key(model)} {key(ChatOllama(model='m'))}".encode())
    os._exit(0)
os.wait()
print(os.read(read, 999).decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_object_means_nothing_in_another_process() -> None:
    """Neither in one that is started anew nor in a forked one; all else does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", OPAQUE_IN_A_PROCESS],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    for with_auth, copied, without, forked, forked_without in said:
        assert with_auth == copied
        assert without == forked_without
        assert len({with_auth, without, forked}) == 3
    assert said[0][0] != said[1][0]
    assert said[0][2] == said[1][2]


# models of the program's own --------------------------------------------------------------------------

OWN = """
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from typing import ClassVar
import logging

asked, counts, logger = [], {"all": 0}, logging.getLogger("own")
TONE = "kind"
WORDS = {"hello": ["hi"]}

def helper(text):
    return text.upper()

class Base(BaseChatModel):
    greeting: ClassVar[str] = "Hello"

    @property
    def _llm_type(self):
        return "own"

    def _ends(self):
        return "."

def made(suffix):
    class Mine(Base):
        def _generate(self, messages, stop=None, run_manager=None, sep=" ", **kwargs):
            asked.append(messages)
            counts["all"] += 1
            logger.debug("asked")
            text = sep.join([self.greeting, TONE, helper(WORDS["hello"][0]), suffix, self._ends()])
            return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])
    return Mine

Mine = made("!")
"""


def own(before: str = "", after: str = "") -> dict[str, Any]:
    """The namespace of such a program, with a part of its text replaced."""
    assert before in OWN
    text = OWN.replace(before, after) if before else OWN
    held: dict[str, Any] = {"__name__": "own_program"}
    exec(text, held)
    return held


CODE = {
    "constant": ('"Hello"', '"Goodbye"'),
    "global": ('TONE = "kind"', 'TONE = "rude"'),
    "content of a global": ('["hi"]', '["hey"]'),
    "helper": ("text.upper()", "text.lower()"),
    "method of a base": ('return "."', 'return "?"'),
    "method": ("sep.join([self.greeting, TONE", "sep.join([TONE, self.greeting"),
    "enclosed": ('made("!")', 'made("?")'),
    "default": ('sep=" "', 'sep="-"'),
    "name of the class": ("Mine", "Yours"),
}


@pytest.mark.parametrize("name", CODE)
def test_a_model_of_ones_own_is_known_by_its_code(name: str) -> None:
    held, changed = own(), own(*CODE[name])
    model = held["Mine"]()
    assert key(model) == key(held["Mine"]()) == key(own()["Mine"]())
    assert key(model) != key(changed["Yours" if "Yours" in CODE[name][1] else "Mine"]())


def test_what_its_code_refers_to_counts_as_it_is_now() -> None:
    """Also after it was read: a method may be replaced, a constant may be set anew, in place too."""
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda held: held.update(TONE="rude"),
        lambda held: held["WORDS"].update(hello=["hey"]),
        lambda held: held["WORDS"]["hello"].append("hey"),
        lambda held: setattr(held["Base"], "greeting", "Goodbye"),
        lambda held: setattr(held["Base"], "_ends", lambda self: "?"),
        lambda held: setattr(held["Mine"], "_ends", lambda self: "?"),
        lambda held: setattr(held["helper"], "__code__", (lambda text: text).__code__),
        lambda held: setattr(held["Mine"]._generate, "__defaults__", (None, None, "-")),
    ]
    for change in changes:
        held = own()
        model = held["Mine"]()
        before = key(model)
        assert key(model) == before
        change(held)
        assert key(model) != before


def test_a_model_of_ones_own_is_cached(open_cache: OpenCache) -> None:
    """Though its code keeps count of what it was asked."""
    held = own()
    model = held["Mine"](cache=IbidemCache(open_cache()))
    assert model.invoke(ASKED).content == model.invoke(ASKED).content
    assert held["counts"] == {"all": 1}
    assert held["Mine"](cache=model.cache).invoke(ASKED).content.startswith("Hello")
    assert (len(held["asked"]), model.cache.faults()) == (1, {})


class Voiced(Nameless):
    """Keeps a setting where pydantic does not show it."""

    calls: int = 0
    name: str = "poet"
    _voice: Any = PrivateAttr("low")
    _log: list[str] = PrivateAttr(default_factory=list)

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.calls += 1
        return super()._generate(*args, **kwargs)


def test_private_values_and_fields_of_a_common_name_count() -> None:
    def voiced(voice: Any = "low", **fields: Any) -> Voiced:
        model = Voiced(**fields)
        model._voice = voice
        return model

    class Voice:
        """A class of the program's."""

    one = Voice()
    same = [voiced(), voiced(calls=7), voiced(verbose=True)]
    others = [voiced("high"), voiced(one), voiced(Voice()), voiced(len), voiced(name="pirate")]
    assert len({key(model) for model in same}) == 1
    assert len({key(model) for model in [*same, *others]}) == 1 + len(others)
    assert key(voiced(one)) == key(voiced(one))


def test_a_setting_that_changes_during_a_call_does_not_move_the_answer(open_cache: OpenCache) -> None:
    """It is the answer of the settings that were asked with."""

    class Fickle(Nameless):
        temperature: float | None = 0.1

        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            said = f"at {self.temperature}"
            self.temperature = 0.9 if self.temperature == 0.1 else 0.1
            return ChatResult(generations=[ChatGeneration(message=AIMessage(said))])

    model = Fickle(cache=IbidemCache(open_cache()))
    assert [model.invoke(ASKED).content for _ in range(2)] == ["at 0.1", "at 0.9"]
    assert model.temperature == 0.1
    assert model.invoke(ASKED).content == "at 0.1"


# parameters of one call -------------------------------------------------------------------------------


def completion_key(**parameters: Any) -> str:
    model = CompletionOpenAI(model="m", api_key="sk-1")
    shown = str(sorted({**model._dict_for_compat(), "stop": None}.items()))
    return BUILDER.build(ASKED, shown, ModelCall(model, None, parameters)).key


def test_parameters_of_a_completion_count() -> None:
    """LangChain leaves what is bound to a completion model out of its description."""
    given = [
        {},
        {"temperature": 1.9},
        {"max_tokens": 3},
        {"temperature": 1.9, "max_tokens": 3},
        {"logit_bias": {"1": 2}},
    ]
    assert len({completion_key(**parameters) for parameters in given}) == len(given)
    assert completion_key(max_tokens=3, temperature=1.9) == completion_key(temperature=1.9, max_tokens=3)
    assert completion_key(timeout=3) == completion_key()
    held = object()
    assert completion_key(callback=held) == completion_key(callback=held) != completion_key(callback=object())
    with pytest.raises(NotCacheable, match="opaque_parameters"):
        completion_key(callback=iter("ab"))


def test_the_temperature_of_a_bound_completion_is_known() -> None:
    model = CompletionOpenAI(model="m", api_key="sk-1", temperature=0)
    shown = str(sorted({**model._dict_for_compat(), "stop": None}.items()))
    assert BUILDER.build(ASKED, shown, ModelCall(model, None, {"temperature": 1.9})).temperature == 1.9


def test_an_answer_in_a_given_form_is_for_the_same_words_only() -> None:
    """Wherever it is said: in the fields of a nameless model, in what is bound to a completion model."""

    class Formatted(Nameless):
        format: str | None = None

    model, prompt = CompletionOpenAI(model="m", api_key="sk-1"), dumps([HumanMessage(ASKED)])
    shown = str(sorted({**model._dict_for_compat(), "stop": None}.items()))
    found = [
        BUILDER.build(ASKED, shown, ModelCall(model, None, {"response_format": {"type": "json_object"}})),
        BUILDER.build(ASKED, shown, ModelCall(model)),
        *(
            BUILDER.build(prompt, one._get_llm_string(), ModelCall(one))
            for one in (Formatted(format="json"), Formatted())
        ),
    ]
    assert [request.semantic for request in found] == [False, True, False, True]


def test_a_class_among_the_parameters_counts_by_its_schema() -> None:
    class Form(BaseModel):
        city: str

    one, other = Form, type("Form", (BaseModel,), {"__annotations__": {"city": int}})
    keys = {key(chat(), response_format=form) for form in (one, other)}
    assert len(keys | {key(chat())}) == 3
    nested = {"forms": [one]}, {"forms": [other]}
    assert len({key(Nameless(), extra=form) for form in nested}) == 2


# the messages -----------------------------------------------------------------------------------------


def test_one_prompt_however_it_is_written() -> None:
    written = [
        ASKED,
        [("user", ASKED)],
        [("human", ASKED)],
        [HumanMessage(ASKED)],
        [HumanMessage(content=ASKED, id="1")],
        [{"role": "user", "content": ASKED}],
        [HumanMessage(ASKED, response_metadata={"at": 1})],
    ]
    assert len({key(chat(), messages) for messages in written}) == 1


def test_a_text_and_a_list_of_it_are_two_prompts() -> None:
    """Providers and templates of models may write them differently."""
    assert key(chat(), [HumanMessage([{"type": "text", "text": ASKED}])]) != key(chat())


WORDS = st.text(st.sampled_from('ab {}"\n?é'), max_size=6)
ARGUMENTS = st.dictionaries(
    st.sampled_from("abc"), st.integers(0, 2) | WORDS | st.lists(WORDS, max_size=2), max_size=3
)


@st.composite
def conversations(draw: Any) -> list[BaseMessage]:
    """A conversation with tool calls, images and what providers tell beside."""
    messages: list[BaseMessage] = [SystemMessage(draw(WORDS))]
    for turn in range(draw(st.integers(1, 2))):
        image = {"type": "image_url", "image_url": {"url": draw(WORDS), "detail": "low"}}
        messages.append(HumanMessage(draw(WORDS | st.just([{"type": "text", "text": "See"}, image]))))
        calls = [
            {"name": draw(st.sampled_from("fg")), "args": draw(ARGUMENTS), "id": f"call_{turn}_{number}"}
            for number in range(draw(st.integers(0, 2)))
        ]
        messages.append(AIMessage(draw(WORDS), tool_calls=calls, id=f"run-{turn}"))
        messages += [ToolMessage(draw(WORDS), tool_call_id=call["id"]) for call in calls]
    return [*messages, HumanMessage("And then?")]


def shuffled(value: Any, draw: random.Random) -> Any:
    """The same JSON with the keys of every object in another order."""
    if isinstance(value, dict):
        items = [(name, shuffled(inner, draw)) for name, inner in value.items()]
        draw.shuffle(items)
        return dict(items)
    return [shuffled(inner, draw) for inner in value] if isinstance(value, list) else value


def unseen(messages: list[BaseMessage], draw: random.Random) -> list[BaseMessage]:
    """The same conversation with other ids, usage and bookkeeping."""
    names: dict[str, str] = {}

    def renamed(id_: str) -> str:
        return names.setdefault(id_, f"toolu_{draw.random()}")

    changed = []
    for message in messages:
        update: dict[str, Any] = {"id": str(draw.random()), "response_metadata": {"id": str(draw.random())}}
        if isinstance(message, AIMessage):
            total = draw.randrange(99)
            update["tool_calls"] = [{**call, "id": renamed(call["id"])} for call in message.tool_calls]
            update["usage_metadata"] = {"input_tokens": 0, "output_tokens": total, "total_tokens": total}
        if isinstance(message, ToolMessage):
            update |= {"tool_call_id": renamed(message.tool_call_id), "artifact": {"at": draw.random()}}
        changed.append(message.model_copy(update=update))
    return changed


def key_of(prompt: str) -> str:
    return BUILDER.build(prompt, "m").key


@settings(max_examples=60, deadline=None)
@given(conversations(), st.integers(0, 10**6))
def test_what_no_model_sees_never_changes_the_key(messages: list[BaseMessage], seed: int) -> None:
    draw = random.Random(seed)
    again = json.loads(dumps(unseen(messages, draw)))
    for dumped in again:
        dumped["kwargs"] = shuffled(dumped["kwargs"], draw)
    assert key_of(json.dumps(again)) == key_of(dumps(messages))


def edits(messages: list[BaseMessage]) -> list[Callable[[], list[BaseMessage]]]:
    """Each makes one change that a model sees."""

    def at(index: int, **update: Any) -> Callable[[], list[BaseMessage]]:
        return lambda: [*messages[:index], messages[index].model_copy(update=update), *messages[index + 1 :]]

    found: list[Callable[[], list[BaseMessage]]] = [
        lambda: messages[1:],
        lambda: [*messages, HumanMessage("x")],
    ]
    for index, message in enumerate(messages):
        said = message.content
        found.append(at(index, content=f"{said}x" if isinstance(said, str) else [*said, "x"]))
        found.append(at(index, name="somebody"))
        for number, call in enumerate(getattr(message, "tool_calls", ())):
            calls = message.tool_calls
            other = {**call, "args": {**call["args"], "zz": 1}}
            found.append(at(index, tool_calls=[*calls[:number], other, *calls[number + 1 :]]))
            found.append(at(index, tool_calls=[*calls[:number], {**call, "name": "h"}, *calls[number + 1 :]]))
        if isinstance(message, ToolMessage):
            found.append(at(index, status="error"))
            found.append(at(index, tool_call_id="call_of_nobody"))
    return found


@settings(max_examples=60, deadline=None)
@given(conversations(), st.data())
def test_what_a_model_sees_always_does(messages: list[BaseMessage], data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(edits(messages)))()
    assert key_of(dumps(changed)) != key_of(dumps(messages))


@settings(max_examples=60, deadline=None)
@given(conversations(), conversations())
def test_two_conversations_share_a_key_only_if_they_read_alike(
    one: list[BaseMessage], other: list[BaseMessage]
) -> None:
    """Blanks around what was said, or answered, need not count."""

    def reads(messages: list[BaseMessage], *, blanks: bool = True) -> Any:
        return [
            (
                m.type,
                m.content if blanks or not isinstance(m.content, str) else normalise(m.content),
                getattr(m, "tool_calls", None),
                getattr(m, "tool_call_id", None),
            )
            for m in messages
        ]

    if key_of(dumps(one)) == key_of(dumps(other)):
        assert reads(one, blanks=False) == reads(other, blanks=False)
    else:
        assert reads(one) != reads(other)


def test_bound_completions_share_nothing(open_cache: OpenCache) -> None:
    """In LangChain's own way of calling; a direct lookup cannot know what was bound."""
    model = CountingCompletion(cache=IbidemCache(open_cache()))
    bound = model.bind(temperature=0.9)
    assert [model.invoke(ASKED), bound.invoke(ASKED), model.bind(max_tokens=3).invoke(ASKED)] == [
        "answer 1",
        "answer 2",
        "answer 3",
    ]
    assert [bound.invoke(ASKED), model.invoke(ASKED)] == ["answer 2", "answer 1"]
    assert asyncio.run(bound.ainvoke(ASKED)) == "answer 2"
    assert bound.batch([ASKED, "How large is Peru?"]) == ["answer 2", "answer 4"]
