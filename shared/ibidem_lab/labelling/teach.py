"""Label pairs of questions by a teacher model: may one answer serve both? For `ibidem learn`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ibidem._util.json_lines import parse_object
from ibidem.errors import InvalidInput, TeacherUnavailable
from ibidem.types import digest
from ibidem_lab.files import append_private, lock_file
from ibidem_lab.labelling.pairs import SHAPE, QuestionPair, of_line
from ibidem_lab.labelling.teachers import VERSION, Answered, Asker, prompt_of, resolve_teacher
from ibidem_lab.replay import Share, share

if TYPE_CHECKING:
    from ibidem_lab.labelling.teachers import Teacher

PARALLEL = 4
CHECKED = 100  # pairs of known label that estimate the teacher's error
FAILURES = 5  # consecutive failed pairs until the run ends
COMPLETION_TOKENS = 40  # of an answer: the JSON with one sentence; models that think first need more
TEACHER = "teacher"  # key in the line of a pair that was asked about: the teacher
TEACHER_SAME = "teacher_same"  # key of its verdict: 0, 1, or null if the answer could not be read
PairId = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimate of the cost: four letters of English a token, one of other scripts.

    `price` is in the currency of the prices given, None without them.
    """

    pairs: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of the teacher with labels of audits, people or the file: an estimate of its error.

    `yes_for_no` pairs it calls the same that are not (they make wrong hits), `no_for_yes` the other way
    round, of `asked` pairs. `error` is the share of both, with a 95 % interval.
    """

    asked: int
    yes_for_no: int
    no_for_yes: int

    @property
    def error(self) -> Share:
        """The share of wrong verdicts, if the known labels are right."""
        return share(self.yes_for_no + self.no_for_yes, self.asked)


@dataclass(frozen=True, slots=True)
class Taught:
    """All pairs, in order, and the counts; `unread` got no usable answer, `failed` none at all."""

    pairs: list[QuestionPair]
    same: int
    different: int
    unread: int
    failed: int
    agreement: Agreement


def id_of(pair: QuestionPair) -> PairId:
    """Return the identity of a pair; (a, b) and (b, a) differ."""
    return pair.namespace, pair.a, pair.b


class _Torn(InvalidInput):
    """A line that is not a pair; the last one may be torn by a kill."""


class LessonFile:
    """Append answers to a file, each before the next is taken, so that a killed run can go on.

    A context manager.

    Args:
        path: The file, created if missing; None to keep nothing.
        teacher: The teacher's name. Answers of different teachers do not go into one file.

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
        """Lock the file against other runs, which would ask, and pay, twice."""
        try:
            with nullcontext() if self._path is None else lock_file(self._path):
                yield
        except OSError as error:
            raise InvalidInput(f"cannot use {self._path}: {error.strerror or error}") from None

    def _load(self) -> None:
        if self._path is not None:
            self._end = self._read(self._path.read_bytes() if self._path.exists() else b"")

    def _read(self, held: bytes) -> int:
        """Read the lines; return where the last whole one ends. A kill may leave a torn one behind."""
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
            pair = of_line(parse_object(text, where, SHAPE), where) if text.strip() else None
        except UnicodeDecodeError:
            raise _Torn(f"{where}: not valid UTF-8") from None
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


