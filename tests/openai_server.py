"""A real HTTP server on loopback that answers as the OpenAI API does, with answers that a test can foretell.

It speaks `POST /v1/chat/completions`, `POST /v1/completions` and `POST /v1/responses`, whole and streamed.
Any other POST is a 404.
Every answer closes its connection, so that a client that nobody closes leaves no open socket behind.
"""

from __future__ import annotations

import contextlib
import json
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
#: What comes before the pieces of an answer's text, the pieces, and what comes after them.
Stream = tuple[list[Json], list[Json], list[Json]]

CREATED = 1_700_000_000
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True)
class Answer:
    """What the model says to request `number`: a text, or a call of `tool` with `text` as its arguments."""

    number: int
    model: str
    text: str
    tool: str | None
    finish_reason: str

    def pieces(self) -> list[str]:
        """The text as it is streamed: word by word; the arguments of a tool call in two halves."""
        half = len(self.text) // 2
        in_halves = [self.text[:half], self.text[half:]]
        return re.findall(r"\s*\S+|\s+", self.text) if self.tool is None else in_halves


class OpenAIServer:
    """The server; `running_openai` starts one.

    The n-th completion request since the start or `reset` is answered `answer {n}`. One with tools is
    answered with a call of the first tool, or of the forced one, until a tool's result follows the last user
    message; then, if some tool is required, with a call of the last. One with a JSON schema is answered with
    the smallest instance of it, one that asks for any JSON with an object.
    """

    def __init__(self) -> None:
        #: Every POST so far: its path, its decoded body, its headers in lower case.
        self.requests: list[Json] = []
        self._number = 0
        self._failures: list[int] = []
        self._breaks: list[tuple[int, str]] = []
        self._lock = threading.Lock()
        self.gate, self.stream_gate = threading.Event(), threading.Event()
        self.renew()
        self._listener = _Listener(("127.0.0.1", 0), _Handler)
        self._listener.openai = self
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}/v1"

    def renew(self) -> None:
        """As a new server: no requests, no faults to come, no settings; answers that wait are given."""
        #: Makes the text of an answer from the body of the request.
        self.say: Callable[[Json], str] | None = None
        #: Whether requests with tools are answered with tool calls.
        self.call_tools = True
        #: Why answers end, in the words of chat completions, instead of `stop` and `tool_calls`.
        self.finish_reason: str | None = None
        #: Seconds before each answer.
        self.delay = 0.0
        #: Answers wait until it is set, as it is from the beginning; what has come is in `requests` before.
        self.gate.set()
        #: After so many pieces of its text a stream waits for `stream_gate`, which is set from the beginning.
        self.hold_streams_after: int | None = None
        self.stream_gate.set()
        self.reset()

    @property
    def count(self) -> int:
        """How many completion requests have come, those that were made to fail included."""
        return self._number

    def reset(self) -> None:
        """Forget all requests and all faults to come; `say` and the other settings stay."""
        with self._lock:
            self._number = 0
            for waiting in (self.requests, self._failures, self._breaks):
                waiting.clear()

    def fail_next(self, status: int = 500, times: int = 1) -> None:
        """Answer the next requests with an error. Clients retry most of them unless `max_retries=0`."""
        with self._lock:
            self._failures += [status] * times

    def break_stream_after(self, pieces: int, *, politely: bool = False) -> None:
        """End the next stream after so many pieces of its text, with no finish reason and no `[DONE]`.

        The connection is dropped, which clients notice; `politely`, the body just ends, which they do not.
        """
        with self._lock:
            self._breaks.append((pieces, "ended" if politely else "dropped"))

    def fail_stream_after(self, pieces: int) -> None:
        """Let the next stream tell of an error after so many pieces of its text, as overloaded servers do."""
        with self._lock:
            self._breaks.append((pieces, "error"))

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def _receive(self, request: Json) -> tuple[int, int | None, tuple[int, str] | None]:
        """The request's number, the status to fail it with, and how to break it if it is a stream."""
        with self._lock:
            self.requests.append(request)
            if request["path"] not in _PATHS:
                return 0, 404, None
            self._number += 1
            failure = self._failures.pop(0) if self._failures else None
            streams = failure is None and request["body"].get("stream")
            return self._number, failure, self._breaks.pop(0) if streams and self._breaks else None

    def _answer(self, number: int, body: Json) -> Answer:
        question, tool_answered = _turn(body)
        schema, function = _answer_schema(body), _function(body, tool_answered)
        tool = None
        if function is not None and self.call_tools:
            tool, words = function["name"], re.findall(r"\w+", question) or ["x"]
            text = json.dumps(instance(function.get("parameters") or {"type": "object"}, words[-1]))
        elif self.say is not None:
            text = self.say(body)
        elif schema is not None:
            text = json.dumps(instance(schema, f"answer {number}"))
        elif (body.get("response_format") or {}).get("type") == "json_object":
            text = json.dumps({"answer": f"answer {number}"})
        else:
            text = f"answer {number}"
        reason = self.finish_reason or ("stop" if tool is None else "tool_calls")
        return Answer(number, body["model"], text, tool, reason)


