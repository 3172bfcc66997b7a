"""`IbidemMiddleware`: which steps of an agent are repeated, and which never are."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, dynamic_prompt, wrap_model_call
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, field_validator

from ibidem.cache import SemanticCache
from ibidem.errors import InvalidInput
from langchain_ibidem import IbidemCache, IbidemMiddleware
from tests.contracts.agents import ASKED, OTHER, REWORDED, Shop, ask, final
from tests.openai_server import OpenAIServer


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def model(server: OpenAIServer) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-4o-mini", base_url=server.url, api_key="x", temperature=0, max_retries=0)


Make = Callable[..., Any]


@pytest.fixture
def make(model: ChatOpenAI, shop: Shop, cache: SemanticCache) -> Make:
    """Makes agents with these tools and `IbidemMiddleware` with these options."""

    def create(
        *tools: str, around: tuple[AgentMiddleware, ...] = (), given: Any = None, **options: Any
    ) -> Any:
        settings = {
            k: options.pop(k) for k in tuple(options) if k in ("response_format", "checkpointer", "name")
        }
        middleware = given or IbidemMiddleware(options.pop("cache", cache), **options)
        made = [shop.tool(one) for one in tools]
        chat = settings.pop("model", model)
        return create_agent(
            chat, made, system_prompt="Be brief.", middleware=[*around, middleware], **settings
        )

    return create


def requests(server: OpenAIServer, run: Callable[[], Any]) -> int:
    """How many requests the model gets from this."""
    before = server.count
    run()
    return server.count - before


# steps ------------------------------------------------------------------------------------------------


class TestSteps:
    def test_an_answer_without_tools_is_repeated_by_meaning(self, make: Make, server: OpenAIServer) -> None:
        agent = make()
        first = ask(agent, ASKED)
        assert ask(agent, REWORDED).content == first.content
        assert server.count == 1
        assert ask(agent, OTHER).content != first.content

    def test_tool_calls_are_repeated_for_the_same_words_only(
        self, make: Make, server: OpenAIServer, shop: Shop
    ) -> None:
        agent = make("search")
        first = ask(agent, ASKED)
        assert requests(server, lambda: ask(agent, ASKED)) == 0
        assert shop.called["search"] == 2, "an unmarked tool is called each time"
        assert ask(agent, ASKED).content == first.content
        assert requests(server, lambda: ask(agent, REWORDED)) == 2, "its search is for another word"

    def test_the_last_step_is_repeated_by_meaning_over_the_same_results(
        self, model: ChatOpenAI, cache: SemanticCache, server: OpenAIServer
    ) -> None:
        @tool
        def terms() -> str:
            """Read the terms."""
            return "Goods can be returned within 30 days."

        agent = create_agent(model, [terms], middleware=[IbidemMiddleware(cache)])
        first = ask(agent, ASKED)
        assert requests(server, lambda: ask(agent, REWORDED)) == 1, "what to call, but not what to say"
        assert ask(agent, REWORDED).content == first.content

    def test_a_changed_document_is_a_miss(self, make: Make, server: OpenAIServer, shop: Shop) -> None:
        agent = make("search")
        first = ask(agent, ASKED)
        shop.terms = "Goods can be returned within 14 days."
        assert requests(server, lambda: ask(agent, ASKED)) == 1
        assert ask(agent, ASKED).content != first.content

    def test_documents_of_tools_are_those_of_the_answer(
        self, make: Make, cache: SemanticCache, server: OpenAIServer
    ) -> None:
        agent = make("search")
        ask(agent, ASKED)
        assert cache.invalidate(document="terms#1").count == 1
        assert requests(server, lambda: ask(agent, ASKED)) == 1

    @pytest.mark.parametrize("other", ["model", "prompt", "tools", "settings"])
    def test_everything_else_is_compared_exactly(
        self, other: str, model: ChatOpenAI, cache: SemanticCache, server: OpenAIServer, shop: Shop
    ) -> None:
        middleware = IbidemMiddleware(cache)

        @wrap_model_call
        def settle(request: Any, handler: Any) -> Any:
            return handler(request.override(model_settings={"seed": 7}))

        given: dict[str, Any] = {"model": model, "system_prompt": "Be brief.", "tools": []}
        changed: dict[str, dict[str, Any]] = {
            "model": {"model": model.model_copy(update={"model_name": "gpt-4o"})},
            "prompt": {"system_prompt": "Be long."},
            "tools": {"tools": [shop.tool("clock")]},
            "settings": {"middleware": [settle, middleware]},
        }
        ask(create_agent(**given, middleware=[middleware]), ASKED)
        there = create_agent(**{**given, "middleware": [middleware], **changed[other]})
        assert requests(server, lambda: ask(there, ASKED)) >= 1
        assert requests(server, lambda: ask(there, ASKED)) == 0

    def test_namespaces_do_not_share(self, make: Make, server: OpenAIServer) -> None:
        alice, bob = make(namespace="alice"), make(namespace="bob")
        ask(alice, ASKED)
        assert requests(server, lambda: ask(bob, ASKED)) == 1

    def test_a_chat_of_three_turns_is_replayed(self, make: Make, server: OpenAIServer) -> None:
        agent = make("search", checkpointer=InMemorySaver())

        def chat(thread: str, second: str = "And who pays for it?") -> list[str]:
            config = {"configurable": {"thread_id": thread}}
            turns = (ASKED, second, "Is that so for shoes?")
            return [str(final(agent.invoke({"messages": [("user", t)]}, config)).content) for t in turns]

        first = chat("a")
        assert server.count == 6
        assert chat("b") == first
        assert server.count == 6
        assert chat("c", "Who pays for the parcel?")[2] != first[2], "the same question after another one"

    def test_a_hit_is_new_free_and_says_where_it_is_from(self, make: Make) -> None:
        agent, usage = make(), UsageMetadataCallbackHandler()
        first, again = ask(agent, ASKED), ask(agent, REWORDED, callbacks=[usage])
        assert again.id != first.id
        assert again.response_metadata["ibidem"]["tier"] == "semantic"
        assert again.response_metadata["ibidem"]["saved_tokens"]["total_tokens"] == 18
        assert sum(one["total_tokens"] for one in usage.usage_metadata.values()) == 0


class TestVolatile:
    @pytest.mark.parametrize("marked", ["argument", "metadata"])
    def test_nothing_is_kept_after_a_volatile_tool(
        self, marked: str, model: ChatOpenAI, cache: SemanticCache, server: OpenAIServer, shop: Shop
    ) -> None:
        by_argument = marked == "argument"
        clock = shop.tool("clock", metadata=None if by_argument else {"ibidem": "volatile"})
        middleware = IbidemMiddleware(cache, volatile=["clock"] if by_argument else ())
        agent = create_agent(model, [clock], middleware=[middleware])
        set_llm_cache(IbidemCache(cache))  # neither here nor there
        try:
            first = ask(agent, "What time is it?")
            assert cache.stats().entries == 1, "what to call"
            assert ask(agent, "What time is it?").content != first.content
        finally:
            set_llm_cache(None)
        assert (server.count, shop.called["clock"]) == (3, 2)


# beside other things ----------------------------------------------------------------------------------


class TestBesideTheGlobalCache:
    @pytest.mark.parametrize("call", ["invoke", "ainvoke", "stream"])
    def test_a_step_is_looked_up_and_stored_once(
        self, call: str, make: Make, cache: SemanticCache, server: OpenAIServer
    ) -> None:
        seen: list[Any] = []
        cache._on_lookup = lambda request, found: seen.append(found)
        set_llm_cache(IbidemCache(cache))
        agent = make("search")
        try:
            for _ in range(2):
                _run(agent, call, ASKED)
        finally:
            set_llm_cache(None)
        assert [bool(found) for found in seen] == [False, False, True, True]
        assert cache.stats().entries == server.count == 2

    def test_a_middleware_further_in_leaves_the_work_to_the_global_cache(
        self, model: ChatOpenAI, cache: SemanticCache, server: OpenAIServer
    ) -> None:
        """What it adds cannot be seen from outside: another user's prompt must be another question."""
        user = "alice"

        @dynamic_prompt
        def prompt(request: Any) -> str:
            return f"You talk to {user}."

        middleware = IbidemMiddleware(cache)
        agent = create_agent(model, [], middleware=[middleware, prompt])
        first = ask(agent, ASKED)
        user = "bob"
        assert ask(agent, ASKED).content != first.content
        assert middleware.faults() == {"not_innermost": 2}
        set_llm_cache(IbidemCache(cache))
        try:
            assert requests(server, lambda: (ask(agent, ASKED), ask(agent, ASKED))) == 1
        finally:
            set_llm_cache(None)

    def test_what_a_middleware_further_out_changes_is_seen(self, make: Make, server: OpenAIServer) -> None:
        users = iter(["alice", "bob", "alice"])

        @dynamic_prompt
        def prompt(request: Any) -> str:
            return f"You talk to {next(users)}."

        agent = make(around=(prompt,))
        answers = [ask(agent, ASKED).content for _ in range(3)]
        assert answers == ["answer 1", "answer 2", "answer 1"]


