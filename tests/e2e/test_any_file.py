"""Any file in the place of ours: opening, rebuilding and promoting work, or raise Ibidem's own errors."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

import ibidem
from ibidem.active_model import FILES
from ibidem.cli.doctor import examine
from ibidem.cli.rebuild import _rebuilt
from ibidem.embedding.model_files import MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE
from ibidem.errors import EmbedderUnavailable, IbidemError
from ibidem.settings import read_settings
from ibidem_lab import promote
from ibidem_lab.model_directory import open_model_directory
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

HEADER = b"SQLite format 3\0"
Damage = Callable[[Path, random.Random], object]


def _written(content: bytes) -> Damage:
    def write(file: Path, draw: random.Random) -> None:
        file.write_bytes(content)

    return write


def _random(file: Path, draw: random.Random) -> None:
    file.write_bytes(draw.randbytes(draw.choice((1, 15, 16, 100, 5000))))


def _half_random(file: Path, draw: random.Random) -> None:
    file.write_bytes(HEADER + draw.randbytes(draw.choice((1, 84, 5000))))


def _cut(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content))] if content else b"")


def _flipped(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(max(1, len(content) // 50)):
        if content:
            content[draw.randrange(len(content))] = draw.randrange(256)
    file.write_bytes(content)


def _foreign(file: Path, draw: random.Random) -> None:
    """A database of another program, which may have tables of our names."""
    file.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(file)) as db:
        for table in draw.sample(("entries", "meta", "lookups", "embedders", "notes"), 3):
            db.execute(f"CREATE TABLE {table} (id, {draw.choice(('key, value', 'x'))})")
            db.execute(f"INSERT INTO {table} (id) VALUES ('schema_version')")
        db.commit()


def _replaced(make: Callable[[Path], object]) -> Damage:
    def replace(file: Path, draw: random.Random) -> None:
        file.unlink(missing_ok=True)
        make(file)

    return replace


def _folder(file: Path) -> None:
    file.mkdir()
    (file / "a file").write_text("mine", "utf-8")


KINDS: dict[str, Damage] = {
    "random": _random,
    "half random": _half_random,
    "cut": _cut,
    "flipped": _flipped,
    "empty": _written(b""),
    "foreign": _foreign,
    "json": _written(b'{"files": [], "name": 1, "before": {"auc": "x"}, "weights": [1]}'),
    "deep json": _written(b"[" * 100_000),
    "number": _written(b"1e999"),
    "null": _written(b"null"),
    "folder": _replaced(_folder),
    "link to itself": _replaced(lambda file: file.symlink_to(file)),
    "link to nothing": _replaced(lambda file: file.symlink_to(file.with_name("nothing") / "here")),
}
if hasattr(os, "mkfifo"):
    KINDS["pipe"] = _replaced(os.mkfifo)


def damaged(file: Path, kind: str, seed: int = 0) -> None:
    """Put something else in the place of a file, or folder."""
    draw = random.Random(f"{file.name} {kind} {seed}")
    if file.is_dir():
        shutil.rmtree(file)
    if not file.exists():
        file.touch()
    KINDS[kind](file, draw)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache that was closed."""
    path = tmp_path_factory.mktemp("any") / "cache"
    with ibidem.open(path, embedder=BagOfWords(), min_similarity=0.8) as cache:
        for n in range(5):
            cache.store(ibidem.Request(question(n)), ibidem.Answer(answer(n)))
        cache.flush()
    return path


def used(path: Path) -> None:
    """All that a program and the commands do with a cache: it works, or is refused in Ibidem's words."""
    for attempt in (_cached, _rebuild, _examine):
        with contextlib.suppress(IbidemError):
            attempt(path)


def _rebuild(path: Path) -> None:
    _rebuilt(read_settings(path=path, embedder=BagOfWords()))


def _examine(path: Path) -> None:
    examine(read_settings(path=path, embedder=BagOfWords()))


def _cached(path: Path) -> None:
    with ibidem.open(path, embedder=BagOfWords(), min_similarity=0.8) as cache:
        cache.store(ibidem.Request(question(9)), ibidem.Answer(answer(9)))
        for n in (0, 9):
            cache.lookup(ibidem.Request(question(n)))
            cache.lookup(ibidem.Request(reworded(n)))
        cache.flush()
        with contextlib.suppress(IbidemError):
            cache.stats()


DATABASE = "ibidem.sqlite3"
BESIDE = (
    f"{DATABASE}-wal",
    f"{DATABASE}-shm",
    "index.lock",
    "index.in-use",
    "index.writing",
    "chroma",
    "models",
)
FEW = [kind for kind in ("random", "empty", "folder", "link to itself", "pipe") if kind in KINDS]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((DATABASE, kind) for kind in KINDS), *((name, kind) for name in BESIDE for kind in FEW)],
)
def test_anything_in_the_directory_of_a_cache(filled: Path, tmp_path: Path, name: str, kind: str) -> None:
    """What was there is not looked at: that nothing else is raised, and nothing hangs, is the test."""
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    damaged(path / name, kind)
    used(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(9))
