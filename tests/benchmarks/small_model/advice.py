"""Is what `ibidem report` advises what pays? Simulated logs, and each step measured with a real model.

    python -m tests.benchmarks.small_model.advice --data FOLDER --model FOLDER [--only NAME ...]

In each log a program answers questions: the model (with no examples, with examples written by hand, with
documents or without), or a large one, of which a simulated 95 % of the answers are right. People judge a
share of the answers, and write the right one where it was bad. All goes through a cache, as in a program:
what `ibidem_lab.next_steps` advises rests on its logs alone.

Then 30 questions that are not in the log are asked of the program as it is, with examples that are
selected from the log (256 tokens), with documents too where there are any, and of the model fine-tuned on
the export. A step pays if the 95 % interval of what it adds to the best of the steps before it is above 0.
Where a large model answers, few-shot and fine-tuning are those of the small one, and pay if they are not
worse than the large one by more than chance. A log agrees if the advice says so of each step that pays, and
of no other.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import ibidem
import ibidem_lab
from ibidem import Answer, Document, Example, Request
from ibidem.cache import SemanticCache
from ibidem_lab.replay import share
from tests.benchmarks.small_model.few_shot import Bench, difference, load_task, options, ready, told
from tests.benchmarks.small_model.finetune import TITLE, tune
from tests.benchmarks.small_model.model import Gemma
from tests.benchmarks.small_model.prompts import Arm, Kind, Prompts
from tests.benchmarks.small_model.tasks import Pair, Task

ASKED = 30
LARGE = 0.95  # of the answers of a large model are right
BUDGET = BY_HAND = 256  # tokens of prompts with selected examples, and with those written by hand
STEPS = ("few-shot", "documents", "fine-tuning")


@dataclass(frozen=True)
class Log:
    """A log to simulate: its task and size, who answers, with what in the prompt, and how many are judged."""

    name: str
    task: str
    size: int
    kind: Kind = "none"
    large: bool = False
    document: bool = False
    judged: float = 1.0
    facts: str = ""  # "told" or "new": only these are asked


LOGS = (
    Log("bank, new program", "banking77", 200),
    Log("bank, examples by hand", "banking77", 200, "fixed"),
    Log("ferries, known facts", "ferries", 90, facts="told"),
    Log("ferries, new facts", "ferries", 90, "fixed", facts="new"),
    Log("bank, large model", "banking77", 1_000, large=True),
    Log("assistant, new program", "clinc150", 200),
    Log("assistant, examples by hand", "clinc150", 200, "fixed"),
    Log("ferries, with documents", "ferries", 90, document=True),
    Log("ferries, documents and examples", "ferries", 90, "fixed", document=True),
    Log("bank, few judged", "banking77", 200, judged=0.1),
)


@dataclass(frozen=True)
class Found:
    """A log: what is right by question, which steps pay, and which are advised, with what was found."""

    log: Log
    right: dict[str, list[bool]]
    pays: dict[str, bool]
    advised: dict[str, bool | None]
    says: dict[str, str]

    @property
    def agrees(self) -> bool:
        """Whether all steps that pay are advised, and no other."""
        return all(self.pays[step] == bool(self.advised[step]) for step in STEPS)


class Program:
    """What answers the questions of a log."""

    def __init__(self, log: Log, task: Task, gemma: Gemma, cache: SemanticCache) -> None:
        self.log, self.task, self.gemma, self.cache = log, task, gemma, cache

    def answers(self, pairs: Sequence[Pair]) -> list[str]:
        """Its answers."""
        if self.log.large:
            draw, others = random.Random(len(pairs)), [answer for _, answer in self.task.log]
            return [answer if draw.random() < LARGE else draw.choice(others) for _, answer in pairs]
        bench = Bench(
            self.gemma, self.task, Prompts(replace(self.task, asked=pairs), self.cache, self.gemma.count)
        )
        return [bench.answer(prompt) for prompt in bench.prompts.of(self.arm())]

    def arm(self) -> Arm:
        """Its prompt."""
        return Arm(self.log.kind, BY_HAND if self.log.kind != "none" else 0, self.log.document)

    def fill(self) -> None:
        """Answer the log's questions through the cache; people judge a share, and correct what is bad."""
        draw, judged = random.Random(0), list[tuple[str, Pair, bool]]()
        for pair, said in zip(self.task.log, self.answers(self.task.log), strict=True):
            question, answer = pair
            passage = self.task.passages.get(question, "")
            known = (Document(passage[:TITLE], passage),) if self.log.document else ()
            request = Request(question, documents=known, scope="the prompt")
            self.cache.lookup(request)
            tokens = self.gemma.count(question) + self.gemma.count(said) + 400
            stored = self.cache.store(request, Answer(said or "-", model="m", input_tokens=tokens))
            if stored and draw.random() < self.log.judged:
                judged.append((stored.entry_id, pair, self.task.right(said, answer)))
        self.cache.flush()
        for entry, (question, answer), good in judged:
            self.cache.feedback(entry, good=good)
            if not good:
                self.cache.examples.add(Example(question, answer, feedback=True))
        self.cache.flush()
        while self.cache.examples._shared.selector.embed_some(""):
            pass


