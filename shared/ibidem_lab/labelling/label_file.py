"""The file in which a teacher's answers are kept: appended to at once, so that a killed run can go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType

from ibidem._util.files import append_private, lock_file
from ibidem.errors import InvalidInput
from ibidem_lab.labelling.pairs import QuestionPair, parsed

TEACHER = "teacher"  # in the line of a pair that was asked about: who answered
TEACHER_SAME = "teacher_same"  # and what: 0, 1, or null if the answer could not be read
PairId = tuple[str, str, str]


def id_of(pair: QuestionPair) -> PairId:
    """What tells pairs apart; (a, b) and (b, a) differ."""
    return pair.namespace, pair.a, pair.b


class _Torn(InvalidInput):
    """A line that is no pair; the last one may be, if a kill tore it."""


class LessonFile:
    """The lines of one file, each written before the next answer is taken; a context manager.

    Args:
        path: The file, which is made if there is none; None to keep nothing.
        teacher: Who answers. Answers of different teachers do not go into one file.

    Raises:
        InvalidInput: The file cannot be used, or holds something else.
    """

    def __init__(self, path: Path | None, teacher: str) -> None:
        self._path, self._teacher = path, teacher
        self.known: dict[PairId, QuestionPair] = {}
        with self._held():
            self._load()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Kept from other runs, which would ask, and pay, twice."""
        try:
            with nullcontext() if self._path is None else lock_file(self._path):
                yield
        except OSError as error:
            raise InvalidInput(f"cannot use {self._path}: {error.strerror or error}") from None

    def _load(self) -> None:
        if self._path is not None:
            self._end = self._read(self._path.read_bytes() if self._path.exists() else b"")

    def _read(self, held: bytes) -> int:
        """Take in the lines; returns where the last whole one ends. A kill may leave a torn one behind."""
        end = 0
        for number, line in enumerate(held.splitlines(keepends=True), 1):
            try:
                self._take_line(line, f"{self._path}, line {number}")
            except _Torn:
                if not line.endswith(b"\n"):
                    break
                raise
            end += len(line)
        return end

    def _take_line(self, line: bytes, where: str) -> None:
        try:
            text = line.decode("utf-8")
            pair = parsed(text, where) if text.strip() else None
        except UnicodeDecodeError:
            raise _Torn(f"{where}: no UTF-8 text") from None
        except InvalidInput as error:
            raise _Torn(str(error)) from None
        if pair is not None:
            self._take(pair)

    def _take(self, pair: QuestionPair) -> None:
        by = pair.extra.get(TEACHER)
        if by not in (None, self._teacher):
            raise InvalidInput(
                f"{self._path} holds answers of {by}, not of {self._teacher}: give another file with --out"
            )
        self.known[id_of(pair)] = pair

    def __enter__(self) -> LessonFile:
        with ExitStack() as entered:
            entered.enter_context(self._held())
            self._load()  # once more: another run may have added to it
            if self._path is not None:
                self._file = entered.enter_context(append_private(self._path))
                self._file.truncate(self._end)
                self._ended = self._end == 0 or self._path.read_bytes().endswith(b"\n")
            self._close = entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close.close()

    def add(self, pairs: Iterable[QuestionPair]) -> None:
        """Append the pairs; they survive a kill of the process from now on.

        Raises:
            InvalidInput: The disk is full, or the like.
        """
        for pair in pairs:
            self.known[id_of(pair)] = pair
            if self._path is not None:
                line = f"{pair.as_line()}\n" if self._ended else f"\n{pair.as_line()}\n"
                self._ended = True
                try:
                    self._file.write(line.encode())
                except OSError as error:
                    raise InvalidInput(f"cannot write {self._path}: {error.strerror}") from None
