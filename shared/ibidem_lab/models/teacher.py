"""The teacher: cross-encoders on all-mpnet-base-v2, trained on every label, and their soft labels."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ibidem_lab.models.groups import Pair
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
    rows, labels = tokens.labelled(pairs)
    target = torch.tensor(labels) * (1 - 2 * SMOOTHING) + SMOOTHING
    where = device()
    model.to(where)

    def loss_of(places: list[int], step: int) -> torch.Tensor:
        logits = model(*tokens.batch([rows[i] for i in places], where))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, target[places].to(where))

    train(model, loss_of, [len(row) for row in rows], schedule, checkpoint, report, validate)


def pair_hash(pair: Pair) -> int:
    """A 64-bit hash of a pair, the same in either order: under it the teacher's score is kept."""
    joined = "\x00".join(sorted((pair.a, pair.b)))
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "little")


def average_scores(
    models: Sequence[CrossEncoder], tokens: Tokens, pairs: Sequence[Pair]
) -> NDArray[np.float32]:
    """The mean logit over the models of each pair; NaN beyond the window."""
    clipped = [np.clip(scores(model, tokens, pairs), -LARGEST_LOGIT, LARGEST_LOGIT) for model in models]
    mean: NDArray[np.float32] = np.mean(clipped, axis=0, dtype=np.float32)
    return mean


class TeacherScores:
    """The teacher's logits by hash of the pair, as they are kept in the repository: without the texts."""

    def __init__(self, hashes: NDArray[np.uint64], logits: NDArray[np.float16]) -> None:
        order = np.argsort(hashes)
        self._hashes, self._logits = hashes[order], logits[order]

    @classmethod
    def of(cls, pairs: Sequence[Pair], logits: NDArray[np.float32]) -> "TeacherScores":
        """Those of some pairs; where a logit is NaN, none."""
        known = ~np.isnan(logits)
        hashes = np.fromiter((pair_hash(pair) for pair in pairs), np.uint64, len(pairs))
        return cls(hashes[known], logits[known].astype(np.float16))

    @classmethod
    def read(cls, path: Path) -> "TeacherScores":
        """From a file that `write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["hashes"], file["logits"])

    def write(self, path: Path) -> None:
        """Into one `.npz` file."""
        with path.open("wb") as file:
            np.savez_compressed(file, hashes=self._hashes, logits=self._logits)

    def __len__(self) -> int:
        return len(self._hashes)

    def label(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that the teacher has scored, each with its probability."""
        wanted = np.fromiter((pair_hash(pair) for pair in pairs), np.uint64, len(pairs))
        places = np.searchsorted(self._hashes, wanted).clip(max=len(self._hashes) - 1)
        known = self._hashes[places] == wanted
        probability = 1 / (1 + np.exp(-self._logits[places].astype(np.float64)))
        return [
            Pair(pair.a, pair.b, float(p))
            for pair, p, is_known in zip(pairs, probability, known, strict=True)
            if is_known
        ]
