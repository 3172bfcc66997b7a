"""Convert LangChain's messages: to the prompt that is compared, and answers to what is stored and back.

A prompt is compared without its bookkeeping. LangChain hands a cache the JSON dump of the messages, response
metadata, token counts and random call ids included. The same conversation would then be a different key each
time, so those are dropped or replaced by ordinals, and nothing else is.

An answer is stored in an envelope of our own around LangChain's message dictionaries: `langchain_core.load`
instantiates classes by name, which stored rows must not be able to ask for, and pydantic's JSON loses tool
calls. What does not survive the way there and back unchanged is not stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    message_to_dict,
    messages_from_dict,
)
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from langchain_core.prompt_values import PromptValue
from langchain_core.utils.utils import LC_AUTO_PREFIX

from ibidem.adapter.provider_fields import FINISH_REASON_KEYS, MODEL_KEYS, USAGE_KEYS, zeroed
from ibidem.adapter.streams import split_text
from ibidem.errors import NotCacheable
from ibidem.lifecycle.rules import COMPLETE
from ibidem.prompts import documents
from ibidem.prompts.documents import Message, Ordinals, Prompt, Segment, plain
from ibidem.provenance import MARKER, remember
from ibidem.types import Answer, Hit, Stored

Chunk = GenerationChunk | ChatGenerationChunk
Content = str | list[Any]

_ROLES = frozenset("human ai system tool function chat".split())
# Fields of a message that no model sees, or that are handled one by one below.
_NOT_SEEN = frozenset(
    (
        "type content id response_metadata usage_metadata artifact example tool_call_chunks chunk_position "
        "tool_calls invalid_tool_calls tool_call_id additional_kwargs"
    ).split()
)
# The same for additional_kwargs. What is not listed stays: some providers send it back to the model.
_NOT_SEEN_EXTRAS = frozenset(
    (
        "id usage token_usage usage_metadata logprobs parsed system_fingerprint response_id cache_control "
        "__openai_function_call_ids__ __gemini_function_call_thought_signatures__"
    ).split()
)
_CALL_ID_KEYS = ("tool_use_id", "tool_call_id", "call_id")  # a tuple: the order gives the ordinals
_CALL_BLOCKS = frozenset("tool_use tool_call server_tool_call server_tool_use invalid_tool_call".split())
# Blocks of an answer that carry a random id of their own. Elsewhere an id can name a file: it stays.
_BLOCKS_WITH_RANDOM_ID = frozenset("text output_text reasoning thinking refusal function_call".split())
_TEXT_BLOCKS = frozenset(("text", "input_text", "output_text"))
# What LangChain itself calls a block, a citation or a message; no provider knows it.
_MADE_ID = re.compile(
    rf"(?:{LC_AUTO_PREFIX}|(?:{LC_AUTO_PREFIX})?run-{{1,2}})"
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:-\d+)?"
)
# What a model gives to a tool: there an id is whatever the tool takes it for.
_ARGUMENTS = frozenset("args arguments input partial_json".split())


def parse(prompt: str) -> Prompt:
    """Parse the prompt that LangChain hands a cache: a dump of messages, or plain text."""
    if not prompt.startswith('[{"lc":'):
        return plain(prompt)
    try:
        dumped = json.loads(prompt)
        if all(message["type"] == "constructor" for message in dumped):
            return _assemble([message["kwargs"] for message in dumped])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return Prompt(prompt, (), known=False)


def of_messages(messages: Sequence[BaseMessage]) -> Prompt:
    """Return the prompt that a chat model gets for live messages; the same as `parse` of their dump.

    Raises:
        KeyError, TypeError, ValueError: A message is of no known kind, or holds what JSON cannot.
    """
    return _assemble([vars(message) for message in messages])


def fingerprints_of(rendered: PromptValue) -> tuple[str, ...]:
    """Return the fingerprints of the prompt as a completion model and as a chat model gets it."""
    as_text = plain(rendered.to_string()).fingerprint
    try:
        return as_text, of_messages(rendered.to_messages()).fingerprint
    except (KeyError, TypeError, ValueError):  # messages of an unknown kind, or content that is not JSON
        return (as_text,)


def _assemble(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    ordinals = Ordinals()
    return documents.of_messages([_message(message, ordinals) for message in messages])


def _message(message: Mapping[str, Any], ordinals: Ordinals) -> Message:
    segments: list[Segment] = []
    frame = _frame(message, ordinals, segments)
    is_plain = frame.keys() <= {"role", "fields", "blocks"} and not frame["fields"]
    is_plain = is_plain and all(map(_is_text, frame.get("blocks", ())))
    return Message(frame["role"], json.dumps(frame, sort_keys=True), tuple(segments), is_plain)


def _is_text(block: Any) -> bool:
    """Return whether a block, in its canonical form, is nothing but a text."""
    if isinstance(block, list):
        return not any(value for name, value in block[1].items() if name != "type")
    return bool(block == "text")


def _frame(message: Mapping[str, Any], ordinals: Ordinals, segments: list[Segment]) -> dict[str, Any]:
    """Return what the model sees of a message but its texts, which are appended to `segments`."""
    role = message["type"].removesuffix("MessageChunk").lower()
    if role not in _ROLES:
        raise KeyError(role)
    if role == "chat" and message["role"] in ("user", "human"):
        role = "human"
    fields = {key: value for key, value in message.items() if key not in _NOT_SEEN and value is not None}
    if fields.get("status") == "success":  # the default of a tool message, seen only if it is an error
        del fields["status"]
    frame: dict[str, Any] = {"role": role, "fields": _without_made_ids(fields, ordinals)}
    for key in ("tool_calls", "invalid_tool_calls"):
        if calls := message.get(key):
            frame[key] = [
                {"name": call["name"], "args": call["args"], "number": ordinals.of(call.get("id"))}
                for call in calls
            ]
    if message.get("tool_call_id"):
        frame["answers"] = ordinals.of(message["tool_call_id"])
    if extras := _extras(message, role):
        frame["extras"] = _without_made_ids(extras, ordinals)
    content = message["content"]
    if isinstance(content, str):
        segments.append(Segment(role, content))
    else:
        frame["blocks"] = [_block(block, role, ordinals, segments) for block in content]
    return frame


def _extras(message: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Return what `additional_kwargs` adds for the model; raw tool calls only copy the parsed ones."""
    copies = {"tool_calls"} if message.get("tool_calls") or message.get("invalid_tool_calls") else set()
    extras: Mapping[str, Any] = message.get("additional_kwargs") or {}
    dropped = _NOT_SEEN_EXTRAS | copies
    kept = {key: value for key, value in extras.items() if key not in dropped and value is not None}
    if role == "ai" and isinstance(thought := kept.get("reasoning"), Mapping):  # a block, kept elsewhere
        kept["reasoning"] = {key: value for key, value in thought.items() if key != "id"}
    return kept


