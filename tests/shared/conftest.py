"""Fixtures for the tests of the core."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _slow_disks_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store gives up after a second; a test that asks for no faults must not depend on the disk."""
    monkeypatch.setattr("ibidem.storage.engine.DEADLINE_SECONDS", 30.0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for servers that a busy machine keeps from answering: for tests that ask for no faults."""
    monkeypatch.setattr("ibidem._util.concurrency.DEADLINE_SECONDS", 20.0)
