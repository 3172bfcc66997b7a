"""The example log of a cache (`cache.examples`), its write queue and the expiry of examples."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem.errors import InvalidInput, StorageUnavailable
from ibidem.example import Example, example_of
from ibidem.examples.selection import Selector, Wanted
from ibidem.prompts.key import question_of
from ibidem.scope import current, effective_namespace
from ibidem.storage.examples import EmbeddedExample, ExampleStats
from ibidem.storage.tables import MAX_NUMBER
from ibidem.types import Answer, Entry, digest, is_in_namespace, normalise, require_name, storable

if TYPE_CHECKING:
    from ibidem._util.faults import Faults
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.storage.examples import ExampleTable


_TOO_LARGE = 2**63  # the first number that a BIGINT does not hold; NaN and infinity are not below it


class ExampleLog:
    """The examples of a cache (`SemanticCache.examples`), written in the background. Thread-safe.

    Within `ibidem.scope` its namespace is the default, and examples of others cannot be reached.

    At most the newest 100,000 are kept, whichever process added them. They are written some moments later,
    and at a normal exit; a killed process (kill -9) may lose those of its last moments. While the
    database is unavailable, locked or full they wait; a batch that it refuses otherwise is dropped, as one
    of the lookup log is, and counted in `stats().faults`.

    Args:
        shared: The examples of the cache's location.
        ready: Raises if the cache is closed; called before anything else.
        redacted: Returns a text as it may be written, "" if that is not known.
        flush: Waits until what was added is written.
        kept: Whether examples are kept at all.
    """

    def __init__(
        self,
        shared: SharedExamples,
        ready: Callable[[], None],
        redacted: Callable[[str], str],
        flush: Callable[[], object],
        *,
        kept: bool = True,
    ) -> None:
        self._flush = flush
        self._shared, self._ready, self._redacted, self.kept = shared, ready, redacted, kept

    def add(self, example: Example) -> bool:
        """Add an example; returns at once. False, counted in `stats().faults`, if it cannot be kept.

        It is written as `redact` returns it, and within `ibidem.scope` in its namespace if it has none. It
        cannot be kept if no database holds one of its texts (lone surrogates, NUL) or numbers, or while
        10,000 wait to be written; nor, uncounted, by a cache without examples (`examples=False`). Never
        raises because storage failed.

        If this process stored the same answer to the same question in this cache within ten seconds, the two
        become one example with what either knows, unless the other was written already.

        Raises:
            InvalidInput: `example` is not an `Example`.
            CacheClosed: The cache was closed.
        """
        self._ready()
        if not isinstance(example, Example):
            raise InvalidInput(f"expected an ibidem.Example, not {type(example).__name__}")
        if not self.kept or current().bypass:
            return False
        if not (_fits(example) and storable(current().name())):
            self._shared.faults.count(
                "keep examples: invalid", "refused an example with text or numbers that no database holds"
            )
            return False
        question, answer = self._redacted(example.question), self._redacted(example.answer)
        if not question or (example.answer and not answer):
            return False
        now = self._shared.clock()
        shown = replace(
            example,
            at=example.at or now,
            question=question,
            answer=answer,
            namespace=example.namespace or current().name(),
        )
        return self._shared.add(EmbeddedExample(shown, submitted=now))

    def of_entry(self, entry: Entry, answer: Answer, embedder: str) -> None:
        """Keep a stored entry as an example too, if its question is known and its answer a text for people.

        `embedder` is the fingerprint of the embedder of the entry's vector.
        """
        if not self.kept or entry.question is None or not answer.semantic:
            return
        example = example_of(entry, answer, at=entry.created, feedback=True if entry.pinned else None)
        if _fits(example):
            given = EmbeddedExample(example, entry.vector, embedder, submitted=entry.created)
            self._shared.add(given, stored=True)

    def feedback(self, example_id: int, *, good: bool | None) -> bool:
        """Rate an example: a bad one is never selected. None withdraws the rating.

        `SemanticCache.feedback` rates the examples of an entry.

        Args:
            example_id: `Example.id`, from `recent` or `select`.
            good: Whether it is good.

        Returns:
            Whether the example exists (within `ibidem.scope`, in its namespace).

        Raises:
            InvalidInput: An argument has the wrong type.
            StorageError: The database failed.
            CacheClosed: The cache was closed.
        """
        self._ready()
        if isinstance(example_id, bool) or not isinstance(example_id, int):
            raise InvalidInput(f"example_id must be an int (Example.id), not {type(example_id).__name__}")
        if not (good is None or isinstance(good, bool)):
            raise InvalidInput(f"good must be True, False or None, not {good!r}")
        if not 0 < example_id < _TOO_LARGE:
            return False
        examples = self._shared.table
        if not all(current().covers(found.namespace) for found in examples.of_ids([example_id])):
            return False  # ids are counted up, so any may be guessed
        return examples.set_feedback(example_id, good)

    def select(
        self,
        question: str,
        k: int = 4,
        *,
        max_tokens: int | None = None,
        namespace: str = "",
        min_feedback: bool | None = None,
        diversity: float = 0.3,
        tags: Sequence[str] = (),
        model: str | None = None,
        count_tokens: Callable[[str], int] | None = None,
    ) -> list[Example]:
        """Select examples for a prompt that asks this question: similar to it, and different from each other.

        Of the nearest by the cache's embedder (64, or 16 for each of `k` if that is more), those with the
        highest maximal marginal relevance, in the order in which they were picked: the nearest first. One
        that somebody called good counts as 0.05 nearer, one that somebody called bad is never taken. Of
        examples with one question, up to case, blanks and final punctuation, one is taken, and none with the
        question asked: its answer would be copied, also when it is out of date.

        The same log gives the same selection. What was added in the last half second may be missing.

        Args:
            question: What is asked.
            k: How many at most; there are fewer if the log or the budget gives no more.
            max_tokens: Tokens that questions and answers may have together.
            namespace: Whose examples; that of `ibidem.scope`, if not given.
            min_feedback: True to take only what somebody called good.
            diversity: 0 for the most similar, towards 1 for more different ones.
            tags: Only examples with all these tags.
            model: Only what this model answered.
            count_tokens: Counts the tokens of a text. By default a bound from above that needs no tokenizer
                (`ibidem.embedding.adapters.estimate_tokens`): the budget holds for any common vocabulary.

        Returns:
            The examples; none if the embedder cannot read the question (too long, another script).

        Raises:
            InvalidInput: An argument has the wrong type or is out of range.
            StorageError: The database failed.
            CacheClosed: The cache was closed.
        """
        self._ready()
        wanted = Wanted.checked(
            question,
            k,
            max_tokens=max_tokens,
            namespace=current().name() if namespace == "" else namespace,
            min_feedback=min_feedback,
            diversity=diversity,
            tags=tags,
            model=model,
            count_tokens=count_tokens,
        )
        if not wanted.question or not storable(wanted.question):
            return []
        return self._shared.select(wanted)

    def select_for(
        self,
        variables: Mapping[str, Any],
        k: int = 4,
        *,
        input_key: str = "",
        namespace: str = "",
        **options: Any,
    ) -> list[Example]:
        """Select examples for the question among the variables of a template; none without a question.

        The nearest is the last, beside the question: small models answer better so (docs/learning.md).

        Args:
            variables: The values of the template's variables.
            k: How many at most.
            input_key: The variable that holds the question; else the usual ones.
            namespace: Whose examples; overridden by `ibidem.scope`.
            **options: As of `select`, which raises the same.
        """
        question = question_of(variables, input_key)
        if not question:
            return []
        return self.select(question, k, namespace=current().name(namespace), **options)[::-1]

    def recent(self, limit: int = 20, namespace: str | None = None) -> list[Example]:
        """Return the last `limit` examples added by any process, newest first; all or those of one namespace.

        Within `ibidem.scope` its namespace is the default; so for `count` and `stats`.

        Raises:
            InvalidInput: An argument has the wrong type, or `limit` is negative.
            StorageError: The database failed.
            CacheClosed: The cache was closed.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise InvalidInput(f"limit must be a whole number of examples, not {limit!r}")
        namespace = effective_namespace(namespace)
        self.prepare_read(namespace)
        return self._shared.table.recent(limit, namespace)

    def count(self, namespace: str | None = None) -> int:
        """Count the examples, all or those of one namespace. Raises as `recent`."""
        namespace = effective_namespace(namespace)
        self.prepare_read(namespace)
        return self._shared.table.count(namespace)

    def check(self, k: int, **options: Any) -> None:
        """Validate arguments of `select`, for adapters: raise now what it would raise later.

        Raises:
            InvalidInput: An argument has the wrong type or is out of range.
            TypeError: There is no such argument.
        """
        self.select("", k, **options)

    def stats(self, namespace: str | None = None) -> ExampleStats:
        """Count by namespace, model and feedback, and sum up tokens. Raises as `recent`."""
        namespace = effective_namespace(namespace)
        self.prepare_read(namespace)
        return self._shared.table.stats(namespace)

    def prepare_read(self, namespace: str | None) -> None:
        """Validate the namespace, and write what waits."""
        self._ready()
        if namespace is not None:
            require_name("namespace", namespace)
        self._flush()


