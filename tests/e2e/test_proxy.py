"""A Chroma server behind a reverse proxy that asks for a token; Chroma itself asks nobody for anything."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import ibidem
from tests.e2e.test_processes import by_meaning, open_cache, store
from tests.helpers import Child, answer, eventually
from tests.servers import ChromaServer, Gate, certificate

SECRET = "hunter2-of-the-proxy"
TOKEN = f"Bearer {SECRET}"

# Says what it finds by meaning, with the settings of its environment.
READER = """
import sys
import ibidem
from tests.embedders import BagOfWords
from tests.helpers import reworded

with ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.9) as cache:
    found = cache.lookup(ibidem.Request(reworded(1)))
    print(found.answer.text if found else found.reason, cache.stats().index, flush=True)
"""


@pytest.fixture
def gate(server: ChromaServer) -> Iterator[Gate]:
    with Gate(server.url, TOKEN) as running:
        yield running


def test_headers_are_sent_with_each_request(tmp_path: Path, gate: Gate) -> None:
    """Also below a path, and none of them is refused."""
    with open_cache(tmp_path / "c", chroma=gate.url, chroma_headers={"Authorization": TOKEN}) as cache:
        store(cache, 1, 2)
        assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
        assert cache.flush()
        assert cache.stats().unindexed == 0
        assert by_meaning(cache, 2) == f"semantic: {answer(2)}"
        assert cache.stats().faults == {}
    assert gate.refused == 0
    assert gate.passed > 6


@pytest.mark.parametrize("sent", [None, {"Authorization": f"Bearer wrong-{SECRET}"}], ids=["none", "wrong"])
def test_who_is_refused_keeps_the_exact_tier(tmp_path: Path, gate: Gate, caplog, sent) -> None:
    """One warning says so; a proxy that quotes the token does not bring it into log, errors or stats."""
    with (
        caplog.at_level(logging.INFO, "ibidem"),
        open_cache(tmp_path / "c", chroma=gate.url, chroma_headers=sent) as cache,
    ):
        store(cache, 1)
        assert by_meaning(cache, 1) == "no_index"
        told = f"{cache.stats()} {cache!r} {caplog.text}"
    assert "403" in told
    assert SECRET not in told


def test_a_token_is_told_nobody(tmp_path: Path, gate: Gate, caplog) -> None:
    """Neither by the settings nor when the server behind the proxy fails while it is used."""
    from ibidem.settings import read_settings

    headers = {"Authorization": TOKEN}
    settings = read_settings(path=tmp_path / "c", chroma=gate.url, chroma_headers=headers)
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"
    with (
        caplog.at_level(logging.INFO, "ibidem"),
        open_cache(tmp_path / "c", chroma=gate.url, chroma_headers=headers) as cache,
    ):
        store(cache, 1)
        assert by_meaning(cache, 1).startswith("semantic")
        gate.token = "another one from now on"  # the page that refuses quotes what was sent
        assert by_meaning(cache, 1) == "no_index"
        assert "***" in caplog.text
        assert SECRET not in f"{cache.stats()} {caplog.text}"


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"{TOKEN}\n"}, {"Authorization": 7}, TOKEN, {"": TOKEN}, {"X": f"ü{SECRET}"}],
)
def test_headers_that_cannot_be_sent_are_refused_without_quoting_them(tmp_path: Path, headers) -> None:
    """At opening, not at the first lookup."""
    with pytest.raises(ibidem.ConfigurationError, match="chroma_headers: must map names") as raised:
        open_cache(tmp_path / "c", chroma="http://localhost:1", chroma_headers=headers)
    assert SECRET not in str(raised.value)


def test_headers_come_from_the_environment_too(tmp_path: Path, gate: Gate, monkeypatch) -> None:
    """As a JSON object; anything else is refused without quoting it."""
    monkeypatch.setenv("IBIDEM_CHROMA", gate.url)
    monkeypatch.setenv("IBIDEM_CHROMA_HEADERS", json.dumps({"Authorization": TOKEN}))
    with open_cache(tmp_path / "c") as cache:
        store(cache, 1)
        assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
    monkeypatch.setenv("IBIDEM_CHROMA_HEADERS", f"Authorization: {TOKEN}")
    with pytest.raises(ibidem.ConfigurationError, match="IBIDEM_CHROMA_HEADERS is a JSON object") as raised:
        open_cache(tmp_path / "c")
    assert SECRET not in str(raised.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_a_certificate_of_ones_own(tmp_path: Path, server: ChromaServer, monkeypatch) -> None:
    """`SSL_CERT_FILE` names it, as for other programs; without it the connection is refused."""
    pem, trusted = certificate(tmp_path, "localhost")
    with Gate(server.url, TOKEN, certificate=pem) as gate:
        monkeypatch.setenv("IBIDEM_CHROMA", gate.url)
        monkeypatch.setenv("IBIDEM_CHROMA_HEADERS", json.dumps({"Authorization": TOKEN}))
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with open_cache(tmp_path / "c") as cache:
            store(cache, 1)
            assert eventually(lambda: by_meaning(cache, 1) == f"semantic: {answer(1)}", 10)
            assert cache.flush()
        monkeypatch.delenv("SSL_CERT_FILE")
        with Child(READER, tmp_path / "c") as reader:
            said = reader.line()
            reader.end()
        assert said.startswith("no_index")
        assert "CERTIFICATE_VERIFY_FAILED" in said
