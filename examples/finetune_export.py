"""From the log to training data: what a model answered and people found right, as files to train another on.

    python examples/finetune_export.py answers                                # anywhere: no key, no network
    python examples/finetune_export.py answers --model openai:gpt-4o-mini     # the teacher
    python examples/finetune_lora.py answers                                  # trains on it

People have sorted 36 messages to a shop. The model sorts 36 more, with examples of theirs in its prompt; of
what people then call bad nothing is exported. In a program of yours all but `export` happens by itself.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, RawTextHelpFormatter
from itertools import islice
from pathlib import Path

from common.langchain_parts import choose_model
from common.telling import summary
from common.tickets import COPIER, Copier, read_tickets
from few_shot import TASK, few_shot_prompt
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

import ibidem
import ibidem_lab
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache, IbidemExampleSelector

BY_PEOPLE = 36


def answer(model: BaseChatModel, cache: SemanticCache) -> None:
    """Fill the log: first people answer, then the model, whose stored answers are examples too."""
    tickets = read_tickets()
    for text, team in tickets[:BY_PEOPLE]:
        cache.examples.add(ibidem.Example(text, team, feedback=True))
    cache.flush()
    selector = IbidemExampleSelector(cache, min_feedback=True)
    model.cache = IbidemCache(cache, question_keys=["question"], any_message=True)
    chain: Runnable = few_shot_prompt(selector) | model
    for text, _ in tickets[BY_PEOPLE:]:
        chain.invoke({"question": text})


def judge(cache: SemanticCache) -> int:
    """People look at what the model said; how much of it was right."""
    cache.flush()
    right = dict(read_tickets())
    said = [one for one in cache.examples.recent(limit=len(right)) if one.feedback is None]
    for example in said:
        cache.examples.feedback(
            example.id, good=example.answer.strip(" .").lower() == right[example.question]
        )
    return sum(example.answer.strip(" .").lower() == right[example.question] for example in said)


def main() -> None:
    """Read the options; answer, judge, export."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the training data")
    parser.add_argument(
        "--model", metavar="NAME", help=f"provider:name for init_chat_model; default: {COPIER}"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ibidem.open(place) as cache:
        answer(choose_model(options, Copier()), cache)
        good = judge(cache)
        done = summary(cache.stats())
        found = ibidem_lab.export(
            cache.examples,
            options.folder,
            "openai-chat",
            feedback="good",
            test_share=0.2,
            apart=0.7,
            system=TASK,
        )
    print(f"Model: {options.model or COPIER}")
    print(f"answered by people {BY_PEOPLE}, by the model {found.read - BY_PEOPLE}, of these right {good}")
    print(f"for training {found.train}, to test {found.test}; left out: {found.dropped}")
    print(f"no question of the test is nearer to one of the training than {found.nearest:.2f}; for example:")
    with (options.folder / "train.jsonl").open(encoding="utf-8") as lines:
        print("   ", *islice(lines, 1))
    print(done)
    print(f"Next: python {Path(__file__).with_name('finetune_lora.py')} {options.folder}")


if __name__ == "__main__":
    sys.exit(main())
