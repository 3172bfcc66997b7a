"""What the demos do alike, whatever the framework: options, questions, edited documents, the verdict."""

from __future__ import annotations

import contextlib
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawTextHelpFormatter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track

import ibidem
from common.corpus import Passage
from common.reader import LABEL
from common.report import Question, Row, make_console, print_checks, print_rows, print_totals, read_questions
from ibidem.matching.support import supporting

QUESTIONS = Path(__file__).parent.parent / "questions_python.json"

Lookups = list[ibidem.Hit | ibidem.Miss]


class Documents(Protocol):
    """The passages in the vector store of an app."""

    def nearest(self, text: str, count: int) -> list[Passage]:
        """Those that the app would retrieve for a text."""

    def replace(self, passage: Passage) -> None:
        """Put a passage in the place of the one with its id."""


@dataclass(frozen=True, slots=True)
class App:
    """A RAG app as a demo sees it: asked by `answer`; `lookups` is where its cache tells what it found."""

    answer: Callable[[str], str]
    documents: Documents
    lookups: Lookups

    def ask(self, question: Question) -> Row:
        """A question, its answer, and what the cache said to it."""
        self.lookups.clear()
        started = time.perf_counter()
        answer = self.answer(question.text)
        seconds = time.perf_counter() - started
        return Row(question, answer, self.lookups[-1] if self.lookups else None, seconds)


def start(run: Callable[[Namespace, Path, Console], bool], about: str, model: str) -> int:
    """Read the options and run a demo; its exit code. `model` says what may be given as `--model`."""
    parser = ArgumentParser(description=about, formatter_class=RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", metavar="NAME", help=f"{model}; default: an offline reader, not an LLM")
    add("--min-probability", type=float, help="of one answer for both; default: by max_error_rate")
    add("--questions", type=Path, default=QUESTIONS, help=f"a JSON file; default: {QUESTIONS.name}")
    add("--dir", type=Path, default=user_cache_path("ibidem-demo"), help="where the index stays between runs")
    add("--keep", action="store_true", help="keep the answers there too")
    add("--delay", type=float, default=0.3, help="seconds the offline reader pretends to think; default: 0.3")
    add("--plain", action="store_true", help="no colours")
    options = parser.parse_args()
    console = make_console(options.plain)
    console.print(f"{about.splitlines()[0]}\nModel: {options.model or LABEL}", markup=False)
    with tempfile.TemporaryDirectory() as fresh:
        answers = options.dir / "answers" if options.keep else Path(fresh)
        return 0 if run(options, answers, console) else 1


def batches(passages: list[Passage], console: Console) -> Iterable[list[Passage]]:
    """Some passages at a time, to be indexed while a bar shows how far it is."""
    some = [passages[at : at + 16] for at in range(0, len(passages), 16)]
    return track(some, f"Indexing {len(passages)} passages", console=console, disable=not passages)


def demonstrate(app: App, options: Namespace, console: Console) -> bool:
    """Ask all questions, edit documents, and print what came of it; whether all went as it must."""
    questions = read_questions(options.questions)
    rows = [app.ask(question) for question in track(questions, "Asking", console=console)]
    edits, checks = edit_documents(app, questions[0].text)
    console.print(f"\nFor example: {rows[0].question.text}\n  {rows[0].answer}", markup=False)
    print_rows(console, rows + edits)
    reader = f"the offline reader's simulated {options.delay} s per answer"
    times = "the model's time" if options.model else reader
    print_totals(console, rows + edits, f"Total ms and time saved hold {times}; lookups are measured.")
    return print_checks(console, rows + edits, checks)


def edit_documents(app: App, text: str) -> tuple[list[Row], dict[str, bool]]:
    """Edit documents around a cached answer: it must go with what it rests on, and with nothing else."""

    def again(when: str) -> Row:
        return app.ask(Question(text, "edited document", difference=when))

    before = again("no edit")
    retrieved, elsewhere = app.documents.nearest(text, 4), app.documents.nearest(text, 20)[-1]
    source = resting_on(before.answer, text, retrieved)[0]
    with edited(app.documents, elsewhere):
        other = again(f"{elsewhere.id} edited, not retrieved")
    with edited(app.documents, source):
        changed, settled = again(f"{source.id} edited, the answer rests on it"), again("once more")
    checks = {
        "edited elsewhere: still answered from the cache": before.hit is not None and other.hit is not None,
        "edited where the answer comes from: asked again, once": not changed.hit and bool(settled.hit),
    }
    return [before, other, changed, settled], checks


@contextlib.contextmanager
def edited(documents: Documents, passage: Passage) -> Iterator[None]:
    """The documents with one more sentence in a passage; as before at the end, for the next run."""
    text = f"{passage.text}\n\nThis passage was edited on {datetime.now()}."
    try:
        documents.replace(replace(passage, text=text))
        yield
    finally:
        documents.replace(passage)


def resting_on(answer: str, question: str, passages: list[Passage]) -> list[Passage]:
    """Those of the passages that the answer is taken from, by Ibidem's own rule; all if it cannot tell."""
    pairs = [(passage, ibidem.Document(passage.id, passage.text)) for passage in passages]
    evidence = supporting(answer, question, [known for _, known in pairs])
    return [passage for passage, known in pairs if known.digest in evidence] or passages
