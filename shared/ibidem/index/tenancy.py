"""Who may use the directory of an embedded index: one process, and in it every index that it opens there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import filelock

from ibidem.errors import IndexInUse, IndexUnavailable
from ibidem.index.chroma_files import Marks
from ibidem.locks import ForkSafeLock, undying

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
        undying(self, lock)  # giving it up in a forked child would give up the parent's
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
