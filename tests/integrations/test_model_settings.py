"""Every field of the partner packages' models: another request has another key, the same request the same key.

The models are real and so are their requests, to a server that refuses them all. A field is changed when the
model is made, by assignment and by copy, before the model is first called and after.
"""

from __future__ import annotations

import contextlib
import json
import re
import socketserver
import ssl
import threading
import typing
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage

from langchain_ibidem.callers import Caller
from langchain_ibidem.keys import RequestBuilder
from langchain_ibidem.tracker import Tracker

ASKED = "What is the capital of France?"
BUILDER = RequestBuilder(Tracker().memory, "", ())
Json = dict[str, Any]


class Refusing(BaseHTTPRequestHandler):
    """Notes a request and says no."""

    requests: typing.ClassVar[list[Json]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.requests.append(
            {
                "path": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "body": json.loads(body or b"{}"),
            }
        )
        said = b'{"error": {"message": "no", "type": "invalid_request_error", "code": 400}, "message": "no"}'
        self.send_response(400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST

    def log_message(self, *args: Any) -> None:
        """Not on the screen."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


# Secrets, and what clients say of themselves and of this very request.
UNSEEN = re.compile(
    r"^(authorization|x-api-key|api-key|x-goog-api-key|x-amz-.*|amz-sdk-.*|user-agent|x-stainless-.*|host|"
    r"content-length|connection|accept.*|content-type|x-goog-api-client|traceparent|x-client-.*|expect)$"
)
IN_PIECES = re.compile(r"-with-response-stream|-stream$|alt=sse&?")


def sent(model: Any) -> str | None:
    """The request of a call, but for secrets and for whether the answer comes in pieces; None if none is made."""
    Refusing.requests.clear()
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.invoke(ASKED)
    posts = [request for request in Refusing.requests if "chat/completions" in request["path"] or request["body"]]
    if not posts:
        return None
    request = posts[-1]
    body = {k: v for k, v in request["body"].items() if k not in ("stream", "stream_options")}
    path = IN_PIECES.sub("", request["path"]).replace(":streamGenerate", ":generate").rstrip("?")
    headers = {k: v for k, v in request["headers"].items() if not UNSEEN.match(k)}
    return json.dumps([path, headers, body], sort_keys=True)


def key(model: Any, stop: list[str] | None = None, **parameters: Any) -> str:
    """As LangChain asks for it."""
    caller = Caller.of(model, None, parameters, stop)
    if isinstance(model, BaseChatModel):
        shown = model._get_llm_string(stop=stop, **parameters)
        return BUILDER.build(dumps([HumanMessage(ASKED)]), shown, caller).key
    shown = str(sorted({**model._dict_for_compat(), "stop": stop}.items()))
    return BUILDER.build(ASKED, shown, caller).key


def openai(url: str) -> dict[str, Any]:
    import langchain_openai as package

    given = {"api_key": "k", "model": "m", "base_url": f"{url}/v1", "max_retries": 0}
    azure = {k: v for k, v in given.items() if k not in ("base_url", "model")}
    azure |= {"azure_endpoint": url, "azure_deployment": "d", "api_version": "1"}
    return {
        "ChatOpenAI": (package.ChatOpenAI, given),
        "OpenAI": (package.OpenAI, given),
        "AzureChatOpenAI": (package.AzureChatOpenAI, azure),
    }


def anthropic(url: str) -> dict[str, Any]:
    import langchain_anthropic as package

    given = {"api_key": "k", "model": "m", "base_url": url, "max_retries": 0}
    return {
        "ChatAnthropic": (package.ChatAnthropic, given),
        "AnthropicLLM": (package.AnthropicLLM, given),
    }


def ollama(url: str) -> dict[str, Any]:
    import langchain_ollama as package

    given = {"model": "m", "base_url": url}
    return {"ChatOllama": (package.ChatOllama, given), "OllamaLLM": (package.OllamaLLM, given)}


def google(url: str) -> dict[str, Any]:
    import langchain_google_genai as package

    given = {"model": "m", "api_key": "k", "base_url": url, "max_retries": 1}
    return {
        "ChatGoogleGenerativeAI": (package.ChatGoogleGenerativeAI, given),
        "GoogleGenerativeAI": (package.GoogleGenerativeAI, given),
    }


def groq(url: str) -> dict[str, Any]:
    import langchain_groq as package

    return {
        "ChatGroq": (package.ChatGroq, {"model": "m", "api_key": "k", "base_url": url, "max_retries": 0})
    }


def mistral(url: str) -> dict[str, Any]:
    import langchain_mistralai as package

    given = {"model": "m", "api_key": "k", "endpoint": f"{url}/v1", "max_retries": 1}
    return {"ChatMistralAI": (package.ChatMistralAI, given)}


def huggingface(url: str) -> dict[str, Any]:
    import langchain_huggingface as package

    given = {"endpoint_url": url, "huggingfacehub_api_token": "k"}
    endpoint = package.HuggingFaceEndpoint
    return {
        "HuggingFaceEndpoint": (endpoint, given),
        "ChatHuggingFace": (package.ChatHuggingFace, {"llm": endpoint(**given), "model_id": "m/m"}),
    }


def aws(url: str) -> dict[str, Any]:
    import langchain_aws as package

    given = {
        "region_name": "us-east-1",
        "aws_access_key_id": "x",
        "aws_secret_access_key": "y",
        "endpoint_url": url,
        "model": "anthropic.claude-3-sonnet-20240229-v1:0",
    }
    return {
        "ChatBedrock": (package.ChatBedrock, given),
        "ChatBedrockConverse": (package.ChatBedrockConverse, given),
        "BedrockLLM": (package.BedrockLLM, {**given, "model": "amazon.titan-text-express-v1"}),
    }


PACKAGES = (openai, anthropic, ollama, google, groq, mistral, huggingface, aws)


# values -----------------------------------------------------------------------------------------------

# What is not to be guessed from the type of a field.
SPECIAL: dict[str, Any] = {
    "metadata": {"a": 1},
    "tags": ["a"],
    "profile": {"max_input_tokens": 9},
    "output_version": "v1",
    "reasoning": {"effort": "high"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "thinking_config": {"thinking_budget": 9},
    "logit_bias": {"1": 2},
    "n": 2,
    "region_name": "eu-west-1",
    "http_socket_options": [],
    "safety_settings": {"HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"},
    "response_modalities": ["TEXT"],
    "media_resolution": "MEDIA_RESOLUTION_LOW",
    "client_args": {"headers": {"x-a": "b"}},
    "client_kwargs": {"headers": {"x-a": "b"}},
    "sync_client_kwargs": {"headers": {"x-b": "b"}},
    "default_query": {"a": "b"},
    "default_headers": {"x-a": "b"},
    "additional_headers": {"x-a": "b"},
    "system": ["Be brief."],
    "raw_blocks": [{"text": "x"}],
    "guardrails": {"guardrailIdentifier": "g", "guardrailVersion": "1", "trace": True},
    "guardrail_config": {"guardrailIdentifier": "g", "guardrailVersion": "1"},
    "extra_body": {"a": 1},
    "model_kwargs": {"a": 1},
    "container": "c",
    "custom_get_token_ids": len,
    "count_tokens": len,
    "temperature": 0.3,
}


def address(url: str) -> str:
    return f"{url}/elsewhere"


def values(name: str, kind: Any, default: Any, url: str) -> Any:
    """Another value for a field."""
    if name in SPECIAL:
        return SPECIAL[name]
    if re.search(r"base_url|api_base|api_url|endpoint|server_url|_host$", name) and "validate" not in name:
        return address(url)
    for one in (kind, *typing.get_args(kind)):
        origin = typing.get_origin(one)
        if origin is typing.Literal:
            return next(each for each in typing.get_args(one) if each not in (default, ""))
        if one is bool:
            return not default
        if one is int:
            return (default or 0) + 3
        if one is float:
            return (default or 0) / 2 + 0.25
        if one is str:
            return "other"
        if origin in (list,) or str(origin).endswith("Sequence'>"):
            return ["x"]
        if origin is dict or one is dict or str(origin).endswith("Mapping'>"):
            return {"a": "b"}
        if inner := typing.get_args(one):
            for each in inner:
                if (found := values("", each, default, url)) is not None:
                    return found
    return None
