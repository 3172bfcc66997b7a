"""From a call of a LlamaIndex model to the request that the core compares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate, PromptType

from ibidem.prompts.documents import find_positions, occurs_at
from ibidem.prompts.key import build_request, parse
from ibidem.prompts.masking import ParsedPrompt
from ibidem.prompts.prompt import Prompt
from ibidem.prompts.question import PromptContext, QuestionFinder
from ibidem.scope import require_scope
from ibidem.types import Request
from llama_index_ibidem.facts import Filled
from llama_index_ibidem.identity import asks_for_form, identity, parameters
from llama_index_ibidem.prompt import of_messages, of_text
from llama_index_ibidem.spans import (
    Surroundings,
    documents_of,
    recent_documents,
    surroundings,
)
from llama_index_ibidem.steps import answers_user

# Evaluators have a statement judged, in the place of a question: "answer with either YES or NO".
_VERDICT = re.compile(r"(?s)\A(?>.*?\bYES\b).*\bNO\b")
_VARIABLE = re.compile(r"\{[^{}]*\}")
LONGEST_TEXT = 4096  # characters; a longer text is no question
# Templates whose answers are read by people, or become part of one that is. The others make queries, choices
# and triplets: data for a program, right for the very same prompt only.
_ANSWERING = frozenset(
    (
        PromptType.SUMMARY,
        PromptType.QUESTION_ANSWER,
        PromptType.REFINE,
        PromptType.SIMPLE_INPUT,
        PromptType.SQL_RESPONSE_SYNTHESIS,
        PromptType.SQL_RESPONSE_SYNTHESIS_V2,
        PromptType.CONVERSATION,
        PromptType.DECOMPOSE,
        PromptType.CUSTOM,
    )
)


class RequestBuilder:
    """Builds requests for one model or synthesizer. Stateless."""

    def __init__(
        self,
        namespace: str,
        question_keys: Sequence[str],
        *,
        model_id: str = "",
        semantic: bool = True,
        any_message: bool = False,
        require_namespace: bool = False,
    ) -> None:
        self.namespace, self.model_id, self.semantic = namespace, model_id, semantic
        self._required = require_namespace
        self._questions = QuestionFinder(question_keys, any_message=any_message)

    def of_chat(self, llm: LLM, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Request:
        """The request for `llm.chat(messages, **given)`.

        Raises:
            NotCacheable: Something that the answer depends on cannot be compared.
        """
        return self._build(llm, of_messages(messages), given)

    def of_completion(self, llm: LLM, prompt: str, formatted: bool, given: Mapping[str, Any]) -> Request:
        """The request for `llm.complete(prompt, formatted, **given)`.

        Raises:
            NotCacheable: As above.
        """
        return self._build(llm, of_text(prompt, formatted=formatted), given)

    def is_question(self, said: str) -> bool:
        """Whether a line that no template vouches for is taken for a question."""
        return self._questions.is_question(said)

    def parse(self, prompt: Prompt, around: Surroundings) -> ParsedPrompt:
        """Split the prompt into its parts; the whole is the question if only a program reads the answer."""
        filled = _made_with(around, prompt)
        exact = around.step or not _is_for_people(filled)
        return parse(prompt, _context(around, filled), self._questions, exact=exact)

    def _build(self, llm: LLM, prompt: Prompt, given: Mapping[str, Any]) -> Request:
        scope = require_scope(required=self._required)
        exact = not self.semantic or llm.output_parser is not None or asks_for_form(llm, given)
        described = ("llama_index/1", identity(llm, self.model_id), parameters(given))
        around = surroundings()
        filled = _made_with(around, prompt)
        return build_request(
            prompt,
            _context(around, filled),
            self._questions,
            model=described,
            scope=scope,
            namespace=self.namespace,
            exact=exact or around.step or not _is_for_people(filled),
            temperature=temperature_of(llm, given),
            # Of a synthesis this may be one call of many; whoever sees the whole answer tells of it.
            example=lambda parsed: around.synthesis is None and answers_user(parsed, prompt, around),
        )


def temperature_of(llm: LLM, given: Mapping[str, Any]) -> float | None:
    """The temperature at which the model samples; None if unknown."""
    found = given.get("temperature", getattr(llm, "temperature", None))
    return float(found) if isinstance(found, (int, float)) else None


def _is_for_people(filled: Filled | None) -> bool:
    """Whether the answer is to be read, as far as the template tells."""
    if filled is None:
        return True
    template = filled.template
    kind = template.metadata.get("prompt_type", PromptType.CUSTOM)
    verdict = any(_VERDICT.search(text) for text in _texts(template))
    return not (filled.structured or template.output_parser or verdict) and kind in _ANSWERING


def _made(template: BasePromptTemplate, prompt: Prompt) -> bool:
    """Whether the template made the prompt. Its functions may ask the model as well, while it is filled."""
    if not template.function_mappings:
        return True
    said = "\n".join(segment.text for segment in prompt.segments)
    pieces = {piece.strip() for text in _texts(template) for piece in _VARIABLE.split(text)} - {""}
    positions = find_positions(said, pieces)
    return all(occurs_at(said, piece, positions, whole_words=False) for piece in pieces)


def _texts(template: BasePromptTemplate) -> list[str]:
    if isinstance(template, PromptTemplate):
        return [template.template]
    if isinstance(template, ChatPromptTemplate):
        return [message.content or "" for message in template.message_templates]
    return ["\0"]  # a kind whose texts are not known: no prompt holds this


def _made_with(around: Surroundings, prompt: Prompt) -> Filled | None:
    """Return the filled template around the call, if it made the prompt."""
    return around.filled if around.filled and _made(around.filled.template, prompt) else None


def _context(around: Surroundings, filled: Filled | None) -> PromptContext:
    """Collect what is known of a prompt, which the template `filled` made, if any."""
    named = _named_texts(filled) if filled else None
    synthesis = around.synthesis
    return PromptContext(
        named,
        frozenset((named or {}).values()),
        around.asked,
        questions=(synthesis.question,) if synthesis else (),
        documents=[*(synthesis.documents if synthesis else ()), *documents_of(around.run)],
        recent=recent_documents,
        values=around.filled.variables if around.filled else None,
        few_shot=around.shown,
    )


def _named_texts(filled: Filled) -> dict[str, str]:
    """Return the texts that filled the template, by variable."""
    given = {name: value for name, value in filled.variables.items() if isinstance(value, str)}
    named = {name: value for name, value in given.items() if len(value) <= LONGEST_TEXT}
    # A template may call the question otherwise than LlamaIndex does.
    mapped = filled.template.template_var_mappings or {}
    return named | {str(mapped[name]): value for name, value in named.items() if name in mapped}
