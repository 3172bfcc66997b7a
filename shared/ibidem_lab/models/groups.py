"""Question groups: what one answer serves, and what it only seems to serve.

A group is one line of JSON: a question `q`, rewordings that the same complete answer serves (`same`), and
near misses that need another answer (`diff`). They are written by hand; `data/DATA_CARD.md` says how, and
how they were checked.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np

from ibidem._util.statistics import auc

DATA = Path(__file__).parent / "data"
HELD_OUT_ONE_IN = 10

_WORD = re.compile(r"[a-z0-9]+(?:[.'_-][a-z0-9]+)*")
# Words that a frame keeps: what is left of a question when its content words are masked.
_FUNCTION_WORDS = frozenset(
    "a an the of in on at to for from by with and or is are was were be been do does did can could should "
    "would will i my me we our you your it its this that there what which who how when where why if not "
    "no".split()
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts and the probability, between 0 and 1, that one answer serves both."""

    a: str
    b: str
    same: float


def pair_hash(pair: Pair) -> int:
    """A 64-bit hash of a pair, the same in either order: of texts that are not ours only that is kept."""
    joined = "\x00".join(sorted((pair.a, pair.b)))
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Group:
    """A question, its rewordings and its near misses."""

    question: str
    same: tuple[str, ...]
    diff: tuple[str, ...]
    kind: str
    domain: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of the group, the question first."""
        return (self.question, *self.same, *self.diff)

    @property
    def held_out(self) -> bool:
        """Whether figures are told on this group, which then is never trained on: a tenth of them."""
        return int(hashlib.sha256(self.question.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0

    def pairs(self) -> Iterator[Pair]:
        """All pairs with a label: rewordings among each other, and each of them with each near miss."""
        rewordings = (self.question, *self.same)
        yield from (Pair(a, b, 1.0) for a, b in combinations(rewordings, 2))
        yield from (Pair(a, b, 0.0) for a, b in product(rewordings, self.diff))


def load_groups(folder: Path = DATA / "groups") -> list[Group]:
    """The groups in the `.jsonl` files of a folder; a file's name is their kind if they name none.

    Raises:
        ValueError: a line is not a group; the message names file and line.
    """
    groups = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                groups.append(_group(json.loads(line), path.stem))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path.name}, line {number}: not a question group: {error}") from error
    return groups


def _group(row: dict[str, object], kind: str) -> Group:
    texts = {name: row[name] for name in ("same", "diff")}
    for name, value in texts.items():
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{name!r} must be a list of texts")
    return Group(
        question=str(row["q"]),
        same=tuple(texts["same"]),  # type: ignore[arg-type]
        diff=tuple(texts["diff"]),  # type: ignore[arg-type]
        kind=str(row.get("kind", kind)),
        domain=str(row["domain"]),
    )


def words(text: str) -> list[str]:
    """The words of a text in small letters; `v2.1`, `don't` and `x-ray` are one word each."""
    return _WORD.findall(text.lower())


def overlap(a: str, b: str) -> float:
    """Jaccard index of the words of two texts, 0 to 1."""
    left, right = set(words(a)), set(words(b))
    return len(left & right) / max(1, len(left | right))


def frame(text: str) -> str:
    """A text with its content words masked: `How do I _ my _`."""
    return " ".join(word if word in _FUNCTION_WORDS else "_" for word in words(text))


def commonest_frame(groups: Iterable[Group]) -> tuple[str, float]:
    """The frame that most questions share, and the share of the groups that have it."""
    counts = Counter(frame(group.question) for group in groups)
    text, count = counts.most_common(1)[0]
    return text, count / counts.total()


def overlap_auc(groups: Iterable[Group]) -> float:
    """How well the overlap of words alone tells the labels of all pairs: 0.5 is not at all."""
    pairs = [pair for group in groups for pair in group.pairs()]
    overlaps = np.array([overlap(pair.a, pair.b) for pair in pairs])
    return auc(overlaps, np.array([pair.same == 1 for pair in pairs]))
