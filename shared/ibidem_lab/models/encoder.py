"""The encoder that ships: MiniLM's size, drawn to find the questions that one answer serves.

Two losses. In a batch of groups each question is to be nearer to a rewording than to the near misses of its
group and to all that belongs to other groups (InfoNCE, temperature `TEMPERATURE`). And its cosines between
questions of any kind are to be those of a larger encoder, all-mpnet-base-v2, which ranks open questions
better: without that a model trained on near misses forgets what it knew.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ibidem_lab.models.groups import Group, Pair
from ibidem_lab.models.network import TEXT_WINDOW, TextEncoder, Tokens, cosines, device
from ibidem_lab.models.training import Schedule, train

TEMPERATURE = 0.05
COSINE_WEIGHT = 30.0  # of the squared distance of cosines against InfoNCE
GROUPS_A_STEP = 16
PAIRS_A_STEP = 48


def train_encoder(
    model: TextEncoder,
    tokens: Tokens,
    groups: Sequence[Group],
    pairs: Sequence[Pair],
    schedule: Schedule,
    checkpoint: Path,
    report: Callable[[str], None],
    validate: Callable[[TextEncoder], str] | None = None,
) -> None:
    """Train on groups, and on pairs whose `same` is the larger encoder's cosine.

    `schedule.batch` counts groups.
    """
    where = device()
    model.to(where)
    short = [group for group in groups if max(map(len, tokens.texts(group.texts))) <= TEXT_WINDOW]
    rng = random.Random(schedule.seed)  # noqa: S311

    def embed(texts: Sequence[str]) -> torch.Tensor:
        found: torch.Tensor = model(*tokens.batch(tokens.texts(texts), where))
        return found

    def loss_of(places: list[int], step: int) -> torch.Tensor:
        anchors: list[str] = []
        positives: list[str] = []
        others: list[str] = []
        for group in (short[i] for i in places):
            anchor, positive = rng.sample([group.question, *group.same], 2)
            anchors.append(anchor)
            positives.append(positive)
            others += group.diff
        found = embed([*anchors, *positives, *others])
        loss = _nearer(found[: len(anchors)], found[len(anchors) :])
        sample = [pairs[rng.randrange(len(pairs))] for _ in range(PAIRS_A_STEP)]
        both = embed([text for pair in sample for text in (pair.a, pair.b)])
        found = (both[0::2] * both[1::2]).sum(-1)
        wanted = torch.tensor([pair.same for pair in sample], device=where)
        return loss + COSINE_WEIGHT * functional.mse_loss(found, wanted)

    train(model, loss_of, [0] * len(short), schedule, checkpoint, report, validate)


def with_cosines(pairs: Sequence[Pair], model: TextEncoder, tokens: Tokens) -> list[Pair]:
    """The pairs whose texts the model can read whole, each with the cosine of its vectors as `same`."""
    found = cosines(model, tokens, pairs)
    return [
        Pair(p.a, p.b, float(cosine)) for p, cosine in zip(pairs, found, strict=True) if not np.isnan(cosine)
    ]


def _nearer(anchors: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """InfoNCE: the i-th candidate is the right one for the i-th anchor, all others are wrong."""
    return functional.cross_entropy(
        anchors @ candidates.T / TEMPERATURE, torch.arange(len(anchors), device=anchors.device)
    )
