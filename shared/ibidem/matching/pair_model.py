"""A verifier that reads both questions at once: a cross-encoder in ONNX, calibrated with their cosine."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ibidem._util.statistics import sigmoid
from ibidem.embedding.model_files import MANIFEST_FILE, open_directory
from ibidem.embedding.onnx_model import CHARACTERS_PER_TOKEN, OnnxModel, encodable
from ibidem.errors import ConfigurationError, EmbedderUnavailable, IbidemError
from ibidem.matching.scorers import Candidate, Thresholds, Vectors
from ibidem.types import digest

LARGEST_LOGIT = 8.0  # beyond it a model only says that it is sure, and how much is not to be trusted
SPARSE = 0.35  # density of open questions: how the probability rises where even fewer are near is not known


class PairModelFailed(IbidemError):
    """The model cannot be loaded or run; the rule without it can still decide."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The probability that one answer serves both: sigmoid(logit * z + cosine * c + density * d + offset).

    z is the model's logit within ±`LARGEST_LOGIT`, c the cosine of the questions' vectors, d the density of
    the stored questions around (`ibidem.matching.scorers.densities`), at least `SPARSE`.
    """

    logit: float
    cosine: float
    density: float
    offset: float

    def probabilities(
        self, logits: ArrayLike, cosines: ArrayLike, densities: ArrayLike = 0.0
    ) -> NDArray[np.float64]:
        """Combine them, elementwise, to numbers from 0 to 1; NaN where logit or cosine is."""
        clipped = np.clip(np.asarray(logits, np.float64), -LARGEST_LOGIT, LARGEST_LOGIT)
        around = np.maximum(np.asarray(densities, np.float64), SPARSE)
        found = self.logit * clipped + self.cosine * np.asarray(cosines, np.float64)
        return sigmoid(found + self.density * around + self.offset)

    def probability(self, logit: float, cosine: float, density: float = 0.0) -> float:
        """Combine those of one pair."""
        return float(self.probabilities(logit, cosine, density))

    def min_cosine(self, probability: float) -> float:
        """Return the cosine below which no logit reaches the probability, from -1 to 1."""
        if self.cosine <= 0 or not 0 < probability < 1:
            return -1.0
        needed = math.log(probability / (1 - probability)) - self.offset - self.logit * LARGEST_LOGIT
        needed -= self.density * SPARSE
        return max(-1.0, min(1.0, needed / self.cosine))


class PairModel:
    """The cross-encoder of a directory: a `Scorer`, whose scores are probabilities.

    The directory holds `model.onnx` (ids and mask, int64[n, t], to one logit a row), `tokenizer.json`, and
    `manifest.json` with the window, the calibration, the thresholds, and the least cosine of questions that
    are read. Safe across threads and forks.

    Args:
        directory: As `python -m ibidem_lab.models export` writes it.
        threads: Threads for one call.

    Raises:
        EmbedderUnavailable: A file is missing or damaged.
        ConfigurationError: The manifest has no calibration.
    """

    reads_both = True  # questions, so that fewer guards are needed
    most = 2  # candidates of a lookup that are read: each takes milliseconds
    floor = 0.1  # of intents, for whom a topic is enough, some are right even here

    def __init__(self, directory: str | Path, *, threads: int = 1) -> None:
        files = open_directory(Path(directory).expanduser())
        self._model = OnnxModel(files, rank=1, threads=threads)
        self._window = files.max_tokens
        self.directory = files.directory
        self.calibration, self.thresholds, self._least_cosine = _measured(files.directory / MANIFEST_FILE)
        self.name = digest("PairModel", files.fingerprint, repr(self.calibration))

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        """Return the probability for each candidate; 0 for a pair that is longer than the window."""
        return [
            0.0 if logit is None else self.calibration.probability(logit, one.similarity, one.density)
            for one in candidates
            for logit in self.logits([(question, one.entry.question or "")])
        ]

    def score(self, asked: str, stored: str, cosine: float, vectors: Vectors | None = None) -> float:
        """Return the probability that one answer serves both if no other is stored; 0 beyond the window."""
        (logit,) = self.logits([(asked, stored)])
        return 0.0 if logit is None else self.calibration.probability(logit, cosine)

    def min_cosine(self, threshold: float) -> float:
        """Return a cosine below which no pair of questions reaches the threshold."""
        return max(self._least_cosine, self.calibration.min_cosine(threshold))

    def usual_cosine(self, threshold: float) -> None:
        """Return None: what the model reads counts for more."""
        return

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Return the logit of each pair, the same in either order; None for one beyond the window."""
        rows = [self._tokenised(*sorted(pair)) for pair in pairs]
        inside = [row for row in rows if row is not None]
        if not inside:
            return [None] * len(rows)
        ids = np.zeros((len(inside), max(map(len, inside))), np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(inside):
            ids[at, : len(row)], mask[at, : len(row)] = row, 1
        try:
            found = iter(self._model.run(ids, mask).tolist())
        except Exception as error:  # of onnxruntime, whatever they are
            raise PairModelFailed(f"the pair model failed: {error!r}") from error
        return [None if row is None else float(next(found)) for row in rows]

    def _tokenised(self, one: str, other: str) -> list[int] | None:
        """The ids of both in one sequence, or None if the window does not hold them."""
        if len(one) + len(other) > CHARACTERS_PER_TOKEN * self._window:
            return None
        # encode, never encode_batch: that starts a thread pool, which hangs in forked processes
        try:
            tokenizer = self._model.loaded().tokenizer
        except EmbedderUnavailable as error:
            raise PairModelFailed(f"the pair model cannot be loaded: {error}") from error
        ids: list[int] = tokenizer.encode(encodable(one), encodable(other)).ids
        return ids if len(ids) <= self._window else None


def _measured(manifest: Path) -> tuple[Calibration, Thresholds, float]:
    try:
        held = json.loads(manifest.read_text(encoding="utf-8"))
        weights = {
            name: float(held["calibration"][name]) for name in ("logit", "cosine", "density", "offset")
        }
        table = tuple((float(share), float(threshold)) for share, threshold in held["thresholds"])
        return Calibration(**weights), Thresholds(table), float(held["least_cosine"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{manifest} has no calibration of a pair model: {error!r}") from None
