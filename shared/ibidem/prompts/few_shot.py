"""Leave selected examples out of what is compared, or each addition to the example log would end all hits.

Only a block that was selected for this very prompt is left out, and only where it occurs exactly once, in one
piece: examples one after the other, with the same text between question and answer, and between one example
and the next. These texts stay, and so does everything else. In doubt nothing is left out: that costs a hit,
and never causes one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ibidem.prompts.documents import Cut, Positions, Prompt, find_positions

_LONGEST_LABEL = 200  # characters between a question and its answer


@dataclass(frozen=True, slots=True)
class FewShotBlock:
    """Examples that were selected for one prompt.

    `settings` describe the selection: other settings make other prompts. `pairs` are questions and answers in
    their order; `text` is the block as it stands in the prompt, if known. `other_texts` also filled the
    template: a range that holds one of them, which occurs nowhere else, is not the block.
    """

    settings: str
    pairs: tuple[tuple[str, str], ...] = ()
    text: str = ""
    other_texts: frozenset[str] = frozenset()

    def merge(self, other: FewShotBlock) -> FewShotBlock:
        """Join with another selection for the same prompt."""
        settings, other_texts = self.settings + other.settings, self.other_texts | other.other_texts
        return FewShotBlock(settings, self.pairs + other.pairs, other_texts=other_texts)


def settings_of(*chosen: object, **options: object) -> str:
    """Describe how examples are selected, for `FewShotBlock`; the same in each process."""
    named = {name: _name_of(value) for name, value in sorted(options.items())}
    return json.dumps([*chosen, named])


def _name_of(value: object) -> str:
    """Name a function by its path: its `repr` holds a memory address."""
    names = [getattr(value, name, None) for name in ("__module__", "__qualname__")]
    return ".".join(map(str, names)) if callable(value) and names[1] else repr(value)


@dataclass(frozen=True, slots=True)
class _Range:
    """Start and end of a block in the text of all segments, and the texts between its parts."""

    start: int
    end: int
    label: str = ""
    between: str | None = None


def without_examples(prompt: Prompt, block: FewShotBlock) -> Prompt:
    """Leave the block out of the prompt; return the prompt itself if it does not hold it as selected."""
    heads = [f"\0{segment.role}\1" for segment in prompt.segments]
    whole = "".join(head + segment.text for head, segment in zip(heads, prompt.segments, strict=True))
    found = _find_text(whole, block.text) if block.text else _find_pairs(whole, block.pairs)
    if found is None or _holds_other_text(whole, found, block):
        return prompt
    bounds = _segment_bounds(prompt, heads)
    first = next((i for i, (start, end) in enumerate(bounds) if start <= found.start <= end), None)
    last = next((i for i, (start, end) in enumerate(bounds) if start <= found.end <= end), None)
    if first is None or last is None:
        return prompt
    before, after = found.start - bounds[first][0], found.end - bounds[last][0]
    if first == last:
        label = json.dumps([block.settings, found.label, found.between])
        return replace(prompt, cut=Cut(first, before, after, label))
    around = (prompt.segments[first].text[:before], found.label, prompt.segments[last].text[after:])
    if found.between not in (None, f"{around[2]}{heads[first]}{around[0]}"):
        return prompt
    return _without_messages(prompt, first, last, json.dumps([block.settings, *around]), len(block.pairs))


def _segment_bounds(prompt: Prompt, heads: Sequence[str]) -> list[tuple[int, int]]:
    """Locate the text of each segment in the text of all segments."""
    at, bounds = 0, []
    for head, segment in zip(heads, prompt.segments, strict=True):
        bounds.append((at + len(head), at + len(head) + len(segment.text)))
        at = bounds[-1][1]
    return bounds


def _without_messages(prompt: Prompt, first: int, last: int, label: str, count: int) -> Prompt:
    """Leave out whole messages, if each example has the same number of them, of the same kinds."""
    frames = json.loads(prompt.frame) if prompt.frame.startswith("[") else None
    if not isinstance(frames, list) or len(frames) != len(prompt.segments):
        return prompt  # messages of several parts
    left_out = frames[first : last + 1]
    size, rest = divmod(len(left_out), count)
    kinds = left_out[:size]
    if rest or left_out != kinds * count or any("blocks" in frame for frame in kinds):
        return prompt
    frames[first : last + 1] = [{"examples": label, "each": kinds}]
    segments = prompt.segments[:first] + prompt.segments[last + 1 :]
    return replace(prompt, frame=json.dumps(frames, sort_keys=True), segments=segments, messages=())


def _find_text(whole: str, text: str) -> _Range | None:
    start = _only_position(whole, text)
    return None if start is None else _Range(start, start + len(text))


def _find_pairs(whole: str, pairs: Sequence[tuple[str, str]]) -> _Range | None:
    starts = []
    for question, _ in pairs:
        if (start := _only_position(whole, question)) is None:  # the user's own text may say the same
            return None
        starts.append(start)
    if not starts or starts != sorted(starts):
        return None
    first_end = starts[0] + len(pairs[0][0])
    last = first_end + _LONGEST_LABEL + len(pairs[0][1])
    for at in _occurrences(whole[: min(last, *starts[1:2], len(whole))], pairs[0][1], first_end):
        if (found := _find_labelled(whole, pairs, starts, whole[first_end:at])) is not None:
            return found
    return None


def _find_labelled(
    whole: str, pairs: Sequence[tuple[str, str]], starts: Sequence[int], label: str
) -> _Range | None:
    """Find the block, if this label stands between each question and its answer."""
    ends = []
    for (question, answer), start in zip(pairs, starts, strict=True):
        if not whole.startswith(label + answer, start + len(question)):
            return None
        ends.append(start + len(question) + len(label) + len(answer))
    between = {whole[end:start] for (_, end), (start, _) in pairwise(zip(starts, ends, strict=True))}
    if len(between) > 1 or any(end > start for end, start in zip(ends, starts[1:], strict=False)):
        return None
    return _Range(starts[0], ends[-1], label, between.pop() if between else None)


def _holds_other_text(whole: str, block_range: _Range, block: FewShotBlock) -> bool:
    positions = find_positions(whole, filter(str.strip, block.other_texts))
    return any(_occurs_only_in(whole, text, starts, block_range) for text, starts in positions.items())


def _occurs_only_in(whole: str, text: str, starts: Positions, block_range: _Range) -> bool:
    """Return whether the text occurs in the prompt, and always at least in part within the range."""
    outside = (at for at in starts if at >= block_range.end or at + len(text) <= block_range.start)
    if any(whole.startswith(text, at) for at in outside):
        return False
    return any(whole.startswith(text, at) for at in starts)


def _only_position(whole: str, text: str) -> int | None:
    """Return where the text occurs, if it does so exactly once; overlapping occurrences count."""
    start = whole.find(text)
    return start if start >= 0 and whole.find(text, start + 1) < 0 else None


def _occurrences(whole: str, text: str, start: int = 0) -> Iterator[int]:
    """Yield all positions, also those that overlap."""
    at = whole.find(text, start)
    while at >= 0:
        yield at
        at = whole.find(text, at + 1)
