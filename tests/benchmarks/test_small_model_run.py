"""The benchmarks with a small language model run, with a tiny one of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ibidem
from ibidem.embedding import resolve_embedder
from tests.benchmarks.small_model import advice, few_shot, finetune
from tests.benchmarks.small_model.model import Gemma, missing
from tests.benchmarks.small_model.prompts import Arm, Prompts, fill
from tests.benchmarks.small_model.tasks import Task, load_ferries, load_intents
from tests.benchmarks.test_benchmarks_run import needs_model

pytestmark = [
    pytest.mark.slow,  # torch is imported
    needs_model,
    # Of these libraries, in use; nothing of ours warns so.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TOPICS = ("lost card", "lost phone", "opening hours")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma of random weights, two layers, one of them with a window that prompts exceed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>", "<bos>"]
    raw.train_from_iterator(TOPICS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=letters))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"], pad_token_id=0, eos_token_id=1, bos_token_id=2,
        initializer_range=0.5,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_what_prompts_have_in_common_is_read_once_and_changes_nothing(model: Path) -> None:
    """Neither a choice nor a continuation; also behind the window of a layer."""
    gemma, shared = Gemma(model), "Message: where is it\nTopic: lost card\n\n" * 5
    prompts = [f"{shared}Message: {text}\nTopic:" for text in ("my phone", "my card", "the phone")]
    tree = gemma.tree(prompts[0], [f" {topic}\n\n" for topic in TOPICS], stops=False)
    told = [(gemma.choose(prompt, tree), gemma.complete(prompt)) for prompt in prompts]
    read = gemma.read

    def fresh(prompt: str) -> tuple[str, str]:
        gemma.forget()
        return gemma.choose(prompt, tree), gemma.complete(prompt)

    assert told == [fresh(prompt) for prompt in prompts]
    assert {topic for topic, _ in told} <= set(TOPICS)
    assert read < (gemma.read - read) / 2


def test_no_prompt_has_more_tokens_than_it_may(model: Path, tmp_path: Path) -> None:
    """Of any kind; examples that are selected are not the question's own, and fill the prompt."""
    task, gemma = load_ferries(resolve_embedder(None), 100, 4), Gemma(model)
    with ibidem.open(tmp_path) as cache:
        fill(cache, task.log)
        prompts = Prompts(task, cache, gemma.count)
        for kind, document in (
            ("fixed", True),
            ("random", False),
            ("similarity", True),
            ("diversity", False),
        ):
            lengths = [len(gemma.tokens(one)) for one in prompts.of(Arm(kind, 900, document))]
            assert max(lengths) <= 900
            assert min(lengths) > 600


def messages(count: int) -> Task:
    """Messages that say what they are about."""
    ways = ("I have a {}", "what do you do about a {}", "my problem: {}", "please, {}", "{}, can you help")
    pairs = [(f"{ways[n % 5].format(TOPICS[n % 3])} ({n} of us)", TOPICS[n % 3]) for n in range(count)]
    return Task("messages", "Messages.", "Message:", "Topic:", pairs[8:], pairs[:8], TOPICS)


def test_a_log_trains_the_model(model: Path, tmp_path: Path) -> None:
    """From an export, the same in each form; the same set is trained on once."""
    task = messages(60)
    row = finetune.measure(Gemma(model), model, task, 400, tmp_path)
    trained = [path.stat().st_mtime for path in tmp_path.glob("adapter-*/trained.json")]
    again = finetune.measure(Gemma(model), model, task, 400, tmp_path)

    assert 20 < row.tuned.examples <= 52
    assert again == row.__class__(**{**vars(again), "tuned": again.tuned})
    assert again.tuned.right == row.tuned.right
    assert [path.stat().st_mtime for path in tmp_path.glob("adapter-*/trained.json")] == trained
    assert finetune.table_of([row], [False] * 8, 400, "messages").row_count == 1


def test_a_log_is_simulated(model: Path, tmp_path: Path) -> None:
    """Each step is measured, and there is advice on each."""
    given = few_shot.options("").parse_args(["--data", ".", "--model", str(model), "--out", str(tmp_path)])
    given.asked = 2
    found = advice.simulate(advice.Log("ferries", "ferries", 16, facts="new"), Gemma(model), given)

    assert found.right.keys() == {"now", *advice.STEPS}
    assert found.advised.keys() == found.pays.keys() == set(advice.STEPS)
    assert advice.table_of([found]).row_count == 1


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Without the model's packages; and intents that have no words of ours keep their own."""
    (tmp_path / "streams").mkdir()
    rows = [
        {"text": f"{topic} {n}", "meaning": topic.replace(" ", "_")} for topic in TOPICS for n in range(60)
    ]
    text = "\n".join(map(json.dumps, [*rows, {"text": "rare", "meaning": "rare"}]))
    (tmp_path / "streams" / "own.jsonl").write_text(text, encoding="utf-8")

    task = load_intents(tmp_path, "own", 100, 20)

    assert task.labels == TOPICS
    assert (len(task.log), len(task.asked)) == (100, 20)
    assert "skipped: " in missing(tmp_path) or not missing(tmp_path)
