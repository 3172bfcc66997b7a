"""Build the request that the core compares from a call of a LlamaIndex model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate, PromptType

from ibidem.adapter.options import AdapterOptions
from ibidem.prompts.documents import Prompt, find_positions, occurs_at
from ibidem.prompts.key import ParsedPrompt, PromptContext, QuestionFinder, build_request, parse
from ibidem.scope import require_scope
from ibidem.types import Document, Request
from llama_index_ibidem.facts import FilledTemplate
from llama_index_ibidem.identity import asks_for_format, identity, parameters
from llama_index_ibidem.messages import chat_prompt, completion_prompt
from llama_index_ibidem.spans import SpanContext, span_watcher

# Evaluators ask for a verdict on a statement: "answer with either YES or NO".
_VERDICT = re.compile(r"(?s)\A(?>.*?\bYES\b).*\bNO\b")
_VARIABLE = re.compile(r"\{[^{}]*\}")
_LONGEST_QUESTION = 4096  # characters; a longer text is not a question
# Templates whose answers are read by people, or become part of one that is. The others make queries, choices
# and triplets: data for a program, only right for exactly the same prompt.
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
# A turn of a conversation in a text, as LlamaIndex's chat engines write it.
_EARLIER_ANSWER = re.compile(
    r"(?msi)^(?:assistant|ai):.*?(?=^(?:user|human|assistant|ai|system|tool):|\n\s*\n|\Z)"
)


class RequestBuilder:
    """Builds the requests of one model. Stateless."""

    def __init__(self, options: AdapterOptions) -> None:
        self.options = options
        self._questions = QuestionFinder(options.question_keys, any_message=options.any_message)

    def of_chat(self, llm: LLM, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Request:
        """Build the request for `llm.chat(messages, **given)`.

        Raises:
            NotCacheable: Something that the answer depends on cannot be compared.
        """
        return self._build(llm, chat_prompt(messages), given)

    def of_completion(self, llm: LLM, prompt: str, formatted: bool, given: Mapping[str, Any]) -> Request:
        """Build the request for `llm.complete(prompt, formatted, **given)`.

        Raises:
            NotCacheable: As above.
        """
        return self._build(llm, completion_prompt(prompt, formatted=formatted), given)

    def is_question(self, text: str) -> bool:
        """Return whether a text that no template vouches for is taken for a question."""
        return self._questions.is_question(text)

    def parse(self, prompt: Prompt, context: SpanContext) -> ParsedPrompt:
        """Split a prompt into its parts; the whole is the question if only a program reads the answer."""
        template = _template_of(prompt, context)
        exact = context.step or not _is_for_people(template)
        return parse(prompt, _prompt_context(context, template), self._questions, exact=exact)

    def _build(self, llm: LLM, prompt: Prompt, given: Mapping[str, Any]) -> Request:
        options, scope = self.options, require_scope(required=self.options.require_namespace)
        exact = not options.semantic or llm.output_parser is not None or asks_for_format(llm, given)
        described = ("llama_index/1", identity(llm, options.model_id), parameters(given))
        context = span_watcher.context()
        template = _template_of(prompt, context)
        return build_request(
            prompt,
            _prompt_context(context, template),
            self._questions,
            model=described,
            scope=scope,
            namespace=options.namespace,
            exact=exact or context.step or not _is_for_people(template),
            temperature=temperature_of(llm, given),
            # Of a synthesis this may be one call of many: the whole answer is the example.
            example=lambda parsed: context.synthesis is None and answers_user(parsed, prompt, context),
        )


def answers_user(parsed: ParsedPrompt, prompt: Prompt, context: SpanContext) -> bool:
    """Return whether a call answers the user: the question is all that the user said, or there are documents.

    Other calls are steps: rewriting a question, choosing a tool.
    """
    if parsed.masked is None or context.step:
        return False
    whole = parsed.question.strip() == prompt.last_human.strip()
    return whole or _occur_outside_history(parsed.documents, prompt, context)


def _occur_outside_history(documents: Sequence[Document], prompt: Prompt, context: SpanContext) -> bool:
    """Return whether any document is not only quoted by an earlier answer, as in a question to condense."""
    said = "\0".join(segment.text for segment in prompt.segments if segment.role != "ai")
    for name, value in (context.template.variables if context.template else {}).items():
        if "history" in name and isinstance(value, str) and value.strip():
            said = said.replace(value.strip(), "\0")
    said = _EARLIER_ANSWER.sub("\0", said)
    positions = find_positions(said, (document.text for document in documents))
    return any(occurs_at(said, document.text, positions, whole_words=False) for document in documents)


def temperature_of(llm: LLM, given: Mapping[str, Any]) -> float | None:
    """Return the temperature at which the model samples; None if unknown."""
    found = given.get("temperature", getattr(llm, "temperature", None))
    return float(found) if isinstance(found, (int, float)) else None


def _is_for_people(filled: FilledTemplate | None) -> bool:
    """Return whether people read the answer, as far as the template tells."""
    if filled is None:
        return True
    template = filled.template
    kind = template.metadata.get("prompt_type", PromptType.CUSTOM)
    verdict = any(_VERDICT.search(text) for text in _texts(template))
    return not (filled.structured or template.output_parser or verdict) and kind in _ANSWERING


def _made(template: BasePromptTemplate, prompt: Prompt) -> bool:
    """Return whether a template made the prompt: its functions may call the model as well, to fill it."""
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


def _template_of(prompt: Prompt, context: SpanContext) -> FilledTemplate | None:
    """Return the template around the call, if it made the prompt."""
    filled = context.template
    return filled if filled and _made(filled.template, prompt) else None


def _prompt_context(context: SpanContext, template: FilledTemplate | None) -> PromptContext:
    """Collect what is known of a prompt that `template` made, if any."""
    named = _named_texts(template) if template else None
    synthesis = context.synthesis
    return PromptContext(
        named,
        frozenset((named or {}).values()),
        context.asked,
        questions=(synthesis.question,) if synthesis else (),
        documents=[*(synthesis.documents if synthesis else ()), *span_watcher.retrieved.of_run(context.run)],
        recent=span_watcher.retrieved.recent,
        values=context.template.variables if context.template else None,
        few_shot=context.few_shot,
    )


def _named_texts(filled: FilledTemplate) -> dict[str, str]:
    """Return the texts that filled a template, by variable."""
    given = {name: value for name, value in filled.variables.items() if isinstance(value, str)}
    named = {name: value for name, value in given.items() if len(value) <= _LONGEST_QUESTION}
    # A template may have its own names for LlamaIndex's variables.
    mapped = filled.template.template_var_mappings or {}
    return named | {str(mapped[name]): value for name, value in named.items() if name in mapped}
