"""How a cache does on labelled pairs of questions: what it serves of the same, and of the different."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ibidem._util.json_lines import read_json_lines, read_text
from ibidem._util.statistics import auc
from ibidem.errors import InvalidInput
from ibidem.matching.decisions import PairDecision
from ibidem.types import storable
from ibidem_lab.replay import Judged, Share, hindsight, share

SHAPE = '{"a": stored question, "b": question asked, "same": true, false or missing}'
_LABELS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": None}


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A stored question, one asked, and whether one answer serves both, None if nobody has said.

    `extra` holds the other keys of its line.
    """

    stored: str
    asked: str
    same: bool | None
    extra: Mapping[str, Any]


class Refused(NamedTuple):
    """How many pairs are not served for one reason, and how many of them are labelled as what."""

    pairs: int
    same: int
    different: int


@dataclass(frozen=True, slots=True)
class DecisionReport:
    """What a cache serves of some pairs.

    `reasons` counts why the others are not served. The rest is of the labelled pairs: `auc` of the score
    before guards, NaN if all are of one kind; `served_same` and `served_different` the shares served;
    `wrong_per_hit` the share of the served that are different, which depends on how many of the pairs are.
    `threshold` is the least at which, among these pairs, at most `max_error_rate` of the served would be
    wrong, and `served_at` the share of the same that it serves; None if there is none.
    """

    pairs: int
    served: int
    reasons: dict[str, Refused]
    labelled: int
    same: int
    auc: float
    served_same: Share
    served_different: Share
    wrong_per_hit: Share
    max_error_rate: float
    threshold: float | None
    served_at: Share | None


def report_decisions(
    decisions: Sequence[PairDecision], same: Sequence[bool | None], max_error_rate: float
) -> DecisionReport:
    """Count what `cache.decide` served; `same` has the label of each decision, None without one."""
    labelled = [(one, bool(label)) for one, label in zip(decisions, same, strict=True) if label is not None]
    right, wrong = ([one for one, label in labelled if label is kind] for kind in (True, False))
    served_right, served_wrong = (sum(one.served for one in kind) for kind in (right, wrong))
    # What is refused whatever its score, or has none, is served at no threshold.
    open_to = [
        Judged(one.score, label) for one, label in labelled if one.served or one.reason == "below_threshold"
    ]
    point = hindsight(open_to, max_error_rate)
    return DecisionReport(
        pairs=len(decisions),
        served=sum(one.served for one in decisions),
        reasons=_refused(decisions, same),
        labelled=len(labelled),
        same=len(right),
        auc=auc(
            np.array([one.score for one, _ in labelled], np.float64),
            np.array([label for _, label in labelled], bool),
        ),
        served_same=share(served_right, len(right)),
        served_different=share(served_wrong, len(wrong)),
        wrong_per_hit=share(served_wrong, served_right + served_wrong),
        max_error_rate=max_error_rate,
        threshold=point.threshold if point else None,
        served_at=share(point.hits - point.wrong, len(right)) if point else None,
    )


def _refused(decisions: Sequence[PairDecision], same: Sequence[bool | None]) -> dict[str, Refused]:
    """The pairs that are not served by reason, the commonest first."""
    counts = Counter(
        (one.reason, label) for one, label in zip(decisions, same, strict=True) if not one.served
    )
    found = {
        reason: Refused(
            sum(counts[reason, label] for label in (True, False, None)),
            counts[reason, True],
            counts[reason, False],
        )
        for reason in {reason for reason, _ in counts}
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1].pairs, item[0])))


def read_labelled_pairs(path: Path) -> list[LabelledPair]:
    """Read pairs from JSON lines, or from a `.csv` with a header.

    The keys are `a` or `stored`, `b` or `asked`, and, where there is a label, `same` or `right`.

    Raises:
        InvalidInput: The file cannot be read, holds no pairs, or a line is none; the message names it.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else read_json_lines(path, SHAPE)
    found = [_pair(row, where) for where, row in rows]
    if not found:
        raise InvalidInput(f"{path} holds no pairs: lines of {SHAPE}")
    return found


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for row in reader:
        # The rest of a line that is too long has the key None.
        known = {name: value for name, value in row.items() if name is not None}
        yield f"{path}, line {reader.line_num}", known


def _pair(row: Mapping[str, Any], where: str) -> LabelledPair:
    stored, asked = row.get("a", row.get("stored")), row.get("b", row.get("asked"))
    if not all(isinstance(text, str) and text.strip() and storable(text) for text in (stored, asked)):
        raise InvalidInput(f"{where}: must be {SHAPE}")
    label = row.get("same", row.get("right"))
    word = "" if label is None else str(label).strip().lower()
    if word not in _LABELS:
        raise InvalidInput(f'{where}: "same" must be true, false, 1, 0 or missing, not {label!r}')
    known = ("a", "stored", "b", "asked", "same", "right")
    extra = {name: value for name, value in row.items() if name not in known}
    return LabelledPair(str(stored), str(asked), _LABELS[word], extra)