def _block(block: Any, role: str, ordinals: Ordinals, segments: list[Segment]) -> Any:
    """Return the canonical form of a content block; the text of a text block goes to `segments`."""
    if isinstance(block, str):
        segments.append(Segment(role, block))
        return "text"
    kind = block.get("type")
    kept = {key: value for key, value in block.items() if key != "cache_control" and value is not None}
    for key in (*_CALL_ID_KEYS, "id") if kind in _CALL_BLOCKS else _CALL_ID_KEYS:
        if key in kept:
            kept[key] = ordinals.of(kept[key])
    if role == "ai":
        _as_if_not_streamed(kept)
        if kind in _BLOCKS_WITH_RANDOM_ID:
            kept.pop("id", None)
    kept = _without_made_ids(kept, ordinals)
    if kind in _TEXT_BLOCKS and isinstance(kept.get("text"), str):
        segments.append(Segment(role, kept.pop("text")))
        return ["text", kept]
    return kept


def _as_if_not_streamed(block: dict[str, Any]) -> None:
    """Remove from a block of an answer what streaming has left there."""
    block.pop("index", None)
    if block.get("input") in ({}, "") and isinstance(arguments := block.get("partial_json"), str):
        with suppress(ValueError):
            block["input"] = json.loads(arguments or "{}")
            del block["partial_json"]


