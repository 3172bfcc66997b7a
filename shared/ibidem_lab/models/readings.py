"""Labels of near questions whose texts are not ours: kept by hash, without the texts.

They were read one by one, by the rule that `data/DATA_CARD.md` states, without the label of anybody else.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ibidem_lab.models.groups import DATA, Pair, pair_hash

READINGS = DATA / "readings.txt"
SAME, OTHER = "same", "other"


class Readings:
    """What was read.

    Args:
        read: By `pair_hash`, whether one answer serves both.
    """

    def __init__(self, read: Mapping[int, bool]) -> None:
        self._read = dict(read)

    def __len__(self) -> int:
        return len(self._read)

    def label(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The pairs that were read, each with its label."""
        read = ((pair, self._read.get(pair_hash(pair))) for pair in pairs)
        return [Pair(pair.a, pair.b, float(same)) for pair, same in read if same is not None]

    @classmethod
    def load(cls, path: Path = READINGS) -> "Readings":
        """From a file that `write` wrote.

        Raises:
            ValueError: a line is no reading; the message names it.
        """
        read = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            hashed, _, verdict = line.partition(" ")
            if verdict not in (SAME, OTHER):
                raise ValueError(f"{path.name}, line {number}: no reading: {line!r}")
            read[int(hashed, 16)] = verdict == SAME
        return cls(read)

    def write(self, path: Path = READINGS) -> None:
        """One line a pair, sorted."""
        lines = (f"{hashed:016x} {SAME if same else OTHER}\n" for hashed, same in sorted(self._read.items()))
        path.write_text("".join(lines), encoding="utf-8")
