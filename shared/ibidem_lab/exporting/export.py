"""`ibidem_lab.export`: write the example log as training data."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ibidem.errors import InvalidInput
from ibidem.example import DocumentRef
from ibidem.examples.selection import NEAR, repeats
from ibidem.scope import effective_namespace
from ibidem.types import to_bytes
from ibidem_lab.exporting.card import write_card
from ibidem_lab.exporting.choice import (
    APART,
    TEST_SHARE,
    Choice,
    Documents,
    Feedback,
    Format,
    tuple_of,
)
from ibidem_lab.exporting.clusters import (
    BORDER,
    TEST,
    TRAIN,
    FileVectors,
    Ties,
    across,
    clusters_of,
    duplicates,
    split,
)
from ibidem_lab.exporting.folder import (
    DROPPED_FILE,
    TEST_FILE,
    TRAIN_FILE,
    ExportedFile,
    Manifest,
    folder_for,
)
from ibidem_lab.exporting.rows import Dropped, Reader, Redact, Row, Texts
from ibidem_lab.files import private_opener
from ibidem_lab.personal import description, personal_details

if TYPE_CHECKING:
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.examples.log import ExampleLog
    from ibidem.storage.examples import ExampleTable

BATCH = 256  # questions embedded at a time
LINES_FILE = ".lines"

# The stage, the units done, and all units.
Progress = Callable[[str, int, int], object]


def export(
    log: ExampleLog,
    out: str | Path,
    format: Format = "openai-chat",
    *,
    feedback: Feedback = "not-bad",
    models: Sequence[str] = (),
    namespace: str | None = None,
    since: float | None = None,
    tags: Sequence[str] = (),
    system: str = "",
    documents: Documents | None = None,
    texts: Callable[[DocumentRef], str | None] | None = None,
    redact: Callable[[str], str] | None = personal_details,
    near: float = NEAR,
    apart: float = APART,
    test_share: float = TEST_SHARE,
    seed: int = 0,
    license: str = "",
    force: bool = False,
) -> Manifest:
    """Write the log as training data: `train.jsonl` and `test.jsonl`, with a data card (`README.md`).

    `dropped.jsonl` lists what was left out, `manifest.json` has all counts, choices and hashes.

    Of examples with one question, up to case and blanks, one is kept: a good one before an unknown one, then
    the newest. Left out are refusals, answers that say that there is none, error messages and texts that are
    cut off (`ibidem.examples.flaws`), unless somebody called them good; and an answer that somebody called
    bad, wherever it was given to such a question. No question of the test belongs to one of the training:
    neither a pair of cosine similarity `apart` or more, nor one of 0.6 with the same answer. The same log
    gives the same bytes.

    Args:
        out: The directory: a new one, an empty one, or one that holds an export, which is replaced.
        format: `openai-chat`, `prompt-completion`, `alpaca` or `sharegpt`.
        feedback: `good` for what somebody called good, `not-bad` for all but what was called bad, or
            `any`.
        models: Only what these models answered; all if empty.
        namespace: Only this one; not given, that of `ibidem.scope`, or all: a model that learns from several
            namespaces may tell one what it learned from another.
        since: Only answers given at this time or later, in seconds since the epoch.
        tags: Only examples with all these tags.
        system: A system prompt that stands first in each example. The log does not hold that of the program.
        documents: `skip` leaves out what was answered from documents: a model that learns such answers
            without their documents learns to make up facts. `keep` and `only` export it. Default: `skip`,
            and `keep` if there are `texts`.
        texts: Returns the text of a document as the model saw it, or None. Then the prompt is rebuilt: the
            documents, a blank line, the question. An example is left out if a text is missing or is no
            longer the one that the model saw.
        redact: Applied to questions, answers and documents, after the cache's own. None to apply that alone.
            The default replaces keys, passwords and personal details; names by Presidio too, if that and a
            spaCy model for English are installed.
        near: Cosine similarity from which a question is a repetition of another, unless a guard of the
            cache (numbers, dates, ...) or a negation keeps them apart; 1 to keep all.
        apart: Cosine similarity below which questions may stand on both sides of the split.
        test_share: Share of the questions for the test.
        seed: Of the split.
        license: The identifier of the licence for the data card, such as `cc-by-4.0`.
        force: Write into a directory that holds other files too. They stay, but for those of the same names.

    Raises:
        InvalidInput: A choice is wrong, nothing is left to export, or `out` is not free.
        StorageError: The database failed.
        EmbedderUnavailable: The embedding model does not work.
        OSError: `out` cannot be written.
        CacheClosed: The cache was closed.
    """
    namespace = effective_namespace(namespace)
    choice = Choice(
        format=format, feedback=feedback, models=tuple_of(models), namespace=namespace, since=since,
        tags=tuple_of(tags), system=system, documents=documents, near=near, apart=apart,
        test_share=test_share, seed=seed, license=license,
    )  # fmt: skip
    for name, given in (("redact", redact), ("texts", texts)):
        if given is not None and not callable(given):
            raise InvalidInput(f"{name} must be a function, not {type(given).__name__}")
    log.prepare_read(namespace)
    shared, last = log._shared, redact or str
    both = partial(_both, log._redacted, last)
    found = Export(shared.table, shared.embedder, choice, both, texts, redaction=redaction_of(redact))
    return found.run(Path(os.fspath(out)), force=force)


def redaction_of(redact: Callable[[str], str] | None) -> str:
    """Return what the data card says of a redaction."""
    if redact is None:
        return "none"
    if redact is personal_details:
        return description()
    named = redact if hasattr(redact, "__qualname__") else type(redact)
    return f"`{named.__module__}.{named.__qualname__}`"


def _both(first: Callable[[str], str], then: Callable[[str], str], text: str) -> str:
    shown = then(first(text))
    if not isinstance(shown, str):
        raise InvalidInput(f"redact must return a str, not {type(shown).__name__}")
    return shown


class Export:
    """Run one export: read, redact, deduplicate, cluster, split, write.

    Args:
        examples: The example log.
        embedder: The embedder that compares questions.
        choice: The options.
        redact: Replaces secrets; returns "" where it fails.
        texts: The texts of documents, if prompts are to be rebuilt.
        redaction: What the data card says of `redact`.
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
        *,
        redaction: str = "none",
    ) -> None:
        self._examples, self._embedder, self._choice = examples, embedder, choice
        self._redaction = redaction
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
                rows, bad, count = self._rows(lines, held)
                vectors = self._vectors([*bad, *rows], held, count)
                rows, vectors = self._without_repetitions(bad, rows, vectors)
                self._require_any(rows)
                ties = Ties(vectors, _numbers(rows), self._choice.apart)
                labels = clusters_of(ties, lambda done: self._progress("cluster", done, len(rows)))
                sides = split(ties, labels, self._choice.test_share, self._choice.seed)
                files = self._write(folder, lines, rows, sides)
            (folder / LINES_FILE).unlink()
            manifest = self._manifest(rows, ties, labels, sides, files)
            write_card(folder, manifest)
            manifest.write(folder)
        return manifest

    def _rows(self, lines: BinaryIO, vectors: BinaryIO) -> tuple[list[Row], list[Row], int]:
        """Return the rows, those called bad, and the number of vectors in their file."""
        reader = Reader(self._choice, self._redact, self._texts, lines, vectors, self._dropped)
        rows = reader.rows(self._examples.each(self._choice.namespace, self._embedder.fingerprint))
        self._read = reader.read
        self._require_any(rows)
        return rows, reader.bad, reader.vectors

    def _require_any(self, rows: list[Row]) -> None:
        if rows:
            return
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._dropped.counts().items())
        raise InvalidInput(
            f"nothing to export: all examples were left out ({reasons}); change the options"
            if reasons
            else "nothing to export: the example log is empty; it fills as questions are answered"
        )

    def _vectors(self, rows: list[Row], held: BinaryIO, count: int) -> FileVectors:
        """Return the unit vectors, embedding the missing ones; all are rounded as in the log."""
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

    def _without_repetitions(
        self, bad: list[Row], rows: list[Row], vectors: FileVectors
    ) -> tuple[list[Row], FileVectors]:
        """Keep the preferred of questions that repeat one another, and no answer called bad to one of them.

        `vectors` are those of the bad, then those of the rows.
        """
        if self._choice.near >= 1.0:
            return rows, vectors.of(np.arange(len(bad), len(bad) + len(rows)))
        ranked = sorted(range(len(rows)), key=lambda at: rows[at].preference, reverse=True)
        both = [*bad, *(rows[at] for at in ranked)]
        order = np.array([*range(len(bad)), *(len(bad) + at for at in ranked)], np.int64)
        comparable = np.array([self._embedder.refusal(row.question) is None for row in both])

        def same(one: int, other: int) -> bool:
            asked, stored = both[one], both[other]
            if other < len(bad) and (one < len(bad) or asked.feedback or asked.said[1] != stored.said[1]):
                return False
            return repeats(asked.question, stored.question)

        found = duplicates(
            vectors.of(order),
            self._choice.near,
            comparable,
            same,
            lambda done: self._progress("compare", done, len(both)),
        )
        gone = {ranked[at - len(bad)]: kept for at, kept in enumerate(found.tolist()) if kept >= 0}
        for at, kept in sorted(gone.items()):
            if kept < len(bad):
                self._dropped.add(rows[at].id, "called_bad")
            else:
                self._dropped.add(rows[at].id, "near_duplicate", both[kept].id)
        left = [at for at in range(len(rows)) if at not in gone]
        return [rows[at] for at in left], vectors.of(np.array(left, np.int64) + len(bad))

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
        train, test = (
            [row for row, at in zip(rows, sides.tolist(), strict=True) if at == side]
            for side in (TRAIN, TEST)
        )
        written = [*train, *test]
        nearest, leaks = across(ties, sides)
        if leaks:  # would be an error in the split: nobody must measure with such a test
            raise AssertionError(f"{leaks} pairs of train and test belong together")
        namespaces, scopes, models = zip(*(row.origin for row in written), strict=True)
        answers = {row.said[1] for row in train}
        documents = {document for row in train for document in row.documents}
        return Manifest(
            settings={name: self._named(value) for name, value in asdict(self._choice).items()},
            embedder=self._embedder.fingerprint,
            redaction=self._redaction,
            read=self._read,
            dropped=self._dropped.counts(),
            redacted=sum(row.redacted for row in written),
            good=sum(row.feedback is True for row in written),
            oldest=min(row.given for row in written),
            newest=max(row.given for row in written),
            namespaces=len(set(namespaces)),
            scopes=len(set(scopes)),
            models=dict(sorted(Counter(map(self._named, models)).items())),
            clusters=int(labels.max()) + 1,
            largest_cluster=int(np.bincount(labels).max()),
            train=len(train),
            test=len(test),
            nearest=None if nearest is None else round(nearest, 4),
            known_answers=sum(row.tells and row.said[1] in answers for row in test),
            known_documents=sum(not documents.isdisjoint(row.documents) for row in test),
            files=files,
        )

    def _named(self, value: Any) -> Any:
        """Redact a setting for the manifest: the name of a namespace may be an e-mail address."""
        if isinstance(value, tuple):
            return list(map(self._named, value))
        return self._redact(value) if isinstance(value, str) and value else value


def _numbers(rows: list[Row]) -> NDArray[np.int64]:
    """Number the answers, equal ones alike; -1 for answers too short to identify the question."""
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
