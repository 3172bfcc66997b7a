"""Private files: readable by their owner only, from the moment they exist, whatever the umask says."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import filelock

from ibidem.errors import InvalidInput

OWNER_ONLY = 0o600  # of files; directories are made with 0o700
_LOCK_SECONDS = 2.0  # a process that only looks into a file holds it for less


def private_opener(path: str, flags: int) -> int:
    """Open for `open(..., opener=private_opener)`: new files are private, existing ones become so."""
    handle = os.open(path, flags, OWNER_ONLY)
    if os.name == "posix" and stat.S_ISREG(os.fstat(handle).st_mode):
        with suppress(OSError):  # somebody else's, to which we may write
            os.fchmod(handle, OWNER_ONLY)
    return handle


def write_private(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically: readers of the old one do not see the new one. Raises `OSError`.

    Other than regular files (a terminal, a pipe, a link) are written to in place.
    """
    if not _is_replaceable(path):
        with open(path, "wb", opener=private_opener) as file:
            file.writelines(parts)
        return
    handle, beside = tempfile.mkstemp(prefix=".ibidem-", dir=path.parent)  # with OWNER_ONLY
    try:
        with open(handle, "wb") as file:
            file.writelines(parts)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def append_private(path: Path) -> IO[bytes]:
    """Open a file for appending; one that others could read is copied first. Raises `OSError`."""
    if os.name == "posix" and path.exists() and _is_replaceable(path) and path.stat().st_mode & 0o077:
        write_private(path, [path.read_bytes()])
    return open(path, "ab", buffering=0, opener=private_opener)


def _is_replaceable(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Lock a file against other runs, until the block ends or the process is killed.

    Raises:
        InvalidInput: Another run has locked it; the message says which.
        OSError: It cannot be locked.
    """
    path = path.resolve()
    if not _is_replaceable(path):
        yield
        return
    path.parent.stat()  # filelock would make the directory
    mark = path.with_name(f".{path.name}.held")
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS, mode=OWNER_ONLY)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InvalidInput(
            f"{path} is being written by another run{_holder(mark)}: wait for it, or give another file"
        ) from None
    try:
        write_private(mark, [str(os.getpid()).encode()])
        yield
    finally:
        with suppress(OSError):
            mark.unlink()
        lock.release()


def _holder(mark: Path) -> str:
    with suppress(OSError, ValueError):
        return f" (process {int(mark.read_bytes())})"
    return ""
