"""Every field of the partner packages' models: another request has another key, the same one the same.

The models are real and so are their requests, to a server that refuses them all. A field is changed when the
model is made, by assignment and by copy, before the model is first called and after.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import ssl
import threading
import types
import typing
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import LLM

from langchain_ibidem.cache import RequestBuilder
from langchain_ibidem.call import ModelCall
from langchain_ibidem.tracking import Tracker
from llama_index_ibidem.request import identity

ASKED = "What is the capital of France?"
BUILDER = RequestBuilder(Tracker())
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


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Clients read certificates and the descriptions of services once, not for each model."""
    import botocore.httpsession
    import botocore.loaders

    loader = botocore.loaders.create_loader()
    logging.disable(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patched:
        for owner, name in (
            (ssl, "create_default_context"),
            (botocore.httpsession, "create_urllib3_context"),
        ):
            patched.setattr(owner, name, lru_cache(getattr(owner, name)))
        patched.setattr(botocore.loaders, "create_loader", lambda *_: loader)
        yield
    logging.disable(logging.NOTSET)


# Secrets, what clients say of themselves and of this very request, and how long they would wait.
UNSEEN = re.compile(
    r"^(authorization|x-api-key|api-key|x-goog-api-key|x-amz.*|amz-sdk-.*|user-agent|x-stainless-.*|host|"
    r"content-length|connection|accept.*|content-type|x-goog-api-client|traceparent|expect|x-server-timeout|"
    r"cache-control)$"
)
IN_PIECES = re.compile(r"-with-response-stream|-stream$|alt=sse&?")


def sent(model: Any) -> str | None:
    """The request of a call, but for secrets and whether the answer comes in pieces; None if none is made."""
    Refusing.requests.clear()
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(model, "invoke"):
            model.invoke(ASKED)
        else:
            model.chat([ChatMessage(ASKED)])
    posts = [request for request in Refusing.requests if request["body"]]
    if not posts:
        return None
    request = posts[-1]
    body = {k: v for k, v in request["body"].items() if k not in ("stream", "stream_options")}
    if isinstance(body.get("prompt"), list) and len(body["prompt"]) == 1:  # of OpenAI's, if not in pieces
        (body["prompt"],) = body["prompt"]
    path = IN_PIECES.sub("", request["path"]).replace(":streamGenerate", ":generate").rstrip("?")
    headers = {k: v for k, v in request["headers"].items() if not UNSEEN.match(k)}
    return json.dumps([path, headers, body], sort_keys=True)


def key(model: Any, stop: list[str] | None = None, **parameters: Any) -> str:
    """As the adapter asks for it."""
    if isinstance(model, LLM):
        return identity(model)
    caller = ModelCall(model, None, parameters, stop)
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

    return {"ChatGroq": (package.ChatGroq, {"model": "m", "api_key": "k", "base_url": url, "max_retries": 0})}


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


def llama_index(url: str) -> dict[str, Any]:
    from llama_index.llms.openai import OpenAI

    given = {"model": "gpt-4o", "api_key": "k", "api_base": f"{url}/v1", "max_retries": 0}
    return {"LlamaIndex": (OpenAI, given)}


PACKAGES = (openai, anthropic, ollama, google, groq, mistral, huggingface, aws, llama_index)


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
    "model_kwargs": {"user": "u"},
    "cache": False,
    "verbose": True,
    "context_management": {"edits": []},
    "mcp_servers": [{"type": "url", "url": "http://a", "name": "a"}],
    "performance_config": {"latency": "optimized"},
    "output_config": {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{}"}}}},
    "response_schema": {"type": "object"},
    "image_config": {"aspect_ratio": "1:1"},
    "callbacks": [],
    "container": "c",
    "custom_get_token_ids": len,
    "count_tokens": len,
    "temperature": 0.3,
}


# What a field that has a value of its own in one class.
OF_CLASS: dict[tuple[str, str], Any] = {
    ("LlamaIndex", "model"): "gpt-4o-mini",
    ("LlamaIndex", "additional_kwargs"): {"user": "u"},
    ("ChatOpenAI", "context_management"): [{"type": "compaction"}],
    ("AzureChatOpenAI", "context_management"): [{"type": "compaction"}],
    ("ChatOllama", "reasoning"): True,
    ("OllamaLLM", "reasoning"): True,
    ("ChatBedrock", "model_kwargs"): {"top_k": 3},
    ("BedrockLLM", "model_kwargs"): {"topP": 0.5},
    ("ChatAnthropic", "output_config"): {"effort": "low"},
    ("ChatHuggingFace", "model_kwargs"): {"tool_prompt": "x"},
    ("HuggingFaceEndpoint", "model_kwargs"): {"details": True},
    ("ChatAnthropic", "model_kwargs"): {"metadata": {"user_id": "u"}},
    ("AnthropicLLM", "model_kwargs"): {"metadata": {"user_id": "u"}},
}


def another(name: str, kind: Any, default: Any, url: str) -> Any:
    """Another value for a field; None if there is none to guess."""
    if name in SPECIAL:
        return SPECIAL[name]
    if re.search(r"base_url|api_base|api_url|endpoint|server_url|_host$", name) and "validate" not in name:
        return f"{url}/elsewhere"
    return next((found for one in _kinds(kind) if (found := _of_kind(one, default)) is not None), None)


def _kinds(kind: Any) -> Iterator[Any]:
    """The alternatives of a union."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        for each in typing.get_args(kind):
            yield from _kinds(each)
    else:
        yield kind


def _of_kind(kind: Any, default: Any) -> Any:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return next((each for each in typing.get_args(kind) if each not in (default, "")), None)
    number = default if isinstance(default, (int, float)) else 0
    values: dict[Any, Any] = {bool: not default, int: number + 3, float: number / 2 + 0.25, str: "other"}
    if origin in values:
        return values[origin]
    if origin in (list, Sequence):
        return ["x"]
    return {"a": "b"} if origin in (dict, Mapping) else None


# what is compared -------------------------------------------------------------------------------------

# Fields that count though the request to this server is the same, by the reason.
NOT_SENT = frozenset(
    (
        # how the answer is read: the message is another one
        "output_version include_response_headers provider_stop_reason_key_map "
        # the way there: a proxy, a region beside an address, a provider beside a URL
        "openai_proxy anthropic_proxy groq_proxy region_name location project provider inference_server_url "
        # only with other messages, tools or models than those of this test
        "disabled_params reuse_last_container convert_system_message_to_human guardrails stop_sequences "
        "provider_stop_sequence_key_name_map base_model_id request_metadata service_tier reasoning_effort "
        "media_resolution model_version openai_api_type system_prompt_with_tools supports_tool_choice_values "
        "system_prompt strict "
        # which the package takes and forgets
        "server_kwargs task frequency_penalty presence_penalty logit_bias logprobs top_logprobs seed top_p "
        "model_kwargs api_version client_args image_config include_thoughts labels response_modalities "
        "thinking_budget"
    ).split()
)
# Fields that make the client: set later they count, and so does what the client was made with.
OF_CLIENTS = re.compile(
    r"base_url|api_base|api_url|endpoint|headers|query|organization|client_kwargs|client_args|api_version"
    r"|deployment_name|vertexai|location|project"
)
INNER_CLIENT = ("GoogleGenerativeAI",)  # makes another model of its fields, which it asks


Row = tuple[str, str, str, str | None]


def rows(name: str, kind: Any, given: dict[str, Any], url: str) -> Iterator[Row]:
    """Field, how it was changed, key and request."""
    fresh, used = kind(**given), kind(**given)
    assert key(fresh) == key(used)
    before = sent(used)
    assert key(fresh) == key(used), "the first call has changed the key"
    yield "", "", key(used), before
    for field, about in kind.model_fields.items():
        default = used.__dict__.get(field)
        value = OF_CLASS.get((name, field)) or another(field, about.annotation, default, url)
        if value is None:
            continue
        others = {k: v for k, v in given.items() if k not in (field, about.alias)}
        try:
            made = kind(**{**others, field: value})
        except Exception:  # it fits no other settings
            continue
        yield field, "made", key(made), sent(made)
        held = made.__dict__[field]
        for base, when in ((fresh, "before"), (used, "after")):
            assigned = base.model_copy()
            setattr(assigned, field, held)
            yield field, f"assigned {when}", key(assigned), sent(assigned)
            copied = base.model_copy(update={field: held})
            yield field, f"copied {when}", key(copied), sent(copied)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_field_of_every_model(package: Any, url: str) -> None:
    """Another request never has the same key; the same request has it, but for what is said above."""
    for name, (kind, given) in package(url).items():
        found = list(rows(name, kind, given, url))
        requests = defaultdict(set)
        for field, how, made, request in found:
            if request is not None:
                requests[made].add((request, f"{field} {how}"))
        for alike in requests.values():
            assert len({request for request, _ in alike}) == 1, (name, sorted(how for _, how in alike))
        (_, _, key_before, before), *changed = found
        lost = {
            f"{name}.{field} {how}"
            for field, how, made, request in changed
            if request == before
            and made != key_before
            and field not in NOT_SENT
            and (how == "made" or not (OF_CLIENTS.search(field) or name in INNER_CLIENT))
        }
        assert lost == set()
        assert len({field for field, *_ in found}) > 15
