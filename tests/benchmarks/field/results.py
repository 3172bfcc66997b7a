"""The figures, kept in a file: of each set and cache, a row for each setting, the default first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One cache at one setting on one set."""

    key: str
    name: str
    version: str
    setting: str
    default: bool
    measured: str
    counts: dict[str, Any]

    @property
    def cache(self) -> str:
        """Name and release."""
        return f"{self.name} {self.version}".strip()


class Results:
    """Reads and writes them; `put` replaces all rows of a cache on a set."""

    def __init__(self, file: Path, kept: dict[str, dict[str, Any]]) -> None:
        self.file, self._kept = file, kept

    @classmethod
    def read(cls, file: Path) -> Results:
        """Those of a file, or none."""
        return cls(file, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})

    def write(self) -> None:
        """Into the file."""
        text = json.dumps(self._kept, indent=1, sort_keys=False)
        self.file.write_text(text + "\n", encoding="utf-8")

    def put(
        self, of: str, key: str, name: str, version: str, rows: dict[str, dict[str, Any]], day: str
    ) -> None:
        """The rows of one cache on one set, measured on a day."""
        told = {"name": name, "version": version, "measured": day, "rows": rows}
        self._kept.setdefault(of, {})[key] = told

    def rows(self, of: str, order: list[str]) -> Iterator[Row]:
        """Those of a set, in this order of caches."""
        found = self._kept.get(of, {})
        for key in order:
            told = found.get(key, {"rows": {}})
            for number, (setting, counts) in enumerate(told["rows"].items()):
                default = number == 0
                yield Row(key, told["name"], told["version"], setting, default, told["measured"], counts)
