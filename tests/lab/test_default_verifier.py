"""A cache with the pair model as its verifier: which candidates it reads, and what happens without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")

import ibidem
from ibidem import Answer, Hit, Request
from ibidem.cache import SemanticCache
from ibidem.errors import ConfigurationError
from ibidem.matching import shipped
from ibidem.matching.pair_model import PairModel, PairModelFailed
from ibidem_lab.models import export
from ibidem_lab.models.network import CrossEncoder

STORED, REWORDED = "How long can I return goods?", "Until when can I give goods back?"
THRESHOLDS = ((0.0, 1.0), (0.02, 0.9), (0.05, 0.7))
Open = Callable[..., SemanticCache]


@pytest.fixture(scope="module")
def folder(tiny: Path, model: CrossEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair model that is sure of every pair that its window holds."""
    made = tmp_path_factory.mktemp("made") / "verifier"
    sure = export.OnStreams(export.Calibration(0.0, 0.0, 0.0, 3.0), THRESHOLDS, 0.25)
    export._write(model, tiny, made, export.FULL, sure)
    return made


@pytest.fixture
def open_here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens caches whose default is that model."""
    monkeypatch.setattr(shipped, "pair_model", lambda: PairModel(folder))
    opened: list[SemanticCache] = []

    def open_one(**options: object) -> SemanticCache:
        opened.append(ibidem.open(tmp_path / "cache", **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one  # type: ignore[misc]
    for cache in opened:
        cache.close()


def test_it_decides_by_default(open_here: Open) -> None:
    """Where the rule without it does not know the rewording; the score is its probability."""
    cache = open_here()
    cache.store(Request(STORED), Answer("30 days."))
    hit = cache.lookup(Request(REWORDED))

    assert isinstance(hit, Hit)
    assert hit.score == pytest.approx(0.9526, abs=1e-3)
    assert cache.policy.threshold == 0.9
    assert open_here(max_error_rate="generous").policy.threshold == 0.7
    assert open_here(min_probability=0.96).lookup(Request(REWORDED)).reason == "below_threshold"
    assert open_here(verifier=None).lookup(Request(REWORDED)).reason == "below_threshold"


def test_the_environment_switches_it_off(open_here: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBIDEM_VERIFIER", "none")
    cache = open_here()
    cache.store(Request(STORED), Answer("30 days."))

    assert not cache.lookup(Request(REWORDED))


def test_guards_and_far_questions_cost_no_reading(open_here: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything served that a guard refuses."""
    read = counted(monkeypatch)
    cache = open_here()
    cache.store(Request(f"{STORED} Order 7"), Answer("30 days."))

    assert cache.lookup(Request(f"{STORED} Order 8")).reason == "guard:numbers"
    assert cache.lookup(Request("what is a monad")).reason == "below_threshold"
    assert read == []


@pytest.mark.parametrize(("sure", "times"), [(3.0, 1), (-3.0, 2)])
def test_at_most_two_candidates_are_read(
    open_here: Open, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sure: float, times: int
) -> None:
    """The nearest, and the second unless the first is certain."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    held = json.loads((other / "manifest.json").read_text())
    held["calibration"]["offset"] = sure
    (other / "manifest.json").write_text(json.dumps(held))
    monkeypatch.setattr(shipped, "pair_model", lambda: PairModel(other))
    read, cache = counted(monkeypatch), open_here()
    for text in ("goods", "the goods", "my goods", "these goods"):
        cache.store(Request(f"How long can I return {text}?"), Answer("30 days."))
    read.clear()
    found = cache.lookup(Request("Until when can I return goods?"))

    assert bool(found) == (sure > 0)
    assert len(read) == times <= PairModel.most


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The pairs that are read from now on."""
    read: list[tuple[str, str]] = []
    logits = PairModel.logits

    def noted(self: PairModel, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        read.extend(pairs)
        return logits(self, pairs)

    monkeypatch.setattr(PairModel, "logits", noted)
    return read


@pytest.mark.parametrize("audit_rate", [None, 1.0])
def test_where_it_fails_the_rule_decides(
    open_here: Open, monkeypatch: pytest.MonkeyPatch, audit_rate: float | None
) -> None:
    """It is counted, and a lookup goes on; with audits, by the budget of the rule's own scores."""
    cache = open_here(audit_rate=audit_rate)
    cache.store(Request(STORED), Answer("30 days."))

    def fails(self: PairModel, pairs: object) -> list[float | None]:
        raise PairModelFailed("out of memory")

    monkeypatch.setattr(PairModel, "logits", fails)
    near = cache.lookup(Request("How long can I return the goods?"))
    far = cache.lookup(Request(REWORDED))

    assert (near.reason == "below_budget") if audit_rate else near
    assert not far
    assert any("pair model" in name for name in cache.stats().faults)


def test_a_model_that_cannot_run_is_such_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever onnxruntime raises."""
    verifier = PairModel(folder)

    def breaks(*_: object) -> None:
        raise RuntimeError("allocation failed")

    monkeypatch.setattr(verifier._model, "run", breaks)
    with pytest.raises(PairModelFailed, match="allocation failed"):
        verifier.score("a red car", "my red car", 0.9)


def test_an_embedder_of_ones_own_has_its_cosine(open_here: Open) -> None:
    """The model is calibrated with the cosines of the default one; each least score has its place."""
    from tests.embedders import BagOfWords

    assert open_here(embedder=BagOfWords(), min_similarity=0.7).policy.threshold == 0.7
    with pytest.raises(ConfigurationError, match="give min_similarity"):
        open_here(embedder=BagOfWords(), min_probability=0.7)
    with pytest.raises(ConfigurationError, match="give min_probability"):
        open_here(min_similarity=0.7)


@pytest.mark.parametrize("part", ["thresholds", "least_cosine", "calibration"])
def test_a_manifest_that_lacks_something_is_refused(folder: Path, tmp_path: Path, part: str) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    held = json.loads((other / "manifest.json").read_text())
    del held[part]
    (other / "manifest.json").write_text(json.dumps(held))
    with pytest.raises(ConfigurationError, match=part):
        PairModel(other)


def test_a_cross_encoder_of_sentence_transformers_is_taken_as_it_is(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An untrained one is asked, cannot tell, and serves nothing."""
    found = pytest.importorskip("sentence_transformers").CrossEncoder(str(tiny), num_labels=1, device="cpu")
    with ibidem.open(tmp_path / "cache", verifier=found) as cache:
        cache._verifier.begin().join(60)  # type: ignore[union-attr]
        cache.store(Request(STORED), Answer("30 days."))
        assert cache.lookup(Request(REWORDED)).reason == "below_threshold"
    assert "cannot use this cross-encoder" in caplog.text
    assert "AUC" in caplog.text