class Out(BaseModel):
    answer: str


class TestStructured:
    @pytest.mark.parametrize(
        "form", [Out, ToolStrategy(Out), ProviderStrategy(Out)], ids=["auto", "tool", "provider"]
    )
    @pytest.mark.parametrize("tools", [(), ("search",)])
    def test_the_parsed_answer_is_repeated_for_the_same_words(
        self, form: Any, tools: tuple[str, ...], make: Make, server: OpenAIServer
    ) -> None:
        agent = make(*tools, response_format=form)
        first = agent.invoke({"messages": [("user", ASKED)]})
        asked = server.count
        again = agent.invoke({"messages": [("user", ASKED)]})
        assert again["structured_response"] == first["structured_response"]
        assert isinstance(again["structured_response"], Out)
        assert [m.type for m in again["messages"]] == [m.type for m in first["messages"]]
        assert server.count == asked
        assert requests(server, lambda: agent.invoke({"messages": [("user", REWORDED)]})) >= 1

    def test_another_schema_is_another_question(self, make: Make, server: OpenAIServer) -> None:
        class Wider(BaseModel):
            answer: str
            sure: bool

        Wider.__name__ = "Out"
        Wider.__doc__ = Out.__doc__
        make(response_format=ProviderStrategy(Out)).invoke({"messages": [("user", ASKED)]})
        wider = make(response_format=ProviderStrategy(Wider))
        end = wider.invoke({"messages": [("user", ASKED)]})
        assert end["structured_response"].sure is True
        assert server.count == 2

    @pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
    def test_what_a_validator_now_refuses_is_asked_again(
        self, strategy: Any, make: Make, server: OpenAIServer
    ) -> None:
        refusals: list[str] = []

        class Checked(BaseModel):
            answer: str

            @field_validator("answer")
            @classmethod
            def check(cls, value: str) -> str:
                if refusals:
                    raise ValueError(refusals.pop())
                return value

        agent = make(response_format=strategy(Checked))

        def run() -> list[str]:
            end = agent.invoke({"messages": [("user", ASKED)]})
            assert isinstance(end["structured_response"], Checked)
            return [message.type for message in end["messages"]]

        first = run()
        refusals.append("no longer")
        assert run() == first, "as if nothing had been stored"
        assert server.count == 2
        assert run() == first
        assert server.count == 2


