"""A tuned embedder takes the place of another while the cache serves."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ibidem
from ibidem.cli.commands import app
from ibidem.matching.fitted import FittedThresholds, Level, to_json
from ibidem.matching.scorers import COSINES
from ibidem_lab import promote, rollback
from tests.contracts.promotion import PromotionContract, ask, fill, models, right  # noqa: F401 (models: a fixture)
from tests.helpers import Child, rounds
from tests.models import measured
from tests.servers import running_chroma, running_postgres

FEW = 4  # answers


class TestInMemory(PromotionContract):
    """SQLite, and vectors in memory."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": str(tmp_path / "c")}


@pytest.mark.thorough  # one that a process has for itself, as in memory; the collections as on a server
class TestInEmbeddedChroma(TestInMemory):
    """SQLite and a Chroma in the process, as in a large cache."""

    limit = 0


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_chroma(tmp_path_factory.mktemp("chroma")) as server:
        yield server.url


class TestOnServers(PromotionContract):
    """PostgreSQL and a Chroma server: with the two above, each database and each index."""

    @pytest.fixture
    def place(self, tmp_path: Path, chroma: str, patient: None) -> Iterator[dict[str, Any]]:
        with running_postgres() as database:
            yield {"path": str(tmp_path / "c"), "database": database, "chroma": chroma}


class TestOnPostgres(PromotionContract):
    """PostgreSQL alone."""

    @pytest.fixture
    def place(self, tmp_path: Path, patient: None) -> Iterator[dict[str, Any]]:
        with running_postgres() as database:
            yield {"path": str(tmp_path / "c"), "database": database}


def run(*arguments: object, code: int = 0) -> str:
    """What the command line prints, in one line; ends with this code."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A cache with some answers, closed."""
    with ibidem.open(tmp_path / "c", min_probability=0.5) as cache:
        fill(cache, *range(FEW))
    return tmp_path / "c"


@pytest.fixture
def copy(models: list[Path], tmp_path: Path) -> Path:  # noqa: F811
    """A model directory that may be spoilt."""
    return Path(shutil.copytree(models[0], tmp_path / "copy"))


def used(path: Path) -> str:
    """The model of a cache that is opened now; what is stored is found with it."""
    with ibidem.open(path, min_probability=0.5) as cache:
        assert [ask(cache, n) for n in range(FEW)] == [right(n) for n in range(FEW)]
        return cache._runtime.embedder.fingerprint


