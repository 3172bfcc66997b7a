"""A client of OpenAI whose chat completions and responses are answered from the cache.

All methods that ask a model send their request by `client.post`, in JSON and with the parser of the answer.
So the wrapped client is a copy of the real one with another `post`; all else of it is the library's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin
from weakref import ref

from ibidem._util.concurrency import context_value
from ibidem.adapter.call import AdapterCache, CachedCall
from ibidem.adapter.model_state import OPERATIONAL, Rules, values_of
from ibidem.adapter.options import AdapterOptions
from ibidem.adapter.provider_fields import zeroed
from ibidem.adapter.streams import split_text
from ibidem.errors import InvalidInput, MissingExtra, NotCacheable
from ibidem.prompts.documents import Message, Prompt, Retrieved, Segment, of_messages
from ibidem.prompts.history import mode_of
from ibidem.prompts.key import PromptContext, QuestionFinder, build_request
from ibidem.provenance import MARKER, remember
from ibidem.scope import require_scope
from ibidem.types import Answer, Document, Hit, Request, require_text

try:
    import httpx
    from openai import AsyncOpenAI, OpenAI
    from openai.lib.streaming.chat import ChatCompletionStreamState
except ModuleNotFoundError as error:
    raise MissingExtra("ibidem.openai", "openai") from error

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

Client = TypeVar("Client", bound=OpenAI | AsyncOpenAI)
Json = dict[str, Any]

_CHAT, _RESPONSES = "/chat/completions", "/responses"
_ADAPTER = "_ibidem"  # where a wrapped client keeps it
_RAW = "x-stainless-raw-response"  # sent by `with_raw_response` and `with_streaming_response`
_ROLES = {"user": "human", "system": "system", "developer": "system", "assistant": "ai"}
_TEXTS = ("text", "input_text", "output_text")
# Headers that are new in each call, trace it, or are the library's.
_NOT_SENT = re.compile(
    r"(?i)(idempotency-key|x-(client-)?request-id|trace(parent|state)|baggage|x-stainless-.*)$"
)
# Who asks and where the provider keeps it: not compared. A Response repeats them with parts of its request
# that may be secret; they are not stored, and a hit repeats its own.
_CALLER = "store user safety_identifier metadata prompt_cache_key prompt_cache_options prompt_cache_retention"
_ECHOED = frozenset(f"{_CALLER} instructions tools tool_choice text reasoning".split())
# How the answer is delivered; the messages are compared by themselves.
_NOT_COMPARED = frozenset(f"{_CALLER} messages input stream stream_options".split())
_PARTS = ("model", "instructions", "tools", "functions")  # of the scope, by themselves
# What the provider keeps, or is to keep; measurements of an answer, sound, and what is on the web today.
_NEVER_CACHED = (
    "previous_response_id conversation background prompt store context_management "
    "logprobs top_logprobs audio web_search_options"
).split()
_OWN_TOOLS = ("function", "custom")  # of the program; those of the provider read what may change, or act
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_EMPTY: dict[str, Json] = {"message": {"content": []}, "function_call": {"arguments": ""}}

# Question and documents of the calls in a block of `call`.
_known: ContextVar[tuple[str, tuple[Document, ...]]] = ContextVar("ibidem_openai_call", default=("", ()))


@contextmanager
def call(*, question: str = "", documents: Sequence[Document] = ()) -> Iterator[None]:
    """Say, for the calls in this block, which part of their prompt is the question and which are documents.

    Args:
        question: The question, as it occurs in the prompt, if it is not all of the user's last message.
        documents: The documents, as they occur there; an answer rests on those that support it.

    Raises:
        InvalidInput: The question is no str, or a document no `ibidem.Document`.
    """
    given = tuple(documents)
    if not all(isinstance(document, Document) for document in given):
        raise InvalidInput("documents must be a sequence of ibidem.Document")
    with context_value(_known, (require_text("question", question), given)):
        yield


def wrap(
    client: Client,
    cache: SemanticCache,
    *,
    namespace: str = "",
    any_message: bool = False,
    semantic: bool = True,
    require_namespace: bool = False,
    history: str | None = None,
) -> Client:
    """Return a copy of the client, with the same connections, which is answered from the cache.

    That is, `create`, `parse` and `stream` of `chat.completions` and `responses`, also of its own copies. All
    else, `with_raw_response` too, goes to OpenAI as ever. Prompts that are more than a question need `call`.

    Args:
        client: An `openai.OpenAI` or `openai.AsyncOpenAI`, also Azure's.
        cache: The open cache. It is not closed with the client.
        namespace: Tenant, user or application, where `ibidem.scope` names none.
        any_message: Whether every line of the user is taken for a question, as in a support chat.
        semantic: Whether reworded questions are answered; else identical requests only.
        require_namespace: Whether only calls whose scope names a namespace are cached.
        history: How the earlier turns of a chat are compared: "exact", not where the last message stands
            alone ("standalone"), by their meaning ("meaning"), or never ("ignore").

    Raises:
        InvalidInput: The client is of another kind, or an option has the wrong type.
    """
    if not isinstance(client, (OpenAI, AsyncOpenAI)):
        raise InvalidInput(f"client must be an openai.OpenAI or AsyncOpenAI, not {type(client).__name__}")
    options = AdapterOptions(namespace, (), "", any_message, semantic, require_namespace, mode_of(history))
    wrapped: Client = _wrapped(client, AdapterCache(cache, "the OpenAI client"), options)
    return wrapped


def faults(client: OpenAI | AsyncOpenAI) -> dict[str, int]:
    """Return, by cause, what failed in the cache of a wrapped client and which calls were not cached."""
    adapter = vars(client).get(_ADAPTER)
    return adapter.faults.counts() if isinstance(adapter, AdapterCache) else {}


def _wrapped(client: Any, adapter: AdapterCache, options: AdapterOptions) -> Any:
    wrapped = copy(client)
    for name, value in list(vars(client).items()):  # resources that the client has made use its own `post`
        if getattr(value, "_client", None) is client:
            delattr(wrapped, name)
    ask, answered = wrapped.post, _aanswered if isinstance(client, AsyncOpenAI) else _answered

    def post(path: str, /, **given: Any) -> Any:
        if not _is_cached(path, given):
            return ask(path, **given)
        return answered(_Exchange(wrapped, adapter, options, path, given), partial(ask, path))

    def duplicate(**given: Any) -> Any:
        return _wrapped(client.copy(**given), adapter, options)

    vars(wrapped).update({"post": post, "copy": duplicate, "with_options": duplicate, _ADAPTER: adapter})
    return wrapped


def _answered(exchange: _Exchange, ask: Callable[..., Any]) -> Any:
    with (cached := exchange.cached):
        if (known := cached.lookup()) is not None:
            return cached.replay(known)
        response = ask(**exchange.observed())
    if exchange.is_stream:
        return _recorded(response, exchange, cached.record)
    cached.store(partial(exchange.whole_answer, response), response)
    return response


async def _aanswered(exchange: _Exchange, ask: Callable[..., Any]) -> Any:
    with (cached := exchange.cached):
        if (known := await cached.alookup()) is not None:
            return cached.replay(known)
        response = await ask(**exchange.observed())
    if exchange.is_stream:
        return _recorded(response, exchange, cached.arecord)
    await cached.astore(partial(exchange.whole_answer, response), response)
    return response


def _is_cached(path: str, given: Json) -> bool:
    """Whether it is a request to a model, and the program wants more than the raw response."""
    headers = (given.get("options") or {}).get("headers") or {}
    is_raw = any(str(name).lower() == _RAW for name in headers)
    return path in (_CHAT, _RESPONSES) and isinstance(given.get("body"), Mapping) and not is_raw


def _recorded(stream: Any, exchange: _Exchange, record: Callable[..., Any]) -> Any:
    """The stream of a model, of either kind, which is stored if it is read to its end."""
    if exchange.cached.request is None:
        return stream

    def close() -> Any:  # does not hold the new stream, whose end, if it is dropped, ends the call
        exchange.cached.abort()
        return stream.close()

    known = ref(kept := copy(stream))
    recorded = record(stream, exchange, lambda stored: remember(known(), stored))
    vars(kept).update(_iterator=recorded, close=close)
    return kept


class _Exchange:
    """One request in JSON, and its answer, which is collected from a response or the chunks of a stream."""

    def __init__(
        self, client: Any, adapter: AdapterCache, options: AdapterOptions, path: str, given: Json
    ) -> None:
        self._client, self._path, self._given, self._adapter_options = client, path, given, options
        self._known, self.is_stream = _known.get(), bool(given.get("stream"))
        self._options: Json = given.get("options") or {}
        self._body: Json = {**given["body"], **(self._options.get("extra_json") or {})}
        self._parser: Callable[[Any], Any] | None = self._options.get("post_parser")
        self._whole: Any = None  # the response before it is parsed
        self._chat = ChatCompletionStreamState() if path == _CHAT else None
        self.cached = CachedCall(adapter, self._request, self._read)

    def observed(self) -> Json:
        """The arguments for the real `post`; what its parser is given is noted."""
        parse = {"post_parser": self._parse} if self._parser else {}
        return {**self._given, "options": {**self._options, **parse}}

    def _parse(self, response: Any) -> Any:
        self._whole = response
        return self._parser(response) if self._parser else response

    def _request(self) -> Request:
        options, body = self._adapter_options, self._body
        scope = require_scope(required=options.require_namespace)
        given = body.get("messages" if self._chat else "input") or ()
        items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        _require_repeatable(body, items)
        prompt, has_only_texts = _prompt(items)
        is_asked = bool(items) and items[-1].get("role") == "user"
        question, given_documents = self._known
        documents = [Retrieved(one.id, one.text, source=one.source) for one in given_documents]
        temperature = body.get("temperature")
        return build_request(
            prompt,
            PromptContext(questions=(question,) if question.strip() else (), documents=documents),
            QuestionFinder(any_message=options.any_message),
            model=self._described(),
            scope=scope,
            namespace=options.namespace,
            exact=not (options.semantic and has_only_texts and is_asked),
            temperature=temperature if isinstance(temperature, (int, float)) else None,
            example=lambda parsed: parsed.masked is not None,
            history=options.history,
        )

    def _described(self) -> dict[str, str]:
        """All that decides the answer, except the messages, without keys, as JSON texts by name."""
        given = (self._options.get("headers") or {}).items()
        headers = {name.lower(): str(value) for name, value in given if not _NOT_SENT.match(name)}
        sent = {"client": self._client, "headers": headers, "params": self._options.get("params")}
        compared = {name: value for name, value in self._body.items() if name not in _NOT_COMPARED}
        parts = {name: {name: compared.pop(name)} for name in _PARTS if name in compared}
        return {
            "adapter": f"openai/1{self._path}",
            "client": json.dumps(values_of(sent, Rules(OPERATIONAL))),
            **{name: json.dumps(values_of(part)) for name, part in parts.items()},
            "parameters": json.dumps(values_of(compared)),
        }

    def add(self, chunk: Any) -> None:
        """Take a chunk of the stream."""
        if self._chat:
            self._chat.handle_chunk(chunk)
        elif hasattr(chunk, "response"):  # the last one is the whole
            self._whole = chunk.response.model_copy(deep=True)

    def answer(self) -> Answer:
        """Make the answer of the stream."""
        if self._chat:
            self._whole = self._chat.current_completion_snapshot
        return self.whole_answer(self._whole)

    def whole_answer(self, response: Any) -> Answer:
        """Make the answer of a response."""
        whole = (self._whole or response).to_dict(mode="json", warnings=False)
        text, finish_reason, acts = (_read_completion if self._chat else _read_response)(whole)
        whole = {name: whole[name] for name in whole if name not in _ECHOED or name not in self._body}
        usage, body = whole.get("usage") or {}, self._body
        form = body.get("response_format") or (body.get("text") or {}).get("format") or {}
        for_programs = body.get("tools") or body.get("functions") or form.get("type", "text") != "text"
        return Answer(
            text,
            payload=json.dumps(whole),
            model=str(whole.get("model") or ""),
            input_tokens=usage.get("prompt_tokens", usage.get("input_tokens")),
            output_tokens=usage.get("completion_tokens", usage.get("output_tokens")),
            finish_reason=finish_reason,
            seconds=self.cached.seconds,
            semantic=not (acts or for_programs),
        )

    def _read(self, hit: Hit) -> Any:
        """Make a response of a hit, or a stream of the library that reads one from memory."""
        whole, client = json.loads(hit.answer.payload), self._client
        usage = zeroed(whole.get("usage") or (_NO_USAGE if self._chat else None))
        whole |= {"usage": usage, "response_metadata": {MARKER: hit.provenance()}}
        if not self._chat:
            whole |= {name: self._body[name] for name in _ECHOED if name in self._body}
        if not self.is_stream:
            return self._parse(self._given["cast_to"].construct(**whole))
        with_usage = bool((self._body.get("stream_options") or {}).get("include_usage"))
        chunks = _chat_chunks(whole, with_usage) if self._chat else _response_events(whole)
        lines = [*(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "data: [DONE]\n\n"]
        request = httpx.Request("POST", str(client.base_url).rstrip("/") + self._path)
        response = httpx.Response(200, content="".join(lines).encode(), request=request)
        stream: Any = get_origin(self._given["stream_cls"])
        (chunk,) = get_args(self._given["stream_cls"])
        return stream(cast_to=chunk, response=response, client=client)


def _prompt(items: Sequence[Json]) -> tuple[Prompt, bool]:
    """The prompt, and whether it is made of texts only."""
    messages: list[Message] = []
    has_only_texts = True
    for item in items:
        segments: list[Segment] = []
        role = _ROLES.get(str(item.get("role")), "tool")
        content, shown = item.get("content"), []
        for part in content if isinstance(content, list) else filter(None, [content]):
            given = {"type": "text", "text": part} if isinstance(part, str) else part
            is_text = given.get("type") in _TEXTS
            has_only_texts &= is_text
            shown.append("text" if is_text else given)
            if is_text:
                segments.append(Segment(role, given["text"]))
        rest = {name: value for name, value in item.items() if name not in ("content", "id", "status")}
        frame = json.dumps(values_of({**rest, "content": shown}))
        # Other fields name a speaker, or call a tool.
        is_plain = {name for name, value in rest.items() if value} <= {"role", "type"}
        is_plain = is_plain and all(part == "text" for part in shown)
        messages.append(Message(role, frame, tuple(segments), is_plain))
    return of_messages(messages, "messages"), has_only_texts


def _require_repeatable(body: Json, items: Sequence[Json]) -> None:
    if name := next(filter(body.get, _NEVER_CACHED), None):
        raise NotCacheable(name, f"an answer to a call with {name} is not repeated")
    if (body.get("n") or 1) != 1:
        raise NotCacheable("n", "a call with n asks for variants of an answer")
    if any(tool.get("type") not in _OWN_TOOLS for tool in body.get("tools") or ()):
        raise NotCacheable("provider_tool", "a tool of the provider reads what may change, or acts")
    if any(item.get("type") == "item_reference" for item in items):
        raise NotCacheable("item_reference", "an item that the provider keeps cannot be compared")


def _read_completion(whole: Json) -> tuple[str, str, bool]:
    """Text and finish reason of a chat completion, and whether a program acts on it."""
    (choice,) = whole["choices"]
    whole["object"], message = "chat.completion", choice["message"]
    message.pop("parsed", None)
    for tool_call in message.get("tool_calls") or ():
        tool_call.pop("index", None)  # only chunks have it
    if message.get("refusal"):
        raise NotCacheable("refusal", "the model refused to answer")
    acts = bool(message.get("tool_calls") or message.get("function_call"))
    return message.get("content") or "", choice.get("finish_reason") or "unfinished", acts


def _read_response(whole: Json) -> tuple[str, str, bool]:
    """The same of a response."""
    parts = [part for item in whole["output"] for part in item.get("content") or ()]
    if any(part.get("type") == "refusal" for part in parts):
        raise NotCacheable("refusal", "the model refused to answer")
    text = "".join(part["text"] for part in parts if part.get("type") == "output_text")
    acts = any(item.get("type") not in ("message", "reasoning") for item in whole["output"])
    return text, str(whole.get("status")), acts


def _chat_chunks(whole: Json, with_usage: bool) -> Iterator[Json]:
    """Split a chat completion into chunks, with those of its usage if they were asked for."""
    (choice,) = whole.pop("choices")
    usage, told = whole.pop("usage"), whole.pop("response_metadata")
    common = {**whole, "object": "chat.completion.chunk", **({"usage": None} if with_usage else {})}

    def chunk(delta: Json, finish_reason: str | None = None) -> Json:
        made = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**common, "choices": [made]}

    message = choice["message"]
    text, calls = message.pop("content", None), message.pop("tool_calls", None) or ()
    yield chunk({**message, "content": None if text is None else ""})
    yield from (chunk({"content": piece}) for piece in split_text(text or ""))
    yield from (chunk({"tool_calls": [{"index": at, **one}]}) for at, one in enumerate(calls))
    yield {**chunk({}, choice["finish_reason"]), "response_metadata": told}
    if with_usage:
        yield {**common, "choices": [], "usage": usage, "response_metadata": told}


def _response_events(whole: Json) -> Iterator[Json]:
    """Split a response into events, as the API streams it."""
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[tuple[str, Json]] = [("created", {"response": begun}), ("in_progress", {"response": begun})]
    for at, item in enumerate(whole["output"]):
        place = {"output_index": at, "item_id": item.get("id") or ""}
        added = {**item, **_EMPTY.get(item["type"], {})}
        events.append(("output_item.added", {"output_index": at, "item": added}))
        for index, part in enumerate(item["content"] if item["type"] == "message" else ()):
            where = {**place, "content_index": index}
            pieces = split_text(part["text"])
            events += [
                ("content_part.added", {**where, "part": {**part, "text": "", "annotations": []}}),
                *(("output_text.delta", {**where, "delta": piece, "logprobs": []}) for piece in pieces),
                ("output_text.done", {**where, "text": part["text"], "logprobs": []}),
                ("content_part.done", {**where, "part": part}),
            ]
        if item["type"] == "function_call":
            done = {**place, "arguments": item["arguments"], "name": item["name"]}
            events.append(("function_call_arguments.delta", {**place, "delta": item["arguments"]}))
            events.append(("function_call_arguments.done", done))
        events.append(("output_item.done", {"output_index": at, "item": item}))
    events.append(("completed", {"response": whole}))
    for number, (name, event) in enumerate(events):
        yield {"type": f"response.{name}", **event, "sequence_number": number}
