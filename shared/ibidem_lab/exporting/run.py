"""An export from beginning to end: read, redact, compare, split, write."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ibidem._util.files import private_opener
from ibidem.errors import InvalidInput
from ibidem.matching.guards import failed_guard
from ibidem.matching.text import parse_question
from ibidem.types import to_bytes
from ibidem_lab.exporting.choice import Choice
from ibidem_lab.exporting.clusters import BORDER, TEST, TRAIN, Ties, across, clusters_of, duplicates, split
from ibidem_lab.exporting.folder import (
    DROPPED_FILE,
    TEST_FILE,
    TRAIN_FILE,
    ExportedFile,
    Manifest,
    folder_for,
)
from ibidem_lab.exporting.rows import Dropped, Reader, Redact, Row, Texts
from ibidem_lab.exporting.vectors import FileVectors

if TYPE_CHECKING:
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.storage.examples import ExampleTable

BATCH = 256  # questions embedded at a time
LINES_FILE = ".lines"

# What is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], object]


class Export:
    """One export.

    Args:
        examples: The log.
        embedder: By whose vectors questions are compared.
        choice: What is exported, and how.
        redact: What replaces secrets; returns "" where it fails.
        texts: The texts of documents, if prompts are to be rebuilt.
        progress: Called now and then.
    """

    def __init__(
        self,
        examples: ExampleTable,
        embedder: CheckedEmbedder,
        choice: Choice,
        redact: Redact,
        texts: Texts | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self._examples, self._embedder, self._choice = examples, embedder, choice
        self._redact, self._texts, self._progress = redact, texts, progress
        self._dropped = Dropped()
        self._read = 0

    def run(self, out: Path, *, force: bool = False) -> Manifest:
        """Write the folder `out`.

        Raises:
            InvalidInput: Nothing is left to export, or `out` is not free.
            StorageError: The database failed.
            EmbedderUnavailable: No embedding model was found.
            OSError: `out` cannot be written.
        """
        with folder_for(out, force=force) as folder:
            with (folder / LINES_FILE).open("w+b") as lines, tempfile.TemporaryFile(dir=folder) as held:
                rows, count = self._rows(lines, held)
                rows, vectors = self._without_repetitions(rows, self._vectors(rows, held, count))
                ties = Ties(vectors, _numbers(rows), self._choice.apart)
                labels = clusters_of(ties, lambda done: self._progress("cluster", done, len(rows)))
                sides = split(ties, labels, self._choice.test_share, self._choice.seed)
                files = self._write(folder, lines, rows, sides)
            (folder / LINES_FILE).unlink()
            manifest = self._manifest(rows, ties, labels, sides, files)
            manifest.write(folder)
        return manifest

    def _rows(self, lines: BinaryIO, vectors: BinaryIO) -> tuple[list[Row], int]:
        """The rows, and how many vectors are in their file."""
        reader = Reader(self._choice, self._redact, self._texts, lines, vectors, self._dropped)
        given = self._examples.each(self._choice.namespace, self._embedder.fingerprint)
        rows = reader.rows(given)
        self._read = reader.read
        if not rows:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._dropped.counts().items())
            raise InvalidInput(
                f"nothing to export: of {self._read:,} examples all were left out ({reasons}); choose others"
                if reasons
                else "nothing to export: the log holds no examples; they are kept as questions are answered"
            )
        return rows, reader.vectors

    def _vectors(self, rows: list[Row], held: BinaryIO, count: int) -> FileVectors:
        """Of unit length; rounded as the log keeps them, whether or not it has them already."""
        places = np.array([row.vector for row in rows], np.int64)
        missing = np.flatnonzero(places < 0).tolist()
        for start in range(0, len(missing), BATCH):
            some = missing[start : start + BATCH]
            made = self._embedder.embed([rows[at].question for at in some])
            for at, vector in zip(some, made, strict=True):
                held.write(to_bytes(vector))
                places[at] = count
                count += 1
            self._progress("embed", start + len(some), len(missing))
        return FileVectors(held, held.tell() // (2 * count), places)

    def _without_repetitions(self, rows: list[Row], vectors: FileVectors) -> tuple[list[Row], FileVectors]:
        """Of the same question worded twice the preferred; no guard of the cache keeps the two apart."""
        if self._choice.near >= 1.0:
            return rows, vectors
        order = sorted(range(len(rows)), key=lambda at: rows[at].preference, reverse=True)
        comparable = np.array([self._embedder.refusal(rows[at].question) is None for at in order])

        def same(one: int, other: int) -> bool:
            asked, stored = rows[order[one]].question, rows[order[other]].question
            is_negated = (
                parse_question(asked).negations != parse_question(stored).negations
            )  # embeddings hardly see it
            return not is_negated and failed_guard(asked, stored) is None

        repeats = duplicates(
            vectors.of(np.array(order)),
            self._choice.near,
            comparable,
            same,
            lambda done: self._progress("compare", done, len(rows)),
        )
        gone = {order[at]: order[kept] for at, kept in enumerate(repeats.tolist()) if kept >= 0}
        for at, kept in sorted(gone.items()):
            self._dropped.add(rows[at].id, "near_duplicate", rows[kept].id)
        left = [at for at in range(len(rows)) if at not in gone]
        return [rows[at] for at in left], vectors.of(np.array(left, np.int64))

    def _write(
        self, folder: Path, lines: BinaryIO, rows: list[Row], sides: NDArray[np.int8]
    ) -> dict[str, ExportedFile]:
        for at in np.flatnonzero(sides == BORDER):
            self._dropped.add(rows[at].id, "between")
        files = {}
        for name, side in ((TRAIN_FILE, TRAIN), (TEST_FILE, TEST)):
            chosen = [rows[at] for at in np.flatnonzero(sides == side)]
            if chosen:
                files[name] = _write(folder / name, _lines_of(lines, chosen))
        if self._dropped.rows:
            files[DROPPED_FILE] = _write(folder / DROPPED_FILE, self._dropped.lines())
        return files

    def _manifest(
        self,
        rows: list[Row],
        ties: Ties,
        labels: NDArray[np.int64],
        sides: NDArray[np.int8],
        files: dict[str, ExportedFile],
    ) -> Manifest:
        written = [row for row, side in zip(rows, sides.tolist(), strict=True) if side != BORDER]
        nearest, leaks = across(ties, sides)
        if leaks:  # would be an error in the split: nobody must measure with such a test
            raise AssertionError(f"{leaks} pairs of train and test belong together")
        namespaces, scopes, models = zip(*(row.origin for row in written), strict=True)
        return Manifest(
            settings={name: self._named(value) for name, value in asdict(self._choice).items()},
            embedder=self._embedder.fingerprint,
            read=self._read,
            dropped=self._dropped.counts(),
            redacted=sum(row.redacted for row in written),
            namespaces=len(set(namespaces)),
            scopes=len(set(scopes)),
            models=dict(sorted(Counter(map(self._named, models)).items())),
            clusters=int(labels.max()) + 1,
            largest_cluster=int(np.bincount(labels).max()),
            train=int((sides == TRAIN).sum()),
            test=int((sides == TEST).sum()),
            nearest=None if nearest is None else round(nearest, 4),
            files=files,
        )

    def _named(self, value: Any) -> Any:
        """A setting as the manifest shows it: the name of a namespace may be an e-mail address."""
        if isinstance(value, tuple):
            return list(map(self._named, value))
        return self._redact(value) if isinstance(value, str) and value else value


def _numbers(rows: list[Row]) -> NDArray[np.int64]:
    """The same number for the same answer; -1 for one that says nothing of its question."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(row.said[1], len(known)) if row.tells else -1 for row in rows])


def _lines_of(lines: BinaryIO, rows: Iterable[Row]) -> Iterator[bytes]:
    for row in rows:
        lines.seek(row.start)
        yield lines.read(row.size)


def _write(file: Path, lines: Iterable[bytes]) -> ExportedFile:
    hashed, size, records = sha256(), 0, 0
    with open(file, "wb", opener=private_opener) as opened:
        for written in lines:
            opened.write(written)
            hashed.update(written)
            size, records = size + len(written), records + 1
    return ExportedFile(sha256=hashed.hexdigest(), bytes=size, records=records)
