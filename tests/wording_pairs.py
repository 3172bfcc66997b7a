"""Pairs of questions that differ in wording that changes the answer, made from word lists of the tests.

The lists are others than those of `ibidem.matching`: verbs, names and stems that the code does not hold, and
random identifiers. `KINDS` makes pairs that must not share an answer, `reworded` pairs that may.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from itertools import permutations

Pair = tuple[str, str]

# Regular verbs of two people, in the base form.
VERBS = (
    "accuse admire advise amuse annoy appoint assist avoid baptise blame bless bother brief bully "
    "burden calm call challenge charm chase cheat cheer coach comfort command compliment confront "
    "console consult contact contradict convince correct counsel court cover criticise cure dazzle "
    "deceive delay despise detain dislike distract disturb doubt dress embarrass embrace employ "
    "encourage endorse entertain envy escort evict examine excuse exhaust expel exploit expose flatter "
    "follow frighten fund greet guard guide harass harm haunt help honour hug humiliate ignore imitate "
    "impress imprison infect inform injure insult interrogate interrupt interview introduce invite "
    "irritate join kick kill kiss manage mentor mock murder nominate notify nurse obey offend oppose "
    "outrank overhear oversee owe pardon pay persuade phone pity please poison prosecute protect "
    "provoke pursue push question recognise recommend rebuke refuse relieve remind replace rescue "
    "resemble respect ridicule rob sabotage salute scare scold select serve shelter shield shove slap "
    "smother sponsor stab startle stop succeed sue summon supervise support surprise surpass survive "
    "suspect tease telephone tempt terrify thank threaten tickle torment track train trap treat trick "
    "trust tutor undermine upset value visit warn watch welcome worship wrong"
).split()
# Irregular ones: base, past, participle.
IRREGULAR = [
    ("bite", "bit", "bitten"), ("fight", "fought", "fought"), ("see", "saw", "seen"),
    ("choose", "chose", "chosen"),
    ("forgive", "forgave", "forgiven"), ("drive", "drove", "driven"), ("find", "found", "found"),
    ("hear", "heard", "heard"), ("teach", "taught", "taught"), ("leave", "left", "left"),
    ("strike", "struck", "struck"), ("catch", "caught", "caught"),
]  # fmt: skip
NAMES = (
    "Aisha Bjorn Chiara Dmitri Esther Farid Greta Hamza Ingrid Joaquin Keiko Lars Mbali Nadia Oskar "
    "Priya Quentin Rosa Soren Tariq Ursula Viktor Wanda Ximena Yusuf Zofia Carter Fiona Hassan Miriam "
    "Nolan Petra"
).split()
BEINGS = (
    "nurse lawyer plumber surgeon pilot baker gardener tailor referee goalkeeper farmer sheriff butcher "
    "engineer accountant violinist fox badger wolf raccoon ferret otter heron python lizard donkey"
).split()
GIVING = (
    "offer promise mail hand deny owe award read sell lend show bring write pass throw feed forward".split()
)
ADJECTIVES = (
    "taller richer louder nearer wiser tidier shorter friendlier colder rounder braver calmer".split()
)
# Words that a beginning turns round; the code knows beginnings, no stems.
NEGATED = {
    "un": "fastened wrapped licensed salted plugged sealed buttoned insured furnished limited attended",
    "in": "accurate adequate attentive audible complete consistent convenient correct curable discreet",
    "im": "mature moral patient perfect polite precise probable mobile movable measurable modest",
    "ir": "rational regular relevant replaceable resistible responsible reversible revocable",
    "il": "legible literate logical liberal legitimate",
    "dis": "loyal organised qualified respectful satisfied similar trustful orderly obedient contented",
    "non": "toxic stick slip profit smoking resident verbal linear alcoholic invasive",
    "mis": "spelt labelled aligned matched placed printed addressed quoted filed diagnosed",
    "de": "classified regulated centralised humidified scaled magnetised fragmented ionised",
}  # fmt: skip
# Beginnings that take each other's place.
TURNED = {
    ("over", "under"): "estimate paid weight exposed valued staffed sized cooked",
    ("hyper", "hypo"): "tension thermia glycemia thyroidism active",
    ("inter", "intra"): "state cellular city mural venous",
    ("micro", "macro"): "economics scopic nutrients molecule climate",
    ("pre", "post"): "war natal operative natal season colonial merger",
    ("up", "down"): "stream stairs hill town river grade",
    ("in", "ex"): "terior trinsic clusive halation",
    ("in", "out"): "door bound flow ward patient",
    ("sub", "super"): "sonic script structure",
    ("en", "de"): "code crypt throne",
    ("pro", "anti"): "government war union",
    ("on", "off"): "shore site line stage",
    ("mono", "poly"): "chrome theism gamous syllabic",
}
RELATIVE = "invoice meeting train chapter parcel delivery payment match lecture lesson release storm".split()
PLACES = "warehouse library depot clinic studio bakery stadium harbour museum factory".split()


def past(verb: str) -> str:
    """The regular past of a verb."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    short = verb[-1] in "bgpt" and verb[-2] in "aeiou" and verb[-3] not in "aeiou" and len(verb) < 6
    return verb + (verb[-1] if short else "") + "ed"


