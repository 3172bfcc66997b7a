"""`ibidem replay`: what the cache would have done with labelled questions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from ibidem._util.json_lines import read_json_lines
from ibidem.cli.formatting import percent
from ibidem.cli.output import bars, fail, out
from ibidem.cli.panels import MEASURING, in_panel
from ibidem.embedding import resolve_embedder
from ibidem.embedding.base import CheckedEmbedder
from ibidem.errors import IbidemError, InvalidInput
from ibidem.matching.policy import Policy
from ibidem.matching.scorers import CosineScorer, Scorer
from ibidem.matching.shipped import scorer_for
from ibidem.settings import read_settings
from ibidem.types import storable
from ibidem_lab.replay import (
    Outcome,
    Row,
    by_policy,
    ceiling,
    curve_rule,
    hindsight,
    p_chr_auc,
    replay,
    vectors_of,
)

Workload = Annotated[
    Path,
    typer.Argument(metavar="WORKLOAD.jsonl", help='Lines of {"text", "meaning"}, and "tokens" if known.'),
]
MinProbability = Annotated[float | None, typer.Option(help="Least score of a hit; default: the cache's own.")]
MaxErrorRate = Annotated[float | None, typer.Option(help="Instead: the share of hits that may be wrong.")]
ScorerName = Annotated[
    Literal["default", "none", "cosine"],
    typer.Option("--scorer", help="What scores: the cache's own, the rule without a model, the bare cosine."),
]
Requests = Annotated[int | None, typer.Option(min=1, help="At most so many questions.")]
Seed = Annotated[int | None, typer.Option(help="Shuffle with this seed; default: the order of the file.")]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was replayed, and what came of it; `curve` is a second replay in which nothing was served."""

    title: str
    rows: list[Row]
    threshold: float
    served: Outcome
    curve: Outcome


@in_panel(MEASURING)
def replay_workload(
    workload: Workload,
    min_probability: MinProbability = None,
    max_error_rate: MaxErrorRate = None,
    scorer: ScorerName = "default",
    requests: Requests = None,
    seed: Seed = None,
) -> None:
    """Replay labelled questions in memory: hits, wrong hits, and what another threshold would do."""
    try:
        rows = read_rows(workload)
        if seed is not None:
            random.Random(seed).shuffle(rows)  # noqa: S311 (no secret)
        found = _replay(workload.name, rows[:requests], scorer, min_probability, max_error_rate)
    except IbidemError as error:
        fail(str(error))
    out.print(_table(found))


def _threshold(scorer: Scorer, min_probability: float | None, max_error_rate: float | None) -> float:
    if min_probability is not None and max_error_rate is not None:
        raise InvalidInput("give --min-probability or --max-error-rate, not both")
    if max_error_rate is not None:
        return scorer.thresholds.at(max_error_rate)
    if min_probability is not None and not 0.0 < min_probability <= 1.0:
        raise InvalidInput(f"--min-probability is a number above 0 and at most 1, not {min_probability}")
    strictness = read_settings(audit_rate=0.0).strictness
    return strictness.policy(scorer).threshold if min_probability is None else min_probability


def read_rows(path: Path) -> list[Row]:
    """The rows of a workload.

    Raises:
        InvalidInput: The file cannot be read, or a line is no such row; the message names it.
    """
    shape = 'an object with "text" and "meaning"'
    rows = [_row(given, where) for where, given in read_json_lines(path, shape)]
    if not rows:
        raise InvalidInput(f"{path} holds no questions")
    return rows


def _row(given: dict[str, Any], where: str) -> Row:
    text, meaning, tokens = given.get("text"), given.get("meaning"), given.get("tokens", 0)
    if not isinstance(text, str) or not text.strip() or not storable(text):
        raise InvalidInput(f'{where}: "text" must be a question')
    if not isinstance(meaning, (str, int)):
        raise InvalidInput(f'{where}: "meaning" must be a text or a whole number')
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise InvalidInput(f'{where}: "tokens" must be a whole number')
    known: Hashable = meaning
    return Row(text, known, tokens)


def _replay(
    name: str,
    rows: list[Row],
    scorer_name: Literal["default", "none", "cosine"],
    min_probability: float | None,
    max_error_rate: float | None,
) -> Replayed:
    embedder = CheckedEmbedder(resolve_embedder(read_settings().embedder), lambda _, value: value)
    scorer = CosineScorer() if scorer_name == "cosine" else scorer_for(embedder.fingerprint, scorer_name)
    threshold = _threshold(scorer, min_probability, max_error_rate)
    with bars() as bar:

        def stage(what: str) -> Callable[[], object]:
            task = bar.add_task(what, total=len(rows))
            return lambda: bar.advance(task)

        vectors = vectors_of(rows, embedder, stage("embed"))
        rule = by_policy(Policy(threshold=threshold), scorer)
        served = replay(rows, vectors, rule, stage("replay"))
        curve = replay(rows, vectors, curve_rule(scorer), stage("try thresholds"))
    title = f"{name}, {type(scorer).__name__}, least score {threshold:.4g}, {embedder.fingerprint}"
    return Replayed(title, rows, threshold, served, curve)


def _table(found: Replayed) -> Table:
    served, curve = found.served, found.curve
    table = Table("what", "share (95 % interval)", "count", title=found.title)
    table.columns[1].justify = table.columns[2].justify = "right"

    def line(name: str, value: Any, count: int | None = None) -> None:
        table.add_row(name, str(value), "" if count is None else f"{count:,}")

    line("requests", "", served.requests)
    line("hits", served.hit_ratio, served.hits)
    line("  of the very same question", percent(served.exact / served.requests), served.exact)
    line("  perfect cache", percent(ceiling(found.rows)))
    line("wrong per hit", served.wrong_per_hit, served.wrong)
    line("wrong per request", served.wrong_per_request)
    for level in (0.01, 0.02, 0.05):
        line(f"most hits at {percent(level, 0)} wrong per hit, in hindsight", _most(curve, level))
    line("P-CHR AUC", f"{p_chr_auc(curve.judged, curve.requests):.3f}")
    if served.tokens:
        line("tokens saved", percent(served.tokens_saved / served.tokens), served.tokens_saved)
    for guard, (rightly, wrongly) in sorted(served.refused.items()):
        refused = rightly + wrongly
        line(f"refused by guard {guard}", f"{percent(rightly / refused, 0)} rightly", refused)
    return table


def _most(curve: Outcome, level: float) -> str:
    best = hindsight(curve.judged, level)
    if best is None:
        return "none"
    at = "the very same" if math.isinf(best.threshold) else f"least score {best.threshold:.3f}"
    return f"{percent(best.hits / curve.requests)}, {at}"
