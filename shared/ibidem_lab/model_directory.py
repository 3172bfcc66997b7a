"""Validation of a directory with a tuned model, before anything is promoted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibidem._util.faults import log
from ibidem.active_model import FILES, KEPT_FILES, METRICS_FILE, OLD_SCORER_FILE, THRESHOLDS_FILE
from ibidem.embedding.model_files import MANIFEST_FILE, require_inside
from ibidem.embedding.onnx_embedder import OnnxEmbedder
from ibidem.errors import ConfigurationError, EmbedderUnavailable, InvalidInput
from ibidem.matching.fitted import FittedThresholds, from_json
from ibidem.matching.shipped import scorer_for

LARGEST = 4 * 2**20  # bytes of a JSON file that is read


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure of a model on held-out questions, before and after tuning; more is better.

    `least` is the lower end of the interval of `before`, if it has one: less is worse beyond chance.
    """

    name: str
    before: float
    after: float
    least: float | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.before:.3f} -> {self.after:.3f}"


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A usable model: its files are intact, and it embeds.

    `fitted` holds the thresholds fitted for it, None if there are none; `figures` the content of its
    `metrics.json`.
    """

    path: Path
    embedder: OnnxEmbedder
    fitted: FittedThresholds | None
    figures: tuple[Figure, ...]

    @property
    def files(self) -> list[Path]:
        """The files to keep, the manifest last."""
        return [self.path / name for name in KEPT_FILES if (self.path / name).is_file()]


def open_model_directory(directory: str | Path) -> ModelDirectory:
    """Validate a directory that `ibidem learn encoder` wrote.

    Raises:
        EmbedderUnavailable: A file is missing or damaged, or the model does not embed.
        InvalidInput: The thresholds or the metrics cannot be used.
    """
    path = Path(directory).expanduser()
    if not (path / MANIFEST_FILE).is_file():
        raise EmbedderUnavailable(
            f"{path} is no model directory: it has no {MANIFEST_FILE}; give one that ibidem learn encoder "
            "wrote"
        )
    require_inside(path, FILES)
    embedder = OnnxEmbedder.from_directory(path)
    try:
        embedder.embed(["does it embed?"])
    except (EmbedderUnavailable, ConfigurationError):
        raise
    except Exception as error:  # of onnxruntime, for a graph that it loads but cannot run
        raise EmbedderUnavailable(f"cannot use the model in {path}: {error}") from error
    fitted = _fitted(path, scorer_for(embedder.fingerprint).floor)
    return ModelDirectory(path, embedder, fitted, tuple(_figures(path / METRICS_FILE)))


def _fitted(path: Path, floor: float) -> FittedThresholds | None:
    if (path / OLD_SCORER_FILE).exists():
        about = {"event.name": "ibidem.fit.old_score"}
        said = "%s holds a score fitted by version 0.1, not used any more; ibidem learn makes a better one"
        log.warning(said, path / OLD_SCORER_FILE, extra=about)
    text = _text(path / THRESHOLDS_FILE)
    try:
        return None if text is None else from_json(text, floor)
    except InvalidInput as error:
        raise InvalidInput(f"cannot use {path / THRESHOLDS_FILE}: {error}, or delete the file") from error


def _text(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > LARGEST:
            raise InvalidInput(f"cannot use {file}: it is too long")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {file}: {error}") from error


def _figures(file: Path) -> Iterator[Figure]:
    """Yield the figures that are better when larger; `after` is NaN where it has no number."""
    if (text := _text(file)) is None:
        return
    try:
        held = json.loads(text)
        before, after = dict(_numbers(held["before"])), dict(_numbers(held["after"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidInput(
            f"cannot use {file}: it must be an object with the figures before and after ({error!r})"
        ) from None
    for name, (value, least) in before.items():
        if not math.isnan(value):
            yield Figure(name, value, after.get(name, (math.nan, None))[0], least)


def _numbers(held: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[float, float | None]]]:
    """Yield figures by name, AUCs and shares of hits, nested ones too, with the `low` end of an interval.

    An unknown figure is NaN.
    """
    for key, value in held.items():
        name, least = f"{prefix}{key}", None
        if isinstance(value, dict) and "value" in value:
            value, least = value["value"], value.get("low")
        if isinstance(value, dict):
            yield from _numbers(value, f"{name} ")
        elif isinstance(value, (int, float, type(None))) and any(
            part in name.lower() for part in ("auc", "hit")
        ):
            value = math.nan if value is None else float(value)
            yield name, (value, None if least is None else float(least))


def regressions(figures: tuple[Figure, ...]) -> list[Figure]:
    """Return the figures by which the new model is worse, beyond chance where known, or that it lacks."""
    return sorted((one for one in figures if not one.after >= _needed(one)), key=lambda one: one.name)


def _needed(figure: Figure) -> float:
    return figure.before if figure.least is None else figure.least
