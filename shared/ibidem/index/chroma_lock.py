"""The lock on the directory of an embedded index, and the files that outlive a killed process."""

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

_held: dict[Path, DirectoryLock] = {}
_acquiring = ForkSafeLock()


class DirectoryLock:
    """The lock of this process on the directory of an embedded index, counted by the indexes opened there."""

    def __init__(self, directory: Path, lock: filelock.BaseFileLock) -> None:
        self._directory, self._lock = directory, lock
        self.markers = DirtyMarkers(directory)
        self.opening = threading.RLock()  # held while Chroma is opened there
        self.dirty = self.markers.in_use.exists()  # what that means is for Chroma's opening to find out
        self.users = self.clients = 0  # indexes, and those of them that are Chroma's
        keep_alive_after_fork(self, lock)  # releasing it in a forked child would release the parent's
        self.markers.claim()

    @classmethod
    def acquire(cls, directory: Path) -> DirectoryLock:
        """Acquire the directory for one more index.

        Raises:
            IndexInUse: Another process owns it.
            IndexUnavailable: It cannot be locked.
        """
        with _acquiring:
            if (lock := _held.get(directory)) is None:
                lock = _held[directory] = cls(directory, _locked(directory))
            lock.users += 1
            return lock

    def release(self, *, clean: bool) -> None:
        """Release one reference. If not `clean`, the next open checks for corruption."""
        with _acquiring:
            self.users -= 1
            self.dirty = self.dirty or not clean
            if self.users > 0:
                return
            if not self.dirty:
                self.markers.disclaim()
            _held.pop(self._directory, None)
            self._lock.release()


def _locked(directory: Path) -> filelock.BaseFileLock:
    # not per thread: the thread that releases it need not be the one that acquired it
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


def delete_unused(directory: Path) -> bool:
    """Delete the index that a process has left there; returns whether there is none now."""
    if not directory.exists():
        return True
    try:
        lock = DirectoryLock.acquire(directory)
    except IndexUnavailable:
        return False
    try:
        with lock.opening:
            if not lock.clients:
                shutil.rmtree(directory, ignore_errors=True)
    finally:
        lock.release(clean=True)
    return not directory.exists()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)  # they are the parent's


PROBE_SECONDS = 60.0  # how long a fresh process may take to load the index


class DirtyMarkers:
    """Files beside the index directory that outlive a killed process."""

    def __init__(self, directory: Path) -> None:
        self.in_use = directory.with_name("index.in-use")
        self.writing = directory.with_name("index.writing")
        self._lock = ForkSafeLock()

    def claim(self) -> None:
        """Record the process that has the index open, if the file can be written."""
        if self.in_use.is_file() or not self.in_use.exists():  # a pipe would be written to for ever
            with contextlib.suppress(OSError):
                self.in_use.write_text(str(os.getpid()), "utf-8")

    def disclaim(self) -> None:
        """Record that the process closed the index cleanly."""
        with contextlib.suppress(OSError):
            self.in_use.unlink(missing_ok=True)

    @contextlib.contextmanager
    def while_writing(self) -> Iterator[None]:
        """Mark the files as being written, by one thread at a time; failures and kills leave the mark."""
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
    """Check that a fresh process can count and search the collection."""
    command = [sys.executable, "-c", _PROBE, str(directory), name]
    try:
        return subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS).returncode == 0  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False


def delete_orphaned_folders(directory: Path) -> None:
    """Delete the folders of deleted collections, which Chroma leaves behind.

    Folders that cannot be attributed or deleted stay until the next time.
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
