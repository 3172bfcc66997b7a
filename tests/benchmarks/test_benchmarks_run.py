"""The benchmarks run, on a small workload made here, and what they claim holds at that size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT, question


def run(*arguments: object) -> str:
    """What `python -m tests.benchmarks.scopes` prints."""
    command = [sys.executable, "-m", "tests.benchmarks.scopes", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_scopes(tmp_path: Path) -> None:
    """The right entry is found for 99 % of the lookups, no answer of another scope is served."""
    lines = [json.dumps({"question": question(n)}) for n in range(300)]
    (tmp_path / "nq_questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = run("--quick", "--embedder", "words", "--data", tmp_path, "--work", tmp_path)
    found = re.search(r"scope code, unfiltered \(Ibidem\) \| [\d.]+% \| ([\d.]+)% \|", said)
    assert found, said
    assert float(found.group(1)) >= 99.0
    assert "other scopes': 0." in said
    assert "| whole SemanticCache.lookup |" in said
    assert "| Chroma's `where` filter |" in said
    assert [file.name for file in tmp_path.iterdir()] == ["nq_questions.jsonl"]


def test_scopes_without_data(tmp_path: Path) -> None:
    """Says which file is missing and is no failure."""
    assert f"skipped: there is no {tmp_path / 'nq_questions.jsonl'}" in run("--data", tmp_path)
