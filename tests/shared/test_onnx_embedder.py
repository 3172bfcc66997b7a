"""The default embedder: its vectors, its files, its life in a process."""

import gc
import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pytest
from tokenizers import Tokenizer

from ibidem.embedding import DEFAULT, Embedder, model_files, onnx_model, resolve_embedder
from ibidem.embedding.onnx_embedder import OnnxEmbedder
from ibidem.errors import ConfigurationError, EmbedderUnavailable

SENTENCES = [
    "What is the capital of France?",
    "x",
    "SELECT name FROM users WHERE age > 5;",
    "Wie hoch ist der Mount Everest? 世界 émigré 🙂",
    "an unusually long question about nothing in particular, " * 12,
]
SUBJECTS = [
    "the Eiffel Tower", "a diesel engine", "my credit card", "photosynthesis", "the French Revolution",
    "a Python list", "iPhone 12", "type 2 diabetes", "the 2016 election", "red wine",
]  # fmt: skip
FORMS = [
    "what is {}", "How does {} work?", "who invented {}?", "When was {} first mentioned in a newspaper?",
    "why is {} so expensive in Germany", "Compare {} with its closest alternative.", "{}?",
    "Is {} safe for children under 12?", "Write a short poem about {}", "how much does {} cost in 2024",
    "I lost {}, what should I do now?", "explain {} to me like I am five",
]  # fmt: skip
QUESTIONS = [*SENTENCES, *(form.format(subject) for form in FORMS for subject in SUBJECTS)]


@pytest.fixture(scope="session")
def encoder() -> Path:
    """The folder of the encoder that ships. Tests only read it."""
    folder = model_files.shipped_folder("encoder")
    assert folder is not None
    return folder


@pytest.fixture(scope="session")
def model(encoder) -> OnnxEmbedder:
    return OnnxEmbedder.from_directory(encoder)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


class TestVectors:
    def test_rows_are_unit_float32(self, model):
        vectors = model.embed(SENTENCES)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(SENTENCES), 384)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_a_text_has_one_vector_whatever_is_embedded_with_it(self, model):
        together = model.embed(QUESTIONS[:20])
        alone = np.concatenate([model.embed([text]) for text in reversed(QUESTIONS[:20])])[::-1]
        np.testing.assert_array_equal(together, alone)

    def test_the_graph_itself_does_not_mix_the_rows_of_a_batch(self, model):
        session, tokenizer = model._model.loaded().session, model._model.loaded().tokenizer
        rows = [tokenizer.encode(text).ids for text in SENTENCES[:4]]
        ids = np.zeros((4, max(map(len, rows))), np.int64)
        mask = ids.copy()
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = row, 1
        batch = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        assert (batch * model.embed(SENTENCES[:4])).sum(axis=1).min() > 0.99999

    def test_paraphrases_are_nearer_than_strangers(self, model):
        a, b, c = model.embed(["how do I reset my password", "I forgot my password", "boiling point of iron"])
        assert a @ b > 0.6 > 0.2 > a @ c

    def test_no_texts(self, model):
        assert model.embed([]).shape == (0, 384)

    def test_empty_and_broken_text(self, model):
        assert model.embed(["", "\ud800 lone surrogate", "\x00"]).shape == (3, 384)

    def test_text_is_cut_at_256_tokens(self, model):
        words = ["word"] * 254  # with [CLS] and [SEP] exactly the window
        full, longer = " ".join(words), " ".join([*words, "banana", "apple"])
        assert model.max_tokens == 256
        np.testing.assert_array_equal(*model.embed([full, longer]))
        assert not np.array_equal(*model.embed([" ".join(words[:-1]), longer]))

    @pytest.mark.parametrize("text", [*SENTENCES, "", "word " * 400])
    def test_tokens_are_counted_without_truncation(self, model, encoder, text):
        tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        assert model.count_tokens(text) == len(tokenizer.encode(text).ids)

    @pytest.mark.parametrize("unit", ["a", "1 ", "각", "ﷺ", "中", "é", "🙂"])
    def test_count_of_a_giant_text_is_a_bound_from_above(self, model, encoder, unit):
        text = unit * 17_000
        tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        assert len(tokenizer.encode(text).ids) <= model.count_tokens(text)


