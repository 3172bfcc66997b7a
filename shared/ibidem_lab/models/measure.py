"""How good a score is: AUC, and what it serves of the same and of the different at two strictnesses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibidem._util.statistics import auc
from ibidem.embedding.base import CheckedEmbedder
from ibidem.types import cosine
from ibidem_lab.decisions import read_labelled_pairs
from ibidem_lab.models.groups import Group, Pair
from ibidem_lab.models.pairs import LABELLED, Workloads

NEAR_MISSES_SERVED = (0.02, 0.05)
# Kinds of groups of which the first 2,141 had few; the rest is told as "groups".
RARE_KINDS = ("code", "commands", "long", "statements", "opposites")
NEAR_MISS_SETS = ("groups", *RARE_KINDS)

Sets = Mapping[str, Sequence[Pair]]


def development_sets(groups: Iterable[Group], workloads: Workloads) -> dict[str, list[Pair]]:
    """Pairs to choose by: held-out groups by kind, and the part of each labelled workload that is kept."""
    sets: dict[str, list[Pair]] = {}
    for group in groups:
        if group.held_out:
            sets.setdefault(group.kind if group.kind in RARE_KINDS else "groups", []).extend(group.pairs())
    return sets | {name: list(workloads.development(name)) for name in LABELLED}


def test_sets(workloads: Workloads, public: Path | None) -> dict[str, list[Pair]]:
    """Pairs that nothing is chosen by: a part of `nq_teacher`, and the `.jsonl` files of a folder.

    Their lines are `{"a", "b", "same"}`, as `ibidem decide` takes them.
    """
    sets = {"nq": workloads.kept_for_tuning()}
    for path in sorted(public.glob("*.jsonl")) if public else ():
        rows = read_labelled_pairs(path)
        sets[path.stem] = [
            Pair(row.stored, row.asked, float(row.same)) for row in rows if row.same is not None
        ]
    return sets


def embedded_cosines(embedder: CheckedEmbedder, pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """The cosine of each pair as the cache computes it; NaN where it would not compare by meaning."""
    texts = {text for pair in pairs for text in (pair.a, pair.b)}
    known = {text: embedder.vector_of(text) for text in sorted(texts) if embedder.refusal(text) is None}
    found = np.full(len(pairs), np.nan, dtype=np.float32)
    for at, pair in enumerate(pairs):
        if pair.a in known and pair.b in known:
            found[at] = cosine(known[pair.a], known[pair.b])
    return found


@dataclass(frozen=True)
class Measured:
    """Of one score on one set: AUC, and for each strictness the shares of both labels served."""

    pairs: int
    auc: float
    served: tuple[tuple[float, float], ...]


def measure(sets: Sets, scores: Mapping[str, NDArray[np.floating[Any]]]) -> dict[str, Measured]:
    """Measure one score on all sets; a pair whose score is NaN is served nowhere.

    The thresholds are those at which `NEAR_MISSES_SERVED` of the near misses of all groups together are
    served.
    """
    known = {
        name: np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf) for name, values in scores.items()
    }
    labels = {name: np.array([pair.same for pair in pairs]) == 1 for name, pairs in sets.items()}
    misses = np.concatenate([known[name][~labels[name]] for name in sets if name in NEAR_MISS_SETS])
    thresholds = [float(np.quantile(misses, 1 - share, method="higher")) for share in NEAR_MISSES_SERVED]
    return {name: _measured(known[name], labels[name], thresholds) for name in sets}


def _measured(scores: NDArray[np.float64], same: NDArray[np.bool_], thresholds: Sequence[float]) -> Measured:
    served = tuple((_share_above(at, scores[same]), _share_above(at, scores[~same])) for at in thresholds)
    return Measured(len(scores), auc(scores, same), served)


def _share_above(threshold: float, scores: NDArray[np.float64]) -> float:
    """NaN without scores."""
    return float((scores > threshold).mean()) if len(scores) else float("nan")


def table(rows: Mapping[str, Mapping[str, Measured]]) -> str:
    """A table in Markdown, a line for each score: AUC [same / different served at 2 %; at 5 %]."""
    sets = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for name, found in rows.items():
        cells = []
        for column in sets:
            at = "; ".join(f"{same:.0%} / {other:.1%}" for same, other in found[column].served)
            cells.append(f"{found[column].auc:.3f} [{at}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
