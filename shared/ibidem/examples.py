"""The example log: answered questions, kept for few-shot prompts and fine-tuning.

It is separate from the stored answers: an example may come from a streamed answer or from a model that is not
cached, and it outlives the entry that gave it. Questions and answers are kept in clear; of the documents only
ids and digests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ibidem.admission import storable
from ibidem.bypass import is_bypassed
from ibidem.errors import InvalidInput
from ibidem.request import Document, require_bool, require_tags, require_text

if TYPE_CHECKING:
    from ibidem.backend import Backend

_SCOPE = re.compile("(?:[0-9a-f]{32})?")
_TOO_LARGE = 2**63  # the first number that a BIGINT does not hold; NaN and infinity are not below it


@dataclass(frozen=True, slots=True)
class DocumentRef:
    """A document that the model saw, by its id and the digest of its content; the text is not kept.

    `source` is what it was cut from, if known.
    """

    id: str
    digest: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A question that was answered.

    Args:
        question: The user's question alone. It is kept in clear: leave out what must not be.
        answer: The answer as a reader sees it, whole.
        at: When it was given, in seconds since the epoch; 0 stands for when it is added.
        namespace: Tenant, user or application, as in `Request`; clearing it deletes its examples.
        model: Name of the model that answered.
        documents: The documents in the prompt, as `ibidem.Document`s. Each becomes a `DocumentRef` on
            arrival: its text is not kept.
        input_tokens: Prompt tokens, if known.
        output_tokens: Completion tokens, if known.
        seconds: How long the answer took, if known.
        streamed: Whether it came in pieces.
        entry_id: The entry of the cache that holds the answer; None if none does.
        scope: Digest of everything else the model saw (`Request.scope_digest`), empty if unknown.
        feedback: True if somebody called the answer good, False if bad; None if nobody said.
        tags: Names by which it can be selected.
        id: Its number in the log, if it was read from there; ids grow in the order of adding. Not compared.

    Raises:
        InvalidInput: A part has the wrong type, or question or answer is empty.
    """

    question: str
    answer: str
    at: float = field(default=0.0, kw_only=True)
    namespace: str = field(default="", kw_only=True)
    model: str = field(default="", kw_only=True)
    documents: tuple[Document | DocumentRef, ...] = field(default=(), kw_only=True)
    input_tokens: int | None = field(default=None, kw_only=True)
    output_tokens: int | None = field(default=None, kw_only=True)
    seconds: float | None = field(default=None, kw_only=True)
    streamed: bool = field(default=False, kw_only=True)
    entry_id: str | None = field(default=None, kw_only=True)
    scope: str = field(default="", kw_only=True)
    feedback: bool | None = field(default=None, kw_only=True)
    tags: tuple[str, ...] = field(default=(), kw_only=True)
    id: int | None = field(default=None, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        for name in ("question", "answer", "namespace", "model", "scope"):
            require_text(f"Example.{name}", getattr(self, name))
        for name in ("question", "answer"):
            if not getattr(self, name).strip():
                raise InvalidInput(f"Example.{name} is empty; an example has a question and its answer")
        for name in ("at", "input_tokens", "output_tokens", "seconds"):
            _require_number(name, getattr(self, name))
        require_bool("Example.streamed", self.streamed)
        if self.entry_id is not None:
            require_text("Example.entry_id", self.entry_id)
        if not _SCOPE.fullmatch(self.scope):
            raise InvalidInput("Example.scope must be a digest (Request.scope_digest), or empty")
        if self.feedback is not None:
            require_bool("Example.feedback", self.feedback)
        if self.id is not None and (isinstance(self.id, bool) or not isinstance(self.id, int)):
            raise InvalidInput(f"Example.id must be an int or None, not {type(self.id).__name__}")
        object.__setattr__(self, "documents", _refs(self.documents))
        object.__setattr__(self, "tags", require_tags(self.tags))


def _require_number(name: str, value: object) -> None:
    whole, needed = name.endswith("tokens"), name == "at"
    if value is None and not needed:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        kind = f"{'an int' if whole else 'a number'}{'' if needed else ' or None'}"
        raise InvalidInput(f"Example.{name} must be {kind}, not {type(value).__name__}")


def _refs(given: object) -> tuple[DocumentRef, ...]:
    """What may be any iterable of documents, without their texts."""
    found = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(document, (Document, DocumentRef)) for document in found):
        raise InvalidInput("Example.documents must be a sequence of ibidem.Document")
    return tuple(DocumentRef(document.id, document.digest, document.source) for document in found)


class ExampleLog:
    """The examples of one cache's database, written behind; reached as `SemanticCache.examples`. Thread-safe.

    At most the newest 100,000 are kept, whichever process added them. They are written some moments later,
    and at a normal exit; a killed process (kill -9) may lose those of its last moments. While the
    database is away, locked or full they wait; a batch that it refuses otherwise is dropped, as one of the
    lookup log is, and counted in `stats().faults`.

    Args:
        backend: Where the examples are written.
        ready: Raises if the cache is closed; called before anything else.
        redacted: Returns a text as it may be written, "" if that is not known.
    """

    def __init__(self, backend: Backend, ready: Callable[[], None], redacted: Callable[[str], str]) -> None:
        self._backend, self._ready, self._redacted = backend, ready, redacted

    def add(self, example: Example) -> bool:
        """Keep the example; returns at once. False, counted in `stats().faults`, if it cannot be kept.

        It is written as `redact` returns it. It cannot be kept where no database holds a text (lone
        surrogates, NUL) or a number of it, and while 10,000 wait to be written. Never raises because storage
        failed.

        Raises:
            InvalidInput: `example` is not an `Example`.
            CacheClosed: The cache was closed.
        """
        self._ready()
        if not isinstance(example, Example):
            raise InvalidInput(f"expected an ibidem.Example, not {type(example).__name__}")
        if is_bypassed():
            return False
        if not _fits(example):
            self._backend.faults.count(
                "keep examples: invalid", "refused an example with text or numbers that no database holds"
            )
            return False
        question, answer = self._redacted(example.question), self._redacted(example.answer)
        if not question or (example.answer and not answer):
            return False
        at = example.at or self._backend.clock()
        return self._backend.note_example(replace(example, at=at, question=question, answer=answer))

    def recent(self, limit: int = 20, namespace: str | None = None) -> list[Example]:
        """The last `limit` examples added, by any process, the newest first; all or those of one namespace.

        Raises:
            InvalidInput: An argument has the wrong type, or `limit` is negative.
            StorageError: The database failed.
            CacheClosed: The cache was closed.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise InvalidInput(f"limit must be a whole number of examples, not {limit!r}")
        return self._backend.records.examples.recent(limit, namespace) if self._look_up(namespace) else []

    def count(self, namespace: str | None = None) -> int:
        """How many examples are kept, in all or of one namespace. Raises as `recent`."""
        return self._backend.records.examples.count(namespace) if self._look_up(namespace) else 0

    def _look_up(self, namespace: str | None) -> bool:
        """Write what waits; False if nothing can be stored in this namespace."""
        self._ready()
        if namespace is not None and not storable(require_text("namespace", namespace)):
            return False
        self._backend.flush()
        return True


def _fits(example: Example) -> bool:
    """Whether SQL columns hold it."""
    ids = (example.entry_id or "", *(name for d in example.documents for name in (d.id, d.source)))
    texts = (example.question, example.answer, example.namespace, example.model, *ids, *example.tags)
    numbers = (example.at, example.input_tokens or 0, example.output_tokens or 0, example.seconds or 0)
    return all(map(storable, texts)) and all(0 <= number < _TOO_LARGE for number in numbers)
