"""Admission, lifetime and eviction: which answers are stored, how long, and which go when the cache is full.

Truncated, filtered and empty answers are not stored: a cache would make them permanent.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.types import Answer, Entry, Request, storable, tenant_of

# Finish reasons of a complete answer (OpenAI, Anthropic, Google, Mistral, Ollama, Cohere, Bedrock).
COMPLETE = frozenset(
    (
        "stop end_turn stop_sequence eos eos_token complete completed finished done "
        "tool_calls tool_use function_call"
    ).split()
) | {""}
# Providers sample at 1 unless told otherwise, so up to there nobody has asked for variety; above it somebody
# has, and a repeated answer would take it away.
MAX_TEMPERATURE = 1.0
QUOTA_SECONDS = 3600.0  # the period of the write limit
NAMESPACES = 10_000  # with a count of writes; the least recently used are forgotten

Redact = Callable[[str], str]
ShouldStore = Callable[[Request, Answer], bool]


class Admission:
    """Decides what one cache may store. Thread-safe.

    Args:
        faults: Counts failures of the callables.
        redact: Returns a text without what must not be stored; `str` in, `str` out.
        should_store: Returns whether an answer may be stored.
        max_temperature: Answers sampled at a higher temperature are not stored.
        max_writes_per_hour: Answers stored per namespace and hour, by this process; None for any number.
    """

    def __init__(
        self,
        faults: Faults,
        *,
        redact: Redact | None = None,
        should_store: ShouldStore | None = None,
        max_temperature: float = MAX_TEMPERATURE,
        max_writes_per_hour: int | None = None,
    ) -> None:
        self._faults, self._redact, self._should_store = faults, redact, should_store
        self._max_temperature, self._max_writes_per_hour = max_temperature, max_writes_per_hour
        self._lock = ForkSafeLock()
        self._written: BoundedDict[str, tuple[float, float]] = BoundedDict(NAMESPACES)

    def refusal(self, request: Request, answer: Answer) -> str | None:
        """Return why the answer must not be stored, or None. Reasons as in `Rejected`."""
        if reason := _unfit(request, answer):
            return reason
        if isinstance(request.temperature, (int, float)) and request.temperature > self._max_temperature:
            return "temperature"
        if self.is_private(answer.text) or (answer.payload and self._holds_private(answer.payload)):
            return "private"
        if self._should_store is not None and not self._admitted(self._should_store, request, answer):
            return "not_admitted"
        limited = self._max_writes_per_hour is not None and self._spent(request.namespace)
        return "write_quota" if limited else None

    def is_private(self, text: str) -> bool:
        """Return whether `redact` changes the text, or fails on it."""
        return self._redact is not None and self.redacted(text) != text

    def _holds_private(self, payload: str) -> bool:
        """As `is_private`, for JSON: names may be escaped in it, so its texts are also checked decoded."""
        if self._redact is None:
            return False
        return self.is_private(payload) or self.is_private("\n".join(_texts(payload)))

    def redacted(self, text: str) -> str:
        """Redact a text for a log; empty if `redact` fails on it."""
        return self.attempted(text) or ""

    def attempted(self, text: str) -> str | None:
        """Redact a text for a log; None if `redact` fails on it."""
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

    def _admitted(self, should_store: ShouldStore, request: Request, answer: Answer) -> bool:
        try:
            return bool(should_store(request, answer))
        except Exception as error:
            self._faults.note("call admit", error)  # a label of metrics: it keeps the name of 0.1
            return False

    def give_back(self, namespace: str) -> None:
        """Return a counted write that failed."""
        with self._lock:
            if self._max_writes_per_hour is not None and (known := self._written.get(namespace)):
                self._written.put(namespace, (known[0], known[1] + 1.0))

    def _spent(self, namespace: str) -> bool:
        """Count a write; return whether the limit was reached. It recovers evenly over the hour."""
        now, quota = time.monotonic(), float(self._max_writes_per_hour or 0)
        with self._lock:
            since, left = self._written.get(namespace) or (now, quota)
            left = min(quota, left + quota * (now - since) / QUOTA_SECONDS)
            self._written.put(namespace, (now, max(0.0, left - 1.0) if left >= 1.0 else left))
        return left < 1.0


def _unfit(request: Request, answer: Answer) -> str | None:
    """Return why no cache stores the answer, or None."""
    if answer.finish_reason.lower() not in COMPLETE:
        return f"finish_reason:{answer.finish_reason}"
    if answer.semantic and not answer.text.strip():
        return "empty"
    documents = (*request.documents, *answer.documents)
    ids = (name for document in documents for name in (document.id, document.source))
    texts = (request.question, request.namespace, answer.text, answer.model, answer.payload, *ids)
    return None if all(map(storable, texts)) else "invalid_text"


def _texts(value: Any) -> Iterator[str]:
    """List all texts in a JSON value, or in a text that is JSON, such as the arguments of a tool call."""
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


DAYS = 86_400.0
# Entries from further in the future are expired: the clock was set back since, and they would outlive their
# time.
CLOCK_SKEW = 3_600.0
_IDS = float(2**32)

State = Literal["alive", "stale", "expired"]


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The lifetime rules of one cache. The shortest lifetime of the storing and the reading cache counts.

    Args:
        ttl: Lifetime of an answer in seconds.
        namespace_ttl: The same for single namespaces, and for the users in them.
        jitter: Share of its lifetime (0 to 1) by which an answer may expire earlier, by its id, so that
            answers stored together do not expire together.
        sliding: Whether the lifetime restarts whenever the answer is served.
        stale_while_revalidate: Seconds after its life in which an answer is still served, except to one
            caller at a time, whose miss refreshes it.
    """

    ttl: float = 30 * DAYS
    namespace_ttl: Mapping[str, float] = field(default_factory=dict)
    jitter: float = 0.0
    sliding: bool = False
    stale_while_revalidate: float = 0.0

    def of(self, namespace: str, ttl: float | None = None) -> float:
        """Return the lifetime of an answer in seconds; `ttl` is that of the storing call."""
        rules = self.namespace_ttl
        own = rules[namespace] if namespace in rules else rules.get(tenant_of(namespace), self.ttl)
        return own if ttl is None else min(own, ttl)

    def expires(self, life: float, now: float) -> float | None:
        """Return when an entry that is stored or served now can be deleted, None for never."""
        return None if math.isinf(life) else now + life + self.stale_while_revalidate

    def state(self, entry: Entry, now: float, max_age: float | None = None) -> State:
        """Return the state of an entry at `now`; it is expired if older than `max_age` seconds.

        A vetted answer is alive, whatever its age: what the model would say instead is not.
        """
        if entry.pinned:
            return "alive"
        age = now - entry.created
        if age < -CLOCK_SKEW or (max_age is not None and age > max_age):
            return "expired"
        since = max(entry.created, entry.used) if self.sliding else entry.created
        life = self.of(entry.namespace, entry.ttl)
        if self.jitter:
            life *= 1.0 - self.jitter * int(entry.id[:8], 16) / _IDS
        if now < since + life:
            return "alive"
        return "stale" if now < since + life + self.stale_while_revalidate else "expired"


