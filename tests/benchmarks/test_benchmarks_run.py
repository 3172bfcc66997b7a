"""The benchmarks run, on a small workload made here, and what they claim holds at that size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT, question


def run(*arguments: object, program: str = "scopes") -> str:
    """What a benchmark prints."""
    command = [sys.executable, "-m", f"tests.benchmarks.{program}", *map(str, arguments)]
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


def test_decisions(tmp_path: Path) -> None:
    """Hits and wrong hits are told apart, and what the guards refused."""
    texts = {
        "what was new in version 3": "3",
        "what was new in version 4": "4",
        "What was new in version 3?": "3",
    }
    (tmp_path / "streams").mkdir()
    rows = [json.dumps({"text": text, "meaning": meaning}) for text, meaning in texts.items()]
    (tmp_path / "streams" / "versions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    said = run("--data", tmp_path, "--threshold", "0.75", program="decisions")
    cosine, guarded = (line.split("│") for line in said.splitlines() if "versions" in line)

    assert [cell.strip() for cell in cosine[3:6]] == ["3", "66.7%", "50.0%"]
    assert [cell.strip() for cell in guarded[3:6]] == ["3", "33.3%", "0.0%"]
    assert "guard:numbers: refused" in said
