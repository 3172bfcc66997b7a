"""The teacher: cross-encoders on all-mpnet-base-v2, trained on every label, and their soft labels."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ibidem._util.statistics import sigmoid
from ibidem_lab.models.groups import Pair, pair_hash
from ibidem_lab.models.network import CrossEncoder, Tokens, device, scores
from ibidem_lab.models.training import Schedule, train

SMOOTHING = 0.02  # of the labels, on either side: some are wrong
# Logits are clipped here before they are averaged and written: beyond it a model only says that it is sure.
LARGEST_LOGIT = 8.0


def train_cross_encoder(
    model: CrossEncoder,
    tokens: Tokens,
    pairs: Sequence[Pair],
    schedule: Schedule,
    checkpoint: Path,
    report: Callable[[str], None],
    validate: Callable[[CrossEncoder], str] | None = None,
) -> None:
    """Train on labels, hard or soft, by binary cross-entropy; pairs beyond the window are left out."""
    rows, labels = tokens.labelled(smoothed(pairs))
    target = torch.tensor(labels)
    where = device()
    model.to(where)

    def loss_of(places: list[int], step: int) -> torch.Tensor:
        logits = model(*tokens.batch([rows[i] for i in places], where))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, target[places].to(where))

    train(model, loss_of, [len(row) for row in rows], schedule, checkpoint, report, validate)


def smoothed(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with their labels `SMOOTHING` nearer to a half."""
    return [Pair(pair.a, pair.b, pair.same * (1 - 2 * SMOOTHING) + SMOOTHING) for pair in pairs]


def average_scores(
    models: Sequence[CrossEncoder], tokens: Tokens, pairs: Sequence[Pair]
) -> NDArray[np.float32]:
    """The mean logit over the models of each pair; NaN beyond the window."""
    clipped = [np.clip(scores(model, tokens, pairs), -LARGEST_LOGIT, LARGEST_LOGIT) for model in models]
    mean: NDArray[np.float32] = np.mean(clipped, axis=0, dtype=np.float32)
    return mean


class TeacherScores:
    """The teacher's logits by hash of the pair, as they are kept in the repository: without the texts.

    Attributes:
        of: The teacher that gave them (`teacher_name`).
    """

    def __init__(self, of: str, hashes: NDArray[np.uint64], logits: NDArray[np.float16]) -> None:
        order = np.argsort(hashes)
        self.of, self._hashes, self._logits = of, hashes[order], logits[order]

    @classmethod
    def none(cls, of: str) -> "TeacherScores":
        """Of a teacher that has scored nothing yet."""
        return cls(of, np.zeros(0, np.uint64), np.zeros(0, np.float16))

    @classmethod
    def read(cls, path: Path) -> "TeacherScores":
        """From a file that `write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(str(file["of"]), file["hashes"], file["logits"])

    def write(self, path: Path) -> None:
        """Into one `.npz` file, whole or not at all."""
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            np.savez_compressed(file, of=np.array(self.of), hashes=self._hashes, logits=self._logits)
        os.replace(new, path)

    def __len__(self) -> int:
        return len(self._hashes)

    def and_of(self, pairs: Sequence[Pair], logits: NDArray[np.float32]) -> "TeacherScores":
        """These and those of further pairs; where a logit is NaN, none."""
        known = ~np.isnan(logits)
        return TeacherScores(
            self.of,
            np.concatenate([self._hashes, _hashes(pairs)[known]]),
            np.concatenate([self._logits, logits[known].astype(np.float16)]),
        )

    def lacking(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that have no score."""
        known = np.isin(_hashes(pairs), self._hashes)
        return [pair for pair, is_known in zip(pairs, known, strict=True) if not is_known]

    def label(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that have a score, each with its probability."""
        told = sigmoid(self.logits(pairs))
        return [
            Pair(pair.a, pair.b, float(p)) for pair, p in zip(pairs, told, strict=True) if not np.isnan(p)
        ]

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """The logit of each pair; NaN where it has none."""
        if not len(self):
            return np.full(len(pairs), np.nan, np.float32)
        wanted = _hashes(pairs)
        places = np.searchsorted(self._hashes, wanted).clip(max=len(self) - 1)
        return np.where(self._hashes[places] == wanted, self._logits[places].astype(np.float32), np.nan)


def _hashes(pairs: Sequence[Pair]) -> NDArray[np.uint64]:
    return np.fromiter((pair_hash(pair) for pair in pairs), np.uint64, len(pairs))


def teacher_name(models: Sequence[CrossEncoder]) -> str:
    """A digest of the weights of all."""
    hashed = hashlib.sha256()
    for model in models:
        for name, value in sorted(model.state_dict().items()):
            hashed.update(name.encode() + value.float().cpu().numpy().tobytes())
    return hashed.hexdigest()
