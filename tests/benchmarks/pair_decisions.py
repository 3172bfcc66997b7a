"""The whole decision on labelled pairs of questions, beside the plain cosine.

    python -m tests.benchmarks.pair_decisions [--pairs FOLDER]

The sets: the 600 pairs of fow-cache (CC BY 4.0, from its package, if that is installed), this project's
question groups that no training sees (a tenth of them, the rare kinds apart), its two suites, and each
`.jsonl` file of FOLDER (lines of {"a", "b", "same"}). The rules, for each set:

- Ibidem: all of the decision: the default, strict, as generous as was measured, without the pair model;
- cosine: all-MiniLM-L6-v2 at 0.95, and at the threshold, known in hindsight, that serves as many of the
  different as Ibidem's default.

Then all of it in one cache: the first question of each held-out group is stored, and every rewording and
every near miss is asked, which may also meet the answer to another group's question.

Half of such pairs or more are near misses by design. In traffic they are rare: wrong per hit is told by the
streams (`python -m tests.benchmarks.decisions`). Nothing is tuned on these sets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import ibidem
from ibidem._util.statistics import auc
from ibidem.matching.decisions import PairDecision
from ibidem.matching.shipped import learned_scorer, scorer_for
from ibidem.settings import ERROR_RATES
from ibidem_lab.decisions import LabelledPair, read_labelled_pairs
from ibidem_lab.models.groups import Group, load_groups
from ibidem_lab.models.measure import RARE_KINDS
from ibidem_lab.replay import share
from tests.benchmarks import suites

COSINE = 0.95
SCORER = scorer_for(learned_scorer().embedder)
GENEROUS = min(ERROR_RATES["generous"], SCORER.thresholds.highest)
RATES = {"strict": ERROR_RATES["strict"], f"max_error_rate={GENEROUS:g}": GENEROUS}  # by the same score
WITHOUT: dict[str, dict[str, Any]] = {"without the pair model": {"verifier": None}}

Sets = dict[str, list[LabelledPair]]


class Row(NamedTuple):
    """One rule on one set."""

    rule: str
    auc: float
    same: str
    different: str


def fow_cache() -> list[LabelledPair]:
    """The pairs of the installed package fow-cache; none without it."""
    found = find_spec("fow_cache")
    if found is None or found.origin is None:
        return []
    lines = (Path(found.origin).parent / "data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, filter(str.strip, lines))
    return [LabelledPair(row["a"], row["b"], row["same_answer"], {}) for row in rows]


def load_sets(folder: Path | None) -> Sets:
    """The sets by name."""
    sets: Sets = {"fow-cache": fow_cache()}
    for group in load_groups():
        if group.held_out:
            name = "rare kinds" if group.kind in RARE_KINDS else "groups"
            pairs = (LabelledPair(pair.a, pair.b, pair.same == 1, {}) for pair in group.pairs())
            sets.setdefault(name, []).extend(pairs)
    for name, same in ((suites.MUST_HIT, True), (suites.MUST_MISS, False)):
        sets[name] = [LabelledPair(pair.a, pair.b, same, {}) for pair in suites.load(name)]
    for path in sorted(folder.glob("*.jsonl")) if folder else ():
        sets[path.stem] = [pair for pair in read_labelled_pairs(path) if pair.same is not None]
    return {name: pairs for name, pairs in sets.items() if pairs}


def decide(pairs: Sequence[LabelledPair], **options: Any) -> list[PairDecision]:
    """What a new cache says."""
    with TemporaryDirectory() as folder, ibidem.open(folder, **options) as cache:
        return cache.decide((pair.stored, pair.asked) for pair in pairs)


class Decided(NamedTuple):
    """What a rule says of each pair: its score, before guards, and whether it serves."""

    scores: np.ndarray
    served: np.ndarray


def presets(decisions: Sequence[PairDecision]) -> dict[str, Decided]:
    """What the default has decided, and what the other error rates do by the same score."""
    scores, cosines = _told(decisions, "score"), _told(decisions, "similarity")
    found = {"default": Decided(scores, np.array([one.served for one in decisions]))}
    comparable = np.array([one.served or one.reason == "below_threshold" for one in decisions])
    for name, rate in RATES.items():
        least = SCORER.thresholds.at(rate)
        near = cosines >= SCORER.min_cosine(least)
        found[name] = Decided(scores, comparable & near & (scores >= least))
    return found


def _told(decisions: Sequence[PairDecision], name: str) -> np.ndarray:
    return np.nan_to_num(np.array([getattr(one, name) for one in decisions], np.float64), nan=-1.0)


def compare(pairs: Sequence[LabelledPair]) -> Iterator[Row]:
    """The rules on one set."""
    same = np.array([pair.same for pair in pairs], bool)
    default = decide(pairs)
    cosines = _told(default, "similarity")
    decided = presets(default)
    served = decided["default"].served
    for name, (scores, chosen) in decided.items():
        rule = "Ibidem's default" if name == "default" else f"Ibidem, {name}"
        yield _row(rule, scores, chosen, same)
    for name, options in WITHOUT.items():
        found = decide(pairs, **options)
        chosen = np.array([one.served for one in found])
        yield _row(f"Ibidem, {name}", _told(found, "score"), chosen, same)
    yield _row(f"cosine {COSINE}", cosines, cosines >= COSINE, same)
    if same.all() or not same.any():
        return
    wrong = int((served & ~same).sum())
    threshold = np.sort(cosines[~same])[::-1][wrong]  # above it are as many of the different
    yield _row(f"cosine {threshold:.3f}, as many of the different", cosines, cosines > threshold, same)


def _row(rule: str, scores: np.ndarray, served: np.ndarray, same: np.ndarray) -> Row:
    """Count what a rule serves."""
    shares = [
        str(share(int((served & kind).sum()), int(kind.sum()))) if kind.any() else ""
        for kind in (same, ~same)
    ]
    return Row(rule, auc(scores.astype(np.float64), same), *shares)


class Asked(NamedTuple):
    """Of one kind of question: how many were asked, and answered by their own group or by another."""

    questions: int
    own: int
    other: int


def in_one_cache(groups: Sequence[Group], **options: Any) -> dict[str, Asked]:
    """What a cache that holds the question of each group answers: to rewordings, and to near misses."""
    with TemporaryDirectory() as folder, ibidem.open(folder, **options) as cache:
        for number, group in enumerate(groups):
            cache.store(ibidem.Request(group.question), ibidem.Answer(str(number)))
        found = {}
        for kind in ("same", "diff"):
            asked = [(text, number) for number, group in enumerate(groups) for text in getattr(group, kind)]
            hits = [(cache.lookup(ibidem.Request(text)), number) for text, number in asked]
            told = [hit.answer.text == str(number) for hit, number in hits if isinstance(hit, ibidem.Hit)]
            found[kind] = Asked(len(asked), sum(told), len(told) - sum(told))
        return found


def table_of_one_cache(groups: Sequence[Group]) -> Table:
    """A line for each rule."""
    shown = Table(
        f"{len(groups):,} questions stored",
        "rewordings answered",
        "by another's answer",
        "near misses answered",
    )
    rates = {name: {"max_error_rate": rate} for name, rate in RATES.items()}
    for name, options in {"Ibidem's default": {}, **rates, **WITHOUT}.items():
        found = in_one_cache(groups, **options)
        same, near = found["same"], found["diff"]
        shown.add_row(
            name,
            str(share(same.own, same.questions)),
            str(share(same.other, same.questions)),
            str(share(near.own + near.other, near.questions)),
        )
    return shown


def table(found: dict[str, tuple[int, list[Row]]]) -> Table:
    """A block of lines for each set."""
    shown = Table("set", "rule", "AUC", "served of the same", "served of the different")
    for name, (pairs, rows) in found.items():
        for number, row in enumerate(rows):
            title = f"{name} ({pairs:,})" if number == 0 else ""
            area = "" if np.isnan(row.auc) else f"{row.auc:.3f}"
            shown.add_row(title, row.rule, area, row.same, row.different, end_section=row is rows[-1])
    return shown


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pairs", type=Path, help="folder of further sets, a .jsonl each")
    given = options.parse_args()
    console = Console(width=130)
    sets = load_sets(given.pairs)
    if "fow-cache" not in sets:
        console.print("fow-cache is left out: pip install fow-cache")
    console.print(table({name: (len(pairs), list(compare(pairs))) for name, pairs in sets.items()}))
    console.print(table_of_one_cache([group for group in load_groups() if group.held_out]))


if __name__ == "__main__":
    main()
