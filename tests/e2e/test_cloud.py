"""Chroma Cloud, and tenants of a Chroma server: a real Chroma behind what the cloud asks for and refuses."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ibidem
from ibidem._util.concurrency import deadline
from ibidem.cli.commands import app
from ibidem.errors import IndexBusy, IndexUnavailable
from ibidem.index import search
from ibidem.index.chroma_server import PAGE, ServerIndex, open_server
from ibidem.testing import VectorIndexContract
from tests.e2e.test_faults import timed
from tests.e2e.test_processes import by_meaning, open_cache, store
from tests.embedders import BagOfWords
from tests.helpers import answer, eventually
from tests.servers import ChromaServer, Cloud, Gate, Tunnel, certificate

KEY = "ck-hunter2-of-the-cloud"


@pytest.fixture
def cloud(server: ChromaServer) -> Iterator[Cloud]:
    with Cloud(server.url, KEY) as running:
        yield running


def index_on(cloud: Cloud, name: object) -> ServerIndex:
    """A collection of this name."""
    name = hashlib.sha256(str(name).encode()).hexdigest()
    return open_server(cloud.url, name, {"x-chroma-token": KEY})


def vectors(n: int) -> tuple[list[str], np.ndarray]:
    rows = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    return [f"{i:032x}" for i in range(n)], rows


class TestIndex(VectorIndexContract):
    """The contract of all indexes, within the quotas."""

    @pytest.fixture(autouse=True)
    def _there(self, cloud: Cloud) -> Iterator[None]:
        self.cloud = cloud
        yield
        assert cloud.most <= cloud.at_once

    def open_index(self, directory: Path) -> ServerIndex:
        return index_on(self.cloud, directory)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_the_address_and_the_key_are_enough(
    tmp_path: Path, server: ChromaServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the variable of Chroma's own client, at its real address; the key is told nobody else."""
    pem, trusted = certificate(tmp_path, "api.trychroma.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    monkeypatch.setenv("CHROMA_API_KEY", f"{KEY}\n")  # as from a file of secrets
    monkeypatch.setattr(search, "EXACT_LIMIT", 0)
    url, count = "https://api.trychroma.com", PAGE + 20
    with Cloud(server.url, KEY, pem) as cloud, Tunnel(cloud.port) as tunnel, caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
        with open_cache(tmp_path / "c", chroma=url) as cache:
            store(cache, *range(count))
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert eventually(lambda: cache.flush() and cache.stats().unindexed == 0)
            assert by_meaning(cache, 2) == f"semantic: {answer(2)}"
            assert cache.stats().faults == {}
            told = f"{cache!r} {cache.stats()} {cache._runtime.settings!r} {pickle.dumps(cache)!r}"
        with Cloud(server.url, "another key", pem) as other:
            tunnel.port = other.port
            with open_cache(tmp_path / "c", chroma=url) as cache:
                assert by_meaning(cache, 1) == "no_index"
                assert "403" in cache.stats().index
                assert "CHROMA_API_KEY" in cache.stats().index
                told += f"{cache.stats()}"
            tunnel.port = cloud.port
        monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda _: BagOfWords())
        command = ["--path", str(tmp_path / "c"), "--chroma", url]
        doctor = CliRunner().invoke(app, ["doctor", "--json", *command])
        rebuilt = CliRunner().invoke(app, ["rebuild", *command])
    assert doctor.exit_code == 0, doctor.output
    assert "database database-of-the-key of tenant tenant-of-the-key answers in" in doctor.output
    assert f'"{count} vectors, 0 waiting to be indexed"' in doctor.output
    assert f"The index holds {count} vectors." in rebuilt.output
    assert KEY not in f"{told} {caplog.text} {doctor.output} {rebuilt.output}"


def test_requests_stay_within_the_quotas(cloud: Cloud, tmp_path: Path) -> None:
    """Pages of 300 whatever is asked for, and ten at once whoever asks."""
    ids, rows = vectors(2 * PAGE + 1)
    with closing(index_on(cloud, tmp_path)) as index:
        index.upsert(ids, rows)
        assert index.present([*ids, "another"]) == set(ids)
        held: list[str] = []
        while page := index.ids(len(held), 5_000):
            held += page
        assert sorted(held) == ids
        with ThreadPoolExecutor(40) as pool:
            found = list(pool.map(lambda row: index.search(row, 1), rows[:200]))
        assert found == [[id_] for id_ in ids[:200]]
        index.delete(ids)
        assert index.count() == 0
    assert cloud.most <= cloud.at_once