def verbs() -> Iterator[tuple[str, str, str]]:
    """Base, past and participle of all."""
    yield from ((verb, past(verb), past(verb)) for verb in VERBS)
    yield from IRREGULAR


def roles(draw: random.Random) -> Iterator[Pair]:
    """Who acts on whom, active, passive, asked for, and in relative clauses."""
    for verb, acted, done in verbs():
        a, b = draw.sample(NAMES, 2)
        x, y = draw.sample(BEINGS, 2)
        yield f"Did {a} {verb} {b}?", f"Did {b} {verb} {a}?"
        yield f"Why did the {x} {verb} the {y}?", f"Why did the {y} {verb} the {x}?"
        yield f"Did the {x} that {acted} the {y} get away?", f"Did the {y} that {acted} the {x} get away?"
        yield f"Was {a} {done} by {b}?", f"Was {b} {done} by {a}?"
        yield f"When was the {x} {done} by the {y}?", f"When was the {y} {done} by the {x}?"
        yield f"Did the {x} {verb} the {y}?", f"Was the {x} {done} by the {y}?"
        yield f"Who {acted} {a} in the play?", f"Who did {a} {verb} in the play?"


def giving(draw: random.Random) -> Iterator[Pair]:
    """Who gives to whom, whatever is given."""
    for verb in GIVING:
        for a, b in draw.sample(list(permutations(NAMES, 2)), 8):
            yield f"What did {a} {verb} {b}?", f"What did {b} {verb} {a}?"
            yield f"What does {a} {verb} to {b} on Fridays?", f"What does {b} {verb} to {a} on Fridays?"


def comparisons(draw: random.Random) -> Iterator[Pair]:
    """Which of two is more."""
    for word in ADJECTIVES:
        for a, b in draw.sample(list(permutations(NAMES, 2)), 6):
            yield f"Is {a} {word} than {b}?", f"Is {b} {word} than {a}?"
        x, y = draw.sample(BEINGS, 2)
        yield f"Why is the {x} {word} than the {y}?", f"Why is the {y} {word} than the {x}?"


