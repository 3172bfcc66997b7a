"""What few-shot examples are worth to a real model, within so many tokens of its own tokenizer.

    python -m tests.benchmarks.small_model.few_shot --data FOLDER --model FOLDER [--only ferries] [--asked 40]

FOLDER of `--data` holds streams/banking77.jsonl and streams/clinc150.jsonl; in that of `--model` the model is
kept once it is converted. Three tasks: messages to a bank and to an assistant, sorted by intent, and
questions on ferry lines, whose answers stand in passages of ours.

Examples: none; none, but all labels named; fixed (one of each kind, the commonest kind first); random (five
draws, each for a fifth of the questions); and those of `IbidemExampleSelector`, by similarity (diversity=0),
the same turned round, so that the nearest stands first, and by diversity (0.3). Each prompt is checked to
have no more tokens than it may. An intent is chosen by greedy decoding that only allows the labels, token by
token; an answer in free words is the greedy continuation, and right if it is the same word for word.
"nearest, copied" is no model: the answer of the nearest example.

Intervals are 95 %: Clopper-Pearson for shares, the bootstrap over questions for differences. Times are the
processor's, of a few questions, where what a prompt has in common with the one before is not read again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import ibidem
from ibidem.embedding import resolve_embedder
from ibidem_lab.replay import Share, share
from tests.benchmarks.small_model.model import Gemma, convert, missing
from tests.benchmarks.small_model.prompts import Arm, Kind, Prompts, fill
from tests.benchmarks.small_model.tasks import Task, load_ferries, load_intents

BUDGETS = (1024, 512, 256)  # the longest first: what shorter ones hold is known then
KINDS: tuple[Kind, ...] = ("fixed", "random", "similarity", "turned round", "diversity")
TIMED = 3  # questions
TASKS = ("banking77", "clinc150", "ferries")
LOG, ASKED = 2_000, 40


@dataclass(frozen=True)
class Result:
    """What came of one kind of prompt: right or not by question, tokens of the prompts, processor seconds."""

    arm: Arm
    right: list[bool]
    tokens: list[int]
    seconds: float = 0.0

    @property
    def share(self) -> Share:
        """Of right answers."""
        return share(sum(self.right), len(self.right))


class Bench:
    """The model, and one task."""

    def __init__(self, gemma: Gemma, task: Task, prompts: Prompts) -> None:
        self.gemma, self.task, self.prompts = gemma, task, prompts
        ends = f"{task.says}\n\n{task.question} x\n{task.answer}"
        labels = [f" {label}\n\n" for label in task.labels]
        self._tree = gemma.tree(ends, labels, stops=False) if labels else {}

    def answer(self, prompt: str) -> str:
        """What the model says."""
        return self.gemma.choose(prompt, self._tree) if self._tree else self.gemma.complete(prompt)

    def measure(self, arms: Sequence[Arm], timed: int = TIMED) -> list[Result]:
        """Ask every question with every arm; the arms should begin alike."""
        prompts = [self.prompts.of(arm) for arm in arms]
        right = [[False] * len(self.task.asked) for _ in arms]
        for at, (_, answer) in enumerate(self.task.asked):
            for number, made in enumerate(prompts):
                right[number][at] = self.task.right(self.answer(made[at]), answer)
        tokens = [[len(self.gemma.tokens(prompt)) for prompt in made] for made in prompts]
        for arm, lengths in zip(arms, tokens, strict=True):
            if arm.budget and max(lengths) > arm.budget:
                raise AssertionError(f"{max(lengths)} tokens: {arm}")
        seconds = [self._seconds(made[:timed]) for made in prompts]
        return [Result(*one) for one in zip(arms, right, tokens, seconds, strict=True)]

    def _seconds(self, prompts: Sequence[str]) -> float:
        """Processor seconds of one question, once what all have in common is read."""
        self.gemma.forget()
        if not prompts:
            return 0.0
        self.answer(prompts[0])
        started = time.process_time()
        for prompt in prompts[1:]:
            self.answer(prompt)
        return (time.process_time() - started) / max(1, len(prompts) - 1)

    def copied(self, k: int = 1) -> list[bool]:
        """Whether the answer of the nearest example is right."""
        found = [self.prompts.cache.examples.select(question, k) for question, _ in self.task.asked]
        return [
            bool(one) and self.task.right(one[0].answer, answer)
            for one, (_, answer) in zip(found, self.task.asked, strict=True)
        ]

    def arms(self, budgets: Sequence[int] = BUDGETS) -> list[list[Arm]]:
        """All kinds of prompts, with and without the document where there are documents."""
        found = []
        for document in (False, True) if self.task.passages else (False,):
            found.append([Arm("none", 0, document)])
            if self.task.labels:
                found.append([Arm("labels named", 0)])
            for kind in KINDS:
                some = [Arm(kind, budget, document) for budget in budgets]
                if kind in ("fixed", "random"):  # read once for all questions
                    found += [[arm] for arm in some]
                elif kind == "similarity" or document == bool(self.task.passages):
                    # Those that end with the nearest do not begin alike.
                    found += [some] if kind == "turned round" else [[arm] for arm in some]
        return found


def difference(one: Sequence[bool], other: Sequence[bool], rounds: int = 2_000) -> tuple[float, float, float]:
    """How much oftener the first is right, and the 95 % interval by the bootstrap over questions."""
    gained = np.array(one, float) - np.array(other, float)
    draw = np.random.default_rng(0)
    means = gained[draw.integers(0, len(gained), (rounds, len(gained)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(gained.mean()), float(low), float(high)


def told(found: tuple[float, float, float]) -> str:
    """A difference in points."""
    return "{:+.0f} ({:+.0f} to {:+.0f})".format(*(100 * one for one in found))


def load_task(name: str, data: Path, log: int, asked: int) -> Task:
    """By name."""
    if name == "ferries":
        return load_ferries(resolve_embedder(None), log, asked)
    return load_intents(data, name, log, asked)


def table_of(bench: Bench, results: Iterable[Result], copied: Sequence[bool]) -> Table:
    """One line for each kind of prompt; what examples add is beside the prompt without any."""
    task, results = bench.task, list(results)
    parts = "right|of told facts|of new facts|more than without".split("|")
    heads = ["examples", "most tokens", *(parts if task.told else (parts[0], parts[3]))]
    table = Table(*heads, "tokens: mean", "longest", "s", title=f"{task.name}, {len(task.asked)} questions")
    old = np.array([question in task.told for question, _ in task.asked])
    bare = {one.arm.document: one for one in results if one.arm.kind == "none"}

    def shares(right: Sequence[bool]) -> list[str]:
        found, said = np.array(right), [str(share(sum(right), len(right)))]
        return [*said, f"{found[old].mean():.0%}", f"{found[~old].mean():.0%}"] if task.told else said

    table.add_row("nearest, copied", "", *shares(copied), "", "", "", "")
    for one in results:
        kind = one.arm.kind + (" + document" if one.arm.document else "")
        more = told(difference(one.right, bare[one.arm.document].right)) if one.arm.kind != "none" else ""
        lengths = f"{np.mean(one.tokens):.0f}", f"{max(one.tokens)}"
        budget = f"{one.arm.budget:,}" if one.arm.budget else ""
        table.add_row(kind, budget, *shares(one.right), more, *lengths, f"{one.seconds:.2f}")
    return table


def run(gemma: Gemma, task: Task, given: argparse.Namespace) -> None:
    """Measure one task, print its table, and keep what was measured."""
    console, started = Console(width=170), time.process_time()
    with tempfile.TemporaryDirectory() as place, ibidem.open(place) as cache:
        fill(cache, task.log)
        bench = Bench(gemma, task, Prompts(task, cache, gemma.count))
        results = []
        for arms in bench.arms(given.budgets):
            results += bench.measure(arms)
            print(*(f"{one.arm}: {one.share}" for one in results[-len(arms) :]), sep="\n", flush=True)
        copied = bench.copied()
    console.print(table_of(bench, results, copied))
    print(f"{len(task.log):,} examples in the log; {time.process_time() - started:.0f} s of the processor")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        kept = {"copied": copied, "results": [asdict(one) for one in results]}
        (given.out / f"{task.name}.json").write_text(json.dumps(kept), encoding="utf-8")


def options(doc: str | None) -> argparse.ArgumentParser:
    """What the benchmarks with this model have in common."""
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=shown)
    parser.add_argument("--data", type=Path, required=True, help="folder with streams/*.jsonl")
    parser.add_argument("--model", type=Path, required=True, help="folder for the converted model, 540 MB")
    parser.add_argument("--out", type=Path, help="folder for what was measured, as JSON")
    return parser


def ready(given: argparse.Namespace) -> Path:
    """The model's folder; ends the program where model or data are missing."""
    if why := missing(given.model):
        raise SystemExit(why)
    if not (given.data / "streams").is_dir():
        raise SystemExit(f"skipped: no streams/ in {given.data}")
    return convert(given.model)


def main() -> None:
    """Print a table for each task."""
    parser = options(__doc__)
    parser.add_argument("--only", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--log", type=int, default=LOG, help="examples")
    parser.add_argument("--asked", type=int, default=ASKED, help="questions")
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS, help="tokens of a prompt")
    given = parser.parse_args()
    gemma = Gemma(ready(given))
    for name in given.only:
        run(gemma, load_task(name, given.data, given.log, given.asked), given)


if __name__ == "__main__":
    main()