class TestStreams:
    @pytest.mark.parametrize("call", ["stream", "astream"])
    def test_a_hit_is_streamed_as_one_message(self, call: str, make: Make, server: OpenAIServer) -> None:
        agent = make("search")
        first = "".join(_run(agent, call, ASKED))
        assert first == "answer 2"
        assert _run(agent, call, ASKED) == ["answer 2"]
        assert server.count == 2

    def test_updates_hold_the_repeated_message(self, make: Make) -> None:
        agent = make()
        first = ask(agent, ASKED)
        (update,) = agent.stream({"messages": [("user", REWORDED)]}, stream_mode="updates")
        assert final(update["model"]).content == first.content

    async def test_events_tell_of_a_model_that_answered(self, make: Make, server: OpenAIServer) -> None:
        agent = make()
        for question in (ASKED, REWORDED):
            events = [e async for e in agent.astream_events({"messages": [("user", question)]}, version="v2")]
            ends = [e["data"]["output"].content for e in events if e["event"] == "on_chat_model_end"]
            assert ends == ["answer 1"]
        assert server.count == 1


# at once, and when things fail ------------------------------------------------------------------------


class TestAtOnce:
    def test_threads_that_ask_the_same_make_one_request(self, make: Make, server: OpenAIServer) -> None:
        agent, answers = make(), []
        server.gate.clear()
        threads = [threading.Thread(target=lambda: answers.append(ask(agent, ASKED))) for _ in range(8)]
        for thread in threads:
            thread.start()
        server.gate.set()
        for thread in threads:
            thread.join(20)
        assert [answer.content for answer in answers] == ["answer 1"] * 8
        assert server.count == 1

    async def test_so_do_tasks(self, make: Make, server: OpenAIServer, shop: Shop) -> None:
        agent = make("search")
        asked = [agent.ainvoke({"messages": [("user", ASKED)]}) for _ in range(20)]
        ends = await asyncio.gather(*asked)
        assert {final(end).content for end in ends} == {"answer 2"}
        assert server.count == 2


