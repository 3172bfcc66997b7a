"""Ibidem beside other caches; run as `python -m tests.benchmarks.speed`, `--help` lists the options.

Each contender is filled and measured in processes of its own, one after the other, several rounds; of each
figure the table shows the median. Ratios are to the time of the bare int8 encoder in the same seconds of the
same process, so that a busy machine hurts all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.speed.contenders import CONTENDERS

DEFAULT_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
PACKAGES = (
    "ibidem-cache",
    "chromadb",
    "gptcache",
    "faiss-cpu",
    "sentence-transformers",
    "torch",
    "onnxruntime",
)
NEEDS = {"chroma": "sentence-transformers", "gptcache": "gptcache", "gptcache-int8": "gptcache"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse(arguments)
    if not (options.data / "nq_questions.jsonl").is_file():
        print(f"skipped: there is no {options.data / 'nq_questions.jsonl'}; pass --data DIR with that file")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="ibidem-speed-", dir=options.work))
    try:
        for entries in options.entries:
            compare(options, folder, entries)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed", description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 9_000, 100_000])
    parser.add_argument("--contenders", nargs="+", choices=sorted(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--calls", type=int, default=400, help="of each kind, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement of throughput")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--work", type=Path, help="where caches are built; default: the temporary directory")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace, folder: Path, entries: int) -> None:
    """Fill and measure all contenders at this size, and print."""
    names = [name for name in options.contenders if _is_there(name)]
    filled = {name: child(options, folder, name, entries, "fill") for name in names}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            rounds[name].append(child(options, folder, name, entries, "measure"))
    print(f"\n{entries:,} entries; {options.rounds} rounds of {options.calls} calls of each kind.")
    print(f"{_machine()}.\n")
    print_table(rounds, filled)
    for name in names:
        shutil.rmtree(folder / f"{name}-{entries}", ignore_errors=True)


def child(options: argparse.Namespace, folder: Path, name: str, entries: int, phase: str) -> dict[str, Any]:
    wanted = {
        "contender": name,
        "entries": entries,
        "phase": phase,
        "data": str(options.data),
        "work": str(folder),
        "asked": 1_000,
        "calls": options.calls,
        "seconds": options.seconds,
        "started": time.time(),
    }
    command = [sys.executable, "-m", "tests.benchmarks.speed.child", json.dumps(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed to {phase}:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _is_there(name: str) -> bool:
    try:
        version(NEEDS.get(name, "ibidem-cache"))
    except PackageNotFoundError:
        print(f"left out: {name}, since {NEEDS[name]} is not installed (pip install '.[bench]')")
        return False
    return True


def _machine() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{', '.join(found)}; Python {platform.python_version()}, {os.cpu_count()} CPUs"


def print_table(rounds: dict[str, list[dict[str, Any]]], filled: dict[str, dict[str, Any]]) -> None:
    """Two tables: one call at a time, and what a process takes and gives."""
    print(
        "| ms p50 (p95) | exact hit | by meaning | miss and store | by meaning / bare encode | hits | wrong |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, runs in rounds.items():
        cells = [_cell(runs, kind) for kind in ("exact", "reworded", "missed")]
        ratio = statistics.median(run["reworded"]["p50"] / run["encode"]["p50"] for run in runs)
        hits, wrong = (statistics.median(run[of] for run in runs) for of in ("hits", "wrong"))
        print(f"| {CONTENDERS[name].name} | {' | '.join(cells)} | {ratio:.2f} | {hits:.1%} | {wrong:.2%} |")
    print(
        "\n| | hits a second: 1 | 8 | 32 threads | CPU ms a hit, 32 threads "
        "| first hit s | by meaning s | MB | disk MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, runs in rounds.items():
        median = {
            of: statistics.median(run[of] for run in runs)
            for of in runs[0]
            if isinstance(runs[0][of], float | int)
        }
        rates = " | ".join(f"{median[f'rate_{threads}']:.0f}" for threads in (1, 8, 32))
        disk = filled[name]["disk"]
        print(
            f"| {CONTENDERS[name].name} | {rates} | {median['cpu_32']:.1f} | {median['first_exact']:.2f} "
            f"| {median['first_semantic']:.2f} | {median['rss'] / 1e6:.0f} | {disk / 1e6:.0f} |"
        )
    encode = statistics.median(run["encode"]["p50"] for runs in rounds.values() for run in runs)
    print(f"\nBare int8 encode of the reworded question: {encode:.2f} ms.")


def _cell(runs: list[dict[str, Any]], kind: str) -> str:
    p50, p95 = (statistics.median(run[kind][of] for run in runs) for of in ("p50", "p95"))
    return f"{p50:.3f} ({p95:.2f})"


if __name__ == "__main__":
    sys.exit(main())
