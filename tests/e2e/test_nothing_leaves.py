"""Nothing leaves the machine: no name is looked up, nobody is called, no file appears but Ibidem's own.

A process of its own, without `CI` (which silences onnxruntime by itself), with an empty home, stores and
looks up by meaning with the real model and a real Chroma. Native code is not seen by Python's audit hooks: so
the process has a network of its own, of the Linux kernel, without any route; the kernel counts what cannot be
sent (by IPv4, to which every name lookup comes that goes to a name server).
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from importlib import metadata
from pathlib import Path

import certifi
import pytest

import ibidem
from ibidem.cli.doctor import examine
from ibidem.embedding import onnx_model as onnx_session
from ibidem.embedding.model_files import MODEL_FILE, shipped_folder
from ibidem.embedding.onnx_model import VARIABLE, switch_telemetry_off
from ibidem.settings import read_settings
from tests.embedders import BagOfWords
from tests.helpers import eventually

SEEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind")

AUDITED = f"""
import json, sys
seen = []
# urllib3 tries whether there is IPv6, by a socket of its own that nobody can reach
harmless = lambda event, given: event == "socket.bind" and given[1][:2] == ("::1", 0)
def saw(event, given):
    if event in {SEEN!r} and not harmless(event, given):
        seen.append(f"{{event}} {{given}}")
sys.addaudithook(saw)
"""
USED = """
from ibidem.index import search as vectors
vectors.EXACT_LIMIT = 0  # as in a large cache: Chroma is opened
import ibidem
with ibidem.open("answers") as cache:
    assert cache.store(ibidem.Request("How long can I return goods?"), ibidem.Answer("30 days."))
    cache.flush()
    found = cache.lookup(ibidem.Request("How long can I return the goods?"))
    assert found and found.tier == "semantic", found
    assert cache.stats().faults == {}, cache.stats().faults
assert {"onnxruntime", "chromadb"} <= set(sys.modules)
print(json.dumps(seen))
"""
WAIT = "import time; time.sleep(12)"  # 4 to 9 s after it loaded a model onnxruntime looks up its host


@functools.cache
def apart() -> tuple[str, ...]:
    """A command that runs another in a network of its own; empty if this system has none for us."""
    mine = f"{os.getuid()}:{os.getgid()}" if hasattr(os, "getuid") else ""
    user, _, group = mine.partition(":")
    ways = (
        ("unshare", "--net"),
        ("unshare", "--map-root-user", "--net"),
        ("sudo", "-n", "unshare", "--net", "--setuid", user, "--setgid", group),
    )
    for way in ways:
        if shutil.which(way[0]) and subprocess.run([*way, "true"], capture_output=True).returncode == 0:
            return way
    return ()


COUNTED = """
"$@"; code=$?
cat /proc/net/snmp
exit $code
"""


class Run:
    """A program in an empty home: what it printed, what it tried to send, which files it left behind."""

    def __init__(self, folder: Path, code: str, *, watched: bool = True, **env: str) -> None:
        self.folders = {name: folder / name for name in ("home", "here", "tmp")}
        for one in self.folders.values():
            one.mkdir(parents=True)
        home, tmp = str(self.folders["home"]), str(self.folders["tmp"])
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        environment = {
            **kept,
            **dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA", "APPDATA"), home),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), tmp),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "SSL_CERT_FILE": certifi.where(),  # without certificates onnxruntime calls nobody
            **env,
        }
        command = [sys.executable, "-B", "-c", code]
        if watched:
            given = (f"{name}={value}" for name, value in environment.items())
            command = [*apart(), "env", "-i", *given, "sh", "-c", COUNTED, "sh", *command]
        self._process = subprocess.Popen(
            command, cwd=self.folders["here"], env=None if watched else environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        self.printed = ""

    def ended(self) -> Run:
        """Waits for it."""
        self.printed, said = self._process.communicate(timeout=240)
        assert self._process.returncode == 0, said[-3000:]
        return self

    @property
    def files(self) -> set[str]:
        """Files that it left in its home, working directory and folder for temporary files."""
        found = (
            f"{name}/{path.relative_to(folder).as_posix()}"
            for name, folder in self.folders.items()
            for path in folder.rglob("*")
            if not path.is_dir()
        )
        return set(found)

    @property
    def sent(self) -> dict[str, int]:
        """What the kernel counted of attempts to send or connect."""
        counts: dict[str, int] = {}
        rows = re.findall(r"^(\w+): (.*)$", self.printed, re.MULTILINE)
        for (kind, names), (_, values) in zip(rows[::2], rows[1::2], strict=True):
            counts |= dict(
                zip((f"{kind}{name}" for name in names.split()), map(int, values.split()), strict=True)
            )
        assert {"IpOutNoRoutes", "IpOutRequests", "TcpActiveOpens", "UdpOutDatagrams"} <= set(counts)
        told = ("OutNoRoutes", "OutRequests", "ActiveOpens", "OutDatagrams")
        return {name: count for name, count in counts.items() if name.endswith(told) and count}


def foreign(files: set[str]) -> set[str]:
    """Those that `docs/security.md` does not name: not of the cache."""
    return {file for file in files if not file.startswith("here/answers/")}


needs_a_network = pytest.mark.skipif(
    not Path("/proc/net/snmp").exists() or not apart(),
    reason="native code is not watched here: that needs Linux, and unshare as root, by sudo or for everybody",
)


@pytest.mark.skipif(bool(apart()), reason="the same is watched more closely below")
def test_nothing_appears_and_python_calls_nobody(tmp_path: Path) -> None:
    """Whatever the system: no file beside ours, and nothing that Python's audit hooks see."""
    done = Run(tmp_path, AUDITED + USED, watched=False).ended()

    assert json.loads(done.printed) == []
    assert foreign(done.files) == set()