def identifiers(draw: random.Random) -> Iterator[Pair]:
    """Random ids of many forms; one character differs, or an end is lacking."""

    def letters(count: int) -> str:
        return "".join(draw.choices(string.ascii_uppercase, k=count))

    def hexadecimal(count: int) -> str:
        return "".join(draw.choices("0123456789abcdef", k=count))

    makers: list[Callable[[], str]] = [
        lambda: hexadecimal(draw.choice((6, 8, 12, 24, 40))),
        lambda: "-".join(map(hexadecimal, (8, 4, 4, 4, 12))),
        lambda: f"{letters(3)}{draw.randint(1, 999):03}{draw.choice('ABCDEFG')}",
        lambda: f"{letters(2)}-{draw.randint(10, 999)}-{draw.choice('ABCDEFG')}",
        lambda: f"v{draw.randint(1, 9)}.{draw.randint(0, 20)}{draw.choice('abc')}",
        lambda: f"{letters(4).lower()}-{draw.randint(2, 9)}{draw.choice('abcox')}",
        lambda: f"DE{draw.randint(10, 99)}{letters(4)}{draw.randint(10**9, 10**10)}",
        lambda: f"{letters(2)}{draw.randint(10, 99)} {letters(3)}",
    ]
    forms = ("Where is order {}?", "Who owns {} now?", "is part {} in stock", "What is the status of {}?")
    for make in makers:
        for number in range(80):
            one, form = make(), forms[number % len(forms)]
            if one.isdecimal() or one.isalpha():
                continue
            other = (
                changed(draw, one)
                if number % 5 or " " in one
                else one + draw.choice("-mini -pro x q7".split())
            )
            yield form.format(one), form.format(other)


def changed(draw: random.Random, text: str) -> str:
    """The id with another letter in the place of one, or another digit if it has no letters."""
    at = draw.choice([n for n, c in enumerate(text) if c.isalpha()])
    letters = string.ascii_uppercase if text[at].isupper() else "abcdef" if text[at] in "abcdef" else "ghjklm"
    return text[:at] + draw.choice([c for c in letters if c != text[at]]) + text[at + 1 :]


def relative(draw: random.Random) -> Iterator[Pair]:
    """Last, next, this; first to twentieth."""
    ordinals = "first second third fourth fifth sixth eleventh twelfth thirteenth fifteenth twentieth".split()
    for thing in RELATIVE:
        for one, other in permutations(("last", "next", "this"), 2):
            yield f"When was the {one} {thing} cancelled?", f"When was the {other} {thing} cancelled?"
        for _ in range(8):
            one, other = draw.sample(ordinals, 2)
            yield f"Who signed the {one} {thing}?", f"Who signed the {other} {thing}?"
        yield f"Is the previous {thing} paid?", f"Is the upcoming {thing} paid?"
        yield f"Was the earliest {thing} late?", f"Was the latest {thing} late?"


def negated(draw: random.Random) -> Iterator[Pair]:
    """With and without a beginning that denies."""
    for prefix, stems in NEGATED.items():
        for stem in stems.split():
            place = draw.choice(PLACES)
            yield f"What happens if the {place} is {stem}?", f"What happens if the {place} is {prefix}{stem}?"
            yield f"list all {stem} items of the {place}", f"list all {prefix}-{stem} items of the {place}"


def turned(draw: random.Random) -> Iterator[Pair]:
    """With one beginning or its contrary."""
    for (one, other), stems in TURNED.items():
        for stem in stems.split():
            place = draw.choice(PLACES)
            yield f"what does {one}{stem} mean", f"what does {other}{stem} mean"
            yield f"Is it {one}{stem} at the {place}?", f"Is it {other}{stem} at the {place}?"
    for stem in "taste pain harm price hope cheer skill thought colour tact end".split():
        yield f"Is the {stem}ful one better?", f"Is the {stem}less one better?"
    for stem in "train employ address nomin mentor assign licens".split():
        yield f"Who pays the {stem}er?", f"Who pays the {stem}ee?"


VERB_PAIRS = (
    "open close|start stop|add remove|buy sell|lend borrow|import export|encrypt decrypt|lock unlock|"
    "install uninstall|enable disable|upload download|connect disconnect|accept reject|"
    "increase decrease|push pull|show hide|expand collapse|attach detach|deposit withdraw|"
    "inflate deflate|freeze thaw|ascend descend|inhale exhale|promote demote|tighten loosen|"
    "activate deactivate|pause resume|subscribe unsubscribe|lengthen shorten|strengthen weaken|"
    "mount unmount|zip unzip|pack unpack|load unload|fold unfold|wrap unwrap|compress decompress|"
    "arm disarm|assemble disassemble"
).split("|")
SETS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday|"
    "January February March April June July August September October November December|"
    "spring summer autumn winter|morning afternoon evening night|"
    "Christmas Easter Thanksgiving Halloween|red green blue yellow white black purple|"
    "north south east west|breakfast lunch dinner|mother father brother sister uncle aunt|"
    "dollars euros yen|Mars Venus Jupiter Saturn Neptune|France Spain Norway Japan Brazil Kenya|"
    "daily weekly monthly yearly"
).split("|")


