"""A teacher labels pairs of questions: may one answer serve both? The labels feed `ibidem fit` and `tune`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ibidem.errors import InvalidInput, TeacherUnavailable
from ibidem.types import digest
from ibidem_lab.labelling.asking import Answered, Asker
from ibidem_lab.labelling.label_file import TEACHER, TEACHER_SAME, LessonFile, PairId, id_of
from ibidem_lab.labelling.pairs import QuestionPair
from ibidem_lab.labelling.prompt import VERSION, prompt_of
from ibidem_lab.labelling.teachers import resolve_teacher
from ibidem_lab.replay import Share, share

if TYPE_CHECKING:
    from ibidem_lab.labelling.teachers import Teacher

PARALLEL = 4
CHECKED = 100  # pairs of known label that the teacher is asked about too
FAILURES = 5  # pairs in a row that fail, after which it ends
COMPLETION_TOKENS = 40  # of an answer: the JSON with one sentence; models that think first need more


@dataclass(frozen=True, slots=True)
class Cost:
    """What asking will cost, estimated: four letters of English a token, one of other scripts.

    `price` is in the currency of the prices given, None without them.
    """

    pairs: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the teacher agrees with labels that audits, people or the file gave: its own error, estimated.

    `yes_for_no` pairs it calls the same that are not (they make wrong hits), `no_for_yes` the other way
    round, of `asked` pairs. `error` is the share of both, with a 95 % interval.
    """

    asked: int
    yes_for_no: int
    no_for_yes: int

    @property
    def error(self) -> Share:
        """The share it is wrong about, if the known labels are right."""
        return share(self.yes_for_no + self.no_for_yes, self.asked)


@dataclass(frozen=True, slots=True)
class Taught:
    """All pairs, in order, and what came of asking; `unread` got no answer of use, `failed` none at all."""

    pairs: list[QuestionPair]
    same: int
    different: int
    unread: int
    failed: int
    agreement: Agreement


class Lesson:
    """Pairs, a teacher, and what of them it still has to be asked.

    Args:
        pairs: Those without a label are asked about.
        teacher: See `ibidem_lab.labelling.teachers.ACCEPTED`.
        out: Where answers are appended at once; what it holds is not asked again.
        both_ways: Ask (a, b) and (b, a), at twice the cost, and keep what agrees.
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
        """What `run` will cost; prices are per million tokens of prompts and of completions."""
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
        """How many failed."""
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
        """The pair as it is kept; none if the teacher failed, so that it is asked again."""
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
    """Let a teacher label the pairs that have no label. Costs a call for each pair: see `Lesson.cost`.

    Args:
        pairs: `QuestionPair`s, as `ibidem_lab.pairs` and `ibidem_lab.labelling.pairs.read_pairs` give.
        teacher: See `ibidem_lab.labelling.teachers.ACCEPTED`. Caches of this process do not answer in its
            place.
        out: A file to which each answer is appended at once. Called again with it, after a failure or a
            kill, only what is lacking is asked.
        parallel: Calls in flight at most.
        both_ways: Ask (a, b) and (b, a), and keep what agrees.
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
    """Pairs of known label, drawn without regard to what they say; answers that agree are no judgement."""
    untold = ("answers", "teacher")
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
    """Whether the label is the teacher's."""
    return "teacher_reason" not in pair.extra
