"""Labelled streams of questions, for what fits and measures the decision."""

from __future__ import annotations

import json
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ibidem.embedding import Embedder
from ibidem_lab.replay import Row

Vectors = NDArray[np.float32]
ANSWERS = "nq"  # the name of Natural Questions, whose meaning is a set of answers


@dataclass(frozen=True)
class Stream:
    """Questions, what each means, and their vectors, row by row."""

    name: str
    texts: list[str]
    meanings: list[Hashable]
    vectors: Vectors

    @property
    def family(self) -> str:
        """Streams of one family were made alike: who is tested on one is trained on none of them."""
        return self.name.partition("_")[0]

    def same(self, one: int, other: int) -> bool:
        """Whether two rows may share an answer."""
        a, b = self.meanings[one], self.meanings[other]
        return bool(a & b) if isinstance(a, frozenset) and isinstance(b, frozenset) else a == b

    def sample(self, count: int, seed: int) -> Stream:
        """At most so many rows, shuffled."""
        order = list(range(len(self.texts)))
        random.Random(seed).shuffle(order)
        order = order[:count]
        texts, meanings = [self.texts[at] for at in order], [self.meanings[at] for at in order]
        return Stream(self.name, texts, meanings, self.vectors[order])

    @property
    def rows(self) -> list[Row]:
        """As `ibidem_lab.replay` takes them."""
        return [Row(text, meaning) for text, meaning in zip(self.texts, self.meanings, strict=True)]


def load_streams(data: Path, embedder: Embedder, kept: Path | None = None) -> list[Stream]:
    """All of `streams/*.jsonl`; `kept` holds vectors computed before, as NAME.npy."""
    found = []
    for path in sorted((data / "streams").glob("*.jsonl")):
        read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        texts, meanings = [row["text"] for row in read], [row["meaning"] for row in read]
        found.append(_embedded(path.stem, texts, meanings, embedder, kept))
    if not found:
        raise SystemExit(f"no streams/*.jsonl in {data}")
    return found


def load_answers(data: Path, embedder: Embedder, kept: Path | None = None) -> list[Stream]:
    """Natural Questions, if `nq_questions.jsonl` is there: two may share an answer if their answers meet."""
    path = data / "nq_questions.jsonl"
    if not path.is_file():
        return []
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    meanings = [frozenset(answer.lower().strip() for answer in row["answers"]) for row in read]
    return [_embedded(ANSWERS, [row["question"] for row in read], meanings, embedder, kept)]


def _embedded(
    name: str, texts: list[str], meanings: Sequence[Hashable], embedder: Embedder, kept: Path | None
) -> Stream:
    file = None if kept is None else kept / f"{name}.npy"
    if file is not None and file.is_file():
        vectors = np.load(file)
    else:  # one by one, as the cache does: the default model's vectors differ slightly in a batch
        known = {text: embedder.embed([text])[0] for text in sorted(set(texts)) if text.strip()}
        blank = np.zeros_like(next(iter(known.values())))
        vectors = np.stack([known.get(text, blank) for text in texts])
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, vectors)
    if len(vectors) != len(texts):
        raise SystemExit(f"{file} has {len(vectors)} vectors for {len(texts)} questions: delete it")
    used = [at for at, text in enumerate(texts) if text.strip()]
    return Stream(name, [texts[at] for at in used], [meanings[at] for at in used], vectors[used])
