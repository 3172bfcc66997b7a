"""The Prometheus example runs, and dashboard and page ask for what it serves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNHURT = {
    "ibidem_errors_total",
    "ibidem_audits_total",
}  # of failures and audits, which the example has none of


@pytest.fixture(scope="module")
def page() -> str:
    """What Prometheus reads of the example."""
    script = ROOT / "examples" / "prometheus_metrics.py"
    done = subprocess.run(
        [sys.executable, script, "--port", "0", "--seconds", "8"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def served(page: str) -> dict[str, set[str]]:
    """The labels of each metric."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(ibidem_\w+)\{(.*)\} ", page, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def test_the_example_serves_its_metrics_and_ends(page: str) -> None:
    """Hits, misses, savings, durations in seconds."""
    found = served(page)

    assert "http://127.0.0.1:" in page
    assert {"ibidem_lookup_duration_seconds_bucket", "ibidem_size_bytes", "ibidem_money_saved_total"} <= set(
        found
    )
    assert re.search(r'ibidem_lookups_total\{.*ibidem_outcome="hit".*ibidem_tier="exact"', page)
    assert 'le="0.001"' in page


def queries() -> dict[str, str]:
    """Those of the dashboard and of the page, by what they show."""
    board = json.loads((ROOT / "examples" / "grafana_dashboard.json").read_text())
    found = {panel["title"]: target["expr"] for panel in board["panels"] for target in panel["targets"]}
    section = (
        (ROOT / "docs" / "telemetry.md").read_text().partition("## Prometheus")[2].partition("## Logs")[0]
    )
    return found | dict(re.findall(r"^\| ([\w ,]+) \| `(.+?)`", section, re.MULTILINE))


@pytest.mark.parametrize("query", queries().values(), ids=queries())
def test_queries_ask_for_what_is_served(page: str, query: str) -> None:
    """Metrics and labels by the names that Prometheus knows."""
    found = served(page)
    bare = re.sub(r"by \([^)]*\)|\{[^}]*\}", "", query)
    names = set(re.findall(r"\bibidem_\w+", bare))
    labels = set(re.findall(r"\b(?:ibidem_\w+|gen_ai_\w+|le)\b", query)) - names

    assert names
    assert names <= set(found) | UNHURT
    for name in names - UNHURT:
        assert labels <= found[name]
