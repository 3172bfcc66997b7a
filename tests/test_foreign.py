"""The distribution `ibidem` of PyPI, which is somebody else's, beside ours in one folder: it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ibidem

OURS = Path(ibidem.__file__).parent
OPENED = "import ibidem; ibidem.open('c').close()"
DOCTOR = "from ibidem.cli import main; main()"


def run(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program that finds the packages of `site` first."""
    path = os.pathsep.join([str(site), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=site, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """As pip leaves it if the foreign distribution was installed first, then ours."""
    (tmp_path / "ibidem").mkdir()
    for one in OURS.iterdir():
        (tmp_path / "ibidem" / one.name).symlink_to(one)
    (tmp_path / "ibidem" / "theirs.py").touch()
    (tmp_path / "ibidem-1.0.2.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: ibidem\nVersion: 1.0.2\n"
    (tmp_path / "ibidem-1.0.2.dist-info" / "METADATA").write_text(metadata, "utf-8")
    return tmp_path


def theirs(site: Path, content: str = "__version__ = '1.0.2'\n") -> None:
    """As pip leaves it the other way round: ours works no more."""
    (site / "ibidem" / "__init__.py").unlink()
    (site / "ibidem" / "__init__.py").write_text(content, "utf-8")


def test_the_doctor_finds_it_among_our_files(site: Path) -> None:
    """Everything works until one of them is uninstalled, and takes files of the other with it."""
    assert run(site, OPENED).returncode == 0
    done = run(site, DOCTOR, "doctor", "--path", "c", "--json")

    assert done.returncode == 1, done.stderr
    (found,) = (one for one in json.loads(done.stdout) if one["check"] == "package")
    assert not found["ok"]
    assert "ibidem 1.0.2" in found["text"]
    assert "pip uninstall -y ibidem && pip install --force-reinstall --no-deps ibidem-cache" in found["text"]


@pytest.mark.parametrize(
    ("content", "code", "arguments"),
    [
        ("__version__ = '1.0.2'\n", DOCTOR, ["doctor"]),
        ("", DOCTOR, ["--help"]),
        ("def open(*given): ...\n", "import langchain_ibidem", []),
        ("", "import llama_index_ibidem", []),
    ],
)
def test_in_our_place_it_is_told_at_once(site: Path, content: str, code: str, arguments: list[str]) -> None:
    """And not that some name cannot be imported."""
    theirs(site, content)
    done = run(site, code, *arguments)

    assert done.returncode == 1
    assert "somebody else's package ibidem 1.0.2" in done.stderr.replace("\n", " ")
    assert "pip uninstall -y ibidem" in done.stderr


def test_alone_nothing_is_told(tmp_path: Path) -> None:
    """Ours is not taken for the other."""
    assert run(tmp_path, OPENED).returncode == 0
    done = run(tmp_path, DOCTOR, "doctor", "--path", "c", "--json")

    assert [one for one in json.loads(done.stdout) if one["check"] == "package"] == []