class Lesson:
    """The pairs that a teacher still has to be asked about.

    Args:
        pairs: Those without a label are asked about.
        teacher: See `ibidem_lab.labelling.teachers.ACCEPTED`.
        out: Where answers are appended at once; what it holds is not asked again.
        both_ways: Ask (a, b) and (b, a), at twice the cost, and keep verdicts that agree.
        check: So many pairs whose label audits or people gave are asked about too, to estimate the error.

    Raises:
        InvalidInput: Something cannot be used.
        ConfigurationError: The teacher cannot be used.
        MissingExtra: The teacher is a name, and LangChain is not installed.
    """

    def __init__(
        self,
        pairs: Sequence[QuestionPair],
        teacher: object,
        *,
        out: Path | None = None,
        both_ways: bool = False,
        check: int = CHECKED,
    ) -> None:
        if not all(isinstance(pair, QuestionPair) for pair in pairs):
            raise InvalidInput("pairs must be a sequence of ibidem_lab.labelling.pairs.QuestionPair")
        self._teacher: Teacher
        self._teacher, name = resolve_teacher(teacher)
        self.teacher = f"{name}, {VERSION}{', both ways' if both_ways else ''}"
        self.pairs, self._both_ways = list({id_of(pair): pair for pair in pairs}.values()), both_ways
        self._file = LessonFile(out, self.teacher)
        wanted = [pair for pair in self.pairs if pair.same is None] + _sample(self.pairs, check)
        self.to_ask = self._lacking(wanted)

    def _lacking(self, wanted: Iterable[QuestionPair]) -> list[QuestionPair]:
        return [pair for pair in wanted if not _was_asked(self._file.known, pair)]

    def cost(self, price_in: float | None = None, price_out: float | None = None) -> Cost:
        """Estimate the cost of `run`; prices are per million tokens of prompts and of completions."""
        ways = [(pair.a, pair.b) for pair in self.to_ask]
        if self._both_ways:
            ways += [(b, a) for a, b in ways]
        prompts = sum(_tokens(prompt_of(asked, stored)) for asked, stored in ways)
        completions = COMPLETION_TOKENS * len(ways)
        price = None
        if price_in is not None or price_out is not None:
            price = (prompts * (price_in or 0.0) + completions * (price_out or 0.0)) / 1e6
        return Cost(len(self.to_ask), len(ways), prompts, completions, price)

    def run(self, parallel: int = PARALLEL, seen: Callable[[], object] = lambda: None) -> Taught:
        """Ask, `parallel` pairs at once; `seen` is called after each.

        Raises:
            TeacherUnavailable: It failed for five pairs in a row.
            InvalidInput: An answer cannot be written, another run writes to the same file, or `parallel`
                is no number above 0.
            KeyboardInterrupt: Ctrl-C; what was answered is written.
        """
        if isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1:
            raise InvalidInput(f"parallel must be a whole number of calls above 0, not {parallel!r}")
        with self._file as file:
            self.to_ask = self._lacking(self.to_ask)
            asked = {id_of(pair) for pair in self.to_ask}
            file.add(pair for pair in self.pairs if id_of(pair) not in asked | file.known.keys())
            failed = self._ask_all(file, parallel, seen)
            return _taught([file.known.get(id_of(pair), pair) for pair in self.pairs], failed)

    def _ask_all(self, file: LessonFile, parallel: int, seen: Callable[[], object]) -> int:
        """Ask about all pairs and return the number of failures."""
        asker = Asker(
            self._teacher,
            self.to_ask,
            parallel=min(parallel, max(1, len(self.to_ask))),
            both_ways=self._both_ways,
        )
        failed = in_a_row = 0
        try:
            for answered in asker.run():
                in_a_row = in_a_row + 1 if answered.error else 0
                failed += bool(answered.error)
                if in_a_row == FAILURES and answered.error:
                    raise TeacherUnavailable(answered.error, in_a_row)
                file.add(self._lines(answered))
                seen()
        finally:
            for answered in asker.stop():
                file.add(self._lines(answered))
        return failed

    def _lines(self, answered: Answered) -> list[QuestionPair]:
        """Return the pair for the file; none if the teacher failed, so that it is asked again."""
        if answered.error is not None:
            return []
        pair, same = answered.pair, answered.same
        told = {TEACHER: self.teacher, TEACHER_SAME: None if same is None else int(same)}
        if pair.same is not None:
            return [replace(pair, extra={**pair.extra, **told, "teacher_reason": answered.reason})]
        by = "" if same is None else "teacher"
        extra = {**pair.extra, **told}
        return [replace(pair, same=same, labelled_by=by, reason=answered.reason, extra=extra)]


def teach(
    pairs: Sequence[QuestionPair],
    teacher: object,
    *,
    out: Path | str | None = None,
    parallel: int = PARALLEL,
    both_ways: bool = False,
    check: int = CHECKED,
) -> Taught:
    """Label the unlabelled pairs by a teacher, one call for each: see `Lesson.cost`.

    Args:
        pairs: `QuestionPair`s, as `ibidem_lab.pairs` and `ibidem_lab.labelling.pairs.read_pairs` give.
        teacher: See `ibidem_lab.labelling.teachers.ACCEPTED`. Caches of this process do not answer in its
            place.
        out: A file to which each answer is appended at once. Called again with it, after a failure or a
            kill, only the missing ones are asked.
        parallel: Maximum number of calls in flight.
        both_ways: Ask (a, b) and (b, a), and keep verdicts that agree.
        check: So many pairs whose label audits or people gave are asked about too, to estimate the error.

    Raises:
        InvalidInput: Something cannot be used.
        ConfigurationError: The teacher cannot be used.
        MissingExtra: The teacher is a name, and LangChain is not installed.
        TeacherUnavailable: It failed for five pairs in a row.
    """
    file = None if out is None else Path(out)
    return Lesson(pairs, teacher, out=file, both_ways=both_ways, check=check).run(parallel)


def _sample(pairs: Iterable[QuestionPair], count: int) -> list[QuestionPair]:
    """Sample pairs of known label, whatever they say; those of models, or of equal answers, do not count."""
    untold = ("answers", "teacher", "opinion")
    known = [pair for pair in pairs if pair.same is not None and pair.labelled_by not in untold]
    return sorted(known, key=lambda pair: digest(*id_of(pair)))[:count]


def _was_asked(known: Mapping[PairId, QuestionPair], pair: QuestionPair) -> bool:
    return id_of(pair) in known and TEACHER in known[id_of(pair)].extra


def _tokens(text: str) -> int:
    plain = sum(character.isascii() for character in text)
    return math.ceil(plain / 4) + len(text) - plain


def _taught(pairs: list[QuestionPair], failed: int) -> Taught:
    asked = [pair for pair in pairs if TEACHER in pair.extra]
    new = [pair for pair in asked if _is_new(pair)]
    checked = [pair for pair in asked if not _is_new(pair) and pair.extra[TEACHER_SAME] is not None]
    return Taught(
        pairs=pairs,
        same=sum(pair.same is True for pair in new),
        different=sum(pair.same is False for pair in new),
        unread=sum(pair.extra[TEACHER_SAME] is None for pair in asked),
        failed=failed,
        agreement=Agreement(
            asked=len(checked),
            yes_for_no=sum(pair.same is False and pair.extra[TEACHER_SAME] == 1 for pair in checked),
            no_for_yes=sum(pair.same is True and pair.extra[TEACHER_SAME] == 0 for pair in checked),
        ),
    )


def _is_new(pair: QuestionPair) -> bool:
    """Return whether the label is the teacher's."""
    return "teacher_reason" not in pair.extra
