"""Processes and questions for the end-to-end tests."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ibidem import Answer, Hit, Request

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

ROOT = Path(__file__).resolve().parent.parent
THOROUGH = bool(os.environ.get("THOROUGH"))  # as `make thorough` sets it
_SYLLABLES = "ba ke di fo gu la me ni po ru sa te vi zo wu ja ce hi do lu".split()


def rounds(usual: int, thorough: int) -> int:
    """How often a test tries what fails by chance only."""
    return thorough if THOROUGH else usual


def question(n: int, words: int = 12) -> str:
    """The n-th question: made-up words (no number, negation or opposite), the same in every process."""
    draw = random.Random(n)
    return " ".join("".join(draw.choices(_SYLLABLES, k=4)) for _ in range(words))


def reworded(n: int) -> str:
    """The n-th question with one word more: cosine 0.96 as a bag of words, not an exact match."""
    return f"please {question(n)}"


def answer(n: int) -> str:
    """The right answer to the n-th question."""
    return f"answer {n} to {question(n)[:20]}"


class Child:
    """A Python process running `code` in the repository; its lines are read one by one, never for ever."""

    def __init__(self, code: str, *arguments: object, stderr: Path | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        self._stderr = stderr.open("w+b") if stderr else tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )

    def line(self, timeout: float = 60.0) -> str:
        """The next line it prints; fails the test if there is none in time or it has ended."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        assert ready, f"the child said nothing for {timeout} s"
        line = self.process.stdout.readline().decode()
        assert line, f"the child ended with {self.process.wait(10)}: {self.said()}"
        return line.rstrip("\n")

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-3000:]

    def tell(self, line: str = "") -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def ask(self, line: str, timeout: float = 60.0) -> str:
        """Send it a line and read its reply."""
        self.tell(line)
        return self.line(timeout)

    def kill(self) -> list[str]:
        """SIGKILL; returns the complete lines it had printed that were not read yet."""
        self.process.send_signal(signal.SIGKILL)
        out = self.process.stdout.read() if self.process.stdout else b""
        self.end()
        return out.decode(errors="replace").split("\n")[:-1]

    def end(self, timeout: float = 30.0) -> int:
        """Close its input and wait; kills it if it does not end in time, so that no test hangs."""
        if self.process.stdin is not None:
            with suppress(OSError):  # it may have ended
                self.process.stdin.close()
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            code = -99
        if self.process.stdout:
            self.process.stdout.close()
        self._stderr.close()
        return code

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()


def eventually(condition: Callable[[], object], timeout: float = 15.0, every: float = 0.1) -> object:
    """The first true value of `condition`, or its last value after `timeout` seconds."""
    until = time.monotonic() + timeout
    while not (value := condition()) and time.monotonic() < until:
        time.sleep(every)
    return value


class Clock:
    """The clock of an open cache, which stands still until it is told to advance."""

    def __init__(self, cache: SemanticCache) -> None:
        self.now = time.time()
        cache._runtime.clock = lambda: self.now

    def advance(self, seconds: float) -> None:
        """Go on, or back if negative."""
        self.now += seconds


def fill(cache: SemanticCache, numbers: range, namespace: str = "") -> None:
    """Store these questions; the index is open before."""
    cache.lookup(Request("opens the index"))
    for n in numbers:
        assert cache.store(Request(question(n), namespace=namespace), Answer(answer(n)))
    assert cache.flush()


def finds(cache: SemanticCache, n: int, namespace: str = "") -> bool:
    """Whether the question, worded otherwise, gets its answer."""
    found = cache.lookup(Request(reworded(n), namespace=namespace))
    return isinstance(found, Hit) and found.answer.text == answer(n)


def wait_until(condition: Callable[[], object]) -> None:
    """Until something is so that another thread does."""
    assert eventually(condition, 10, 0.002)


async def await_until(condition: Callable[[], object]) -> None:
    """The same in a task."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        await asyncio.sleep(0.002)
