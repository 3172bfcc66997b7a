"""The files of an embedded index from outside: marks, a trial in another process, what is left over."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from ibidem.locks import ForkSafeLock

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
