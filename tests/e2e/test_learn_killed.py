"""`ibidem learn` on a cache with labels of its own, killed in the middle: the next run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ibidem
from ibidem import Answer, Request
from tests.helpers import ROOT
from tests.shop import products, stream

pytestmark = pytest.mark.thorough
PIECE = 16 + 768 * 4  # bytes of one pair that was read


def filled(place: Path) -> Path:
    """A cache that has stored questions; a file of labels for pairs of them."""
    rows = stream(products()[:6])
    with ibidem.open(place) as cache:
        for row in rows:
            cache.store(Request(row.text, scope="shop"), Answer(f"To {row.text}: see the page."))
    pairs = [
        {"a": one.text, "b": other.text, "same": int(one.meaning == other.meaning)}
        for at, one in enumerate(rows[:60])
        for other in rows[at + 1 : at + 40]
        if one.meaning == other.meaning or at % 20 == 0
    ]
    file = place.parent / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return file


def begin(place: Path, labels: Path) -> subprocess.Popen[bytes]:
    """Run the command."""
    command = [
        sys.executable,
        "-c",
        "from ibidem.cli import main; main()",
        "learn",
        "--path",
        place,
        "--pairs",
        labels,
        "--json",
    ]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """What was read before is not read again, and the cache still serves."""
    place = tmp_path / "cache"
    labels = filled(place)
    states = place / "learning" / "states.bin"
    first = begin(place, labels)
    until = time.monotonic() + 120
    while not (states.exists() and states.stat().st_size > 40 * PIECE):
        assert time.monotonic() < until
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = states.read_bytes()

    said, told = begin(place, labels).communicate(timeout=240)

    report = json.loads(said) if said else pytest.fail(told.decode())
    assert report["judged"]["lookups"] > 60
    whole = len(before) // PIECE * PIECE
    assert states.read_bytes()[:whole] == before[:whole]
    assert (place / "learning" / "candidate" / "manifest.json").exists()
    with ibidem.open(place) as cache:
        assert cache.lookup(Request(stream(products()[:6])[0].text, scope="shop"))