class TestWhatIsRefused:
    """Nothing is changed by it, and the message says what to do."""

    def test_a_model_that_is_worse(self, path: Path, copy: Path) -> None:
        """The figures are named; with force it is promoted all the same."""
        measured(copy, 0.7, 0.6)
        said = run("promote", copy, "--path", path, code=2)
        assert "auc 0.700 -> 0.600, hits 0.01 0.070 -> 0.060, hits 0.05 0.350 -> 0.300" in said
        assert "wrong" not in said
        assert "--force" in said
        assert used(path).startswith("all-MiniLM")
        run("promote", copy, "--path", path, "--force")
        assert used(path).startswith("flipped-0")

    @pytest.mark.parametrize("after", ['{"auc": null}', '{"auc": NaN}', "{}", '{"hits": {"0.01": 1}}'])
    def test_a_model_whose_figures_are_lacking(self, path: Path, copy: Path, after: str) -> None:
        """What was known before and is not now counts as worse."""
        (copy / "metrics.json").write_text(f'{{"before": {{"auc": 0.6}}, "after": {after}}}')
        assert "auc 0.600 -> nan" in run("promote", copy, "--path", path, code=2)
        assert used(path).startswith("all-MiniLM")

    @pytest.mark.parametrize("text", [None, "{}", '{"before": {}, "after": {"auc": 1}}', "[", "[]", "\xff"])
    def test_a_model_of_which_nothing_is_known(self, path: Path, copy: Path, text: str | None) -> None:
        """No metrics, none that can be compared, or damaged ones."""
        (copy / "metrics.json").unlink()
        if text is not None:
            (copy / "metrics.json").write_text(text, encoding="latin-1")
        assert "metrics.json" in run("promote", copy, "--path", path, code=2)
        assert used(path).startswith("all-MiniLM")

    @pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json", "manifest.json"])
    @pytest.mark.parametrize("how", ["missing", "cut", "changed"])
    def test_damaged_files(self, path: Path, copy: Path, file: str, how: str) -> None:
        """Also with force."""
        content = (copy / file).read_bytes()
        (copy / file).unlink()
        if how != "missing":
            spoilt = content[: len(content) // 2] if how == "cut" else b"\0" + content[1:]
            (copy / file).write_bytes(spoilt)
        for force in ((), ("--force",)):
            said = run("promote", copy, "--path", path, *force, code=2)
            assert file in said or "checksum" in said
        assert used(path).startswith("all-MiniLM")

    @pytest.mark.parametrize("text", ["", "{}", "[" * 9_000, '{"format": 99}'])
    def test_damaged_thresholds(self, path: Path, copy: Path, text: str) -> None:
        """Rather than serving from the shipped one."""
        (copy / "thresholds.json").write_text(text)
        assert "thresholds.json" in run("promote", copy, "--path", path, code=2)
        assert used(path).startswith("all-MiniLM")

    def test_no_cache_no_promotion_and_contradictions(self, path: Path, copy: Path, monkeypatch) -> None:
        """Each in one sentence."""
        assert "no cache" in run("promote", copy, "--path", path / "typo", code=2)
        assert "nothing to roll back" in run("promote", "--rollback", "--path", path, code=2)
        assert "give a model directory" in run("promote", "--path", path, code=2)
        assert "give a model directory" in run("promote", copy, "--rollback", "--path", path, code=2)
        assert "no model directory" in run("promote", path, "--path", path, code=2)
        monkeypatch.setenv("IBIDEM_EMBEDDER", str(copy))
        assert "IBIDEM_EMBEDDER" in run("promote", copy, "--path", path, code=2)


def test_the_command_line_tells_what_is_used(path: Path, models: list[Path]) -> None:  # noqa: F811
    """Promote, status, doctor, rebuild, roll back."""
    assert "No model was promoted" in run("promote", "--status", "--path", path)
    said = run("promote", models[0], "--path", path)
    assert f"Embedded {FEW} questions" in said
    assert "auc 0.500 -> 0.700" in said
    assert "Used from now on: flipped-0/" in said
    assert "is in use already" in run("promote", models[0], "--path", path)
    status = run("promote", "--status", "--path", path)
    assert "Used since" in status
    assert "Before: all-MiniLM-L6-v2/" in status
    told = json.loads(run("promote", "--status", "--json", "--path", path))
    assert {one["questions"] for one in told["embedders"]} == {FEW}
    doctor = {one["check"]: one["text"] for one in json.loads(run("doctor", "--path", path, "--json"))}
    assert "kept for ibidem promote --rollback" in doctor["embedding model"]
    assert doctor["vector index"] == f"{FEW} vectors, few enough to be searched in memory"
    assert f"The index holds {FEW} vectors" in run("rebuild", "--path", path)
    assert "Used from now on: all-MiniLM-L6-v2/" in run("promote", "--rollback", "--path", path)
    assert used(path).startswith("all-MiniLM")


def test_the_thresholds_come_and_go_with_their_model(path: Path, copy: Path) -> None:
    """Those of one model are never taken for those of another."""
    (copy / "thresholds.json").write_text(to_json(FittedThresholds((Level(0.02, 0.875),), 500)))
    with ibidem.open(path, max_error_rate=0.02) as cache:
        shipped = cache.policy
        promote(cache, copy)
        assert cache.policy.threshold == 0.875
        assert ask(cache, 3) == right(3)
        assert cache._runtime.judgement_log._scorers == cache._runtime.semantic_index.scorers
        rollback(cache)
        assert cache.policy == shipped


def test_a_score_that_version_0_1_fitted_is_left_where_it_is(
    path: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is in the file: the model is used, and the log says what is not."""
    (copy / "scorer.json").write_text("{")
    (copy / "thresholds.json").unlink()
    with ibidem.open(path, max_error_rate=0.02) as cache:
        promote(cache, copy)
        assert cache.policy.threshold == COSINES.at(0.02)
    assert "scorer.json holds a score fitted by version 0.1, not used any more" in caplog.text


def test_a_lost_copy_of_the_model_is_fetched_again(path: Path, models: list[Path]) -> None:  # noqa: F811
    """Damaged or deleted: the database has the files."""
    run("promote", models[0], "--path", path)
    (kept,) = (one for one in (path / "models").iterdir() if one.is_dir())
    (kept / "model.onnx").write_bytes(b"damaged")
    assert used(path).startswith("flipped-0")
    shutil.rmtree(path / "models")
    assert used(path).startswith("flipped-0")


ENTRIES = rounds(60, 150)
PROMOTE = """
import sys
import ibidem
from ibidem_lab import promote

with ibidem.open(sys.argv[1], min_probability=0.5) as cache:
    print("begins", flush=True)
    promote(cache, sys.argv[2])
    print("done", flush=True)
"""


@pytest.mark.slow
def test_a_kill_leaves_the_old_or_the_new_model(tmp_path: Path, models: list[Path]) -> None:  # noqa: F811
    """At any moment of a promotion; all is found with either, and a repeated promotion goes on."""
    path = tmp_path / "c"
    with ibidem.open(path, min_probability=0.5) as cache:
        fill(cache, *range(ENTRIES))
    draw, seen, target = random.Random(0), set(), 0
    for _ in range(rounds(3, 30)):
        with Child(PROMOTE, path, models[target]) as child:
            child.line()
            time.sleep(draw.uniform(0.0, ENTRIES / 150))
            said = child.kill()
        model = used(path)
        seen.add((model.split("/")[0] == f"flipped-{target}", "done" in said))
        assert "done" not in said or model.startswith(f"flipped-{target}/")
        if model.startswith(f"flipped-{target}/"):
            target = (target + 1) % 3
    with Child(PROMOTE, path, models[target]) as child:
        assert [child.line(), child.line()] == ["begins", "done"]
        assert child.end() == 0

    assert used(path).startswith(f"flipped-{target}/")
    assert (False, False) in seen
    with ibidem.open(path, min_probability=0.5) as cache:
        assert all(ask(cache, n) == right(n) for n in range(ENTRIES))
        assert cache.stats().unindexed == 0
