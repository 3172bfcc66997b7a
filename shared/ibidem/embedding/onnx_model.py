"""An ONNX graph with its tokenizer: loaded at the first use, shared, safe across threads and forks."""

from __future__ import annotations

import os
import re
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ibidem._util.concurrency import ForkGate
from ibidem._util.faults import log
from ibidem.embedding.model_files import ModelFiles
from ibidem.errors import ConfigurationError, EmbedderUnavailable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS_PER_TOKEN = 64  # what has more per token of the window is not tokenised whole


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LoadedModel:
    """A graph with its tokenizer, shared by all users of the same files in a process."""

    definition: str  # of the tokenizer
    tokenizer: Tokenizer
    session: Any  # an InferenceSession of onnxruntime
    inputs: frozenset[str]
    output: str
    width: int  # of the vectors that it returns; 0 for numbers


class OnnxModel:
    """The graph and the tokenizer of a directory.

    The graph takes `input_ids` and `attention_mask`, optionally `token_type_ids`.

    Args:
        files: The directory, verified.
        rank: Of its output: 2 for a vector a row, 1 for a number.
        threads: Threads for one call. The default of 1 suits servers, whose requests run in parallel anyway.
    """

    def __init__(self, files: ModelFiles, *, rank: int, threads: int = 1) -> None:
        self._files, self._rank, self._threads = files, rank, threads
        self._loaded: LoadedModel | None = None
        self._make_locks()
        _alive.add(self)
        switch_telemetry_off()  # before the application imports onnxruntime for itself

    def loaded(self) -> LoadedModel:
        """Return the model, loaded now if it was not; raises `EmbedderUnavailable`."""
        if (model := self._loaded) is None:
            with self._lock:
                if (model := self._loaded) is None:
                    model = self._loaded = _shared(self._files, self._rank, self._threads)
        return model

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute the output for ids and mask, int64[n, t]."""
        model = self.loaded()
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feed = {name: value for name, value in feed.items() if name in model.inputs}
        with _computing, _in_session:
            found: NDArray[np.float32] = model.session.run([model.output], feed)[0]
        return found

    def _make_locks(self) -> None:
        self._lock = threading.Lock()

    def _after_fork(self) -> None:
        # The locks may be held by a thread that does not exist here. The session is kept alive, also if it is
        # not used: its destructor would wait for such threads too.
        self._make_locks()
        if self._loaded is not None:
            _abandoned.append(self._loaded)
            self._loaded = None


def _cores() -> int:
    """Number of cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(usable(0)) if usable else os.cpu_count() or 1


_alive: WeakSet[OnnxModel] = WeakSet()
_abandoned: list[LoadedModel] = []
# One session for each model, however many caches are open: 49 MB or more. It stays until the last of
# them is collected.
_loaded: WeakValueDictionary[tuple[object, ...], LoadedModel] = WeakValueDictionary()
# In a forked child, by the same keys: those of its parent that it can use. Their memory is shared.
_inherited: dict[tuple[object, ...], LoadedModel] = {}
_loading = threading.Lock()
# Of all models: more threads computing than there are cores slow all down, as the one that holds Python's
# lock is kept from running. With 32 threads on two cores it cost a third of the lookups.
_AT_ONCE = _cores()
_computing = threading.BoundedSemaphore(_AT_ONCE)
_in_session = ForkGate()


def _shared(files: ModelFiles, rank: int, threads: int) -> LoadedModel:
    """Return the model of these files, loaded once in a process."""
    if not files.whole:  # the digests do not cover weights stored beside the graph
        return _load(files, rank, threads)
    key = (*sorted(files.digests.items()), files.max_tokens, rank, threads)
    with _loading:
        if (model := _loaded.get(key)) is None:
            known = _inherited.get(key)
            model = _inherit(known) if known is not None else _load(files, rank, threads)
            _loaded[key] = model
        return model


def _inherit(model: LoadedModel) -> LoadedModel:
    """Return the parent's model for its forked child, with a tokenizer of its own: that may hold locks."""
    from tokenizers import Tokenizer

    return replace(model, tokenizer=_plain(Tokenizer.from_str(model.definition)))


def _reload_after_fork() -> None:
    global _loading, _computing
    _loading, _computing = threading.Lock(), threading.BoundedSemaphore(_AT_ONCE)
    if _in_session.was_empty and sys.platform == "linux" and not telemetry_is_on():
        # For one thread, the caller's, a session has none of its own that would be missing here.
        _inherited.update((key, model) for key, model in _loaded.items() if key[-1] == 1)
    _loaded.clear()
    for model in list(_alive):
        model._after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_reload_after_fork)


def encodable(text: str) -> str:
    """Replace lone surrogates, which the tokenizer refuses."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _load(files: ModelFiles, rank: int, threads: int) -> LoadedModel:
    from tokenizers import Tokenizer

    try:
        model, definition = files.read()
        session = open_session(model, threads)
        tokenizer = _plain(Tokenizer.from_str(definition))
    except (EmbedderUnavailable, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of both libraries; a panic of the tokenizer is no Exception
        raise EmbedderUnavailable(f"cannot load the model in {files.directory}: {error}") from error
    inputs = frozenset(node.name for node in session.get_inputs())
    outputs = [node for node in session.get_outputs() if len(node.shape) == rank]
    if not outputs or not inputs <= {"input_ids", "attention_mask", "token_type_ids"}:
        raise ConfigurationError(_signature_problem(files, rank, session))
    width = outputs[0].shape[-1]
    width = width if isinstance(width, int) else 0
    return LoadedModel(definition, tokenizer, session, inputs, outputs[0].name, width)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()  # the file configures truncation and padding to 128
    tokenizer.no_padding()
    return tokenizer


def _signature_problem(files: ModelFiles, rank: int, session: Any) -> str:
    inputs = [node.name for node in session.get_inputs()]
    outputs = [f"{node.name}{node.shape}" for node in session.get_outputs()]
    returned = "pooled vectors of shape [n, d]" if rank == 2 else "one number a row, of shape [n]"
    return (
        f"{files.model} must take input_ids and attention_mask (token_type_ids) and return {returned}; "
        f"it takes {inputs} and returns {outputs}"
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
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    session.disable_fallback()  # to other providers: there are none
    if getattr(session, "_model_bytes", None) is not None:
        session._model_bytes = None  # all of them, kept for a fallback only
    return session
