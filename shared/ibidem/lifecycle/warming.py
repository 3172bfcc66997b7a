"""One run of a program for a question with a known answer: its calls, and the one that gets the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from ibidem._util.concurrency import context_value
from ibidem.types import Answer, Hit, Miss, Request, normalise

DONE = "done"  # the answer was pinned before


class Pin(Protocol):
    """Pins an answer to a request; returns the id of its entry, and "", `DONE` or why it is refused."""

    def __call__(self, request: Request, answer: Answer, *, alone: bool) -> tuple[str, str]:
        """Pin it; `alone` if it stands for itself, whatever is retrieved."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was answered: by its model, or from the cache (`repeated`).

    `pinned` if a person's answer to this very question was repeated.
    """

    request: Request
    answer: Answer
    pin: Pin
    repeated: bool = False
    pinned: bool = False


@dataclass(slots=True)
class WarmingRun:
    """One run of the program.

    Attributes:
        question: What the program is asked.
        prepared: By scope, the answer for a call there that asks this question.
        alone: Whether the answer stands for itself, whatever is retrieved.
        calls: The calls that were answered and can be repeated, in order.
        pinned: The ids of the entries that got the answer.
        done: Whether it had been pinned before.
        learned: False if the call that answers was only known when it had answered.
        refused: Why the answer was not pinned; "" if it was, or nobody tried.
        rejected: Why the answer of a call was not stored, the last one; "" if all were.
        misses: Lookups that found nothing.
    """

    question: str
    prepared: Mapping[str, Answer] = field(default_factory=dict)
    alone: bool = True
    calls: list[Call] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)
    done: bool = False
    learned: bool = True
    refused: str = ""
    rejected: str = ""
    misses: int = 0

    def before_lookup(self, request: Request, pin: Pin) -> None:
        """Pin the answer if this is the call that is to get it: the lookup finds it then."""
        answer = self.prepared.get(request.scope_digest)
        if answer is not None and not self.pinned and request.question == normalise(self.question):
            self.give(request, answer, pin)

    def after_lookup(self, request: Request, result: Hit | Miss, pin: Pin) -> None:
        """Note a call that was answered from the cache, or is not."""
        if isinstance(result, Hit):
            pinned = bool(result.pinned) and result.tier == "exact"
            self.calls.append(Call(request, result.answer, pin, True, pinned))
        else:
            self.misses += 1

    def after_store(self, request: Request, answer: Answer, pin: Pin, rejected: str | None) -> None:
        """Note a call that its model has answered, or why its answer is not stored."""
        if rejected:
            self.rejected = rejected
        else:
            self.calls.append(Call(request, answer, pin))

    def give(self, request: Request, answer: Answer, pin: Pin) -> bool:
        """Pin the answer to this request; return whether it was."""
        try:
            entry_id, reason = pin(request, answer, alone=self.alone)
        except Exception as error:  # this is within a call of the program, which goes on
            entry_id, reason = "", f"{type(error).__name__}: {error}"
        if entry_id:
            self.pinned.append(entry_id)
        self.done, self.refused = reason == DONE, "" if reason == DONE else reason
        return not self.refused

    def asked(self) -> int:
        """Count the calls that reached a model; one that is cached in two layers counts once."""
        told = [call.answer.text for call in self.calls if not call.repeated]
        return self.misses - (len(told) - len(set(told)))


_running: ContextVar[WarmingRun | None] = ContextVar("ibidem_warming", default=None)
current_run: Callable[[], WarmingRun | None] = _running.get


def warming(run: WarmingRun) -> AbstractContextManager[WarmingRun]:
    """Note the calls of a block in `run`."""
    return context_value(_running, run)