@needs_a_network
@pytest.mark.slow
def test_nothing_appears_and_nobody_is_called(tmp_path: Path) -> None:
    """Nothing of Ibidem, Chroma or onnxruntime, which by itself does it."""
    folder = shipped_folder("encoder")
    assert folder is not None
    model = folder / MODEL_FILE
    ours = Run(tmp_path / "ours", AUDITED + USED + WAIT)
    alone = Run(
        tmp_path / "alone", f"import onnxruntime\nonnxruntime.InferenceSession({str(model)!r})\n{WAIT}"
    )
    ours.ended(), alone.ended()

    assert json.loads(ours.printed.splitlines()[0]) == []
    assert ours.sent == {}
    assert foreign(ours.files) == set()
    assert "here/answers/ibidem.sqlite3" in ours.files
    assert any(file.endswith("chroma.sqlite3") for file in ours.files)
    if tuple(map(int, metadata.version("onnxruntime").split(".")[:2])) >= (1, 29):
        assert any("deviceid" in file for file in alone.files)
        assert alone.sent


@needs_a_network
@pytest.mark.parametrize(
    "code",
    [
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('10.1.1.1', 53))",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('10.1.1.1', 53))",
        "socket.create_connection(('10.1.1.1', 443))",
        "socket.create_connection(('127.0.0.1', 443))",
    ],
)
def test_the_kernel_would_have_seen_it(tmp_path: Path, code: str) -> None:
    """Attempts to send and to connect are counted: the test above can fail."""
    code = f"import socket\ntry: {code}\nexcept OSError: pass"

    assert "IpOutNoRoutes" in Run(tmp_path, code).ended().sent


@pytest.mark.parametrize(("given", "then"), [
    (None, "1"), ("", "1"), ("0", "1"), ("false", "1"), ("2", "1"), ("no", "1"),
    ("1", "1"), ("true", "true"), (" YES ", " YES "), ("on", "on"),
])  # fmt: skip
def test_what_a_user_set_is_left_if_it_says_the_same(
    monkeypatch: pytest.MonkeyPatch, given: str | None, then: str
) -> None:
    """`ORT_DISABLE_TELEMETRY=0` does not undo what is promised."""
    monkeypatch.delenv(VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    switch_telemetry_off()

    assert os.environ[VARIABLE] == then


@pytest.mark.parametrize(
    ("version", "variables", "told"),
    [
        ("1.32.0", {}, True),
        ("1.29.1", {VARIABLE: "0"}, True),
        ("2.0.0", {"CI": "0"}, True),
        ("1.28.9", {}, False),
        ("1.32.0", {VARIABLE: "on"}, False),
        ("1.32.0", {"CI": "true"}, False),
    ],
)
def test_the_doctor_says_that_it_is_too_late(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, variables: dict[str, str], told: bool
) -> None:
    """In the process that imported onnxruntime first; and for a day in all others."""
    for name in (VARIABLE, "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    late = types.ModuleType("onnxruntime")
    late.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setattr(onnx_session, "_too_late", False)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", late)
        onnx_session.switch_telemetry_off()
        with ibidem.open(tmp_path, embedder=BagOfWords()) as opened:
            opened.store(ibidem.Request("How?"), ibidem.Answer("So."))
            opened.flush()
            eventually(lambda: bool(opened._runtime.store.meta.get(onnx_session.TELEMETRY_KEY)) or not told)
        here = problems(tmp_path)
    monkeypatch.setattr(onnx_session, "_too_late", False)
    elsewhere = problems(tmp_path)

    assert ["this process imported" in one for one in here] == [True] * told
    assert ["a program that used this cache" in one for one in elsewhere] == [True] * told
    assert all(f"{VARIABLE}=1" in one for one in here + elsewhere)
    tomorrow = time.time() + 90_000
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert problems(tmp_path) == []


def problems(path: Path) -> list[str]:
    """What `ibidem doctor` says of onnxruntime."""
    settings = read_settings(path=path, embedder=BagOfWords())
    return [one.text for one in examine(settings) if one.check == "onnxruntime" and not one.ok]
