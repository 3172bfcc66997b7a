"""Build the request that the core compares from a call of a LlamaIndex model: prompt, model and arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from io import IOBase
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate, PromptType
from pydantic import BaseModel

from ibidem.adapter.model_state import OPERATIONAL, Rules, function_state, state_of, values_of
from ibidem.adapter.options import AdapterOptions
from ibidem.errors import NotCacheable
from ibidem.prompts.documents import (
    Message,
    Ordinals,
    Prompt,
    Segment,
    find_positions,
    occurs_at,
    of_messages,
)
from ibidem.prompts.key import ParsedPrompt, PromptContext, QuestionFinder, build_request, parse
from ibidem.scope import require_scope
from ibidem.types import Document, Request, digest
from llama_index_ibidem.spans import FilledTemplate, SpanContext, span_watcher

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
_ROLES = {
    MessageRole.USER: "human",
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "ai",
    MessageRole.CHATBOT: "ai",
    MessageRole.MODEL: "ai",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "function",
}
# Bookkeeping of an earlier call that no model sees.
_NOT_SEEN = frozenset(
    "prompt_tokens completion_tokens total_tokens usage token_usage logprobs parsed".split()
)
# Settings that do not change what an answer says, but when it comes or who pays for it.
OPERATIONAL_SETTINGS = OPERATIONAL | frozenset("reuse_client num_workers show_progress".split())
# The effect of these is seen in the prompt, or on a sample of it.
_BY_EFFECT = frozenset("messages_to_prompt completion_to_prompt output_parser query_wrapper_prompt".split())
RULES = Rules(
    operational=OPERATIONAL_SETTINGS | _BY_EFFECT,
    ambiguous=frozenset(("tags", "metadata")),
    late_clients=True,
)
# Arguments that ask for a response format: the answer is data for a program.
_FORMATS = ("response_format", "response_schema", "generation_config", "format", "text")


class RequestBuilder:
    """Builds the requests of one model. Stateless."""

    def __init__(self, options: AdapterOptions) -> None:
        self.options = options
        self.questions = QuestionFinder(options.question_keys, any_message=options.any_message)

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

    def parse(self, prompt: Prompt, context: SpanContext) -> ParsedPrompt:
        """Split a prompt into its parts; the whole is the question if only a program reads the answer."""
        template = _template_of(prompt, context)
        exact = context.step or not _is_for_people(template)
        return parse(prompt, _prompt_context(context, template), self.questions, exact=exact)

    def _build(self, llm: LLM, prompt: Prompt, given: Mapping[str, Any]) -> Request:
        options, scope = self.options, require_scope(required=self.options.require_namespace)
        exact = not options.semantic or llm.output_parser is not None or _asks_for_format(llm, given)
        described = {"adapter": "llama_index/1", "model": identity(llm, options.model_id)}
        described["parameters"] = parameters({name: given[name] for name in given if name != "tools"})
        if given.get("tools"):
            described["tools"] = parameters({"tools": given["tools"]})
        context = span_watcher.context()
        template = _template_of(prompt, context)
        return build_request(
            prompt,
            _prompt_context(context, template),
            self.questions,
            model=described,
            scope=scope,
            namespace=options.namespace,
            exact=exact or context.step or not _is_for_people(template),
            temperature=_temperature(llm, given),
            # Of a synthesis this may be one call of many: the whole answer is the example.
            example=lambda parsed: context.synthesis is None and answers_user(parsed, prompt, context),
            history=options.history,
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


def _temperature(llm: LLM, given: Mapping[str, Any]) -> float | None:
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


def _has_examples(template: BasePromptTemplate, context: SpanContext) -> bool:
    """Return whether a template holds answers of a model; chat engines make one of the turns each time."""
    messages = template.message_templates if isinstance(template, ChatPromptTemplate) else ()
    return "ChatEngine" not in (context.run or "") and any(_ROLES[one.role] == "ai" for one in messages)


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
        searched=span_watcher.retrieved.queries_of(context.run),
        turns=frozenset() if template and _has_examples(template.template, context) else None,
    )


def _named_texts(filled: FilledTemplate) -> dict[str, str]:
    """Return the texts that filled a template, by variable."""
    given = {name: value for name, value in filled.variables.items() if isinstance(value, str)}
    named = {name: value for name, value in given.items() if len(value) <= _LONGEST_QUESTION}
    # A template may have its own names for LlamaIndex's variables.
    mapped = filled.template.template_var_mappings or {}
    return named | {str(mapped[name]): value for name, value in named.items() if name in mapped}


# The prompt.


def chat_prompt(messages: Sequence[ChatMessage]) -> Prompt:
    """Convert the messages of a chat model.

    Raises:
        NotCacheable: A message holds something that cannot be compared.
    """
    ordinals = Ordinals()
    return of_messages([_message(message, ordinals) for message in messages], "chat")


def completion_prompt(prompt: str, *, formatted: bool) -> Prompt:
    """Convert the prompt of a completion endpoint; the model formats an unformatted one itself."""
    return Prompt("complete, formatted" if formatted else "complete", (Segment("human", prompt),))


def _message(message: ChatMessage, ordinals: Ordinals) -> Message:
    segments = list[Segment]()
    frame = _frame(message, ordinals, segments)
    is_plain = frame.keys() == {"role", "blocks"} and all(block == "text" for block in frame["blocks"])
    shown = json.dumps(frame, sort_keys=True, default=_refuse)
    return Message(_ROLES[message.role], shown, tuple(segments), is_plain)


def _frame(message: ChatMessage, ordinals: Ordinals, segments: list[Segment]) -> dict[str, Any]:
    """Return all that the model sees of a message except its texts, which are appended to `segments`."""
    role = _ROLES[message.role]
    blocks = [_block(block, role, ordinals, segments) for block in message.blocks]
    extras = {key: value for key, value in message.additional_kwargs.items() if key not in _NOT_SEEN}
    if any(isinstance(block, ToolCallBlock) for block in message.blocks):
        extras.pop("tool_calls", None)  # a copy of the blocks
    frame: dict[str, Any] = {"role": message.role.value, "blocks": blocks}
    if own := {name: value for name, value in message if name not in ChatMessage.model_fields}:
        frame["own"] = own
    if (answers := extras.pop("tool_call_id", None)) is not None:
        frame["answers"] = ordinals.of(answers)
    if calls := extras.pop("tool_calls", None):
        frame["calls"] = [_raw_call(call, ordinals) for call in calls]
    if extras := {key: value for key, value in extras.items() if value is not None}:
        frame["extras"] = extras
    return frame


def _block(block: BaseModel, role: str, ordinals: Ordinals, segments: list[Segment]) -> Any:
    if isinstance(block, TextBlock):
        segments.append(Segment(role, block.text))
        return "text"
    if isinstance(block, ToolCallBlock):
        return {"call": block.tool_name, "args": block.tool_kwargs, "number": ordinals.of(block.tool_call_id)}
    return _media(block)


def _media(block: BaseModel) -> dict[str, Any]:
    """Describe an image, a file or a thought. A file given by its path counts with its content."""
    if any(isinstance(value, IOBase) for _, value in block):
        raise NotCacheable("open_file", "a message holds an open file; pass its bytes or its path")
    within = [inner for _, value in block if isinstance(value, list) for inner in value]
    shown = block.model_dump(mode="json", exclude_none=True)
    if isinstance(block, ThinkingBlock):  # the provider's id of the thought, a new one each time
        shown["additional_information"].pop("id", None)
    shown["within"] = [_media(inner) for inner in within if isinstance(inner, BaseModel)]
    if path := getattr(block, "path", None):
        try:
            shown["file"] = blake2b(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise NotCacheable("unreadable_file", f"a message names a file: {error.strerror}") from None
    return shown


def _raw_call(call: Any, ordinals: Ordinals) -> Any:
    """Describe a tool call in its provider's format, with its random id replaced."""
    shown = call.model_dump(mode="json") if isinstance(call, BaseModel) else call
    if isinstance(shown, Mapping):
        return {key: ordinals.of(value) if key == "id" else value for key, value in shown.items()}
    return shown