class TestProcess:
    def test_threads_agree(self, encoder):
        fresh = OnnxEmbedder.from_directory(encoder)
        gate = threading.Barrier(8)

        def work(_):
            gate.wait()
            return fresh.embed(QUESTIONS[:10])

        with ThreadPoolExecutor(8) as pool:
            first, *others = pool.map(work, range(8))
        assert all(np.array_equal(first, other) for other in others)

    def test_loading_is_lazy(self, encoder):
        assert OnnxEmbedder.from_directory(encoder)._model._loaded is None

    def test_a_model_is_loaded_once_and_let_go_with_its_last_user(self, encoder, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_model, "_shared", inspect.unwrap(onnx_model._shared))  # which keeps it
        monkeypatch.setattr(onnx_model, "_loaded", WeakValueDictionary())
        copy = Path(shutil.copytree(encoder, tmp_path / "copy"))
        users = [OnnxEmbedder.from_directory(place) for place in (encoder, encoder, copy)]
        expected = [user.embed(["a question"]) for user in users]
        assert all(np.array_equal(expected[0], other) for other in expected)
        assert len({id(user._model._loaded.session) for user in users}) == 1
        assert OnnxEmbedder(users[0]._files, threads=2)._model.loaded() is not users[0]._model._loaded
        left = weakref.ref(users[0]._model._loaded)
        users.clear()
        gc.collect()
        assert left() is None

    def test_weights_beside_the_graph_are_not_shared(self, encoder, tmp_path):
        """Two graphs with the same bytes may have other weights."""
        copies = []
        for name in "ab":
            copy = Path(shutil.copytree(encoder, tmp_path / name))
            (copy / "manifest.json").unlink()
            copies.append(OnnxEmbedder.from_directory(copy))
        assert not copies[0]._files.whole
        assert copies[0]._model.loaded() is not copies[1]._model.loaded()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    @pytest.mark.parametrize("threads", [1, 2])
    def test_works_after_fork_even_if_another_thread_held_the_lock(self, encoder, threads):
        code = f"""
import os, signal, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tested here
from ibidem.embedding import onnx_model
from ibidem.embedding.model_files import open_directory, shipped_folder
from ibidem.embedding.onnx_embedder import OnnxEmbedder
model = OnnxEmbedder(open_directory(shipped_folder("encoder")), threads={threads})
expected = model.embed(["a question"])
model._model._lock.acquire()
onnx_model._loading.acquire()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    same = model._model._loaded is None and (model.embed(["a question"]) == expected).all()
    del model
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
        result = run(code)
        assert (result.returncode, result.stderr) == (0, "")

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each process loads its own")
    @pytest.mark.parametrize(
        ("threads", "meanwhile", "same"),
        [
            (1, "pass", True),
            (1, "threading.Thread(target=compute, daemon=True).start()", True),
            (1, "threading.Thread(target=never_out, daemon=True).start()", False),
            (2, "pass", False),  # it has threads of its own
        ],
    )
    def test_a_forked_child_shares_the_session_of_its_parent(self, encoder, threads, meanwhile, same):
        """Unless somebody may be within; then it loads its own. A grandchild has it too."""
        code = f"""
import os, signal, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ibidem._util import concurrency
from ibidem.embedding import onnx_model
from ibidem.embedding.model_files import open_directory, shipped_folder
from ibidem.embedding.onnx_embedder import OnnxEmbedder
concurrency.FORK_SECONDS = 0.3
model, going = OnnxEmbedder(open_directory(shipped_folder("encoder")), threads={threads}), threading.Event()
expected, session = model.embed(["a question"]), model._model.loaded().session
def compute():
    while True:
        model.embed(["a question that takes a while " * 8])
        going.set()
def never_out():
    with onnx_model._in_session:
        going.set()
        threading.Event().wait()
{meanwhile}
if "Thread" in {meanwhile!r}:
    going.wait()
def child():
    signal.alarm(60)
    right = (model.embed(["a question"]) == expected).all()
    return right and (model._model.loaded().session is session) is {same}
