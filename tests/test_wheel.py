"""The four wheels that users install, built from their sdists: each holds its packages and works alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Mapping, Sequence
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.shared.test_shipped_model import LIMIT
from tests.test_docs import ROOT

pytestmark = pytest.mark.slow
# Distribution: its folder, and its packages within.
PROJECTS = {
    "ibidem_cache": (ROOT, ("shared/ibidem", "shared/ibidem_lab")),
    "langchain_ibidem": (ROOT / "integrations/langchain-ibidem", ("langchain_ibidem",)),
    "llama_index_ibidem": (ROOT / "integrations/llama-index-ibidem", ("llama_index_ibidem",)),
}
ADAPTERS = [name for name in PROJECTS if name != "ibidem_cache"]
MODELS = ROOT / "shared/ibidem_models"
DATA = {
    "ibidem_cache": {
        "ibidem/matching/scorer.json",
        "ibidem/prices.json",
        "ibidem_lab/report/page.css",
        "ibidem_lab/report/page.html",
    }
}
PROGRAMS = {
    "ibidem_cache": """
import ibidem, ibidem_lab, importlib.util
from ibidem.costs import read_prices
from ibidem.matching.shipped import learned_scorer
learned_scorer()
from ibidem.matching.shipped import pair_model
assert pair_model() is None  # without its package the rule decides
assert read_prices().cost("gpt-4o-mini-2024-07-18", 1_000_000, 0)
assert not importlib.util.find_spec("langchain_ibidem")
assert not importlib.util.find_spec("llama_index_ibidem")
assert ibidem_lab.pairs and ibidem_lab.fit
from ibidem.cli import main
import sys
sys.argv = ["ibidem", "--help"]
main()
""",
    "langchain_ibidem": "import langchain_ibidem; langchain_ibidem.IbidemCache",
    "llama_index_ibidem": "import llama_index_ibidem; llama_index_ibidem.CachedLLM",
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Built as for PyPI, with what is installed here."""
    place = tmp_path_factory.mktemp("wheels")
    for folder in (MODELS, *(folder for folder, _ in PROJECTS.values())):
        command = [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            str(place),
        ]  # by way of an sdist
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    return {name: next(place.glob(f"{name}-*.whl")) for name in (*PROJECTS, "ibidem_models")}


@pytest.mark.parametrize("project", PROJECTS)
def test_a_wheel_has_every_file_of_its_packages_and_nothing_else(
    wheels: Mapping[str, Path], project: str
) -> None:
    """Data files too; `tests` or `examples` at the top level would meet those of other distributions."""
    folder, packages = PROJECTS[project]
    tops = [folder / package for package in packages]
    own = {
        file.relative_to(top.parent).as_posix()
        for top in tops
        for file in top.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheels[project]) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}

    assert names == own
    assert names >= DATA.get(project, set()) | {f"{top.name}/py.typed" for top in tops}


@pytest.mark.parametrize("project", PROJECTS)
def test_a_wheel_works_where_only_it_is(wheels: Mapping[str, Path], project: str, tmp_path: Path) -> None:
    """In an environment with what it requires, and no other package of ours."""
    wanted = dict.fromkeys(("ibidem_cache", project))
    told = run(environment(tmp_path / "venv"), wheels, list(wanted), PROGRAMS[project], tmp_path)

    if project == "ibidem_cache":
        assert all(command in told for command in ("stats", "doctor", "learn", "report", "promote"))


def test_the_models_are_found_where_only_the_core_is(wheels: Mapping[str, Path], tmp_path: Path) -> None:
    """Three files each and no code, small enough for PyPI; a rewording is served by them."""
    with zipfile.ZipFile(wheels["ibidem_models"]) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    python = environment(tmp_path / "venv")
    program = """
import ibidem
from ibidem.matching.shipped import pair_model
assert pair_model() is not None
with ibidem.open() as cache:
    cache.store(ibidem.Request("How do I reset my password?"), ibidem.Answer("With the link."))
    assert cache.lookup(ibidem.Request("What is the way to reset my password?"))
"""

    assert names == {
        f"ibidem_models/{model}/{name}"
        for model in ("encoder", "verifier")
        for name in ("model.onnx", "tokenizer.json", "manifest.json")
    }
    assert wheels["ibidem_models"].stat().st_size < LIMIT
    run(python, wheels, ["ibidem_cache", "ibidem_models"], program, tmp_path)


def run(python: Path, wheels: Mapping[str, Path], wanted: Sequence[str], program: str, place: Path) -> str:
    """What a program prints in an environment with some of the wheels."""
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps"]
    install += ["--quiet", "--find-links", str(wheels["ibidem_cache"].parent), "--ignore-installed", *wanted]
    done = subprocess.run(install, cwd=place, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(place), "IBIDEM_PATH": str(place / "cache")}
    ours = f"import ibidem; assert ibidem.__file__.startswith({str(place)!r}), ibidem.__file__\n"
    command = [str(python), "-W", "error", "-c", ours + program]
    done = subprocess.run(command, cwd=place, env=bare, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(folder: Path) -> Path:
    """A new environment that also finds the packages installed here, but not our own: these are editable."""
    venv.create(folder, with_pip=False, symlinks=sys.platform != "win32")
    (packages,) = folder.glob("Lib/site-packages" if sys.platform == "win32" else "lib/*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "here.pth").write_text("\n".join(here), encoding="utf-8")
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


@pytest.mark.parametrize("project", [*PROJECTS, "ibidem_models"])
def test_the_page_on_pypi_leads_into_the_repository(wheels: Mapping[str, Path], project: str) -> None:
    """By addresses that all begin with the one of the repository, and none is relative."""
    metadata = metadata_of(wheels[project])
    pages = dict(one.split(", ") for one in metadata.get_all("Project-URL", []))
    home, text = pages["Repository"], str(metadata.get_payload())
    links = re.findall(r"\]\(([^)#][^)]*)\)", text)

    assert set(pages) == {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
    assert all(page.startswith(home) for page in pages.values())
    assert home == metadata_of(wheels["ibidem_cache"]).get_all("Project-URL", [])[0].split(", ")[1]
    assert [link for link in links if not link.startswith("https://")] == []
    for link in links:
        if link.startswith(home):
            named = link.removeprefix(home).split("#")[0].split("/main/")[-1]
            assert (ROOT / named).exists(), link
    assert metadata["License-Expression"]
    assert metadata.get_all("License-File")


def metadata_of(wheel: Path) -> Message:
    """What PyPI shows of it."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith("/METADATA")]
        return message_from_string(opened.read(name).decode("utf-8"))


@pytest.mark.parametrize("project", ADAPTERS)
def test_an_adapter_requires_the_core_of_its_minor_version(wheels: Mapping[str, Path], project: str) -> None:
    """Both are released together."""
    version = wheels["ibidem_cache"].name.split("-")[1]
    metadata = metadata_of(wheels[project])
    core = next(
        one for one in map(Requirement, metadata.get_all("Requires-Dist", [])) if one.name == "ibidem-cache"
    )
    major, minor, _ = map(int, version.split("."))

    assert metadata["Version"] == version
    assert f"{major}.{minor}.99" in core.specifier
    assert f"{major}.{minor + 1}.0" not in core.specifier
    assert f"{major}.{minor}.0" in core.specifier
    root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = root["project"]["optional-dependencies"]
    conveniences = [one for lines in extras.values() for one in map(Requirement, lines)]
    assert {str(one.specifier) for one in conveniences if one.name == metadata["Name"]} == {
        str(core.specifier)
    }
