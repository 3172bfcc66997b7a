"""Is an answer worth keeping? Truncated, filtered and empty answers are not: a cache makes them permanent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ibidem.bounded import BoundedDict
from ibidem.faults import Faults
from ibidem.locks import ForkSafeLock
from ibidem.request import Answer, Request, storable

# What providers call a complete answer (OpenAI, Anthropic, Google, Mistral, Ollama, Cohere, Bedrock).
COMPLETE = frozenset(
    (
        "stop end_turn stop_sequence eos eos_token complete completed finished done "
        "tool_calls tool_use function_call"
    ).split()
) | {""}
# Providers sample at 1 unless told otherwise, so up to there nobody has asked for variety; above it somebody
# has, and a repeated answer would take it away.
MAX_TEMPERATURE = 1.0
QUOTA_SECONDS = 3600.0  # for which a write quota is
NAMESPACES = 10_000  # whose writes are counted; the longest unused are forgotten

Redact = Callable[[str], str]
Admit = Callable[[Request, Answer], bool]


class Admission:
    """What one cache may store. Thread-safe.

    Args:
        faults: Where failures of the callables are counted.
        redact: Returns a text without what must not be stored; `str` in, `str` out.
        admit: Returns whether an answer may be stored.
        max_temperature: Answers sampled at a higher temperature are not stored.
        write_quota: Answers stored per namespace and hour, by this process; None for any number.
    """

    def __init__(
        self,
        faults: Faults,
        *,
        redact: Redact | None = None,
        admit: Admit | None = None,
        max_temperature: float = MAX_TEMPERATURE,
        write_quota: int | None = None,
    ) -> None:
        self._faults, self._redact, self._admit = faults, redact, admit
        self._max_temperature, self._write_quota = max_temperature, write_quota
        self._lock = ForkSafeLock()
        self._written: BoundedDict[str, tuple[float, float]] = BoundedDict(NAMESPACES)

    def refusal(self, request: Request, answer: Answer) -> str | None:
        """Why the answer must not be stored, or None. Reasons as in `Rejected`."""
        if reason := _unfit(request, answer):
            return reason
        if isinstance(request.temperature, (int, float)) and request.temperature > self._max_temperature:
            return "temperature"
        if self.is_private(answer.text) or (answer.payload and self._holds_private(answer.payload)):
            return "private"
        if self._admit is not None and not self._admitted(self._admit, request, answer):
            return "not_admitted"
        return "write_quota" if self._write_quota is not None and self._spent(request.namespace) else None

    def is_private(self, text: str) -> bool:
        """Whether `redact` would change the text, or fails on it."""
        return self._redact is not None and self.redacted(text) != text

    def _holds_private(self, payload: str) -> bool:
        """As `is_private`; in JSON a name may be escaped, so its texts are also read as they are meant."""
        if self._redact is None:
            return False
        return self.is_private(payload) or self.is_private("\n".join(_texts(payload)))

    def redacted(self, text: str) -> str:
        """The text as it may be written to a log; empty if `redact` fails on it."""
        return self.attempted(text) or ""

    def attempted(self, text: str) -> str | None:
        """The text as it may be written to a log; None if `redact` fails on it."""
        if self._redact is None:
            return text
        try:
            shown = self._redact(text)
            if isinstance(shown, str):
                return shown
            raise TypeError(f"redact must return a str, not {type(shown).__name__}")
        except Exception as error:
            self._faults.note("redact a text", error)
            return None

    def _admitted(self, admit: Admit, request: Request, answer: Answer) -> bool:
        try:
            return bool(admit(request, answer))
        except Exception as error:
            self._faults.note("call admit", error)
            return False

    def give_back(self, namespace: str) -> None:
        """A write that was counted has failed."""
        with self._lock:
            if self._write_quota is not None and (known := self._written.get(namespace)):
                self._written.put(namespace, (known[0], known[1] + 1.0))

    def _spent(self, namespace: str) -> bool:
        """Count a write; whether the quota was used up before. It comes back evenly over the hour."""
        now, quota = time.monotonic(), float(self._write_quota or 0)
        with self._lock:
            since, left = self._written.get(namespace) or (now, quota)
            left = min(quota, left + quota * (now - since) / QUOTA_SECONDS)
            self._written.put(namespace, (now, max(0.0, left - 1.0) if left >= 1.0 else left))
        return left < 1.0


def _unfit(request: Request, answer: Answer) -> str | None:
    """What no cache stores."""
    if answer.finish_reason.lower() not in COMPLETE:
        return f"finish_reason:{answer.finish_reason}"
    if answer.semantic and not answer.text.strip():
        return "empty"
    ids = (name for document in request.documents for name in (document.id, document.source))
    texts = (request.question, request.namespace, answer.text, answer.model, answer.payload, *ids)
    return None if all(map(storable, texts)) else "invalid_text"


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, or in a text that is JSON, such as the arguments of a tool call."""
    left = [value]  # the next one last
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [item for pair in reversed(value.items()) for item in reversed(pair)]
        elif isinstance(value, list):
            left += reversed(value)
        elif isinstance(value, str):
            yield value
            with suppress(ValueError, RecursionError):
                if value.lstrip()[:1] in ("{", "[", '"'):
                    left.append(json.loads(value))