def test_a_quota_that_is_exceeded_is_named(cloud: Cloud, tmp_path: Path) -> None:
    """As the server says it."""
    cloud.quota = 5
    with (
        closing(index_on(cloud, tmp_path)) as index,
        pytest.raises(IndexUnavailable, match="exceeds limit of 5"),
    ):
        index.search(vectors(1)[1][0], 16)


@pytest.mark.parametrize("said", [b'{"hello": "world"}', b"[]", b"<html>", b"null"])
def test_an_answer_of_another_server_is_an_error(cloud: Cloud, tmp_path: Path, said: bytes) -> None:
    """When the index is opened, and when it is used."""
    with closing(index_on(cloud, tmp_path)) as index, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloud, "answer", lambda *_: (200, said))
        with pytest.raises(IndexUnavailable):
            index_on(cloud, tmp_path)
        for use in (lambda: index.search(vectors(1)[1][0], 1), index.count, lambda: index.ids(0, 9)):
            with pytest.raises(IndexUnavailable):
                use()


class TestTooManyRequests:
    @pytest.mark.parametrize("status", [429, 503])
    def test_a_lookup_asks_again_within_its_second(self, cloud: Cloud, tmp_path: Path, status: int) -> None:
        """Also when it opens the index, and when the server says for how long to wait."""
        cloud.status, cloud.busy = status, 1
        ids, rows = vectors(1)
        with closing(index_on(cloud, tmp_path)) as index:
            index.upsert(ids, rows)
            for cloud.busy, cloud.retry_after in ((2, None), (1, "0.3"), (1, "no number")):
                started = time.monotonic()
                with deadline():
                    assert index.search(rows[0], 1) == ids
                assert time.monotonic() - started < 1.0

    def test_a_lookup_does_not_wait_longer(self, cloud: Cloud, tmp_path: Path) -> None:
        """It is a miss; what the server does not want to be asked for a while is not asked."""
        cloud.retry_after = 2
        with open_cache(tmp_path / "c", chroma=cloud.url, chroma_headers={"X-Chroma-Token": KEY}) as cache:
            store(cache, 1)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert cache.flush()
            cloud.busy = 1
            refused = time.monotonic()
            assert by_meaning(cache, 1) == "no_index"
            asked = len(cloud.asked)
            assert {by_meaning(cache, 1) for _ in range(50)} == {"no_index"}
            assert time.monotonic() - refused < 1.0
            assert len(cloud.asked) == asked
            assert cache.stats().index == "open"
            store(cache, 2)
            assert cache.flush()  # waits: nobody waits for it
            assert time.monotonic() - refused > 2.0
            assert by_meaning(cache, 2) == f"semantic: {answer(2)}"

    def test_a_server_that_stays_unavailable_is_left_alone(self, cloud: Cloud, tmp_path: Path) -> None:
        """As one that is down, of which it is a word for a proxy; and it is found again."""
        with open_cache(tmp_path / "c", chroma=cloud.url, chroma_headers={"X-Chroma-Token": KEY}) as cache:
            store(cache, 1)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            cloud.busy, cloud.status = 1_000_000, 503
            assert by_meaning(cache, 1) == "no_index"
            assert "503" in cache.stats().index
            assert timed(lambda: by_meaning(cache, 1)) < 0.2
            cloud.busy = 0
            assert eventually(lambda: by_meaning(cache, 1) == f"semantic: {answer(1)}")

    def test_whoever_gets_no_turn_in_time_misses(self, cloud: Cloud, tmp_path: Path) -> None:
        """The ten that are under way are not disturbed."""
        _, rows = vectors(1)
        with closing(index_on(cloud, tmp_path)) as index:
            go = threading.Event()
            cloud.wait = go.wait
            with ThreadPoolExecutor(10) as pool:
                under_way = [pool.submit(index.count) for _ in range(10)]
                assert eventually(lambda: cloud.most == 10, every=0.01)
                with pytest.raises(IndexBusy, match="10 requests"), deadline(0.2):
                    index.search(rows[0], 1)
                go.set()
                assert [one.result() for one in under_way] == [0] * 10

    @pytest.mark.parametrize("failures", [2, 3])
    def test_a_search_that_fails_in_the_server_is_repeated(
        self, cloud: Cloud, tmp_path: Path, failures: int
    ) -> None:
        """Two more times: it may fail while the first vectors are written. Then it is unavailable."""
        ids, rows = vectors(1)
        with closing(index_on(cloud, tmp_path)) as index:
            index.upsert(ids, rows)
            cloud.busy, cloud.status = failures, 500
            if failures > 2:
                with pytest.raises(IndexUnavailable, match="500"):
                    index.search(rows[0], 1)
            else:
                assert index.search(rows[0], 1) == ids


