"""From LangChain's prompt and model strings to the request that the core compares."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence

from ibidem.errors import NotCacheable
from ibidem.prompts.dissection import dissect, exactly
from ibidem.prompts.prompt import Prompt
from ibidem.prompts.questions import Clues, QuestionFinder
from ibidem.prompts.sources import Occurrence, Retrieved, occurring
from ibidem.request import Request
from langchain_ibidem.memory import Memory, Render
from langchain_ibidem.prompt import parse

# Parameters that tell one model from another.
_NAMING = re.compile(r"model|deployment|engine|repo|endpoint|responses")
_PARAMETER = re.compile(r"\('(\w+)', ")

# Settings that change when an answer comes, not what it says.
_OPERATIONAL = ("max_retries", "timeout", "request_timeout", "default_request_timeout")
# A class shows its name but not its fields, an object its address: neither says what the model was told.
_OPAQUE = re.compile(r"<class '| at 0x[0-9a-fA-F]+>")
# An answer in a given form is data for a program: "almost the same question" is not good enough for it.
_STRUCTURED = re.compile(
    r"""['"](response_format|response_schema|response_json_schema|output_format|output_config)['"]"""
    r"""|\('format', [{']"""
)
_TEMPERATURE = re.compile(r"""["']temperature["'][:,]\s*(\d+(?:\.\d+)?)""")


class RequestBuilder:
    """Builds requests for one cache. Stateless but for what `memory` holds."""

    def __init__(
        self,
        memory: Memory,
        namespace: str,
        question_keys: Sequence[str],
        *,
        model_id: str = "",
        semantic: bool = True,
        any_message: bool = False,
    ) -> None:
        self._memory = memory
        self._namespace = namespace
        self._model_id, self._semantic = model_id, semantic
        self._questions = QuestionFinder(question_keys, any_message=any_message)

    def build(self, prompt: str | Prompt, llm_string: str, known: Sequence[Retrieved] = ()) -> Request:
        """The request for a call of the model that `llm_string` describes with `prompt`.

        Args:
            prompt: As LangChain hands it to a cache, or taken apart.
            llm_string: As LangChain hands it to a cache.
            known: Documents that the caller knows to stand in the prompt.

        Raises:
            NotCacheable: `llm_string` does not say all that the answer depends on.
        """
        if not (self._model_id or _names_its_model(llm_string)):
            raise NotCacheable(
                "model_unknown",
                "LangChain's description of this model does not say which one it is; give the model a cache "
                "of its own: model.cache = IbidemCache(cache, model_id='its name and settings')",
            )
        if _OPAQUE.search(llm_string):
            raise NotCacheable(
                "opaque_parameters",
                "the model's parameters hold a Python object, so a change of it would go unnoticed; for "
                'structured output pass a JSON schema, or use method="function_calling"',
            )
        parsed = parse(prompt) if isinstance(prompt, str) else prompt
        render = self._memory.render_of(parsed.fingerprint)
        documents = self._documents(parsed, render, known)
        if self._semantic and parsed.known and not _STRUCTURED.search(llm_string):
            questions = self._questions.find(parsed, _clues(render), documents)
            dissection = dissect(parsed, documents, questions, render.shown if render else None)
        else:
            dissection = exactly(parsed, documents)
        described = ("langchain/1", self._model_id, model_identity(llm_string))
        return dissection.request(
            *described, namespace=self._namespace, temperature=temperature_of(llm_string)
        )

    def _documents(
        self, prompt: Prompt, render: Render | None, known: Sequence[Retrieved]
    ) -> list[Occurrence]:
        of_run = [*render.documents, *self._memory.documents_of(render.run)] if render else []
        return occurring(
            prompt, [*known, *of_run], self._memory.recent_documents, render.named if render else None
        )


def _clues(render: Render | None) -> Clues:
    return Clues(render.named, render.texts, render.asked) if render else Clues()


def _names_its_model(llm_string: str) -> bool:
    """Whether `llm_string` says which model it is; some only name their provider."""
    if not llm_string.startswith("["):
        return True
    try:
        names = [name for name, _ in ast.literal_eval(llm_string)]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        names = _PARAMETER.findall(llm_string)
    return any(map(_NAMING.search, names))


def temperature_of(llm_string: str) -> float | None:
    """The temperature at which the model samples, the highest if the call gives another; None if unknown."""
    return max(map(float, _TEMPERATURE.findall(llm_string)), default=None)


def model_identity(llm_string: str) -> str:
    """`llm_string` without the settings that do not influence the answer."""
    if not llm_string.startswith("{"):
        return llm_string
    try:
        model, end = json.JSONDecoder().raw_decode(llm_string)
    except ValueError:
        return llm_string
    if isinstance(parameters := model.get("kwargs"), dict):
        for name in _OPERATIONAL:
            parameters.pop(name, None)
    return json.dumps(model, sort_keys=True) + llm_string[end:]