Eviction = Literal["cost", "lru"]

NEW = 0.05  # hits that a new entry starts with
MOST_HITS = 4  # hits that count
OUTPUT_WEIGHT = 4.0  # an output token costs about four times an input token (list prices of 2024 to 2026)
CHARS_PER_TOKEN = 4.0  # of English text, where the model reports no tokens
OVERHEAD = 1_300  # bytes of an entry besides its texts, vector and documents, measured: ids, numbers, indexes
DOCUMENT_BYTES = 150  # bytes of a document behind an answer: an id and a digest, not its text


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits on the size of a cache, None for unlimited, and the order of eviction when it is full.

        rank = floor + (min(hits, 4) + 0.05) * cost / size

    The entry with the lowest rank is evicted, and `floor` rises to its rank: unused entries age
    (GreedyDual-Size with frequency: L. Cherkasova, HP Labs report HPL-98-69R1). Two changes pay on Zipf
    streams with the token costs of real conversations (`tests/benchmarks/eviction.py`): a new entry starts
    with a twentieth of a hit, as most are asked for once, and hits beyond the fourth do not count, so that
    formerly popular entries can go.

    Args:
        max_entries: Answers kept.
        max_bytes: Bytes they take in the database, estimated from their texts and vectors.
        eviction: What goes first: `cost`, the entries that save least, or `lru`, the least recently used.
    """

    max_entries: int | None = None
    max_bytes: int | None = None
    eviction: Eviction = "cost"

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.max_entries is not None or self.max_bytes is not None

    @property
    def ranking(self) -> str:
        """Name of the way of ranking; ranks under different names are not comparable."""
        return "lru" if self.eviction == "lru" else f"cost/{'byte' if self.max_bytes else 'entry'}"

    def tightened(self, other: Bounds) -> Bounds:
        """Return the stricter limits of two caches on one location."""
        return Bounds(
            _smaller(self.max_entries, other.max_entries),
            _smaller(self.max_bytes, other.max_bytes),
            other.eviction,
        )

    def rank(
        self, floor: Any, hits: Any, cost: Any, size: Any, used: Any, least: Callable[..., Any] = min
    ) -> Any:
        """Compute the rank of an entry, of numbers or of columns; `least` is the minimum of two of them."""
        if self.eviction == "lru":
            return used
        saved = (least(hits, MOST_HITS) + NEW) * cost
        # One byte more: an Ibidem from before schema 2 that is still running writes no sizes.
        return floor + (saved / (size + 1) if self.max_bytes is not None else saved)


UNBOUNDED = Bounds()
# Ways of ranking, by name.
RANKINGS = {one.ranking: one for one in (UNBOUNDED, Bounds(max_bytes=1), Bounds(eviction="lru"))}


def _smaller(one: int | None, other: int | None) -> int | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)


def cost_of(answer: Answer) -> float:
    """Compute the cost of an answer in input tokens; estimated from its text if the model reported none."""
    if answer.input_tokens is None and answer.output_tokens is None:
        return OUTPUT_WEIGHT * len(answer.text) / CHARS_PER_TOKEN
    return (answer.input_tokens or 0) + OUTPUT_WEIGHT * (answer.output_tokens or 0)
