"""A whole run of an agent: from the user's question over the tools it called to the final answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.messages.tool import ToolCall

from ibidem.matching.lexicon import COMMON_WORDS
from ibidem.types import Answer, Hit, Request, digest
from langchain_ibidem.codec import MARKER
from langchain_ibidem.prompt import without_made_ids

_WORD = re.compile(r"\w+")


class Call(NamedTuple):
    """A tool that was called, and the digest of what it returned."""

    tool: str
    args: Mapping[str, Any]
    returned: str


@dataclass(slots=True)
class Begun:
    """A run whose first step was made here: its request, what that step said, and what any step said."""

    request: Request
    first: str
    started: float
    said: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Run:
    """What is stored of a run: its calls, and its first and final message as `codec` writes them.

    `words` are those of the question that the agent handed on to tools; `entry` is that of the final message
    at its own step, "" if it was not stored there.
    """

    calls: tuple[Call, ...]
    words: tuple[str, ...]
    first: str
    final: str
    entry: str = ""

    def dump(self) -> str:
        """As the payload of the answer to the run's first step."""
        told = {"calls": self.calls, "words": self.words, "first": self.first, "final": self.final}
        return json.dumps({**told, "entry": self.entry})

    @classmethod
    def of(cls, hit: Hit) -> Run | None:
        """The run behind a hit; None if it is that of a single step.

        Raises:
            Exception: The stored text is not one of ours. It comes from disk: anything may be wrong with it.
        """
        stored = json.loads(hit.answer.payload)
        if not isinstance(stored, dict):
            return None
        calls = tuple(Call(str(tool), dict(args), str(returned)) for tool, args, returned in stored["calls"])
        words = tuple(map(str, stored["words"]))
        return cls(calls, words, str(stored["first"]), str(stored["final"]), str(stored["entry"]))

    def objection(self, hit: Hit, question: str) -> str:
        """Why it is none for this question: worded otherwise, it must hand the same words on to tools."""
        same = hit.tier == "exact" or _words(question).issuperset(self.words)
        return "" if same else "guard:arguments"

    def hit(self, hit: Hit, *, whole: bool) -> Hit:
        """As if its final message, or its first, had been found."""
        return replace(hit, answer=replace(hit.answer, payload=self.final if whole else self.first))

    def answer(self, final: Answer, run: Sequence[BaseMessage], seconds: float) -> Answer:
        """The answer to store: it saves what all steps took."""
        spent = [_tokens(message) for message in run if isinstance(message, AIMessage)]
        read, written = ((final.input_tokens or 0), (final.output_tokens or 0))
        return replace(
            final,
            payload=self.dump(),
            input_tokens=read + sum(one[0] for one in spent),
            output_tokens=written + sum(one[1] for one in spent),
            seconds=seconds,
        )


def saying(message: AIMessage) -> str:
    """What a step said, by digest: to tell it from what a person or a middleware has made of it."""
    calls = [[call["name"], call["args"]] for call in message.tool_calls]
    return digest(json.dumps([message.content, calls], sort_keys=True, default=str))


def calls_in(run: Sequence[BaseMessage], said: set[str]) -> tuple[Call, ...] | None:
    """The calls of a run whose steps said what is in `said`, each with its result; else None.

    None too if there is anything else in it, or a tool failed: then the answer rests on more than calls.
    """
    results = {message.tool_call_id: message for message in run if isinstance(message, ToolMessage)}
    wanted: list[ToolCall] = []
    for message in run:
        if isinstance(message, AIMessage) and message.tool_calls and saying(message) in said:
            wanted += message.tool_calls
        elif not isinstance(message, ToolMessage) or message.status != "success":
            return None
    if {call["id"] for call in wanted} != set(results) or len(wanted) != len(results):
        return None
    return tuple(Call(c["name"], c["args"], returned(results[str(c["id"])])) for c in wanted)


def handed_on(question: str, run: Sequence[BaseMessage]) -> tuple[str, ...] | None:
    """The words of a question that stand in arguments of the calls.

    None if a call has arguments of which none comes from the question or from an earlier result: then it
    cannot be told what in the question they stand for ("FR" for France), and so not whether another
    question would give the same.
    """
    asked, told, found = _words(question), set[str](), set[str]()
    for message in run:
        if isinstance(message, ToolMessage):
            told |= _words(message.text)
        for call in message.tool_calls if isinstance(message, AIMessage) else ():
            given = _words(json.dumps(list(call["args"].values()), ensure_ascii=False, default=str))
            if given and given.isdisjoint(asked) and given.isdisjoint(told):
                return None
            found |= given & asked
    return tuple(sorted(found))


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower())) - COMMON_WORDS


def returned(message: ToolMessage) -> str:
    """What the model sees of a tool's result, by digest."""
    return digest(json.dumps(without_made_ids(message.content), sort_keys=True, default=str))


def is_as_before(call: Call, result: Any) -> bool:
    """Whether a tool, called again, has returned what it returned."""
    good = isinstance(result, ToolMessage) and result.status == "success"
    return good and returned(result) == call.returned


def again(call: Call) -> ToolCall:
    """The call, to be made anew."""
    return ToolCall(name=call.tool, args=dict(call.args), id=f"ibidem_{uuid4()}", type="tool_call")


def _tokens(message: AIMessage) -> tuple[int, int]:
    """What a step took, or saved if it was repeated."""
    marker = message.response_metadata.get(MARKER) or {}
    usage = marker.get("saved_tokens") or message.usage_metadata or {}
    return usage.get("input_tokens", 0), usage.get("output_tokens", 0)