def test_a_flipped_or_cut_database(filled: Path, tmp_path: Path, seed: int) -> None:
    """Other bytes each time, with a valid header or not."""
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    damaged(path / DATABASE, ("flipped", "cut", "half random")[seed % 3], seed)
    used(path)


@pytest.mark.timeout(60)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("chroma", "random"),
        *(("chroma/chroma.sqlite3", kind) for kind in ("random", "pipe") if kind in KINDS),
    ],
)
def test_anything_where_chroma_looks(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """As in a large cache, which has a real index."""
    monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    (path / name).parent.mkdir(exist_ok=True)
    damaged(path / name, kind)
    used(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two numbers with all files that `ibidem learn encoder` writes."""
    from onnx import TensorProto, helper
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    path = tmp_path_factory.mktemp("tiny") / "model"
    path.mkdir()
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])
    vector = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 1])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["numbers"], ["embedding"], axes=[1], keepdims=1),
    ]
    graph = helper.make_graph(nodes, "tiny", [ids], [vector])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (path / MODEL_FILE).write_bytes(model.SerializeToString())
    tokenizer = Tokenizer(WordLevel({"[UNK]": 1, "does": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path / TOKENIZER_FILE))
    (path / "metrics.json").write_text('{"before": {"auc": 0.5}, "after": {"auc": 0.6}}', "utf-8")
    (path / "README.md").write_text("# A model", "utf-8")
    signed(path)
    return path


def signed(path: Path) -> None:
    """Write a manifest that fits the files, as somebody could who exchanged them."""
    files = {
        name: sha256((path / name).read_bytes()).hexdigest()
        for name in (MODEL_FILE, TOKENIZER_FILE)
        if (path / name).is_file()
    }
    manifest = {"name": "tiny", "recipe": "r", "weights": "w", "max_tokens": 256, "files": files}
    (path / MANIFEST_FILE).write_text(json.dumps(manifest), "utf-8")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_the_tiny_model_is_one(tiny: Path) -> None:
    """Else all that follows would be refused anyway."""
    assert open_model_directory(tiny).embedder.embed(["does it?"]).shape == (1, 1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in FILES if name != "README.md"])
def test_anything_in_the_directory_of_a_model(model: Path, tmp_path: Path, name: str, kind: str) -> None:
    """With a manifest that fits, so that what reads the files gets to see them."""
    damaged(model / name, kind)
    if name != MANIFEST_FILE:
        signed(model)
    with contextlib.suppress(IbidemError):
        open_model_directory(model)


@pytest.mark.parametrize("name", FILES)
def test_a_link_that_leads_out_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    """Else a model directory from elsewhere would have any file copied into the database."""
    kept = tmp_path / "secret"
    (model / name).rename(kept) if (model / name).exists() else kept.write_text("{}", "utf-8")
    (model / name).symlink_to(kept)

    with pytest.raises(EmbedderUnavailable, match=f"{name} lies outside"):
        open_model_directory(model)


def test_a_link_within_is_fine(model: Path) -> None:
    """As the hub's client lays files out, if they are all there."""
    (model / MODEL_FILE).rename(model / "blob")
    (model / MODEL_FILE).symlink_to(model / "blob")

    assert open_model_directory(model).embedder.embed(["does"]).shape == (1, 1)


OUTSIDE = [
    "../escaped",
    "/{}/escaped",
    "..",
    "a/../../escaped",
    "models",
    ".",
    "",
    "sub/escaped",
    "model.onnx\0",
]


def test_no_row_of_the_database_writes_elsewhere(tiny: Path, tmp_path: Path) -> None:
    """The names of a promoted model's files come from the database, and anybody may have written there."""
    names = [(name.format(tmp_path),) for name in OUTSIDE]
    path = tmp_path / "cache"
    with ibidem.open(path) as cache:
        promote(cache, tiny, force=True)
    shutil.rmtree(path / "models")
    before = {one for one in tmp_path.rglob("*") if "cache" not in one.parts}
    with contextlib.closing(sqlite3.connect(path / DATABASE)) as db:
        rows = "INSERT INTO model_files SELECT DISTINCT model, ?, 0, x'00' FROM model_files WHERE file != ?1"
        db.executemany(rows, names)
        db.commit()
    with ibidem.open(path) as cache:
        cache.lookup(ibidem.Request("Does it?"))

    (folder,) = (one for one in (path / "models").iterdir() if one.is_dir())
    assert {one.name for one in folder.iterdir()} <= set(FILES)
    assert {one for one in tmp_path.rglob("*") if "cache" not in one.parts} == before
    assert not (path / "escaped").exists()


@pytest.mark.parametrize("part", ["../other", "/etc", "a/../../other", "\0", 7, None])
def test_modules_outside_are_refused(tmp_path: Path, part: object) -> None:
    """A folder of sentence-transformers names its parts in a file that comes with it."""
    (tmp_path / "st").mkdir()
    (tmp_path / "other").mkdir()
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "x"},
        {"idx": 1, "name": "1", "path": part, "type": "x"},
    ]
    (tmp_path / "st" / "modules.json").write_text(json.dumps(modules), "utf-8")

    with pytest.raises(EmbedderUnavailable):
        ibidem.open(tmp_path / "cache", embedder=str(tmp_path / "st"))
