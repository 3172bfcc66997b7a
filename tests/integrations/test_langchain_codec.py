"""What a model returned comes back unchanged, except for what was only true of that one call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from pydantic import BaseModel

import ibidem
from ibidem.errors import NotCacheable
from langchain_ibidem.messages import decode, encode

USAGE = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}


def hit(answer: ibidem.Answer, **changes: Any) -> ibidem.Hit:
    known = {"entry_id": "e1", "tier": "semantic", "similarity": 0.97531, "question": "What?", "age": 12.3456}
    return ibidem.Hit(answer, **(known | changes))


def there_and_back(message: AIMessage, **info: Any) -> AIMessage:
    (generation,) = decode(hit(encode([ChatGeneration(message=message, generation_info=info or None)])))
    assert isinstance(generation, ChatGeneration)
    assert isinstance(generation.message, AIMessage)
    return generation.message


MESSAGES = {
    "text": AIMessage("Paris."),
    "unicode": AIMessage('Zürich — 東京 \U0001f600 \u2028 \x00 {braces} [brackets] \\ "'),
    "tool calls": AIMessage(
        "", tool_calls=[{"name": "add", "args": {"a": 1, "b": [2, None]}, "id": "call_1"}]
    ),
    "multimodal": AIMessage(
        [
            {"type": "text", "text": "See:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}},
        ]
    ),
    "reasoning": AIMessage(
        [
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"},
            {"type": "text", "text": "42", "annotations": []},
        ]
    ),
    "an lc dict": AIMessage("x", additional_kwargs={"lc": 1, "type": "secret", "id": ["OPENAI_API_KEY"]}),
    "function call": AIMessage(
        "", additional_kwargs={"refusal": None, "function_call": {"name": "f", "arguments": "{}"}}
    ),
    "named": AIMessage("x", name="critic"),
    "chunk": AIMessageChunk("Par", tool_call_chunks=[{"name": "f", "args": "{}", "id": "1", "index": 0}]),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_survive(name: str) -> None:
    message = MESSAGES[name]
    back = there_and_back(message)
    kept = {
        key: value
        for key, value in vars(message).items()
        if key not in ("id", "usage_metadata", "response_metadata")
    }
    assert {key: getattr(back, key) for key in kept} == kept
    assert type(back) is type(message)


def test_completions_survive_exactly() -> None:
    generations = [Generation(text="a", generation_info={"reason": "test", "id": "1"}), Generation(text="b")]
    assert decode(hit(encode(generations))) == generations


def test_a_chunk_is_stored_as_what_it_says() -> None:
    assert decode(hit(encode([GenerationChunk(text="a")]))) == [Generation(text="a")]
    answer = encode([ChatGenerationChunk(message=AIMessageChunk("a"))])
    assert type(decode(hit(answer))[0]) is ChatGeneration


def test_a_hit_has_a_new_id_each_time() -> None:
    answer = encode([ChatGeneration(message=AIMessage("x", id="lc_run--old"))] * 2)
    ids = [g.message.id for _ in range(2) for g in decode(hit(answer)) if isinstance(g, ChatGeneration)]
    assert len(set(ids)) == 4
    assert all(i.startswith("lc_run--") and i != "lc_run--old" for i in ids if i)


def test_a_hit_costs_nothing_and_says_what_it_saved() -> None:
    metadata = {
        "token_usage": {"total_tokens": 18, "details": {"cached": 3}, "tier": "flex"},
        "model_name": "m",
    }
    back = there_and_back(AIMessage("x", usage_metadata=USAGE, response_metadata=metadata))
    assert back.usage_metadata == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert back.response_metadata["token_usage"] == {
        "total_tokens": 0,
        "details": {"cached": 0},
        "tier": "flex",
    }
    assert back.response_metadata["ibidem"] == {
        "entry_id": "e1",
        "tier": "semantic",
        "similarity": 0.9753,
        "score": 1.0,
        "question": "What?",
        "age_seconds": 12.346,
        "stale": False,
        "saved_tokens": USAGE,
    }
    json.dumps(back.response_metadata)


def test_usage_that_was_never_known_is_still_complete() -> None:
    assert there_and_back(AIMessage("x")).usage_metadata == {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
    }


def test_ids_of_the_provider_are_not_repeated() -> None:
    metadata = {
        "id": "resp_1",
        "request_id": "r",
        "headers": {"x": "y"},
        "model_name": "m",
        "ibidem": {"old": 1},
    }
    (generation,) = decode(
        hit(
            encode(
                [
                    ChatGeneration(
                        message=AIMessage("x", response_metadata=metadata), generation_info={"id": "resp_1"}
                    )
                ]
            ),
            question=None,
        )
    )
    assert isinstance(generation, ChatGeneration)
    assert set(generation.message.response_metadata) == {"model_name", "ibidem"}
    assert "question" not in generation.message.response_metadata["ibidem"]
    assert generation.generation_info == {}


def test_the_answer_describes_the_call() -> None:
    message = AIMessage(
        "Paris.", usage_metadata=USAGE, response_metadata={"model_name": "gpt", "finish_reason": "stop"}
    )
    answer = encode([ChatGeneration(message=message)], seconds=1.5)
    assert (answer.text, answer.model, answer.finish_reason) == ("Paris.", "gpt", "stop")
    assert (answer.input_tokens, answer.output_tokens, answer.seconds) == (11, 7, 1.5)
    assert answer.semantic


@pytest.mark.parametrize("key", ["finish_reason", "stop_reason", "done_reason", "stopReason", "status"])
def test_finish_reasons_of_all_providers(key: str) -> None:
    assert (
        encode([ChatGeneration(message=AIMessage("x"), generation_info={key: "length"})]).finish_reason
        == "length"
    )
    assert encode([Generation(text="x", generation_info={key: "length"})]).finish_reason == "length"


def test_unknown_usage_is_not_zero() -> None:
    for generation in (ChatGeneration(message=AIMessage("x")), Generation(text="x")):
        assert encode([generation]).input_tokens is encode([generation]).output_tokens is None


def test_one_truncated_answer_of_several_counts() -> None:
    generations = [
        Generation(text="x", generation_info={"finish_reason": r}) for r in ("stop", "length", "stop")
    ]
    assert encode(generations).finish_reason == "length"


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
        AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}}),
        AIMessage('{"a": 1}', additional_kwargs={"parsed": {"a": 1}}),
    ],
)
def test_answers_for_programs_are_never_served_by_meaning(message: AIMessage) -> None:
    assert not encode([ChatGeneration(message=message)]).semantic


class Parsed(BaseModel):
    city: str


def test_a_parsed_object_comes_back_as_its_fields() -> None:
    back = there_and_back(AIMessage("{}", additional_kwargs={"parsed": Parsed(city="Paris")}))
    assert back.additional_kwargs["parsed"] == {"city": "Paris"}


NOT_CACHEABLE = {
    "no_generations": [],
    "not_json": [ChatGeneration(message=AIMessage("x", additional_kwargs={"audio": b"\0"}))],
    "message_kind": [ChatGeneration(message=HumanMessage("x"))],
    "refusal": [ChatGeneration(message=AIMessage("A part.", additional_kwargs={"refusal": "No."}))],
    "invalid_tool_calls": [
        ChatGeneration(
            message=AIMessage("", invalid_tool_calls=[{"name": "f", "args": "{", "id": "1", "error": "?"}])
        )
    ],
}


@pytest.mark.parametrize("cause", NOT_CACHEABLE)
def test_not_cacheable(cause: str) -> None:
    with pytest.raises(NotCacheable) as raised:
        encode(NOT_CACHEABLE[cause])
    assert raised.value.cause == cause


def test_a_refusal_among_the_blocks_is_not_cacheable() -> None:
    """As OpenAI's Responses have it."""
    blocks = [{"type": "text", "text": "A part."}, {"type": "refusal", "refusal": "No."}]
    with pytest.raises(NotCacheable, match="refusal"):
        encode([ChatGeneration(message=AIMessage(blocks))])


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, float("nan"), {1, 2}, object()])
def test_what_json_changes_is_not_cacheable(value: Any) -> None:
    with pytest.raises(NotCacheable, match="not_json"):
        encode([Generation(text="x", generation_info={"value": value})])


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "{",
        "null",
        "[1]",
        '[{"kind": "text"}]',
        '[{"kind": "code", "info": null}]',
        '[{"kind": "chat", "info": null, "message": {"type": "human", "data": {"content": "x"}}}]',
        '[{"kind": "chat", "info": null, "message": {"type": "ai", "data": {"content": 5}}}]',
        '[{"kind": "chat", "info": 7, "message": {"type": "ai", "data": {"content": "x"}}}]',
        '[{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}}]',
    ],
)
def test_foreign_rows_raise_and_build_nothing(payload: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode(hit(ibidem.Answer("x", payload=payload)))
