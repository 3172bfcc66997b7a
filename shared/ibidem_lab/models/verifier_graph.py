"""The ONNX graph of the verifier, written straight from its weights.

Architecture (`config.json` of all-mpnet-base-v2): MPNet, hidden 768, 12 heads, erf-GELU, LayerNorm eps 1e-5,
attention biased by the distance of two tokens; mean over the unmasked tokens, then one linear layer: a logit.
How activations are quantised is said in `ibidem_lab.minilm`; `Digits` says for which layers one
digit is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ibidem_lab.minilm import FLOAT, MASKED, Graph
from ibidem_lab.models.network import PAIR_WINDOW

if TYPE_CHECKING:
    from onnx import ModelProto

EPSILON = 1e-5
FIRST_POSITION = 2  # of the position embeddings, after that of padding
FARTHEST = 128  # tokens from which on all distances are one
BUCKETS = 32  # of distances

_LARGEST_SHAPE = 4  # elements of a constant that holds no weights
_OF_EMBEDDINGS = 5  # constants: words and their scale, positions, norm
_OF_LAYER = 4 * 4 + 2 * 2  # constants: four dense layers and two norms

Array = NDArray[Any]


@dataclass(frozen=True)
class Digits:
    """Digits of an activation, by the layer that it goes into; 0: full precision, weights too."""

    attention: int = 2
    projection: int = 2
    inner: int = 2
    outer: int = 2

    @property
    def int8(self) -> bool:
        """Whether anything is quantised."""
        return any((self.attention, self.projection, self.inner, self.outer))


def build_verifier(weights: Mapping[str, Array], heads: int, digits: Digits | None = None) -> ModelProto:
    """The graph as an ONNX model: int64[n, t] ids and mask, t at most `PAIR_WINDOW`, to float32[n] logits.

    Args:
        weights: Arrays by their names in a `CrossEncoder`.
        heads: Attention heads.
        digits: How to quantise; `None` for full precision.
    """
    digits = digits or Digits(0, 0, 0, 0)
    graph = Graph(EPSILON)
    mask = graph.op("Cast", "attention_mask", to=FLOAT)
    padding = graph.op("Mul", graph.op("Sub", mask, 1.0), float(-MASKED))
    padding = graph.op("Unsqueeze", padding, np.array([1, 2], np.int64))
    bias = graph.op("Add", padding, _distance_bias(graph, weights))
    x = _embeddings(graph, weights, digits.int8)
    number = 0
    while f"body.encoder.layer.{number}.output.dense.weight" in weights:
        prefix = f"body.encoder.layer.{number}."
        own = {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}
        x = _layer(graph, x, bias, own, heads, digits)
        number += 1
    _logit(graph, x, mask, weights)
    return graph.model("logit", ["n"], "ibidem-verifier")


def weights_of(model: ModelProto) -> dict[str, Array]:
    """What `build_verifier` made an int8 graph from, rounded to 8 bits, by the names in a `CrossEncoder`.

    The embeddings, which are not trained, are left out.

    Raises:
        ValueError: the graph is another one, or in full precision.
    """
    from onnx import numpy_helper

    constants = [numpy_helper.to_array(one) for one in model.graph.initializer]
    # In the order in which they were made; all others are shapes, axes and single numbers.
    table, *blocks, head = [array for array in constants if array.size > _LARGEST_SHAPE]
    offset, blocks = constants[-2], blocks[_OF_EMBEDDINGS:]
    if len(blocks) % _OF_LAYER or table.ndim != 2 or table.shape[1] != 2 * PAIR_WINDOW - 1:
        raise ValueError("not an int8 graph of build_verifier")
    heads, hidden = len(table), len(head)
    distances = np.arange(-PAIR_WINDOW + 1, PAIR_WINDOW)
    bias = np.zeros((BUCKETS, heads), np.float32)
    bias[buckets(distances, BUCKETS)] = table.T
    found = {"body.encoder.relative_attention_bias.weight": bias, "head.weight": head.T, "head.bias": offset}
    for number in range(len(blocks) // _OF_LAYER):
        prefix = f"body.encoder.layer.{number}."
        own = _layer_of(blocks[number * _OF_LAYER : (number + 1) * _OF_LAYER], heads, hidden)
        found |= {prefix + name: np.ascontiguousarray(array) for name, array in own.items()}
    return found


def _layer_of(blocks: Sequence[Array], heads: int, hidden: int) -> dict[str, Array]:
    """The weights of one layer from its constants, in the order of `_layer`."""
    left = iter(blocks)

    def dense() -> tuple[Array, Array]:
        codes, _, scale, offset = (next(left) for _ in range(4))
        return (codes * scale).T.astype(np.float32), offset

    def norm(name: str) -> dict[str, Array]:
        return {f"{name}.LayerNorm.weight": next(left), f"{name}.LayerNorm.bias": next(left)}

    found: dict[str, Array] = {}
    weight, offset = dense()
    for at, (name, factor) in enumerate(_query_factors(heads, hidden).items()):
        rows = slice(at * hidden, (at + 1) * hidden)
        found[f"attention.attn.{name}.weight"] = weight[rows] / np.float32(factor)
        found[f"attention.attn.{name}.bias"] = offset[rows] / np.float32(factor)
    found["attention.attn.o.weight"], found["attention.attn.o.bias"] = dense()
    found |= norm("attention")
    for name in ("intermediate.dense", "output.dense"):
        found[f"{name}.weight"], found[f"{name}.bias"] = dense()
    return found | norm("output")


def buckets(distances: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The row of the bias table for each distance (a token's place minus the place of the one that looks).

    T5's scheme, as MPNet has it: half of the rows for either direction; of each half, half for near
    distances, one each, and the rest logarithmic up to `FARTHEST`.
    """
    half = count // 2
    near = half // 2
    size = np.abs(distances)
    with np.errstate(divide="ignore"):
        far = near + np.log(size / near) / math.log(FARTHEST / near) * (half - near)
    row = np.where(size < near, size, np.minimum(np.where(size < near, 0, far), half - 1)).astype(np.int64)
    return row + half * (distances > 0)


