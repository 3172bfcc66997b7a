"""A server that speaks as OpenAI does, for the tests of both frameworks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.openai_server import OpenAIServer, running_openai


@pytest.fixture(scope="session")
def listening() -> Iterator[OpenAIServer]:
    """One server for all tests of a process."""
    with running_openai() as running:
        yield running


@pytest.fixture
def server(listening: OpenAIServer) -> Iterator[OpenAIServer]:
    """The server as if it was new."""
    listening.renew()
    yield listening
    listening.renew()  # nobody waits for it any longer
