"""The encoders that caches other than Ibidem are given: the vector of a text, computed once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.speed.contenders import sentence_transformer

Vector = NDArray[np.float32]


class Encoder:
    """Unit vectors of a model of sentence-transformers, or of anything with such an `encode`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[str, Vector] = {}
        self.remembers = True
        self.width = len(self("width"))

    def __call__(self, text: str) -> Vector:
        """The vector of a text; encoded again if this one does not remember."""
        if self.remembers and text in self._known:
            return self._known[text]
        vector = self._unit(self._model.encode(text, show_progress_bar=False))
        if self.remembers:
            self._known[text] = vector
        return vector

    def prepare(self, texts: Iterable[str]) -> None:
        """Encode in batches what will be asked for."""
        new = sorted({text for text in texts if text not in self._known}, key=len)
        rows = self._model.encode(new, batch_size=32, show_progress_bar=False) if new else []
        self._known.update((text, self._unit(row)) for text, row in zip(new, rows, strict=True))

    @staticmethod
    def _unit(row: Any) -> Vector:
        vector = np.asarray(row, np.float32)
        unit: Vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return unit


def minilm() -> Encoder:
    """all-MiniLM-L6-v2, the default of most, from the installed weights."""
    return Encoder(sentence_transformer())


def mpnet(folder: Path) -> Encoder:
    """all-mpnet-base-v2 from a folder as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer

    return Encoder(SentenceTransformer(str(folder), device="cpu"))
