"""A cross-encoder of the user's: what its scores mean is learned from labelled pairs before it serves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibidem._util.faults import log
from ibidem._util.statistics import auc, logistic, sigmoid
from ibidem.errors import InvalidInput
from ibidem.matching.scorers import Candidate, Thresholds, Vectors, score_each
from ibidem.types import digest

Predict = Callable[[list[tuple[str, str]]], Sequence[float]]  # the scores of pairs of questions

LEAST_AUC = 0.7  # a model that tells the pairs apart less well serves nothing
BATCH = 32  # pairs that are scored at a time while the scale is learned
_UNKNOWN = Thresholds(((0.0, 1.0), (0.5, 1.0)))


@dataclass(frozen=True, slots=True)
class Scale:
    """What the scores of a model mean: sigmoid(slope * (score - middle) / spread + offset)."""

    slope: float
    offset: float
    middle: float
    spread: float
    thresholds: Thresholds
    auc: float

    def probabilities(self, scores: Sequence[float]) -> list[float]:
        """Convert scores to probabilities that one answer serves both questions."""
        found = self.slope * (np.asarray(scores, np.float64) - self.middle) / self.spread + self.offset
        probabilities: list[float] = sigmoid(found).tolist()
        return probabilities


class CrossEncoderScorer:
    """Scores by a model of `sentence_transformers.CrossEncoder`'s interface: `predict` of a list of pairs.

    Its scale is learned when the cache is opened, in a thread of its own, from 500 labelled pairs that come
    with Ibidem: seconds to a minute, in which nothing is served by meaning. A fifth of those pairs are near
    misses, far more than in traffic, so its thresholds are careful. Thread-safe.

    Args:
        model: The model. One number a pair, higher for questions that are more alike; its own limit of length
            counts, and it must be safe to call from several threads, or be called by one.
    """

    reads_both = True
    most = 2  # candidates of a lookup that are read: each takes milliseconds
    floor = 0.1

    def __init__(self, model: Any) -> None:
        config = getattr(model, "config", None)
        named = getattr(config, "_name_or_path", "") or type(model).__qualname__
        self.name = digest("CrossEncoder", str(named))
        self._predict: Predict = model.predict
        self._scale: Scale | None = None
        self._failed = False
        self._make_locks()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_learning")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_locks()

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        self._learning: threading.Thread | None = None

    @property
    def thresholds(self) -> Thresholds:
        """What share of the hits is wrong at which probability; nothing is known before it was learned."""
        return _UNKNOWN if self._scale is None else self._scale.thresholds

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        """Return the probability for each candidate; 0 until the scale is known."""
        return score_each(self.score, question, candidates)

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """Return the probability that one answer serves both; 0 until the scale is known."""
        if (scale := self._scale) is None:
            self.begin()
            return 0.0
        return scale.probabilities(_numbers(self._predict([(asked, stored)]), 1))[0]

    def min_cosine(self, threshold: float) -> float:
        """Return 0.5: stored questions below are rarely the same, and reading takes long."""
        return 0.5

    def usual_cosine(self, threshold: float) -> None:
        """Return None: it does not see the cosine."""
        return

    def begin(self) -> threading.Thread:
        """Learn the scale in the background, unless that is under way or has failed; return the thread."""
        with self._lock:
            alive = self._learning is not None and self._learning.is_alive()  # no thread survives a fork
            if self._learning is None or not (alive or self._failed or self._scale):
                self._learning = threading.Thread(target=self._learn, name="ibidem-scale", daemon=True)
                self._learning.start()
            return self._learning

    def _learn(self) -> None:
        try:
            scale = learn_scale(self._predict)
        except Exception as error:
            self._failed = True
            log.warning(
                "Ibidem cannot use this cross-encoder, and serves nothing by meaning with it: %r",
                error,
                extra={"event.name": "ibidem.verifier.unusable"},
            )
            return
        self._scale = scale
        log.info("Ibidem knows the scale of the cross-encoder: AUC %.3f on the labelled pairs", scale.auc)


def learn_scale(predict: Predict) -> Scale:
    """Learn what the scores of a model mean.

    Raises:
        InvalidInput: It gives no number a pair, or tells the same from the different less well than
            `LEAST_AUC`.
        Exception: What the model raises.
    """
    pairs, same = labelled_pairs()
    batches = (pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH))
    scores = np.array([number for batch in batches for number in _numbers(predict(batch), len(batch))])
    area = auc(scores, same)
    if area < LEAST_AUC:
        raise InvalidInput(
            f"it tells questions with one answer from others with an AUC of {area:.2f} on {len(pairs)} "
            f"pairs; at least {LEAST_AUC} is needed: give a model that was trained for that (duplicates, "
            "not relevance)"
        )
    middle, spread = float(scores.mean()), float(scores.std()) or 1.0
    columns = np.column_stack([(scores - middle) / spread, np.ones(len(scores))])
    slope, offset = logistic(columns, same.astype(np.float64), np.ones(len(scores)))
    scale = Scale(float(slope), float(offset), middle, spread, _UNKNOWN, area)
    return replace(scale, thresholds=_thresholds(scale.probabilities(scores.tolist())))


def _numbers(found: Any, count: int) -> list[float]:
    """The scores of `count` pairs, checked."""
    numbers = np.asarray(found, np.float64)
    if numbers.shape not in ((count,), (count, 1)) or np.isnan(numbers).any():
        raise InvalidInput(
            f"a cross-encoder must return one number for each of {count} pairs, not {numbers.shape}"
        )
    flat: list[float] = numbers.reshape(count).tolist()
    return flat


def _thresholds(probabilities: Sequence[float]) -> Thresholds:
    """Which share of the pairs above each probability is expected to be wrong, by the probabilities."""
    ordered = sorted(probabilities, reverse=True)
    wrong, table = 0.0, [(0.0, 1.0)]
    for number, probability in enumerate(ordered, 1):
        wrong += 1.0 - probability
        if wrong / number > table[-1][0] + 1e-3:
            table.append((wrong / number, probability))
    return Thresholds(tuple(table))


@lru_cache(maxsize=1)
def labelled_pairs() -> tuple[list[tuple[str, str]], NDArray[np.bool_]]:
    """Return pairs of questions, and for each whether one answer serves both.

    250 rewordings, 100 near misses and 150 neighbours by cosine, from the question groups of this project
    (`ibidem_lab/models/data/DATA_CARD.md`).
    """
    text = (files("ibidem.matching") / "labelled_pairs.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [(row["a"], row["b"]) for row in rows], np.array([row["same"] for row in rows])