def _distance_bias(graph: Graph, weights: Mapping[str, Array]) -> str:
    """What is added to the score of two tokens for their distance: [heads, t, t]."""
    table = weights["body.encoder.relative_attention_bias.weight"]
    rows = buckets(np.arange(-PAIR_WINDOW + 1, PAIR_WINDOW), len(table))
    length = graph.op("Squeeze", graph.op("Shape", "input_ids", start=1, end=2))
    places = graph.op("Range", np.array(0), length, np.array(1))
    own = graph.op("Unsqueeze", places, np.array([1], np.int64))
    distance = graph.op("Add", graph.op("Sub", places, own), np.array(PAIR_WINDOW - 1))
    return graph.op("Gather", table[rows].T.astype(np.float32), distance, axis=1)


def _embeddings(graph: Graph, weights: Mapping[str, Array], int8: bool) -> str:
    words = weights["body.embeddings.word_embeddings.weight"]
    positions = weights["body.embeddings.position_embeddings.weight"][FIRST_POSITION:][:PAIR_WINDOW]
    norm = "body.embeddings.LayerNorm"
    embedded = graph.embeddings(words, positions, int8)
    return graph.layer_norm(embedded, weights[f"{norm}.weight"], weights[f"{norm}.bias"])


def _layer(graph: Graph, x: str, bias: str, weights: Mapping[str, Array], heads: int, digits: Digits) -> str:
    def dense(value: str, name: str, count: int) -> str:
        weight, offset = weights[f"{name}.weight"].T, weights[f"{name}.bias"]
        return graph.dense(value, weight, offset, int8=count > 0, digits=count)

    def normed(value: str, name: str) -> str:
        return graph.layer_norm(value, weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"])

    mixed = dense(
        _attention(graph, x, bias, weights, heads, digits.attention), "attention.attn.o", digits.projection
    )
    x = normed(graph.op("Add", x, mixed), "attention")
    inner = graph.gelu(dense(x, "intermediate.dense", digits.inner))
    return normed(graph.op("Add", x, dense(inner, "output.dense", digits.outer)), "output")


def _attention(graph: Graph, x: str, bias: str, weights: Mapping[str, Array], heads: int, digits: int) -> str:
    """What each token takes from the others, before its projection: [n, t, hidden]."""
    hidden = weights["attention.attn.q.weight"].shape[0]
    # The score's 1/sqrt(width) is folded into the query; one product makes query, key and value.
    factor = _query_factors(heads, hidden)
    weight = np.concatenate([weights[f"attention.attn.{n}.weight"].T * f for n, f in factor.items()], axis=1)
    offset = np.concatenate([weights[f"attention.attn.{n}.bias"] * f for n, f in factor.items()])
    joined = graph.dense(
        x, weight.astype(np.float32), offset.astype(np.float32), int8=digits > 0, digits=digits
    )
    return graph.attention(joined, bias, heads, hidden)


def _query_factors(heads: int, hidden: int) -> dict[str, float]:
    return {"q": (hidden // heads) ** -0.5, "k": 1.0, "v": 1.0}


def _logit(graph: Graph, x: str, mask: str, weights: Mapping[str, Array]) -> None:
    """The mean over the unmasked tokens through the head, into the output `logit`."""
    axis = np.array([1], np.int64)
    weight = graph.op("Unsqueeze", mask, np.array([2], np.int64))
    total = graph.op("ReduceSum", graph.op("Mul", x, weight), axis, keepdims=0)
    mean = graph.op("Div", total, graph.op("ReduceSum", weight, axis, keepdims=0))
    value = graph.op("Add", graph.op("MatMul", mean, weights["head.weight"].T), weights["head.bias"])
    graph.output("Squeeze", [value, graph.constant(axis)], "logit")
