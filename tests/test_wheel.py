"""The wheel that a user installs: all that the packages need is in it, and nothing beside them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_docs import ROOT

pytestmark = pytest.mark.slow
PACKAGES = {
    "ibidem": ROOT / "shared/ibidem",
    "ibidem_lab": ROOT / "shared/ibidem_lab",
    "langchain_ibidem": ROOT / "integrations/langchain-ibidem/langchain_ibidem",
    "llama_index_ibidem": ROOT / "integrations/llama-index-ibidem/llama_index_ibidem",
}
DATA = {f"{package}/py.typed" for package in PACKAGES} | {
    "ibidem/matching/scorer.json",
    "ibidem/prices.json",
    "ibidem_lab/report/page.css",
    "ibidem_lab/report/page.html",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as for PyPI, with what is installed here."""
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = place.glob("*.whl")
    return found


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """Data files too; `tests` or `examples` at the top level would meet those of other distributions."""
    own = {
        (package / file.relative_to(folder)).as_posix()
        for package, folder in ((Path(name), folder) for name, folder in PACKAGES.items())
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}

    assert names == own
    assert names >= DATA


def test_the_wheel_works_where_only_it_is(wheel: Path, tmp_path: Path) -> None:
    """Unpacked without the repository: data is found by the code, and the command is there."""
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "there")
    program = """
import ibidem, langchain_ibidem, llama_index_ibidem
from ibidem.cli.main import main
from ibidem.matching.policy import shipped
from ibidem.costs import read_prices
assert ibidem.__file__.startswith(WHERE), ibidem.__file__
shipped()
assert read_prices().cost("gpt-4o-mini-2024-07-18", 1_000_000, 0)
"""
    program = program.replace("WHERE", repr(str(tmp_path)))
    alone = {"PYTHONPATH": str(tmp_path / "there"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
