"""`IbidemCache` as LangChain programs meet it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel

import ibidem
from ibidem.errors import ConfigurationError, InvalidInput
from langchain_ibidem import IbidemCache
from langchain_ibidem.tracking import tracker
from tests.contracts.langchain import RAG, CountingChat, CountingCompletion, Library, Recording, join, shelves
from tests.embedders import BagOfWords, Constant


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


ASKED = "What is the capital of France?"
REWORDED = "What is the capital city of France, please?"
TEXT = [Generation(text="Paris.")]


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Recording]:
    tracker().clear()
    with ibidem.open(tmp_path, embedder=BagOfWords(), min_similarity=0.8) as opened:
        yield Recording(opened)


@pytest.fixture
def cache(core: Recording) -> Iterator[IbidemCache]:
    made = IbidemCache(core)
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


def human(text: str) -> str:
    return dumps([HumanMessage(text)])


# isolation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, human])
def test_a_full_cache_serves_no_foreign_entry(tmp_path: Path, form: Any) -> None:
    """Even if every question were the same point: other parameters are another world."""
    with ibidem.open(tmp_path, embedder=Constant(), min_similarity=0.5) as opened:
        cache = IbidemCache(opened)
        for number in range(20):
            cache.update(form(ASKED), f"model {number}", [Generation(text=str(number))])
        assert cache.lookup(form(ASKED), "model 20") is None
        assert cache.lookup(form(ASKED), "model 7") == [Generation(text="7")]


def test_another_prompt_misses_though_the_foreign_entry_is_nearer(cache: IbidemCache) -> None:
    for number in range(20):
        cache.update(human(f"How many inhabitants has city number {number}?"), "other model", TEXT)
        cache.update(human(f"Who wrote book {number}?"), "m", TEXT)
    cache.update(human(ASKED), "other model", TEXT)
    assert cache.lookup(human(ASKED), "m") is None
    cache.update(human(ASKED), "m", [Generation(text="mine")])
    assert cache.lookup(human(REWORDED), "m") == [Generation(text="mine")]


def test_namespaces_do_not_share(core: Recording) -> None:
    alice, bob = (IbidemCache(core, namespace=name) for name in ("alice", "bob"))
    alice.update(human(ASKED), "m", TEXT)
    assert bob.lookup(human(ASKED), "m") is None
    bob.clear()
    assert alice.lookup(human(ASKED), "m") == TEXT
    bob.clear(namespace=None)
    assert alice.lookup(human(ASKED), "m") is None


def test_two_users_never_share_an_answer(cache: IbidemCache, core: Recording) -> None:
    model = CountingChat()
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You talk to {user}.\n{context}"), ("human", "{question}")]
    )
    library = Library(shelves=shelves())
    chain = {
        "context": itemgetter("question") | library | join,
        "question": itemgetter("question"),
        "user": itemgetter("user"),
    } | (prompt | model)
    first = chain.invoke({"user": "Alice", "question": ASKED}).content
    assert chain.invoke({"user": "Bob", "question": ASKED}).content != first
    assert chain.invoke({"user": "Alice", "question": REWORDED}).content == first
    assert len({request.scope_digest for request in core.stored}) == 2


def test_other_history_is_another_question(cache: IbidemCache) -> None:
    model = CountingChat()
    france = [
        HumanMessage("Tell me about France."),
        AIMessage("A country."),
        HumanMessage("What is its capital?"),
    ]
    peru = [
        HumanMessage("Tell me about Peru."),
        AIMessage("A country."),
        HumanMessage("What is its capital?"),
    ]
    assert model.invoke(france).content != model.invoke(peru).content
    assert model.calls == 2


# what a hit looks like --------------------------------------------------------------------------------


def test_a_hit_is_marked_new_and_free(cache: IbidemCache) -> None:
    usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    model = CountingChat(say=(AIMessage("Paris.", id="original", usage_metadata=usage),))
    counter = UsageMetadataCallbackHandler()
    cold = model.invoke(ASKED)
    warm = model.invoke(REWORDED, config={"callbacks": [counter]})
    assert cold.content == warm.content
    assert warm.id not in (None, cold.id)
    assert warm.usage_metadata == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "total_cost": 0}
    marker = warm.response_metadata["ibidem"]
    assert marker["question"] == ASKED
    assert marker["tier"] == "semantic"
    assert marker["saved_tokens"] == usage
    assert "ibidem" not in cold.response_metadata
    assert all(used["total_tokens"] == 0 for used in counter.usage_metadata.values())


def test_every_lookup_gives_its_own_list(cache: IbidemCache) -> None:
    cache.update(human(ASKED), "m", [ChatGeneration(message=AIMessage("Paris."))])
    first, second = cache.lookup(human(ASKED), "m"), cache.lookup(human(ASKED), "m")
    assert type(first) is list
    assert first is not second
    assert first[0] is not second[0]


def test_what_the_program_does_to_an_answer_does_not_reach_the_cache(cache: IbidemCache) -> None:
    model = CountingChat(say=(AIMessage("Paris."),))
    answer = model.invoke(ASKED)
    answer.content = "changed"
    answer.additional_kwargs["more"] = 1
    again = model.invoke(ASKED)
    assert (again.content, again.additional_kwargs) == ("Paris.", {})


def test_a_conversation_is_replayed_from_start_to_end(cache: IbidemCache) -> None:
    model = CountingChat()

    def session() -> list[str]:
        messages: list[Any] = [SystemMessage("You are a guide.")]
        for text in ("Where is Oslo?", "How big is it?", "And how old?"):
            messages.append(HumanMessage(text))
            messages.append(model.invoke(messages))
        return [str(m.content) for m in messages if isinstance(m, AIMessage)]

    first = session()
    assert model.calls == 3
    assert [session(), session()] == [first, first]
    assert model.calls == 3


def test_an_agent_is_replayed_though_call_ids_are_random(cache: IbidemCache) -> None:
    def run(number: int) -> Any:
        call = {"name": "add", "args": {"a": 1, "b": 2}, "id": f"call_{number}"}
        asked = [HumanMessage("What is 1 plus 2?"), AIMessage("", tool_calls=[call], id=f"run-{number}")]
        result = ToolMessage("3", tool_call_id=f"call_{number}", artifact={"at": number})
        return model.invoke([*asked, result]).content

    model = CountingChat()
    assert run(1) == run(2)
    assert model.calls == 1


class ToolChat(CountingChat):
    """Takes tools, as `create_agent` wants it."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[tool.name for tool in tools])


