"""Write the trained verifier as it ships: ONNX in int8, with tokenizer, window and calibration."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ibidem._util.statistics import auc
from ibidem.embedding.model_files import (
    MANIFEST_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    file_digest,
)
from ibidem.matching.pair_model import Calibration, PairModel
from ibidem_lab.models.groups import Pair
from ibidem_lab.models.measure import Sets
from ibidem_lab.models.network import PAIR_WINDOW, CrossEncoder
from ibidem_lab.models.verifier_graph import Digits, build_verifier

Scores = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class OnStreams:
    """What was measured with a verifier: its calibration, and thresholds by share of wrong hits.

    `least_cosine`: of two questions, below which the same are so rare that it does not pay to read them.
    """

    calibration: Calibration
    thresholds: Sequence[tuple[float, float]]
    least_cosine: float


UNKNOWN = OnStreams(Calibration(1.0, 0.0, 0.0, 0.0), ((0.0, 1.0),), -1.0)
RECIPE = 1  # of the graph: change it whenever other logits would come out
FULL = Digits(0, 0, 0, 0)
# From the fastest to the most exact: a layer with two digits takes nearly twice as long as with one.
DIGITS = (Digits(1, 1, 1, 1), Digits(1, 1, 1, 2), Digits(2, 1, 1, 2), Digits(2, 2, 2, 2), FULL)
AUC_LOST = 0.003  # most that quantising may cost on any set


def export_verifier(
    model: CrossEncoder,
    base: Path,
    directory: Path,
    sets: Sets,
    measure: Callable[[PairModel, Scores], OnStreams],
    report: Callable[[str], None] = print,
) -> PairModel:
    """Write a verifier with the fastest quantisation that loses at most `AUC_LOST` on each set.

    Args:
        model: Trained.
        base: Folder of its tokenizer.
        directory: Where to; what is there is replaced.
        sets: Labelled pairs to choose by, which it was not trained on.
        measure: Calibrates and measures the model as it has been written, given its logits of these pairs.
        report: Told the AUC by set of each way that was tried.
    """
    exact = _aucs(sets, _logits(_write(model, base, directory, FULL), sets))
    for digits in DIGITS:
        logits = _logits(written := _write(model, base, directory, digits), sets)
        found = _aucs(sets, logits)
        report(f"{digits}: {json.dumps({name: round(value, 4) for name, value in found.items()})}")
        if all(exact[name] - found[name] <= AUC_LOST for name in exact):
            break
    return _write(model, base, directory, digits, measure(written, logits))


def pair_logits(verifier: PairModel, pairs: Sequence[Pair], size: int = 8) -> NDArray[np.float32]:
    """The logits of pairs by a verifier that was written, `size` at a time; NaN beyond the window."""
    found = np.full(len(pairs), np.nan, np.float32)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].a) + len(pairs[i].b))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        logits = verifier.logits([(pairs[i].a, pairs[i].b) for i in places])
        found[places] = [np.nan if logit is None else logit for logit in logits]
    return found


def _write(
    model: CrossEncoder,
    base: Path,
    directory: Path,
    digits: Digits,
    measured: OnStreams = UNKNOWN,
) -> PairModel:
    """Write graph, tokenizer and manifest; the model as a cache opens it."""
    weights = {name: value.float().cpu().numpy() for name, value in model.state_dict().items()}
    graph = build_verifier(weights, model.body.config.num_attention_heads, digits).SerializeToString()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL_FILE).write_bytes(graph)
    shutil.copyfile(base / TOKENIZER_FILE, directory / TOKENIZER_FILE)
    hashed = sha256()
    for name in sorted(weights):
        hashed.update(name.encode() + weights[name].tobytes())
    manifest = {
        "name": "ibidem-verifier",
        "recipe": f"int8-{RECIPE}" if digits.int8 else f"fp32-{RECIPE}",
        "digits": asdict(digits),
        "weights": hashed.hexdigest(),
        "max_tokens": PAIR_WINDOW,
        "files": {file: file_digest(directory / file) for file in (MODEL_FILE, TOKENIZER_FILE)},
        "calibration": asdict(measured.calibration),
        "thresholds": measured.thresholds,
        "least_cosine": measured.least_cosine,
    }
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return PairModel(directory)


def _logits(verifier: PairModel, sets: Sets) -> dict[str, NDArray[np.float32]]:
    return {name: pair_logits(verifier, pairs) for name, pairs in sets.items()}


def _aucs(sets: Sets, logits: Scores) -> dict[str, float]:
    """The AUC of each set that has both labels."""
    found = {
        name: auc(logits[name].astype(np.float64), np.array([pair.same == 1 for pair in pairs]))
        for name, pairs in sets.items()
    }
    return {name: value for name, value in found.items() if not np.isnan(value)}
