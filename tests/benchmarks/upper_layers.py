"""Tune the upper layers of an encoder on labelled pairs; what the lower ones make of a text is computed once.

The losses are those of Zhu, Zhu, Jiao 2024 (arXiv 2402.01173) on p = sigmoid(cosine / lambda - c): binary
cross-entropy, and the squared log difference. `ibidem learn encoder` trains all layers, by the former.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ibidem_lab.fitting.labels import Label
from ibidem_lab.models.network import TEXT_WINDOW, TextEncoder, Tokens
from ibidem_lab.tuning.loss import OFFSET, TEMPERATURE

LOWER = 3  # layers that stay
BATCH, AT_ONCE = 32, 64  # pairs in a step, texts embedded at once
WARM_UP = 0.1
RATE, LOSS_RATE = 2e-4, 5e-3  # of the layers; of lambda and c, which are far from where they end
FLOOR = 0.05  # what the squared log difference takes a label of 0 for: its logarithm must be finite
MASKED = -1e9

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-(y log p + (1 - y) log(1 - p)), mean."""
    return functional.binary_cross_entropy_with_logits(logits, labels)


def squared_log_difference(logits: Tensor, labels: Tensor) -> Tensor:
    """(log p - log y)^2, mean."""
    return (functional.logsigmoid(logits) - labels.clamp(min=FLOOR).log()).square().mean()


LOSSES: dict[str, Loss] = {"bce": cross_entropy, "sld": squared_log_difference}


class UpperLayers:
    """An encoder whose upper layers are trained.

    Args:
        base: Folder of the model, of the architecture of all-MiniLM-L6-v2.
        lower: What the lower layers made of texts; shared by encoders of one base.
        start: Weights of the upper layers to begin with; None for those of the base.
    """

    def __init__(self, base: Path, lower: dict[str, Tensor], start: dict[str, Tensor] | None = None) -> None:
        self._encoder, self._tokens, self._lower = TextEncoder(base), Tokens(base), lower
        layers = list(self._encoder.body.encoder.layer)
        self._below, self._above = layers[:LOWER], nn.ModuleList(layers[LOWER:])
        if start is not None:
            self._above.load_state_dict(start)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of the upper layers."""
        return dict(self._above.state_dict())

    def train(self, pairs: Sequence[Label], loss: Loss, epochs: int, seed: int) -> tuple[float, float]:
        """Train; return lambda and c as they were learned."""
        torch.manual_seed(seed)
        self._read(text for pair in pairs for text in (pair.asked, pair.stored))
        scale, offset = nn.Parameter(torch.tensor(math.log(TEMPERATURE))), nn.Parameter(torch.tensor(OFFSET))
        numbers = {"params": [scale, offset], "lr": LOSS_RATE, "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([{"params": self._above.parameters()}, numbers], lr=RATE)
        batches = list(_batches(pairs, epochs, seed))
        warm = max(1, int(WARM_UP * len(batches)))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / warm, (len(batches) - step) / max(1, len(batches) - warm)),
        )
        for batch in batches:
            labels = torch.tensor([float(pair.right) for pair in batch])
            loss(self._cosines(batch) / scale.exp() - offset, labels).backward()
            nn.utils.clip_grad_norm_(self._above.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return math.exp(scale.item()), offset.item()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32[n, d]."""
        self._read(texts)
        order = sorted(range(len(texts)), key=lambda at: len(self._lower[texts[at]]))
        found = np.zeros((len(texts), self._encoder.body.config.hidden_size), np.float32)
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE]
            found[some] = self._vectors([texts[at] for at in some]).numpy()
        return found

    @torch.no_grad()
    def _read(self, texts: Iterable[str]) -> None:
        """Take the texts through the lower layers."""
        lacking = sorted({text for text in texts if text not in self._lower}, key=len)
        for start in range(0, len(lacking), AT_ONCE):
            some = lacking[start : start + AT_ONCE]
            rows = [row[:TEXT_WINDOW] for row in self._tokens.texts(some)]
            ids, mask = self._tokens.batch(rows, torch.device("cpu"))
            with torch.autocast("cpu", torch.bfloat16):
                states = _through(self._below, self._encoder.body.embeddings(input_ids=ids), mask.float())
            for text, state, row in zip(some, states, rows, strict=True):
                self._lower[text] = state[: len(row)].clone()

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        states = [self._lower[text] for text in texts]
        mask = pad_sequence([torch.ones(len(state)) for state in states], batch_first=True)
        with torch.autocast("cpu", torch.bfloat16):
            last = _through(self._above, pad_sequence(states, batch_first=True), mask).float()
        return functional.normalize((last * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)

    def _cosines(self, pairs: Sequence[Label]) -> Tensor:
        texts = sorted({text for pair in pairs for text in (pair.asked, pair.stored)})
        place = {text: at for at, text in enumerate(texts)}
        vectors = self._vectors(texts)
        asked, stored = ([place[pair[side]] for pair in pairs] for side in (0, 1))
        return (vectors[asked] * vectors[stored]).sum(-1)


def _through(layers: Iterable[nn.Module], states: Tensor, mask: Tensor) -> Tensor:
    bias = (1.0 - mask[:, None, None, :]) * MASKED
    for layer in layers:
        made = layer(states, bias)
        states = made[0] if isinstance(made, tuple) else made
    return states


def _batches(pairs: Sequence[Label], epochs: int, seed: int) -> Iterator[list[Label]]:
    draw = random.Random(seed)
    for _ in range(epochs):
        shuffled = draw.sample(pairs, len(pairs))
        yield from (shuffled[start : start + BATCH] for start in range(0, len(shuffled), BATCH))
