"""Repetitions, clusters and a split without leaks: against plain definitions, and on real streams."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibidem_lab.exporting import clusters
from ibidem_lab.exporting.clusters import (
    BORDER,
    RELATED,
    TEST,
    TRAIN,
    Ties,
    across,
    clusters_of,
    duplicates,
    split,
)

DATA = os.environ.get("STREAMS_DATA")  # a folder with streams/*.jsonl
STREAMS = sorted(Path(DATA).glob("streams/*.jsonl")) if DATA else []


def nothing(_: int) -> None:
    """No progress is shown."""


def points(count: int, groups: int, noise: float, seed: int) -> np.ndarray:
    """Unit rows around some centres."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(groups, 16))[draw.integers(groups, size=count)] + noise * draw.normal(
        size=(count, 16)
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ties(vectors: np.ndarray, apart: float = 0.8, answers: np.ndarray | None = None) -> Ties:
    return Ties(vectors, np.full(len(vectors), -1) if answers is None else answers, apart)


def linked(found: Ties) -> list[set[int]]:
    """The clusters by the definition: whatever can be reached from pair to pair."""
    everything = np.arange(len(found.vectors))
    near, left, sets = found.tied(everything, everything), set(everything.tolist()), []
    while left:
        reached, new = set(), {min(left)}
        while new:
            reached |= new
            new = {int(b) for a in new for b in np.flatnonzero(near[a])} - reached
        sets.append(reached)
        left -= reached
    return sets


shapes = st.builds(points, st.integers(1, 90), st.integers(1, 12), st.floats(0.05, 0.9), st.integers(0, 999))


@settings(max_examples=60, deadline=None)
@given(vectors=shapes, tile=st.sampled_from([1, 7, 64]), said=st.integers(0, 4), seed=st.integers(0, 9))
def test_clusters_are_what_is_linked(vectors: np.ndarray, tile: int, said: int, seed: int) -> None:
    """Whatever the tiles; rows with the same answer are linked from a lower similarity on."""
    answers = np.random.default_rng(seed).integers(-1, said, size=len(vectors)) if said else None
    found = ties(vectors, answers=answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "TILE", tile)
        labels = clusters_of(found, nothing)

    assert {frozenset(np.flatnonzero(labels == one).tolist()) for one in set(labels.tolist())} == {
        frozenset(one) for one in linked(found)
    }


@settings(max_examples=100, deadline=None)
@given(vectors=shapes, share=st.floats(0, 0.5), seed=st.integers(0, 9), said=st.integers(0, 4))
def test_no_test_row_belongs_to_a_training_row(
    vectors: np.ndarray, share: float, seed: int, said: int
) -> None:
    """By every pair; the test is not larger than asked for, the border not larger than the test."""
    answers = np.random.default_rng(seed).integers(-1, said, size=len(vectors)) if said else None
    found = ties(vectors, answers=answers)
    sides = split(found, clusters_of(found, nothing), share, seed)
    test, train = vectors[sides == TEST], vectors[sides == TRAIN]
    sims = test @ train.T

    assert not (sims >= 0.8).any()
    if answers is not None:
        same = (answers[sides == TEST][:, None] == answers[sides == TRAIN]) & (answers[sides == TEST] >= 0)[
            :, None
        ]
        assert not (same & (sims >= RELATED)).any()
    assert (sides == BORDER).sum() <= (sides == TEST).sum() <= round(share * len(vectors))
    assert across(found, sides) == (pytest.approx(float(sims.max())) if sims.size else None, 0)


def test_a_leak_is_found() -> None:
    """`across` does not rely on the split."""
    vectors = points(60, 3, 0.1, 0)
    sides = np.array([TRAIN, TEST] * 30, np.int8)
    largest, leaks = across(ties(vectors), sides)

    assert largest is not None
    assert largest > 0.9
    assert leaks == int((vectors[::2] @ vectors[1::2].T >= 0.8).sum())


def test_one_giant_cluster_is_still_split() -> None:
    """A chain links all rows; parts of it are tested, their neighbours go nowhere."""
    places, levels = np.linspace(0, 160, 1000)[:, None], np.linspace(0, 160, 320)
    rows = np.exp(-((places - levels) ** 2))  # only those nearby are alike
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    found = ties(vectors)
    labels = clusters_of(found, nothing)
    sides = split(found, labels, 0.1, 0)

    assert labels.max() == 0
    assert 50 <= (sides == TEST).sum() <= 100
    assert 0 < (sides == BORDER).sum() <= (sides == TEST).sum()
    assert across(found, sides)[1] == 0


def test_the_seed_decides() -> None:
    """The same seed, the same split."""
    found = ties(points(400, 80, 0.2, 1))
    labels = clusters_of(found, nothing)
    one, again, other = (split(found, labels, 0.2, seed) for seed in (1, 1, 2))

    assert (one == again).all()
    assert (one != other).any()


@settings(max_examples=60, deadline=None)
@given(vectors=shapes, tile=st.sampled_from([1, 7, 64]), near=st.floats(0.6, 0.99))
def test_repetitions_repeat_what_is_kept(vectors: np.ndarray, tile: int, near: float) -> None:
    """The first stays; what is kept is never as near to what is kept before; refused pairs stay both."""
    keep_apart = {(a, b) for a in range(len(vectors)) for b in range(a) if (a + b) % 5 == 0}
    comparable = np.arange(len(vectors)) % 7 != 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "TILE", tile)
        found = duplicates(vectors, near, comparable, lambda a, b: (a, b) not in keep_apart, nothing)

    for row, earlier in enumerate(found.tolist()):
        nearer = [
            b
            for b in range(row)
            if found[b] < 0 and comparable[b] and vectors[row] @ vectors[b] >= near + 1e-5
        ]
        if earlier >= 0:
            assert earlier < row
            assert found[earlier] < 0
            assert comparable[row]
            assert (row, earlier) not in keep_apart
            assert vectors[row] @ vectors[earlier] >= near - 1e-5
        elif comparable[row] and len(nearer) <= clusters.LOOKED_AT:
            assert all((row, b) in keep_apart for b in nearer)


@pytest.mark.slow
@pytest.mark.skipif(not STREAMS, reason="STREAMS_DATA names no folder with streams/*.jsonl")
@pytest.mark.parametrize("stream", STREAMS, ids=lambda path: path.stem)
def test_real_streams_are_split_without_leaks(stream: Path) -> None:
    """Of questions that people asked; by chance, many a test question would have its like in the training."""
    from ibidem.embedding import resolve_embedder

    texts = sorted({json.loads(line)["text"].strip() for line in stream.read_text("utf-8").splitlines()})
    random.Random(0).shuffle(texts)
    vectors = resolve_embedder().embed(texts[:1500])
    found = ties(vectors)
    sides = split(found, clusters_of(found, nothing), 0.1, 0)
    by_chance = np.full(len(sides), TRAIN, np.int8)
    by_chance[: (sides == TEST).sum()] = TEST

    assert (sides == TEST).sum() >= 0.02 * len(sides)
    assert not (vectors[sides == TEST] @ vectors[sides == TRAIN].T >= 0.8).any()
    assert across(found, by_chance)[1] > 10
