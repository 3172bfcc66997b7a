"""Answers that must not be kept."""

from __future__ import annotations

import json

import pytest

from ibidem import Answer, Request
from ibidem._util.faults import Faults
from ibidem.lifecycle.rules import Admission

refusal = Admission(Faults()).refusal


@pytest.mark.parametrize("reason", ["length", "max_tokens", "content_filter", "SAFETY", "error", "new"])
def test_incomplete_answers_are_refused(reason: str) -> None:
    """A truncated answer would be repeated truncated for ever; unknown reasons count as incomplete."""
    assert refusal(Request("q"), Answer("a", finish_reason=reason)) == f"finish_reason:{reason}"


@pytest.mark.parametrize("reason", ["", "stop", "STOP", "end_turn", "tool_calls"])
def test_complete_answers_are_kept(reason: str) -> None:
    """Whatever the provider calls it."""
    assert refusal(Request("q"), Answer("a", finish_reason=reason)) is None


def test_an_empty_text_is_only_kept_with_tool_calls() -> None:
    """Tool-calling answers have no text; they are marked as not semantic."""
    assert refusal(Request("q"), Answer("  ")) == "empty"
    assert refusal(Request("q"), Answer("", payload="[...]", semantic=False)) is None


@pytest.mark.parametrize("text", ["a\ud800b", "a\0b"])
def test_text_that_databases_cannot_hold_is_refused(text: str) -> None:
    """In the question or in the answer."""
    assert refusal(Request("q"), Answer(text)) == "invalid_text"
    assert refusal(Request(text), Answer("a")) == "invalid_text"


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps({"args": {"who": "Müller"}}),
        json.dumps({"arguments": json.dumps({"Müller": 1})}),
        json.dumps([["one", 'the "big" one']]),
        json.dumps({"arguments": json.dumps(["big"])}),
    ],
)
def test_what_must_not_be_stored_is_seen_behind_the_escapes_of_json(payload: str) -> None:
    """Arguments of tool calls are JSON in JSON."""
    redacting = Admission(Faults(), redact=lambda text: text.replace("Müller", "").replace('"big"', ""))
    request = Request("q")
    assert redacting.refusal(request, Answer("", payload=payload, semantic=False)) == "private"
    assert not redacting.refusal(request, Answer("", payload='["a", 1, null, "[", "{}"]', semantic=False))
    assert not refusal(request, Answer("", payload=payload, semantic=False))
