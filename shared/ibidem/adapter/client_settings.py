"""What a provider's client adds to requests: address, headers and the like, as it was made with them.

A model may keep the client that it made from its settings when these are changed later, so the settings
alone do not say what is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ibidem.adapter.object_identity import Watch

# Attributes of the clients of openai, anthropic, groq, httpx, ollama, google-genai, botocore and
# huggingface_hub that say where a request goes, or that become part of it.
_ADDRESS = ("_base_url", "base_url", "_endpoint_url")
_HEADERS = ("_custom_headers", "_headers", "headers")
_OTHERS = frozenset(
    (
        "_custom_query _params organization project location vertexai api_version _api_version "
        "_azure_deployment model provider bill_to _extra_body extra_body"
    ).split()
)
_INNER = ("_client", "_api_client", "_httpx_client", "_http_options", "meta")
_DEPTH = 3
# Set by the libraries themselves: they differ from version to version.
_OF_LIBRARIES = re.compile(
    r"(?i)^(accept|accept-encoding|connection|content-type|user-agent|x-goog-api-client|x-stainless-.*)$"
)
# Where langchain-aws has botocore add the headers of a model.
_SENDING = tuple(
    f"before-send.bedrock-runtime.{call}"
    for call in ("Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream")
)
_MADE_BY_HTTPX = frozenset(("BasicAuth", "FunctionAuth", "NetRCAuth"))


def settings_of(client: Any, watch: Watch, depth: int = _DEPTH) -> dict[str, Any]:
    """Address, headers and other settings that the client holds, which are noted in `watch`.

    Empty if it is of an unknown kind.
    """
    held = getattr(client, "__dict__", None)
    if not isinstance(held, dict) or not depth:
        return {}
    watch.mapping(held)
    found: dict[str, Any] = {}
    for name in _INNER:
        if (inner := held.get(name)) is not None:
            found = {**settings_of(inner, watch, depth - 1), **found}
    for name in _ADDRESS:
        if address := _address(held.get(name)):
            found["address"] = address
    for name in _HEADERS:
        if given := headers_of(held.get(name), watch):
            found["headers"] = {**found.get("headers", {}), **given}
    found |= {name: held[name] for name in _OTHERS if name in held and _tells(held[name])}
    return dict(sorted((found | _of_httpx(held, watch) | _of_botocore(client, watch)).items()))


def _address(value: Any) -> str:
    """A URL as text, of whatever class it is."""
    known = isinstance(value, str) or type(value).__name__ in ("URL", "Url", "HttpUrl", "AnyUrl")
    return str(value).rstrip("/") if known else ""


def headers_of(value: Any, watch: Watch) -> dict[str, str]:
    """Headers without those that the libraries set themselves, by names in lower case."""
    if not isinstance(value, Mapping):
        return {}
    inside = getattr(value, "_list", value)  # of httpx
    watch.sequence(inside) if isinstance(inside, list) else watch.mapping(inside)
    given = {str(name).lower(): str(text) for name, text in value.items()}
    return {name: text for name, text in sorted(given.items()) if not _OF_LIBRARIES.match(name)}


def _tells(value: Any) -> bool:
    """Whether it is a setting that was given: clients have other things under such names as well."""
    return bool(value) and isinstance(value, (str, int, float, Mapping))


def _of_httpx(held: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """What is called for each request, but for what httpx makes of user names and passwords."""
    found: dict[str, Any] = {}
    auth = held.get("_auth")
    if auth is not None and type(auth).__name__ not in _MADE_BY_HTTPX:
        found["auth"] = auth
    if isinstance(hooks := held.get("_event_hooks"), dict):
        watch.mapping(hooks)
        for each in hooks.values():
            watch.sequence(each)
        if any(hooks.values()):
            found["hooks"] = dict(hooks)
    return found


def _of_botocore(meta: Any, watch: Watch) -> dict[str, Any]:
    """What is called before a request is sent, and the headers that langchain-aws has added there.

    These are those of the model that the client was made for, of which another model may be a copy.
    """
    if not type(meta).__module__.startswith("botocore.") or not hasattr(meta, "events"):
        return {}

    def registered() -> list[Any]:
        handlers = meta.events._emitter._handlers
        return [each for event in _SENDING for each in handlers.prefix_search(event)]

    hooks = registered()
    headers: dict[str, str] = {}
    watch.add(lambda: registered() == hooks)
    for cell in (cell for hook in hooks for cell in getattr(hook, "__closure__", None) or ()):
        if (owner := getattr(cell.cell_contents, "__dict__", {})).get("default_headers"):
            watch.mapping(owner)
            headers |= headers_of(owner["default_headers"], watch)
    return {"hooks": hooks, "headers": headers} if hooks else {}