def _without_made_ids(value: Any, ordinals: Ordinals) -> Any:
    """Return JSON without the random ids that LangChain makes; an id of a tool call becomes its ordinal."""
    if isinstance(value, list):
        return [_without_made_ids(inner, ordinals) for inner in value]
    if not isinstance(value, Mapping):
        return value
    kept: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, str) and _MADE_ID.fullmatch(inner):
            if key != "id":  # a text that looks like one is a text
                kept[key] = ordinals.of(inner) if key in _CALL_ID_KEYS else inner
        else:
            kept[key] = inner if key in _ARGUMENTS else _without_made_ids(inner, ordinals)
    return kept


# Answers ------------------------------------------------------------------------------------------------

_FINISH_REASON_KEYS = (*FINISH_REASON_KEYS, "status")  # the last is that of OpenAI's Responses
# Of one HTTP response; sent back to the provider, an old id names something that may be gone.
_PROVIDER_IDS = frozenset(("id", "request_id", "response_id", "previous_response_id", "headers", MARKER))
_NUMBERED = '"response_format_untitled_{}"'
_NO_USAGE = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


def encode(
    generations: Sequence[Generation], seconds: float | None = None, names: Sequence[str] = ()
) -> Answer:
    """Convert what a model returned to the answer to store, with numbers in place of made-up names.

    Raises:
        NotCacheable: An answer that must not be repeated, or that cannot be restored exactly.
    """
    if not generations:
        raise NotCacheable("no_generations", "the model returned nothing")
    first = generations[0]
    usage = _ai_message(first).usage_metadata if isinstance(first, ChatGeneration) else None
    return Answer(
        first.text,
        payload=with_numbers(to_json([_pack(generation) for generation in generations]), names),
        model=_first_text(provider_info(first), MODEL_KEYS),
        input_tokens=usage["input_tokens"] if usage else None,
        output_tokens=usage["output_tokens"] if usage else None,
        finish_reason=finish_reason_of(generations),
        seconds=seconds,
        semantic=not any(map(_is_for_programs, generations)),
    )


def decode(hit: Hit, names: Sequence[str] = ()) -> list[Generation]:
    """Return new generations that say what the stored ones said, marked as repeated.

    Raises:
        Exception: The stored text is not one of ours. It comes from disk: anything may be wrong with it.
    """
    payload = hit.answer.payload
    for number, name in enumerate(names):
        payload = payload.replace(_NUMBERED.format(number), f'"{name}"')
    return [_unpack(item, hit, number) for number, item in enumerate(json.loads(payload))]


def require_finished(generations: Sequence[Generation]) -> None:
    """Raise `NotCacheable` if nothing says that the stream was whole which these are of."""
    if not finish_reason_of(generations):
        raise NotCacheable(
            "unfinished_stream",
            "a stream ended without a finish reason, so it may have been cut off; let the model's last chunk "
            "have one, or chunk_position='last'",
        )


