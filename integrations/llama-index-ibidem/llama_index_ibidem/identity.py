"""Which model answers, and with which settings: whatever else than the prompt the answer depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM

from ibidem.adapter.model_state import Rules, state_of, values_of
from ibidem.errors import NotCacheable
from ibidem.types import digest

# Settings that change when an answer comes or who pays for it, not what it says.
_OPERATIONAL = frozenset(
    (
        "max_retries timeout request_timeout reuse_client num_workers verbose rate_limiter "
        "callback_manager callbacks show_progress cache tags metadata custom_get_token_ids"
    ).split()
)
# What these do to a prompt is seen in the prompt, or is compared by its effect.
_SEEN_OTHERWISE = frozenset(
    "messages_to_prompt completion_to_prompt output_parser query_wrapper_prompt".split()
)
_RULES = Rules(
    operational=_OPERATIONAL | _SEEN_OTHERWISE,
    ambiguous=frozenset(("tags", "metadata")),
    late_clients=True,
)
# Asked for in such a form, the answer is data for a program.
_FORM = ("response_format", "response_schema", "generation_config", "format", "text")


def identity(llm: LLM, model_id: str = "") -> str:
    """A digest of the model that changes with whatever its answers depend on.

    Args:
        llm: The model.
        model_id: What the caller says of the model beside; then parts of it that cannot be described are
            left out.

    Raises:
        NotCacheable: The model keeps a conversation of its own; or it holds itself.
    """
    if getattr(llm, "track_previous_responses", False):
        raise NotCacheable("stateful_model", "its provider keeps the conversation; prompts are not all of it")
    described = [
        llm.metadata.model_name,
        model_id,
        state_of(llm, _RULES, lenient=bool(model_id)),
        _effect(llm.messages_to_prompt, _conversation),
        _effect(llm.completion_to_prompt, lambda: ["user"]),
    ]
    return digest(json.dumps(described))


def parameters(given: Mapping[str, Any], *, lenient: bool = False) -> str:
    """The arguments of one call in the same manner. Within them order counts: models follow that of a schema.

    Raises:
        NotCacheable: An argument is used up by reading it. With `lenient`, of what can only be compared by
            identity the class alone counts.
    """
    told = {name: given[name] for name in sorted(given) if name not in _OPERATIONAL}
    return json.dumps(values_of(told, _RULES, lenient=lenient))


def asks_for_form(llm: LLM, given: Mapping[str, Any]) -> bool:
    """Whether the answer must have a given form, by the arguments of the call or by the model's settings.

    Tools alone do not say so: the model may still answer in words.
    """
    always = getattr(llm, "additional_kwargs", None)
    settings = {**(always if isinstance(always, Mapping) else {}), **given}
    forced = settings.get("tool_choice") not in (None, "auto", "none")
    return forced or any(map(settings.get, _FORM)) or getattr(llm, "json_mode", False) is True


def _effect(form: Callable[[Any], str] | None, samples: Callable[[], list[Any]]) -> Any:
    """A formatting function, with what it makes of a sample; it may change the sample."""
    if form is None:
        return None
    made = None
    for number in range(len(samples())):
        try:
            made = str(form(samples()[number]))
            break
        except Exception:  # noqa: S112 - templates of some models allow no system message
            continue
    return [values_of({"function": form}, lenient=True), made]


def _conversation() -> list[Any]:
    """Samples of messages, with and without a system message."""
    messages = [
        ChatMessage("system", role=MessageRole.SYSTEM),
        ChatMessage("user", role=MessageRole.USER),
        ChatMessage("assistant", role=MessageRole.ASSISTANT),
    ]
    return [messages, messages[1:]]
