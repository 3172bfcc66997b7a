"""What the answers of a synthesizer depend on beside question and nodes: model, templates and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MethodType
from typing import Any

from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.types import BaseOutputParser

from ibidem.errors import NotCacheable
from llama_index_ibidem.few_shot import selected_by
from llama_index_ibidem.identity import identity, parameters
from llama_index_ibidem.llm import CachedLLM

# Settings of synthesizers that change how they work, not what comes out.
_OPERATIONAL = frozenset("use_async verbose streaming empty_response callback_manager llm".split())


def description(synthesizer: BaseSynthesizer, model_id: str, given: Mapping[str, Any]) -> str:
    """Everything that the answer depends on, but for question and nodes; `given` are arguments of the call.

    Raises:
        NotCacheable: Something of it cannot be compared.
    """
    llm, kind = synthesizer._llm, type(synthesizer)
    own = {name.lstrip("_"): _unbound(value, synthesizer) for name, value in vars(synthesizer).items()}
    settings = {
        name: _setting(value, llm, model_id) for name, value in own.items() if name not in _OPERATIONAL
    }
    if own.get("output_cls") is not None:  # streams of forms are texts
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


def asks_no_model(synthesizer: BaseSynthesizer) -> bool:
    """Whether it only collects what was retrieved."""
    return isinstance(synthesizer, (ContextOnly, NoText))


def is_for_programs(synthesizer: BaseSynthesizer) -> bool:
    """Whether the answer is parsed: such a text fits the very same question only."""
    prompts = synthesizer.get_prompts().values()
    return _parser(synthesizer._llm) is not None or any(prompt.output_parser for prompt in prompts)


def _unbound(value: Any, owner: object) -> Any:
    """A method of the synthesizer as the function that it is."""
    return value.__func__ if isinstance(value, MethodType) and value.__self__ is owner else value


def _setting(value: Any, llm: LLM, model_id: str) -> Any:
    if isinstance(value, BasePromptTemplate):
        return _template(value, llm)
    return _model(value, model_id) if isinstance(value, LLM) else value


def _template(prompt: BasePromptTemplate, llm: LLM) -> dict[str, Any]:
    functions = {name: selected_by(each) for name, each in (prompt.function_mappings or {}).items()}
    if None in functions.values():
        raise NotCacheable(
            "function_mappings", "what a template's functions will say is not known; use CachedLLM"
        )
    return {
        **({"examples": functions} if functions else {}),
        "template": prompt.get_template(llm=llm),
        "variables": prompt.kwargs,
        "names": prompt.template_var_mappings,
        "parser": _asks_for(prompt.output_parser),
    }


def _model(llm: LLM, model_id: str) -> str:
    """The model, and what it does to prompts. A form that it must fill counts as well."""
    if isinstance(llm, StructuredLLM):
        form = parameters({"form": llm.output_cls})
        return json.dumps([_model(llm.llm, model_id), form])
    wrapper = llm.query_wrapper_prompt
    around = _template(wrapper, llm) if wrapper is not None else None
    prompting = parameters({"wrapper": around, "parser": _asks_for(_parser(llm))})
    return json.dumps(
        [llm.identity(model_id) if isinstance(llm, CachedLLM) else identity(llm, model_id), prompting]
    )


def _parser(llm: LLM) -> BaseOutputParser | None:
    return _parser(llm.llm) if isinstance(llm, StructuredLLM) else llm.output_parser


def _asks_for(parser: BaseOutputParser | None) -> list[str] | None:
    """A parser by its class, and by what it adds to prompts."""
    return None if parser is None else [type(parser).__qualname__, parser.format("")]
