"""Files of a model: a directory with `model.onnx`, `tokenizer.json` and, if it is ours, `manifest.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from ibidem.errors import EmbedderUnavailable

WEIGHTS = "ibidem_models"  # the package that holds the models that ship
MAX_TOKENS = 256  # of a directory that does not say how long its texts may be
CACHE_VARIABLE = "IBIDEM_MODEL_CACHE"
LOCK_SECONDS = 900.0  # another process may be copying
MODEL_FILE, TOKENIZER_FILE, MANIFEST_FILE = "model.onnx", "tokenizer.json", "manifest.json"


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
            now = open_directory(self.directory)
        except EmbedderUnavailable:
            return False
        return now.fingerprint == self.fingerprint and now.digests == found


# Raised by reading a JSON file and its expected fields.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file as 64 hex characters, in pieces."""
    hashed = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def cache_root() -> Path:
    """Directory for promoted models: `$IBIDEM_MODEL_CACHE`, else `models` in the user's cache directory."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("ibidem", appauthor=False)) / "models"


def shipped_folder(name: str) -> Path | None:
    """Return where the files of a model that ships are; None if its package is not installed."""
    found = find_spec(WEIGHTS)  # finds without importing: it holds no code
    places = [] if found is None else found.submodule_search_locations or []
    return next((path for place in places if (path := Path(place) / name).is_dir()), None)


def require_inside(directory: Path, names: Iterable[str]) -> None:
    """Refuse links that lead out of the directory: another file would be read and kept.

    Raises:
        EmbedderUnavailable: A file lies outside the directory.
    """
    try:
        home = directory.resolve()
        outside = [name for name in names if not (directory / name).resolve().is_relative_to(home)]
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name with a NUL
        raise _unusable(directory, str(error)) from None
    if outside:
        raise _unusable(directory, f"{' and '.join(outside)} lies outside; copy it there")


def open_directory(directory: Path) -> ModelFiles:
    """Open the model of a directory: one of Ibidem's, or any `model.onnx` with its `tokenizer.json`.

    Raises:
        EmbedderUnavailable: A file is missing, or differs from the manifest.
    """
    # Hashing 24 MB takes about 20 ms, and unlike a size also detects blocks lost in a crash.
    try:
        for file in (MODEL_FILE, TOKENIZER_FILE):
            if not (directory / file).is_file():
                raise _unusable(directory, f"{file} is missing")
        digests = {file: file_digest(directory / file) for file in (MODEL_FILE, TOKENIZER_FILE)}
    except OSError as error:
        raise _unusable(directory, f"it cannot be read: {error}") from None
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
        raise _unusable(directory, f"{MANIFEST_FILE} cannot be read: {error!r}") from None
    if damaged := [file for file, digest in digests.items() if expected.get(file) != digest]:
        raise _unusable(directory, f"{' and '.join(damaged)} damaged or changed (checksum)")
    # Of the weights: the exported bytes may vary where vectors do not.
    own = sha256((source + digests[TOKENIZER_FILE]).encode()).hexdigest()
    return ModelFiles(directory, f"{name}/{recipe}/{own[:16]}", window, digests, whole=True)


def _window(directory: Path) -> int:
    """Read `max_seq_length` of a sentence-transformers folder; 256 if there is none."""
    try:
        config = json.loads((directory / "sentence_bert_config.json").read_text(encoding="utf-8"))
        return max(3, int(config["max_seq_length"]))
    except _UNREADABLE:
        return MAX_TOKENS


def _unusable(directory: Path, why: str) -> EmbedderUnavailable:
    return EmbedderUnavailable(f"cannot use the model in {directory}: {why}")