def to_json(packed: Any) -> str:
    """Return JSON values as a text.

    Raises:
        NotCacheable: JSON would change them.
    """
    try:
        text = json.dumps(packed, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise NotCacheable("not_json", f"the answer is not JSON ({type(error).__name__})") from None
    if json.loads(text) != packed:
        raise NotCacheable("not_json", "the answer holds what JSON changes (tuples, keys that are not text)")
    return text


def _pack(generation: Generation) -> dict[str, Any]:
    if not isinstance(generation, ChatGeneration):
        return {"kind": "text", "text": generation.text, "info": generation.generation_info}
    message = _ai_message(generation)
    if message.invalid_tool_calls:
        raise NotCacheable("invalid_tool_calls", "the model called a tool with arguments that do not parse")
    if _refuses(message):
        raise NotCacheable("refusal", "the model refused to answer")
    return {"kind": "chat", "message": message_to_dict(message), "info": generation.generation_info}


def _refuses(message: AIMessage) -> bool:
    """Return whether the provider says so; a refusal in words is not told apart here."""
    blocks = message.content if isinstance(message.content, list) else ()
    is_block = any(isinstance(one, dict) and one.get("type") == "refusal" for one in blocks)
    return is_block or bool(message.additional_kwargs.get("refusal"))


def _ai_message(generation: ChatGeneration) -> AIMessage:
    if not isinstance(generation.message, AIMessage):
        kind = type(generation.message).__name__
        raise NotCacheable("message_kind", f"the model answered with a {kind}; only AIMessage is cached")
    return generation.message


def _unpack(item: dict[str, Any], hit: Hit, number: int) -> Generation:
    info = item["info"]
    if item["kind"] == "text":
        return Generation(text=item["text"], generation_info=info)
    if item["kind"] != "chat":
        raise ValueError("unexpected kind of stored answer")
    repeated = repeated_message(item["message"], hit, number)
    return ChatGeneration(message=repeated, generation_info=info and _as_repeated(info))


def repeated_message(dumped: Mapping[str, Any], hit: Hit, number: int = 0) -> AIMessage:
    """Return a new message that says what the stored one said, marked as repeated.

    Raises:
        Exception: The stored one is not one of ours.
    """
    if dumped["type"] not in ("ai", "AIMessageChunk"):
        raise ValueError("unexpected kind of stored answer")
    (message,) = messages_from_dict([dict(dumped)])
    if not isinstance(message, AIMessage):
        raise TypeError("the stored answer is not an AIMessage")
    return message.model_copy(
        update={
            # A repeated id would make LangGraph replace the earlier message instead of adding this one.
            "id": f"lc_run--{uuid4()}-{number}",
            "usage_metadata": dict(_NO_USAGE),  # nothing was spent; LangChain itself adds total_cost 0
            "response_metadata": {**_as_repeated(message.response_metadata), MARKER: hit.provenance()},
        }
    )


def _as_repeated(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provider's metadata without what was only true of that one call."""
    kept = {key: value for key, value in metadata.items() if key not in _PROVIDER_IDS}
    return {key: zeroed(value) if key in USAGE_KEYS else value for key, value in kept.items()}


def provider_info(generation: Generation) -> dict[str, Any]:
    """Return the provider's metadata of an answer, wherever LangChain put it."""
    info = generation.generation_info or {}
    if isinstance(generation, ChatGeneration):
        return {**info, **generation.message.response_metadata}
    return info


def _first_text(about: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((value for key in keys if isinstance(value := about.get(key), str)), "")


def finish_reason_of(generations: Sequence[Generation]) -> str:
    """Return why the model stopped, "" if unknown; of several answers, that of one that was cut off."""
    reasons = [_first_text(provider_info(generation), _FINISH_REASON_KEYS) for generation in generations]
    return next((reason for reason in reasons if reason.lower() not in COMPLETE), reasons[0])


def _is_for_programs(generation: Generation) -> bool:
    """Whether a program acts upon it, as on tool calls: then it is right for the same request only."""
    if not isinstance(generation, ChatGeneration):
        return False
    message = _ai_message(generation)
    extras = message.additional_kwargs
    return bool(message.tool_calls) or any(map(extras.get, ("function_call", "tool_calls", "parsed")))


def attach_source(generations: Sequence[Generation], source: Hit | Stored) -> None:
    """Let `ibidem.forget` find the stored answer behind what LangChain was given or has stored.

    A message is known by its id, since LangChain copies it; a repeated one says it itself.
    """
    for generation in generations:
        if not isinstance(generation, ChatGeneration):
            remember(generation, source)
        elif isinstance(source, Stored):
            remember(generation, source)
            remember(generation.message, source, names=[generation.message.id])


def with_numbers(text: str, names: Sequence[str]) -> str:
    """Return JSON text with numbers in place of names that LangChain made up (see `ResponseFormat`)."""
    for number, name in enumerate(names):
        text = text.replace(f'"{name}"', _NUMBERED.format(number))
    return text


# Chunks -------------------------------------------------------------------------------------------------

_ADDED_UP_ONCE = ("output_version", "model_provider")  # texts that LangChain does not join if they are equal


def chat_chunks(generation: Generation) -> Iterator[ChatGenerationChunk]:
    """Split a repeated message: a few words at a time, then its tool calls, then its metadata.

    What the chunks add up to is what `invoke` gives for a hit. LangChain adds chunks up by joining all texts
    in their metadata, so the last chunk alone brings them.

    Raises:
        TypeError: What was stored is not an answer of a chat model.
    """
    message = getattr(generation, "message", None)
    if not isinstance(message, AIMessage):
        raise TypeError("the stored answer is not an AIMessage")
    about = message.response_metadata
    common = {key: about[key] for key in _ADDED_UP_ONCE if isinstance(about.get(key), str)}
    nothing: Content = "" if isinstance(message.content, str) else []
    for content in _contents(message.content, of_blocks=common.get("output_version") == "v1"):
        yield _chunk(content, common)
    for number, call in enumerate(message.tool_calls):
        args = json.dumps(call["args"])
        called = tool_call_chunk(name=call["name"], args=args, id=call["id"], index=number)
        yield _chunk(nothing, common, tool_call_chunks=[called])
    last = _chunk(
        nothing,
        about,
        additional_kwargs=message.additional_kwargs,
        usage_metadata=message.usage_metadata,
        chunk_position="last",
    )
    last.generation_info = generation.generation_info
    yield last


def completion_chunks(generation: Generation) -> Iterator[GenerationChunk]:
    """Split a repeated text, a few words at a time; the last chunk brings its metadata."""
    *pieces, last = split_text(generation.text) or [""]
    for piece in pieces:
        yield GenerationChunk(text=piece)
    yield GenerationChunk(text=last, generation_info=generation.generation_info)


def _chunk(content: Content, about: dict[str, Any], **parts: Any) -> ChatGenerationChunk:
    # Without an id: LangChain gives all chunks that of the run.
    return ChatGenerationChunk(
        message=AIMessageChunk(content=content, response_metadata=dict(about), **parts)
    )


def _contents(content: Content, *, of_blocks: bool) -> Iterator[Content]:
    """Split the content into parts which LangChain joins to the same content."""
    if isinstance(content, str):
        yield from split_text(content)
        return
    blocks = _numbered(content) if of_blocks else content
    numbers = [block.get("index") if isinstance(block, dict) else None for block in blocks]
    if any(number is not None for number in numbers) and len(set(map(str, numbers))) < len(numbers):
        yield blocks  # LangChain would join those of one number
        return
    for block in blocks:
        yield from ([part] for part in _parts(block))


def _numbered(blocks: list[Any]) -> list[Any]:
    """Number the blocks if they are not: LangChain would number them by type, and join neighbours."""
    if any(not isinstance(block, dict) or "index" in block for block in blocks):
        return blocks
    return [{**block, "index": number} for number, block in enumerate(blocks)]


def _parts(block: Any) -> Iterator[Any]:
    """Split a block of text, if it has a number by which LangChain joins its parts."""
    number = block.get("index") if isinstance(block, dict) else None
    joins = isinstance(number, int) or (isinstance(number, str) and number.startswith("lc_"))
    if not joins or block.get("type") != "text" or not isinstance(block.get("text"), str):
        yield block
        return
    first, *others = split_text(block["text"]) or [""]
    yield {**block, "text": first}
    for piece in others:
        yield {"type": "text", "text": piece, "index": number}
