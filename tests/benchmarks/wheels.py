"""What does an installation take, and how soon is the first hit? Each distribution by itself, from its wheel.

    python -m tests.benchmarks.wheels [--dist dist] [--only NAME]       # make bench-wheels builds them first

Each is installed into an empty environment, from `dist` and with pip's cache warm: what it needs was
downloaded before, which is not timed. Then the embedding model's package, and the first hit of a process
that may download nothing: of the same words, and in other words. "CPU" is the processor time of pip; on a
busy machine it says more than the clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.helpers import ROOT

OURS = ("langchain-ibidem", "llama-index-ibidem", "ibidem-cache", "ibidem-models")
LARGEST = 12  # packages that are named; the others are one line
ASKED, OTHERWISE = "How long can I return goods?", "How long can I return the goods?"
# The five lines of each; `{second}` is asked after ASKED, and the tier of the hit is printed.
PROGRAMS = {
    "langchain-ibidem": f"""
import langchain_ibidem
from langchain_core.language_models import FakeListChatModel
langchain_ibidem.install()
model = FakeListChatModel(responses=["Within 30 days.", "I was asked again."])
answers = [model.invoke(question) for question in ({ASKED!r}, {{second!r}})]
print(answers[1].response_metadata["ibidem"]["tier"])
""",
    "llama-index-ibidem": f"""
import llama_index_ibidem
from llama_index.core import Settings
from llama_index.core.llms import MockLLM
Settings.llm = MockLLM()
llama_index_ibidem.install()
answers = [Settings.llm.complete(question) for question in ({ASKED!r}, {{second!r}})]
print(answers[1].raw["ibidem"]["tier"])
""",
    "ibidem-cache": f"""
import ibidem
with ibidem.open() as cache:
    for question in ({ASKED!r}, {{second!r}}):
        answer = cache.answer(ibidem.Request(question), lambda request: ibidem.Answer("Within 30 days."))
    print(cache.lookup(ibidem.Request({{second!r}})).tier)
""",
}


class Took(NamedTuple):
    """Seconds of a command: by the clock, and of the processor."""

    seconds: float
    cpu: float
    printed: str


def command(*arguments: object, **variables: str) -> Took:
    """Run one to its end; what it prints if it fails."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, **variables}
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, env=environment, cwd="/", check=False
    )
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(seconds, cpu, done.stdout.strip())


class Environment:
    """An empty environment, and a home of its own for those who use it."""

    def __init__(self, place: Path, dist: Path) -> None:
        self.home, self.dist = place / "home", dist
        self.home.mkdir()
        begun = time.perf_counter()
        venv.create(place / "env", with_pip=True, symlinks=os.name != "nt")
        self.seconds = time.perf_counter() - begun
        self.python = place / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.pip = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        self.bare = set(self.sizes())

    def install(self, *wanted: str) -> Took:
        """By pip, from `dist` and its cache, as a user does."""
        with tempfile.TemporaryDirectory() as downloaded:
            command(*self.pip, "download", "--find-links", self.dist, "--dest", downloaded, *wanted)
        return command(*self.pip, "install", "--find-links", self.dist, *wanted)

    def sizes(self) -> dict[str, int]:
        """Bytes of each package that is installed, compiled modules included."""
        (packages,) = self.python.parents[1].glob("[Ll]ib/**/site-packages")
        return {
            found.metadata["Name"]: sum(
                Path(str(file.locate())).stat().st_size
                for file in found.files or ()
                if Path(str(file.locate())).is_file()
            )
            for found in distributions(path=[str(packages)])
        }


def first_hit(name: str, second: str, tier: str, python: Path, home: Path) -> float:
    """Seconds of a program from its start to its end: an answer asked for, and a hit."""
    program = PROGRAMS[name].replace("{second!r}", repr(second))
    own = {"HF_HUB_OFFLINE": "1", "HOME": str(home), "IBIDEM_PATH": str(home / tier)}
    took = command(python, "-c", program, **own)
    if took.printed != tier:
        sys.exit(f"{name}: the second answer is {took.printed!r}, not {tier!r}")
    return took.seconds


class Figures(NamedTuple):
    """What an installation costs."""

    name: str
    sizes: dict[str, int]
    environment: float
    pip: Took
    hits: Sequence[float]  # of the same words, and in other words

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        same, other = (f"{one:.1f}" for one in self.hits) if self.hits else ("", "")
        return (
            self.name, str(len(self.sizes)), f"{sum(self.sizes.values()) / 1e6:.0f}",
            f"{self.environment:.1f}", f"{self.pip.seconds:.0f}", f"{self.pip.cpu:.0f}", same, other,
        )  # fmt: skip


def measure(name: str, dist: Path) -> Figures:
    """Install one and use it."""
    with tempfile.TemporaryDirectory() as place:
        environment = Environment(Path(place), dist)
        pip = environment.install(name)
        sizes = {one: size for one, size in environment.sizes().items() if one not in environment.bare}
        hits = []
        if name in PROGRAMS:
            asked = {"exact": ASKED, "semantic": OTHERWISE}
            hits = [
                first_hit(name, second, tier, environment.python, environment.home)
                for tier, second in asked.items()
            ]
        return Figures(name, sizes, environment.seconds, pip, hits)


def by_package(figures: Figures) -> Table:
    """What is large in an installation."""
    table = Table(f"{figures.name} installs", "MB", title_justify="left")
    ordered = sorted(figures.sizes.items(), key=lambda item: -item[1])
    for name, size in ordered[:LARGEST]:
        table.add_row(name, f"{size / 1e6:.1f}")
    rest = ordered[LARGEST:]
    if rest:
        table.add_row(f"{len(rest)} others", f"{sum(size for _, size in rest) / 1e6:.1f}")
    return table


def main() -> None:
    """Read the options; measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="the wheels; default: dist")
    parser.add_argument("--only", choices=OURS, nargs="+", default=OURS, metavar="NAME")
    options = parser.parse_args()
    if not list(options.dist.glob("ibidem_cache-*.whl")):
        sys.exit(f"no wheels in {options.dist}: make wheel")
    table = Table(
        "distribution", "packages", "MB", "environment s", "pip s", "CPU s", "same words s", "other words s"
    )
    all_figures, console = [], Console(width=110)
    for name in options.only:
        console.print(f"installing {name}")
        all_figures.append(measure(name, options.dist.resolve()))
        table.add_row(*all_figures[-1].cells())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    console.print(f"{os.cpu_count()} processors, load {load:.0f}; Python {sys.version.split()[0]}")
    console.print(table)
    for figures in all_figures:
        if len(figures.sizes) > 1:
            console.print(by_package(figures))


if __name__ == "__main__":
    main()