@pytest.mark.parametrize("call", ["invoke", "ainvoke"])
def test_create_agent_is_replayed(cache: IbidemCache, call: str) -> None:
    wanted = {"name": "add", "args": {"a": 1, "b": 2}, "id": "call_1"}
    model = ToolChat(say=(AIMessage("", tool_calls=[wanted]), AIMessage("It is 3.")))
    agent = create_agent(model, [add], system_prompt="Be brief.")

    def run(asked: str) -> list[str]:
        state = {"messages": [HumanMessage(asked)]}
        end = agent.invoke(state) if call == "invoke" else asyncio.run(agent.ainvoke(state))
        return [str(message.content) for message in end["messages"]]

    assert [run("What is 1 plus 2?") for _ in range(3)] == [["What is 1 plus 2?", "", "3", "It is 3."]] * 3
    assert model.calls == 2
    run("What is 2 plus 1?")
    assert model.calls > 2, "tool calls are not repeated for a similar question"


def test_tool_calls_are_only_repeated_for_the_same_words(cache: IbidemCache) -> None:
    call = {"name": "search", "args": {"q": "capital"}, "id": "call_1"}
    model = CountingChat(say=(AIMessage("", tool_calls=[call]),))
    assert model.invoke(ASKED).tool_calls[0]["args"] == {"q": "capital"}
    assert model.invoke(ASKED).tool_calls[0]["args"] == {"q": "capital"}
    assert model.calls == 1
    model.invoke(REWORDED)
    assert model.calls == 2


def test_truncated_answers_are_not_stored(cache: IbidemCache, core: Recording) -> None:
    model = CountingChat(say=(AIMessage("Par", response_metadata={"finish_reason": "length"}),))
    model.invoke(ASKED)
    model.invoke(ASKED)
    assert model.calls == 2


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def test_langgraph_keeps_both_messages_of_two_nodes_asking_the_same(cache: IbidemCache) -> None:
    model = CountingChat()
    builder = StateGraph(Chat)
    for name in ("first", "second"):
        builder.add_node(name, lambda _: {"messages": [model.invoke(ASKED)]})
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    builder.add_edge("second", END)
    graph = builder.compile()
    end = graph.invoke({"messages": [HumanMessage("go")]})
    assert [m.content for m in end["messages"]] == ["go", "answer 1", "answer 1"]
    parts = list(graph.stream({"messages": [HumanMessage("go")]}, stream_mode="messages"))
    assert [message.content for message, _ in parts] == ["answer 1", "answer 1"]


# failures ---------------------------------------------------------------------------------------------