def _fits(example: Example) -> bool:
    """Return whether SQL columns hold the example."""
    ids = (example.entry_id or "", *(name for d in example.documents for name in (d.id, d.source)))
    texts = (example.question, example.answer, example.namespace, example.model, *ids, *example.tags)
    numbers = (example.at, example.input_tokens or 0, example.output_tokens or 0, example.seconds or 0)
    return all(map(storable, texts)) and all(0 <= number < MAX_NUMBER for number in numbers)


QUEUE_LIMIT = 10_000  # examples that wait to be written, so that a slow database fills no memory
BATCH = 500  # examples written in one transaction
JOIN_SECONDS = 10.0  # between two reports of one answer, at most
EXPIRY_SECONDS = 60.0  # between two deletions of expired examples, while in use
_REMEMBERED = 4096
_UNKNOWN = (None, "", ())


@dataclass(slots=True)
class _Report:
    """A report of an answer that may be joined by another one; `number` is its position in the queue."""

    number: int
    stored: bool
    entry_id: str | None
    at: float


class ExampleQueue:
    """Examples that wait to be written. Thread-safe.

    An answer can be reported twice: by the cache that stored it, and by an adapter that followed the program.
    The second report only adds what the first one lacks.
    """

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._waiting: collections.OrderedDict[int, EmbeddedExample] = collections.OrderedDict()
        self._reports: BoundedDict[str, list[_Report]] = BoundedDict(_REMEMBERED)
        self._next = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, given: EmbeddedExample, *, stored: bool) -> None:
        """Queue an example, or join it to the other report of its answer.

        `stored` if the cache that stored the answer reports it.
        """
        key, example, now = _key(given.example), given.example, time.monotonic()
        with self._lock:
            reports = [one for one in self._reports.get(key) or () if now - one.at < JOIN_SECONDS]
            other = next((one for one in reports if _is_other_report(one, example.entry_id, stored)), None)
            if other is None:
                self._next += 1
                self._waiting[self._next] = given
                reports.append(_Report(self._next, stored, example.entry_id, now))
            else:
                reports.remove(other)
                if (first := self._waiting.get(other.number)) is not None:
                    self._waiting[other.number] = _join(first, given)
            self._reports.put(key, reports)

    def take(self, limit: int) -> list[tuple[int, EmbeddedExample]]:
        """Remove and return up to `limit` queued examples with their queue numbers."""
        with self._lock:
            return [self._waiting.popitem(last=False) for _ in range(min(limit, len(self._waiting)))]

    def put_back(self, taken: Sequence[tuple[int, EmbeddedExample]]) -> None:
        """Return examples to their places in the queue."""
        with self._lock:
            for number, one in reversed(taken):
                self._waiting[number] = one
                self._waiting.move_to_end(number, last=False)

    def drop(self, namespace: str | None = None) -> None:
        """Drop the examples of a namespace, or all."""
        with self._lock:
            self._reports.clear()
            for number, one in tuple(self._waiting.items()):
                if namespace is None or is_in_namespace(one.example.namespace, namespace):
                    del self._waiting[number]

    def forget_reports(self) -> None:
        """Expect no second reports: examples were deleted, so a new report is of a new answer."""
        with self._lock:
            self._reports.clear()


