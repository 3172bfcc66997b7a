"""Examples: questions with their answers, for few-shot prompts and fine-tuning.

They are separate from the stored answers: an example may come from a model that is not cached, and it
outlives its entry. Questions and answers are kept in clear text; of the documents only ids and digests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ibidem.errors import InvalidInput
from ibidem.types import Answer, Document, Entry, require_bool, require_tags, require_text

_SCOPE = re.compile("(?:[0-9a-f]{32})?")


@dataclass(frozen=True, slots=True)
class DocumentRef:
    """A document in the prompt, by id and digest of its content; the text is not kept.

    `source` is the id of the file, or the like, that it is a part of, if known.
    """

    id: str
    digest: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer.

    Args:
        question: The user's question alone. It is kept in clear text: leave out what must not be.
        answer: The whole answer as a reader sees it.
        at: When it was given, in seconds since the epoch; 0 for when it is added.
        namespace: Tenant, user or application, as in `Request`; clearing it deletes its examples.
        model: Name of the model that answered.
        documents: The documents in the prompt, as `ibidem.Document`s, which become `DocumentRef`s: their
            texts are not kept.
        input_tokens: Prompt tokens, if known.
        output_tokens: Completion tokens, if known.
        seconds: How long the answer took, if known.
        streamed: Whether it was streamed.
        entry_id: The entry of the cache with the answer; None if there is none.
        scope: Digest of everything else in the prompt (`Request.scope_digest`), empty if unknown.
        feedback: True for a good answer, False for a bad one; None without feedback.
        tags: Names by which it can be selected.
        id: Its number in the log, if read from there; ids grow in the order of adding. Not compared.

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


def example_of(entry: Entry, answer: Answer, *, at: float, feedback: bool | None) -> Example:
    """Make the example of an entry whose question is known, with this answer and feedback."""
    return Example(
        entry.question or "",
        answer.text,
        at=at,
        namespace=entry.namespace,
        model=answer.model,
        documents=tuple(DocumentRef(one.id, one.digest, one.source) for one in entry.sources),
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        seconds=answer.seconds,
        entry_id=entry.id,
        scope=entry.scope,
        feedback=feedback,
        tags=entry.tags,
    )


def _require_number(name: str, value: object) -> None:
    whole, needed = name.endswith("tokens"), name == "at"
    if value is None and not needed:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        kind = f"{'an int' if whole else 'a number'}{'' if needed else ' or None'}"
        raise InvalidInput(f"Example.{name} must be {kind}, not {type(value).__name__}")


def _refs(given: object) -> tuple[DocumentRef, ...]:
    """Convert any iterable of documents to references, without their texts."""
    found = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(document, (Document, DocumentRef)) for document in found):
        raise InvalidInput("Example.documents must be a sequence of ibidem.Document")
    return tuple(DocumentRef(document.id, document.digest, document.source) for document in found)
