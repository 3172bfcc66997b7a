"""Identify models and synthesizers: everything that an answer depends on besides prompt and documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.types import BaseOutputParser

from ibidem.adapter.model_state import OPERATIONAL, Rules, function_state, state_of, values_of
from ibidem.errors import NotCacheable
from ibidem.types import digest
from llama_index_ibidem.delegation import DelegatingLLM
from llama_index_ibidem.few_shot import selected_by

# Settings that do not change what an answer says, but when it comes or who pays for it.
_OPERATIONAL = OPERATIONAL | frozenset("reuse_client num_workers show_progress".split())
# The effect of these is seen in the prompt, or on a sample of it.
_BY_EFFECT = frozenset("messages_to_prompt completion_to_prompt output_parser query_wrapper_prompt".split())
_RULES = Rules(
    operational=_OPERATIONAL | _BY_EFFECT,
    ambiguous=frozenset(("tags", "metadata")),
    late_clients=True,
)
# Arguments that ask for a response format: the answer is data for a program.
_FORMATS = ("response_format", "response_schema", "generation_config", "format", "text")
# Settings of synthesizers that do not change the answer.
_OF_SYNTHESIS = frozenset("use_async verbose streaming empty_response callback_manager llm".split())


def identity(llm: LLM, model_id: str = "") -> str:
    """Hash a model with everything that its answers depend on.

    Args:
        llm: The model.
        model_id: Identifies the model for the caller; then parts of it that cannot be described are left
            out.

    Raises:
        NotCacheable: The model keeps a conversation of its own, or it contains itself.
    """
    if getattr(llm, "track_previous_responses", False):
        raise NotCacheable(
            "stateful_model", "its provider keeps the conversation, so prompts lack a part of it"
        )
    described = [
        llm.metadata.model_name,
        model_id,
        state_of(llm, _RULES, lenient=bool(model_id)),
        _effect(llm.messages_to_prompt, _conversation),
        _effect(llm.completion_to_prompt, lambda: ["user"]),
    ]
    return digest(json.dumps(described))


def parameters(given: Mapping[str, Any], *, lenient: bool = False) -> str:
    """Describe the arguments of a call. Order counts within them: models follow that of a schema.

    Raises:
        NotCacheable: An argument is used up by reading it. With `lenient`, only the class counts of what can
            only be compared by identity.
    """
    told = {name: given[name] for name in sorted(given) if name not in _OPERATIONAL}
    return json.dumps(values_of(told, _RULES, lenient=lenient))


def asks_for_format(llm: LLM, given: Mapping[str, Any]) -> bool:
    """Return whether the arguments of a call or the model's settings ask for a response format.

    Tools alone do not: the model may still answer in words.
    """
    always = getattr(llm, "additional_kwargs", None)
    settings = {**(always if isinstance(always, Mapping) else {}), **given}
    forced = settings.get("tool_choice") not in (None, "auto", "none")
    return forced or any(map(settings.get, _FORMATS)) or getattr(llm, "json_mode", False) is True


def _effect(form: Callable[[Any], str] | None, samples: Callable[[], list[Any]]) -> Any:
    """Describe a formatting function, with its result for a sample, which it may change."""
    if form is None:
        return None
    made = None
    for number in range(len(samples())):
        try:
            made = str(form(samples()[number]))
            break
        except Exception:  # noqa: S112 - templates of some models allow no system message
            continue
    return [{"function": function_state(form)}, made]


def _conversation() -> list[Any]:
    """Return samples of messages, with and without a system message."""
    messages = [
        ChatMessage("system", role=MessageRole.SYSTEM),
        ChatMessage("user", role=MessageRole.USER),
        ChatMessage("assistant", role=MessageRole.ASSISTANT),
    ]
    return [messages, messages[1:]]


def synthesizer_identity(synthesizer: BaseSynthesizer, model_id: str, given: Mapping[str, Any]) -> str:
    """Describe everything that an answer depends on besides question and nodes.

    Args:
        synthesizer: The synthesizer.
        model_id: As for `identity`.
        given: The arguments of the call.

    Raises:
        NotCacheable: Something cannot be compared.
    """
    llm, kind = synthesizer._llm, type(synthesizer)
    own = {name.lstrip("_"): _unbound(value, synthesizer) for name, value in vars(synthesizer).items()}
    settings = {
        name: _setting(value, llm, model_id) for name, value in own.items() if name not in _OF_SYNTHESIS
    }
    if own.get("output_cls") is not None:  # structured streams are texts
        settings["streams"] = own.get("streaming")
    prompts = {name: _template(prompt, llm) for name, prompt in synthesizer.get_prompts().items()}
    described = [
        f"{kind.__module__}.{kind.__qualname__}",
        _model(llm, model_id),
        parameters(settings, lenient=bool(model_id)),
        parameters(prompts),
        parameters(given),
    ]
    return json.dumps(described)


def calls_no_model(synthesizer: BaseSynthesizer) -> bool:
    """Return whether a synthesizer only collects what was retrieved."""
    return isinstance(synthesizer, (ContextOnly, NoText))


def has_output_parser(synthesizer: BaseSynthesizer) -> bool:
    """Return whether the answer is parsed: then it is only right for exactly the same question."""
    prompts = synthesizer.get_prompts().values()
    return _parser(synthesizer._llm) is not None or any(prompt.output_parser for prompt in prompts)


def _unbound(value: Any, owner: object) -> Any:
    """Return the function of a method of the synthesizer itself."""
    return value.__func__ if isinstance(value, MethodType) and value.__self__ is owner else value


def _setting(value: Any, llm: LLM, model_id: str) -> Any:
    if isinstance(value, BasePromptTemplate):
        return _template(value, llm)
    return _model(value, model_id) if isinstance(value, LLM) else value


def _template(prompt: BasePromptTemplate, llm: LLM) -> dict[str, Any]:
    functions = {name: selected_by(each) for name, each in (prompt.function_mappings or {}).items()}
    if None in functions.values():
        raise NotCacheable(
            "function_mappings", "the results of a template's functions are not known; use CachedLLM"
        )
    return {
        **({"examples": functions} if functions else {}),
        "template": prompt.get_template(llm=llm),
        "variables": prompt.kwargs,
        "names": prompt.template_var_mappings,
        "parser": _parser_identity(prompt.output_parser),
    }


def _model(llm: LLM, model_id: str) -> str:
    """Describe a model, its effect on prompts, and its output class."""
    if isinstance(llm, StructuredLLM):
        form = parameters({"form": llm.output_cls})
        return json.dumps([_model(llm.llm, model_id), form])
    wrapper = llm.query_wrapper_prompt
    around = _template(wrapper, llm) if wrapper is not None else None
    prompting = parameters({"wrapper": around, "parser": _parser_identity(_parser(llm))})
    return json.dumps(
        [llm.identity(model_id) if isinstance(llm, DelegatingLLM) else identity(llm, model_id), prompting]
    )


def _parser(llm: LLM) -> BaseOutputParser | None:
    return _parser(llm.llm) if isinstance(llm, StructuredLLM) else llm.output_parser


def _parser_identity(parser: BaseOutputParser | None) -> list[str] | None:
    """Describe a parser by its class, and by what it adds to prompts."""
    return None if parser is None else [type(parser).__qualname__, parser.format("")]
