"""Labelled pairs of questions, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibidem._util.json_lines import read_json_lines
from ibidem.errors import InvalidInput
from ibidem.types import storable
from ibidem_lab.files import write_private

# Labels by a comparison with a fresh answer, by a person, or by a small model that the cache asked in doubt.
JUDGED = ("judgement", "feedback", "review", "opinion")
# Valid within JSON, but some programs end a line there.
_BREAKS = {ord(one): json.dumps(one)[1:-1] for one in "\x85\u2028\u2029"}
SHAPE = '{"a": question, "b": question, "same": 0, 1 or null}'


@dataclass(frozen=True, slots=True)
class QuestionPair:
    """Two questions of one namespace; `b` is the stored one where one is stored.

    `same` is whether the answer to `b` serves `a`, None if that is not known; `labelled_by` the source of
    the label: `judgement` (of an audit), `feedback`, `review`, `opinion` (a second opinion), `answers` (the
    stored answers were compared), `teacher`; empty if a file does not say. `source` is `audit`, `feedback`,
    `review`, `opinion`, `near_miss`, `hit` or `neighbour`, `cosine` that of the two embeddings, `extra` the
    other keys of a line.
    """

    a: str
    b: str
    same: bool | None = None
    cosine: float | None = None
    source: str = ""
    namespace: str = ""
    labelled_by: str = ""
    reason: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def as_line(self) -> str:
        """Format the pair as a line of a pairs file, without the line break."""
        told: dict[str, Any] = {
            "cosine": None if self.cosine is None else round(self.cosine, 4),
            "source": self.source,
            "namespace": self.namespace,
            "labelled_by": self.labelled_by,
            "reason": self.reason,
        }
        known = {name: value for name, value in told.items() if value not in ("", None)}
        same = None if self.same is None else int(self.same)
        line = json.dumps({"a": self.a, "b": self.b, "same": same, **known, **self.extra}, ensure_ascii=False)
        return line.translate(_BREAKS)


def write_pairs(path: Path, pairs: Iterable[QuestionPair]) -> None:
    """Write a pairs file, readable by the user only; an earlier one is replaced when all is written.

    Raises:
        InvalidInput: It cannot be written.
    """
    try:
        write_private(path, (f"{pair.as_line()}\n".encode() for pair in pairs))
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from None


def read_pairs(path: Path) -> list[QuestionPair]:
    """Read the pairs of a file, in order.

    Raises:
        InvalidInput: It cannot be read, holds none, or a line is no pair; the message names it.
    """
    found = [of_line(given, where) for where, given in read_json_lines(path, SHAPE)]
    if not found:
        raise InvalidInput(f"{path} holds no pairs; `ibidem learn pairs --out FILE` writes some")
    return found


def of_line(given: dict[str, Any], where: str) -> QuestionPair:
    """Make the pair of a decoded line; raises `InvalidInput`, which names `where`."""
    if not {"a", "b"} <= given.keys():
        raise InvalidInput(f"{where}: must be {SHAPE}")
    a, b, same, cosine = (given.get(name) for name in ("a", "b", "same", "cosine"))
    if not all(isinstance(text, str) and text.strip() and storable(text) for text in (a, b)):
        raise InvalidInput(f'{where}: "a" and "b" must be questions')
    if not (same is None or (isinstance(same, int) and same in (0, 1))):
        raise InvalidInput(f'{where}: "same" must be 0, 1 or null')
    texts = {name: given.get(name) or "" for name in ("source", "namespace", "labelled_by", "reason")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise InvalidInput(f"{where}: {', '.join(texts)} must be strings")
    if cosine is not None and (isinstance(cosine, bool) or not isinstance(cosine, (int, float))):
        raise InvalidInput(f'{where}: "cosine" must be a number')
    known = {"a", "b", "same", "cosine", *texts}
    return QuestionPair(
        str(a),
        str(b),
        None if same is None else bool(same),
        None if cosine is None else float(cosine),
        **texts,
        extra={name: value for name, value in given.items() if name not in known},
    )
