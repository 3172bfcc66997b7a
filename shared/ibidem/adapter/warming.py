"""`warm`: run a program for questions with known answers, so that the cache answers them as it would.

The program runs for each question, so that the entries have its real scope: prompt, model, tools, documents.
The call whose answer the program returns gets the known one; its other calls reach their models, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ibidem.adapter.programs import asker, text_in
from ibidem.costs import Prices, read_prices
from ibidem.errors import InvalidInput
from ibidem.lifecycle.pinning import with_text
from ibidem.lifecycle.warming import Call, WarmingRun, warming
from ibidem.scope import NOT_GIVEN, scope
from ibidem.types import Answer, normalise, require_name, require_tags

Documents = Literal["ignore", "retrieved"]
LEAST_PART = 20  # characters of a model's answer that is found within what the program returns
_REFUSED = {
    "pins_full": "pinned answers fill max_entries or max_bytes (pins_full)",
    "private": "redact changes the answer (private)",
    "invalidated": "what it rests on is just being invalidated",
}
_NO_CACHE = (
    "no call of the program reached the cache; install it as in production, such as by "
    "langchain_ibidem.install() or llama_index_ibidem.install()"
)
_ELSE = "the call that answers got the answer, but the program returned something else"
_NO_CALL = "the program returns what no single call of a model said, so none can get the answer"


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A question with a person's answer. `line` is that of the file it is from, 0 if it is from none."""

    question: str
    answer: str
    tags: tuple[str, ...] = ()
    namespace: str = ""
    line: int = 0

    def __post_init__(self) -> None:
        for name in ("question", "answer", "namespace"):
            require_name(name, getattr(self, name))
        object.__setattr__(self, "tags", require_tags(self.tags))


@dataclass(frozen=True, slots=True)
class WarmingPlan:
    """What the other `questions` will take, if they go as the second one did.

    `calls` of models, about `tokens` of them and their `cost` in `currency`, None if it is not known. If not
    `learned`, the call that answers is among them: which it is can only be seen when it has answered, as in
    an agent.
    """

    questions: int
    calls: int
    tokens: int
    cost: float | None
    currency: str
    learned: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """A question that was left out, and why."""

    line: int
    question: str
    reason: str


@dataclass(slots=True)
class Warmed:
    """Questions that are `answered` now, `calls` that reached a model, and the questions left out."""

    answered: int = 0
    calls: int = 0
    problems: list[Problem] = field(default_factory=list)


def warm(
    app: Any,
    pairs: Iterable[KnownAnswer | tuple[str, str] | Mapping[str, Any]],
    *,
    documents: Documents = "ignore",
    make_input: Callable[[str], Any] | None = None,
    text_of: Callable[[Any], str] | None = None,
    on_plan: Callable[[WarmingPlan], bool] | None = None,
    on_progress: Callable[[], None] | None = None,
    prices: Prices | None = None,
) -> Warmed:
    """Run the program for each question, and pin the known answer as that of the call which answers.

    Install the cache first, as in production. If it is interrupted, call it again: what is done is durable,
    and costs no call of a model again.

    Args:
        app: A chain, agent or other runnable of LangChain; a query engine, chat engine or agent of
            LlamaIndex; or a function of a question.
        pairs: `KnownAnswer`s, pairs of texts, or mappings with `question`, `answer` and, if you like,
            `tags` and `namespace`.
        documents: `ignore`: the answer stands for itself, whatever is retrieved. `retrieved`: it rests on
            what is retrieved now; when that changes it is not served, and waits in `ibidem review`.
        make_input: Makes the program's input of a question, where its kind does not say how.
        text_of: Returns the text of what the program returns, where its kind does not say how.
        on_plan: Called after two questions, and what was done before, with what the others will take; False
            ends it there.
        on_progress: Called after each question.
        prices: Prices of models; by default the shipped ones.

    Raises:
        InvalidInput: An argument cannot be used.
        Exception: What the program raises for the first question; later, that is a problem of the question.
    """
    if documents not in ("ignore", "retrieved"):
        raise InvalidInput(f"documents must be 'ignore' or 'retrieved', not {documents!r}")
    done = Warmed()
    rows = _distinct(pairs, done)
    warmer = _Warmer(asker(app, make_input), text_of or text_in, documents == "ignore", done)
    told = on_plan is None
    for number, row in enumerate(rows, 1):
        run = warmer.warm(row, may_raise=number == 1)
        if on_progress is not None:
            on_progress()
        if told or number == 1 or run.done or number == len(rows):
            continue
        told = True
        if on_plan is not None and not on_plan(_plan(run, len(rows) - number, prices or read_prices())):
            break
    return done


