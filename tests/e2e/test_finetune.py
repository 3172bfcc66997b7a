"""From a log to a fine-tuned model: the example runs as it stands, and what it saves can be used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ibidem import Example
from tests.conftest import OpenCache

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune_lora.py"
COLOURS = ("red", "green", "blue", "black", "white", "brown", "pink", "grey")

# Runs a script with one argument after the other, and says with what it ended: its imports take seconds.
TWICE = """
import runpy, sys
script, *given = sys.argv[1:]
for one in given:
    sys.argv = [script, one, "--cpu"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(end.code)
"""


def run(*arguments: object, place: Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments), "--cpu"],
        cwd=place,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_CACHE": str(place / "cached"),
        },
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_model_learns_from_an_export(open_cache: OpenCache, tmp_path: Path) -> None:
    """The loss on questions of other things falls; the adapter loads and answers."""
    cache = open_cache()
    for n in range(80):
        question = f"which colour has thing{n} of maker{n}"
        cache.examples.add(Example(question, f"The colour of it is {COLOURS[n % 8]}."))
    found = cache.examples.export(tmp_path / "data", "openai-chat", apart=0.9)
    said = run("data", "--epochs", 6, "--rate", "1e-2", place=tmp_path)
    before, after = map(float, re.findall(r"loss on the test: ([\d.]+) before, ([\d.]+) after", said)[0])

    assert found.test == 8
    assert after < 0.8 * before
    code = (
        "from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer\n"
        "model = AutoPeftModelForCausalLM.from_pretrained('adapter')\n"
        "read = AutoTokenizer.from_pretrained('adapter')('which colour', return_tensors='pt')\n"
        "print(model.generate(**{'input_ids': read['input_ids']}, max_new_tokens=3).shape[1])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.stdout.strip().isdigit(), shown.stderr[-2000:]


@pytest.mark.slow
def test_what_cannot_be_used_is_said(open_cache: OpenCache, tmp_path: Path) -> None:
    """In one sentence."""
    cache = open_cache()
    for n in range(20):
        cache.examples.add(Example(f"which colour{n} has thing{n}", "red"))
    cache.examples.export(tmp_path / "whole", test_share=0)
    cache.examples.export(tmp_path / "alpaca", "alpaca", test_share=0.2)

    said = subprocess.run(
        [sys.executable, "-c", TWICE, SCRIPT, "whole", "alpaca"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cached")},
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
    )
    whole, alpaca = said.stdout.strip().splitlines()
    assert "export with a --test-share above 0" in whole
    assert "--format openai-chat or prompt-completion" in alpaca
