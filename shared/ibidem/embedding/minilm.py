"""The default embedder: all-MiniLM-L6-v2 in int8 through onnxruntime, without torch.

Measured on 700 questions (Natural Questions, intents, FAQ, Arena-Hard), one core of an AMD EPYC (Zen 5), one
thread, one text at a time; the fp32 graph agrees with sentence-transformers to 3e-7:

| form | MB | p50 / p95 ms (11 tokens) | cosine to fp32, mean (min) | error of a pair's cosine, sd (max) |
|---|---|---|---|---|
| fp32 | 90 | 2.7 / 3.5 | 1 | 0 |
| int8, two digits per activation (this) | 23 | 1.3 / 1.7 | .9996 (.9985) | .0025 (.013) |
| int8, one digit per activation | 23 | 0.8 / 1.0 | .9945 (.962) | .0093 (.058) |
"""

from __future__ import annotations

import os
import re
import sys
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ibidem._util.faults import log
from ibidem.embedding.base import unit_rows
from ibidem.embedding.minilm_files import ModelFiles, find_model, open_directory
from ibidem.errors import ConfigurationError, EmbedderUnavailable

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


CHARACTERS_PER_TOKEN = 64  # a text with more per token of the maximum length is cut before tokenisation


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _LoadedModel:
    """A loaded model, shared by all embedders of the same files in a process."""

    tokenizer: Tokenizer
    session: Any  # an InferenceSession of onnxruntime
    inputs: frozenset[str]
    output: str
    width: int


@dataclass(frozen=True, slots=True)
class _TokenisedText:
    """A text with the number of its `tokens`, and the `ids` of those that fit the maximum length."""

    text: str
    tokens: int
    unknown: bool
    ids: list[int]


class OnnxEmbedder:
    """Embeds with `model.onnx` and `tokenizer.json` of a directory. Safe across threads and forks.

    The graph takes `input_ids` and `attention_mask`, optionally `token_type_ids`, and has an output of shape
    [n, d]. The model is loaded at the first use.

    Args:
        files: From `find_model` or `open_directory`.
        threads: Threads for one text. The default of 1 suits servers, whose requests run in parallel anyway.
    """

    def __init__(self, files: ModelFiles, *, threads: int = 1) -> None:
        self._files = files
        self._threads = threads
        self._loaded: _LoadedModel | None = None
        self._last = threading.local()  # a lookup counts, checks and embeds one text
        self._make_locks()
        _alive.add(self)
        switch_telemetry_off()  # before the application imports onnxruntime for itself

    @classmethod
    def default(cls) -> OnnxEmbedder:
        """Open all-MiniLM-L6-v2; raises `EmbedderUnavailable` at once if its files are not found."""
        return cls(find_model())

    @classmethod
    def from_directory(cls, directory: str | Path) -> OnnxEmbedder:
        """Open the model of a directory; raises `EmbedderUnavailable` at once if a file is missing."""
        return cls(open_directory(Path(directory).expanduser()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._files.directory)!r})"

    @property
    def fingerprint(self) -> str:
        """Model name, recipe, and digest of weights and tokenizer; the same on every machine."""
        return self._files.fingerprint

    @property
    def max_tokens(self) -> int:
        """Maximum length of a text in tokens, special tokens included."""
        return self._files.max_tokens

    def count_tokens(self, text: str) -> int:
        """Number of tokens of the whole text, special tokens included; an upper bound for a giant one."""
        text = _encodable(text)
        if len(text) > CHARACTERS_PER_TOKEN * self.max_tokens:
            # a token covers at least one byte of the text, even where normalisation decomposes characters
            return len(text.encode()) + 2
        return self._tokenised(text).tokens

    def covers(self, text: str) -> bool:
        """Whether the model can represent the text: no unknown tokens, and Latin letters only.

        It was trained on English. Unknown characters all look alike to it, and so does much of other scripts:
        two Chinese questions can have the very same vector.
        """
        if self._tokenised(text).unknown:
            return False
        return all(unicodedata.name(c, "").startswith("LATIN") for c in text if c.isalpha() and c > "\x7f")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as unit vectors, float32[n, d]; what exceeds `max_tokens` is cut off.

        Raises:
            EmbedderUnavailable: The model cannot be loaded.
            InvalidInput: The model returned something that is not a vector (NaN, zero).
        """
        model = self._model()
        if not texts:
            return np.empty((0, model.width), np.float32)
        # One by one: a batch gains 13 % on short texts and loses on long ones (padding), and this way the
        # vector of a text does not depend, not even in its last bit, on the other texts of the batch.
        return unit_rows([self._vector(model, text) for text in texts], len(texts))

    def _vector(self, model: _LoadedModel, text: str) -> NDArray[np.float32]:
        ids = np.array([self._tokenised(text).ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        feed = {name: value for name, value in feed.items() if name in model.inputs}
        with self._computing:
            vector: NDArray[np.float32] = model.session.run([model.output], feed)[0][0]
        return vector

    def _tokenised(self, text: str) -> _TokenisedText:
        """Tokenise the text, once if asked several times in a row."""
        last: _TokenisedText | None = getattr(self._last, "text", None)
        if last is not None and last.text == text:
            return last
        tokenizer = self._model().tokenizer
        # encode, never encode_batch: that starts a thread pool, which warns and hangs in forked processes
        shown = _encodable(text)[: CHARACTERS_PER_TOKEN * self.max_tokens]
        plain: Encoding = tokenizer.encode(shown, add_special_tokens=False)
        special = tokenizer.num_special_tokens_to_add(False)
        tokens, unknown = len(plain) + special, tokenizer.token_to_id("[UNK]") in plain.ids
        plain.truncate(self.max_tokens - special)
        self._last.text = _TokenisedText(text, tokens, unknown, tokenizer.post_process(plain).ids)
        return self._last.text  # type: ignore[no-any-return]

    def _model(self) -> _LoadedModel:
        if (model := self._loaded) is None:
            with self._lock:
                if (model := self._loaded) is None:
                    model = self._loaded = _shared(self._files, self._threads)
        return model

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        # More threads computing than there are cores slow all down: the one that holds Python's lock is kept
        # from running. With 32 threads on two cores it cost a third of the lookups.
        self._computing = threading.BoundedSemaphore(_cores())

    def _after_fork(self) -> None:
        # The locks may be held by a thread that does not exist here. The session is kept alive but unused:
        # its destructor would wait for such threads too.
        self._make_locks()
        if self._loaded is not None:
            _abandoned.append(self._loaded)
            self._loaded = None


_alive: WeakSet[OnnxEmbedder] = WeakSet()
_abandoned: list[_LoadedModel] = []
# One session for each model, however many caches are open: it takes 65 MB, and stays until the last of
# them is collected.
_loaded: WeakValueDictionary[tuple[object, ...], _LoadedModel] = WeakValueDictionary()
_loading = threading.Lock()


def _shared(files: ModelFiles, threads: int) -> _LoadedModel:
    """Return the model of these files, loaded once in a process."""
    if not files.whole:  # the digests do not cover weights stored beside the graph
        return _load(files, threads)
    key = (*sorted(files.digests.items()), files.max_tokens, threads)
    with _loading:
        if (model := _loaded.get(key)) is None:
            model = _loaded[key] = _load(files, threads)
        return model


def _reload_after_fork() -> None:
    global _loading
    _loading = threading.Lock()
    _loaded.clear()
    for embedder in list(_alive):
        embedder._after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_reload_after_fork)


def _cores() -> int:
    """Number of cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(usable(0)) if usable else os.cpu_count() or 1


