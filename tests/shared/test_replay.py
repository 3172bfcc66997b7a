"""Replaying labelled questions: the library and `ibidem replay`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ibidem import Answer, Request
from ibidem._util.intervals import clopper_pearson
from ibidem.cli.commands import app
from ibidem.matching.policy import Policy
from ibidem.matching.scorers import CosineScorer
from ibidem_lab.replay import (
    Judged,
    Point,
    Row,
    by_cosine,
    by_policy,
    ceiling,
    curve,
    curve_rule,
    hindsight,
    p_chr_auc,
    replay,
)
from tests.embedders import BagOfWords

STREAM = [
    Row("what was new in version 3", "3", 10),
    Row("what was new in version 4", "4", 20),
    Row("What was new in version 3?", "3", 30),
    Row("what was new in version 3", "3", 40),
    Row("how do I bake bread", "bread", 50),
    Row("how do I bake a bread", "bread", 60),
]
JUDGED = st.lists(st.builds(Judged, st.sampled_from([math.inf, 1.0, 0.97, 0.9, 0.6]), st.booleans()))


def vectors(rows: list[Row]) -> list[np.ndarray]:
    """A vector per row."""
    return list(BagOfWords().embed([row.text for row in rows]))


def test_only_misses_are_stored() -> None:
    """The exact tier comes first, then the nearest; the guards keep the versions apart."""
    found = replay(STREAM, vectors(STREAM), by_policy(Policy(threshold=0.8), CosineScorer()))

    assert (found.requests, found.hits, found.exact, found.wrong) == (6, 3, 1, 0)
    assert (found.tokens, found.tokens_saved) == (210, 130)
    assert found.refused["numbers"][0] == 1


def test_the_plain_cosine_takes_the_nearest() -> None:
    """Version 4 is answered with version 3."""
    found = replay(STREAM, vectors(STREAM), by_cosine(0.75))

    assert (found.hits, found.wrong, found.refused) == (4, 1, {})
    assert found.wrong_per_hit.value == pytest.approx(0.25)
    assert found.wrong_per_request.value == pytest.approx(1 / 6)


def test_replay_decides_as_the_cache(open_cache) -> None:
    """Hit by hit the same as lookups and stores of a real cache."""
    cache = open_cache()
    served = []
    for row in STREAM:
        hit = cache.lookup(Request(row.text))
        served.append(bool(hit))
        if not hit:
            cache.store(Request(row.text), Answer(row.meaning))
            cache.flush()
    rule = by_policy(cache.policy, CosineScorer())
    steps = [replay(STREAM[:n], vectors(STREAM)[:n], rule).hits for n in range(1, len(STREAM) + 1)]

    assert np.diff([0, *steps]).astype(bool).tolist() == served


def test_a_question_without_a_vector_is_compared_exactly() -> None:
    """It neither finds nor is found by meaning."""
    nothing = replay(STREAM, [None] * len(STREAM), by_cosine(0.5))
    first = replay(STREAM, [None, *vectors(STREAM)[1:]], by_cosine(0.99))

    assert (nothing.hits, nothing.exact) == (1, 1)
    assert (first.hits, first.exact) == (1, 1)


def test_curves_serve_nothing_by_meaning() -> None:
    """So that every question is stored, and every threshold has its candidate."""
    for scorer in (None, CosineScorer()):
        found = replay(STREAM, vectors(STREAM), curve_rule(scorer))

        assert (found.hits, found.exact) == (1, 1)
        assert Judged(math.inf, True) in found.judged
        assert len(found.judged) >= 3


def test_rows_and_vectors_must_match() -> None:
    """Else questions would be compared by vectors of others."""
    with pytest.raises(ValueError, match="6 rows, but 5 vectors"):
        replay(STREAM, vectors(STREAM)[1:], by_cosine(0.9))


def test_nothing_to_replay() -> None:
    """No division by zero."""
    found = replay([], [], by_cosine(0.9))

    assert str(found.wrong_per_hit) == "0.0\N{NO-BREAK SPACE}% (0.0 to 100.0)"
    assert (ceiling([]), p_chr_auc([], 0), hindsight([], 0.02)) == (0.0, 0.0, None)


def test_ceiling_counts_repeated_meanings() -> None:
    """Six questions, three meanings."""
    assert ceiling(STREAM) == 0.5


def test_hindsight_serves_ties_together() -> None:
    """No threshold serves the right one of two with the same score alone."""
    judged = [Judged(0.99, True), Judged(0.9, True), Judged(0.9, False), Judged(0.8, True)]

    assert hindsight(judged, 0.02) == Point(0.99, 1, 0)
    assert hindsight(judged, 0.25) == Point(0.8, 4, 1)
    assert hindsight([Judged(0.9, False)], 0.02) is None


def test_p_chr_auc_rewards_the_order() -> None:
    """The same candidates, the wrong one last or first."""
    best = [Judged(0.99, True), Judged(0.98, True), Judged(0.9, False)]
    worst = [Judged(0.99, False), Judged(0.98, True), Judged(0.9, True)]

    assert p_chr_auc(best, 4) == pytest.approx((1 + 1 + 2 / 3) / 4)
    assert p_chr_auc(best, 4) > p_chr_auc(worst, 4) > 0


@given(JUDGED, st.floats(0, 1))
def test_hindsight_keeps_its_level(judged: list[Judged], level: float) -> None:
    """And no other threshold with more hits does."""
    best = hindsight(judged, level)

    assert best is None or best.wrong_per_hit <= level
    assert all(p.wrong_per_hit > level or (best and p.hits <= best.hits) for p in curve(judged))
    assert 0.0 <= p_chr_auc(judged, len(judged)) <= 1.0


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (1, 10, 0.0025, 0.4450),
        (5, 100, 0.0164, 0.1128),
        (10, 10, 0.6915, 1.0),
        (0, 0, 0, 1),
    ],
)
def test_clopper_pearson(count: int, total: int, low: float, high: float) -> None:
    """As published tables have it."""
    assert clopper_pearson(count, total) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 3_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_surrounds_the_share(counted: tuple[int, int]) -> None:
    """Also of large counts."""
    count, total = counted
    low, high = clopper_pearson(count, total)

    assert 0.0 <= low <= count / total <= high <= 1.0


# the command ------------------------------------------------------------------------------------------


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide_console: None) -> Path:
    """The stream in a file, and an embedder that needs no model."""
    monkeypatch.setattr("ibidem_lab.cli.replay.resolve_embedder", lambda spec: BagOfWords())
    path = tmp_path / "workload.jsonl"
    path.write_text("\n".join(json.dumps(row._asdict()) for row in STREAM) + "\n\n", encoding="utf-8")
    return path


def run(*arguments: object, code: int = 0) -> str:
    """Output of `ibidem replay` with these arguments, errors included."""
    result = CliRunner().invoke(app, ["replay", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_the_command_tells_hits_and_wrong_hits(workload: Path) -> None:
    """With intervals, the ceiling, and the tokens saved."""
    told = run(workload, "--min-probability", "0.8")

    assert re.search(r"hits │ 50\.0 % \(11\.8 to 88\.2\) │ 3 ", told)
    assert "wrong per hit │ 0.0 % (0.0 to 70.8) │ 0" in told
    assert "perfect cache │ 50.0 %" in told
    assert "tokens saved │ 61.9 % │ 130" in told
    assert "P-CHR AUC" in told
    assert "refused by guard numbers" in told


def test_the_command_takes_the_first_rows(workload: Path) -> None:
    """`--requests` cuts, after shuffling if a seed is given."""
    assert "requests │ │ 2 " in run(workload, "--requests", 2)


def test_max_wrong_is_a_threshold(workload: Path) -> None:
    """A laxer promise is a laxer threshold; both at once contradict each other."""
    strict, lax = (
        float(re.findall(r"least score (0\.\d+|1),", run(workload, "--max-error-rate", level))[0])
        for level in (0.001, 0.03)
    )

    assert strict > lax
    assert "not both" in run(workload, "--max-error-rate", 0.02, "--min-probability", 0.9, code=2)
    assert "max_error_rate is a share" in run(workload, "--max-error-rate", 2, code=2)
    assert "at most 0." in run(workload, "--max-error-rate", 0.4, code=2)
    assert "at most 1" in run(workload, "--min-probability", 95, code=2)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "invalid JSON"),
        ("[]", "must be an object"),
        ('{"meaning": "x"}', '"text" must be'),
        ('{"text": " ", "meaning": "x"}', '"text" must be'),
        ('{"text": "\\ud800", "meaning": "x"}', '"text" must be'),
        ('{"text": "x"}', '"meaning" must be'),
        ('{"text": "x", "meaning": ["y"]}', '"meaning" must be'),
        ('{"text": "x", "meaning": 1, "tokens": -1}', '"tokens" must be'),
    ],
)
def test_bad_lines_are_named(workload: Path, line: str, complaint: str) -> None:
    """With the number of the line."""
    workload.write_text(f'{{"text": "a", "meaning": 1}}\n{line}\n', encoding="utf-8")
    told = run(workload, code=2)

    assert "line 2" in told
    assert complaint in told


def test_bad_files_are_named(workload: Path, tmp_path: Path) -> None:
    """None there, nothing in it, no text."""
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00")

    assert "none.jsonl" in run(tmp_path / "none.jsonl", code=2)
    assert "holds no questions" in run(empty, code=2)
    assert "not valid UTF-8" in run(binary, code=2)
