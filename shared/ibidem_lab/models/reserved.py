"""Texts on which nothing that ships is trained, labelled softly or chosen: results are measured on them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ibidem_lab.models.groups import DATA

OWN = DATA / "keep_out.txt"


def text_hash(text: str) -> str:
    """Its hash in a list: blake2b, 8 bytes, of the stripped text in small letters."""
    return hashlib.blake2b(text.strip().lower().encode(), digest_size=8).hexdigest()


class KeepOut:
    """The reserved texts: this project's own suites and demo, and those of a folder of workloads."""

    def __init__(self, *lists: Path) -> None:
        self._hashes = {line for path in (OWN, *lists) for line in path.read_text(encoding="utf-8").split()}

    def __contains__(self, text: str) -> bool:
        return text_hash(text) in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def any_of(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts is reserved."""
        return any(text in self for text in texts)


def for_tuning(text: str) -> bool:
    """Whether a question of `nq_teacher` is kept for measuring what tuning brings: every fifth."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 5 == 0


def for_calibration(text: str) -> bool:
    """Whether a question of a workload is kept from training, to choose and to calibrate by: every 16th."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 16 == 1


def write_own(texts: Iterable[str], path: Path = OWN) -> None:
    """Write the list of this project's own reserved texts, as hashes, sorted."""
    hashes = sorted({text_hash(text) for text in texts})
    path.write_text("".join(f"{line}\n" for line in hashes), encoding="utf-8")
