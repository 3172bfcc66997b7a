"""Servers with workers: started, asked, looked at in /proc, killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from tests.helpers import ROOT, eventually
from tests.servers import free_port

APP = "tests.benchmarks.workers.app"
SERVERS = {  # the options for workers and port follow
    "gunicorn": ["gunicorn", f"{APP}:wsgi"],
    "gunicorn --preload": ["gunicorn", "--preload", f"{APP}:wsgi"],
    "uvicorn": ["uvicorn", "--log-level", "warning", f"{APP}:asgi"],
}
START_SECONDS = 60.0


class Server:
    """A server on a directory with answers.

    Args:
        kind: One of `SERVERS`.
        workers: How many.
        cache: The directory of the cache.
        vectors: A file of vectors, for the program without a cache.
    """

    def __init__(self, kind: str, workers: int, cache: Path, vectors: Path | None = None) -> None:
        self.kind, self.workers, self.port = kind, workers, free_port()
        program, *options = SERVERS[kind]
        at = (
            ["--bind", f"127.0.0.1:{self.port}", "--log-level", "warning"]
            if program == "gunicorn"
            else ["--port", str(self.port)]
        )
        self._command = [sys.executable, "-m", program, *options, "--workers", str(workers), *at]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "IBIDEM_PATH": str(cache),
            **({} if vectors is None else {"VECTORS": str(vectors)}),
        }

    def __enter__(self) -> Server:
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, stdout=self._said, stderr=self._said
        )
        if not eventually(lambda: len(self.met()) >= self.workers, START_SECONDS):
            self.__exit__(None, None, None)
            raise RuntimeError(f"{self._command} did not start: {self.said()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def said(self) -> str:
        """The end of what it wrote."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")[-3000:]

    def pids(self) -> list[int]:
        """The workers."""
        found = _children(self._process.pid)
        if self.kind == "uvicorn":  # beside them Python's resource tracker
            found = [pid for pid in found if "resource_tracker" not in _command_of(pid)]
        return found or [self._process.pid]

    def met(self) -> set[int]:
        """Ask so often that each worker should have answered; return which did."""
        try:
            return {ask(self.port, "met")["pid"] for _ in range(8 * self.workers)}
        except OSError:
            return set()

    def memory(self) -> float:
        """Of all its processes, in MB; what they have in common counts once."""
        return sum(map(memory_of, {self._process.pid, *_children(self._process.pid)}))

    def memory_each(self) -> float:
        """Of a worker on average, in MB, with its share of what it has in common with others."""
        return sum(map(memory_of, self.pids())) / len(self.pids())

    def cpu_seconds(self) -> float:
        """Processor time of all workers so far."""
        return sum(_cpu_seconds(pid) for pid in self.pids())

    def kill(self, pid: int) -> None:
        """SIGKILL; the server starts another one."""
        os.kill(pid, signal.SIGKILL)


def ask(port: int, question: str, answer: str | None = None) -> dict[str, Any]:
    """Look a question up, or store its answer, over a connection of its own; raises `OSError`."""
    path = (
        f"/lookup?q={quote(question)}" if answer is None else f"/store?q={quote(question)}&a={quote(answer)}"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0] or not body:
        raise ConnectionError(f"no whole answer: {head[:80]!r}")
    if b"chunked" in head.lower():
        body = body.split(b"\r\n")[1]
    found: dict[str, Any] = json.loads(body)
    return found


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def memory_of(pid: int) -> float:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("Pss:")) * 1_024 / 1e6


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Call:
    """A request: its number, when it was due, in how many seconds it was answered, and what the app said.

    `failed` says why the app said nothing.
    """

    number: int
    due: float
    took: float
    said: dict[str, Any]
    failed: str = ""


class Clients:
    """Threads that ask: as fast as they are answered, or when each request is due.

    Args:
        port: Of the server.
        texts: Returns question and answer (None to look it up) of the n-th request.
        threads: How many ask at once, at most.
    """

    def __init__(self, port: int, texts: Any, threads: int) -> None:
        self._port, self._texts, self._threads = port, texts, threads
        self._lock = threading.Lock()

    def run(self, due: list[float] | None, seconds: float) -> list[Call]:
        """Send requests for so long; `due` are seconds from the beginning, None as fast as possible."""
        began, calls, number = time.perf_counter(), list[Call](), -1

        def work() -> None:
            nonlocal number
            while True:
                with self._lock:
                    number += 1
                    at = number
                if due is not None and at >= len(due):
                    return
                moment = began + due[at] if due is not None else time.perf_counter()
                if due is None and moment > began + seconds:
                    return
                time.sleep(max(0.0, moment - time.perf_counter()))
                calls.append(self._call(at, moment))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 60)
        return calls

    def _call(self, at: int, moment: float) -> Call:
        text, answer = self._texts(at)
        try:
            said = ask(self._port, text, answer)
        except (OSError, ValueError) as error:
            return Call(at, moment, time.perf_counter() - moment, {}, repr(error))
        return Call(at, moment, time.perf_counter() - moment, said)