def _refuse(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    kind = type(value).__name__
    raise NotCacheable("opaque_message", f"a message holds a {kind}, which cannot be compared")


# The model and the arguments.


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
        state_of(llm, RULES, lenient=bool(model_id)),
        _effect(llm.messages_to_prompt, _conversation, lambda: _conversation()[1:]),
        _effect(llm.completion_to_prompt, lambda: "user"),
    ]
    return digest(json.dumps(described))


def parameters(given: Mapping[str, Any], *, lenient: bool = False) -> str:
    """Describe the arguments of a call. Order counts within them: models follow that of a schema.

    Raises:
        NotCacheable: An argument is used up by reading it. With `lenient`, only the class counts of what can
            only be compared by identity.
    """
    told = {name: given[name] for name in sorted(given) if name not in OPERATIONAL_SETTINGS}
    return json.dumps(values_of(told, RULES, lenient=lenient))


def _asks_for_format(llm: LLM, given: Mapping[str, Any]) -> bool:
    """Return whether the arguments of a call or the model's settings ask for a response format.

    Tools alone do not: the model may still answer in words.
    """
    always = getattr(llm, "additional_kwargs", None)
    settings = {**(always if isinstance(always, Mapping) else {}), **given}
    forced = settings.get("tool_choice") not in (None, "auto", "none")
    return forced or any(map(settings.get, _FORMATS)) or getattr(llm, "json_mode", False) is True


def _effect(form: Callable[[Any], str] | None, *samples: Callable[[], Any]) -> Any:
    """Describe a formatting function, with its result for the first sample that it takes and may change."""
    if form is None:
        return None
    made = None
    for sample in samples:
        try:
            made = str(form(sample()))
            break
        except Exception:  # noqa: S112 - templates of some models allow no system message
            continue
    return [{"function": function_state(form)}, made]


def _conversation() -> list[ChatMessage]:
    return [ChatMessage(role, role=MessageRole(role)) for role in ("system", "user", "assistant")]
