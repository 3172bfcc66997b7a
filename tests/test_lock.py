"""The lock holds every package that demo, tests and benchmarks install, on each platform that we name."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from itertools import chain, product
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.test_docs import ROOT

FOLDERS = (
    ROOT,
    ROOT / "shared/ibidem_models",
    ROOT / "integrations/langchain-ibidem",
    ROOT / "integrations/llama-index-ibidem",
)
FILES = [tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")) for folder in FOLDERS]
PROJECTS = {file["project"]["name"]: file["project"] for file in FILES}
PYTHONS = ("3.11.9", "3.12.9", "3.13.5", "3.14.1")
MACHINES = (("linux", "Linux", "x86_64"), ("darwin", "Darwin", "arm64"), ("win32", "Windows", "AMD64"))
# pip and what a virtual environment of CPython 3.11 brings along; and our own.
NOT_LOCKED = {"pip", "setuptools", *PROJECTS}


def pins(path: Path) -> list[Requirement]:
    """The lines of a lock that name a package."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def environments() -> Iterator[dict[str, str]]:
    """What markers can ask, for each Python and system that we name."""
    for python, (platform, system, machine) in product(PYTHONS, MACHINES):
        yield {
            "implementation_name": "cpython",
            "implementation_version": python,
            "os_name": "nt" if platform == "win32" else "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_system": system,
            "python_full_version": python,
            "python_version": python.rsplit(".", 1)[0],
            "sys_platform": platform,
        }


def version_of(pin: Requirement) -> Version:
    """That of `name==version`."""
    (only,) = pin.specifier
    assert only.operator == "=="
    return Version(only.version)


def wanted(environment: dict[str, str], lines: list[str]) -> Iterator[Requirement]:
    """What our distributions ask for there, of each other too: extras are taken apart."""
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": ""}):
            continue
        if project := PROJECTS.get(requirement.name):
            extras = [project["optional-dependencies"][extra] for extra in requirement.extras]
            for needed in (project["dependencies"], *extras):
                yield from wanted(environment, needed)
        else:
            yield requirement


LOCK = pins(ROOT / "constraints.txt")


def test_the_lock_names_versions_and_no_addresses() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    addresses = re.findall(r"://|^\s*-|^\s*\S+ @ ", text, re.MULTILINE)

    assert addresses == []
    assert all(version_of(pin) for pin in LOCK)


@pytest.mark.parametrize(
    "environment", list(environments()), ids=lambda at: f"{at['python_version']}-{at['sys_platform']}"
)
def test_what_the_project_asks_for_is_locked_in_one_version(environment: dict[str, str]) -> None:
    locked: dict[str, list[Version]] = {}
    for pin in LOCK:
        if pin.marker is None or pin.marker.evaluate({**environment, "extra": ""}):
            locked.setdefault(canonicalize_name(pin.name), []).append(version_of(pin))
    extras = [one.get("optional-dependencies", {}).values() for one in PROJECTS.values()]
    asked = [
        *chain.from_iterable(one["dependencies"] for one in PROJECTS.values()),
        *FILES[0]["dependency-groups"]["weights"],
        *chain.from_iterable(chain.from_iterable(extras)),
    ]
    wrong = {
        str(requirement): locked.get(canonicalize_name(requirement.name))
        for requirement in wanted(environment, asked)
        if not any(map(requirement.specifier.contains, locked.get(canonicalize_name(requirement.name), [])))
    }

    assert wrong == {}, "make lock"
    assert {name: versions for name, versions in locked.items() if len(versions) > 1} == {}


def test_what_is_installed_here_is_what_was_locked() -> None:
    """Also what comes along with what we ask for. Each environment keeps the lock that it was made with."""
    own = Path(sys.prefix) / "constraints.txt"
    if not own.exists():
        pytest.skip("an environment that the Makefile did not make")
    locked = {
        canonicalize_name(pin.name): version_of(pin).public
        for pin in pins(own)
        if pin.marker is None or pin.marker.evaluate()
    }
    installed = {
        canonicalize_name(found.metadata["Name"]): Version(found.version).public for found in distributions()
    }
    ours = {name: version for name, version in installed.items() if name not in NOT_LOCKED}

    assert ours == {name: locked.get(name) for name in ours}, "left from an older lock? make clean"
