"""Files of JSON lines, which people write: an object in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ibidem.errors import InvalidInput


def read_json_lines(path: Path, shape: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file, each with its place: "FILE, line 3". Blank lines are left out.

    Raises:
        InvalidInput: The file cannot be read, or a line holds no object; the message names it, and the
            `shape` that it must have.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):  # other line breaks are valid within JSON
        if line.strip():
            yield (where := f"{path}, line {number}"), parse_object(line, where, shape)


def parse_object(line: str, where: str, shape: str) -> dict[str, Any]:
    """Parse one line; raises as `read_json_lines`, and names `where`."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: invalid JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{where}: must be {shape}")
    return found


def read_text(path: Path) -> str:
    """Read a text file, with a byte order mark or without; raises `InvalidInput`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not valid UTF-8: {error}") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