@contextlib.contextmanager
def running_openai() -> Iterator[OpenAIServer]:
    """A running server, stopped at the end."""
    server = OpenAIServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def instance(schema: Json, string: str, root: Json | None = None) -> Any:
    """The smallest value that fits a JSON schema: `string` for every string, and only what is required."""
    root = schema if root is None else root
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return instance({**root.get("definitions", {}), **root.get("$defs", {})}[name], string, root)
    for keyword in ("anyOf", "oneOf", "allOf", "enum"):
        if keyword in schema:
            first = schema[keyword][0]
            return first if keyword == "enum" else instance(first, string, root)
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: instance(properties[name], string, root) for name in schema.get("required", ())}
    if kind == "array":
        return [instance(schema["items"], string, root) for _ in range(schema.get("minItems", 0))]
    plain = {"integer": 1, "number": 1.0, "boolean": True, "null": None}
    return schema.get("const", plain.get(kind, string))


def _turn(body: Json) -> tuple[str, bool]:
    """The last user message, and whether a tool's result follows it."""
    question, tool_answered = "", False
    for message in body["messages"]:
        if message["role"] == "user":
            content = message["content"]
            parts = [{"text": content}] if isinstance(content, str) else content
            question, tool_answered = " ".join(part.get("text", "") for part in parts), False
        elif message["role"] == "tool":
            tool_answered = True
    return question, tool_answered


def _function(body: Json, tool_answered: bool) -> Json | None:
    """The function that a request with tools asks to call; with a tool's result only if it must be one."""
    choice = body.get("tool_choice")
    offered = [tool["function"] for tool in body.get("tools") or ()]
    if not offered or choice == "none" or (tool_answered and choice != "required"):
        return None
    if tool_answered:
        return offered[-1]
    forced = choice["function"]["name"] if isinstance(choice, dict) else None
    return next((function for function in offered if function["name"] == forced), offered[0])


def _answer_schema(body: Json) -> Json | None:
    """The JSON schema that a request wants its answer to have."""
    wanted = (body.get("response_format") or {}).get("json_schema")
    return wanted and wanted["schema"]


def _text_completion(number: int, body: Json, finish_reason: str) -> Json:
    """The answer to all prompts of a request for completions; each names its prompt."""
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    choices = [
        {
            "index": index,
            "text": f"answer {number} to {prompt}",
            "finish_reason": finish_reason,
            "logprobs": None,
        }
        for index, prompt in enumerate(prompts)
    ]
    common = {"id": f"cmpl-{number}", "object": "text_completion", "created": CREATED, "usage": USAGE}
    return {**common, "model": body["model"], "choices": choices}


