"""The loss of Zhu, Zhu, Jiao 2024 (arXiv 2402.01173) on p = sigmoid(cosine / temperature - offset).

`p` is the probability that one answer serves both questions; with a label y in {0, 1} the loss is the binary
cross-entropy -(y log p + (1 - y) log(1 - p)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

TEMPERATURE, OFFSET = 0.05, 17.0  # where training begins: p = 1/2 at cosine 0.85


class SharedAnswerLoss(nn.Module):
    """Compute the mean loss over a batch of pairs; labels float[n], two columns of tokenised texts.

    Args:
        model: The embedding model.
        temperature: The lambda of the paper; None to learn it.
        offset: The c of the paper; None to learn it.
    """

    def __init__(
        self, model: SentenceTransformer, temperature: float | None = None, offset: float | None = None
    ) -> None:
        super().__init__()
        self.model = model
        # By its logarithm, so that no step makes it negative.
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature or TEMPERATURE)), requires_grad=temperature is None
        )
        self.offset = nn.Parameter(
            torch.tensor(OFFSET if offset is None else offset), requires_grad=offset is None
        )

    @property
    def temperature(self) -> float:
        """The present temperature."""
        return math.exp(self.log_temperature.item())

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the mean loss of the batch, a scalar."""
        one, other = (self.model(features)["sentence_embedding"] for features in sentence_features)
        cosine = functional.cosine_similarity(one.float(), other.float())
        return self.of(cosine, labels.float().view(-1))

    def of(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of pairs with these cosines, both float[n]."""
        logits = cosine / self.log_temperature.exp() - self.offset
        return functional.binary_cross_entropy_with_logits(logits, labels)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the parameters for the record of the training."""
        return {"temperature": self.temperature, "offset": self.offset.item()}
