"""The output folder of an export: manifest, and atomic replacement."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ibidem.errors import InvalidInput
from ibidem_lab.files import write_private

VERSION = 1  # of the manifest
TRAIN_FILE, TEST_FILE, DROPPED_FILE, MANIFEST_FILE, CARD_FILE = (
    "train.jsonl", "test.jsonl", "dropped.jsonl", "manifest.json", "README.md",
)  # fmt: skip
_FILES = (TRAIN_FILE, TEST_FILE, DROPPED_FILE, CARD_FILE)
_MARK = "ibidem_export"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A file of an export: its SHA-256, bytes, and lines."""

    sha256: str
    bytes: int
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`. The same log gives the same manifest.

    Args:
        settings: The options, defaults included.
        embedder: Fingerprint of the model that compared the questions.
        redaction: What replaced personal details, with versions; `none` if nothing did.
        read: Number of examples in the log, of the namespace if one was chosen.
        dropped: Number of omitted examples by reason; `dropped.jsonl` lists them.
        redacted: Number of exported examples with replacements.
        good: Number of exported examples that somebody called good; of the others nobody has said anything,
            unless bad ones were asked for.
        oldest: When the oldest exported answer was given, in seconds since the epoch.
        newest: When the newest was.
        namespaces: Number of namespaces of the exported examples.
        scopes: Number of scopes: system prompts, tools and parameters under which they were answered.
        models: Number of exported answers by model.
        clusters: Number of clusters of questions, before the split.
        largest_cluster: Number of questions in the largest cluster.
        train: Lines of `train.jsonl`.
        test: Lines of `test.jsonl`, which is not written if there are none.
        nearest: The largest cosine similarity of a test question and a training question; None without both.
        known_answers: Number of test questions whose answer, word for word, is one of the training.
        known_documents: Number of test questions over a document that one of the training is over, too.
        files: The files by name.
    """

    settings: dict[str, Any]
    embedder: str
    redaction: str
    read: int
    dropped: dict[str, int]
    redacted: int
    good: int
    oldest: float
    newest: float
    namespaces: int
    scopes: int
    models: dict[str, int]
    clusters: int
    largest_cluster: int
    train: int
    test: int
    nearest: float | None
    known_answers: int
    known_documents: int
    files: dict[str, ExportedFile]

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into the folder."""
        text = json.dumps({_MARK: VERSION, **asdict(self)}, indent=1, ensure_ascii=False)
        write_private(folder / MANIFEST_FILE, [f"{text}\n".encode()])


@contextmanager
def folder_for(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield a private scratch folder that replaces `out` on success.

    A new or empty `out` appears at once and whole. In one that holds an earlier export its files are replaced
    one by one, the manifest last: without a manifest it is not whole. Other files stay.

    Raises:
        InvalidInput: `out` is a file, or holds files but no export, and `force` is not given.
        OSError: It cannot be written.
    """
    _require_ours(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield scratch
        if out.exists() and any(out.iterdir()):
            _replace(scratch, out)
        else:
            if out.exists():
                out.rmdir()
            scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_ours(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"{out} is a file; give a directory")
    if out.exists() and any(out.iterdir()) and not force and not _is_export(out):
        raise InvalidInput(
            f"{out} holds files that no export wrote; give another directory, or force (--force) to write "
            "among them"
        )


def _is_export(folder: Path) -> bool:
    try:
        held = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and _MARK in held


def _replace(scratch: Path, out: Path) -> None:
    is_export = _is_export(out)
    (out / MANIFEST_FILE).unlink(missing_ok=True)
    for name in (*_FILES, MANIFEST_FILE):
        if (scratch / name).exists():
            os.replace(scratch / name, out / name)
        elif is_export:  # a stranger's test file is not deleted
            (out / name).unlink(missing_ok=True)