def measured(program: Program, model: Path, kept: Path) -> dict[str, list[bool]]:
    """Where the program is right, and where it would be with each step."""
    log, task, gemma = program.log, program.task, program.gemma
    bench = Bench(gemma, task, Prompts(task, program.cache, gemma.count))
    said = program.answers(task.asked)
    found = {
        "now": [task.right(one, answer) for one, (_, answer) in zip(said, task.asked, strict=True)],
        "few-shot": bench.measure([Arm("similarity", BUDGET, log.document)], timed=0)[0].right,
    }
    if task.passages and not log.document:
        helps = pays(found["few-shot"], found["now"], log.large)
        arm = Arm("similarity", BUDGET, True) if helps else replace(program.arm(), document=True)
        found["documents"] = bench.measure([arm], timed=0)[0].right
    found["fine-tuning"] = tune(model, program.cache, task, kept, documents=log.document).right
    return found


def pays(right: Sequence[bool], before: Sequence[bool], large: bool) -> bool:
    """Whether a step is worth it."""
    _, low, high = difference(right, before)
    return high >= 0 if large else low > 0


def steps_that_pay(right: dict[str, list[bool]], large: bool) -> dict[str, bool]:
    """By step, each beside the best of those before."""
    best, found = right["now"], {}
    for step in STEPS:
        found[step] = step in right and pays(right[step], best, large)
        best = right[step] if found[step] else best
    return found


def simulate(log: Log, gemma: Gemma, given: argparse.Namespace) -> Found:
    """Make the log, ask for advice, and measure."""
    task = load_task(log.task, given.data, log.size, 2 * given.asked if log.facts else given.asked)
    asked = [one for one in task.asked if not log.facts or (one[0] in task.told) == (log.facts == "told")]
    task = replace(task, asked=asked[: given.asked])
    folder = given.out / log.name.replace(" ", "-")
    measures, known = folder / "right.json", (folder / "right.json").is_file()
    with ibidem.open(folder) as cache:
        program = Program(log, task, gemma, cache)
        if not known:
            program.fill()
        steps = list(reversed(ibidem_lab.next_steps(cache)))  # of several on documents the first
        right = json.loads(measures.read_text()) if known else measured(program, given.model, given.out)
        measures.write_text(json.dumps(right), encoding="utf-8")
        return Found(
            log,
            right,
            steps_that_pay(right, log.large),
            {step.name: step.advised for step in steps},
            {step.name: f"{step.finding}; {dict(step.figures)}" for step in steps},
        )


def table_of(found: Sequence[Found]) -> Table:
    """One line for each log."""
    heads = "log|answers|now|+ examples|+ documents|fine-tuned|pays|advised|agrees"
    table = Table(*heads.split("|"), title="simulated logs; what a step adds to the best before it decides")
    for one in found:
        shares = [
            f"{share(sum(right), len(right)).value:.0%}" if (right := one.right.get(name)) else ""
            for name in ("now", *STEPS)
        ]
        said = [", ".join(step for step in STEPS if what[step]) or "-" for what in (one.pays, one.advised)]
        agrees = "yes" if one.agrees else "no"
        table.add_row(one.log.name, f"{one.log.size:,}", *shares, *said, agrees)
    return table


def main() -> None:
    """Print what was found of each log, and a table."""
    parser = options(__doc__)
    parser.add_argument("--only", nargs="*", help="only logs with these names")
    parser.add_argument("--asked", type=int, default=ASKED, help="questions")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        given.out = given.out or Path(place)
        given.out.mkdir(parents=True, exist_ok=True)
        gemma, found = Gemma(ready(given)), list[Found]()
        for log in LOGS:
            if not given.only or log.name in given.only:
                found.append(one := simulate(log, gemma, given))
                more = {step: told(difference(right, one.right["now"])) for step, right in one.right.items()}
                print(log.name, one.pays, one.advised, more, one.says, sep="\n  ", flush=True)
    Console(width=170).print(table_of(found))
    print(f"The advice agrees with what pays in {sum(one.agrees for one in found)} of {len(found)} logs")


if __name__ == "__main__":
    main()
