"""Fixtures for the tests of the core."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _slow_disks_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store gives up after a second; where a test asks for no faults, the machine's disk must not matter."""
    monkeypatch.setattr("ibidem.storage.engines.HURRIED_SECONDS", 30.0)
