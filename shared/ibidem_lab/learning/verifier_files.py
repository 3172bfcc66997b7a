"""The shipped pair model taken apart, and a corrected one written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ibidem.active_model import METRICS_FILE
from ibidem.embedding.model_files import MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE, file_digest
from ibidem.errors import ConfigurationError
from ibidem.matching.pair_model import LARGEST_LOGIT, Calibration, PairModel
from ibidem.matching.scorers import Thresholds

if TYPE_CHECKING:
    from onnx import ModelProto

Array = NDArray[np.float64]
NAME = "ibidem-verifier-learned"


@dataclass(frozen=True)
class Shipped:
    """The pair model that comes with Ibidem, and its last layer: logit = state @ weights + offset.

    `state` names the last state in the graph, `window` is the longest sequence in tokens.
    """

    directory: Path
    name: str
    calibration: Calibration
    thresholds: Thresholds
    graph: ModelProto
    state: str
    weights: Array
    offset: float
    window: int

    @classmethod
    def of(cls, model: PairModel) -> Shipped:
        """Take it apart.

        Raises:
            ConfigurationError: The graph ends otherwise than expected.
        """
        import onnx
        from onnx import numpy_helper

        directory = model.directory
        graph = onnx.load(str(directory / MODEL_FILE))
        made = {name: node for node in graph.graph.node for name in node.output}
        held = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
        squeeze = made["logit"]
        add = made[squeeze.input[0]]
        product = made.get(add.input[0])
        if product is None or product.op_type != "MatMul":
            raise ConfigurationError(
                f"{directory} holds a pair model of another version: reinstall ibidem-models"
            )
        weights = held[product.input[1]].astype(np.float64)[:, 0]
        offset = float(held[add.input[1]][0])
        window = int(json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))["max_tokens"])
        parts = (graph, product.input[0], weights, offset, window)
        return cls(directory, model.name, model.calibration, model.thresholds, *parts)

    def logits(self, states: NDArray[np.float32]) -> Array:
        """Return the shipped logits of states."""
        found: Array = states.astype(np.float64) @ self.weights + self.offset
        return found

    def states_graph(self) -> bytes:
        """Return the graph that ends with the state."""
        from onnx import TensorProto, helper

        found = type(self.graph)()
        found.CopyFrom(self.graph)
        shape: list[str | int | None] = ["n", len(self.weights)]
        del found.graph.output[:]
        found.graph.output.append(helper.make_tensor_value_info(self.state, TensorProto.FLOAT, shape))
        return bytes(found.SerializeToString())

    def corrected_graph(self, weights: Array, offset: float) -> bytes:
        """Return the graph whose logit is the shipped one, clipped, plus state @ weights + offset."""
        from onnx import helper, numpy_helper

        found = type(self.graph)()
        found.CopyFrom(self.graph)
        for node in found.graph.node:
            node.output[:] = ["logit_shipped" if name == "logit" else name for name in node.output]
        constants: dict[str, NDArray[Any]] = {
            "learned_weights": weights.astype(np.float32)[:, None],
            "learned_offset": np.array([offset], np.float32),
            "learned_axis": np.array([1], np.int64),
            "learned_low": np.array(-LARGEST_LOGIT, np.float32),
            "learned_high": np.array(LARGEST_LOGIT, np.float32),
        }
        found.graph.initializer.extend(
            numpy_helper.from_array(value, key) for key, value in constants.items()
        )
        steps = [
            ("Clip", ["logit_shipped", "learned_low", "learned_high"], "learned_clipped"),
            ("MatMul", [self.state, "learned_weights"], "learned_product"),
            ("Add", ["learned_product", "learned_offset"], "learned_sum"),
            ("Squeeze", ["learned_sum", "learned_axis"], "learned_change"),
            ("Add", ["learned_clipped", "learned_change"], "logit"),
        ]
        found.graph.node.extend(helper.make_node(kind, inputs, [out]) for kind, inputs, out in steps)
        return bytes(found.SerializeToString())


@dataclass(frozen=True)
class Correction:
    """What is changed of the shipped model: weights and offset of its logit, and the whole calibration."""

    weights: Array
    offset: float
    calibration: Calibration

    @property
    def changes_logits(self) -> bool:
        """Whether the graph changes, and not the calibration alone."""
        return bool(np.any(self.weights)) or self.offset != 0.0


def write_verifier(
    shipped: Shipped, correction: Correction, directory: Path, metrics: Mapping[str, Any]
) -> PairModel:
    """Write the corrected model into a directory, replacing what is there; return it as a cache opens it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    if correction.changes_logits:
        graph = shipped.corrected_graph(correction.weights, correction.offset)
        (directory / MODEL_FILE).write_bytes(graph)
    else:
        shutil.copyfile(shipped.directory / MODEL_FILE, directory / MODEL_FILE)
    shutil.copyfile(shipped.directory / TOKENIZER_FILE, directory / TOKENIZER_FILE)
    (directory / METRICS_FILE).write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    manifest = json.loads((shipped.directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    changed = sha256(correction.weights.tobytes() + repr(correction.offset).encode()).hexdigest()
    manifest |= {
        "name": NAME,
        "weights": sha256((manifest["weights"] + changed).encode()).hexdigest(),
        "files": {file: file_digest(directory / file) for file in (MODEL_FILE, TOKENIZER_FILE)},
        "calibration": asdict(correction.calibration),
    }
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return PairModel(directory)
