"""Labels to fit a threshold to: judged answers, pairs of questions, or questions with their meanings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from ibidem._util.json_lines import read_json_lines
from ibidem.errors import InvalidInput
from ibidem.matching.guards import GUARDS, NamedGuard, failed_guard
from ibidem.matching.policy import MAX_CANDIDATES, Verdict
from ibidem.matching.scorers import Candidate, Vectors
from ibidem.storage.logs import OPINION, REVIEW
from ibidem.types import Request, Vector, cosine, normalise, storable, to_bytes, to_vector
from ibidem_lab.labelling.pairs import of_line
from ibidem_lab.replay import CURVE_FROM, Row, replay

if TYPE_CHECKING:
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.storage.logs import JudgementRow

MOST = 4_000  # questions that count, the newest: more take minutes to embed
CANDIDATES = 3  # of a question with a meaning: the nearest stored ones that no guard refuses
SHAPES = '{"asked", "stored", "right"}, {"text", "meaning"} or {"a", "b", "same"}'
# Judgements that are labels: those of a higher rank go before.
RANKS = {OPINION: 0, "audit": 1, "probe": 1, REVIEW: 2}


@dataclass(frozen=True, slots=True)
class Pair:
    """A question, a stored one near to it that no guard refuses, and whether its answer was right.

    `request` numbers the questions: pairs of one number are the candidates of one lookup. `density` is that
    of `ibidem.matching.scorers.Candidate`, 0 where nothing is known of the others.
    """

    asked: str
    stored: str
    cosine: float
    vectors: Vectors
    right: bool
    request: int
    density: float = 0.0


class Label(NamedTuple):
    """Whether the stored question's answer is right for the question asked."""

    asked: str
    stored: str
    right: bool


def read_labels(path: Path) -> list[Label] | list[Row]:
    """The lines of a file: `{"asked", "stored", "right"}`, `{"text", "meaning"}` or pairs.

    `{"text", "meaning"}` is what `ibidem replay` takes, `{"a", "b", "same"}` what `ibidem learn pairs` and
    `ibidem learn ask` write; pairs whose `same` is null have no label and are left out.

    Raises:
        InvalidInput: The file cannot be read, or a line is neither, or not of the kind of the first; the
            message names it.
    """
    found: list[Any] = []
    for where, given in read_json_lines(path, SHAPES):
        label = _label(given, where)
        if label is None:
            continue
        found.append(label)
        if type(found[-1]) is not type(found[0]):
            raise InvalidInput(f"{where}: is of another kind than the first line")
    if not found:
        raise InvalidInput(f"{path} holds no labels; ibidem learn ask gives one to pairs without")
    return found


def _label(given: dict[str, Any], where: str) -> Label | Row | None:
    if "asked" in given:
        asked, stored, right = (given.get(name) for name in Label._fields)
        if _is_question(asked) and _is_question(stored) and isinstance(right, bool):
            return Label(asked, stored, right)
        raise InvalidInput(f'{where}: "asked" and "stored" must be questions, "right" true or false')
    if "text" in given:
        if _is_question(given["text"]) and isinstance(given.get("meaning"), (str, int)):
            return Row(given["text"], given["meaning"])
        raise InvalidInput(f'{where}: "text" must be a question, "meaning" a text or a whole number')
    if "a" in given:
        pair = of_line(given, where)
        return None if pair.same is None else Label(pair.a, pair.b, pair.same)
    raise InvalidInput(f"{where}: must be {SHAPES}")


def _is_question(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip()) and storable(value)


def of_judgements(rows: Iterable[JudgementRow]) -> list[tuple[Label, JudgementRow]]:
    """What was judged, in order; of one pair the later, but a reviewer's before all, a small model's last."""
    found: dict[tuple[str, str], JudgementRow] = {}
    for row in rows:
        known = found.get((row.asked, row.stored))
        if row.source in RANKS and (known is None or RANKS[row.source] >= RANKS[known.source]):
            found[row.asked, row.stored] = row
    newest = list(found.values())[-MOST:]
    return [(Label(row.asked, row.stored, row.right), row) for row in newest]


def pairs_of(
    labels: Sequence[Label | Row], embedder: CheckedEmbedder, guards: Sequence[NamedGuard] = GUARDS
) -> list[Pair]:
    """The pairs that a score decides about: other questions, comparable by meaning, refused by no guard.

    `guards` are those beside the score (`ibidem.matching.policy.guards_beside`).

    Raises:
        InvalidInput: Something is neither a `Label` nor a `Row`.
        Exception: Whatever the embedder raises.
    """
    rows = [label for label in labels if isinstance(label, Row)]
    given = [label for label in labels if isinstance(label, Label)]
    if (rows and given) or len(rows) + len(given) != len(labels):
        raise InvalidInput(
            "labels must all be ibidem_lab.fitting.labels.Label, or all be ibidem_lab.replay.Row"
        )
    if rows:
        return _of_rows(rows[-MOST:], embedder, guards)
    return _of_labels(given[-MOST:], embedder, guards)


class _Vectors:
    """Of questions, each embedded once; None for what would not be compared by meaning."""

    def __init__(self, embedder: CheckedEmbedder) -> None:
        self._embedder = embedder
        self._known: dict[str, Vector | None] = {}

    def __call__(self, text: str) -> Vector | None:
        text = normalise(text)
        if text not in self._known:
            refused = self._embedder.refusal(text)
            self._known[text] = None if refused else self._embedder.vector_of(text)
        return self._known[text]


def _of_labels(
    labels: Sequence[Label], embedder: CheckedEmbedder, guards: Sequence[NamedGuard]
) -> list[Pair]:
    vectors, found = _Vectors(embedder), []
    numbers: dict[str, int] = {}
    for label in labels:
        asked, stored = normalise(label.asked), normalise(label.stored)
        if asked == stored or failed_guard(asked, stored, guards):
            continue
        one, other = vectors(asked), vectors(stored)
        if one is not None and other is not None:
            kept = to_vector(to_bytes(other))
            number = numbers.setdefault(asked, len(numbers))
            found.append(Pair(asked, stored, cosine(one, kept), (one, kept), bool(label.right), number))
    return found


def _of_rows(rows: Sequence[Row], embedder: CheckedEmbedder, guards: Sequence[NamedGuard]) -> list[Pair]:
    """Every question with its nearest candidates, if all before it are stored."""
    vectors = _Vectors(embedder)
    found: list[Pair] = []
    number = 0

    def note(request: Request, near: list[Candidate]) -> Verdict:
        kept = 0
        for candidate in near[:MAX_CANDIDATES]:
            stored = candidate.entry.question
            if stored is None or candidate.vectors is None or candidate.similarity < CURVE_FROM:
                continue
            if kept < CANDIDATES and not failed_guard(request.question, stored, guards):
                right = rows[int(candidate.entry.id)].meaning == rows[number].meaning
                compared = (request.question, stored, candidate.similarity, candidate.vectors)
                found.append(Pair(*compared, right, number, candidate.density))
                kept += 1
        return Verdict(None, "below_threshold", None)

    def seen() -> None:
        nonlocal number
        number += 1

    replay(rows, [vectors(row.text) for row in rows], note, seen)
    return found