def antonyms(draw: random.Random) -> Iterator[Pair]:
    """Verbs and their contraries, plain and inflected."""
    for pair in VERB_PAIRS:
        one, other = pair.split()
        for _ in range(4):
            place = draw.choice(PLACES)
            yield f"How do I {one} the {place} account?", f"How do I {other} the {place} account?"
            yield f"Who {past(one)} the {place}?", f"Who {past(other)} the {place}?"
    for one, other in (("before", "after"), ("since", "until"), ("before", "until")):
        for thing in RELATIVE:
            yield f"What is open {one} the {thing}?", f"What is open {other} the {thing}?"


def permission(draw: random.Random) -> Iterator[Pair]:
    """What may, must and should be done; allowed, required, forbidden."""
    words = ("allowed", "forbidden", "required", "optional")
    for place in PLACES:
        for one, other in permutations(words, 2):
            yield f"Is a helmet {one} in the {place}?", f"Is a helmet {other} in the {place}?"
        for one, other in (("may", "must"), ("must", "should"), ("may", "should")):
            yield f"When {one} we enter the {place}?", f"When {other} we enter the {place}?"
            yield (
                f"{one.title()} visitors sign in the {place}?",
                f"{other.title()} visitors sign in the {place}?",
            )


def sets(draw: random.Random) -> Iterator[Pair]:
    """One member of a closed set for another."""
    for members in SETS:
        for one, other in permutations(members.split(), 2):
            place = draw.choice(PLACES)
            yield f"Which {place} has the {one} offer?", f"Which {place} has the {other} offer?"


KINDS: dict[str, Callable[[random.Random], Iterator[Pair]]] = {
    "identifiers": identifiers, "roles": roles, "giving": giving, "comparisons": comparisons,
    "relative": relative,
    "negated": negated, "turned": turned, "antonyms": antonyms, "permission": permission, "sets": sets,
}  # fmt: skip


def pairs(kind: str) -> list[Pair]:
    """All pairs of a kind, the same every time."""
    return list(KINDS[kind](random.Random(20)))


def reworded(draw: random.Random) -> Iterator[Pair]:
    """The same in other words: active and passive, lists, phrases that moved, ids and amounts."""
    for verb, acted, done in verbs():
        a, b = draw.sample(NAMES, 2)
        x, y = draw.sample(BEINGS, 2)
        place = draw.choice(PLACES)
        yield f"Did the {x} {verb} the {y}?", f"Was the {y} {done} by the {x}?"
        yield f"Why was {a} {done} by {b}?", f"Why did {b} {verb} {a}?"
        yield f"Who {acted} {a} and {b}?", f"Who {acted} {b} and {a}?"
        yield f"In the {place}, who {acted} {a}?", f"Who {acted} {a} in the {place}?"
    for word in ADJECTIVES:
        a, b = draw.sample(NAMES, 2)
        yield f"Who is {word}, {a} or {b}?", f"Who is {word}, {b} or {a}?"
    for _ in range(200):
        letters = "".join(draw.choices(string.ascii_lowercase, k=3))
        number, last = draw.randint(10, 999), draw.choice("abcdef")
        yield f"is part {letters}{number}{last} in stock", f"is part {letters}-{number}{last} in stock"
        yield f"is part {letters}{number} in stock", f"is part {letters} {number} in stock"
        yield f"does it weigh {number}kg", f"does it weigh {number} kilograms"
