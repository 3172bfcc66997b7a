"""Compare embedding models on the same labelled questions; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ibidem._util.statistics import auc
from ibidem.embedding.base import CheckedEmbedder, Embedder
from ibidem.types import Vector
from ibidem_lab.fitting.labels import Label
from ibidem_lab.replay import Outcome, Row, ceiling, curve_rule, most_hits, p_chr_auc, replay, vectors_of
from ibidem_lab.tuning.metrics import Array, PairMetrics, cosines, measure


@dataclass(frozen=True, slots=True)
class StreamMetrics:
    """The metrics of one model's cosines on a stream of questions, each asked once and stored.

    `auc` of the nearest stored question of each; `hits` as in `PairMetrics`, per request; `perfect` the share
    whose meaning was asked before.
    """

    requests: int
    perfect: float
    auc: float
    hits: dict[float, float]
    p_chr: float


def compare_on_pairs(pairs: Sequence[Label], models: Sequence[Embedder]) -> list[PairMetrics]:
    """Measure each model; the first draws the grey zone. Guards take no part."""
    found: list[Array] = [cosines(model.embed, pairs) for model in models]
    return [measure(pairs, mine, found[0]) for mine in found]


def measure_on_stream(rows: Sequence[Row], model: Embedder) -> StreamMetrics:
    """Replay a stream by the model's cosine alone; unreadable questions are compared exactly."""
    checked = CheckedEmbedder(model, lambda _, value: value)
    return stream_figures(rows, vectors_of(rows, checked))


def stream_figures(rows: Sequence[Row], vectors: Sequence[Vector | None]) -> StreamMetrics:
    """Measure as `measure_on_stream`, with given vectors."""
    outcome: Outcome = replay(rows, vectors, curve_rule(None))
    judged = [one for one in outcome.judged if np.isfinite(one.score)]
    scores = np.array([one.score for one in judged])
    right = np.array([one.right for one in judged], bool)
    return StreamMetrics(
        requests=len(rows),
        perfect=ceiling(rows),
        auc=auc(scores, right),
        hits={level: hits.value for level, hits in most_hits(outcome.judged, len(rows)).items()},
        p_chr=p_chr_auc(outcome.judged, len(rows)),
    )
