"""From a log to a fine-tuned model: the example runs as it stands, and what it saves can be used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ibidem_lab
from ibidem import Example
from tests.conftest import OpenCache

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune_lora.py"
COLOURS = ("red", "green", "blue", "black", "white", "brown", "pink", "grey")

# Runs the script with one list of arguments after the other, and says with what each ended; then loads what
# it saved. One process: its imports take seconds.
ALL = """
import json, runpy, sys
script, *given = sys.argv[1:]
for arguments in map(json.loads, given):
    sys.argv = [script, *arguments, "--cpu"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("ended with:", end.code)

from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained("adapter")
read = AutoTokenizer.from_pretrained("adapter")("which colour", return_tensors="pt")
print("tokens:", model.generate(input_ids=read["input_ids"], max_new_tokens=3).shape[1])
"""


def run(*given: list[str], place: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ALL, SCRIPT, *map(json.dumps, given)],
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
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_model_learns_from_an_export(open_cache: OpenCache, tmp_path: Path) -> None:
    """The loss on questions of other things falls; the adapter loads and answers.

    What cannot be used is said in one sentence.
    """
    cache = open_cache()
    for n in range(80):
        question = f"which colour has thing{n} of maker{n}"
        cache.examples.add(Example(question, f"The colour of it is {COLOURS[n % 8]}."))
    found = ibidem_lab.export(cache.examples, tmp_path / "data", "openai-chat", apart=0.9)
    ibidem_lab.export(cache.examples, tmp_path / "whole", test_share=0)
    ibidem_lab.export(cache.examples, tmp_path / "alpaca", "alpaca", apart=0.9)
    said = run(["whole"], ["alpaca"], ["data", "--epochs", "6", "--rate", "1e-2"], place=tmp_path)

    assert found.test == 8
    whole, alpaca = re.findall(r"^ended with: (.+)$", said, re.MULTILINE)
    assert "export with a --test-share above 0" in whole
    assert "--format openai-chat or prompt-completion" in alpaca
    before, after = map(float, re.findall(r"loss on the test: ([\d.]+) before, ([\d.]+) after", said)[0])
    assert after < 0.8 * before
    assert re.search(r"^tokens: \d+$", said, re.MULTILINE)