class Broken:
    """A core that fails at everything."""

    def store(self, *_: object) -> Any:
        raise RuntimeError("secret prompt in store")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"secret prompt in {name}")


@pytest.mark.parametrize("model", [CountingChat(), CountingCompletion()])
def test_a_broken_cache_breaks_no_call(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    broken = IbidemCache(Broken())
    model.cache = broken
    with caplog.at_level(logging.WARNING, logger="langchain_ibidem"):
        first, second = model.invoke(ASKED), asyncio.run(model.ainvoke(ASKED))
    assert first != second
    assert broken.faults() == {"look up an answer for LangChain: RuntimeError": 2}
    assert len(caplog.records) == 1, "once per cause"
    assert "secret" not in caplog.text


def test_clear_does_not_fail_in_silence() -> None:
    with pytest.raises(RuntimeError):
        IbidemCache(Broken()).clear()


def test_a_damaged_row_is_a_miss(cache: IbidemCache, core: Recording) -> None:
    cache.lookup(human(ASKED), "m")
    core.store(core.looked_up[0], ibidem.Answer("Paris.", payload="damaged"))
    assert cache.lookup(human(ASKED), "m") is None
    assert cache.faults() == {"look up an answer for LangChain: JSONDecodeError": 1}


def test_a_closed_cache_is_a_miss(tmp_path: Path) -> None:
    cache = IbidemCache(path=tmp_path, embedder=BagOfWords())
    cache.close()
    assert cache.lookup(human(ASKED), "m") is None
    cache.update(human(ASKED), "m", TEXT)


def test_only_what_was_opened_here_is_closed_here(core: Recording) -> None:
    IbidemCache(core).close()
    core.core.stats()


def test_options_open_the_cache(tmp_path: Path) -> None:
    cache = IbidemCache(path=tmp_path, embedder=BagOfWords(), min_similarity=0.77)
    assert cache.cache.policy.threshold == 0.77
    cache.close()
    with pytest.raises(ConfigurationError):
        IbidemCache(path=tmp_path, embedder=BagOfWords(), min_similarity=7)


def test_a_cache_and_options_contradict(core: Recording) -> None:
    with pytest.raises(InvalidInput, match="min_similarity"):
        IbidemCache(core, min_similarity=0.9)


def test_repr_shows_no_address(tmp_path: Path) -> None:
    cache = IbidemCache(path=tmp_path, embedder=BagOfWords(), namespace="n")
    assert repr(cache) == "IbidemCache(namespace='n')"
    cache.close()


# keys that need the whole path ------------------------------------------------------------------------


def test_the_request_of_the_lookup_is_stored_even_if_the_tracker_forgot(
    cache: IbidemCache, core: Recording
) -> None:
    class Forgetful(CountingChat):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            tracker().clear()
            return super()._generate(*args, **kwargs)

    chain = (
        {"context": Library(shelves=shelves()) | join, "question": RunnablePassthrough()} | RAG | Forgetful()
    )
    chain.invoke(ASKED)
    assert core.looked_up == core.stored
    assert core.stored[0].semantic


class Out(BaseModel):
    city: str


def test_calls_whose_schema_is_unknown_are_not_cached(
    cache: IbidemCache, core: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    shown = f"[('model', 'm'), ('response_format', {Out})]"
    assert cache.lookup(human(ASKED), shown) is None
    cache.update(human(ASKED), shown, TEXT)
    assert core.looked_up == core.stored == []
    assert cache.faults() == {"opaque_parameters": 2}
    assert "JSON schema" in caplog.text


def test_secrets_of_the_model_are_not_kept(cache: IbidemCache, core: Recording) -> None:
    cache.update(human(ASKED), '{"kwargs": {"default_headers": {"Authorization": "Bearer zzz"}}}', TEXT)
    assert "zzz" not in repr(core.stored) + repr(cache)
    assert core.stored[0].scope == ""


def test_question_keys_come_first(core: Recording) -> None:
    cache = IbidemCache(core, question_keys="wish")
    prompt = ChatPromptTemplate.from_template("As {query}: {wish}")
    (prompt | CountingChat(cache=cache)).invoke({"query": "a guide", "wish": "Show me Rome"})
    assert core.stored[0].question == "Show me Rome"


# other handlers, real clients -------------------------------------------------------------------------


class Starts(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("llm")


async def test_the_tracker_hides_no_event_from_other_handlers(cache: IbidemCache) -> None:
    starts = Starts()
    await CountingCompletion().ainvoke(ASKED, config={"callbacks": [starts]})
    assert starts.seen == ["llm"]


def test_one_tracker_per_process(core: Recording) -> None:
    from langchain_core.tracers.context import _configure_hooks

    before = len(_configure_hooks)
    for _ in range(3):
        IbidemCache(core)
    assert len(_configure_hooks) == before


class OpenAIServer(BaseHTTPRequestHandler):
    """Answers chat completions and counts them."""

    requests: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(body)
        message: dict[str, Any] = {"role": "assistant", "content": "Paris."}
        if body.get("tools"):
            function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"city": "Paris"}'}
            call = {"id": f"call_{len(self.requests)}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        elif body.get("response_format"):
            message["content"] = '{"city": "Paris"}'
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        about = {
            "id": f"chatcmpl-{len(self.requests)}",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
        }
        answer = json.dumps({**about, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    requests: list[dict[str, Any]] = []
    handler = type("Handler", (OpenAIServer,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1", requests
        running.shutdown()
        thread.join()


def test_a_real_client_asks_once(cache: IbidemCache, core: Recording, server: Any) -> None:
    url, requests = server
    model = ChatOpenAI(model="m", base_url=url, api_key="sk-test", max_retries=0)
    chain = {"context": Library(shelves=shelves()) | join, "question": RunnablePassthrough()} | RAG
    cold = (chain | model).invoke(ASKED)
    patient = ChatOpenAI(model="m", base_url=url, api_key="sk-test", max_retries=5, timeout=9)
    warm = (chain | patient).invoke(REWORDED)
    assert len(requests) == 1
    assert warm.content == cold.content == "Paris."
    assert warm.response_metadata["ibidem"]["saved_tokens"]["total_tokens"] == 18
    assert "id" not in warm.response_metadata
    assert core.hits[0].answer.model == "m"
    assert core.hits[0].answer.seconds is not None
    hotter = ChatOpenAI(model="m", base_url=url, api_key="sk-test", max_retries=0, temperature=1)
    (chain | hotter).invoke(REWORDED)
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("how", "schema", "requests_made"),
    [
        ("function_calling", Out, 2),
        ("json_mode", Out, 2),
        ("json_schema", Out.model_json_schema(), 2),
        ("json_schema", Out, 2),
    ],
)
def test_structured_output(
    cache: IbidemCache, server: Any, how: str, schema: Any, requests_made: int
) -> None:
    url, requests = server
    model = ChatOpenAI(model="m", base_url=url, api_key="sk-test", max_retries=0)
    structured = model.with_structured_output(schema, method=how)
    first = structured.invoke(ASKED)
    assert dict(first) == {"city": "Paris"}
    assert structured.invoke(ASKED) == first
    structured.invoke(REWORDED)
    assert len(requests) == requests_made


async def test_a_real_client_asks_once_in_async(cache: IbidemCache, server: Any) -> None:
    url, requests = server
    model = ChatOpenAI(model="m", base_url=url, api_key="sk-test", max_retries=0)
    assert (await model.ainvoke(ASKED)).content == "Paris."
    assert [message.content for message in await model.abatch([ASKED, REWORDED])] == ["Paris."] * 2
    assert len(requests) == 1


def test_nothing_but_question_and_answer_is_on_disk(server: Any, tmp_path: Path) -> None:
    """Keys, headers, system prompt, other variables, history and documents are hashed only."""
    url, requests = server
    secrets = {part: f"S3CRET-{part}-{part[::-1]}" for part in ("key", "header", "system", "user", "history")}
    shelf = {"France": [Document(f"S3CRET-document {c} lies at a river.", id=c) for c in ("Lyon", "Paris")]}
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", f"Rules: {secrets['system']}. The user is {{who}}. {{context}}"),
            MessagesPlaceholder("past"),
            ("human", "{question}"),
        ]
    )
    headers = {"Authorization": f"Bearer {secrets['header']}"}
    with IbidemCache(path=tmp_path, embedder=BagOfWords(), min_similarity=0.8) as cache:
        model = ChatOpenAI(
            model="m", base_url=url, api_key=secrets["key"], default_headers=headers, cache=cache
        )
        past = [HumanMessage(secrets["history"]), AIMessage("I see.")]
        given = {"who": secrets["user"], "past": past}
        for question in (ASKED, REWORDED):
            found = Library(shelves=shelf).invoke(question)
            context = "\n\n".join(document.page_content for document in found)
            (prompt | model).invoke({**given, "context": context, "question": question})
        model.invoke(f"Keep this: {secrets['user']}\nand this.")
        cache.cache.flush()
        on_disk = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    on_disk += b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    assert len(requests) == 2
    assert ASKED.encode() in on_disk
    assert b"Paris." in on_disk
    assert b"S3CRET" not in on_disk
