"""What a fine-tuned model makes of a log, beside few-shot prompts and none: real LoRA runs on the processor.

    python -m tests.benchmarks.small_model.finetune --data FOLDER --model FOLDER [--sizes 200 1000]

Of each log, answered messages of a stream, `ibidem_lab.export` writes the training set in all its forms,
which are checked to say the same. trl and peft train a LoRA adapter on it (rank 8, all linear layers, rate
0.001, batches of 8, bfloat16), and see some 2,000 answers in all, each at most 4 times. The same questions,
none of which is in a log, are asked of the model without examples, with those that `IbidemExampleSelector`
finds in the log (`--budget` tokens), and of the fine-tuned model, whose prompt is the question alone, as in
the export. Labels are chosen as in `few_shot`. All settings were chosen before anything was measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

import ibidem
import ibidem_lab
from ibidem.cache import SemanticCache
from ibidem.types import digest, normalise
from ibidem_lab.exporting.choice import Format
from ibidem_lab.replay import share
from tests.benchmarks.small_model.few_shot import Bench, difference, options, ready, told
from tests.benchmarks.small_model.model import Gemma
from tests.benchmarks.small_model.prompts import Arm, Prompts, fill
from tests.benchmarks.small_model.tasks import Task, load_intents
from tests.benchmarks.small_model.training import passes, rows, train

SIZES = (200, 1_000)
ASKED = 40
FORM: Format = "prompt-completion"
TITLE = 20  # characters of a passage, by which it is known


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model: what it was trained on, what it took (processor seconds), and where it is right."""

    examples: int
    epochs: int
    loss: float
    seconds: float
    right: list[bool]
    tokens: float
    asking: float


@dataclass(frozen=True)
class Row:
    """A log's size, and right or not by question: nearest example copied, few-shot, fine-tuned."""

    size: int
    copied: list[bool]
    few_shot: list[bool]
    tokens: float
    asking: float
    tuned: Tuned


def exported(cache: SemanticCache, task: Task, documents: bool) -> list[dict[str, str]]:
    """The training set of a log, the same from every form.

    Raises:
        AssertionError: Two forms differ.
    """
    texts = {passage[:TITLE]: passage for passage in task.passages.values()}
    sets = {}
    with tempfile.TemporaryDirectory() as place:
        for form in get_args(Format):
            folder = Path(place) / form
            known = (lambda document: texts.get(document.id)) if documents else None
            ibidem_lab.export(cache.examples, folder, form, near=1.0, test_share=0, texts=known)
            sets[form] = list(rows(folder, form))
            assert sets[form] == sets[get_args(Format)[0]], form
    return sorted(sets[FORM], key=repr)  # it is shuffled later; equal sets are trained on once


def tune(model: Path, cache: SemanticCache, task: Task, kept: Path, *, documents: bool = False) -> Tuned:
    """Export, train unless this very set was trained on before, and ask."""
    data = exported(cache, task, documents)
    folder = kept / f"adapter-{digest(repr(data))[:12]}"
    if not (done := folder / "trained.json").is_file():
        started = time.process_time()
        loss = train(model, data, folder, passes(len(data)))
        done.write_text(json.dumps([loss, time.process_time() - started]), encoding="utf-8")
    loss, seconds = json.loads(done.read_text(encoding="utf-8"))
    gemma, right, started = Gemma(model, folder), [], time.process_time()
    tree = gemma.tree("x\n\n", task.labels, stops=True)
    context = {question: f"{task.passages[question]}\n\n" for question, _ in task.asked} if documents else {}
    prompts = [f"{context.get(question, '')}{normalise(question)}\n\n" for question, _ in task.asked]
    for prompt, (_, answer) in zip(prompts, task.asked, strict=True):
        said = gemma.choose(prompt, tree) if task.labels else gemma.complete(prompt)
        right.append(task.right(said, answer))
    asking = (time.process_time() - started) / len(right)
    tokens = float(np.mean([len(gemma.tokens(prompt)) for prompt in prompts]))
    return Tuned(len(data), passes(len(data)), loss, seconds, right, tokens, asking)


def measure(gemma: Gemma, model: Path, task: Task, budget: int, kept: Path) -> Row:
    """One log."""
    with tempfile.TemporaryDirectory() as place, ibidem.open(place) as cache:
        fill(cache, task.log)
        bench = Bench(gemma, task, Prompts(task, cache, gemma.count))
        (found,) = bench.measure([Arm("similarity", budget)])
        tuned = tune(model, cache, task, kept)
        tokens = float(np.mean(found.tokens))
        return Row(len(task.log), bench.copied(), found.right, tokens, found.seconds, tuned)


def table_of(found: Sequence[Row], bare: Sequence[bool], budget: int, name: str) -> Table:
    """One line for each log."""
    heads = "log|trained on|passes|loss|training, s|nearest, copied|few-shot|fine-tuned|more than few-shot"
    costs = "few-shot: tokens|s|fine-tuned: tokens|s"
    said = share(sum(bare), len(bare))
    title = f"{name}, {len(bare)} questions; few-shot within {budget} tokens; without examples {said}"
    table = Table(*heads.split("|"), *costs.split("|"), title=title)
    for row in found:
        tuned = row.tuned
        shares = [str(share(sum(one), len(one))) for one in (row.copied, row.few_shot, tuned.right)]
        table.add_row(
            *(f"{row.size:,}", f"{tuned.examples:,}", f"{tuned.epochs}", f"{tuned.loss:.2f}"),
            *(f"{tuned.seconds:.0f}", *shares, told(difference(tuned.right, row.few_shot))),
            *(f"{row.tokens:.0f}", f"{row.asking:.2f}", f"{tuned.tokens:.0f}", f"{tuned.asking:.2f}"),
        )
    return table


def main() -> None:
    """Print a line for each log, and a table."""
    parser = options(__doc__)
    parser.add_argument("--stream", default="banking77", help="banking77 or clinc150")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="of the logs")
    parser.add_argument("--asked", type=int, default=ASKED, help="questions")
    parser.add_argument("--budget", type=int, default=512, help="tokens of a few-shot prompt")
    given: argparse.Namespace = parser.parse_args()
    model = ready(given)
    given.out = given.out or Path(tempfile.mkdtemp())
    given.out.mkdir(parents=True, exist_ok=True)
    gemma, found = Gemma(model), list[Row]()
    task = load_intents(given.data, given.stream, 0, given.asked)
    with tempfile.TemporaryDirectory() as place, ibidem.open(place) as cache:
        (bare,) = Bench(gemma, task, Prompts(task, cache, gemma.count)).measure([Arm("none")])
    print("without examples:", bare.share, flush=True)
    for size in given.sizes:
        task = load_intents(given.data, given.stream, size, given.asked)
        found.append(measure(gemma, model, task, given.budget, given.out))
        row = found[-1]
        print(size, sum(row.few_shot), sum(row.tuned.right), f"{row.tuned.seconds:.0f} s", flush=True)
        kept = {"bare": bare.right, "rows": [asdict(one) for one in found]}
        (given.out / f"finetune-{given.stream}.json").write_text(json.dumps(kept), encoding="utf-8")
    Console(width=200).print(table_of(found, bare.right, given.budget, given.stream))


if __name__ == "__main__":
    main()
