"""The verifier that ships: six layers of the teacher, taught by its logits and its hidden states."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from ibidem_lab.models.groups import Pair
from ibidem_lab.models.network import CrossEncoder, Tokens, device
from ibidem_lab.models.training import Schedule, train

LAYERS = (0, 2, 4, 7, 9, 11)  # of the teacher's twelve, that the student starts from and is held against
STATE_WEIGHT = 1.0  # of the hidden states' distance against the logits' loss
# Steps in which the states teach too. The teacher's pass through twelve layers is two thirds of the work of
# the student's step, three passes through six.
STATE_STEPS = 600


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
