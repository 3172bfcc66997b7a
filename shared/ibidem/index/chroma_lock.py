"""Who may use the directory of an embedded index: one process, and in it every index that it opens there."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock

from ibidem._util.concurrency import ForkSafeLock, keep_alive_after_fork
from ibidem.errors import IndexInUse, IndexUnavailable

_taken: dict[Path, Tenancy] = {}
_taking = ForkSafeLock()


class Tenancy:
    """The hold of a process on a directory: shared by its indexes, given up with the last. Made by `take`."""

    def __init__(self, directory: Path, lock: filelock.BaseFileLock) -> None:
        self._directory, self._lock = directory, lock
        self.marks = Marks(directory)
        self.opening = threading.RLock()  # held while Chroma is opened there
        self.unclean = self.marks.in_use.exists()  # what that means is for Chroma's opening to find out
        self.users = self.clients = 0  # indexes, and those of them that are Chroma's
        keep_alive_after_fork(self, lock)  # giving it up in a forked child would give up the parent's
        self.marks.claim()

    def release(self, *, sound: bool) -> None:
        """One index less; if it is not `sound`, the next opening looks for damage first."""
        with _taking:
            self.users -= 1
            self.unclean = self.unclean or not sound
            if self.users > 0:
                return
            if not self.unclean:
                self.marks.disclaim()
            _taken.pop(self._directory, None)
            self._lock.release()


def take(directory: Path) -> Tenancy:
    """Own the directory, for one index more.

    Raises:
        IndexInUse: Another process owns it.
        IndexUnavailable: It cannot be locked.
    """
    with _taking:
        if (held := _taken.get(directory)) is None:
            held = _taken[directory] = Tenancy(directory, _locked(directory))
        held.users += 1
        return held


def _locked(directory: Path) -> filelock.BaseFileLock:
    # not one hold for each thread: the thread that gives it up need not be the one that took it
    lock = filelock.FileLock(directory.with_name("index.lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise IndexInUse(
            f"another process is using the vector index in {directory}; this one repeats answers to "
            f"identical questions only. To share it, run `chroma run --path {directory}` and pass "
            "chroma='http://HOST:PORT' to every process"
        ) from None
    except OSError as error:
        raise IndexUnavailable(f"cannot lock the vector index in {directory}: {error}") from error
    return lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_taken.clear)  # they are the parent's


PROBE_SECONDS = 60.0


class Marks:
    """Files beside the index directory that outlive a killed process."""

    def __init__(self, directory: Path) -> None:
        self.in_use = directory.with_name("index.in-use")
        self.writing = directory.with_name("index.writing")
        self._lock = ForkSafeLock()

    def claim(self) -> None:
        """Note which process has it open, as far as that can be noted."""
        if self.in_use.is_file() or not self.in_use.exists():  # a pipe would be written to for ever
            with contextlib.suppress(OSError):
                self.in_use.write_text(str(os.getpid()), "utf-8")

    def disclaim(self) -> None:
        """The process closed it in good order."""
        with contextlib.suppress(OSError):
            self.in_use.unlink(missing_ok=True)

    @contextlib.contextmanager
    def while_writing(self) -> Iterator[None]:
        """Left in place by a failure too: then the files are as doubtful. One at a time."""
        with self._lock:
            self.writing.touch()
            yield
            self.writing.unlink(missing_ok=True)


_PROBE = """
import sys, chromadb
client = chromadb.PersistentClient(path=sys.argv[1], settings=chromadb.Settings(anonymized_telemetry=False))
for collection in client.list_collections():
    if collection.name == sys.argv[2] and collection.count():
        some = collection.get(limit=1, include=["embeddings"])
        collection.query(query_embeddings=some["embeddings"], n_results=1)
"""


def loads(directory: Path, name: str) -> bool:
    """Whether a fresh process can count and search the collection."""
    command = [sys.executable, "-c", _PROBE, str(directory), name]
    try:
        return subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS).returncode == 0  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False


def sweep(directory: Path) -> None:
    """Delete the folders of deleted collections, which Chroma leaves behind.

    Whatever cannot be told or deleted stays for the next time.
    """
    database = directory / "chroma.sqlite3"
    if not database.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1.0)) as db:
            used = {str(row[0]) for row in db.execute("SELECT id FROM segments")}
    except sqlite3.Error:
        return
    for folder in directory.iterdir():
        if folder.is_dir() and _is_uuid(folder.name) and folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False
