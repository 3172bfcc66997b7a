"""The verifier as it ships: written to ONNX, calibrated, opened by the core without torch."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")

import ibidem  # noqa: E402
from ibidem import Answer, Request  # noqa: E402
from ibidem.embedding.base import CheckedEmbedder  # noqa: E402
from ibidem.errors import ConfigurationError, EmbedderUnavailable  # noqa: E402
from ibidem.matching.pair_model import LARGEST_LOGIT, Calibration, PairModel  # noqa: E402
from ibidem.testing import VerifierContract  # noqa: E402
from ibidem_lab.models import export, network  # noqa: E402
from ibidem_lab.models.calibration import (  # noqa: E402
    Compared,
    RememberedLogits,
    compared_on_stream,
    compared_pairs,
    deciles,
    fit_calibration,
)
from ibidem_lab.models.groups import Pair  # noqa: E402
from ibidem_lab.models.network import CrossEncoder, Tokens  # noqa: E402
from ibidem_lab.replay import Row, vectors_of  # noqa: E402
from tests.embedders import BagOfWords  # noqa: E402

COLOURS = ("red", "green", "blue", "black", "white", "brown")
PAIRS = [
    Pair(f"a {one} car", f"my {other} car please", float(one == other))
    for one in COLOURS
    for other in COLOURS
]


def copied(written: Path, folder: Path) -> Path:
    shutil.copytree(written, folder)
    return folder


def rewrite(folder: Path, **changed: object) -> None:
    """Change a manifest."""
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.fixture(scope="module")
def written(tiny: Path, model: CrossEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "verifier"
    cosines = np.array([0.9 if pair.same else 0.5 for pair in PAIRS], np.float32)
    said: list[str] = []

    def measure(made: PairModel, logits: export.Scores) -> export.OnStreams:
        found = fit_calibration({"cars": compared_pairs(PAIRS, logits["cars"], cosines)}, {})
        return export.OnStreams(found, ((0.0, 1.0), (0.02, 0.9), (0.05, 0.7)), 0.25)

    export.export_verifier(model, tiny, folder, {"cars": PAIRS}, measure, said.append)
    assert 1 <= len(said) <= len(export.DIGITS)
    return folder


def test_what_is_written_scores_as_the_network(tiny: Path, model: CrossEncoder, written: Path) -> None:
    """Within what int8 costs; the tokens of a pair are the same in both."""
    found = export.pair_logits(PairModel(written), PAIRS)
    expected = network.scores(model, Tokens(tiny), PAIRS)

    assert np.corrcoef(found, expected)[0, 1] > 0.95


def test_a_pair_has_one_logit_in_either_order_and_any_company(written: Path) -> None:
    verifier = PairModel(written)
    one, other = ("a red car", "my green car please"), ("a white car", "the thing behind it")
    (alone,) = verifier.logits([one])
    beside = verifier.logits([other, one[::-1], other])

    assert beside[1] == pytest.approx(alone, abs=1e-4)
    assert beside[0] == beside[2]


def test_what_the_window_does_not_hold_is_unknown_and_never_cut(written: Path) -> None:
    """Also where it would cost to count its tokens."""
    verifier = PairModel(written)
    for long in ("red " * 260, "red" * 100_000):
        logits = verifier.logits([("a red car", long), ("a red car", "my car")])
        assert logits[0] is None
        assert logits[1] is not None
        assert verifier.score("a red car", long, 0.99) == 0.0


class TestContract(VerifierContract):
    """What the cache expects of any verifier."""

    @pytest.fixture(autouse=True)
    def _folder(self, written: Path) -> None:
        self.folder = written

    def make_verifier(self) -> PairModel:
        return PairModel(self.folder)


def test_a_cache_serves_by_it(written: Path, tmp_path: Path) -> None:
    """With the probability as score, those above the threshold and no others."""
    folder = copied(written, tmp_path / "verifier")
    texts = [(f"a {one} car please", f"my {one} car please") for one in COLOURS]
    middle = float(np.median([logit or 0.0 for logit in PairModel(written).logits(texts)]))
    rewrite(folder, calibration={"logit": 1.0, "cosine": 0.0, "density": 0.0, "offset": -middle})
    verifier = PairModel(folder)
    with ibidem.open(
        tmp_path / "cache", embedder=BagOfWords(), verifier=verifier, min_probability=0.5, guards=[]
    ) as cache:
        decided = cache.decide(texts)
        assert {one.served for one in decided} == {True, False}
        for at, ((stored, asked), one) in enumerate(zip(texts, decided, strict=True)):
            assert one.score == pytest.approx(verifier.score(asked, stored, one.similarity), abs=1e-4)
            assert one.served == (one.score >= 0.5)
            cache.store(Request(stored, namespace=str(at)), Answer("an answer"))
            assert bool(cache.lookup(Request(asked, namespace=str(at)))) == one.served


def test_it_needs_no_torch(written: Path) -> None:
    """As where only the core is installed."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnx', 'sentence_transformers')))\n"
        "from ibidem.matching.pair_model import PairModel\n"
        f"print(PairModel({str(written)!r}).logits([('a red car', 'my red car')])[0] is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.stdout.strip(), done.stderr) == ("True", "")


@pytest.mark.parametrize("broken", ["model.onnx", "tokenizer.json"])
def test_a_damaged_file_is_refused(written: Path, tmp_path: Path, broken: str) -> None:
    folder = copied(written, tmp_path / "verifier")
    (folder / broken).write_bytes((folder / broken).read_bytes()[:-1])
    with pytest.raises(EmbedderUnavailable, match=broken):
        PairModel(folder)


