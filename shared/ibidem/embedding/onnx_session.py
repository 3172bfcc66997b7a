"""The one door to onnxruntime: its telemetry is off before it is imported.

From 1.29 on it writes a device id under the user's cache directory when it is imported, and some seconds
later looks up a host of Microsoft; its own `disable_telemetry_events()` comes too late for both. A variable
of the environment that is set in time prevents them. What a user set is left only if it says the same: that
nothing leaves the machine is promised, and holds whatever the variable said before.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from ibidem.faults import log

VARIABLE = "ORT_DISABLE_TELEMETRY"
_OFF = {"1", "true", "yes", "on", "y"}  # what onnxruntime 1.32 takes for it, in any case, also of `CI`
_SINCE = (1, 29)
TELEMETRY_KEY = "onnxruntime_telemetry"  # in the notes of a database: when a process was seen with it on
ADVICE = f"set {VARIABLE}=1 in the environment of that program, or have it open its cache first"

_came_late = False


def switch_telemetry_off() -> None:
    """Set the variable for this process and its children, unless it is set; tell if that is too late."""
    global _came_late
    if not _came_late and _is_on():
        _came_late = True
        about = {"event.name": "ibidem.onnxruntime.telemetry"}
        log.warning(
            "onnxruntime was imported before Ibidem could switch its telemetry off: it looks up a host of "
            "Microsoft and keeps a device id; %s", ADVICE, extra=about,
        )  # fmt: skip
    if not _set(VARIABLE):
        os.environ[VARIABLE] = "1"


def telemetry_is_on() -> bool:
    """Whether somebody in this process imported onnxruntime without switching its telemetry off."""
    return _came_late or _is_on()


def _is_on() -> bool:
    module = sys.modules.get("onnxruntime")
    if module is None or _set(VARIABLE) or _set("CI"):
        return False
    version = re.findall(r"\d+", str(getattr(module, "__version__", "")))
    return tuple(map(int, version[:2])) >= _SINCE


def _set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in _OFF


def open_session(model: bytes | Path, threads: int) -> Any:
    """An `InferenceSession` on the processor; raises what onnxruntime does.

    Args:
        model: The ONNX graph; of one that is given as bytes, all weights must be in it.
        threads: For one text.
    """
    switch_telemetry_off()
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is raised
    # waiting threads must leave the processor to the application
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