class TestTenants:
    def make(self, server: ChromaServer, path: str, name: str) -> None:
        body = json.dumps({"name": name}).encode()
        made = urllib.request.Request(
            f"{server.url}/api/v2/{path}", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(made, timeout=5).close()

    def test_of_a_server_of_ones_own(self, tmp_path: Path, server: ChromaServer) -> None:
        """A cache in a database of a tenant; what is stored there is nowhere else."""
        self.make(server, "tenants", "ten & ant")
        self.make(server, "tenants/ten%20%26%20ant/databases", "base")
        where = {"chroma": server.url, "chroma_tenant": "ten & ant", "chroma_database": "base"}
        with open_cache(tmp_path / "c", **where) as cache:
            store(cache, 1)
            assert by_meaning(cache, 1) == f"semantic: {answer(1)}"
            assert cache.flush()
            here = open_server(server.url, cache._runtime.vectors._index.name)
            there = open_server(server.url, here.name, None, "ten & ant", "base")
            assert (here.count(), there.count()) == (0, 1)
            for index in (here, there):
                index.close()
        where["chroma_database"] = "none"
        with open_cache(tmp_path / "c", **where) as cache:
            assert by_meaning(cache, 1) == "no_index"
            told = cache.stats().index
        assert "database none of tenant ten & ant (chroma_database, chroma_tenant): 404" in told

    def test_a_key_of_several_databases(self, tmp_path: Path, cloud: Cloud) -> None:
        """One is to be named."""
        Gate.answer(cloud, "POST", f"/api/v2/tenants/{cloud.tenant}/databases", b'{"name": "another"}')
        cloud.databases = (*Cloud.databases, "another")
        with pytest.raises(IndexUnavailable, match=r"several databases \(another, database-of-the-key\)"):
            index_on(cloud, tmp_path)
        with closing(open_server(cloud.url, "name", {"x-chroma-token": KEY}, None, "another")) as index:
            assert index.place == "database another of tenant tenant-of-the-key"


class TestVariables:
    @pytest.mark.parametrize(
        ("chroma", "sent"),
        [
            ("https://api.trychroma.com", True),
            ("https://eu.trychroma.com/", True),
            ("http://api.trychroma.com", False),
            ("https://nottrychroma.com", False),
            ("http://localhost:8000", False),
        ],
    )
    def test_those_of_chroma_are_for_chroma_cloud(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chroma: str, sent: bool
    ) -> None:
        """The key goes to no other server, nor in clear; what is given wins."""
        from ibidem.settings import read_settings

        for name, value in {"API_KEY": KEY, "TENANT": "t1", "DATABASE": "d1"}.items():
            monkeypatch.setenv(f"CHROMA_{name}", value)
        read = read_settings(path=tmp_path, chroma=chroma)
        assert (KEY in read.headers.values(), read.tenant_and_database == ("t1", "d1")) == (sent, sent)
        given = {"chroma_headers": {"X-Chroma-Token": "k2"}, "chroma_tenant": "t2", "chroma_database": "d2"}
        read = read_settings(path=tmp_path, chroma=chroma, **given)
        assert (read.headers, read.tenant_and_database) == ({"X-Chroma-Token": "k2"}, ("t2", "d2"))

    def test_a_key_that_cannot_be_sent_is_not_quoted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """It is refused when the cache is opened."""
        monkeypatch.setenv("CHROMA_API_KEY", f"{KEY}\nü")
        with pytest.raises(ibidem.ConfigurationError, match="CHROMA_API_KEY must be printable") as caught:
            open_cache(tmp_path, chroma="https://api.trychroma.com")
        assert KEY not in str(caught.value)
