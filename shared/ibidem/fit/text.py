"""A fitted scorer as text and back: JSON, matrices as base64 of little-endian half precision. No pickle."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ibidem.decision.scoring import Scorer
from ibidem.errors import InvalidInput
from ibidem.fit.fitted import NAMES, FittedScorer, Matrix, Metric, Rarity, Scale, WordWeights
from ibidem.request import digest

FORMAT = 1
MOST_WORDS, LONGEST_WORD = 20_000, 100  # of a text that is read: rows are untrusted
LARGEST = 4 * 2**20  # characters of a text that is read


def to_json(scorer: FittedScorer) -> str:
    """One line of ASCII that `from_json` reads."""
    words = scorer.words
    held = {
        "format": FORMAT,
        "base": scorer.base_name,
        "labels": scorer.labels,
        "least": scorer.least,
        "least_shipped": scorer.least_shipped,
        "bias": scorer.bias,
        "weights": dict(scorer.weights),
        "knots": [list(knot) for knot in scorer.scale.knots],
        "top": scorer.scale.top,
        "rarity": {"known": dict(scorer.rarity.known), "unknown": scorer.rarity.unknown},
        "words": words and {"known": dict(words.known), "rare": words.rare, "slope": words.slope},
        "metric": scorer.metric and [_packed(scorer.metric.a), _packed(scorer.metric.b)],
    }
    return json.dumps(held, sort_keys=True, allow_nan=False)


def from_json(text: str, base: Scorer, base_name: str, dimension: int | None = None) -> FittedScorer:
    """The scorer that `to_json` wrote.

    Args:
        text: What was written; nothing in it is trusted.
        base: The scorer that is shipped for the embedder.
        base_name: Its name; another one was fitted on another base.
        dimension: Length of the embedder's vectors, if known.

    Raises:
        InvalidInput: It is damaged, or belongs to another version, embedder or base.
    """
    try:
        if len(text) > LARGEST:
            raise ValueError("it is too long")
        return _read(json.loads(text), base, base_name, dimension, digest(text))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the fitted scorer cannot be used ({error}); run ibidem fit again") from None


def _read(held: Any, base: Scorer, base_name: str, dimension: int | None, digest: str) -> FittedScorer:
    if held["format"] != FORMAT or held["base"] != base_name:
        raise ValueError("it was fitted by another version of Ibidem or for another embedder")
    weights = _numbers(held["weights"])
    if set(weights) != set(NAMES):
        raise ValueError("it has other features")
    words = held["words"]
    return FittedScorer(
        digest=digest,
        base=base,
        base_name=base_name,
        weights=weights,
        bias=_number(held["bias"]),
        metric=None if held["metric"] is None else _metric(held["metric"], dimension),
        words=None
        if words is None
        else WordWeights(_numbers(words["known"]), _number(words["rare"]), _number(words["slope"])),
        rarity=Rarity(_numbers(held["rarity"]["known"]), _number(held["rarity"]["unknown"])),
        scale=_scale(held["knots"], _number(held["top"])),
        least=_number(held["least"]),
        least_shipped=_number(held["least_shipped"]),
        labels=int(_number(held["labels"])),
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise ValueError(f"{value!r} is no number")
    return value


def _numbers(held: Any) -> dict[str, float]:
    if not isinstance(held, dict) or len(held) > MOST_WORDS:
        raise ValueError("too many words")
    return {word[:LONGEST_WORD]: _number(value) for word, value in held.items()}


def _scale(knots: Sequence[Sequence[Any]], top: float) -> Scale:
    found = [(_number(x), _number(y)) for x, y in knots]
    rising = all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(found))
    if len(found) < 2 or not rising or not 0.0 <= top <= 1.0 or found[-1][1] > 1.0:
        raise ValueError("its scale does not rise")
    return Scale(tuple(found), top)


def _packed(matrix: Matrix) -> dict[str, Any]:
    return {"shape": list(matrix.shape), "f2": base64.b64encode(matrix.astype("<f2").tobytes()).decode()}


def _unpacked(held: Any) -> Matrix:
    raw = base64.b64decode(held["f2"], validate=True)
    matrix: Matrix = np.frombuffer(raw, "<f2").astype(np.float32).reshape(held["shape"])
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError("its metric is no matrix of numbers")
    return matrix


def _metric(held: Any, dimension: int | None) -> Metric:
    a, b = map(_unpacked, held)
    if a.shape != b.shape[::-1] or dimension not in (None, a.shape[1]):
        raise ValueError("its metric has other dimensions")
    return Metric(a, b)