for generation in range(2):
    pid = os.fork()
    if pid:
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(ended if (model.embed(["a question"]) == expected).all() else 2)
    if not child():
        os._exit(1)
os._exit(0)
"""
        result = run(code)
        assert (result.returncode, result.stderr) == (0, "")

    def test_the_bytes_of_a_loaded_graph_are_freed(self, model):
        """The library would keep them, 67 MB of the pair model."""
        model.embed(["a question"])
        held = [value for value in vars(model._model.loaded().session).values() if isinstance(value, bytes)]
        assert held == []

    def test_nothing_heavy_is_imported_early(self, encoder):
        code = """
import sys, ibidem.embedding
from ibidem.embedding.onnx_embedder import OnnxEmbedder
heavy = {"onnxruntime", "onnx", "torch", "tokenizers", "huggingface_hub", "sentence_transformers"}
heavy |= {"langchain_core", "llama_index", "safetensors"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
ibidem.embedding.resolve_embedder()
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
        result = run(code)
        assert (result.returncode, result.stderr) == (0, "")


class TestFiles:
    def test_names_of_the_default(self, encoder):
        names = (None, DEFAULT, f"sentence-transformers/{DEFAULT}", str(encoder), encoder)
        prints = {resolve_embedder(name).fingerprint for name in names}
        assert len(prints) == 1
        assert prints.pop().startswith(f"{DEFAULT}/int8-1/")

    def test_is_an_embedder(self, model):
        assert isinstance(model, Embedder)
        assert resolve_embedder(model) is model

    def test_the_users_cache_is_the_default(self, monkeypatch):
        monkeypatch.delenv("IBIDEM_MODEL_CACHE", raising=False)
        assert model_files.cache_root().parts[-2:] == ("ibidem", "models") or os.name == "nt"

    def test_without_its_package_it_says_what_to_do(self, monkeypatch):
        monkeypatch.setattr(model_files, "WEIGHTS", "no_such_package")
        with pytest.raises(EmbedderUnavailable, match="pip install ibidem-models"):
            resolve_embedder()

    def test_given_directory_that_was_changed(self, encoder, tmp_path):
        for file in encoder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "model.onnx").write_bytes(b"damaged")
        with pytest.raises(EmbedderUnavailable, match=r"model\.onnx damaged or changed"):
            resolve_embedder(str(tmp_path))

    def test_foreign_directory_without_manifest(self, encoder, tmp_path):
        for name in ("model.onnx", "tokenizer.json"):
            (tmp_path / name).write_bytes((encoder / name).read_bytes())
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
        embedder = resolve_embedder(tmp_path)
        assert embedder.fingerprint.startswith("onnx/")
        assert embedder.max_tokens == 7
        np.testing.assert_array_equal(*embedder.embed(["a b c d e", "a b c d e f g"]))

    def test_foreign_directory_with_unusable_files(self, encoder, tmp_path):
        (tmp_path / "model.onnx").write_bytes(b"not a graph")
        with pytest.raises(EmbedderUnavailable, match=r"tokenizer\.json is missing"):
            resolve_embedder(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(EmbedderUnavailable, match="cannot load the model"):
            resolve_embedder(tmp_path).embed(["x"])

    def test_foreign_graph_without_pooling(self, encoder, tmp_path):
        from onnx import TensorProto, helper, save

        tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])
        hidden = helper.make_tensor_value_info("last_hidden_state", TensorProto.INT64, ["n", "t", 1])
        axes = helper.make_tensor("axes", TensorProto.INT64, [1], [2])
        node = helper.make_node("Unsqueeze", ["input_ids", "axes"], ["last_hidden_state"])
        graph = helper.make_graph([node], "unpooled", [tokens], [hidden], [axes])
        opset = [helper.make_opsetid("", 17)]
        save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
        (tmp_path / "tokenizer.json").write_bytes((encoder / "tokenizer.json").read_bytes())
        with pytest.raises(ConfigurationError, match=r"pooled vectors of shape \[n, d\].*last_hidden_state"):
            resolve_embedder(tmp_path).embed(["x"])