class _Warmer:
    """Runs the program, and remembers in which scopes it answers."""

    def __init__(
        self, ask: Callable[[str], Any], text_of: Callable[[Any], str], alone: bool, done: Warmed
    ) -> None:
        self._ask, self._text_of, self._alone, self._done = ask, text_of, alone, done
        self._answers: dict[str, Answer] = {}  # of the model, by scope: the form of what is given there

    def warm(self, row: KnownAnswer, *, may_raise: bool) -> WarmingRun:
        """Warm one question; return its run."""
        prepared = {digest: _given(said, row.answer) for digest, said in self._answers.items()}
        run = WarmingRun(row.question, prepared, self._alone)
        try:
            problem = self._warmed(row, run)
        except Exception as error:
            if may_raise:
                raise
            problem = f"the program failed: {type(error).__name__}: {error}"
        self._done.calls += run.asked()
        if problem:
            self._done.problems.append(Problem(row.line, row.question, problem))
        else:
            self._done.answered += 1
        return run

    def _warmed(self, row: KnownAnswer, run: WarmingRun) -> str:
        """Run the program until it returns the answer; return "", or why it does not."""
        text = self._run(row, run)
        if run.refused:
            return _REFUSED.get(run.refused, run.refused)
        if run.pinned:
            return "" if _says(text, row.answer) else _ELSE
        before = _pinned_before(run, row)
        if before is not None and _says(text, row.answer):
            run.done = True
            self._learn(before, row)
            return ""
        call = _answering(run, text)
        if call is None:
            why = f"; the cache refused an answer ({run.rejected})" if run.rejected else ""
            return f"{_NO_CALL}{why}" if run.calls or run.misses else _NO_CACHE
        run.learned = False
        if not run.give(call.request, _given(call.answer, row.answer), call.pin):
            return _REFUSED.get(run.refused, run.refused)
        again = WarmingRun(row.question, alone=self._alone)
        text = self._run(row, again)
        self._done.calls += again.asked()
        if not _says(text, row.answer):
            return _ELSE
        self._learn(call, row)
        return ""

    def _learn(self, call: Call, row: KnownAnswer) -> None:
        """Remember where the program answers, if that can be told by scope and question."""
        if call.answer.semantic and call.request.question == normalise(row.question):
            self._answers[call.request.scope_digest] = call.answer

    def _run(self, row: KnownAnswer, run: WarmingRun) -> str:
        with ExitStack() as stack:
            if row.namespace or row.tags:
                stack.enter_context(scope(namespace=row.namespace or NOT_GIVEN, tags=row.tags))
            stack.enter_context(warming(run))
            return self._text_of(self._ask(row.question))


def _plan(run: WarmingRun, left: int, prices: Prices) -> WarmingPlan:
    """Say what as many questions will take as there are left, by what one took."""
    spent = {call.answer.text: call.answer for call in run.calls if not call.repeated}.values()
    costs = [
        prices.cost(said.model, said.input_tokens, said.output_tokens)
        for said in spent
        if said.input_tokens is not None and said.output_tokens is not None
    ]
    known = [cost for cost in costs if cost is not None]
    return WarmingPlan(
        questions=left,
        calls=left * run.asked(),
        tokens=left * sum(said.tokens for said in spent),
        cost=left * sum(known) if len(known) == len(spent) else None,
        currency=prices.currency,
        learned=run.learned,
    )


def _given(said: Answer, text: str) -> Answer:
    """Return the answer as the adapter would have stored it if the model had given this text."""
    return replace(with_text(said, text), input_tokens=None, output_tokens=None, seconds=None)


def _answering(run: WarmingRun, text: str) -> Call | None:
    """Return the last call with what the program returned: the outermost, if it is cached in two layers."""
    same = [call for call in run.calls if _words(call.answer.text) == _words(text)]
    within = [
        call
        for call in run.calls
        if len(call.answer.text) >= LEAST_PART and _words(call.answer.text) in _words(text)
    ]
    return next((some[-1] for some in (same, within) if text.strip() and some), None)


def _pinned_before(run: WarmingRun, row: KnownAnswer) -> Call | None:
    """Return the call whose answer was pinned before, by a run that was interrupted."""
    found = (call for call in run.calls if call.pinned and _words(call.answer.text) == _words(row.answer))
    return next(found, None)


def _says(text: str, answer: str) -> bool:
    return _words(answer) in _words(text)


def _words(text: str) -> str:
    return " ".join(text.split())


def _distinct(pairs: Iterable[Any], done: Warmed) -> list[KnownAnswer]:
    """Return the rows to warm; blank and repeated ones become problems."""
    rows: dict[tuple[str, str], KnownAnswer] = {}
    for given in pairs:
        row = _row(given)
        first = rows.setdefault((row.namespace, normalise(row.question)), row)
        problem = ""
        if not row.question.strip() or not row.answer.strip():
            problem = f"the {'answer' if row.question.strip() else 'question'} is empty"
        elif first is not row:
            same = "the same" if _words(first.answer) == _words(row.answer) else "another"
            where = f"in line {first.line}" if first.line else "before"
            problem = f"the question stands {where}, with {same} answer"
        if problem:
            done.problems.append(Problem(row.line, row.question, problem))
    return [row for row in rows.values() if row.question.strip() and row.answer.strip()]


def _row(given: Any) -> KnownAnswer:
    if isinstance(given, KnownAnswer):
        return given
    if isinstance(given, Mapping) and {"question", "answer"} <= given.keys() <= _COLUMNS:
        return KnownAnswer(**{str(name): value for name, value in given.items() if value is not None})
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return KnownAnswer(*given)
    raise InvalidInput(
        f"a pair is a question and its answer, or a mapping of {', '.join(sorted(_COLUMNS))}; not {given!r}"
    )


_COLUMNS = frozenset(("question", "answer", "tags", "namespace"))