class SharedExamples:
    """The examples of one location: what waits to be written, and the selector. Thread-safe.

    Args:
        table: The example log.
        embedder: Makes the vectors to select by.
        faults: Counts what is dropped.
        clock: Seconds since the epoch.
        ttl: Seconds that an example is kept; infinite for ever.
        wake: Wakes the background thread, which calls `write`, `embed` and `expiry.work`.
    """

    def __init__(
        self,
        table: ExampleTable,
        embedder: CheckedEmbedder,
        faults: Faults,
        clock: Callable[[], float],
        *,
        ttl: float,
        wake: Callable[[], None],
    ) -> None:
        self.table, self.faults, self.clock, self._wake = table, faults, clock, wake
        self.queue = ExampleQueue()
        self.adopt(embedder)
        self.expiry = ExampleExpiry(table, ttl, clock)

    def adopt(self, embedder: CheckedEmbedder) -> None:
        """Select by the vectors of this embedder from now on."""
        self.embedder, self.selector = embedder, Selector(self.table, embedder)

    def add(self, given: EmbeddedExample, *, stored: bool = False) -> bool:
        """Write an example to its log, in the background; False, counted, if too many wait already.

        `stored` if its answer was just stored.
        """
        if len(self.queue) >= QUEUE_LIMIT:
            limit = f"{QUEUE_LIMIT:,} wait to be written"
            self.faults.count("keep examples: too many wait", f"dropped an example: {limit}")
            return False
        self.queue.put(given, stored=stored)
        self._wake()
        return True

    def write(self) -> bool:
        """Write a batch; returns whether there is more. Raises `StorageError`."""
        taken = self.queue.take(BATCH)
        try:
            if taken:
                self.table.add([one for _, one in taken])
        except StorageUnavailable:
            self.queue.put_back(taken)
            raise
        return len(self.queue) > 0

    def embed(self) -> bool:
        """Embed some questions of a namespace that was selected from; returns whether there is more."""
        return self.selector.work()

    def select(self, wanted: Wanted) -> list[Example]:
        """Select examples for a prompt; raises what the database or the embedder does."""
        found = self.selector.select(wanted)
        if self.selector.behind:
            self._wake()
        return found