@pytest.mark.parametrize(
    "calibration", [None, {}, {"logit": 1.0, "cosine": "x", "density": 0.0, "offset": 0.0}, []]
)
def test_a_manifest_without_calibration_is_refused(
    written: Path, tmp_path: Path, calibration: object
) -> None:
    folder = copied(written, tmp_path / "verifier")
    rewrite(folder, calibration=calibration)
    with pytest.raises(ConfigurationError, match="calibration"):
        PairModel(folder)


def test_another_calibration_is_another_verifier(written: Path, tmp_path: Path) -> None:
    """Audits keep judgements of scores by the name."""
    folder = copied(written, tmp_path / "verifier")
    rewrite(folder, calibration={"logit": 0.5, "cosine": 5.0, "density": -1.0, "offset": -1.0})

    assert PairModel(folder).name != PairModel(written).name == PairModel(written).name


def drawn(count: int, weights: tuple[float, float, float, float], seed: int) -> Compared:
    """Pairs whose labels are drawn by a known calibration."""
    rng = np.random.default_rng(seed)
    z, c, d = rng.normal(0, 3, count), rng.uniform(0.5, 1.0, count), rng.uniform(0.0, 0.8, count)
    probability = Calibration(*weights).probabilities(z, c, d)
    return Compared(z, c, d, rng.uniform(size=count) < probability)


def test_a_calibration_finds_the_probabilities_that_drew_the_labels() -> None:
    """And says them: of each tenth, as many are the same as it says."""
    seen = drawn(40_000, (0.8, 6.0, -3.0, -4.0), 1)
    found = fit_calibration({}, {"all": seen})

    assert astuple(found) == pytest.approx((0.8, 6.0, -3.0, -4.0), rel=0.15)
    told = found.probabilities(seen.logits, seen.cosines, seen.densities)
    for count, mean, share in deciles(told, seen.same):
        assert abs(mean - share) < 4 * math.sqrt(0.25 / count)
    one = (float(values[1]) for values in (seen.logits, seen.cosines, seen.densities))
    assert told[1] == pytest.approx(found.probability(*one), abs=1e-6)


def test_the_offset_is_that_of_the_streams() -> None:
    """Pairs have more near misses; both together say what logit and cosine weigh."""
    stream, pairs = drawn(30_000, (0.8, 4.0, -3.0, 0.0), 2), drawn(30_000, (0.8, 4.0, -3.0, -3.0), 3)
    found = fit_calibration({"pairs": pairs}, {"stream": stream})

    assert astuple(found) == pytest.approx((0.8, 4.0, -3.0, 0.0), abs=0.5)


def test_each_set_counts_as_much_as_another() -> None:
    """However many pairs it has."""
    one, other = drawn(4_000, (1.0, 0.0, 0.0, 2.0), 2), drawn(400, (1.0, 0.0, 0.0, -2.0), 3)

    assert fit_calibration({"one": one, "other": other}, {}).probability(0.0, 0.75) == pytest.approx(
        0.5, abs=0.05
    )
    assert fit_calibration({"one": one, "again": one, "other": other}, {}).probability(0.0, 0.75) > 0.6


def test_a_higher_cosine_never_lowers_the_probability_and_a_higher_density_never_raises_it() -> None:
    """Where the labels say so, they do not count."""
    found = fit_calibration({}, {"all": drawn(5_000, (1.0, -4.0, 4.0, 1.0), 4)})

    assert (found.cosine, found.density) == (0.0, 0.0)
    assert found.logit == pytest.approx(1.0, rel=0.15)


def test_pairs_beyond_the_window_are_left_out() -> None:
    pairs = [Pair("a", "b", 1.0), Pair("a", "c", 0.0), Pair("a", "d", 0.0)]
    found = compared_pairs(pairs, np.float32([1.0, np.nan, -1.0]), np.float32([0.9, 0.8, np.nan]))

    assert (len(found), found.same.tolist()) == (1, [True])


def test_a_stream_is_compared_as_a_cache_compares_it(written: Path) -> None:
    """Of each question the best candidate, with the others that were near; no pair is read twice."""
    rows = [Row(f"{article} {one} car please", one) for article in ("a", "my", "the") for one in COLOURS]
    embedder = CheckedEmbedder(BagOfWords(), lambda _, value: value)
    read: list[tuple[str, str]] = []

    class Counting(RememberedLogits):
        def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
            read.extend(pairs)
            return super().logits(pairs)

    verifier = Counting(PairModel(written))
    found = compared_on_stream(verifier, rows, vectors_of(rows, embedder), 0.1)
    known = len(verifier._known)

    assert len(found) > 0
    assert found.densities.min() >= 0.0
    assert found.densities.max() > 0.1
    assert known < len(read)
    assert verifier.logits(read[:3]) == pytest.approx(PairModel(written).logits(read[:3]), abs=1e-5)


@given(
    st.floats(0, 3),
    st.floats(0, 30),
    st.floats(-20, 0),
    st.floats(-20, 5),
    st.floats(0.01, 0.99),
    st.floats(-1, 1),
    st.floats(-99, 99),
    st.floats(0, 1),
)
@settings(deadline=None)
def test_below_the_least_cosine_no_pair_reaches_the_threshold(
    logit: float,
    cosine: float,
    density: float,
    offset: float,
    threshold: float,
    asked: float,
    z: float,
    around: float,
) -> None:
    calibration = Calibration(logit, cosine, density, offset)
    if asked < calibration.min_cosine(threshold) - 1e-6:
        assert calibration.probability(z, asked, around) < threshold
    assert calibration.probability(z, asked) == calibration.probability(
        max(-LARGEST_LOGIT, min(LARGEST_LOGIT, z)), asked
    )
    assert calibration.probability(z, asked, around) <= calibration.probability(z, asked)