class TestFaults:
    def test_the_error_of_the_model_is_the_agents(self, make: Make, server: OpenAIServer) -> None:
        from openai import InternalServerError

        agent = make()
        server.fail_next(500)
        with pytest.raises(InternalServerError):
            ask(agent, ASKED)
        assert ask(agent, ASKED).content == "answer 2"

    @pytest.mark.parametrize("call", ["invoke", "ainvoke"])
    def test_a_cache_that_fails_is_no_cache(self, call: str, make: Make, cache: SemanticCache) -> None:
        agent = make("search")
        cache.close()
        assert _run(agent, call, ASKED) == ["answer 2"]

    @pytest.mark.parametrize("payload", ["", "{}", "[]", "[1]"])
    def test_a_stored_text_that_is_not_ours_is_a_miss(
        self, payload: str, make: Make, cache: SemanticCache, server: OpenAIServer
    ) -> None:
        import ibidem

        requests_seen: list[Any] = []
        cache._on_lookup = lambda request, found: requests_seen.append(request)
        agent = make()
        ask(agent, ASKED)
        cache.store(requests_seen[0], ibidem.Answer("wrong", payload=payload, finish_reason="stop"))
        assert ask(agent, ASKED).content == "answer 2"
        assert ask(agent, ASKED).content == "answer 2"

    def test_truncated_answers_are_not_kept(self, make: Make, server: OpenAIServer) -> None:
        agent = make()
        server.finish_reason = "length"
        assert [ask(agent, ASKED).content for _ in range(2)] == ["answer 1", "answer 2"]


class TestOptions:
    def test_an_ibidem_cache_has_its_options_already(self, cache: SemanticCache) -> None:
        with pytest.raises(InvalidInput, match="namespace"):
            IbidemMiddleware(IbidemCache(cache), namespace="a")

    def test_a_cache_that_was_opened_here_is_closed(self, tmp_path: Any) -> None:
        from ibidem.errors import CacheClosed

        with IbidemMiddleware(path=tmp_path / "own") as middleware:
            core = middleware.cache.cache
        with pytest.raises(CacheClosed):
            core.clear()

    def test_a_cache_that_was_given_stays_open(self, cache: SemanticCache) -> None:
        with IbidemMiddleware(IbidemCache(cache)), IbidemMiddleware(cache):
            pass
        assert cache.clear() == 0

    def test_without_langchain_the_rest_works(self) -> None:
        code = (
            "import sys; sys.modules['langchain'] = None; import langchain_ibidem as li; li.IbidemCache;"
            "li.IbidemMiddleware"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "MissingExtra" in done.stderr
        assert "pip install 'ibidem-cache[agents]'" in done.stderr


def _run(agent: Any, call: str, question: str) -> list[str]:
    """What the agent says at the end, in the pieces in which it comes."""
    state = {"messages": [HumanMessage(question)]}
    if call == "invoke":
        return [str(final(agent.invoke(state)).content)]
    if call == "ainvoke":
        return [str(final(asyncio.run(agent.ainvoke(state))).content)]
    if call == "stream":
        return _texts(list(agent.stream(state, stream_mode="messages")))

    async def collect() -> list[Any]:
        return [part async for part in agent.astream(state, stream_mode="messages")]

    return _texts(asyncio.run(collect()))


def _texts(parts: list[Any]) -> list[str]:
    return [str(m.content) for m, _ in parts if isinstance(m, AIMessage) and m.content]
