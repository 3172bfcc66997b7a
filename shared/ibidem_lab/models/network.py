"""The networks: a cross-encoder that reads two questions at once, and an encoder that reads one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from ibidem_lab.models.groups import Pair

# Tokens of both questions together, and of one. Longer ones are not trained on and get no score: never cut.
PAIR_WINDOW = 256
TEXT_WINDOW = 128


class TooLong(ValueError):
    """A text or pair beyond the window of the model."""


class Tokens:
    """The tokenizer of a base model, padding to the longest of a batch."""

    def __init__(self, base: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base)

    def pairs(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """The ids of each pair, both questions in one sequence, in the order of their texts.

        So a pair has one score, whichever of the two is asked, and nothing is spent on learning that.
        """
        ordered = [sorted((pair.a, pair.b)) for pair in pairs]
        found: list[list[int]] = self._tokenizer(
            [one for one, _ in ordered],
            [other for _, other in ordered],
            verbose=False,
            return_attention_mask=False,
        )["input_ids"]
        return found

    def labelled(self, pairs: Sequence[Pair]) -> tuple[list[list[int]], list[float]]:
        """The ids and the labels of the pairs that the window holds."""
        inside = [
            (row, p.same) for row, p in zip(self.pairs(pairs), pairs, strict=True) if len(row) <= PAIR_WINDOW
        ]
        return [row for row, _ in inside], [same for _, same in inside]

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        found: list[list[int]] = self._tokenizer(list(texts), verbose=False, return_attention_mask=False)[
            "input_ids"
        ]
        return found

    def batch(self, rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and mask of some rows, (rows, longest), padded on the right."""
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self._tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _body(base: Path) -> Any:
    """A transformer with the weights in a folder.

    Without dropout: few pairs are seen twice, and on a CPU drawing it takes a fifth of the time. The
    embeddings are frozen: they know more words than the training has.
    """
    body = AutoModel.from_pretrained(
        base,
        attn_implementation="eager",
        add_pooling_layer=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    body.embeddings.requires_grad_(False)
    return body


class CrossEncoder(nn.Module):
    """Both questions through one transformer; the mean of its last states becomes a logit."""

    def __init__(self, base: Path, layers: Sequence[int] | None = None) -> None:
        """A body with the weights in the folder `base`; with `layers`, only those of its layers."""
        super().__init__()
        self.body = _body(base)
        if layers is not None:
            self.body.encoder.layer = nn.ModuleList(self.body.encoder.layer[i] for i in layers)
            self.body.config.num_hidden_layers = len(layers)
        self.head = nn.Linear(self.body.config.hidden_size, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One logit a row."""
        return self.with_states(ids, mask)[0]

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The logits, and the hidden states before the first layer and after each."""
        with torch.autocast(ids.device.type, torch.bfloat16):
            out = self.body(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            logits = self.head(_mean(out.last_hidden_state, mask))
        return logits.squeeze(-1).float(), out.hidden_states


class TextEncoder(nn.Module):
    """One question to a vector of length 1: the mean of the last states."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.body = _body(base)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(rows, dimensions), normalised."""
        with torch.autocast(ids.device.type, torch.bfloat16):
            hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        return nn.functional.normalize(_mean(hidden.float(), mask), dim=-1)


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _in_order_of_length(rows: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Places of rows of like lengths, about as many tokens at a time."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, len(rows[order[min(start + 64, len(order) - 1)]])))
        yield order[start : start + count]
        start += count


@torch.inference_mode()
def scores(
    model: CrossEncoder, tokens: Tokens, pairs: Sequence[Pair], size: int = 4096
) -> NDArray[np.float32]:
    """The logit of each pair; NaN where it is beyond the window. `size`: tokens at a time."""
    model.eval()
    where = next(model.parameters()).device
    rows = tokens.pairs(pairs)
    found = np.full(len(pairs), np.nan, dtype=np.float32)
    for places in _in_order_of_length(rows, size):
        inside = [i for i in places if len(rows[i]) <= PAIR_WINDOW]
        if inside:
            found[inside] = model(*tokens.batch([rows[i] for i in inside], where)).cpu().numpy()
    return found


@torch.inference_mode()
def vectors(
    model: TextEncoder, tokens: Tokens, texts: Sequence[str], size: int = 4096
) -> NDArray[np.float32]:
    """(texts, dimensions): the vector of each text. `size`: tokens at a time.

    Raises:
        TooLong: a text is beyond the window.
    """
    model.eval()
    where = next(model.parameters()).device
    rows = tokens.texts(texts)
    if any(len(row) > TEXT_WINDOW for row in rows):
        raise TooLong(f"at most {TEXT_WINDOW} tokens")
    found = np.zeros((len(texts), model.body.config.hidden_size), dtype=np.float32)
    for places in _in_order_of_length(rows, size):
        found[places] = model(*tokens.batch([rows[i] for i in places], where)).cpu().numpy()
    return found


def cosines(model: TextEncoder, tokens: Tokens, pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """The cosine of each pair; NaN where one of its texts is beyond the window."""
    texts = sorted({text for pair in pairs for text in (pair.a, pair.b)})
    short = [text for text, row in zip(texts, tokens.texts(texts), strict=True) if len(row) <= TEXT_WINDOW]
    place = {text: i for i, text in enumerate(short)}
    found = vectors(model, tokens, short)
    known = [i for i, pair in enumerate(pairs) if pair.a in place and pair.b in place]
    left, right = (found[[place[getattr(pairs[i], side)] for i in known]] for side in "ab")
    result = np.full(len(pairs), np.nan, dtype=np.float32)
    result[known] = np.einsum("ij,ij->i", left, right)
    return result