def _encodable(text: str) -> str:
    """Replace lone surrogates, which the tokenizer refuses."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _load(files: ModelFiles, threads: int) -> _LoadedModel:
    from tokenizers import Tokenizer

    try:
        model, definition = files.read()
        session = open_session(model, threads)
        tokenizer = Tokenizer.from_str(definition)
    except (EmbedderUnavailable, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of both libraries; a panic of the tokenizer is no Exception
        raise EmbedderUnavailable(f"cannot load the model in {files.directory}: {error}") from error
    tokenizer.no_truncation()  # the file configures truncation and padding to 128
    tokenizer.no_padding()
    inputs = frozenset(node.name for node in session.get_inputs())
    outputs = [node for node in session.get_outputs() if len(node.shape) == 2]
    if not outputs or not inputs <= {"input_ids", "attention_mask", "token_type_ids"}:
        raise ConfigurationError(_signature_problem(files, session))
    width = outputs[0].shape[1]
    return _LoadedModel(tokenizer, session, inputs, outputs[0].name, width if isinstance(width, int) else 0)


def _signature_problem(files: ModelFiles, session: Any) -> str:
    inputs = [node.name for node in session.get_inputs()]
    outputs = [f"{node.name}{node.shape}" for node in session.get_outputs()]
    return (
        f"{files.model} must take input_ids and attention_mask (token_type_ids) and return pooled vectors of "
        f"shape [n, d]; it takes {inputs} and returns {outputs}"
    )


VARIABLE = "ORT_DISABLE_TELEMETRY"
_OFF = {"1", "true", "yes", "on", "y"}  # values that onnxruntime 1.32 accepts, in any case, also of `CI`
_SINCE = (1, 29)
TELEMETRY_KEY = "onnxruntime_telemetry"  # in the table `meta`: when a process was seen with it on
ADVICE = f"set {VARIABLE}=1 in the environment of that program, or have it open its cache first"

_too_late = False


def switch_telemetry_off() -> None:
    """Set the variable for this process and its children, unless it is set; warn if that is too late."""
    global _too_late
    if not _too_late and _is_on():
        _too_late = True
        about = {"event.name": "ibidem.onnxruntime.telemetry"}
        log.warning(
            "onnxruntime was imported before Ibidem could switch its telemetry off: it looks up a host of "
            "Microsoft and keeps a device id; %s", ADVICE, extra=about,
        )  # fmt: skip
    if not _set(VARIABLE):
        os.environ[VARIABLE] = "1"


def telemetry_is_on() -> bool:
    """Whether onnxruntime was imported in this process with its telemetry on."""
    return _too_late or _is_on()


def _is_on() -> bool:
    module = sys.modules.get("onnxruntime")
    if module is None or _set(VARIABLE) or _set("CI"):
        return False
    version = re.findall(r"\d+", str(getattr(module, "__version__", "")))
    return tuple(map(int, version[:2])) >= _SINCE


def _set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in _OFF


def open_session(model: bytes | Path, threads: int) -> Any:
    """Open an `InferenceSession` on the CPU; raises what onnxruntime does.

    Args:
        model: The ONNX graph; if given as bytes, with all weights in it.
        threads: Threads for one text.
    """
    switch_telemetry_off()
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised
    # waiting threads must leave the CPU to the application
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