def _text_chunks(whole: Json) -> Stream:
    """The completion of one prompt as a stream: word by word, then the finish reason."""
    (choice,) = whole["choices"]

    def chunk(text: str, finish_reason: str | None = None) -> Json:
        return {**whole, "choices": [{**choice, "text": text, "finish_reason": finish_reason}], "usage": None}

    words = re.findall(r"\s*\S+|\s+", choice["text"])
    return [], [chunk(word) for word in words], [chunk("", choice["finish_reason"])]


def _completion(answer: Answer) -> Json:
    """A whole chat completion."""
    message: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
    if answer.tool is not None:
        function = {"name": answer.tool, "arguments": answer.text}
        message["tool_calls"] = [{"id": f"call_{answer.number}", "type": "function", "function": function}]
        message["content"] = None
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {**_chunk(answer, [choice]), "object": "chat.completion", "usage": USAGE}


def _chunks(answer: Answer, include_usage: bool) -> Stream:
    """A streamed chat completion."""

    def chunk(delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _chunk(answer, [choice])

    def call(function: Json, **named: str) -> Json:
        return chunk({"tool_calls": [{"index": 0, **named, "function": function}]})

    head = [chunk({"role": "assistant", "content": "" if answer.tool is None else None, "refusal": None})]
    pieces = [chunk({"content": piece}) for piece in answer.pieces()]
    if answer.tool is not None:
        named = {"id": f"call_{answer.number}", "type": "function"}
        head.append(call({"name": answer.tool, "arguments": ""}, **named))
        pieces = [call({"arguments": piece}) for piece in answer.pieces()]
    tail = [chunk({}, answer.finish_reason)]
    if include_usage:
        for one in (*head, *pieces, *tail):
            one["usage"] = None
        tail.append({**_chunk(answer, []), "usage": USAGE})
    return head, pieces, tail


def _chunk(answer: Answer, choices: list[Json]) -> Json:
    common = {"id": f"chatcmpl-{answer.number}", "object": "chat.completion.chunk", "created": CREATED}
    return {**common, "model": answer.model, "system_fingerprint": "fp_ibidem", "choices": choices}


def _as_chat(body: Json) -> Json:
    """A request for a response as one for a chat completion."""
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    results = ("function_call_output", "custom_tool_call_output")
    messages = [{"role": "tool"} if item.get("type") in results else {"role": None, **item} for item in items]
    format_ = (body.get("text") or {}).get("format") or {}
    tools = [{"type": "function", "function": tool} for tool in body.get("tools") or ()]
    wanted = {"type": format_.get("type"), "json_schema": format_} if "schema" in format_ else format_
    return {**body, "messages": messages, "tools": tools, "response_format": wanted}


def _response(answer: Answer, body: Json) -> Json:
    """A whole response, which repeats what it was asked with."""
    item: Json = {"id": f"msg_{answer.number}", "status": "completed", "type": "message", "role": "assistant"}
    item["content"] = [{"type": "output_text", "text": answer.text, "annotations": []}]
    if answer.tool is not None:
        item = {"id": f"fc_{answer.number}", "status": "completed", "type": "function_call"}
        item |= {"call_id": f"call_{answer.number}", "name": answer.tool, "arguments": answer.text}
    status = "completed" if answer.finish_reason in ("stop", "tool_calls") else "incomplete"
    usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    told = {name: body.get(name) for name in ("instructions", "metadata", "user", "temperature")}
    asked = {"tools": body.get("tools") or [], "tool_choice": "auto", "parallel_tool_calls": True, **told}
    common = {"id": f"resp_{answer.number}", "object": "response", "created_at": CREATED, "status": status}
    return {**common, "model": answer.model, "output": [item], "usage": {**usage, **details}, **asked}


def _response_events(answer: Answer, body: Json) -> Stream:
    """A streamed response."""
    whole = _response(answer, body)
    (item,) = whole["output"]
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    place = {"output_index": 0, "item_id": item["id"]}
    if answer.tool is None:
        place["content_index"] = 0
        (part,) = item["content"]
        kind, empty, last = "output_text", {**item, "content": []}, {"text": answer.text, "logprobs": []}
        added = [("content_part.added", {**place, "part": {**part, "text": ""}})]
        done = [("content_part.done", {**place, "part": part})]
    else:
        kind, empty, added, done = "function_call_arguments", {**item, "arguments": ""}, [], []
        last = {"arguments": answer.text, "name": answer.tool}
    head = [("created", {"response": begun}), ("in_progress", {"response": begun})]
    head += [("output_item.added", {"output_index": 0, "item": empty}), *added]
    pieces = [(f"{kind}.delta", {**place, "delta": piece, "logprobs": []}) for piece in answer.pieces()]
    tail = [(f"{kind}.done", {**place, **last}), *done]
    tail += [("output_item.done", {"output_index": 0, "item": item})]
    tail += [(whole["status"], {"response": whole})]
    numbered = iter(range(len(head) + len(pieces) + len(tail)))

    def events(named: list[tuple[str, Json]]) -> list[Json]:
        return [
            {"type": f"response.{name}", **event, "sequence_number": next(numbered)} for name, event in named
        ]

    return events(head), events(pieces), events(tail)


class _Listener(ThreadingHTTPServer):
    openai: OpenAIServer
    request_queue_size = 128

    def server_bind(self) -> None:
        """Bind without asking the name service who 127.0.0.1 is, as `HTTPServer` does."""
        socketserver.TCPServer.server_bind(self)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Answer, fail or break off, as the server is told to."""
        openai = self.server.openai
        path, body = self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        number, failure, broken = openai._receive({"path": path, "body": body, "headers": headers})
        openai.gate.wait(20)
        time.sleep(openai.delay)
        with contextlib.suppress(ConnectionError):  # a client may leave at any time
            if failure is not None:
                kind = "server_error" if failure >= 500 else "invalid_request_error"
                error = {"message": f"error {failure}", "type": kind, "param": None, "code": None}
                self._send_json(failure, {"error": error})
                return
            if "prompt" in body:
                whole = _text_completion(number, body, openai.finish_reason or "stop")
                if body.get("stream"):
                    self._send_stream(_text_chunks(whole), broken)
                else:
                    self._send_json(200, whole)
                return
            if "input" in body:
                answer = openai._answer(number, _as_chat(body))
                if body.get("stream"):
                    self._send_stream(_response_events(answer, body), broken)
                else:
                    self._send_json(200, _response(answer, body))
                return
            answer = openai._answer(number, body)
            if body.get("stream"):
                options = body.get("stream_options") or {}
                self._send_stream(_chunks(answer, options.get("include_usage", False)), broken)
            else:
                self._send_json(200, _completion(answer))

    def _send_json(self, status: int, answer: Json) -> None:
        data = json.dumps(answer).encode()
        self._send_head(status, "application/json", "Content-Length", str(len(data)))
        self.wfile.write(data)

    def _send_stream(self, stream: Stream, broken: tuple[int, str] | None) -> None:
        head, pieces, tail = stream
        self._send_head(200, "text/event-stream", "Transfer-Encoding", "chunked")
        count, how = broken or (len(pieces), "")
        for event in head:
            self._send_event(event)
        for number, event in enumerate(pieces[:count]):
            if number == self.server.openai.hold_streams_after:
                self.server.openai.stream_gate.wait(20)
            self._send_event(event)
        if how == "error":
            self._send_event({"error": {"message": "overloaded", "type": "server_error", "code": None}})
        if not how:
            for event in tail:
                self._send_event(event)
            self._send_chunk("data: [DONE]\n\n")
        if how != "dropped":
            self._send_chunk("")  # the end of the body

    def _send_event(self, event: Json) -> None:
        self._send_chunk(f"data: {json.dumps(event)}\n\n")

    def _send_chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _send_head(self, status: int, kind: str, *framing: str) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), framing, ("Connection", "close")):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing on stderr."""
