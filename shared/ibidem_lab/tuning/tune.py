"""Fine-tune on labelled pairs and write a model directory: split, train, export, calibrate, measure."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ibidem._util.statistics import auc
from ibidem.active_model import THRESHOLDS_FILE
from ibidem.embedding import is_default
from ibidem.embedding.base import CheckedEmbedder
from ibidem.embedding.onnx_embedder import OnnxEmbedder
from ibidem.errors import ConfigurationError, InvalidInput, MissingExtra
from ibidem.matching.fitted import NEVER, to_json
from ibidem.matching.policy import guards_beside
from ibidem.matching.shipped import scorer_for
from ibidem_lab.fitting.labels import Label, pairs_of
from ibidem_lab.fitting.learning import best_of, report_of
from ibidem_lab.minilm import MODEL_NAME, REPOSITORY, export_model, published_folder
from ibidem_lab.tuning import card
from ibidem_lab.tuning.data import Division, distinct, divide
from ibidem_lab.tuning.metrics import Array, PairMetrics, cosines, labels_of, measure, resampled

if TYPE_CHECKING:
    from ibidem_lab.tuning.training import Recipe, Trained

LEAST_PAIRS, LEAST_OF_A_KIND = 300, 50  # with fewer, fit the threshold instead
SHARES = (0.1, 0.2)
MAX_ERROR_RATE = 0.02  # in the report; the thresholds for other rates are fitted as well
TORCH_FOLDER = "torch"  # the model in full precision, to tune further from

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class TuneReport:
    """Metrics on held-out questions before and after; `gain` in AUC with its 95 % interval.

    `threshold` says how the threshold was fitted, or why it was not.
    """

    directory: Path
    before: PairMetrics
    after: PairMetrics
    gain: tuple[float, float, float]
    threshold: str


def tune(
    pairs: Sequence[Label],
    out: Path,
    *,
    base: str = MODEL_NAME,
    recipe: Recipe | None = None,
    progress: Callable[[int, int, float | None], None] = lambda step, steps, auc: None,
) -> TuneReport:
    """Fine-tune an embedding on labelled pairs and write it to `out` with figures, card and threshold.

    Args:
        pairs: Labelled pairs of questions.
        out: A directory that does not exist, or is empty.
        base: `all-MiniLM-L6-v2`, a directory that `tune` wrote, or one of sentence-transformers with the
            architecture of MiniLM-L6.
        recipe: Training parameters; None for the defaults.
        progress: Called with steps done, steps in all, and the validation AUC after each epoch.

    Raises:
        InvalidInput: There are too few labels.
        ConfigurationError: `out` is in use, or `base` is of another architecture.
        MissingExtra: torch or sentence-transformers are not installed.
    """
    training = _training()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} is not empty; give a new directory")
    recipe = recipe or training.Recipe()
    kept = distinct(pairs)
    division = divide(kept, SHARES, recipe.seed)
    _require_enough(kept, division)
    source = _source(base)
    plain = cosines(lambda texts: training.embed(training.load(source, recipe.device), texts), division.test)
    trained = training.train(source, division.train, division.validation, recipe, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        report = _write(scratch / "model", trained, division, plain, _Made(base, recipe, _digest(kept)))
        if out.exists():
            out.rmdir()
        (scratch / "model").rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return TuneReport(out, *report)


def recipe(**options: Any) -> Recipe:
    """Make a `training.Recipe`; raises `MissingExtra` if torch is not installed."""
    return cast("Recipe", _training().Recipe(**options))


def _training() -> ModuleType:
    try:
        from ibidem_lab.tuning import training
    except ImportError as error:
        raise MissingExtra(f"tuning ({error.name} is missing)", "tune") from None
    return training


def _require_enough(pairs: Sequence[Label], division: Division) -> None:
    right = sum(pair.right for pair in pairs)
    wrong = len(pairs) - right
    if len(pairs) < LEAST_PAIRS or min(right, wrong) < LEAST_OF_A_KIND:
        raise InvalidInput(
            f"too few labels: {len(pairs):,} different pairs, {right:,} of one answer and {wrong:,} of two; "
            f"at least {LEAST_PAIRS} pairs and {LEAST_OF_A_KIND} of each kind are needed. Label more with "
            "ibidem learn pairs and ibidem learn ask, or fit the threshold alone with ibidem learn threshold"
        )
    for name in ("train", "validation", "test"):
        if len({pair.right for pair in getattr(division, name)}) < 2:
            raise InvalidInput(
                f"the pairs form one connected group; no questions are left for the {name} split; give "
                "pairs of more different questions, or another --seed"
            )


def _source(base: str) -> str:
    """Return the name or folder from which sentence-transformers loads the weights."""
    if is_default(base):
        return str(published_folder() or REPOSITORY)
    further = Path(base).expanduser() / TORCH_FOLDER
    return str(further) if further.is_dir() else base


@dataclass(frozen=True, slots=True)
class _Made:
    base: str
    recipe: Recipe
    digest: str

    @property
    def name(self) -> str:
        """The name of the model; part of its fingerprint."""
        return f"tuned-{Path(self.base).name}"


def _write(
    directory: Path, trained: Trained, division: Division, plain: Array, made: _Made
) -> tuple[PairMetrics, PairMetrics, tuple[float, float, float], str]:
    """Write all files of the model directory."""
    directory.mkdir(mode=0o700)
    torch_folder = directory / TORCH_FOLDER
    trained.model.save(str(torch_folder), create_model_card=False)
    _require_architecture(torch_folder)
    exported = directory / "onnx"
    export_model(
        torch_folder / "model.safetensors", torch_folder / "tokenizer.json", exported, name=made.name
    )
    for file in exported.iterdir():
        file.rename(directory / file.name)
    exported.rmdir()
    # What is measured is what will be used: the int8 form, not the one that was trained.
    embedder = OnnxEmbedder.from_directory(directory)
    tuned = cosines(embedder.embed, division.test)
    before, after = measure(division.test, plain), measure(division.test, tuned, plain)
    gain = _gain(division.test, plain, tuned)
    threshold = _fit_threshold(directory, embedder, [*division.validation, *division.test])
    more = _more(made, trained, division, gain, threshold)
    card.write_metrics(directory, before, after, more)
    card.write_card(directory, before, after, more)
    return before, after, gain, threshold["said"]


def _require_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = [
        config.get(name) for name in ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads")
    ]
    if found != ["bert", 6, 384, 12]:
        raise ConfigurationError(
            f"the base model is of another architecture ({found[0]}, {found[1]} layers of {found[2]}) than "
            f"{MODEL_NAME}, the only one that is exported to ONNX here; tune it with sentence-transformers "
            "and ibidem_lab.tuning.loss, and give the cache the result as embedder="
        )


def _gain(pairs: Sequence[Label], before: Array, after: Array) -> tuple[float, float, float]:
    """Subtract AUC before from AUC after, with an interval by the same draws: both saw the same pairs."""
    same = labels_of(pairs)

    def difference(at: NDArray[np.int64]) -> float:
        return auc(after[at], same[at]) - auc(before[at], same[at])

    low, high = resampled(pairs, difference)
    return difference(np.arange(len(pairs))), low, high


def _fit_threshold(directory: Path, embedder: OnnxEmbedder, pairs: Sequence[Label]) -> dict[str, Any]:
    """Fit thresholds to held-out pairs and write them; say why not, if there are too few."""
    checked = CheckedEmbedder(embedder, lambda _, value: value)
    try:
        scorer = scorer_for(checked.fingerprint)
        best = best_of(pairs_of(pairs, checked, guards_beside(scorer)), scorer)
    except InvalidInput as error:
        return {"fitted": False, "said": f"Not fitted, the threshold is the shipped one: {error}."}
    found = report_of(best, MAX_ERROR_RATE, scorer)
    (directory / THRESHOLDS_FILE).write_text(to_json(found.fitted), encoding="ascii")
    after = (
        "nothing is served by meaning" if found.threshold_after == NEVER else f"{found.threshold_after:.4f}"
    )
    said = (
        f"Fitted to {found.questions:,} questions that were not learned from; "
        f"for max_error_rate {MAX_ERROR_RATE:g} {after} (shipped: {found.threshold_before:.4f})."
    )
    return {"fitted": True, "said": said}


def _more(
    made: _Made,
    trained: Trained,
    division: Division,
    gain: tuple[float, float, float],
    threshold: dict[str, Any],
) -> dict[str, Any]:
    return {
        "name": made.name,
        "base": made.base,
        "gain": dict(zip(("auc", "low", "high"), gain, strict=True)),
        "threshold": threshold,
        "data": {
            "train": len(division.train),
            "validation": len(division.validation),
            "test": len(division.test),
            "dropped": division.dropped,
            "sha256": made.digest,
        },
        "training": {
            **asdict(made.recipe),
            "temperature": round(trained.temperature, 5),
            "offset": round(trained.offset, 4),
            "validation_auc": round(trained.validation_auc, 4),
        },
    }


def _digest(pairs: Sequence[Label]) -> str:
    return sha256(json.dumps(sorted(pairs)).encode()).hexdigest()
