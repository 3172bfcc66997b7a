"""Real servers for tests, on loopback and free ports."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_SECONDS = 30.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_chroma(directory: Path, port: int | None = None) -> Iterator[str]:
    """A `chroma run` on `directory`; yields its URL."""
    port = port or free_port()
    command = [str(Path(sys.executable).with_name("chroma")), "run", "--host", "127.0.0.1"]
    where = ["--port", str(port), "--path", str(directory)]
    server = subprocess.Popen([*command, *where], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: urllib.request.urlopen(f"{url}/api/v2/heartbeat", timeout=1).close())
        yield url
    finally:
        server.kill()
        server.wait(timeout=10)


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """A PostgreSQL of its own; yields its SQLAlchemy URL. Skips where none is installed."""
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    user, port = _unprivileged(), free_port()
    with tempfile.TemporaryDirectory() as data:  # not below pytest's own, which another user cannot enter
        if user is not None:
            shutil.chown(data, user)
        made = [initdb, "-D", data, "-U", "ibidem", "-A", "trust", "--no-sync"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, user=user, cwd="/")
        options = ["-p", str(port), "-k", data, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        command = [postgres, "-D", data, *options]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL, user=user, cwd="/")
        try:
            _wait(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close())
            yield f"postgresql+psycopg://ibidem@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(timeout=20)


def _program(name: str) -> str | None:
    """A PostgreSQL program on the PATH, or where Debian puts it."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: the user to run it as, or None for the one we are."""
    return None if getpass.getuser() != "root" and os.getuid() else "nobody"


def _wait(ready: Callable[[], None]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return ready()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