class ExampleExpiry:
    """Deletes expired examples.

    Args:
        table: The example log.
        ttl: Seconds that an example is kept; infinite for ever.
        clock: Seconds since the epoch.
    """

    def __init__(self, table: ExampleTable, ttl: float, clock: Callable[[], float]) -> None:
        self._table, self._ttl, self._clock, self._next_at = table, ttl, clock, 0.0

    def tighten(self, ttl: float) -> None:
        """Apply the shorter `ttl`, when another cache opens this location."""
        self._ttl = min(self._ttl, ttl)

    def work(self) -> bool:
        """Delete expired examples; return False, as nothing is left then."""
        if math.isfinite(self._ttl) and time.monotonic() >= self._next_at:
            self._table.delete_before(self._clock() - self._ttl)
            self._next_at = time.monotonic() + EXPIRY_SECONDS
        return False


def _key(example: Example) -> str:
    return digest(example.namespace, normalise(example.question), example.answer)


def _is_other_report(one: _Report, entry_id: str | None, stored: bool) -> bool:
    return one.stored != stored and (None in (one.entry_id, entry_id) or one.entry_id == entry_id)


def _join(first: EmbeddedExample, second: EmbeddedExample) -> EmbeddedExample:
    """Join two reports of one answer; where they differ, the first counts."""
    one, other = first.example, second.example
    names = "model documents input_tokens output_tokens seconds entry_id scope feedback".split()
    known = {name: getattr(other, name) for name in names if getattr(one, name) in _UNKNOWN}
    tags = tuple(dict.fromkeys((*one.tags, *other.tags)))
    example = replace(one, **known, tags=tags, streamed=one.streamed or other.streamed)
    submitted = min(first.submitted, second.submitted)
    return replace(first if first.vector is not None else second, example=example, submitted=submitted)
