"""Turn examples into lines of training data: select, redact, add documents, deduplicate questions.

The lines are in a file; only the question and some numbers of each example are held in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from ibidem.errors import InvalidInput
from ibidem.example import DocumentRef, Example
from ibidem.examples.flaws import flaw_of
from ibidem.types import Document, digest, normalise
from ibidem_lab.exporting.choice import Choice, Format

Texts = Callable[[DocumentRef], "str | None"]
Redact = Callable[[str], str]

# Shorter answers, such as labels or a yes, are those of many questions.
ANSWER_TELLS = 24

# Legal in JSON, but ends of lines to `str.splitlines`.
_LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\u0085\u2028\u2029"})


class Row(NamedTuple):
    """An example that may be exported.

    Args:
        id: The number in the log.
        question: The exported question.
        key: Digest of the question, and of the documents in its prompt, up to case and blanks.
        said: Digests of question and answer as they were logged, up to case and blanks.
        tells: Whether the answer is long enough to be that of few questions.
        feedback: The feedback of the example.
        given: The time, in seconds since the epoch.
        start: Offset of the line in the file of lines.
        size: Bytes of the line.
        vector: Index in the file of vectors, -1 if there is none.
        redacted: Whether something was replaced.
        origin: Namespace, scope and model.
        documents: Digests of the ids of the documents.
    """

    id: int
    question: str
    key: bytes
    said: tuple[bytes, bytes]
    tells: bool
    feedback: bool | None
    given: float
    start: int
    size: int
    vector: int
    redacted: bool
    origin: tuple[str, str, str]
    documents: tuple[bytes, ...]

    @property
    def preference(self) -> tuple[int, float, int]:
        """The sort key of rows with one question: good before unknown before bad, then newer."""
        return {True: 2, None: 1, False: 0}[self.feedback], self.given, self.id


@dataclass(slots=True)
class Dropped:
    """Omitted examples: id, reason, and the id of the example that was kept instead, if there is one."""

    rows: list[tuple[int, str, int | None]] = field(default_factory=list)

    def add(self, id_: int, reason: str, kept: int | None = None) -> None:
        """Add an omitted example."""
        self.rows.append((id_, reason, kept))

    def counts(self) -> dict[str, int]:
        """Count by reason."""
        return dict(sorted(Counter(reason for _, reason, _ in self.rows).items()))

    def lines(self) -> Iterator[bytes]:
        """Format as lines of JSON, in the order of the log."""
        for id_, reason, kept in sorted(self.rows, key=lambda row: row[0]):
            yield json.dumps({"id": id_, "reason": reason, "kept": kept}).encode() + b"\n"


class Reader:
    """Turn examples into rows, and write their lines.

    Args:
        choice: The options.
        redact: Replaces secrets in questions, answers and documents; returns "" where it fails.
        texts: The text of a document as the model saw it, None if it is lost; without it, prompts are the
            question alone.
        lines: The file of lines.
        vectors: The file of question vectors, in half precision.
        dropped: Collects the omitted examples.
    """

    def __init__(
        self,
        choice: Choice,
        redact: Redact,
        texts: Texts | None,
        lines: BinaryIO,
        vectors: BinaryIO,
        dropped: Dropped,
    ) -> None:
        self._choice, self._redact, self._texts = choice, redact, texts
        self._lines, self._vectors, self._dropped = lines, vectors, dropped
        self._said_badly: set[tuple[bytes, bytes]] = set()  # answers that somebody called bad
        self.bad: list[Row] = []  # without a line; they spoil others
        self._at = self.vectors = 0
        self._origins: dict[tuple[str, str, str], tuple[str, str, str]] = {}  # each once in memory
        self.read = 0

    def rows(self, examples: Iterable[tuple[Example, bytes | None]]) -> list[Row]:
        """Return the rows to export, in order, each question once.

        Raises:
            InvalidInput: `texts` returned something else than a str or None.
        """
        found = []
        for example, vector in examples:
            self.read += 1
            row = self._row(example, vector)
            if isinstance(row, str):
                self._dropped.add(example.id or 0, row)
            else:
                found.append(row)
        return self._unique(found)

    def _row(self, example: Example, vector: bytes | None) -> Row | str:
        """Return the row, or the reason against it."""
        if example.feedback is False:
            self._said_badly.add(_said(example))
        if refusal := self._choice.refusal(example, has_texts=self._texts is not None):
            if example.feedback is False and refusal == "feedback":
                self._note_bad(example, vector)
            return refusal
        if not example.feedback and (flaw := flaw_of(example.answer)):
            return flaw
        context, refusal = self._context(example) if self._texts else ("", "")
        if refusal:
            return refusal
        parts = (example.question, example.answer, context)
        shown = tuple(self._redact(part) if part else "" for part in parts)
        question, answer = normalise(shown[0]), shown[1].strip()
        if not question or not answer or (context and not shown[2]):
            return "redaction"
        written = line(self._choice.format, question, answer, shown[2], self._choice.system)
        self._lines.write(written)
        start, self._at = self._at, self._at + len(written)
        return self._made(
            example,
            question,
            vector,
            key=_digest(_folded(question), *((d.digest for d in example.documents) if context else ())),
            tells=len(answer) >= ANSWER_TELLS,
            start=start,
            size=len(written),
            redacted=shown != parts,
        )

    def _note_bad(self, example: Example, vector: bytes | None) -> None:
        question = normalise(self._redact(example.question))
        if question:
            self.bad.append(
                self._made(example, question, vector, key=b"", tells=False, start=0, size=0, redacted=False)
            )

    def _made(self, example: Example, question: str, vector: bytes | None, **rest: Any) -> Row:
        origin = example.namespace, example.scope, example.model
        return Row(
            id=example.id or 0,
            question=question,
            said=_said(example),
            feedback=example.feedback,
            given=example.at,
            vector=self._kept(vector) if question == normalise(example.question) else -1,
            origin=self._origins.setdefault(origin, origin),
            documents=tuple(_digest(document.id) for document in example.documents),
            **rest,
        )

    def _kept(self, vector: bytes | None) -> int:
        """Write the vector; return its index in the file."""
        if vector is None:
            return -1
        self._vectors.write(vector)
        self.vectors += 1
        return self.vectors - 1

    def _context(self, example: Example) -> tuple[str, str]:
        """Return the texts of the documents, or the reason why they are missing."""
        found = []
        for ref in (one for one in example.documents if isinstance(one, DocumentRef)):
            text = self._texts(ref) if self._texts else None
            if text is not None and not isinstance(text, str):
                raise InvalidInput(f"texts must return a str or None, not {type(text).__name__}")
            if text is None:
                return "", "document_missing"
            if Document(ref.id, text).digest != ref.digest:
                return "", "document_changed"
            found.append(text)
        return "\n\n".join(found), ""

    def _unique(self, rows: list[Row]) -> list[Row]:
        """Keep the preferred row of each question, and none whose answer was called bad elsewhere."""
        best: dict[bytes, Row] = {}
        unspoiled = [row for row in rows if not self._called_bad(row)]
        for row in unspoiled:
            if row.key not in best or row.preference > best[row.key].preference:
                best[row.key] = row
        for row in unspoiled:
            winner = best[row.key]
            if row is not winner:
                same = row.said[1] == winner.said[1]
                self._dropped.add(row.id, "duplicate" if same else "contradicted", winner.id)
        return [row for row in unspoiled if row is best[row.key]]

    def _called_bad(self, row: Row) -> bool:
        spoiled = self._choice.feedback != "any" and row.feedback is None and row.said in self._said_badly
        if spoiled:
            self._dropped.add(row.id, "called_bad")
        return spoiled


def _said(example: Example) -> tuple[bytes, bytes]:
    return _digest(_folded(example.question)), _digest(_folded(example.answer))


def _digest(*parts: str) -> bytes:
    return bytes.fromhex(digest(*parts))  # half of the memory of its text


def _folded(text: str) -> str:
    return " ".join(normalise(text).casefold().split())


def line(form: Format, question: str, answer: str, context: str = "", system: str = "") -> bytes:
    """Format an example as one line of JSON in UTF-8, with its newline.

    | form | keys | read by |
    |---|---|---|
    | openai-chat | messages: role, content | OpenAI, trl, axolotl, LLaMA-Factory, Unsloth |
    | prompt-completion | prompt, completion | trl, OpenAI's completion models |
    | alpaca | instruction, input, output, and system if given | LLaMA-Factory, axolotl, Unsloth |
    | sharegpt | conversations: from, value | LLaMA-Factory, axolotl, Unsloth |

    Args:
        form: One of `Format`.
        question: The user's question.
        answer: The completion to learn.
        context: Documents that stand before the question in the prompt.
        system: The system prompt; it stands first.
    """
    record = _RECORDS[form](question, answer, context, system)
    return json.dumps(record, ensure_ascii=False).translate(_LINE_ENDS).encode() + b"\n"


def _chat(question: str, answer: str, context: str, system: str) -> dict[str, Any]:
    turns = (("system", system), ("user", _joined(context, question)), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in turns if text]}


def _completion(question: str, answer: str, context: str, system: str) -> dict[str, Any]:
    # Trainers put the two together as they are.
    return {"prompt": _joined(system, context, question) + "\n\n", "completion": answer}


def _alpaca(question: str, answer: str, context: str, system: str) -> dict[str, Any]:
    record = {"instruction": question, "input": context, "output": answer}
    return {**record, "system": system} if system else record


def _sharegpt(question: str, answer: str, context: str, system: str) -> dict[str, Any]:
    turns = (("system", system), ("human", _joined(context, question)), ("gpt", answer))
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns if text]}


_RECORDS = {
    "openai-chat": _chat,
    "prompt-completion": _completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
