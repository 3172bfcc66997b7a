"""The verifier that ships: six layers of the teacher, taught by its logits and its hidden states."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ibidem._util.statistics import sigmoid
from ibidem_lab.models.groups import Pair
from ibidem_lab.models.network import CrossEncoder, Tokens, device
from ibidem_lab.models.training import Schedule, train
from ibidem_lab.models.verifier_graph import weights_of

LAYERS = (0, 2, 4, 7, 9, 11)  # of the teacher's twelve, that the student starts from and is held against
STATE_WEIGHT = 1.0  # of the hidden states' distance against the logits' loss
# Steps in which the states teach too. The teacher's pass through twelve layers is two thirds of the work of
# the student's step, three passes through six.
STATE_STEPS = 600
# A model that goes on learning has little to learn from pairs whose label it gives this probability: of them
# it sees one in `SEEN_AGAIN`, so that it forgets nothing.
CERTAIN = 0.9
SEEN_AGAIN = 4


def start_from(teacher: CrossEncoder, base: Path) -> CrossEncoder:
    """A student with the layers of the teacher at `LAYERS`, its embeddings and its head."""
    student = CrossEncoder(base, LAYERS)
    weights = teacher.state_dict()
    for new, old in enumerate(LAYERS):
        prefix, own = f"body.encoder.layer.{old}.", f"body.encoder.layer.{new}."
        layer = {
            own + name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)
        }
        student.load_state_dict(layer, strict=False)
    student.load_state_dict(
        {name: value for name, value in weights.items() if ".encoder.layer." not in name}, strict=False
    )
    return student


def from_graph(file: Path, base: Path, layers: Sequence[int] = LAYERS) -> CrossEncoder:
    """A student with the weights of an int8 graph as it ships, and the embeddings in the folder `base`."""
    student = CrossEncoder(base, layers)
    weights = weights_of(onnx.load(file))
    student.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=False)
    return student


def averaged(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """The mean of the weights of one model before and after a training, `after` with this share.

    Less is forgotten: no held-out set ranks worse than before (WiSE-FT, Wortsman et al. 2022, arXiv
    2109.01903).
    """
    return {
        name: torch.lerp(before[name], value, share) if value.is_floating_point() else value
        for name, value in after.items()
    }


def worth_reading(pairs: Sequence[Pair], logits: NDArray[np.float32], seed: int) -> list[Pair]:
    """The pairs to go on with, in order: those whose label a model is not certain of, and some of the others.

    A pair without a logit (NaN) is among the former.
    """
    rng = random.Random(seed)  # noqa: S311
    labels = np.array([pair.same for pair in pairs])
    told = sigmoid(logits)
    certain = labels * told + (1 - labels) * (1 - told) > CERTAIN
    kept = (not known or not rng.randrange(SEEN_AGAIN) for known in certain)
    return [pair for pair, is_kept in zip(pairs, kept, strict=True) if is_kept]


def distil(
    student: CrossEncoder,
    teacher: CrossEncoder,
    tokens: Tokens,
    pairs: Sequence[Pair],
    schedule: Schedule,
    checkpoint: Path,
    report: Callable[[str], None],
    validate: Callable[[CrossEncoder], str] | None = None,
) -> None:
    """Teach a student by labels, hard or soft, and in its first `STATE_STEPS` by a teacher as well.

    The loss of the labels is binary cross-entropy; in the first steps a label is the mean of the pair's own
    and the teacher's. To it comes then the mean over layers of one minus the cosine between the student's and
    the teacher's state of each token.
    """
    rows, labels = tokens.labelled(pairs)
    target = torch.tensor(labels)
    where = device()
    student.to(where)
    teacher.to(where).eval()

    def loss_of(places: list[int], step: int) -> torch.Tensor:
        ids, mask = tokens.batch([rows[i] for i in places], where)
        logits, states = student.with_states(ids, mask)
        wanted = target[places].to(where)
        if step >= STATE_STEPS:
            return functional.binary_cross_entropy_with_logits(logits, wanted)
        with torch.no_grad():
            told, theirs = teacher.with_states(ids, mask)
        loss = functional.binary_cross_entropy_with_logits(logits, (wanted + told.sigmoid()) / 2)
        weight = mask.float() / mask.sum()
        for own, old in zip(states[1:], LAYERS, strict=True):
            near = functional.cosine_similarity(own.float(), theirs[old + 1].float(), dim=-1)
            loss = loss + STATE_WEIGHT / len(LAYERS) * ((1 - near) * weight).sum()
        return loss

    train(student, loss_of, [len(row) for row in rows], schedule, checkpoint, report, validate)
