"""Selected examples in a prompt, left out of what is compared: else a growing log would end all hits.

What is left out was selected for this very prompt, and stands in it exactly once, in one piece: examples one
after the other, with the same text between question and answer, and between one example and the next. These
texts stay, and so does everything else. In doubt nothing is left out: that costs a hit, and never causes one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ibidem.prompts.documents import Starts, places_of
from ibidem.prompts.key import Cut, Prompt

_LONGEST_LABEL = 200  # characters between a question and its answer


@dataclass(frozen=True, slots=True)
class Shown:
    """Examples that were selected for one prompt.

    `settings` say how: other settings make other prompts. `pairs` are questions and answers in their order;
    `text` is how they stand in the prompt, if that is known. `given` are the texts that the template was
    filled with besides: a place that holds one of them, which stands nowhere else, is not that of examples.
    """

    settings: str
    pairs: tuple[tuple[str, str], ...] = ()
    text: str = ""
    given: frozenset[str] = frozenset()

    def and_then(self, other: Shown) -> Shown:
        """With those of another selection for the same prompt."""
        settings, given = self.settings + other.settings, self.given | other.given
        return Shown(settings, self.pairs + other.pairs, given=given)


def settings_of(*chosen: object, **options: object) -> str:
    """How examples are selected, for `Shown`; the same in each process."""
    named = {name: _name_of(value) for name, value in sorted(options.items())}
    return json.dumps([*chosen, named])


def _name_of(value: object) -> str:
    """A function by its name: its `repr` tells where in memory it is."""
    names = [getattr(value, name, None) for name in ("__module__", "__qualname__")]
    return ".".join(map(str, names)) if callable(value) and names[1] else repr(value)


@dataclass(frozen=True, slots=True)
class _Place:
    """From where to where, in the text of all segments, and the texts between."""

    start: int
    end: int
    label: str = ""
    between: str | None = None


def without_examples(prompt: Prompt, shown: Shown) -> Prompt:
    """The prompt to compare; the same if it does not hold the examples as they were selected."""
    heads = [f"\0{segment.role}\1" for segment in prompt.segments]
    whole = "".join(head + segment.text for head, segment in zip(heads, prompt.segments, strict=True))
    place = _place_of_text(whole, shown.text) if shown.text else _place_of_pairs(whole, shown.pairs)
    if place is None:
        return prompt
    given = places_of(whole, filter(str.strip, shown.given))
    if any(_stands_only_in(whole, text, starts, place) for text, starts in given.items()):
        return prompt
    at = 0
    spans = []  # of the texts of the segments
    for head, segment in zip(heads, prompt.segments, strict=True):
        spans.append((at + len(head), at + len(head) + len(segment.text)))
        at = spans[-1][1]
    first = next((i for i, (start, end) in enumerate(spans) if start <= place.start <= end), None)
    last = next((i for i, (start, end) in enumerate(spans) if start <= place.end <= end), None)
    if first is None or last is None:
        return prompt
    before, after = place.start - spans[first][0], place.end - spans[last][0]
    if first == last:
        said = json.dumps([shown.settings, place.label, place.between])
        return replace(prompt, cut=Cut(first, before, after, said))
    around = (prompt.segments[first].text[:before], place.label, prompt.segments[last].text[after:])
    if place.between not in (None, f"{around[2]}{heads[first]}{around[0]}"):
        return prompt
    return _without_messages(prompt, first, last, json.dumps([shown.settings, *around]), len(shown.pairs))


def _without_messages(prompt: Prompt, first: int, last: int, said: str, count: int) -> Prompt:
    """Leave out whole messages, if each example is so many of them, of the same kinds."""
    frames = json.loads(prompt.frame) if prompt.frame.startswith("[") else None
    if not isinstance(frames, list) or len(frames) != len(prompt.segments):
        return prompt  # messages of several parts
    left_out = frames[first : last + 1]
    size, rest = divmod(len(left_out), count)
    kinds = left_out[:size]
    if rest or left_out != kinds * count or any("blocks" in frame for frame in kinds):
        return prompt
    frames[first : last + 1] = [{"examples": said, "each": kinds}]
    segments = prompt.segments[:first] + prompt.segments[last + 1 :]
    return replace(prompt, frame=json.dumps(frames, sort_keys=True), segments=segments)


def _place_of_text(whole: str, text: str) -> _Place | None:
    start = _only_place(whole, text)
    return None if start is None else _Place(start, start + len(text))


def _place_of_pairs(whole: str, pairs: Sequence[tuple[str, str]]) -> _Place | None:
    starts = []
    for question, _ in pairs:
        if (start := _only_place(whole, question)) is None:  # the user's own text may say the same
            return None
        starts.append(start)
    if not starts or starts != sorted(starts):
        return None
    first_end = starts[0] + len(pairs[0][0])
    last = first_end + _LONGEST_LABEL + len(pairs[0][1])
    for at in _occurrences(whole[: min(last, *starts[1:2], len(whole))], pairs[0][1], first_end):
        if (place := _labelled(whole, pairs, starts, whole[first_end:at])) is not None:
            return place
    return None


def _labelled(
    whole: str, pairs: Sequence[tuple[str, str]], starts: Sequence[int], label: str
) -> _Place | None:
    """The place of the examples, if this stands between each question and its answer."""
    ends = []
    for (question, answer), start in zip(pairs, starts, strict=True):
        if not whole.startswith(label + answer, start + len(question)):
            return None
        ends.append(start + len(question) + len(label) + len(answer))
    between = {whole[end:start] for (_, end), (start, _) in pairwise(zip(starts, ends, strict=True))}
    if len(between) > 1 or any(end > start for end, start in zip(ends, starts[1:], strict=False)):
        return None
    return _Place(starts[0], ends[-1], label, between.pop() if between else None)


def _stands_only_in(whole: str, text: str, starts: Starts, place: _Place) -> bool:
    """Whether the text stands in the prompt, and at no place that is not, in part, one of the examples."""
    outside = (at for at in starts if at >= place.end or at + len(text) <= place.start)
    if any(whole.startswith(text, at) for at in outside):
        return False
    return any(whole.startswith(text, at) for at in starts)


def _only_place(whole: str, text: str) -> int | None:
    """Where the text stands, if it does so but once; a place that overlaps the first is another one."""
    start = whole.find(text)
    return start if start >= 0 and whole.find(text, start + 1) < 0 else None


def _occurrences(whole: str, text: str, start: int = 0) -> Iterator[int]:
    """Also those that overlap."""
    at = whole.find(text, start)
    while at >= 0:
        yield at
        at = whole.find(text, at + 1)
